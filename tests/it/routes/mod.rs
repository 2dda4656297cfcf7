//! Configured routes, mostly of upstreams that never hold a request.

mod actions;
mod chains;
mod classification;
mod config_file;
mod default_wait;
mod event_streams;
mod header_links;
mod job_upstream;
mod states;
mod vendor_loops;
mod vendors;
