//! The host that a request is for.

use http::header::{self, HeaderMap};
use http::uri::{Authority, Scheme};
use http::{Uri, Version};

use super::field_value::single_value;

/// Returns the host of the target, else of the one `Host` field. `None`: there is none, an invalid one, or several.
pub(crate) fn requested_host(uri: &Uri, headers: &HeaderMap) -> Option<Authority> {
    if let Some(authority) = uri.authority() {
        return is_host(authority).then(|| authority.clone());
    }
    let field = single_value(headers, &header::HOST)?;
    Authority::try_from(field.as_bytes()).ok().filter(is_host)
}

/// Like [`requested_host`], without a copy.
pub(crate) fn requested_host_text<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    if let Some(authority) = uri.authority() {
        return is_host(authority).then(|| authority.as_str());
    }
    let field = single_value(headers, &header::HOST)?;
    let is_valid = || Authority::try_from(field.as_bytes()).is_ok_and(|host| is_host(&host));
    (is_plain_host(field.as_bytes()) || is_valid()).then(|| field.to_str().ok()).flatten()
}

/// Returns whether the value is a name or an IPv4 address, with or without a port of at most four digits. Nearly all
/// values are, and are then valid. [`Authority`] decides about the others, at ten times the cost.
fn is_plain_host(value: &[u8]) -> bool {
    let name =
        value.iter().take_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-')).count();
    let (name, port) = value.split_at(name);
    let is_port = |digits: &[u8]| (1..=4).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    !name.is_empty() && (port.is_empty() || port.strip_prefix(b":").is_some_and(is_port))
}

/// Returns whether `Host` is one valid field, or missing where the version allows that. All other requests must be
/// rejected (RFC 9112 §3.2). An empty field is valid and names no host.
pub(crate) fn has_valid_host(version: Version, headers: &HeaderMap) -> bool {
    match single_value(headers, &header::HOST) {
        Some(field) => {
            field.is_empty()
                || is_plain_host(field.as_bytes())
                || Authority::try_from(field.as_bytes()).is_ok_and(|host| !host.as_str().contains('@'))
        }
        None => version != Version::HTTP_11 && !headers.contains_key(header::HOST),
    }
}

/// Returns whether the authority has a host and no user, and is therefore valid in `Host`.
pub(crate) fn is_host(authority: &Authority) -> bool {
    !authority.as_str().contains(['@', '"', '\\']) && !authority.host().is_empty()
}

/// Returns whether both name the same host and port, with the default port of this scheme. `one` must not have a user.
/// An `other` with a user never matches.
pub(crate) fn is_same_host_port(scheme: &Scheme, one: &Authority, other: &Authority) -> bool {
    let default_port = if *scheme == Scheme::HTTPS { 443 } else { 80 };
    one.host().eq_ignore_ascii_case(other.host())
        && one.port_u16().unwrap_or(default_port) == other.port_u16().unwrap_or(default_port)
        && !other.as_str().contains('@')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::header_map as map;

    #[test]
    fn the_requested_host_is_the_targets_or_that_of_the_one_host_field() {
        let host = |uri: &'static str, fields: &[_]| {
            requested_host(&Uri::from_static(uri), &map(fields)).map(|host| host.to_string())
        };
        assert_eq!(host("/x", &[("host", "a:1")]).as_deref(), Some("a:1"));
        assert_eq!(host("http://b/x", &[("host", "a:1")]).as_deref(), Some("b"));
        assert_eq!(host("/x", &[]), None);
        assert_eq!(host("/x", &[("host", "a"), ("host", "b")]), None);
        assert_eq!(host("/x", &[("host", "user@a")]), None);
        assert_eq!(host("/x", &[("host", "a\";for=b")]), None);
        assert_eq!(host("/x", &[("host", "")]), None);
    }

    #[test]
    fn the_parser_of_authorities_accepts_each_plain_host() {
        for seed in 0..20_000 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let alphabet = b"a0-.:@[]_%/ \"\\9";
            let text: Vec<u8> = (0..rng.usize(..9)).map(|_| alphabet[rng.usize(..alphabet.len())]).collect();
            let parsed = Authority::try_from(text.as_slice()).ok().filter(is_host);
            assert!(!is_plain_host(&text) || parsed.is_some(), "{}", text.escape_ascii());
            let Ok(value) = http::HeaderValue::from_bytes(&text) else { continue };
            let headers = HeaderMap::from_iter([(header::HOST, value)]);
            let uri = Uri::from_static("/");
            let (host, plain) = (requested_host(&uri, &headers), requested_host_text(&uri, &headers));
            assert_eq!(host.as_ref().map(Authority::as_str), plain);
        }
        assert!([&b"a"[..], b"a.b-c", b"1.2.3.4", b"a:80"].iter().all(|host| is_plain_host(host)));
        assert!([&b""[..], b"a:", b":80", b"a:b", b"[::1]"].iter().all(|host| !is_plain_host(host)));
    }

    #[test]
    fn a_request_has_one_valid_host_field_and_only_http_1_1_requires_it() {
        let is_valid =
            |version, fields: &[(&'static str, &'static str)]| has_valid_host(version, &map(fields));
        for version in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2] {
            for good in ["a", "a:80", "[::1]:80", "127.0.0.1", ""] {
                assert!(is_valid(version, &[("host", good)]), "{good}");
            }
            for bad in ["a b", "user@a", "a/b", "a, b", "http://a", "[::1"] {
                assert!(!is_valid(version, &[("host", bad)]), "{bad}");
            }
            assert!(!is_valid(version, &[("host", "a"), ("host", "a")]));
            assert_eq!(is_valid(version, &[]), version != Version::HTTP_11);
        }
    }
}
