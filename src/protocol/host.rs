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

/// Returns whether `Host` is one valid field, or missing where the version allows that. All other requests must be
/// rejected (RFC 9112 §3.2). An empty field is valid and names no host.
pub(crate) fn has_valid_host(version: Version, headers: &HeaderMap) -> bool {
    let mut fields = headers.get_all(header::HOST).into_iter();
    match (fields.next(), fields.next()) {
        (None, _) => version != Version::HTTP_11,
        (Some(field), None) => {
            field.is_empty()
                || Authority::try_from(field.as_bytes()).is_ok_and(|host| !host.as_str().contains('@'))
        }
        (Some(_), Some(_)) => false,
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
