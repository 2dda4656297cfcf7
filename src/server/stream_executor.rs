//! Executor for the streams of an HTTP/2 connection: one task a stream. Resets a stream whose client reads nothing.
//!
//! ```text
//!   service ──► announce(DeliveryProgress) ──► StreamExecutor ◄── execute(stream) ◄── hyper
//!                                                   └── task: the stream beside DeliveryProgress::poll_stalled
//! ```
//!
//! hyper calls the service for a stream and then executes the stream, one right after the other. The executor relies
//! on that order to pair the two. Dropping a stream resets it.

#[cfg(test)]
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tracing::debug;

/// Bytes of a response that hyper has received, and how many of them the client has read.
#[derive(Debug, Default)]
pub(super) struct DeliveryProgress {
    received: AtomicU64,
    delivered: AtomicU64,
}

impl DeliveryProgress {
    pub(super) fn receive(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn deliver(&self, bytes: usize) {
        self.delivered.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// Bytes that the client could read.
    pub(super) fn undelivered(&self) -> u64 {
        let delivered = self.delivered();
        self.received.load(Ordering::Relaxed).saturating_sub(delivered)
    }

    #[cfg(test)]
    async fn stalled(&self, stall_timeout: Duration, allowance: u64, min_progress: u64) {
        let mut timer = StallTimer::default();
        poll_fn(|cx| self.poll_stalled(&mut timer, stall_timeout, allowance, min_progress, cx)).await;
    }

    /// Is ready when more than `allowance` bytes have been available for `stall_timeout`, and the client has read
    /// fewer than `min_progress` of them.
    ///
    /// Poll it after the stream, each time: it registers no waker for progress. The timer runs only while bytes are
    /// available.
    pub(super) fn poll_stalled(
        &self,
        timer: &mut StallTimer,
        stall_timeout: Duration,
        allowance: u64,
        min_progress: u64,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        loop {
            let is_available = self.undelivered() > allowance;
            match &mut timer.0 {
                None if !is_available => return Poll::Pending,
                none @ None => *none = Some((self.delivered(), Box::pin(tokio::time::sleep(stall_timeout)))),
                Some((from, sleep)) if is_available && self.delivered() - *from < min_progress => {
                    return sleep.as_mut().poll(cx);
                }
                moving @ Some(_) => *moving = None,
            }
        }
    }
}

/// Timer of a client that reads nothing, and the bytes that it had read at the timer's start. Boxed: the timer is large,
/// and most streams never need it.
#[derive(Debug, Default)]
pub(super) struct StallTimer(Option<(u64, Pin<Box<Sleep>>)>);

/// Runs the streams of one connection. Clones share their state.
#[derive(Clone, Debug)]
pub(super) struct StreamExecutor {
    stall_timeout: Duration,
    /// Counts for the stream that is executed next.
    next: Arc<Mutex<Option<Arc<DeliveryProgress>>>>,
}

impl StreamExecutor {
    pub(super) fn new(stall_timeout: Duration) -> Self {
        Self { stall_timeout, next: Arc::default() }
    }

    /// Sets the counter of the stream that hyper executes next.
    pub(super) fn announce(&self, delivered: Arc<DeliveryProgress>) {
        *self.next.lock() = Some(delivered);
    }
}

impl<F> hyper::rt::Executor<F> for StreamExecutor
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        let Some(delivered) = self.next.lock().take() else {
            tokio::spawn(stream);
            return;
        };
        let (stall_timeout, timer) = (self.stall_timeout, StallTimer::default());
        tokio::spawn(StreamTask { stream, delivered, stall_timeout, timer });
    }
}

pin_project! {
    /// A stream beside the timeout of its client, as `select!` would poll the two. A type of its own: an `async` block has
    /// room for the stream twice, 512 bytes more for each parked wait.
    struct StreamTask<F> {
        #[pin]
        stream: F,
        delivered: Arc<DeliveryProgress>,
        stall_timeout: Duration,
        timer: StallTimer,
    }
}

impl<F: Future> Future for StreamTask<F> {
    type Output = ();

    /// Ends with the stream, or when the stream is to be reset, which its drop does.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.stream.poll(cx).is_pending() {
            ready!(this.delivered.poll_stalled(this.timer, *this.stall_timeout, 0, 1, cx));
            debug!("client stopped reading, resetting stream");
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL_TIMEOUT: Duration = Duration::from_secs(60);

    async fn is_stalled(stalled: &mut (impl Future<Output = ()> + Unpin), within: Duration) -> bool {
        tokio::time::timeout(within, stalled).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_a_byte_now_and_then_does_not_stall_and_one_that_reads_none_does() {
        let delivered = DeliveryProgress::default();
        let mut stalled = Box::pin(delivered.stalled(STALL_TIMEOUT, 0, 1));
        assert!(!is_stalled(&mut stalled, 10 * STALL_TIMEOUT).await, "no bytes are available");
        delivered.receive(10);
        for _ in 0..5 {
            assert!(!is_stalled(&mut stalled, STALL_TIMEOUT / 2).await);
            delivered.deliver(1);
        }
        assert!(!is_stalled(&mut stalled, STALL_TIMEOUT - Duration::from_secs(1)).await);
        assert!(is_stalled(&mut stalled, Duration::from_secs(2)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_with_more_unread_bytes_than_allowed_has_to_read_the_minimum() {
        let delivered = DeliveryProgress::default();
        let mut stalled = Box::pin(delivered.stalled(STALL_TIMEOUT, 100, 50));
        delivered.receive(100);
        assert!(!is_stalled(&mut stalled, 10 * STALL_TIMEOUT).await);
        delivered.receive(1000);
        for _ in 0..5 {
            assert!(!is_stalled(&mut stalled, STALL_TIMEOUT / 2).await);
            delivered.deliver(50);
        }
        assert!(!is_stalled(&mut stalled, STALL_TIMEOUT / 2).await);
        delivered.deliver(49);
        assert!(is_stalled(&mut stalled, STALL_TIMEOUT).await);
    }
}
