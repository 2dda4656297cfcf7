//! Queueing: which queued poll takes the next slot at the upstream, and the changes of a poll's state.
//!
//! The page of [`PollScheduler`] draws the queues.

use std::time::Instant;

use super::fair_queue::{FairQueue, QueueEnd};
use super::keys::KeyPause;
use super::poll::{ScheduleState, ScheduledPoll, SchedulerTimer};
use super::{PollClass, PollScheduler, SchedulerOutput};
use crate::core::coalescer::{Failure, PollId};

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

    /// Returns the number of slots for long-polls. The last slot is the reserve for short polls.
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
        let (keys, free_afterwards) = (&self.keys, self.long_poll_slots().checked_sub(self.open + 1));
        // P11: one key leaves slots to the others.
        let may_take = |held: usize| {
            held == 0 || held <= free_afterwards.unwrap_or(0).saturating_mul(SLOTS_PER_FREE_SLOT)
        };
        let may_take_short = |domain| keys.get(&domain).is_none_or(|key| may_take(key.short_polls));
        if let Some(id) = self.snapshots.next(may_take_short).or_else(|| self.plain.next(may_take_short)) {
            return Some(id);
        }
        free_afterwards?;
        self.long_polls.next(|domain| keys.get(&domain).is_none_or(|key| may_take(key.long_polls)))
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
        if key.pause == KeyPause::Probe && class != PollClass::Plain {
            self.set_key_pause(domain, KeyPause::Probing(id), now);
        }
    }

    /// Queues a detached poll. If its key is paused, the scheduler reports that pause.
    pub(super) fn enqueue(&mut self, id: PollId, end: QueueEnd, is_probe: bool, now: Instant) {
        let Some(poll) = self.polls.get(&id) else { return };
        let (domain, class) = (poll.request.domain, poll.request.class);
        let pause = self.keys.get(&domain).map_or(KeyPause::None, |key| key.pause);
        let is_open = class == PollClass::Plain || pause.is_open();
        if let (KeyPause::Until(until), false) = (pause, is_open) {
            self.report_key_pause(id, until.saturating_duration_since(now));
        }
        let ticket = self.queue_mut(class).enqueue(id, domain, end, is_open);
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
