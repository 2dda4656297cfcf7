//! Runs any schedule: attempts observe slots, interval, budgets and pauses; an outage delays no first attempt and fails no poll
//! before its time; and every poll gets a result.
//!
//! Time is virtual. This file is the owner of the scheduler, and is never late with a timer.

#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use bytes::Bytes;
use clipgate::core::backoff::Backoff;
use clipgate::core::breaker::BreakerRules;
use clipgate::core::coalescer::{Failure, FaultKind, PollId};
use clipgate::core::job::{ResponseHead, JobId, JobSet, KeyDomain, UpstreamResponse};
use clipgate::core::scheduler::{
    AttemptResult, PollClass, PollRequest, PollScheduler, RetryAdvice, SchedulerConfig, SchedulerOutput,
};
use clipgate::testing::clock;
use libfuzzer_sys::fuzz_target;

const BACKOFF: Backoff = Backoff { first: Duration::from_millis(200), cap: Duration::from_secs(2) };
const MAX_POLLS: usize = 100;
/// Slots that a key may hold for each slot that stays free. The schedules have fewer slots.
const SLOTS_PER_FREE_SLOT: usize = 16;
const SECOND: Duration = Duration::from_secs(1);
/// Time from the opening of the breaker to the first probe. Each failed probe doubles it, up to the cooldown.
const FIRST_COOLDOWN: Duration = Duration::from_millis(250);
/// Time after which a held poll counts as a success.
const HELD: Duration = Duration::from_secs(1);

/// Origin of virtual time.
static ZERO: LazyLock<Instant> = LazyLock::new(clock::now);

