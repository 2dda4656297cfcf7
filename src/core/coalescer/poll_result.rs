//! Progress and results of polls: attempts that fail, the states that a landed poll brings, and the waits that it answers.
//!
//! Waits that a result does not answer are planned again; see `plan.rs`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Coalescer;
use super::state::{AttemptState, PollPhase, WaitPhase};
use super::types::{Failure, FaultKind, PollId, PollOutcome, PollProgress, WaitId, WaitOutcome};
use crate::core::job::{JobId, JobState, KeyDomain, ResponseHead, UpstreamResponse};

/// A poll that has just landed with jobs.
pub(super) struct Landing {
    pub(super) opener: Option<WaitId>,
    pub(super) head: Arc<ResponseHead>,
    /// Moment at which the answer was read, slightly before it lands.
    pub(super) read_at: Instant,
}

/// Polls with no more waits than this have all of them examined, in any order.
const FEW_WAITS: usize = 64;

impl Coalescer {
    pub(super) fn progress(&mut self, id: PollId, progress: PollProgress, now: Instant) {
        let Some(poll) = self.state.poll_mut(id) else { return };
        match progress {
            PollProgress::AttemptStarted => {
                (poll.attempted_at, poll.attempt) = (now, AttemptState::Sending);
                poll.chain.is_outdated = false;
                if std::mem::take(&mut poll.is_elsewhere) {
                    poll.opened_at = now; // the upstream's hold begins again
                    self.end_vain_grace(id, now);
                }
            }
            PollProgress::Held => {
                poll.attempt = AttemptState::Held { since: now };
                self.schedule_shedding(id, now);
            }
            PollProgress::BackingOff(failure, pause) => {
                let attempt = AttemptState::BackingOff { until: now + pause };
                let waits = self.suspend(id, failure, attempt, now);
                // P12: waits with time left are held through the failure.
                let is_past_deadline =
                    |id: &WaitId| self.state.wait(*id).is_some_and(|wait| wait.phase != WaitPhase::Waiting);
                let waits: Vec<WaitId> = waits.into_iter().filter(is_past_deadline).collect();
                self.attach_or_open_all(waits, None, now);
            }
            PollProgress::Paused(failure, pause) => {
                let is_of_key = matches!(failure, Failure::KeyRateLimited { .. });
                let attempt = AttemptState::Paused { until: now + pause, is_of_key };
                let waits = self.suspend(id, failure, attempt, now);
                self.attach_or_open_all(waits, None, now);
            }
            PollProgress::Elsewhere { opened_at, held_from } => {
                poll.is_elsewhere = true;
                (poll.opened_at, poll.attempted_at) = (opened_at, held_from.unwrap_or(opened_at));
                poll.attempt = match held_from {
                    Some(_) => AttemptState::Held { since: now },
                    None => AttemptState::Sending,
                };
                self.end_vain_grace(id, now);
            }
            PollProgress::Lost => {
                (poll.is_elsewhere, poll.attempt) = (true, AttemptState::Queued);
                self.end_vain_grace(id, now);
                self.let_linger([id], now);
            }
        }
    }

    /// Takes the snapshot of those waits past their deadline for which the upstream no longer ends this poll (P7).
    fn end_vain_grace(&mut self, id: PollId, now: Instant) {
        let Some(poll) = self.state.poll(id) else { return };
        let is_in_grace = |id: &&WaitId| {
            self.state.wait(**id).is_some_and(|wait| matches!(wait.phase, WaitPhase::Grace { .. }))
        };
        let waits: Vec<WaitId> = poll.waits.iter().filter(is_in_grace).copied().collect();
        self.attach_or_open_all(waits, None, now);
    }

    pub(super) fn retry_after(&mut self, id: PollId, pause: Duration, now: Instant) {
        if let Some(poll) = self.state.poll_mut(id) {
            poll.retry_after = Some((now, now + pause.min(MAX_RETRY_AFTER)));
        }
    }

    /// Records a failed attempt whose successor is still to come. Returns the waits on the poll.
    fn suspend(
        &mut self,
        id: PollId,
        failure: Failure,
        attempt: AttemptState,
        now: Instant,
    ) -> BTreeSet<WaitId> {
        let Some(poll) = self.state.poll_mut(id) else { return BTreeSet::new() };
        (poll.last_failure, poll.attempt) = (Some(failure), attempt);
        let waits = poll.waits.clone();
        self.let_linger([id], now);
        waits
    }

