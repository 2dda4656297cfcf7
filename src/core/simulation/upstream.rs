//! The upstream of a run: it holds and answers attempts by the jobs' true timelines, and fails as planned.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{
    Event, Failure, Goal, HOLD, Input, PollClass, PollId, PollOutcome, PollProgress, PollSpec, RetryAdvice,
    Run, domain,
};
use crate::core::job::{Head, JobState, Reply};

/// An attempt of a poll that is under way.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) number: u64,
    pub(super) began: Duration,
    pub(super) is_sent: bool,
}

/// What a reply of the upstream was about.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) spec: Arc<PollSpec>,
    pub(super) began: Duration,
    pub(super) why: Why,
}

/// Why the upstream answered with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    KeyErrors,
    /// A 429, and until when it asked for a pause.
    Refused {
        until: Duration,
    },
    /// A proxy ended the poll.
    Cut,
}

impl Run {
    pub(super) fn is_current(&self, id: PollId, number: u64) -> bool {
        self.attempts.get(&id).is_some_and(|attempt| attempt.number == number)
    }

    /// An attempt begins: it connects, is sent and arrives, or finds nobody.
    pub(super) fn begin(&mut self, id: PollId) {
        if !self.specs.contains_key(&id) {
            return; // aborted by what was done just before, as the hub finds out too
        }
        let now = self.instant();
        self.check_start(id);
        self.attempt_count += 1;
        let number = self.attempt_count;
        self.attempts.insert(id, Attempt { number, began: self.now, is_sent: false });
        self.coalescer.handle(Input::Progress(id, PollProgress::AttemptStarted), now);
        let connected = self.now + self.hop();
        self.trace(|| format!("{id:?} starts"));
        if self.plan.is_away(connected) || self.plan.is_away(self.now) {
            return self.at(connected, Event::Fail(id, number, Failure::Unreachable, RetryAdvice::BackOff));
        }
        self.at(connected, Event::Sent(id, number));
        let arrives = connected + self.hop();
        self.at(arrives, Event::Arrive(id, number));
    }

    /// The upstream knows by itself when it will answer.
    pub(super) fn arrive(&mut self, id: PollId) {
        let Attempt { number, began, .. } = self.attempts[&id];
        let spec = Arc::clone(&self.specs[&id]);
        let jobs: Vec<usize> = (0..self.plan.jobs.len())
            .filter(|&n| {
                let job = &self.plan.jobs[n];
                domain(job.domain) == spec.domain && spec.jobs.contains(&job.id)
            })
            .collect();
        let back = self.now + self.hop();
        if let Some((number_of_key, range)) = &self.plan.key_errors
            && domain(*number_of_key) == spec.domain
            && range.contains(&self.now)
        {
            let reply = self.reply(&spec, began, Why::KeyErrors);
            return self
                .at(back, Event::Fail(id, number, Failure::UpstreamError(reply), RetryAdvice::BackOff));
        }
        if let Some(pause) = jobs.iter().filter_map(|&job| self.plan.jobs[job].refused).max() {
            let reply = self.reply(&spec, began, Why::Refused { until: back + pause });
            let advice = RetryAdvice::PauseKey(pause);
            return self.at(back, Event::Fail(id, number, Failure::UpstreamError(reply), advice));
        }
        let goal = self.rungs.iter().position(|&rung| spec.goal == Goal::Rung(rung)).unwrap_or(0);
        let reached = jobs.iter().map(|&n| self.plan.jobs[n].reaches_at(goal)).collect::<Option<Vec<_>>>();
        let reached = reached.map(|all| all.into_iter().fold(self.now, Duration::max));
        let answers = match reached {
            _ if spec.goal == Goal::Now => self.now,
            Some(at) if at <= self.now + HOLD => at,
            Some(_) | None => self.now + HOLD,
        };
        if let Some(after) = self.plan.cuts_after
            && answers > self.now + after
        {
            let cut = self.now + after + self.hop();
            let reply = self.reply(&spec, began, Why::Cut);
            return self
                .at(cut, Event::Fail(id, number, Failure::UpstreamError(reply), RetryAdvice::BackOffHeld));
        }
        let read = answers + self.hop();
        let mut states: Vec<JobState> =
            jobs.iter().map(|&n| self.state(n, self.plan.jobs[n].rung_at(answers), read)).collect();
        self.rng.shuffle(&mut states);
        let lands = read + self.hop();
        self.at(lands, Event::Land(id, number, PollOutcome::Jobs(states)));
    }

    /// A state as the upstream tells it; its body says whose, which and where.
    pub(super) fn state(&self, job: usize, rung: usize, read: Duration) -> JobState {
        let job = &self.plan.jobs[job];
        JobState {
            id: job.id.clone(),
            rung: Some(self.rungs[rung]),
            body: Bytes::from(format!("{} {} {rung}", job.domain, job.id)),
            head: Arc::new(Head::default()),
            seen_at: self.zero + read,
        }
    }

    fn reply(&mut self, spec: &Arc<PollSpec>, began: Duration, why: Why) -> Arc<Reply> {
        self.said.push(Said { spec: Arc::clone(spec), began, why });
        let body = Bytes::from((self.said.len() - 1).to_string());
        Arc::new(Reply { status: 500, head: Arc::new(Head::default()), body })
    }

    /// All connections are lost in this instant: each attempt on one of them fails within a hop.
    pub(super) fn reset_all(&mut self) {
        self.trace(|| "all connections are lost".to_owned());
        let cut: Vec<PollId> =
            self.attempts.iter().filter(|(_, attempt)| attempt.is_sent).map(|(id, _)| *id).collect();
        cut.into_iter().for_each(|id| self.cut(id));
    }

    pub(super) fn reset_one(&mut self) {
        let sent = self.attempts.iter().filter(|(_, attempt)| attempt.is_sent);
        let sent: Vec<PollId> = sent.map(|(id, _)| *id).collect();
        if let Some(&id) = self.rng.choice(&sent) {
            self.cut(id);
        }
    }

    /// The connection of an attempt is lost: what was planned for it does not happen.
    fn cut(&mut self, id: PollId) {
        self.attempt_count += 1;
        let number = self.attempt_count;
        self.attempts.get_mut(&id).unwrap().number = number;
        let fails = self.now + self.hop();
        let advice = if self.rng.u8(..8) == 0 { RetryAdvice::Reconnect } else { RetryAdvice::BackOff };
        self.at(fails, Event::Fail(id, number, Failure::Unreachable, advice));
    }

    /// The class of a poll, by its goal.
    pub(super) fn class(&self, spec: &PollSpec) -> PollClass {
        match spec.goal {
            Goal::Now => PollClass::Plain,
            Goal::Rung(rung) if rung == self.rungs[0] => PollClass::Snapshot,
            Goal::Rung(_) => PollClass::LongPoll,
        }
    }
}
