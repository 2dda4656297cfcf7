//! Documents of the admin listener, and the counts of each step of time. docs/observability.md explains the names.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime};

use serde::Deserialize;

/// The parts of `/api/state` that the screen shows. A gateway of another version may lack some.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct GatewayReport {
    pub(super) version: String,
    pub(super) now: String,
    pub(super) phase: String,
    pub(super) uptime_seconds: f64,
    pub(super) waits: ParkedCount,
    pub(super) polls: PollCount,
    pub(super) cache: CacheUse,
    pub(super) upstream: UpstreamReport,
    pub(super) totals: ReportedTotals,
    pub(super) saved_today: ReportedSavings,
    pub(super) success_rate: Option<f64>,
    pub(super) fanout: ReportedFanout,
    pub(super) members: Vec<ReportedMember>,
    pub(super) jobs: ReportedList<ReportedJob>,
    pub(super) keys: ReportedList<ReportedKey>,
    /// Of several replicas.
    pub(super) cluster: Option<ReportedCluster>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ReportedCluster {
    pub(super) link: String,
    pub(super) members: Vec<ReportedReplica>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ReportedReplica {
    pub(super) name: String,
    pub(super) seconds_since_beat: f64,
    pub(super) polls: u64,
    #[serde(rename = "self")]
    pub(super) is_self: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ParkedCount {
    pub(super) parked: u64,
    pub(super) max: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PollCount {
    pub(super) open: u64,
    pub(super) waiting: u64,
    pub(super) max: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct CacheUse {
    pub(super) entries: u64,
    pub(super) bytes: u64,
    pub(super) max_bytes: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct UpstreamReport {
    pub(super) base_url: String,
    pub(super) breaker_open: bool,
    pub(super) answered_at: Option<String>,
    pub(super) failed: Option<ReportedFailure>,
    pub(super) outage: Option<ReportedOutage>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ReportedFailure {
    pub(super) at: String,
    pub(super) code: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ReportedOutage {
    pub(super) since: String,
    pub(super) cause: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ReportedTotals {
    pub(super) requests: BTreeMap<String, u64>,
    pub(super) calls: BTreeMap<String, u64>,
    pub(super) calls_by_cause: BTreeMap<String, u64>,
    pub(super) rejections: BTreeMap<String, u64>,
    pub(super) errors: u64,
    pub(super) retries: u64,
    pub(super) saved: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ReportedSavings {
    pub(super) calls: u64,
    pub(super) held_seconds: f64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ReportedFanout {
    pub(super) p50_seconds: Option<f64>,
    pub(super) p99_seconds: Option<f64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ReportedMember {
    pub(super) name: String,
    pub(super) requests: u64,
    pub(super) saved: u64,
    pub(super) waits: u64,
    pub(super) rejected: u64,
    pub(super) last_seen_seconds: Option<f64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ReportedJob {
    pub(super) id: String,
    pub(super) rest: String,
    pub(super) key: String,
    pub(super) rung: Option<String>,
    pub(super) waits: u64,
    pub(super) polls: u64,
    pub(super) age_seconds: f64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ReportedKey {
    pub(super) name: String,
    pub(super) waits: u64,
    pub(super) requests: Option<ReportedQuota>,
    pub(super) calls: Option<ReportedQuota>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ReportedQuota {
    pub(super) left: u64,
    pub(super) burst: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ReportedList<T> {
    pub(super) items: Vec<T>,
    pub(super) total: usize,
}

/// An element of `/api/history`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct HistorySample {
    pub(super) at: String,
    pub(super) totals: ReportedTotals,
}

/// Counters at a time: requests, calls and saved calls.
type Counters = [u64; 3];

/// Counts of the last quarter of an hour, in steps.
#[derive(Debug, Default)]
pub(super) struct Rates {
    last: Option<Counters>,
    /// Number of the step since 1970, and its counts; the oldest first.
    steps: VecDeque<(u64, Counters)>,
}

/// Length of a step.
const RATE_STEP: Duration = Duration::from_secs(5);

/// Bound of the steps: a quarter of an hour.
const MAX_RATES: usize = 180;

/// A plot of [`Rates`].
#[derive(Clone, Copy)]
pub(super) enum Rated {
    Requests,
    Calls,
    Saved,
}

impl Rates {
    pub(super) fn new(history: Vec<HistorySample>) -> Self {
        let mut rates = Self::default();
        for sample in history {
            rates.add(&sample.at, &sample.totals);
        }
        rates
    }

    /// Adds the counters of a time. A restart sets them to zero.
    pub(super) fn add(&mut self, at: &str, totals: &ReportedTotals) {
        let Some(step) = step_of(at) else { return };
        let sum = |counts: &BTreeMap<String, u64>| counts.values().sum();
        let now = [sum(&totals.requests), sum(&totals.calls), totals.saved];
        let last = self.last.replace(now).unwrap_or(now);
        if self.steps.back().is_none_or(|(newest, _)| *newest < step) {
            self.steps.push_back((step, Counters::default()));
        }
        if let Some((_, counts)) = self.steps.back_mut() {
            for (count, (now, last)) in counts.iter_mut().zip(now.into_iter().zip(last)) {
                *count += now.saturating_sub(last);
            }
        }
        while self.steps.len() > MAX_RATES {
            self.steps.pop_front();
        }
    }

    /// Returns the counts of the last `steps` steps up to the newest one, the oldest first.
    pub(super) fn last(&self, rated: Rated, steps: usize) -> Vec<u64> {
        let newest = self.steps.back().map_or(0, |(step, _)| *step);
        let mut counts = vec![0; steps];
        for (step, of_step) in &self.steps {
            let age = usize::try_from(newest - step).unwrap_or(usize::MAX);
            if let Some(at) = steps.checked_sub(age + 1) {
                counts[at] = of_step[rated as usize];
            }
        }
        counts
    }

    /// Returns the largest useful number of steps.
    pub(super) const fn max_steps() -> usize {
        MAX_RATES
    }
}

fn step_of(at: &str) -> Option<u64> {
    let since = humantime::parse_rfc3339(at).ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(since.as_secs() / RATE_STEP.as_secs())
}

/// Returns the seconds between two times of a report, 0 if one of them is not a time.
pub(super) fn seconds_between(earlier: &str, later: &str) -> f64 {
    let time = |text| humantime::parse_rfc3339(text).ok();
    let between =
        time(earlier).zip(time(later)).and_then(|(earlier, later)| later.duration_since(earlier).ok());
    between.unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(requests: u64) -> ReportedTotals {
        let requests = BTreeMap::from([("hit".to_owned(), requests)]);
        ReportedTotals { requests, ..ReportedTotals::default() }
    }

    #[test]
    fn counts_are_the_differences_of_counters_and_a_restart_is_not_negative() {
        let mut rates = Rates::default();
        for (second, requests) in [("00", 5), ("04", 7), ("05", 9), ("15", 10), ("16", 2), ("17", 6)] {
            rates.add(&format!("2026-01-02T03:04:{second}Z"), &totals(requests));
        }
        assert_eq!(rates.last(Rated::Requests, 5), [0, 2, 2, 0, 5]);
        assert_eq!(rates.last(Rated::Requests, 2), [0, 5]);
        assert_eq!(rates.last(Rated::Saved, 2), [0, 0]);
    }
}
