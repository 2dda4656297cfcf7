//! The body of a response to the client.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::protocol::cookies::strip_set_cookie;
use crate::protocol::hop_by_hop::strip_hop_by_hop;

/// Removes from the trailers the fields that are removed from the head.
pub(super) struct DownloadBody<B> {
    pub(super) body: B,
    /// Whether the upstream account is the gateway's, not the client's own.
    pub(super) is_lent: bool,
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for DownloadBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        Pin::new(&mut this.body).poll_frame(cx).map_ok(|mut frame| {
            if let Some(trailers) = frame.trailers_mut() {
                strip_hop_by_hop(trailers);
                if this.is_lent {
                    strip_set_cookie(trailers);
                }
            }
            frame
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
