//! Metrics for Prometheus, for `/api/state` and for the dashboard.
//!
//! Callers share an `Arc<Metrics>`; the admin service owns the [`Registry`]. Labels are closed sets of words, so this
//! module needs no request, key or job. The counters of a request are resolved at the start: counting one is an array
//! access and an atomic add in memory of this thread (`sharded`), without a lookup or an allocation.
//!
//! ```text
//!   access log, hub, upstream, passthrough ── labels, times ──▶ Metrics ──▶ Registry ──▶ /metrics
//!                                                                 └── totals ──▶ /api/state, /api/history
//! ```
//!
//! To add a metric: register it under its full name with [`register`], and describe it in `docs/observability.md`.

mod cluster;
mod fanout;
mod labels;
mod members;
mod process;
mod rejections;
mod routes;
mod sharded;
mod upstream;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use enum_map::{Enum, EnumMap};
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry, Unit};
use serde::{Serialize, Serializer};
use strum::VariantArray as _;

use self::cluster::ClusterMetrics;
pub(crate) use self::cluster::{ClaimOutcome, LinkLabel, MessageLabel, TakeoverReason};
use self::fanout::FanoutMetrics;
pub(crate) use self::fanout::{Fanout, FanoutQuantiles};
pub(crate) use self::labels::{
    CallCause, CallError, CallKind, CloseReason, Code, EndpointLabel, Limit, Outcome, WaitEnd,
};
use self::members::MemberMetrics;
pub(crate) use self::members::{MemberUsage, MemberWait};
use self::rejections::RejectionMetrics;
pub(crate) use self::routes::RouteLabel;
use self::routes::UnknownStateMetrics;
use self::sharded::{ShardedCounter, ShardedHistogram};
pub(crate) use self::upstream::PollCounts;
use self::upstream::UpstreamMetrics;
use crate::clock;
use crate::core::route::{Route, RouteIndex, Routes};

/// Buckets of requests and waits, in seconds. The bucket of 121 has the waits that the API's hold of two minutes ends.
const REQUEST_BUCKETS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 90.0, 121.0, 300.0, 600.0,
];

#[derive(Debug)]
pub struct Metrics {
    pub(crate) requests: RequestMetrics,
    pub(crate) waits: WaitMetrics,
    pub upstream: UpstreamMetrics,
    pub(crate) rate_limited: RateLimitMetrics,
    pub(crate) rejections: RejectionMetrics,
    pub(crate) members: MemberMetrics,
    pub(crate) connections: ConnectionMetrics,
    pub(crate) spans_lost: Counter,
    pub(crate) unknown_states: UnknownStateMetrics,
    pub(crate) cluster: ClusterMetrics,
}

/// Counts since the start of the process.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Totals {
    #[serde(serialize_with = "by_label")]
    requests: EnumMap<Outcome, u64>,
    /// Ended requests to the upstream.
    #[serde(serialize_with = "by_label")]
    calls: EnumMap<CallKind, u64>,
    #[serde(serialize_with = "by_label")]
    calls_by_cause: EnumMap<CallCause, u64>,
    /// Those of them that failed at the upstream.
    errors: u64,
    retries: u64,
    saved: u64,
    #[serde(serialize_with = "by_label")]
    limited: EnumMap<Limit, u64>,
    /// Requests that the gateway rejected, by reason; without the reasons that did not occur.
    rejections: BTreeMap<&'static str, u64>,
    /// Responses of 500 and above.
    server_errors: u64,
}

impl Totals {
    /// Returns the share of requests since an earlier sample that got a response below 500. `None` without a response.
    /// Disconnected clients and preflights do not count.
    pub(crate) fn success_rate(&self, earlier: Option<&Totals>) -> Option<f64> {
        let answered = self.answered().saturating_sub(earlier.map_or(0, Totals::answered));
        let failed = self.server_errors.saturating_sub(earlier.map_or(0, |earlier| earlier.server_errors));
        (answered > 0).then(|| 1.0 - (failed.min(answered) as f64 / answered as f64))
    }

    pub(crate) fn saved(&self) -> u64 {
        self.saved
    }

