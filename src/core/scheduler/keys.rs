//! Keys in the scheduler: polls, pauses by 429, and the budgets of each key domain.
//!
//! A 429 pauses the poll that got it. A second 429 within that time, on other jobs of the same key, pauses the key: the
//! limit behind the answers is probably the key's. One job that is always refused proves nothing about the others,
//! alone or in a list. Other keys are never concerned (P11).
//!
//! A 429 to a [`PollClass::Chain`] poll pauses the key at once, because the limits of upstreams that never hold are the
//! key's. That poll pauses as long as its key, and then queues behind the others.
//!
//! | pause of the key | event | next |
//! | --- | --- | --- |
//! | `None` | a 429, and no earlier one on other jobs still counts | `None`; this one counts until its pause ends |
//! | `None` | a 429, and an earlier one on other jobs still counts | `Until` the later end, at most 60 s |
//! | `None` | a 429 to a chain | `Until` the end of its pause, at most 60 s |
//! | `Until` | that time | `Probe`: the next attempt of the key is the probe |
//! | `Until` | a 429 to an attempt under way, with a pause that ends more than a second later | `Until` that end, at most 60 s after the pause began |
//! | `Probe` | an attempt starts | `Probing` |
//! | `Probing` | the probe is answered, or held for a second | `None` |
//! | `Probing` | the probe gets a 429, and is a chain or was never refused before | `Until` the end of that pause |
//! | `Probing` | the probe ends in any other way | `Probe`: the next poll probes |
//!
//! [`PollClass::Plain`] polls ignore the pause: their clients expect an answer at once (P12). They count against the
//! budget of the key all the same.

use std::time::{Duration, Instant};

use super::fair_queue::QueueEnd;
use super::poll::{ScheduleState, SchedulerTimer};
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
    /// Latest end of the current [`KeyPause::Until`]. Plain polls, which ignore the pause, could otherwise extend it
    /// without end.
    pause_limit: Option<Instant>,
    /// The newest pause for which the upstream did not say how long; `None` after a success.
    pub(super) open_ended: Option<OpenEndedPause>,
    /// Time from which the budget of the key allows another start; `None` if it does now.
    pub(super) next_start: Option<Instant>,
    /// Snapshots and plain polls in a row that went before a queued chain or long-poll.
    pub(super) overtakes: u8,
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

/// Pause after a 429 without `Retry-After`.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpenEndedPause {
    began: Instant,
    pause: Duration,
}

impl KeyState {
    /// Returns whether an attempt of this class may start, as far as the key is concerned.
    pub(super) fn may_start(&self, class: PollClass) -> bool {
        self.next_start.is_none() && (class == PollClass::Plain || self.pause.is_open())
    }

    /// Returns the number of attempts under way that share slots with this class.
    pub(super) fn attempts_mut(&mut self, class: PollClass) -> &mut usize {
        match class {
            PollClass::LongPoll => &mut self.long_polls,
            PollClass::Plain | PollClass::Snapshot | PollClass::Chain => &mut self.short_polls,
        }
    }

    /// Returns the pause after a 429 without `Retry-After` to an attempt that began at `began`. A hundred attempts that
    /// get a 429 together lengthen it once. A plain poll does not lengthen it: it does not observe the pause.
    fn open_ended_pause(&mut self, class: PollClass, began: Instant, now: Instant) -> Duration {
        let pause = match self.open_ended {
            None => FIRST_OPEN_ENDED_PAUSE,
            Some(last) if class == PollClass::Plain || began <= last.began => return last.pause,
            Some(last) => (last.pause * 2).min(MAX_KEY_PAUSE),
        };
        if class != PollClass::Plain {
            self.open_ended = Some(OpenEndedPause { began: now, pause });
        }
        pause
    }
}

impl PollScheduler {
    /// Returns the end of the pause of a key.
    pub fn paused_until(&self, domain: KeyDomain) -> Option<Instant> {
        match self.keys.get(&domain)?.pause {
            KeyPause::Until(until) => Some(until),
            KeyPause::None | KeyPause::Probe | KeyPause::Probing(_) => None,
        }
    }

    /// Pauses a key because the upstream paused it for another replica, at most 60 s.
    pub fn pause_by_sibling(&mut self, domain: KeyDomain, pause: Duration, now: Instant) {
        self.keys.entry(domain).or_default();
        self.pause_key(domain, now + pause.min(MAX_KEY_PAUSE), now);
    }

    /// Records a 429, pauses its poll, and decides whether it pauses the key. `retry_after` is not zero.
    pub(super) fn rate_limited(
        &mut self,
        id: PollId,
        failure: Failure,
        retry_after: Option<Duration>,
        now: Instant,
    ) {
        let Some(poll) = self.polls.get(&id) else { return };
        let ScheduleState::Attempting { began, .. } = poll.state else { return };
        let (domain, class) = (poll.request.domain, poll.request.class);
        let Some(key) = self.keys.get_mut(&domain) else { return };
        let pause = retry_after.unwrap_or_else(|| key.open_ended_pause(class, began, now));
        if class == PollClass::Chain {
            self.chain_rate_limited(id, failure, pause.min(MAX_KEY_PAUSE), now);
        } else {
            self.count_429(id, now + pause.min(MAX_KEY_PAUSE), now);
            self.pause_poll(id, failure, pause, now);
        }
    }

