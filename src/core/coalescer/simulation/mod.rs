//! Random schedules of the Coalescer against the simplest oracle there is: each client calling the upstream alone.
//!
//! Everything happens in virtual time and follows from a seed. The oracle knows the jobs' true timelines and
//! the clients' plans, and nothing of the Coalescer.
//!
//! `lag` is the longest that a request takes there and back: reaching a connection, the way there, the way back, being
//! taken in after it was read, and the shell's timers, each up to `hop`; and an instant. A client alone is reckoned without any lag. What is
//! asserted of each wait, before an upstream that answers (`Mode::Clean`, `Slow`, `Short`, `Eager`):
//!
//! * it is answered once, and never after it left;
//! * it is refused if and only if one of its jobs is, by its arrival + 3 lags;
//! * where a client alone reaches its goal at T, it is told so by T + 2 lags (`LATE`: it may have to ask
//!   anew when what it leaned on lands, or to look when its deadline is nearer than skew; and a gap more before
//!   an upstream that does not hold), unless its deadline is nearer to T than that;
//! * it is told that its time is over no earlier than skew before its deadline, and no later than
//!   skew + 2 lags after it (`Slow`: the grace more, since the upstream breaks its word);
//! * a state told at the deadline was the true one at a moment no longer ago than skew + 2 lags; a state told
//!   for a goal that is reached is at the goal, was true since the wait arrived (less a lag), and for a wait
//!   on one job is no older than 2 lags;
//! * bodies are its own key domain's, one a job, in the set's order.
//!
//! Where no client names more jobs than a poll may, no poll is opened that is open already.
//!
//! Of the whole, for each key domain and goal: no more polls are opened than the clients alone make requests.
//! A client is counted as asking once at its arrival for each `max_jobs` of its jobs, and again each time
//! the upstream's hold is over while its goal is not reached, its deadline not there and it has not left.
//! Polls at the lowest goal may be more by one snapshot (per `max_jobs`) a wait that came to its deadline.
//! Where all wait for `completed` from one moment on, as long as the upstream holds, there is no snapshot.
//! Where the upstream ends its polls early (`Short`, `Eager`), a wait may open one poll more for each job but
//! one; where it does not hold at all (`Eager`), the gap stands for the hold.
//!
//! Before an upstream with faults (`Mode::Faulty`: tries that fail or take long, refusals, answers that cannot
//! be taken apart, words on no ladder, states gone back): answered by deadline + grace + snapshot limit + 2
//! lags, not told that its time is over before its time, and each failure, refusal and whole answer stems
//! from a poll on jobs that the wait named, in its key domain; a failure from a try that began after it
//! arrived, and is either the last or to be followed by none until even the look at the deadline would be over, as
//! the upstream asked, or it is told at its deadline; that its key rests is told if it does for so long; a whole
//! answer stems from a poll on just its set.
//!
//! Some clients that would cost a request are refused in the moment they come: they are told nothing, and count for
//! no request.
//!
//! `CLIPGATE_SWEEP_SEEDS=n` runs n seeds, `CLIPGATE_SWEEP_SEED=n` just that one, with a trace.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::tests::zero;
use super::*;
use crate::core::job::{Head, JobId, JobSet, KeyDomain, Reply};
use crate::core::route::{Form, Ladder, Route, Rung};

const HOLD: Duration = Duration::from_secs(120);
const SKEW: Duration = Duration::from_millis(240);
const GRACE: Duration = Duration::from_secs(5);
const GAP: Duration = Duration::from_millis(1200);
const LATE: u32 = 2;

#[test]
fn no_client_is_worse_off_than_alone() {
    if let Some(seed) = setting("CLIPGATE_SWEEP_SEED") {
        return run(seed, true);
    }
    let seeds = setting("CLIPGATE_SWEEP_SEEDS").unwrap_or(256);
    for seed in FOUND.into_iter().chain(0..seeds) {
        run(seed, false);
    }
}

/// Seeds that found a fault. 6199, 27998: a wait that attached to a poll between the reading of its answer and its landing
/// asked once more than its client alone. 20059: it then heard of a job no more. 26092: a poll was opened for a wait that was
/// refused in its join.
const FOUND: [u64; 4] = [6199, 20059, 26092, 27998];

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number of seeds, or a seed"))
}

