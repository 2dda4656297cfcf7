//! Messages of siblings, and the life and death of siblings.

use std::time::{Duration, Instant};

use super::Siblings;
use super::claims::{COMING_BACK, LOOKING};
use super::link::SILENCE;
use super::members::{COUNT_INTERVAL, DOUBT, MAX_MEMBERS};
use super::shared_poll::{SharePhase, SiblingResult};
use super::types::{
    EngineCall, KeyEpoch, LeaseToken, PollName, ReplicaName, SharedOutcome, SiblingMessage, SiblingOutput,
    Suspicion,
};
use crate::core::job::KeyDomain;
use crate::core::route::Goal;

/// Most dead epochs remembered. The oldest goes first; only messages under way can still name it.
pub(super) const MAX_DEAD_EPOCHS: usize = 1024;

/// Time in which further reports that the engine lost its memory mean the same loss.
const FLUSH_INTERVAL: Duration = Duration::from_millis(100);

impl Siblings {
    pub(super) fn message(&mut self, message: SiblingMessage, now: Instant) {
        match message {
            SiblingMessage::Beat(name, former) => self.beat_heard(name, former, now),
            SiblingMessage::Landed(name, token, epoch, outcome) => {
                self.lease_ended(
                    name,
                    token,
                    Some(SiblingResult { outcome, epoch, came_at: now }),
                    false,
                    now,
                );
            }
            SiblingMessage::Failed(name, token) => self.lease_ended(name, token, None, true, now),
            SiblingMessage::Left(name, token) => self.lease_ended(name, token, None, false, now),
            SiblingMessage::Taken(name, token) => self.taken(name, token, now),
            SiblingMessage::Attached(name, token, guest) => self.guest_attached(name, token, guest, now),
            SiblingMessage::Detached(name, guest) => self.guest_detached(name, guest, now),
            SiblingMessage::Note(name, token, held_for) => self.noted(name, token, held_for, now),
            SiblingMessage::Revoked { domain, dead, age, .. } => self.revoked(domain, dead, age, now),
            SiblingMessage::Removed { .. } | SiblingMessage::Paused(..) => {}
            SiblingMessage::Flushed => self.engine_flushed(now),
        }
    }

    fn beat_heard(&mut self, name: ReplicaName, former: Option<ReplicaName>, now: Instant) {
        if self.link.me == Some(name) {
            let has_missed = std::mem::take(&mut self.link.has_missed);
            if self.link.heard_itself(now) {
                self.update_abandoning(now);
                self.look_around(now);
            }
            if has_missed {
                self.adopt_all(now); // guests came and left unheard
            }
            return;
        }
        if self.link.former == Some(name) {
            return;
        }
        let was_doubted = self.members.heard(name, now);
        if let Some(former) = former.filter(|former| Some(*former) != self.link.me) {
            self.renamed(former, now);
        }
        if was_doubted == Some(true) {
            self.show_all_of(name);
        }
    }

    /// Looks at each poll that a sibling makes: messages were missed, or the engine knows this guest no more.
    pub(super) fn look_around(&mut self, now: Instant) {
        let is_away =
            |phase: &SharePhase| matches!(phase, SharePhase::Away { .. } | SharePhase::Looking { .. });
        for name in self.polls.names(|poll| is_away(&poll.phase)) {
            self.look(name, now + LOOKING, now);
        }
    }

    /// A sibling has a new name since its link is back. Its polls and their tokens are the same, unless it lost them
    /// meanwhile.
    fn renamed(&mut self, former: ReplicaName, now: Instant) {
        self.members.remove(former);
        // Those polls of its own that it still needs it looks for, and is their guest again.
        let linger = self.config.linger.max(COMING_BACK);
        for poll in self.polls.names(|poll| poll.own().is_some_and(|own| own.guests.contains(&former))) {
            self.guest_left(poll, former, linger, now);
        }
        for poll in self.polls.names(|poll| poll.holder() == Some(former)) {
            self.look(poll, now + LOOKING, now);
        }
    }

