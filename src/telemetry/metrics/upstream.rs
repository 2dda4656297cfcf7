//! Metrics of the requests to the upstream, and the upstream's health.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use enum_map::EnumMap;
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tracing::{info, warn};

use super::labels::{CallCause, CallError, CallKind, Code};
use super::sharded::ShardedHistogram;
use super::{histograms, register};
use crate::clock;
use crate::core::outage::OutageDetector;

/// Buckets of requests to the upstream, in seconds.
const CALL_BUCKETS: &[f64] =
    &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 90.0, 121.0, 300.0];

#[derive(Debug)]
pub struct UpstreamMetrics {
    calls: Family<CallLabels, Counter>,
    /// Counters of `calls` for [`USUAL_CALLS`] with the status 200. They spare a request the lookup, which has a lock.
    usual: [Counter; USUAL_CALLS.len()],
    times: EnumMap<CallKind, ShardedHistogram>,
    /// Sums of `calls`: a family cannot be summed.
    counts: EnumMap<CallKind, Counter>,
    by_cause: EnumMap<CallCause, Counter>,
    errors: Counter,
    retries: Counter,
    polls: Gauge,
    polls_waiting: Gauge,
    watches: Gauge,
    breaker_open: Gauge,
    /// Parked waits, for the log of an outage.
    parked: AtomicUsize,
    health: Mutex<UpstreamHealth>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    kind: &'static str,
    code: Code,
    cause: &'static str,
}

/// Series that exist from the start, so that Prometheus sees their first increase. Others come with their first request;
/// all three labels are closed sets.
const USUAL_CALLS: [(CallKind, CallCause); 10] = [
    (CallKind::Passthrough, CallCause::Passthrough),
    (CallKind::Poll, CallCause::Wait),
    (CallKind::Poll, CallCause::Batch),
    (CallKind::Poll, CallCause::Reopen),
    (CallKind::Poll, CallCause::Watch),
    (CallKind::Poll, CallCause::Retry),
    (CallKind::Snapshot, CallCause::Snapshot),
    (CallKind::Snapshot, CallCause::Deadline),
    (CallKind::Snapshot, CallCause::NoCache),
    (CallKind::Snapshot, CallCause::Retry),
];

#[derive(Clone, Debug, Default)]
pub(crate) struct UpstreamHealth {
    /// Time of the last response below 500.
    pub(crate) answered_at: Option<SystemTime>,
    /// Time and code of the last failure.
    pub(crate) failed: Option<(SystemTime, Code)>,
    detector: OutageDetector,
    /// The outage that lasts.
    pub(crate) outage: Option<UpstreamOutage>,
}

