//! Random jobs and clients of one schedule.

use std::time::Duration;

use super::{HOLD, REPOLL_INTERVAL, SKEW, Sweep, SweepEvent};
use crate::core::coalescer::Proof;
use crate::core::job::JobId;
use crate::core::route::Form;

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
    steps: Vec<(Duration, usize)>,
    /// Whether the upstream answers each request for the job with a 4xx.
    pub(super) is_refused: bool,
}

impl SweepJob {
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
                self.jobs.push(SweepJob { domain: number, id, steps, is_refused });
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
            let known = known.map(|job| (job, self.jobs[job].rung_at(arrives))).collect();
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
                let number = self.clients.len();
                let goal = (self.proof_rng.u8(..4) == 0).then_some(0);
                let leaves = (self.proof_rng.u8(..20) == 0).then_some(at + self.hop);
                let proof = self.proof();
                self.clients.push(SweepClient {
                    domain: self.jobs[job].domain,
                    jobs: vec![job],
                    form: Form::Single,
                    goal,
                    arrives: at,
                    timeout: HOLD,
                    leaves,
                    known: Vec::new(),
                    proof,
                    joined: false,
                    cancelled: false,
                    left: false,
                    settled: None,
                });
                self.schedule(at, SweepEvent::Join(number));
                if let Some(at) = leaves {
                    self.schedule(at, SweepEvent::Leave(number));
                }
                let is_exact = self.proof_rng.bool();
                at += Duration::from_secs_f64(if is_exact {
                    period
                } else {
                    period * self.proof_rng.f64() * 2.0
                });
            }
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
