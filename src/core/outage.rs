//! Begin and end of an outage of the upstream, for the log and the dashboard.
//!
//! Pure state, owned by the metrics of the upstream, which count the result of each request. The breaker has another
//! purpose: it holds back retries, knows polls only, and counts nothing before the first success.
//!
//! | state | event | next state |
//! | --- | --- | --- |
//! | up | a transport fault that counts | up, or down if there were three of them and the faults last for long enough |
//! | up, down | the upstream answers, or holds a poll for a second | up |
//! | down | a transport fault | down |
//!
//! A fault counts like in the breaker: its request began after the last counted fault, and failed 50 ms or more after
//! it. So one lost connection counts once. The faults must last for one second without a success, and for five seconds
//! if another outage ended within the last minute. So single faults beside successes do not begin an outage, and an unsteady
//! upstream does not fill the log.

use std::time::{Duration, Instant};

/// Decides whether the upstream has an outage.
#[derive(Clone, Debug, Default)]
pub struct OutageDetector {
    state: OutageState,
    /// Time of the newest fault, counted or not.
    last_fault_at: Option<Instant>,
    last_ended_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default)]
enum OutageState {
    #[default]
    Up,
    /// Faults without a success, too few or for too short a time.
    Suspect {
        since: Instant,
        faults: u32,
        counted_at: Instant,
    },
    Down {
        since: Instant,
    },
}

/// Counted faults that an outage needs at least.
const MIN_FAULTS: u32 = 3;

/// Faults within this time of a counted one belong to the same event.
const SAME_EVENT: Duration = Duration::from_millis(50);

/// Time for which the faults must last.
const PATIENCE: Duration = Duration::from_secs(1);

/// The same, within [`UNSTEADY`] of the last outage.
const LONG_PATIENCE: Duration = Duration::from_secs(5);

/// Time after an outage in which the next one needs more evidence.
const UNSTEADY: Duration = Duration::from_secs(60);

impl OutageDetector {
    /// Records a request, begun at `began`, that met a transport fault. Returns whether an outage begins.
    pub fn failed(&mut self, began: Instant, now: Instant) -> bool {
        self.last_fault_at = self.last_fault_at.max(Some(now));
        let (since, faults) = match self.state {
            OutageState::Down { .. } => return false,
            OutageState::Up => (now, 1),
            OutageState::Suspect { counted_at, .. }
                if began <= counted_at || now < counted_at + SAME_EVENT =>
            {
                return false;
            }
            OutageState::Suspect { since, faults, .. } => (since, faults.saturating_add(1)),
        };
        let is_unsteady = self.last_ended_at.is_some_and(|at| now < at + UNSTEADY);
        let patience = if is_unsteady { LONG_PATIENCE } else { PATIENCE };
        let begins = faults >= MIN_FAULTS && now >= since + patience;
        self.state = match begins {
            true => OutageState::Down { since },
            false => OutageState::Suspect { since, faults, counted_at: now },
        };
        begins
    }

    /// Records that the upstream answered at this time, or held a poll. Returns the duration of the outage that this
    /// ends. A success that is older than the newest fault changes nothing.
    pub fn succeeded(&mut self, at: Instant) -> Option<Duration> {
        if self.last_fault_at.is_some_and(|fault| at < fault) {
            return None;
        }
        match std::mem::take(&mut self.state) {
            OutageState::Down { since } => {
                self.last_ended_at = Some(at);
                Some(at.saturating_duration_since(since))
            }
            OutageState::Up | OutageState::Suspect { .. } => None,
        }
    }

    /// Returns the time of the outage's first fault.
    pub fn since(&self) -> Option<Instant> {
        match self.state {
            OutageState::Down { since } => Some(since),
            OutageState::Up | OutageState::Suspect { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn at(t0: Instant, millis: u64) -> Instant {
        t0 + Duration::from_millis(millis)
    }

    /// Records a request of one millisecond that fails at this time.
    fn fail(outage: &mut OutageDetector, t0: Instant, millis: u64) -> bool {
        outage.failed(at(t0, millis - 1), at(t0, millis))
    }

    #[test]
    fn an_outage_begins_and_ends_once() {
        let (mut outage, t0) = (OutageDetector::default(), clock::now());
        let begins: Vec<u64> =
            (1..100).map(|n| n * 300).filter(|millis| fail(&mut outage, t0, *millis)).collect();
        assert_eq!(begins, [1500], "the first fault with a second of faults before it");
        assert_eq!(outage.since(), Some(at(t0, 300)));
        assert_eq!(outage.succeeded(at(t0, 30_300)), Some(Duration::from_secs(30)));
        assert_eq!(outage.succeeded(at(t0, 30_301)), None);
        assert_eq!(outage.since(), None);
    }

    #[test]
    fn faults_beside_successes_do_not_begin_an_outage() {
        let (mut outage, t0) = (OutageDetector::default(), clock::now());
        for n in 1..1000 {
            assert!(!fail(&mut outage, t0, n * 200));
            assert!(!fail(&mut outage, t0, n * 200 + 100));
            if n % 3 == 0 {
                assert_eq!(outage.succeeded(at(t0, n * 200 + 150)), None);
            }
        }
    }

    #[test]
    fn one_lost_connection_counts_once() {
        let (mut outage, t0) = (OutageDetector::default(), clock::now());
        for n in 0..5000 {
            assert!(!outage.failed(t0, at(t0, 100 + n)), "all began before the first fault");
        }
        assert!(!fail(&mut outage, t0, 6000));
        assert!(fail(&mut outage, t0, 6100));
    }

    #[test]
    fn an_unsteady_upstream_needs_five_seconds_of_faults() {
        let (mut outage, t0) = (OutageDetector::default(), clock::now());
        let mut begins = 0;
        for second in 1..=50_u64 {
            let t = second * 1300;
            begins += [0, 400, 800, 1200].iter().filter(|later| fail(&mut outage, t0, t + **later)).count();
            outage.succeeded(at(t0, t + 1250));
        }
        assert!(begins <= 2, "{begins} in 65 s of outages of 1.2 s");
    }

    #[test]
    fn a_success_from_before_the_last_fault_ends_nothing() {
        let (mut outage, t0) = (OutageDetector::default(), clock::now());
        (1..=9).for_each(|n| _ = fail(&mut outage, t0, n * 300));
        assert!(outage.since().is_some());
        assert_eq!(outage.succeeded(at(t0, 2600)), None);
        assert!(outage.since().is_some());
        assert!(outage.succeeded(at(t0, 2700)).is_some());
    }
}
