//! Step 3, turns: when a poll is attempted, and what follows a failed attempt.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{DRAIN, PacedEvent, PacedRun};
use crate::core::backoff::Backoff;
use crate::core::breaker::BreakerRules;
use crate::core::coalescer::{Cause, Failure, Input, PollId, PollOutcome, PollProgress, PollSpec};
use crate::core::scheduler::{
    AttemptResult, PollClass, PollRequest, PollScheduler, RetryAdvice, SchedulerConfig, SchedulerOutput,
};

pub(super) enum Turns {
    /// Turns at random times, pauses of keys, and three retries.
    Model {
        /// End of the pause of each key.
        paused: BTreeMap<u8, Duration>,
    },
    Scheduler(Box<PollScheduler>),
}

impl Turns {
    pub(super) fn scheduler(seed: u64, key_interval: Duration, now: Instant) -> Self {
        let config = SchedulerConfig {
            max_polls: 512,
            interval: Duration::ZERO,
            key_interval,
            retries: 2,
            retry_for: DRAIN,
            backoff: Backoff { first: Duration::from_millis(200), cap: Duration::from_secs(2) },
            breaker: BreakerRules { failures: 8, cooldown: Duration::from_secs(5) },
        };
        let mut scheduler = PollScheduler::new(config, seed);
        // Before the first answer, polls are given up after `retries`.
        let jobs = crate::core::job::JobSet::new([crate::core::job::JobId::new("warm-up").unwrap()]);
        let request = PollRequest { domain: super::domain(99), jobs, class: PollClass::Chain };
        let id = PollId(u64::MAX);
        scheduler.request(id, request, now);
        assert_eq!(scheduler.poll_output(), Some(SchedulerOutput::Start(id)));
        scheduler.ended(id, AttemptResult::Answered, now);
        Self::Scheduler(Box::new(scheduler))
    }

    fn as_scheduler(&mut self) -> Option<&mut PollScheduler> {
        match self {
            Self::Model { .. } => None,
            Self::Scheduler(scheduler) => Some(scheduler),
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Model { .. } => None,
            Self::Scheduler(scheduler) => scheduler.poll_timeout(),
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if let Some(scheduler) = self.as_scheduler() {
            scheduler.handle_timeout(now);
        }
    }

    pub(super) fn sent(&mut self, id: PollId, now: Instant) {
        if let Some(scheduler) = self.as_scheduler() {
            scheduler.sent(id, now);
        }
    }

    pub(super) fn answered(&mut self, id: PollId, now: Instant) {
        if let Some(scheduler) = self.as_scheduler() {
            scheduler.ended(id, AttemptResult::Answered, now);
        }
    }

    pub(super) fn withdraw(&mut self, id: PollId, now: Instant) {
        if let Some(scheduler) = self.as_scheduler() {
            scheduler.withdraw(id, now);
        }
    }
}

impl PacedRun {
    /// Gives a poll that was just opened its turn: at once, after the pause of its key, or after others.
    pub(super) fn queue(&mut self, id: PollId) {
        let (now, class) = (self.instant(), class(self.polls[&id].cause));
        let PollSpec { domain, ref jobs, .. } = self.polls[&id].spec;
        let paused = match &mut self.turns {
            Turns::Scheduler(scheduler) => {
                return scheduler.request(id, PollRequest { domain, jobs: jobs.clone(), class }, now);
            }
            Turns::Model { paused } => paused.get(&domain.0[0]).copied().unwrap_or_default(),
        };
        if paused > self.now && class != PollClass::Plain {
            let retry_after = paused - self.now;
            self.at(paused, PacedEvent::Start(id));
            let failure = Failure::KeyRateLimited { retry_after };
            self.coalescer.handle(Input::Progress(id, PollProgress::Paused(failure, retry_after)), now);
        } else if self.plan.has_queue && self.rng.u8(..6) == 0 {
            let turn = self.now + Duration::from_millis(self.rng.u64(..3000));
            self.at(turn, PacedEvent::Start(id));
        } else {
            self.start_attempt(id);
        }
    }

    /// Takes an output of the scheduler. Returns whether there was one.
    pub(super) fn take_turn(&mut self) -> bool {
        let now = self.instant();
        let Some(output) = self.turns.as_scheduler().and_then(PollScheduler::poll_output) else {
            return false;
        };
        match output {
            SchedulerOutput::Start(id) => self.start_attempt(id),
            SchedulerOutput::BackOff(id, failure, pause) => {
                self.coalescer.handle(Input::Progress(id, PollProgress::BackingOff(failure, pause)), now);
                if self.coalescer.has_newcomer(id) {
                    self.try_now(id);
                }
            }
            SchedulerOutput::Pause(id, failure, pause) => {
                self.trace(|| format!("{id:?} is paused for {pause:?}: {failure:?}"));
                self.coalescer.handle(Input::Progress(id, PollProgress::Paused(failure, pause)), now);
            }
            SchedulerOutput::GiveUp(id, failure) => self.give_up(id, failure),
        }
        true
    }

    /// Handles a failed attempt.
    pub(super) fn fail(&mut self, id: PollId, failure: Failure, advice: RetryAdvice) {
        let now = self.instant();
        let poll = self.polls.get_mut(&id).unwrap();
        (poll.began, poll.failures) = (None, poll.failures + 1);
        let (failures, class, key) = (poll.failures, class(poll.cause), poll.spec.domain.0[0]);
        let paused = match &mut self.turns {
            Turns::Scheduler(scheduler) => {
                return scheduler.ended(id, AttemptResult::Failed(failure, advice), now);
            }
            Turns::Model { paused } => paused.entry(key).or_default(),
        };
        let (pause, progress) = match advice {
            RetryAdvice::PauseKey(_) if class == PollClass::Plain => return self.give_up(id, failure),
            RetryAdvice::PauseKey(pause) => {
                let pause = pause.unwrap_or(Duration::from_secs(1));
                *paused = (self.now + pause).max(*paused);
                (pause, PollProgress::Paused(failure, pause))
            }
            _ if failures > 3 => return self.give_up(id, failure),
            _ => {
                let pause = Duration::from_millis(self.rng.u64(..1000));
                (pause, PollProgress::BackingOff(failure, pause))
            }
        };
        self.at(self.now + pause, PacedEvent::Start(id));
        self.coalescer.handle(Input::Progress(id, progress), now);
    }

    fn give_up(&mut self, id: PollId, failure: Failure) {
        self.trace(|| format!("{id:?} is given up: {failure:?}"));
        self.polls.remove(&id);
        self.coalescer.handle(Input::Landed(id, PollOutcome::Failed(failure)), self.instant());
    }
}

/// Returns the class of a poll with this cause, as the hub chooses it.
fn class(cause: Cause) -> PollClass {
    match cause {
        Cause::Snapshot | Cause::NoCache => PollClass::Plain,
        Cause::Deadline => PollClass::Snapshot,
        Cause::Wait | Cause::Batch | Cause::Reopen => PollClass::Chain,
        Cause::Watch { .. } => panic!("nothing is watched where the upstream never holds"),
    }
}
