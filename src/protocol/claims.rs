//! Fields that only the gateway may send to the upstream: claims about the client, and fields that the gateway writes.
//!
//! Names are compared as CGI and WSGI servers see them: `X_Forwarded_For` and `X.Forwarded.For` become
//! `HTTP_X_FORWARDED_FOR` there, as `X-Forwarded-For` does.

use http::header::{self, HeaderMap, HeaderName};

use super::headers::HOP_BY_HOP;

/// Removes every claim about the client, and each field that a server may take for one of the gateway's own although
/// it is spelled otherwise. Fields of the gateway's own names stay: the caller writes them.
pub(crate) fn strip_claims(headers: &mut HeaderMap) {
    strip(headers, |name| is_claim(name) || own_names().any(|own| own != name && is_read_as(name, own)));
}

/// Removes from the trailers of an upload all that a server could take for a part of its head: claims, the gateway's
/// own fields, framing, credentials (RFC 9110 §6.5.1).
pub(crate) fn strip_upload_trailers(trailers: &mut HeaderMap) {
    strip(trailers, |name| {
        is_claim(name) || own_names().chain(NO_TRAILERS).any(|other| is_read_as(name, other))
    });
}

/// Removes the cookies of the upstream account from the head or the trailers of an answer.
pub(crate) fn strip_set_cookie(headers: &mut HeaderMap) {
    headers.remove(header::SET_COOKIE);
    headers.remove("set-cookie2");
}

fn strip(headers: &mut HeaderMap, is_forbidden: impl Fn(&str) -> bool) {
    let forbidden: Vec<HeaderName> =
        headers.keys().filter(|name| is_forbidden(name.as_str())).cloned().collect();
    for name in forbidden {
        headers.remove(name);
    }
}

fn is_claim(name: &str) -> bool {
    SPOOFABLE_HEADERS.iter().any(|claim| is_read_as(name, claim))
        || name.get(..FORWARDED.len()).is_some_and(|start| is_read_as(start, FORWARDED))
}

fn own_names() -> impl Iterator<Item = &'static str> {
    HOP_BY_HOP.iter().map(HeaderName::as_str).chain(OWN)
}

/// Whether a server may take the one name for the other. Both are in lower case.
fn is_read_as(name: &str, other: &str) -> bool {
    let is_same = |(a, b): (u8, u8)| a == b || (b == b'-' && !a.is_ascii_alphanumeric());
    name.len() == other.len() && name.bytes().zip(other.bytes()).all(is_same)
}

/// Claims of proxies about the client, and `Proxy`, which CGI programs take for `HTTP_PROXY` (httpoxy).
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

/// Fields that the gateway writes or replaces, beside the hop-by-hop ones.
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

/// Further fields of a head that must not come as trailers.
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
    fn a_claim_is_removed_in_every_spelling_that_a_server_takes_for_it() {
        let claims = [
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
        let mut headers = map(&[&claims[..], &others].concat());
        strip_claims(&mut headers);
        assert_left(&headers, &others);
    }

    #[test]
    fn fields_of_the_gateways_own_stay_in_a_head_and_their_likenesses_do_not() {
        let own =
            ["x-request-id", "content-length", "transfer-encoding", "max-forwards", "via", "authorization"];
        let likenesses =
            ["x_request_id", "content_length", "transfer_encoding", "max.forwards", "keep_alive"];
        let mut headers = map(&[&own[..], &likenesses].concat());
        strip_claims(&mut headers);
        assert_left(&headers, &own);
    }

    #[test]
    fn trailers_hold_nothing_that_belongs_in_a_head() {
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
        ]);
        strip_upload_trailers(&mut trailers);
        assert_left(&trailers, &["x-sum", "expires"]);
    }

    #[test]
    fn all_lists_are_in_lower_case() {
        for name in SPOOFABLE_HEADERS.into_iter().chain(own_names()).chain(NO_TRAILERS) {
            assert_eq!(name, name.to_ascii_lowercase());
        }
    }
}
