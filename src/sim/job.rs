//! A simulated clip: its timeline of states, and futures that resolve when it reaches a state.
//!
//! This file does not know HTTP. A `watch` channel holds each timeline. Replacing the timeline wakes the polls.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use tokio::sync::watch;

use crate::clock;
use crate::core::route::{Ladder, Rung};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClipState {
    /// `None` for a word outside the ladder.
    pub(super) rung: Option<Rung>,
    /// The status word in the clip's JSON.
    pub(super) word: Arc<str>,
}

impl ClipState {
    /// Returns the state of a status word, as a query or a body spells it.
    pub(super) fn from_word(ladder: &Ladder, word: &str) -> Self {
        let rung = ladder.rung(word);
        Self { rung, word: rung.map_or(word, |rung| ladder.body_word(rung)).into() }
    }

    /// Returns whether the upstream answers a poll for this rung.
    pub(super) fn has_reached(&self, goal: Rung) -> bool {
        self.rung.is_none_or(|rung| rung >= goal)
    }
}

/// The states of one job over time.
#[derive(Clone, Debug)]
pub(super) struct Timeline<S = ClipState> {
    start: S,
    /// The later states and their times, the earliest first.
    steps: Vec<(Instant, S)>,
}

impl<S> Timeline<S> {
    pub(super) fn new(start: S, mut steps: Vec<(Instant, S)>) -> Self {
        steps.sort_by_key(|&(at, _)| at);
        Self { start, steps }
    }

    /// Returns a timeline without changes.
    pub(super) fn constant(state: S) -> Self {
        Self::new(state, Vec::new())
    }

    pub(super) fn at(&self, now: Instant) -> &S {
        self.step(now).map_or(&self.start, |(_, state)| state)
    }

    /// Returns when the state of `now` began; `None` for the start.
    pub(super) fn since(&self, now: Instant) -> Option<Instant> {
        self.step(now).map(|&(at, _)| at)
    }

    fn step(&self, now: Instant) -> Option<&(Instant, S)> {
        self.steps.iter().rev().find(|&&(at, _)| at <= now)
    }
}

impl Timeline {
    /// Returns when a poll for the goal will be answered, if that is after `now`.
    fn next_reach(&self, goal: Rung, now: Instant) -> Option<Instant> {
        self.steps.iter().find(|(at, state)| *at > now && state.has_reached(goal)).map(|&(at, _)| at)
    }
}

/// One clip. The simulated upstream owns it; held polls share it.
pub(super) struct Clip {
    id: Arc<str>,
    timeline: watch::Sender<Timeline>,
}

impl Clip {
    pub(super) fn new(id: &str, timeline: Timeline) -> Self {
        Self { id: id.into(), timeline: watch::Sender::new(timeline) }
    }

    pub(super) fn id(&self) -> &Arc<str> {
        &self.id
    }

    pub(super) fn state(&self, now: Instant) -> ClipState {
        self.timeline.borrow().at(now).clone()
    }

    pub(super) fn replace(&self, timeline: Timeline) {
        self.timeline.send_replace(timeline);
    }

    /// Resolves once the clip is on this rung or a higher one. Never resolves if it does not get there. Cancel safe.
    async fn reached(&self, goal: Rung) {
        let mut changes = self.timeline.subscribe();
        loop {
            let next = {
                let timeline = changes.borrow_and_update();
                let now = clock::now();
                if timeline.at(now).has_reached(goal) {
                    return;
                }
                timeline.next_reach(goal, now)
            };
            let due = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            // Cancel safe: both branches only wake the loop, which reads the timeline again.
            tokio::select! {
                () = due => {}
                changed = changes.changed() => changed.expect("the sender is in self"),
            }
        }
    }
}

/// Resolves once all clips are on this rung or a higher one at the same time. Cancel safe.
pub(super) async fn all_reached(clips: &[Arc<Clip>], goal: Rung) {
    while let Some(behind) = clips.iter().find(|clip| !clip.state(clock::now()).has_reached(goal)) {
        behind.reached(goal).await;
    }
}

/// Parameters of the lifetimes of generated clips.
pub(super) struct LifetimeModel {
    pub(super) speed: f64,
    pub(super) error_rate: f64,
    pub(super) seed: u64,
}

