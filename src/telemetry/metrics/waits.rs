//! Parked waits: how long, how that ended, and how soon they hear what the upstream answered.

use std::time::{Duration, Instant};

use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::each::Each;
use super::labels::WaitEnd;
use super::{REQUEST_TIMES, times, times_by};
use crate::clock;

/// Where times of telling are told apart, in seconds.
const FANOUT_TIMES: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0];

/// Of all waits.
#[derive(Debug)]
pub struct Waits {
    times: Each<WaitEnd, Histogram>,
    fanout: Histogram,
}

impl Waits {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let help = "From an answer of the upstream's to when the last wait that it ended has it";
        Self {
            times: times_by(registry, "wait", "How long waits were parked", "end", REQUEST_TIMES),
            fanout: times(registry, "fanout", help, FANOUT_TIMES),
        }
    }

    /// One has ended so, after so long.
    pub fn finish(&self, end: WaitEnd, took: Duration) {
        self.times.of(end).observe(took.as_secs_f64());
    }

    /// The upstream answered then.
    pub fn fanout(&self, answered_at: Instant) -> Fanout {
        Fanout { times: self.fanout.clone(), since: answered_at }
    }
}

/// One answer on its way to all waits that it ended, which share it: the last one to drop it is the last to have it.
#[derive(Debug)]
pub struct Fanout {
    times: Histogram,
    since: Instant,
}

impl Drop for Fanout {
    fn drop(&mut self) {
        self.times.observe(clock::now().saturating_duration_since(self.since).as_secs_f64());
    }
}
