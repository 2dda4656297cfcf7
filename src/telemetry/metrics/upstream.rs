//! Requests to the upstream: what came of them, how long they took, and how it stands with the upstream.

use std::time::{Instant, SystemTime};

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::each::{Each, Label as _};
use super::labels::{CallKind, Code};
use super::{counter, gauge, times_by};
use crate::clock;

/// Where times of requests to the upstream are told apart, in seconds.
const CALL_TIMES: &[f64] =
    &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 90.0, 121.0, 300.0];

/// Of all requests to the upstream.
#[derive(Debug)]
pub struct Upstream {
    calls: Family<CallLabels, Counter>,
    times: Each<CallKind, Histogram>,
    /// The same as `calls`, which cannot be added up.
    counts: Each<CallKind, Counter>,
    faults: Counter,
    retries: Counter,
    polls: Gauge,
    polls_waiting: Gauge,
    breaker_open: Gauge,
    health: Mutex<Health>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    kind: &'static str,
    code: Code,
}

/// How the upstream has done lately.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// When it last answered anything but a 5xx.
    pub answered_at: Option<SystemTime>,
    /// When and how it last failed.
    pub failed: Option<(SystemTime, Code)>,
}

/// How the polls stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PollCounts {
    /// Those open at the upstream.
    pub open: usize,
    /// Those that wait for their turn, or for another try.
    pub waiting: usize,
    /// Whether the breaker holds retries back.
    pub is_breaker_open: bool,
}

impl Upstream {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let calls = Family::<CallLabels, Counter>::default();
        registry.register("upstream_requests", "Requests to the upstream that have ended", calls.clone());
        for kind in CallKind::ALL {
            calls.get_or_create_owned(&CallLabels { kind: kind.as_str(), code: Code::Status(200) });
        }
        let times_help = "Requests to the upstream, to the end of a poll's answer or the head of another's";
        let waiting_help = "Polls that wait for their turn at the upstream, or for another try";
        let breaker_help = "1 while retries are held back because the upstream cannot be reached, else 0";
        Self {
            calls,
            times: times_by(registry, "upstream", times_help, "kind", CALL_TIMES),
            counts: Each::new(|_| Counter::default()),
            faults: Counter::default(),
            retries: counter(registry, "upstream_retries", "Tries of polls after one that failed"),
            polls: gauge(registry, "upstream_polls", "Polls open at the upstream"),
            polls_waiting: gauge(registry, "upstream_polls_waiting", waiting_help),
            breaker_open: gauge(registry, "breaker_open", breaker_help),
            health: Mutex::default(),
        }
    }

    /// A request is on its way from now on.
    pub fn call(&self, kind: CallKind) -> CallTimer<'_> {
        CallTimer { upstream: self, kind, began: clock::now(), code: Code::Cancelled }
    }

    /// A poll is tried once more.
    pub fn retried(&self) {
        self.retries.inc();
    }

    /// The polls stand so from now on.
    pub fn set_poll_counts(&self, standing: PollCounts) {
        let number = |count| i64::try_from(count).unwrap_or(i64::MAX);
        self.polls.set(number(standing.open));
        self.polls_waiting.set(number(standing.waiting));
        self.breaker_open.set(i64::from(standing.is_breaker_open));
    }

    /// How the polls stand, as last told.
    pub fn standing(&self) -> PollCounts {
        let count = |gauge: &Gauge| usize::try_from(gauge.get()).unwrap_or_default();
        PollCounts {
            open: count(&self.polls),
            waiting: count(&self.polls_waiting),
            is_breaker_open: self.breaker_open.get() != 0,
        }
    }

    /// How many requests of this kind have ended.
    pub fn count(&self, kind: CallKind) -> u64 {
        self.counts.of(kind).get()
    }

    /// How many requests failed at the upstream.
    pub fn faults(&self) -> u64 {
        self.faults.get()
    }

    /// How many tries were made after one that failed.
    pub fn retries(&self) -> u64 {
        self.retries.get()
    }

    /// How it has done lately.
    pub fn health(&self) -> Health {
        self.health.lock().clone()
    }
}

/// One request to the upstream. Dropping it counts it; as cancelled, if nothing else was said.
#[derive(Debug)]
pub struct CallTimer<'m> {
    upstream: &'m Upstream,
    kind: CallKind,
    began: Instant,
    code: Code,
}

impl CallTimer<'_> {
    /// It came to this.
    pub fn finish(mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for CallTimer<'_> {
    fn drop(&mut self) {
        let Self { upstream, kind, began, code } = *self;
        upstream.calls.get_or_create_owned(&CallLabels { kind: kind.as_str(), code }).inc();
        upstream.counts.of(kind).inc();
        upstream.times.of(kind).observe(clock::now().saturating_duration_since(began).as_secs_f64());
        if code.is_fault() {
            upstream.faults.inc();
            upstream.health.lock().failed = Some((SystemTime::now(), code));
        } else if code.is_answer() {
            upstream.health.lock().answered_at = Some(SystemTime::now());
        }
    }
}
