//! Parts that the sweeps share: random schedules in virtual time, replayed by their seeds.

use std::collections::BTreeMap;
use std::time::Duration;

/// Events to come. Those of one moment happen in random order.
pub(super) struct RandomQueue<E> {
    events: BTreeMap<(Duration, u64), E>,
}

impl<E> RandomQueue<E> {
    pub(super) fn new() -> Self {
        Self { events: BTreeMap::new() }
    }

    pub(super) fn add(&mut self, rng: &mut fastrand::Rng, at: Duration, event: E) {
        let mut order = rng.u64(..);
        while self.events.contains_key(&(at, order)) {
            order = order.wrapping_add(1); // keeps the keys of one moment apart
        }
        self.events.insert((at, order), event);
    }

    /// Returns the time of the next event.
    pub(super) fn next_at(&self) -> Option<Duration> {
        self.events.first_key_value().map(|((at, _), _)| *at)
    }

    /// Removes the next event.
    pub(super) fn pop(&mut self) -> Option<(Duration, E)> {
        self.events.pop_first().map(|((at, _), event)| (at, event))
    }

    /// Returns whether a timer comes before the next event, at random if both are due at one moment. `None`: neither is
    /// left.
    pub(super) fn is_timer_first(&self, rng: &mut fastrand::Rng, timer: Option<Duration>) -> Option<bool> {
        match (timer, self.next_at()) {
            (None, None) => None,
            (Some(_), None) => Some(true),
            (None, Some(_)) => Some(false),
            (Some(timer), Some(event)) => Some(timer < event || (timer == event && rng.bool())),
        }
    }
}

/// The true course of a job: each rung by number, and since when the job is on it. At least one.
#[derive(Debug)]
pub(super) struct Timeline(pub(super) Vec<(Duration, usize)>);

impl Timeline {
    pub(super) fn rung_at(&self, at: Duration) -> usize {
        self.0.iter().rev().find(|(since, _)| *since <= at).map_or(self.0[0].1, |step| step.1)
    }

    /// Returns the time at which the job reaches this rung or a higher one.
    pub(super) fn reaches_at(&self, rung: usize) -> Option<Duration> {
        self.0.iter().find(|step| step.1 >= rung).map(|step| step.0)
    }

    /// Returns whether the job was at exactly this rung at a time between `from` and `to`.
    pub(super) fn was_at(&self, rung: usize, from: Duration, to: Duration) -> bool {
        self.rung_at(from) == rung || self.0.iter().any(|&(at, r)| r == rung && from < at && at <= to)
    }
}

/// Prints the seed if the run panics.
pub(super) struct SeedOnPanic(pub(super) u64);

impl Drop for SeedOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replay this run with CLIPGATE_SWEEP_SEED={}", self.0);
        }
    }
}

/// Returns the number in an environment variable: a seed, or a number of seeds.
pub(super) fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number of seeds, or a seed"))
}

/// Returns the seeds of a sweep: `CLIPGATE_SWEEP_SEEDS` of them, from `CLIPGATE_SWEEP_FIRST` on.
pub(super) fn seeds(default: u64) -> std::ops::Range<u64> {
    let first = setting("CLIPGATE_SWEEP_FIRST").unwrap_or(0);
    first..first + setting("CLIPGATE_SWEEP_SEEDS").unwrap_or(default)
}
