//! Step 1, the plan: jobs with their true timelines, which may go back, actions on them, clients, and the upstream's moods.

use std::ops::Range;
use std::time::Duration;

use crate::core::coalescer::Pace;
use crate::core::job::JobId;
use crate::core::sweep::Timeline;

/// A job with its true timeline.
#[derive(Debug)]
pub(super) struct PacedJob {
    pub(super) domain: u8,
    pub(super) id: JobId,
    /// The rungs by number, each with the time from which the job is on it.
    pub(super) steps: Timeline,
    /// Time from which the upstream answers 404.
    pub(super) gone_from: Option<Duration>,
}

impl PacedJob {
    /// Returns since when the job fulfils the condition without interruption, if it does at `at`.
    pub(super) fn holds_since(&self, at: Duration, is_met: impl Fn(usize) -> bool) -> Option<Duration> {
        let steps = self.steps.0.iter().rev().skip_while(|(since, _)| *since > at);
        steps.take_while(|(_, rung)| is_met(*rung)).last().map(|(since, _)| *since)
    }
}

/// Kind of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientKind {
    Plain,
    NoCache,
    /// The start of an event stream: the state now, held if need be.
    Stream,
    /// A wait for this rung.
    Wait(usize),
    /// A wait for any other rung.
    Change(usize),
    /// The next wait of an event stream whose client has this rung. Made by the run, not by the plan.
    Follow(usize),
}

#[derive(Clone, Debug)]
pub(super) struct PacedClient {
    pub(super) kind: ClientKind,
    pub(super) domain: u8,
    pub(super) jobs: Vec<usize>,
    pub(super) arrives: Duration,
    pub(super) timeout: Duration,
    pub(super) leaves: Option<Duration>,
    /// Moment of the state that the client has, in an event stream.
    pub(super) newer_than: Option<Duration>,
    pub(super) joined_at: Option<Duration>,
    /// The gateway answered from its cache, or the join was cancelled.
    pub(super) is_cached: bool,
    pub(super) has_left: bool,
    pub(super) ended_at: Option<Duration>,
}

impl PacedClient {
    /// Returns the next wait of an event stream that has just got a state of this job.
    pub(super) fn follow(&self, job: usize, rung: usize, as_of: Duration, now: Duration) -> Self {
        Self {
            kind: ClientKind::Follow(rung),
            jobs: vec![job],
            arrives: now,
            timeout: self.deadline() - now,
            leaves: self.leaves.filter(|at| *at > now),
            newer_than: Some(as_of),
            joined_at: None,
            ended_at: None,
            ..self.clone()
        }
    }

    pub(super) fn is_stream(&self) -> bool {
        matches!(self.kind, ClientKind::Stream | ClientKind::Follow(_))
    }

    pub(super) fn deadline(&self) -> Duration {
        self.arrives + self.timeout
    }

    pub(super) fn is_plain(&self) -> bool {
        matches!(self.kind, ClientKind::Plain | ClientKind::NoCache)
    }

    pub(super) fn is_met(&self, rung: usize) -> bool {
        match self.kind {
            ClientKind::Plain | ClientKind::NoCache | ClientKind::Stream => true,
            ClientKind::Wait(goal) => rung >= goal,
            ClientKind::Change(left) | ClientKind::Follow(left) => rung != left,
        }
    }
}

/// The plan of a run.
#[derive(Debug)]
pub(super) struct PacedPlan {
    pub(super) pace: Pace,
    /// Longest time of a request to the upstream, and of its answer.
    pub(super) hop: Duration,
    /// Longest time until the caller takes in an answer that was read.
    pub(super) lag: Duration,
    pub(super) max_jobs: usize,
    pub(super) jobs: Vec<PacedJob>,
    /// Jobs that an action changed, and when it was answered.
    pub(super) actions: Vec<(usize, Duration)>,
    pub(super) clients: Vec<PacedClient>,
    pub(super) has_hints: bool,
    pub(super) has_faults: bool,
    /// Polls may have to wait for their turn.
    pub(super) has_queue: bool,
    /// Budget of a key, where there is a scheduler.
    pub(super) key_interval: Duration,
    pub(super) has_unknown_words: bool,
    /// Some answers are not kept in the cache.
    pub(super) has_unkept: bool,
    /// Keys whose requests the upstream answers 429, and when.
    pub(super) limited: Vec<(u8, Range<Duration>)>,
    pub(super) drain: Option<Duration>,
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

impl PacedPlan {
    pub(super) fn new(rng: &mut fastrand::Rng) -> Self {
        let min = [500, 1000, 2000, 5000][rng.usize(..4)];
        let max = min * [1, 2, 10][rng.usize(..3)];
        let live_ttl = [200, 500, 1000, min, min * 2][rng.usize(..5)];
        let mut plan = Self {
            pace: Pace { min: millis(min), max: millis(max), live_ttl: millis(live_ttl) },
            hop: millis([0, 5, 50, 450][rng.usize(..4)]),
            lag: millis([0, 0, 5][rng.usize(..3)]),
            max_jobs: rng.usize(1..=4),
            jobs: Vec::new(),
            actions: Vec::new(),
            clients: Vec::new(),
            has_hints: rng.u8(..5) == 0,
            has_faults: rng.u8(..6) == 0,
            has_queue: rng.u8(..6) == 0,
            key_interval: Duration::ZERO,
            has_unknown_words: rng.u8(..12) == 0,
            has_unkept: rng.u8(..6) == 0,
            limited: Vec::new(),
            drain: None,
        };
        if plan.has_queue {
            plan.key_interval = millis([50, 100, 500, 1000][rng.usize(..4)]);
        }
        // Times that have a meaning; later events are put at them or right beside them.
        let mut moments = vec![Duration::ZERO];
        let (domains, jobs) = (rng.u8(1..=2), rng.usize(1..=4));
        for domain in 0..domains {
            for job in 0..jobs {
                plan.add_job(rng, domain, job, &mut moments);
            }
        }
        if rng.u8(..4) == 0 {
            let from = plan.moment(rng, &moments);
            plan.limited.push((rng.u8(..domains), from..from + millis(rng.u64(1..15_000))));
        }
        if rng.u8(..8) == 0 {
            plan.drain = Some(plan.moment(rng, &moments));
        }
        let max_clients = [3, 8, 25][rng.usize(..3)];
        for _ in 0..rng.usize(1..=max_clients) {
            plan.add_client(rng, domains, jobs, &mut moments);
        }
        if rng.bool() {
            plan.add_plain_pollers(rng, domains, jobs);
        }
        plan.clients.sort_by_key(|client| client.arrives); // the numbers of waits are in order of arrival
        plan
    }

