//! Shedding: a poll for several jobs ends once each of them has a silent poll of its own at the same rung.
//!
//! A refusal takes a round trip, so a poll that was silent for `min_silence` was accepted. It may fail later all the
//! same. Then the waits of the shed poll are planned again: the failure is that of another client's poll.

use std::collections::BTreeSet;
use std::time::Instant;

use super::Coalescer;
use super::state::{Poll, PollPhase, Wait, WaitPhase};
use super::types::{PollId, PollSpec, WaitId};
use crate::core::job::JobId;

/// Polls for several jobs to examine, each at the moment from which a new poll for one of its jobs counts as silent.
///
/// A poll that ends before leaves its entry, for `min_silence` at most.
pub(super) type ShedChecks = BTreeSet<(Instant, PollId)>;

impl Coalescer {
    /// Turns shedding off. The upstream then holds polls that other polls make superfluous.
    pub fn without_shedding(mut self) -> Self {
        self.sheds = false;
        self
    }

    /// Examines later the polls that a poll for one job may make superfluous, now that the upstream holds it.
    pub(super) fn schedule_shedding(&mut self, single: PollId, now: Instant) {
        let Some(Poll { spec, opened_at, .. }) = self.state.poll(single) else { return };
        if !self.sheds || spec.jobs.len() != 1 || self.timing.is_immediate(spec.goal) {
            return;
        }
        let is_older_batch = |id: &PollId| {
            self.state.poll(*id).is_some_and(|other| {
                other.spec.jobs.len() > 1 && other.spec.goal == spec.goal && other.opened_at < *opened_at
            })
        };
        let jobs = spec.jobs.iter();
        let polls = jobs.flat_map(|job| self.state.job_index().polls_for(spec.domain, job));
        let at = now + self.timing.min_silence();
        self.shed_checks.extend(polls.filter(is_older_batch).map(|id| (at, id)));
    }

    /// Sheds those of the polls to examine by now that are superfluous.
    pub(super) fn shed_due(&mut self, now: Instant) {
        while let Some(&(_, id)) = self.shed_checks.first().filter(|(at, _)| *at <= now) {
            self.shed_checks.pop_first();
            if self.state.poll(id).is_some_and(|batch| self.is_superfluous(batch, now)) {
                self.shed(id, now);
            }
        }
    }

    /// Returns whether no wait loses anything with this poll for several jobs.
    fn is_superfluous(&self, batch: &Poll, now: Instant) -> bool {
        let ends = batch.opened_at + self.timing.hold;
        let is_held = batch.phase == PollPhase::Open && batch.held_since().is_some();
        if !is_held || self.draining.is_some() || now + self.timing.grace() >= ends {
            return false;
        }
        let waits = || batch.waits.iter().filter_map(|id| self.state.wait(*id));
        // P4: a wait asks again for each of those polls that fails, so it is moved to them once.
        if !waits().all(|wait| wait.phase == WaitPhase::Waiting && !wait.exact_set_only && !wait.was_shed) {
            return false;
        }
        // P1: a wait opens no poll for its other jobs as long as it has this one, and plans when this one lands.
        if waits().any(|wait| self.lacks_poll(wait, &wait.spec.jobs)) {
            return false;
        }
        // P7: the end of the hold brings states. Waits that last as long need a proof in their place.
        let end_before = waits().all(|wait| wait.deadline() + self.timing.clock_skew() < ends);
        let is_provable = |job: &JobId| self.next_goal(batch.spec.domain, job) == Some(batch.spec.goal);
        batch.spec.jobs.iter().all(|job| {
            let has_silent_poll = || self.silent_poll(batch, job, now).is_some();
            waits().all(|wait| self.reached_state(wait, job).is_some())
                || ((end_before || is_provable(job)) && has_silent_poll())
        })
    }

    /// Returns a poll for this job alone at the goal of the batch, sent after the batch's, that proves by its silence that
    /// the upstream accepted it. The upstream holds it longer than the batch's.
    fn silent_poll(&self, batch: &Poll, job: &JobId, now: Instant) -> Option<PollId> {
        let PollSpec { domain, goal, .. } = batch.spec;
        let is_silent = |id: &PollId| {
            self.state.poll(*id).is_some_and(|poll| {
                poll.spec.jobs.len() == 1
                    && poll.spec.goal == goal
                    && poll.opened_at > batch.opened_at
                    && poll.attempted_at > batch.attempted_at
                    && poll.held_since().is_some_and(|since| since + self.timing.min_silence() <= now)
            })
        };
        self.state.job_index().polls_for(domain, job).find(is_silent)
    }

    /// Aborts a superfluous poll. Its waits attach to the polls for the single jobs.
    fn shed(&mut self, id: PollId, now: Instant) {
        let Some(batch) = self.state.poll(id) else { return };
        let singles_for = |wait: &Wait| -> Vec<PollId> {
            let missing = batch.spec.jobs.iter().filter(|job| self.reached_state(wait, job).is_none());
            missing.filter_map(|job| self.silent_poll(batch, job, now)).collect()
        };
        let moves: Vec<(WaitId, Vec<PollId>)> =
            batch.waits.iter().filter_map(|id| Some((*id, singles_for(self.state.wait(*id)?)))).collect();
        for (wait_id, singles) in moves {
            self.state.attach(wait_id, singles);
            if let Some(wait) = self.state.wait_mut(wait_id) {
                wait.was_shed = true;
            }
        }
        self.abort(id);
    }

    /// Returns whether a wait is planned again where another wait on the failed poll gets the failure: it had a poll of its
    /// own until that was shed, and did not open this one. `direct`: it opened this one.
    pub(super) fn is_spared(&self, id: WaitId, direct: bool) -> bool {
        !direct && self.state.wait(id).is_some_and(|wait| wait.was_shed && !wait.is_in_snapshot())
    }
}
