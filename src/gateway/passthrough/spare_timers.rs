//! Timers for requests that are nearly always answered before theirs fires.
//!
//! To set a timer and to remove it costs 1,400 instructions, 3 % of a request. So a timer goes on running after its
//! request, and is lent to the next one: it then fires too early, at most once, and is set again.
//!
//! ```text
//! request ──▶ spare timer, or a new one ──▶ response: the timer is spare again, and still running
//!                                      └──▶ fires: set to the rest of the time, if there is one
//! ```

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::time::Sleep;

/// Most spare timers. Further ones are dropped.
const MAX_SPARE: usize = 256;

/// Timers of about one duration, so that a spare one fires no later than its next request needs it.
#[derive(Debug, Default)]
pub(super) struct SpareTimers(Mutex<Vec<Pin<Box<Sleep>>>>);

/// A deadline with a timer, which is spare once this is dropped.
#[derive(Debug)]
pub(super) struct LentTimer<'t> {
    spare: &'t SpareTimers,
    deadline: tokio::time::Instant,
    /// `None` until the first poll.
    timer: Option<Pin<Box<Sleep>>>,
}

impl SpareTimers {
    /// Returns a timer that fires at the deadline. It registers nothing until it is polled.
    pub(super) fn at(&self, deadline: Instant) -> LentTimer<'_> {
        LentTimer { spare: self, deadline: deadline.into(), timer: None }
    }
}

impl LentTimer<'_> {
    /// Resolves at the deadline. Cancel safe.
    pub(super) fn poll_fired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self { spare, deadline, timer } = self;
        let timer = timer.get_or_insert_with(|| {
            let running = spare.0.lock().pop();
            let fitting = running.filter(|timer| timer.deadline() <= *deadline);
            fitting.unwrap_or_else(|| Box::pin(tokio::time::sleep_until(*deadline)))
        });
        loop {
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() == *deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(*deadline);
        }
    }
}

impl Drop for LentTimer<'_> {
    fn drop(&mut self) {
        // A timer that has fired saves the next request nothing, and would keep the task of this one in memory.
        let Some(timer) = self.timer.take().filter(|timer| !timer.is_elapsed()) else { return };
        let mut spare = self.spare.0.lock();
        if spare.len() < MAX_SPARE {
            spare.push(timer);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;
    use crate::clock;

    const TIME: Duration = Duration::from_millis(500);

    impl SpareTimers {
        fn deadlines(&self) -> Vec<Instant> {
            self.0.lock().iter().map(|timer| timer.deadline().into_std()).collect()
        }
    }

    /// Polls a timer of `TIME` for this time. Returns whether it fired, and when it began.
    async fn run(timers: &SpareTimers, time: Duration) -> (bool, Instant) {
        let began = clock::now();
        let mut timer = timers.at(began + TIME);
        let fired = tokio::time::timeout(time, poll_fn(|cx| timer.poll_fired(cx))).await.is_ok();
        (fired, began)
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_goes_from_request_to_request_and_each_fires_at_its_own_deadline() {
        let timers = SpareTimers::default();
        let (_, began) = run(&timers, TIME / 5).await;
        assert_eq!(timers.deadlines(), [began + TIME]);
        for _ in 0..3 {
            run(&timers, TIME / 5).await;
            assert_eq!(timers.deadlines(), [began + TIME], "it is not set again before it fires");
        }
        // It fires after a fifth of the time of this request, which ends after two fifths,
        let (fired, began) = run(&timers, 2 * TIME / 5).await;
        assert!(!fired);
        assert_eq!(timers.deadlines(), [began + TIME]);
        // and unnoticed, while no request has it.
        tokio::time::sleep(2 * TIME).await;
        let began = clock::now();
        let (fired, _) = run(&timers, 2 * TIME).await;
        assert!(fired && clock::now() - began >= TIME && clock::now() - began < TIME + TIME / 50);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_at_once_have_timers_of_their_own_and_an_earlier_deadline_is_kept() {
        let timers = SpareTimers::default();
        tokio::join!(run(&timers, TIME / 5), run(&timers, TIME / 5));
        assert_eq!(timers.deadlines().len(), 2);
        let mut early = timers.at(clock::now() + TIME / 50);
        let fired = tokio::time::timeout(TIME / 5, poll_fn(|cx| early.poll_fired(cx))).await;
        assert!(fired.is_ok());
        drop(timers.at(clock::now() + TIME));
        assert_eq!(timers.deadlines().len(), 1, "a timer that was never polled is none");
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_that_has_fired_is_not_spare() {
        let timers = SpareTimers::default();
        let (fired, _) = run(&timers, 2 * TIME).await;
        assert!(fired && timers.deadlines().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_spare_timers_is_bounded() {
        let timers = SpareTimers::default();
        let polled = std::iter::repeat_with(|| {
            let mut timer = timers.at(clock::now() + TIME);
            assert!(timer.poll_fired(&mut Context::from_waker(std::task::Waker::noop())).is_pending());
            timer
        });
        drop(polled.take(MAX_SPARE + 2).collect::<Vec<_>>());
        assert_eq!(timers.deadlines().len(), MAX_SPARE);
    }
}
