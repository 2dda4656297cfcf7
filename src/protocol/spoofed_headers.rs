//! Removes fields of clients that the upstream could take for fields of the gateway or of its proxies.
//!
//! Names are compared as CGI and WSGI servers see them. There `X_Forwarded_For` and `X.Forwarded.For` become
//! `HTTP_X_FORWARDED_FOR`, as `X-Forwarded-For` does.

use http::header::{HeaderMap, HeaderName};

use super::hop_by_hop::HOP_BY_HOP;

/// Removes every field with an address of the client, and each other spelling of a field that the gateway writes.
/// Fields with exactly these names stay: the caller replaces them.
pub(crate) fn strip_spoofable(headers: &mut HeaderMap) {
    strip(headers, is_stripped);
}

/// Returns whether [`strip_spoofable`] removes fields with this name.
pub(super) fn is_stripped(name: &str) -> bool {
    // Another spelling has a character that no own name has. Nearly all fields end here.
    let is_other_spelling = || {
        name.bytes().any(|byte| byte != b'-' && !byte.is_ascii_alphanumeric())
            && own_names().any(|own| own != name && is_read_as(name, own))
    };
    is_spoofable(name) || is_other_spelling()
}

/// Removes from the trailers of an upload all fields that a server could merge into the head: addresses of the client,
/// the gateway's own fields, framing, credentials (RFC 9110 §6.5.1), among them the fields with these names.
pub(crate) fn strip_upload_trailers(trailers: &mut HeaderMap, keys: &[&HeaderName]) {
    strip(trailers, |name| {
        is_spoofable(name)
            || own_names().chain(NO_TRAILERS).any(|other| is_read_as(name, other))
            || keys.iter().any(|key| is_read_as(name, key.as_str()))
    });
}

/// Removes the fields with these names, in every spelling.
pub(crate) fn strip_spellings(headers: &mut HeaderMap, names: &[HeaderName]) {
    strip(headers, |name| names.iter().any(|other| is_read_as(name, other.as_str())));
}

/// Returns whether the gateway removes or replaces the field of a client, in any spelling.
pub(crate) fn is_own_or_spoofable(name: &str) -> bool {
    is_spoofable(name) || own_names().any(|own| is_read_as(name, own))
}

fn strip(headers: &mut HeaderMap, is_forbidden: impl Fn(&str) -> bool) {
    let forbidden: Vec<HeaderName> =
        headers.keys().filter(|name| is_forbidden(name.as_str())).cloned().collect();
    for name in forbidden {
        headers.remove(name);
    }
}

fn is_spoofable(name: &str) -> bool {
    let may_be = name.as_bytes().first().is_some_and(|first| SPOOFABLE_INITIALS.contains(first));
    may_be && is_spoofable_name(name)
}

fn is_spoofable_name(name: &str) -> bool {
    SPOOFABLE_HEADERS.iter().any(|spoofable| is_read_as(name, spoofable))
        || name.get(..FORWARDED.len()).is_some_and(|start| is_read_as(start, FORWARDED))
}

fn own_names() -> impl Iterator<Item = &'static str> {
    HOP_BY_HOP.into_iter().chain(OWN)
}

/// Returns whether a server may take `name` for `other`. Both are in lower case.
fn is_read_as(name: &str, other: &str) -> bool {
    let is_same = |(a, b): (u8, u8)| a == b || (b == b'-' && !a.is_ascii_alphanumeric());
    name.len() == other.len() && name.bytes().zip(other.bytes()).all(is_same)
}

/// Fields in which proxies report the client, and `Proxy`, which CGI programs read as `HTTP_PROXY` (httpoxy).
const SPOOFABLE_HEADERS: [&str; 17] = [
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "client-ip",
    "fastly-client-ip",
    "fly-client-ip",
    "forwarded",
    "proxy",
    "true-client-ip",
    "x-azure-clientip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-envoy-external-address",
    "x-forwarded",
    "x-original-forwarded-for",
    "x-original-host",
    "x-proxyuser-ip",
    "x-real-ip",
];
const FORWARDED: &str = "x-forwarded-";
/// First letters of all these names.
const SPOOFABLE_INITIALS: &[u8] = b"cfptx";

/// Fields that the gateway writes or replaces, besides the hop-by-hop ones.
const OWN: [&str; 8] = [
    "authorization",
    "content-length",
    "host",
    "max-forwards",
    "traceparent",
    "tracestate",
    "via",
    "x-request-id",
];

/// Further fields that are not allowed in trailers.
const NO_TRAILERS: [&str; 8] = [
    "cache-control",
    "content-encoding",
    "content-range",
    "content-type",
    "cookie",
    "expect",
    "range",
    "trailer",
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use http::HeaderValue;

    use super::*;

    fn assert_left(headers: &HeaderMap, expected: &[&str]) {
        let left: BTreeSet<_> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, expected.iter().copied().collect());
    }

    fn map(names: &[&str]) -> HeaderMap {
        let field = |name: &&str| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_static("x"));
        names.iter().map(field).collect()
    }

    #[test]
    fn a_spoofable_field_is_removed_in_every_spelling_that_servers_accept() {
        let spoofable = [
            "x-forwarded-for",
            "x_forwarded_for",
            "x-forwarded_for",
            "x.forwarded.for",
            "x_forwarded_anything",
            "x_forwarded",
            "x_real_ip",
            "true_client-ip",
            "forwarded",
            "proxy",
            "client_ip",
        ];
        let others =
            ["x-forwardedfor", "x_custom_field", "xforwarded-for", "proxy-x", "x-forwarde-", "re_al_ip"];
        let mut headers = map(&[&spoofable[..], &others].concat());
        strip_spoofable(&mut headers);
        assert_left(&headers, &others);
    }

    #[test]
    fn the_gateways_own_fields_stay_and_their_other_spellings_are_removed() {
        let own =
            ["x-request-id", "content-length", "transfer-encoding", "max-forwards", "via", "authorization"];
        let other_spellings =
            ["x_request_id", "content_length", "transfer_encoding", "max.forwards", "keep_alive"];
        let mut headers = map(&[&own[..], &other_spellings].concat());
        strip_spoofable(&mut headers);
        assert_left(&headers, &own);
    }

    #[test]
    fn trailers_have_no_fields_that_belong_in_the_head() {
        let mut trailers = map(&[
            "x-sum",
            "x-forwarded-for",
            "x_forwarded_for",
            "authorization",
            "proxy-authorization",
            "host",
            "via",
            "cookie",
            "x-request-id",
            "transfer-encoding",
            "content-length",
            "content-type",
            "expires",
            "x-key",
            "x_key",
            "y-key",
        ]);
        strip_upload_trailers(&mut trailers, &[&HeaderName::from_static("x-key")]);
        assert_left(&trailers, &["x-sum", "expires", "y-key"]);
    }

    #[test]
    fn all_names_are_in_lower_case_and_the_initials_are_complete() {
        for name in SPOOFABLE_HEADERS.into_iter().chain([FORWARDED]) {
            assert!(SPOOFABLE_INITIALS.contains(&name.as_bytes()[0]), "{name}");
        }
        for name in SPOOFABLE_HEADERS.into_iter().chain(own_names()).chain(NO_TRAILERS) {
            assert_eq!(name, name.to_ascii_lowercase());
        }
    }
}
