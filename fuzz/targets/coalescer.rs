//! Any schedule of the Coalescer: its invariants hold, and each wait that stays is answered once, in time, with states and
//! replies of its own jobs and key.
//!
//! Time is virtual. The caller of the machine is this file. Its timers may be late by `MAX_LATE`, and it reports only
//! events that can happen to a poll.

#![no_main]

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use bytes::Bytes;
use clipgate::core::coalescer::{
    Coalescer, Failure, Input, Output, Pace, PollId, PollOutcome, PollProgress, PollSpec, Proof, SNAPSHOT_LIMIT, Timing,
    WaitId, WaitOutcome, WaitResult, WaitSpec,
};
use clipgate::core::job::{ResponseHead, JobId, JobSet, JobState, KeyDomain, UpstreamResponse};
use clipgate::core::route::{Form, Goal, Ladder, Route, Rung};
use clipgate::testing::clock;
use libfuzzer_sys::fuzz_target;

const HOLD: Duration = Duration::from_secs(120);
/// Distance below which two moments count as one.
const SKEW: Duration = HOLD.checked_div(500).expect("the divisor is not zero");
/// Time that a wait may stay past its deadline for a poll that is about to end.
const GRACE: Duration = HOLD.checked_div(24).expect("the divisor is not zero");
/// Longest delay of the caller's timers.
const MAX_LATE: Duration = Duration::from_millis(255);
const JOBS: u8 = 5;
/// Most waits at once: few enough for the machine to check its invariants after each step.
const MAX_WAITS: usize = 40;

/// Start of the virtual time, so that all else is a duration.
static ZERO: LazyLock<Instant> = LazyLock::new(clock::now);

#[derive(Arbitrary, Debug)]
struct Schedule {
    max_jobs: u8,
    linger_secs: u8,
    /// Tenths of seconds of the pace, and of `live_ttl`, of an upstream that never holds.
    pace: Option<(u8, u8, u8)>,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Join(Join),
    /// Number of a wait among those that wait.
    Leave(u8),
    /// Number of a poll among the open ones.
    StartAttempt(u8),
    Hold(u8),
    Suspend {
        poll: u8,
        pause_millis: u16,
        reason: SuspendReason,
    },
    Land {
        poll: u8,
        result: PollResult,
    },
    /// The success that lands next asks for a pause.
    RetryAfter {
        poll: u8,
        millis: u32,
    },
    /// An aborted poll lands all the same.
    LandLate {
        poll: u8,
        result: PollResult,
    },
    /// Time passes, and timers fire `late` milliseconds late.
    Pass {
        millis: u16,
        late: u8,
    },
    /// An action changed a job.
    Change {
        domain: bool,
        job: u8,
    },
    PassLong {
        secs: u8,
    },
    Drain {
        secs: u8,
    },
}

#[derive(Arbitrary, Debug)]
struct Join {
    domain: bool,
    /// Jobs, one bit each.
    jobs: u8,
    is_single: bool,
    /// Number of the rung; beyond the ladder: no status.
    goal: u8,
    /// Whether it waits for any other rung, where the upstream never holds.
    is_other: bool,
    timeout: Timeout,
    /// Time since its arrival in milliseconds.
    since: u8,
    keep: bool,
    /// Jobs with a cached state, one bit each.
    known: u8,
    /// Number of the rung of the cached states.
    rung: u8,
    /// Whether the join is cancelled if it costs a request.
    is_cancelled: bool,
}

#[derive(Arbitrary, Debug)]
enum Timeout {
    Hold,
    Secs(u8),
    Millis(u8),
    Long(u8),
}

#[derive(Arbitrary, Debug)]
enum SuspendReason {
    BackingOff,
    Paused,
    KeyPaused,
}

#[derive(Arbitrary, Debug)]
enum PollResult {
    /// Number of the rung of each job; beyond the ladder: an unknown status.
    Jobs([u8; JOBS as usize]),
    Reached,
    Unsplit,
    Refused,
    UpstreamError,
    /// Cannot be read as jobs; all bytes arrived.
    Invalid,
    /// Cannot be read as jobs, and its bytes are lost.
    InvalidWithoutBytes,
    Unreachable,
    LocalResources,
}