/// An outage of the upstream, from its first fault on.
#[derive(Clone, Debug)]
pub(crate) struct UpstreamOutage {
    pub(crate) since: SystemTime,
    /// The error in words, of the fault with which the outage was noticed.
    pub(crate) cause: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PollCounts {
    pub(crate) open: usize,
    /// Polls that are queued, or between two attempts.
    pub(crate) waiting: usize,
    /// Watches, among the polls that are open or waiting.
    pub(crate) watches: usize,
    /// Whether the breaker delays retries.
    pub is_breaker_open: bool,
}

impl UpstreamMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let calls = Family::<CallLabels, Counter>::default();
        let calls_help = "Ended requests to the upstream; each attempt of a poll counts";
        register(registry, "clipgate_upstream_requests_total", calls_help, calls.clone());
        let usual = USUAL_CALLS
            .map(|(kind, cause)| calls.get_or_create_owned(&CallLabels::new(kind, Code::Status(200), cause)));
        let (retries, polls, polls_waiting) = (Counter::default(), Gauge::default(), Gauge::default());
        let (watches, breaker_open) = (Gauge::default(), Gauge::default());
        let retries_help = "Attempts of polls after a failed one";
        register(registry, "clipgate_upstream_retries_total", retries_help, retries.clone());
        register(registry, "clipgate_upstream_polls", "Polls open at the upstream", polls.clone());
        let waiting_help = "Polls that wait for a slot, or are between two attempts";
        register(registry, "clipgate_upstream_polls_waiting", waiting_help, polls_waiting.clone());
        let watches_help = "Polls held for jobs that are asked for repeatedly";
        register(registry, "clipgate_watches", watches_help, watches.clone());
        let breaker_help = "1 while the breaker is open and retries are delayed, else 0";
        register(registry, "clipgate_breaker_open", breaker_help, breaker_open.clone());
        let times_help =
            "Time of upstream requests: to the end of a poll's response, or to the head of another response";
        Self {
            calls,
            usual,
            times: histograms(registry, "clipgate_upstream_seconds", times_help, "kind", CALL_BUCKETS),
            counts: EnumMap::default(),
            by_cause: EnumMap::default(),
            errors: Counter::default(),
            retries,
            polls,
            polls_waiting,
            watches,
            breaker_open,
            parked: AtomicUsize::new(0),
            health: Mutex::default(),
        }
    }

    /// Starts to measure a request that leaves now.
    pub(crate) fn call(&self, kind: CallKind, cause: CallCause) -> CallTimer<'_> {
        CallTimer { upstream: self, kind, cause, began: clock::now(), code: Code::Cancelled, fault: None }
    }

    fn count_call(&self, kind: CallKind, code: Code, cause: CallCause) {
        let usual = USUAL_CALLS.iter().zip(&self.usual).find(|(call, _)| **call == (kind, cause));
        match usual.filter(|_| code == Code::Status(200)) {
            Some((_, counter)) => counter.inc(),
            None => self.calls.get_or_create_owned(&CallLabels::new(kind, code, cause)).inc(),
        };
    }

    /// Records an attempt of a poll after a failed one.
    pub(crate) fn retried(&self) {
        self.retries.inc();
    }

    pub(crate) fn set_parked(&self, waits: usize) {
        self.parked.store(waits, Ordering::Relaxed);
    }

    /// Records that the upstream answered a poll at this time, or holds it.
    pub(crate) fn reached(&self, at: Instant) {
        let ended = self.health.lock().succeeded(at);
        log_end(ended);
    }

    pub(crate) fn set_poll_counts(&self, counts: PollCounts) {
        let number = |count| i64::try_from(count).unwrap_or(i64::MAX);
        self.polls.set(number(counts.open));
        self.polls_waiting.set(number(counts.waiting));
        self.watches.set(number(counts.watches));
        self.breaker_open.set(i64::from(counts.is_breaker_open));
    }

    pub fn poll_counts(&self) -> PollCounts {
        let count = |gauge: &Gauge| usize::try_from(gauge.get()).unwrap_or_default();
        PollCounts {
            open: count(&self.polls),
            waiting: count(&self.polls_waiting),
            watches: count(&self.watches),
            is_breaker_open: self.breaker_open.get() != 0,
        }
    }

    pub(super) fn count(&self, kind: CallKind) -> u64 {
        self.counts[kind].get()
    }

    pub(super) fn count_of_cause(&self, cause: CallCause) -> u64 {
        self.by_cause[cause].get()
    }

    pub(super) fn errors(&self) -> u64 {
        self.errors.get()
    }

    pub(super) fn retries(&self) -> u64 {
        self.retries.get()
    }

    pub(crate) fn health(&self) -> UpstreamHealth {
        self.health.lock().clone()
    }
}

impl CallLabels {
    fn new(kind: CallKind, code: Code, cause: CallCause) -> Self {
        Self { kind: kind.into_str(), code, cause: cause.into_str() }
    }
}

/// Timer of one request to the upstream. Its drop records the request, as cancelled unless [`Self::finish`] was called.
#[derive(Debug)]
pub(crate) struct CallTimer<'m> {
    upstream: &'m UpstreamMetrics,
    kind: CallKind,
    cause: CallCause,
    began: Instant,
    code: Code,
    /// The error in words.
    fault: Option<String>,
}

