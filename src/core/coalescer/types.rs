//! Inputs and outputs of the [`Coalescer`](super::Coalescer): plain values without behaviour.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::core::job::{JobId, JobSet, JobState, KeyDomain, UpstreamResponse};
use crate::core::route::{Form, Goal};

/// Number of a wait. The caller chooses it, in order of arrival, and never uses it twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaitId(pub u64);

/// Number of a poll. Each opens once and lands at most once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PollId(pub u64);

/// A wait as its client asked for it.
#[derive(Clone, Debug)]
pub struct WaitSpec {
    /// Key domain: waits and polls of another one never share anything with this wait (P11).
    pub domain: KeyDomain,
    /// Endpoint of the request: for one job or for several.
    pub form: Form,
    /// Jobs named, at least one.
    pub jobs: JobSet,
    /// Rung that each job has to reach.
    pub goal: Goal,
    /// Arrival of the request.
    pub arrived: Instant,
    /// Time that the wait has from its arrival on (P2, P9).
    pub timeout: Duration,
    /// Whether answers to this wait may be cached.
    pub keep: bool,
    /// Whether the client expects to be held even if the upstream answers its goal at once. True for event streams.
    pub is_patient: bool,
    /// Moment of the state that the client has: an older one does not reach the goal. Only where jobs may go back.
    pub newer_than: Option<Instant>,
    /// Cached states that are still valid. Other states count only if seen after `arrived`.
    pub known: Vec<JobState>,
    /// Whether an open poll may prove the answer at once.
    pub proof: Proof,
}

/// Permission to answer a wait at its arrival with states that an open poll proves (P7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Not from proof: the upstream has not accepted the key lately, or the setting is off.
    Never,
    /// Not from proof: the client asked for the upstream's own answer. The cause of its snapshot is [`Cause::NoCache`].
    NoCache,
    /// From states whose bytes were seen at most this long ago.
    Within(Duration),
}

/// A poll as the upstream is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PollSpec {
    /// Key domain: the credential of the request.
    pub domain: KeyDomain,
    /// Endpoint: for one job or for several.
    pub form: Form,
    /// Jobs asked for, at least one.
    pub jobs: JobSet,
    /// Rung at which the upstream answers.
    pub goal: Goal,
}

/// Progress of a poll that has not landed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PollProgress {
    /// An attempt begins.
    AttemptStarted,
    /// The request is on a connection: from now on the upstream answers as soon as it can.
    Held,
    /// The attempt failed. The next one follows after this time and may well succeed.
    BackingOff(Failure, Duration),
    /// The upstream asked for a pause of this length. Until then it would repeat its answer.
    Paused(Failure, Duration),
    /// Another replica makes the poll. It opened it at that moment.
    Elsewhere {
        /// Opening by the other replica, by the clock of this one.
        opened_at: Instant,
        /// Start of the attempt that the upstream holds, by the clock of this replica. Its silence proves states from now
        /// on. `None`: the upstream holds none.
        held_from: Option<Instant>,
    },
    /// The other replica has stopped the poll, or is not heard. The poll proves nothing until a replica makes it again.
    Lost,
}

/// Final result of a poll, after the retries of the caller.
#[derive(Clone, Debug)]
pub enum PollOutcome {
    /// State of each job that the poll asked for.
    Jobs(Vec<JobState>),
    /// A success that cannot be split by job.
    Unsplit(Arc<UpstreamResponse>),
    /// A redirect or a 4xx, as the upstream wrote it.
    Refused(Arc<UpstreamResponse>),
    /// The last attempt failed.
    Failed(Failure),
}

/// Cause of a failed attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The upstream wrote an error.
    UpstreamError(Arc<UpstreamResponse>),
    /// No connection, or the connection was lost.
    Unreachable,
    /// A success that cannot be read as jobs, with its bytes if all of them arrived.
    InvalidResponse(Option<Arc<UpstreamResponse>>),
    /// A response with more bytes than a poll may have. The next attempt would find as many.
    TooLarge,
    /// No answer within the upstream's limit.
    Timeout,
    /// The upstream paused the whole key by its answer to another poll.
    KeyRateLimited {
        /// Time until the next attempt makes sense.
        retry_after: Duration,
    },
    /// The gateway itself lacks file descriptors or memory for a connection.
    LocalResources,
}

/// Scope of a [`Failure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The path to the upstream, and so every poll.
    Transport,
    /// One poll: the upstream can be reached and wrote this answer.
    Upstream,
    /// The gateway itself.
    Local,
}

impl Failure {
    /// Returns the scope of the failure.
    pub fn kind(&self) -> FaultKind {
        match self {
            Failure::Unreachable | Failure::Timeout => FaultKind::Transport,
            Failure::UpstreamError(_)
            | Failure::InvalidResponse(_)
            | Failure::TooLarge
            | Failure::KeyRateLimited { .. } => FaultKind::Upstream,
            Failure::LocalResources => FaultKind::Local,
        }
    }

