//! Layer 0: what clipgate knows and decides. No IO, no clock, no HTTP library; time is an argument.

pub mod answer;
pub mod backoff;
pub mod breaker;
pub mod clip;
pub mod coalesce;
pub mod query;
pub mod route;
pub mod turns;
