//! Read-only view of the jobs under way, for the dashboard, `/api/state` and traces.

use std::collections::BTreeSet;
use std::time::Instant;

use super::job_index::IndexedJob;
use super::{Coalescer, PollId, WaitId};
use crate::core::job::{JobId, KeyDomain};
use crate::core::route::{Goal, Rung};

/// Most waits of one job whose goals are collected.
const MAX_GOALS: usize = 64;

/// A job that waits name or polls ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobStatus {
    /// Key domain of its waits and polls.
    pub domain: KeyDomain,
    /// Id of the job.
    pub id: JobId,
    /// Highest rung seen while the job had waits or polls.
    pub rung: Option<Rung>,
    /// Goals of its oldest waits.
    pub asked: BTreeSet<Rung>,
    /// Number of waits that name it.
    pub waits: usize,
    /// Polls that ask for it, the oldest first.
    pub polls: Vec<PollId>,
    /// Arrival of its oldest wait or opening of its oldest poll, whichever is earlier.
    pub since: Option<Instant>,
}

impl Coalescer {
    /// Returns the number of jobs under way.
    pub fn jobs(&self) -> usize {
        self.state.job_index().count()
    }

    /// Returns the oldest jobs under way, the oldest first: at most `limit`, chosen from the first `looked_at` in no
    /// order.
    pub fn oldest_jobs(&self, limit: usize, looked_at: usize) -> Vec<JobStatus> {
        let jobs = self.state.job_index().all().take(looked_at);
        let mut jobs: Vec<_> = jobs.map(|job| (self.since(&job), job)).collect();
        jobs.sort_unstable_by_key(|(since, job)| (*since, job.domain, job.id));
        jobs.truncate(limit);
        jobs.into_iter().map(|(since, job)| self.job_status(since, &job)).collect()
    }

    /// Returns the jobs under way that are this job, with any query parameters of its identity.
    pub fn variants(&self, domain: KeyDomain, job: &JobId) -> Vec<JobId> {
        let jobs = self.state.job_index().of_domain(domain);
        let is_variant =
            |other: &&JobId| other.as_str() == job.as_str() && other.without_params() == job.without_params();
        let mut variants: Vec<JobId> = jobs.filter(is_variant).cloned().collect();
        variants.sort_unstable();
        variants
    }

    /// Returns all jobs under way.
    pub fn all_jobs(&self) -> Vec<(KeyDomain, JobId)> {
        self.state.job_index().all().map(|job| (job.domain, job.id.clone())).collect()
    }

    /// Returns the polls that a wait is attached to.
    pub fn attached_polls(&self, id: WaitId) -> impl Iterator<Item = PollId> {
        self.state.wait(id).into_iter().flat_map(|wait| wait.attached_polls.iter().copied())
    }

    /// Returns the waits that are attached to a poll.
    pub fn attached_waits(&self, id: PollId) -> impl Iterator<Item = WaitId> {
        self.state.poll(id).into_iter().flat_map(|poll| poll.waits.iter().copied())
    }

    fn since(&self, job: &IndexedJob<'_>) -> Option<Instant> {
        // Ids are given in order, so the first is the oldest.
        let wait = job.waits.first().and_then(|wait| self.state.wait(*wait));
        let poll = job.polls.first().and_then(|poll| self.state.poll(*poll));
        wait.map(|wait| wait.spec.arrived).into_iter().chain(poll.map(|poll| poll.opened_at)).min()
    }

    fn job_status(&self, since: Option<Instant>, job: &IndexedJob<'_>) -> JobStatus {
        let waits = job.waits.iter().take(MAX_GOALS).filter_map(|wait| self.state.wait(*wait));
        let asked = waits.filter_map(|wait| match wait.spec.goal {
            Goal::Now | Goal::Not(_) => None,
            Goal::Rung(rung) => Some(rung),
        });
        JobStatus {
            domain: job.domain,
            id: job.id.clone(),
            rung: job.state.and_then(|state| state.rung),
            asked: asked.collect(),
            waits: job.waits.len(),
            polls: job.polls.iter().copied().collect(),
            since,
        }
    }
}
