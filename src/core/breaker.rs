//! The circuit breaker: holds back retries while the upstream cannot be reached.
//!
//! Pure state, owned by the scheduler, which reports transport faults and successes. The breaker does not know polls.
//! It never holds back a first attempt: the client alone would have sent that request too (P12).
//!
//! | state | event | next state |
//! | --- | --- | --- |
//! | closed | a transport fault that counts, fewer than `failures` in a row | closed, one more counted |
//! | closed | a transport fault that counts, the last of `failures` in a row | open; the first probe after 250 ms |
//! | closed | a transport fault within 50 ms of the last counted one, or of an attempt that began before it | closed, not counted |
//! | open | a probe is due, and the scheduler has a retry | half-open: that retry is the probe |
//! | open | a transport fault | open, not counted |
//! | half-open | the probe fails | open; the next probe after twice the time, at most `cooldown` |
//! | half-open | the probe is cancelled | open; the next probe may begin at once |
//! | half-open | the probe is silent for `cooldown` | half-open: the next retry is the probe |
//! | any | the upstream answers, or holds a poll for a second | closed, nothing counted |
//!
//! Three things never open the breaker (P12): an error that the upstream wrote, a lack of descriptors or memory in the
//! gateway, and one lost connection, however many polls it carried (unless `failures` is 1).
//!
//! The first probe comes after 250 ms: most outages are restarts and end within a second, and even so short an outage
//! opens the breaker where two hundred polls are retried at random times.

use std::time::{Duration, Instant};

/// Thresholds of the breaker.
#[derive(Clone, Copy, Debug)]
pub struct BreakerRules {
    /// Counted transport faults in a row that open the breaker, at least one.
    pub failures: u32,
    /// Longest time between two probes.
    pub cooldown: Duration,
}

/// Decides whether the scheduler may make retries.
#[derive(Clone, Debug)]
pub struct Breaker {
    rules: BreakerRules,
    state: BreakerState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BreakerState {
    Closed {
        failures: u32,
        /// Time of the newest counted fault.
        counted_at: Option<Instant>,
    },
    Open {
        probe_at: Instant,
        /// The time to the next probe if this one fails.
        next: Duration,
    },
    HalfOpen {
        /// Time at which a silent probe gives way to another one.
        until: Instant,
        next: Duration,
    },
}

/// Faults within this time of a counted one belong to the same event.
const SAME_EVENT: Duration = Duration::from_millis(50);

/// Time from opening to the first probe. Each failed probe doubles it, up to the cooldown.
const FIRST_COOLDOWN: Duration = Duration::from_millis(250);

impl Breaker {
    /// Creates a closed breaker.
    pub fn new(rules: BreakerRules) -> Self {
        Self { rules, state: BreakerState::Closed { failures: 0, counted_at: None } }
    }

    /// Records a response of the upstream, or a poll that it holds. Returns whether this closed the breaker.
    pub fn succeeded(&mut self) -> bool {
        let was_closed = self.is_closed();
        self.state = BreakerState::Closed { failures: 0, counted_at: None };
        !was_closed
    }

    /// Records that an attempt, begun at `began`, met a transport fault.
    ///
    /// Only an attempt that began after the last counted fault is evidence about the upstream now. So the faults of one
    /// connection, or of one restart, count once, however many polls they hit.
    pub fn failed(&mut self, began: Instant, now: Instant) {
        let BreakerState::Closed { failures, counted_at } = self.state else { return };
        if counted_at.is_some_and(|at| began <= at || now < at + SAME_EVENT) {
            return; // P12: one event counts once
        }
        self.state = match failures + 1 >= self.rules.failures {
            true => {
                let first = FIRST_COOLDOWN.min(self.rules.cooldown);
                BreakerState::Open { probe_at: now + first, next: self.rules.cooldown.min(first * 2) }
            }
            false => BreakerState::Closed { failures: failures + 1, counted_at: Some(now) },
        };
    }

    /// Begins a probe and returns true if one is due at `now`.
    pub fn begin_probe(&mut self, now: Instant) -> bool {
        let is_due = self.probe_at().is_some_and(|at| at <= now);
        if is_due {
            let next = match self.state {
                BreakerState::Open { next, .. } | BreakerState::HalfOpen { next, .. } => next,
                BreakerState::Closed { .. } => self.rules.cooldown,
            };
            self.state = BreakerState::HalfOpen { until: now + self.rules.cooldown, next };
        }
        is_due
    }

