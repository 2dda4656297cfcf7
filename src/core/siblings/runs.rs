//! Polls that this replica makes: their guests, their end, and the calls that publish it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Siblings;
use super::outbox::{Letter, LetterTimes};
use super::shared_poll::{OwnRun, SharedPoll};
use super::types::{
    EngineCall, LeaseToken, PollName, ReplicaName, SharedOutcome, SharedState, SiblingOutput,
};
use crate::core::coalescer::{PollId, PollOutcome, PollProgress};
use crate::core::job::{JobState, ResponseHead};

impl Siblings {
    /// Gives a poll that is kept for guests to the coalescer, which has opened the same one.
    pub(super) fn rejoin(&mut self, name: PollName, local: PollId) {
        self.polls.set_local(name, Some(local));
        let joined = self.polls.change(name, |poll| {
            let opened_at = poll.opened_at;
            let own = poll.own_mut()?;
            (own.lingers_here, own.ends_at) = (true, None);
            let progress = PollProgress::Elsewhere { opened_at, held_from: own.held_from() };
            Some((own.run, own.is_suspended, progress))
        });
        let Some((run, is_suspended, progress)) = joined.flatten() else { return };
        self.outputs.push_back(SiblingOutput::Progress(local, progress));
        if is_suspended {
            self.outputs.push_back(SiblingOutput::TryNow(run)); // P12
        }
    }

    pub(super) fn abort(&mut self, local: PollId, now: Instant) {
        if self.solo.remove(&local) {
            return self.outputs.push_back(SiblingOutput::Cancel(local));
        }
        let Some(name) = self.polls.of_local(local) else { return };
        let linger = self.config.linger;
        let is_kept = self.polls.change(name, |poll| {
            let own = poll.own_mut()?;
            // P1: the quota of the wait refused it, or it waits for its turn. Its guests need not.
            own.attempt_at?;
            let here = own.lingers_here.then(|| now + linger);
            let until = here.max(own.guests_linger_until.filter(|until| *until > now));
            let has_guests = !own.guests.is_empty();
            own.ends_at = until.filter(|_| !has_guests);
            (has_guests || until.is_some()).then_some(()) // P6
        });
        match is_kept.flatten() {
            Some(()) => self.polls.set_local(name, None),
            None => self.forget(name, now),
        }
    }

    /// Forgets a poll without a result.
    fn forget(&mut self, name: PollName, now: Instant) {
        let Some(poll) = self.polls.get(name) else { return };
        if poll.own().is_some() {
            return self.end_run(name, now);
        }
        // The answer to a claim on its way finds the poll gone, and is taken back then.
        let is_guest = poll.awaited.is_some();
        self.polls.remove(name);
        if is_guest {
            self.detach(name);
        }
    }

    /// Cancels a poll that is made here, and gives up its lease.
    pub(super) fn end_run(&mut self, name: PollName, now: Instant) {
        let Some(poll) = self.polls.remove(name) else { return };
        let Some(own) = poll.own() else { return };
        self.outputs.push_back(SiblingOutput::Cancel(own.run));
        // Also without a lease: a sibling that has not heard of the new holder still waits for this poll.
        self.send(Letter::Other(EngineCall::Leave(name, poll.token)), now);
    }