fuzz_target!(|schedule: Schedule| {
    let mut driver = Driver::new(&schedule);
    for step in &schedule.steps {
        driver.step(step);
        driver.take_outputs();
    }
    driver.finish();
});

/// The caller of the machine, with the waits and polls that it knows.
struct Driver {
    machine: Coalescer,
    ladder: Ladder,
    rungs: Vec<Rung>,
    max_jobs: usize,
    /// Whether the upstream never holds.
    has_pace: bool,
    now: Duration,
    late: Duration,
    waits: BTreeMap<WaitId, Wait>,
    next_wait: u64,
    open: BTreeMap<PollId, PollSpec>,
    aborted: BTreeMap<PollId, PollSpec>,
    opened: BTreeMap<PollId, PollSpec>,
    /// Begin and end of the drain.
    draining: Option<(Duration, Duration)>,
}

struct Wait {
    domain: KeyDomain,
    jobs: JobSet,
    goal: Goal,
    arrived: Duration,
    deadline: Duration,
}

impl Driver {
    fn new(schedule: &Schedule) -> Self {
        let ladder = Route::suno().ladder;
        let max_jobs = usize::from(schedule.max_jobs % JOBS) + 1;
        let linger = Duration::from_secs(schedule.linger_secs.into());
        let tenths = |tenths: u8| Duration::from_millis(100 * u64::from(tenths));
        let pace = schedule.pace.map(|(min, more, live_ttl)| {
            let min = tenths(min.max(1));
            Pace { min, max: min + tenths(more), live_ttl: tenths(live_ttl) }
        });
        let hold = if pace.is_some() { Duration::ZERO } else { HOLD };
        let timing =
            Timing { ladder: ladder.clone(), hold, linger, watch_idle: Duration::ZERO, max_jobs, proves: pace.is_none(), pace };
        Self {
            machine: Coalescer::new(timing),
            rungs: ladder.rungs().collect(),
            ladder,
            max_jobs,
            has_pace: pace.is_some(),
            // A wait may have arrived before the first step.
            now: Duration::from_secs(1),
            late: Duration::ZERO,
            waits: BTreeMap::new(),
            next_wait: 0,
            open: BTreeMap::new(),
            aborted: BTreeMap::new(),
            opened: BTreeMap::new(),
            draining: None,
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Join(join) => self.join(join),
            Step::Leave(number) => {
                if let Some(id) = pick(&self.waits, *number) {
                    self.waits.remove(&id);
                    self.handle(Input::Leave(id));
                }
            }
            Step::StartAttempt(number) => self.progress(*number, PollProgress::AttemptStarted),
            Step::Hold(number) => self.progress(*number, PollProgress::Held),
            Step::Suspend { poll, pause_millis, reason } => {
                let pause = Duration::from_millis((*pause_millis).into());
                let progress = match reason {
                    SuspendReason::BackingOff => PollProgress::BackingOff(self.failure_of(*poll), pause),
                    SuspendReason::Paused => PollProgress::Paused(self.failure_of(*poll), pause),
                    SuspendReason::KeyPaused => {
                        PollProgress::Paused(Failure::KeyRateLimited { retry_after: pause }, pause)
                    }
                };
                self.progress(*poll, progress);
            }
            Step::Land { poll, result } => {
                if let Some((id, spec)) = pick(&self.open, *poll).and_then(|id| self.open.remove_entry(&id)) {
                    self.land(id, &spec, result);
                }
            }
            Step::RetryAfter { poll, millis } => {
                if let Some(id) = pick(&self.open, *poll) {
                    self.handle(Input::RetryAfter(id, Duration::from_millis((*millis).into())));
                }
            }
            Step::LandLate { poll, result } => {
                if let Some((id, spec)) =
                    pick(&self.aborted, *poll).and_then(|id| self.aborted.remove_entry(&id))
                {
                    self.land(id, &spec, result);
                }
            }
            Step::Pass { millis, late } => {
                self.late = Duration::from_millis((*late).into());
                self.pass(Duration::from_millis((*millis).into()));
            }
            Step::Change { domain, job: number } => {
                let key = KeyDomain([(*domain).into(); 16]);
                self.handle(Input::JobChanged(key, job(number % JOBS)));
            }
            Step::PassLong { secs } => self.pass(Duration::from_secs((*secs).into())),
            Step::Drain { secs } => {
                if self.draining.is_none() {
                    let until = self.now + Duration::from_secs((*secs % 30).into());
                    self.draining = Some((self.now, until));
                    self.handle(Input::Drain(self.at(until)));
                }
            }
        }
    }

