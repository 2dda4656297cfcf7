//! Claims and their answers: which replica makes a poll.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Siblings;
use super::link::{MAX_PATIENCE, SILENCE};
use super::members::jitter;
use super::outbox::Letter;
use super::shared_poll::{OwnRun, SharePhase, SharedPoll, SiblingResult};
use super::types::{
    CallId, ClaimRequest, EngineAnswer, EngineCall, EngineTime, KeyEpoch, LeaseToken, PollName, ReplicaName,
    SharedOutcome, SharedState, SiblingOutput, Suspicion,
};
use crate::core::coalescer::{PollOutcome, PollProgress};
use crate::core::job::JobState;
use crate::core::job_body::ListShape;

/// Time for which a replica whose link is back looks before it claims.
pub(super) const LOOKING: Duration = Duration::from_millis(300);
/// Time until the next claim after the engine lost its memory, or answered with a dead epoch.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// Time by which a lease outlasts the upstream's hold.
const LEASE_MARGIN: Duration = Duration::from_secs(30);
/// Time in which a guest makes itself known again, after a new name or to an engine without memory.
pub(super) const COMING_BACK: Duration = LOOKING.saturating_add(MAX_PATIENCE);
/// Polls apart are spread over this time.
const SPREAD: Duration = Duration::from_millis(500);

impl Siblings {
    /// Sends a claim, or waits for the link.
    pub(super) fn claim(&mut self, name: PollName, suspicion: Option<Suspicion>, now: Instant) {
        let call = self.link.is_up().then(|| self.ask(name, suspicion, false));
        let patience = self.config.patience;
        self.polls.change(name, |poll| {
            poll.claim = call.flatten();
            poll.phase = match poll.claim {
                Some(_) => SharePhase::Asking { asked_at: now, check_at: now + patience },
                None => SharePhase::Looking { until: None },
            };
        });
        self.arm_abandon(name, now);
    }

    /// Asks whether the poll is still held. Claims it at `until` without an answer.
    pub(super) fn look(&mut self, name: PollName, until: Instant, now: Instant) {
        self.show(name, None);
        let call = self.link.is_up().then(|| self.ask(name, None, true)).flatten();
        self.polls.change(name, |poll| {
            (poll.claim, poll.phase) = (call, SharePhase::Looking { until: Some(until) });
        });
        self.arm_abandon(name, now);
    }

    fn ask(&mut self, name: PollName, suspicion: Option<Suspicion>, is_look: bool) -> Option<CallId> {
        let poll = self.polls.get(name)?;
        let (spec, token, follows) = (Arc::clone(&poll.spec), poll.token, poll.awaited);
        let call = self.call(EngineCall::Claim(ClaimRequest { spec, token, suspicion, follows, is_look }));
        self.calls.insert(call, (name, token));
        Some(call)
    }

    /// Ends the dependence on a sibling: this replica claims the poll when its rank has come.
    pub(super) fn lose(&mut self, name: PollName, suspicion: Option<Suspicion>, now: Instant) {
        let until = now + self.members.rank_delay(name, self.link.me);
        self.delay(name, until, suspicion, now);
    }

    /// Claims a poll that a sibling has left, at once or, after a failure, when its rank has come.
    pub(super) fn claim_anew(&mut self, name: PollName, is_failed: bool, now: Instant) {
        if is_failed {
            self.lose(name, None, now);
        } else {
            self.delay(name, now, None, now);
            self.claim(name, None, now);
        }
    }

    pub(super) fn delay(
        &mut self,
        name: PollName,
        until: Instant,
        suspicion: Option<Suspicion>,
        now: Instant,
    ) {
        let local = self.polls.change(name, |poll| {
            (poll.claim, poll.is_shown_held) = (None, false);
            poll.phase = SharePhase::Delayed { until, suspicion };
            poll.local
        });
        if let Some(local) = local.flatten() {
            self.outputs.push_back(SiblingOutput::Progress(local, PollProgress::Lost));
        }
        self.arm_abandon(name, now);
    }

    /// Makes the poll here, without a lease. It is adopted as soon as the engine answers.
    pub(super) fn start_alone(&mut self, name: PollName, now: Instant) {
        self.start_without_lease(name, now);
        if self.polls.get(name).is_some_and(|poll| poll.claim.is_none()) {
            self.adopt(name, now);
        }
    }

