//! The paced sweep: random schedules of the coalescer before an upstream that never holds a request, and a second oracle:
//! clients alone that poll at `pace`, first at once, then each time `pace` after an answer.
//!
//! | step | file |
//! | --- | --- |
//! | 1. A seed makes a plan: the true life of each job, actions, clients, and what the upstream does | `plan` |
//! | 2. A run feeds the coalescer in virtual time, and models the gateway's cache and the upstream | this file |
//! | 3. A scheduler gives the polls their turns, or a model does that delays them at random | `turns` |
//! | 4. The oracle checks each answer, each poll and the end of the run | `oracle` |
//!
//! `CLIPGATE_SWEEP_SEED=n` runs seed n with a trace, `CLIPGATE_SWEEP_SEEDS=n` runs the first n seeds.

mod oracle;
mod plan;
mod turns;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use self::oracle::{MAX_HINT, MAX_PAUSE};
use self::plan::{ClientKind, PacedClient, PacedPlan};
use self::turns::Turns;
use super::{domain, zero};
use crate::core::coalescer::{
    Cause, Coalescer, Failure, Input, Output, PollId, PollOutcome, PollProgress, PollSpec, Proof, Timing,
    WaitId, WaitOutcome, WaitSpec,
};
use crate::core::job::{JobSet, JobState, ResponseHead, UpstreamResponse};
use crate::core::route::{Form, Goal, Route, Rung};
use crate::core::scheduler::RetryAdvice;
use crate::core::sweep::{RandomQueue, SeedOnPanic, seeds, setting};

/// Time between the start of a drain and its end.
const DRAIN: Duration = Duration::from_secs(20);

#[test]
fn no_client_is_worse_off_than_alone_at_its_own_pace() {
    run_seeds(false);
}

#[test]
fn no_client_is_worse_off_than_alone_at_its_own_pace_behind_the_scheduler() {
    run_seeds(true);
}

/// Seeds that failed once.
const REGRESSION_SEEDS: [u64; 1] = [1_328_014];

fn run_seeds(has_scheduler: bool) {
    if let Some(seed) = setting("CLIPGATE_SWEEP_SEED") {
        return PacedRun::new(seed, true, has_scheduler).finish();
    }
    for seed in REGRESSION_SEEDS.into_iter().chain(seeds(256)) {
        PacedRun::new(seed, false, has_scheduler).finish();
    }
}

/// A planned event of a run.
#[derive(Debug)]
enum PacedEvent {
    Join(usize),
    Leave(usize),
    /// An action on the job was answered.
    Changed(usize),
    Drain,
    /// A poll has its turn.
    Start(PollId),
    /// The request of this attempt reaches the upstream.
    Arrive(PollId, u64),
    Land(PollId, u64, PollOutcome, Option<Duration>),
    Fail(PollId, u64, Failure, RetryAdvice),
}

/// A poll that is open.
#[derive(Debug)]
struct PacedPoll {
    spec: PollSpec,
    cause: Cause,
    /// Number of the newest attempt. Events of an older one are void.
    attempt: u64,
    began: Option<Duration>,
    failures: u32,
}

/// A reply without jobs. Its body is its number.
#[derive(Debug)]
struct PacedReply {
    spec: PollSpec,
    /// A 404, not an error that a retry may change.
    is_final: bool,
}

/// One run of one seed.
struct PacedRun {
    seed: u64,
    rng: fastrand::Rng,
    has_trace: bool,
    plan: PacedPlan,
    rungs: Vec<Rung>,
    coalescer: Coalescer,
    zero: Instant,
    now: Duration,
    events: RandomQueue<PacedEvent>,
    polls: BTreeMap<PollId, PacedPoll>,
    attempt_count: u64,
    replies: Vec<PacedReply>,
    /// The gateway's cache: the last state of each job.
    cache: BTreeMap<usize, JobState>,
    /// When the last action on each job was answered.
    changed: BTreeMap<usize, Duration>,
    /// When each job was last read by an answer that counts.
    read: BTreeMap<usize, Duration>,
    turns: Turns,
    /// The client of each wait: waits are numbered in the order in which they join.
    waits: Vec<usize>,
    /// Polls of each key that were sent.
    sent: BTreeMap<u8, u64>,
    drained_at: Option<Duration>,
}

