//! Step 3, the upstream: holds and answers attempts by the jobs' true timelines, and fails as planned.
//!
//! ```text
//!   start_attempt ──▶ Sent ──▶ Arrive ──▶ arrive: decides the answer ──▶ Land or Fail
//!         │ outage                                  reset_all, reset_one ──▶ Fail
//!         └─────▶ Fail
//! ```
//!
//! Each arrow takes a random time up to the plan's `hop`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{
    Failure, Goal, HOLD, Input, PollClass, PollId, PollOutcome, PollProgress, PollSpec, RetryAdvice, Run,
    RunEvent, domain,
};
use crate::core::job::{JobState, ResponseHead, UpstreamResponse};

/// An attempt of a poll that is under way.
#[derive(Debug)]
pub(super) struct OpenAttempt {
    /// Number of the attempt. Events of an older number are void.
    pub(super) number: u64,
    pub(super) began: Duration,
    pub(super) is_sent: bool,
}

/// An error response of the upstream.
#[derive(Debug)]
pub(super) struct ErrorReply {
    pub(super) spec: Arc<PollSpec>,
    pub(super) began: Duration,
    pub(super) cause: ErrorCause,
}

/// Reason for an error response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ErrorCause {
    /// The plan's `key_errors`.
    KeyErrors,
    /// A 429, with the end of its pause.
    Refused { until: Duration },
    /// The proxy ended the poll.
    Cut,
}

impl Run {
    /// Returns whether this attempt is still under way.
    pub(super) fn is_current(&self, id: PollId, number: u64) -> bool {
        self.attempts.get(&id).is_some_and(|attempt| attempt.number == number)
    }

    /// Starts an attempt: it connects and sends its request, or fails to connect.
    pub(super) fn start_attempt(&mut self, id: PollId) {
        if !self.specs.contains_key(&id) {
            return; // an output before this one aborted the poll; the hub sees such starts too
        }
        let now = self.instant();
        self.check_attempt(id);
        self.attempt_count += 1;
        let number = self.attempt_count;
        self.attempts.insert(id, OpenAttempt { number, began: self.now, is_sent: false });
        self.coalescer.handle(Input::Progress(id, PollProgress::AttemptStarted), now);
        let connected = self.now + self.hop();
        self.trace(|| format!("{id:?} starts"));
        if self.plan.is_unreachable(connected) || self.plan.is_unreachable(self.now) {
            return self
                .at(connected, RunEvent::Fail(id, number, Failure::Unreachable, RetryAdvice::BackOff));
        }
        self.at(connected, RunEvent::Sent(id, number));
        let arrives = connected + self.hop();
        self.at(arrives, RunEvent::Arrive(id, number));
    }

    /// Decides the answer to a request that has arrived, and the time of that answer.
    pub(super) fn arrive(&mut self, id: PollId) {
        let OpenAttempt { number, began, .. } = self.attempts[&id];
        let spec = Arc::clone(&self.specs[&id]);
        let jobs: Vec<usize> = (0..self.plan.jobs.len())
            .filter(|&n| {
                let job = &self.plan.jobs[n];
                domain(job.domain) == spec.domain && spec.jobs.contains(&job.id)
            })
            .collect();
        let back = self.now + self.hop();
        if let Some((failing_key, range)) = &self.plan.key_errors
            && domain(*failing_key) == spec.domain
            && range.contains(&self.now)
        {
            let reply = self.error_reply(&spec, began, ErrorCause::KeyErrors);
            return self
                .at(back, RunEvent::Fail(id, number, Failure::UpstreamError(reply), RetryAdvice::BackOff));
        }
        if let Some(pause) = jobs.iter().filter_map(|&job| self.plan.jobs[job].refused).max() {
            let reply = self.error_reply(&spec, began, ErrorCause::Refused { until: back + pause });
            let advice = RetryAdvice::PauseKey(Some(pause));
            return self.at(back, RunEvent::Fail(id, number, Failure::UpstreamError(reply), advice));
        }
        let goal = self.rungs.iter().position(|&rung| spec.goal == Goal::Rung(rung)).unwrap_or(0);
        let reached =
            jobs.iter().map(|&n| self.plan.jobs[n].steps.reaches_at(goal)).collect::<Option<Vec<_>>>();
        let reached = reached.map(|all| all.into_iter().fold(self.now, Duration::max));
        let answered_at = match reached {
            _ if spec.goal == Goal::Now => self.now,
            Some(at) if at <= self.now + HOLD => at,
            Some(_) | None => self.now + HOLD,
        };
        if let Some(after) = self.plan.cuts_after
            && answered_at > self.now + after
        {
            let cut = self.now + after + self.hop();
            let reply = self.error_reply(&spec, began, ErrorCause::Cut);
            return self.at(
                cut,
                RunEvent::Fail(id, number, Failure::UpstreamError(reply), RetryAdvice::BackOffHeld),
            );
        }
        let read = answered_at + self.hop();
        let mut states: Vec<JobState> =
            jobs.iter().map(|&n| self.state(n, self.plan.jobs[n].steps.rung_at(answered_at), read)).collect();
        self.rng.shuffle(&mut states);
        let lands = read + self.hop();
        self.at(lands, RunEvent::Land(id, number, PollOutcome::Jobs(states)));
    }

