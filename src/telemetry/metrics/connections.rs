//! Clients' connections that the gateway closes for want of places.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::each::{Each, Label as _};
use super::labels::Closed;

/// Of all connections.
#[derive(Debug)]
pub struct Connections {
    closed: Each<Closed, Counter>,
}

impl Connections {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let counts = Family::<[(&str, &str); 1], Counter>::default();
        registry.register(
            "connections_closed",
            "Clients' connections closed for want of places",
            counts.clone(),
        );
        Self { closed: Each::new(|why: Closed| counts.get_or_create_owned(&[("reason", why.as_str())])) }
    }

    /// One was closed.
    pub fn closed(&self, why: Closed) {
        self.closed.of(why).inc();
    }
}
