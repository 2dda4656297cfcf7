//! clipgate: a caching reverse proxy in front of a long-poll job API.

pub mod access;
pub mod auth;
pub mod body;
pub mod cache;
pub mod cli;
pub mod clock;
pub mod cmd;
pub mod config;
pub mod error;
pub mod gateway;
pub mod headers;
pub mod hub;
pub mod limits;
pub mod model;
pub mod passthrough;
pub mod reply;
pub mod request;
pub mod secret;
pub mod server;
pub mod sim;
pub mod telemetry;
pub mod upstream;