    pub(super) fn landed(&mut self, id: PollId, outcome: PollOutcome, now: Instant) {
        // A poll may still land after its abort.
        let Some(poll) = self.state.poll_mut(id) else { return };
        poll.attempt = AttemptState::Done;
        match outcome {
            _ if poll.chain.is_outdated => self.release(id, None, now),
            PollOutcome::Jobs(states) => match self.timing.pace {
                Some(pace) => self.landed_snapshot(id, states, pace, now),
                None => self.landed_jobs(id, states, now),
            },
            PollOutcome::Unsplit(reply) => self.landed_unsplit(id, &reply, now),
            PollOutcome::Refused(reply) => {
                self.state.end_proofs(id, now);
                let mut spared = Vec::new();
                for (wait, direct) in self.forget_poll(id) {
                    if self.is_spared(wait, direct) {
                        spared.push(wait);
                    } else {
                        self.settle(wait, WaitOutcome::Refused(Arc::clone(&reply)), direct, now);
                    }
                }
                self.attach_or_open_all(spared, None, now);
            }
            PollOutcome::Failed(failure) => self.landed_failed(id, &failure, now),
        }
    }

    fn landed_jobs(&mut self, id: PollId, states: Vec<JobState>, now: Instant) {
        let Some(poll) = self.state.poll(id) else { return };
        let (domain, opener) = (poll.spec.domain, poll.opener);
        let next_poll_at = (poll.opened_at + self.timing.min_repoll_interval())
            .max(poll.retry_after.map_or(now, |(_, until)| until));
        let (mut affected, mut interested) = (poll.waits.iter().copied().collect::<Vec<_>>(), Vec::new());
        let landing = states.first().map(|state| Landing {
            opener,
            head: Arc::clone(&state.head),
            read_at: state.seen_at,
        });
        for state in states {
            if state.rung.is_some() {
                let job = state.id.clone();
                self.give_to_latecomers(id, &state);
                self.state.learn(domain, state);
                // P1: the state answers every wait of the key on this job, also those on other polls.
                let waits: Vec<WaitId> = self.state.job_index().interested(domain, &job).collect();
                affected.extend(&waits);
                interested.push((job, waits));
            } else {
                self.state.deliver_unknown_status(id, &state, now);
            }
        }
        let Some(poll) = self.state.poll(id) else { return };
        let index = self.state.job_index();
        let is_reached = poll.spec.jobs.iter().all(|job| index.is_at(domain, job, poll.spec.goal));
        let is_too_early = !is_reached && now < next_poll_at;
        if !is_too_early {
            self.open_watches(id, now);
        }
        affected.sort(); // A stable sort is linear here: the parts are sorted.
        affected.dedup();
        self.settle_answered(&mut affected, landing.as_ref(), now);
        // Mostly no wait is left. The others still lack other jobs, and are not looked up for these ones again.
        interested.retain(|_| !affected.is_empty());
        for (job, waits) in interested {
            let seen = self.state.job_index().state(domain, &job);
            let waits = waits.into_iter().filter(|wait| affected.binary_search(wait).is_ok());
            let answered = self.answered_by(seen, &job, waits);
            answered.into_iter().for_each(|wait| self.state.clear_interest(wait, &job));
        }
        let Some(poll) = self.state.poll(id) else { return };
        if is_too_early && !poll.waits.is_empty() {
            // P4: an upstream that does not hold its polls is not asked in a loop.
            let is_spared = |wait: &WaitId| self.is_spared(*wait, poll.opener == Some(*wait));
            let spared: Vec<WaitId> = poll.waits.iter().copied().filter(is_spared).collect();
            self.state.set_poll_phase(id, PollPhase::Throttled { until: next_poll_at });
            self.attach_or_open_all(spared, landing.as_ref(), now);
        } else {
            self.release(id, landing.as_ref(), now);
        }
    }

