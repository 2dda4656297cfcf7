//! Body of `/api/events`: the state each second, as server-sent events. A slow reader skips states and gets the newest.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_util::sync::ReusableBoxFuture;

use crate::protocol::sse;

pub(super) struct StateEvents {
    first: Option<Bytes>,
    next: ReusableBoxFuture<'static, Option<(Bytes, watch::Receiver<Bytes>)>>,
    _permit: OwnedSemaphorePermit,
}

impl StateEvents {
    /// Sends `first`, then each new event. Holds the permit until the stream ends.
    pub(super) fn new(first: &Bytes, events: watch::Receiver<Bytes>, permit: OwnedSemaphorePermit) -> Self {
        let first = [sse::OPENING, first.clone()].concat().into();
        Self { first: Some(first), next: ReusableBoxFuture::new(next(events)), _permit: permit }
    }
}

/// Returns a state as an event.
pub(super) fn state_event(state: &[u8]) -> Bytes {
    sse::SseEvent::new("state", state).to_bytes()
}

async fn next(mut events: watch::Receiver<Bytes>) -> Option<(Bytes, watch::Receiver<Bytes>)> {
    events.changed().await.ok()?;
    let event = events.borrow_and_update().clone();
    Some((event, events))
}

impl HttpBody for StateEvents {
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
