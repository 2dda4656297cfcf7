//! The body of a request to the upstream: bounded in size, monitored for progress, and without trailers that a server
//! could merge into the head.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;

use crate::auth::Credential;
use crate::clock;
use crate::protocol::body::{BoxError, Stalled};
use crate::protocol::spoofed_headers::strip_upload_trailers;

/// The body of a client's request. Over the limit it ends in an error, which ends the upload.
pub(super) struct UploadBody<B> {
    pub(super) body: B,
    pub(super) left: u64,
    pub(super) progress: Arc<UploadProgress>,
    /// Its fields are not allowed in trailers.
    pub(super) credential: Option<Credential>,
}

/// The progress of an upload, for the future that waits for the response. An HTTP/2 upstream client does not return the
/// error of the body.
pub(super) struct UploadProgress(Mutex<(Instant, Option<UploadFailure>)>);

#[derive(Clone, Copy)]
pub(super) enum UploadFailure {
    TooLarge,
    Stalled,
    Incomplete,
}

#[derive(Debug, thiserror::Error)]
#[error("the body of the request is larger than limits.max_body")]
struct OverLimit;

impl UploadProgress {
    pub(super) fn new() -> Self {
        Self(Mutex::new((clock::now(), None)))
    }

    pub(super) fn record(&self, failure: Option<UploadFailure>) {
        *self.0.lock() = (clock::now(), failure);
    }

    pub(super) fn last_progress(&self) -> Instant {
        self.0.lock().0
    }

    pub(super) fn failure(&self) -> Option<UploadFailure> {
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
                this.progress.record(Some(match error.is::<Stalled>() {
                    true => UploadFailure::Stalled,
                    false => UploadFailure::Incomplete,
                }));
                return Poll::Ready(Some(Err(error)));
            }
            None => {
                this.progress.record(None);
                return Poll::Ready(None);
            }
        };
        let length = frame.data_ref().map_or(0, |data| data.len() as u64);
        let Some(left) = this.left.checked_sub(length) else {
            this.progress.record(Some(UploadFailure::TooLarge));
            return Poll::Ready(Some(Err(OverLimit.into())));
        };
        this.left = left;
        if let Some(trailers) = frame.trailers_mut() {
            let keys = this.credential.as_ref().map(Credential::names).unwrap_or_default();
            strip_upload_trailers(trailers, &keys);
        }
        this.progress.record(None);
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
