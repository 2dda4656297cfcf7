//! Which polls a wait leans on, and what it opens: the rule of leaning (see [`Coalescer`]) as code.

use std::collections::BTreeSet;
use std::time::Instant;

use super::Coalescer;
use super::poll_result::Landing;
use super::state::{Poll, Wait, WaitPhase};
use super::types::{Output, PollId, PollSpec, WaitId};
use crate::core::job::{JobId, JobSet};
use crate::core::route::Goal;

/// What a wait has for one of its jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cover {
    Nothing,
    /// A poll asks for it.
    AskedFor,
    /// A poll at the wait's own goal asks for it, at least as long as the wait has time.
    Sure,
    Answered,
}

impl Coalescer {
    /// Forgets a landed poll and plans whoever leaned on it anew.
    pub(super) fn release(&mut self, id: PollId, landing: Option<&Landing>, now: Instant) {
        let Some(brought) = self.board.poll(id).map(|poll| poll.spec.jobs.clone()) else { return };
        let waits = self.forget_poll(id);
        for id in self.in_planning_order(waits.into_iter().map(|(wait, _)| wait)) {
            if !self.is_still_covered(id, &brought, now) {
                self.attach_or_open(id, landing, now);
            }
        }
    }

    /// Plans waits in their order.
    pub(super) fn attach_or_open_all(
        &mut self,
        waits: impl IntoIterator<Item = WaitId>,
        landing: Option<&Landing>,
        now: Instant,
    ) {
        for id in self.in_planning_order(waits) {
            self.attach_or_open(id, landing, now);
        }
    }

    /// Returns waits with fewer jobs and lower goals first, so that the others lean on what these open.
    fn in_planning_order(&self, waits: impl IntoIterator<Item = WaitId>) -> Vec<WaitId> {
        let mut waits: Vec<(usize, Goal, WaitId)> = waits
            .into_iter()
            .filter_map(|id| self.board.wait(id).map(|wait| (wait.spec.jobs.len(), wait.current_goal, id)))
            .collect();
        waits.sort_unstable();
        waits.into_iter().map(|(_, _, id)| id).collect()
    }

    /// Returns whether a wait needs no plan although a poll for the jobs that were just brought is gone: other polls ask
    /// for those of them that it lacks, or a poll of its own is open, so that it opens no other. Of its other jobs
    /// nothing has changed. A wait for a thousand jobs has two hundred polls, and this costs what one of them asked for.
    fn is_still_covered(&mut self, id: WaitId, brought: &JobSet, now: Instant) -> bool {
        let Some(wait) = self.board.wait(id) else { return true };
        let is_looking = matches!(wait.phase, WaitPhase::Snapshot { .. });
        if wait.exact_set_only || wait.attached_polls.is_empty() || (!is_looking && self.is_over(wait, now)) {
            return false;
        }
        let has_own = wait
            .attached_polls
            .iter()
            .any(|&poll| self.board.poll(poll).is_some_and(|poll| poll.opener == id));
        let (slots, domain) = (self.board.slots(), wait.spec.domain);
        let (mut more, mut done_with) = (BTreeSet::new(), BTreeSet::new());
        for job in brought {
            let polls = slots.polls_for(domain, job);
            let polls = polls.filter_map(|id| self.board.poll(id).map(|poll| (id, poll)));
            if self.reached_state(wait, job).is_some() {
                let lacks =
                    |poll: &Poll| poll.spec.jobs.iter().any(|job| self.reached_state(wait, job).is_none());
                let own = polls.filter(|(id, _)| wait.attached_polls.contains(id));
                done_with.extend(own.filter(|(_, poll)| !lacks(poll)).map(|(id, _)| id));
            } else {
                let before = more.len();
                let attachable = polls.filter(|(_, poll)| self.is_leanable(poll, wait));
                more.extend(attachable.map(|(id, _)| id));
                if more.len() == before && !has_own {
                    return false;
                }
            }
        }
        if more.is_empty() && done_with.len() == wait.attached_polls.len() {
            return false;
        }
        self.board.attach(id, more);
        done_with.iter().for_each(|poll| self.board.detach(id, *poll));
        self.let_linger(done_with, now);
        if self.board.wait(id).is_some_and(|wait| self.cannot_succeed(wait, now)) {
            self.give_up(id, now);
        }
        true
    }

