//! Timelines in virtual time: one for each guarantee, and one for each schedule that broke one.
//!
//! A [`Scenario`] has clients by number, and the test plays the upstream.

mod attaching;
mod causes;
mod deadlines;
mod drain;
mod elsewhere;
mod faults;
mod isolation;
mod leaving;
mod pace;
mod proof;
mod results;
mod sharing;
mod shed;
mod watch;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::*;
use crate::core::job::{JobId, JobSet, JobState, KeyDomain, ResponseHead, UpstreamResponse};
use crate::core::route::{Form, Ladder, Route};

#[expect(clippy::disallowed_methods, reason = "an arbitrary zero for virtual time")]
pub(super) fn zero() -> Instant {
    Instant::now()
}

/// The machine and its clock. It reports each attempt as held as soon as a poll opens, unless a test asks otherwise.
struct Scenario {
    machine: Coalescer,
    ladder: Ladder,
    zero: Instant,
    now: Instant,
    /// Open polls in the order of their opening, each as `jobs goal`.
    open: Vec<(PollId, String)>,
    /// Number of polls opened so far.
    opened: usize,
    /// Cause of each poll opened so far.
    causes: Vec<Cause>,
    aborted: usize,
    results: HashMap<u64, WaitResult>,
    /// Whether the upstream holds a poll as soon as it is opened.
    holds: bool,
    /// Whether polls wait for their turn until the test reports an attempt.
    queues: bool,
}

fn domain(number: u8) -> KeyDomain {
    KeyDomain([number; 16])
}

fn secs(secs: f64) -> Duration {
    Duration::from_secs_f64(secs)
}

fn jobs(ids: &str) -> JobSet {
    JobSet::new(ids.split(' ').map(|id| JobId::new(id).unwrap()))
}

fn reply(status: u16) -> Arc<UpstreamResponse> {
    Arc::new(UpstreamResponse { status, head: Arc::new(ResponseHead::default()), body: Bytes::new() })
}

impl Scenario {
    fn new() -> Self {
        Self::with(6, secs(2.0))
    }

    fn with(max_jobs: usize, linger: Duration) -> Self {
        let ladder = Route::suno().ladder;
        let timing = Timing {
            ladder: ladder.clone(),
            hold: secs(120.0),
            linger,
            watch_idle: Duration::ZERO,
            max_jobs,
            proves: true,
            pace: None,
        };
        let zero = zero();
        Self {
            machine: Coalescer::new(timing),
            ladder,
            zero,
            now: zero,
            open: Vec::new(),
            opened: 0,
            causes: Vec::new(),
            aborted: 0,
            results: HashMap::new(),
            holds: true,
            queues: false,
        }
    }

