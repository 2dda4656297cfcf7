//! The scheduler: decides when a poll is attempted, how long it pauses after a failure, and when it is given up.
//!
//! A state machine like the coalescer: no IO, no clock. It knows polls by id, jobs and key domain, and does not know
//! waits. The hub owns it and makes the attempts. The page of [`PollScheduler`] has the calling protocol and the
//! states.
//!
//! | file | subject |
//! | --- | --- |
//! | `types` | configuration, inputs, outputs |
//! | `poll` | a poll, its states and timers |
//! | `queueing` | slots at the upstream: which queued poll is attempted next |
//! | `fair_queue` | one queue: keys by turns, polls of a key in order |
//! | `faults` | transport faults, the breaker's probes, errors that the upstream wrote |
//! | `keys` | 429s and the budget of a key: when its polls may start |
//! | `retry_budget` | retries of a key after errors that the upstream wrote |

mod fair_queue;
mod faults;
mod keys;
mod poll;
mod queueing;
mod retry_budget;
#[cfg(test)]
mod tests;
mod types;

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use self::fair_queue::{FairQueue, QueueEnd, Turn};
use self::keys::{KeyPause, KeyState};
use self::poll::{ScheduleState, ScheduledPoll, SchedulerTimer};
pub use self::types::{AttemptResult, PollClass, PollRequest, RetryAdvice, SchedulerConfig, SchedulerOutput};
use crate::core::Map;
use crate::core::breaker::Breaker;
use crate::core::coalescer::PollId;
use crate::core::job::KeyDomain;

