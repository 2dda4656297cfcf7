//! A Coalescer with many waits. The fixture takes the outputs as the hub does.

#![allow(dead_code, reason = "each bench uses a part of it")]

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clipgate::core::coalescer::{
    Coalescer, Input, Output, PollId, PollOutcome, PollProgress, PollSpec, Proof, Timing, WaitId, WaitSpec,
};
use clipgate::core::job::{JobId, JobSet, JobState, KeyDomain, ResponseHead};
use clipgate::core::route::{Form, Goal, Route, Rung};
use clipgate::testing::clock;

/// The machine, its waits, and the polls that it has opened.
pub struct Crowd {
    machine: Coalescer,
    goal: Goal,
    now: Instant,
    /// Number of waits joined so far.
    joined: u64,
    jobs: Vec<JobId>,
    /// Polls by the first job that each asks for.
    polls: HashMap<JobId, PollId>,
    open: HashMap<PollId, PollSpec>,
    lowest: Option<Rung>,
    settled: u64,
}

impl Crowd {
    /// Joins waits on one job each, spread evenly over this number of jobs of one key.
    pub fn new(waits: u64, jobs: u64) -> Self {
        let ladder = Route::suno().ladder;
        let mut crowd = Self {
            lowest: Some(ladder.lowest()),
            open: HashMap::new(),
            goal: Goal::Rung(ladder.highest_askable()),
            machine: Coalescer::new(Timing {
                ladder,
                hold: Duration::from_secs(120),
                linger: Duration::from_secs(2),
                watch_idle: Duration::ZERO,
                max_jobs: 6,
                proves: true,
                pace: None,
            }),
            now: clock::now(),
            joined: 0,
            jobs: (0..jobs).map(job).collect(),
            polls: HashMap::new(),
            settled: 0,
        };
        for _ in 0..waits {
            crowd.join();
        }
        crowd
    }

    /// Joins one more wait, on the next job in turn.
    pub fn join(&mut self) -> WaitId {
        let id = WaitId(self.joined);
        self.joined += 1;
        let spec = self.spec(id);
        self.handle(Input::Join(id, spec));
        id
    }

    fn spec(&self, id: WaitId) -> WaitSpec {
        WaitSpec {
            domain: KeyDomain([7; 16]),
            form: Form::Single,
            jobs: JobSet::new([self.job_of(id)]),
            goal: self.goal,
            arrived: self.now,
            timeout: Duration::from_secs(120),
            keep: true,
            is_patient: false,
            newer_than: None,
            known: Vec::new(),
            proof: Proof::Never,
        }
    }

    /// Joins waits for `jobs` jobs each. Every second job is shared by all of them, the others are a wait's own.
    pub fn join_wide(&mut self, waits: u64, jobs: u64) {
        for wait in 0..waits {
            let ids = (0..jobs)
                .map(|number| job(if number % 2 == 0 { number } else { (wait + 1) * jobs + number }));
            let spec = WaitSpec { form: Form::Multi, jobs: JobSet::new(ids), ..self.spec(WaitId(0)) };
            let id = WaitId(self.joined);
            self.joined += 1;
            self.handle(Input::Join(id, spec));
        }
    }

    /// Lands all polls a minute later, each with its first job at the goal and the others below. Returns their number.
    pub fn land_all_partly(&mut self) -> usize {
        self.now += Duration::from_secs(60);
        let polls: Vec<(PollId, PollSpec)> = self.open.drain().collect();
        for (poll, spec) in &polls {
            let states = spec.jobs.iter().enumerate().map(|(index, id)| {
                let done = self.done(id.clone());
                if index == 0 { done } else { JobState { rung: self.lowest, ..done } }
            });
            let states = states.collect();
            self.handle(Input::Landed(*poll, PollOutcome::Jobs(states)));
        }
        polls.len()
    }

    /// Disconnects the wait's client.
    pub fn leave(&mut self, wait: WaitId) {
        self.handle(Input::Leave(wait));
    }

    /// Lands the poll of the wait's job. Returns the number of waits that this settles.
    pub fn land(&mut self, wait: WaitId) -> u64 {
        let job = self.job_of(wait);
        let poll = self.polls.remove(&job).expect("a wait on the job has opened a poll");
        self.open.remove(&poll);
        let before = self.settled;
        self.handle(Input::Landed(poll, PollOutcome::Jobs(vec![self.done(job)])));
        self.settled - before
    }

    fn job_of(&self, WaitId(number): WaitId) -> JobId {
        self.jobs[usize::try_from(number).expect("a u64 fits a usize") % self.jobs.len()].clone()
    }

    fn done(&self, id: JobId) -> JobState {
        let Goal::Rung(rung) = self.goal else { unreachable!("the goal is a rung") };
        JobState {
            id,
            rung: Some(rung),
            body: Bytes::from_static(b"{}"),
            head: Arc::new(ResponseHead::default()),
            seen_at: self.now,
            as_of: self.now,
        }
    }

    /// Handles an input one microsecond after the last one, and takes the outputs.
    fn handle(&mut self, input: Input) {
        self.now += Duration::from_micros(1);
        self.machine.handle(input, self.now);
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Open(poll, spec, _) => {
                    let job = spec.jobs.iter().next().expect("a poll asks for a job").clone();
                    self.polls.insert(job, poll);
                    self.open.insert(poll, spec);
                    self.machine.handle(Input::Progress(poll, PollProgress::AttemptStarted), self.now);
                    self.machine.handle(Input::Progress(poll, PollProgress::Held), self.now);
                }
                Output::Settle(..) => self.settled += 1,
                Output::Abort(poll) => drop(self.open.remove(&poll)),
            }
        }
        black_box(self.machine.poll_timeout());
    }
}

fn job(number: u64) -> JobId {
    JobId::new(&format!("{number:08x}-0000-4000-8000-000000000000")).expect("the id is short")
}