    fn start_without_lease(&mut self, name: PollName, now: Instant) {
        let was_guest = self.polls.get(name).is_some_and(|poll| poll.awaited.is_some());
        self.start(name, None, now);
        if was_guest {
            self.detach(name);
        }
    }

    fn start(&mut self, name: PollName, lease: Option<KeyEpoch>, now: Instant) {
        let Some(Some(run)) = self.polls.get(name).map(|poll| poll.local) else { return };
        self.polls.set_run(run, name);
        self.polls.change(name, |poll| {
            (poll.opened_at, poll.abandon_at, poll.is_shown_held) = (now, None, false);
            poll.awaited = None;
            poll.early.clear();
            poll.phase = SharePhase::Ours(Box::new(OwnRun {
                run,
                is_leased: lease.is_some(),
                epoch: lease,
                is_held: false,
                held_since: None,
                is_suspended: false,
                has_stepped_back: false,
                attempt_at: None,
                began_in: None,
                is_revoked: false,
                guests: std::mem::take(&mut poll.early_guests),
                asked: None,
                came: BTreeSet::new(),
                left: BTreeSet::new(),
                last_adopt: None,
                adopt_at: None,
                refused: 0,
                guests_linger_until: None,
                lingers_here: false,
                ends_at: None,
            }));
        });
        self.outputs.push_back(SiblingOutput::Start(run));
    }

    /// Is a guest no more. Without a link that needs no word: the guest comes back under another name.
    pub(super) fn detach(&mut self, name: PollName) {
        if self.link.is_up() {
            self.call(EngineCall::Detach(name));
        }
    }

    pub(super) fn answered(&mut self, call: CallId, answer: EngineAnswer, now: Instant) {
        if let EngineAnswer::Done(time) = answer {
            self.outbox.answered(call);
            if self.link.is_beat(call) {
                self.beat_answered(time, now);
            }
            return;
        }
        let Some((name, token)) = self.calls.remove(&call) else {
            match answer {
                EngineAnswer::Flushed if self.link.lost_membership(call) => {
                    self.call(EngineCall::Flushed);
                    self.engine_flushed(now);
                }
                // The engine lost its memory between the adoptions of this link and its first beat.
                EngineAnswer::Flushed => self.adopt_all(now),
                _ => {}
            }
            return;
        };
        let is_current = self.polls.get(name).is_some_and(|poll| poll.token == token);
        if !is_current {
            return self.answered_late(name, token, &answer, now);
        }
        self.polls.change(name, |poll| poll.claim.take_if(|claim| *claim == call));
        let is_ours = self.polls.get(name).is_some_and(|poll| poll.own().is_some());
        match answer {
            EngineAnswer::Granted(epoch) if is_ours => {
                let own = |poll: &mut SharedPoll| {
                    let Some(own) = poll.own_mut() else { return };
                    (own.is_leased, own.epoch, own.adopt_at) = (true, Some(epoch), None);
                    own.has_stepped_back = false;
                };
                self.polls.change(name, own);
                self.leave_if_unfit(name, now);
            }
            EngineAnswer::Granted(epoch) => match self.flush_ends(now) {
                Some(until) => {
                    // The holder, if there is one, could not adopt the poll yet.
                    self.send(Letter::Other(EngineCall::Leave(name, token)), now);
                    self.delay(name, until, None, now);
                }
                None => self.start(name, Some(epoch), now),
            },
            EngineAnswer::Held { .. } if is_ours => {
                self.detach(name);
                self.adopt_later(name, now);
            }
            EngineAnswer::Held { epoch, .. } | EngineAnswer::Known(_, epoch)
                if !is_ours && self.is_dead(name, epoch) =>
            {
                if matches!(answer, EngineAnswer::Held { .. }) {
                    self.detach(name);
                }
                self.delay(name, now + ASK_AGAIN, None, now);
            }
            EngineAnswer::Held { by, token, age, .. } => self.held(name, by, token, age, now),
            EngineAnswer::Known(states, epoch) if !is_ours => self.known(name, states, epoch, now),
            EngineAnswer::Adopted { is_mine, epoch, guests } => {
                self.adopted(name, call, is_mine.then_some(epoch), guests, now)
            }
            EngineAnswer::Flushed => {
                self.call(EngineCall::Flushed);
                self.engine_flushed(now);
                match is_ours {
                    true => self.adopt_unknown(name, call, now),
                    false => self.delay(name, now + ASK_AGAIN, None, now),
                }
            }
            // P3: the poll began without an answer, and no replica has its lease.
            EngineAnswer::Known(..) | EngineAnswer::Vacant if is_ours => self.adopt(name, now),
            EngineAnswer::Known(..) | EngineAnswer::Vacant | EngineAnswer::Done(_) => {}
        }
    }

