//! What stands somewhere already and is read only when Prometheus asks.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::gauge::ConstGauge;

use super::state::ConfiguredLimits;
use crate::gateway::Gateway;

/// The gateway's own figures.
pub(super) struct GatewayCollector {
    pub(super) gateway: Gateway,
    pub(super) caps: ConfiguredLimits,
}

impl fmt::Debug for GatewayCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Figures").finish_non_exhaustive()
    }
}

impl Collector for GatewayCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (kept, caps) = (self.gateway.cache().size(), self.caps);
        let figures = [
            ("clipgate_waits", "Waits that are parked", self.gateway.waits() as u64),
            ("clipgate_max_waits", "limits.max_waits", caps.waits),
            (
                "clipgate_passthrough_requests",
                "Requests that are passed through, tunnels included",
                self.gateway.passed_through() as u64,
            ),
            ("clipgate_max_passthrough_requests", "limits.max_passthrough", caps.passthrough),
            ("clipgate_max_upstream_polls", "upstream.max_polls", caps.polls),
            ("clipgate_cache_entries", "Clips that are kept", kept.entries),
            ("clipgate_cache_bytes", "What they weigh", kept.bytes),
            ("clipgate_cache_max_bytes", "cache.max_bytes", caps.cache_bytes),
        ];
        for (name, help, value) in figures {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}