    pub(super) fn progress(&mut self, run: PollId, progress: PollProgress, now: Instant) {
        if self.solo.contains(&run) {
            return self.outputs.push_back(SiblingOutput::Progress(run, progress));
        }
        let Some(name) = self.polls.of_run(run) else { return };
        let dead_epochs = &self.dead_epochs;
        let changed = self.polls.change(name, |poll| {
            let (local, token, domain) = (poll.local, poll.token, poll.spec.domain);
            let own = poll.own_mut()?;
            let was_held = own.is_held;
            if let PollProgress::AttemptStarted = progress {
                // This attempt asks for the verdict on the key again.
                own.epoch = own.epoch.filter(|epoch| !dead_epochs.contains(&(domain, *epoch)));
                (own.attempt_at, own.is_revoked) = (Some(now), false);
                own.began_in = own.epoch.filter(|_| own.is_leased);
            }
            (own.is_held, own.is_suspended) = match progress {
                PollProgress::Held => (true, false),
                PollProgress::BackingOff(..) | PollProgress::Paused(..) => (false, true),
                PollProgress::AttemptStarted | PollProgress::Elsewhere { .. } | PollProgress::Lost => {
                    (false, false)
                }
            };
            own.held_since = own.is_held.then(|| own.held_since.unwrap_or(now));
            let is_news = was_held != own.is_held && !own.guests.is_empty();
            // It may fail again in a moment: the landing of a sibling ends it until it has the lease.
            let is_back = own.is_held && !was_held && own.has_stepped_back;
            Some((local, is_news.then(|| (token, own.held_for(now))), is_back))
        });
        let Some((local, note, is_back)) = changed.flatten() else { return };
        if let Some((token, held_for)) = note {
            self.call(EngineCall::Note(name, token, held_for));
        }
        self.leave_if_unfit(name, now);
        if is_back && self.draining.is_none() {
            self.adopt(name, now);
        }
        if let Some(local) = local {
            self.outputs.push_back(SiblingOutput::Progress(local, progress));
        }
    }

    /// Publishes the result of a poll, then hands it to the coalescer: the next claim comes after it.
    pub(super) fn ended(&mut self, run: PollId, outcome: PollOutcome, now: Instant) {
        if self.solo.remove(&run) {
            return self.outputs.push_back(SiblingOutput::Landed(run, outcome));
        }
        let Some(name) = self.polls.of_run(run) else { return };
        let Some(poll) = self.polls.remove(name) else { return };
        let Some(own) = poll.own() else { return };
        let letter = self.letter(&poll, own, &outcome, now);
        self.send(letter, now);
        if let Some(local) = poll.local {
            self.outputs.push_back(SiblingOutput::Landed(local, outcome));
        }
    }

    fn letter(&self, poll: &SharedPoll, own: &OwnRun, outcome: &PollOutcome, now: Instant) -> Letter {
        let (spec, token, began) = (&poll.spec, poll.token, poll.began_at());
        let is_dead = own.epoch.is_some_and(|epoch| self.dead_epochs.contains(&(spec.domain, epoch)));
        let shared = match outcome {
            _ if is_dead || own.is_revoked => {
                return // P11
                Letter::Other(EngineCall::Leave(spec.name, token));
            }
            PollOutcome::Failed(failure) => {
                return Letter::Other(EngineCall::Fail(spec.name, token, failure.reason()));
            }
            PollOutcome::Jobs(states) => {
                SharedOutcome::Jobs(states.iter().map(|state| self.shared_state(state, now)).collect())
            }
            PollOutcome::Unsplit(reply) => SharedOutcome::Unsplit(Arc::clone(reply)),
            PollOutcome::Refused(reply) => SharedOutcome::Refused(Arc::clone(reply)),
        };
        Letter::Land(Arc::clone(spec), token, own.epoch, shared, LetterTimes { as_of: now, began })
    }

    fn shared_state(&self, state: &JobState, now: Instant) -> SharedState {
        let ladder = self.config.ladders.get(usize::from(state.id.route().0));
        let is_final = state.rung.zip(ladder).is_some_and(|(rung, ladder)| ladder.is_terminal(rung));
        let ResponseHead { status, is_complete, ref shared, .. } = *state.head;
        let head = if state.head.per_response.is_empty() {
            Arc::clone(&state.head)
        } else {
            // P8: those headers belong to this client's response.
            Arc::new(ResponseHead { status, is_complete, shared: shared.clone(), per_response: Vec::new() })
        };
        SharedState {
            id: state.id.clone(),
            rung: state.rung,
            body: Some(state.body.clone()),
            head,
            age: now.saturating_duration_since(state.as_of),
            is_final,
            shape: None,
        }
    }

    pub(super) fn guest_attached(
        &mut self,
        name: PollName,
        token: LeaseToken,
        guest: ReplicaName,
        now: Instant,
    ) {
        if !self.heard_guest(guest, now) {
            return;
        }
        let attached = self.polls.change(name, |poll| {
            if poll.token != token {
                return None;
            }
            if poll.own().is_none() {
                poll.early_guests.insert(guest);
            }
            let own = poll.own_mut()?;
            own.guests.insert(guest);
            own.ends_at = None;
            if own.asked.is_some() {
                own.left.remove(&guest);
                own.came.insert(guest);
            }
            Some(own.held_for(now))
        });
        let Some(held_for) = attached.flatten() else { return };
        if held_for.is_some() {
            self.call(EngineCall::Note(name, token, held_for));
        }
        if self.draining.is_some() {
            self.leave_to_guests(name, now);
        }
    }

