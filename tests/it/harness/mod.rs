//! Shared code of the integration tests: gateways, upstreams and clients.

pub(crate) mod admin_client;
pub(crate) mod browser;
pub(crate) mod command;
pub(crate) mod event_client;
pub(crate) mod gateway;
pub(crate) mod process;
pub(crate) mod raw_http;
pub(crate) mod raw_upstream;
pub(crate) mod scripted_upstream;
