//! Shedding: a poll for several jobs ends once each of them has a held poll of its own at the same rung.

use std::time::Instant;

use super::Coalescer;
use super::state::{Poll, PollPhase, Wait};
use super::types::{PollId, WaitId};
use crate::core::job::{JobId, KeyDomain};
use crate::core::route::Goal;

impl Coalescer {
    /// Aborts the polls for several jobs that a poll for one job makes superfluous, now that the upstream holds it. Their
    /// waits attach to the polls for the single jobs. These were opened later, so they last longer, and no wait has to
    /// ask again (P4).
    pub(super) fn shed(&mut self, single: PollId, now: Instant) {
        let Some(poll) = self.state.poll(single).filter(|poll| poll.spec.jobs.len() == 1) else { return };
        let Some(job) = poll.spec.jobs.iter().next() else { return };
        let (domain, goal) = (poll.spec.domain, poll.spec.goal);
        let is_superfluous = |id: &PollId| {
            let batch = self.state.poll(*id).filter(|batch| batch.spec.jobs.len() > 1);
            batch.is_some_and(|batch| batch.spec.goal == goal && self.is_superfluous(batch, now))
        };
        let batches: Vec<PollId> =
            self.state.job_index().polls_for(domain, job).filter(is_superfluous).collect();
        batches.into_iter().for_each(|batch| self.replace(batch));
    }

    /// Returns whether nothing is lost without this poll for several jobs.
    fn is_superfluous(&self, batch: &Poll, now: Instant) -> bool {
        let spec = &batch.spec;
        let ends = batch.opened_at + self.timing.hold;
        let is_under_way = matches!(batch.phase, PollPhase::Open | PollPhase::Lingering { .. });
        if !is_under_way || now + self.timing.grace() >= ends {
            return false;
        }
        let has_single = |job| self.held_single(spec.domain, job, spec.goal, batch.opened_at).is_some();
        if !spec.jobs.iter().all(has_single) {
            return false;
        }
        // P7: at a deadline, a silent poll proves a state that was seen at the rung before. Other states cost a snapshot,
        // which the end of this poll may spare.
        let is_provable = |job: &JobId| self.next_goal(spec.domain, job) == Some(spec.goal);
        let are_provable = spec.jobs.iter().all(is_provable);
        let loses_nothing = |wait: &Wait| {
            let ends_before = wait.deadline() + self.timing.clock_skew() < ends;
            !wait.exact_set_only && (are_provable || ends_before)
        };
        batch.waits.iter().filter_map(|&id| self.state.wait(id)).all(loses_nothing)
    }

    /// Returns the poll for this job alone at the goal that was opened after `than` and that the upstream holds.
    fn held_single(&self, domain: KeyDomain, job: &JobId, goal: Goal, than: Instant) -> Option<PollId> {
        let is_single = |id: &PollId| {
            self.state.poll(*id).is_some_and(|poll| {
                poll.spec.jobs.len() == 1
                    && poll.spec.goal == goal
                    && poll.opened_at > than
                    && poll.held_since().is_some()
            })
        };
        self.state.job_index().polls_for(domain, job).find(is_single)
    }

    /// Aborts a superfluous poll and attaches its waits to the polls for the single jobs.
    fn replace(&mut self, batch: PollId) {
        let Some(Poll { spec, waits, opened_at, .. }) = self.state.poll(batch) else { return };
        let (spec, opened_at, waits) =
            (spec.clone(), *opened_at, waits.iter().copied().collect::<Vec<WaitId>>());
        for id in waits {
            let Some(wait) = self.state.wait(id) else { continue };
            let missing = spec.jobs.iter().filter(|job| self.reached_state(wait, job).is_none());
            let singles = missing.filter_map(|job| self.held_single(spec.domain, job, spec.goal, opened_at));
            let singles: Vec<PollId> = singles.collect();
            self.state.attach(id, singles);
        }
        self.abort(batch);
    }
}
