//! The simulated upstream, and the attempts of the polls on their way there and back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Sweep, SweepEvent, SweepJob, UpstreamMode, domain};
use crate::core::coalescer::{Failure, Input, PollId, PollOutcome, PollProgress, PollSpec};
use crate::core::job::{JobState, ResponseHead, UpstreamResponse};
use crate::core::route::Goal;

#[derive(Debug)]
pub(super) struct OpenPoll {
    pub(super) spec: PollSpec,
    pub(super) opened_at: Duration,
    pub(super) attempted_at: Duration,
    pub(super) is_watch: bool,
    /// Whether an attempt was made.
    pub(super) was_attempted: bool,
    /// Since when the request of the newest attempt is on a connection.
    pub(super) held_since: Option<Duration>,
    /// Whether a wait was attached, and since when none is.
    pub(super) had_waits: bool,
    pub(super) idle_since: Option<Duration>,
    /// Clients whose waits were attached after the last event.
    pub(super) clients: Vec<usize>,
}

impl OpenPoll {
    pub(super) fn new(spec: PollSpec, is_watch: bool, now: Duration) -> Self {
        Self {
            spec,
            opened_at: now,
            attempted_at: now,
            is_watch,
            was_attempted: false,
            held_since: None,
            had_waits: false,
            idle_since: None,
            clients: Vec::new(),
        }
    }
}

/// A reply without jobs. The body of the reply is its number, so that the oracle finds the poll that it answers.
#[derive(Debug)]
pub(super) struct SentReply {
    pub(super) spec: PollSpec,
    pub(super) attempted_at: Duration,
    /// Whether the poll ends with it.
    pub(super) is_final: bool,
    /// End of the pause that the upstream asked for with it.
    pub(super) paused_until: Duration,
}

impl Sweep {
    /// Starts the first attempt of a poll that was just opened. A faulty upstream may make it wait for its turn first.
    pub(super) fn queue_or_start(&mut self, id: PollId) {
        match self.rng.u8(..12) {
            0 | 1 if self.mode == UpstreamMode::Faulty => {
                let turn = self.now + self.up_to(30);
                self.schedule(turn, SweepEvent::StartAttempt(id));
            }
            2 if self.mode == UpstreamMode::Faulty => {
                let retry_after = self.up_to(60);
                let turn = self.now + retry_after + self.up_to(2);
                let paused = PollProgress::Paused(Failure::KeyRateLimited { retry_after }, retry_after);
                self.schedule(self.now, SweepEvent::Suspend(id, paused));
                self.schedule(turn, SweepEvent::StartAttempt(id));
            }
            _ => self.start_attempt(id),
        }
    }

    pub(super) fn start_attempt(&mut self, id: PollId) {
        let now = self.now;
        let Some(poll) = self.open_polls.get_mut(&id) else { return };
        (poll.attempted_at, poll.held_since) = (now, None);
        let (spec, is_first) = (poll.spec.clone(), !std::mem::replace(&mut poll.was_attempted, true));
        if poll.is_watch && is_first {
            let job = self.jobs_of(&spec)[0];
            *self.watches.entry(job).or_default() += 1;
        }
        self.machine.handle(Input::Progress(id, PollProgress::AttemptStarted), self.zero + now);
        let is_slow = self.mode == UpstreamMode::Faulty && self.rng.u8(..6) == 0;
        let held_at = now + self.hop() + if is_slow { self.up_to(20) } else { Duration::ZERO };
        self.schedule(held_at, SweepEvent::Hold(id));
        if self.mode == UpstreamMode::Faulty && self.rng.u8(..3) == 0 {
            let fails_at = held_at + self.hop() + self.up_to(30);
            self.fail_attempt(id, &spec, fails_at);
        } else {
            let arrives = held_at + self.hop();
            self.schedule(arrives, SweepEvent::Arrive(id));
        }
    }

    /// Schedules a failure of the attempt: the last one, or one with a retry after a backoff or a pause.
    fn fail_attempt(&mut self, id: PollId, spec: &PollSpec, fails_at: Duration) {
        let now = self.now;
        if self.rng.u8(..3) == 0 {
            let reply = self.reply(spec, now, true);
            let outcome = PollOutcome::Failed(Failure::UpstreamError(reply));
            return self.schedule(fails_at, SweepEvent::Land(id, outcome));
        }
        let failure = Failure::UpstreamError(self.reply(spec, now, false));
        let (progress, pause) = if self.rng.bool() {
            let pause = self.up_to(60);
            (PollProgress::BackingOff(failure, pause), pause)
        } else {
            let pause = self.up_to(300);
            self.replies.last_mut().expect("the reply was just sent").paused_until = fails_at + pause;
            (PollProgress::Paused(failure, pause), pause)
        };
        self.schedule(fails_at, SweepEvent::Suspend(id, progress));
        self.schedule(fails_at + pause, SweepEvent::StartAttempt(id));
    }

    /// Returns a random time up to this number of seconds.
    fn up_to(&mut self, seconds: u64) -> Duration {
        Duration::from_millis(self.rng.u64(..seconds * 1000))
    }

