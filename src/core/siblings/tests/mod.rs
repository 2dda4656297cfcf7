//! Timelines of one machine: the test plays the coalescer, the engine and the siblings.
//!
//! A [`Gateway`] writes each output as one line.

mod failed_calls;
mod links;
mod revocation;
mod runs;
mod sharing;
mod suspended;
mod takeover;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::*;
use crate::core::coalescer::{PollOutcome, PollProgress};
use crate::core::job::{JobId, JobSet, JobState, ResponseHead};
use crate::core::job_body::ListShape;
use crate::core::route::{Goal, Ladder, Route, Rung};

const ME: ReplicaName = ReplicaName(1);
const SIBLING: ReplicaName = ReplicaName(2);
const OTHER: ReplicaName = ReplicaName(3);
const EPOCH: KeyEpoch = KeyEpoch(7);
const KEY: KeyDomain = KeyDomain([1; 16]);

/// The machine, its clock, and its outputs since the last look.
struct Gateway {
    machine: Siblings,
    ladder: Ladder,
    zero: Instant,
    now: Instant,
    lines: Vec<String>,
    /// Last call of each kind.
    calls: HashMap<&'static str, (CallId, EngineCall)>,
    landed: Vec<PollOutcome>,
    /// Whether the engine answers beats and sends them back.
    is_engine_up: bool,
    /// Whether a started poll is attempted at once.
    makes_attempts: bool,
    me: ReplicaName,
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn name(poll: u64) -> PollName {
    PollName(u128::from(poll))
}

/// The lease of a sibling.
fn token(number: u64) -> LeaseToken {
    LeaseToken { instance: 99, number }
}

impl Gateway {
    /// Creates a machine whose link is up and that hears itself.
    fn linked() -> Self {
        Self::with_linger(ms(2_000))
    }

    fn with_linger(linger: Duration) -> Self {
        let mut gateway = Self::alone();
        gateway.machine.config.linger = linger;
        gateway.link_up(ME);
        gateway.take();
        gateway
    }

    fn alone() -> Self {
        let ladder = Route::suno().ladder;
        let config = SiblingConfig {
            instance: 5,
            patience: ms(50),
            takeover: ms(2_000),
            linger: ms(2_000),
            refusal_ttl: ms(60_000),
            ladders: vec![ladder.clone()],
        };
        let zero = crate::clock::now();
        Self {
            machine: Siblings::new(config),
            ladder,
            zero,
            now: zero,
            lines: Vec::new(),
            calls: HashMap::new(),
            landed: Vec::new(),
            is_engine_up: true,
            makes_attempts: true,
            me: ME,
        }
    }

    fn link_up(&mut self, me: ReplicaName) {
        self.me = me;
        self.input(SiblingInput::LinkUp(me));
    }

    fn input(&mut self, input: SiblingInput) {
        self.machine.handle(input, self.now);
        self.carry_out();
    }

    fn message(&mut self, message: SiblingMessage) {
        self.input(SiblingInput::Message(message));
    }

    fn beat(&mut self, of: ReplicaName) {
        self.message(SiblingMessage::Beat(of, None));
    }

    /// Answers the last call of a kind.
    fn answer(&mut self, kind: &'static str, answer: EngineAnswer) {
        let (call, _) = self.calls.remove(kind).unwrap_or_else(|| panic!("no {kind} was called"));
        self.input(SiblingInput::Answer(call, answer));
    }

    /// Lets the engine fail the last call of a kind.
    fn fail(&mut self, kind: &'static str) {
        let (call, _) = self.calls.remove(kind).unwrap_or_else(|| panic!("no {kind} was called"));
        self.input(SiblingInput::Failed(call));
    }

    fn spec(&self, poll: u64) -> ShareSpec {
        ShareSpec {
            name: name(poll),
            domain: KEY,
            jobs: JobSet::new([JobId::new("a").unwrap()]),
            goal: Goal::Rung(self.rung(3)),
            hold: ms(120_000),
            takes_known: true,
            max_age: Duration::ZERO,
            needs_shape: false,
        }
    }

    fn rung(&self, number: usize) -> Rung {
        self.ladder.rungs().nth(number).unwrap()
    }

    fn open(&mut self, poll: u64) {
        let spec = self.spec(poll);
        self.input(SiblingInput::Open(PollId(poll), spec));
    }

    /// Opens a poll that this replica makes.
    fn open_granted(&mut self, poll: u64) -> LeaseToken {
        self.open(poll);
        let EngineCall::Claim(request) = self.calls["claim"].1.clone() else { panic!("no claim") };
        self.answer("claim", EngineAnswer::Granted(EPOCH));
        self.take();
        request.token
    }

    /// Opens a poll that the sibling makes.
    fn open_held(&mut self, poll: u64) {
        self.open(poll);
        self.answer("claim", held(SIBLING, poll, ms(0)));
        self.take();
    }

    fn state(&self, rung: usize, age: Duration) -> SharedState {
        SharedState {
            id: JobId::new("a").unwrap(),
            rung: Some(self.rung(rung)),
            body: Some(Bytes::from_static(b"{}")),
            head: Arc::new(ResponseHead::default()),
            age,
            is_final: rung >= 3,
            shape: None,
        }
    }

