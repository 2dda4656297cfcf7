//! The plain values of the scheduler: its configuration, its inputs and its outputs.

use std::time::Duration;

use crate::core::backoff::Backoff;
use crate::core::breaker::BreakerRules;
use crate::core::coalescer::{Failure, PollId};
use crate::core::job::{JobSet, KeyDomain};

/// The limits and times of the scheduler.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerConfig {
    /// Polls open at once, at least one. With two or more the last place is not for long-polls.
    pub max_polls: usize,
    /// Least time between the starts of two attempts; zero: none.
    pub interval: Duration,
    /// Attempts after the first one that the upstream's own errors are answered with; and all faults before the first
    /// answer since the start, so that a wrong address fails at once.
    pub retries: u32,
    /// How long after its first transport fault a poll is given up.
    pub retry_for: Duration,
    /// Pauses between the attempts of a poll.
    pub backoff: Backoff,
    /// When retries are held back.
    pub breaker: BreakerRules,
}

/// A poll that asks for attempts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PollRequest {
    /// Whose key it uses.
    pub domain: KeyDomain,
    /// The jobs it asks for.
    pub jobs: JobSet,
    /// How it uses the upstream.
    pub class: PollClass,
}

/// How a poll uses the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollClass {
    /// The upstream may hold it.
    LongPoll,
    /// It is answered at once: the state at the deadline of a wait. It goes before long-polls.
    Snapshot,
    /// Like `Snapshot`, but in place of a request that its client expects to be answered at once: a pause of its key
    /// does not hold it, and a 429 or 503 with `Retry-After` is final for it.
    Plain,
}

/// How an attempt ended.
#[derive(Clone, Debug)]
pub enum AttemptResult {
    /// With the upstream's final word, whatever that is.
    Answered,
    /// With a fault.
    Failed(Failure, RetryAdvice),
}

/// What a failed attempt says of the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryAdvice {
    /// Nothing: each pause is longer than the one before.
    BackOff,
    /// Like `BackOff`, but the error is one that proxies write when a request takes too long or its server is gone
    /// (502, 503, 504). After a poll that was held it says nothing of the job.
    BackOffHeld,
    /// No byte was sent: a kept connection turned out to be closed.
    Reconnect,
    /// The upstream asked for a pause of this poll.
    PausePoll(Duration),
    /// The upstream asked for a pause, and its limit may be that of the key: a 429.
    PauseKey(Duration),
    /// There is no use in another attempt.
    GiveUp,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SchedulerOutput {
    /// Start an attempt of the poll.
    Start(PollId),
    /// The poll failed, and is tried again after the pause or later.
    BackOff(PollId, Failure, Duration),
    /// The upstream asked for a pause: no attempt of the poll is made for so long.
    Pause(PollId, Failure, Duration),
    /// The poll has failed for good, and is forgotten.
    GiveUp(PollId, Failure),
}
