//! The state each second, as server-sent events. A reader that is slow misses some and gets the newest.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_util::sync::ReusableBoxFuture;

/// The milliseconds after which a browser connects again.
const RETRY: u32 = 2000;

/// The body of an event stream.
pub(super) struct Events {
    first: Option<Bytes>,
    next: ReusableBoxFuture<'static, Option<(Bytes, watch::Receiver<Bytes>)>>,
    _place: OwnedSemaphorePermit,
}

impl Events {
    /// First this one, then each that is new.
    pub(super) fn new(first: &Bytes, events: watch::Receiver<Bytes>, place: OwnedSemaphorePermit) -> Self {
        let first = [format!("retry: {RETRY}\n\n").as_bytes(), first].concat().into();
        Self { first: Some(first), next: ReusableBoxFuture::new(next(events)), _place: place }
    }
}

/// A state as an event. JSON of serde_json's has no line breaks.
pub(super) fn event(state: &[u8]) -> Bytes {
    [b"event: state\ndata: ", state, b"\n\n"].concat().into()
}

async fn next(mut events: watch::Receiver<Bytes>) -> Option<(Bytes, watch::Receiver<Bytes>)> {
    events.changed().await.ok()?;
    let event = events.borrow_and_update().clone();
    Some((event, events))
}

impl HttpBody for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        Poll::Ready(ready!(self.next.poll(cx)).map(|(event, events)| {
            self.next.set(next(events));
            Ok(Frame::data(event))
        }))
    }
}
