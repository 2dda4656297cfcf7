//! Links to the upstream in header fields: rewritten, so that a client that follows one stays at the gateway.
//!
//! ```text
//! upstream.base_url = https://api.example/v1
//! Location: https://api.example/v1/jobs/a   ─▶  https://gate.example/jobs/a
//! Location: /v1/jobs/a                      ─▶  /jobs/a
//!                                           ─▶  /jobs/a where a proxy hides the scheme that the client used
//! Location: jobs/a · https://cdn.example/a  ─▶  unchanged
//! ```
//!
//! Bodies and `Link` are never rewritten.

use http::Uri;
use http::header::{CONTENT_LOCATION, Entry, HeaderMap, HeaderName, HeaderValue, LOCATION};
use http::uri::{Authority, Scheme};

use super::host::is_same_host_port;

/// Recognises links to one upstream.
#[derive(Clone, Debug)]
pub(crate) struct HeaderLinks {
    scheme: Scheme,
    authority: Authority,
    /// The path of `upstream.base_url` without a trailing slash; may be empty.
    prefix: String,
}

impl HeaderLinks {
    /// Returns `None` for a URL without scheme or host.
    pub(crate) fn new(base_url: &Uri) -> Option<Self> {
        Some(Self {
            scheme: base_url.scheme()?.clone(),
            authority: base_url.authority()?.clone(),
            prefix: base_url.path().trim_end_matches('/').to_owned(),
        })
    }

    /// Rewrites the fields of a response. `origin` returns the client's origin of the gateway; without one, absolute links
    /// stay. With an empty one they become paths.
    pub(crate) fn rewrite(&self, headers: &mut HeaderMap, origin: impl FnOnce() -> Option<String>) {
        if !LINKS.iter().any(|name| headers.contains_key(name)) {
            return;
        }
        let origin = origin();
        for name in LINKS {
            let Entry::Occupied(mut field) = headers.entry(name) else { continue };
            for value in field.iter_mut() {
                let link = value.to_str().ok().and_then(|link| self.rewritten(link, origin.as_deref()));
                if let Some(link) = link.and_then(|link| HeaderValue::try_from(link).ok()) {
                    *value = link;
                }
            }
        }
    }

    /// Returns the link at the gateway; `None` for a link that stays.
    fn rewritten(&self, link: &str, origin: Option<&str>) -> Option<String> {
        // Browsers drop tabs, so that `/\t/host` is the address of another host.
        if link.contains('\t') {
            return None;
        }
        if link.starts_with('/') {
            let is_under_base = !link.starts_with("//") && !self.prefix.is_empty();
            return self.below_base(link).filter(|_| is_under_base);
        }
        let (scheme, rest) = link.split_once("://")?;
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let authority = authority.parse().ok()?;
        let is_upstream = scheme.eq_ignore_ascii_case(self.scheme.as_str())
            && is_same_host_port(&self.scheme, &self.authority, &authority);
        let below = self.below_base(path).filter(|_| is_upstream)?;
        Some(format!("{}{below}", origin?))
    }

    /// Removes the path of `upstream.base_url`; `None` if the path is not under it.
    fn below_base(&self, path: &str) -> Option<String> {
        match path.strip_prefix(self.prefix.as_str())? {
            // Browsers read both as the address of another host.
            below if below.starts_with("//") || below.starts_with("/\\") => None,
            below if below.starts_with('/') => Some(below.to_owned()),
            below if below.is_empty() || below.starts_with(['?', '#']) => Some(format!("/{below}")),
            _ => None,
        }
    }
}

const LINKS: [HeaderName; 4] = [
    LOCATION,
    CONTENT_LOCATION,
    HeaderName::from_static("operation-location"),
    HeaderName::from_static("azure-asyncoperation"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::header_map as map;

    fn rewritten(base_url: &'static str, link: &str) -> Option<String> {
        let links = HeaderLinks::new(&Uri::from_static(base_url)).unwrap();
        links.rewritten(link, Some("http://gate:1"))
    }

    #[test]
    fn a_link_below_the_base_url_leads_to_the_gateway() {
        let base = "https://api.example/v1/";
        let rows = [
            ("https://api.example/v1/jobs/a?b=1#c", Some("http://gate:1/jobs/a?b=1#c")),
            ("HTTPS://API.example:443/v1/jobs/a", Some("http://gate:1/jobs/a")),
            ("https://api.example/v1", Some("http://gate:1/")),
            ("https://api.example/v1?a", Some("http://gate:1/?a")),
            ("/v1/jobs/a", Some("/jobs/a")),
            ("https://api.example/v10/jobs/a", None),
            ("https://api.example/", None),
            ("http://api.example/v1/jobs/a", None),
            ("https://api.example:8443/v1/jobs/a", None),
            ("https://user@api.example/v1/jobs/a", None),
            ("https://cdn.example/v1/jobs/a", None),
            ("/v2/jobs/a", None),
            ("//api.example/v1/jobs/a", None),
            ("v1/jobs/a", None),
            ("", None),
        ];
        for (link, expected) in rows {
            assert_eq!(rewritten(base, link).as_deref(), expected, "{link}");
        }
    }

    #[test]
    fn no_shortened_link_leads_to_another_host() {
        let base = "https://api.example/v1";
        for rest in ["//evil.example/a", "/\\evil.example/a", "/\t/evil.example/a", "\t//evil.example/a"] {
            for link in [format!("/v1{rest}"), format!("https://api.example/v1{rest}")] {
                assert_eq!(rewritten(base, &link), None, "{link:?}");
            }
        }
        assert_eq!(rewritten(base, "/v1/a//b").as_deref(), Some("/a//b"));
    }

    #[test]
    fn without_a_path_in_the_base_url_a_relative_link_stays() {
        let base = "http://api.example:8080";
        assert_eq!(rewritten(base, "http://api.example:8080").as_deref(), Some("http://gate:1/"));
        assert_eq!(rewritten(base, "/jobs/a"), None);
    }

    #[test]
    fn four_fields_are_rewritten_and_no_other() {
        let links = HeaderLinks::new(&Uri::from_static("http://api/v1")).unwrap();
        let fields = ["location", "content-location", "operation-location", "azure-asyncoperation", "link"];
        let mut headers = map(&fields.map(|name| (name, "http://api/v1/a")));
        links.rewrite(&mut headers, || Some("https://gate".to_owned()));
        assert_eq!(
            fields.map(|name| headers[name].to_str().unwrap()),
            ["https://gate/a", "https://gate/a", "https://gate/a", "https://gate/a", "http://api/v1/a"]
        );
        let mut headers = map(&[("location", "http://api/v1/a")]);
        links.rewrite(&mut headers, || None);
        assert_eq!(headers["location"], "http://api/v1/a", "the request names no host");
    }
}
