//! What is under way in the hub, for people to look at.

use std::sync::Arc;

use super::task::HubTask;
use crate::core::coalescer::JobStatus;
use crate::core::job::KeyDomain;

/// How many jobs and how many keys a look takes in; of more the rest is only counted.
const MAX_INSPECTED: usize = 10_000;

/// What is under way.
#[derive(Clone, Debug)]
pub struct HubOverview {
    /// Jobs that waits name or polls ask for, the oldest first; not all of them.
    pub jobs: Vec<JobStatus>,
    /// How many there are.
    pub total_jobs: usize,
    /// Keys with parked waits, those with the most first; not all of them.
    pub keys: Vec<KeyInFlight>,
    /// How many there are.
    pub total_keys: usize,
}

/// A key with parked waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyInFlight {
    /// Whose answers it shares.
    pub domain: KeyDomain,
    /// Its parked waits.
    pub waits: usize,
    /// How many of these are whose, in team mode.
    pub members: Vec<(Arc<str>, usize)>,
}

impl HubTask {
    pub(super) fn overview(&self, most: usize) -> HubOverview {
        let jobs = self.coalescer.oldest_jobs(most, MAX_INSPECTED);
        let keys = self.keys.iter().take(MAX_INSPECTED).map(|(domain, key)| KeyInFlight {
            domain: *domain,
            waits: key.waits,
            members: key.members.iter().map(|(name, waits)| (Arc::clone(name), *waits)).collect(),
        });
        let mut keys: Vec<_> = keys.collect();
        keys.sort_unstable_by_key(|key| (std::cmp::Reverse(key.waits), key.domain));
        keys.truncate(most);
        HubOverview { jobs, total_jobs: self.coalescer.jobs(), keys, total_keys: self.keys.len() }
    }
}
