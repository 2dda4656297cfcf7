//! All that has been counted until now, at once.

use serde::Serialize;

use super::{CallKind, Each, Limit, Metrics, Outcome};

/// Numbers that only grow while the process lives.
#[derive(Clone, Debug, Serialize)]
pub struct Totals {
    /// Clients' requests, by outcome.
    pub requests: Each<Outcome, u64>,
    /// Requests to the upstream that have ended, by kind.
    pub calls: Each<CallKind, u64>,
    /// Those that failed there.
    pub errors: u64,
    /// Tries of polls after one that failed.
    pub retries: u64,
    /// Answers to waits that needed no request of their own.
    pub saved: u64,
    /// Requests refused over a limit.
    pub limited: Each<Limit, u64>,
}

impl Metrics {
    /// What has been counted until now.
    pub fn totals(&self) -> Totals {
        Totals {
            requests: Each::new(|outcome| self.requests.count(outcome)),
            calls: Each::new(|kind| self.upstream.count(kind)),
            errors: self.upstream.faults(),
            retries: self.upstream.retries(),
            saved: self.requests.saved(),
            limited: Each::new(|limit| self.limited.count(limit)),
        }
    }
}
