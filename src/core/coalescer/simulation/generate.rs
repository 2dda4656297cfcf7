//! Random jobs and clients of one schedule.

use std::time::Duration;

use super::{HOLD, REPOLL_INTERVAL, SKEW, Sweep, SweepEvent};
use crate::core::coalescer::Proof;
use crate::core::job::JobId;
use crate::core::route::Form;
use crate::core::sweep::Timeline;

/// Behaviour of the upstream in one schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UpstreamMode {
    /// Holds its polls for the hold that the Coalescer is set to.
    Clean,
    /// Holds them longer.
    Slow,
    /// Ends them earlier.
    Short,
    /// Does not hold them at all.
    Eager,
    /// Anything may happen: failed attempts, pauses, refusals, answers that cannot be split, states that go back.
    Faulty,
}

impl UpstreamMode {
    pub(super) fn random(rng: &mut fastrand::Rng) -> Self {
        [Self::Clean, Self::Clean, Self::Clean, Self::Slow, Self::Short, Self::Eager, Self::Faulty]
            [rng.usize(..7)]
    }

    pub(super) fn hold(self) -> Duration {
        match self {
            Self::Clean | Self::Faulty => HOLD,
            Self::Slow => HOLD + Duration::from_secs(12),
            Self::Short => HOLD - Duration::from_secs(30),
            Self::Eager => Duration::ZERO,
        }
    }
}

/// The true course of a job. Rungs are numbers here.
#[derive(Debug)]
pub(super) struct SweepJob {
    pub(super) domain: u8,
    pub(super) id: JobId,
    /// Each rung, and since when the job is on it.
    pub(super) steps: Timeline,
    /// Whether the upstream answers each request for the job with a 4xx.
    pub(super) is_refused: bool,
}

/// The plan of a client, and its course so far.
#[derive(Debug)]
pub(super) struct SweepClient {
    pub(super) domain: u8,
    pub(super) jobs: Vec<usize>,
    pub(super) form: Form,
    /// Number of the rung; `None` is a request without a status.
    pub(super) goal: Option<usize>,
    pub(super) arrives: Duration,
    pub(super) timeout: Duration,
    pub(super) leaves: Option<Duration>,
    /// Jobs with a cached state, and its rung.
    pub(super) known: Vec<(usize, usize)>,
    pub(super) proof: Proof,
    pub(super) joined: bool,
    /// Whether its join was cancelled.
    pub(super) cancelled: bool,
    pub(super) left: bool,
    pub(super) settled: Option<Duration>,
}

impl SweepClient {
    /// Returns whether the upstream answers its request at once, also with a refusal.
    pub(super) fn is_immediate(&self) -> bool {
        self.goal.is_none_or(|goal| goal == 0)
    }

    /// Returns whether it asks for the state of one job at once, and accepts proof.
    pub(super) fn is_plain(&self) -> bool {
        let accepts_proof = matches!(self.proof, Proof::Within(max) if max > Duration::ZERO);
        self.is_immediate() && self.jobs.len() == 1 && accepts_proof
    }

    pub(super) fn deadline(&self) -> Duration {
        self.arrives + self.timeout
    }
}