    /// Returns whether the failure of an attempt is also that of a wait that arrived at `arrived`. A later wait is asked for
    /// again, but a body that is too large would be so again.
    pub(super) fn concerns(&self, arrived: Instant, attempted_at: Instant) -> bool {
        arrived <= attempted_at || matches!(self, Failure::TooLarge)
    }

    /// Returns the short word for `Cache-Status`, logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Failure::UpstreamError(_) => "upstream-error",
            Failure::Unreachable => "unreachable",
            Failure::InvalidResponse(_) | Failure::TooLarge => "invalid-upstream-response",
            Failure::Timeout => "upstream-timeout",
            Failure::KeyRateLimited { .. } => "key-rate-limited",
            Failure::LocalResources => "local-resources",
        }
    }
}

/// An event for the machine.
#[derive(Debug)]
pub enum Input {
    /// A client waits.
    Join(WaitId, WaitSpec),
    /// The client of a wait disconnected.
    Leave(WaitId),
    /// Takes back the `Join` just before, with its outputs: the client's quota allows no upstream request.
    CancelJoin(WaitId),
    /// The gateway stops: every wait ends by this moment, spread over the time until then.
    Drain(Instant),
    /// An attempt of a poll moved on or failed.
    Progress(PollId, PollProgress),
    /// The success that lands next asks for a pause before its jobs are asked for again.
    RetryAfter(PollId, Duration),
    /// A poll ended.
    Landed(PollId, PollOutcome),
    /// Ends a watch: the quota of its client or the upstream's places do not allow it. A watch with waits that was sent
    /// stays open for them. Changes nothing if the poll is not a watch.
    CancelWatch(PollId),
    /// Ends each watch of a key domain, as `CancelWatch` does: the upstream rejected the key.
    CancelWatches(KeyDomain),
    /// An action of a client changed the job: the upstream answered it with a success or a redirect, or the connection
    /// broke. What was seen of the job before does not count any more.
    JobChanged(KeyDomain, JobId),
}

/// A command for the caller.
#[derive(Debug)]
pub enum Output {
    /// Asks the upstream.
    Open(PollId, PollSpec, Cause),
    /// Cancels the poll. The machine has forgotten it.
    Abort(PollId),
    /// Answers the client. The machine has forgotten the wait.
    Settle(WaitId, WaitResult),
}

/// Reason for which a poll is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A wait for one job.
    Wait,
    /// A wait for several jobs.
    Batch,
    /// The upstream's hold ended a poll, or it failed, and waits on it have time left.
    Reopen,
    /// A request that expects an answer at once.
    Snapshot,
    /// The deadline of a wait (P7).
    Deadline,
    /// Repeated requests for the state of one job. The poll has no wait of its own.
    Watch {
        /// Wait whose client pays for the poll: the last one that asked for the job. If it was answered from proof, it
        /// has ended.
        asked_by: WaitId,
        /// Poll whose landing opened the watch, of the same key. Often the watch on the rung before.
        follows: Option<PollId>,
    },
    /// A request that expects an answer at once and accepts no proof: [`Proof::NoCache`].
    NoCache,
}

/// Answer to a wait.
#[derive(Clone, Debug)]
pub struct WaitResult {
    /// Whether the wait cost an upstream request.
    pub how: Cost,
    /// Whether this is the answer to a poll that the wait opened itself. Then the per-response headers belong to its
    /// client.
    pub direct: bool,
    /// The answer itself.
    pub end: WaitOutcome,
}

/// Cost of a wait to the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// The wait opened a poll.
    Opened,
    /// The wait only attached to open polls.
    Coalesced,
    /// Open polls proved the states when the wait arrived.
    Proven,
    /// The poll of another replica answered the wait. The caller says so; the machine does not know other replicas.
    Sibling,
    /// States that another replica had stored answered the wait. The caller says so, too.
    SharedHit,
}

/// Reason for the end of a wait.
#[derive(Clone, Debug)]
pub enum WaitOutcome {
    /// Every job reached its goal. States in the order of the set.
    Reached(Vec<JobState>),
    /// The wait's time is over. Current states in the order of the set.
    TimedOut(Vec<JobState>),
    /// The upstream's success cannot be split by job.
    Unsplit(Arc<UpstreamResponse>),
    /// The upstream answered with a redirect or a 4xx.
    Refused(Arc<UpstreamResponse>),
    /// The upstream failed.
    Failed(Failure),
}

impl WaitOutcome {
    /// Returns the short word for logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            WaitOutcome::Reached(_) => "reached",
            WaitOutcome::TimedOut(_) => "timed-out",
            WaitOutcome::Unsplit(_) => "unsplit",
            WaitOutcome::Refused(_) => "upstream_rejected",
            WaitOutcome::Failed(failure) => failure.reason(),
        }
    }
}

/// A failure, and whether it is the answer to a poll that the wait opened itself.
pub(super) type LastFailure = (Failure, bool);
