//! A simulated clip: where it stands, where it goes and when, and waiting for it.
//!
//! It knows no HTTP. Its timeline is replaced whole, through a `watch`, which is what wakes the polls.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use tokio::sync::watch;

use crate::clock;
use crate::core::route::{Ladder, Rung};

/// Where a clip stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClipState {
    /// `None`: its word is on no ladder.
    pub(super) rung: Option<Rung>,
    /// The word in its body.
    pub(super) word: Arc<str>,
}

impl ClipState {
    /// The state of a word of the query or of a body.
    pub(super) fn of(ladder: &Ladder, word: &str) -> Self {
        let rung = ladder.rung(word);
        Self { rung, word: rung.map_or(word, |rung| ladder.body_word(rung)).into() }
    }

    /// Whether a poll for this rung is answered.
    pub(super) fn has_reached(&self, goal: Rung) -> bool {
        self.rung.is_none_or(|rung| rung >= goal)
    }
}

/// The states of one clip over time.
#[derive(Clone, Debug)]
pub(super) struct Timeline {
    start: ClipState,
    /// When each later state is reached, the earliest first.
    steps: Vec<(Instant, ClipState)>,
}

impl Timeline {
    pub(super) fn new(start: ClipState, mut steps: Vec<(Instant, ClipState)>) -> Self {
        steps.sort_by_key(|&(at, _)| at);
        Self { start, steps }
    }

    /// No change planned.
    pub(super) fn still(state: ClipState) -> Self {
        Self::new(state, Vec::new())
    }

    fn at(&self, now: Instant) -> &ClipState {
        self.steps.iter().rev().find(|&&(at, _)| at <= now).map_or(&self.start, |(_, state)| state)
    }

    /// When a poll for the goal is answered, if it is not already at `now`.
    fn next_reach(&self, goal: Rung, now: Instant) -> Option<Instant> {
        self.steps.iter().find(|(at, state)| *at > now && state.has_reached(goal)).map(|&(at, _)| at)
    }
}

/// One clip. Nobody owns it but the sim; a poll shares it.
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

    /// Comes back once the clip is on this rung or a higher one, never if it does not get there. Cancel safe.
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
            // Both are cancel safe; whatever comes first, the timeline is read again.
            tokio::select! {
                () = due => {}
                changed = changes.changed() => changed.expect("the sender is in self"),
            }
        }
    }
}

/// Comes back once every clip is on this rung or a higher one, all at the same time. Cancel safe.
pub(super) async fn all_reach(clips: &[Arc<Clip>], goal: Rung) {
    while let Some(behind) = clips.iter().find(|clip| !clip.state(clock::now()).has_reached(goal)) {
        behind.reached(goal).await;
    }
}

/// How made clips live.
pub(super) struct LifetimeModel {
    pub(super) speed: f64,
    pub(super) error_rate: f64,
    pub(super) seed: u64,
}

/// When the rungs between the first and the last are reached, in seconds.
const INTERMEDIATE_SECONDS: [RangeInclusive<f64>; 2] = [1.0..=3.0, 25.0..=35.0];
/// When a clip is done, in seconds.
const COMPLETED_SECONDS: RangeInclusive<f64> = 60.0..=120.0;
/// When one that fails does so, in seconds.
const FAILED_SECONDS: RangeInclusive<f64> = 2.0..=60.0;
/// The part of the rungs on the way that is skipped.
const SKIP_RATE: f64 = 0.05;

impl LifetimeModel {
    /// The lifetime that the id has under this seed, from `now` on.
    pub(super) fn lifetime(&self, ladder: &Ladder, id: &str, now: Instant) -> Timeline {
        let mut rng = Rng::with_seed(self.seed ^ id_seed(id));
        let state = |rung| ClipState::of(ladder, ladder.name(rung));
        let mut within =
            |range: &RangeInclusive<f64>| range.start() + rng.f64() * (range.end() - range.start());
        let at = |seconds: f64| now + Duration::from_secs_f64(seconds / self.speed);

        let fails = within(&(0.0..=1.0)) < self.error_rate;
        let (end, range) =
            if fails { (failure(ladder), FAILED_SECONDS) } else { (success(ladder), COMPLETED_SECONDS) };
        let end_at = within(&range);
        let on_the_way = ladder.rungs().skip(1).filter(|&rung| !ladder.is_terminal(rung));
        let mut steps = Vec::new();
        for (rung, range) in on_the_way.zip(&INTERMEDIATE_SECONDS) {
            let seconds = within(range);
            if seconds < end_at && within(&(0.0..=1.0)) >= SKIP_RATE {
                steps.push((at(seconds), state(rung)));
            }
        }
        steps.extend(end.map(|rung| (at(end_at), state(rung))));
        Timeline::new(state(ladder.lowest()), steps)
    }
}

/// The end that can be asked for.
fn success(ladder: &Ladder) -> Option<Rung> {
    ladder.rungs().find(|&rung| ladder.is_terminal(rung) && ladder.is_askable(rung))
}

/// The end that cannot.
fn failure(ladder: &Ladder) -> Option<Rung> {
    ladder.rungs().find(|&rung| ladder.is_terminal(rung) && !ladder.is_askable(rung))
}

/// A number that stands for the id, evenly spread.
pub(super) fn id_seed(id: &str) -> u64 {
    let digest = blake3::hash(id.as_bytes());
    digest.as_bytes()[..8].iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::route::Route;

    #[test]
    fn lifetimes_end_when_they_do_in_life_and_one_in_fifty_fails() {
        let ladder = Route::suno().ladder;
        let pace = LifetimeModel { speed: 1.0, error_rate: 0.02, seed: 7 };
        let now = clock::now();
        let (mut failed, mut skipped) = (0, 0);
        for n in 0..2000 {
            let timeline = pace.lifetime(&ladder, &format!("clip-{n}"), now);
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
    fn the_seed_and_the_id_decide_the_lifetime_and_speed_divides_it() {
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
