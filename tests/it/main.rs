//! The integration tests: real sockets, port 0, the simulated upstream beside them.

#![allow(clippy::unwrap_used, reason = "what cannot be unwrapped fails its test")]

mod browser;
mod events;
mod host;
mod operator;
mod process;
mod rogue;
mod stage;
mod wire;

mod access_log;
mod admin;
mod admin_process;
mod answers;
mod architecture;
mod cache;
mod check;
mod check_live;
mod clients;
mod command_line;
mod cors;
mod dashboard;
mod dashboard_files;
mod deadlines;
mod deploy;
mod drain;
mod event_clients;
mod event_pages;
mod floods;
mod hangups;
mod health;
mod hostile;
mod http2;
mod in_front;
mod keys;
mod leaning;
mod limits;
mod listeners;
mod metrics;
mod mishaps;
mod multi;
mod own_fields;
mod passthrough;
mod patience;
mod proxies;
mod sharing;
mod signals;
mod soak;
mod streams;
mod team;
mod tls;
mod traces;
mod treason;
mod turns;
mod watch;
