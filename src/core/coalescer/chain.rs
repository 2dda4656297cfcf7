//! Chains: the snapshots of a job whose upstream never holds a request ([`Timing::pace`]).
//!
//! Every poll is a snapshot, and one row of them serves all waits on its jobs:
//!
//! ```text
//!   join     landed             due      landed                      due
//!    │ ▪▪▪▪▪▪▪│ Throttled: gap ──│ ▪▪▪▪▪▪▪│ Throttled: gap ─────────────│ ▪▪▪▪
//!                      ▲ a join brings it forward
//! ```
//!
//! A poll that lands with waits left stays as [`PollPhase::Throttled`] until the next snapshot is due. Its last wait takes it
//! along. Silence proves nothing here, and states may go back, so that the latest read counts.

use std::time::{Duration, Instant};

use super::Coalescer;
use super::plan::{PlanOrigin, is_foreign_pause};
use super::poll_result::Landing;
use super::state::{AttemptState, Poll, PollPhase, Wait, WaitPhase};
use super::timing::{Pace, Timing};
use super::types::{Cause, Failure, PollId, PollSpec, WaitId};
use crate::core::job::{JobId, JobSet, JobState, KeyDomain};
use crate::core::route::Goal;

/// Position of a poll in a chain of snapshots.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ChainLink {
    /// When the first snapshot of the chain was read.
    pub(super) since: Option<Instant>,
    /// When the jobs of the poll were last read.
    pub(super) last_read: Option<Instant>,
    /// Whether an action changed one of the jobs since the attempt began. The result does not count.
    pub(super) is_outdated: bool,
}

impl Pace {
    /// Returns the time between two snapshots of a chain of this age.
    fn gap(&self, age: Duration) -> Duration {
        (age / 10).clamp(self.min, self.max)
    }

    /// Returns the first gap of a chain: spread by the number of its poll, so that jobs made together are not polled in step.
    fn first_gap(&self, PollId(number): PollId) -> Duration {
        let spread = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 48;
        let spread = u16::try_from(spread).unwrap_or(u16::MAX);
        self.min.mul_f64(0.5 + f64::from(spread) / f64::from(u16::MAX) / 2.0)
    }

    /// Returns the time from the last read to the next snapshot for a wait that joins between the two.
    fn gap_of_joining(&self) -> Duration {
        self.live_ttl.min(self.min)
    }
}

/// Returns whether a wait may attach to a snapshot that asks for a subset of its jobs.
///
/// | the poll is | plain request | wait | wait past its deadline |
/// | --- | --- | --- | --- |
/// | queued, backing off | unless it waits for the turn of a chain | yes | unless it is one of a chain |
/// | under way | yes | yes | sent since the deadline less `live_ttl` |
/// | paused by a 429 | if it came before the attempt | yes | no |
/// | between two snapshots | no | yes | no |
pub(super) fn may_attach_to_snapshot(poll: &Poll, wait: &Wait, timing: &Timing, pace: Pace) -> bool {
    let is_of_chain = !poll.is_plain_request() && poll.cause != Cause::Deadline;
    match (wait.phase, poll.attempt) {
        _ if poll.chain.is_outdated => false,
        (WaitPhase::Snapshot { since }, AttemptState::Sending | AttemptState::Held { .. }) => {
            poll.attempted_at + pace.live_ttl >= since
        }
        (WaitPhase::Snapshot { .. }, AttemptState::Queued | AttemptState::BackingOff { .. }) => !is_of_chain,
        (WaitPhase::Snapshot { .. }, AttemptState::Paused { .. } | AttemptState::Done) => false,
        (WaitPhase::Waiting, attempt) if wait.is_immediate(timing) => match attempt {
            AttemptState::Queued => !is_of_chain,
            AttemptState::Sending | AttemptState::Held { .. } | AttemptState::BackingOff { .. } => true,
            AttemptState::Paused { .. } => !is_foreign_pause(poll, wait, timing),
            AttemptState::Done => false,
        },
        (WaitPhase::Waiting | WaitPhase::Grace { .. }, _) => true,
    }
}

