//! Removes the header fields that hold for one connection only (RFC 9110 §7.6.1).

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::field_value::tokens;

/// Removes `Connection`, all fields that it lists, and the fields that are hop-by-hop without being listed.
///
/// - `TE` is reduced to `trailers`, if the sender accepts these: the gateway passes them on, and HTTP/2 allows no other
///   value (RFC 9113 §8.2.2).
/// - `Trailer` stays unless listed. It is end-to-end (RFC 9110 §6.6.2), and hyper sends only the HTTP/1 trailers that
///   it announces.
///
/// Strip before adding fields: a sender may list any name, also that of a field which the gateway adds.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let mut removed: Vec<HeaderName> =
        headers.keys().filter(|name| is_hop_by_hop(name.as_str())).cloned().collect();
    // Most messages have none. A look-up of each name costs twenty times as much as this pass.
    if removed.is_empty() {
        return;
    }
    let accepts_trailers = tokens(headers, &header::TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    removed.extend(tokens(headers, &header::CONNECTION).filter_map(|token| token.parse::<HeaderName>().ok()));
    for name in removed {
        headers.remove(name);
    }
    if accepts_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Defines the list of the names, in lower case, and the check of a name. A search in the list costs six times as much.
macro_rules! hop_by_hop {
    ($($name:literal)*) => {
        pub(super) const HOP_BY_HOP: [&str; [$($name),*].len()] = [$($name),*];

        pub(super) fn is_hop_by_hop(name: &str) -> bool {
            matches!(name, $($name)|*)
        }
    };
}

hop_by_hop! {
    "connection"
    "keep-alive"
    "proxy-connection"
    "proxy-authenticate"
    "proxy-authorization"
    "te"
    "transfer-encoding"
    "upgrade"
    "http2-settings"
}

#[cfg(test)]
mod tests {
    use http::Version;

    use super::*;
    use crate::protocol::header_map as map;
    use crate::protocol::via::append_via;

    #[test]
    fn hop_by_hop_fields_and_those_that_connection_lists_are_removed() {
        let mut headers = map(&[
            ("connection", "close, X-Hop , ,upgrade"),
            ("connection", "x-other"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authenticate", "Basic"),
            ("proxy-authorization", "Basic x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("http2-settings", "AAMAAABk"),
            ("x-hop", "1"),
            ("x-other", "1"),
            ("trailer", "x-sum"),
            ("x-end", "1"),
        ]);
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers, map(&[("trailer", "x-sum"), ("x-end", "1")]));
    }

    #[test]
    fn the_names_of_the_list_and_no_others_are_hop_by_hop() {
        assert!(HOP_BY_HOP.into_iter().all(is_hop_by_hop));
        let long = "x".repeat(64 + "upgrade".len());
        let others = ["host", "trailer", "content-length", "keep-alives", "x-upgrade", "", &long];
        assert!(!others.into_iter().any(is_hop_by_hop));
    }

    #[test]
    fn a_message_with_one_hop_by_hop_field_loses_it() {
        for name in HOP_BY_HOP {
            let mut headers = map(&[("x-end", "1")]);
            headers.insert(name, HeaderValue::from_static("x"));
            strip_hop_by_hop(&mut headers);
            assert_eq!(headers, map(&[("x-end", "1")]), "{name}");
        }
    }

    #[test]
    fn te_is_reduced_to_trailers() {
        for (sent, kept) in
            [("trailers", true), ("gzip;q=0.5, Trailers", true), ("gzip", false), ("trailers-not", false)]
        {
            let mut headers = map(&[("te", sent), ("connection", "te")]);
            strip_hop_by_hop(&mut headers);
            assert_eq!(
                headers.get("te").map(HeaderValue::as_bytes),
                kept.then_some(&b"trailers"[..]),
                "{sent}"
            );
        }
    }

    #[test]
    fn a_connection_field_cannot_remove_fields_that_are_added_after_it() {
        let mut headers = map(&[
            (
                "connection",
                "authorization, host, content-length, x-forwarded-for, forwarded, via, x-request-id",
            ),
            ("authorization", "Bearer client"),
        ]);
        strip_hop_by_hop(&mut headers);
        headers.insert("authorization", HeaderValue::from_static("Bearer gateway"));
        headers.insert("x-forwarded-for", HeaderValue::from_static("192.0.2.1"));
        headers.insert(header::FORWARDED, HeaderValue::from_static("for=192.0.2.1"));
        append_via(&mut headers, Version::HTTP_11);
        strip_hop_by_hop(&mut headers);
        for name in ["authorization", "x-forwarded-for", "forwarded", "via"] {
            assert!(headers.contains_key(name), "{name}");
        }
    }
}