/// When the rungs between the first and the last are reached, in seconds.
const INTERMEDIATE_SECONDS: [RangeInclusive<f64>; 2] = [1.0..=3.0, 25.0..=35.0];
/// When a clip is completed, in seconds.
const COMPLETED_SECONDS: RangeInclusive<f64> = 60.0..=120.0;
/// When a failing clip fails, in seconds.
const FAILED_SECONDS: RangeInclusive<f64> = 2.0..=60.0;
/// The share of intermediate rungs that a clip skips.
const SKIP_RATE: f64 = 0.05;

impl LifetimeModel {
    /// Returns the lifetime of a clip from `now` on. The id and the seed decide it.
    pub(super) fn lifetime(&self, ladder: &Ladder, id: &str, now: Instant) -> Timeline {
        let mut rng = Rng::with_seed(self.seed ^ id_seed(id));
        let state = |rung| ClipState::from_word(ladder, ladder.name(rung));
        let mut within =
            |range: &RangeInclusive<f64>| range.start() + rng.f64() * (range.end() - range.start());
        let at = |seconds: f64| now + Duration::from_secs_f64(seconds / self.speed);

        let fails = within(&(0.0..=1.0)) < self.error_rate;
        let (end, range) =
            if fails { (failure(ladder), FAILED_SECONDS) } else { (success(ladder), COMPLETED_SECONDS) };
        let end_at = within(&range);
        let intermediate = ladder.rungs().skip(1).filter(|&rung| !ladder.is_terminal(rung));
        let mut steps = Vec::new();
        for (rung, range) in intermediate.zip(&INTERMEDIATE_SECONDS) {
            let seconds = within(range);
            if seconds < end_at && within(&(0.0..=1.0)) >= SKIP_RATE {
                steps.push((at(seconds), state(rung)));
            }
        }
        steps.extend(end.map(|rung| (at(end_at), state(rung))));
        Timeline::new(state(ladder.lowest()), steps)
    }
}

/// Returns the terminal rung that a request can name.
fn success(ladder: &Ladder) -> Option<Rung> {
    ladder.rungs().find(|&rung| ladder.is_terminal(rung) && ladder.is_askable(rung))
}

/// Returns the terminal rung that no request can name.
fn failure(ladder: &Ladder) -> Option<Rung> {
    ladder.rungs().find(|&rung| ladder.is_terminal(rung) && !ladder.is_askable(rung))
}

/// Returns a seed from the id, evenly distributed.
pub(super) fn id_seed(id: &str) -> u64 {
    let digest = blake3::hash(id.as_bytes());
    digest.as_bytes()[..8].iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::route::Route;

    #[test]
    fn a_clip_completes_within_60_to_120_seconds_and_one_in_fifty_fails() {
        let ladder = Route::suno().ladder;
        let model = LifetimeModel { speed: 1.0, error_rate: 0.02, seed: 7 };
        let now = clock::now();
        let (mut failed, mut skipped) = (0, 0);
        for n in 0..2000 {
            let timeline = model.lifetime(&ladder, &format!("clip-{n}"), now);
            let after = |seconds| timeline.at(now + Duration::from_secs(seconds)).rung.unwrap();
            assert_eq!(after(0), ladder.lowest());
            assert!(ladder.is_terminal(after(120)));
            assert!(timeline.steps.windows(2).all(|pair| pair[0].0 <= pair[1].0 && pair[0].1 != pair[1].1));
            if ladder.is_askable(after(120)) {
                assert!(!ladder.is_terminal(after(59)));
                skipped += usize::from(timeline.steps.len() < 3);
            } else {
                failed += 1;
            }
        }
        assert!((15..=80).contains(&failed), "{failed}");
        assert!((100..=400).contains(&skipped), "{skipped}");
    }

    #[test]
    fn the_seed_and_the_id_decide_a_lifetime_and_the_speed_divides_it() {
        let ladder = Route::suno().ladder;
        let now = clock::now();
        let end = |speed, seed, id: &str| {
            let timeline = LifetimeModel { speed, error_rate: 0.0, seed }.lifetime(&ladder, id, now);
            (timeline.steps.last().unwrap().0 - now).as_secs_f64()
        };
        assert_eq!(end(1.0, 1, "a").to_bits(), end(1.0, 1, "a").to_bits());
        assert!((end(1.0, 1, "a") - end(1.0, 2, "a")).abs() > f64::EPSILON);
        assert!((end(1.0, 1, "a") - end(1.0, 1, "b")).abs() > f64::EPSILON);
        assert!((end(1.0, 1, "a") - 10.0 * end(10.0, 1, "a")).abs() < 0.001);
    }
}