    /// Handles the answer to a beat. Only it shows the engine's time: other calls may come from a node of a cluster with
    /// another clock.
    fn beat_answered(&mut self, time: EngineTime, now: Instant) {
        let has_jumped = self.link.has_jumped(time, self.config.takeover / 2, now);
        self.link.beat_answered(time, self.config.patience, now);
        let has_recovered = self.link.has_recovered();
        if has_recovered {
            self.outbox.retry_now(now);
            self.send_failed_again(now); // before the adoptions: a late `Leave` would end the lease again
            self.replace_lost_removals(now);
        }
        if has_jumped || has_recovered {
            // P3: by its clock this replica was silent, or was last heard in the future, and siblings took its leases.
            self.adopt_all(now);
        }
        if has_jumped {
            self.look_around(now); // the lease of a holder that takes it back has no guests
        }
    }

    /// Handles a call that the engine failed, as if it had not come in time. Calls nothing at once: that would fail again.
    pub(super) fn failed(&mut self, call: CallId, now: Instant) {
        self.outbox.failed(call, now);
        self.link.beat_failed(call);
        let Some((name, token)) = self.calls.remove(&call) else { return };
        let failed = self.polls.change(name, |poll| {
            if poll.token != token {
                return None;
            }
            let is_claim = poll.claim.take_if(|claim| *claim == call).is_some();
            if let Some(own) = poll.own_mut() {
                own.asked.take_if(|asked| *asked == call);
                return Some(false);
            }
            (is_claim && matches!(poll.phase, SharePhase::Asking { .. })).then_some(true)
        });
        let Some(is_asking) = failed.flatten() else { return };
        if is_asking {
            self.link.claim_was_late(now);
            self.start_without_lease(name, now);
        }
        self.adopt_later(name, now);
    }

    /// Takes back the effect of a claim whose poll is gone.
    fn answered_late(&mut self, name: PollName, token: LeaseToken, answer: &EngineAnswer, now: Instant) {
        let is_waiting = self.polls.get(name).is_some_and(|poll| poll.own().is_none());
        match answer {
            EngineAnswer::Granted(_) | EngineAnswer::Adopted { is_mine: true, .. } => {
                self.send(Letter::Other(EngineCall::Leave(name, token)), now);
            }
            EngineAnswer::Held { .. } if !is_waiting => self.detach(name),
            _ => {}
        }
    }

    fn held(&mut self, name: PollName, by: ReplicaName, token: LeaseToken, age: Duration, now: Instant) {
        if !self.members.meet(by, now) {
            self.start_alone(name, now);
            return self.detach(name);
        }
        self.count_soon(now);
        let is_hearing = self.link.is_hearing;
        let early = self.polls.change(name, |poll| {
            let opened_at = now.checked_sub(age).unwrap_or(now);
            let until = (opened_at + poll.spec.hold + LEASE_MARGIN).max(now + LOOKING);
            (poll.awaited, poll.opened_at, poll.is_shown_held) = (Some(token), opened_at, false);
            if is_hearing {
                poll.abandon_at = None;
                poll.phase = SharePhase::Away { holder: by, until, held_from: None };
            } else if !matches!(poll.phase, SharePhase::Looking { until: Some(_) }) {
                // P1: the landing might not be heard. This replica looks as soon as it hears itself.
                poll.phase = SharePhase::Looking { until: Some(now + LOOKING) };
            }
            std::mem::take(&mut poll.early).into_iter().find(|(early, _)| *early == token)
        });
        self.arm_abandon(name, now);
        let Some(poll) = self.polls.get(name) else { return };
        if let Some(local) = poll.local.filter(|_| is_hearing) {
            let progress = PollProgress::Elsewhere { opened_at: poll.opened_at, held_from: None };
            self.outputs.push_back(SiblingOutput::Progress(local, progress));
        }
        match early.flatten() {
            Some((_, Some(result))) => self.sibling_landed(name, result, now),
            Some((_, None)) => self.claim_anew(name, false, now),
            None => {}
        }
    }