    fn answered(&self) -> u64 {
        let is_answer = |outcome| !matches!(outcome, Outcome::ClientClosed | Outcome::Preflight);
        self.requests.iter().filter(|(outcome, _)| is_answer(*outcome)).map(|(_, count)| count).sum()
    }
}

impl Metrics {
    /// Registers all metrics, those of the process included.
    pub fn new(registry: &mut Registry) -> Arc<Self> {
        registry.register_collector(Box::new(process::ProcessCollector));
        let info = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        register(registry, "clipgate_build_info", "Version of the gateway", info);
        let spans_lost = Counter::default();
        let spans_help = "Spans that the collector did not get";
        register(registry, "clipgate_spans_lost_total", spans_help, spans_lost.clone());
        Arc::new(Self {
            spans_lost,
            requests: RequestMetrics::new(registry),
            waits: WaitMetrics::new(registry),
            upstream: UpstreamMetrics::new(registry),
            rate_limited: RateLimitMetrics::new(registry),
            rejections: RejectionMetrics::new(registry),
            members: MemberMetrics::new(registry),
            connections: ConnectionMetrics::new(registry),
            unknown_states: UnknownStateMetrics::new(registry),
            cluster: ClusterMetrics::new(registry),
        })
    }

    /// Names the routes, in their order. Call it once; requests before that count for no route.
    pub(crate) fn set_routes(&self, routes: &Routes) {
        self.unknown_states.set_routes(routes.iter().map(|(_, route)| route));
        self.requests.set_routes(routes);
    }

    /// Replaces the members of the configuration, and removes the counts of those that are gone.
    pub(crate) fn set_members<'n>(&self, names: impl IntoIterator<Item = &'n str> + Clone) {
        self.rate_limited.set_members(names.clone());
        self.members.set(names);
    }

    pub(crate) fn totals(&self) -> Totals {
        Totals {
            requests: EnumMap::from_fn(|outcome| self.requests.count(outcome)),
            calls: EnumMap::from_fn(|kind| self.upstream.count(kind)),
            calls_by_cause: EnumMap::from_fn(|cause| self.upstream.count_of_cause(cause)),
            errors: self.upstream.errors(),
            retries: self.upstream.retries(),
            saved: self.requests.saved(),
            limited: EnumMap::from_fn(|limit| self.rate_limited.count(limit)),
            rejections: self.rejections.counts(),
            server_errors: self.rejections.failed(),
        }
    }
}

/// Registers the count of dropped log lines, which the log itself owns: it starts before the metrics.
pub(crate) fn register_dropped_log_lines(registry: &mut Registry, lines: &Counter) {
    let help = "Log lines that were not read in time or could not be written";
    register(registry, "clipgate_log_lines_dropped_total", help, lines.clone());
}

