//! clipgate: a caching reverse proxy in front of a long-poll job API.

pub mod body;
pub mod clock;
pub mod config;
pub mod model;
pub mod secret;
