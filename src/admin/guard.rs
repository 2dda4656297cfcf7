//! Who may look and touch: whoever has the token; without one, whoever reaches the listener, but no web page of
//! somebody else's that a browser here has open.
//!
//! ```text
//!   a page of evil.example ── fetch http://127.0.0.1:9090 ──▶ Sec-Fetch-Site, Origin tell        (403)
//!   the same, evil.example now being 127.0.0.1 in DNS ──────▶ Host tells                         (421)
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

/// The way in.
pub(super) struct Guard {
    /// The token's hash: comparing hashes takes the same time for each wrong token.
    token: Option<TokenHash>,
}

impl Guard {
    pub(super) fn new(token: Option<&Secret>) -> Self {
        Self { token: token.map(|token| token_sha256(token.expose().as_bytes())) }
    }

    /// Whether the request brings the token; `None` where there is none to bring.
    pub(super) fn brings_token<B>(&self, request: &Request<B>) -> Option<bool> {
        self.token.map(|token| brings(request.headers(), token))
    }

    /// Whether the request may do what it asks for. `allowed_hosts` is `server.allowed_hosts`, for a listener without a
    /// token; browsers reach no unix socket, so there any name will do.
    pub(super) fn check<B>(
        &self,
        request: &Request<B>,
        peer: Peer,
        allowed_hosts: &[HostPattern],
    ) -> Result<(), AdminError> {
        match self.token {
            Some(token) if !brings(request.headers(), token) => return Err(AdminError::Unauthorized),
            None if peer != Peer::Unix && foreign_host(request, allowed_hosts).is_some() => {
                return Err(AdminError::ForeignHost);
            }
            Some(_) | None => {}
        }
        match is_cross_origin(request) && !is_top_level_navigation(request) {
            true => Err(AdminError::ForeignSite),
            false => Ok(()),
        }
    }
}

/// Whether the one `Authorization` field brings the token, as Bearer or as a password.
fn brings(headers: &HeaderMap, token: TokenHash) -> bool {
    let mut fields = headers.get_all(AUTHORIZATION).iter();
    let (Some(field), None) = (fields.next(), fields.next()) else { return false };
    let brought = match bearer_token(field) {
        Some(brought) => token_sha256(brought),
        None => match headers.typed_get::<Authorization<Basic>>() {
            Some(basic) => token_sha256(basic.password().as_bytes()),
            None => return false,
        },
    };
    brought.0.ct_eq(&token.0).into()
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

    /// From another program on this machine, where nothing is listed.
    fn check(guard: &Guard, request: &Request<()>) -> Result<(), AdminError> {
        guard.check(request, Peer::Tcp(([127, 0, 0, 1], 50_000).into()), &[])
    }

    #[test]
    fn without_a_token_and_by_tcp_only_names_that_are_nobody_elses_are_answered() {
        let (guard, peer) = (Guard::new(None), Peer::Tcp(([127, 0, 0, 1], 50_000).into()));
        let own = request("GET", &[("host", "127.0.0.1:9090")]);
        assert_eq!(guard.check(&own, peer, &[]), Ok(()));
        let foreign = request("GET", &[("host", "evil.example:9090")]);
        assert_eq!(guard.check(&foreign, peer, &[]), Err(AdminError::ForeignHost));
        assert_eq!(guard.check(&foreign, peer, &[HostPattern::Name("evil.example".to_owned())]), Ok(()));
        assert_eq!(guard.check(&foreign, Peer::Unix, &[]), Ok(()));
    }

    #[test]
    fn the_token_comes_as_bearer_or_as_a_password() {
        let guard = Guard::new(Some(&Secret::new("s3cret")));
        let of = |fields: &[(&str, &str)]| check(&guard, &request("GET", fields)).is_ok();
        let host = ("host", "gw.example");
        assert!(of(&[host, ("authorization", "Bearer s3cret")]));
        assert!(of(&[host, ("authorization", "bearer s3cret")]));
        assert!(of(&[host, ("authorization", "Basic b3BzOnMzY3JldA==")]), "ops:s3cret");
        for bad in ["", "s3cret", "Bearer", "Bearer s3cre", "Bearer s3cret1", "Basic czNjcmV0", "Basic !"] {
            assert!(!of(&[host, ("authorization", bad)]), "{bad:?}");
        }
        assert!(!of(&[host]));
        assert!(!of(&[host, ("authorization", "Bearer s3cret"), ("authorization", "Bearer s3cret")]));
    }

    #[test]
    fn a_page_of_another_site_may_not_ask_but_its_links_may_be_followed() {
        let guard = Guard::new(None);
        let of = |method: &str, fields: &[(&str, &str)]| {
            let fields = [&[("host", "127.0.0.1:9090")], fields].concat();
            check(&guard, &request(method, &fields)).is_ok()
        };
        let site = |site: &'static str| ("sec-fetch-site", site);
        let (link, fetch) = (("sec-fetch-mode", "navigate"), ("sec-fetch-mode", "cors"));
        let (window, frame) = (("sec-fetch-dest", "document"), ("sec-fetch-dest", "iframe"));
        assert!(of("DELETE", &[]), "no browser");
        assert!(of("DELETE", &[site("same-origin"), fetch]));
        assert!(of("GET", &[site("none"), link]));
        assert!(of("GET", &[site("cross-site"), link, window]));
        assert!(!of("GET", &[site("cross-site"), link, frame]));
        assert!(!of("GET", &[site("cross-site"), fetch]));
        assert!(!of("GET", &[site("same-site"), fetch]), "another port is another's");
        assert!(!of("DELETE", &[site("cross-site"), link, window]));
        assert!(of("DELETE", &[("origin", "http://127.0.0.1:9090")]));
        for origin in ["http://evil.example", "http://127.0.0.1:8080", "null", "http://127.0.0.1"] {
            assert!(!of("DELETE", &[("origin", origin)]), "{origin}");
        }
    }
}
