//! Keys in the scheduler: polls, pauses by 429, and the retry budget of each key domain.
//!
//! A 429 pauses the poll that got it. A second 429 within that time, on other jobs of the same key, pauses the key: the
//! limit behind the answers is probably the key's. One job that is always refused proves nothing about the others,
//! alone or in a list. Other keys are never concerned (P11).
//!
//! | pause of the key | event | next |
//! | --- | --- | --- |
//! | `None` | a 429, and no earlier one on other jobs still counts | `None`; this one counts until its pause ends |
//! | `None` | a 429, and an earlier one on other jobs still counts | `Until` the later end, at most 60 s |
//! | `Until` | that time | `Probe`: the next attempt of the key is the probe |
//! | `Until` | a 429 to an attempt under way, with a pause that ends more than a second later | `Until` that end |
//! | `Probe` | an attempt starts | `Probing` |
//! | `Probing` | the probe is answered, or held for a second | `None` |
//! | `Probing` | the probe gets a 429, and its poll was never refused before | `Until` the end of that pause |
//! | `Probing` | the probe ends in any other way | `Probe`: the next poll probes |
//!
//! [`PollClass::Plain`] polls ignore the pause: their clients expect an answer at once (P12).

use std::time::{Duration, Instant};

use super::poll::SchedulerTimer;
use super::retry_budget::RetryBudget;
use super::{PollClass, PollScheduler, SchedulerOutput};
use crate::core::coalescer::{Failure, PollId};
use crate::core::job::{JobSet, KeyDomain};

/// A key domain that has polls, or a history that still counts.
#[derive(Debug, Default)]
pub(super) struct KeyState {
    pub(super) polls: usize,
    /// Attempts of long-polls under way.
    pub(super) long_polls: usize,
    /// Attempts of short polls under way.
    pub(super) short_polls: usize,
    /// Time of the newest probe of the breaker by a poll of this key.
    pub(super) probed_at: Option<Instant>,
    pub(super) pause: KeyPause,
    /// Jobs of the newest 429, and the end of its pause: until then a 429 on other jobs pauses the key.
    last_429: Option<(JobSet, Instant)>,
    pub(super) budget: RetryBudget,
    /// Time of the armed [`SchedulerTimer::ForgetKey`].
    pub(super) forget_at: Option<Instant>,
}

/// Pause of a key after 429s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum KeyPause {
    #[default]
    None,
    /// No attempt starts before this time.
    Until(Instant),
    /// The next attempt is the probe of the key.
    Probe,
    /// This poll is the probe.
    Probing(PollId),
}

impl KeyState {
    /// Returns the number of attempts under way that share slots with this class.
    pub(super) fn attempts_mut(&mut self, class: PollClass) -> &mut usize {
        match class {
            PollClass::LongPoll => &mut self.long_polls,
            PollClass::Plain | PollClass::Snapshot => &mut self.short_polls,
        }
    }
}

impl PollScheduler {
    /// Records a 429, and decides whether it pauses the key.
    pub(super) fn rate_limited(&mut self, id: PollId, pause: Duration, now: Instant) {
        let Some(poll) = self.polls.get(&id) else { return };
        let (domain, was_refused) = (poll.request.domain, poll.refusals > 0);
        let until = now + pause.min(MAX_KEY_PAUSE);
        let Some(key) = self.keys.get_mut(&domain) else { return };
        match key.pause {
            KeyPause::Until(_) => self.pause_key(domain, until, now),
            // A job that was refused before is not evidence about the others: `detach` lets the next poll probe.
            KeyPause::Probing(probe) if probe == id && !was_refused => self.pause_key(domain, until, now),
            KeyPause::Probing(_) | KeyPause::Probe => {}
            KeyPause::None => match key.last_429.take() {
                Some((jobs, first_until)) if first_until > now && !jobs.intersects(&poll.request.jobs) => {
                    self.pause_key(domain, until.max(first_until), now);
                }
                _ => key.last_429 = Some((poll.request.jobs.clone(), until)),
            },
        }
    }

    /// Pauses a key. A hundred polls that get a 429 together pause it once.
    pub(super) fn pause_key(&mut self, domain: KeyDomain, until: Instant, now: Instant) {
        if let Some(KeyState { pause: KeyPause::Until(known), .. }) = self.keys.get(&domain) {
            if *known + MIN_EXTENSION >= until {
                return;
            }
            self.timers.remove(&(*known, SchedulerTimer::ResumeKey(domain)));
        }
        self.timers.insert((until, SchedulerTimer::ResumeKey(domain)));
        self.set_key_pause(domain, KeyPause::Until(until), now);
        let in_queue: Vec<PollId> =
            self.snapshots.polls_of(domain).chain(self.long_polls.polls_of(domain)).collect();
        in_queue.into_iter().for_each(|id| self.report_key_pause(id, until - now));
    }

    pub(super) fn report_key_pause(&mut self, id: PollId, pause: Duration) {
        self.outputs.push_back(SchedulerOutput::Pause(
            id,
            Failure::KeyRateLimited { retry_after: pause },
            pause,
        ));
    }

    pub(super) fn set_key_pause(&mut self, domain: KeyDomain, pause: KeyPause, now: Instant) {
        let Some(key) = self.keys.get_mut(&domain) else { return };
        key.pause = pause;
        self.sync_queues(domain);
        self.forget_key_if_idle(domain, now);
    }

    /// Opens or closes the queues of a key, by its pause.
    pub(super) fn sync_queues(&mut self, domain: KeyDomain) {
        let is_open = self.keys.get(&domain).is_none_or(|key| key.pause.is_open());
        self.snapshots.set_open(domain, is_open);
        self.long_polls.set_open(domain, is_open);
    }

    /// Forgets a key without polls once its history does not count any more.
    pub(super) fn forget_key_if_idle(&mut self, domain: KeyDomain, now: Instant) {
        let Some(key) = self.keys.get_mut(&domain) else { return };
        if key.polls > 0 || key.forget_at.is_some() || matches!(key.pause, KeyPause::Until(_)) {
            return;
        }
        let last_429_until = key.last_429.as_ref().map_or(now, |(_, until)| *until);
        let at = last_429_until.max(key.budget.counts_until(now));
        if at > now {
            key.forget_at = Some(at);
            self.timers.insert((at, SchedulerTimer::ForgetKey(domain)));
        } else {
            self.keys.remove(&domain);
        }
    }
}

impl KeyPause {
    /// Returns whether attempts of the key may start.
    pub(super) fn is_open(self) -> bool {
        match self {
            KeyPause::None | KeyPause::Probe => true,
            KeyPause::Until(_) | KeyPause::Probing(_) => false,
        }
    }
}

/// Maximum time for which a 429 pauses its key.
pub(super) const MAX_KEY_PAUSE: Duration = Duration::from_secs(60);

/// Minimum extension of a key's pause. A hundred polls that get a 429 together would otherwise extend it a hundred
/// times.
const MIN_EXTENSION: Duration = Duration::from_secs(1);