    /// Returns a state as the upstream reports it. The body names key, job and rung, so that the oracle can check it.
    pub(super) fn state(&self, job: usize, rung: usize, read: Duration) -> JobState {
        let job = &self.plan.jobs[job];
        JobState {
            id: job.id.clone(),
            rung: Some(self.rungs[rung]),
            body: Bytes::from(format!("{} {} {rung}", job.domain, job.id)),
            head: Arc::new(ResponseHead::default()),
            seen_at: self.zero + read,
            as_of: self.zero + read,
        }
    }

    /// Records an error response. Its body is its index.
    fn error_reply(
        &mut self,
        spec: &Arc<PollSpec>,
        began: Duration,
        cause: ErrorCause,
    ) -> Arc<UpstreamResponse> {
        self.error_replies.push(ErrorReply { spec: Arc::clone(spec), began, cause });
        let body = Bytes::from((self.error_replies.len() - 1).to_string());
        Arc::new(UpstreamResponse { status: 500, head: Arc::new(ResponseHead::default()), body })
    }

    /// Breaks all connections: each attempt on one of them fails within a hop.
    pub(super) fn reset_all(&mut self) {
        self.trace(|| "all connections break".to_owned());
        let sent: Vec<PollId> =
            self.attempts.iter().filter(|(_, attempt)| attempt.is_sent).map(|(id, _)| *id).collect();
        sent.into_iter().for_each(|id| self.break_connection(id));
    }

    /// Breaks the connection of one attempt.
    pub(super) fn reset_one(&mut self) {
        let sent = self.attempts.iter().filter(|(_, attempt)| attempt.is_sent);
        let sent: Vec<PollId> = sent.map(|(id, _)| *id).collect();
        if let Some(&id) = self.rng.choice(&sent) {
            self.break_connection(id);
        }
    }

    /// Breaks the connection of an attempt. A new number voids the events that were planned for the attempt.
    fn break_connection(&mut self, id: PollId) {
        self.attempt_count += 1;
        let number = self.attempt_count;
        self.attempts.get_mut(&id).unwrap().number = number;
        let fails = self.now + self.hop();
        let advice = if self.rng.u8(..8) == 0 { RetryAdvice::Reconnect } else { RetryAdvice::BackOff };
        self.at(fails, RunEvent::Fail(id, number, Failure::Unreachable, advice));
    }

    /// Returns the class of a poll, by its goal.
    pub(super) fn class(&self, spec: &PollSpec) -> PollClass {
        match spec.goal {
            Goal::Now => PollClass::Plain,
            Goal::Rung(rung) if rung == self.rungs[0] => PollClass::Snapshot,
            Goal::Rung(_) | Goal::Not(_) => PollClass::LongPoll,
        }
    }
}
