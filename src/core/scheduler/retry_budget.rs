//! The retry budget of a key: how many of the upstream's own errors are answered by another attempt.
//!
//! The rule is that of Finagle, linkerd and tower: retries are a share of the polls of the last seconds, beside a few
//! that are always allowed. tower's `TpsBudget` reads tokio's clock, and the core has none. The budget is one a key, so
//! that a key with failing jobs leaves the retries of other keys alone (P11).

use std::time::{Duration, Instant};

/// The seconds that count.
const WINDOW: u64 = 10;

/// Retries that are always allowed in a window: 3 a second.
const RESERVE: u64 = 3 * WINDOW;

/// One retry is allowed for so many polls.
const POLLS_PER_RETRY: u64 = 5;

/// Polls and retries of the last [`WINDOW`] seconds.
#[derive(Debug, Default)]
pub(super) struct RetryBudget {
    /// The moment from which seconds are counted.
    start: Option<Instant>,
    /// The newest second.
    second: u64,
    /// Polls and retries a second, by the second modulo the window.
    slots: [(u32, u32); WINDOW as usize],
}

impl RetryBudget {
    /// Counts a poll's first attempt.
    pub(super) fn record_poll(&mut self, now: Instant) {
        let (polls, _) = self.slot(now);
        *polls = polls.saturating_add(1);
    }

    /// Takes one retry from the budget, if one is left.
    pub(super) fn take_retry(&mut self, now: Instant) -> bool {
        let _ = self.slot(now); // forgets what is too old
        let sum = |count: fn(&(u32, u32)) -> u32| self.slots.iter().map(|slot| u64::from(count(slot))).sum();
        let (polls, retries): (u64, u64) = (sum(|slot| slot.0), sum(|slot| slot.1));
        let is_left = retries < RESERVE + polls / POLLS_PER_RETRY;
        if is_left {
            let (_, retries) = self.slot(now);
            *retries = retries.saturating_add(1);
        }
        is_left
    }

    /// Returns until when what was counted makes a difference; not later than `now` if it makes none.
    pub(super) fn counts_until(&self, now: Instant) -> Instant {
        self.start.map_or(now, |start| start + Duration::from_secs(self.second + WINDOW))
    }

    fn slot(&mut self, now: Instant) -> (&mut u32, &mut u32) {
        let start = *self.start.get_or_insert(now);
        let second = now.saturating_duration_since(start).as_secs();
        for passed in (self.second + 1..=second).take(self.slots.len()) {
            self.slots[Self::index(passed)] = (0, 0);
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
    fn three_retries_a_second_are_always_there_and_one_more_for_five_polls() {
        let (mut budget, t0) = (RetryBudget::default(), clock::now());
        assert_eq!((0..100).filter(|_| budget.take_retry(t0)).count(), 30);
        (0..100).for_each(|_| budget.record_poll(t0));
        assert_eq!((0..100).filter(|_| budget.take_retry(t0)).count(), 20);
    }

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let (mut budget, t0) = (RetryBudget::default(), clock::now());
        let at = |secs| t0 + Duration::from_secs(secs);
        (0..100).for_each(|_| budget.record_poll(at(0)));
        assert_eq!((0..100).filter(|_| budget.take_retry(at(4))).count(), 50);
        assert!(!budget.take_retry(at(9)));
        assert!(!budget.take_retry(at(10)), "the polls are forgotten first");
        assert_eq!((0..100).filter(|_| budget.take_retry(at(14))).count(), 30);
        assert_eq!((0..100).filter(|_| budget.take_retry(at(1_000_000))).count(), 30);
    }
}
