//! The retry budget of a key: bounds the retries after errors that the upstream wrote (P4, P12).
//!
//! ```text
//!   allowed retries in 10 s  =  3 a second (always)  +  1 for each 5 polls that began in these 10 s
//! ```
//!
//! Finagle, linkerd and tower have the same rule. tower's `TpsBudget` reads tokio's clock, which the core does not
//! have. Each key has its own budget, so a key with failing jobs takes no retries from other keys (P11).

use std::time::{Duration, Instant};

/// Length of the window, in seconds.
const WINDOW: u64 = 10;

/// Retries in a window that are always allowed: 3 a second.
const RESERVE: u64 = 3 * WINDOW;

/// Polls in a window that allow one more retry.
const POLLS_PER_RETRY: u64 = 5;

/// Polls and retries of the last [`WINDOW`] seconds.
#[derive(Debug, Default)]
pub(super) struct RetryBudget {
    /// Time from which seconds are counted.
    start: Option<Instant>,
    /// The newest second of the window.
    second: u64,
    /// Polls and retries of each second, indexed by the second modulo the window.
    slots: [(u32, u32); WINDOW as usize],
}

impl RetryBudget {
    /// Counts the first attempt of a poll.
    pub(super) fn record_poll(&mut self, now: Instant) {
        let (polls, _) = self.slot(now);
        *polls = polls.saturating_add(1);
    }

    /// Takes one retry from the budget. Returns false if none is left.
    pub(super) fn take_retry(&mut self, now: Instant) -> bool {
        let _ = self.slot(now); // resets the seconds that have left the window
        let sum = |count: fn(&(u32, u32)) -> u32| self.slots.iter().map(|slot| u64::from(count(slot))).sum();
        let (polls, retries): (u64, u64) = (sum(|slot| slot.0), sum(|slot| slot.1));
        let is_left = retries < RESERVE + polls / POLLS_PER_RETRY;
        if is_left {
            let (_, retries) = self.slot(now);
            *retries = retries.saturating_add(1);
        }
        is_left
    }

    /// Returns the time at which all counts have left the window; not later than `now` if they have.
    pub(super) fn counts_until(&self, now: Instant) -> Instant {
        self.start.map_or(now, |start| start + Duration::from_secs(self.second + WINDOW))
    }

    fn slot(&mut self, now: Instant) -> (&mut u32, &mut u32) {
        let start = *self.start.get_or_insert(now);
        let second = now.saturating_duration_since(start).as_secs();
        for elapsed in (self.second + 1..=second).take(self.slots.len()) {
            self.slots[Self::index(elapsed)] = (0, 0);
        }
        self.second = self.second.max(second);
        let (polls, retries) = &mut self.slots[Self::index(self.second)];
        (polls, retries)
    }

    fn index(second: u64) -> usize {
        usize::try_from(second % WINDOW).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn a_key_always_has_three_retries_a_second_and_one_more_for_five_polls() {
        let (mut budget, t0) = (RetryBudget::default(), clock::now());
        assert_eq!((0..100).filter(|_| budget.take_retry(t0)).count(), 30);
        (0..100).for_each(|_| budget.record_poll(t0));
        assert_eq!((0..100).filter(|_| budget.take_retry(t0)).count(), 20);
    }

    #[test]
    fn polls_and_retries_older_than_the_window_do_not_count() {
        let (mut budget, t0) = (RetryBudget::default(), clock::now());
        let at = |secs| t0 + Duration::from_secs(secs);
        (0..100).for_each(|_| budget.record_poll(at(0)));
        assert_eq!((0..100).filter(|_| budget.take_retry(at(4))).count(), 50);
        assert!(!budget.take_retry(at(9)));
        assert!(!budget.take_retry(at(10)), "the polls leave the window first");
        assert_eq!((0..100).filter(|_| budget.take_retry(at(14))).count(), 30);
        assert_eq!((0..100).filter(|_| budget.take_retry(at(1_000_000))).count(), 30);
    }
}
