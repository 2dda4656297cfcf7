//! The scheduler: when an attempt of a poll is made, after which pause another one, and when a poll is given up.
//!
//! A state machine like the coalescer: no IO, no clock, no waits. It knows polls by number, jobs and key domain; the
//! hub owns the one value of it and makes the attempts.
//!
//! ```text
//!   request ─▶ queued ──(place, interval)──▶ attempt ──▶ answered: forgotten
//!                ▲                              │ failed
//!                ├── backing off ◀──────────────┤ transport fault, or an error that the upstream wrote
//!                ├── held back ◀── breaker open │
//!                └── paused ◀───────────────────┘ Retry-After
//! ```
//!
//! # Faults (contract section 9, P12)
//!
//! *Transport faults* (no connection, reset, end of file, timeout) concern the way to the upstream. The poll backs off
//! and is tried again for `retry_for` after its first one. The breaker counts them for all polls together; while it is
//! open, retries are held back and one of them at a time is made as a probe. First attempts are always made.
//!
//! *Errors that the upstream wrote* concern that poll alone: `retries` attempts more, within the retry budget of the
//! key. They show that the upstream can be reached, so they close the breaker.
//!
//! A poll that was held for a second before it failed has made progress: its failures count from the
//! start again.
//!
//! *A 429* pauses the poll that got it. A second one to another job of the key within that time pauses the key: nobody
//! asks until the pause is over, then one poll of the key at a time probes. A poll that was refused queues behind the
//! others, so that a job that is always refused delays no other.
//!
//! # Places
//!
//! Places are held for minutes, so turns alone would not be fair: a key that comes when all are taken would wait for
//! minutes. The same holds for requests that should be answered at once, where the upstream hangs. So a key that holds
//! places takes another one only while a sixteenth as many stay free afterwards: alone
//! it gets all but a seventeenth, and a key that comes later finds a place. Cancelling polls of the key that holds most
//! would cost the upstream requests; that is why some places are kept free.

mod fair_queue;
mod faults;
mod keys;
mod retry_budget;
#[cfg(test)]
mod tests;
mod types;

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use self::fair_queue::{End, FairQueue, Ticket};
use self::keys::{Key, KeyPause};
pub use self::types::{AttemptResult, PollClass, PollRequest, RetryAdvice, SchedulerConfig, SchedulerOutput};
use crate::core::Map;
use crate::core::breaker::Breaker;
use crate::core::coalescer::{Failure, PollId};
use crate::core::job::KeyDomain;

/// Decides when polls are attempted. After each call of a method that takes `now`, take outputs until there are none.
#[derive(Debug)]
pub struct PollScheduler {
    config: SchedulerConfig,
    breaker: Breaker,
    jitter: fastrand::Rng,
    polls: Map<PollId, Entry>,
    keys: Map<KeyDomain, Key>,
    plain: FairQueue,
    snapshots: FairQueue,
    long_polls: FairQueue,
    /// Attempts under way.
    open: usize,
    /// The upstream has answered or held a poll since the start.
    has_succeeded: bool,
    /// Polls that back off or are held back, by when they failed last.
    retrying: BTreeSet<(Instant, PollId)>,
    /// When the interval allows another attempt, while it does not.
    next_start: Option<Instant>,
    /// The moment for which a probe is planned.
    probe_armed: Option<Instant>,
    timers: BTreeSet<(Instant, Timer)>,
    outputs: VecDeque<SchedulerOutput>,
}

/// What the scheduler knows of a poll.
#[derive(Debug)]
struct Entry {
    request: PollRequest,
    /// No attempt of it has ended yet.
    is_new: bool,
    /// The next attempt is made because one failed.
    is_retry: bool,
    /// Errors in a row that the upstream wrote.
    errors: u32,
    /// Pauses that the upstream asked for.
    refusals: u32,
    outage: Option<Outage>,
    /// How the newest attempt failed.
    failed: Option<(Instant, Failure)>,
    phase: Phase,
}

/// Transport faults of a poll, one after the other.
#[derive(Clone, Copy, Debug)]
struct Outage {
    since: Instant,
    faults: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// In no phase: between two of them, within one call.
    Between,
    /// Waits for a place.
    Queued { ticket: Ticket, is_probe: bool },
    /// An attempt is under way.
    Attempt {
        began: Instant,
        is_probe: bool,
        /// When it counts as held, once its request was sent.
        held_at: Option<Instant>,
        is_held: bool,
    },
    /// The next attempt is made at `until`.
    BackingOff { until: Instant },
    /// The breaker is open: the next attempt is made when it closes, the last one at `limit`, if there is one.
    HeldBack { limit: Option<Instant> },
    /// The upstream asked for a pause.
    Paused { until: Instant },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// The interval allows another attempt.
    Interval,
    /// The pause of a poll is over.
    Retry(PollId),
    /// A poll that is held back has no time left.
    LastAttempt(PollId),
    /// The breaker allows a probe.
    Probe,
    /// The pause of a key is over.
    Resume(KeyDomain),
    /// A poll has been held for long enough to be a success.
    Held(PollId),
    /// The past of a key without polls counts no more.
    Forget(KeyDomain),
}

