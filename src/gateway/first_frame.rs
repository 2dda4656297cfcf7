//! Finds out whether a request has a body, where its head does not tell: a chunked body, or an HTTP/2 stream that its
//! client has not ended yet, may turn out to be empty.
//!
//! Reads the first frame and no more. Nothing is collected: the frame is replayed before the rest of the body.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::protocol::body::BoxError;

/// Empty DATA frames of HTTP/2 that are read while the body may still be empty. After these it counts as a body.
const MAX_EMPTY_FRAMES: usize = 16;

/// A body whose first frame has been read.
pub(super) struct Replayed<B> {
    first: Option<Frame<Bytes>>,
    rest: B,
}

/// Reads the body's beginning. `None` where the body has ended without a byte and without trailers.
///
/// The body's own timeout ends the read. Cancel safe only as a whole: dropping the future drops the body.
pub(super) async fn begin<B>(mut body: B) -> Result<Option<Replayed<B>>, BoxError>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    for _ in 0..MAX_EMPTY_FRAMES {
        match poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.transpose().map_err(Into::into)? {
            None => return Ok(None),
            Some(frame) if frame.data_ref().is_some_and(Bytes::is_empty) => {}
            Some(frame) => return Ok(Some(Replayed { first: Some(frame), rest: body })),
        }
    }
    Ok(Some(Replayed { first: None, rest: body }))
}

impl<B> HttpBody for Replayed<B>
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
        match this.first.take() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => Pin::new(&mut this.rest).poll_frame(cx).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.first.as_ref().and_then(Frame::data_ref).map_or(0, |data| data.len() as u64);
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + first);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + first);
        }
        hint
    }
}
