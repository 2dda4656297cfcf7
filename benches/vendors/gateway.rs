//! The same clients through the gateway: the cache of live states, and the coalescer with the pace of the preset.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clipgate::core::coalescer::{
    Coalescer, Input, Output, Pace, PollId, PollOutcome, PollProgress, Proof, Timing, WaitId, WaitOutcome,
    WaitSpec,
};
use clipgate::core::job::{JobId, JobSet, JobState, KeyDomain, ResponseHead};
use clipgate::core::route::{Form, Goal, Route, Rung};

use super::clients::{Outcome, Run};
use super::events::EventQueue;
use super::loops::VendorLoop;

/// How the clients ask the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asking {
    /// Plain GETs in the vendor's own loop.
    Plain,
    /// One `Prefer: wait` after the other.
    Waiting,
}

/// Time of a `Prefer: wait`.
const WAIT: Duration = Duration::from_secs(120);

const DOMAIN: KeyDomain = KeyDomain([0; 16]);

enum Event {
    /// A client sends a request.
    Send,
    /// The request arrives at the gateway.
    Ask,
    /// The client has its answer.
    Answer {
        is_done: bool,
    },
    /// The upstream's answer to a poll arrives at the gateway.
    Land {
        poll: PollId,
        sent: Duration,
        is_done: bool,
    },
    Timer,
}

struct Gateway<'a> {
    run: Run<'a>,
    asking: Asking,
    outcome: Outcome,
    events: EventQueue<Event>,
    coalescer: Coalescer,
    live_ttl: Duration,
    job: JobId,
    rungs: [Rung; 2],
    cached: Option<JobState>,
    waits: u64,
    open: BTreeSet<PollId>,
    /// The next timer that is among the events.
    timer: Option<Duration>,
    zero: Instant,
    now: Duration,
}

/// Plays a run through a gateway. The pace grows to `max_pace` with the age of the job.
pub(crate) fn play(
    vendor: &VendorLoop,
    max_pace: Duration,
    asking: Asking,
    clients: usize,
    seed: u64,
) -> Outcome {
    let run = Run::new(vendor, clients, seed);
    let Route { ladder, pace, lifetimes, .. } = vendor.route();
    let live_ttl = lifetimes.live.unwrap_or(pace);
    let timing = Timing {
        ladder: ladder.clone(),
        hold: Duration::ZERO,
        linger: Duration::from_secs(2),
        watch_idle: Duration::ZERO,
        max_jobs: 1,
        proves: false,
        pace: Some(Pace { min: pace, max: max_pace, live_ttl }),
    };
    let mut gateway = Gateway {
        asking,
        outcome: Outcome::default(),
        events: EventQueue::new(),
        // The gap of a first snapshot is spread by the number of its poll.
        coalescer: Coalescer::with_poll_ids(timing, seed, 1),
        live_ttl,
        job: JobId::new("job").expect("a valid id"),
        rungs: [ladder.lowest(), ladder.highest_askable()],
        cached: None,
        waits: 0,
        open: BTreeSet::new(),
        timer: None,
        zero: clipgate::testing::clock::now(),
        now: Duration::ZERO,
        run,
    };
    for at in gateway.run.arrivals.clone() {
        gateway.events.add(at, Event::Send);
    }
    while let Some((at, event)) = gateway.events.pop() {
        gateway.now = gateway.now.max(at);
        gateway.handle(&event);
        gateway.drain_outputs();
    }
    gateway.outcome
}

impl Gateway<'_> {
    fn handle(&mut self, event: &Event) {
        let now = self.zero + self.now;
        match *event {
            Event::Send => {
                let arrives = self.now + self.run.hop();
                self.events.add(arrives, Event::Ask);
            }
            Event::Ask => self.ask(now),
            Event::Answer { is_done: true } => self.outcome.client_is_done(&self.run, self.now),
            Event::Answer { is_done: false } => {
                let pause = if self.asking == Asking::Plain { self.run.pause() } else { Duration::ZERO };
                self.events.add(self.now + pause, Event::Send);
            }
            Event::Land { poll, sent, is_done } => {
                if self.open.remove(&poll) {
                    let state = self.state(is_done, self.zero + sent, now);
                    self.cached = Some(state.clone());
                    self.coalescer.handle(Input::Landed(poll, PollOutcome::Jobs(vec![state])), now);
                }
            }
            Event::Timer => {
                self.timer = None;
                self.coalescer.handle_timeout(now);
            }
        }
    }

    /// Answers a request from the cache, or lets it wait.
    fn ask(&mut self, now: Instant) {
        let is_live =
            |state: &&JobState| state.as_of + self.live_ttl > now || state.rung == Some(self.rungs[1]);
        let known = self.cached.as_ref().filter(is_live).cloned();
        let reached = known.as_ref().map(|state| state.rung == Some(self.rungs[1]));
        if reached == Some(true) || (reached == Some(false) && self.asking == Asking::Plain) {
            return self.answer(reached == Some(true));
        }
        self.waits += 1;
        let spec = WaitSpec {
            domain: DOMAIN,
            form: Form::Single,
            jobs: JobSet::new([self.job.clone()]),
            goal: if self.asking == Asking::Plain { Goal::Now } else { Goal::Rung(self.rungs[1]) },
            arrived: now,
            timeout: WAIT,
            keep: true,
            is_patient: false,
            newer_than: None,
            known: known.into_iter().collect(),
            proof: Proof::Never,
        };
        self.coalescer.handle(Input::Join(WaitId(self.waits), spec), now);
    }

    fn answer(&mut self, is_done: bool) {
        let arrives = self.now + self.run.hop();
        self.events.add(arrives, Event::Answer { is_done });
    }

    fn state(&self, is_done: bool, as_of: Instant, seen_at: Instant) -> JobState {
        let rung = Some(self.rungs[usize::from(is_done)]);
        let head = Arc::new(ResponseHead::default());
        JobState { id: self.job.clone(), rung, body: Bytes::new(), head, seen_at, as_of }
    }

    fn drain_outputs(&mut self) {
        while let Some(output) = self.coalescer.poll_output() {
            let now = self.zero + self.now;
            match output {
                Output::Open(poll, _, _) => {
                    self.outcome.calls += 1;
                    self.open.insert(poll);
                    let read_at = self.now + self.run.transit();
                    let is_done = read_at >= self.run.done_at;
                    let lands_at = read_at + self.run.transit();
                    self.events.add(lands_at, Event::Land { poll, sent: self.now, is_done });
                    self.coalescer.handle(Input::Progress(poll, PollProgress::AttemptStarted), now);
                    self.coalescer.handle(Input::Progress(poll, PollProgress::Held), now);
                }
                Output::Abort(poll) => {
                    self.open.remove(&poll);
                }
                Output::Settle(_, result) => match result.end {
                    WaitOutcome::Reached(states) | WaitOutcome::TimedOut(states) => {
                        self.answer(states.iter().all(|state| state.rung == Some(self.rungs[1])));
                    }
                    end => panic!("the upstream never fails: {}", end.reason()),
                },
            }
        }
        if let Some(due) = self.coalescer.poll_timeout() {
            let due = due.saturating_duration_since(self.zero).max(self.now);
            if self.timer.is_none_or(|timer| due < timer) {
                self.timer = Some(due);
                self.events.add(due, Event::Timer);
            }
        }
    }
}
