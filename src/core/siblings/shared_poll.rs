//! Memory of [`Siblings`](super::Siblings): polls by name, by the coalescer's number and by the number of their attempts,
//! and the timers. Decides nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::types::{
    CallId, KeyEpoch, LeaseToken, PollName, ReplicaName, ShareSpec, SharedOutcome, Suspicion,
};
use crate::core::Map;
use crate::core::coalescer::PollId;
use crate::core::job::KeyDomain;

/// Most early results of one poll. Only several leases within one round trip need more than one.
const MAX_EARLY: usize = 4;

/// A poll of this replica's coalescer, or one that this replica makes for guests only.
#[derive(Debug)]
pub(super) struct SharedPoll {
    pub(super) spec: Arc<ShareSpec>,
    /// Number at the coalescer. `None` once the coalescer has aborted it and guests are left.
    pub(super) local: Option<PollId>,
    pub(super) phase: SharePhase,
    /// Token of this replica for the poll.
    pub(super) token: LeaseToken,
    /// Claim on its way.
    pub(super) claim: Option<CallId>,
    /// Lease of a sibling whose landing answers the poll.
    pub(super) awaited: Option<LeaseToken>,
    /// Results that came before the answer to the claim: messages and answers may be out of order. `None` is a lease that
    /// ended without a result.
    pub(super) early: Vec<(LeaseToken, Option<SiblingResult>)>,
    /// Guests that came before the answer to the claim.
    pub(super) early_guests: BTreeSet<ReplicaName>,
    /// Start of the poll, by a sibling or here.
    pub(super) opened_at: Instant,
    /// Whether the coalescer knows the poll as held by a sibling.
    pub(super) is_shown_held: bool,
    /// When this replica makes the poll itself, apart from its siblings.
    pub(super) abandon_at: Option<Instant>,
    timer: Option<Instant>,
}

/// Result of a sibling's poll.
#[derive(Debug)]
pub(super) struct SiblingResult {
    pub(super) outcome: SharedOutcome,
    pub(super) epoch: KeyEpoch,
    /// When the message came: ages are as of then.
    pub(super) came_at: Instant,
}

/// Phase of a shared poll. The page of [`Siblings`](super::Siblings) has the table of transitions.
#[derive(Debug)]
pub(super) enum SharePhase {
    /// A claim is on its way. `check_at` is when the patience may be over.
    Asking { asked_at: Instant, check_at: Instant },
    /// Waits for its rank, or for the members to come back after a loss of memory. Then claims.
    Delayed { until: Instant, suspicion: Option<Suspicion> },
    /// Looks whether the poll is still held, after a time without messages. Then claims. `None`: waits for the link.
    Looking { until: Option<Instant> },
    /// A sibling makes the poll, until the end of its lease. `held_from`: start of the attempt that the upstream holds.
    Away { holder: ReplicaName, until: Instant, held_from: Option<Instant> },
    /// This replica makes the poll.
    Ours(Box<OwnRun>),
}

/// A poll that this replica makes.
#[derive(Debug)]
pub(super) struct OwnRun {
    /// Number of its attempts.
    pub(super) run: PollId,
    pub(super) is_leased: bool,
    pub(super) epoch: Option<KeyEpoch>,
    pub(super) is_held: bool,
    /// Since when the upstream holds the attempt under way.
    pub(super) held_since: Option<Instant>,
    pub(super) is_suspended: bool,
    /// Whether it gave up its lease, or did not ask for it, while it was suspended or revoked, and has not got it back: the
    /// landing of a sibling ends it.
    pub(super) has_stepped_back: bool,
    /// Start of the newest attempt. `None`: no attempt has begun.
    pub(super) attempt_at: Option<Instant>,
    /// Epoch of the lease that this replica had then.
    pub(super) began_in: Option<KeyEpoch>,
    /// Whether the key was rejected since then: no sibling gets the result (P11).
    pub(super) is_revoked: bool,
    /// Siblings with waits on it.
    pub(super) guests: BTreeSet<ReplicaName>,
    /// Question for the guests on its way, and those that came or left since: its answer is older.
    pub(super) asked: Option<CallId>,
    pub(super) came: BTreeSet<ReplicaName>,
    pub(super) left: BTreeSet<ReplicaName>,
    /// Latest question for the lease: its answer supersedes those to earlier ones.
    pub(super) last_adopt: Option<CallId>,
    /// When to ask for the lease again after the engine refused it, and the refusals in a row.
    pub(super) adopt_at: Option<Instant>,
    pub(super) refused: u32,
    /// End of the linger after the last guest.
    pub(super) guests_linger_until: Option<Instant>,
    /// Whether the coalescer counts no linger for it: it joined a poll that was kept for guests.
    pub(super) lingers_here: bool,
    /// End of the linger, without waits and guests.
    pub(super) ends_at: Option<Instant>,
}

impl OwnRun {
    /// Returns whether no sibling should wait for the result: this replica makes no attempt for now, or the key was
    /// rejected since the last one began.
    pub(super) fn is_unfit(&self) -> bool {
        self.is_suspended || self.is_revoked
    }

    /// Returns when the attempt began that the upstream holds.
    pub(super) fn held_from(&self) -> Option<Instant> {
        self.attempt_at.filter(|_| self.is_held)
    }

    pub(super) fn held_for(&self, now: Instant) -> Option<Duration> {
        self.held_from().map(|began| now.saturating_duration_since(began))
    }
}

