//! Time from a response of the upstream to the response of the last wait that it ended.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use serde::Serialize;

use super::register;
use crate::clock;

/// Buckets of the fan-out, in seconds.
const FANOUT_BUCKETS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0];

/// Bound of the kept times, 24 KiB.
const MAX_RECENT: usize = 1024;

/// Age up to which a time counts for the quantiles.
const RECENT: Duration = Duration::from_secs(300);

/// The fan-out of all responses, and of the newest ones.
#[derive(Clone, Debug)]
pub(super) struct FanoutMetrics {
    times: Histogram,
    /// End and time of the newest responses, the oldest first.
    recent: Arc<Mutex<VecDeque<(Instant, Duration)>>>,
}

/// Quantiles of the last five minutes, of at most 1024 responses; `None` without a response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct FanoutQuantiles {
    p50_seconds: Option<f64>,
    p99_seconds: Option<f64>,
}

/// Timer of one response of the upstream. All waits that it ended share the timer; the last one to drop it records
/// the time.
#[derive(Debug)]
pub(crate) struct Fanout {
    metrics: FanoutMetrics,
    since: Instant,
}

impl Drop for Fanout {
    fn drop(&mut self) {
        self.metrics.record(self.since, clock::now());
    }
}

impl FanoutMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let times = Histogram::new(FANOUT_BUCKETS.iter().copied());
        let help = "Time from a response of the upstream to the response of the last wait that it ended";
        register(registry, "clipgate_fanout_seconds", help, times.clone());
        Self { times, recent: Arc::default() }
    }

    pub(super) fn start(&self, answered_at: Instant) -> Fanout {
        Fanout { metrics: self.clone(), since: answered_at }
    }

    fn record(&self, since: Instant, now: Instant) {
        let took = now.saturating_duration_since(since);
        self.times.observe(took.as_secs_f64());
        let mut recent = self.recent.lock();
        if recent.len() == MAX_RECENT {
            recent.pop_front();
        }
        recent.push_back((now, took));
    }

    pub(super) fn quantiles(&self, now: Instant) -> FanoutQuantiles {
        let recent = self.recent.lock();
        let is_recent = |at: Instant| now.saturating_duration_since(at) <= RECENT;
        let mut times: Vec<Duration> =
            recent.iter().filter(|(at, _)| is_recent(*at)).map(|(_, took)| *took).collect();
        drop(recent);
        times.sort_unstable();
        let quantile = |percent: usize| {
            let rank = (times.len() * percent).div_ceil(100);
            Some(times.get(rank.checked_sub(1)?)?.as_secs_f64())
        };
        FanoutQuantiles { p50_seconds: quantile(50), p99_seconds: quantile(99) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_last_five_minutes() {
        let (fanout, t0) = (FanoutMetrics::new(&mut Registry::default()), clock::now());
        assert_eq!(fanout.quantiles(t0), FanoutQuantiles::default());
        for millis in 1..=100 {
            fanout.record(t0, t0 + Duration::from_millis(millis));
        }
        let quantiles = fanout.quantiles(t0 + Duration::from_secs(1));
        assert_eq!(quantiles, FanoutQuantiles { p50_seconds: Some(0.05), p99_seconds: Some(0.099) });
        assert_eq!(fanout.quantiles(t0 + Duration::from_secs(301)), FanoutQuantiles::default());
        for _ in 0..2 * MAX_RECENT {
            fanout.record(t0, t0 + Duration::from_millis(7));
        }
        assert_eq!(fanout.quantiles(t0).p50_seconds, Some(0.007));
        assert_eq!(fanout.recent.lock().len(), MAX_RECENT);
    }
}
