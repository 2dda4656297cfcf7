//! The clips: what the simulated upstream will say of each, and when. The truth that answers are held to.
//!
//! It knows no gateway. A moment here is two: the earliest and the latest at which the upstream may have set it.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clipgate::sim::Sim;
use clipgate::testing::clock;
use fastrand::Rng;
use parking_lot::Mutex;

/// The states by their numbers, as queries say them.
pub(crate) const WORDS: [&str; 5] = ["submitted", "queued", "streaming", "completed", "error"];
/// The number of the last one that can be asked for; that and those above never change.
pub(crate) const COMPLETED: usize = 3;
/// How many finished clips are asked for, so that they are hits.
const HOT: usize = 120;

/// One clip, from its first state to its last.
pub(crate) struct Clip {
    pub(crate) id: String,
    /// Each state's number, and when it is reached: not before, and not after.
    steps: Vec<(Instant, Instant, usize)>,
    bodies: [OnceLock<Bytes>; WORDS.len()],
    /// The keys that the upstream was asked with for it, a bit each.
    asked: AtomicU64,
    /// The keys that were told of it.
    told: AtomicU64,
}

impl Clip {
    /// The state that it may have reached by then.
    pub(crate) fn highest_by(&self, at: Instant) -> usize {
        self.steps.iter().rev().find(|step| step.0 <= at).map_or(0, |step| step.2)
    }

    /// The state that it has surely reached by then.
    pub(crate) fn lowest_by(&self, at: Instant) -> usize {
        self.steps.iter().rev().find(|step| step.1 <= at).map_or(0, |step| step.2)
    }

    /// Whether it is ever in this state.
    pub(crate) fn visits(&self, state: usize) -> bool {
        self.steps.iter().any(|step| step.2 == state)
    }

    /// From when to when it is surely in this state; without an end if it stays there.
    pub(crate) fn stays(&self, state: usize) -> Option<(Instant, Option<Instant>)> {
        let place = self.steps.iter().position(|step| step.2 == state)?;
        Some((self.steps[place].1, self.steps.get(place + 1).map(|next| next.0)))
    }

    /// When it is at this state or above it at the latest.
    pub(crate) fn reaches(&self, state: usize) -> Option<Instant> {
        self.steps.iter().find(|step| step.2 >= state).map(|step| step.1)
    }

    /// What the upstream says of it in this state.
    pub(crate) fn body(&self, sim: &Sim, state: usize) -> &Bytes {
        self.bodies[state].get_or_init(|| sim.body(&self.id, WORDS[state]))
    }

    pub(crate) fn is_told(&self, key: u64) {
        self.told.fetch_or(key, Ordering::Relaxed);
    }

    /// The keys that were told of it by now.
    pub(crate) fn told(&self) -> u64 {
        self.told.load(Ordering::Relaxed)
    }

    /// The keys that the upstream was asked with.
    pub(crate) fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    pub(crate) fn is_asked(&self, key: u64) {
        self.asked.fetch_or(key, Ordering::Relaxed);
    }

    fn ends_at(&self) -> Instant {
        self.steps[self.steps.len() - 1].1
    }
}

/// The clips that are asked for.
pub(crate) struct Clips {
    sim: Sim,
    hold: Duration,
    pool: Mutex<Pool>,
}

#[derive(Default)]
struct Pool {
    made: u64,
    climbing: VecDeque<Arc<Clip>>,
    done: VecDeque<Arc<Clip>>,
}

impl Clips {
    pub(crate) fn new(sim: Sim, hold: Duration) -> Self {
        Self { sim, hold, pool: Mutex::default() }
    }

    /// Makes a clip, and puts those that have come to their end among the finished ones.
    pub(crate) fn make(&self, rng: &mut Rng) {
        let mut pool = self.pool.lock();
        pool.made += 1;
        // The first ones are finished at once, so that there are hits from the start.
        let number = pool.made;
        let is_done = number <= HOT as u64 && number.is_multiple_of(2);
        let id = format!("{:08x}-{:04x}-4000-8000-{number:012x}", rng.u32(..), rng.u16(..));
        let clip = Arc::new(self.invent(rng, id, is_done));
        pool.climbing.push_back(clip);
        let now = clock::now();
        let (done, climbing): (Vec<_>, Vec<_>) =
            std::mem::take(&mut pool.climbing).into_iter().partition(|clip| clip.ends_at() < now);
        pool.climbing = climbing.into();
        pool.done.extend(done);
        let surplus = pool.done.len().saturating_sub(HOT);
        pool.done.drain(..surplus);
    }

    /// A finished clip that nobody else asks for.
    pub(crate) fn make_done(&self, rng: &mut Rng) -> Arc<Clip> {
        let id = format!("apart-{:016x}", rng.u64(..));
        Arc::new(self.invent(rng, id, true))
    }

    /// A clip of this id that nobody else asks for.
    pub(crate) fn make_named(&self, rng: &mut Rng, id: &str) -> Arc<Clip> {
        Arc::new(self.invent(rng, id.to_owned(), false))
    }

    fn invent(&self, rng: &mut Rng, id: String, is_done: bool) -> Clip {
        let mut after = Duration::ZERO;
        let mut plan = Vec::new();
        let fails = rng.u8(..16) == 0;
        let longest = if rng.u8(..10) == 0 { self.hold * 3 } else { self.hold };
        for state in 1..COMPLETED {
            after += longest.mul_f64(rng.f64() / 3.0);
            if rng.u8(..10) > 0 {
                plan.push((state, after));
            }
        }
        let end = if fails { COMPLETED + 1 } else { COMPLETED };
        plan.push((end, after + longest.mul_f64(rng.f64() / 2.0)));
        if is_done {
            plan = vec![(end, Duration::ZERO)];
        }
        let words: Vec<_> = plan.iter().map(|&(state, after)| (WORDS[state], after)).collect();
        let before = clock::now();
        self.sim.schedule(&id, &words);
        let now = clock::now();
        let first = (before, now, 0);
        let steps = plan.into_iter().map(|(state, after)| (before + after, now + after, state));
        Clip {
            id,
            steps: std::iter::once(first).chain(steps).collect(),
            bodies: Default::default(),
            asked: AtomicU64::new(0),
            told: AtomicU64::new(0),
        }
    }

    /// A clip that changes yet, or has just stopped to.
    pub(crate) fn climbing(&self, rng: &mut Rng) -> Option<Arc<Clip>> {
        choose(&self.pool.lock().climbing, rng)
    }

    /// A finished clip.
    pub(crate) fn done(&self, rng: &mut Rng) -> Option<Arc<Clip>> {
        choose(&self.pool.lock().done, rng)
    }

    /// All of them, by their ids.
    pub(crate) fn by_id(&self) -> HashMap<String, Arc<Clip>> {
        let pool = self.pool.lock();
        let all = pool.climbing.iter().chain(&pool.done);
        all.map(|clip| (clip.id.clone(), Arc::clone(clip))).collect()
    }

    /// How many were ever made.
    pub(crate) fn made(&self) -> u64 {
        self.pool.lock().made
    }
}

fn choose(from: &VecDeque<Arc<Clip>>, rng: &mut Rng) -> Option<Arc<Clip>> {
    (!from.is_empty()).then(|| Arc::clone(&from[rng.usize(..from.len())]))
}
