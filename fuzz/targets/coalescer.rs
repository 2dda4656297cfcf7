//! Any schedule: the Coalescer's own invariants hold, and each wait that stays is answered, once, in time, and with
//! nothing that is not its own.
//!
//! Everything happens in virtual time. The shell is this file: it may be late with what is due, by `MAX_LATE`; it
//! tells of a poll only what can happen to it.

#![no_main]

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use bytes::Bytes;
use clipgate::testing::clock;
use clipgate::core::job::{JobId, JobSet, JobState, Head, KeyDomain, Reply};
use clipgate::core::coalescer::{
    Coalescer, WaitOutcome, Failure, Input, PollOutcome, Output, PollId, PollSpec, PollProgress, Timing, SNAPSHOT_LIMIT,
    WaitResult, WaitId, WaitSpec,
};
use clipgate::core::route::{Form, Goal, Ladder, Route, Rung};
use libfuzzer_sys::fuzz_target;

const HOLD: Duration = Duration::from_secs(120);
/// Two moments that are closer are one.
const SKEW: Duration = HOLD.checked_div(500).expect("it is not zero");
/// Cost long after its deadline a wait stays for a poll that is about to end.
const GRACE: Duration = HOLD.checked_div(24).expect("it is not zero");
/// Cost late the shell is at most.
const MAX_LATE: Duration = Duration::from_millis(255);
const JOBS: u8 = 5;
/// A schedule has no more waits, so that each of its steps is checked.
const MOST_WAITS: usize = 40;

/// So that durations are all there is.
static ZERO: LazyLock<Instant> = LazyLock::new(clock::now);