#[derive(Arbitrary, Debug)]
struct Schedule {
    max_polls: u8,
    interval_millis: u8,
    key_interval_millis: u8,
    retries: u8,
    retry_for_millis: u16,
    breaker_failures: u8,
    cooldown_millis: u16,
    seed: u64,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Request {
        domain: u8,
        /// Jobs of the poll, one bit each. Polls may share jobs.
        jobs: u8,
        class: u8,
    },
    /// Withdraws one of the polls.
    Withdraw(u8),
    /// A new wait attaches to one of the polls without an attempt.
    TryNow(u8),
    /// The request of one of the attempts is sent.
    Sent(u8),
    /// One of the attempts is answered.
    Answer(u8),
    Fail {
        poll: u8,
        kind: FailureKind,
        advice: Advice,
    },
    /// All attempts fail in one moment.
    FailAll,
    Pass {
        millis: u16,
    },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum FailureKind {
    Unreachable,
    Timeout,
    UpstreamError,
    InvalidResponse,
    LocalResources,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Advice {
    BackOff,
    BackOffHeld,
    Reconnect,
    PausePoll(u32),
    PauseKey(Option<u32>),
    GiveUp,
}

fuzz_target!(|schedule: Schedule| {
    let mut owner = Owner::new(&schedule);
    for step in &schedule.steps {
        owner.step(step);
        owner.drain_outputs();
    }
    owner.finish();
});

/// The owner of the scheduler, with its own record of every poll.
struct Owner {
    scheduler: PollScheduler,
    config: SchedulerConfig,
    now: Duration,
    polls: BTreeMap<PollId, Poll>,
    next_poll: u64,
    last_start: Option<Duration>,
    /// The newest start of each key.
    key_starts: BTreeMap<KeyDomain, Duration>,
    /// The upstream has answered or held a poll.
    has_succeeded: bool,
    /// Keys that got a 429. This file does not compute whether they are paused.
    refused_keys: BTreeSet<KeyDomain>,
    /// Time at which the breaker closed last; `None` while it is open.
    closed_since: Option<Duration>,
    /// The current probe of the breaker. It gives way to another one once it was silent for the cooldown.
    probe: Option<PollId>,
    /// Earliest time of the next probe, and the time to the one after it if that fails.
    probe_at: Duration,
    next_pause: Duration,
    /// Time at which the current probe was silent for the cooldown.
    silent_at: Duration,
}

struct Poll {
    domain: KeyDomain,
    class: PollClass,
    attempt: Option<Attempt>,
    /// No attempt starts before this time.
    not_before: Duration,
    /// No attempt of the poll has ended yet.
    is_new: bool,
    /// The next attempt follows a failed one.
    is_retry: bool,
    /// The upstream asked for a pause of the poll.
    is_paused: bool,
    /// First of the consecutive transport faults.
    outage_since: Option<Duration>,
    transport_faults: u32,
    errors: u32,
    /// The last attempt advised to give up.
    cannot_succeed: bool,
}

#[derive(Clone, Copy)]
struct Attempt {
    sent: Option<Duration>,
}

impl Owner {
    fn new(schedule: &Schedule) -> Self {
        let config = SchedulerConfig {
            max_polls: usize::from(schedule.max_polls % 8) + 1,
            interval: Duration::from_millis(schedule.interval_millis.into()),
            key_interval: Duration::from_millis(schedule.key_interval_millis.into()),
            retries: u32::from(schedule.retries % 5),
            retry_for: Duration::from_millis(schedule.retry_for_millis.into()),
            backoff: BACKOFF,
            breaker: BreakerRules {
                failures: u32::from(schedule.breaker_failures % 8) + 1,
                // The shortest one that the configuration allows is a millisecond.
                cooldown: Duration::from_millis(schedule.cooldown_millis.max(1).into()),
            },
        };
        Self {
            scheduler: PollScheduler::new(config, schedule.seed),
            config,
            // Later than `closed_since`.
            now: Duration::from_secs(1),
            polls: BTreeMap::new(),
            next_poll: 0,
            last_start: None,
            key_starts: BTreeMap::new(),
            has_succeeded: false,
            refused_keys: BTreeSet::new(),
            closed_since: Some(Duration::ZERO),
            probe: None,
            probe_at: Duration::ZERO,
            next_pause: Duration::ZERO,
            silent_at: Duration::ZERO,
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Request { domain, jobs, class } => self.request(domain, jobs, class),
            Step::Withdraw(number) => {
                if let Some(id) = self.pick(number, |_| true) {
                    self.polls.remove(&id);
                    self.probe.take_if(|probe| *probe == id);
                    self.scheduler.withdraw(id, self.at());
                }
            }
            Step::TryNow(number) => {
                if let Some(id) = self.pick(number, |poll| poll.attempt.is_none()) {
                    let is_backing_off = self.scheduler.is_pausing(id);
                    let poll = self.polls.get_mut(&id).expect("pick returns a known poll");
                    if is_backing_off {
                        assert!(poll.is_retry, "{id:?} backs off without a reason");
                        (poll.is_retry, poll.not_before) = (false, self.now);
                    }
                    self.scheduler.try_now(id, self.at());
                    assert!(!self.scheduler.is_pausing(id));
                }
            }
            Step::Sent(number) => {
                if let Some(id) = self.pick(number, |poll| poll.attempt.is_some()) {
                    let poll = self.polls.get_mut(&id).expect("pick returns a known poll");
                    if let Some(attempt) = &mut poll.attempt {
                        attempt.sent.get_or_insert(self.now);
                    }
                    self.scheduler.sent(id, self.at());
                }
            }
            Step::Answer(number) => {
                if let Some(id) = self.pick(number, |poll| poll.attempt.is_some()) {
                    self.polls.remove(&id);
                    self.probe.take_if(|probe| *probe == id);
                    self.has_succeeded = true;
                    self.scheduler.ended(id, AttemptResult::Answered, self.at());
                }
            }
            Step::Fail { poll, kind, advice } => {
                if let Some(id) = self.pick(poll, |poll| poll.attempt.is_some()) {
                    self.fail(id, kind, advice);
                }
            }
            Step::FailAll => {
                let open = self.polls.iter().filter(|(_, poll)| poll.attempt.is_some());
                let open: Vec<PollId> = open.map(|(id, _)| *id).collect();
                for id in open {
                    self.fail(id, FailureKind::Unreachable, Advice::BackOff);
                    self.drain_outputs();
                }
            }
            Step::Pass { millis } => self.advance(Duration::from_millis(millis.into())),
        }
    }

    fn at(&self) -> Instant {
        *ZERO + self.now
    }

    fn request(&mut self, domain: u8, jobs: u8, class: u8) {
        if self.polls.len() == MAX_POLLS {
            return;
        }
        let (id, domain) = (PollId(self.next_poll), KeyDomain([domain % 4; 16]));
        self.next_poll += 1;
        let class = match class % 4 {
            0 => PollClass::LongPoll,
            1 => PollClass::Snapshot,
            2 => PollClass::Chain,
            _ => PollClass::Plain,
        };
        let jobs = JobSet::new((0..4).filter(|bit| (jobs | 1) & 1 << bit != 0).map(job));
        let poll = Poll {
            domain,
            class,
            attempt: None,
            not_before: self.now,
            is_new: true,
            is_retry: false,
            is_paused: false,
            outage_since: None,
            transport_faults: 0,
            errors: 0,
            cannot_succeed: false,
        };
        self.polls.insert(id, poll);
        self.scheduler.request(id, PollRequest { domain, jobs, class }, self.at());
    }

    fn fail(&mut self, id: PollId, kind: FailureKind, advice: Advice) {
        let failure = match kind {
            FailureKind::Unreachable => Failure::Unreachable,
            FailureKind::Timeout => Failure::Timeout,
            FailureKind::UpstreamError => Failure::UpstreamError(reply()),
            FailureKind::InvalidResponse => Failure::InvalidResponse(Some(reply())),
            FailureKind::LocalResources => Failure::LocalResources,
        };
        // Only an answer can ask for a pause, and only a lost connection for another one.
        let is_answer = failure.kind() == FaultKind::Upstream;
        let advice = match advice {
            Advice::PausePoll(millis) if is_answer => RetryAdvice::PausePoll(millis_of(millis)),
            Advice::PauseKey(millis) if is_answer => RetryAdvice::PauseKey(millis.map(millis_of)),
            Advice::BackOffHeld if is_answer => RetryAdvice::BackOffHeld,
            Advice::Reconnect if failure == Failure::Unreachable => RetryAdvice::Reconnect,
            Advice::GiveUp => RetryAdvice::GiveUp,
            _ => RetryAdvice::BackOff,
        };
        let is_probe = self.probe.take_if(|probe| *probe == id).is_some();
        let now = self.now;
        let poll = self.polls.get_mut(&id).expect("pick returns a known poll");
        let Some(attempt) = poll.attempt.take() else { return };
        let is_held =
            poll.class == PollClass::LongPoll && attempt.sent.is_some_and(|sent| sent + HELD <= now);
        if is_held {
            (poll.outage_since, poll.transport_faults) = (None, 0);
        }
        let is_first = std::mem::take(&mut poll.is_new);
        (poll.is_retry, poll.cannot_succeed) = (true, advice == RetryAdvice::GiveUp);
        match failure.kind() {
            // The first attempt is repeated on another connection.
            FaultKind::Transport if advice == RetryAdvice::Reconnect && is_first && !is_held => {
                poll.is_retry = false;
            }
            FaultKind::Transport => {
                poll.outage_since.get_or_insert(now);
                poll.transport_faults += 1;
                // After its cooldown another poll may be the probe, and wait for its turn.
                if is_probe && now < self.silent_at {
                    self.probe_at = now + self.next_pause;
                    self.next_pause = self.config.breaker.cooldown.min(2 * self.next_pause);
                }
            }
            FaultKind::Local => {
                poll.outage_since.get_or_insert(now);
                poll.transport_faults += 1;
            }
            FaultKind::Upstream => {
                self.has_succeeded = true;
                (poll.outage_since, poll.transport_faults) = (None, 0);
                let is_chain = poll.class == PollClass::Chain;
                match advice {
                    RetryAdvice::PausePoll(pause) if !pause.is_zero() => {
                        (poll.is_paused, poll.not_before) = (true, now + pause);
                    }
                    RetryAdvice::PauseKey(pause) if is_chain || pause != Some(Duration::ZERO) => {
                        // A chain pauses as long as its key; without `Retry-After` a pause is a second or longer.
                        let pause = if is_chain { Duration::ZERO } else { pause.unwrap_or(SECOND) };
                        (poll.is_paused, poll.not_before) = (true, now + pause);
                        self.refused_keys.insert(poll.domain);
                    }
                    RetryAdvice::BackOffHeld if is_held => poll.errors = 0,
                    _ => poll.errors += 1,
                }
            }
        }
        self.scheduler.ended(id, AttemptResult::Failed(failure, advice), self.at());
    }

    /// Returns one of the polls that match.
    fn pick(&self, number: u8, matches: impl Fn(&Poll) -> bool) -> Option<PollId> {
        let ids: Vec<PollId> =
            self.polls.iter().filter(|(_, poll)| matches(poll)).map(|(id, _)| *id).collect();
        ids.get(usize::from(number) % ids.len().max(1)).copied()
    }

    /// Advances time, from timer to timer.
    fn advance(&mut self, by: Duration) {
        let end = self.now + by;
        while let Some(due) = self.due().filter(|at| *at <= end) {
            self.now = self.now.max(due);
            let now = self.at();
            let is_held = |poll: &Poll| {
                let sent = poll.attempt.and_then(|attempt| attempt.sent);
                poll.class == PollClass::LongPoll && sent.is_some_and(|sent| sent + HELD <= self.now)
            };
            self.has_succeeded |= self.polls.values().any(is_held);
            self.scheduler.handle_timeout(now);
            assert!(self.scheduler.poll_timeout().is_none_or(|at| at > now), "a due timer is left");
            self.drain_outputs();
        }
        self.now = end;
    }

    fn due(&self) -> Option<Duration> {
        self.scheduler.poll_timeout().map(|at| at.saturating_duration_since(*ZERO))
    }

    fn drain_outputs(&mut self) {
        match (self.scheduler.is_closed(), self.closed_since) {
            (true, None) => (self.closed_since, self.probe) = (Some(self.now), None),
            (false, Some(_)) => {
                (self.closed_since, self.probe) = (None, None);
                let first = FIRST_COOLDOWN.min(self.config.breaker.cooldown);
                self.probe_at = self.now + first;
                self.next_pause = self.config.breaker.cooldown.min(2 * first);
            }
            (true, Some(_)) | (false, None) => {}
        }
        while let Some(output) = self.scheduler.poll_output() {
            match output {
                SchedulerOutput::Start(id) => self.started(id),
                SchedulerOutput::BackOff(id, _, pause) => {
                    let poll = self.polls.get_mut(&id).expect("a known poll backs off");
                    assert!(poll.attempt.is_none(), "{id:?} backs off while it is attempted");
                    poll.not_before = self.now + pause;
                }
                SchedulerOutput::Pause(id, failure, _) => {
                    let poll = self.polls.get_mut(&id).expect("a known poll pauses");
                    assert!(poll.attempt.is_none(), "{id:?} pauses while it is attempted");
                    if let Failure::KeyRateLimited { .. } = failure {
                        assert!(
                            self.refused_keys.contains(&poll.domain),
                            "no upstream response asked for a pause"
                        );
                        assert!(poll.class != PollClass::Plain, "{id:?} is a plain poll, and must not pause");
                    }
                }
                SchedulerOutput::GiveUp(id, failure) => self.given_up(id, &failure),
            }
        }
        self.check();
    }

    fn started(&mut self, id: PollId) {
        let poll = self.polls.get_mut(&id).expect("a known poll is started");
        assert!(poll.attempt.is_none(), "{id:?} is started twice");
        assert!(poll.not_before <= self.now || !poll.is_paused, "{id:?} is started in its pause");
        assert!(poll.errors <= self.config.retries, "{id:?} is started after {} errors", poll.errors);
        let last_attempt_at = poll.outage_since.map(|since| since + self.config.retry_for);
        let is_last = last_attempt_at.is_some_and(|at| at <= self.now);
        if poll.is_retry && self.closed_since.is_none() && !is_last {
            // A probe that was cancelled leaves its time to the next one.
            assert!(self.probe.is_none() || self.silent_at <= self.now, "{id:?} is a second probe");
            assert!(self.probe_at <= self.now, "{id:?} probes too soon");
            // The time of a probe begins when it is due, although it may have to wait for its turn.
            let due = if self.probe.is_some() { self.silent_at } else { self.probe_at };
            (self.probe, self.silent_at) = (Some(id), due + self.config.breaker.cooldown);
        } else if self.closed_since == Some(Duration::ZERO) {
            // The breaker was never open: when it closes, it shortens pauses, and a probe has none.
            assert!(poll.not_before <= self.now, "{id:?} is started too soon");
        }
        (poll.attempt, poll.is_paused) = (Some(Attempt { sent: None }), false);
        let is_early = self.last_start.is_some_and(|last| last + self.config.interval > self.now);
        assert!(!is_early, "{id:?} is started too soon after another one");
        self.last_start = Some(self.now);
        let key_start = self.key_starts.insert(poll.domain, self.now);
        let is_early = key_start.is_some_and(|last| last + self.config.key_interval > self.now);
        assert!(!is_early, "{id:?} is started above the budget of its key");
    }

    fn given_up(&mut self, id: PollId, failure: &Failure) {
        let poll = self.polls.remove(&id).expect("a known poll is given up");
        assert!(poll.attempt.is_none(), "{id:?} is given up while it is attempted");
        if poll.cannot_succeed || (poll.is_paused && poll.class == PollClass::Plain) {
            return;
        }
        match failure.kind() {
            FaultKind::Transport if !self.has_succeeded => {
                assert!(poll.transport_faults > self.config.retries, "{id:?} is given up too soon");
            }
            FaultKind::Transport | FaultKind::Local => {
                let since = poll.outage_since.expect("the poll had a fault");
                assert!(since + self.config.retry_for <= self.now, "{id:?} is given up too soon");
            }
            FaultKind::Upstream => {
                assert!(poll.errors > 0 && !poll.is_paused, "{id:?} is given up without an error");
            }
        }
    }

    /// Checks the invariants once all outputs are taken.
    fn check(&self) {
        let open = self.polls.values().filter(|poll| poll.attempt.is_some()).count();
        assert_eq!(self.scheduler.open(), open);
        assert!(open <= self.config.max_polls, "{open} are open");
        let is_long = |poll: &&Poll| poll.class == PollClass::LongPoll && poll.attempt.is_some();
        let slots = if self.config.max_polls > 1 { self.config.max_polls - 1 } else { 1 };
        assert!(
            self.polls.values().filter(is_long).count() <= slots,
            "the last slot is reserved for short polls"
        );
        if self.last_start.is_some_and(|last| last + self.config.interval > self.now) {
            return;
        }
        for (id, poll) in self.polls.iter().filter(|(_, poll)| poll.attempt.is_none()) {
            let ready_at = match self.closed_since {
                _ if !poll.is_retry => poll.not_before,
                Some(closed) if closed > Duration::ZERO => poll.not_before.max(closed + BACKOFF.first),
                Some(_) => poll.not_before,
                None => continue, // held back
            };
            let is_paused = poll.class != PollClass::Plain && self.refused_keys.contains(&poll.domain);
            let key_start = self.key_starts.get(&poll.domain);
            let is_over_budget = key_start.is_some_and(|last| *last + self.config.key_interval > self.now);
            if self.now < ready_at || is_paused || is_over_budget || open >= self.config.max_polls {
                continue;
            }
            let is_long_poll = poll.class == PollClass::LongPoll;
            let free = slots.checked_sub(open + 1);
            let own = |other: &&Poll| {
                let is_of_kind = (other.class == PollClass::LongPoll) == is_long_poll;
                other.attempt.is_some() && is_of_kind && other.domain == poll.domain
            };
            let own = self.polls.values().filter(own).count();
            let is_over_share = own > 0 && own > free.unwrap_or(0) * SLOTS_PER_FREE_SLOT;
            if is_over_share || (is_long_poll && free.is_none()) {
                continue;
            }
            panic!("{id:?} has a slot and is not started");
        }
    }

    /// Lets the upstream answer everything: then each poll ends.
    fn finish(&mut self) {
        for _ in 0..10_000 {
            while let Some(id) = self.pick(0, |poll| poll.attempt.is_some()) {
                self.polls.remove(&id);
                self.probe.take_if(|probe| *probe == id);
                self.has_succeeded = true;
                self.scheduler.ended(id, AttemptResult::Answered, self.at());
                self.drain_outputs();
            }
            let Some(due) = self.due() else { break };
            self.advance(due.saturating_sub(self.now));
        }
        assert!(self.polls.is_empty(), "{} polls have no result", self.polls.len());
        assert_eq!((self.scheduler.open(), self.due()), (0, None));
    }
}

fn millis_of(millis: u32) -> Duration {
    Duration::from_millis(millis.into())
}

fn job(number: u8) -> JobId {
    JobId::new(&format!("job-{number}")).expect("a valid id")
}

fn reply() -> Arc<UpstreamResponse> {
    Arc::new(UpstreamResponse { status: 500, head: Arc::new(ResponseHead::default()), body: Bytes::new() })
}
