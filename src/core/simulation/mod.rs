//! The joint sweep: random schedules of the coalescer and the scheduler **together**, with an upstream that fails.
//!
//! ```text
//!   seed ──▶ plan: clients, jobs, faults
//!              │
//!              ▼                       Open, Abort             Start
//!   run: joins, leaves ──▶ Coalescer ─────────────▶ Scheduler ───────▶ upstream: holds, answers, fails
//!                           │     ▲                     │                  │
//!                           │     └── BackOff, Pause ◀──┘                  │
//!                           │     └── answers, faults ◀────────────────────┘
//!                           ▼
//!                         oracle: compares each answer with that of a client alone
//! ```
//!
//! | step | file |
//! | --- | --- |
//! | 1. A seed makes a plan: the true life of each job, the clients, and the faults of the upstream | `plan` |
//! | 2. A run feeds both state machines and carries out their outputs, as the hub does, in virtual time | this file |
//! | 3. The upstream holds, answers and fails attempts by the plan | `upstream` |
//! | 4. The oracle checks each answer, each start and the end of the run; one function a guarantee | `oracle` |
//!
//! The oracle knows the plan and does not know the state machines. Everything follows from the seed, so a failure can
//! be replayed: `CLIPGATE_SWEEP_SEED=n` runs seed n with a trace, `CLIPGATE_SWEEP_SEEDS=n` runs the first n seeds.

mod oracle;
mod paced;
mod plan;
mod upstream;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::plan::{PlannedClient, RunPlan};
use self::upstream::{ErrorReply, OpenAttempt};
use super::backoff::Backoff;
use super::breaker::BreakerRules;
use super::coalescer::{
    Coalescer, Failure, Input, Output, PollId, PollOutcome, PollProgress, PollSpec, Proof, Timing, WaitId,
    WaitSpec,
};
use super::job::{JobId, JobSet, KeyDomain};
use super::route::{Form, Goal, Route, Rung};
use super::scheduler::{
    AttemptResult, PollClass, PollRequest, PollScheduler, RetryAdvice, SchedulerConfig, SchedulerOutput,
};
use super::sweep::{RandomQueue, SeedOnPanic, seeds, setting};

/// Time for which the upstream holds a poll.
const HOLD: Duration = Duration::from_secs(120);
/// `upstream.retry_for`.
const RETRY_FOR: Duration = Duration::from_secs(30);
/// `upstream.breaker_cooldown`.
const COOLDOWN: Duration = Duration::from_secs(5);
/// Pauses between attempts, as in the hub.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(200), cap: Duration::from_secs(2) };

#[test]
fn no_outage_and_no_neighbour_leaves_a_client_worse_off_than_alone() {
    if let Some(seed) = setting("CLIPGATE_SWEEP_SEED") {
        return Run::new(seed, true).finish();
    }
    for seed in seeds(512) {
        Run::new(seed, false).finish();
    }
}

/// A planned event of a run.
#[derive(Debug)]
enum RunEvent {
    Join(usize),
    Leave(usize),
    /// All connections break.
    ResetAll,
    /// One connection breaks.
    ResetOne,
    Drain,
    /// The request of this attempt was sent.
    Sent(PollId, u64),
    /// The request reaches the upstream.
    Arrive(PollId, u64),
    /// The gateway has read the answer.
    Land(PollId, u64, PollOutcome),
    /// The attempt failed.
    Fail(PollId, u64, Failure, RetryAdvice),
}

/// One run of one seed.
struct Run {
    seed: u64,
    rng: fastrand::Rng,
    has_trace: bool,
    plan: RunPlan,
    rungs: Vec<Rung>,
    coalescer: Coalescer,
    scheduler: PollScheduler,
    zero: Instant,
    now: Duration,
    events: RandomQueue<RunEvent>,
    specs: BTreeMap<PollId, Arc<PollSpec>>,
    attempts: BTreeMap<PollId, OpenAttempt>,
    attempt_count: u64,
    /// Error responses so far. The body of each is its index, so that the oracle finds its cause.
    error_replies: Vec<ErrorReply>,
    /// Start of the newest probe, while the breaker is open.
    probed_at: Option<Duration>,
    /// Probes since the breaker opened.
    probes: u32,
    /// First attempts of each key domain.
    first_attempts: BTreeMap<u8, u64>,
    drained_at: Option<Duration>,
}

