//! What is under way, for people to look at. It changes nothing.

use std::collections::BTreeSet;
use std::time::Instant;

use super::job_index::IndexedJob;
use super::{Coalescer, PollId, WaitId};
use crate::core::job::{JobId, KeyDomain};
use crate::core::route::{Goal, Rung};

/// Waits of one job whose goals are looked at.
const MOST_GOALS: usize = 64;

/// A job that waits name or polls ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobStatus {
    /// With whose key.
    pub domain: KeyDomain,
    /// Which one.
    pub id: JobId,
    /// The highest rung that it was seen on since anybody cared.
    pub rung: Option<Rung>,
    /// The rungs that it is waited for to reach, of its oldest waits at least.
    pub asked: BTreeSet<Rung>,
    /// How many waits name it.
    pub waits: usize,
    /// How many polls ask for it.
    pub polls: usize,
    /// Since when: its oldest wait's arrival, or its oldest poll's opening.
    pub since: Option<Instant>,
}

impl Coalescer {
    /// How many jobs are under way.
    pub fn jobs(&self) -> usize {
        self.board.slots().count()
    }

    /// The oldest of them, the oldest first; `most` at most, of as many as `looked_at`.
    pub fn oldest_jobs(&self, most: usize, looked_at: usize) -> Vec<JobStatus> {
        let jobs = self.board.slots().all().take(looked_at);
        let mut jobs: Vec<_> = jobs.map(|job| (self.since(&job), job)).collect();
        jobs.sort_unstable_by_key(|(since, job)| (*since, job.domain, job.id));
        jobs.truncate(most);
        jobs.into_iter().map(|(since, job)| self.in_flight(since, &job)).collect()
    }

    /// What a wait leans on now.
    pub fn attached_polls(&self, id: WaitId) -> impl Iterator<Item = PollId> {
        self.board.wait(id).into_iter().flat_map(|wait| wait.attached_polls.iter().copied())
    }

    /// Who leans on a poll now.
    pub fn attached_waits(&self, id: PollId) -> impl Iterator<Item = WaitId> {
        self.board.poll(id).into_iter().flat_map(|poll| poll.waits.iter().copied())
    }

    fn since(&self, job: &IndexedJob<'_>) -> Option<Instant> {
        // Numbers are given in order.
        let wait = job.waits.first().and_then(|wait| self.board.wait(*wait));
        let poll = job.polls.first().and_then(|poll| self.board.poll(*poll));
        wait.map(|wait| wait.spec.arrived).into_iter().chain(poll.map(|poll| poll.opened_at)).min()
    }

    fn in_flight(&self, since: Option<Instant>, job: &IndexedJob<'_>) -> JobStatus {
        let waits = job.waits.iter().take(MOST_GOALS).filter_map(|wait| self.board.wait(*wait));
        let asked = waits.filter_map(|wait| match wait.spec.goal {
            Goal::Now => None,
            Goal::Rung(rung) => Some(rung),
        });
        JobStatus {
            domain: job.domain,
            id: job.id.clone(),
            rung: job.state.and_then(|state| state.rung),
            asked: asked.collect(),
            waits: job.waits.len(),
            polls: job.polls.len(),
            since,
        }
    }
}