    /// Moves on to this number of seconds from the start, through all timers until then.
    fn at(&mut self, seconds: f64) -> &mut Self {
        let until = self.zero + secs(seconds);
        while let Some(due) = self.machine.poll_timeout().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            self.machine.handle_timeout(self.now);
            self.take_outputs();
        }
        self.now = until;
        self
    }

    fn take_outputs(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Open(id, spec, cause) => {
                    let ids: Vec<_> = spec.jobs.iter().map(JobId::as_str).collect();
                    let goal = match spec.goal {
                        Goal::Now => "now",
                        Goal::Not(_) => "not",
                        Goal::Rung(rung) => self.ladder.name(rung),
                    };
                    self.open.push((id, format!("{} {goal}", ids.join(" "))));
                    self.opened += 1;
                    self.causes.push(cause);
                    if !self.queues {
                        self.machine.handle(Input::Progress(id, PollProgress::AttemptStarted), self.now);
                    }
                    if self.holds && !self.queues {
                        self.machine.handle(Input::Progress(id, PollProgress::Held), self.now);
                    }
                }
                Output::Abort(id) => {
                    self.take(id);
                    self.aborted += 1;
                }
                Output::Settle(WaitId(number), result) => {
                    assert!(
                        self.results.insert(number, result).is_none(),
                        "client {number} is answered twice"
                    );
                }
            }
        }
    }

    fn take(&mut self, id: PollId) {
        let at = self.open.iter().position(|(open, _)| *open == id).expect("it is open");
        self.open.remove(at);
    }

    fn poll(&self, what: &str) -> PollId {
        let found = self.open.iter().find(|(_, open)| open == what);
        found.unwrap_or_else(|| panic!("no poll for {what}: {:?}", self.open)).0
    }

    fn spec(&self, ids: &str, word: &str) -> WaitSpec {
        let jobs = jobs(ids);
        WaitSpec {
            domain: domain(0),
            form: if jobs.len() == 1 { Form::Single } else { Form::Multi },
            jobs,
            goal: self.ladder.rung(word).map_or(Goal::Now, Goal::Rung),
            arrived: self.now,
            timeout: secs(120.0),
            keep: true,
            is_patient: false,
            newer_than: None,
            known: Vec::new(),
            proof: Proof::Never,
        }
    }

    fn join_with(&mut self, number: u64, spec: WaitSpec) -> &mut Self {
        self.handle(Input::Join(WaitId(number), spec))
    }

    /// Joins a client that waits 2 minutes for these jobs to reach a rung.
    fn join(&mut self, number: u64, ids: &str, word: &str) -> &mut Self {
        let spec = self.spec(ids, word);
        self.join_with(number, spec)
    }

    fn join_for(&mut self, number: u64, ids: &str, word: &str, timeout: f64) -> &mut Self {
        let spec = WaitSpec { timeout: secs(timeout), ..self.spec(ids, word) };
        self.join_with(number, spec)
    }

    /// Joins a client that asks for the state at once, and accepts bytes that are half a minute old.
    fn get(&mut self, number: u64, ids: &str) -> &mut Self {
        let spec = WaitSpec { proof: Proof::Within(secs(30.0)), ..self.spec(ids, "") };
        self.join_with(number, spec)
    }

    /// Returns whether a client was answered from proof.
    fn is_proven(&self, number: u64) -> bool {
        self.results.get(&number).is_some_and(|result| result.how == Cost::Proven)
    }

    fn leave(&mut self, number: u64) -> &mut Self {
        self.handle(Input::Leave(WaitId(number)))
    }

    fn handle(&mut self, input: Input) -> &mut Self {
        self.machine.handle(input, self.now);
        self.take_outputs();
        self
    }

    fn progress(&mut self, what: &str, progress: PollProgress) -> &mut Self {
        let id = self.poll(what);
        self.handle(Input::Progress(id, progress))
    }

    fn land_as(&mut self, what: &str, outcome: PollOutcome) -> &mut Self {
        let id = self.poll(what);
        self.take(id);
        self.handle(Input::Landed(id, outcome))
    }

    fn state(&self, id: &str, word: &str) -> JobState {
        JobState {
            id: JobId::new(id).unwrap(),
            rung: self.ladder.rung(word),
            body: Bytes::from(format!("{id}={word}")),
            head: Arc::new(ResponseHead::default()),
            seen_at: self.now,
            as_of: self.now,
        }
    }

    /// Lands a poll with states: `a=queued b=completed`.
    fn land(&mut self, what: &str, states: &str) -> &mut Self {
        let head = Arc::new(ResponseHead::default());
        let states = states.split(' ').map(|state| {
            let (id, word) = state.split_once('=').unwrap();
            JobState { head: Arc::clone(&head), ..self.state(id, word) }
        });
        let outcome = PollOutcome::Jobs(states.collect());
        self.land_as(what, outcome)
    }

    fn answer_now(&mut self, number: u64) -> String {
        self.take_outputs();
        self.answer(number)
    }

    /// Returns the answer of a client so far, empty while it waits.
    fn answer(&self, number: u64) -> String {
        let Some(result) = self.results.get(&number) else { return String::new() };
        let bodies = |states: &[JobState]| {
            let bodies = states.iter().map(|state| String::from_utf8(state.body.to_vec()).unwrap());
            bodies.collect::<Vec<_>>().join(" ")
        };
        match &result.end {
            WaitOutcome::Reached(states) => format!("reached {}", bodies(states)),
            WaitOutcome::TimedOut(states) => format!("timed out {}", bodies(states)),
            WaitOutcome::Unsplit(reply) => format!("unsplit {}", reply.status),
            WaitOutcome::Refused(reply) => format!("refused {}", reply.status),
            WaitOutcome::Failed(Failure::UpstreamError(reply)) => format!("failed {}", reply.status),
            WaitOutcome::Failed(failure) => format!("failed {failure:?}"),
        }
    }

    /// Asserts the answers of the clients numbered 1 and up.
    #[track_caller]
    fn assert_answers(&self, answers: &[&str]) {
        let all: Vec<String> = (1..).take(answers.len()).map(|number| self.answer(number)).collect();
        assert_eq!(all, answers);
    }

    fn open(&self) -> Vec<&str> {
        self.open.iter().map(|(_, what)| what.as_str()).collect()
    }

    fn is_idle(&self) -> bool {
        self.machine.waits() == 0
            && self.machine.polls() == 0
            && self.machine.poll_timeout().is_none()
            && self.open.is_empty()
    }
}

/// Returns the progress of a poll that the upstream answered with this status and a `Retry-After` of this many seconds.
fn paused(status: u16, pause: f64) -> PollProgress {
    PollProgress::Paused(Failure::UpstreamError(reply(status)), secs(pause))
}

/// Returns the progress of a poll whose key is paused for this many seconds.
fn key_paused(pause: f64) -> PollProgress {
    PollProgress::Paused(Failure::KeyRateLimited { retry_after: secs(pause) }, secs(pause))
}