/// Decides when polls are attempted.
///
/// # Calling protocol
///
/// The owner has the clock, makes the attempts and reports their results:
///
/// ```text
///   request ────────────▶ ┌───────────────┐ ──▶ Start(id): make one attempt, then
///   try_now, withdraw ──▶ │ PollScheduler │         sent(id)   once its request is on a connection
///   sent, ended ────────▶ │               │         ended(id)  once it has a result
///   handle_timeout ─────▶ └───────────────┘ ──▶ BackOff, Pause, GiveUp: inform the coalescer
/// ```
///
/// - After each call of a method that takes `now`, call [`poll_output`](Self::poll_output) until it returns `None`.
///   Then arm one timer for [`poll_timeout`](Self::poll_timeout), and call [`handle_timeout`](Self::handle_timeout)
///   when it fires. An early call does nothing; a late one delays attempts and is otherwise harmless.
/// - `now` never decreases. A [`PollId`] is requested once.
/// - Each [`SchedulerOutput::Start`] is followed by at most one [`sent`](Self::sent) and exactly one
///   [`ended`](Self::ended), unless the owner withdraws the poll before.
/// - Outputs that were queued before [`withdraw`](Self::withdraw) may still name that poll. The owner ignores them, as
///   the scheduler ignores calls for polls that it does not know.
/// - The scheduler forgets a poll that is answered, given up or withdrawn.
///
/// # States of a poll
///
/// A *first attempt* is one that a client alone would make now: the first of a poll, and one for a wait that has just
/// come. All others are *retries*.
///
/// | state | event | next state (output) |
/// | --- | --- | --- |
/// | | `request` | queued |
/// | queued | its turn; a first attempt, or the breaker is closed | attempting (`Start`) |
/// | queued | its turn; a retry, the breaker is open and a probe is due | attempting, as the probe (`Start`) |
/// | queued | its turn; a retry, the breaker is open and no probe is due | held back |
/// | queued | the same, and `retry_for` has ended | attempting: the last attempt (`Start`) |
/// | attempting | a long-poll is held for a second | attempting; the breaker closes, and so ends the pause of a key that this poll probes |
/// | attempting | answered | forgotten |
/// | attempting | the kept connection turns out to be closed, in the first of all attempts | queued at the front (`BackOff`, 0 s) |
/// | attempting | transport fault, or no descriptors; time left | backing off (`BackOff`) |
/// | attempting | error that the upstream wrote; retries and budget left | backing off (`BackOff`) |
/// | attempting | `Retry-After` | paused (`Pause`); a [`PollClass::Plain`] poll: forgotten (`GiveUp`) |
/// | attempting | a 429 to a [`PollClass::Chain`] poll | paused, as long as its key (`Pause`) |
/// | attempting | the same, while another poll probes the key | queued behind the others (`Pause`) |
/// | attempting | any other failure | forgotten (`GiveUp`) |
/// | backing off | the backoff ends | queued at the front; behind the others if it got a `Retry-After` before |
/// | backing off, held back | chosen as the probe | queued at the front |
/// | backing off, held back | the breaker closes | backing off, for a random part of the first backoff at most |
/// | held back | `retry_for` ends | queued at the front, for the last attempt |
/// | paused | the pause ends | queued behind the others |
/// | backing off, held back, paused (not its key) | `try_now`: a new wait came | queued at the front, as a first attempt |
/// | any | `withdraw` | forgotten |
///
/// # Queues and slots
///
/// `max_polls` attempts may be open at once, and their starts are `interval` apart. The next poll is chosen like this:
///
/// ```text
///   snapshots   ─▶ key A ▪▪     ┐
///                  key B ▪      ├─▶ go first, and may take every slot
///   plain       ─▶ key A ▪      ┘
///   chains      ─▶ key A ▪▪▪    ──▶ may take every slot                                      ┐ by turns
///   long-polls  ─▶ key A ▪▪▪▪▪  ┐                                                            │
///                  key B ▪      ├─▶ every slot but the last, the reserve for the other polls ┘
///                  key C ▪▪     ┘
///
///                  ▲ keys by turns   ▲ within a key in order of arrival
/// ```
///
/// Polls are held for minutes, so turns alone are not fair: a key that comes when all slots are taken would wait for
/// minutes. The same holds for short polls where the upstream hangs. So a key takes another slot only while it has
/// none, or while it has at most 16 for each slot that stays free afterwards. One key alone gets 16 of 17 slots, and a
/// key that comes later finds one (P11). Cancelling polls of the largest key instead would cost the upstream requests
/// (P4).
///
/// # Budget of a key
///
/// The starts of one key are `key_interval` apart, retries included. A poll over the budget stays in its queue; no poll
/// fails because of the budget. Meanwhile the lines of its key are closed, so they delay no other key, and keep their
/// turns. Snapshots and plain polls of the key go first, but after four of them one of its other polls has its turn: a
/// client that asks more often than the budget allows does not end the polls for waits.
///
/// # Faults
///
/// - **Transport faults** (no connection, reset, end of file, timeout) are faults of the way to the upstream. The poll
///   is retried until `retry_for` after its first one. Before the first success since the start, `retries` is the
///   limit, so that a wrong address fails at once. The breaker counts the faults of all polls.
/// - **Errors that the upstream wrote** concern that poll alone: at most `retries` retries, each within the retry
///   budget of its key (three a second, and one for each five polls). Without budget the first answer is final. They
///   prove that the upstream can be reached, so they close the breaker.
/// - **A poll that was held for a second** and then ends with a transport fault, or with the 502, 503 or 504 of a
///   proxy, has made progress: that count starts again. An error of the job itself is not progress.
/// - **A 429** pauses the poll that got it. A second one on other jobs of the key within that time pauses the key.
///   After the pause one poll of the key goes first. A poll that was refused queues behind the others, so one job that
///   is always refused delays no other.
/// - **A 429 to a chain** pauses the key at once, for a minute at most. The poll keeps its waits and goes on after the
///   pause, however often it is refused.
///
/// The breaker holds back retries, never a first attempt:
///
/// | breaker | event | next |
/// | --- | --- | --- |
/// | closed | `failures` counted transport faults in a row | open: retries are held back |
/// | open | a probe is due | half-open: one retry is the probe, of the key that has probed longest ago |
/// | half-open | the probe fails | open, for twice the time, at most `cooldown` |
/// | half-open | the probe is silent for `cooldown` | half-open, with the next retry as the probe |
/// | any | an answer, an error that the upstream wrote, or a poll held for a second | closed: all retries go on |
///
/// A fault **counts** if its attempt began after the last counted fault and failed 50 ms or more after it. These never
/// open the breaker: faults before the first success since the start, a kept connection that turns out to be closed in
/// the first attempt of a poll, errors that the upstream wrote, 429s, and a lack of descriptors or memory in the
/// gateway. [`breaker`](crate::core::breaker) has the complete table.
#[derive(Debug)]
pub struct PollScheduler {
    config: SchedulerConfig,
    breaker: Breaker,
    jitter: fastrand::Rng,
    polls: Map<PollId, ScheduledPoll>,
    keys: Map<KeyDomain, KeyState>,
    plain: FairQueue,
    snapshots: FairQueue,
    chains: FairQueue,
    long_polls: FairQueue,
    /// The newest turn of a line, in any queue.
    turn: Turn,
    /// Attempts under way.
    open: usize,
    /// The upstream has answered or held a poll since the start.
    has_succeeded: bool,
    /// Time of the newest success.
    reached_at: Option<Instant>,
    /// Polls that back off or are held back, by the time of their last failure.
    retrying: BTreeSet<(Instant, PollId)>,
    /// Time from which `interval` allows another start; `None` if it does now.
    next_start: Option<Instant>,
    /// Time of the [`SchedulerTimer::Probe`] that is armed.
    probe_timer: Option<Instant>,
    timers: BTreeSet<(Instant, SchedulerTimer)>,
    outputs: VecDeque<SchedulerOutput>,
}

