//! Executor for the streams of an HTTP/2 connection: one task a stream. Resets a stream whose client reads nothing.
//!
//! ```text
//!   service ──► announce(DeliveryProgress) ──► StreamExecutor ◄── execute(stream) ◄── hyper
//!                                                   └── task: the stream beside DeliveryProgress::stalled
//! ```
//!
//! hyper calls the service for a stream and then executes the stream, one right after the other. The executor relies
//! on that order to pair the two. Dropping a stream resets it.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
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

    /// Resolves when more than `allowance` bytes have been available for `stall_timeout`, and the client has read
    /// fewer than `min_progress` of them.
    ///
    /// Poll it after the stream, each time: it registers no waker for progress. The timer runs only while bytes are
    /// available. Cancel safe.
    pub(super) async fn stalled(&self, stall_timeout: Duration, allowance: u64, min_progress: u64) {
        loop {
            poll_fn(|_| if self.undelivered() > allowance { Poll::Ready(()) } else { Poll::Pending }).await;
            let from = self.delivered();
            // Boxed: it is large, and most streams never need it.
            let mut sleep = Box::pin(tokio::time::sleep(stall_timeout));
            let is_stalled = poll_fn(|cx| {
                let is_moving = || self.undelivered() <= allowance || self.delivered() - from >= min_progress;
                match is_moving() {
                    true => Poll::Ready(false),
                    false => sleep.as_mut().poll(cx).map(|()| true),
                }
            });
            if is_stalled.await {
                return;
            }
        }
    }
}

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
        let stall_timeout = self.stall_timeout;
        tokio::spawn(async move {
            // Cancel safe: the stream has ended, or is to be reset.
            tokio::select! {
                biased;
                _ = stream => {}
                () = delivered.stalled(stall_timeout, 0, 1) => debug!("client stopped reading, resetting stream"),
            }
        });
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
