//! Step 1, the plan: a seed makes jobs with their true timelines, clients, and faults of the upstream.
//!
//! Bugs show where events meet. So most times are not drawn freely: [`RunPlan::moment`] takes a time that has a meaning
//! already (a job changes, a client arrives, an outage ends), and puts the next event there or right beside it.

use std::ops::Range;
use std::time::Duration;

use super::{HOLD, JobId};
use crate::core::sweep::Timeline;

/// Time between the start of a drain and its end.
pub(super) const DRAIN: Duration = Duration::from_secs(20);

/// A job with its true timeline.
#[derive(Debug)]
pub(super) struct PlannedJob {
    pub(super) domain: u8,
    pub(super) id: JobId,
    /// The rungs by number, each with the time at which the job reaches it.
    pub(super) steps: Timeline,
    /// `Retry-After` of the 429 with which the upstream answers each request for the job.
    pub(super) refused: Option<Duration>,
}

/// A client: its request, and the result so far.
#[derive(Clone, Debug)]
pub(super) struct PlannedClient {
    pub(super) domain: u8,
    pub(super) jobs: Vec<usize>,
    /// Goal by the number of the rung; `None` for a request without a status.
    pub(super) goal: Option<usize>,
    pub(super) arrives: Duration,
    pub(super) timeout: Duration,
    pub(super) leaves: Option<Duration>,
    pub(super) has_joined: bool,
    pub(super) has_left: bool,
    pub(super) answered_at: Option<Duration>,
}

impl PlannedClient {
    pub(super) fn deadline(&self) -> Duration {
        self.arrives + self.timeout
    }

    /// Returns whether the upstream answers the request at once.
    pub(super) fn is_immediate(&self) -> bool {
        self.goal.is_none_or(|goal| goal == 0)
    }
}

/// The plan of a run.
#[derive(Debug)]
pub(super) struct RunPlan {
    /// Maximum time of one step of a request.
    pub(super) hop: Duration,
    pub(super) jobs: Vec<PlannedJob>,
    pub(super) clients: Vec<PlannedClient>,
    /// Times in which no connection succeeds. At the start of each, all connections break.
    pub(super) outages: Vec<(Duration, Duration)>,
    /// Times at which all connections break.
    pub(super) resets: Vec<Duration>,
    /// Times at which one connection breaks.
    pub(super) single_resets: Vec<Duration>,
    /// A key domain, and the time in which the upstream answers all its requests with errors.
    pub(super) key_errors: Option<(u8, Range<Duration>)>,
    /// A proxy in front of the upstream ends each held poll with 504 after this time.
    pub(super) cuts_after: Option<Duration>,
    /// Time at which the gateway begins to stop.
    pub(super) drain: Option<Duration>,
}

impl RunPlan {
    /// Makes a plan.
    pub(super) fn new(rng: &mut fastrand::Rng) -> Self {
        let mut plan = Self {
            hop: Duration::from_millis([0, 5, 50][rng.usize(..3)]),
            jobs: Vec::new(),
            clients: Vec::new(),
            outages: Vec::new(),
            resets: Vec::new(),
            single_resets: Vec::new(),
            key_errors: None,
            cuts_after: None,
            drain: None,
        };
        // Times that have a meaning; later events are put at them or right beside them.
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
                self.jobs.push(PlannedJob { domain, id, steps: Timeline(steps), refused });
            }
        }
    }

    fn add_faults(&mut self, rng: &mut fastrand::Rng, domains: u8, moments: &mut Vec<Duration>) {
        for _ in 0..[0, 0, 1, 1, 2][rng.usize(..5)] {
            let from = self.moment(rng, moments);
            let to = from + Duration::from_millis([100, 300, 1000, 5000, 12_000, 20_000][rng.usize(..6)]);
            moments.extend([from, to]);
            self.outages.push((from, to));
        }
        self.outages.sort_unstable();
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
        let max_clients = [3, 8, 25][rng.usize(..3)];
        for _ in 0..rng.usize(1..=max_clients) {
            let domain = rng.u8(..domains);
            let mut jobs_of_client: Vec<usize> = (0..jobs).collect();
            rng.shuffle(&mut jobs_of_client);
            jobs_of_client.truncate(if rng.bool() { 1 } else { rng.usize(1..=jobs) });
            jobs_of_client.iter_mut().for_each(|job| *job += usize::from(domain) * jobs);
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
            self.clients.push(PlannedClient {
                domain,
                jobs: jobs_of_client,
                goal,
                arrives,
                timeout,
                leaves,
                has_joined: false,
                has_left: false,
                answered_at: None,
            });
        }
    }

    /// Draws a time for an event: at random, or at or right beside one of these moments.
    fn moment(&self, rng: &mut fastrand::Rng, moments: &[Duration]) -> Duration {
        if rng.u8(..3) == 0 {
            return Duration::from_millis(rng.u64(..400_000));
        }
        let at = moments[rng.usize(..moments.len())];
        let beside = [Duration::ZERO, Duration::from_nanos(1), self.hop, Duration::from_millis(700)];
        let offset = beside[rng.usize(..beside.len())];
        if rng.bool() { at + offset } else { at.saturating_sub(offset) }
    }

    /// Returns whether no connection succeeds at this time.
    pub(super) fn is_unreachable(&self, at: Duration) -> bool {
        self.outages.iter().any(|&(from, to)| from <= at && at < to)
    }

    /// Returns the number of jobs of a key that the upstream always refuses.
    pub(super) fn refused_jobs(&self, domain: u8) -> usize {
        self.jobs.iter().filter(|job| job.domain == domain && job.refused.is_some()).count()
    }
}
