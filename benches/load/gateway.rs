//! The gateway: the coalescer, the scheduler and the rules of the cache, driven in virtual time as the hub drives them.
//!
//! ```text
//!   Clients ── Ask ──▶ cache ── miss ──▶ Coalescer ── Open ──▶ PollScheduler ── Start ──▶ Upstream
//!      ▲                │ hit               │ ▲                                              │
//!      └────────────────┴───── Settle ──────┘ └───────────────── Landed ◀────────────────────┘
//! ```
//!
//! Not modelled: faults, quotas, `no-cache`, several replicas, and the time that the gateway itself takes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clipgate::core::backoff::Backoff;
use clipgate::core::breaker::BreakerRules;
use clipgate::core::coalescer::{
    Cause, Coalescer, Cost, Input, Output, PollId, PollOutcome, PollProgress, PollSpec, Proof, Timing,
    WaitId, WaitOutcome, WaitSpec,
};
use clipgate::core::job::{JobId, JobSet, JobState, KeyDomain, ResponseHead};
use clipgate::core::route::{Form, Goal, Ladder, Route, Rung};
use clipgate::core::scheduler::{
    AttemptResult, PollClass, PollRequest, PollScheduler, SchedulerConfig, SchedulerOutput,
};

use super::clients::{Action, ClientRequest, Clients, RequestId};
use super::day::{Day, RungNumber};
use super::events::EventQueue;
use super::mix::{GatewayMix, Mix};
use super::outcome::{Answers, Outcome};
use super::upstream::{Reply, Upstream};

/// The rules of the gateway that a run can leave out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Answers from proof: otherwise `cache.proven_ttl` is 0.
    pub(crate) proof: bool,
    /// Watches: otherwise `wait.watch_idle` is 0.
    pub(crate) watch: bool,
    /// Shedding: otherwise a poll for several jobs stays open beside one for each of them.
    pub(crate) shed: bool,
}

/// Plays a day through a gateway.
pub(crate) fn play(day: &Day, mix: &Mix, rules: Rules) -> Outcome {
    let mut gateway = Gateway::new(day, mix, rules);
    while gateway.step() {}
    Outcome {
        calls: gateway.upstream.into_calls(),
        record: gateway.clients.into_record(),
        answers: gateway.answers,
    }
}

/// A poll that the coalescer opened.
struct OpenPoll {
    spec: PollSpec,
    cause: &'static str,
    /// The request at the upstream, once the scheduler has started it.
    sent: Option<(Duration, Reply)>,
}

enum PollEvent {
    /// The request is on a connection.
    Sent(PollId),
    Land(PollId),
}

struct Gateway<'a> {
    day: &'a Day,
    clients: Clients<'a>,
    upstream: Upstream<'a>,
    coalescer: Coalescer,
    scheduler: PollScheduler,
    cache: CacheModel<'a>,
    proof: Proof,
    rungs: Vec<Rung>,
    ids: Vec<JobId>,
    head: Arc<ResponseHead>,
    polls: BTreeMap<PollId, OpenPoll>,
    events: EventQueue<PollEvent>,
    answers: Answers,
    /// Start of the day.
    zero: Instant,
    now: Duration,
}

impl<'a> Gateway<'a> {
    fn new(day: &'a Day, mix: &'a Mix, rules: Rules) -> Self {
        let ladder = Route::suno().ladder;
        let settings = &mix.gateway;
        let timing = Timing {
            ladder: ladder.clone(),
            hold: mix.upstream.hold.0,
            linger: settings.linger.0,
            max_jobs: 6,
            proves: true,
            pace: None,
            watch_idle: if rules.watch { settings.watch_idle.0 } else { Duration::ZERO },
        };
        let scheduler = SchedulerConfig {
            max_polls: settings.max_polls,
            interval: Duration::ZERO,
            key_interval: Duration::ZERO,
            retries: 2,
            retry_for: Duration::from_secs(30),
            backoff: Backoff { first: Duration::from_millis(200), cap: Duration::from_secs(2) },
            breaker: BreakerRules { failures: 5, cooldown: Duration::from_secs(5) },
        };
        let coalescer = Coalescer::new(timing);
        let is_proof_on = rules.proof && !settings.proven_ttl.0.is_zero();
        Self {
            day,
            clients: Clients::new(day, &mix.upstream),
            upstream: Upstream::new(day, &mix.upstream),
            coalescer: if rules.shed { coalescer } else { coalescer.without_shedding() },
            scheduler: PollScheduler::new(scheduler, day.seed),
            proof: if is_proof_on { Proof::Within(settings.proven_ttl.0) } else { Proof::Never },
            rungs: ladder.rungs().collect(),
            cache: CacheModel::new(settings, ladder),
            ids: (0..day.jobs.len()).filter_map(|job| JobId::new(&job.to_string()).ok()).collect(),
            head: Arc::new(ResponseHead::default()),
            polls: BTreeMap::new(),
            events: EventQueue::new(),
            answers: Answers::default(),
            zero: clipgate::testing::clock::now(),
            now: Duration::ZERO,
        }
    }