    fn add_job(&mut self, rng: &mut fastrand::Rng, domain: u8, job: usize, moments: &mut Vec<Duration>) {
        let (mut at, mut rung) = (Duration::ZERO, rng.usize(0..=2));
        let (mut steps, number) = (vec![(at, rung)], self.jobs.len());
        while rng.u8(..10) > 0 && at < millis(90_000) {
            let to = self.moment(rng, moments);
            at = if to > at { to } else { at + millis(rng.u64(1..8000)) };
            let is_action = rung >= 3 || rng.u8(..6) == 0;
            if rung >= 3 && rng.bool() {
                break;
            }
            rung = match rng.u8(..5) {
                0 => rng.usize(0..=2),
                _ if is_action => rng.usize(0..=4),
                1 => rng.usize(rung + 1..=4),
                _ => rung + 1,
            };
            steps.push((at, rung));
            moments.push(at);
            if is_action {
                let answered = at + self.hop.mul_f64(rng.f64());
                self.actions.push((number, answered));
                moments.push(answered);
                at = answered;
            }
        }
        let gone_from = (rng.u8(..16) == 0).then(|| self.moment(rng, moments));
        let id = JobId::new(&format!("j{job}")).unwrap();
        self.jobs.push(PacedJob { domain, id, steps: Timeline(steps), gone_from });
    }

    fn add_client(&mut self, rng: &mut fastrand::Rng, domains: u8, jobs: usize, moments: &mut Vec<Duration>) {
        let domain = rng.u8(..domains);
        let mut named: Vec<usize> = (0..jobs).collect();
        rng.shuffle(&mut named);
        named.truncate(if rng.u8(..3) > 0 { 1 } else { rng.usize(1..=jobs) });
        named.iter_mut().for_each(|job| *job += usize::from(domain) * jobs);
        let arrives = self.moment(rng, moments);
        let timeout = match rng.u8(..8) {
            0..=3 => millis(60_000),
            4 => millis(rng.u64(..=2_000)),
            _ => millis(rng.u64(..=100_000)),
        };
        let kind = match rng.u8(..10) {
            0 => ClientKind::Plain,
            1 => ClientKind::NoCache,
            2 => ClientKind::Stream,
            3 | 4 => ClientKind::Change(self.jobs[named[0]].steps.rung_at(arrives)),
            _ => ClientKind::Wait([0, 1, 2, 2, 3, 3, 3][rng.usize(..7)]),
        };
        let leaves = (rng.u8(..4) == 0).then(|| arrives.max(self.moment(rng, moments)));
        moments.extend([arrives, arrives + timeout, arrives + self.pace.min]);
        self.push(kind, domain, named, arrives, timeout, leaves);
    }

    /// Adds clients that ask for the state again and again.
    fn add_plain_pollers(&mut self, rng: &mut fastrand::Rng, domains: u8, jobs: usize) {
        let domain = rng.u8(..domains);
        let job = usize::from(domain) * jobs + rng.usize(..jobs);
        for _ in 0..rng.usize(1..=3) {
            let period = [100, 500, 1000, 3000][rng.usize(..4)];
            let mut at = millis(rng.u64(..30_000));
            for _ in 0..rng.usize(1..=20) {
                self.push(ClientKind::Plain, domain, vec![job], at, millis(60_000), None);
                at += millis(rng.u64(period / 2..=period));
            }
        }
    }

    fn push(
        &mut self,
        kind: ClientKind,
        domain: u8,
        jobs: Vec<usize>,
        arrives: Duration,
        timeout: Duration,
        leaves: Option<Duration>,
    ) {
        self.clients.push(PacedClient {
            kind,
            domain,
            jobs,
            arrives,
            timeout,
            leaves,
            newer_than: None,
            joined_at: None,
            is_cached: false,
            has_left: false,
            ended_at: None,
        });
    }

    /// Draws a time for an event: at random, or at or right beside one of these moments.
    fn moment(&self, rng: &mut fastrand::Rng, moments: &[Duration]) -> Duration {
        if rng.u8(..2) == 0 {
            return millis(rng.u64(..90_000));
        }
        let at = moments[rng.usize(..moments.len())];
        let beside = [Duration::ZERO, Duration::from_nanos(1), self.hop, millis(200), self.pace.min];
        let offset = beside[rng.usize(..beside.len())];
        if rng.bool() { at + offset } else { at.saturating_sub(offset) }
    }
}