impl PollScheduler {
    /// Creates a scheduler without polls. `seed` is the seed of the jitter.
    pub fn new(config: SchedulerConfig, seed: u64) -> Self {
        assert!(config.max_polls > 0, "the configuration checks that max_polls is positive");
        Self {
            breaker: Breaker::new(config.breaker),
            config,
            jitter: fastrand::Rng::with_seed(seed),
            polls: Map::default(),
            keys: Map::default(),
            plain: FairQueue::default(),
            snapshots: FairQueue::default(),
            chains: FairQueue::default(),
            long_polls: FairQueue::default(),
            turn: Turn(0),
            open: 0,
            has_succeeded: false,
            reached_at: None,
            retrying: BTreeSet::new(),
            next_start: None,
            probe_timer: None,
            timers: BTreeSet::new(),
            outputs: VecDeque::new(),
        }
    }

    /// Adds a poll and queues its first attempt.
    pub fn request(&mut self, id: PollId, request: PollRequest, now: Instant) {
        self.keys.entry(request.domain).or_default().polls += 1;
        let previous = self.polls.insert(id, ScheduledPoll::new(request));
        debug_assert!(previous.is_none(), "{id:?} is requested twice");
        self.enqueue(id, QueueEnd::Back, false, now);
        self.start_attempts(now);
    }

    /// Forgets a poll whose result is not needed any more. The owner cancels its attempt.
    pub fn withdraw(&mut self, id: PollId, now: Instant) {
        let state = self.polls.get(&id).map(|poll| poll.state);
        if self.forget(id, now).is_some() {
            state.inspect(|state| self.cancel_probe(*state, now));
            self.start_attempts(now);
        }
    }

    /// Returns whether the poll is queued for lack of a slot: its key is neither paused nor being probed, and the poll
    /// does not wait for `interval` or the budget of its key alone.
    pub fn waits_for_slot(&self, id: PollId) -> bool {
        let Some(poll) = self.polls.get(&id) else { return false };
        let is_queued = matches!(poll.state, ScheduleState::Queued { .. });
        let may_start =
            || self.keys.get(&poll.request.domain).is_none_or(|key| key.may_start(poll.request.class));
        // Without an interval every queued poll starts, unless the slots or the share of its key are taken.
        let lacks_slot = !self.has_long_poll_slot() || self.config.interval.is_zero();
        is_queued && lacks_slot && may_start()
    }

    /// Returns whether [`try_now`](Self::try_now) would attempt the poll earlier: it is backing off, held back or
    /// paused, and its key is not paused.
    pub fn is_pausing(&self, id: PollId) -> bool {
        let Some(poll) = self.polls.get(&id) else { return false };
        match poll.state {
            ScheduleState::BackingOff { .. } | ScheduleState::HeldBack { .. } => true,
            ScheduleState::Paused { .. } => {
                self.keys.get(&poll.request.domain).is_some_and(|key| key.pause.is_open())
            }
            ScheduleState::Detached | ScheduleState::Queued { .. } | ScheduleState::Attempting { .. } => {
                false
            }
        }
    }

    /// Attempts a poll that is backing off, held back or paused, because a wait has just attached to it. The client of
    /// that wait alone would send a request now (P12).
    pub fn try_now(&mut self, id: PollId, now: Instant) {
        if self.is_pausing(id) {
            self.enqueue_as_first_attempt(id, now);
            self.start_attempts(now);
        }
    }

    /// Records that the request of an attempt was sent.
    pub fn sent(&mut self, id: PollId, now: Instant) {
        let Some(poll) = self.polls.get_mut(&id) else { return };
        if poll.request.class != PollClass::LongPoll {
            return; // the upstream does not hold such a request, so its silence proves nothing
        }
        if let ScheduleState::Attempting { held_at: held_at @ None, .. } = &mut poll.state {
            *held_at = Some(now + HELD_MEANS_HEALTHY);
            self.timers.insert((now + HELD_MEANS_HEALTHY, SchedulerTimer::Held(id)));
        }
    }