impl PollScheduler {
    /// Creates a scheduler without polls. `seed` is the jitter's.
    pub fn new(config: SchedulerConfig, seed: u64) -> Self {
        assert!(config.max_polls > 0, "max_polls is validated > 0");
        Self {
            breaker: Breaker::new(config.breaker),
            config,
            jitter: fastrand::Rng::with_seed(seed),
            polls: Map::default(),
            keys: Map::default(),
            plain: FairQueue::default(),
            snapshots: FairQueue::default(),
            long_polls: FairQueue::default(),
            open: 0,
            has_succeeded: false,
            retrying: BTreeSet::new(),
            next_start: None,
            probe_armed: None,
            timers: BTreeSet::new(),
            outputs: VecDeque::new(),
        }
    }

    /// Takes in a poll, which stays until it is answered, given up or withdrawn.
    pub fn request(&mut self, id: PollId, request: PollRequest, now: Instant) {
        self.keys.entry(request.domain).or_default().polls += 1;
        let entry = Entry {
            request,
            is_new: true,
            is_retry: false,
            errors: 0,
            refusals: 0,
            outage: None,
            failed: None,
            phase: Phase::Between,
        };
        let before = self.polls.insert(id, entry);
        debug_assert!(before.is_none(), "{id:?} is requested twice");
        self.enqueue(id, End::Back, false, now);
        self.grant(now);
    }

    /// Forgets a poll that is not wanted any more. An unknown one changes nothing.
    pub fn withdraw(&mut self, id: PollId, now: Instant) {
        let phase = self.polls.get(&id).map(|entry| entry.phase);
        if self.forget(id, now).is_some() {
            phase.inspect(|phase| self.cancel_probe(*phase, now));
            self.grant(now);
        }
    }

    /// Returns whether [`try_now`](Self::try_now) would make a difference: the poll waits for its next attempt because
    /// one failed or was refused, and its key is not paused.
    pub fn is_pausing(&self, id: PollId) -> bool {
        let Some(entry) = self.polls.get(&id) else { return false };
        match entry.phase {
            Phase::BackingOff { .. } | Phase::HeldBack { .. } => true,
            Phase::Paused { .. } => {
                self.keys.get(&entry.request.domain).is_some_and(|key| key.pause.is_open())
            }
            Phase::Between | Phase::Queued { .. } | Phase::Attempt { .. } => false,
        }
    }

    /// Makes a first attempt of a poll that pauses, for a wait that has just come: its client alone would ask now.
    pub fn try_now(&mut self, id: PollId, now: Instant) {
        if self.is_pausing(id) {
            self.enqueue_as_first(id, now);
            self.grant(now);
        }
    }

    /// Records that the request of an attempt was sent.
    pub fn sent(&mut self, id: PollId, now: Instant) {
        let Some(entry) = self.polls.get_mut(&id) else { return };
        if entry.request.class != PollClass::LongPoll {
            return; // the upstream holds nothing else: such a request that is silent shows nothing
        }
        if let Phase::Attempt { held_at: held_at @ None, .. } = &mut entry.phase {
            *held_at = Some(now + HELD_MEANS_HEALTHY);
            self.timers.insert((now + HELD_MEANS_HEALTHY, Timer::Held(id)));
        }
    }

    /// Records that an attempt ended. One of an unknown poll changes nothing.
    pub fn ended(&mut self, id: PollId, end: AttemptResult, now: Instant) {
        let Some(entry) = self.polls.get_mut(&id) else { return };
        let Phase::Attempt { is_held, .. } = entry.phase else { return };
        let is_first = std::mem::take(&mut entry.is_new);
        match end {
            AttemptResult::Answered => {
                self.succeeded(id, now);
                self.forget(id, now);
            }
            AttemptResult::Failed(failure, RetryAdvice::Reconnect) if is_first && !is_held => {
                self.reconnect(id, failure, now);
            }
            AttemptResult::Failed(failure, RetryAdvice::PausePoll(pause)) if !pause.is_zero() => {
                self.reached(now);
                self.pause(id, failure, pause, now);
            }
            AttemptResult::Failed(failure, RetryAdvice::PauseKey(pause)) if !pause.is_zero() => {
                self.reached(now);
                self.refused(id, pause, now);
                self.pause(id, failure, pause, now);
            }
            AttemptResult::Failed(failure, advice) => self.failed(id, failure, advice, now),
        }
        self.grant(now);
    }

