//! Time-out of a request body that stops arriving.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Sleep;

use super::activity::{ConnectionActivity, UploadGuard};
use crate::protocol::body::{BoxError, Stalled};

/// Body of a request. Fails with [`Stalled`] when no byte arrives for `stall_timeout` while the gateway waits for
/// one. The time in which the gateway does not read does not count.
pub(super) struct UploadTimeout<B> {
    body: B,
    stall_timeout: Duration,
    /// Runs while the gateway waits for the client.
    timer: Option<Pin<Box<Sleep>>>,
    upload: Option<UploadGuard>,
}

impl<B: HttpBody> UploadTimeout<B> {
    pub(super) fn new(body: B, stall_timeout: Duration, activity: &ConnectionActivity) -> Self {
        let upload = (!body.is_end_stream()).then(|| activity.begin_upload());
        Self { body, stall_timeout, timer: None, upload }
    }
}

impl<B> HttpBody for UploadTimeout<B>
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
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) else {
            let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(this.stall_timeout)));
            ready!(timer.as_mut().poll(cx));
            return Poll::Ready(Some(Err(Stalled.into())));
        };
        this.timer = None;
        if (frame.is_none() || this.body.is_end_stream())
            && let Some(upload) = this.upload.take()
        {
            upload.end();
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
