//! Passes a request through, whole or in the middle of its body.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, Request};
use http_body::Body as HttpBody;
use tracing::debug;

use super::access_log::Disposition;
use super::error::GatewayError;
use super::held_body::{Held, Withdrawal};
use super::passthrough::{Credential, PassthroughError, PassthroughResponse, Slot, Tunnel};
use super::response::cache_status;
use super::target::Target;
use super::{Decision, Gateway, RequestState, first_frame};
use crate::auth::{AuthError, Identity};
use crate::clock;
use crate::core::job::{JobId, KeyDomain};
use crate::core::query;
use crate::limits::Subject;
use crate::protocol::body::{Body, BoxError, Stalled};
use crate::upstream::poll::{KeyVerdict, key_verdict};

impl Gateway {
    /// Waits for the body's first bytes or its end. The client has the time of any upload for them.
    pub(super) fn read_body<B>(
        self,
        request: Request<B>,
        target: Target,
        mut asking: RequestState,
    ) -> BoxFuture<'static, PassthroughResponse>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        Box::pin(async move {
            let (head, body) = request.into_parts();
            match first_frame::begin(body).await {
                Ok(None) => {
                    let step = self.let_in_again(&head.headers).and_then(|identity| {
                        // A 401 or 403 may have come since the head did.
                        let domain = identity.as_ref().map(|identity| identity.domain);
                        asking.proof = domain.and_then(|domain| self.0.cache.proof(domain));
                        self.decide_target(&head.headers, target, identity, &mut asking)
                    });
                    self.follow(step, Request::from_parts(head, Body::empty()), asking).await
                }
                Ok(Some(body)) => {
                    let step = self
                        .let_in_again(&head.headers)
                        .and_then(|identity| self.may_pass(asking.subject, identity));
                    self.follow(step, Request::from_parts(head, body), asking).await
                }
                Err(error) if error.is::<Stalled>() => {
                    self.finish(asking, Err(PassthroughError::Stalled.into()))
                }
                Err(error) => self.finish(asking, Err(PassthroughError::Upload(error).into())),
            }
        })
    }

    /// A reload may have shut the client out while its body was on its way.
    fn let_in_again(&self, request: &HeaderMap) -> Result<Option<Identity>, GatewayError> {
        Ok(self.0.keyring.identify(request)?)
    }

    /// Takes a slot for a request to the upstream, and counts it.
    pub(super) fn may_pass(
        &self,
        who: Subject,
        identity: Option<Identity>,
    ) -> Result<Decision, GatewayError> {
        let slot = self.0.slots.take(who)?;
        self.0.limits.check_call(who)?;
        Ok(Decision::Pass(identity, slot))
    }

    pub(super) fn pass<B>(
        self,
        request: Request<B>,
        identity: Option<Identity>,
        slot: Slot,
        mut asking: RequestState,
    ) -> BoxFuture<'static, PassthroughResponse>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        Box::pin(async move {
            let withdrawal = self.withdrawal(request.headers(), &asking);
            // The upload may outlast the answer, and the tunnel both.
            let slot = Arc::new(slot);
            let request = request.map(|body| Held {
                body,
                withdrawal: withdrawal.clone(),
                _slot: Some(Arc::clone(&slot)),
            });
            asking.line.outcome = Disposition::Passed;
            let fwd = if request.method() == Method::GET { "fwd=bypass" } else { "fwd=method" };
            let named = query::named(&self.0.route, request.uri().path(), request.uri().query());
            let authorization = identity.as_ref().map(|identity| identity.authorization.clone());
            let credential = Credential { authorization, is_lent: asking.is_lent };
            let forwarding = self.0.passthrough.forward(request, asking.line.ctx(), credential, &asking.span);
            // Cancel safe: whose access is withdrawn has no use for the answer.
            let answer = tokio::select! {
                answer = forwarding => answer,
                () = withdrawal.clone() => return self.finish(asking, Err(AuthError::UnknownToken.into())),
            };
            let PassthroughResponse { mut response, tunnel } = match answer {
                Ok(forwarded) => forwarded,
                Err(error) => return self.finish(asking, Err(error.into())),
            };
            if let Some(identity) = identity {
                self.heed(key_verdict(response.status()), identity.domain, &named);
            }
            // No fwd-status: the answer's own status is the one that the upstream gave.
            cache_status(response.headers_mut(), fwd);
            let forwarded = match tunnel {
                Some(tunnel) => {
                    PassthroughResponse { response, tunnel: Some(held_tunnel(tunnel, withdrawal, slot)) }
                }
                None => {
                    response.map(|body| Body::stream(Held { body, withdrawal, _slot: Some(slot) })).into()
                }
            };
            self.finish(asking, Ok(forwarded))
        })
    }

    /// Acts on what the upstream said of the key of a passed-through request, whose target named these jobs. A success
    /// proves nothing: there are paths that the upstream answers without a look at the key.
    fn heed(&self, word: Option<KeyVerdict>, domain: KeyDomain, named: &[JobId]) {
        match word {
            Some(KeyVerdict::Refused) => self.0.cache.key_rejected(domain, clock::now()),
            Some(KeyVerdict::Forbidden) => self.0.cache.key_forbidden(domain, named, clock::now()),
            Some(KeyVerdict::Accepted) | None => {}
        }
    }
}

/// The tunnel, which has its slot until it ends, and ends when its client's access has been withdrawn.
fn held_tunnel(tunnel: Tunnel, withdrawal: Withdrawal, slot: Arc<Slot>) -> Tunnel {
    Box::pin(async move {
        // Cancel safe: whichever ends, both connections are closed.
        tokio::select! {
            () = tunnel => {}
            () = withdrawal => debug!("access withdrawn, tunnel closed"),
        }
        drop(slot);
    })
}
