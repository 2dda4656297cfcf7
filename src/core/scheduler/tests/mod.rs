//! Scenarios of the scheduler, by subject. Time is virtual, and the tests make the attempts.

mod breaker;
mod budgets;
mod chains;
mod random_schedules;
mod rate_limits;
mod retries;
mod slots;

use std::collections::BTreeSet;

use super::keys::MAX_KEY_PAUSE;
use super::*;
use crate::core::backoff::Backoff;
use crate::core::breaker::BreakerRules;
use crate::core::coalescer::Failure;
use crate::core::job::{JobId, JobSet};

const A: KeyDomain = KeyDomain([1; 16]);
const B: KeyDomain = KeyDomain([2; 16]);
const C: KeyDomain = KeyDomain([3; 16]);
const SECOND: Duration = Duration::from_secs(1);

fn key(number: u64) -> KeyDomain {
    KeyDomain([u8::try_from(number).unwrap(); 16])
}

fn config(max_polls: usize) -> SchedulerConfig {
    SchedulerConfig {
        max_polls,
        interval: Duration::ZERO,
        key_interval: Duration::ZERO,
        retries: 2,
        retry_for: Duration::from_secs(30),
        backoff: Backoff { first: Duration::from_millis(100), cap: SECOND },
        breaker: BreakerRules { failures: 5, cooldown: Duration::from_secs(5) },
    }
}

fn jobs(id: u64) -> JobSet {
    JobSet::new([JobId::new(&format!("job{id}")).unwrap()])
}

/// A scheduler with its own clock. Poll n asks for job n alone.
struct Scenario {
    scheduler: PollScheduler,
    now: Instant,
}

impl Scenario {
    fn new(config: SchedulerConfig) -> Self {
        Self { scheduler: PollScheduler::new(config, 1), now: crate::clock::now() }
    }

    /// Creates a scenario in which the upstream has answered once since the start.
    fn after_first_success(config: SchedulerConfig) -> Self {
        let mut s = Self::new(config);
        s.long_poll(1_000_000, C);
        assert_eq!(s.starts(), [1_000_000]);
        s.answer(1_000_000);
        s
    }

    fn request(&mut self, id: u64, domain: KeyDomain, class: PollClass) {
        self.scheduler.request(PollId(id), PollRequest { domain, jobs: jobs(id), class }, self.now);
    }

    fn long_poll(&mut self, id: u64, domain: KeyDomain) {
        self.request(id, domain, PollClass::LongPoll);
    }

    fn outputs(&mut self) -> Vec<SchedulerOutput> {
        std::iter::from_fn(|| self.scheduler.poll_output()).collect()
    }

    fn starts(&mut self) -> Vec<u64> {
        let start = |output| match output {
            SchedulerOutput::Start(PollId(id)) => Some(id),
            SchedulerOutput::BackOff(..) | SchedulerOutput::Pause(..) | SchedulerOutput::GiveUp(..) => None,
        };
        self.outputs().into_iter().filter_map(start).collect()
    }

    fn sorted_starts(&mut self) -> Vec<u64> {
        let mut starts = self.starts();
        starts.sort_unstable();
        starts
    }

    /// Returns the pauses among the outputs: poll, reason and seconds.
    fn pauses(&mut self) -> Vec<(u64, &'static str, u64)> {
        let pause = |output| match output {
            SchedulerOutput::Pause(PollId(id), failure, pause) => {
                Some((id, failure.reason(), pause.as_secs()))
            }
            SchedulerOutput::BackOff(..) | SchedulerOutput::Start(_) | SchedulerOutput::GiveUp(..) => None,
        };
        self.outputs().into_iter().filter_map(pause).collect()
    }

    fn given_up(&mut self) -> Vec<(u64, &'static str)> {
        let given_up = |output| match output {
            SchedulerOutput::GiveUp(PollId(id), failure) => Some((id, failure.reason())),
            SchedulerOutput::BackOff(..) | SchedulerOutput::Start(_) | SchedulerOutput::Pause(..) => None,
        };
        self.outputs().into_iter().filter_map(given_up).collect()
    }

    fn answer(&mut self, id: u64) {
        self.scheduler.ended(PollId(id), AttemptResult::Answered, self.now);
    }

    fn sent(&mut self, id: u64) {
        self.scheduler.sent(PollId(id), self.now);
    }

    /// Ends an attempt with a transport fault.
    fn lose_connection(&mut self, id: u64) {
        self.ended(id, Failure::Unreachable, RetryAdvice::BackOff);
    }

    /// Ends an attempt with an error that the upstream wrote.
    fn upstream_error(&mut self, id: u64) {
        self.ended(id, Failure::InvalidResponse(None), RetryAdvice::BackOff);
    }

    /// Ends an attempt with a 429 and this `Retry-After`.
    fn rate_limited(&mut self, id: u64, secs: u64) {
        self.ended(
            id,
            Failure::InvalidResponse(None),
            RetryAdvice::PauseKey(Some(Duration::from_secs(secs))),
        );
    }

    fn ended(&mut self, id: u64, failure: Failure, advice: RetryAdvice) {
        self.scheduler.ended(PollId(id), AttemptResult::Failed(failure, advice), self.now);
    }

    fn advance(&mut self, time: Duration) {
        self.now += time;
        self.scheduler.handle_timeout(self.now);
        assert!(self.scheduler.poll_timeout().is_none_or(|at| at > self.now));
    }

    /// Advances time from timer to timer. Returns the starts with their milliseconds; each such attempt fails at once
    /// if `is_unreachable`.
    fn run_timers(&mut self, time: Duration, is_unreachable: bool) -> Vec<(u128, u64)> {
        let (from, until, mut starts) = (self.now, self.now + time, Vec::new());
        loop {
            for id in self.starts() {
                starts.push(((self.now - from).as_millis(), id));
                if is_unreachable {
                    self.lose_connection(id);
                }
            }
            match self.scheduler.poll_timeout().filter(|at| *at <= until) {
                Some(at) => {
                    self.now = at;
                    self.scheduler.handle_timeout(at);
                }
                None => break,
            }
        }
        self.now = until;
        starts
    }
}
