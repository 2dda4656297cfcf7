//! The end of all waits: each is told the truth of its jobs before the gateway goes, one after the other.
//!
//! To the client that is the upstream's own time-out answer, and it asks again. Nothing here answers: a drained
//! wait is one whose time is over sooner.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Coalescer;
use super::types::{WaitId, WaitSpec};
use crate::core::Map;
use crate::core::job::{JobId, KeyDomain};

impl Coalescer {
    /// Spreads the deadlines of all waits over the first part of the time that is left; the rest of it is for
    /// what the last ones still have to ask. Waits that share jobs end together, so that one snapshot answers them.
    pub(super) fn drain(&mut self, until: Instant, now: Instant) {
        self.draining = Some(until);
        let window = until.saturating_duration_since(now);
        let spread = window - window / SHARE_FOR_LOOKS;
        let groups = self.groups_by_deadline();
        let count = u32::try_from(groups.len()).unwrap_or(u32::MAX).max(1);
        let mut before = 0;
        for (place, group) in (0..count).zip(groups) {
            // A few waits need no spread: nobody stops for longer than it takes.
            let at = now + (spread / count * place).min(TIME_A_WAIT.saturating_mul(before));
            before = before.saturating_add(u32::try_from(group.len()).unwrap_or(u32::MAX));
            for id in group {
                self.board.shorten(id, at);
                self.board.cap(id, until);
            }
        }
    }

    /// Returns all waits, those that share jobs, directly or by way of others, in one group; groups by their earliest
    /// deadline.
    fn groups_by_deadline(&self) -> Vec<Vec<WaitId>> {
        let mut waits: Vec<_> =
            self.board.all_waits().map(|(id, wait)| (wait.deadline(), id, wait)).collect();
        waits.sort_unstable_by_key(|&(deadline, id, _)| (deadline, id));
        let mut groups = DisjointSets((0..waits.len()).collect());
        let mut first = Map::<(KeyDomain, &JobId), usize>::default();
        for (place, (_, _, wait)) in waits.iter().enumerate() {
            for job in &wait.spec.jobs {
                let other = *first.entry((wait.spec.domain, job)).or_insert(place);
                groups.unite(place, other);
            }
        }
        let mut members = BTreeMap::<usize, Vec<WaitId>>::new();
        for (place, &(_, id, _)) in waits.iter().enumerate() {
            members.entry(groups.root(place)).or_default().push(id);
        }
        members.into_values().collect()
    }

    /// A wait that comes while draining is told at once.
    pub(super) fn shorten_if_draining(&self, spec: &mut WaitSpec, now: Instant) {
        if self.draining.is_some() {
            spec.timeout = spec.timeout.min(now.saturating_duration_since(spec.arrived));
        }
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

/// The time that the end of one wait takes up at most.
const TIME_A_WAIT: Duration = Duration::from_millis(10);

/// What part of the time is kept for looks.
const SHARE_FOR_LOOKS: u32 = 4;
