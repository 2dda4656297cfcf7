//! The polls that this replica shares: which key opens the states of each, and the names of its jobs.

use std::sync::Arc;

use parking_lot::Mutex;

use super::names::{JobName, ShardIndex};
use super::seal::StateSeal;
use crate::core::Map;
use crate::core::job::{JobSet, KeyDomain};
use crate::core::route::Route;
use crate::core::siblings::PollName;

/// Most registered polls. The machine shares fewer; each may stay registered for a while after its end.
const MAX_POLLS: usize = 65_536;

/// A registered poll.
pub(super) struct ClusterPoll {
    pub(super) name: PollName,
    pub(super) domain: KeyDomain,
    pub(super) jobs: JobSet,
    /// Names of the jobs, in their order.
    pub(super) job_names: Vec<JobName>,
    pub(super) route: Arc<Route>,
    pub(super) seal: StateSeal,
}

impl ClusterPoll {
    pub(super) fn shard(&self) -> ShardIndex {
        ShardIndex::of_domain(self.domain)
    }
}

/// All registered polls. Messages of other polls are not opened.
#[derive(Default)]
pub(super) struct ClusterPolls(Mutex<Map<PollName, Arc<ClusterPoll>>>);

impl ClusterPolls {
    pub(super) fn insert(&self, poll: ClusterPoll) {
        let mut polls = self.0.lock();
        if polls.len() < MAX_POLLS {
            polls.insert(poll.name, Arc::new(poll));
        }
    }

    pub(super) fn remove(&self, name: PollName) {
        self.0.lock().remove(&name);
    }

    pub(super) fn get(&self, name: PollName) -> Option<Arc<ClusterPoll>> {
        self.0.lock().get(&name).cloned()
    }

    pub(super) fn contains(&self, name: PollName) -> bool {
        self.0.lock().contains_key(&name)
    }
}