#[derive(Arbitrary, Debug)]
struct Schedule {
    max_jobs: u8,
    linger_secs: u8,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Join(Join),
    /// Which of the waits that are there.
    Leave(u8),
    /// Which of the polls that run.
    Try(u8),
    Stand(u8),
    Stall {
        poll: u8,
        pause_millis: u16,
        why: Why,
    },
    Land {
        poll: u8,
        how: Cost,
    },
    /// The answer that lands next asks for a pause.
    RetryAfter {
        poll: u8,
        millis: u32,
    },
    /// An aborted poll lands all the same.
    LandLate {
        poll: u8,
        how: Cost,
    },
    /// Time passes, and what is due is done by `late` milliseconds too late.
    Pass {
        millis: u16,
        late: u8,
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
    /// Which jobs, a bit each.
    jobs: u8,
    is_single: bool,
    /// Its place on the ladder; beyond it: no status.
    goal: u8,
    timeout: Timeout,
    /// Cost long ago it came, in milliseconds.
    since: u8,
    keep: bool,
    /// Which of its jobs are known, a bit each, and where.
    known: u8,
    rung: u8,
    /// It may not cost a request.
    is_refused: bool,
}

#[derive(Arbitrary, Debug)]
enum Timeout {
    Hold,
    Secs(u8),
    Millis(u8),
    Long(u8),
}

#[derive(Arbitrary, Debug)]
enum Why {
    Fault,
    Asked,
    AskedOfKey,
}

#[derive(Arbitrary, Debug)]
enum Cost {
    /// Where each job is, by its number; beyond the ladder: a word that is on none.
    Jobs([u8; JOBS as usize]),
    Reached,
    Whole,
    Refused,
    Answered,
    /// It cannot be read; its bytes are there.
    Unreadable,
    /// It cannot be read, and its bytes are not there.
    Lost,
    Unreachable,
    Local,
}

fuzz_target!(|schedule: Schedule| {
    let mut shell = Shell::new(&schedule);
    for step in &schedule.steps {
        shell.step(step);
        shell.act();
    }
    shell.finish();
});

struct Shell {
    machine: Coalescer,
    ladder: Ladder,
    rungs: Vec<Rung>,
    max_jobs: usize,
    now: Duration,
    late: Duration,
    waits: BTreeMap<WaitId, Wait>,
    next_wait: u64,
    running: BTreeMap<PollId, PollSpec>,
    aborted: BTreeMap<PollId, PollSpec>,
    opened: BTreeMap<PollId, PollSpec>,
    /// Since when, and until when.
    draining: Option<(Duration, Duration)>,
}

struct Wait {
    domain: KeyDomain,
    jobs: JobSet,
    goal: Goal,
    arrived: Duration,
    deadline: Duration,
}

impl Shell {
    fn new(schedule: &Schedule) -> Self {
        let ladder = Route::suno().ladder;
        let max_jobs = usize::from(schedule.max_jobs % JOBS) + 1;
        let linger = Duration::from_secs(schedule.linger_secs.into());
        let rules = Timing { ladder: ladder.clone(), hold: HOLD, linger, max_jobs };
        Self {
            machine: Coalescer::new(rules),
            rungs: ladder.rungs().collect(),
            ladder,
            max_jobs,
            // A wait may have come before the first step.
            now: Duration::from_secs(1),
            late: Duration::ZERO,
            waits: BTreeMap::new(),
            next_wait: 0,
            running: BTreeMap::new(),
            aborted: BTreeMap::new(),
            opened: BTreeMap::new(),
            draining: None,
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Join(join) => self.join(join),
            Step::Leave(place) => {
                if let Some(id) = pick(&self.waits, *place) {
                    self.waits.remove(&id);
                    self.handle(Input::Leave(id));
                }
            }
            Step::Try(place) => self.progress(*place, PollProgress::AttemptStarted),
            Step::Stand(place) => self.progress(*place, PollProgress::Held),
            Step::Stall { poll, pause_millis, why } => {
                let pause = Duration::from_millis((*pause_millis).into());
                let progress = match why {
                    Why::Fault => PollProgress::BackingOff(self.failure_of(*poll), pause),
                    Why::Asked => PollProgress::Paused(self.failure_of(*poll), pause),
                    Why::AskedOfKey => PollProgress::Paused(Failure::KeyRateLimited { retry_after: pause }, pause),
                };
                self.progress(*poll, progress);
            }
            Step::Land { poll, how } => {
                if let Some((id, spec)) =
                    pick(&self.running, *poll).and_then(|id| self.running.remove_entry(&id))
                {
                    self.land(id, &spec, how);
                }
            }
            Step::RetryAfter { poll, millis } => {
                if let Some(id) = pick(&self.running, *poll) {
                    self.handle(Input::RetryAfter(id, Duration::from_millis((*millis).into())));
                }
            }
            Step::LandLate { poll, how } => {
                if let Some((id, spec)) =
                    pick(&self.aborted, *poll).and_then(|id| self.aborted.remove_entry(&id))
                {
                    self.land(id, &spec, how);
                }
            }
            Step::Pass { millis, late } => {
                self.late = Duration::from_millis((*late).into());
                self.pass(Duration::from_millis((*millis).into()));
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
        if self.waits.len() == MOST_WAITS {
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
            goal: askable.map_or(Goal::Now, |&rung| Goal::Rung(rung)),
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
            known: known.collect(),
        };
        self.handle(Input::Join(id, spec));
        if join.is_refused && self.machine.pending_opens() > 0 {
            self.handle(Input::CancelJoin(id));
            assert_eq!(self.machine.pending_opens(), 0, "a refused wait asks");
        } else {
            self.waits.insert(id, wait);
        }
        // What backs off may be tried at once for it, and is a poll that the shell knows.
        let mut backing_off = self.machine.pausing(id);
        assert!(backing_off.all(|poll| self.running.contains_key(&poll)));
    }

    fn progress(&mut self, place: u8, progress: PollProgress) {
        if let Some(id) = pick(&self.running, place) {
            self.handle(Input::Progress(id, progress));
        }
    }

    fn failure_of(&self, place: u8) -> Failure {
        match pick(&self.running, place) {
            Some(id) => Failure::UpstreamError(self.reply(id)),
            None => Failure::Unreachable,
        }
    }

    fn land(&mut self, id: PollId, spec: &PollSpec, how: &Cost) {
        let states = |place: &dyn Fn(u8) -> u8| {
            let named = (0..JOBS).filter(|&number| spec.jobs.contains(&job(number)));
            PollOutcome::Jobs(named.map(|number| self.state(spec.domain, number, place(number))).collect())
        };
        let outcome = match how {
            Cost::Jobs(places) => states(&|number| places[usize::from(number)]),
            Cost::Reached => {
                let asked = |rung: &&Rung| spec.goal == Goal::Rung(**rung);
                let place = self.rungs.iter().take_while(|rung| !asked(rung)).count() % self.rungs.len();
                states(&|_| u8::try_from(place).expect("the ladder is short"))
            }
            Cost::Whole => PollOutcome::Unsplit(self.reply(id)),
            Cost::Refused => PollOutcome::Refused(self.reply(id)),
            Cost::Answered => PollOutcome::Failed(Failure::UpstreamError(self.reply(id))),
            Cost::Unreachable => PollOutcome::Failed(Failure::Unreachable),
            Cost::Unreadable => PollOutcome::Failed(Failure::InvalidResponse(Some(self.reply(id)))),
            Cost::Lost => PollOutcome::Failed(Failure::InvalidResponse(None)),
            Cost::Local => PollOutcome::Failed(Failure::LocalResources),
        };
        self.handle(Input::Landed(id, outcome));
    }

    /// A state as it is seen now; its body says whose and which. A place beyond the ladder is a word on none.
    fn state(&self, domain: KeyDomain, number: u8, place: u8) -> JobState {
        let id = job(number);
        JobState {
            rung: self.rungs.get(usize::from(place)).copied(),
            body: tag(domain, &id),
            id,
            head: Arc::new(Head::default()),
            seen_at: self.at(self.now),
        }
    }

    /// A reply to this poll; its body says to which.
    fn reply(&self, id: PollId) -> Arc<Reply> {
        let body = Bytes::from(id.0.to_string());
        Arc::new(Reply { status: 418, head: Arc::new(Head::default()), body })
    }

    /// Time passes, from one thing that is due to the next.
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
        self.act();
    }

    fn act(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Open(id, spec) => {
                    assert!(self.opened.insert(id, spec.clone()).is_none(), "{id:?} opens twice");
                    assert!((1..=self.max_jobs).contains(&spec.jobs.len()), "{spec:?}");
                    assert!(spec.form == Form::Multi || spec.jobs.len() == 1, "{spec:?}");
                    self.running.insert(id, spec);
                }
                Output::Abort(id) => {
                    let spec = self.running.remove(&id).expect("only what runs is aborted");
                    self.aborted.insert(id, spec);
                }
                Output::Settle(id, settled) => {
                    let wait = self.waits.remove(&id).expect("only a wait that is there is answered");
                    self.check(id, &wait, &settled);
                }
            }
        }
        let is_late = |wait: &Wait| self.now > self.latest(wait);
        assert!(!self.waits.values().any(is_late), "a wait is forgotten");
        assert_eq!(self.machine.waits(), self.waits.len());
    }

