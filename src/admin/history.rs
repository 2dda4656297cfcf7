//! Samples of the last 15 minutes, for the plots of a page that is opened later.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::saved_today::{SavedToday, SavedTodayJson};
use super::state::rfc3339;
use crate::gateway::Gateway;
use crate::telemetry::metrics::Totals;

/// Time between two samples.
pub(super) const STEP: Duration = Duration::from_secs(5);

/// Time that the success rate covers.
const SUCCESS_WINDOW: Duration = Duration::from_secs(300);

/// Bound of the samples: a quarter of an hour.
const MAX_SAMPLES: usize = 180;

/// The last samples, the oldest first.
#[derive(Default)]
pub(super) struct History {
    samples: VecDeque<Sample>,
    today: SavedToday,
}

struct Sample {
    at: SystemTime,
    waits: usize,
    polls: usize,
    totals: Totals,
}

#[derive(Serialize)]
struct SampleJson<'a> {
    at: String,
    waits: usize,
    polls: usize,
    totals: &'a Totals,
}

impl History {
    /// Adds a sample of the current state.
    pub(super) fn add(&mut self, gateway: &Gateway) {
        if self.samples.len() == MAX_SAMPLES {
            self.samples.pop_front();
        }
        let (at, totals) = (SystemTime::now(), gateway.metrics().totals());
        let (waits, polls) = (gateway.waits(), gateway.metrics().upstream.poll_counts().open);
        self.today.add(at, totals.saved(), waits.saturating_sub(polls), STEP);
        self.samples.push_back(Sample { at, waits, polls, totals });
    }

    /// Returns the success rate of the last five minutes, or of the time since the start if that is shorter.
    pub(super) fn success_rate(&self, totals: &Totals, now: SystemTime) -> Option<f64> {
        let is_recent =
            |sample: &&Sample| now.duration_since(sample.at).is_ok_and(|age| age <= SUCCESS_WINDOW);
        // A first sample of less than five minutes ago: the gateway is younger, and its counts began at zero.
        let is_young = self.samples.front().is_none_or(|first| is_recent(&first));
        let earlier = self.samples.iter().find(is_recent).or(self.samples.back()).filter(|_| !is_young);
        totals.success_rate(earlier.map(|sample| &sample.totals))
    }

    pub(super) fn saved_today(&self, totals: &Totals) -> SavedTodayJson {
        self.today.json(totals.saved())
    }

    pub(super) fn json(&self) -> Vec<u8> {
        let samples = self.samples.iter().map(|sample| SampleJson {
            at: rfc3339(sample.at),
            waits: sample.waits,
            polls: sample.polls,
            totals: &sample.totals,
        });
        serde_json::to_vec(&samples.collect::<Vec<_>>()).expect("strings and numbers serialize")
    }
}
