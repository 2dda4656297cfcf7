//! Clients' requests: how many, how they were dealt with, how long that took.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::each::{Each, Label as _};
use super::labels::{EndpointLabel, Outcome};
use super::{REQUEST_TIMES, counter, times_by};

/// Of all requests.
#[derive(Debug)]
pub struct Requests {
    counts: Each<EndpointLabel, Each<Outcome, Counter>>,
    times: Each<Outcome, Histogram>,
    saved: Counter,
}

impl Requests {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let counts = Family::<[(&str, &str); 2], Counter>::default();
        registry.register("requests", "Clients' requests", counts.clone());
        let count = |endpoint: EndpointLabel, outcome: Outcome| {
            counts.get_or_create_owned(&[("route", endpoint.as_str()), ("outcome", outcome.as_str())])
        };
        let saved = "Answers to waits that needed no request to the upstream of their own";
        Self {
            counts: Each::new(|endpoint| Each::new(|outcome| count(endpoint, outcome))),
            times: times_by(
                registry,
                "request",
                "From a request's arrival to its answer's head",
                "outcome",
                REQUEST_TIMES,
            ),
            saved: counter(registry, "upstream_calls_saved", saved),
        }
    }

    /// One has ended so, after so long.
    pub fn finish(&self, endpoint: EndpointLabel, outcome: Outcome, took: Duration) {
        self.counts.of(endpoint).of(outcome).inc();
        self.times.of(outcome).observe(took.as_secs_f64());
        if matches!(outcome, Outcome::Hit | Outcome::Leaned) {
            self.saved.inc();
        }
    }

    /// How many have ended so.
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.counts.iter().map(|(_, counts)| counts.of(outcome).get()).sum()
    }

    /// How many were answered without a request of their own.
    pub fn saved(&self) -> u64 {
        self.saved.get()
    }
}
