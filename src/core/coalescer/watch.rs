//! Watches: polls for the next rung of jobs that clients ask for repeatedly with plain requests.
//!
//! A watch proves the state of its job, so that further plain requests cost the upstream nothing. `interest` has the
//! requests. The page of [`Coalescer`] has the table of transitions.

use std::time::{Duration, Instant};

use super::Coalescer;
use super::state::{AttemptState, Poll, PollPhase};
use super::types::{Cause, Output, PollId, PollSpec, Proof, WaitId, WaitSpec};
use crate::core::job::{JobId, JobSet, KeyDomain};
use crate::core::route::{Form, Goal};

impl Coalescer {
    /// Returns the number of watches, those with waits included.
    pub fn watches(&self) -> usize {
        self.state.watches().len()
    }

    /// Returns the watch without waits whose job was asked for the longest ago, among those that the upstream has. The
    /// caller may cancel it for a poll that lacks a place at the upstream.
    pub fn idle_watch(&self) -> Option<PollId> {
        let polls = self.state.watches().iter().filter_map(|&id| Some((id, self.state.poll(id)?)));
        let idle = polls.filter(|(_, poll)| poll.waits.is_empty() && !poll.is_idle());
        let last_asked = |poll: &Poll| {
            let job = poll.spec.jobs.iter().next()?;
            self.interests.last_asked(poll.spec.domain, job)
        };
        idle.min_by_key(|(id, poll)| (last_asked(poll), *id)).map(|(id, _)| id)
    }

    /// Changes the time after the last plain request until a watch ends. Watches that are open keep the end that they
    /// have.
    pub fn set_watch_idle(&mut self, watch_idle: Duration) {
        self.timing.watch_idle = watch_idle;
    }

    pub(super) fn record_interest(&mut self, id: WaitId, spec: &WaitSpec, now: Instant) {
        if self.is_plain(spec)
            && let Some(job) = spec.jobs.iter().next()
        {
            self.interests.ask((spec.domain, job), id, spec.keep, self.timing.watch_idle, now);
        }
    }

    /// Returns the time after the last plain request until a watch ends.
    pub fn watch_idle(&self) -> Duration {
        self.timing.watch_idle
    }

    /// Returns whether a wait is a plain request, which counts towards a watch: it asks for the state of one job at once,
    /// and accepts proof.
    pub fn is_plain(&self, spec: &WaitSpec) -> bool {
        matches!(spec.proof, Proof::Within(max_age) if !max_age.is_zero())
            && spec.jobs.len() == 1
            && !spec.is_patient
            && self.timing.is_immediate(spec.goal)
            && self.watches_jobs()
    }

    /// Opens a watch for each job of a landed poll that is asked for repeatedly and that no poll asks for alone at its
    /// next rung.
    ///
    /// Runs before the waits that the landing frees are planned: they attach to the watches.
    pub(super) fn open_watches(&mut self, landed: PollId, now: Instant) {
        if self.interests.is_empty() || !self.watches_jobs() {
            return;
        }
        let Some(Poll { spec, retry_after: None, .. }) = self.state.poll(landed) else { return };
        let (domain, jobs) = (spec.domain, spec.jobs.clone());
        for job in &jobs {
            let Some(interest) = self.interests.repeated(domain, job, self.timing.watch_idle, now) else {
                continue;
            };
            let Some(goal) = self.next_goal(domain, job) else { continue };
            let asks_alone = |id: PollId| {
                let poll = self.state.poll(id).filter(|_| id != landed);
                poll.is_some_and(|poll| poll.spec.goal == goal && poll.spec.jobs.len() == 1)
            };
            let is_asked = self.state.job_index().polls_for(domain, job).any(asks_alone);
            if is_asked || !self.interests.take_credit(domain, job) {
                continue;
            }
            let spec = PollSpec { domain, form: Form::Single, jobs: JobSet::new([job.clone()]), goal };
            let poll = Poll { may_cache: interest.keep, ..Poll::new(spec.clone(), None, now) };
            let id = self.add_poll(poll);
            let until = interest.last_asked + self.timing.watch_idle;
            self.state.set_poll_phase(id, PollPhase::Lingering { until });
            self.state.set_watch(id, true);
            let cause = Cause::Watch { asked_by: interest.asked_by, follows: Some(landed) };
            self.outputs.push_back(Output::Open(id, spec, cause));
        }
    }

    /// Returns until when a poll without waits stays open as a watch: it asks for the next rung of a job alone, and the
    /// job is asked for repeatedly.
    pub(super) fn watched_until(&self, poll: &Poll, now: Instant) -> Option<Instant> {
        let PollSpec { domain, ref jobs, goal, .. } = poll.spec;
        if jobs.len() != 1 || self.interests.is_empty() || !self.watches_jobs() {
            return None;
        }
        let job = jobs.iter().next()?;
        let interest = self.interests.repeated(domain, job, self.timing.watch_idle, now)?;
        let is_next = self.next_goal(domain, job) == Some(goal);
        is_next.then(|| interest.last_asked + self.timing.watch_idle)
    }

    pub(super) fn cancel_watch(&mut self, id: PollId, now: Instant) {
        let Some(poll) = self.state.poll(id).filter(|poll| poll.is_watch) else { return };
        if poll.waits.is_empty() {
            self.abort(id);
        } else if poll.attempt == AttemptState::Queued {
            let waits: Vec<WaitId> = poll.waits.iter().copied().collect();
            self.abort(id);
            self.attach_or_open_all(waits, None, now);
        } else {
            self.state.set_watch(id, false); // P4: its waits would have to ask again
        }
    }

    pub(super) fn cancel_watches(&mut self, domain: KeyDomain, now: Instant) {
        let is_of_key = |id: &PollId| self.state.poll(*id).is_some_and(|poll| poll.spec.domain == domain);
        let watches: Vec<PollId> = self.state.watches().iter().copied().filter(is_of_key).collect();
        watches.into_iter().for_each(|id| self.cancel_watch(id, now));
    }

    /// Ends all watches without waits.
    pub(super) fn end_idle_watches(&mut self) {
        let is_idle = |id: &PollId| self.state.poll(*id).is_some_and(|poll| poll.waits.is_empty());
        let idle: Vec<PollId> = self.state.watches().iter().copied().filter(is_idle).collect();
        idle.into_iter().for_each(|id| self.abort(id));
    }

    /// Gives back the price of a watch of which no attempt was made.
    pub(super) fn refund_watch(&mut self, id: PollId) {
        if let Some(poll) = self.state.poll(id)
            && poll.is_watch
            && poll.opener.is_none()
            && poll.attempt == AttemptState::Queued
            && let Some(job) = poll.spec.jobs.iter().next()
        {
            self.interests.give_credit(poll.spec.domain, job);
        }
    }

    /// Returns the goal of a watch on the job, if its state is known and may change.
    pub(super) fn next_goal(&self, domain: KeyDomain, job: &JobId) -> Option<Goal> {
        let ladder = &self.timing.ladder;
        let rung = self.state.job_index().state(domain, job)?.rung?;
        let next = ladder.next(rung).filter(|_| !ladder.is_terminal(rung))?;
        ladder.is_askable(next).then_some(Goal::Rung(next))
    }

    fn watches_jobs(&self) -> bool {
        let is_on = !self.timing.watch_idle.is_zero() && self.timing.proves;
        is_on && !self.timing.hold.is_zero() && self.draining.is_none()
    }
}
