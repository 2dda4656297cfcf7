//! HTTP as this gateway reads and writes it: header fields, bodies, CORS, server-sent events. No IO.

pub(crate) mod allowed_host;
pub(crate) mod body;
mod claims;
pub(crate) mod cors;
mod forwarded;
pub(crate) mod headers;
pub(crate) mod request;
pub(crate) mod sse;