    /// Applies the rule of leaning to a wait that is not answered yet, and gives it up where that is of no use.
    pub(super) fn attach_or_open(&mut self, id: WaitId, landing: Option<&Landing>, now: Instant) {
        #[cfg(test)]
        {
            self.plans += 1;
        }
        let Some(wait) = self.board.wait(id) else { return };
        let is_looking = matches!(wait.phase, WaitPhase::Snapshot { .. });
        if !is_looking && self.is_over(wait, now) {
            return self.end(id, landing, now);
        }
        let goal = wait.current_goal;
        let cover = |job: &JobId| match self.reached_state(wait, job) {
            Some(_) if !wait.exact_set_only => Cover::Answered,
            Some(_) | None => Cover::Nothing,
        };
        // Most waits name one job.
        let (mut one, mut many) = ([Cover::Nothing], Vec::new());
        let covers: &mut [Cover] = if wait.spec.jobs.len() == 1 {
            one[0] = wait.spec.jobs.iter().next().map_or(Cover::Nothing, cover);
            &mut one
        } else {
            many.extend(wait.spec.jobs.iter().map(cover));
            &mut many
        };
        let mut leans = BTreeSet::new();
        for (poll_id, poll) in self.attachable_polls(wait) {
            let is_sure = poll.spec.goal == goal && self.outlasts(poll, wait);
            for place in poll.spec.jobs.iter().filter_map(|job| wait.spec.jobs.place(job)) {
                if covers[place] != Cover::Answered {
                    leans.insert(poll_id);
                    covers[place] = covers[place].max(if is_sure { Cover::Sure } else { Cover::AskedFor });
                }
            }
        }
        let is_covered = !covers.contains(&Cover::Nothing);
        let unsure = wait.spec.jobs.iter().zip(covers.iter()).filter(|(_, cover)| **cover < Cover::Sure);
        let unsure: Vec<JobId> = unsure.map(|(job, _)| job.clone()).collect();
        let has_own = leans.iter().any(|&poll| self.board.poll(poll).is_some_and(|poll| poll.opener == id));
        let (domain, form) = (wait.spec.domain, wait.spec.form);
        let dropped = self.board.set_attached(id, leans);
        if !is_covered && !has_own {
            for jobs in unsure.chunks(self.rules.max_jobs) {
                let jobs = JobSet::new(jobs.iter().cloned());
                self.open(id, PollSpec { domain, form, jobs, goal }, now);
            }
        }
        self.let_linger(dropped, now);
        if self.board.wait(id).is_some_and(|wait| self.cannot_succeed(wait, now)) {
            self.give_up(id, now);
        }
    }

    /// The running polls that ask for jobs of the wait and cannot make it late (promises 4 and 5).
    fn attachable_polls(&self, wait: &Wait) -> Vec<(PollId, &Poll)> {
        let polls = self.board.slots().polls_within(wait.spec.domain, &wait.spec.jobs);
        let polls = polls.filter_map(|id| self.board.poll(id).map(|poll| (id, poll)));
        polls.filter(|(_, poll)| self.is_leanable(poll, wait)).collect()
    }

    fn is_leanable(&self, poll: &Poll, wait: &Wait) -> bool {
        let fits = if wait.exact_set_only {
            poll.spec.jobs == wait.spec.jobs && poll.spec.form == wait.spec.form
        } else {
            poll.spec.jobs.is_subset(&wait.spec.jobs)
        };
        let is_foreign = self.is_foreign_pause(poll, wait) || self.is_anothers_rest(poll, wait);
        fits && self.rules.is_within(poll.spec.goal, wait.current_goal) && !is_foreign
    }

    fn open(&mut self, opener: WaitId, spec: PollSpec, now: Instant) {
        let id = PollId(self.next_poll);
        self.next_poll += 1;
        self.board.add_poll(id, Poll::new(spec.clone(), opener, now));
        self.board.attach_opened(opener, id);
        self.outputs.push_back(Output::Open(id, spec));
    }
}
