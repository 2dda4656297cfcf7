//! Answers for a wait from known states: one that reached its goal, or the true state at its deadline.
//!
//! Everything here reads the state and changes nothing.

use std::time::Instant;

use super::Coalescer;
use super::state::{AttemptState, Poll, Wait, WaitPhase};
use super::timing::SNAPSHOT_LIMIT;
use super::types::LastFailure;
use super::types::{Failure, Proof, WaitId};
use crate::core::job::{JobId, JobState, KeyDomain};
use crate::core::route::Goal;

impl Coalescer {
    /// Returns the state that answers the wait for this job, if there is one yet: before the deadline one that reached
    /// the goal, in the snapshot phase one that is current.
    pub(super) fn reached_state<'a>(&'a self, wait: &'a Wait, job: &JobId) -> Option<&'a JobState> {
        self.reached_state_with(wait, job, self.state.job_index().state(wait.spec.domain, job))
    }

    /// Like [`reached_state`](Self::reached_state), with the job's last state looked up once for many waits.
    pub(super) fn reached_state_with<'a>(
        &'a self,
        wait: &'a Wait,
        job: &JobId,
        seen: Option<&'a JobState>,
    ) -> Option<&'a JobState> {
        if let Some(pace) = self.timing.pace {
            return self.snapshot_state(wait, job, seen, pace);
        }
        let private = wait.private_states.get(job);
        if let WaitPhase::Snapshot { since } = wait.phase {
            return seen.filter(|state| state.seen_at >= since).or(private);
        }
        let reached = |state: &&JobState| state.rung.is_none_or(|rung| wait.spec.goal.is_reached_by(rung));
        seen.filter(|state| state.seen_at >= wait.spec.arrived).filter(reached).or(private.filter(reached))
    }

    /// Returns the state of this job at the wait's deadline, if it is known without a request (P7): seen from `since`
    /// on, terminal, or proven by a held poll at `now`.
    pub(super) fn deadline_state<'a>(
        &'a self,
        wait: &'a Wait,
        job: &JobId,
        since: Instant,
        now: Instant,
    ) -> Option<&'a JobState> {
        let is_terminal =
            |state: &JobState| state.rung.is_some_and(|rung| self.timing.ladder.is_terminal(rung));
        let seen = self.state.job_index().state(wait.spec.domain, job);
        let private = wait.private_states.get(job);
        let is_proven = |state: &&JobState| self.is_proven_current(wait.spec.domain, state, now);
        seen.filter(|state| {
            state.seen_at >= since || (is_terminal(state) && state.seen_at >= wait.spec.arrived)
        })
        .or(private.filter(|state| state.rung.is_none() || is_terminal(state)))
        .or(seen.filter(is_proven))
        .or(private.filter(is_proven))
    }

    /// Returns the states that answer a wait at its arrival, if each job's is cached or proven by a held poll (P7).
    pub(super) fn proven_states(&self, wait: &Wait, now: Instant) -> Option<Vec<JobState>> {
        let Proof::Within(max_age) = wait.spec.proof else { return None };
        if wait.spec.is_patient || self.draining.is_some() || self.timing.hold.is_zero() {
            return None;
        }
        let domain = wait.spec.domain;
        let is_reached = |state: &JobState| state.rung.is_some_and(|rung| wait.spec.goal.is_reached_by(rung));
        let state_of = |job: &JobId| {
            if let Some(cached) = wait.private_states.get(job).filter(|state| is_reached(state)) {
                return Some(cached.clone());
            }
            let (state, bytes_at) = self.state.job_index().provable_state(domain, job)?;
            let is_proven = is_reached(state)
                && now.saturating_duration_since(bytes_at) <= max_age
                && self.is_proven_current(domain, state, now);
            is_proven.then(|| JobState { seen_at: bytes_at, as_of: bytes_at, ..state.clone() })
        };
        wait.spec.jobs.iter().map(state_of).collect()
    }

    /// Returns whether a held poll for the next rung proves that the job is still in this state (P7).
    ///
    /// The poll must have been held in silence for `min_silence`, and all that time this job must have been the only
    /// one that could keep it open.
    fn is_proven_current(&self, domain: KeyDomain, state: &JobState, now: Instant) -> bool {
        if !self.timing.proves {
            return false;
        }
        let Some(next) = state.rung.and_then(|rung| self.timing.ladder.next(rung)) else { return false };
        let is_long_ago = |at: Instant| at + self.timing.min_silence() <= now;
        let index = self.state.job_index();
        let has_long_reached =
            |job: &JobId| index.state(domain, job).is_some_and(|state| is_long_ago(state.seen_at));
        let polls = index.solely_blocked_by(domain, &state.id, Goal::Rung(next));
        polls.filter_map(|id| self.state.poll(id)).any(|poll| {
            poll.held_since().is_some_and(is_long_ago)
                && poll.spec.jobs.iter().all(|job| *job == state.id || has_long_reached(job))
        })
    }

    /// Returns whether the upstream is about to end an attached poll whose answer the wait needs: the hold of the poll
    /// and the time of the wait end together (P7).
    pub(super) fn expects_landing(&self, wait: &Wait, since: Instant, now: Instant) -> bool {
        let is_needed = |poll: &Poll| {
            poll.spec.jobs.iter().any(|job| self.deadline_state(wait, job, since, now).is_none())
        };
        wait.attached_polls
            .iter()
            .filter_map(|&id| self.state.poll(id))
            .any(|poll| poll.held_since().is_some() && self.ends_with(poll, wait) && is_needed(poll))
    }

    /// Returns whether the upstream's hold of the poll, which begins with each attempt, and the wait's own time end at the
    /// same moment.
    fn ends_with(&self, poll: &Poll, wait: &Wait) -> bool {
        let (ends, deadline) = (poll.attempted_at + self.timing.hold, wait.deadline());
        ends.saturating_duration_since(deadline).max(deadline.saturating_duration_since(ends))
            <= self.timing.clock_skew()
    }

    /// Returns the last failure among the polls of a wait. A paused poll comes first, since nothing more is heard of it.
    pub(super) fn last_failure(&self, id: WaitId, wait: &Wait, now: Instant) -> Option<LastFailure> {
        let polls = || wait.attached_polls.iter().rev().filter_map(|&poll| self.state.poll(poll));
        let is_paused = |poll: &&Poll| matches!(poll.attempt, AttemptState::Paused { .. });
        let failure_of = |poll: &Poll| {
            let failure = match (poll.last_failure.clone()?, poll.suspended_until()) {
                (Failure::KeyRateLimited { .. }, Some(until)) => {
                    Failure::KeyRateLimited { retry_after: until.saturating_duration_since(now) }
                }
                (failure, _) => failure,
            };
            Some((failure, poll.opener == Some(id)))
        };
        let paused = polls().filter(is_paused).find_map(failure_of);
        paused.or_else(|| polls().find_map(failure_of)).or_else(|| wait.last_failure.clone())
    }

    /// Returns whether a poll of the wait makes no attempt before this moment.
    pub(super) fn is_paused_past(&self, wait: &Wait, until: Instant) -> bool {
        let mut polls = wait.attached_polls.iter().filter_map(|&id| self.state.poll(id));
        polls.any(|poll| poll.suspended_until().is_some_and(|at| at > until))
    }

    /// Returns whether the wait can only end with the failure that its polls have now. The client then gets it at once,
    /// as it would have had it alone (P2).
    ///
    /// True if the upstream itself asked for pauses past the deadline and the time of its snapshot, on every poll of the
    /// wait, and no proof spares the snapshot.
    pub(super) fn cannot_succeed(&self, wait: &Wait, now: Instant) -> bool {
        let mut polls = wait.attached_polls.iter().filter_map(|&id| self.state.poll(id));
        match wait.phase {
            WaitPhase::Snapshot { .. } if self.timing.pace.is_some() => self.is_ended_by_pause(wait, now),
            // A client that expects an answer at once also gets a 429 or 503 at once.
            WaitPhase::Waiting if wait.is_immediate(&self.timing) => {
                polls.all(|poll| matches!(poll.attempt, AttemptState::Paused { .. }))
            }
            WaitPhase::Waiting if self.timing.pace.is_some() => false,
            WaitPhase::Waiting => {
                let limit = self.cap_at_drain(wait.deadline() + SNAPSHOT_LIMIT);
                polls.all(|poll| matches!(poll.attempt, AttemptState::Paused { until, .. } if until > limit))
                    && wait.spec.jobs.iter().any(|job| self.deadline_state(wait, job, now, now).is_none())
            }
            WaitPhase::Grace { .. } => false,
            WaitPhase::Snapshot { .. } => self.is_paused_past(wait, wait.due()),
        }
    }

    /// Returns the last state seen of each job of the wait, if all of them were seen.
    pub(super) fn last_seen(&self, wait: &Wait) -> Option<Vec<JobState>> {
        let index = self.state.job_index();
        let seen = |job: &JobId| {
            let private = || wait.private_states.get(job);
            index.state(wait.spec.domain, job).or_else(private).cloned()
        };
        wait.spec.jobs.iter().map(seen).collect()
    }
}
