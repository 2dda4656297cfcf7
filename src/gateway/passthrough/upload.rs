//! The body of a request on its way to the upstream: bounded in size, watched for progress, and without trailers that
//! a server could take for fields of the head.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;

use crate::clock;
use crate::protocol::body::{BoxError, Stalled};
use crate::protocol::spoofed_headers::strip_upload_trailers;

/// A client's body on its way up. Over the limit, it ends in an error, and the upload with it.
pub(super) struct UploadBody<B> {
    pub(super) body: B,
    pub(super) left: u64,
    pub(super) progress: Arc<UploadProgress>,
}

/// What the waiting side sees of an upload: HTTP/2 does not tell why one failed.
pub(super) struct UploadProgress(Mutex<(Instant, UploadFailure)>);

#[derive(Clone, Copy)]
pub(super) enum UploadFailure {
    Sound,
    TooLarge,
    Stalled,
    Broke,
}

#[derive(Debug, thiserror::Error)]
#[error("the request's body is larger than limits.max_body")]
struct OverLimit;

impl UploadProgress {
    pub(super) fn new() -> Self {
        Self(Mutex::new((clock::now(), UploadFailure::Sound)))
    }

    pub(super) fn moved(&self, fate: UploadFailure) {
        *self.0.lock() = (clock::now(), fate);
    }

    pub(super) fn moved_at(&self) -> Instant {
        self.0.lock().0
    }

    pub(super) fn fate(&self) -> UploadFailure {
        self.0.lock().1
    }
}

impl<B> HttpBody for UploadBody<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let mut frame = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                let error = error.into();
                this.progress.moved(if error.is::<Stalled>() {
                    UploadFailure::Stalled
                } else {
                    UploadFailure::Broke
                });
                return Poll::Ready(Some(Err(error)));
            }
            None => {
                this.progress.moved(UploadFailure::Sound);
                return Poll::Ready(None);
            }
        };
        let length = frame.data_ref().map_or(0, |data| data.len() as u64);
        let Some(left) = this.left.checked_sub(length) else {
            this.progress.moved(UploadFailure::TooLarge);
            return Poll::Ready(Some(Err(OverLimit.into())));
        };
        this.left = left;
        if let Some(trailers) = frame.trailers_mut() {
            strip_upload_trailers(trailers);
        }
        this.progress.moved(UploadFailure::Sound);
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
