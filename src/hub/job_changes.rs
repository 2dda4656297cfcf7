//! Jobs that an action changed, and news for siblings, on their way to the hub's task.
//!
//! A set rather than a channel: reporting a change never waits and never fails, and a job is in it once however often it
//! changes. The task takes the set before the commands of a round. So a change comes before all waits that
//! clients send after its response.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::core::job::{JobId, KeyDomain};
use crate::core::siblings::Removal;

/// The most entries: four requests that name as many jobs as a request can. With more, the key with the most jobs counts as
/// a whole, which costs one snapshot for each of its jobs under way. No other key is concerned (P11).
const MAX_CHANGES: usize = 4096;

/// The most jobs of a key in one round that siblings hear of one by one. With more, the key counts as a whole there: a link
/// that is down keeps only so many messages.
const MAX_NAMED: usize = 256;

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
    /// Keys of which all jobs count as changed. None of them is in `jobs`.
    pub(super) domains: BTreeSet<KeyDomain>,
    /// Whether there were more keys than the set has room for.
    pub(super) is_overflown: bool,
    /// Keys that the upstream rejected by its answers to passed-through requests.
    pub(super) refused: BTreeSet<KeyDomain>,
    /// States that an operator removed.
    pub(super) removed: Vec<Removal>,
}

impl JobChanges {
    pub(super) fn report(&self, domain: KeyDomain, jobs: &[JobId]) {
        self.pending.lock().add(domain, jobs);
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

impl PendingChanges {
    /// Returns the changes as siblings hear of them.
    pub(super) fn removals(&self) -> Vec<Removal> {
        if self.is_overflown {
            return vec![Removal::AllChanged(None)];
        }
        let mut counts: BTreeMap<KeyDomain, usize> =
            self.domains.iter().map(|domain| (*domain, usize::MAX)).collect();
        for (domain, _) in &self.jobs {
            *counts.entry(*domain).or_insert(0) += 1;
        }
        let is_named = |domain: &KeyDomain| counts.get(domain).is_some_and(|count| *count <= MAX_NAMED);
        let named = self.jobs.iter().filter(|(domain, _)| is_named(domain));
        let named = named.map(|(domain, job)| Removal::Changed(*domain, job.clone()));
        let whole = counts.keys().filter(|domain| !is_named(domain));
        named.chain(whole.map(|domain| Removal::AllChanged(Some(*domain)))).collect()
    }

    fn add(&mut self, domain: KeyDomain, jobs: &[JobId]) {
        if self.is_overflown || self.domains.contains(&domain) {
            return;
        }
        self.jobs.extend(jobs.iter().map(|job| (domain, job.clone())));
        while self.jobs.len() + self.domains.len() > MAX_CHANGES {
            match self.widest_domain() {
                Some((domain, count)) if count > 1 => {
                    self.jobs.retain(|(other, _)| *other != domain);
                    self.domains.insert(domain);
                }
                Some(_) | None => {
                    self.jobs.clear();
                    self.domains.clear();
                    self.is_overflown = true;
                }
            }
        }
    }

    /// Returns the key with the most jobs in the set, and their number.
    fn widest_domain(&self) -> Option<(KeyDomain, usize)> {
        let mut counts = BTreeMap::new();
        for (domain, _) in &self.jobs {
            *counts.entry(*domain).or_insert(0) += 1;
        }
        counts.into_iter().max_by_key(|(_, count)| *count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: KeyDomain = KeyDomain([1; 16]);
    const BOB: KeyDomain = KeyDomain([2; 16]);

    fn job(number: usize) -> JobId {
        JobId::new(&number.to_string()).unwrap()
    }

    #[test]
    fn a_job_is_reported_once() {
        let changes = JobChanges::default();
        changes.report(ANN, &[job(1), job(2)]);
        changes.report(ANN, &[job(1)]);
        assert_eq!(changes.take().jobs, BTreeSet::from([(ANN, job(1)), (ANN, job(2))]));
        assert_eq!(changes.take(), PendingChanges::default());
    }

    // P11
    #[test]
    fn with_a_full_set_only_the_key_with_the_most_jobs_counts_as_a_whole() {
        let changes = JobChanges::default();
        let many: Vec<JobId> = (0..MAX_CHANGES).map(job).collect();
        changes.report(ANN, &many);
        changes.report(BOB, &[job(1)]);
        changes.report(ANN, &[job(MAX_CHANGES)]);
        let (jobs, domains) = (BTreeSet::from([(BOB, job(1))]), BTreeSet::from([ANN]));
        assert_eq!(changes.take(), PendingChanges { jobs, domains, ..PendingChanges::default() });
    }

    #[test]
    fn siblings_hear_of_each_change_of_a_key_with_few_and_of_the_key_with_many() {
        let changes = JobChanges::default();
        changes.report(BOB, &[job(1)]);
        for (count, is_named) in [(MAX_NAMED, true), (MAX_NAMED + 1, false), (MAX_CHANGES + 1, false)] {
            changes.report(ANN, &(0..count).map(job).collect::<Vec<_>>());
            changes.report(BOB, &[job(1)]);
            let removals = changes.take().removals();
            assert!(removals.contains(&Removal::Changed(BOB, job(1))), "{count}");
            assert_eq!(removals.contains(&Removal::AllChanged(Some(ANN))), !is_named, "{count}");
            assert_eq!(removals.len(), if is_named { count + 1 } else { 2 });
        }
        let overflown = PendingChanges { is_overflown: true, ..PendingChanges::default() };
        assert_eq!(overflown.removals(), [Removal::AllChanged(None)]);
    }

    #[test]
    fn the_number_of_keys_in_the_set_is_bounded() {
        let changes = JobChanges::default();
        for number in 0..=MAX_CHANGES as u128 {
            changes.report(KeyDomain(number.to_le_bytes()), &[job(1)]);
        }
        changes.report(ANN, &[job(1)]);
        assert_eq!(changes.take(), PendingChanges { is_overflown: true, ..PendingChanges::default() });
    }
}