    fn known(&mut self, name: PollName, states: Vec<SharedState>, epoch: KeyEpoch, now: Instant) {
        // The engine compared the ages with those that the reader accepts.
        let states: Vec<SharedState> =
            states.into_iter().map(|state| SharedState { age: Duration::ZERO, ..state }).collect();
        let result = SiblingResult { outcome: SharedOutcome::Jobs(states), epoch, came_at: now };
        if self.polls.get(name).is_some_and(|poll| poll.awaited.is_some()) {
            self.detach(name);
        }
        self.sibling_landed(name, result, now);
    }

    /// Ends a poll with the result of a sibling's. Claims it if the result cannot be used.
    pub(super) fn sibling_landed(&mut self, name: PollName, result: SiblingResult, now: Instant) {
        let is_delayed = |poll: &SharedPoll| matches!(poll.phase, SharePhase::Delayed { .. });
        let shape = shape_of(&result.outcome);
        let is_usable = self.is_usable(name, &result);
        let outcome = if is_usable { into_outcome(result) } else { None };
        let Some(outcome) = outcome else {
            self.polls.change(name, |poll| Arc::make_mut(&mut poll.spec).takes_known = false);
            match self.polls.get(name).is_some_and(is_delayed) {
                true => {}
                // A dead epoch, or a list without its shape (P8).
                false if !is_usable => self.lose(name, None, now),
                // P1: the bytes were too many to be shared. One replica after the other would get them in vain.
                false => self.start_alone(name, now),
            }
            return;
        };
        let Some(poll) = self.polls.remove(name) else { return };
        if let Some(local) = poll.local {
            self.outputs.extend(shape.map(|shape| SiblingOutput::Shape(local, shape)));
            self.outputs.push_back(SiblingOutput::Landed(local, outcome));
        }
    }

    /// Ends a poll that the upstream does not hold here, after a failure, with the result of a sibling (P12).
    pub(super) fn landed_meanwhile(&mut self, name: PollName, result: SiblingResult, now: Instant) {
        let shape = shape_of(&result.outcome);
        if !self.is_usable(name, &result) {
            return;
        }
        let Some(outcome) = into_outcome(result) else { return };
        if let Some(local) = self.polls.get(name).and_then(|poll| poll.local) {
            self.polls.set_local(name, None);
            self.outputs.extend(shape.map(|shape| SiblingOutput::Shape(local, shape)));
            self.outputs.push_back(SiblingOutput::Landed(local, outcome));
        }
        self.end_run(name, now);
    }

    /// Returns `false` for a result of a dead epoch, and for a list without its shape (P8).
    fn is_usable(&self, name: PollName, result: &SiblingResult) -> bool {
        let needs_shape = self.polls.get(name).is_some_and(|poll| poll.spec.needs_shape);
        let has_shape =
            !matches!(result.outcome, SharedOutcome::Jobs(_)) || shape_of(&result.outcome).is_some();
        !self.is_dead(name, result.epoch) && (has_shape || !needs_shape)
    }

    pub(super) fn is_dead(&self, name: PollName, epoch: KeyEpoch) -> bool {
        self.polls.get(name).is_some_and(|poll| self.dead_epochs.contains(&(poll.spec.domain, epoch)))
    }

    /// Shows the coalescer whether a sibling's poll is held and proves states.
    pub(super) fn show(&mut self, name: PollName, held_from: Option<Instant>) {
        let shown = self.polls.change(name, |poll| {
            let is_held = held_from.is_some();
            let is_changed = std::mem::replace(&mut poll.is_shown_held, is_held) != is_held;
            poll.local.filter(|_| is_changed).map(|local| (local, poll.opened_at))
        });
        if let Some((local, opened_at)) = shown.flatten() {
            let progress = PollProgress::Elsewhere { opened_at, held_from };
            self.outputs.push_back(SiblingOutput::Progress(local, progress));
        }
    }

    /// Updates the progress of all polls of a holder: proofs need a holder that is heard.
    pub(super) fn show_all_of(&mut self, holder: ReplicaName) {
        for name in self.polls.names(|poll| poll.holder() == Some(holder)) {
            self.show_hold(name);
        }
    }