impl CallTimer<'_> {
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// Records the request with its result.
    pub(crate) fn finish(mut self, code: Code) {
        self.code = code;
    }

    /// Notes the error in words, before the result is recorded.
    pub(crate) fn note_error(&mut self, error: &(dyn std::error::Error + 'static)) {
        self.fault = Some(root_cause(error));
    }
}

impl Drop for CallTimer<'_> {
    fn drop(&mut self) {
        let Self { upstream, kind, cause, began, code, ref mut fault } = *self;
        let now = clock::now();
        upstream.count_call(kind, code, cause);
        upstream.counts[kind].inc();
        upstream.by_cause[cause].inc();
        upstream.times[kind].observe(now.saturating_duration_since(began));
        if code.is_fault() {
            upstream.errors.inc();
        }
        let mut health = upstream.health.lock();
        let (begun, ended) = health.record(code, fault.take(), began, now);
        drop(health);
        if let Some(cause) = begun {
            let waits = upstream.parked.load(Ordering::Relaxed);
            warn!(cause, clipgate.waits = waits, "upstream cannot be reached");
        }
        log_end(ended);
    }
}

impl UpstreamHealth {
    /// Records the result of a request. Returns the cause of an outage that begins, and the duration of one that ends.
    fn record(
        &mut self,
        code: Code,
        fault: Option<String>,
        began: Instant,
        now: Instant,
    ) -> (Option<String>, Option<Duration>) {
        if code.is_fault() {
            self.failed = Some((SystemTime::now(), code));
        } else if code.is_success() {
            self.answered_at = Some(SystemTime::now());
        }
        match code {
            Code::Status(_) => (None, self.succeeded(now)),
            Code::Fault(error) if error.is_of_transport() => {
                if !self.detector.failed(began, now) {
                    return (None, None);
                }
                let cause = fault.unwrap_or_else(|| error.words().to_owned());
                let age = self
                    .detector
                    .since()
                    .map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
                self.outage = Some(UpstreamOutage { since: SystemTime::now() - age, cause: cause.clone() });
                (Some(cause), None)
            }
            Code::Fault(_) | Code::Cancelled => (None, None),
        }
    }

    fn succeeded(&mut self, at: Instant) -> Option<Duration> {
        let ended = self.detector.succeeded(at);
        if ended.is_some() {
            self.outage = None;
        }
        ended
    }
}

impl CallError {
    /// Returns whether the way to the upstream failed.
    fn is_of_transport(self) -> bool {
        match self {
            Self::Connect | Self::ConnectTimeout | Self::Tls | Self::Reset | Self::Timeout => true,
            Self::LocalResources | Self::Invalid => false,
        }
    }

    /// Returns the error in words, where the connection reported no cause.
    fn words(self) -> &'static str {
        match self {
            Self::Connect => "no connection",
            Self::ConnectTimeout => "no connection in time",
            Self::Tls => "the TLS handshake failed",
            Self::LocalResources => "no descriptor or memory in the gateway",
            Self::Reset => "the connection broke",
            Self::Timeout => "no response in time",
            Self::Invalid => "the response is malformed",
        }
    }
}

fn log_end(ended: Option<Duration>) {
    if let Some(lasted) = ended {
        info!(clipgate.outage.duration = lasted.as_secs_f64(), "upstream can be reached again");
    }
}

/// Returns the last error of the chain without the number that the system appends, shortened.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut root = error;
    while let Some(cause) = root.source() {
        root = cause;
    }
    let text = root.to_string();
    let words = text.split_once(" (os error").map_or(text.as_str(), |(words, _)| words);
    words[..words.floor_char_boundary(MAX_CAUSE)].to_owned()
}

/// Longest cause, in bytes.
const MAX_CAUSE: usize = 200;