impl Sweep {
    /// Generates jobs and clients. Many of their moments lie at or right beside each other.
    pub(super) fn generate(&mut self) {
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
                let is_refused = self.rng.u8(..12) == 0;
                let id = JobId::new(&format!("c{job}")).unwrap();
                self.jobs.push(SweepJob { domain: number, id, steps: Timeline(steps), is_refused });
            }
        }
        // A page that loads: all clients come at once, so their deadlines and the ends of their polls coincide.
        let burst = (self.rng.u8(..8) == 0).then(|| (self.moment(&moments), self.rng.usize(1..=3)));
        let max_clients = [3, 8, 25][self.rng.usize(..3)];
        for client in 0..self.rng.usize(1..=max_clients) {
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
            let known = known.into_iter().filter(|&job| !self.jobs[job].is_refused);
            let known = known.map(|job| (job, self.jobs[job].steps.rung_at(arrives))).collect();
            moments.extend([arrives, arrives + timeout, arrives + self.hold]);
            moments.extend(leaves);
            let proof = self.proof();
            self.clients.push(SweepClient {
                domain: number,
                jobs: named,
                form: if is_single { Form::Single } else { Form::Multi },
                goal,
                arrives,
                timeout,
                leaves,
                known,
                proof,
                joined: false,
                cancelled: false,
                left: false,
                settled: None,
            });
            self.schedule(arrives, SweepEvent::Join(client));
            if let Some(at) = leaves {
                self.schedule(at, SweepEvent::Leave(client));
            }
        }
    }

    /// Generates clients that ask again and again for the state of one job, at the rhythm of a script.
    pub(super) fn generate_plain_requests(&mut self) {
        for _ in 0..self.proof_rng.usize(1..=3) {
            let job = self.proof_rng.usize(..self.jobs.len());
            let period = [0.3, 1.0, 2.0, 5.0, 15.0, 25.0][self.proof_rng.usize(..6)];
            let mut at = match self.clients.get(self.proof_rng.usize(..self.clients.len() * 2)) {
                Some(client) => client.arrives,
                None => Duration::from_millis(self.proof_rng.u64(..300_000)),
            };
            for _ in 0..self.proof_rng.usize(1..=25) {
                let goal = (self.proof_rng.u8(..4) == 0).then_some(0);
                let leaves = (self.proof_rng.u8(..20) == 0).then_some(at + self.hop);
                self.add_client(vec![job], goal, at, HOLD, leaves);
                let is_exact = self.proof_rng.bool();
                let pause = if is_exact { period } else { period * self.proof_rng.f64() * 2.0 };
                at += Duration::from_secs_f64(pause);
            }
        }
    }

    /// Generates a client for several jobs and, shortly after it, one for each of these jobs at the same rung.
    pub(super) fn generate_batch_and_singles(&mut self) {
        let number = self.jobs[self.proof_rng.usize(..self.jobs.len())].domain;
        let jobs = (0..self.jobs.len()).filter(|&job| self.jobs[job].domain == number);
        let jobs: Vec<usize> = jobs.take(self.proof_rng.usize(1..=3)).collect();
        let mut at = Duration::from_millis(self.proof_rng.u64(..200_000));
        if self.proof_rng.bool() {
            self.add_client(jobs.clone(), None, at, HOLD, None);
            at += Duration::from_millis(self.proof_rng.u64(..3_000));
        }
        let goal = Some(self.proof_rng.usize(1..=3));
        let timeouts = [20, 60, 120, 120, 300];
        let timeout = Duration::from_secs(timeouts[self.proof_rng.usize(..timeouts.len())]);
        self.add_client(jobs.clone(), goal, at, timeout, None);
        for job in jobs {
            at += Duration::from_millis(self.proof_rng.u64(..20_000));
            let timeout = Duration::from_secs(timeouts[self.proof_rng.usize(..timeouts.len())]);
            let leaves = (self.proof_rng.u8(..4) == 0).then_some(at + timeout / 2);
            self.add_client(vec![job], goal, at, timeout, leaves);
        }
    }

    fn add_client(
        &mut self,
        jobs: Vec<usize>,
        goal: Option<usize>,
        arrives: Duration,
        timeout: Duration,
        leaves: Option<Duration>,
    ) {
        let number = self.clients.len();
        let proof = self.proof();
        self.clients.push(SweepClient {
            domain: self.jobs[jobs[0]].domain,
            form: if jobs.len() == 1 { Form::Single } else { Form::Multi },
            jobs,
            goal,
            arrives,
            timeout,
            leaves,
            known: Vec::new(),
            proof,
            joined: false,
            cancelled: false,
            left: false,
            settled: None,
        });
        self.schedule(arrives, SweepEvent::Join(number));
        if let Some(at) = leaves {
            self.schedule(at, SweepEvent::Leave(number));
        }
    }

    fn proof(&mut self) -> Proof {
        if !self.has_proof {
            return Proof::Never;
        }
        match self.proof_rng.u8(..10) {
            0 => Proof::Never,
            1 => Proof::NoCache,
            2 => Proof::Within(Duration::ZERO),
            3 => Proof::Within(Duration::from_secs(1)),
            4..8 => Proof::Within(Duration::from_secs(30)),
            _ => Proof::Within(Duration::from_secs(600)),
        }
    }

    /// Returns a random moment: anywhere, or at or right beside one of these.
    fn moment(&mut self, moments: &[Duration]) -> Duration {
        if self.rng.u8(..3) == 0 {
            return Duration::from_millis(self.rng.u64(..400_000));
        }
        let at = moments[self.rng.usize(..moments.len())];
        let distances =
            [Duration::ZERO, Duration::from_nanos(1), self.hop, SKEW, REPOLL_INTERVAL, self.hop + SKEW];
        let distance = distances[self.rng.usize(..distances.len())];
        if self.rng.bool() { at + distance } else { at.saturating_sub(distance) }
    }
}
