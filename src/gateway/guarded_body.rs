//! Bodies that keep the slot of their request until they end, and break off once the client's access is revoked.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _, Shared};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::passthrough::PassthroughSlot;
use crate::protocol::body::BoxError;

/// Ends once the client's access is revoked. The upload, the response and the tunnel of a request each poll a clone.
pub(super) type Revocation = Shared<BoxFuture<'static, ()>>;

/// The body of a request or of its response. An upload may outlast its response, so both hold the slot.
pub(super) struct GuardedBody<B> {
    pub(super) body: B,
    pub(super) revocation: Revocation,
    pub(super) _slot: Option<Arc<PassthroughSlot>>,
}

#[derive(Debug, thiserror::Error)]
#[error("the client's access was revoked")]
struct AccessRevoked;

impl<B> HttpBody for GuardedBody<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if this.revocation.poll_unpin(cx).is_ready() {
            return Poll::Ready(Some(Err(AccessRevoked.into())));
        }
        Pin::new(&mut this.body).poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