    /// Updates the progress of a poll that a sibling makes.
    pub(super) fn show_hold(&mut self, name: PollName) {
        if let Some(SharePhase::Away { holder, held_from, .. }) = self.polls.get(name).map(|poll| &poll.phase)
        {
            let is_heard = self.link.is_hearing && !self.members.is_doubted(*holder);
            self.show(name, held_from.filter(|_| is_heard));
        }
    }

    /// Handles the timer of a poll.
    pub(super) fn poll_is_due(&mut self, name: PollName, now: Instant) {
        let Some(poll) = self.polls.get(name) else { return };
        if poll.own().is_none() && poll.abandon_at.is_some_and(|at| at <= now) {
            return self.start_alone(name, now);
        }
        match poll.phase {
            SharePhase::Asking { asked_at, .. } => {
                let ends = self.link.patience_ends(asked_at, self.config.patience);
                if ends > now {
                    self.polls.change(name, |poll| {
                        poll.phase = SharePhase::Asking { asked_at, check_at: ends };
                    });
                } else {
                    self.link.claim_was_late(now);
                    self.start_alone(name, now);
                }
            }
            SharePhase::Delayed { suspicion, .. } => self.claim(name, suspicion, now),
            SharePhase::Looking { .. } | SharePhase::Away { .. } => {
                self.show(name, None);
                self.claim(name, None, now);
            }
            SharePhase::Ours(ref own) if own.ends_at.is_some_and(|at| at <= now) => self.end_run(name, now),
            SharePhase::Ours(_) => self.adopt_again(name, now),
        }
    }

    /// Starts or ends the time after which polls of siblings are made here, as the link has it.
    pub(super) fn update_abandoning(&mut self, now: Instant) {
        let must = self.link.is_apart || self.link.abandons_at().is_some_and(|at| at <= now);
        if must == self.is_abandoning {
            return;
        }
        self.is_abandoning = must;
        for name in self.polls.names(|poll| poll.own().is_none()) {
            self.polls.change(name, |poll| poll.abandon_at = None);
            self.arm_abandon(name, now);
        }
    }

    fn arm_abandon(&mut self, name: PollName, now: Instant) {
        if self.is_abandoning {
            let at = now + jitter(name, self.config.instance, SPREAD);
            self.polls.change(name, |poll| {
                if poll.own().is_none() {
                    poll.abandon_at.get_or_insert(at);
                }
            });
        }
    }

    /// Returns the end of the time in which siblings adopt their polls after the engine lost its memory.
    pub(super) fn flush_ends(&self, now: Instant) -> Option<Instant> {
        self.flushed_at.map(|at| at + ASK_AGAIN).filter(|until| *until > now)
    }

    /// Returns whether a new poll waits for the engine. The last snapshots of a drain have no time for a silent one (P2).
    pub(super) fn asks_first(&self, now: Instant) -> bool {
        let is_ending = self.draining.is_some_and(|until| until < now + SILENCE);
        self.link.is_asked() && !is_ending
    }
}

fn shape_of(outcome: &SharedOutcome) -> Option<Arc<ListShape>> {
    match outcome {
        SharedOutcome::Jobs(states) => states.iter().find_map(|state| state.shape.clone()),
        SharedOutcome::Unsplit(_) | SharedOutcome::Refused(_) => None,
    }
}

/// Returns the result for the coalescer, or `None` if the bytes of a state are missing.
fn into_outcome(SiblingResult { outcome, came_at, .. }: SiblingResult) -> Option<PollOutcome> {
    let to_state = |state: SharedState| {
        // A state that never changes is as true now as it was then.
        let age = if state.is_final { Duration::ZERO } else { state.age };
        let at = came_at.checked_sub(age)?;
        let SharedState { id, rung, body, head, .. } = state;
        Some(JobState { id, rung, body: body?, head, seen_at: at, as_of: at })
    };
    Some(match outcome {
        SharedOutcome::Jobs(states) if states.is_empty() => return None,
        SharedOutcome::Jobs(states) => {
            PollOutcome::Jobs(states.into_iter().map(to_state).collect::<Option<Vec<_>>>()?)
        }
        SharedOutcome::Unsplit(reply) => PollOutcome::Unsplit(reply),
        SharedOutcome::Refused(reply) => PollOutcome::Refused(reply),
    })
}
