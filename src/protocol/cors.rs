//! CORS, if `server.cors_origins` is set: the gateway answers preflights itself and replaces the CORS fields of the
//! upstream in every response.
//!
//! `Access-Control-Allow-Credentials` is never sent: the API's key comes in a header field that the page must know, not
//! in a cookie.

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};

use super::field_value::single_value;

/// The fields that a script may read besides the CORS-safelisted ones.
const EXPOSED: &str =
    "Cache-Status, RateLimit, RateLimit-Policy, Retry-After, X-Request-Id, Age, ETag, Preference-Applied";

/// The seconds for which a browser may cache a preflight. No browser caches one for longer.
const MAX_AGE: &str = "7200";

/// The web origins that may read responses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cors {
    origins: Vec<String>,
}

/// The CORS fields of the response to one request.
#[derive(Clone, Debug)]
pub(crate) struct CorsDecision {
    /// The origin of the page, if it is allowed.
    origin: Option<HeaderValue>,
    preflight: Option<Preflight>,
}

/// The request that a browser announces by a preflight.
#[derive(Clone, Debug)]
struct Preflight {
    method: HeaderValue,
    headers: Option<HeaderValue>,
}

impl Cors {
    /// Returns the origins of `server.cors_origins`; `*` allows any. `None`: the list is empty, and the upstream's CORS
    /// fields stay.
    pub(crate) fn new(origins: &[String]) -> Option<Self> {
        (!origins.is_empty()).then(|| Self { origins: origins.to_vec() })
    }

    /// Returns the CORS fields for the response to this request.
    pub(crate) fn decide<B>(&self, request: &Request<B>) -> CorsDecision {
        let page = single_value(request.headers(), &ORIGIN);
        let is_allowed = |page: &&HeaderValue| {
            self.origins.iter().any(|origin| origin == "*" || is_same_origin(page, origin))
        };
        let method = single_value(request.headers(), &ACCESS_CONTROL_REQUEST_METHOD)
            .filter(|_| request.method() == Method::OPTIONS && page.is_some());
        let preflight = method.map(|method| Preflight {
            method: method.clone(),
            headers: single_value(request.headers(), &ACCESS_CONTROL_REQUEST_HEADERS).cloned(),
        });
        CorsDecision { origin: page.filter(is_allowed).cloned(), preflight }
    }
}

impl CorsDecision {
    /// Returns whether the origin of the page is allowed.
    pub(crate) fn is_allowed(&self) -> bool {
        self.origin.is_some()
    }

    /// Returns whether the gateway answers the request itself.
    pub(crate) fn is_preflight(&self) -> bool {
        self.preflight.is_some()
    }

    /// Replaces the CORS fields of a response. Allows the methods and fields that the preflight names, as `*` does not
    /// include `Authorization` (Fetch standard, CORS protocol).
    pub(crate) fn write(self, headers: &mut HeaderMap) {
        let is_cors = |name: &&HeaderName| name.as_str().starts_with("access-control-");
        for name in headers.keys().filter(is_cors).cloned().collect::<Vec<_>>() {
            headers.remove(name);
        }
        let vary = match self.preflight {
            Some(_) => "Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
            None => "Origin",
        };
        headers.append(VARY, HeaderValue::from_static(vary));
        let Some(origin) = self.origin else { return };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        match self.preflight {
            Some(Preflight { method, headers: requested }) => {
                headers.insert(ACCESS_CONTROL_ALLOW_METHODS, method);
                if let Some(requested) = requested {
                    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, requested);
                }
                headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE));
            }
            None => {
                headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
            }
        }
    }
}

/// Compares without case: browsers do not lower-case hosts of schemes that they do not know.
fn is_same_origin(page: &HeaderValue, listed: &str) -> bool {
    page.as_bytes().eq_ignore_ascii_case(listed.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response_headers(origins: &[&str], method: &str, fields: &[(&str, &str)]) -> (bool, HeaderMap) {
        let origins: Vec<String> = origins.iter().map(|origin| (*origin).to_owned()).collect();
        let mut request = Request::builder().method(method);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let decision = Cors::new(&origins).unwrap().decide(&request.body(()).unwrap());
        let mut headers = HeaderMap::new();
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("https://upstream"));
        headers.insert("access-control-allow-credentials", HeaderValue::from_static("true"));
        let is_preflight = decision.is_preflight();
        decision.write(&mut headers);
        (is_preflight, headers)
    }

    #[test]
    fn only_a_listed_origin_may_read_responses() {
        let rows = [
            (&["https://a.example"][..], "https://a.example", true),
            (&["https://a.example", "http://b:1"], "http://b:1", true),
            (&["*"], "https://x.example", true),
            (&["*"], "null", true),
            (&["https://a.example"], "https://a.example.evil", false),
            (&["https://a.example"], "http://a.example", false),
            (&["https://a.example"], "null", false),
            (&["tauri://localhost"], "tauri://localhost", true),
            (&["app://obsidian.md"], "app://Obsidian.md", true),
            (&["tauri://localhost"], "http://localhost", false),
        ];
        for (origins, page, is_allowed) in rows {
            let (_, headers) = response_headers(origins, "GET", &[("origin", page)]);
            let allowed = headers.get(ACCESS_CONTROL_ALLOW_ORIGIN).map(HeaderValue::as_bytes);
            assert_eq!(allowed, is_allowed.then_some(page.as_bytes()), "{page}");
            assert_eq!(headers.contains_key(ACCESS_CONTROL_EXPOSE_HEADERS), is_allowed, "{page}");
            assert_eq!(headers[VARY], "Origin", "{page}");
            assert!(
                !headers.contains_key("access-control-allow-credentials"),
                "the upstream's field is removed"
            );
        }
        assert_eq!(rows.len(), 10);
        let (_, headers) = response_headers(&["*"], "GET", &[]);
        assert_eq!((headers.len(), headers[VARY].as_bytes()), (1, &b"Origin"[..]));
        let (_, headers) =
            response_headers(&["*"], "GET", &[("origin", "https://a"), ("origin", "https://b")]);
        assert_eq!(headers.len(), 1, "no browser sends two");
    }

    #[test]
    fn a_preflight_is_granted_the_method_and_fields_that_it_names() {
        let preflight = [
            ("origin", "https://a"),
            ("access-control-request-method", "DELETE"),
            ("access-control-request-headers", "authorization,prefer"),
        ];
        let (is_preflight, headers) = response_headers(&["https://a"], "OPTIONS", &preflight);
        assert!(is_preflight);
        assert_eq!(headers[ACCESS_CONTROL_ALLOW_METHODS], "DELETE");
        assert_eq!(headers[ACCESS_CONTROL_ALLOW_HEADERS], "authorization,prefer");
        assert_eq!(headers[ACCESS_CONTROL_MAX_AGE], MAX_AGE);
        let (is_preflight, headers) = response_headers(&["https://b"], "OPTIONS", &preflight);
        assert!(is_preflight && !headers.contains_key(ACCESS_CONTROL_ALLOW_METHODS));
    }

    #[test]
    fn other_options_requests_are_not_preflights() {
        for fields in [&[][..], &[("origin", "https://a")], &[("access-control-request-method", "GET")]] {
            assert!(!response_headers(&["*"], "OPTIONS", fields).0, "{fields:?}");
        }
        let preflight = [("origin", "https://a"), ("access-control-request-method", "GET")];
        assert!(!response_headers(&["*"], "GET", &preflight).0);
    }
}
