//! Access to the admin listener. With `admin.token` a request needs the token. Without it every program that reaches
//! the listener has access, but web pages of other sites in an operator's browser do not:
//!
//! ```text
//!   evil.example ── fetch http://127.0.0.1:9090 ──────────────▶ rejected by Sec-Fetch-Site and Origin   (403)
//!   evil.example, its DNS name rebound to 127.0.0.1 ──────────▶ rejected by Host                        (421)
//! ```

use headers::authorization::Basic;
use headers::{Authorization, HeaderMapExt as _};
use http::header::AUTHORIZATION;
use http::{HeaderMap, Request};
use subtle::ConstantTimeEq as _;

use super::error::AdminError;
use crate::auth::{bearer_token, token_sha256};
use crate::protocol::allowed_host::{HostPattern, foreign_host};
use crate::protocol::fetch_metadata::{is_cross_origin, is_top_level_navigation};
use crate::protocol::request::Peer;
use crate::secret::{Secret, TokenHash};

pub(super) struct Guard {
    /// Hash of the token: the time of comparing hashes does not depend on the wrong token.
    token: Option<TokenHash>,
}

impl Guard {
    pub(super) fn new(token: Option<&Secret>) -> Self {
        Self { token: token.map(|token| token_sha256(token.expose().as_bytes())) }
    }

    /// Returns whether the request has the token; `None` if no token is configured.
    pub(super) fn has_token<B>(&self, request: &Request<B>) -> Option<bool> {
        self.token.map(|token| is_authorized(request.headers(), token))
    }

    /// Checks a request. Without a token its host must be a local name or one of `server.allowed_hosts`, except on a
    /// unix socket, which browsers cannot reach.
    pub(super) fn check<B>(
        &self,
        request: &Request<B>,
        peer: Peer,
        allowed_hosts: &[HostPattern],
    ) -> Result<(), AdminError> {
        match self.token {
            Some(token) if !is_authorized(request.headers(), token) => return Err(AdminError::Unauthorized),
            None if peer != Peer::Unix && foreign_host(request, allowed_hosts).is_some() => {
                return Err(AdminError::ForeignHost);
            }
            Some(_) | None => {}
        }
        match is_cross_origin(request) && !is_top_level_navigation(request) {
            true => Err(AdminError::CrossOrigin),
            false => Ok(()),
        }
    }
}

/// Returns whether the only `Authorization` header has the token, as Bearer or as the password of Basic.
fn is_authorized(headers: &HeaderMap, token: TokenHash) -> bool {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    let hash = match bearer_token(value) {
        Some(token) => token_sha256(token),
        None => match headers.typed_get::<Authorization<Basic>>() {
            Some(basic) => token_sha256(basic.password().as_bytes()),
            None => return false,
        },
    };
    hash.0.ct_eq(&token.0).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, fields: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().method(method).uri("/api/state");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    /// Checks a request of a program on this machine, without allowed hosts.
    fn check(guard: &Guard, request: &Request<()>) -> Result<(), AdminError> {
        guard.check(request, Peer::Tcp(([127, 0, 0, 1], 50_000).into()), &[])
    }

    #[test]
    fn without_a_token_tcp_requests_need_a_local_or_listed_host() {
        let (guard, peer) = (Guard::new(None), Peer::Tcp(([127, 0, 0, 1], 50_000).into()));
        let own = request("GET", &[("host", "127.0.0.1:9090")]);
        assert_eq!(guard.check(&own, peer, &[]), Ok(()));
        let foreign = request("GET", &[("host", "evil.example:9090")]);
        assert_eq!(guard.check(&foreign, peer, &[]), Err(AdminError::ForeignHost));
        assert_eq!(guard.check(&foreign, peer, &[HostPattern::Name("evil.example".to_owned())]), Ok(()));
        assert_eq!(guard.check(&foreign, Peer::Unix, &[]), Ok(()));
    }

    #[test]
    fn the_token_is_accepted_as_bearer_or_basic_password() {
        let guard = Guard::new(Some(&Secret::new("s3cret")));
        let is_allowed = |fields: &[(&str, &str)]| check(&guard, &request("GET", fields)).is_ok();
        let host = ("host", "gw.example");
        assert!(is_allowed(&[host, ("authorization", "Bearer s3cret")]));
        assert!(is_allowed(&[host, ("authorization", "bearer s3cret")]));
        assert!(is_allowed(&[host, ("authorization", "Basic b3BzOnMzY3JldA==")]), "ops:s3cret");
        for invalid in ["", "s3cret", "Bearer", "Bearer s3cre", "Bearer s3cret1", "Basic czNjcmV0", "Basic !"]
        {
            assert!(!is_allowed(&[host, ("authorization", invalid)]), "{invalid:?}");
        }
        assert!(!is_allowed(&[host]));
        assert!(!is_allowed(&[host, ("authorization", "Bearer s3cret"), ("authorization", "Bearer s3cret")]));
    }

    #[test]
    fn cross_origin_requests_are_rejected_and_links_are_followed() {
        let guard = Guard::new(None);
        let is_allowed = |method: &str, fields: &[(&str, &str)]| {
            let fields = [&[("host", "127.0.0.1:9090")], fields].concat();
            check(&guard, &request(method, &fields)).is_ok()
        };
        let site = |site: &'static str| ("sec-fetch-site", site);
        let (link, fetch) = (("sec-fetch-mode", "navigate"), ("sec-fetch-mode", "cors"));
        let (window, frame) = (("sec-fetch-dest", "document"), ("sec-fetch-dest", "iframe"));
        assert!(is_allowed("DELETE", &[]), "without a browser");
        assert!(is_allowed("DELETE", &[site("same-origin"), fetch]));
        assert!(is_allowed("GET", &[site("none"), link]));
        assert!(is_allowed("GET", &[site("cross-site"), link, window]));
        assert!(!is_allowed("GET", &[site("cross-site"), link, frame]));
        assert!(!is_allowed("GET", &[site("cross-site"), fetch]));
        assert!(!is_allowed("GET", &[site("same-site"), fetch]), "another port is another origin");
        assert!(!is_allowed("DELETE", &[site("cross-site"), link, window]));
        assert!(is_allowed("DELETE", &[("origin", "http://127.0.0.1:9090")]));
        for origin in ["http://evil.example", "http://127.0.0.1:8080", "null", "http://127.0.0.1"] {
            assert!(!is_allowed("DELETE", &[("origin", origin)]), "{origin}");
        }
    }
}
