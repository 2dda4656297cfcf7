//! The integration tests: real sockets on port 0, with the simulated upstream beside them.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails its test")]

mod admin;
mod architecture;
mod cache;
mod cli;
mod clients;
mod cluster;
mod coalescing;
mod deploy;
mod harness;
mod language;
mod routes;
mod upstream;
