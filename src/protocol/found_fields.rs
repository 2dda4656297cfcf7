//! The kinds of fields that a client's request has, of those that the gateway checks, or changes before it passes the
//! request on.

use http::header::HeaderMap;

use super::hop_by_hop::is_hop_by_hop;
use super::spoofed_headers::is_stripped;

/// Found in one pass over the names. Most requests have few of these fields, and a look-up for each kind would cost more
/// than all the rest of the head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FoundFields {
    pub(crate) has_hop_by_hop: bool,
    pub(crate) has_transfer_encoding: bool,
    pub(crate) has_via: bool,
    pub(crate) has_range: bool,
    pub(crate) has_content_length: bool,
    pub(crate) has_cookie: bool,
    pub(crate) has_request_id: bool,
    /// `traceparent` or `tracestate`.
    pub(crate) has_trace_context: bool,
    /// Fields that [`strip_spoofable`](super::spoofed_headers::strip_spoofable) removes.
    pub(crate) has_spoofable: bool,
}

impl FoundFields {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        for name in headers.keys() {
            match name.as_str() {
                "host" | "authorization" | "accept" | "user-agent" => {}
                "content-length" => found.has_content_length = true,
                "cookie" => found.has_cookie = true,
                "x-request-id" => found.has_request_id = true,
                "traceparent" | "tracestate" => found.has_trace_context = true,
                "via" => found.has_via = true,
                "range" => found.has_range = true,
                name if is_hop_by_hop(name) => {
                    found.has_hop_by_hop = true;
                    found.has_transfer_encoding |= name == "transfer-encoding";
                }
                name => found.has_spoofable |= is_stripped(name),
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::header_map as map;
    use crate::protocol::hop_by_hop::strip_hop_by_hop;
    use crate::protocol::spoofed_headers::strip_spoofable;

    #[test]
    fn each_kind_is_found_beside_others() {
        let none = FoundFields::default();
        let rows = [
            ("accept", none),
            ("x-custom", none),
            ("te", FoundFields { has_hop_by_hop: true, ..none }),
            ("transfer-encoding", FoundFields { has_hop_by_hop: true, has_transfer_encoding: true, ..none }),
            ("via", FoundFields { has_via: true, ..none }),
            ("range", FoundFields { has_range: true, ..none }),
            ("content-length", FoundFields { has_content_length: true, ..none }),
            ("cookie", FoundFields { has_cookie: true, ..none }),
            ("x-request-id", FoundFields { has_request_id: true, ..none }),
            ("traceparent", FoundFields { has_trace_context: true, ..none }),
            ("tracestate", FoundFields { has_trace_context: true, ..none }),
            ("x-forwarded-for", FoundFields { has_spoofable: true, ..none }),
            ("x_request_id", FoundFields { has_spoofable: true, ..none }),
        ];
        for (name, found) in rows {
            let fields = [("host", "a"), ("user-agent", "b"), (name, "c"), ("accept", "d")];
            assert_eq!(FoundFields::of(&map(&fields)), found, "{name}");
        }
    }

    #[test]
    fn a_head_without_found_fields_is_left_as_it_is() {
        let alphabet =
            ["x", "-", "_", ".", "host", "te", "forwarded", "via", "real-ip", "accept", "proxy", "for"];
        for seed in 0..20_000 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let name: String = (0..rng.usize(1..5)).map(|_| alphabet[rng.usize(..alphabet.len())]).collect();
            let headers =
                HeaderMap::from_iter([(name.parse().unwrap(), http::HeaderValue::from_static("a"))]);
            let found = FoundFields::of(&headers);
            let (mut without_hops, mut without_spoofed) = (headers.clone(), headers.clone());
            strip_hop_by_hop(&mut without_hops);
            strip_spoofable(&mut without_spoofed);
            assert_eq!(found.has_hop_by_hop, without_hops.is_empty(), "{name}");
            assert_eq!(found.has_spoofable, without_spoofed.is_empty(), "{name}");
        }
    }
}
