//! Bodies that keep the slot of their request until they end, and break off once the client's access is revoked.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _, Shared};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::passthrough::PassthroughSlot;
use crate::protocol::body::{Body, BoxError};
use crate::telemetry::trace::RequestSpan;

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

/// The streamed body of a recorded request: its end is the end of the request's span.
pub(super) struct SpannedBody {
    body: Body,
    /// `None` once the body has ended.
    span: Option<RequestSpan>,
}

impl SpannedBody {
    /// Keeps the span until the end of the body. The span of a body in memory ends now.
    pub(super) fn wrap(body: Body, span: RequestSpan) -> Body {
        match body {
            Body::Stream(_) if span.is_recorded() => Body::stream(Self { body, span: Some(span) }),
            body => body,
        }
    }
}

impl HttpBody for SpannedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        if let Poll::Ready(None | Some(Err(_))) = frame {
            this.span = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
