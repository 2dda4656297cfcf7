//! The plan of a run: jobs, clients, replicas and faults, all from the seed.

use std::time::Duration;

use super::HOLD;
use crate::core::coalescer::{Pace, Proof};
use crate::core::job::JobId;
use crate::core::sweep::Timeline;

/// First seed whose plan has all kinds of faults.
pub(super) const SEEDS_OF_ALL_FAULTS: u64 = 1_000_000;

#[derive(Debug)]
pub(super) struct PlannedJob {
    pub(super) domain: u8,
    pub(super) id: JobId,
    pub(super) steps: Timeline,
    pub(super) is_refused: bool,
}

#[derive(Debug)]
pub(super) struct SweepClient {
    pub(super) replica: usize,
    pub(super) domain: u8,
    pub(super) jobs: Vec<usize>,
    pub(super) goal: Option<usize>,
    pub(super) arrives: Duration,
    pub(super) timeout: Duration,
    pub(super) leaves: Option<Duration>,
    pub(super) proof: Proof,
    pub(super) has_joined: bool,
    pub(super) has_left: bool,
    /// Whether its replica was killed or has stopped.
    pub(super) is_lost: bool,
    pub(super) settled: Option<Duration>,
}

impl SweepClient {
    pub(super) fn deadline(&self) -> Duration {
        self.arrives + self.timeout
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Kill(usize),
    /// The process stops for this time, as by SIGSTOP.
    Freeze(usize, Duration),
    Drain(usize, Duration),
    /// The link breaks, and is back after this time.
    Cut(usize, Duration),
    /// The subscriptions are lost without a word.
    Deafen(usize),
    /// No message comes for this time, and answers do: new subscriptions do not help.
    Mute(usize, Duration),
    EngineStop(Duration),
    /// The engine fails all calls that need memory for this time.
    EngineFull(Duration),
    /// All links break, and the engine is back after this time, empty or not.
    EngineDown(Duration, bool),
    Flush,
    /// Each step on the way takes this much longer.
    EngineFar(Duration, Duration),
    /// The upstream rejects the key once at this replica.
    Refuse(u8, usize),
    /// Messages come twice, late and out of order.
    Shuffle(Duration),
    /// All links break, and a server takes over that lacks the writes of this time. The links are back after the other.
    FailOver(Duration, Duration),
    /// This replica does not reach the upstream for this time.
    Egress(usize, Duration),
    /// That server takes over now.
    Promote(Duration),
    /// The clock of the engine goes ahead, or back, by this time.
    ClockJump(bool, Duration),
}

#[derive(Debug)]
pub(super) struct SweepPlan {
    pub(super) replicas: usize,
    pub(super) jobs: Vec<PlannedJob>,
    pub(super) clients: Vec<SweepClient>,
    pub(super) faults: Vec<(Duration, Fault)>,
    pub(super) hop: Duration,
    pub(super) engine_hop: Duration,
    pub(super) linger: Duration,
    pub(super) max_jobs: usize,
    /// Whether attempts may fail.
    pub(super) is_failing: bool,
    /// Whether faults come while others last.
    pub(super) is_stormy: bool,
    /// Times of an upstream that answers each request at once. `None`: it holds them.
    pub(super) pace: Option<Pace>,
    /// When each replica first has a link.
    pub(super) links_at: Vec<Duration>,
}

impl SweepPlan {
    /// Returns the plan of a seed. Seeds below [`SEEDS_OF_ALL_FAULTS`] keep the schedules that they had before the last kinds
    /// of faults.
    pub(super) fn new(seed: u64, rng: &mut fastrand::Rng) -> Self {
        let kinds = if seed < SEEDS_OF_ALL_FAULTS { 18 } else { 20 };
        let replicas = rng.usize(1..=4);
        let (domains, per_domain) = (rng.u8(1..=2), rng.usize(1..=3));
        let mut moments = vec![Duration::ZERO, Duration::from_secs(3), HOLD];
        let is_stormy = rng.u8(..5) == 0;
        let faults = faults(rng, (replicas, domains, kinds), is_stormy, &mut moments);
        let mut jobs = Vec::new();
        for domain in 0..domains {
            for number in 0..per_domain {
                let mut at = Duration::ZERO;
                let mut steps = vec![(at, rng.usize(0..=2))];
                while steps[steps.len() - 1].1 < 3 && rng.u8(..8) > 0 {
                    at = at.max(moment(rng, &moments));
                    moments.push(at);
                    let from = steps[steps.len() - 1].1;
                    steps.push((at, if rng.bool() { from + 1 } else { rng.usize(from + 1..=4) }));
                }
                let id = JobId::new(&format!("c{number}")).unwrap();
                jobs.push(PlannedJob { domain, id, steps: Timeline(steps), is_refused: rng.u8(..14) == 0 });
            }
        }
        let mut clients = Vec::new();
        let is_crowded = rng.bool();
        let most = [4, 10, 24][rng.usize(..3)];
        for _ in 0..rng.usize(1..=most) {
            let mut client = client(rng, replicas, domains, per_domain, &mut moments);
            if is_crowded && rng.u8(..4) > 0 {
                // A crowd waits for the end of one job from early on, so that faults hit polls with guests.
                (client.domain, client.jobs, client.goal) = (0, vec![0], Some(rng.usize(2..=3)));
                client.arrives = Duration::from_millis(rng.u64(..40_000));
                client.timeout = HOLD * rng.u32(1..=2);
                client.leaves = client.leaves.map(|at| at.max(client.arrives));
            }
            clients.push(client);
        }
        Self {
            replicas,
            jobs,
            clients,
            faults,
            hop: Duration::from_millis([1, 5, 30][rng.usize(..3)]),
            engine_hop: Duration::from_micros([100, 2_000, 8_000, 20_000][rng.usize(..4)]),
            linger: Duration::from_secs([0, 2, 2][rng.usize(..3)]),
            max_jobs: rng.usize(2..=6),
            is_failing: rng.u8(..10) == 0,
            is_stormy,
            pace: None,
            links_at: (0..replicas)
                .map(
                    |_| {
                        if rng.u8(..4) == 0 {
                            Duration::from_millis(rng.u64(..5_000))
                        } else {
                            Duration::ZERO
                        }
                    },
                )
                .collect(),
        }
    }
}

impl SweepPlan {
    /// Returns a plan in which one client at each replica waits for the end of the same job.
    pub(super) fn crowd(replicas: usize, reaches: Duration, faults: Vec<(Duration, Fault)>) -> Self {
        let client = |replica: usize| SweepClient {
            replica,
            domain: 0,
            jobs: vec![0],
            goal: Some(3),
            arrives: Duration::from_millis(100 * replica as u64),
            timeout: HOLD * 2,
            leaves: None,
            proof: Proof::Never,
            has_joined: false,
            has_left: false,
            is_lost: false,
            settled: None,
        };
        let job = PlannedJob {
            domain: 0,
            id: JobId::new("c0").unwrap(),
            steps: Timeline(vec![(Duration::ZERO, 1), (reaches, 3)]),
            is_refused: false,
        };
        Self {
            replicas,
            jobs: vec![job],
            clients: (0..replicas).map(client).collect(),
            faults,
            hop: Duration::from_millis(1),
            engine_hop: Duration::from_micros(100),
            linger: Duration::from_secs(2),
            max_jobs: 6,
            is_failing: false,
            is_stormy: false,
            pace: None,
            links_at: vec![Duration::ZERO; replicas],
        }
    }
}

fn client(
    rng: &mut fastrand::Rng,
    replicas: usize,
    domains: u8,
    per_domain: usize,
    moments: &mut Vec<Duration>,
) -> SweepClient {
    let domain = rng.u8(..domains);
    let mut jobs: Vec<usize> = (0..per_domain).collect();
    rng.shuffle(&mut jobs);
    jobs.truncate(if rng.u8(..3) > 0 { 1 } else { rng.usize(1..=per_domain) });
    jobs.iter_mut().for_each(|job| *job += usize::from(domain) * per_domain);
    let arrives = moment(rng, moments);
    let timeout = match rng.u8(..8) {
        0..=4 => HOLD,
        5 => HOLD * 2,
        6 => Duration::from_secs(rng.u64(1..=60)),
        _ => Duration::from_millis(rng.u64(..150_000)),
    };
    let leaves = (rng.u8(..4) == 0).then(|| arrives.max(moment(rng, moments)));
    moments.extend([arrives, arrives + timeout, arrives + HOLD]);
    moments.extend(leaves);
    SweepClient {
        replica: rng.usize(..replicas),
        domain,
        jobs,
        goal: (rng.u8(..6) > 0).then(|| [0, 1, 2, 3, 3, 3][rng.usize(..6)]),
        arrives,
        timeout,
        leaves,
        proof: match rng.u8(..6) {
            0 => Proof::NoCache,
            1 | 2 => Proof::Never,
            _ => Proof::Within(Duration::from_secs(30)),
        },
        has_joined: false,
        has_left: false,
        is_lost: false,
        settled: None,
    }
}

/// Generates faults: each is over before the next, but in a storm.
fn faults(
    rng: &mut fastrand::Rng,
    (replicas, domains, kinds): (usize, u8, u8),
    is_stormy: bool,
    moments: &mut Vec<Duration>,
) -> Vec<(Duration, Fault)> {
    let (mut faults, mut at) = (Vec::new(), Duration::ZERO);
    let mut gone = 0;
    let count = if is_stormy { rng.usize(2..=12) } else { [0, 1, 1, 2, 4][rng.usize(..5)] };
    for _ in 0..count {
        at += if is_stormy && rng.u8(..3) > 0 {
            Duration::from_millis(rng.u64(0..3_000))
        } else {
            Duration::from_millis(rng.u64(6_000..60_000))
        };
        let (replica, time) = (rng.usize(..replicas), Duration::from_millis(rng.u64(50..8_000)));
        let short = Duration::from_millis(rng.u64(50..1_500));
        let either = if rng.bool() { short } else { time };
        let fault = match rng.u8(..kinds) {
            0 | 1 if gone + 1 < replicas => Fault::Kill(replica),
            2 | 3 if gone + 1 < replicas => Fault::Drain(replica, time),
            4 => Fault::Freeze(replica, either),
            5 | 6 => Fault::Cut(replica, either),
            7 => Fault::Deafen(replica),
            8 => Fault::EngineStop(either),
            9 => Fault::EngineDown(if rng.bool() { short } else { time * 3 }, rng.bool()),
            10 | 11 => Fault::Flush,
            12 => Fault::EngineFar(time * 2, Duration::from_millis(rng.u64(20..600))),
            13 => Fault::Refuse(rng.u8(..domains), replica),
            14 => Fault::Shuffle(time * 2),
            15 => Fault::FailOver(Duration::from_millis(rng.u64(..1_000)), either),
            16 => Fault::ClockJump(rng.bool(), time),
            17 => Fault::Egress(replica, time),
            18 => Fault::EngineFull(either),
            19 => Fault::Mute(replica, either),
            _ => continue,
        };
        gone += usize::from(matches!(fault, Fault::Kill(_) | Fault::Drain(..)));
        moments.push(at);
        faults.push((at, fault));
        if matches!(fault, Fault::Refuse(..)) && rng.bool() {
            // Results of the dead epoch come after the news of its end.
            faults.push((at, Fault::Shuffle(short)));
        }
        at += if is_stormy { Duration::ZERO } else { Duration::from_secs(26) };
    }
    faults
}

/// Returns a random moment: anywhere, or at or right beside one of these.
fn moment(rng: &mut fastrand::Rng, moments: &[Duration]) -> Duration {
    if rng.u8(..3) == 0 {
        return Duration::from_millis(rng.u64(..200_000));
    }
    let at = moments[rng.usize(..moments.len())];
    let near = [0, 1, 3, 20, 60, 240, 700, 1_500, 4_000];
    let distance = Duration::from_millis(near[rng.usize(..near.len())]);
    if rng.bool() { at + distance } else { at.saturating_sub(distance) }
}
