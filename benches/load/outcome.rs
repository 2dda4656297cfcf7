//! The outcome of a day: upstream calls by cause, answers by their source, and the record of the clients.

use std::collections::BTreeMap;
use std::time::Duration;

use super::clients::Record;
use super::upstream::Calls;

#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) calls: BTreeMap<&'static str, Calls>,
    pub(crate) record: Record,
    pub(crate) answers: Answers,
}

/// Answers of the gateway by their source.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Answers {
    /// From the cache.
    pub(crate) hits: u64,
    /// From the proof of an open poll.
    pub(crate) proven: u64,
    /// To waits that only attached to open polls.
    pub(crate) coalesced: u64,
    /// To waits that opened a poll.
    pub(crate) opened: u64,
}

impl Outcome {
    /// Returns the number of upstream calls, and the time for which they were open.
    pub(crate) fn total(&self) -> Calls {
        let add =
            |sum: Calls, calls: &Calls| Calls { count: sum.count + calls.count, open: sum.open + calls.open };
        self.calls.values().fold(Calls::default(), add)
    }

    /// Adds the figures of another day. The results of clients are left out.
    pub(crate) fn add(&mut self, day: &Self) {
        for (cause, calls) in &day.calls {
            let sum = self.calls.entry(cause).or_default();
            (sum.count, sum.open) = (sum.count + calls.count, sum.open + calls.open);
        }
        self.answers.hits += day.answers.hits;
        self.answers.proven += day.answers.proven;
        self.answers.coalesced += day.answers.coalesced;
        self.answers.opened += day.answers.opened;
        self.record.requests += day.record.requests;
        self.record.plain += day.record.plain;
        self.record.latest = self.record.latest.max(day.record.latest);
        self.record.oldest_status = self.record.oldest_status.max(day.record.oldest_status);
        self.record.false_statuses += day.record.false_statuses;
    }
}

/// Returns by how many times fewer calls the gateway makes than the clients alone.
pub(crate) fn saving(direct: &Outcome, gateway: &Outcome) -> f64 {
    let calls = |outcome: &Outcome| Duration::from_nanos(outcome.total().count).as_secs_f64();
    calls(direct) / calls(gateway)
}
