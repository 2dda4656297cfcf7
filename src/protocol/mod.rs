//! HTTP messages: header fields, bodies, CORS, server-sent events. Plain functions and types without IO.
//!
//! ```text
//! request    hop_by_hop ─▶ forwarded (spoofed_headers, client_ip) ─▶ via ─▶ upstream
//! response   upstream ─▶ hop_by_hop ─▶ via ─▶ header_links ─▶ client   passed through
//!            upstream ─▶ stored_headers ─▶ via ─▶ client              of a job, now or from the cache
//! ```

pub(crate) mod added_fields;
pub(crate) mod allowed_host;
pub(crate) mod body;
mod client_ip;
pub(crate) mod cookies;
pub(crate) mod cors;
pub(crate) mod fetch_metadata;
pub(crate) mod field_value;
pub(crate) mod forwarded;
pub(crate) mod found_fields;
pub(crate) mod header_links;
pub(crate) mod hop_by_hop;
pub(crate) mod host;
pub(crate) mod peer;
pub(crate) mod preferences;
pub(crate) mod request;
pub(crate) mod retry_after;
pub(crate) mod spoofed_headers;
pub(crate) mod sse;
pub(crate) mod stored_headers;
pub(crate) mod via;

#[cfg(test)]
pub(crate) fn header_map(fields: &[(&'static str, &'static str)]) -> http::HeaderMap {
    let fields = fields.iter().copied();
    fields
        .map(|(name, value)| (http::HeaderName::from_static(name), http::HeaderValue::from_static(value)))
        .collect()
}
