//! The words of the Coalescer: what it is told and what it says.
//!
//! Plain values. It must never know who decides what by them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::core::job::{JobSet, JobState, KeyDomain, Reply};
use crate::core::route::{Form, Goal};

/// One client's request. The shell chooses the number and never uses it twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaitId(pub u64);

/// One long-poll held at the upstream. A number opens once and lands at most once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PollId(pub u64);

/// What a client waits for.
#[derive(Clone, Debug)]
pub struct WaitSpec {
    /// Whose answers it may share.
    pub domain: KeyDomain,
    /// Which endpoint was asked.
    pub form: Form,
    /// The jobs named, at least one.
    pub jobs: JobSet,
    /// What must be reached.
    pub goal: Goal,
    /// When the request came.
    pub arrived: Instant,
    /// How long it waits from then on.
    pub timeout: Duration,
    /// Whether the answer may be kept for others.
    pub keep: bool,
    /// Whether its client expects to be held although its goal may be reached at once, as that of an event stream does.
    pub is_patient: bool,
    /// States of its jobs that the shell vouches for. Of all else only what is seen from `arrived` on counts.
    pub known: Vec<JobState>,
}

/// What to ask the upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PollSpec {
    /// With whose key.
    pub domain: KeyDomain,
    /// At which endpoint.
    pub form: Form,
    /// For which jobs.
    pub jobs: JobSet,
    /// Until what is reached.
    pub goal: Goal,
}

/// Where a poll that has not landed stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PollProgress {
    /// A try begins.
    AttemptStarted,
    /// Its request is on a connection: from here on the upstream answers as soon as it can.
    Held,
    /// The try failed so, another will come after so long, and may well succeed.
    BackingOff(Failure, Duration),
    /// The upstream asked to be left alone for so long, so: it would say the same until then.
    Paused(Failure, Duration),
}

/// How a poll ended, for good: tries and their limits are the shell's.
#[derive(Clone, Debug)]
pub enum PollOutcome {
    /// Each job asked for, by id.
    Jobs(Vec<JobState>),
    /// A success that could not be taken apart by id.
    Unsplit(Arc<Reply>),
    /// The upstream's final word, as it wrote it: a redirect or a refusal.
    Refused(Arc<Reply>),
    /// The tries ran out.
    Failed(Failure),
}

/// Why a poll failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// With an error that the upstream wrote.
    UpstreamError(Arc<Reply>),
    /// No connection, or it broke.
    Unreachable,
    /// With a success that cannot be read as jobs; its bytes, where all of them are there.
    InvalidResponse(Option<Arc<Reply>>),
    /// No answer within the upstream's limit.
    Timeout,
    /// The upstream asked for a rest of the key, by its answer to another poll.
    KeyRateLimited {
        /// When it is worth another try.
        retry_after: Duration,
    },
    /// The gateway itself lacks descriptors or memory for a connection.
    LocalResources,
}

/// Whom a failure concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The way to the upstream, and so every poll.
    Transport,
    /// That poll: the upstream can be reached, and wrote this.
    Upstream,
    /// The gateway itself.
    Local,
}

impl Failure {
    /// Returns whom the failure concerns.
    pub fn kind(&self) -> FaultKind {
        match self {
            Failure::Unreachable | Failure::Timeout => FaultKind::Transport,
            Failure::UpstreamError(_) | Failure::InvalidResponse(_) | Failure::KeyRateLimited { .. } => {
                FaultKind::Upstream
            }
            Failure::LocalResources => FaultKind::Local,
        }
    }

    /// The short word for `Cache-Status`, logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Failure::UpstreamError(_) => "upstream-error",
            Failure::Unreachable => "unreachable",
            Failure::InvalidResponse(_) => "invalid-upstream-response",
            Failure::Timeout => "upstream-timeout",
            Failure::KeyRateLimited { .. } => "key-rate-limited",
            Failure::LocalResources => "local-resources",
        }
    }
}

/// Something happened.
#[derive(Debug)]
pub enum Input {
    /// A client waits.
    Join(WaitId, WaitSpec),
    /// It hung up.
    Leave(WaitId),
    /// It may not cost a request after all: the Join just before is taken back, and its outputs with it.
    CancelJoin(WaitId),
    /// The shell ends: all waits are told the truth by then, spread over the time that is left.
    Drain(Instant),
    /// A poll got on or fell back.
    Progress(PollId, PollProgress),
    /// The answer to the poll, which lands next, asks for a pause before its jobs are asked about again.
    RetryAfter(PollId, Duration),
    /// A poll ended.
    Landed(PollId, PollOutcome),
}

/// Something is to be done.
#[derive(Debug)]
pub enum Output {
    /// Ask the upstream. A poll that it ended unreached is opened again under a new number.
    Open(PollId, PollSpec),
    /// Stop asking; the poll is forgotten.
    Abort(PollId),
    /// Answer the client; the wait is forgotten.
    Settle(WaitId, WaitResult),
}

/// What a client is told.
#[derive(Clone, Debug)]
pub struct WaitResult {
    /// Whether the wait cost an upstream request.
    pub how: Cost,
    /// Whether the upstream's answer is the one to a poll that this wait opened, so that its own head may go along.
    pub direct: bool,
    /// The answer.
    pub end: WaitOutcome,
}

/// Whether a wait made the upstream see a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// It opened a poll.
    Opened,
    /// It leaned on running polls only.
    Coalesced,
}

/// Why a wait ended.
#[derive(Clone, Debug)]
pub enum WaitOutcome {
    /// Every job is where it was waited for; in the set's order.
    Reached(Vec<JobState>),
    /// Its time is over; the jobs as they are, in the set's order.
    TimedOut(Vec<JobState>),
    /// The upstream answered something that has no jobs to tell apart.
    Unsplit(Arc<Reply>),
    /// The upstream refused.
    Refused(Arc<Reply>),
    /// The upstream failed.
    Failed(Failure),
}

impl WaitOutcome {
    /// The short word for logs and metrics.
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
