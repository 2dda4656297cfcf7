//! Configured routes, mostly of upstreams that never hold a request.

mod actions;
mod classification;
mod default_wait;
mod event_streams;
mod header_links;
mod job_upstream;
mod states;
mod vendors;
