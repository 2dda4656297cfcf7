//! A Coalescer with a crowd of waits on it, whose outputs are taken as the hub takes them.

#![allow(dead_code, reason = "each bench uses a part of it")]

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clipgate::core::coalescer::{
    Coalescer, Input, Output, PollId, PollOutcome, PollProgress, PollSpec, Timing, WaitId, WaitSpec,
};
use clipgate::core::job::{Head, JobId, JobSet, JobState, KeyDomain};
use clipgate::core::route::{Form, Goal, Route, Rung};
use clipgate::testing::clock;

/// The machine, and what its shell knows of it.
pub struct Crowd {
    machine: Coalescer,
    goal: Goal,
    now: Instant,
    /// Joined so far, those that are gone included.
    joined: u64,
    jobs: Vec<JobId>,
    /// By the job that each asks for.
    polls: HashMap<JobId, PollId>,
    open: HashMap<PollId, PollSpec>,
    lowest: Option<Rung>,
    settled: u64,
}

impl Crowd {
    /// So many waits, each on one job, spread evenly over so many jobs of one key.
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
                max_jobs: 6,
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

    /// One wait more, on the job whose turn it is.
    pub fn join(&mut self) -> WaitId {
        let id = WaitId(self.joined);
        self.joined += 1;
        let spec = self.spec(id);
        self.tell(Input::Join(id, spec));
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
            known: Vec::new(),
        }
    }

    /// So many waits more, each on the same jobs at both ends and on its own between, all of them on `jobs` jobs.
    pub fn join_wide(&mut self, waits: u64, jobs: u64) {
        for wait in 0..waits {
            let ids = (0..jobs)
                .map(|number| job(if number % 2 == 0 { number } else { (wait + 1) * jobs + number }));
            let spec = WaitSpec { form: Form::Multi, jobs: JobSet::new(ids), ..self.spec(WaitId(0)) };
            let id = WaitId(self.joined);
            self.joined += 1;
            self.tell(Input::Join(id, spec));
        }
    }

    /// A minute later every poll lands unreached, but for one of its jobs; how many that were.
    pub fn land_all_partly(&mut self) -> usize {
        self.now += Duration::from_secs(60);
        let polls: Vec<(PollId, PollSpec)> = self.open.drain().collect();
        for (poll, spec) in &polls {
            let states = spec.jobs.iter().enumerate().map(|(place, id)| {
                let done = self.done(id.clone());
                if place == 0 { done } else { JobState { rung: self.lowest, ..done } }
            });
            let states = states.collect();
            self.tell(Input::Landed(*poll, PollOutcome::Jobs(states)));
        }
        polls.len()
    }

    /// The wait's client hangs up.
    pub fn leave(&mut self, wait: WaitId) {
        self.tell(Input::Leave(wait));
    }

    /// The poll of the wait's job lands, and settles each wait on it; how many those are.
    pub fn land(&mut self, wait: WaitId) -> u64 {
        let job = self.job_of(wait);
        let poll = self.polls.remove(&job).expect("its waits have opened it");
        self.open.remove(&poll);
        let before = self.settled;
        self.tell(Input::Landed(poll, PollOutcome::Jobs(vec![self.done(job)])));
        self.settled - before
    }

    fn job_of(&self, WaitId(number): WaitId) -> JobId {
        self.jobs[usize::try_from(number).expect("it fits") % self.jobs.len()].clone()
    }

    fn done(&self, id: JobId) -> JobState {
        let Goal::Rung(rung) = self.goal else { unreachable!("it is a rung") };
        JobState {
            id,
            rung: Some(rung),
            body: Bytes::from_static(b"{}"),
            head: Arc::new(Head::default()),
            seen_at: self.now,
        }
    }

    /// A microsecond passes with each input, as no two are at the same time.
    fn tell(&mut self, input: Input) {
        self.now += Duration::from_micros(1);
        self.machine.handle(input, self.now);
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Open(poll, spec) => {
                    let job = spec.jobs.iter().next().expect("a poll asks for a clip").clone();
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
    JobId::new(&format!("{number:08x}-0000-4000-8000-000000000000")).expect("it is short")
}
