//! Queueing: which queued poll takes the next slot at the upstream, and the changes of a poll's state.
//!
//! The page of [`PollScheduler`] draws the queues.

use std::time::Instant;

use super::fair_queue::{FairQueue, QueueEnd, Turn};
use super::keys::KeyPause;
use super::poll::{ScheduleState, ScheduledPoll, SchedulerTimer};
use super::{PollClass, PollScheduler, SchedulerOutput};
use crate::core::coalescer::{Failure, PollId};

/// Snapshots and plain polls of a key with a budget that go before a chain or long-poll of the key in a row.
const MAX_OVERTAKES: u8 = 4;

/// Slots that a key may hold for each slot that stays free when the key takes another.
const SLOTS_PER_FREE_SLOT: usize = 16;

impl PollScheduler {
    /// Starts attempts while slots, `interval` and queued polls allow it.
    pub(super) fn start_attempts(&mut self, now: Instant) {
        self.probe_if_due(now);
        while self.next_start.is_none() {
            let Some(id) = self.take_next() else { break };
            let Some(poll) = self.polls.get(&id) else { continue };
            let ScheduleState::Queued { mut is_probe, .. } = poll.state else { continue };
            // P12: the breaker holds back retries, never a first attempt.
            if poll.is_retry && !is_probe && !self.breaker.is_closed() {
                is_probe = self.begin_probe(id, now);
                if !is_probe && self.hold_back(id, now) {
                    continue;
                }
            }
            self.start(id, is_probe, now);
            if !self.config.interval.is_zero() {
                let next = now + self.config.interval;
                self.next_start = Some(next);
                self.timers.insert((next, SchedulerTimer::Interval));
            }
        }
        self.arm_probe_timer();
        self.check_invariants();
    }

    /// Returns the number of slots for long-polls. The last slot is the reserve for the other polls.
    fn long_poll_slots(&self) -> usize {
        self.config.max_polls.saturating_sub(1).max(1)
    }

    /// Returns whether a long-poll may start now, as far as the slots go.
    pub fn has_long_poll_slot(&self) -> bool {
        self.open < self.long_poll_slots()
    }

    /// Takes the first queued poll for which a slot is free.
    fn take_next(&mut self) -> Option<PollId> {
        if self.open >= self.config.max_polls {
            return None;
        }
        self.turn = Turn(self.turn.0 + 1);
        let (keys, turn) = (&self.keys, self.turn);
        let free_afterwards = self.long_poll_slots().checked_sub(self.open + 1);
        // P11: one key leaves slots to the others.
        let may_take = |held: usize| {
            held == 0 || held <= free_afterwards.unwrap_or(0).saturating_mul(SLOTS_PER_FREE_SLOT)
        };
        let may_take_short = |domain| keys.get(&domain).is_none_or(|key| may_take(key.short_polls));
        let may_take_long = |domain| {
            free_afterwards.is_some() && keys.get(&domain).is_none_or(|key| may_take(key.long_polls))
        };
        // Looked up only where a budget makes polls of a key wait for each other.
        let must_yield = |domain| {
            keys.get(&domain).is_some_and(|key| key.overtakes >= MAX_OVERTAKES)
                && ((self.chains.is_open(domain) && may_take_short(domain))
                    || (self.long_polls.is_open(domain) && may_take_long(domain)))
        };
        let may_go_first = |domain| may_take_short(domain) && !must_yield(domain);
        if let Some((_, domain)) = self.snapshots.first(may_go_first) {
            return self.snapshots.take(domain, turn);
        }
        if let Some((_, domain)) = self.plain.first(may_go_first) {
            return self.plain.take(domain, turn);
        }
        let chain = self.chains.first(may_take_short);
        let long_poll = free_afterwards.and_then(|_| self.long_polls.first(may_take_long));
        match (chain, long_poll) {
            (Some((chain_turn, domain)), long_poll)
                if long_poll.is_none_or(|(turn, _)| chain_turn < turn) =>
            {
                self.chains.take(domain, turn)
            }
            (_, Some((_, domain))) => self.long_polls.take(domain, turn),
            (_, None) => None,
        }
    }

    fn start(&mut self, id: PollId, is_probe: bool, now: Instant) {
        let Some(poll) = self.polls.get_mut(&id) else { return };
        poll.state = ScheduleState::Attempting { began: now, is_probe, held_at: None, is_held: false };
        let (domain, class, is_retry) = (poll.request.domain, poll.request.class, poll.is_retry);
        self.open += 1;
        self.outputs.push_back(SchedulerOutput::Start(id));
        let Some(key) = self.keys.get_mut(&domain) else { return };
        if !is_retry {
            key.budget.record_poll(now);
        }
        *key.attempts_mut(class) += 1;
        if !self.config.key_interval.is_zero() {
            self.take_from_budget(domain, class, now);
        }
        let Some(key) = self.keys.get_mut(&domain) else { return };
        if key.pause == KeyPause::Probe && class != PollClass::Plain {
            self.set_key_pause(domain, KeyPause::Probing(id), now);
        }
    }

