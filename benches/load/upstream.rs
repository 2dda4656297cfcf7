//! The upstream: holds requests until their jobs are far enough, answers, and counts.

use std::collections::BTreeMap;
use std::time::Duration;

use super::clients::JobsAsked;
use super::day::{Day, RungNumber};
use super::mix::UpstreamMix;

/// The upstream of one day. It never fails.
#[derive(Debug)]
pub(crate) struct Upstream<'a> {
    day: &'a Day,
    mix: &'a UpstreamMix,
    rng: fastrand::Rng,
    calls: BTreeMap<&'static str, Calls>,
}

/// Upstream requests of one cause.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Calls {
    pub(crate) count: u64,
    /// Time for which the requests were open, in total.
    pub(crate) open: Duration,
}

/// The answer to a request, which is known in advance because the life of each job is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reply {
    /// Time at which the upstream reads the states.
    pub(crate) read_at: Duration,
    /// Time at which the answer arrives.
    pub(crate) lands_at: Duration,
}

impl<'a> Upstream<'a> {
    pub(crate) fn new(day: &'a Day, mix: &'a UpstreamMix) -> Self {
        Self { day, mix, rng: fastrand::Rng::with_seed(day.seed), calls: BTreeMap::new() }
    }

    /// Returns the answer to a request that is sent at `sent_at`. Without a rung the upstream answers at once.
    pub(crate) fn reply(
        &mut self,
        jobs: JobsAsked<'_>,
        rung: Option<RungNumber>,
        sent_at: Duration,
    ) -> Reply {
        let half = self.mix.latency.draw_uniform(&mut self.rng) / 2;
        let arrives = sent_at + half;
        let read_at = match rung {
            None => arrives,
            Some(rung) => {
                let reached = jobs.iter().map(|&job| self.day.jobs[job].reaches_at(rung)).max();
                reached.unwrap_or(arrives).clamp(arrives, arrives + self.mix.hold.0)
            }
        };
        Reply { read_at, lands_at: read_at + half }
    }

    /// Counts a request that was open from `began` to `ended`.
    pub(crate) fn count(&mut self, cause: &'static str, began: Duration, ended: Duration) {
        let calls = self.calls.entry(cause).or_default();
        calls.count += 1;
        calls.open += ended.saturating_sub(began);
    }

    pub(crate) fn into_calls(self) -> BTreeMap<&'static str, Calls> {
        self.calls
    }
}
