//! The breaker: stops asking an upstream that fails and fails, and lets one request through now and then.
//!
//! Pure, and told of tries only: it never knows polls. Closed = traffic flows.

use std::time::{Duration, Instant};

/// When it opens, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct BreakerRules {
    /// Failures in a row that open it, at least one.
    pub failures: u32,
    /// How long it stays open before a probe.
    pub cooldown: Duration,
}

/// Whether the upstream is asked.
#[derive(Clone, Debug)]
pub struct Breaker {
    rules: BreakerRules,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Closed { failures: u32 },
    Open { until: Instant },
    HalfOpen { since: Instant },
}

impl Breaker {
    /// A closed breaker.
    pub fn new(rules: BreakerRules) -> Self {
        Self { rules, phase: Phase::Closed { failures: 0 } }
    }

    /// Asks for a try at `now`. After the cooldown the one that asks is let through as the probe. Refused, it says
    /// how long until it makes sense to ask again.
    pub fn permit(&mut self, now: Instant) -> Result<(), Duration> {
        match self.phase {
            Phase::Closed { .. } => Ok(()),
            Phase::Open { until } if now >= until => {
                self.phase = Phase::HalfOpen { since: now };
                Ok(())
            }
            Phase::Open { until } => Err(until - now),
            Phase::HalfOpen { since } => {
                Err((since + self.rules.cooldown).saturating_duration_since(now).max(SOON))
            }
        }
    }

    /// The upstream answered a try, or holds it as it should.
    pub fn succeeded(&mut self) {
        self.phase = Phase::Closed { failures: 0 };
    }

    /// A try failed. Whether the breaker opened by that.
    pub fn failed(&mut self, now: Instant) -> bool {
        let failures = match self.phase {
            Phase::Closed { failures } => failures + 1,
            Phase::HalfOpen { .. } => self.rules.failures,
            Phase::Open { .. } => return false, // one that began before it opened
        };
        let opens = failures >= self.rules.failures;
        self.phase = match opens {
            true => Phase::Open { until: now + self.rules.cooldown },
            false => Phase::Closed { failures },
        };
        opens
    }

    /// The probe was called off before it told anything: the next one may be made at once.
    pub fn called_off(&mut self, now: Instant) {
        if self.is_half_open() {
            self.phase = Phase::Open { until: now };
        }
    }

    /// Whether a probe is under way.
    pub fn is_half_open(&self) -> bool {
        matches!(self.phase, Phase::HalfOpen { .. })
    }

    /// Whether traffic flows.
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed { .. })
    }
}

/// The least that a refused one is told to wait.
const SOON: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const RULES: BreakerRules = BreakerRules { failures: 3, cooldown: Duration::from_secs(5) };

    #[test]
    fn it_opens_after_failures_in_a_row_and_only_then() {
        let (mut breaker, t0) = (Breaker::new(RULES), clock::now());
        assert!(!breaker.failed(t0) && !breaker.failed(t0));
        breaker.succeeded();
        assert!(!breaker.failed(t0) && !breaker.failed(t0));
        assert_eq!(breaker.permit(t0), Ok(()));
        assert!(breaker.failed(t0));
        assert_eq!(breaker.permit(t0 + Duration::from_secs(1)), Err(Duration::from_secs(4)));
        assert!(!breaker.failed(t0), "those that began before change nothing");
    }

    #[test]
    fn one_probe_passes_each_cooldown_and_decides() {
        let (mut breaker, t0) = (Breaker::new(RULES), clock::now());
        let at = |secs| t0 + Duration::from_secs(secs);
        assert_eq!([(); 3].map(|()| breaker.failed(t0)), [false, false, true]);
        assert_eq!(breaker.permit(at(5)), Ok(()));
        assert!(breaker.is_half_open());
        assert!(breaker.permit(at(5)).is_err(), "one only");
        assert!(breaker.failed(at(6)), "one failure is enough");
        assert_eq!(breaker.permit(at(10)), Err(Duration::from_secs(1)));
        assert_eq!(breaker.permit(at(11)), Ok(()));
        breaker.succeeded();
        assert!(breaker.is_closed());
        assert_eq!(breaker.permit(at(11)), Ok(()));
    }

    #[test]
    fn a_probe_that_is_called_off_makes_room_for_the_next() {
        let (mut breaker, t0) = (Breaker::new(RULES), clock::now());
        assert_eq!([(); 3].map(|()| breaker.failed(t0)), [false, false, true]);
        let later = t0 + RULES.cooldown;
        assert_eq!(breaker.permit(later), Ok(()));
        breaker.called_off(later);
        assert_eq!(breaker.permit(later), Ok(()));
        breaker.succeeded();
        breaker.called_off(later);
        assert!(breaker.is_closed());
    }
}
