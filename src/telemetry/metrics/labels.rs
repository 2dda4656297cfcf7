//! The words of logs and metrics, each set closed.

use std::fmt::{self, Write as _};

use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};

use super::each::Label;

/// What a request's path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointLabel {
    /// The one for one job.
    Job,
    /// The one for several.
    Jobs,
    /// Any other.
    Other,
}

impl Label for EndpointLabel {
    const ALL: &'static [Self] = &[Self::Job, Self::Jobs, Self::Other];

    fn as_str(self) -> &'static str {
        match self {
            Self::Job => "clip",
            Self::Jobs => "clips",
            Self::Other => "other",
        }
    }

    fn place(self) -> usize {
        self as usize
    }
}

/// How a request was dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered from the cache.
    Hit,
    /// Parked, and opened a poll.
    Opened,
    /// Parked, and leaned on polls that others had opened.
    Leaned,
    /// Passed through.
    Passed,
    /// Refused by the gateway itself.
    Refused,
    /// A browser's question, answered by the gateway.
    Preflight,
    /// Answered with a stream of events.
    Streamed,
    /// Its client hung up before there was an answer.
    Left,
}

impl Label for Outcome {
    const ALL: &'static [Self] = &[
        Self::Hit,
        Self::Opened,
        Self::Leaned,
        Self::Passed,
        Self::Refused,
        Self::Preflight,
        Self::Streamed,
        Self::Left,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Opened => "opened",
            Self::Leaned => "coalesced",
            Self::Passed => "passthrough",
            Self::Refused => "rejected",
            Self::Preflight => "preflight",
            Self::Streamed => "event_stream",
            Self::Left => "client_closed",
        }
    }

    fn place(self) -> usize {
        self as usize
    }
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitEnd {
    /// What was waited for came.
    Reached,
    /// Its time was over, and it was told where its jobs are.
    TimedOut,
    /// The upstream's answer could not be taken apart, and was handed over whole.
    Whole,
    /// The upstream refused.
    Refused,
    /// The upstream failed.
    Failed,
    /// Its client hung up.
    Left,
}

impl Label for WaitEnd {
    const ALL: &'static [Self] =
        &[Self::Reached, Self::TimedOut, Self::Whole, Self::Refused, Self::Failed, Self::Left];

    fn as_str(self) -> &'static str {
        match self {
            Self::Reached => "reached",
            Self::TimedOut => "timed-out",
            Self::Whole => "unsplit",
            Self::Refused => "upstream_rejected",
            Self::Failed => "failed",
            Self::Left => "client_closed",
        }
    }

    fn place(self) -> usize {
        self as usize
    }
}

/// Why the gateway asks the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallKind {
    /// A poll that waits for something; each try is one.
    Poll,
    /// A look at where jobs are: what is asked for has been reached by all there are.
    Snapshot,
    /// A request that is passed through.
    Passthrough,
}

impl Label for CallKind {
    const ALL: &'static [Self] = &[Self::Poll, Self::Snapshot, Self::Passthrough];

    fn as_str(self) -> &'static str {
        match self {
            Self::Poll => "poll",
            Self::Snapshot => "snapshot",
            Self::Passthrough => "passthrough",
        }
    }

    fn place(self) -> usize {
        self as usize
    }
}

/// What came of a request to the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// An answer with this HTTP status.
    Status(u16),
    /// No answer.
    Fault(CallError),
    /// The gateway had no more use for it.
    Cancelled,
}

/// Why the upstream gave no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallError {
    /// There was no connection.
    Connect,
    /// The connection took too long.
    ConnectTimeout,
    /// There was no secure connection.
    Tls,
    /// The gateway itself has no descriptor or memory for a connection.
    LocalResources,
    /// It broke off.
    Reset,
    /// It took too long.
    Timeout,
    /// What came cannot be read.
    Invalid,
}

impl CallError {
    /// What logs, metrics and `Cache-Status` call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::ConnectTimeout => "connect-timeout",
            Self::Tls => "tls",
            Self::LocalResources => "local-resources",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::Invalid => "invalid",
        }
    }
}

impl Code {
    /// Whether the upstream failed. The gateway's own lack is not its fault.
    pub fn is_fault(self) -> bool {
        match self {
            Self::Fault(fault) => fault != CallError::LocalResources,
            Self::Status(status) => status >= 500,
            Self::Cancelled => false,
        }
    }

    /// Whether it answered and did not fail.
    pub fn is_answer(self) -> bool {
        matches!(self, Self::Status(..500))
    }
}

impl fmt::Display for Code {
    /// Of statuses that HTTP has no class for (RFC 9110 §15) there is one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status @ ..600) => status.fmt(f),
            Self::Status(_) => f.write_str("600"),
            Self::Fault(fault) => f.write_str(fault.as_str()),
            Self::Cancelled => f.write_str("cancelled"),
        }
    }
}

impl EncodeLabelValue for Code {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        write!(encoder, "{self}")
    }
}

/// A limit that requests are refused over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// `limits.requests_per_second`
    Requests,
    /// `limits.calls_per_second`
    Calls,
    /// `limits.max_waits_per_key`
    WaitsOfKey,
    /// `limits.max_waits`
    Waits,
    /// `limits.max_passthrough_per_key`
    PassthroughPerKey,
    /// `limits.max_passthrough`
    Passthrough,
}

impl Label for Limit {
    const ALL: &'static [Self] = &[
        Self::Requests,
        Self::Calls,
        Self::WaitsOfKey,
        Self::Waits,
        Self::PassthroughPerKey,
        Self::Passthrough,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Calls => "calls",
            Self::WaitsOfKey => "waits-per-key",
            Self::Waits => "waits",
            Self::PassthroughPerKey => "passthrough-per-key",
            Self::Passthrough => "passthrough",
        }
    }

    fn place(self) -> usize {
        self as usize
    }
}

/// Why a connection is closed that its client might have kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// It was the longest idle, and another needed its place.
    Idle,
    /// It has just come, and half of all places are taken by busy connections from its address.
    Refused,
}

impl Label for Closed {
    const ALL: &'static [Self] = &[Self::Idle, Self::Refused];

    fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Refused => "address",
        }
    }

    fn place(self) -> usize {
        self as usize
    }
}