impl Run {
    fn new(seed: u64, has_trace: bool) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let plan = RunPlan::new(&mut rng);
        let route = Route::suno();
        let linger = [Duration::ZERO, Duration::from_secs(2)][rng.usize(..2)];
        let timing = Timing {
            ladder: route.ladder.clone(),
            hold: HOLD,
            linger,
            watch_idle: Duration::ZERO,
            max_jobs: 6,
            proves: true,
            pace: None,
        };
        let config = SchedulerConfig {
            max_polls: 512,
            interval: Duration::ZERO,
            key_interval: Duration::ZERO,
            retries: 2,
            retry_for: RETRY_FOR,
            backoff: BACKOFF,
            breaker: BreakerRules { failures: rng.u32(2..=8), cooldown: COOLDOWN },
        };
        let mut run = Self {
            seed,
            has_trace,
            rungs: route.ladder.rungs().collect(),
            coalescer: Coalescer::new(timing),
            scheduler: PollScheduler::new(config, seed),
            zero: zero(),
            now: Duration::ZERO,
            events: RandomQueue::new(),
            specs: BTreeMap::new(),
            attempts: BTreeMap::new(),
            attempt_count: 0,
            error_replies: Vec::new(),
            probed_at: None,
            probes: 0,
            first_attempts: BTreeMap::new(),
            drained_at: None,
            plan,
            rng,
        };
        run.warm_up();
        run.schedule_plan();
        run
    }

    /// Lets the upstream answer one poll: before that, the scheduler gives polls up after `retries`.
    fn warm_up(&mut self) {
        let jobs = JobSet::new([JobId::new("warm-up").unwrap()]);
        let request = PollRequest { domain: domain(99), jobs, class: PollClass::LongPoll };
        let (id, now) = (PollId(u64::MAX), self.zero);
        self.scheduler.request(id, request, now);
        assert_eq!(self.scheduler.poll_output(), Some(SchedulerOutput::Start(id)));
        self.scheduler.ended(id, AttemptResult::Answered, now);
    }

    /// Schedules the events of the plan.
    fn schedule_plan(&mut self) {
        for number in 0..self.plan.clients.len() {
            let PlannedClient { arrives, leaves, .. } = self.plan.clients[number];
            self.at(arrives, RunEvent::Join(number));
            if let Some(at) = leaves {
                self.at(at, RunEvent::Leave(number));
            }
        }
        for (from, _) in self.plan.outages.clone() {
            self.at(from, RunEvent::ResetAll);
        }
        for at in self.plan.resets.clone() {
            self.at(at, RunEvent::ResetAll);
        }
        for at in self.plan.single_resets.clone() {
            self.at(at, RunEvent::ResetOne);
        }
        if let Some(at) = self.plan.drain {
            self.at(at, RunEvent::Drain);
        }
    }

    /// Schedules an event.
    fn at(&mut self, at: Duration, event: RunEvent) {
        self.events.add(&mut self.rng, at, event);
    }

    /// Returns a random time for one step of a request, up to the plan's maximum.
    fn hop(&mut self) -> Duration {
        self.plan.hop.mul_f64(self.rng.f64())
    }

    fn instant(&self) -> Instant {
        self.zero + self.now
    }

    fn trace(&self, text: impl FnOnce() -> String) {
        if self.has_trace {
            println!("{:>12.6} {}", self.now.as_secs_f64(), text());
        }
    }

    /// Runs until no event and no timer is left, then checks the end.
    fn finish(mut self) {
        let _seed_on_panic = SeedOnPanic(self.seed);
        self.trace(|| format!("{:#?}", self.plan));
        let mut steps = 0;
        loop {
            steps += 1;
            assert!(steps < 200_000, "the run does not end");
            let timers = [self.coalescer.poll_timeout(), self.scheduler.poll_timeout()];
            let timer = timers.into_iter().flatten().min().map(|at| at.saturating_duration_since(self.zero));
            let event = self.events.next_at();
            match (timer, event) {
                (None, None) => break,
                (Some(timer), event) if event.is_none_or(|event| timer <= event) => {
                    self.now = self.now.max(timer);
                    let now = self.instant();
                    self.scheduler.handle_timeout(now);
                    self.coalescer.handle_timeout(now);
                }
                _ => {
                    let (at, event) = self.events.pop().unwrap();
                    self.now = at;
                    self.handle_event(event);
                }
            }
            self.drain_outputs();
        }
        self.check_end();
    }

    fn handle_event(&mut self, event: RunEvent) {
        let now = self.instant();
        match event {
            RunEvent::Join(number) => self.join(number),
            RunEvent::Leave(number) => {
                let client = &mut self.plan.clients[number];
                if !client.has_joined {
                    client.leaves = None; // the leave came before the join of the same moment: the client stays
                } else if client.answered_at.is_none() {
                    client.has_left = true;
                    self.trace(|| format!("client {number} leaves"));
                    self.coalescer.handle(Input::Leave(WaitId(number as u64)), now);
                }
            }
            RunEvent::ResetAll => self.reset_all(),
            RunEvent::ResetOne => self.reset_one(),
            RunEvent::Drain => {
                self.trace(|| "drain".to_owned());
                self.drained_at = Some(self.now);
                self.coalescer.handle(Input::Drain(now + plan::DRAIN), now);
            }
            RunEvent::Sent(id, number) if self.is_current(id, number) => {
                self.attempts.get_mut(&id).unwrap().is_sent = true;
                self.scheduler.sent(id, now);
                self.coalescer.handle(Input::Progress(id, PollProgress::Held), now);
            }
            RunEvent::Arrive(id, number) if self.is_current(id, number) => self.arrive(id),
            RunEvent::Land(id, number, outcome) if self.is_current(id, number) => {
                self.trace(|| format!("{id:?} is answered: {outcome:?}"));
                self.attempts.remove(&id);
                self.specs.remove(&id);
                self.scheduler.ended(id, AttemptResult::Answered, now);
                self.coalescer.handle(Input::Landed(id, outcome), now);
            }
            RunEvent::Fail(id, number, failure, advice) if self.is_current(id, number) => {
                self.trace(|| format!("{id:?} fails: {failure:?} {advice:?}"));
                self.attempts.remove(&id);
                self.scheduler.ended(id, AttemptResult::Failed(failure, advice), now);
            }
            RunEvent::Sent(..) | RunEvent::Arrive(..) | RunEvent::Land(..) | RunEvent::Fail(..) => {}
        }
    }

    fn join(&mut self, number: usize) {
        let now = self.instant();
        let client = &mut self.plan.clients[number];
        client.has_joined = true;
        let spec = WaitSpec {
            domain: domain(client.domain),
            form: if client.jobs.len() == 1 { Form::Single } else { Form::Multi },
            jobs: JobSet::new(client.jobs.iter().map(|&job| self.plan.jobs[job].id.clone())),
            goal: client.goal.map_or(Goal::Now, |goal| Goal::Rung(self.rungs[goal])),
            arrived: now,
            timeout: client.timeout,
            keep: true,
            is_patient: false,
            newer_than: None,
            known: Vec::new(),
            proof: Proof::Never,
        };
        self.trace(|| format!("client {number} joins"));
        let id = WaitId(number as u64);
        self.coalescer.handle(Input::Join(id, spec), now);
        let polls: Vec<PollId> =
            self.coalescer.pausing(id).filter(|poll| self.scheduler.is_pausing(*poll)).collect();
        for poll in polls {
            self.scheduler.try_now(poll, now);
            self.p12_a_new_wait_is_attempted_at_once(number, poll);
        }
    }

    /// Carries out all outputs of both state machines, as the hub does.
    fn drain_outputs(&mut self) {
        loop {
            let now = self.instant();
            if let Some(output) = self.coalescer.poll_output() {
                match output {
                    Output::Open(id, spec, _) => {
                        self.trace(|| format!("{id:?} opens for {:?} at {:?}", spec.jobs, spec.goal));
                        let (domain, jobs, class) = (spec.domain, spec.jobs.clone(), self.class(&spec));
                        let request = PollRequest { domain, jobs, class };
                        self.specs.insert(id, Arc::new(spec));
                        self.scheduler.request(id, request, now);
                    }
                    Output::Abort(id) => {
                        self.trace(|| format!("{id:?} is aborted"));
                        self.scheduler.withdraw(id, now);
                        if self.attempts.remove(&id).is_some() {
                            // The attempt may have been the probe.
                            (self.probed_at, self.probes) = (None, self.probes.saturating_sub(1));
                        }
                        self.specs.remove(&id);
                    }
                    Output::Settle(WaitId(number), result) => {
                        self.check_answer(usize::try_from(number).unwrap(), &result.end);
                    }
                }
            } else if let Some(output) = self.scheduler.poll_output() {
                match output {
                    SchedulerOutput::Start(id) => self.start_attempt(id),
                    SchedulerOutput::BackOff(id, failure, pause) => {
                        let progress = PollProgress::BackingOff(failure, pause);
                        self.coalescer.handle(Input::Progress(id, progress), now);
                        if self.coalescer.has_newcomer(id) {
                            self.scheduler.try_now(id, now);
                        }
                    }
                    SchedulerOutput::Pause(id, failure, pause) => {
                        self.coalescer.handle(Input::Progress(id, PollProgress::Paused(failure, pause)), now);
                    }
                    SchedulerOutput::GiveUp(id, failure) => {
                        self.trace(|| format!("{id:?} is given up: {failure:?}"));
                        self.specs.remove(&id);
                        self.coalescer.handle(Input::Landed(id, PollOutcome::Failed(failure)), now);
                    }
                }
            } else {
                return;
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the origin of virtual time")]
fn zero() -> Instant {
    Instant::now()
}

fn domain(number: u8) -> KeyDomain {
    KeyDomain([number; 16])
}
