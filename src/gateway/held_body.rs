//! Bodies that hold the slot of their request until they end, and break off when access is withdrawn.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _, Shared};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::passthrough::Slot;
use crate::protocol::body::BoxError;

/// Ends when the client's access has been withdrawn. Upload, answer and tunnel of a request each poll a clone.
pub(super) type Withdrawal = Shared<BoxFuture<'static, ()>>;

/// A body of a request or of its answer, with the slot of the request if it has one. Breaks off when its client's access
/// has been withdrawn; an upload may go on after its answer.
pub(super) struct Held<B> {
    pub(super) body: B,
    pub(super) withdrawal: Withdrawal,
    pub(super) _slot: Option<Arc<Slot>>,
}

/// The cause with which a body breaks off.
#[derive(Debug, thiserror::Error)]
#[error("the client's access was withdrawn")]
struct Withdrawn;

impl<B> HttpBody for Held<B>
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
        if this.withdrawal.poll_unpin(cx).is_ready() {
            return Poll::Ready(Some(Err(Withdrawn.into())));
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
