//! Values of the scheduler: configuration, inputs and outputs.

use std::time::Duration;

use crate::core::backoff::Backoff;
use crate::core::breaker::BreakerRules;
use crate::core::coalescer::{Failure, PollId};
use crate::core::job::{JobSet, KeyDomain};

/// The limits and times of the scheduler.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerConfig {
    /// Maximum number of open attempts, at least one. From two on, the last slot is reserved for short polls.
    pub max_polls: usize,
    /// Minimum time between the starts of two attempts; zero for no limit.
    pub interval: Duration,
    /// Budget of a key: minimum time between the starts of two attempts of one key; zero for no limit.
    pub key_interval: Duration,
    /// Retries of a poll after errors that the upstream wrote. Before the first success since the start also after
    /// transport faults, so that a wrong address fails at once.
    pub retries: u32,
    /// Time from the first transport fault of a poll until it is given up.
    pub retry_for: Duration,
    /// Pauses between the attempts of a poll.
    pub backoff: Backoff,
    /// Thresholds of the breaker.
    pub breaker: BreakerRules,
}

/// A poll as the scheduler sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PollRequest {
    /// Key domain of the credential.
    pub domain: KeyDomain,
    /// Jobs of the poll.
    pub jobs: JobSet,
    /// Class of the poll.
    pub class: PollClass,
}

/// Kind of upstream request, which decides on queues, slots and pauses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollClass {
    /// The upstream may hold the request for minutes.
    LongPoll,
    /// The upstream answers at once: the state of jobs at the deadline of a wait (P7). Goes before long-polls.
    Snapshot,
    /// One of a chain of snapshots, made for waits where the upstream never holds. A 429 pauses the key at once, and the
    /// poll is never given up because of one: no client made this request.
    Chain,
    /// Like `Snapshot`, for a client that expects an answer at once, because its request has no status. A pause of the
    /// key does not delay the poll, and a 429 or 503 with `Retry-After` is its final answer (P12).
    Plain,
}

/// Result of an attempt.
#[derive(Clone, Debug)]
pub enum AttemptResult {
    /// The upstream's final answer: jobs, a redirect, or an error that no retry changes.
    Answered,
    /// A failure that a retry may change.
    Failed(Failure, RetryAdvice),
}

/// Advice of a failed attempt about the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryAdvice {
    /// Retry after an exponential backoff.
    BackOff,
    /// Like `BackOff`, for an error that proxies write when a request takes too long or its server is gone (502, 503,
    /// 504). After a poll that was held, the error is not evidence about the job.
    BackOffHeld,
    /// No byte was sent: the upstream had closed the kept connection.
    Reconnect,
    /// Retry this poll after the pause that the upstream asked for.
    PausePoll(Duration),
    /// A 429: like `PausePoll`, and the limit behind it may be the key's. `None`: the upstream did not say how long. Then
    /// the pause is a second, and twice the one before for each further such 429 of the key without a success between
    /// them, a minute at most.
    PauseKey(Option<Duration>),
    /// A retry cannot succeed.
    GiveUp,
}

/// Action for the owner of the scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SchedulerOutput {
    /// Start an attempt of the poll.
    Start(PollId),
    /// The attempt failed. The next one follows after the pause, or later.
    BackOff(PollId, Failure, Duration),
    /// The upstream asked for a pause, which the poll observes.
    Pause(PollId, Failure, Duration),
    /// The poll has failed; the scheduler has forgotten it.
    GiveUp(PollId, Failure),
}
