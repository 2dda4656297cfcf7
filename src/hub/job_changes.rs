//! Jobs that an action changed, and news for siblings, on their way to the hub's task.
//!
//! A set rather than a channel: reporting a change never waits and never fails, and a job is in it once however often it
//! changes. The task takes the set before the commands of a round. So a change comes before all waits that
//! clients send after its response.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::core::job::{JobId, KeyDomain};
use crate::core::siblings::Removal;

/// The most jobs in the set: four requests that name as many as a request can. With more, all jobs under way count as
/// changed, which costs one snapshot each.
const MAX_CHANGES: usize = 4096;

/// The most removals in one round.
const MAX_REMOVALS: usize = 64;

#[derive(Debug, Default)]
pub(super) struct JobChanges {
    pending: Mutex<PendingChanges>,
    notify: Notify,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PendingChanges {
    pub(super) jobs: BTreeSet<(KeyDomain, JobId)>,
    /// Whether there were more than the set has room for.
    pub(super) is_overflown: bool,
    /// Keys that the upstream rejected by its answers to passed-through requests.
    pub(super) refused: BTreeSet<KeyDomain>,
    /// States that an operator removed.
    pub(super) removed: Vec<Removal>,
}

impl JobChanges {
    pub(super) fn report(&self, domain: KeyDomain, jobs: &[JobId]) {
        let mut pending = self.pending.lock();
        if pending.jobs.len() + jobs.len() > MAX_CHANGES {
            (pending.jobs, pending.is_overflown) = (BTreeSet::new(), true);
        } else if !pending.is_overflown {
            pending.jobs.extend(jobs.iter().map(|job| (domain, job.clone())));
        }
        drop(pending);
        self.notify.notify_one();
    }

    /// Reports a rejected key. Beyond the bound it is left out: siblings find out by themselves.
    pub(super) fn report_refusal(&self, domain: KeyDomain) {
        let mut pending = self.pending.lock();
        if pending.refused.len() < MAX_CHANGES {
            pending.refused.insert(domain);
        }
        drop(pending);
        self.notify.notify_one();
    }

    /// Reports removed states. Beyond the bound all states are removed.
    pub(super) fn report_removal(&self, removal: Removal) {
        let mut pending = self.pending.lock();
        if pending.removed.len() < MAX_REMOVALS {
            pending.removed.push(removal);
        } else {
            pending.removed = vec![Removal::All];
        }
        drop(pending);
        self.notify.notify_one();
    }

    pub(super) fn take(&self) -> PendingChanges {
        std::mem::take(&mut *self.pending.lock())
    }

    /// Resolves once there may be changes. Cancel safe: the changes stay in the set.
    pub(super) async fn notified(&self) {
        self.notify.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_reported_once_and_a_full_set_stands_for_all_jobs() {
        let (changes, domain) = (JobChanges::default(), KeyDomain([1; 16]));
        let job = |number: usize| JobId::new(&number.to_string()).unwrap();
        changes.report(domain, &[job(1), job(2)]);
        changes.report(domain, &[job(1)]);
        assert_eq!(changes.take().jobs, BTreeSet::from([(domain, job(1)), (domain, job(2))]));
        assert_eq!(changes.take(), PendingChanges::default());
        let many: Vec<JobId> = (0..MAX_CHANGES).map(job).collect();
        changes.report(domain, &many);
        changes.report(domain, &[job(MAX_CHANGES)]);
        changes.report(domain, &[job(1)]);
        assert_eq!(changes.take(), PendingChanges { is_overflown: true, ..PendingChanges::default() });
    }
}