    fn at(&self, at: Duration) -> Instant {
        *ZERO + at
    }

    fn handle(&mut self, input: Input) {
        let now = self.at(self.now);
        self.machine.handle(input, now);
    }

    fn join(&mut self, join: &Join) {
        if self.waits.len() == MAX_WAITS {
            return;
        }
        let mut numbers: Vec<u8> = (0..JOBS).filter(|bit| join.jobs & 1 << bit != 0).collect();
        if numbers.is_empty() {
            numbers.push(0);
        }
        if join.is_single {
            numbers.truncate(1);
        }
        let (domain, id) = (KeyDomain([join.domain.into(); 16]), WaitId(self.next_wait));
        self.next_wait += 1;
        let askable = self.rungs.get(usize::from(join.goal)).filter(|&&rung| self.ladder.is_askable(rung));
        let arrived = self.now - Duration::from_millis(join.since.into());
        let timeout = match join.timeout {
            Timeout::Hold => HOLD,
            Timeout::Secs(secs) => Duration::from_secs(secs.into()),
            Timeout::Millis(millis) => Duration::from_millis(millis.into()),
            Timeout::Long(secs) => HOLD + Duration::from_secs(2 * u64::from(secs)),
        };
        let is_known = |number: &&u8| join.known & 1 << **number != 0;
        let known = numbers.iter().filter(is_known).map(|&number| self.state(domain, number, join.rung));
        let wait = Wait {
            domain,
            jobs: JobSet::new(numbers.iter().map(|&number| job(number))),
            goal: match askable {
                None => Goal::Now,
                Some(&rung) if join.is_other && self.has_pace => Goal::Not(rung),
                Some(&rung) => Goal::Rung(rung),
            },
            arrived,
            deadline: arrived + timeout,
        };
        let spec = WaitSpec {
            domain,
            form: if join.is_single { Form::Single } else { Form::Multi },
            jobs: wait.jobs.clone(),
            goal: wait.goal,
            arrived: self.at(arrived),
            timeout,
            keep: join.keep,
            is_patient: false,
            newer_than: None,
            known: known.collect(),
            proof: Proof::Never,
        };
        self.handle(Input::Join(id, spec));
        if join.is_cancelled && self.machine.pending_opens() > 0 {
            self.handle(Input::CancelJoin(id));
            assert_eq!(self.machine.pending_opens(), 0, "a cancelled wait costs a request");
        } else {
            self.waits.insert(id, wait);
        }
        // The caller starts attempts of these polls at once, so it must know them.
        let mut pausing = self.machine.pausing(id);
        assert!(pausing.all(|poll| self.open.contains_key(&poll)));
    }

    fn progress(&mut self, number: u8, progress: PollProgress) {
        if let Some(id) = pick(&self.open, number) {
            self.handle(Input::Progress(id, progress));
        }
    }

    fn failure_of(&self, number: u8) -> Failure {
        match pick(&self.open, number) {
            Some(id) => Failure::UpstreamError(self.reply(id)),
            None => Failure::Unreachable,
        }
    }