    fn outcome(&self, rung: usize) -> PollOutcome {
        let SharedState { id, rung, body, head, .. } = self.state(rung, ms(0));
        let body = body.unwrap();
        PollOutcome::Jobs(vec![JobState { id, rung, body, head, seen_at: self.now, as_of: self.now }])
    }

    fn landed_message(&self, poll: u64, rung: usize, age: Duration) -> SiblingMessage {
        let outcome = SharedOutcome::Jobs(vec![self.state(rung, age)]);
        SiblingMessage::Landed(name(poll), token(poll), EPOCH, outcome)
    }

    /// Lets time pass, with all timers on the way.
    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        let mut steps = 0;
        while let Some(due) = self.machine.poll_timeout().filter(|due| *due <= until) {
            steps += 1;
            assert!(steps < 10_000, "a timer is always due");
            self.now = self.now.max(due);
            self.machine.handle_timeout(self.now);
            self.carry_out();
        }
        self.now = until;
    }

    /// Lets time pass until this line comes, and returns the time. Fails after `limit`.
    fn wait_for(&mut self, line: &str, limit: Duration) -> Duration {
        let from = self.now;
        while !self.lines.iter().any(|output| output == line) {
            self.pass(ms(1));
            assert!(self.now <= from + limit, "no {line} within {limit:?}: {:?}", self.lines);
        }
        self.now - from
    }

    /// Lets time pass while these siblings beat.
    fn pass_with(&mut self, siblings: &[ReplicaName], time: Duration) {
        let until = self.now + time;
        while self.now < until {
            siblings.iter().for_each(|sibling| self.beat(*sibling));
            self.pass(ms(250).min(until - self.now));
        }
    }

    fn carry_out(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            let line = match output {
                SiblingOutput::Start(PollId(id)) => {
                    if self.makes_attempts {
                        let attempt = SiblingInput::Progress(PollId(id), PollProgress::AttemptStarted);
                        self.machine.handle(attempt, self.now);
                    }
                    format!("start {id}")
                }
                SiblingOutput::Progress(_, PollProgress::AttemptStarted) => continue,
                SiblingOutput::Cancel(PollId(id)) => format!("cancel {id}"),
                SiblingOutput::TryNow(PollId(id)) => format!("try {id}"),
                SiblingOutput::Progress(PollId(id), PollProgress::Elsewhere { opened_at, held_from }) => {
                    let at = opened_at.saturating_duration_since(self.zero).as_millis();
                    format!("elsewhere {id} since {at}{}", if held_from.is_some() { " held" } else { "" })
                }
                SiblingOutput::Progress(PollId(id), PollProgress::Lost) => format!("lost {id}"),
                SiblingOutput::Progress(PollId(id), _) => format!("progress {id}"),
                SiblingOutput::Landed(PollId(id), outcome) => {
                    self.landed.push(outcome);
                    format!("landed {id}")
                }
                SiblingOutput::Shape(PollId(id), shape) => format!("shape {id} {shape:?}"),
                SiblingOutput::CountSubscribers(_) => continue,
                SiblingOutput::Resubscribe => "resubscribe".to_owned(),
                SiblingOutput::Call(id, EngineCall::Beat(former)) => {
                    if self.is_engine_up {
                        let time = EngineTime(self.now.saturating_duration_since(self.zero));
                        self.machine.handle(SiblingInput::Answer(id, EngineAnswer::Done(time)), self.now);
                        let beat = SiblingMessage::Beat(self.me, former);
                        self.machine.handle(SiblingInput::Message(beat), self.now);
                    } else {
                        self.calls.insert("beat", (id, EngineCall::Beat(former)));
                    }
                    continue;
                }
                SiblingOutput::Call(id, call) => {
                    let kind = match &call {
                        EngineCall::Claim(request) if request.is_look => "look",
                        EngineCall::Claim(_) => "claim",
                        EngineCall::Adopt { .. } => "adopt",
                        EngineCall::Land { .. } => "land",
                        EngineCall::Fail(..) => "fail",
                        EngineCall::Leave(..) => "leave",
                        EngineCall::Detach(_) => "detach",
                        EngineCall::Note(_, _, Some(_)) => "note held",
                        EngineCall::Note(_, _, None) => "note not held",
                        EngineCall::Refuse { .. } => "refuse",
                        EngineCall::Remove(_) => "remove",
                        EngineCall::Pause(..) => "pause",
                        EngineCall::Flushed => "flushed",
                        EngineCall::Beat(_) => "beat",
                    };
                    self.calls.insert(kind, (id, call));
                    kind.to_owned()
                }
            };
            self.lines.push(line);
        }
    }

    /// Returns the outputs since the last call, without beats and counts.
    fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines)
    }

    /// Lets time pass without the gateway's own beats until it subscribes again.
    fn deafen(&mut self) {
        self.is_engine_up = false;
        for _ in 0..5 {
            self.pass(ms(250));
            self.input(SiblingInput::Subscribers(SIBLING, 1)); // the engine answers
        }
        assert_eq!(self.take(), ["resubscribe"]);
    }

    fn suspicion(&self) -> Option<Suspicion> {
        let EngineCall::Claim(request) = &self.calls["claim"].1 else { panic!("no claim") };
        request.suspicion
    }
}

fn held(by: ReplicaName, poll: u64, age: Duration) -> EngineAnswer {
    EngineAnswer::Held { by, token: token(poll), age, epoch: EPOCH }
}