    /// Records that a guest lives: one that is not heard again counts as dead. Returns false for this replica, and where
    /// there are too many.
    pub(super) fn heard_guest(&mut self, guest: ReplicaName, now: Instant) -> bool {
        let is_me = [self.link.me, self.link.former].contains(&Some(guest));
        if is_me {
            return false;
        }
        let was_doubted = self.members.heard(guest, now);
        if was_doubted == Some(true) {
            self.show_all_of(guest);
        }
        was_doubted.is_some()
    }

    pub(super) fn guest_detached(&mut self, name: PollName, guest: ReplicaName, now: Instant) {
        self.guest_left(name, guest, self.config.linger, now);
    }

    /// Removes a guest. The poll stays for `linger` without waits and guests.
    pub(super) fn guest_left(&mut self, name: PollName, guest: ReplicaName, linger: Duration, now: Instant) {
        self.polls.change(name, |poll| {
            let is_kept = poll.local.is_none();
            poll.early_guests.remove(&guest);
            let Some(own) = poll.own_mut() else { return };
            if own.asked.is_some() {
                own.came.remove(&guest);
                own.left.insert(guest);
            }
            if !own.guests.remove(&guest) {
                return;
            }
            own.guests_linger_until = Some(now + linger);
            if is_kept && own.guests.is_empty() {
                own.ends_at = own.guests_linger_until;
            }
        });
    }

    /// A sibling has claimed a poll that is made here: its guests are the sibling's now.
    pub(super) fn taken(&mut self, name: PollName, token: LeaseToken, now: Instant) {
        let is_kept = self.polls.change(name, |poll| {
            let (is_mine, is_kept) = (poll.token == token, poll.local.is_none());
            let own = poll.own_mut().filter(|_| is_mine)?;
            own.guests.clear();
            own.is_leased = false;
            is_kept.then_some(())
        });
        if is_kept.flatten().is_some() {
            self.end_run(name, now);
        }
    }

    /// Leaves all polls with guests to them, and goes on with each until a sibling has claimed it: make before break.
    pub(super) fn drain(&mut self, until: Instant, now: Instant) {
        self.draining = Some(until);
        for name in self.polls.names(|poll| poll.own().is_some()) {
            self.leave_to_guests(name, now);
        }
    }

    pub(super) fn leave_to_guests(&mut self, name: PollName, now: Instant) {
        let has_guests =
            |poll: &SharedPoll| poll.own().is_some_and(|own| own.is_leased && !own.guests.is_empty());
        if let Some(token) = self.polls.get(name).filter(|poll| has_guests(poll)).map(|poll| poll.token) {
            self.polls.change(name, |poll| {
                poll.own_mut().into_iter().for_each(|own| own.is_leased = false);
            });
            self.send(Letter::Other(EngineCall::Leave(name, token)), now);
        }
    }

    /// Gives up the lease of a poll that makes no attempt for now, or whose result no sibling gets: a fault of this replica
    /// holds no wait of another (P5, P12). Goes on for its own waits, and for guests until a sibling has claimed it.
    pub(super) fn leave_if_unfit(&mut self, name: PollName, now: Instant) {
        let left = self.polls.change(name, |poll| {
            let token = poll.token;
            let own = poll.own_mut().filter(|own| own.is_leased && own.is_unfit())?;
            (own.is_leased, own.has_stepped_back) = (false, true);
            Some(token)
        });
        if let Some(token) = left.flatten() {
            self.send(Letter::Other(EngineCall::Leave(name, token)), now);
        }
    }

    /// Ends the polls that are left for guests when the gateway stops.
    pub(super) fn drain_is_over(&mut self, now: Instant) {
        for name in self.polls.names(|poll| poll.local.is_none()) {
            self.end_run(name, now);
        }
    }
}
