//! Ends of waits: with an answer, with proven states, or with a failure.

use std::sync::Arc;
use std::time::Instant;

use super::Coalescer;
use super::poll_result::Landing;
use super::types::{Cost, Failure, Output, WaitId, WaitOutcome, WaitResult};
use crate::core::job::JobState;

/// Waits for more jobs than this remember how many of them are answered.
const FEW_JOBS: usize = 8;

impl Coalescer {
    /// Settles the wait if each of its jobs has an answer. Returns whether it did.
    pub(super) fn settle_if_answered(&mut self, id: WaitId, landing: Option<&Landing>, now: Instant) -> bool {
        let Some(wait) = self.state.wait(id) else { return false };
        // Answers stay. A wait for many jobs resumes at its first job without one.
        let is_wide = wait.spec.jobs.len() > FEW_JOBS;
        let mut rest = wait.spec.jobs.iter().skip(wait.answered);
        if is_wide && let Some(further) = rest.position(|job| self.reached_state(wait, job).is_none()) {
            if let Some(wait) = self.state.wait_mut(id) {
                wait.answered += further;
            }
            return false;
        }
        let answers = wait.spec.jobs.iter().map(|job| self.reached_state(wait, job).cloned());
        let Some(states) = answers.collect::<Option<Vec<JobState>>>() else { return false };
        let direct = landing.is_some_and(|landing| {
            landing.opener == Some(id) && states.iter().all(|state| Arc::ptr_eq(&state.head, &landing.head))
        });
        let reached =
            states.iter().all(|state| state.rung.is_none_or(|rung| wait.spec.goal.is_reached_by(rung)));
        let end = if reached { WaitOutcome::Reached(states) } else { WaitOutcome::TimedOut(states) };
        self.settle(id, end, direct, now);
        true
    }

    /// Settles the wait if open polls prove the states that answer it (P7). Returns whether it did.
    pub(super) fn settle_if_proven(&mut self, id: WaitId, now: Instant) -> bool {
        let Some(wait) = self.state.wait(id) else { return false };
        let Some(states) = self.proven_states(wait, now) else { return false };
        if self.is_plain(&wait.spec)
            && let Some(job) = wait.spec.jobs.iter().next()
        {
            self.interests.give_credit(wait.spec.domain, job);
        }
        self.state.remove_wait(id);
        let result = WaitResult { how: Cost::Proven, direct: false, end: WaitOutcome::Reached(states) };
        self.outputs.push_back(Output::Settle(id, result));
        true
    }

    pub(super) fn settle(&mut self, id: WaitId, end: WaitOutcome, direct: bool, now: Instant) {
        let Some(wait) = self.state.remove_wait(id) else { return };
        let how = if wait.opened { Cost::Opened } else { Cost::Coalesced };
        self.outputs.push_back(Output::Settle(id, WaitResult { how, direct, end }));
        self.let_linger(wait.attached_polls, now);
    }

    pub(super) fn give_up(&mut self, id: WaitId, now: Instant) {
        let Some(wait) = self.state.wait(id) else { return };
        if let Some(states) = self.last_known_in_pause(wait) {
            return self.settle(id, WaitOutcome::TimedOut(states), false, now);
        }
        let (failure, direct) = self.last_failure(id, wait, now).unwrap_or((Failure::Timeout, false));
        self.settle_failed(id, failure, direct, now);
    }

    /// Ends a wait with a failure. During a drain it ends with the states that were last seen, if every job was seen: the
    /// wait cannot hold until the upstream comes back (P7).
    pub(super) fn settle_failed(&mut self, id: WaitId, failure: Failure, direct: bool, now: Instant) {
        let seen = self.draining.and_then(|_| self.last_seen(self.state.wait(id)?));
        let end = seen.map_or(WaitOutcome::Failed(failure), WaitOutcome::TimedOut);
        self.settle(id, end, direct, now);
    }
}
