//! A run made up from a seed: jobs with their true timelines, clients, and what goes wrong at the upstream.

use std::ops::Range;
use std::time::Duration;

use super::{HOLD, JobId};

/// The window of a drain.
pub(super) const DRAIN: Duration = Duration::from_secs(20);

/// A job as it truly is: its rungs by number, and since when.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) domain: u8,
    pub(super) id: JobId,
    pub(super) steps: Vec<(Duration, usize)>,
    /// The upstream answers each request for it with 429 and this pause.
    pub(super) refused: Option<Duration>,
}

impl Job {
    pub(super) fn rung_at(&self, at: Duration) -> usize {
        self.steps.iter().rev().find(|(since, _)| *since <= at).map_or(self.steps[0].1, |step| step.1)
    }

    pub(super) fn reaches_at(&self, rung: usize) -> Option<Duration> {
        self.steps.iter().find(|step| step.1 >= rung).map(|step| step.0)
    }

    pub(super) fn was_at(&self, rung: usize, from: Duration, to: Duration) -> bool {
        self.rung_at(from) == rung || self.steps.iter().any(|&(at, r)| r == rung && from < at && at <= to)
    }
}

/// A client's plan, and what came of it.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) domain: u8,
    pub(super) jobs: Vec<usize>,
    /// Its goal by number; `None` asks for the state as it is.
    pub(super) goal: Option<usize>,
    pub(super) arrives: Duration,
    pub(super) timeout: Duration,
    pub(super) leaves: Option<Duration>,
    pub(super) has_joined: bool,
    pub(super) has_left: bool,
    pub(super) told_at: Option<Duration>,
}

impl Client {
    pub(super) fn deadline(&self) -> Duration {
        self.arrives + self.timeout
    }

    /// Whether the upstream answers it at once.
    pub(super) fn is_immediate(&self) -> bool {
        self.goal.is_none_or(|goal| goal == 0)
    }
}

/// All of a run.
#[derive(Debug)]
pub(super) struct Plan {
    /// The longest that one step of a request takes.
    pub(super) hop: Duration,
    pub(super) jobs: Vec<Job>,
    pub(super) clients: Vec<Client>,
    /// Nobody can connect, and connections are lost at the start.
    pub(super) away: Vec<(Duration, Duration)>,
    /// All connections are lost at once.
    pub(super) resets: Vec<Duration>,
    pub(super) single_resets: Vec<Duration>,
    /// The upstream answers all requests of a key with errors.
    pub(super) key_errors: Option<(u8, Range<Duration>)>,
    /// A proxy before the upstream ends each held poll after this time with 504.
    pub(super) cuts_after: Option<Duration>,
    pub(super) drain: Option<Duration>,
}

impl Plan {
    pub(super) fn new(rng: &mut fastrand::Rng) -> Self {
        let mut plan = Self {
            hop: Duration::from_millis([0, 5, 50][rng.usize(..3)]),
            jobs: Vec::new(),
            clients: Vec::new(),
            away: Vec::new(),
            resets: Vec::new(),
            single_resets: Vec::new(),
            key_errors: None,
            cuts_after: None,
            drain: None,
        };
        // Moments that mean something: others happen at them or right beside them.
        let mut moments = vec![Duration::ZERO, Duration::from_secs(30), HOLD];
        let (domains, jobs) = (rng.u8(1..=3), rng.usize(1..=5));
        plan.add_jobs(rng, domains, jobs, &mut moments);
        plan.add_faults(rng, domains, &mut moments);
        plan.add_clients(rng, domains, jobs, &mut moments);
        plan
    }

    fn add_jobs(&mut self, rng: &mut fastrand::Rng, domains: u8, jobs: usize, moments: &mut Vec<Duration>) {
        for domain in 0..domains {
            for job in 0..jobs {
                let (mut at, mut steps) = (Duration::ZERO, vec![(Duration::ZERO, rng.usize(0..=1))]);
                while steps[steps.len() - 1].1 < 3 && rng.u8(..6) > 0 {
                    at = at.max(self.moment(rng, moments));
                    moments.push(at);
                    let from = steps[steps.len() - 1].1;
                    steps.push((at, if rng.bool() { from + 1 } else { rng.usize(from + 1..=4) }));
                }
                let refused =
                    (rng.u8(..16) == 0).then(|| Duration::from_secs([1, 3, 10, 90][rng.usize(..4)]));
                let id = JobId::new(&format!("j{job}")).unwrap();
                self.jobs.push(Job { domain, id, steps, refused });
            }
        }
    }

