//! What the scheduler remembers of a key: its polls, its pause, its retry budget.
//!
//! One 429 pauses the poll that got it. A second one to other jobs of the key, within the time of the first, pauses the
//! key: its limit may be reached.
//!
//! | pause | event | next |
//! | --- | --- | --- |
//! | none | a 429 while another one to other jobs counts | until its end |
//! | until | that time comes | probe: the next attempt of the key is the probe |
//! | probing | the probe is answered, or held | none |
//! | probing | the probe gets a 429, and its jobs were not refused before | until its end |
//! | probing | the probe ends in another way | probe: the next one |

use std::time::{Duration, Instant};

use super::retry_budget::RetryBudget;
use super::{PollClass, PollScheduler, SchedulerOutput, Timer};
use crate::core::coalescer::{Failure, PollId};
use crate::core::job::{JobSet, KeyDomain};

/// A key domain with polls, or with a past that still counts.
#[derive(Debug, Default)]
pub(super) struct Key {
    pub(super) polls: usize,
    /// Attempts of long-polls under way.
    pub(super) long_polls: usize,
    /// Attempts of other polls under way.
    pub(super) short_polls: usize,
    /// When the newest probe of the breaker was a poll of this key.
    pub(super) probed_at: Option<Instant>,
    pub(super) pause: KeyPause,
    /// The jobs of the newest 429, and until when a 429 to other jobs pauses the key.
    refused: Option<(JobSet, Instant)>,
    pub(super) budget: RetryBudget,
    pub(super) forget_at: Option<Instant>,
}

/// What 429s did to a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum KeyPause {
    #[default]
    None,
    /// No attempt is made.
    Until(Instant),
    /// The next attempt is the probe of the key.
    Probe,
    /// This poll is the probe.
    Probing(PollId),
}

impl Key {
    /// The attempts under way that count for polls of this class.
    pub(super) fn under_way(&mut self, class: PollClass) -> &mut usize {
        match class {
            PollClass::LongPoll => &mut self.long_polls,
            PollClass::Plain | PollClass::Snapshot => &mut self.short_polls,
        }
    }
}

impl PollScheduler {
    /// A 429: decides whether it concerns the key as well.
    pub(super) fn refused(&mut self, id: PollId, pause: Duration, now: Instant) {
        let Some(entry) = self.polls.get(&id) else { return };
        let (domain, was_refused) = (entry.request.domain, entry.refusals > 0);
        let until = now + pause.min(MAX_KEY_PAUSE);
        let Some(key) = self.keys.get_mut(&domain) else { return };
        match key.pause {
            KeyPause::Until(_) => self.pause_key(domain, until, now),
            // A job that was refused before says nothing of the others: leaving the attempt lets the next one probe.
            KeyPause::Probing(probe) if probe == id && !was_refused => self.pause_key(domain, until, now),
            KeyPause::Probing(_) | KeyPause::Probe => {}
            KeyPause::None => match key.refused.take() {
                Some((jobs, at)) if at > now && !jobs.intersects(&entry.request.jobs) => {
                    self.pause_key(domain, until.max(at), now);
                }
                _ => key.refused = Some((entry.request.jobs.clone(), until)),
            },
        }
    }

    /// Pauses a key, once, however many of its polls are refused together.
    pub(super) fn pause_key(&mut self, domain: KeyDomain, until: Instant, now: Instant) {
        if let Some(Key { pause: KeyPause::Until(known), .. }) = self.keys.get(&domain) {
            if *known + MIN_EXTENSION >= until {
                return;
            }
            self.timers.remove(&(*known, Timer::Resume(domain)));
        }
        self.timers.insert((until, Timer::Resume(domain)));
        self.set_pause(domain, KeyPause::Until(until), now);
        let lined_up: Vec<PollId> = self.snapshots.of(domain).chain(self.long_polls.of(domain)).collect();
        lined_up.into_iter().for_each(|id| self.tell_key_pause(id, until - now));
    }

    pub(super) fn tell_key_pause(&mut self, id: PollId, pause: Duration) {
        self.outputs.push_back(SchedulerOutput::Pause(
            id,
            Failure::KeyRateLimited { retry_after: pause },
            pause,
        ));
    }

    pub(super) fn set_pause(&mut self, domain: KeyDomain, pause: KeyPause, now: Instant) {
        let Some(key) = self.keys.get_mut(&domain) else { return };
        key.pause = pause;
        self.sync_queues(domain);
        self.forget_key_if_idle(domain, now);
    }

    /// Opens or closes the queues of a key as its pause says.
    pub(super) fn sync_queues(&mut self, domain: KeyDomain) {
        let is_open = self.keys.get(&domain).is_none_or(|key| key.pause.is_open());
        self.snapshots.set_open(domain, is_open);
        self.long_polls.set_open(domain, is_open);
    }

    /// Forgets a key without polls as soon as its past counts no more.
    pub(super) fn forget_key_if_idle(&mut self, domain: KeyDomain, now: Instant) {
        let Some(key) = self.keys.get_mut(&domain) else { return };
        if key.polls > 0 || key.forget_at.is_some() || matches!(key.pause, KeyPause::Until(_)) {
            return;
        }
        let refused_until = key.refused.as_ref().map_or(now, |(_, at)| *at);
        let at = refused_until.max(key.budget.counts_until(now));
        if at > now {
            key.forget_at = Some(at);
            self.timers.insert((at, Timer::Forget(domain)));
        } else {
            self.keys.remove(&domain);
        }
    }
}

impl KeyPause {
    pub(super) fn is_open(self) -> bool {
        match self {
            KeyPause::None | KeyPause::Probe => true,
            KeyPause::Until(_) | KeyPause::Probing(_) => false,
        }
    }
}

/// How long a 429 pauses its key at most.
pub(super) const MAX_KEY_PAUSE: Duration = Duration::from_secs(60);

/// A pause of a key is not extended by less, so that a hundred polls that are refused together pause it once.
const MIN_EXTENSION: Duration = Duration::from_secs(1);
