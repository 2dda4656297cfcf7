//! The body of a request as it arrives, which must not stand still for too long.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Sleep;

use super::activity::{ConnectionActivity, UploadGuard};
use crate::protocol::body::{BoxError, Stalled};

/// A client's body. Ends in [`Stalled`] when nothing comes for `patience` while somebody waits for it; what nobody
/// reads is no fault of its client's.
pub(super) struct UploadTimeout<B> {
    body: B,
    patience: Duration,
    /// Runs while the client is waited for.
    timer: Option<Pin<Box<Sleep>>>,
    uploading: Option<UploadGuard>,
}

impl<B: HttpBody> UploadTimeout<B> {
    pub(super) fn new(body: B, patience: Duration, answers: &ConnectionActivity) -> Self {
        let uploading = (!body.is_end_stream()).then(|| answers.begin_upload());
        Self { body, patience, timer: None, uploading }
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
            let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(this.patience)));
            ready!(timer.as_mut().poll(cx));
            return Poll::Ready(Some(Err(Stalled.into())));
        };
        this.timer = None;
        if (frame.is_none() || this.body.is_end_stream())
            && let Some(uploading) = this.uploading.take()
        {
            uploading.end();
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