    fn add_faults(&mut self, rng: &mut fastrand::Rng, domains: u8, moments: &mut Vec<Duration>) {
        for _ in 0..[0, 0, 1, 1, 2][rng.usize(..5)] {
            let from = self.moment(rng, moments);
            let to = from + Duration::from_millis([100, 300, 1000, 5000, 12_000, 20_000][rng.usize(..6)]);
            moments.extend([from, to]);
            self.away.push((from, to));
        }
        self.away.sort_unstable();
        for _ in 0..rng.usize(..3) {
            let at = self.moment(rng, moments);
            moments.push(at);
            self.resets.push(at);
        }
        for _ in 0..rng.usize(..3) {
            self.single_resets.push(self.moment(rng, moments));
        }
        if rng.u8(..4) == 0 {
            let from = self.moment(rng, moments);
            let to = from + Duration::from_secs(rng.u64(1..200));
            self.key_errors = Some((rng.u8(..domains), from..to));
        }
        if rng.u8(..8) == 0 {
            self.cuts_after = Some(Duration::from_millis(1300));
        }
        if rng.u8(..6) == 0 {
            self.drain = Some(self.moment(rng, moments));
        }
    }

    fn add_clients(
        &mut self,
        rng: &mut fastrand::Rng,
        domains: u8,
        jobs: usize,
        moments: &mut Vec<Duration>,
    ) {
        let most = [3, 8, 25][rng.usize(..3)];
        for _ in 0..rng.usize(1..=most) {
            let domain = rng.u8(..domains);
            let mut named: Vec<usize> = (0..jobs).collect();
            rng.shuffle(&mut named);
            named.truncate(if rng.bool() { 1 } else { rng.usize(1..=jobs) });
            named.iter_mut().for_each(|job| *job += usize::from(domain) * jobs);
            let arrives = self.moment(rng, moments);
            let timeout = match rng.u8(..8) {
                0..=4 => HOLD,
                5 => HOLD * 3,
                6 => Duration::from_secs(rng.u64(..=14)),
                _ => Duration::from_millis(rng.u64(..=300_000)),
            };
            let goal = (rng.u8(..8) > 0).then(|| [0, 1, 2, 2, 3, 3, 3, 3][rng.usize(..8)]);
            let leaves = (rng.u8(..4) == 0).then(|| arrives.max(self.moment(rng, moments)));
            moments.extend([arrives, arrives + timeout]);
            self.clients.push(Client {
                domain,
                jobs: named,
                goal,
                arrives,
                timeout,
                leaves,
                has_joined: false,
                has_left: false,
                told_at: None,
            });
        }
    }

    /// A moment to do something at: anywhere, or at or right beside a moment that has a meaning.
    fn moment(&self, rng: &mut fastrand::Rng, moments: &[Duration]) -> Duration {
        if rng.u8(..3) == 0 {
            return Duration::from_millis(rng.u64(..400_000));
        }
        let at = moments[rng.usize(..moments.len())];
        let beside = [Duration::ZERO, Duration::from_nanos(1), self.hop, Duration::from_millis(700)];
        let by = beside[rng.usize(..beside.len())];
        if rng.bool() { at + by } else { at.saturating_sub(by) }
    }

    /// Whether nobody can connect at this moment.
    pub(super) fn is_away(&self, at: Duration) -> bool {
        self.away.iter().any(|&(from, to)| from <= at && at < to)
    }

    /// The jobs of a key that are always refused.
    pub(super) fn refused_jobs(&self, domain: u8) -> usize {
        self.jobs.iter().filter(|job| job.domain == domain && job.refused.is_some()).count()
    }
}
