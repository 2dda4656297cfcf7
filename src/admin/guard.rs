//! Who may look and touch: whoever has the token; without one, whoever reaches the listener, but no web page of
//! somebody else's that a browser here has open.
//!
//! ```text
//!   a page of evil.example ── fetch http://127.0.0.1:9090 ──▶ Sec-Fetch-Site, Origin tell        (403)
//!   the same, evil.example now being 127.0.0.1 in DNS ──────▶ Host tells                         (421)
//! ```

use std::net::IpAddr;

use headers::authorization::Basic;
use headers::{Authorization, HeaderMapExt as _};
use http::header::{AUTHORIZATION, HOST};
use http::{HeaderMap, Request};
use subtle::ConstantTimeEq as _;

use super::refusal::AdminRefusal;
use crate::auth::{bearer, token_sha256};
use crate::headers::{asked_host, is_for_a_window, is_of_foreign_page};
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

    /// Whether the request may do what it asks for.
    pub(super) fn check<B>(&self, request: &Request<B>) -> Result<(), AdminRefusal> {
        match self.token {
            Some(token) if !brings(request.headers(), token) => return Err(AdminRefusal::Unauthorized),
            None if !names_this_machine(request) => return Err(AdminRefusal::ForeignHost),
            Some(_) | None => {}
        }
        match is_of_foreign_page(request) && !is_for_a_window(request) {
            true => Err(AdminRefusal::ForeignSite),
            false => Ok(()),
        }
    }
}

/// Whether the one `Authorization` field brings the token, as Bearer or as a password.
fn brings(headers: &HeaderMap, token: TokenHash) -> bool {
    let mut fields = headers.get_all(AUTHORIZATION).iter();
    let (Some(field), None) = (fields.next(), fields.next()) else { return false };
    let brought = match bearer(field) {
        Some(brought) => token_sha256(brought),
        None => match headers.typed_get::<Authorization<Basic>>() {
            Some(basic) => token_sha256(basic.password().as_bytes()),
            None => return false,
        },
    };
    brought.0.ct_eq(&token.0).into()
}

/// Whether the name that the client used can be nobody else's: an address, or one that no public DNS has.
/// A browser always says it.
fn names_this_machine<B>(request: &Request<B>) -> bool {
    let (uri, headers) = (request.uri(), request.headers());
    if uri.authority().is_none() && !headers.contains_key(HOST) {
        return true;
    }
    asked_host(uri, headers).is_some_and(|authority| is_local(authority.host()))
}

fn is_local(host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&host);
    // A name without a dot is one of the local network's: a container's, for example.
    address.parse::<IpAddr>().is_ok() || !host.contains('.') || host.ends_with(".localhost")
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

    #[test]
    fn without_a_token_only_names_that_are_nobody_elses_are_answered() {
        let guard = Guard::new(None);
        let of = |host: &str| guard.check(&request("GET", &[("host", host)]));
        for host in [
            "127.0.0.1:9090",
            "[::1]:9090",
            "192.0.2.7",
            "localhost:9090",
            "LOCALHOST.",
            "a.localhost",
            "clipgate:9090",
        ] {
            assert_eq!(of(host), Ok(()), "{host}");
        }
        for host in
            ["evil.example:9090", "127.0.0.1.evil.example", "a@127.0.0.1", "localhost.evil.example", ""]
        {
            assert_eq!(of(host), Err(AdminRefusal::ForeignHost), "{host}");
        }
        assert_eq!(guard.check(&request("GET", &[])), Ok(()), "HTTP/1.0 need not say it");
        let two = request("GET", &[("host", "localhost"), ("host", "evil.example")]);
        assert_eq!(guard.check(&two), Err(AdminRefusal::ForeignHost));
    }

    #[test]
    fn the_token_comes_as_bearer_or_as_a_password() {
        let guard = Guard::new(Some(&Secret::new("s3cret")));
        let of = |fields: &[(&str, &str)]| guard.check(&request("GET", fields)).is_ok();
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
            guard.check(&request(method, &fields)).is_ok()
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
