//! Passes a request through, whole or in the middle of its body.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, Request};
use http_body::Body as HttpBody;
use tracing::debug;

use super::access_log::Outcome;
use super::error::Refusal;
use super::held_body::{Held, Withdrawal};
use super::passthrough::{Credential, Forwarded, PassError, Slot, Tunnel};
use super::response::cache_status;
use super::target::Target;
use super::{Asking, Gateway, Step, first_frame};
use crate::auth::{AuthError, Identity};
use crate::clock;
use crate::core::job::{JobId, KeyDomain};
use crate::core::query;
use crate::limits::Who;
use crate::protocol::body::{Body, BoxError, Stalled};
use crate::upstream::poll::{KeyWord, key_word};

impl Gateway {
    /// Waits for the body's first bytes or its end. The client has the time of any upload for them.
    pub(super) fn read_body<B>(
        self,
        request: Request<B>,
        target: Target,
        mut asking: Asking,
    ) -> BoxFuture<'static, Forwarded>
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
                        .and_then(|identity| self.may_pass(asking.who, identity));
                    self.follow(step, Request::from_parts(head, body), asking).await
                }
                Err(error) if error.is::<Stalled>() => self.finish(asking, Err(PassError::Stalled.into())),
                Err(error) => self.finish(asking, Err(PassError::Upload(error).into())),
            }
        })
    }

    /// A reload may have shut the client out while its body was on its way.
    fn let_in_again(&self, request: &HeaderMap) -> Result<Option<Identity>, Refusal> {
        Ok(self.0.keyring.identify(request)?)
    }

    /// Takes a slot for a request to the upstream, and counts it.
    pub(super) fn may_pass(&self, who: Who, identity: Option<Identity>) -> Result<Step, Refusal> {
        let slot = self.0.slots.take(who)?;
        self.0.limits.call(who)?;
        Ok(Step::Pass(identity, slot))
    }

    pub(super) fn pass<B>(
        self,
        request: Request<B>,
        identity: Option<Identity>,
        slot: Slot,
        mut asking: Asking,
    ) -> BoxFuture<'static, Forwarded>
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
            asking.line.outcome = Outcome::Passed;
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
            let Forwarded { mut response, tunnel } = match answer {
                Ok(forwarded) => forwarded,
                Err(error) => return self.finish(asking, Err(error.into())),
            };
            if let Some(identity) = identity {
                self.heed(key_word(response.status()), identity.domain, &named);
            }
            // No fwd-status: the answer's own status is the one that the upstream gave.
            cache_status(response.headers_mut(), fwd);
            let forwarded = match tunnel {
                Some(tunnel) => Forwarded { response, tunnel: Some(held_tunnel(tunnel, withdrawal, slot)) },
                None => {
                    response.map(|body| Body::stream(Held { body, withdrawal, _slot: Some(slot) })).into()
                }
            };
            self.finish(asking, Ok(forwarded))
        })
    }

    /// Acts on what the upstream said of the key of a passed-through request, whose target named these clips. A success
    /// proves nothing: there are paths that the upstream answers without a look at the key.
    fn heed(&self, word: Option<KeyWord>, domain: KeyDomain, named: &[JobId]) {
        match word {
            Some(KeyWord::Refused) => self.0.cache.refused(domain, clock::now()),
            Some(KeyWord::Forbidden) => self.0.cache.forbidden(domain, named, clock::now()),
            Some(KeyWord::Accepted) | None => {}
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
