//! The gateway as its operator sees it: what is under way, who asks, what is kept.
//!
//! Keys are in it by name or short digest, never as they are.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::Gateway;
use crate::cache::Cache;
use crate::core::coalescer::JobStatus;
use crate::core::job::KeyDomain;
use crate::core::route::Ladder;
use crate::hub::{self, KeyInFlight};
use crate::limits::{QuotaState, Subject};
use crate::telemetry::metrics::Metrics;

/// What is under way.
#[derive(Clone, Debug)]
pub struct Overview {
    /// The oldest jobs that waits name or polls ask for.
    pub jobs: Vec<JobStatus>,
    /// How many there are.
    pub jobs_in_all: usize,
    /// The members of the team, or else the keys with parked waits; those with the most waits first.
    pub askers: Vec<Asker>,
    /// How many there are.
    pub askers_in_all: usize,
}

/// Somebody who asks, or may.
#[derive(Clone, Debug)]
pub struct Asker {
    /// The member, in team mode.
    pub name: Option<Arc<str>>,
    /// The key that it asks with.
    pub key: KeyDomain,
    /// Its parked waits.
    pub waits: usize,
    /// What is left of its quotas. None for a client's key that is not proven yet: it
    /// counts for its address.
    pub left: Vec<QuotaState>,
}

impl Gateway {
    /// What is counted.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    /// What is kept.
    pub fn cache(&self) -> &Cache {
        &self.0.cache
    }

    /// The rungs' names.
    pub fn ladder(&self) -> &Ladder {
        &self.0.route.ladder
    }

    /// What is under way, at most `most` jobs and `most` askers of it. `None` if too many look already or the hub has
    /// ended; it may take as long as the hub is busy. Cancel safe.
    pub async fn overview(&self, most: usize) -> Option<Overview> {
        let hub::HubOverview { jobs, total_jobs: jobs_in_all, keys, total_keys: keys_in_all } =
            self.0.hub.inspect(most).await?;
        let members = self.0.keyring.members();
        let (askers, askers_in_all) = match members.is_empty() {
            true => (keys.iter().map(|key| self.key(key)).collect(), keys_in_all),
            false => self.members(members, &keys, most),
        };
        Some(Overview { jobs, jobs_in_all, askers, askers_in_all })
    }

    fn key(&self, key: &KeyInFlight) -> Asker {
        let has_quotas = self.0.keyring.injects_key() || self.0.cache.is_key_proven(key.domain);
        let left = if has_quotas { self.0.limits.quota_states(Subject::Key(key.domain)) } else { Vec::new() };
        Asker { name: None, key: key.domain, waits: key.waits, left }
    }

    /// Those of the team, and those who have left it but still have waits.
    fn members(
        &self,
        team: Vec<(Arc<str>, KeyDomain)>,
        keys: &[KeyInFlight],
        most: usize,
    ) -> (Vec<Asker>, usize) {
        let mut waits: BTreeMap<(Arc<str>, KeyDomain), usize> =
            team.into_iter().map(|member| (member, 0)).collect();
        for key in keys {
            for (name, parked) in &key.members {
                *waits.entry((Arc::clone(name), key.domain)).or_default() += parked;
            }
        }
        let in_all = waits.len();
        let mut waits: Vec<_> = waits.into_iter().collect();
        waits.sort_by_key(|(_, waits)| Reverse(*waits));
        waits.truncate(most);
        let askers = waits.into_iter().map(|((name, key), waits)| Asker {
            left: self.0.limits.quota_states(Subject::member(&name)),
            name: Some(name),
            key,
            waits,
        });
        (askers.collect(), in_all)
    }
}