    /// The lease of a sibling ended with a result, or without one.
    fn lease_ended(
        &mut self,
        name: PollName,
        token: LeaseToken,
        result: Option<SiblingResult>,
        is_failed: bool,
        now: Instant,
    ) {
        let Some(poll) = self.polls.get(name) else { return };
        if let Some(own) = poll.own() {
            // P4: an attempt that the upstream holds longer than the sibling's goes on. The coalescer has the results of
            // this replica's earlier polls: they come back late after a time without a link.
            let is_siblings = token.instance != self.config.instance;
            let ends = |result: &SiblingResult| {
                own.has_stepped_back && (own.is_suspended || reaches(&result.outcome, poll.spec.goal))
            };
            if let Some(result) = result.filter(|result| is_siblings && ends(result)) {
                return self.landed_meanwhile(name, result, now);
            }
            // Two replicas made the poll. This one may have its lease now, or again: an engine whose clock went ahead gave
            // it to the other.
            if self.draining.is_none() && token != poll.token {
                if own.is_leased { self.keep_lease(name, now) } else { self.adopt(name, now) }
            }
            return;
        }
        let is_asking = poll.claim.is_some();
        if poll.awaited != Some(token) {
            if is_asking && token.instance != self.config.instance {
                self.polls.change(name, |poll| poll.keep_early(token, result));
            }
            return;
        }
        match result {
            Some(result) => self.sibling_landed(name, result, now),
            // A claim under way, or the delay before it, answers the end of the lease.
            None if matches!(poll.phase, SharePhase::Away { .. } | SharePhase::Looking { .. }) => {
                if is_asking {
                    self.polls.change(name, |poll| poll.keep_early(token, None));
                }
                // The engine decides between claims of the same moment.
                self.claim_anew(name, is_failed, now);
            }
            None => {}
        }
    }

    fn noted(&mut self, name: PollName, token: LeaseToken, held_for: Option<Duration>, now: Instant) {
        let noted = self.polls.change(name, |poll| match &mut poll.phase {
            SharePhase::Away { held_from, .. } if poll.awaited == Some(token) => {
                // An attempt is never older than its poll.
                let began = |age| now.checked_sub(age).map_or(poll.opened_at, |at| at.max(poll.opened_at));
                *held_from = held_for.map(began);
                true
            }
            _ => false,
        });
        if noted == Some(true) {
            self.show_hold(name);
        }
    }

    fn revoked(&mut self, domain: KeyDomain, dead: KeyEpoch, age: Duration, now: Instant) {
        if self.dead_epochs.insert((domain, dead)) {
            self.dead_order.push_back((domain, dead));
        }
        if self.dead_order.len() > MAX_DEAD_EPOCHS
            && let Some(oldest) = self.dead_order.pop_front()
        {
            self.dead_epochs.remove(&oldest);
        }
        let is_away =
            |phase: &SharePhase| matches!(phase, SharePhase::Away { .. } | SharePhase::Looking { .. });
        for name in self.polls.names_of(domain, |poll| is_away(&poll.phase)) {
            self.lose(name, None, now);
        }
        for name in self.polls.names_of(domain, |poll| poll.own().is_some()) {
            let dead_epochs = &self.dead_epochs;
            self.polls.change(name, |poll| {
                let began = poll.began_at();
                let Some(own) = poll.own_mut() else { return };
                let is_dead = |epoch: KeyEpoch| dead_epochs.contains(&(domain, epoch));
                // A lease of a later epoch was granted after the rejection, whenever this message comes.
                own.is_revoked |= own.began_in.is_none_or(is_dead) && began + age <= now; // P11
            });
        }
    }

    /// The engine lost its memory: beats at once, adopts all own polls, and becomes a guest of the others again.
    pub(super) fn engine_flushed(&mut self, now: Instant) {
        let is_repeated = self.flushed_at.is_some_and(|at| now < at + FLUSH_INTERVAL);
        if self.link.is_up() && !is_repeated {
            self.flushed_at = Some(now);
            self.beat(now);
            self.adopt_all(now);
            self.look_around(now);
        }
    }

