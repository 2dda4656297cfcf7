//! Passes a request through: takes a slot, sends it to the upstream, guards its bodies and its tunnel.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body::Body as HttpBody;
use tracing::debug;

use super::{PassthroughError, PassthroughResponse, PassthroughSlot, Tunnel, UpstreamAccount};
use crate::auth::{Identity, KeyOrigin};
use crate::clock;
use crate::core::job::{JobId, KeyDomain};
use crate::core::query;
use crate::gateway::access_log::Disposition;
use crate::gateway::action::PendingAction;
use crate::gateway::classify::RequestTarget;
use crate::gateway::error::GatewayError;
use crate::gateway::first_frame::read_first_frame;
use crate::gateway::guarded_body::{GuardedBody, OpenRequest};
use crate::gateway::response::append_passthrough_status;
use crate::gateway::{Decision, Gateway, RequestState};
use crate::protocol::body::{Body, BoxError, Stalled};
use crate::protocol::forwarded::is_proxied;
use crate::protocol::host::requested_host;
use crate::upstream::poll::{KeyVerdict, key_verdict};

/// Longest body in memory that is passed on without the slot of its request. `limits.max_passthrough` bounds the memory of
/// longer ones until the client has read them.
const SHORT_BODY: u64 = 16 << 10;

impl Gateway {
    /// Waits for the first bytes of the body or its end, and then decides the request. The client has the same time as
    /// for any upload.
    pub(in crate::gateway) fn decide_after_body<B>(
        self,
        request: Request<B>,
        target: RequestTarget,
        mut state: Box<RequestState>,
    ) -> BoxFuture<'static, PassthroughResponse>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        Box::pin(async move {
            let (head, body) = request.into_parts();
            match read_first_frame(body).await {
                Ok(None) => {
                    let decision = self.authenticate_again(&head.headers).and_then(|identity| {
                        // A 401 or 403 of the upstream may have arrived since the head.
                        let domain = identity.as_ref().map(|identity| identity.domain);
                        let proof = domain.and_then(|domain| self.0.cache.proof(domain));
                        self.decide_target(&head.headers, target, identity, proof, clock::now(), &mut state)
                    });
                    self.execute(decision, Request::from_parts(head, Body::empty()), state).await
                }
                Ok(Some(body)) => {
                    let decision = self
                        .authenticate_again(&head.headers)
                        .and_then(|identity| self.start_passthrough(&mut state, identity));
                    self.execute(decision, Request::from_parts(head, body), state).await
                }
                Err(error) if error.is::<Stalled>() => {
                    self.respond(state, Err(PassthroughError::Stalled.into()))
                }
                Err(error) => self.respond(state, Err(PassthroughError::Upload(error).into())),
            }
        })
    }

    /// Authenticates a request that took time until it is passed through: a reload may have removed its client meanwhile.
    pub(in crate::gateway) fn authenticate_again(
        &self,
        headers: &HeaderMap,
    ) -> Result<Option<Identity>, GatewayError> {
        Ok(self.0.access.authenticator.identify(headers)?)
    }

    /// Takes a slot and counts the call.
    pub(in crate::gateway) fn start_passthrough(
        &self,
        state: &mut RequestState,
        identity: Option<Identity>,
    ) -> Result<Decision, GatewayError> {
        let slot = self.0.slots.take(state.subject)?;
        state.remaining.calls = self.0.limits.check_call(state.subject)?;
        Ok(Decision::Pass(identity, slot))
    }

    pub(in crate::gateway) fn pass_through<B>(
        self,
        request: Request<B>,
        identity: Option<Identity>,
        slot: PassthroughSlot,
        mut state: Box<RequestState>,
    ) -> BoxFuture<'static, PassthroughResponse>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        // Shared: the upload may outlast the response, and the tunnel both.
        let access = self.client_access(request.headers(), identity.as_ref(), &state);
        let open = OpenRequest::new(access, Some(slot));
        let guard = |body| GuardedBody::new(body, Arc::clone(&open));
        state.log.disposition = Disposition::Passthrough;
        // Only links need them.
        let headers = self.0.links.as_ref().map(|_| request.headers());
        let host = headers.and_then(|headers| requested_host(request.uri(), headers));
        let is_proxied = headers.is_some_and(is_proxied);
        let action = PendingAction::of(&self, &request, identity.as_ref());
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let key = identity.as_ref().map(|identity| (identity.domain, identity.origin));
        let credential = identity.map(|identity| identity.credential);
        let account = UpstreamAccount { credential, is_lent: state.is_lent };
        // Before the future begins, so that the future does not reserve space for the client's request.
        let prepared =
            self.0.passthrough.prepare(request, state.found, guard, state.log.ctx(), account, &state.span);
        Box::pin(async move {
            let sent = match prepared {
                Ok(prepared) => self.0.passthrough.forward(prepared, async { open.revocation().await }).await,
                Err(error) => Err(error),
            };
            let PassthroughResponse { mut response, tunnel } = match sent {
                Ok(passed) => passed,
                // A revocation also ends the upload early.
                Err(PassthroughError::Revoked | PassthroughError::Upload(_)) if open.is_revoked() => {
                    return self.respond(state, Err(self.0.access.authenticator.revoked().into()));
                }
                Err(error) => {
                    if let Some(action) = action {
                        action.failed(&error);
                    }
                    return self.respond(state, Err(error.into()));
                }
            };
            if let Some(action) = action {
                action.answered(response.status());
            }
            if let Some((domain, origin)) = key {
                // In open mode the key that the upstream rejects is the client's own, and no key of the domain.
                let has_key = origin != KeyOrigin::Open;
                let verdict = key_verdict(response.status()).filter(|_| has_key);
                let is_read = [Method::GET, Method::HEAD].contains(&method);
                let is_missing = is_read && response.status() == StatusCode::NOT_FOUND;
                if is_missing || !matches!(verdict, Some(KeyVerdict::Accepted) | None) {
                    let named = query::named(&self.0.routes, uri.path(), uri.query());
                    self.record_key_verdict(verdict, domain, &named);
                    if is_missing {
                        self.remove_missing(domain, &named);
                    }
                }
            }
            if let Some(links) = &self.0.links {
                links.rewrite(response.headers_mut(), || state.client_origin(host.as_ref(), is_proxied));
            }
            append_passthrough_status(response.headers_mut(), &method);
            let passed = match tunnel {
                Some(tunnel) => {
                    let tunnel = guarded_tunnel(tunnel, open);
                    PassthroughResponse { response, tunnel: Some(tunnel) }
                }
                // So short that it needs no slot.
                None if is_short(response.body()) => response.into(),
                None => response.map(|body| Body::stream(GuardedBody::new(body, open))).into(),
            };
            self.respond(state, Ok(passed))
        })
    }

    /// Removes cached jobs after a 401 or 403 to a request that named these jobs (P11). A success does not prove the
    /// key: the upstream answers some paths without checking it.
    fn record_key_verdict(&self, verdict: Option<KeyVerdict>, domain: KeyDomain, named: &[JobId]) {
        match verdict {
            Some(KeyVerdict::Refused) => {
                self.0.cache.key_rejected(domain, clock::now());
                self.0.hub.key_refused(domain);
            }
            Some(KeyVerdict::Forbidden) => self.0.cache.key_forbidden(domain, named, clock::now()),
            Some(KeyVerdict::Accepted) | None => {}
        }
    }
}

fn is_short(body: &Body) -> bool {
    matches!(body, Body::Full(_)) && body.size_hint().upper() <= Some(SHORT_BODY)
}

/// Returns the tunnel with its slot, which ends once its client's access is revoked.
fn guarded_tunnel(tunnel: Tunnel, open: Arc<OpenRequest>) -> Tunnel {
    Box::pin(async move {
        // Cancel safe: both connections are closed, whichever future ends first.
        tokio::select! {
            () = tunnel => {}
            () = open.revocation() => debug!("access revoked, closing tunnel"),
        }
        drop(open);
    })
}