impl Coalescer {
    /// Returns the latest state of the job that answers the wait: one at its goal, or at its deadline one that is at most
    /// `live_ttl` old (P7), terminal or unknown.
    pub(super) fn snapshot_state<'a>(
        &self,
        wait: &'a Wait,
        job: &JobId,
        seen: Option<&'a JobState>,
        pace: Pace,
    ) -> Option<&'a JobState> {
        let private = wait.private_states.get(job);
        let seen_since_arrival = seen.filter(|state| state.seen_at >= wait.spec.arrived);
        let WaitPhase::Snapshot { since } = wait.phase else {
            let is_newer = |state: &JobState| wait.spec.newer_than.is_none_or(|at| state.as_of > at);
            let reaches = |state: &&JobState| {
                state.rung.is_none_or(|rung| wait.spec.goal.is_reached_by(rung)) && is_newer(state)
            };
            return later(seen_since_arrival, private).filter(reaches);
        };
        let is_final = |state: &&JobState| state.rung.is_none_or(|rung| self.timing.ladder.is_terminal(rung));
        let is_current = |state: &&JobState| {
            let is_older = wait.spec.newer_than.is_some_and(|at| state.as_of < at);
            state.as_of + pace.live_ttl >= since && !is_older
        };
        later(seen_since_arrival, private).filter(is_final).or(later(seen, private).filter(is_current))
    }

    /// Takes in the states of a snapshot, answers the waits that they reach, and sets the time of the next snapshot.
    pub(super) fn landed_snapshot(&mut self, id: PollId, states: Vec<JobState>, pace: Pace, now: Instant) {
        let Some(poll) = self.state.poll(id) else { return };
        let (domain, opener, mut affected) = (poll.spec.domain, poll.opener, poll.waits.clone());
        let landing =
            states.first().map(|state| Landing { opener, head: state.head.clone(), read_at: state.seen_at });
        // P1: an unknown status tells the waits of other chains nothing. A hint of the vendor is for all of them.
        let is_for_all = poll.retry_after.is_some() || states.iter().all(|state| state.rung.is_some());
        for state in states {
            if state.rung.is_none() {
                self.state.deliver_unknown_status(id, &state, now);
                continue;
            }
            self.give_to_attached(id, &state);
            let job = state.id.clone();
            self.state.learn_latest(domain, state);
            affected.extend(self.newly_answered(domain, &job));
        }
        self.settle_answered(&mut affected.into_iter().collect(), landing.as_ref(), now);
        if is_for_all {
            self.postpone(id, pace, now);
        }
        self.throttle(id, landing.as_ref(), pace, now);
    }

    /// Gives the state to the waits on the poll that came after its answer was read: one snapshot under way answers all.
    fn give_to_attached(&mut self, id: PollId, state: &JobState) {
        let Some(poll) = self.state.poll(id) else { return };
        for id in poll.waits.clone() {
            let Some(wait) = self.state.wait_mut(id) else { continue };
            let is_older = wait.private_states.get(&state.id).is_some_and(|known| state.as_of < known.as_of);
            if state.seen_at < wait.spec.arrived && !is_older {
                wait.private_states.insert(state.clone());
            }
        }
    }

    /// Keeps a landed poll until the next snapshot is due, for the waits that still need its jobs. Other waits on it are
    /// planned again.
    fn throttle(&mut self, id: PollId, landing: Option<&Landing>, pace: Pace, now: Instant) {
        let Some(poll) = self.state.poll(id) else { return };
        let needs_next = |id: &WaitId| {
            let wait = self.state.wait(*id).filter(|wait| wait.phase == WaitPhase::Waiting);
            wait.is_some_and(|wait| {
                !wait.is_immediate(&self.timing)
                    && !self.is_past_deadline(wait, now)
                    && poll.spec.jobs.iter().any(|job| self.reached_state(wait, job).is_none())
            })
        };
        let others: Vec<WaitId> = poll.waits.iter().copied().filter(|id| !needs_next(id)).collect();
        if others.len() == poll.waits.len() {
            return self.release(id, landing, now);
        }
        let until = self.next_snapshot_at(id, poll, poll.attempted_at, pace, now);
        if let Some(poll) = self.state.poll_mut(id) {
            (poll.chain.since, poll.chain.last_read) = (poll.chain.since.or(Some(now)), Some(now));
        }
        self.state.set_poll_phase(id, PollPhase::Throttled { until });
        others.iter().for_each(|wait| self.state.detach(*wait, id));
        self.attach_or_open_all(others, landing, now);
    }

    /// Returns when the next snapshot of a chain is due. `read_from`: the last one tells nothing to waits that came later.
    fn next_snapshot_at(
        &self,
        id: PollId,
        poll: &Poll,
        read_from: Instant,
        pace: Pace,
        now: Instant,
    ) -> Instant {
        if let Some((_, until)) = poll.retry_after {
            return until.max(now + pace.min); // the hint of the vendor takes the place of the gap
        }
        let gap = match poll.chain.since {
            Some(since) => pace.gap(now.saturating_duration_since(since)),
            None => pace.first_gap(id),
        };
        // P1: the job may have changed between the reading and the arrival of the newest wait.
        let newest = poll.waits.iter().next_back().and_then(|wait| self.state.wait(*wait));
        let is_joining = newest.is_some_and(|wait| wait.spec.arrived > read_from);
        now + if is_joining { gap.min(pace.gap_of_joining()) } else { gap }
    }

    /// Counts a landed snapshot as the last read of the chains whose jobs it asked for: those of other waits, where it was a
    /// client's own request or one at a deadline.
    fn postpone(&mut self, landed: PollId, pace: Pace, now: Instant) {
        let Some(poll) = self.state.poll(landed) else { return };
        let (read_from, hint) = (poll.attempted_at, poll.retry_after);
        let is_read = |id: &PollId| {
            let other = self.state.poll(*id).filter(|_| *id != landed);
            other.is_some_and(|other| {
                matches!(other.phase, PollPhase::Throttled { .. })
                    && other.spec.jobs.is_subset(&poll.spec.jobs)
            })
        };
        let jobs = poll.spec.jobs.iter();
        let index = self.state.job_index();
        let chains: Vec<PollId> =
            jobs.flat_map(|job| index.polls_for(poll.spec.domain, job)).filter(is_read).collect();
        for id in chains {
            let Some(poll) = self.state.poll_mut(id) else { continue };
            let PollPhase::Throttled { until } = poll.phase else { continue };
            poll.chain.last_read = Some(now);
            if hint.is_some_and(|(_, end)| end > until) {
                poll.retry_after = hint;
            }
            let Some(poll) = self.state.poll(id) else { continue };
            let until = until.max(self.next_snapshot_at(id, poll, read_from, pace, now));
            self.state.set_poll_phase(id, PollPhase::Throttled { until });
        }
    }

    /// Returns when the jobs of a new wait were last read, if that was so lately that a wait which joined their chain would
    /// not get the next snapshot yet.
    pub(super) fn read_lately(
        &self,
        id: WaitId,
        jobs: &JobSet,
        origin: PlanOrigin,
        now: Instant,
    ) -> Option<Instant> {
        let (pace, wait) = (self.timing.pace?, self.state.wait(id)?);
        let is_new = wait.phase == WaitPhase::Waiting && !wait.opened && !origin.is_reopen;
        if !is_new || wait.is_immediate(&self.timing) {
            return None;
        }
        let read_at = |job: &JobId| {
            let seen = self.state.job_index().state(wait.spec.domain, job);
            later(seen, wait.private_states.get(job)).map(|state| state.as_of)
        };
        let oldest = jobs.iter().map(read_at).min().flatten()?;
        (oldest + pace.gap_of_joining() > now).then_some(oldest)
    }

    /// Begins a chain whose first snapshot was read before it: that of a plain request. Its next one is due as if the wait
    /// had joined the chain.
    pub(super) fn open_later(&mut self, opener: WaitId, jobs: JobSet, read_at: Instant, now: Instant) {
        let (Some(pace), Some(wait)) = (self.timing.pace, self.state.wait(opener)) else { return };
        let spec = PollSpec { domain: wait.spec.domain, form: wait.spec.form, jobs, goal: Goal::Now };
        let chain = ChainLink { last_read: Some(read_at), ..ChainLink::default() };
        let poll = Poll { attempt: AttemptState::Done, chain, ..Poll::new(spec, None, now) };
        let id = self.add_poll(poll);
        self.state.attach(opener, [id]);
        self.state.set_poll_phase(id, PollPhase::Throttled { until: read_at + pace.gap_of_joining() });
    }

    /// Brings the next snapshots of the chains that a new wait joined forward, unless a hint of the vendor is in force.
    pub(super) fn bring_forward(&mut self, id: WaitId, now: Instant) {
        let (Some(pace), Some(wait)) = (self.timing.pace, self.state.wait(id)) else { return };
        let due = |id: &PollId| {
            let poll = self.state.poll(*id).filter(|poll| poll.retry_after.is_none())?;
            let PollPhase::Throttled { until } = poll.phase else { return None };
            Some((*id, until.min(now.max(poll.chain.last_read? + pace.gap_of_joining()))))
        };
        let chains: Vec<(PollId, Instant)> = wait.attached_polls.iter().filter_map(due).collect();
        for (id, until) in chains {
            self.state.set_poll_phase(id, PollPhase::Throttled { until });
        }
    }

    /// Returns the start of the chain that a new poll continues: that of another poll for the same jobs.
    pub(super) fn chain_since(&self, spec: &PollSpec) -> Option<Instant> {
        self.timing.pace?;
        let polls = self.state.job_index().polls_for(spec.domain, spec.jobs.iter().next()?);
        let polls = polls.filter_map(|id| self.state.poll(id)).filter(|poll| poll.spec.jobs == spec.jobs);
        polls.filter_map(|poll| poll.chain.since).min()
    }

    /// Handles the failure of a client's own request. The client gets the failure, and the chain goes on: the clients of
    /// the other waits did not make that request (P12).
    pub(super) fn plain_request_failed(&mut self, id: PollId, failure: &Failure, now: Instant) {
        let (Some(pace), Some(poll)) = (self.timing.pace, self.state.poll(id)) else { return };
        let (opener, attempted_at, waits) = (poll.opener, poll.attempted_at, poll.waits.clone());
        for wait_id in waits {
            let Some(wait) = self.state.wait(wait_id) else { continue };
            let is_immediate = !wait.is_in_snapshot() && wait.is_immediate(&self.timing);
            if is_immediate && failure.concerns(wait.spec.arrived, attempted_at) {
                self.settle_failed(wait_id, failure.clone(), opener == Some(wait_id), now);
            }
        }
        self.throttle(id, None, pace, now);
    }

    /// Returns whether the wait is past its deadline and a pause of the upstream keeps the state from it.
    pub(super) fn is_ended_by_pause(&self, wait: &Wait, now: Instant) -> bool {
        let is_paused = |id: &PollId| {
            let attempt = self.state.poll(*id).map(|poll| poll.attempt);
            matches!(attempt, Some(AttemptState::Paused { until, .. }) if until > now)
        };
        self.timing.pace.is_some() && wait.is_in_snapshot() && wait.attached_polls.iter().any(is_paused)
    }

    /// Returns the last known states for a wait past its deadline whose polls the upstream or the gateway made wait.
    pub(super) fn last_known_in_pause(&self, wait: &Wait) -> Option<Vec<JobState>> {
        self.timing.pace?;
        let is_kept = |id: &PollId| {
            let attempt = self.state.poll(*id).map(|poll| poll.attempt);
            matches!(attempt, Some(AttemptState::Queued | AttemptState::Paused { .. }))
        };
        let is_ended = wait.is_in_snapshot() && wait.attached_polls.iter().any(is_kept);
        is_ended.then(|| self.last_seen(wait)).flatten()
    }

    /// Forgets the states of a job that an action changed. Where the upstream never holds, snapshots that began before do not
    /// count either, and a new one follows at once for the waits.
    ///
    /// A held poll keeps its waits: its answer is read after the action.
    pub(super) fn job_changed(&mut self, domain: KeyDomain, job: &JobId, now: Instant) {
        let waits = self.state.forget_job(domain, job);
        let mut origin = PlanOrigin::default();
        if self.timing.pace.is_some() {
            origin.is_reopen = true;
            let polls: Vec<PollId> = self.state.job_index().polls_for(domain, job).collect();
            for id in polls {
                let Some(poll) = self.state.poll_mut(id) else { continue };
                origin.chain_since = origin.chain_since.or(poll.chain.since);
                match (poll.phase, poll.attempt) {
                    (PollPhase::Throttled { .. }, _) => drop(self.forget_poll(id)),
                    (_, AttemptState::Sending | AttemptState::Held { .. }) => {
                        poll.chain.is_outdated = true;
                        let waits = poll.waits.clone();
                        waits.iter().for_each(|wait| self.state.detach(*wait, id));
                        if !waits.is_empty() {
                            self.let_linger([id], now);
                        }
                    }
                    _ => {}
                }
            }
        }
        for id in self.in_planning_order(waits) {
            self.plan_again(id, None, origin, now);
            self.ask_again(id, job, origin, now);
        }
    }

    /// Opens a snapshot of a changed job for a wait that has an open poll of its own for other jobs only.
    fn ask_again(&mut self, id: WaitId, job: &JobId, origin: PlanOrigin, now: Instant) {
        let Some(wait) = self.state.wait(id) else { return };
        let job = JobSet::new([job.clone()]);
        if self.timing.pace.is_some() && self.lacks_poll(wait, &job) {
            self.open(id, job, origin, now);
        }
    }
}

/// Returns the state that is certain for the later moment.
fn later<'a>(one: Option<&'a JobState>, other: Option<&'a JobState>) -> Option<&'a JobState> {
    one.into_iter().chain(other).max_by_key(|state| (state.as_of, state.seen_at))
}