fn run(seed: u64, trace: bool) {
    /// Names the seed when the run panics.
    struct Named(u64);
    impl Drop for Named {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("replay it with CLIPGATE_SWEEP_SEED={}", self.0);
            }
        }
    }
    let _named = Named(seed);
    let mut world = World::new(seed, trace);
    world.run();
    world.check_whole();
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// The upstream holds its polls as long as it says.
    Clean,
    /// It holds them longer.
    Slow,
    /// It ends them earlier.
    Short,
    /// It does not hold them at all.
    Eager,
    /// Anything may happen.
    Faulty,
}

/// A job as it truly is: its rungs by number, and since when.
#[derive(Debug)]
struct Job {
    domain: u8,
    id: JobId,
    steps: Vec<(Duration, usize)>,
    refused: bool,
}

impl Job {
    fn rung_at(&self, at: Duration) -> usize {
        self.steps.iter().rev().find(|(since, _)| *since <= at).map_or(self.steps[0].1, |step| step.1)
    }

    fn reaches_at(&self, rung: usize) -> Option<Duration> {
        self.steps.iter().find(|step| step.1 >= rung).map(|step| step.0)
    }

    fn was_at(&self, rung: usize, from: Duration, to: Duration) -> bool {
        self.rung_at(from) == rung || self.steps.iter().any(|&(at, r)| r == rung && from < at && at <= to)
    }
}

/// A client's plan, and what came of it.
#[derive(Debug)]
struct Client {
    domain: u8,
    jobs: Vec<usize>,
    form: Form,
    /// Its goal by number; `None` asks for the state as it is.
    goal: Option<usize>,
    arrives: Duration,
    timeout: Duration,
    leaves: Option<Duration>,
    known: Vec<(usize, usize)>,
    joined: bool,
    /// It was not let in.
    refused: bool,
    left: bool,
    settled: Option<Duration>,
}

impl Client {
    /// Whether the upstream answers it at once, and so also refuses it at once.
    fn is_immediate(&self) -> bool {
        self.goal.is_none_or(|goal| goal == 0)
    }

    fn deadline(&self) -> Duration {
        self.arrives + self.timeout
    }
}

#[derive(Debug)]
enum Event {
    Join(usize),
    Leave(usize),
    Try(PollId),
    Stand(PollId),
    Arrive(PollId),
    Fall(PollId, PollProgress),
    Land(PollId, PollOutcome),
}

#[derive(Debug)]
struct Running {
    spec: PollSpec,
    tried_at: Duration,
}

/// What a reply of the upstream's was about.
#[derive(Debug)]
struct Said {
    spec: PollSpec,
    tried_at: Duration,
    is_final: bool,
    /// Until when the upstream asked for a pause by it.
    rests_until: Duration,
}

struct World {
    rng: fastrand::Rng,
    trace: bool,
    mode: Mode,
    hop: Duration,
    hold: Duration,
    max_jobs: usize,
    ladder: Ladder,
    rungs: Vec<Rung>,
    jobs: Vec<Job>,
    clients: Vec<Client>,
    machine: Coalescer,
    zero: Instant,
    now: Duration,
    queue: BTreeMap<(Duration, u64), Event>,
    running: HashMap<PollId, Running>,
    used: HashSet<PollId>,
    said: Vec<Said>,
    opens: BTreeMap<(u8, Goal), u64>,
}

fn domain(number: u8) -> KeyDomain {
    KeyDomain([number; 16])
}

