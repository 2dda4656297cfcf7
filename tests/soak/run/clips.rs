//! Clips with known lives: the states and bodies that the simulated upstream returns, and when. The oracle checks
//! responses against them.
//!
//! Independent of the gateway. Each change of state has two times: the earliest and the latest at which the upstream may
//! have made it.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clipgate::sim::Sim;
use clipgate::testing::clock;
use fastrand::Rng;
use parking_lot::Mutex;

/// The states by number, in the words of queries.
pub(crate) const STATUSES: [&str; 5] = ["submitted", "queued", "streaming", "completed", "error"];
/// The number of the last state that a query can name. This state and the next are terminal.
pub(crate) const COMPLETED: usize = 3;
/// Number of finished clips in the pool: few, so that requests for them are cache hits.
const MAX_FINISHED: usize = 120;

/// One clip, from its first state to its last.
pub(crate) struct Clip {
    pub(crate) id: String,
    /// The earliest time, the latest time and the number of each state.
    steps: Vec<(Instant, Instant, usize)>,
    bodies: [OnceLock<Bytes>; STATUSES.len()],
    /// Keys with which the upstream was queried for it, one bit each.
    requested_by: AtomicU64,
    /// Keys whose clients received it.
    delivered_to: AtomicU64,
}

impl Clip {
    /// Returns the highest state that the clip may have reached at this time.
    pub(crate) fn latest_possible(&self, at: Instant) -> usize {
        self.steps.iter().rev().find(|step| step.0 <= at).map_or(0, |step| step.2)
    }

    /// Returns the highest state that the clip has certainly reached at this time.
    pub(crate) fn latest_certain(&self, at: Instant) -> usize {
        self.steps.iter().rev().find(|step| step.1 <= at).map_or(0, |step| step.2)
    }

    /// Returns whether the clip is ever in this state.
    pub(crate) fn has_state(&self, state: usize) -> bool {
        self.steps.iter().any(|step| step.2 == state)
    }

    /// Returns the period in which the clip is certainly in this state; without an end for its last state.
    pub(crate) fn certain_period(&self, state: usize) -> Option<(Instant, Option<Instant>)> {
        let index = self.steps.iter().position(|step| step.2 == state)?;
        Some((self.steps[index].1, self.steps.get(index + 1).map(|next| next.0)))
    }

    /// Returns the latest time at which the clip reaches this state or a higher one.
    pub(crate) fn reached_by(&self, state: usize) -> Option<Instant> {
        self.steps.iter().find(|step| step.2 >= state).map(|step| step.1)
    }

    /// Returns the upstream's body for this state.
    pub(crate) fn body(&self, sim: &Sim, state: usize) -> &Bytes {
        self.bodies[state].get_or_init(|| sim.body(&self.id, STATUSES[state]))
    }

    pub(crate) fn mark_delivered(&self, key: u64) {
        self.delivered_to.fetch_or(key, Ordering::Relaxed);
    }

    pub(crate) fn delivered_to(&self) -> u64 {
        self.delivered_to.load(Ordering::Relaxed)
    }

    pub(crate) fn requested_by(&self) -> u64 {
        self.requested_by.load(Ordering::Relaxed)
    }

    pub(crate) fn mark_requested(&self, key: u64) {
        self.requested_by.fetch_or(key, Ordering::Relaxed);
    }

    fn ends_at(&self) -> Instant {
        self.steps[self.steps.len() - 1].1
    }
}

/// The clips that clients query.
pub(crate) struct Clips {
    sim: Sim,
    hold: Duration,
    pool: Mutex<Pool>,
}

#[derive(Default)]
struct Pool {
    made: u64,
    unfinished: VecDeque<Arc<Clip>>,
    finished: VecDeque<Arc<Clip>>,
}

impl Clips {
    pub(crate) fn new(sim: Sim, hold: Duration) -> Self {
        Self { sim, hold, pool: Mutex::default() }
    }

    /// Creates a clip, and moves clips whose life is over to the finished ones.
    pub(crate) fn make(&self, rng: &mut Rng) {
        let mut pool = self.pool.lock();
        pool.made += 1;
        // Half of the first clips are finished at once, for cache hits from the start.
        let number = pool.made;
        let is_done = number <= MAX_FINISHED as u64 && number.is_multiple_of(2);
        let id = format!("{:08x}-{:04x}-4000-8000-{number:012x}", rng.u32(..), rng.u16(..));
        let clip = Arc::new(self.random_clip(rng, id, is_done));
        pool.unfinished.push_back(clip);
        let now = clock::now();
        let (finished, unfinished): (Vec<_>, Vec<_>) =
            std::mem::take(&mut pool.unfinished).into_iter().partition(|clip| clip.ends_at() < now);
        pool.unfinished = unfinished.into();
        pool.finished.extend(finished);
        let surplus = pool.finished.len().saturating_sub(MAX_FINISHED);
        pool.finished.drain(..surplus);
    }

    /// Creates a finished clip outside of the pool.
    pub(crate) fn make_finished(&self, rng: &mut Rng) -> Arc<Clip> {
        let id = format!("apart-{:016x}", rng.u64(..));
        Arc::new(self.random_clip(rng, id, true))
    }

    /// Creates a clip with this id outside of the pool.
    pub(crate) fn make_named(&self, rng: &mut Rng, id: &str) -> Arc<Clip> {
        Arc::new(self.random_clip(rng, id.to_owned(), false))
    }

    fn random_clip(&self, rng: &mut Rng, id: String, is_done: bool) -> Clip {
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
        let words: Vec<_> = plan.iter().map(|&(state, after)| (STATUSES[state], after)).collect();
        let before = clock::now();
        self.sim.schedule(&id, &words);
        let now = clock::now();
        let first = (before, now, 0);
        let steps = plan.into_iter().map(|(state, after)| (before + after, now + after, state));
        Clip {
            id,
            steps: std::iter::once(first).chain(steps).collect(),
            bodies: Default::default(),
            requested_by: AtomicU64::new(0),
            delivered_to: AtomicU64::new(0),
        }
    }

    /// Returns a clip that still changes, or became finished a moment ago.
    pub(crate) fn unfinished(&self, rng: &mut Rng) -> Option<Arc<Clip>> {
        choose(&self.pool.lock().unfinished, rng)
    }

    pub(crate) fn finished(&self, rng: &mut Rng) -> Option<Arc<Clip>> {
        choose(&self.pool.lock().finished, rng)
    }

    pub(crate) fn by_id(&self) -> HashMap<String, Arc<Clip>> {
        let pool = self.pool.lock();
        let all = pool.unfinished.iter().chain(&pool.finished);
        all.map(|clip| (clip.id.clone(), Arc::clone(clip))).collect()
    }

    /// Returns the number of clips ever added to the pool.
    pub(crate) fn made(&self) -> u64 {
        self.pool.lock().made
    }
}

fn choose(from: &VecDeque<Arc<Clip>>, rng: &mut Rng) -> Option<Arc<Clip>> {
    (!from.is_empty()).then(|| Arc::clone(&from[rng.usize(..from.len())]))
}