    pub(super) fn counted(&mut self, name: ReplicaName, subscribers: usize, now: Instant) {
        let is_steady = self.link.up_since.is_some_and(|since| since + SILENCE <= now);
        if is_steady && self.link.is_hearing && self.members.counted(name, subscribers) {
            self.died(name, true, now);
        }
    }

    /// Gives up a sibling: its polls are claimed by rank, and it is a guest no more.
    fn died(&mut self, dead: ReplicaName, is_proven: bool, now: Instant) {
        self.members.remove(dead);
        for name in self.polls.names(|poll| poll.holder() == Some(dead)) {
            self.lose(name, Some(Suspicion { holder: dead, is_proven }), now);
        }
        for name in self.polls.names(|poll| poll.own().is_some_and(|own| own.guests.contains(&dead))) {
            self.guest_detached(name, dead, now);
        }
        // It may have had the lease of a poll that both made.
        for name in self.polls.names(|poll| poll.own().is_some_and(|own| !own.is_leased)) {
            self.adopt(name, now);
        }
    }

    /// Handles the siblings that were not heard in time.
    pub(super) fn check_members(&mut self, now: Instant) {
        let Some(since) = self.link.hearing_since.filter(|_| self.link.is_hearing) else { return };
        let mut silent = [None; MAX_MEMBERS];
        let late = self.members.iter().filter(|(_, sibling)| {
            let from = sibling.heard_at.max(since);
            from + self.config.takeover <= now || (!sibling.is_doubted && from + DOUBT <= now)
        });
        silent.iter_mut().zip(late).for_each(|(place, (name, sibling))| {
            *place = Some((name, sibling.heard_at.max(since) + self.config.takeover <= now));
        });
        for (name, is_dead) in silent.into_iter().flatten() {
            if is_dead {
                self.died(name, false, now);
            } else {
                self.members.get_mut(name).into_iter().for_each(|sibling| sibling.is_doubted = true);
                self.show_all_of(name);
            }
        }
    }

    /// Returns when a sibling counts as doubted or dead next.
    pub(super) fn next_member_due(&self) -> Option<Instant> {
        let since = self.link.hearing_since.filter(|_| self.link.is_hearing)?;
        let due = |sibling: &super::members::Sibling| {
            let limit =
                if sibling.is_doubted { self.config.takeover } else { DOUBT.min(self.config.takeover) };
            sibling.heard_at.max(since) + limit
        };
        self.members.iter().map(|(_, sibling)| due(sibling)).min()
    }

    pub(super) fn count_soon(&mut self, now: Instant) {
        self.next_count.get_or_insert(now + COUNT_INTERVAL);
    }

    /// Asks the engine to count the subscribers of each replica that makes a poll for this one.
    pub(super) fn count_holders(&mut self, now: Instant) {
        let holders: std::collections::BTreeSet<ReplicaName> =
            self.polls.iter().filter_map(|(_, poll)| poll.holder()).collect();
        self.next_count = (!holders.is_empty()).then_some(now + COUNT_INTERVAL);
        if self.link.is_up() {
            self.outputs.extend(holders.into_iter().map(SiblingOutput::CountSubscribers));
        }
    }

    /// Beats. The first beat that a link carries has the former name.
    pub(super) fn beat(&mut self, now: Instant) {
        let former = self.link.former.filter(|_| !self.link.has_beaten());
        let call = self.call(EngineCall::Beat(former));
        // An idle link counts as silent without the answers to beats.
        self.link.beat_sent(call, (self.config.takeover / 4).min(SILENCE / 2), now);
    }
}

/// Returns whether a result ends all waits of a poll.
fn reaches(outcome: &SharedOutcome, goal: Goal) -> bool {
    match outcome {
        SharedOutcome::Jobs(states) => {
            states.iter().all(|state| state.rung.is_some_and(|rung| goal.is_reached_by(rung)))
        }
        SharedOutcome::Unsplit(_) | SharedOutcome::Refused(_) => false,
    }
}