    /// Records that the probe met a transport fault.
    pub fn probe_failed(&mut self, now: Instant) {
        if let BreakerState::HalfOpen { next, .. } = self.state {
            self.state = BreakerState::Open { probe_at: now + next, next: self.rules.cooldown.min(next * 2) };
        }
    }

    /// Records that the probe ended without evidence about the upstream: the next one may begin at once.
    pub fn probe_cancelled(&mut self, now: Instant) {
        if let BreakerState::HalfOpen { next, .. } = self.state {
            self.state = BreakerState::Open { probe_at: now, next };
        }
    }

    /// Returns the time of the next probe while the breaker is open or half-open.
    pub fn probe_at(&self) -> Option<Instant> {
        match self.state {
            BreakerState::Open { probe_at: at, .. } | BreakerState::HalfOpen { until: at, .. } => Some(at),
            BreakerState::Closed { .. } => None,
        }
    }

    /// Returns whether retries are not held back.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, BreakerState::Closed { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const RULES: BreakerRules = BreakerRules { failures: 3, cooldown: Duration::from_secs(5) };

    fn at(t0: Instant, millis: u64) -> Instant {
        t0 + Duration::from_millis(millis)
    }

    /// Returns an open breaker and the time at which it opened.
    fn open() -> (Breaker, Instant) {
        let (mut breaker, t0) = (Breaker::new(RULES), clock::now());
        (1..=3).for_each(|n| breaker.failed(at(t0, n * 100 - 5), at(t0, n * 100)));
        assert!(!breaker.is_closed());
        (breaker, at(t0, 300))
    }

    #[test]
    fn the_breaker_opens_after_consecutive_faults_and_a_success_restarts_the_count() {
        let (mut breaker, t0) = (Breaker::new(RULES), clock::now());
        let fail = |breaker: &mut Breaker, millis| breaker.failed(at(t0, millis), at(t0, millis + 1));
        fail(&mut breaker, 0);
        fail(&mut breaker, 100);
        assert!(!breaker.succeeded(), "the breaker was closed already");
        fail(&mut breaker, 200);
        fail(&mut breaker, 300);
        assert!(breaker.is_closed());
        fail(&mut breaker, 400);
        assert_eq!(breaker.probe_at(), Some(at(t0, 401) + FIRST_COOLDOWN));
        assert!(breaker.succeeded(), "the success closes the breaker");
    }

    #[test]
    fn faults_within_50_ms_or_of_one_connection_count_once() {
        let (mut breaker, t0) = (Breaker::new(RULES), clock::now());
        for n in 0..20 {
            breaker.failed(at(t0, n), at(t0, 100 + n)); // begun before the first one failed
            breaker.failed(at(t0, 101 + n), at(t0, 102 + n)); // failed with it
        }
        assert!(breaker.is_closed());
        breaker.failed(at(t0, 100), at(t0, 200));
        assert!(breaker.is_closed(), "begun at the time of the first fault");
        breaker.failed(at(t0, 101), at(t0, 201));
        assert!(breaker.is_closed());
        breaker.failed(at(t0, 300), at(t0, 301));
        assert!(!breaker.is_closed());
    }

    #[test]
    fn the_time_to_the_next_probe_doubles_up_to_the_cooldown() {
        let (mut breaker, mut now) = open();
        let mut pauses = Vec::new();
        for _ in 0..7 {
            let probe_at = breaker.probe_at().unwrap();
            assert!(!breaker.begin_probe(probe_at - Duration::from_millis(1)));
            assert!(breaker.begin_probe(probe_at));
            assert!(!breaker.begin_probe(probe_at), "one probe at a time");
            pauses.push((probe_at - now).as_millis());
            now = probe_at + Duration::from_millis(10);
            breaker.probe_failed(now);
        }
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 5000, 5000]);
        assert!(breaker.begin_probe(now + RULES.cooldown));
        assert!(breaker.succeeded());
        assert!(breaker.is_closed());
    }

    #[test]
    fn a_probe_that_is_silent_for_the_cooldown_gives_way_to_another() {
        let (mut breaker, t0) = open();
        assert!(breaker.begin_probe(at(t0, 250)));
        assert!(!breaker.begin_probe(at(t0, 5249)));
        assert!(breaker.begin_probe(at(t0, 5250)));
    }

    #[test]
    fn after_a_cancelled_probe_the_next_may_begin_at_once() {
        let (mut breaker, t0) = open();
        let later = at(t0, 250);
        assert!(breaker.begin_probe(later));
        breaker.probe_cancelled(later);
        assert!(breaker.begin_probe(later));
        breaker.succeeded();
        breaker.probe_cancelled(later);
        assert!(breaker.is_closed());
    }
}