    fn land(&mut self, id: PollId, spec: &PollSpec, result: &PollResult) {
        let states = |rung: &dyn Fn(u8) -> u8| {
            let named = (0..JOBS).filter(|&number| spec.jobs.contains(&job(number)));
            PollOutcome::Jobs(named.map(|number| self.state(spec.domain, number, rung(number))).collect())
        };
        let outcome = match result {
            PollResult::Jobs(rungs) => states(&|number| rungs[usize::from(number)]),
            PollResult::Reached => {
                let asked = |rung: &&Rung| spec.goal == Goal::Rung(**rung);
                let rung = self.rungs.iter().take_while(|rung| !asked(rung)).count() % self.rungs.len();
                states(&|_| u8::try_from(rung).expect("the ladder is short"))
            }
            PollResult::Unsplit => PollOutcome::Unsplit(self.reply(id)),
            PollResult::Refused => PollOutcome::Refused(self.reply(id)),
            PollResult::UpstreamError => PollOutcome::Failed(Failure::UpstreamError(self.reply(id))),
            PollResult::Unreachable => PollOutcome::Failed(Failure::Unreachable),
            PollResult::Invalid => PollOutcome::Failed(Failure::InvalidResponse(Some(self.reply(id)))),
            PollResult::InvalidWithoutBytes => PollOutcome::Failed(Failure::InvalidResponse(None)),
            PollResult::LocalResources => PollOutcome::Failed(Failure::LocalResources),
        };
        self.handle(Input::Landed(id, outcome));
    }

    /// Returns a state as of now. Its body names the key domain and the job. A rung beyond the ladder is an unknown status.
    fn state(&self, domain: KeyDomain, number: u8, rung: u8) -> JobState {
        let id = job(number);
        JobState {
            rung: self.rungs.get(usize::from(rung)).copied(),
            body: tag(domain, &id),
            id,
            head: Arc::new(ResponseHead::default()),
            seen_at: self.at(self.now),
            as_of: self.at(self.now),
        }
    }

    /// Returns a reply whose body is the number of the poll.
    fn reply(&self, id: PollId) -> Arc<UpstreamResponse> {
        let body = Bytes::from(id.0.to_string());
        Arc::new(UpstreamResponse { status: 418, head: Arc::new(ResponseHead::default()), body })
    }

    /// Moves time on, from timer to timer.
    fn pass(&mut self, by: Duration) {
        let end = self.now + by;
        while let Some(due) = self.due().map(|at| at + self.late).filter(|at| *at <= end) {
            self.now = self.now.max(due);
            self.fire();
        }
        self.now = end;
    }

    fn due(&self) -> Option<Duration> {
        self.machine.poll_timeout().map(|at| at.saturating_duration_since(*ZERO))
    }

    fn fire(&mut self) {
        let now = self.at(self.now);
        self.machine.handle_timeout(now);
        assert!(self.machine.poll_timeout().is_none_or(|at| at > now), "still due");
        self.take_outputs();
    }