    /// Handles the next timer or event. Returns false at the end of the day.
    fn step(&mut self) -> bool {
        let timers = [self.coalescer.poll_timeout(), self.scheduler.poll_timeout()];
        let timer = timers.into_iter().flatten().min().map(|at| at.saturating_duration_since(self.zero));
        let (poll, client) = (self.events.next_at(), self.clients.next_at());
        let Some(next) = [timer, poll, client].into_iter().flatten().min() else { return false };
        if timer == Some(next) {
            self.now = self.now.max(next);
            self.scheduler.handle_timeout(self.instant());
            self.coalescer.handle_timeout(self.instant());
        } else if poll == Some(next) {
            if let Some((at, event)) = self.events.pop() {
                self.now = at;
                self.handle_poll_event(&event);
            }
        } else if let Some((at, action)) = self.clients.handle_event() {
            self.now = at;
            match action {
                Some(Action::Ask(id, request)) => self.ask(id, &request),
                Some(Action::Drop(id)) => self.coalescer.handle(Input::Leave(WaitId(id.0)), self.instant()),
                None => {}
            }
        }
        self.drain_outputs();
        true
    }

    fn instant(&self) -> Instant {
        self.zero + self.now
    }

    /// Answers a request from the cache, or lets it wait.
    fn ask(&mut self, id: RequestId, request: &ClientRequest) {
        let now = self.instant();
        let (domain, jobs) =
            (domain(request.key), JobSet::new(request.jobs.iter().map(|&job| self.ids[job].clone())));
        let known: Vec<JobState> = jobs.iter().filter_map(|job| self.cache.get(domain, job, now)).collect();
        if known.len() == jobs.len() {
            self.answers.hits += 1;
            let states = self.states(&known);
            return self.clients.answer(id, &states, self.now);
        }
        let timeout = request.stream_ends.map(|ends| ends.saturating_sub(self.now));
        let spec = WaitSpec {
            domain,
            form: if jobs.len() == 1 { Form::Single } else { Form::Multi },
            jobs,
            goal: request.rung.map_or(Goal::Now, |rung| Goal::Rung(self.rungs[rung])),
            arrived: now,
            timeout: timeout.unwrap_or(WAIT_TIMEOUT),
            keep: true,
            is_patient: request.stream_ends.is_some(),
            newer_than: None,
            known,
            proof: if self.cache.is_key_proven(domain) { self.proof } else { Proof::Never },
        };
        self.coalescer.handle(Input::Join(WaitId(id.0), spec), now);
    }

    fn handle_poll_event(&mut self, event: &PollEvent) {
        let now = self.instant();
        match *event {
            PollEvent::Sent(id) if self.polls.contains_key(&id) => {
                self.scheduler.sent(id, now);
                self.coalescer.handle(Input::Progress(id, PollProgress::Held), now);
            }
            PollEvent::Land(id) => {
                let Some(OpenPoll { spec, cause, sent: Some((began, reply)) }) = self.polls.remove(&id)
                else {
                    return;
                };
                self.upstream.count(cause, began, self.now);
                let states: Vec<JobState> =
                    spec.jobs.iter().map(|job| self.state(job, reply.read_at, now)).collect();
                self.cache.key_accepted(spec.domain, self.zero + began);
                if self.coalescer.may_cache(id) {
                    states.iter().for_each(|state| self.cache.store(spec.domain, state));
                }
                self.scheduler.ended(id, AttemptResult::Answered, now);
                self.coalescer.handle(Input::Landed(id, PollOutcome::Jobs(states)), now);
            }
            PollEvent::Sent(_) => {}
        }
    }

    /// Returns the state of a job as the upstream read it at `read_at`.
    fn state(&self, id: &JobId, read_at: Duration, seen_at: Instant) -> JobState {
        let rung = self.day.jobs[number(id)].rung_at(read_at);
        let head = Arc::clone(&self.head);
        JobState {
            id: id.clone(),
            rung: Some(self.rungs[rung]),
            body: Bytes::new(),
            head,
            seen_at,
            as_of: seen_at,
        }
    }

    fn states(&self, states: &[JobState]) -> Vec<(usize, RungNumber)> {
        let rung = |state: &JobState| self.rungs.iter().position(|rung| Some(*rung) == state.rung);
        states.iter().filter_map(|state| Some((number(&state.id), rung(state)?))).collect()
    }

    /// Carries out the outputs of both state machines.
    fn drain_outputs(&mut self) {
        loop {
            if let Some(output) = self.coalescer.poll_output() {
                self.apply(output);
            } else if let Some(output) = self.scheduler.poll_output() {
                match output {
                    SchedulerOutput::Start(id) => self.start(id),
                    SchedulerOutput::BackOff(..)
                    | SchedulerOutput::Pause(..)
                    | SchedulerOutput::GiveUp(..) => {
                        panic!("the upstream never fails: {output:?}")
                    }
                }
            } else {
                return;
            }
        }
    }

