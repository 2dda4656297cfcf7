//! The other replicas: when each was last heard, and the order in which they take over.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::types::{PollName, ReplicaName};

/// Most other replicas. Polls of further ones are not joined.
pub(super) const MAX_MEMBERS: usize = 64;
/// Time without a beat after which the polls of a replica prove nothing.
pub(super) const DOUBT: Duration = Duration::from_millis(1200);
/// Counts of zero subscribers in a row, one each [`COUNT_INTERVAL`], that prove a death.
const PROOF: u32 = 2;
/// Time between two counts of the subscribers of a holder.
pub(super) const COUNT_INTERVAL: Duration = Duration::from_millis(250);
/// The highest rank: the loss of a holder makes waits late by `takeover` and 0.2 s at most.
const MAX_RANK: u32 = 2;
/// Time between the claims of two ranks.
const RANK_DELAY: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug)]
pub(super) struct Sibling {
    pub(super) heard_at: Instant,
    pub(super) is_doubted: bool,
    /// Counts of zero subscribers in a row.
    zeros: u32,
}

#[derive(Debug, Default)]
pub(super) struct Members(BTreeMap<ReplicaName, Sibling>);

impl Members {
    /// Records that a replica lives. Returns whether it was doubted, or `None` if there are too many replicas.
    pub(super) fn heard(&mut self, name: ReplicaName, now: Instant) -> Option<bool> {
        if !self.0.contains_key(&name) && self.0.len() >= MAX_MEMBERS {
            return None;
        }
        let sibling = self.0.entry(name).or_insert(Sibling { heard_at: now, is_doubted: false, zeros: 0 });
        sibling.heard_at = sibling.heard_at.max(now);
        Some(std::mem::take(&mut sibling.is_doubted))
    }

    /// Records the holder of a lease. The engine knows a dead one for a living one for some time, so the time of a
    /// holder that was heard before stays. Returns false if there are too many replicas.
    pub(super) fn meet(&mut self, name: ReplicaName, now: Instant) -> bool {
        self.0.contains_key(&name) || self.heard(name, now).is_some()
    }

    pub(super) fn remove(&mut self, name: ReplicaName) {
        self.0.remove(&name);
    }

    pub(super) fn get_mut(&mut self, name: ReplicaName) -> Option<&mut Sibling> {
        self.0.get_mut(&name)
    }

    pub(super) fn is_doubted(&self, name: ReplicaName) -> bool {
        self.0.get(&name).is_none_or(|sibling| sibling.is_doubted)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (ReplicaName, &Sibling)> {
        self.0.iter().map(|(name, sibling)| (*name, sibling))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Records a count of subscribers. Returns whether it proves that the replica is dead.
    pub(super) fn counted(&mut self, name: ReplicaName, subscribers: usize) -> bool {
        let Some(sibling) = self.0.get_mut(&name) else { return false };
        sibling.zeros = if subscribers == 0 { sibling.zeros + 1 } else { 0 };
        sibling.zeros >= PROOF
    }

    /// Returns how long this replica waits before it claims a poll without a holder, so that the replicas do not claim at
    /// once. The order is that of a hash of poll and replica.
    pub(super) fn rank_delay(&self, poll: PollName, me: Option<ReplicaName>) -> Duration {
        let Some(me) = me else { return Duration::ZERO };
        let weight = |ReplicaName(name): ReplicaName| mix(fold(poll) ^ mix(name));
        let before = self.0.keys().filter(|other| weight(**other) > weight(me)).count();
        RANK_DELAY * u32::try_from(before).unwrap_or(MAX_RANK).min(MAX_RANK)
    }
}

/// Returns a delay below the limit that differs between polls and replicas.
pub(super) fn jitter(poll: PollName, instance: u64, limit: Duration) -> Duration {
    let part = mix(fold(poll) ^ mix(instance)) >> 48;
    limit * u32::try_from(part).unwrap_or(0) / (1 << 16)
}

#[expect(clippy::cast_possible_truncation, reason = "both halves of the name are taken")]
fn fold(PollName(name): PollName) -> u64 {
    name as u64 ^ (name >> 64) as u64
}

/// The finalizer of splitmix64: all replicas must agree on it.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}