impl SharedPoll {
    pub(super) fn new(spec: ShareSpec, local: PollId, token: LeaseToken, now: Instant) -> Self {
        Self {
            spec: Arc::new(spec),
            local: Some(local),
            phase: SharePhase::Looking { until: None },
            token,
            claim: None,
            awaited: None,
            early: Vec::new(),
            early_guests: BTreeSet::new(),
            opened_at: now,
            is_shown_held: false,
            abandon_at: None,
            timer: None,
        }
    }

    pub(super) fn own(&self) -> Option<&OwnRun> {
        match &self.phase {
            SharePhase::Ours(own) => Some(own),
            SharePhase::Asking { .. }
            | SharePhase::Delayed { .. }
            | SharePhase::Looking { .. }
            | SharePhase::Away { .. } => None,
        }
    }

    pub(super) fn own_mut(&mut self) -> Option<&mut OwnRun> {
        match &mut self.phase {
            SharePhase::Ours(own) => Some(own),
            SharePhase::Asking { .. }
            | SharePhase::Delayed { .. }
            | SharePhase::Looking { .. }
            | SharePhase::Away { .. } => None,
        }
    }

    /// Returns when the newest attempt began that is made here.
    pub(super) fn began_at(&self) -> Instant {
        self.own().and_then(|own| own.attempt_at).unwrap_or(self.opened_at)
    }

    pub(super) fn holder(&self) -> Option<ReplicaName> {
        match self.phase {
            SharePhase::Away { holder, .. } => Some(holder),
            _ => None,
        }
    }

    /// Keeps a result that may belong to the lease in the answer to come.
    pub(super) fn keep_early(&mut self, token: LeaseToken, result: Option<SiblingResult>) {
        if self.early.len() >= MAX_EARLY {
            self.early.remove(0);
        }
        self.early.push((token, result));
    }

    fn due(&self) -> Option<Instant> {
        let due = match &self.phase {
            SharePhase::Asking { check_at: at, .. }
            | SharePhase::Delayed { until: at, .. }
            | SharePhase::Away { until: at, .. } => Some(*at),
            SharePhase::Looking { until } => *until,
            SharePhase::Ours(own) => return [own.ends_at, own.adopt_at].into_iter().flatten().min(),
        };
        [due, self.abandon_at].into_iter().flatten().min()
    }
}

#[derive(Debug, Default)]
pub(super) struct SharedPolls {
    polls: BTreeMap<PollName, SharedPoll>,
    by_domain: BTreeSet<(KeyDomain, PollName)>,
    by_local: Map<PollId, PollName>,
    by_run: Map<PollId, PollName>,
    timers: BTreeSet<(Instant, PollName)>,
}

impl SharedPolls {
    pub(super) fn get(&self, name: PollName) -> Option<&SharedPoll> {
        self.polls.get(&name)
    }

    /// Changes a poll and its timer.
    pub(super) fn change<R>(&mut self, name: PollName, f: impl FnOnce(&mut SharedPoll) -> R) -> Option<R> {
        let poll = self.polls.get_mut(&name)?;
        let result = f(poll);
        let due = poll.due();
        if due != poll.timer {
            if let Some(at) = poll.timer {
                self.timers.remove(&(at, name));
            }
            self.timers.extend(due.map(|at| (at, name)));
            poll.timer = due;
        }
        Some(result)
    }

    pub(super) fn insert(&mut self, poll: SharedPoll) {
        let name = poll.spec.name;
        self.by_local.extend(poll.local.map(|local| (local, name)));
        self.by_domain.insert((poll.spec.domain, name));
        self.polls.insert(name, poll);
    }

    pub(super) fn remove(&mut self, name: PollName) -> Option<SharedPoll> {
        let poll = self.polls.remove(&name)?;
        self.by_domain.remove(&(poll.spec.domain, name));
        if let Some(at) = poll.timer {
            self.timers.remove(&(at, name));
        }
        if let Some(local) = poll.local {
            self.by_local.remove(&local);
        }
        if let Some(own) = poll.own() {
            self.by_run.remove(&own.run);
        }
        Some(poll)
    }

    pub(super) fn set_local(&mut self, name: PollName, local: Option<PollId>) {
        let before = self.polls.get_mut(&name).and_then(|poll| std::mem::replace(&mut poll.local, local));
        if let Some(before) = before {
            self.by_local.remove(&before);
        }
        self.by_local.extend(local.map(|local| (local, name)));
    }

    pub(super) fn set_run(&mut self, run: PollId, name: PollName) {
        self.by_run.insert(run, name);
    }

    pub(super) fn of_local(&self, id: PollId) -> Option<PollName> {
        self.by_local.get(&id).copied()
    }

    pub(super) fn of_run(&self, id: PollId) -> Option<PollName> {
        self.by_run.get(&id).copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (PollName, &SharedPoll)> {
        self.polls.iter().map(|(name, poll)| (*name, poll))
    }

    /// Returns the names of the polls that fulfil the condition.
    pub(super) fn names(&self, is: impl Fn(&SharedPoll) -> bool) -> Vec<PollName> {
        self.iter().filter(|(_, poll)| is(poll)).map(|(name, _)| name).collect()
    }

    /// Like [`Self::names`], among the polls of one key only.
    pub(super) fn names_of(&self, domain: KeyDomain, is: impl Fn(&SharedPoll) -> bool) -> Vec<PollName> {
        let all = (domain, PollName(0))..=(domain, PollName(u128::MAX));
        let names = self.by_domain.range(all).map(|(_, name)| *name);
        names.filter(|name| self.polls.get(name).is_some_and(&is)).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.polls.len()
    }

    pub(super) fn due(&self, now: Instant) -> Option<PollName> {
        self.timers.first().filter(|(at, _)| *at <= now).map(|&(_, name)| name)
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.timers.first().map(|&(at, _)| at)
    }
}
