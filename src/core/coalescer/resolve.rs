//! What a wait may be told: of a job that got where it was waited for, and of one at the wait's deadline.
//!
//! It reads the board and changes nothing.

use std::time::Instant;

use super::Coalescer;
use super::state::{AttemptState, LastFailure, Poll, Wait, WaitPhase};
use super::timing::SNAPSHOT_LIMIT;
use super::types::{Failure, WaitId};
use crate::core::job::{JobId, JobState, KeyDomain};
use crate::core::route::Goal;

impl Coalescer {
    /// The state that this job of the wait is answered with, if there is one yet. Until its time is over the
    /// goal must be reached, after that the state must be true.
    pub(super) fn reached_state<'a>(&'a self, wait: &'a Wait, job: &JobId) -> Option<&'a JobState> {
        self.reached_state_with(wait, job, self.board.slots().state(wait.spec.domain, job))
    }

    /// The same where the job's slot was looked up for many waits at once.
    pub(super) fn reached_state_with<'a>(
        &'a self,
        wait: &'a Wait,
        job: &JobId,
        seen: Option<&'a JobState>,
    ) -> Option<&'a JobState> {
        let given = wait.private_states.get(job);
        if let WaitPhase::Snapshot { since } = wait.phase {
            return seen.filter(|state| state.seen_at >= since).or(given);
        }
        let reached =
            |state: &&JobState| state.rung.is_none_or(|rung| self.rules.reaches(rung, wait.spec.goal));
        seen.filter(|state| state.seen_at >= wait.spec.arrived).filter(reached).or(given.filter(reached))
    }

    /// Where this job of the wait is known to be at `now` although nothing asks for it (promise 7). What
    /// was seen from `since` on, when the wait's time was over, is known.
    pub(super) fn deadline_state<'a>(
        &'a self,
        wait: &'a Wait,
        job: &JobId,
        since: Instant,
        now: Instant,
    ) -> Option<&'a JobState> {
        let is_terminal =
            |state: &JobState| state.rung.is_some_and(|rung| self.rules.ladder.is_terminal(rung));
        let seen = self.board.slots().state(wait.spec.domain, job);
        let given = wait.private_states.get(job);
        let is_proven = |state: &&JobState| self.is_proven_current(wait.spec.domain, state, now);
        seen.filter(|state| {
            state.seen_at >= since || (is_terminal(state) && state.seen_at >= wait.spec.arrived)
        })
        .or(given.filter(|state| state.rung.is_none() || is_terminal(state)))
        .or(seen.filter(is_proven))
        .or(given.filter(is_proven))
    }

    /// Whether a poll that asks for the next rung, and stands unanswered, proves that the job is still where
    /// it was seen (promise 7): for long enough, nothing else that it asks for has been what holds it.
    fn is_proven_current(&self, domain: KeyDomain, state: &JobState, now: Instant) -> bool {
        let Some(next) = state.rung.and_then(|rung| self.rules.ladder.next(rung)) else { return false };
        let is_long_ago = |at: Instant| at + self.rules.min_silence() <= now;
        let slots = self.board.slots();
        let is_no_hindrance =
            |job: &JobId| slots.state(domain, job).is_some_and(|state| is_long_ago(state.seen_at));
        slots.held_by(domain, &state.id, Goal::Rung(next)).filter_map(|id| self.board.poll(id)).any(|poll| {
            poll.standing().is_some_and(is_long_ago)
                && poll.spec.jobs.iter().all(|job| *job == state.id || is_no_hindrance(job))
        })
    }

    /// Whether the upstream is about to end a poll, because its time is over when the wait's is, and that
    /// will tell the wait more than is known.
    pub(super) fn is_about_to_be_told(&self, wait: &Wait, since: Instant, now: Instant) -> bool {
        let tells = |poll: &Poll| {
            poll.spec.jobs.iter().any(|job| self.deadline_state(wait, job, since, now).is_none())
        };
        wait.attached_polls
            .iter()
            .filter_map(|&id| self.board.poll(id))
            .any(|poll| poll.standing().is_some() && self.ends_with(poll, wait) && tells(poll))
    }

    /// Whether the upstream's time for the poll and the wait's own are over at the same moment.
    fn ends_with(&self, poll: &Poll, wait: &Wait) -> bool {
        let (ends, deadline) = (poll.opened_at + self.rules.hold, wait.deadline());
        ends.saturating_duration_since(deadline).max(deadline.saturating_duration_since(ends))
            <= self.rules.clock_skew()
    }

    /// Whether the upstream holds the poll at least as long as the wait has time.
    pub(super) fn outlasts(&self, poll: &Poll, wait: &Wait) -> bool {
        poll.opened_at + self.rules.hold + self.rules.clock_skew() >= wait.deadline()
    }

    /// How what the wait leans on failed last, if it did: first what the upstream asked a pause with, since no more is
    /// heard of that poll.
    pub(super) fn last_failure(&self, id: WaitId, wait: &Wait, now: Instant) -> Option<LastFailure> {
        let polls = || wait.attached_polls.iter().rev().filter_map(|&poll| self.board.poll(poll));
        let is_paused = |poll: &&Poll| matches!(poll.tries, AttemptState::Paused { .. });
        let told = |poll: &Poll| {
            let failure = match (poll.failed.clone()?, poll.paused_until()) {
                (Failure::KeyRateLimited { .. }, Some(until)) => {
                    Failure::KeyRateLimited { retry_after: until.saturating_duration_since(now) }
                }
                (failure, _) => failure,
            };
            Some((failure, poll.opener == id))
        };
        let paused = polls().filter(is_paused).find_map(told);
        paused.or_else(|| polls().find_map(told)).or_else(|| wait.failed.clone())
    }

    /// Whether something that the wait leans on is not even tried until then.
    pub(super) fn is_paused_past(&self, wait: &Wait, until: Instant) -> bool {
        let mut polls = wait.attached_polls.iter().filter_map(|&id| self.board.poll(id));
        polls.any(|poll| poll.paused_until().is_some_and(|at| at > until))
    }

    /// Whether it is certain that the wait will be told nothing better than how the upstream failed, so that it
    /// may be told at once, as its client alone would be. By the upstream's own wish nothing that it leans on is
    /// tried before its time is over, nor would its look be; and no proof is there that would spare it the look.
    pub(super) fn cannot_succeed(&self, wait: &Wait, now: Instant) -> bool {
        let mut polls = wait.attached_polls.iter().filter_map(|&id| self.board.poll(id));
        match wait.phase {
            // A request that is answered at once gets what the upstream says at once, also that.
            WaitPhase::Waiting if self.is_immediate(wait) => {
                polls.all(|poll| matches!(poll.tries, AttemptState::Paused { .. }))
            }
            WaitPhase::Waiting => {
                let limit = self.cap_at_drain(wait.deadline() + SNAPSHOT_LIMIT);
                polls.all(|poll| matches!(poll.tries, AttemptState::Paused { until, .. } if until > limit))
                    && wait.spec.jobs.iter().any(|job| self.deadline_state(wait, job, now, now).is_none())
            }
            WaitPhase::Grace { .. } => false,
            WaitPhase::Snapshot { .. } => self.is_paused_past(wait, wait.due()),
        }
    }

    /// Returns whether the wait's client expects an answer at once.
    fn is_immediate(&self, wait: &Wait) -> bool {
        !wait.spec.is_patient && self.rules.is_immediate(wait.spec.goal)
    }

    /// Whether the upstream asked for the poll's pause before the wait was there, and it would sit it out in vain:
    /// its client alone would ask anew.
    pub(super) fn is_foreign_pause(&self, poll: &Poll, wait: &Wait) -> bool {
        let AttemptState::Paused { until, is_of_key } = poll.tries else { return false };
        let came_later = wait.spec.arrived > poll.tried_at;
        match wait.phase {
            // The scheduler lets a plain request ask although its key is paused.
            WaitPhase::Waiting if wait.spec.goal == Goal::Now => is_of_key || came_later,
            WaitPhase::Waiting if self.is_immediate(wait) => !is_of_key && came_later,
            WaitPhase::Waiting | WaitPhase::Grace { .. } | WaitPhase::Snapshot { .. } => {
                !is_of_key && until > wait.due() && came_later
            }
        }
    }

    /// Returns whether the poll landed before the wait was there, and rests since the upstream asked for that: the wait's
    /// client alone would ask anew.
    pub(super) fn is_anothers_rest(&self, poll: &Poll, wait: &Wait) -> bool {
        poll.not_before.is_some_and(|(asked_at, _)| wait.spec.arrived > asked_at)
    }

    /// Returns where each job of the wait was last seen, if all of them were.
    pub(super) fn last_seen(&self, wait: &Wait) -> Option<Vec<JobState>> {
        let slots = self.board.slots();
        let seen = |job: &JobId| {
            let given = || wait.private_states.get(job);
            slots.state(wait.spec.domain, job).or_else(given).cloned()
        };
        wait.spec.jobs.iter().map(seen).collect()
    }
}
