//! Clients: their requests, connections, keys and limits.

pub(crate) mod allowed_hosts;
pub(crate) mod client_disconnects;
pub(crate) mod connection_limits;
pub(crate) mod cors;
pub(crate) mod empty_bodies;
pub(crate) mod event_clients;
pub(crate) mod event_pages;
pub(crate) mod event_reconnects;
pub(crate) mod event_streams;
pub(crate) mod examples;
pub(crate) mod gateway_errors;
pub(crate) mod hostile_clients_http1;
pub(crate) mod hostile_clients_http2;
pub(crate) mod key_fields;
pub(crate) mod limits;
pub(crate) mod listeners;
pub(crate) mod methods;
pub(crate) mod removed_members;
pub(crate) mod request_heads;
pub(crate) mod sdk_examples;
pub(crate) mod slow_clients;
pub(crate) mod spoofed_headers;
pub(crate) mod team;
pub(crate) mod tls;
pub(crate) mod trusted_proxies;
pub(crate) mod usual_clients;