    /// Does what is due at `now`; afterwards the next deadline is strictly later.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(at, timer)) = self.timers.first().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, timer));
            match timer {
                Timer::Interval => self.next_start = None,
                Timer::Retry(id) => self.pause_is_over(id, now),
                // The upstream may be back since the newest probe: else the waits of the poll would fail although the
                // outage was shorter than `retry_for`.
                Timer::LastAttempt(id) => self.enqueue_as_first(id, now),
                Timer::Probe => self.probe_if_due(now),
                Timer::Resume(domain) => self.set_pause(domain, KeyPause::Probe, now),
                Timer::Held(id) => {
                    if let Some(Entry { phase: Phase::Attempt { is_held, held_at, .. }, .. }) =
                        self.polls.get_mut(&id)
                    {
                        (*is_held, *held_at) = (true, None);
                    }
                    self.succeeded(id, now);
                }
                Timer::Forget(domain) => {
                    if let Some(key) = self.keys.get_mut(&domain) {
                        key.forget_at = None;
                        self.forget_key_if_idle(domain, now);
                    }
                }
            }
        }
        self.grant(now);
    }

    /// Returns the earliest moment at which [`handle_timeout`](Self::handle_timeout) has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|&(at, _)| at)
    }

    /// Returns the next thing to do, in order.
    pub fn poll_output(&mut self) -> Option<SchedulerOutput> {
        self.outputs.pop_front()
    }

    /// Returns how many attempts are under way.
    pub fn open(&self) -> usize {
        self.open
    }

    /// Returns whether retries are made as usual: the breaker is closed.
    pub fn is_closed(&self) -> bool {
        self.breaker.is_closed()
    }

    /// Returns whether the attempt of a poll that is under way is a retry.
    #[cfg(test)]
    pub(crate) fn is_retry(&self, id: PollId) -> bool {
        self.polls.get(&id).is_some_and(|entry| entry.is_retry)
    }

    /// Starts attempts while there are places.
    fn grant(&mut self, now: Instant) {
        self.probe_if_due(now);
        while self.next_start.is_none() {
            let Some(id) = self.take_next() else { break };
            let Some(entry) = self.polls.get(&id) else { continue };
            let Phase::Queued { mut is_probe, .. } = entry.phase else { continue };
            if entry.is_retry && !is_probe && !self.breaker.is_closed() {
                is_probe = self.begin_probe(id, now);
                if !is_probe && self.hold_back(id, now) {
                    continue;
                }
            }
            self.begin(id, is_probe, now);
            if !self.config.interval.is_zero() {
                let next = now + self.config.interval;
                self.next_start = Some(next);
                self.timers.insert((next, Timer::Interval));
            }
        }
        self.arm_probe();
        self.check_invariants();
    }

    /// Takes the first queued poll for which there is a place.
    fn take_next(&mut self) -> Option<PollId> {
        let long_places = if self.config.max_polls > 1 { self.config.max_polls - 1 } else { 1 };
        if self.open >= self.config.max_polls {
            return None;
        }
        let (keys, left) = (&self.keys, long_places.checked_sub(self.open + 1));
        let may = |has: usize| has == 0 || has <= left.unwrap_or(0).saturating_mul(PLACES_PER_FREE_ONE);
        let may_short = |domain| keys.get(&domain).is_none_or(|key| may(key.short_polls));
        if let Some(id) = self.snapshots.next(may_short).or_else(|| self.plain.next(may_short)) {
            return Some(id);
        }
        left?;
        self.long_polls.next(|domain| keys.get(&domain).is_none_or(|key| may(key.long_polls)))
    }

    fn begin(&mut self, id: PollId, is_probe: bool, now: Instant) {
        let Some(entry) = self.polls.get_mut(&id) else { return };
        entry.phase = Phase::Attempt { began: now, is_probe, held_at: None, is_held: false };
        let (domain, class, is_retry) = (entry.request.domain, entry.request.class, entry.is_retry);
        self.open += 1;
        self.outputs.push_back(SchedulerOutput::Start(id));
        let Some(key) = self.keys.get_mut(&domain) else { return };
        if !is_retry {
            key.budget.record_poll(now);
        }
        *key.under_way(class) += 1;
        if key.pause == KeyPause::Probe && class != PollClass::Plain {
            self.set_pause(domain, KeyPause::Probing(id), now);
        }
    }

    /// Takes a poll out of its phase: what that held is given back, its timers are removed.
    fn leave_phase(&mut self, id: PollId) {
        let Some(entry) = self.polls.get_mut(&id) else { return };
        let (domain, class) = (entry.request.domain, entry.request.class);
        let phase = std::mem::replace(&mut entry.phase, Phase::Between);
        if let Some((at, _)) = entry.failed {
            self.retrying.remove(&(at, id));
        }
        match phase {
            Phase::Between => {}
            // One whose turn has just come is in no queue any more, and leaving changes nothing.
            Phase::Queued { ticket, .. } => self.queue(class).leave(domain, ticket),
            Phase::BackingOff { until } | Phase::Paused { until } => {
                self.timers.remove(&(until, Timer::Retry(id)));
            }
            Phase::HeldBack { limit } => {
                limit.map(|at| self.timers.remove(&(at, Timer::LastAttempt(id))));
            }
            Phase::Attempt { held_at, .. } => {
                self.open -= 1;
                held_at.map(|at| self.timers.remove(&(at, Timer::Held(id))));
                if let Some(key) = self.keys.get_mut(&domain) {
                    *key.under_way(class) -= 1;
                    if key.pause == KeyPause::Probing(id) {
                        key.pause = KeyPause::Probe; // the next poll probes
                        self.sync_queues(domain);
                    }
                }
            }
        }
    }

    fn set_phase(&mut self, id: PollId, phase: Phase) {
        let Some(entry) = self.polls.get_mut(&id) else { return };
        entry.phase = phase;
        match phase {
            Phase::BackingOff { until } => {
                self.timers.insert((until, Timer::Retry(id)));
            }
            Phase::Paused { until } => {
                self.timers.insert((until, Timer::Retry(id)));
                return;
            }
            Phase::HeldBack { limit } => {
                limit.map(|at| self.timers.insert((at, Timer::LastAttempt(id))));
            }
            Phase::Between | Phase::Queued { .. } | Phase::Attempt { .. } => return,
        }
        if let Some((at, _)) = entry.failed {
            self.retrying.insert((at, id));
        }
    }

    fn queue(&mut self, class: PollClass) -> &mut FairQueue {
        match class {
            PollClass::Plain => &mut self.plain,
            PollClass::Snapshot => &mut self.snapshots,
            PollClass::LongPoll => &mut self.long_polls,
        }
    }

    /// Queues a poll that is in no phase. Where its key is paused, the poll is told so.
    fn enqueue(&mut self, id: PollId, end: End, is_probe: bool, now: Instant) {
        let Some(entry) = self.polls.get(&id) else { return };
        let (domain, class) = (entry.request.domain, entry.request.class);
        let pause = self.keys.get(&domain).map_or(KeyPause::None, |key| key.pause);
        let is_open = class == PollClass::Plain || pause.is_open();
        if let (KeyPause::Until(until), false) = (pause, is_open) {
            self.tell_key_pause(id, until.saturating_duration_since(now));
        }
        let ticket = self.queue(class).enqueue(id, domain, end, is_open);
        self.set_phase(id, Phase::Queued { ticket, is_probe });
    }

    fn give_up(&mut self, id: PollId, now: Instant) {
        if let Some(entry) = self.forget(id, now) {
            let failure = entry.failed.map_or(Failure::Unreachable, |(_, failure)| failure);
            self.outputs.push_back(SchedulerOutput::GiveUp(id, failure));
        }
    }

    fn forget(&mut self, id: PollId, now: Instant) -> Option<Entry> {
        self.leave_phase(id);
        let entry = self.polls.remove(&id)?;
        if let Some(key) = self.keys.get_mut(&entry.request.domain) {
            key.polls -= 1;
            self.forget_key_if_idle(entry.request.domain, now);
        }
        Some(entry)
    }

    /// Checks what must hold after every call; a debug build stops where it does not.
    fn check_invariants(&self) {
        if cfg!(debug_assertions) && self.polls.len() <= MAX_CHECKED {
            let is = |f: fn(&Phase) -> bool| self.polls.values().filter(|entry| f(&entry.phase)).count();
            assert_eq!(self.open, is(|phase| matches!(phase, Phase::Attempt { .. })));
            let is_retrying =
                |phase: &Phase| matches!(phase, Phase::BackingOff { .. } | Phase::HeldBack { .. });
            assert_eq!(self.retrying.len(), is(is_retrying));
            let is_held_back = |phase: &Phase| matches!(phase, Phase::HeldBack { .. });
            assert!(!self.breaker.is_closed() || is(is_held_back) == 0, "held back by a closed breaker");
            let polls: usize = self.keys.values().map(|key| key.polls).sum();
            assert_eq!(polls, self.polls.len());
        }
    }
}

/// How many long-poll places a key may hold for each that stays free when it takes another.
const PLACES_PER_FREE_ONE: usize = 16;

/// How long a request must stand at the upstream to be a success: a long-poll that is held says that the upstream
/// works, and nobody would wait for its end to ask again.
const HELD_MEANS_HEALTHY: Duration = Duration::from_secs(1);

/// How many polls there may be for all of them to be checked after each call.
const MAX_CHECKED: usize = 256;