    /// Pauses the key of a chain. The poll goes on with its key, however often it is refused, behind those that came in the
    /// pause: so one job that is always refused delays no other for long (P12).
    fn chain_rate_limited(&mut self, id: PollId, failure: Failure, pause: Duration, now: Instant) {
        let Some(domain) = self.polls.get(&id).map(|poll| poll.request.domain) else { return };
        match self.keys.get(&domain).map(|key| key.pause) {
            // A newer attempt is under way, and decides.
            Some(KeyPause::Probing(probe)) if probe != id => {}
            _ => self.pause_key(domain, now + pause, now),
        }
        if self.detach_refused(id, &failure, now).is_none() {
            return;
        }
        if let Some(KeyPause::Until(until)) = self.keys.get(&domain).map(|key| key.pause) {
            self.set_state(id, ScheduleState::Paused { until });
            self.outputs.push_back(SchedulerOutput::Pause(id, failure, until.saturating_duration_since(now)));
        } else {
            self.outputs.push_back(SchedulerOutput::Pause(id, failure, pause));
            self.enqueue_silently(id, QueueEnd::Back, false);
        }
    }

    /// Counts a 429 to a poll that is not a chain, and decides whether it pauses the key.
    fn count_429(&mut self, id: PollId, until: Instant, now: Instant) {
        let Some(poll) = self.polls.get(&id) else { return };
        let (domain, was_refused) = (poll.request.domain, poll.refusals > 0);
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
    pub(super) fn pause_key(&mut self, domain: KeyDomain, mut until: Instant, now: Instant) {
        let Some(key) = self.keys.get_mut(&domain) else { return };
        if let KeyPause::Until(known) = key.pause {
            until = key.pause_limit.map_or(until, |limit| until.min(limit));
            if known + MIN_EXTENSION >= until {
                return;
            }
            self.timers.remove(&(known, SchedulerTimer::ResumeKey(domain)));
        } else {
            key.pause_limit = Some(now + MAX_KEY_PAUSE);
        }
        self.timers.insert((until, SchedulerTimer::ResumeKey(domain)));
        self.set_key_pause(domain, KeyPause::Until(until), now);
        let queues = [&self.snapshots, &self.chains, &self.long_polls];
        let in_queue: Vec<PollId> = queues.into_iter().flat_map(|queue| queue.polls_of(domain)).collect();
        in_queue.into_iter().for_each(|id| self.report_key_pause(id, until - now));
    }

    /// Reports the pause of its key for a poll that is queued. A chain that got a 429 repeats it: this is the answer for
    /// a wait that ends before any state was read.
    pub(super) fn report_key_pause(&mut self, id: PollId, pause: Duration) {
        let failure = match self.polls.get(&id).map(|poll| (poll.request.class, &poll.last_failure)) {
            Some((PollClass::Chain, Some((_, failure @ Failure::UpstreamError(response)))))
                if response.status == TOO_MANY_REQUESTS =>
            {
                failure.clone()
            }
            _ => Failure::KeyRateLimited { retry_after: pause },
        };
        self.outputs.push_back(SchedulerOutput::Pause(id, failure, pause));
    }

    pub(super) fn set_key_pause(&mut self, domain: KeyDomain, pause: KeyPause, now: Instant) {
        let Some(key) = self.keys.get_mut(&domain) else { return };
        key.pause = pause;
        self.sync_queues(domain);
        self.forget_key_if_idle(domain, now);
    }

    /// Opens or closes the queues of a key, by its pause and its budget.
    pub(super) fn sync_queues(&mut self, domain: KeyDomain) {
        let may_start = |class| self.keys.get(&domain).is_none_or(|key| key.may_start(class));
        let (plain, others) = (may_start(PollClass::Plain), may_start(PollClass::LongPoll));
        self.plain.set_open(domain, plain);
        self.snapshots.set_open(domain, others);
        self.chains.set_open(domain, others);
        self.long_polls.set_open(domain, others);
    }

    /// Counts a start against the budget of its key, and closes the queues of the key until the next one.
    pub(super) fn take_from_budget(&mut self, domain: KeyDomain, class: PollClass, now: Instant) {
        let Some(key) = self.keys.get_mut(&domain) else { return };
        let overtakes = match class {
            PollClass::Plain | PollClass::Snapshot => {
                self.chains.is_open(domain) || self.long_polls.is_open(domain)
            }
            PollClass::Chain | PollClass::LongPoll => false,
        };
        key.overtakes = if overtakes { key.overtakes.saturating_add(1) } else { 0 };
        let next = now + self.config.key_interval;
        key.next_start = Some(next);
        self.timers.insert((next, SchedulerTimer::KeyInterval(domain)));
        self.sync_queues(domain);
    }

    /// Opens the queues of a key whose budget allows another start.
    pub(super) fn key_interval_elapsed(&mut self, domain: KeyDomain) {
        if let Some(key) = self.keys.get_mut(&domain) {
            key.next_start = None;
            self.sync_queues(domain);
        }
    }

    /// Forgets a key without polls once its history does not count any more.
    pub(super) fn forget_key_if_idle(&mut self, domain: KeyDomain, now: Instant) {
        let Some(key) = self.keys.get_mut(&domain) else { return };
        if key.polls > 0 || key.forget_at.is_some() || matches!(key.pause, KeyPause::Until(_)) {
            return;
        }
        let last_429_until = key.last_429.as_ref().map_or(now, |(_, until)| *until);
        let open_ended_until = key.open_ended.map_or(now, |last| last.began + last.pause + MAX_KEY_PAUSE);
        let budget_until = key.next_start.unwrap_or(now);
        let at = last_429_until.max(key.budget.counts_until(now)).max(open_ended_until).max(budget_until);
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

/// Pause after the first 429 of a key without `Retry-After`.
const FIRST_OPEN_ENDED_PAUSE: Duration = Duration::from_secs(1);

/// Status of an answer by which the upstream refuses a request for now.
const TOO_MANY_REQUESTS: u16 = 429;

/// Minimum extension of a key's pause. A hundred polls that get a 429 together would otherwise extend it a hundred
/// times.
const MIN_EXTENSION: Duration = Duration::from_secs(1);
