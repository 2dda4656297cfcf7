//! Metrics whose values the gateway and the configuration hold, read at each scrape.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::gauge::ConstGauge;

use super::state::ConfiguredLimits;
use crate::gateway::Gateway;

pub(super) struct GatewayCollector {
    pub(super) gateway: Gateway,
    pub(super) limits: ConfiguredLimits,
}

impl fmt::Debug for GatewayCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatewayCollector").finish_non_exhaustive()
    }
}

impl Collector for GatewayCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (cache, limits) = (self.gateway.cache().size(), self.limits);
        let gauges = [
            ("clipgate_waits", "Parked waits", self.gateway.waits() as u64),
            ("clipgate_max_waits", "limits.max_waits", limits.waits),
            (
                "clipgate_passthrough_requests",
                "Passed-through requests in progress, tunnels included",
                self.gateway.passed_through() as u64,
            ),
            ("clipgate_max_passthrough_requests", "limits.max_passthrough", limits.passthrough),
            ("clipgate_max_upstream_polls", "upstream.max_polls", limits.polls),
            ("clipgate_cache_entries", "Cached jobs", cache.entries),
            ("clipgate_cache_bytes", "Memory used by cached jobs", cache.bytes),
            ("clipgate_cache_max_bytes", "cache.max_bytes", limits.cache_bytes),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}