    /// When a wait is answered at the latest: being late comes three times, for each of its ways to be due.
    fn latest(&self, wait: &Wait) -> Duration {
        let latest = wait.deadline.max(wait.arrived) + GRACE + SNAPSHOT_LIMIT;
        let latest = match self.draining {
            // Who looks at its jobs already is given the time that it has.
            Some((since, until)) if wait.deadline > since + SKEW => latest.min(until.max(wait.arrived)),
            Some(_) | None => latest,
        };
        latest + MAX_LATE * 4
    }

    fn check(&self, id: WaitId, wait: &Wait, settled: &WaitResult) {
        let deadline = match self.draining {
            Some((since, _)) => wait.deadline.min(since),
            None => wait.deadline,
        };
        let is_over = self.now + SKEW >= deadline;
        match &settled.end {
            WaitOutcome::Reached(states) => {
                self.check_states(wait, states, is_over);
                let reaches = |rung: Rung| match wait.goal {
                    Goal::Now => true,
                    Goal::Rung(goal) => rung >= goal,
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
                };
                assert!(
                    is_over || is_immediate || self.now + *retry_after > deadline + SNAPSHOT_LIMIT,
                    "{id:?} is told of a rest that it outlasts"
                );
            }
            WaitOutcome::Failed(Failure::Unreachable | Failure::InvalidResponse(None) | Failure::LocalResources) => {}
        }
    }

    /// Its jobs, in the set's order, as its key domain was told them, and since it came: an answer that was read just
    /// before and not yet taken in counts. When its time is over, an older state may be proven, or all that is known at
    /// a stop that finds the upstream failing.
    fn check_states(&self, wait: &Wait, states: &[JobState], may_be_old: bool) {
        assert!(states.iter().map(|state| &state.id).eq(&wait.jobs), "{states:?}");
        for state in states {
            assert_eq!(state.body, tag(wait.domain, &state.id));
            let is_old = state.seen_at + SKEW < self.at(wait.arrived);
            assert!(may_be_old || !is_old, "{state:?} is old");
        }
    }

    fn check_origin(&self, wait: &Wait, reply: &Reply) {
        let text = str::from_utf8(&reply.body).expect("it is a number");
        let spec = &self.opened[&PollId(text.parse().expect("it is a number"))];
        assert_eq!(spec.domain, wait.domain);
        assert!(spec.jobs.is_subset(&wait.jobs), "told of {spec:?}");
    }

    /// When nothing happens any more each wait is answered, and each poll forgotten.
    fn finish(&mut self) {
        self.late = Duration::ZERO;
        self.pass(Duration::from_secs(3600));
        assert!(self.waits.is_empty(), "{} waits are forgotten", self.waits.len());
        assert_eq!((self.machine.waits(), self.machine.polls(), self.due()), (0, 0, None));
        assert!(self.running.is_empty(), "{:?}", self.running);
    }
}

/// The one at this place, if there are any.
fn pick<K: Copy + Ord, V>(from: &BTreeMap<K, V>, place: u8) -> Option<K> {
    from.keys().nth(usize::from(place) % from.len().max(1)).copied()
}

fn job(number: u8) -> JobId {
    JobId::new(&format!("c{number}")).expect("it has a length")
}

fn tag(domain: KeyDomain, id: &JobId) -> Bytes {
    Bytes::from(format!("{domain} {id}"))
}