    /// Queues a detached poll. If its key is paused, the scheduler reports that pause.
    pub(super) fn enqueue(&mut self, id: PollId, end: QueueEnd, is_probe: bool, now: Instant) {
        let Some(poll) = self.polls.get(&id) else { return };
        if poll.request.class != PollClass::Plain
            && let Some(KeyPause::Until(until)) = self.keys.get(&poll.request.domain).map(|key| key.pause)
        {
            self.report_key_pause(id, until.saturating_duration_since(now));
        }
        self.enqueue_silently(id, end, is_probe);
    }

    /// Queues a detached poll whose owner knows of a pause.
    pub(super) fn enqueue_silently(&mut self, id: PollId, end: QueueEnd, is_probe: bool) {
        let Some(poll) = self.polls.get(&id) else { return };
        let (domain, class) = (poll.request.domain, poll.request.class);
        let is_open = self.keys.get(&domain).is_none_or(|key| key.may_start(class));
        self.turn = Turn(self.turn.0 + 1);
        let turn = self.turn;
        let ticket = self.queue_mut(class).enqueue(id, domain, end, is_open, turn);
        self.set_state(id, ScheduleState::Queued { ticket, is_probe });
    }

    /// Queues a poll for a first attempt, which the breaker does not hold back.
    pub(super) fn enqueue_as_first_attempt(&mut self, id: PollId, now: Instant) {
        self.detach(id);
        if let Some(poll) = self.polls.get_mut(&id) {
            poll.is_retry = false;
        }
        self.enqueue(id, QueueEnd::Front, false, now);
    }

    fn queue_mut(&mut self, class: PollClass) -> &mut FairQueue {
        match class {
            PollClass::Plain => &mut self.plain,
            PollClass::Snapshot => &mut self.snapshots,
            PollClass::Chain => &mut self.chains,
            PollClass::LongPoll => &mut self.long_polls,
        }
    }

    /// Takes a poll out of its state: releases its slot or its position in a queue, and removes its timers.
    pub(super) fn detach(&mut self, id: PollId) {
        let Some(poll) = self.polls.get_mut(&id) else { return };
        let (domain, class) = (poll.request.domain, poll.request.class);
        let state = std::mem::replace(&mut poll.state, ScheduleState::Detached);
        if let Some((at, _)) = poll.last_failure {
            self.retrying.remove(&(at, id));
        }
        match state {
            ScheduleState::Detached => {}
            // `take_next` may have removed it from the queue already; then this does nothing.
            ScheduleState::Queued { ticket, .. } => self.queue_mut(class).leave(domain, ticket),
            ScheduleState::BackingOff { until } | ScheduleState::Paused { until } => {
                self.timers.remove(&(until, SchedulerTimer::Retry(id)));
            }
            ScheduleState::HeldBack { last_attempt_at } => {
                last_attempt_at.map(|at| self.timers.remove(&(at, SchedulerTimer::LastAttempt(id))));
            }
            ScheduleState::Attempting { held_at, .. } => {
                self.open -= 1;
                held_at.map(|at| self.timers.remove(&(at, SchedulerTimer::Held(id))));
                if let Some(key) = self.keys.get_mut(&domain) {
                    *key.attempts_mut(class) -= 1;
                    if key.pause == KeyPause::Probing(id) {
                        key.pause = KeyPause::Probe; // the next poll of the key probes
                        self.sync_queues(domain);
                    }
                }
            }
        }
    }

    /// Puts a detached poll into a state, and arms the timer of that state.
    pub(super) fn set_state(&mut self, id: PollId, state: ScheduleState) {
        let Some(poll) = self.polls.get_mut(&id) else { return };
        poll.state = state;
        match state {
            ScheduleState::BackingOff { until } => {
                self.timers.insert((until, SchedulerTimer::Retry(id)));
            }
            ScheduleState::Paused { until } => {
                self.timers.insert((until, SchedulerTimer::Retry(id)));
                return; // the breaker makes no probe of a paused poll
            }
            ScheduleState::HeldBack { last_attempt_at } => {
                last_attempt_at.map(|at| self.timers.insert((at, SchedulerTimer::LastAttempt(id))));
            }
            ScheduleState::Detached | ScheduleState::Queued { .. } | ScheduleState::Attempting { .. } => {
                return;
            }
        }
        if let Some((at, _)) = poll.last_failure {
            self.retrying.insert((at, id));
        }
    }

    pub(super) fn give_up(&mut self, id: PollId, now: Instant) {
        if let Some(poll) = self.forget(id, now) {
            let failure = poll.last_failure.map_or(Failure::Unreachable, |(_, failure)| failure);
            self.outputs.push_back(SchedulerOutput::GiveUp(id, failure));
        }
    }

    pub(super) fn forget(&mut self, id: PollId, now: Instant) -> Option<ScheduledPoll> {
        self.detach(id);
        let poll = self.polls.remove(&id)?;
        if let Some(key) = self.keys.get_mut(&poll.request.domain) {
            key.polls -= 1;
            self.forget_key_if_idle(poll.request.domain, now);
        }
        Some(poll)
    }
}