    /// Records the result of an attempt.
    pub fn ended(&mut self, id: PollId, result: AttemptResult, now: Instant) {
        let Some(poll) = self.polls.get_mut(&id) else { return };
        let ScheduleState::Attempting { is_held, .. } = poll.state else { return };
        let is_first = std::mem::take(&mut poll.is_new);
        let is_chain = poll.request.class == PollClass::Chain;
        match result {
            AttemptResult::Answered => {
                self.attempt_succeeded(id, now);
                self.forget(id, now);
            }
            AttemptResult::Failed(failure, RetryAdvice::Reconnect) if is_first && !is_held => {
                self.reconnect(id, failure, now);
            }
            AttemptResult::Failed(failure, RetryAdvice::PausePoll(pause)) if !pause.is_zero() => {
                self.upstream_reached(now);
                self.pause_poll(id, failure, pause, now);
            }
            // P12: a chain is not given up because of a 429, so `Retry-After: 0` does not count as an error.
            AttemptResult::Failed(failure, RetryAdvice::PauseKey(pause))
                if is_chain || pause != Some(Duration::ZERO) =>
            {
                self.upstream_reached(now);
                self.rate_limited(id, failure, pause.filter(|pause| !pause.is_zero()), now);
            }
            AttemptResult::Failed(failure, advice) => self.attempt_failed(id, failure, advice, now),
        }
        self.start_attempts(now);
    }

    /// Fires all timers up to `now`. Afterwards [`poll_timeout`](Self::poll_timeout) is later than `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(at, timer)) = self.timers.first().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, timer));
            match timer {
                SchedulerTimer::Interval => self.next_start = None,
                SchedulerTimer::Retry(id) => self.pause_elapsed(id, now),
                // P12: the upstream may be back since the newest probe. Without a last attempt the waits of the poll
                // would fail although the outage was shorter than `retry_for`.
                SchedulerTimer::LastAttempt(id) => self.enqueue_as_first_attempt(id, now),
                SchedulerTimer::Probe => self.probe_if_due(now),
                SchedulerTimer::KeyInterval(domain) => self.key_interval_elapsed(domain),
                SchedulerTimer::ResumeKey(domain) => self.set_key_pause(domain, KeyPause::Probe, now),
                SchedulerTimer::Held(id) => {
                    if let Some(poll) = self.polls.get_mut(&id)
                        && let ScheduleState::Attempting { is_held, held_at, .. } = &mut poll.state
                    {
                        (*is_held, *held_at) = (true, None);
                    }
                    self.attempt_succeeded(id, now);
                }
                SchedulerTimer::ForgetKey(domain) => {
                    if let Some(key) = self.keys.get_mut(&domain) {
                        key.forget_at = None;
                        self.forget_key_if_idle(domain, now);
                    }
                }
            }
        }
        self.start_attempts(now);
    }

    /// Returns the time of the next timer.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|&(at, _)| at)
    }

    /// Returns the next output, in order.
    pub fn poll_output(&mut self) -> Option<SchedulerOutput> {
        self.outputs.pop_front()
    }

    /// Returns the number of attempts under way.
    pub fn open(&self) -> usize {
        self.open
    }

    /// Returns when the upstream last answered a poll, or held one for a second.
    pub fn reached_at(&self) -> Option<Instant> {
        self.reached_at
    }

    /// Returns whether the breaker is closed: retries are not held back.
    pub fn is_closed(&self) -> bool {
        self.breaker.is_closed()
    }

    /// Returns whether the attempt of a poll is a retry.
    #[cfg(test)]
    pub(crate) fn is_retry(&self, id: PollId) -> bool {
        self.polls.get(&id).is_some_and(|poll| poll.is_retry)
    }

    /// Checks the invariants, in debug builds and where few polls exist.
    fn check_invariants(&self) {
        if cfg!(debug_assertions) && self.polls.len() <= MAX_CHECKED {
            let count = |is: fn(&ScheduleState) -> bool| self.polls.values().filter(|p| is(&p.state)).count();
            assert_eq!(self.open, count(|state| matches!(state, ScheduleState::Attempting { .. })));
            let is_retrying = |state: &ScheduleState| {
                matches!(state, ScheduleState::BackingOff { .. } | ScheduleState::HeldBack { .. })
            };
            assert_eq!(self.retrying.len(), count(is_retrying));
            let is_held_back = |state: &ScheduleState| matches!(state, ScheduleState::HeldBack { .. });
            assert!(
                !self.breaker.is_closed() || count(is_held_back) == 0,
                "a closed breaker holds back a poll"
            );
            let polls: usize = self.keys.values().map(|key| key.polls).sum();
            assert_eq!(polls, self.polls.len());
            for (domain, key) in &self.keys {
                let is_armed = |at| self.timers.contains(&(at, SchedulerTimer::KeyInterval(*domain)));
                assert!(key.next_start.is_none_or(is_armed), "the budget of a key never ends");
            }
        }
    }
}

/// Time after which a sent long-poll counts as a success. An upstream that holds a poll works, and the retries of other
/// polls need not wait until that poll ends.
const HELD_MEANS_HEALTHY: Duration = Duration::from_secs(1);

/// Number of polls up to which debug builds check the invariants after each call.
const MAX_CHECKED: usize = 256;