impl PacedRun {
    fn new(seed: u64, has_trace: bool, has_scheduler: bool) -> Self {
        let (mut rng, zero) = (fastrand::Rng::with_seed(seed), zero());
        let ladder = Route::suno().ladder;
        let plan = PacedPlan::new(&mut rng);
        let turns = if has_scheduler {
            Turns::scheduler(seed, plan.key_interval, zero)
        } else {
            Turns::Model { paused: BTreeMap::new() }
        };
        let timing = Timing {
            ladder: ladder.clone(),
            hold: Duration::ZERO,
            linger: [Duration::ZERO, Duration::from_secs(2)][rng.usize(..2)],
            watch_idle: Duration::ZERO,
            max_jobs: plan.max_jobs,
            proves: false,
            pace: Some(plan.pace),
        };
        let mut run = Self {
            seed,
            has_trace,
            rungs: ladder.rungs().collect(),
            coalescer: Coalescer::with_poll_ids(timing, seed % 7, 1 + seed % 3),
            zero,
            now: Duration::ZERO,
            events: RandomQueue::new(),
            polls: BTreeMap::new(),
            attempt_count: 0,
            replies: Vec::new(),
            cache: BTreeMap::new(),
            changed: BTreeMap::new(),
            read: BTreeMap::new(),
            turns,
            waits: Vec::new(),
            sent: BTreeMap::new(),
            drained_at: None,
            plan,
            rng,
        };
        (0..run.plan.clients.len()).for_each(|number| run.expect(number));
        for (job, at) in run.plan.actions.clone() {
            run.at(at, PacedEvent::Changed(job));
        }
        if let Some(at) = run.plan.drain {
            run.at(at, PacedEvent::Drain);
        }
        run
    }

    /// Schedules the events of a client.
    fn expect(&mut self, number: usize) {
        let PacedClient { arrives, leaves, .. } = self.plan.clients[number];
        self.at(arrives, PacedEvent::Join(number));
        if let Some(at) = leaves {
            self.at(at, PacedEvent::Leave(number));
        }
    }

    /// Schedules an event.
    fn at(&mut self, at: Duration, event: PacedEvent) {
        self.events.add(&mut self.rng, at, event);
    }

