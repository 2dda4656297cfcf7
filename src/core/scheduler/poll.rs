//! A poll in the scheduler: its request, its failures, its state and its timers.

use std::time::Instant;

use super::PollRequest;
use super::fair_queue::Ticket;
use crate::core::coalescer::{Failure, PollId};
use crate::core::job::KeyDomain;

/// A poll from its request until it is answered, given up or withdrawn.
#[derive(Debug)]
pub(super) struct ScheduledPoll {
    pub(super) request: PollRequest,
    /// None of its attempts has ended yet.
    pub(super) is_new: bool,
    /// The next attempt follows a failed one, so the breaker may hold it back.
    pub(super) is_retry: bool,
    /// Errors in a row that the upstream wrote.
    pub(super) errors: u32,
    /// Pauses that the upstream asked for.
    pub(super) refusals: u32,
    /// Transport faults in a row.
    pub(super) outage: Option<Outage>,
    pub(super) last_failure: Option<(Instant, Failure)>,
    pub(super) state: ScheduleState,
}

/// Consecutive transport faults of one poll.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outage {
    /// Time of the first fault.
    pub(super) since: Instant,
    pub(super) faults: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ScheduleState {
    /// Between two states, within one call.
    Detached,
    Queued {
        ticket: Ticket,
        is_probe: bool,
    },
    /// An attempt is under way.
    Attempting {
        began: Instant,
        is_probe: bool,
        /// Time at which the attempt counts as held, once its request was sent.
        held_at: Option<Instant>,
        is_held: bool,
    },
    /// The next attempt is queued at `until`.
    BackingOff {
        until: Instant,
    },
    /// The breaker is open. The next attempt is made when it closes, and the last one at `last_attempt_at`; `None` for
    /// a poll without a transport fault.
    HeldBack {
        last_attempt_at: Option<Instant>,
    },
    /// The upstream asked for a pause until `until`.
    Paused {
        until: Instant,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SchedulerTimer {
    /// `interval` allows another start.
    Interval,
    /// The backoff or pause of a poll ends.
    Retry(PollId),
    /// `retry_for` of a poll that is held back ends.
    LastAttempt(PollId),
    /// A probe of the breaker is due.
    Probe,
    /// The budget of a key allows another start.
    KeyInterval(KeyDomain),
    /// The pause of a key ends.
    ResumeKey(KeyDomain),
    /// A poll has been held for [`HELD_MEANS_HEALTHY`](super::HELD_MEANS_HEALTHY).
    Held(PollId),
    /// The history of a key without polls has expired.
    ForgetKey(KeyDomain),
}

impl ScheduledPoll {
    pub(super) fn new(request: PollRequest) -> Self {
        Self {
            request,
            is_new: true,
            is_retry: false,
            errors: 0,
            refusals: 0,
            outage: None,
            last_failure: None,
            state: ScheduleState::Detached,
        }
    }
}