/// Client requests.
#[derive(Debug)]
pub(crate) struct RequestMetrics {
    family: Family<[(&'static str, String); 2], ShardedCounter>,
    counts: EnumMap<EndpointLabel, EnumMap<Outcome, ShardedCounter>>,
    /// Set if the routes are configured ones.
    configured: OnceLock<Vec<RouteRequests>>,
    times: EnumMap<Outcome, ShardedHistogram>,
    saved: ShardedCounter,
}

#[derive(Debug)]
struct RouteRequests {
    name: String,
    counts: EnumMap<Outcome, ShardedCounter>,
}

impl RequestMetrics {
    fn new(registry: &mut Registry) -> Self {
        let family = Family::default();
        register(registry, "clipgate_requests_total", "Client requests", family.clone());
        let saved = ShardedCounter::default();
        let saved_help = "Responses without an upstream request of their own";
        register(registry, "clipgate_upstream_calls_saved_total", saved_help, saved.clone());
        let times_help = "Time from the arrival of a request to the head of its response";
        let count = |endpoint: EndpointLabel, outcome: Outcome| {
            family.get_or_create_owned(&request_labels(endpoint.into_str(), outcome))
        };
        Self {
            configured: OnceLock::new(),
            counts: EnumMap::from_fn(|endpoint| EnumMap::from_fn(|outcome| count(endpoint, outcome))),
            times: histograms(registry, "clipgate_request_seconds", times_help, "outcome", REQUEST_BUCKETS),
            saved,
            family: family.clone(),
        }
    }

    /// Replaces the endpoints of the built-in route by the names of configured routes.
    fn set_routes(&self, routes: &Routes) {
        if routes.iter().any(|(_, route)| route.is_built_in) {
            return;
        }
        for (endpoint, outcome) in
            [EndpointLabel::Job, EndpointLabel::Jobs].into_iter().flat_map(all_outcomes)
        {
            self.family.remove(&request_labels(endpoint.into_str(), outcome));
        }
        let configured = |route: &Route| RouteRequests {
            name: route.name.clone(),
            counts: EnumMap::from_fn(|outcome| {
                self.family.get_or_create_owned(&request_labels(&route.name, outcome))
            }),
        };
        self.configured.get_or_init(|| routes.iter().map(|(_, route)| configured(route)).collect());
    }

    /// Returns the label for the log; `None` on the built-in route.
    pub(crate) fn route_name(&self, label: RouteLabel) -> Option<&str> {
        let configured = self.configured.get()?;
        match label {
            RouteLabel::Endpoint(_) => Some(EndpointLabel::Other.into_str()),
            RouteLabel::Configured(index) => {
                configured.get(usize::from(index.0)).map(|route| route.name.as_str())
            }
        }
    }

    /// Records an ended request.
    pub(crate) fn finish(&self, route: impl Into<RouteLabel>, outcome: Outcome, took: Duration) {
        match route.into() {
            RouteLabel::Endpoint(endpoint) => _ = self.counts[endpoint][outcome].inc(),
            RouteLabel::Configured(RouteIndex(index)) => {
                let routes = self.configured.get();
                if let Some(route) = routes.and_then(|routes| routes.get(usize::from(index))) {
                    route.counts[outcome].inc();
                }
            }
        }
        self.times[outcome].observe(took);
        if outcome.is_saved() {
            self.saved.inc();
        }
    }

    fn count(&self, outcome: Outcome) -> u64 {
        let configured = self.configured.get().into_iter().flatten().map(|route| &route.counts);
        self.counts.values().chain(configured).map(|outcomes| outcomes[outcome].get()).sum()
    }

    fn saved(&self) -> u64 {
        self.saved.get()
    }
}

fn request_labels(route: &str, outcome: Outcome) -> [(&'static str, String); 2] {
    [("route", route.to_owned()), ("outcome", outcome.into_str().to_owned())]
}

fn all_outcomes(endpoint: EndpointLabel) -> impl Iterator<Item = (EndpointLabel, Outcome)> {
    EnumMap::<Outcome, ()>::default().into_iter().map(move |(outcome, ())| (endpoint, outcome))
}

/// Parked waits.
#[derive(Debug)]
pub(crate) struct WaitMetrics {
    times: EnumMap<WaitEnd, ShardedHistogram>,
    fanout: FanoutMetrics,
}

impl WaitMetrics {
    fn new(registry: &mut Registry) -> Self {
        Self {
            times: histograms(
                registry,
                "clipgate_wait_seconds",
                "Time for which waits were parked",
                "end",
                REQUEST_BUCKETS,
            ),
            fanout: FanoutMetrics::new(registry),
        }
    }

    /// Records an ended wait.
    pub(crate) fn finish(&self, end: WaitEnd, took: Duration) {
        self.times[end].observe(took);
    }

    /// Starts to measure the fan-out of a response of the upstream.
    pub(crate) fn fanout(&self, answered_at: Instant) -> Fanout {
        self.fanout.start(answered_at)
    }

    pub(crate) fn fanout_quantiles(&self) -> FanoutQuantiles {
        self.fanout.quantiles(clock::now())
    }
}

/// Requests that were rejected over a limit, by limit and member.
#[derive(Debug)]
pub(crate) struct RateLimitMetrics {
    counts: Family<RateLimitLabels, Counter>,
    totals: EnumMap<Limit, Counter>,
    /// Names in the configuration: only these become label values.
    members: Mutex<Vec<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RateLimitLabels {
    quota: &'static str,
    /// Empty outside of team mode.
    member: String,
}

impl RateLimitMetrics {
    fn new(registry: &mut Registry) -> Self {
        let counts = Family::default();
        register(registry, "clipgate_rate_limited_total", "Requests rejected over a limit", counts.clone());
        let metrics = Self { counts, totals: EnumMap::default(), members: Mutex::default() };
        metrics.create_all("");
        metrics
    }

    /// Records a rejected request.
    pub(crate) fn record(&self, limit: Limit, member: Option<&str>) {
        self.totals[limit].inc();
        // Counts under the lock: a member that a reload removes meanwhile must not get its label back.
        let members = self.members.lock();
        let member = member.filter(|name| members.iter().any(|known| known == name)).unwrap_or_default();
        self.counts.get_or_create_owned(&RateLimitLabels::new(limit, member)).inc();
    }

    /// Replaces the members of the configuration, and removes the counts of those that are gone.
    fn set_members<'n>(&self, names: impl IntoIterator<Item = &'n str>) {
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        let mut members = self.members.lock();
        for gone in members.iter().filter(|name| !names.contains(name)) {
            for limit in Limit::VARIANTS {
                self.counts.remove(&RateLimitLabels::new(*limit, gone));
            }
        }
        names.iter().for_each(|name| self.create_all(name));
        *members = names;
    }

    fn count(&self, limit: Limit) -> u64 {
        self.totals[limit].get()
    }

    /// Shows the member's counts from now on, at zero.
    fn create_all(&self, member: &str) {
        for limit in Limit::VARIANTS {
            self.counts.get_or_create_owned(&RateLimitLabels::new(*limit, member));
        }
    }
}

impl RateLimitLabels {
    fn new(limit: Limit, member: &str) -> Self {
        Self { quota: limit.into_str(), member: member.to_owned() }
    }
}

/// Client connections.
#[derive(Debug)]
pub(crate) struct ConnectionMetrics {
    closed: EnumMap<CloseReason, Counter>,
}

impl ConnectionMetrics {
    fn new(registry: &mut Registry) -> Self {
        let counts = Family::<[(&str, &str); 1], Counter>::default();
        let help = "Client connections closed because no slot was free";
        register(registry, "clipgate_connections_closed_total", help, counts.clone());
        let count = |reason: CloseReason| counts.get_or_create_owned(&[("reason", reason.into_str())]);
        Self { closed: EnumMap::from_fn(count) }
    }

    /// Records a connection that the gateway closed.
    pub(crate) fn closed(&self, reason: CloseReason) {
        self.closed[reason].inc();
    }
}

/// Registers a metric under the name that `/metrics` shows. The registry appends `_total` to counters, `_info` to
/// infos and the unit to histograms by itself.
fn register(registry: &mut Registry, name: &'static str, help: &str, metric: impl Metric) {
    if let Some(base) = name.strip_suffix("_seconds") {
        registry.register_with_unit(base, help, Unit::Seconds, metric);
    } else {
        let base = name.strip_suffix("_total").or_else(|| name.strip_suffix("_info")).unwrap_or(name);
        registry.register(base, help, metric);
    }
}

/// Registers a histogram for each value of the label.
fn histograms<L: Enum + Into<&'static str>>(
    registry: &mut Registry,
    name: &'static str,
    help: &str,
    label: &'static str,
    buckets: &'static [f64],
) -> EnumMap<L, ShardedHistogram> {
    let family = Family::new_with_constructor(move || ShardedHistogram::new(buckets));
    let histograms = EnumMap::from_fn(|of: L| family.get_or_create_owned(&[(label, of.into())]));
    register(registry, name, help, family);
    histograms
}

/// Serializes counts as an object with the labels as names.
fn by_label<L, S>(counts: &EnumMap<L, u64>, serializer: S) -> Result<S::Ok, S::Error>
where
    L: Enum + Into<&'static str>,
    S: Serializer,
{
    serializer.collect_map(counts.iter().map(|(label, count)| (label.into(), count)))
}

#[cfg(test)]
mod tests;
