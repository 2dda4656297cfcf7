//! Bodies that keep the slot of their request until they end, and break off once the client's access is revoked.
//!
//! Most requests end at once. To be notified of a reload costs such a request 3 % of its instructions. So only a request
//! that has to wait is notified.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _, Shared};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::access_revocation::ClientAccess;
use super::passthrough::PassthroughSlot;
use crate::protocol::body::{Body, BoxError};
use crate::telemetry::trace::RequestSpan;

/// Ends once the client's access is revoked. The upload, the response and the tunnel of a request each poll a clone.
pub(super) type Revocation = Shared<BoxFuture<'static, ()>>;

/// A request until its upload, its response and its tunnel have all ended. Each of them holds a reference.
pub(super) struct OpenRequest {
    access: ClientAccess,
    revocation: OnceLock<Revocation>,
    _slot: Option<PassthroughSlot>,
}

impl OpenRequest {
    pub(super) fn new(access: ClientAccess, slot: Option<PassthroughSlot>) -> Arc<Self> {
        Arc::new(Self { access, revocation: OnceLock::new(), _slot: slot })
    }

    /// Returns a future that ends once a reload has revoked the client's access.
    pub(super) fn revocation(&self) -> Revocation {
        self.revocation.get_or_init(|| self.access.clone().revoked().boxed().shared()).clone()
    }

    /// Returns whether the client's access is known to be revoked.
    pub(super) fn is_revoked(&self) -> bool {
        self.revocation.get().is_some_and(|revocation| revocation.peek().is_some())
    }
}

/// The body of a request or of its response.
pub(super) struct GuardedBody<B> {
    body: B,
    request: Arc<OpenRequest>,
    /// `None` until the body has to wait.
    revocation: Option<Revocation>,
    /// Frames without a wait.
    frames: usize,
}

/// Most frames that a body passes on before it is watched although it never waits.
const MAX_FRAMES: usize = 8;

impl<B> GuardedBody<B> {
    pub(super) fn new(body: B, request: Arc<OpenRequest>) -> Self {
        Self { body, request, revocation: None, frames: 0 }
    }
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
        let frame = Pin::new(&mut this.body).poll_frame(cx).map_err(Into::into);
        let is_unwatched = this.revocation.is_none() && this.frames < MAX_FRAMES;
        if frame.is_ready() && is_unwatched && !this.request.access.is_outdated() {
            this.frames += 1;
            return frame;
        }
        let revocation = this.revocation.get_or_insert_with(|| this.request.revocation());
        if revocation.poll_unpin(cx).is_ready() {
            return Poll::Ready(Some(Err(AccessRevoked.into())));
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
            Body::Stream(_) => Body::stream(Self { body, span: Some(span) }),
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
