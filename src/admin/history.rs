//! How it stood in the last minutes, so that a page that is opened late has something to plot.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::state::rfc3339;
use crate::gateway::Gateway;
use crate::telemetry::metrics::Totals;

/// The time between two moments.
pub(super) const STEP: Duration = Duration::from_secs(5);

/// Moments that are kept: a quarter of an hour.
const MOMENTS: usize = 180;

/// The last moments, the oldest first.
#[derive(Default)]
pub(super) struct History(VecDeque<Moment>);

/// How it stood at one time.
struct Moment {
    at: SystemTime,
    waits: usize,
    polls: usize,
    totals: Totals,
}

#[derive(Serialize)]
struct Shown<'a> {
    at: String,
    waits: usize,
    polls: usize,
    totals: &'a Totals,
}

impl History {
    /// Adds how it stands now.
    pub(super) fn add(&mut self, gateway: &Gateway) {
        if self.0.len() == MOMENTS {
            self.0.pop_front();
        }
        self.0.push_back(Moment {
            at: SystemTime::now(),
            waits: gateway.waits(),
            polls: gateway.metrics().upstream.poll_counts().open,
            totals: gateway.metrics().totals(),
        });
    }

    /// All of them as JSON.
    pub(super) fn json(&self) -> Vec<u8> {
        let shown = self.0.iter().map(|moment| Shown {
            at: rfc3339(moment.at),
            waits: moment.waits,
            polls: moment.polls,
            totals: &moment.totals,
        });
        serde_json::to_vec(&shown.collect::<Vec<_>>()).expect("texts and numbers are JSON")
    }
}
