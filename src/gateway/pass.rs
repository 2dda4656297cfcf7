//! Passes a request through, whole or in the middle of its body.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, Request};
use http_body::Body as HttpBody;

use super::held::Held;
use super::target::Target;
use super::{Asking, Gateway, Step, content};
use crate::access::Outcome;
use crate::auth::Identity;
use crate::body::{Body, BoxError, Stalled};
use crate::clock;
use crate::error::Refusal;
use crate::limits::Who;
use crate::passthrough::{Credential, Forwarded, PassError, Slot, Tunnel};
use crate::reply::cache_status;
use crate::upstream::poll::{KeyWord, key_word};

impl Gateway {
    /// Waits for the body's first bytes or its end. The client has the time of any upload for them.
    pub(super) fn read_body<B>(
        self,
        request: Request<B>,
        target: Target,
        identity: Option<Identity>,
        mut asking: Asking,
    ) -> BoxFuture<'static, Forwarded>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        Box::pin(async move {
            let (head, body) = request.into_parts();
            match content::begin(body).await {
                Ok(None) => {
                    let step = self.decide_target(&head.headers, target, identity, &mut asking);
                    self.follow(step, Request::from_parts(head, Body::empty()), asking).await
                }
                Ok(Some(body)) => {
                    let step = self.may_pass(asking.who, identity);
                    self.follow(step, Request::from_parts(head, body), asking).await
                }
                Err(error) if error.is::<Stalled>() => self.finish(asking, Err(PassError::Stalled.into())),
                Err(error) => self.finish(asking, Err(PassError::Upload(error).into())),
            }
        })
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
            // The upload may outlast the answer, and the tunnel both.
            let slot = Arc::new(slot);
            let request = request.map(|body| Held { body, _held: Arc::clone(&slot) });
            asking.line.outcome = Outcome::Passed;
            let fwd = if request.method() == Method::GET { "fwd=bypass" } else { "fwd=method" };
            let authorization = identity.as_ref().map(|identity| identity.authorization.clone());
            let credential = Credential { authorization, is_lent: asking.is_lent };
            let mut answer =
                self.0.passthrough.forward(request, asking.line.ctx(), credential, &asking.span).await;
            if let Ok(forwarded) = &mut answer {
                let status = forwarded.response.status();
                if let (Some(KeyWord::Refused), Some(identity)) = (key_word(status), identity) {
                    self.0.cache.refused(identity.domain, clock::now());
                }
                // No fwd-status: the answer's own status is the one that the upstream gave.
                cache_status(forwarded.response.headers_mut(), fwd);
            }
            let answer = answer.map(|Forwarded { response, tunnel }| Forwarded {
                response: response.map(|body| Body::stream(Held { body, _held: Arc::clone(&slot) })),
                tunnel: tunnel.map(|tunnel| -> Tunnel {
                    Box::pin(async move {
                        tunnel.await;
                        drop(slot);
                    })
                }),
            });
            self.finish(asking, answer.map_err(Refusal::from))
        })
    }
}
