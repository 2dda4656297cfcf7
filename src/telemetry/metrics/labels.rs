//! Labels of metrics and words of the log: closed sets, which docs/observability.md lists.

use std::fmt::{self, Write as _};

use enum_map::Enum;
use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};
use strum::{IntoStaticStr, VariantArray};

/// Label `route`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case", const_into_str)]
pub(crate) enum EndpointLabel {
    /// The path of waits for one job.
    #[strum(serialize = "clip")]
    Job,
    /// The path of waits for several jobs.
    #[strum(serialize = "clips")]
    Jobs,
    Other,
}

/// Label `outcome`: how the gateway answered a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case", const_into_str)]
pub(crate) enum Outcome {
    Hit,
    /// A wait that opened a poll.
    Opened,
    /// A wait that attached to open polls only.
    Coalesced,
    /// A wait whose jobs' states open polls proved when it arrived.
    Proven,
    Passthrough,
    /// An error of the gateway itself.
    Rejected,
    /// A CORS preflight that the gateway answered.
    Preflight,
    EventStream,
    /// The client disconnected before its response.
    ClientClosed,
}

impl Outcome {
    /// Returns whether the request was answered without an upstream request of its own.
    pub(crate) fn is_saved(self) -> bool {
        matches!(self, Self::Hit | Self::Coalesced | Self::Proven)
    }
}

/// Label `end`: how a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case", const_into_str)]
pub(crate) enum WaitEnd {
    Reached,
    /// The deadline passed; the response was the current state.
    #[strum(serialize = "timed-out")]
    TimedOut,
    /// The response of the upstream could not be split into jobs and was passed on as it came.
    Unsplit,
    UpstreamRejected,
    Failed,
    ClientClosed,
}

/// Label `kind`: purpose of a request to the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case", const_into_str)]
pub(crate) enum CallKind {
    /// A long-poll; each attempt counts.
    Poll,
    /// A request for the current state.
    Snapshot,
    Passthrough,
}

/// Label `cause`: why the gateway made a request to the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case", const_into_str)]
pub enum CallCause {
    /// A wait for one job.
    Wait,
    /// A wait for several jobs.
    Batch,
    /// The upstream ended a poll at its hold, or it failed, and waits have time left.
    Reopen,
    /// A request that expects an answer at once.
    Snapshot,
    /// The deadline of a wait.
    Deadline,
    /// Repeated requests for one job.
    Watch,
    /// A request that accepts no stored state.
    NoCache,
    /// An attempt of a poll after a failed one.
    Retry,
    Passthrough,
}

/// Label `code`: result of a request to the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Code {
    Status(u16),
    Fault(CallError),
    /// The gateway no longer needed the response.
    Cancelled,
}

/// Why a request to the upstream got no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case", const_into_str)]
pub enum CallError {
    Connect,
    ConnectTimeout,
    Tls,
    /// The gateway itself lacks a descriptor or memory for a connection.
    LocalResources,
    Reset,
    Timeout,
    /// The response is malformed.
    Invalid,
}

impl Code {
    /// Returns whether the upstream failed. The gateway's own lack of resources does not count.
    pub(super) fn is_fault(self) -> bool {
        match self {
            Self::Fault(fault) => fault != CallError::LocalResources,
            Self::Status(status) => status >= 500,
            Self::Cancelled => false,
        }
    }

    /// Returns whether the upstream answered without a failure.
    pub(super) fn is_success(self) -> bool {
        matches!(self, Self::Status(..500))
    }
}

impl fmt::Display for Code {
    /// Writes one code for all statuses without a class (RFC 9110 section 15).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status @ ..600) => status.fmt(f),
            Self::Status(_) => f.write_str("600"),
            Self::Fault(fault) => f.write_str(fault.into_str()),
            Self::Cancelled => f.write_str("cancelled"),
        }
    }
}

impl EncodeLabelValue for Code {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        write!(encoder, "{self}")
    }
}

/// Label `quota`: the key in `[limits]` over which requests are rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case", const_into_str)]
pub enum Limit {
    /// `limits.requests_per_second`
    Requests,
    /// `limits.calls_per_second`
    Calls,
    /// `limits.max_waits_per_key`
    WaitsPerKey,
    /// `limits.max_waits`
    Waits,
    /// `limits.max_passthrough_per_key`
    PassthroughPerKey,
    /// `limits.max_passthrough`
    Passthrough,
}

/// Label `reason`: why the gateway closed a client connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case", const_into_str)]
pub(crate) enum CloseReason {
    /// The longest idle connection, closed for a new one.
    Idle,
    /// A new connection; its address has half of all connections, and all of them are busy.
    Address,
}
