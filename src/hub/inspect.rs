//! Read-only view of the hub for `/api/state` and the dashboard.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::task::HubTask;
use crate::core::coalescer::{Coalescer, JobStatus, PollId};
use crate::core::job::KeyDomain;
use crate::core::siblings::{LinkState, ReplicaName, SiblingView};

/// The most jobs, and the most keys, that one inspection reads. It bounds the time that the hub's task spends on it.
const MAX_INSPECTED: usize = 10_000;

/// Jobs and keys of the parked waits.
#[derive(Clone, Debug)]
pub struct HubOverview {
    /// Jobs of waits and polls, the oldest first. At most the requested number.
    pub jobs: Vec<JobInFlight>,
    /// Number of all jobs.
    pub total_jobs: usize,
    /// Keys with parked waits, those with the most waits first. At most the requested number.
    pub keys: Vec<KeyInFlight>,
    /// Number of all keys with parked waits.
    pub total_keys: usize,
    /// `None`: this gateway is the only one.
    pub cluster: Option<ClusterOverview>,
}

/// A job of waits and polls.
#[derive(Clone, Debug)]
pub struct JobInFlight {
    pub status: JobStatus,
    /// Replicas that make its polls. Empty without `[cluster]` or without its link.
    pub holders: BTreeSet<ReplicaName>,
}

/// The replicas as this one sees them.
#[derive(Clone, Debug)]
pub struct ClusterOverview {
    pub link: LinkState,
    /// Identity of the replicas that share. Two gateways with different ones never meet.
    pub id: String,
    /// Name of this replica, while its link is up.
    pub name: Option<ReplicaName>,
    /// Number of polls that this replica makes.
    pub own_polls: usize,
    pub siblings: Vec<SiblingView>,
}

/// A key with parked waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyInFlight {
    /// Key domain of the waits.
    pub domain: KeyDomain,
    /// Number of parked waits.
    pub waits: usize,
    /// Number of parked waits of each member, in team mode.
    pub members: Vec<(Arc<str>, usize)>,
}

impl HubTask {
    pub(super) fn overview(&self, limit: usize) -> HubOverview {
        let oldest = self.machines.iter().flat_map(|machine| machine.oldest_jobs(limit, MAX_INSPECTED));
        let mut jobs: Vec<JobStatus> = oldest.collect();
        jobs.sort_by_key(|job| job.since);
        jobs.truncate(limit);
        let jobs = jobs.into_iter().map(|job| self.job_in_flight(job)).collect();
        let total_jobs = self.machines.iter().map(Coalescer::jobs).sum();
        let keys = self.keys.iter().take(MAX_INSPECTED).map(|(domain, key)| KeyInFlight {
            domain: *domain,
            waits: key.waits,
            members: key.members.iter().map(|(name, waits)| (Arc::clone(name), *waits)).collect(),
        });
        let mut keys: Vec<_> = keys.collect();
        keys.sort_unstable_by_key(|key| (Reverse(key.waits), key.domain));
        keys.truncate(limit);
        let cluster = self.sharing.as_ref().map(|sharing| sharing.overview());
        HubOverview { jobs, total_jobs, keys, total_keys: self.keys.len(), cluster }
    }

    fn job_in_flight(&self, status: JobStatus) -> JobInFlight {
        let holder = |poll: &PollId| self.sharing.as_ref().and_then(|sharing| sharing.holder(*poll));
        let holders = status.polls.iter().filter_map(holder).collect();
        JobInFlight { status, holders }
    }
}