    /// Gives the state to waits that attached between the reading of the answer and its landing. A further request would
    /// be one that their clients alone would not make (P4).
    fn give_to_latecomers(&mut self, id: PollId, state: &JobState) {
        let Some(poll) = self.state.poll(id) else { return };
        let read_at = state.seen_at;
        let is_latecomer = |id: &WaitId| {
            self.state.wait(*id).is_some_and(|wait| {
                let from = match wait.phase {
                    WaitPhase::Waiting => wait.spec.arrived,
                    WaitPhase::Snapshot { since } => since,
                    WaitPhase::Grace { .. } => return false, // `end` takes the landing into account
                };
                read_at < from
                    && from <= read_at + self.timing.clock_skew()
                    && self.reached_state(wait, &state.id).is_none()
            })
        };
        // Wait ids follow the order of arrival, so latecomers are the last. A snapshot may have any wait as latecomer;
        // its poll is at the lowest rung.
        let examine_all = self.timing.is_immediate(poll.spec.goal) || poll.waits.len() <= FEW_WAITS;
        let arrived_later =
            |id: &&WaitId| self.state.wait(**id).is_some_and(|wait| wait.spec.arrived > read_at);
        let newest = poll.waits.iter().rev().take_while(|id| examine_all || arrived_later(id));
        let latecomers: Vec<WaitId> = newest.copied().filter(is_latecomer).collect();
        for id in latecomers {
            if let Some(wait) = self.state.wait_mut(id) {
                wait.private_states.insert(state.clone());
            }
        }
    }

    /// Returns the waits that the last state of this job answers, as far as this job goes.
    pub(super) fn newly_answered(&self, domain: KeyDomain, job: &JobId) -> Vec<WaitId> {
        let index = self.state.job_index();
        self.answered_by(index.state(domain, job), job, index.interested(domain, job))
    }

    /// Returns those of the waits that this state of a job answers, as far as this job goes.
    fn answered_by(
        &self,
        seen: Option<&JobState>,
        job: &JobId,
        waits: impl Iterator<Item = WaitId>,
    ) -> Vec<WaitId> {
        let is_answered = |id: &WaitId| {
            self.state.wait(*id).is_some_and(|wait| self.reached_state_with(wait, job, seen).is_some())
        };
        waits.filter(is_answered).collect()
    }

    /// Settles the waits on exactly the jobs, endpoint and goal of the poll (P3). The others ask for themselves.
    fn landed_unsplit(&mut self, id: PollId, reply: &Arc<UpstreamResponse>, now: Instant) {
        let Some(poll) = self.state.poll(id) else { return };
        let (spec, opened_at) = (poll.spec.clone(), poll.opened_at);
        self.state.end_proofs(id, now);
        let is_hold_over =
            self.timing.pace.is_none() && now + self.timing.clock_skew() >= opened_at + self.timing.hold;
        let (mut others, mut spared) = (Vec::new(), Vec::new());
        for (wait_id, direct) in self.forget_poll(id) {
            let Some(wait) = self.state.wait(wait_id) else { continue };
            let is_at_goal = self.timing.pace.is_some() || wait.current_goal == spec.goal;
            let is_exact = wait.spec.jobs == spec.jobs && wait.spec.form == spec.form && is_at_goal;
            // P2: the end of the upstream's hold may have caused the answer, before the wait's own time is over.
            let is_cut_short = is_hold_over && !self.is_past_deadline(wait, now);
            let is_too_large = wait.spec.jobs.len() > self.timing.max_jobs;
            if self.is_spared(wait_id, direct) {
                spared.push(wait_id);
            } else if is_exact && !is_cut_short {
                self.settle(wait_id, WaitOutcome::Unsplit(Arc::clone(reply)), direct, now);
            } else if is_too_large {
                self.settle_failed(wait_id, Failure::InvalidResponse(None), direct, now);
            } else {
                others.push(wait_id);
            }
        }
        for &id in &others {
            if let Some(wait) = self.state.wait_mut(id) {
                wait.exact_set_only = true;
            }
        }
        self.attach_or_open_all(others.into_iter().chain(spared), None, now);
    }

    /// Settles the waits that arrived before the failed attempt began. Clients of later waits would have made a request
    /// of their own since then, so these are planned again (P12).
    fn landed_failed(&mut self, id: PollId, failure: &Failure, now: Instant) {
        let Some(poll) = self.state.poll(id) else { return };
        if self.timing.pace.is_some() && poll.is_plain_request() {
            return self.plain_request_failed(id, failure, now);
        }
        let (spec, opener, attempted_at) = (poll.spec.clone(), poll.opener, poll.attempted_at);
        let mut others = Vec::new();
        for (wait_id, direct) in self.forget_poll(id) {
            let Some(wait) = self.state.wait(wait_id) else { continue };
            let is_spared = failure.kind() == FaultKind::Upstream && self.is_spared(wait_id, direct);
            if failure.concerns(wait.spec.arrived, attempted_at) && !is_spared {
                self.settle_failed(wait_id, failure.clone(), direct, now);
            } else {
                others.push(wait_id);
            }
        }
        self.plan_after_failure(&spec, opener, others, now);
    }
}

/// Longest `Retry-After` of a success that is followed (P1).
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);
