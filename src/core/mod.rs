//! Layer 0: what clipgate knows and decides. No IO, no clock, no HTTP library; time is an argument.

#![warn(missing_docs)]

pub mod backoff;
pub mod breaker;
pub mod coalescer;
pub mod job;
pub mod job_body;
pub mod query;
pub mod route;
pub mod scheduler;
#[cfg(test)]
mod simulation;

/// A map that an outsider cannot fill one place of, since its hash is seeded at random, and faster than the standard one.
pub type Map<K, V> = std::collections::HashMap<K, V, foldhash::quality::RandomState>;
