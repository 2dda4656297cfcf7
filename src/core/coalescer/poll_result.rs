//! A poll that ended: what is learnt by it, and whom it answers.
//!
//! It must never know why anyone leaned on the poll. Who is not answered is planned anew by the Coalescer.

use std::sync::Arc;
use std::time::Instant;

use super::Coalescer;
use super::state::{AttemptState, PollPhase, WaitPhase};
use super::types::{Failure, PollId, PollOutcome, WaitId, WaitOutcome};
use crate::core::job::{Head, JobId, JobState, KeyDomain, Reply};

/// Whose poll just landed, and the head of its answer.
pub(super) struct Landing {
    pub(super) opener: WaitId,
    pub(super) head: Arc<Head>,
    /// When it was read, a moment before it is taken in.
    pub(super) read_at: Instant,
}

/// Of so many waits each is looked at, in whatever order they came.
const FEW_WAITS: usize = 64;

impl Coalescer {
    pub(super) fn landed(&mut self, id: PollId, outcome: PollOutcome, now: Instant) {
        // An aborted poll may land all the same, and nothing waits for it any more.
        let Some(poll) = self.board.poll_mut(id) else { return };
        poll.tries = AttemptState::Done;
        match outcome {
            PollOutcome::Jobs(states) => self.landed_jobs(id, states, now),
            PollOutcome::Unsplit(reply) => self.landed_whole(id, &reply, now),
            PollOutcome::Refused(reply) => {
                for (wait, direct) in self.forget_poll(id) {
                    self.settle(wait, WaitOutcome::Refused(Arc::clone(&reply)), direct, now);
                }
            }
            PollOutcome::Failed(failure) => self.landed_failed(id, &failure, now),
        }
    }

    fn landed_jobs(&mut self, id: PollId, states: Vec<JobState>, now: Instant) {
        let Some(poll) = self.board.poll(id) else { return };
        let (domain, opener) = (poll.spec.domain, poll.opener);
        let earliest = (poll.opened_at + self.rules.min_repoll_interval())
            .max(poll.not_before.map_or(now, |(_, until)| until));
        let (mut affected, mut newly) = (poll.waits.iter().copied().collect::<Vec<_>>(), Vec::new());
        let landing = states.first().map(|state| Landing {
            opener,
            head: Arc::clone(&state.head),
            read_at: state.seen_at,
        });
        for state in states {
            if state.rung.is_some() {
                let job = state.id.clone();
                self.give_to_latecomers(id, &state);
                self.board.learn(domain, state);
                let answered = self.newly_answered(domain, &job);
                affected.extend(&answered);
                newly.push((job, answered));
            } else {
                self.board.deliver_unknown_status(id, &state);
            }
        }
        affected.sort(); // sorted parts
        affected.dedup();
        for wait in affected {
            self.settle_if_answered(wait, landing.as_ref(), now);
        }
        // Whoever lacks other jobs is not found for this one again.
        for (job, waits) in newly {
            waits.into_iter().for_each(|wait| self.board.clear_interest(wait, &job));
        }
        let Some(poll) = self.board.poll(id) else { return };
        let slots = self.board.slots();
        let is_reached = poll.spec.jobs.iter().all(|job| slots.is_at(domain, job, poll.spec.goal));
        if !is_reached && !poll.waits.is_empty() && now < earliest {
            self.board.set_poll_phase(id, PollPhase::Throttled { until: earliest });
        } else {
            self.release(id, landing.as_ref(), now);
        }
    }

    /// A wait that attached to the poll after its answer was read, and before that was taken in, may use what it says.
    /// To ask again would cost a call that its client alone would not make.
    fn give_to_latecomers(&mut self, id: PollId, state: &JobState) {
        let Some(poll) = self.board.poll(id) else { return };
        let read_at = state.seen_at;
        let is_late = |id: &WaitId| {
            self.board.wait(*id).is_some_and(|wait| {
                let from = match wait.phase {
                    WaitPhase::Waiting => wait.spec.arrived,
                    WaitPhase::Snapshot { since } => since,
                    WaitPhase::Grace { .. } => return false, // the landing itself decides
                };
                read_at < from
                    && from <= read_at + self.rules.clock_skew()
                    && self.reached_state(wait, &state.id).is_none()
            })
        };
        // Numbers are given in the order of arrival. What waits look at past their deadlines is at the lowest rung.
        let is_whole = self.rules.is_immediate(poll.spec.goal) || poll.waits.len() <= FEW_WAITS;
        let arrived = |id: &&WaitId| self.board.wait(**id).is_some_and(|wait| wait.spec.arrived > read_at);
        let newest = poll.waits.iter().rev().take_while(|id| is_whole || arrived(id));
        let latecomers: Vec<WaitId> = newest.copied().filter(is_late).collect();
        for id in latecomers {
            if let Some(wait) = self.board.wait_mut(id) {
                wait.private_states.insert(state.clone());
            }
        }
    }

    /// The waits that by what was just learnt have their answer for this job.
    fn newly_answered(&self, domain: KeyDomain, job: &JobId) -> Vec<WaitId> {
        let slots = self.board.slots();
        let seen = slots.state(domain, job);
        let is_answered = |id: &WaitId| {
            self.board.wait(*id).is_some_and(|wait| self.reached_state_with(wait, job, seen).is_some())
        };
        slots.wanting(domain, job).filter(is_answered).collect()
    }

    /// An answer that has no jobs to tell apart is one for the waits on just these, at just this goal.
    fn landed_whole(&mut self, id: PollId, reply: &Arc<Reply>, now: Instant) {
        let Some(poll) = self.board.poll(id) else { return };
        let (spec, opened_at) = (poll.spec.clone(), poll.opened_at);
        let is_held = now + self.rules.clock_skew() >= opened_at + self.rules.hold;
        let mut others = Vec::new();
        for (wait_id, direct) in self.forget_poll(id) {
            let Some(wait) = self.board.wait(wait_id) else { continue };
            let asked =
                wait.spec.jobs == spec.jobs && wait.spec.form == spec.form && wait.current_goal == spec.goal;
            // The upstream's time may have ended it, and the wait's own is not over (promise 2).
            let is_cut_short = is_held && !self.is_over(wait, now);
            let is_too_large = wait.spec.jobs.len() > self.rules.max_jobs;
            if asked && !is_cut_short {
                self.settle(wait_id, WaitOutcome::Unsplit(Arc::clone(reply)), direct, now);
            } else if is_too_large {
                self.settle_failed(wait_id, Failure::InvalidResponse(None), direct, now);
            } else {
                others.push(wait_id);
            }
        }
        for &id in &others {
            if let Some(wait) = self.board.wait_mut(id) {
                wait.exact_set_only = true;
            }
        }
        self.attach_or_open_all(others, None, now);
    }

    /// A failure is news only for those who were there when the failed try began; the rest would have made
    /// a try of their own since.
    fn landed_failed(&mut self, id: PollId, failure: &Failure, now: Instant) {
        let Some(tried_at) = self.board.poll(id).map(|poll| poll.tried_at) else { return };
        let mut others = Vec::new();
        for (wait_id, direct) in self.forget_poll(id) {
            let Some(wait) = self.board.wait(wait_id) else { continue };
            if wait.spec.arrived <= tried_at {
                self.settle_failed(wait_id, failure.clone(), direct, now);
            } else {
                others.push(wait_id);
            }
        }
        self.attach_or_open_all(others, None, now);
    }
}
