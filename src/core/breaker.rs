//! The circuit breaker: holds retries back while the upstream cannot be reached.
//!
//! Pure state. It counts transport faults, which the scheduler reports, and knows no poll. It never concerns a first
//! attempt: a first attempt is what the client alone would have sent (P12).
//!
//! | state | event | next |
//! | --- | --- | --- |
//! | closed | `failures` faults in a row, each of an attempt that began after the one before had failed | open |
//! | open | it is time for a probe and a retry is there | half-open, the retry is the probe |
//! | half-open | the probe fails | open, for twice the time up to the cooldown |
//! | half-open | the probe is cancelled | open, and the next probe may begin at once |
//! | half-open | the probe is silent for the cooldown | half-open, the next retry is the probe |
//! | any | an answer, or a poll that the upstream holds | closed |
//!
//! The first probe comes 250 ms after the breaker opened: most outages are restarts, which are over in a moment,
//! and two hundred polls that are repeated at random moments open the breaker within one.

use std::time::{Duration, Instant};

/// When the breaker opens, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct BreakerRules {
    /// Consecutive transport faults that open it, at least one.
    pub failures: u32,
    /// Longest time between two probes.
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
        /// The time to the next probe if this one fails.
        next: Duration,
    },
    HalfOpen {
        /// When a probe that has told nothing makes room for another one.
        until: Instant,
        next: Duration,
    },
}

/// Faults that are no further apart are one event.
const INSTANT: Duration = Duration::from_millis(50);

/// The time to the first probe; it doubles with each probe that fails, up to the cooldown.
const FIRST_COOLDOWN: Duration = Duration::from_millis(250);

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

    /// Records that an attempt, begun at `began`, met a transport fault. Faults of one instant (50 ms) or of one connection
    /// count once: only an attempt that began after the previous counted one had failed is news of the upstream.
    pub fn failed(&mut self, began: Instant, now: Instant) {
        let Phase::Closed { failures, counted_at } = self.phase else { return };
        if counted_at.is_some_and(|at| began <= at || now < at + INSTANT) {
            return;
        }
        self.phase = match failures + 1 >= self.rules.failures {
            true => {
                let first = FIRST_COOLDOWN.min(self.rules.cooldown);
                Phase::Open { probe_at: now + first, next: self.rules.cooldown.min(first * 2) }
            }
            false => Phase::Closed { failures: failures + 1, counted_at: Some(now) },
        };
    }

    /// Begins a probe if one may be made at `now`.
    pub fn begin_probe(&mut self, now: Instant) -> bool {
        let is_due = self.probe_at().is_some_and(|at| at <= now);
        if is_due {
            let next = match self.phase {
                Phase::Open { next, .. } | Phase::HalfOpen { next, .. } => next,
                Phase::Closed { .. } => self.rules.cooldown,
            };
            self.phase = Phase::HalfOpen { until: now + self.rules.cooldown, next };
        }
        is_due
    }

    /// Records that the probe met a transport fault.
    pub fn probe_failed(&mut self, now: Instant) {
        if let Phase::HalfOpen { next, .. } = self.phase {
            self.phase = Phase::Open { probe_at: now + next, next: self.rules.cooldown.min(next * 2) };
        }
    }

    /// Records that the probe ended without news of the upstream: the next one may begin at once.
    pub fn probe_cancelled(&mut self, now: Instant) {
        if let Phase::HalfOpen { next, .. } = self.phase {
            self.phase = Phase::Open { probe_at: now, next };
        }
    }

    /// Returns when the next probe may begin, while the breaker is not closed.
    pub fn probe_at(&self) -> Option<Instant> {
        match self.phase {
            Phase::Open { probe_at: at, .. } | Phase::HalfOpen { until: at, .. } => Some(at),
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

    fn at(t0: Instant, millis: u64) -> Instant {
        t0 + Duration::from_millis(millis)
    }

    /// A breaker that has opened at the returned moment.
    fn open() -> (Breaker, Instant) {
        let (mut breaker, t0) = (Breaker::new(RULES), clock::now());
        (1..=3).for_each(|n| breaker.failed(at(t0, n * 100 - 5), at(t0, n * 100)));
        assert!(!breaker.is_closed());
        (breaker, at(t0, 300))
    }

    #[test]
    fn it_opens_after_consecutive_faults_and_a_success_starts_the_count_again() {
        let (mut breaker, t0) = (Breaker::new(RULES), clock::now());
        let fail = |breaker: &mut Breaker, millis| breaker.failed(at(t0, millis), at(t0, millis + 1));
        fail(&mut breaker, 0);
        fail(&mut breaker, 100);
        assert!(!breaker.succeeded(), "it was closed");
        fail(&mut breaker, 200);
        fail(&mut breaker, 300);
        assert!(breaker.is_closed());
        fail(&mut breaker, 400);
        assert_eq!(breaker.probe_at(), Some(at(t0, 401) + FIRST_COOLDOWN));
        assert!(breaker.succeeded(), "it closed");
    }

    #[test]
    fn faults_of_one_instant_or_of_one_connection_count_once() {
        let (mut breaker, t0) = (Breaker::new(RULES), clock::now());
        for n in 0..20 {
            breaker.failed(at(t0, n), at(t0, 100 + n)); // begun before the first one failed
            breaker.failed(at(t0, 101 + n), at(t0, 102 + n)); // failed with it
        }
        assert!(breaker.is_closed());
        breaker.failed(at(t0, 100), at(t0, 200));
        assert!(breaker.is_closed(), "begun in the instant of the first fault");
        breaker.failed(at(t0, 101), at(t0, 201));
        assert!(breaker.is_closed());
        breaker.failed(at(t0, 300), at(t0, 301));
        assert!(!breaker.is_closed());
    }

    #[test]
    fn the_time_to_the_next_probe_doubles_up_to_the_cooldown() {
        let (mut breaker, mut now) = open();
        let mut waited = Vec::new();
        for _ in 0..7 {
            let probe_at = breaker.probe_at().unwrap();
            assert!(!breaker.begin_probe(probe_at - Duration::from_millis(1)));
            assert!(breaker.begin_probe(probe_at));
            assert!(!breaker.begin_probe(probe_at), "one only");
            waited.push((probe_at - now).as_millis());
            now = probe_at + Duration::from_millis(10);
            breaker.probe_failed(now);
        }
        assert_eq!(waited, [250, 500, 1000, 2000, 4000, 5000, 5000]);
        assert!(breaker.begin_probe(now + RULES.cooldown));
        assert!(breaker.succeeded());
        assert!(breaker.is_closed());
    }

    #[test]
    fn a_probe_that_tells_nothing_for_the_cooldown_makes_room_for_another_one() {
        let (mut breaker, t0) = open();
        assert!(breaker.begin_probe(at(t0, 250)));
        assert!(!breaker.begin_probe(at(t0, 5249)));
        assert!(breaker.begin_probe(at(t0, 5250)));
    }

    #[test]
    fn a_cancelled_probe_makes_room_for_the_next() {
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
