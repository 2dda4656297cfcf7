//! Ends of waits: with an answer, with proven states, or with a failure.

use std::sync::Arc;
use std::time::Instant;

use super::Coalescer;
use super::poll_result::Landing;
use super::state::Wait;
use super::types::{Cost, Failure, Output, WaitId, WaitOutcome, WaitResult, WaitSpec};
use crate::core::job::JobState;

/// Waits for more jobs than this remember how many of them are answered.
const FEW_JOBS: usize = 8;

impl Coalescer {
    /// Settles the wait if each of its jobs has an answer. Returns whether it did.
    pub(super) fn settle_if_answered(&mut self, id: WaitId, landing: Option<&Landing>, now: Instant) -> bool {
        let Some(wait) = self.state.wait(id) else { return false };
        let answered = match self.answer(id, wait, landing, &mut None) {
            Ok(WaitResult { direct, end, .. }) => {
                self.settle(id, end, direct, now);
                return true;
            }
            Err(answered) => answered,
        };
        if answered > 0
            && let Some(wait) = self.state.wait_mut(id)
        {
            wait.answered = answered;
        }
        false
    }

    /// Settles those of the sorted waits that have an answer for each of their jobs, and takes them out of `waits`.
    ///
    /// Ten thousand waits may end with one poll. So the last state of their job is looked up once, and all of them leave
    /// the sets of the state together.
    pub(super) fn settle_answered(
        &mut self,
        waits: &mut Vec<WaitId>,
        landing: Option<&Landing>,
        now: Instant,
    ) {
        let mut outputs = std::mem::take(&mut self.outputs);
        let (mut settled, mut others, mut last_lookup) = (Vec::with_capacity(waits.len()), Vec::new(), None);
        waits.retain(|&id| {
            let Some(wait) = self.state.wait(id) else { return true };
            match self.answer(id, wait, landing, &mut last_lookup) {
                Ok(result) => {
                    outputs.push_back(Output::Settle(id, result));
                    settled.push(id);
                    return false;
                }
                Err(0) => {}
                Err(answered) => others.push((id, answered)),
            }
            true
        });
        self.outputs = outputs;
        for (id, answered) in others {
            if let Some(wait) = self.state.wait_mut(id) {
                wait.answered = answered;
            }
        }
        if !settled.is_empty() {
            let polls = self.state.remove_waits(&settled);
            self.let_linger(polls, now);
        }
    }

    /// Returns the result of the wait if each of its jobs has an answer, else the number of jobs, from the first on, that
    /// need no further look. `last_lookup` is the state of the job of the wait before.
    fn answer<'a>(
        &'a self,
        id: WaitId,
        wait: &'a Wait,
        landing: Option<&Landing>,
        last_lookup: &mut Option<(&'a WaitSpec, Option<&'a JobState>)>,
    ) -> Result<WaitResult, usize> {
        let spec = &wait.spec;
        // Answers stay. A wait for many jobs resumes at its first job without one.
        let is_wide = spec.jobs.len() > FEW_JOBS;
        let mut rest = spec.jobs.iter().skip(wait.answered);
        if is_wide && let Some(further) = rest.position(|job| self.reached_state(wait, job).is_none()) {
            return Err(wait.answered + further);
        }
        let states: Option<Vec<JobState>> = match spec.jobs.only() {
            Some(job) => {
                let is_same = |last: &WaitSpec| last.domain == spec.domain && last.jobs.is_same(&spec.jobs);
                let seen = match *last_lookup {
                    Some((last, seen)) if is_same(last) => seen,
                    Some(_) | None => self.state.job_index().state(spec.domain, job),
                };
                *last_lookup = Some((spec, seen));
                self.reached_state_with(wait, job, seen).map(|state| vec![state.clone()])
            }
            None => spec.jobs.iter().map(|job| self.reached_state(wait, job).cloned()).collect(),
        };
        let states = states.ok_or(wait.answered)?;
        let direct = landing.is_some_and(|landing| {
            landing.opener == Some(id) && states.iter().all(|state| Arc::ptr_eq(&state.head, &landing.head))
        });
        let reached = states.iter().all(|state| state.rung.is_none_or(|rung| spec.goal.is_reached_by(rung)));
        let end = if reached { WaitOutcome::Reached(states) } else { WaitOutcome::TimedOut(states) };
        Ok(WaitResult { how: wait.cost(), direct, end })
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
        self.outputs.push_back(Output::Settle(id, WaitResult { how: wait.cost(), direct, end }));
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
