//! The pure core: parsing, coalescing and scheduling. No IO, no clock, no HTTP library; time is an argument.
//!
//! ```text
//!   target ──▶ query ──▶ coalescer ──▶ siblings ──▶ scheduler ──▶ attempts, which the hub makes
//!                            ▲            │             │
//!   bodies ──▶ job_body ─────┘            │             └── breaker, backoff
//!                                         └── calls of the engine, where gateways share polls
//! ```
//!
//! The [`coalescer`] decides which wait uses which poll, [`siblings`] which gateway makes a poll, and the [`scheduler`]
//! when a poll is attempted. Each is a state machine: inputs go in with `now`, outputs come out. A [`route`] describes one
//! upstream API as data, and [`job`] has the values that all modules share.

#![warn(missing_docs)]

pub mod backoff;
pub mod breaker;
pub mod coalescer;
pub mod job;
pub mod job_body;
pub mod outage;
pub mod query;
pub mod route;
pub mod scheduler;
pub mod siblings;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod sweep;

/// A hash map with a random seed, so that clients cannot choose ids that collide. foldhash is faster than the standard
/// library's hash.
pub type Map<K, V> = std::collections::HashMap<K, V, foldhash::quality::RandomState>;