    fn apply(&mut self, output: Output) {
        let now = self.instant();
        match output {
            Output::Open(id, spec, cause) => {
                let (domain, jobs, class) = (spec.domain, spec.jobs.clone(), self.class(spec.goal));
                self.polls.insert(id, OpenPoll { spec, cause: cause_word(cause), sent: None });
                self.scheduler.request(id, PollRequest { domain, jobs, class }, now);
            }
            Output::Abort(id) => {
                self.scheduler.withdraw(id, now);
                if let Some(OpenPoll { cause, sent: Some((began, _)), .. }) = self.polls.remove(&id) {
                    self.upstream.count(cause, began, self.now);
                }
            }
            Output::Settle(id, result) => {
                match result.how {
                    Cost::Opened => self.answers.opened += 1,
                    Cost::Coalesced => self.answers.coalesced += 1,
                    Cost::Proven => self.answers.proven += 1,
                    Cost::Sibling | Cost::SharedHit => unreachable!("there is one gateway"),
                }
                match result.end {
                    WaitOutcome::Reached(states) | WaitOutcome::TimedOut(states) => {
                        let states = self.states(&states);
                        self.clients.answer(RequestId(id.0), &states, self.now);
                    }
                    end => panic!("the upstream never fails: {}", end.reason()),
                }
            }
        }
    }

    /// Sends the request of a poll.
    fn start(&mut self, id: PollId) {
        let Some(poll) = self.polls.get_mut(&id) else { return };
        let jobs: Vec<usize> = poll.spec.jobs.iter().map(number).collect();
        let rung = match poll.spec.goal {
            Goal::Now | Goal::Not(_) => None,
            Goal::Rung(goal) => self.rungs.iter().position(|rung| *rung == goal),
        };
        let reply = self.upstream.reply(&jobs, rung, self.now);
        poll.sent = Some((self.now, reply));
        self.events.add(self.now + SEND_TIME, PollEvent::Sent(id));
        self.events.add(reply.lands_at, PollEvent::Land(id));
        self.coalescer.handle(Input::Progress(id, PollProgress::AttemptStarted), self.instant());
    }

    fn class(&self, goal: Goal) -> PollClass {
        match goal {
            Goal::Now => PollClass::Plain,
            Goal::Rung(rung) if rung == self.rungs[0] => PollClass::Snapshot,
            Goal::Rung(_) | Goal::Not(_) => PollClass::LongPoll,
        }
    }
}

/// The rules of the cache: finished jobs by key domain, for a key that the upstream accepted lately. `live_ttl` is 0.
struct CacheModel<'a> {
    settings: &'a GatewayMix,
    ladder: Ladder,
    jobs: BTreeMap<(KeyDomain, JobId), (JobState, Instant)>,
    accepted_at: BTreeMap<KeyDomain, Instant>,
}

impl<'a> CacheModel<'a> {
    fn new(settings: &'a GatewayMix, ladder: Ladder) -> Self {
        Self { settings, ladder, jobs: BTreeMap::new(), accepted_at: BTreeMap::new() }
    }

    fn get(&self, domain: KeyDomain, id: &JobId, now: Instant) -> Option<JobState> {
        if now >= *self.accepted_at.get(&domain)? + self.settings.key_recheck_interval.0 {
            return None;
        }
        let (state, expires_at) = self.jobs.get(&(domain, id.clone()))?;
        (now < *expires_at).then(|| state.clone())
    }

    fn store(&mut self, domain: KeyDomain, state: &JobState) {
        let ttl = match state.rung {
            Some(rung) if self.ladder.is_failure(rung) => self.settings.error_ttl.0,
            Some(rung) if self.ladder.is_terminal(rung) => self.settings.completed_ttl.0,
            Some(_) | None => return,
        };
        self.jobs.insert((domain, state.id.clone()), (state.clone(), state.seen_at + ttl));
    }

    fn key_accepted(&mut self, domain: KeyDomain, began: Instant) {
        let at = self.accepted_at.entry(domain).or_insert(began);
        *at = (*at).max(began);
    }

    fn is_key_proven(&self, domain: KeyDomain) -> bool {
        self.accepted_at.contains_key(&domain)
    }
}

fn domain(key: usize) -> KeyDomain {
    KeyDomain([u8::try_from(key).expect("a mix has at most 256 keys"); 16])
}

/// Returns the index of a job. Its id is that number.
fn number(id: &JobId) -> usize {
    id.as_str().parse().expect("ids are numbers")
}

fn cause_word(cause: Cause) -> &'static str {
    match cause {
        Cause::Wait => "wait",
        Cause::Batch => "batch",
        Cause::Reopen => "reopen",
        Cause::Snapshot => "snapshot",
        Cause::Deadline => "deadline",
        Cause::Watch { .. } => "watch",
        Cause::NoCache => "no-cache",
    }
}

/// `wait.timeout`.
const WAIT_TIMEOUT: Duration = Duration::from_secs(120);

/// Time to write a request to a kept connection.
const SEND_TIME: Duration = Duration::from_millis(1);
