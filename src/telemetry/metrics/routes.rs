//! Label `route`: the endpoints of the built-in route, or the names of the configured routes.

use std::sync::OnceLock;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::labels::EndpointLabel;
use super::register;
use crate::core::route::{Route, RouteIndex};

/// Label `route` of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RouteLabel {
    /// A path of the built-in route, or any path without a route.
    Endpoint(EndpointLabel),
    Configured(RouteIndex),
}

impl From<EndpointLabel> for RouteLabel {
    fn from(endpoint: EndpointLabel) -> Self {
        Self::Endpoint(endpoint)
    }
}

/// States that the ladder of their route does not have.
#[derive(Debug)]
pub(crate) struct UnknownStateMetrics {
    counts: Family<[(&'static str, String); 1], Counter>,
    by_route: OnceLock<Vec<Counter>>,
}

impl UnknownStateMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let counts = Family::default();
        let help = "States of jobs that their route does not know";
        register(registry, "clipgate_unknown_states_total", help, counts.clone());
        Self { counts, by_route: OnceLock::new() }
    }

    pub(super) fn set_routes<'r>(&self, routes: impl Iterator<Item = &'r Route>) {
        let counter = |route: &Route| self.counts.get_or_create_owned(&[("route", route.name.clone())]);
        self.by_route.get_or_init(|| routes.map(counter).collect());
    }

    pub(crate) fn record(&self, RouteIndex(index): RouteIndex) {
        if let Some(counter) = self.by_route.get().and_then(|counters| counters.get(usize::from(index))) {
            counter.inc();
        }
    }
}
