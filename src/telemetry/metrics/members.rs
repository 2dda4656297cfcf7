//! Counts of each team member.
//!
//! The members are those of the configuration, so their number is bounded. A reload replaces them; a member that stays
//! keeps its counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::RwLock;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use serde::Serialize;

use super::register;
use super::sharded::ShardedCounter;
use crate::clock;

/// Counters of all members. Outside of team mode there are none.
#[derive(Debug)]
pub(crate) struct MemberMetrics {
    family: Family<[(&'static str, String); 1], ShardedCounter>,
    members: RwLock<BTreeMap<Box<str>, Arc<MemberCounts>>>,
    /// Requests without a member.
    unnamed: ShardedCounter,
    started: Instant,
}

#[derive(Debug, Default)]
struct MemberCounts {
    requests: ShardedCounter,
    saved: AtomicU64,
    rejected: AtomicU64,
    waits: AtomicUsize,
    /// Milliseconds from the start to the end of the newest request, plus one. Zero: no request yet.
    last_seen: AtomicU64,
}

/// Element of `members` in `/api/state`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct MemberUsage {
    name: String,
    requests: u64,
    saved: u64,
    /// Parked waits.
    waits: usize,
    rejected: u64,
    /// `None`: no request since the start.
    last_seen_seconds: Option<f64>,
}

/// A parked wait of a member. Its drop ends the count.
#[derive(Debug)]
pub(crate) struct MemberWait(Arc<MemberCounts>);

impl Drop for MemberWait {
    fn drop(&mut self) {
        self.0.waits.fetch_sub(1, Ordering::Relaxed);
    }
}

impl MemberMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let family = Family::<[(&'static str, String); 1], ShardedCounter>::default();
        register(registry, "clipgate_member_requests_total", "Client requests by member", family.clone());
        let unnamed = family.get_or_create_owned(&[("member", String::new())]);
        Self { family, unnamed, members: RwLock::default(), started: clock::now() }
    }

    /// Replaces the members of the configuration, and removes the counts of those that are gone.
    pub(super) fn set<'n>(&self, names: impl IntoIterator<Item = &'n str>) {
        let mut members = self.members.write();
        let mut old = std::mem::take(&mut *members);
        for name in names {
            let (name, counts) = old.remove_entry(name).unwrap_or_else(|| {
                let requests = self.family.get_or_create_owned(&[("member", name.to_owned())]);
                (name.into(), Arc::new(MemberCounts { requests, ..MemberCounts::default() }))
            });
            members.insert(name, counts);
        }
        for gone in old.into_keys() {
            self.family.remove(&[("member", gone.into())]);
        }
    }

    /// Records an ended request.
    pub(crate) fn finish(&self, name: Option<&str>, is_saved: bool, is_rejected: bool) {
        let Some(name) = name else {
            self.unnamed.inc();
            return;
        };
        let members = self.members.read();
        let Some(counts) = members.get(name) else {
            self.unnamed.inc();
            return;
        };
        counts.requests.inc();
        counts.saved.fetch_add(is_saved.into(), Ordering::Relaxed);
        counts.rejected.fetch_add(is_rejected.into(), Ordering::Relaxed);
        let now = clock::now().saturating_duration_since(self.started).as_millis();
        counts.last_seen.store(u64::try_from(now).unwrap_or(u64::MAX).saturating_add(1), Ordering::Relaxed);
    }

    /// Counts a parked wait until the guard is dropped.
    pub(crate) fn park(&self, name: &str) -> Option<MemberWait> {
        let counts = Arc::clone(self.members.read().get(name)?);
        counts.waits.fetch_add(1, Ordering::Relaxed);
        Some(MemberWait(counts))
    }

    /// Returns the members by name.
    pub(crate) fn usage(&self) -> Vec<MemberUsage> {
        let uptime = clock::now().saturating_duration_since(self.started).as_secs_f64();
        let usage = |name: &str, counts: &MemberCounts| {
            let last_seen = counts.last_seen.load(Ordering::Relaxed).checked_sub(1);
            MemberUsage {
                name: name.to_string(),
                requests: counts.requests.get(),
                saved: counts.saved.load(Ordering::Relaxed),
                waits: counts.waits.load(Ordering::Relaxed),
                rejected: counts.rejected.load(Ordering::Relaxed),
                last_seen_seconds: last_seen.map(|millis| (uptime - millis as f64 / 1000.0).max(0.0)),
            }
        };
        self.members.read().iter().map(|(name, counts)| usage(name, counts)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_counted_until_a_reload_removes_them() {
        let members = MemberMetrics::new(&mut Registry::default());
        members.set(["ann", "bob"]);
        members.finish(Some("ann"), true, false);
        members.finish(Some("ann"), false, true);
        members.finish(Some("mallory"), true, false);
        members.finish(None, true, false);
        assert_eq!(members.unnamed.get(), 2);
        let parked = members.park("bob");
        assert!(parked.is_some() && members.park("mallory").is_none());
        let usage = members.usage();
        assert_eq!(usage.len(), 2);
        assert_eq!((usage[0].requests, usage[0].saved, usage[0].rejected, usage[0].waits), (2, 1, 1, 0));
        assert!(usage[0].last_seen_seconds.is_some_and(|seconds| seconds < 5.0));
        assert_eq!((usage[1].requests, usage[1].waits, usage[1].last_seen_seconds), (0, 1, None));

        members.set(["ann", "carol"]);
        drop(parked);
        members.set(["bob", "ann"]);
        let usage = members.usage();
        assert_eq!((usage[0].requests, usage[1].waits), (2, 0), "a member that comes back starts at zero");
    }
}
