//! Drain: every wait gets the current state of its jobs before the gateway exits.
//!
//! A drained wait is one whose deadline comes sooner: nothing here answers. For the client the answer looks like the
//! upstream's own time-out, and it asks again (P2).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Coalescer;
use super::types::{WaitId, WaitSpec};
use crate::core::Map;
use crate::core::job::{JobId, KeyDomain};

impl Coalescer {
    /// Spreads the deadlines of all waits over the first three quarters of the remaining time. The last quarter is left
    /// for the snapshots of the last waits. Waits that share jobs end together, so that one snapshot answers them.
    pub(super) fn drain(&mut self, until: Instant, now: Instant) {
        self.draining = Some(until);
        self.end_idle_watches();
        let window = until.saturating_duration_since(now);
        let spread = window - window / SNAPSHOT_SHARE;
        let groups = self.groups_by_deadline();
        let count = u32::try_from(groups.len()).unwrap_or(u32::MAX).max(1);
        let mut waits_before = 0;
        for (index, group) in (0..count).zip(groups) {
            // A gateway with few waits stops at once: 10 ms a wait bound the spread.
            let at = now + (spread / count * index).min(MAX_TIME_PER_WAIT.saturating_mul(waits_before));
            waits_before = waits_before.saturating_add(u32::try_from(group.len()).unwrap_or(u32::MAX));
            for id in group {
                self.state.shorten(id, at);
                self.state.cap(id, until);
            }
        }
    }

    /// Returns all waits in groups that share jobs, directly or through other waits. The group with the earliest
    /// deadline comes first.
    fn groups_by_deadline(&self) -> Vec<Vec<WaitId>> {
        let mut waits: Vec<_> =
            self.state.all_waits().map(|(id, wait)| (wait.deadline(), id, wait)).collect();
        waits.sort_unstable_by_key(|&(deadline, id, _)| (deadline, id));
        let mut groups = DisjointSets((0..waits.len()).collect());
        let mut first_with_job = Map::<(KeyDomain, &JobId), usize>::default();
        for (index, (_, _, wait)) in waits.iter().enumerate() {
            for job in &wait.spec.jobs {
                let other = *first_with_job.entry((wait.spec.domain, job)).or_insert(index);
                groups.unite(index, other);
            }
        }
        let mut members = BTreeMap::<usize, Vec<WaitId>>::new();
        for (index, &(_, id, _)) in waits.iter().enumerate() {
            members.entry(groups.root(index)).or_default().push(id);
        }
        members.into_values().collect()
    }

    /// Ends the time of a wait that arrives during the drain at once.
    pub(super) fn shorten_if_draining(&self, spec: &mut WaitSpec, now: Instant) {
        if self.draining.is_some() {
            spec.timeout = spec.timeout.min(now.saturating_duration_since(spec.arrived));
        }
    }

    /// Returns `at`, or the end of the drain if that is earlier.
    pub(super) fn cap_at_drain(&self, at: Instant) -> Instant {
        self.draining.map_or(at, |until| at.min(until))
    }
}

/// Union-find with path halving. The root of a set is its smallest member.
struct DisjointSets(Vec<usize>);

impl DisjointSets {
    fn root(&mut self, mut member: usize) -> usize {
        while self.0[member] != member {
            self.0[member] = self.0[self.0[member]];
            member = self.0[member];
        }
        member
    }

    fn unite(&mut self, one: usize, other: usize) {
        let (one, other) = (self.root(one), self.root(other));
        self.0[one.max(other)] = one.min(other);
    }
}

/// Most time of the spread that one wait may take.
const MAX_TIME_PER_WAIT: Duration = Duration::from_millis(10);

/// One part in so many of the time is kept for the last snapshots.
const SNAPSHOT_SHARE: u32 = 4;
