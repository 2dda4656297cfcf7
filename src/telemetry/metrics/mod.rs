//! What is counted, for Prometheus and for the operator's own look.
//!
//! It knows closed sets of words and numbers, and nothing of requests, keys or jobs. Who counts holds an
//! `Arc<Metrics>`; the [`Registry`] belongs to who serves it. What is counted with each request has its place found
//! at start: no search, no allocation.
//!
//! ```text
//!   access, hub, upstream, passthrough ── words and times ──▶ Metrics ──▶ Registry ──▶ /metrics
//!                                                                └── reads ──▶ /api/state
//! ```

mod connections;
mod each;
mod labels;
mod limited;
mod process;
mod requests;
mod totals;
mod upstream;
mod waits;

use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

pub(crate) use self::connections::Connections;
pub(crate) use self::each::{Each, Label};
pub(crate) use self::labels::{CallError, CallKind, Closed, Code, EndpointLabel, Limit, Outcome, WaitEnd};
pub(crate) use self::limited::RateLimited;
pub(crate) use self::requests::Requests;
pub(crate) use self::totals::Totals;
pub(crate) use self::upstream::{PollCounts, Upstream};
pub(crate) use self::waits::{Fanout, Waits};

/// Where times of requests and waits are told apart, in seconds. What the API's two minutes end is below 121.
const REQUEST_TIMES: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 90.0, 121.0, 300.0, 600.0,
];

/// All that is counted.
#[derive(Debug)]
pub struct Metrics {
    /// Clients' requests.
    pub requests: Requests,
    /// Those of them that are parked.
    pub waits: Waits,
    /// What the gateway asks itself.
    pub upstream: Upstream,
    /// What is refused over a limit.
    pub limited: RateLimited,
    /// Clients' connections.
    pub connections: Connections,
}

impl Metrics {
    /// All of it at zero, and in the registry, with the process's own figures.
    pub fn new(registry: &mut Registry) -> Arc<Self> {
        registry.register_collector(Box::new(process::ProcessCollector));
        let own = registry.sub_registry_with_prefix("clipgate");
        own.register("build", "What runs", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        Arc::new(Self {
            requests: Requests::new(own),
            waits: Waits::new(own),
            upstream: Upstream::new(own),
            limited: RateLimited::new(own),
            connections: Connections::new(own),
        })
    }
}

/// Puts the log's own count into the registry: the log is there before anything else is counted.
pub(crate) fn register_dropped_log_lines(registry: &mut Registry, lines: &Counter) {
    let help = "Lines of the log that were dropped because nobody read them, or could not be written";
    registry.sub_registry_with_prefix("clipgate").register("log_lines_dropped", help, lines.clone());
}

fn counter(registry: &mut Registry, name: &str, help: &str) -> Counter {
    let counter = Counter::default();
    registry.register(name, help, counter.clone());
    counter
}

fn gauge(registry: &mut Registry, name: &str, help: &str) -> Gauge {
    let gauge = Gauge::default();
    registry.register(name, help, gauge.clone());
    gauge
}

fn times(registry: &mut Registry, name: &str, help: &str, bounds: &[f64]) -> Histogram {
    let histogram = Histogram::new(bounds.iter().copied());
    registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
    histogram
}

/// The same for each word of the label.
fn times_by<W: Label>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    label: &'static str,
    bounds: &'static [f64],
) -> Each<W, Histogram> {
    let family = Family::new_with_constructor(|| Histogram::new(bounds.iter().copied()));
    let each = Each::new(|word: W| family.get_or_create_owned(&[(label, word.as_str())]));
    registry.register_with_unit(name, help, Unit::Seconds, family);
    each
}

#[cfg(test)]
mod tests;
