//! A job of a vendor: its states over time. It knows neither HTTP nor JSON.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use fastrand::Rng;

use super::job::{LifetimeModel, Timeline, id_seed};
use super::vendors::{VendorApi, VendorWords};

/// One state of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VendorState {
    /// The status word in the job's JSON.
    pub(super) word: Arc<str>,
    /// Whether the job has failed. Some vendors say so beside the word.
    pub(super) has_failed: bool,
}

/// A job. The map of the simulated upstream owns it.
pub(super) struct VendorJob {
    pub(super) id: Arc<str>,
    pub(super) created_at: SystemTime,
    created: Instant,
    /// When the timeline was set.
    set: Instant,
    timeline: Timeline<VendorState>,
}

impl VendorState {
    /// Returns the state of a status word, which may be unknown to the vendor.
    pub(super) fn from_word(words: &VendorWords, word: &str) -> Self {
        Self { word: word.into(), has_failed: word == words.failed && word != words.succeeded }
    }

    /// Returns the failed end.
    pub(super) fn failed(words: &VendorWords) -> Self {
        Self { word: words.failed.into(), has_failed: true }
    }

    /// Returns the end of a canceled job.
    pub(super) fn canceled(words: &VendorWords) -> Self {
        Self { word: words.canceled.into(), has_failed: words.canceled == words.succeeded }
    }

    /// Returns whether a job in this state has its output.
    pub(super) fn has_succeeded(&self, words: &VendorWords) -> bool {
        !self.has_failed && &*self.word == words.succeeded
    }

    /// Returns whether a job in this state has ended.
    pub(super) fn is_end(&self, words: &VendorWords) -> bool {
        self.has_failed || [words.succeeded, words.failed, words.canceled].contains(&&*self.word)
    }
}

impl VendorJob {
    pub(super) fn new(id: &str, timeline: Timeline<VendorState>, now: Instant) -> Self {
        Self { id: id.into(), created_at: SystemTime::now(), created: now, set: now, timeline }
    }

    pub(super) fn state(&self, now: Instant) -> &VendorState {
        self.timeline.at(now)
    }

    pub(super) fn replace(&mut self, timeline: Timeline<VendorState>, now: Instant) {
        (self.timeline, self.set) = (timeline, now);
    }

    /// Returns the time of day at which the state of `now` began.
    pub(super) fn changed_at(&self, now: Instant) -> SystemTime {
        let since = self.timeline.since(now).unwrap_or(self.set);
        self.created_at + since.saturating_duration_since(self.created)
    }
}

/// When the second state on the way is reached, in seconds.
const STARTED_SECONDS: RangeInclusive<f64> = 1.0..=3.0;
/// When a job succeeds, in seconds.
const SUCCEEDED_SECONDS: RangeInclusive<f64> = 20.0..=40.0;
/// When a failing job fails, in seconds.
const FAILED_SECONDS: RangeInclusive<f64> = 5.0..=20.0;

impl LifetimeModel {
    /// Returns the lifetime of a vendor's job from `now` on. The id and the seed decide it.
    pub(super) fn vendor_lifetime(&self, api: &VendorApi, id: &str, now: Instant) -> Timeline<VendorState> {
        let words = &api.words;
        let mut rng = Rng::with_seed(self.seed ^ id_seed(id));
        let mut at = |range: &RangeInclusive<f64>| {
            let seconds = range.start() + rng.f64() * (range.end() - range.start());
            now + Duration::from_secs_f64(seconds / self.speed)
        };
        let started = (at(&STARTED_SECONDS), VendorState::from_word(words, words.pending[1]));
        let (succeeds_at, fails_at) = (at(&SUCCEEDED_SECONDS), at(&FAILED_SECONDS));
        let end = if rng.f64() < self.error_rate {
            (fails_at, VendorState::failed(words))
        } else {
            (succeeds_at, VendorState::from_word(words, words.succeeded))
        };
        Timeline::new(VendorState::from_word(words, words.pending[0]), vec![started, end])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::sim::vendors::Vendor;

    #[test]
    fn a_job_ends_within_20_to_40_seconds_divided_by_the_speed() {
        let (api, now) = (Vendor::Replicate.api(), clock::now());
        let model = LifetimeModel { speed: 2.0, error_rate: 0.0, seed: 7 };
        for n in 0..100 {
            let timeline = model.vendor_lifetime(api, &format!("job-{n}"), now);
            let word_after = |seconds: f64| timeline.at(now + Duration::from_secs_f64(seconds)).word.clone();
            let words = [0.0, 1.5, 10.0, 20.0].map(word_after);
            assert_eq!([&*words[0], &*words[1], &*words[3]], ["starting", "processing", "succeeded"]);
            assert!(["processing", "succeeded"].contains(&&*words[2]));
        }
    }

    #[test]
    fn a_failed_job_of_a_vendor_without_a_word_for_it_has_the_word_of_success() {
        let words = &Vendor::Fal.api().words;
        let (failed, done) = (VendorState::failed(words), VendorState::from_word(words, "COMPLETED"));
        assert_eq!(failed.word, done.word);
        assert!(failed.is_end(words) && done.is_end(words));
        assert!(!failed.has_succeeded(words) && done.has_succeeded(words));
    }
}
