//! Upstream side: faults, limits, outages and passed-through requests.

pub(crate) mod account_cookies;
pub(crate) mod hostile_upstream;
pub(crate) mod outages;
pub(crate) mod passthrough;
pub(crate) mod passthrough_limits;
pub(crate) mod tunnels;
pub(crate) mod unusual_answers;
pub(crate) mod upstream_faults;
pub(crate) mod upstream_http2;
pub(crate) mod upstream_limits;