    /// Receives a request at the upstream and schedules its answer.
    pub(super) fn arrive(&mut self, id: PollId) {
        let Some(poll) = self.open_polls.get(&id) else { return };
        let (spec, attempted_at) = (poll.spec.clone(), poll.attempted_at);
        let jobs = self.jobs_of(&spec);
        let is_faulty = self.mode == UpstreamMode::Faulty;
        if jobs.iter().any(|&n| self.jobs[n].is_refused) || (is_faulty && self.rng.u8(..20) == 0) {
            let reply = self.reply(&spec, attempted_at, true);
            let mut lands = self.now + self.hop();
            // A request that was accepted may be refused later.
            if is_faulty && self.has_proof && self.proof_rng.bool() {
                lands += Duration::from_millis(self.proof_rng.u64(..60_000));
            }
            return self.schedule(lands, SweepEvent::Land(id, PollOutcome::Refused(reply)));
        }
        let goal = self.rungs.iter().position(|&rung| spec.goal == Goal::Rung(rung)).unwrap_or(0);
        let reached = jobs.iter().map(|&n| self.jobs[n].steps.reaches_at(goal)).collect::<Option<Vec<_>>>();
        let reached = reached.map(|all| all.into_iter().fold(self.now, Duration::max));
        let answered_at = match reached {
            _ if spec.goal == Goal::Now => self.now,
            _ if is_faulty && self.rng.u8(..8) == 0 => self.now + self.up_to(120),
            Some(at) if at <= self.now + self.hold => at,
            Some(_) | None => self.now + self.hold,
        };
        let outcome = if is_faulty && self.rng.u8(..6) == 0 {
            PollOutcome::Unsplit(self.reply(&spec, attempted_at, true))
        } else {
            PollOutcome::Jobs(self.states_at(&jobs, answered_at))
        };
        let read_at = answered_at + self.hop();
        if let PollOutcome::Jobs(states) = &outcome {
            for state in states {
                let job = jobs.iter().find(|&&n| self.jobs[n].id == state.id);
                let rung = self.rung_number(state);
                self.sent.extend(job.zip(rung).map(|(&job, rung)| (job, rung, read_at)));
                self.sent_unknown.extend(job.filter(|_| rung.is_none()).map(|&job| (job, read_at)));
            }
        }
        let outcome = match outcome {
            PollOutcome::Jobs(states) => PollOutcome::Jobs(
                states
                    .into_iter()
                    .map(|state| JobState {
                        seen_at: self.zero + read_at,
                        as_of: self.zero + read_at,
                        ..state
                    })
                    .collect(),
            ),
            other => other,
        };
        // The caller takes the answer in a moment after it was read.
        let lands = read_at + self.hop();
        self.schedule(lands, SweepEvent::Land(id, outcome));
    }

    /// Returns the numbers of the jobs that a poll asks for.
    pub(super) fn jobs_of(&self, spec: &PollSpec) -> Vec<usize> {
        let is_asked_for = |job: &SweepJob| domain(job.domain) == spec.domain && spec.jobs.contains(&job.id);
        (0..self.jobs.len()).filter(|&n| is_asked_for(&self.jobs[n])).collect()
    }

    /// Returns the states of these jobs in random order. A faulty upstream may go back in time or use an unknown status.
    fn states_at(&mut self, jobs: &[usize], at: Duration) -> Vec<JobState> {
        let is_faulty = self.mode == UpstreamMode::Faulty;
        let has_unknown_status = is_faulty && self.rng.u8(..10) == 0;
        let back = if is_faulty && self.rng.u8(..6) == 0 { self.up_to(60) } else { Duration::ZERO };
        let mut states = Vec::new();
        let head = Arc::new(ResponseHead::default());
        for (index, &n) in jobs.iter().enumerate() {
            let rung = self.jobs[n].steps.rung_at(at.saturating_sub(back));
            let rung = (!has_unknown_status || index > 0).then_some(rung);
            states.push(JobState { head: Arc::clone(&head), ..self.state(n, rung) });
        }
        self.rng.shuffle(&mut states);
        states
    }

    /// Returns a state as of now. Its body names the key domain, the job and the status.
    pub(super) fn state(&self, job: usize, rung: Option<usize>) -> JobState {
        let SweepJob { domain, id, .. } = &self.jobs[job];
        let word = rung.map_or("odd", |rung| self.ladder.name(self.rungs[rung]));
        JobState {
            id: id.clone(),
            rung: rung.map(|rung| self.rungs[rung]),
            body: Bytes::from(format!("{domain} {id} {word}")),
            head: Arc::new(ResponseHead::default()),
            seen_at: self.zero + self.now,
            as_of: self.zero + self.now,
        }
    }

    fn reply(&mut self, spec: &PollSpec, attempted_at: Duration, is_final: bool) -> Arc<UpstreamResponse> {
        self.replies.push(SentReply {
            spec: spec.clone(),
            attempted_at,
            is_final,
            paused_until: Duration::ZERO,
        });
        let body = Bytes::from((self.replies.len() - 1).to_string());
        Arc::new(UpstreamResponse { status: 418, head: Arc::new(ResponseHead::default()), body })
    }
}