impl World {
    fn new(seed: u64, trace: bool) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mode =
            [Mode::Clean, Mode::Clean, Mode::Clean, Mode::Slow, Mode::Short, Mode::Eager, Mode::Faulty]
                [rng.usize(..7)];
        let hold = match mode {
            Mode::Clean | Mode::Faulty => HOLD,
            Mode::Slow => HOLD + Duration::from_secs(12),
            Mode::Short => HOLD - Duration::from_secs(30),
            Mode::Eager => Duration::ZERO,
        };
        let ladder = Route::suno().ladder;
        let max_jobs = rng.usize(1..=6);
        let linger = [Duration::ZERO, Duration::from_secs(2), Duration::from_secs(30)][rng.usize(..3)];
        let timing = Timing { ladder: ladder.clone(), hold: HOLD, linger, max_jobs };
        let mut world = Self {
            hop: Duration::from_millis([0, 5, 50][rng.usize(..3)]),
            rungs: ladder.rungs().collect(),
            machine: Coalescer::new(timing),
            zero: zero(),
            now: Duration::ZERO,
            queue: BTreeMap::new(),
            running: HashMap::new(),
            used: HashSet::new(),
            said: Vec::new(),
            opens: BTreeMap::new(),
            jobs: Vec::new(),
            clients: Vec::new(),
            rng,
            trace,
            mode,
            hold,
            max_jobs,
            ladder,
        };
        world.invent();
        world
    }

    fn lag(&self) -> Duration {
        self.hop * 5 + Duration::from_nanos(1)
    }

    /// Makes up the jobs and the clients, many of them at moments that mean something to others.
    fn invent(&mut self) {
        let mut moments = vec![Duration::ZERO, HOLD, HOLD * 2];
        let (domains, jobs) = (self.rng.u8(1..=2), self.rng.usize(1..=5));
        for number in 0..domains {
            for job in 0..jobs {
                let mut at = Duration::ZERO;
                let highest = [0, 1, 4][self.rng.usize(..3)];
                let mut steps = vec![(at, self.rng.usize(0..=highest))];
                while steps[steps.len() - 1].1 < 3 && self.rng.u8(..8) > 0 {
                    at = at.max(self.moment(&moments));
                    moments.push(at);
                    let from = steps[steps.len() - 1].1;
                    let to = if self.rng.bool() { from + 1 } else { self.rng.usize(from + 1..=4) };
                    steps.push((at, to));
                }
                let refused = self.rng.u8(..12) == 0;
                let id = JobId::new(&format!("c{job}")).unwrap();
                self.jobs.push(Job { domain: number, id, steps, refused });
            }
        }
        // A page that loads: all come at once, and so run out of time together with their polls.
        let burst = (self.rng.u8(..8) == 0).then(|| (self.moment(&moments), self.rng.usize(1..=3)));
        let most = [3, 8, 25][self.rng.usize(..3)];
        for client in 0..self.rng.usize(1..=most) {
            let number = self.rng.u8(..domains);
            let mut named: Vec<usize> = (0..jobs).collect();
            self.rng.shuffle(&mut named);
            let is_single = self.rng.bool();
            named.truncate(if is_single { 1 } else { self.rng.usize(1..=jobs) });
            named.iter_mut().for_each(|job| *job += usize::from(number) * jobs);
            let arrives = match burst {
                Some((at, _)) => at + SKEW.mul_f64(self.rng.f64()),
                None => self.moment(&moments),
            };
            let timeout = match self.rng.u8(..10) {
                _ if burst.is_some() => HOLD,
                0..=4 => HOLD,
                5 => HOLD * self.rng.u32(2..=5),
                6 => Duration::from_secs(self.rng.u64(..=5)),
                7 => Duration::from_secs(60),
                8 => Duration::from_millis(self.rng.u64(..=600_000)),
                _ => self.moment(&moments).saturating_sub(arrives),
            };
            let goal = (self.rng.u8(..8) > 0).then(|| [0, 1, 2, 2, 3, 3, 3, 3][self.rng.usize(..8)]);
            let goal = burst.map_or(goal, |(_, goal)| Some(goal));
            let leaves = (self.rng.u8(..3) == 0).then(|| arrives.max(self.moment(&moments)));
            let known = named.iter().filter(|_| self.rng.u8(..6) == 0).copied().collect::<Vec<_>>();
            let known = known.into_iter().filter(|&job| !self.jobs[job].refused);
            let known = known.map(|job| (job, self.jobs[job].rung_at(arrives))).collect();
            moments.extend([arrives, arrives + timeout, arrives + self.hold]);
            moments.extend(leaves);
            self.clients.push(Client {
                domain: number,
                jobs: named,
                form: if is_single { Form::Single } else { Form::Multi },
                goal,
                arrives,
                timeout,
                leaves,
                known,
                joined: false,
                refused: false,
                left: false,
                settled: None,
            });
            self.plan(arrives, Event::Join(client));
            if let Some(at) = leaves {
                self.plan(at, Event::Leave(client));
            }
        }
    }

    /// A moment to do something at: anywhere, or at or right beside a moment that has a meaning.
    fn moment(&mut self, moments: &[Duration]) -> Duration {
        if self.rng.u8(..3) == 0 {
            return Duration::from_millis(self.rng.u64(..400_000));
        }
        let at = moments[self.rng.usize(..moments.len())];
        let beside = [Duration::ZERO, Duration::from_nanos(1), self.hop, SKEW, GAP, self.hop + SKEW];
        let by = beside[self.rng.usize(..beside.len())];
        if self.rng.bool() { at + by } else { at.saturating_sub(by) }
    }

    fn plan(&mut self, at: Duration, event: Event) {
        // What is planned for one moment happens in any order; the low bits keep the keys apart.
        let mut order = self.rng.u64(..);
        while self.queue.contains_key(&(at, order)) {
            order = order.wrapping_add(1);
        }
        self.queue.insert((at, order), event);
    }

    fn hop(&mut self) -> Duration {
        self.hop.mul_f64(self.rng.f64())
    }

    fn note(&self, text: &str) {
        if self.trace {
            println!("{:>12.6} {text}", self.now.as_secs_f64());
        }
    }

    fn run(&mut self) {
        if self.trace {
            println!("{:?}, a hop is {:?}, {} clips a poll", self.mode, self.hop, self.max_jobs);
            self.jobs.iter().for_each(|job| println!("{job:?}"));
            self.clients.iter().enumerate().for_each(|(n, client)| println!("{n}: {client:?}"));
        }
        let mut late = Duration::ZERO;
        loop {
            let timer = self.machine.poll_timeout().map(|at| at.saturating_duration_since(self.zero) + late);
            let event = self.queue.first_key_value().map(|((at, _), _)| *at);
            let timer_first = match (timer, event) {
                (None, None) => break,
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (Some(timer), Some(event)) => timer < event || (timer == event && self.rng.bool()),
            };
            if timer_first {
                self.now = self.now.max(timer.unwrap());
                let now = self.zero + self.now;
                self.machine.handle_timeout(now);
                assert!(self.machine.poll_timeout().is_none_or(|at| at > now), "still due");
                late = self.hop();
            } else {
                let ((at, _), event) = self.queue.pop_first().unwrap();
                self.now = at;
                self.happen(event);
            }
            while let Some(output) = self.machine.poll_output() {
                self.act(output);
            }
        }
    }

    fn happen(&mut self, event: Event) {
        let now = self.zero + self.now;
        match event {
            Event::Join(number) => {
                let known = self.clients[number].known.clone();
                let known = known.into_iter().map(|(job, rung)| self.state(job, Some(rung))).collect();
                let client = &mut self.clients[number];
                client.joined = true;
                let spec = WaitSpec {
                    domain: domain(client.domain),
                    form: client.form,
                    jobs: JobSet::new(client.jobs.iter().map(|&job| self.jobs[job].id.clone())),
                    goal: client.goal.map_or(Goal::Now, |goal| Goal::Rung(self.rungs[goal])),
                    arrived: now,
                    timeout: client.timeout,
                    keep: true,
                    is_patient: false,
                    known,
                };
                self.note(&format!("client {number} joins"));
                self.machine.handle(Input::Join(WaitId(number as u64), spec), now);
                if self.machine.pending_opens() > 0 && self.rng.u8(..12) == 0 {
                    self.note(&format!("client {number} is refused"));
                    let client = &mut self.clients[number];
                    (client.refused, client.left, client.leaves) = (true, true, Some(self.now));
                    self.machine.handle(Input::CancelJoin(WaitId(number as u64)), now);
                    assert!(self.machine.pending_opens() == 0, "a refused wait asks");
                }
            }
            Event::Leave(number) => {
                if !self.clients[number].joined {
                    self.clients[number].leaves = None;
                } else if self.clients[number].settled.is_none() && !self.clients[number].left {
                    self.clients[number].left = true;
                    self.note(&format!("client {number} leaves"));
                    self.machine.handle(Input::Leave(WaitId(number as u64)), now);
                }
            }
            Event::Try(id) => self.begin(id),
            Event::Stand(id) => {
                if self.running.contains_key(&id) {
                    self.machine.handle(Input::Progress(id, PollProgress::Held), now);
                }
            }
            Event::Arrive(id) => self.arrive(id),
            Event::Fall(id, progress) => {
                if self.running.contains_key(&id) {
                    self.note(&format!("{id:?} falls back: {progress:?}"));
                    self.machine.handle(Input::Progress(id, progress), now);
                }
            }
            Event::Land(id, outcome) => {
                // An aborted poll may have been landing: the shell hands that on, or does not.
                if self.running.remove(&id).is_some() || self.rng.bool() {
                    self.note(&format!("{id:?} lands: {}", brief(&outcome)));
                    self.machine.handle(Input::Landed(id, outcome), now);
                }
            }
        }
    }

    /// A try of a poll begins.
    fn begin(&mut self, id: PollId) {
        let now = self.now;
        let Some(poll) = self.running.get_mut(&id) else { return };
        poll.tried_at = now;
        let spec = poll.spec.clone();
        self.machine.handle(Input::Progress(id, PollProgress::AttemptStarted), self.zero + now);
        let is_slow = self.mode == Mode::Faulty && self.rng.u8(..6) == 0;
        let stands = now + self.hop() + if is_slow { self.some(20) } else { Duration::ZERO };
        self.plan(stands, Event::Stand(id));
        if self.mode == Mode::Faulty && self.rng.u8(..3) == 0 {
            let fails = stands + self.hop() + self.some(30);
            if self.rng.u8(..3) == 0 {
                let reply = self.reply(&spec, now, true);
                self.plan(fails, Event::Land(id, PollOutcome::Failed(Failure::UpstreamError(reply))));
            } else {
                let failure = Failure::UpstreamError(self.reply(&spec, now, false));
                let progress = if self.rng.bool() {
                    PollProgress::BackingOff(failure, self.some(60))
                } else {
                    let pause = self.some(300);
                    self.said.last_mut().expect("it was just said").rests_until = fails + pause;
                    PollProgress::Paused(failure, pause)
                };
                let (PollProgress::BackingOff(_, pause) | PollProgress::Paused(_, pause)) = progress else {
                    unreachable!()
                };
                self.plan(fails, Event::Fall(id, progress));
                self.plan(fails + pause, Event::Try(id));
            }
        } else {
            let arrives = stands + self.hop();
            self.plan(arrives, Event::Arrive(id));
        }
    }

    fn some(&mut self, seconds: u64) -> Duration {
        Duration::from_millis(self.rng.u64(..seconds * 1000))
    }

    /// The request reaches the upstream, which knows by itself when it will answer.
    fn arrive(&mut self, id: PollId) {
        let Some(poll) = self.running.get(&id) else { return };
        let (spec, tried_at) = (poll.spec.clone(), poll.tried_at);
        let jobs: Vec<usize> = (0..self.jobs.len())
            .filter(|&n| domain(self.jobs[n].domain) == spec.domain && spec.jobs.contains(&self.jobs[n].id))
            .collect();
        let is_faulty = self.mode == Mode::Faulty;
        if jobs.iter().any(|&n| self.jobs[n].refused) || (is_faulty && self.rng.u8(..20) == 0) {
            let reply = self.reply(&spec, tried_at, true);
            let lands = self.now + self.hop();
            return self.plan(lands, Event::Land(id, PollOutcome::Refused(reply)));
        }
        let goal = self.rungs.iter().position(|&rung| spec.goal == Goal::Rung(rung)).unwrap_or(0);
        let reached = jobs.iter().map(|&n| self.jobs[n].reaches_at(goal)).collect::<Option<Vec<_>>>();
        let reached = reached.map(|all| all.into_iter().fold(self.now, Duration::max));
        let answers = match reached {
            _ if spec.goal == Goal::Now => self.now,
            _ if is_faulty && self.rng.u8(..8) == 0 => self.now + self.some(120),
            Some(at) if at <= self.now + self.hold => at,
            Some(_) | None => self.now + self.hold,
        };
        let outcome = if is_faulty && self.rng.u8(..6) == 0 {
            PollOutcome::Unsplit(self.reply(&spec, tried_at, true))
        } else {
            let weird = is_faulty && self.rng.u8(..10) == 0;
            let back = if is_faulty && self.rng.u8(..6) == 0 { self.some(60) } else { Duration::ZERO };
            let mut states = Vec::new();
            let head = Arc::new(Head::default());
            for (place, &n) in jobs.iter().enumerate() {
                let rung = self.jobs[n].rung_at(answers.saturating_sub(back));
                let rung = (!weird || place > 0).then_some(rung);
                states.push(JobState { head: Arc::clone(&head), ..self.state(n, rung) });
            }
            self.rng.shuffle(&mut states);
            PollOutcome::Jobs(states)
        };
        let read = answers + self.hop();
        let outcome = match outcome {
            PollOutcome::Jobs(states) => PollOutcome::Jobs(
                states.into_iter().map(|state| JobState { seen_at: self.zero + read, ..state }).collect(),
            ),
            other => other,
        };
        // The shell takes it in a moment later.
        let lands = read + self.hop();
        self.plan(lands, Event::Land(id, outcome));
    }

    /// A state as the upstream tells it now; its body says whose, which and where.
    fn state(&self, job: usize, rung: Option<usize>) -> JobState {
        let Job { domain, id, .. } = &self.jobs[job];
        let word = rung.map_or("odd", |rung| self.ladder.name(self.rungs[rung]));
        JobState {
            id: id.clone(),
            rung: rung.map(|rung| self.rungs[rung]),
            body: Bytes::from(format!("{domain} {id} {word}")),
            head: Arc::new(Head::default()),
            seen_at: self.zero + self.now,
        }
    }

    /// A reply that can be traced back to the poll it answers.
    fn reply(&mut self, spec: &PollSpec, tried_at: Duration, is_final: bool) -> Arc<Reply> {
        self.said.push(Said { spec: spec.clone(), tried_at, is_final, rests_until: Duration::ZERO });
        let body = Bytes::from((self.said.len() - 1).to_string());
        Arc::new(Reply { status: 418, head: Arc::new(Head::default()), body })
    }

    fn said(&self, reply: &Reply) -> &Said {
        let number: usize = std::str::from_utf8(&reply.body).unwrap().parse().unwrap();
        &self.said[number]
    }

    fn act(&mut self, output: Output) {
        match output {
            Output::Open(id, spec) => {
                self.note(&format!("{id:?} opens for {:?} at {:?}", spec.jobs, spec.goal));
                assert!(self.used.insert(id), "a number opens once");
                assert!((1..=self.max_jobs).contains(&spec.jobs.len()), "{spec:?}");
                assert!(spec.form == Form::Multi || spec.jobs.len() == 1, "{spec:?}");
                let is_split = self.clients.iter().any(|client| client.jobs.len() > self.max_jobs);
                let is_same = |other: &Running| {
                    let other = &other.spec;
                    (other.domain, &other.jobs, other.goal) == (spec.domain, &spec.jobs, spec.goal)
                };
                let is_shared = is_split || self.mode == Mode::Faulty || !self.running.values().any(is_same);
                assert!(is_shared, "{spec:?} is open already");
                *self.opens.entry((spec.domain.0[0], spec.goal)).or_default() += 1;
                self.running.insert(id, Running { spec, tried_at: self.now });
                // Under the upstream's limits it may have to wait for its turn.
                match self.rng.u8(..12) {
                    0 | 1 if self.mode == Mode::Faulty => {
                        let turn = self.now + self.some(30);
                        self.plan(turn, Event::Try(id));
                    }
                    2 if self.mode == Mode::Faulty => {
                        let retry_after = self.some(60);
                        let turn = self.now + retry_after + self.some(2);
                        let rests =
                            PollProgress::Paused(Failure::KeyRateLimited { retry_after }, retry_after);
                        self.plan(self.now, Event::Fall(id, rests));
                        self.plan(turn, Event::Try(id));
                    }
                    _ => self.begin(id),
                }
            }
            Output::Abort(id) => {
                self.note(&format!("{id:?} is aborted"));
                assert!(self.running.remove(&id).is_some(), "only what runs can be aborted");
            }
            Output::Settle(WaitId(number), settled) => {
                let number = usize::try_from(number).unwrap();
                self.note(&format!("client {number} is told {:?}", settled.end));
                assert!(self.clients[number].settled.replace(self.now).is_none(), "answered twice");
                assert!(!self.clients[number].left, "answered after it left");
                self.check_answer(&self.clients[number], &settled.end);
            }
        }
    }

    /// When a client alone has its answer, were it not for its deadline; it may never come.
    fn alone(&self, client: &Client) -> Option<Duration> {
        let goal = client.goal.unwrap_or(0);
        let each = client.jobs.iter().map(|&job| self.jobs[job].reaches_at(goal));
        let all = each.collect::<Option<Vec<_>>>()?;
        Some(all.into_iter().fold(client.arrives, Duration::max))
    }

    fn is_refused(&self, client: &Client) -> bool {
        client.jobs.iter().any(|&job| self.jobs[job].refused)
    }

    fn check_answer(&self, client: &Client, end: &WaitOutcome) {
        let (now, lag, deadline) = (self.now, self.lag(), client.deadline());
        let is_faulty = self.mode == Mode::Faulty;
        let latest = match self.mode {
            Mode::Clean | Mode::Short | Mode::Eager => deadline + SKEW + lag * 2,
            Mode::Slow => deadline + GRACE + lag * 2,
            Mode::Faulty => deadline + GRACE + SNAPSHOT_LIMIT + lag * 2,
        };
        assert!(now <= latest, "{client:?} is answered {:?} late", now - latest);
        if !is_faulty {
            assert_eq!(matches!(end, WaitOutcome::Refused(_)), self.is_refused(client), "{client:?}");
        }
        match end {
            WaitOutcome::Reached(states) => {
                self.check_states(client, states);
                for (state, &job) in states.iter().zip(&self.sorted(client)) {
                    let Some(rung) = self.number(state) else { continue };
                    assert!(rung >= client.goal.unwrap_or(0), "{client:?} is told {state:?}");
                    let age = if client.jobs.len() == 1 { lag * 2 } else { now - client.arrives + lag };
                    let age = if is_faulty { now } else { age };
                    assert!(self.jobs[job].was_at(rung, now.saturating_sub(age), now), "{state:?}");
                }
                if !is_faulty {
                    let alone = self.alone(client).expect("it reaches the goal");
                    assert!(now <= alone + self.late(), "{client:?} is late by {:?}", now - alone);
                }
            }
            WaitOutcome::TimedOut(states) => {
                assert!(now + SKEW >= deadline, "{client:?} is cut short");
                self.check_states(client, states);
                let from = now.min(deadline).saturating_sub(SKEW + lag * 2);
                for (state, &job) in states.iter().zip(&self.sorted(client)) {
                    let Some(rung) = self.number(state) else { continue };
                    let from = if is_faulty { Duration::ZERO } else { from };
                    assert!(self.jobs[job].was_at(rung, from, now), "{client:?} is told {state:?}");
                }
                if let (false, Some(alone)) = (is_faulty, self.alone(client)) {
                    assert!(alone + self.late() >= now, "{client:?} is not told, since {alone:?}");
                }
            }
            WaitOutcome::Refused(reply) => {
                self.check_origin(client, reply);
                assert!(is_faulty || now <= client.arrives + lag * 3, "{client:?} is refused late");
            }
            WaitOutcome::Unsplit(reply) => {
                assert!(is_faulty);
                let said = self.check_origin(client, reply);
                assert_eq!(said.spec.jobs.len(), client.jobs.len(), "{client:?} is told of {said:?}");
                let goal = client.goal.map_or(Goal::Now, |goal| Goal::Rung(self.rungs[goal]));
                let is_over = now + SKEW >= deadline;
                assert!(said.spec.goal == goal || is_over, "{client:?} is told of {said:?}");
            }
            WaitOutcome::Failed(Failure::UpstreamError(reply)) => {
                assert!(is_faulty);
                let said = self.check_origin(client, reply);
                let is_certain = said.is_final || said.rests_until > deadline + SNAPSHOT_LIMIT;
                let is_certain = is_certain || client.is_immediate();
                let is_there = is_certain && said.tried_at >= client.arrives;
                assert!(is_there || now + SKEW >= deadline, "{client:?} is told of {said:?}");
            }
            WaitOutcome::Failed(Failure::KeyRateLimited { retry_after }) => {
                assert!(
                    is_faulty
                        && (client.is_immediate()
                            || now + *retry_after > deadline + SNAPSHOT_LIMIT
                            || now + SKEW >= deadline),
                    "{client:?}"
                );
            }
            WaitOutcome::Failed(Failure::Timeout) => {
                assert!(is_faulty && now + SKEW >= deadline + SNAPSHOT_LIMIT, "{client:?}");
            }
            WaitOutcome::Failed(Failure::InvalidResponse(_)) => {
                assert!(is_faulty && client.jobs.len() > self.max_jobs)
            }
            WaitOutcome::Failed(Failure::Unreachable | Failure::LocalResources) => {
                panic!("nothing says that")
            }
        }
    }

    fn late(&self) -> Duration {
        let gap = if self.mode == Mode::Eager { GAP } else { Duration::ZERO };
        self.lag() * LATE + gap
    }

    fn check_origin(&self, client: &Client, reply: &Reply) -> &Said {
        let said = self.said(reply);
        assert_eq!(said.spec.domain, domain(client.domain), "{client:?} is told of {said:?}");
        let ids: Vec<_> = client.jobs.iter().map(|&job| &self.jobs[job].id).collect();
        assert!(said.spec.jobs.iter().all(|id| ids.contains(&id)), "{client:?} is told of {said:?}");
        said
    }

    fn check_states(&self, client: &Client, states: &[JobState]) {
        let jobs = self.sorted(client);
        assert_eq!(states.len(), jobs.len());
        for (state, job) in states.iter().zip(jobs) {
            let told = JobState {
                head: Arc::clone(&state.head),
                seen_at: state.seen_at,
                ..self.state(job, self.number(state))
            };
            assert_eq!(*state, told, "{client:?}");
        }
    }

    /// The client's jobs in the order of their ids.
    fn sorted(&self, client: &Client) -> Vec<usize> {
        let mut jobs = client.jobs.clone();
        jobs.sort_by_key(|&job| &self.jobs[job].id);
        jobs
    }

    fn number(&self, state: &JobState) -> Option<usize> {
        state.rung.map(|rung| self.rungs.iter().position(|&r| r == rung).unwrap())
    }

    /// How many requests the client alone would make.
    fn requests_alone(&self, client: &Client) -> u64 {
        if client.refused {
            return 0;
        }
        let chunks = client.jobs.len().div_ceil(self.max_jobs);
        let again = match self.mode {
            Mode::Eager => GAP,
            _ => self.hold,
        };
        let over = client.deadline();
        let over = if self.is_refused(client) { client.arrives } else { over };
        let over = match (self.mode, client.goal, self.alone(client)) {
            (_, None, _) => client.arrives,
            // Until it is told: it was polled in vain meanwhile, a gap at most.
            (Mode::Eager, _, Some(at)) => over.min(at + self.late()),
            (_, _, Some(at)) => over.min(at),
            (_, _, None) => over,
        };
        let mut requests = 1;
        let mut at = client.arrives + again;
        while at < over && client.leaves.is_none_or(|leaves| at <= leaves) {
            requests += 1;
            at += again;
        }
        let more = if matches!(self.mode, Mode::Short | Mode::Eager) { client.jobs.len() - 1 } else { 0 };
        (requests * chunks + more) as u64
    }

    /// Whether a key domain's clients all wait to the end of the ladder from one moment on, as long as the upstream
    /// holds, so that their polls' ends tell them all.
    fn is_burst(&self, number: u8) -> bool {
        let clients = || self.clients.iter().filter(|client| client.domain == number);
        let arrivals = || clients().map(|client| client.arrives);
        let (Some(first), Some(last)) = (arrivals().min(), arrivals().max()) else { return false };
        let goal = clients().next().and_then(|client| client.goal);
        self.mode == Mode::Clean
            && last - first <= SKEW
            && goal.is_some_and(|goal| goal >= 3)
            && clients().all(|client| client.goal == goal && client.timeout == HOLD)
    }

    fn check_whole(&self) {
        for client in &self.clients {
            assert!(client.left != client.settled.is_some(), "{client:?} is forgotten");
        }
        assert_eq!((self.machine.waits(), self.machine.polls()), (0, 0));
        assert!(self.machine.poll_timeout().is_none());
        // With no waits and polls left, this finds each slot and timer that stayed behind.
        self.machine.check_invariants();
        assert!(self.running.is_empty(), "{:?}", self.running);
        if self.mode == Mode::Faulty {
            return;
        }
        for (&(number, goal), &opens) in &self.opens {
            let mut alone = 0;
            for client in self.clients.iter().filter(|client| client.domain == number) {
                if client.goal.map_or(Goal::Now, |goal| Goal::Rung(self.rungs[goal])) == goal {
                    alone += self.requests_alone(client);
                }
                let end = client.settled.or(client.leaves).unwrap();
                let may_look = end + SKEW >= client.deadline() && !self.is_burst(number);
                if goal == Goal::Rung(self.rungs[0]) && may_look && !client.refused {
                    alone += client.jobs.len().div_ceil(self.max_jobs) as u64;
                }
            }
            assert!(opens <= alone, "domain {number}, {goal:?}: {opens} opened, {alone} alone");
        }
    }
}

fn brief(outcome: &PollOutcome) -> String {
    match outcome {
        PollOutcome::Jobs(states) => {
            format!("{:?}", states.iter().map(|state| &state.body).collect::<Vec<_>>())
        }
        other => format!("{other:?}"),
    }
}
