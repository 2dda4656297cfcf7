//! Finds out whether a request has a body if its head does not say so: a chunked body, or an HTTP/2 stream that the
//! client has not ended yet, may be empty.
//!
//! Reads the first frame only. It is replayed in front of the rest of the body; nothing is collected.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::protocol::body::BoxError;

/// The number of empty HTTP/2 DATA frames that may precede the end of an empty body. After these the body counts as
/// present.
const MAX_EMPTY_FRAMES: usize = 16;

/// A body whose first frame was read.
pub(super) struct ReplayedBody<B> {
    first: Option<Frame<Bytes>>,
    rest: B,
}

/// Reads the first frame. `None`: the body ended without bytes and without trailers.
///
/// The body's own timeout ends the read. Cancel safe only as a whole: dropping the future drops the body.
pub(super) async fn read_first_frame<B>(mut body: B) -> Result<Option<ReplayedBody<B>>, BoxError>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    for _ in 0..MAX_EMPTY_FRAMES {
        match poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.transpose().map_err(Into::into)? {
            None => return Ok(None),
            Some(frame) if frame.data_ref().is_some_and(Bytes::is_empty) => {}
            Some(frame) => return Ok(Some(ReplayedBody { first: Some(frame), rest: body })),
        }
    }
    Ok(Some(ReplayedBody { first: None, rest: body }))
}

impl<B> HttpBody for ReplayedBody<B>
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