    fn take_outputs(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Open(id, spec, _) => {
                    assert!(self.opened.insert(id, spec.clone()).is_none(), "{id:?} opens twice");
                    assert!((1..=self.max_jobs).contains(&spec.jobs.len()), "{spec:?}");
                    assert!(spec.form == Form::Multi || spec.jobs.len() == 1, "{spec:?}");
                    self.open.insert(id, spec);
                }
                Output::Abort(id) => {
                    let spec = self.open.remove(&id).expect("only an open poll is aborted");
                    self.aborted.insert(id, spec);
                }
                Output::Settle(id, result) => {
                    let wait = self.waits.remove(&id).expect("only a wait that has not ended is answered");
                    self.check(id, &wait, &result);
                }
            }
        }
        let is_late = |wait: &Wait| self.now > self.latest(wait);
        assert!(!self.waits.values().any(is_late), "a wait is forgotten");
        assert_eq!(self.machine.waits(), self.waits.len());
    }

    /// Returns the latest moment for the answer to a wait. Timers may be late for each of its phases.
    fn latest(&self, wait: &Wait) -> Duration {
        let latest = wait.deadline.max(wait.arrived) + GRACE + SNAPSHOT_LIMIT;
        let latest = match self.draining {
            // A wait whose snapshot has begun keeps its time.
            Some((since, until)) if wait.deadline > since + SKEW => latest.min(until.max(wait.arrived)),
            Some(_) | None => latest,
        };
        latest + MAX_LATE * 4
    }

    fn check(&self, id: WaitId, wait: &Wait, result: &WaitResult) {
        let deadline = match self.draining {
            Some((since, _)) => wait.deadline.min(since),
            None => wait.deadline,
        };
        let is_over = self.now + SKEW >= deadline;
        match &result.end {
            WaitOutcome::Reached(states) => {
                self.check_states(wait, states, is_over);
                let reaches = |rung: Rung| match wait.goal {
                    Goal::Now => true,
                    Goal::Rung(goal) => rung >= goal,
                    Goal::Not(left) => rung != left,
                };
                assert!(states.iter().all(|state| state.rung.is_none_or(reaches)), "{id:?} {states:?}");
            }
            WaitOutcome::TimedOut(states) => {
                self.check_states(wait, states, is_over);
                assert!(is_over, "{id:?} is cut short");
            }
            WaitOutcome::Unsplit(reply)
            | WaitOutcome::Refused(reply)
            | WaitOutcome::Failed(Failure::UpstreamError(reply) | Failure::InvalidResponse(Some(reply))) => {
                self.check_origin(wait, reply);
            }
            WaitOutcome::Failed(Failure::Timeout) => assert!(is_over, "{id:?} is given up"),
            WaitOutcome::Failed(Failure::KeyRateLimited { retry_after }) => {
                let is_immediate = match wait.goal {
                    Goal::Now => true,
                    Goal::Rung(rung) => rung == self.ladder.lowest(),
                    Goal::Not(_) => false,
                };
                assert!(
                    is_over || is_immediate || self.now + *retry_after > deadline + SNAPSHOT_LIMIT,
                    "{id:?} fails by a pause that it outlasts"
                );
            }
            WaitOutcome::Failed(
                Failure::Unreachable | Failure::InvalidResponse(None) | Failure::TooLarge | Failure::LocalResources,
            ) => {}
        }
    }

    /// Checks that these are the states of the wait's jobs in the order of the set, from its own key domain, and seen since
    /// its arrival. An answer read just before the arrival and landed after it counts. At the deadline an older state may be
    /// proven, or be the last one seen when a drain finds the upstream failing.
    fn check_states(&self, wait: &Wait, states: &[JobState], may_be_old: bool) {
        assert!(states.iter().map(|state| &state.id).eq(&wait.jobs), "{states:?}");
        for state in states {
            assert_eq!(state.body, tag(wait.domain, &state.id));
            let is_old = state.seen_at + SKEW < self.at(wait.arrived);
            assert!(may_be_old || !is_old, "{state:?} is old");
        }
    }

    fn check_origin(&self, wait: &Wait, reply: &UpstreamResponse) {
        let text = str::from_utf8(&reply.body).expect("the body is a number");
        let spec = &self.opened[&PollId(text.parse().expect("the body is a number"))];
        assert_eq!(spec.domain, wait.domain);
        assert!(spec.jobs.is_subset(&wait.jobs), "answered by {spec:?}");
    }

    /// Checks that an hour without events answers every wait and forgets every poll.
    fn finish(&mut self) {
        self.late = Duration::ZERO;
        self.pass(Duration::from_secs(3600));
        assert!(self.waits.is_empty(), "{} waits are forgotten", self.waits.len());
        assert_eq!((self.machine.waits(), self.machine.polls(), self.due()), (0, 0, None));
        assert!(self.open.is_empty(), "{:?}", self.open);
    }
}

/// Returns the key with this number, modulo their count.
fn pick<K: Copy + Ord, V>(from: &BTreeMap<K, V>, number: u8) -> Option<K> {
    from.keys().nth(usize::from(number) % from.len().max(1)).copied()
}

fn job(number: u8) -> JobId {
    JobId::new(&format!("c{number}")).expect("the id is short")
}

fn tag(domain: KeyDomain, id: &JobId) -> Bytes {
    Bytes::from(format!("{domain} {id}"))
}
