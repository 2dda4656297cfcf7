//! The streams of an HTTP/2 connection, each a task: one whose client takes nothing of its answer is reset.
//!
//! ```text
//!   service ── announce(Taken) ──▶ Streams ◀── execute(stream) ── hyper
//!                                     └── a task: the stream, and beside it Taken::stalled
//! ```
//!
//! hyper calls the service for a stream and then hands the stream over to be executed, one right after the other: so the
//! two are brought together. A stream is reset by dropping it.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use tracing::debug;

/// How much of a stream's answer has been given to hyper, and how much of that the client has taken, in bytes.
#[derive(Debug, Default)]
pub(super) struct Taken {
    given: AtomicU64,
    taken: AtomicU64,
}

impl Taken {
    pub(super) fn give(&self, bytes: usize) {
        self.given.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn take(&self, bytes: usize) {
        self.taken.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// The bytes that the client could take.
    pub(super) fn rest(&self) -> u64 {
        let taken = self.taken();
        self.given.load(Ordering::Relaxed).saturating_sub(taken)
    }

    /// Ends when more than `most` bytes have been there to take for so long, and the client has taken fewer than
    /// `least` of them.
    ///
    /// To be polled each time after who gives and takes: that wakes nobody by itself, and it is only then that the
    /// clock is looked at, and only while there is something to take. Cancel safe.
    pub(super) async fn stalled(&self, patience: Duration, most: u64, least: u64) {
        loop {
            poll_fn(|_| if self.rest() > most { Poll::Ready(()) } else { Poll::Pending }).await;
            let from = self.taken();
            // Boxed: it is large, and most have none of it.
            let mut sleep = Box::pin(tokio::time::sleep(patience));
            let is_over = poll_fn(|cx| {
                let is_moving = || self.rest() <= most || self.taken() - from >= least;
                match is_moving() {
                    true => Poll::Ready(false),
                    false => sleep.as_mut().poll(cx).map(|()| true),
                }
            });
            if is_over.await {
                return;
            }
        }
    }
}

/// What hyper runs the streams of one connection with. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Streams {
    patience: Duration,
    /// Of the stream that is executed next.
    next: Arc<Mutex<Option<Arc<Taken>>>>,
}

impl Streams {
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, next: Arc::default() }
    }

    /// The stream that hyper executes next counts its answer with this.
    pub(super) fn announce(&self, taken: Arc<Taken>) {
        *self.next.lock() = Some(taken);
    }
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        let Some(taken) = self.next.lock().take() else {
            tokio::spawn(stream);
            return;
        };
        let patience = self.patience;
        tokio::spawn(async move {
            // Cancel safe: what is dropped is done, or to be reset.
            tokio::select! {
                biased;
                _ = stream => {}
                () = taken.stalled(patience, 0, 1) => debug!("nobody takes the answer, stream reset"),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL_TIMEOUT: Duration = Duration::from_secs(60);

    async fn is_over(stalled: &mut (impl Future<Output = ()> + Unpin), within: Duration) -> bool {
        tokio::time::timeout(within, stalled).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_a_byte_now_and_then_is_waited_for_and_one_that_takes_none_is_not() {
        let taken = Taken::default();
        let mut stalled = Box::pin(taken.stalled(STALL_TIMEOUT, 0, 1));
        assert!(!is_over(&mut stalled, 10 * STALL_TIMEOUT).await, "there is nothing to take");
        taken.give(10);
        for _ in 0..5 {
            assert!(!is_over(&mut stalled, STALL_TIMEOUT / 2).await);
            taken.take(1);
        }
        assert!(!is_over(&mut stalled, STALL_TIMEOUT - Duration::from_secs(1)).await);
        assert!(is_over(&mut stalled, Duration::from_secs(2)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_much_untaken_has_to_take_much_and_who_leaves_little_need_not() {
        let taken = Taken::default();
        let mut stalled = Box::pin(taken.stalled(STALL_TIMEOUT, 100, 50));
        taken.give(100);
        assert!(!is_over(&mut stalled, 10 * STALL_TIMEOUT).await);
        taken.give(1000);
        for _ in 0..5 {
            assert!(!is_over(&mut stalled, STALL_TIMEOUT / 2).await);
            taken.take(50);
        }
        assert!(!is_over(&mut stalled, STALL_TIMEOUT / 2).await);
        taken.take(49);
        assert!(is_over(&mut stalled, STALL_TIMEOUT).await);
    }
}