    /// Returns a random time for a request to get there, or back.
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
            assert!(steps < 100_000, "the run does not end");
            let timers = [self.coalescer.poll_timeout(), self.turns.poll_timeout()];
            let timer = timers.into_iter().flatten().min().map(|at| at.saturating_duration_since(self.zero));
            let Some(timer_first) = self.events.is_timer_first(&mut self.rng, timer) else { break };
            if timer_first {
                self.now = self.now.max(timer.unwrap());
                let now = self.instant();
                self.turns.handle_timeout(now);
                self.coalescer.handle_timeout(now);
            } else {
                let (at, event) = self.events.pop().unwrap();
                self.now = at;
                self.handle_event(event);
            }
            self.drain_outputs();
        }
        self.check_end();
    }

    fn handle_event(&mut self, event: PacedEvent) {
        let now = self.instant();
        match event {
            PacedEvent::Join(number) => self.join(number),
            PacedEvent::Leave(number) => {
                let client = &mut self.plan.clients[number];
                if client.joined_at.is_none() {
                    client.leaves = None; // the leave came before the join of the same moment: the client stays
                } else if client.ended_at.is_none() {
                    (client.has_left, client.ended_at) = (true, Some(self.now));
                    self.trace(|| format!("client {number} leaves"));
                    let wait = self.waits.iter().rposition(|client| *client == number).unwrap();
                    self.coalescer.handle(Input::Leave(WaitId(wait as u64)), now);
                }
            }
            PacedEvent::Changed(job) => {
                self.trace(|| format!("an action changed {job}"));
                self.changed.insert(job, self.now);
                self.read.remove(&job);
                self.cache.remove(&job);
                let (key, id) = (domain(self.plan.jobs[job].domain), self.plan.jobs[job].id.clone());
                self.coalescer.handle(Input::JobChanged(key, id), now);
            }
            PacedEvent::Drain => {
                self.trace(|| "drain".to_owned());
                self.drained_at = Some(self.now);
                self.coalescer.handle(Input::Drain(now + DRAIN), now);
            }
            PacedEvent::Start(id) => self.start_attempt(id),
            PacedEvent::Arrive(id, attempt) if self.is_current(id, attempt) => self.arrive(id),
            PacedEvent::Land(id, attempt, outcome, hint) if self.is_current(id, attempt) => {
                self.land(id, outcome, hint);
            }
            PacedEvent::Fail(id, attempt, failure, advice) if self.is_current(id, attempt) => {
                self.trace(|| format!("{id:?} fails: {failure:?} {advice:?}"));
                self.fail(id, failure, advice);
            }
            PacedEvent::Arrive(..) | PacedEvent::Land(..) | PacedEvent::Fail(..) => {}
        }
    }

    fn is_current(&self, id: PollId, attempt: u64) -> bool {
        self.polls.get(&id).is_some_and(|poll| poll.attempt == attempt)
    }

    /// Joins a client, unless the gateway answers it from its cache.
    fn join(&mut self, number: usize) {
        let now = self.instant();
        let client = self.plan.clients[number].clone();
        let is_fresh =
            |state: &&JobState| self.is_terminal(state) || state.as_of + self.plan.pace.live_ttl >= now;
        let known = client.jobs.iter().filter_map(|job| self.cache.get(job)).filter(is_fresh);
        let known: Vec<JobState> =
            if client.kind == ClientKind::NoCache { Vec::new() } else { known.cloned().collect() };
        if client.is_plain() && known.len() == client.jobs.len() {
            self.plan.clients[number].is_cached = true;
            return self.trace(|| format!("client {number} is answered from the cache"));
        }
        self.plan.clients[number].joined_at = Some(self.now);
        let spec = WaitSpec {
            domain: domain(client.domain),
            form: if client.jobs.len() == 1 { Form::Single } else { Form::Multi },
            jobs: JobSet::new(client.jobs.iter().map(|&job| self.plan.jobs[job].id.clone())),
            goal: self.goal(client.kind),
            arrived: now,
            timeout: client.timeout,
            keep: true,
            is_patient: client.is_stream(),
            newer_than: client.newer_than.map(|at| self.zero + at),
            known,
            proof: if client.kind == ClientKind::NoCache { Proof::NoCache } else { Proof::Never },
        };
        self.trace(|| format!("client {number} joins"));
        let id = WaitId(self.waits.len() as u64);
        self.waits.push(number);
        self.coalescer.handle(Input::Join(id, spec), now);
        if self.coalescer.pending_opens() > 0 && self.rng.u8(..16) == 0 {
            self.trace(|| format!("client {number} is cancelled"));
            self.coalescer.handle(Input::CancelJoin(id), now);
            assert_eq!(self.coalescer.pending_opens(), 0, "a cancelled wait costs a request");
            let client = &mut self.plan.clients[number];
            (client.has_left, client.ended_at, client.is_cached) = (true, Some(self.now), true);
            return;
        }
        let backing_off: Vec<PollId> = self.coalescer.pausing(id).collect();
        backing_off.into_iter().for_each(|poll| self.try_now(poll));
    }

    fn goal(&self, kind: ClientKind) -> Goal {
        match kind {
            ClientKind::Plain | ClientKind::NoCache | ClientKind::Stream => Goal::Now,
            ClientKind::Wait(rung) => Goal::Rung(self.rungs[rung]),
            ClientKind::Change(rung) | ClientKind::Follow(rung) => Goal::Not(self.rungs[rung]),
        }
    }

    fn is_terminal(&self, state: &JobState) -> bool {
        self.rung_number(state).is_some_and(|rung| rung >= 3)
    }

    fn rung_number(&self, state: &JobState) -> Option<usize> {
        state.rung.map(|rung| self.rungs.iter().position(|&other| other == rung).unwrap())
    }

    fn drain_outputs(&mut self) {
        loop {
            let Some(output) = self.coalescer.poll_output() else {
                if self.take_turn() {
                    continue;
                }
                return;
            };
            match output {
                Output::Open(id, spec, cause) => {
                    self.trace(|| format!("{id:?} opens for {:?}: {cause:?}", spec.jobs));
                    self.check_open(&spec, cause);
                    let poll = PacedPoll { spec, cause, attempt: 0, began: None, failures: 0 };
                    assert!(self.polls.insert(id, poll).is_none(), "{id:?} opens twice");
                    self.queue(id);
                }
                Output::Abort(id) => {
                    self.trace(|| format!("{id:?} is aborted"));
                    self.polls.remove(&id).expect("only an open poll is aborted");
                    self.turns.withdraw(id, self.zero + self.now);
                }
                Output::Settle(WaitId(wait), result) => {
                    let number = self.waits[usize::try_from(wait).unwrap()];
                    self.check_answer(number, &result.end);
                    self.follow(number, &result.end);
                }
            }
        }
    }

    /// Goes on with an event stream: each of its jobs that has not ended gets a wait of its own.
    fn follow(&mut self, number: usize, outcome: &WaitOutcome) {
        let (client, now) = (self.plan.clients[number].clone(), self.now);
        let WaitOutcome::Reached(states) = outcome else { return };
        if !client.is_stream() || now >= client.deadline() || self.drained_at.is_some() {
            return;
        }
        for state in states {
            let Some(rung) = self.rung_number(state).filter(|_| !self.is_terminal(state)) else { continue };
            let is_of = |job: &&usize| self.plan.jobs[**job].id == state.id;
            let job = *client.jobs.iter().find(is_of).expect("the client names the job");
            self.plan.clients.push(client.follow(job, rung, state.as_of - self.zero, now));
            self.expect(self.plan.clients.len() - 1);
        }
    }

    fn start_attempt(&mut self, id: PollId) {
        let (now, number) = (self.now, self.attempt_count + 1);
        let is_under_way = |poll: &PacedPoll| poll.began.is_some();
        let Some(poll) = self.polls.get_mut(&id).filter(|poll| !is_under_way(poll)) else { return };
        if poll.attempt == 0 {
            *self.sent.entry(poll.spec.domain.0[0]).or_default() += 1;
        }
        (self.attempt_count, poll.attempt, poll.began) = (number, number, Some(now));
        self.coalescer.handle(Input::Progress(id, PollProgress::AttemptStarted), self.zero + now);
        let arrives = now + self.hop();
        self.at(arrives, PacedEvent::Arrive(id, number));
    }

    fn try_now(&mut self, id: PollId) {
        match &mut self.turns {
            Turns::Scheduler(scheduler) if scheduler.is_pausing(id) => {
                scheduler.try_now(id, self.zero + self.now);
            }
            Turns::Scheduler(_) => {}
            Turns::Model { .. } => self.start_attempt(id),
        }
    }

    /// Answers a request at the upstream.
    fn arrive(&mut self, id: PollId) {
        self.turns.sent(id, self.zero + self.now);
        self.coalescer.handle(Input::Progress(id, PollProgress::Held), self.zero + self.now);
        let poll = &self.polls[&id];
        let (spec, attempt, began) = (poll.spec.clone(), poll.attempt, poll.began.unwrap());
        let key = poll.spec.domain.0[0];
        let lands = self.now + self.hop();
        let jobs = self.jobs_of(&spec);
        if self.plan.limited.iter().any(|(of, range)| *of == key && range.contains(&self.now)) {
            let failure = Failure::UpstreamError(self.reply(&spec, false));
            let pause = (self.rng.u8(..4) > 0).then(|| MAX_PAUSE.mul_f64(self.rng.f64().max(0.001)));
            return self.at(lands, PacedEvent::Fail(id, attempt, failure, RetryAdvice::PauseKey(pause)));
        }
        if self.plan.has_faults && self.rng.u8(..5) == 0 {
            let (failure, advice) = (Failure::Unreachable, RetryAdvice::BackOff);
            return self.at(lands, PacedEvent::Fail(id, attempt, failure, advice));
        }
        if jobs.iter().any(|&job| self.plan.jobs[job].gone_from.is_some_and(|at| at <= self.now)) {
            let outcome = PollOutcome::Refused(self.reply(&spec, true));
            return self.at(lands, PacedEvent::Land(id, attempt, outcome, None));
        }
        let mut states: Vec<JobState> = Vec::new();
        for &job in &jobs {
            let is_odd = self.plan.has_unknown_words && self.rng.u8(..10) == 0;
            let rung = (!is_odd).then(|| self.plan.jobs[job].steps.rung_at(self.now));
            states.push(self.state(job, rung, began, lands));
        }
        self.rng.shuffle(&mut states);
        let hint = (self.plan.has_hints && self.rng.u8(..4) == 0).then(|| MAX_HINT.mul_f64(self.rng.f64()));
        // The caller takes the answer in a moment after it was read.
        let taken_in = lands + self.plan.lag.mul_f64(self.rng.f64());
        self.at(taken_in, PacedEvent::Land(id, attempt, PollOutcome::Jobs(states), hint));
    }

    fn land(&mut self, id: PollId, outcome: PollOutcome, hint: Option<Duration>) {
        let now = self.instant();
        self.trace(|| format!("{id:?} lands: {outcome:?}, hint {hint:?}"));
        self.polls.remove(&id);
        self.turns.answered(id, now);
        if let PollOutcome::Jobs(states) = &outcome {
            for state in states {
                let job = self.plan.jobs.iter().position(|job| is_of(state, job)).unwrap();
                let is_current = self.changed.get(&job).is_none_or(|at| state.as_of > self.zero + *at);
                let is_newer = self.cache.get(&job).is_none_or(|cached| cached.as_of <= state.as_of);
                // The clients of some polls forbid to keep the answer.
                let is_kept = !self.plan.has_unkept || self.rng.bool();
                if state.rung.is_some() && is_current && is_newer {
                    if is_kept {
                        self.cache.insert(job, state.clone());
                    }
                    self.read.insert(job, self.now);
                }
            }
        }
        if let Some(pause) = hint {
            self.coalescer.handle(Input::RetryAfter(id, pause), now);
        }
        self.coalescer.handle(Input::Landed(id, outcome), now);
    }

    fn jobs_of(&self, spec: &PollSpec) -> Vec<usize> {
        let is_asked = |n: &usize| {
            let job = &self.plan.jobs[*n];
            domain(job.domain) == spec.domain && spec.jobs.contains(&job.id)
        };
        (0..self.plan.jobs.len()).filter(is_asked).collect()
    }

    /// Returns a state. Its body names the key domain and the job.
    fn state(&self, job: usize, rung: Option<usize>, began: Duration, read: Duration) -> JobState {
        let job = &self.plan.jobs[job];
        JobState {
            id: job.id.clone(),
            rung: rung.map(|rung| self.rungs[rung]),
            body: Bytes::from(format!("{} {}", job.domain, job.id)),
            head: Arc::new(ResponseHead::default()),
            seen_at: self.zero + read,
            as_of: self.zero + began,
        }
    }

    fn reply(&mut self, spec: &PollSpec, is_final: bool) -> Arc<UpstreamResponse> {
        self.replies.push(PacedReply { spec: spec.clone(), is_final });
        let body = Bytes::from((self.replies.len() - 1).to_string());
        Arc::new(UpstreamResponse { status: 429, head: Arc::new(ResponseHead::default()), body })
    }
}

fn is_of(state: &JobState, job: &plan::PacedJob) -> bool {
    state.body == format!("{} {}", job.domain, job.id).as_bytes()
}
