//! The state of the gateway for the admin listener. Contains key domains and names of members, never keys.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::Gateway;
use crate::auth::KeyOrigin;
use crate::cache::Cache;
use crate::core::job::{JobId, KeyDomain};
use crate::core::route::Routes;
use crate::core::siblings::Removal;
use crate::hub::{self, ClusterOverview, JobInFlight, KeyInFlight};
use crate::limits::{QuotaState, Subject};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::trace::Tracer;

/// Jobs and keys in progress.
#[derive(Clone, Debug)]
pub struct GatewayOverview {
    /// The oldest jobs of waits and polls.
    pub jobs: Vec<JobInFlight>,
    pub total_jobs: usize,
    /// In team mode the members, else the keys with parked waits. Sorted by number of waits, descending.
    pub keys: Vec<KeyUsage>,
    pub total_keys: usize,
    /// `None`: this gateway is the only one.
    pub cluster: Option<ClusterOverview>,
}

/// The waits and quotas of one key, in team mode of one member.
#[derive(Clone, Debug)]
pub struct KeyUsage {
    /// The member, in team mode.
    pub name: Option<Arc<str>>,
    pub key: KeyDomain,
    pub waits: usize,
    /// Empty for a key that the upstream has not accepted yet: its requests count against the client's address.
    pub quotas: Vec<QuotaState>,
}

impl Gateway {
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    pub fn cache(&self) -> &Cache {
        &self.0.cache
    }

    pub fn routes(&self) -> &Routes {
        &self.0.routes
    }

    pub fn tracer(&self) -> &Tracer {
        &self.0.tracer
    }

    /// Removes cached states, here and on all replicas: those of one job, or all. Returns the number removed here.
    pub fn remove_cached(&self, id: Option<&JobId>) -> u64 {
        let removed = match id {
            Some(id) => self.0.cache.remove(id),
            None => self.0.cache.remove_all(),
        };
        self.0.hub.states_removed(id.map_or(Removal::All, |id| Removal::Id(id.clone())));
        removed
    }

    /// Resolves once siblings have taken over, after the drain has begun. Cancel safe.
    pub async fn handed_over(&self) {
        self.0.hub.handed_over().await;
    }

    /// Returns the number of parked waits.
    pub fn waits(&self) -> usize {
        self.0.hub.waits()
    }

    /// Returns the number of passed-through requests in progress, tunnels included.
    pub fn passed_through(&self) -> usize {
        self.0.slots.taken()
    }

    /// Returns at most `limit` jobs and `limit` keys. `None`: too many inspections are in progress, or the hub has
    /// ended. A busy hub answers late. Cancel safe.
    pub async fn overview(&self, limit: usize) -> Option<GatewayOverview> {
        let hub::HubOverview { jobs, total_jobs, keys, total_keys, cluster } =
            self.0.hub.inspect(limit).await?;
        let members = self.0.access.authenticator.members();
        let (keys, total_keys) = match members.is_empty() {
            true => (keys.iter().map(|key| self.key_usage(key)).collect(), total_keys),
            false => self.member_usage(members, &keys, limit),
        };
        Some(GatewayOverview { jobs, total_jobs, keys, total_keys, cluster })
    }

    fn key_usage(&self, key: &KeyInFlight) -> KeyUsage {
        let has_quotas = match self.0.access.authenticator.default_origin() {
            Some(KeyOrigin::Gateway) => true,
            Some(KeyOrigin::Open) => false,
            Some(KeyOrigin::Client) | None => self.0.cache.is_key_proven(key.domain),
        };
        let quotas =
            if has_quotas { self.0.limits.quota_states(Subject::Key(key.domain)) } else { Vec::new() };
        KeyUsage { name: None, key: key.domain, waits: key.waits, quotas }
    }

    /// Returns the usage of the members, and of removed members that still have waits; and their total number.
    fn member_usage(
        &self,
        members: Vec<(Arc<str>, KeyDomain)>,
        keys: &[KeyInFlight],
        limit: usize,
    ) -> (Vec<KeyUsage>, usize) {
        let mut waits: BTreeMap<(Arc<str>, KeyDomain), usize> =
            members.into_iter().map(|member| (member, 0)).collect();
        for key in keys {
            for (name, parked) in &key.members {
                *waits.entry((Arc::clone(name), key.domain)).or_default() += parked;
            }
        }
        let total = waits.len();
        let mut waits: Vec<_> = waits.into_iter().collect();
        waits.sort_by_key(|(_, waits)| Reverse(*waits));
        waits.truncate(limit);
        let usage = waits.into_iter().map(|((name, key), waits)| KeyUsage {
            quotas: self.0.limits.quota_states(Subject::member(&name)),
            name: Some(name),
            key,
            waits,
        });
        (usage.collect(), total)
    }
}
