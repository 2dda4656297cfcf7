//! The circuit breaker: holds retries back while the upstream cannot be reached.
//!
//! Pure state. It counts transport faults, which the scheduler reports, and knows no poll. It never concerns a first
//! attempt: a first attempt is what the client alone would have sent (P12).
//!
//! | state | event | next |
//! | --- | --- | --- |
//! | closed | `failures` faults in a row, each of an attempt that began after the one before had failed | open |
//! | open | the cooldown is over and a retry is there | half-open, the retry is the probe |
//! | half-open | the probe fails | open, for another cooldown |
//! | half-open | the probe is cancelled | open, and the next probe may begin at once |
//! | half-open | the probe is silent for the cooldown | half-open, the next retry is the probe |
//! | any | an answer, or a poll that the upstream holds | closed |

use std::time::{Duration, Instant};

/// When the breaker opens, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct BreakerRules {
    /// Consecutive transport faults that open it, at least one.
    pub failures: u32,
    /// Time between two probes.
    pub cooldown: Duration,
}

/// Decides whether retries are made.
#[derive(Clone, Debug)]
pub struct Breaker {
    rules: BreakerRules,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Closed {
        failures: u32,
        /// When the newest counted attempt failed.
        counted_at: Option<Instant>,
    },
    Open {
        probe_at: Instant,
    },
    HalfOpen {
        /// When a probe that has told nothing makes room for another one.
        until: Instant,
    },
}

impl Breaker {
    /// Creates a closed breaker.
    pub fn new(rules: BreakerRules) -> Self {
        Self { rules, phase: Phase::Closed { failures: 0, counted_at: None } }
    }

    /// Records an answer of the upstream, or a poll that it holds. Returns whether the breaker closed by that.
    pub fn succeeded(&mut self) -> bool {
        let was_closed = self.is_closed();
        self.phase = Phase::Closed { failures: 0, counted_at: None };
        !was_closed
    }

    /// Records that an attempt, begun at `began`, met a transport fault. Faults of one instant or of one connection
    /// count once: only an attempt that began after the previous counted one had failed is news of the upstream.
    pub fn failed(&mut self, began: Instant, now: Instant) {
        let Phase::Closed { failures, counted_at } = self.phase else { return };
        if counted_at.is_some_and(|at| began <= at) {
            return;
        }
        self.phase = match failures + 1 >= self.rules.failures {
            true => Phase::Open { probe_at: now + self.rules.cooldown },
            false => Phase::Closed { failures: failures + 1, counted_at: Some(now) },
        };
    }

    /// Begins a probe if one may be made at `now`.
    pub fn begin_probe(&mut self, now: Instant) -> bool {
        let is_due = self.probe_at().is_some_and(|at| at <= now);
        if is_due {
            self.phase = Phase::HalfOpen { until: now + self.rules.cooldown };
        }
        is_due
    }

    /// Records that the probe met a transport fault.
    pub fn probe_failed(&mut self, now: Instant) {
        if let Phase::HalfOpen { .. } = self.phase {
            self.phase = Phase::Open { probe_at: now + self.rules.cooldown };
        }
    }

    /// Records that the probe ended without news of the upstream: the next one may begin at once.
    pub fn probe_cancelled(&mut self, now: Instant) {
        if let Phase::HalfOpen { .. } = self.phase {
            self.phase = Phase::Open { probe_at: now };
        }
    }

    /// Returns when the next probe may begin, while the breaker is not closed.
    pub fn probe_at(&self) -> Option<Instant> {
        match self.phase {
            Phase::Open { probe_at: at } | Phase::HalfOpen { until: at } => Some(at),
            Phase::Closed { .. } => None,
        }
    }

    /// Returns whether retries are made as usual.
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const RULES: BreakerRules = BreakerRules { failures: 3, cooldown: Duration::from_secs(5) };

    /// A breaker that has opened at the returned moment.
    fn open() -> (Breaker, Instant) {
        let (mut breaker, t0) = (Breaker::new(RULES), clock::now());
        let at = |millis| t0 + Duration::from_millis(millis);
        (1..=3).for_each(|n| breaker.failed(at(n * 10 - 5), at(n * 10)));
        assert!(!breaker.is_closed());
        (breaker, at(30))
    }

    #[test]
    fn it_opens_after_consecutive_faults_and_a_success_starts_the_count_again() {
        let (mut breaker, t0) = (Breaker::new(RULES), clock::now());
        let at = |millis| t0 + Duration::from_millis(millis);
        breaker.failed(at(0), at(1));
        breaker.failed(at(2), at(3));
        assert!(!breaker.succeeded(), "it was closed");
        breaker.failed(at(4), at(5));
        breaker.failed(at(6), at(7));
        assert!(breaker.is_closed());
        breaker.failed(at(8), at(9));
        assert_eq!(breaker.probe_at(), Some(at(9) + RULES.cooldown));
        assert!(breaker.succeeded(), "it closed");
    }

    #[test]
    fn faults_of_one_instant_or_of_one_connection_count_once() {
        let (mut breaker, t0) = (Breaker::new(RULES), clock::now());
        let at = |millis| t0 + Duration::from_millis(millis);
        for n in 0..20 {
            breaker.failed(at(n), at(100 + n));
        }
        assert!(breaker.is_closed());
        breaker.failed(at(100), at(150));
        assert!(breaker.is_closed(), "begun in the instant of the first fault");
        breaker.failed(at(101), at(151));
        assert!(breaker.is_closed());
        breaker.failed(at(152), at(153));
        assert!(!breaker.is_closed());
    }

    #[test]
    fn one_probe_begins_each_cooldown() {
        let (mut breaker, t0) = open();
        let at = |secs| t0 + Duration::from_secs(secs);
        assert!(!breaker.begin_probe(at(4)));
        assert!(breaker.begin_probe(at(5)));
        assert!(!breaker.begin_probe(at(5)), "one only");
        breaker.probe_failed(at(6));
        assert_eq!(breaker.probe_at(), Some(at(11)));
        assert!(breaker.begin_probe(at(11)));
        assert!(breaker.succeeded());
        assert!(breaker.is_closed());
    }

    #[test]
    fn a_probe_that_tells_nothing_for_the_cooldown_makes_room_for_another_one() {
        let (mut breaker, t0) = open();
        let at = |secs| t0 + Duration::from_secs(secs);
        assert!(breaker.begin_probe(at(5)));
        assert!(!breaker.begin_probe(at(9)));
        assert!(breaker.begin_probe(at(10)));
    }

    #[test]
    fn a_cancelled_probe_makes_room_for_the_next() {
        let (mut breaker, t0) = open();
        let later = t0 + RULES.cooldown;
        assert!(breaker.begin_probe(later));
        breaker.probe_cancelled(later);
        assert!(breaker.begin_probe(later));
        breaker.succeeded();
        breaker.probe_cancelled(later);
        assert!(breaker.is_closed());
    }
}
