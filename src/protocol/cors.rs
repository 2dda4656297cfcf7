//! CORS, where the operator names the web origins that may read answers: preflights are answered here, and every
//! answer says who may read it, in place of what the upstream says.
//!
//! Cookies are not let in (`Access-Control-Allow-Credentials`): the API's key comes in a header field, which a page
//! has to know. It must never know what is asked for.

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};

/// What a script may read beside the few fields that it always may.
const EXPOSED: &str =
    "Cache-Status, RateLimit, RateLimit-Policy, Retry-After, X-Request-Id, Age, ETag, Preference-Applied";

/// How long a browser may rely on a preflight, in seconds; none goes beyond.
const MAX_AGE: &str = "7200";

/// The origins that may read answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cors {
    origins: Vec<String>,
}

/// What the answer to one request says of who may read it.
#[derive(Clone, Debug)]
pub(crate) struct CorsDecision {
    /// The asking page's origin, if it may.
    origin: Option<HeaderValue>,
    preflight: Option<Preflight>,
}

/// A browser's question whether a page may send a request.
#[derive(Clone, Debug)]
struct Preflight {
    method: HeaderValue,
    fields: Option<HeaderValue>,
}

impl Cors {
    /// As `server.cors_origins` says, where `*` is any. `None` where it is empty: the upstream has its say then.
    pub(crate) fn new(origins: &[String]) -> Option<Self> {
        (!origins.is_empty()).then(|| Self { origins: origins.to_vec() })
    }

    /// What the answer to this request shall say.
    pub(crate) fn permission<B>(&self, request: &Request<B>) -> CorsDecision {
        let asking = single_value(request.headers(), ORIGIN);
        let is_let_in = |asking: &&HeaderValue| {
            self.origins.iter().any(|origin| origin == "*" || is_same(asking, origin))
        };
        let method = single_value(request.headers(), ACCESS_CONTROL_REQUEST_METHOD)
            .filter(|_| request.method() == Method::OPTIONS && asking.is_some());
        let preflight = method.map(|method| Preflight {
            method: method.clone(),
            fields: single_value(request.headers(), ACCESS_CONTROL_REQUEST_HEADERS).cloned(),
        });
        CorsDecision { origin: asking.filter(is_let_in).cloned(), preflight }
    }
}

impl CorsDecision {
    /// Whether the asking page's origin is one of those that are let in.
    pub(crate) fn is_allowed(&self) -> bool {
        self.origin.is_some()
    }

    /// Whether the request is for the gateway alone to answer.
    pub(crate) fn is_preflight(&self) -> bool {
        self.preflight.is_some()
    }

    /// Says it, in place of what the upstream says. Methods and fields are let in as they are asked for: `*` would
    /// leave out `Authorization` (Fetch, CORS protocol).
    pub(crate) fn write(self, headers: &mut HeaderMap) {
        let is_foreign = |name: &&HeaderName| name.as_str().starts_with("access-control-");
        for name in headers.keys().filter(is_foreign).cloned().collect::<Vec<_>>() {
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
            Some(Preflight { method, fields }) => {
                headers.insert(ACCESS_CONTROL_ALLOW_METHODS, method);
                if let Some(fields) = fields {
                    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, fields);
                }
                headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE));
            }
            None => {
                headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
            }
        }
    }
}

/// Browsers leave the case of hosts as it is where they do not know the scheme.
fn is_same(asking: &HeaderValue, listed: &str) -> bool {
    asking.as_bytes().eq_ignore_ascii_case(listed.as_bytes())
}

/// The field's value, if there is exactly one.
fn single_value(headers: &HeaderMap, name: HeaderName) -> Option<&HeaderValue> {
    let mut values = headers.get_all(name).into_iter();
    values.next().filter(|_| values.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(origins: &[&str], method: &str, fields: &[(&str, &str)]) -> (bool, HeaderMap) {
        let origins: Vec<String> = origins.iter().map(|origin| (*origin).to_owned()).collect();
        let mut request = Request::builder().method(method);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let permission = Cors::new(&origins).unwrap().permission(&request.body(()).unwrap());
        let mut headers = HeaderMap::new();
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("https://upstream"));
        headers.insert("access-control-allow-credentials", HeaderValue::from_static("true"));
        let is_preflight = permission.is_preflight();
        permission.write(&mut headers);
        (is_preflight, headers)
    }

    #[test]
    fn only_a_listed_origin_may_read() {
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
        for (origins, asking, may) in rows {
            let (_, headers) = said(origins, "GET", &[("origin", asking)]);
            let told = headers.get(ACCESS_CONTROL_ALLOW_ORIGIN).map(HeaderValue::as_bytes);
            assert_eq!(told, may.then_some(asking.as_bytes()), "{asking}");
            assert_eq!(headers.contains_key(ACCESS_CONTROL_EXPOSE_HEADERS), may, "{asking}");
            assert_eq!(headers[VARY], "Origin", "{asking}");
            assert!(!headers.contains_key("access-control-allow-credentials"), "the upstream's word is gone");
        }
        assert_eq!(rows.len(), 10);
        let (_, headers) = said(&["*"], "GET", &[]);
        assert_eq!((headers.len(), headers[VARY].as_bytes()), (1, &b"Origin"[..]));
        let (_, headers) = said(&["*"], "GET", &[("origin", "https://a"), ("origin", "https://b")]);
        assert_eq!(headers.len(), 1, "no browser sends two");
    }

    #[test]
    fn a_preflight_is_let_do_what_it_asks_for() {
        let asked = [
            ("origin", "https://a"),
            ("access-control-request-method", "DELETE"),
            ("access-control-request-headers", "authorization,prefer"),
        ];
        let (is_preflight, headers) = said(&["https://a"], "OPTIONS", &asked);
        assert!(is_preflight);
        assert_eq!(headers[ACCESS_CONTROL_ALLOW_METHODS], "DELETE");
        assert_eq!(headers[ACCESS_CONTROL_ALLOW_HEADERS], "authorization,prefer");
        assert_eq!(headers[ACCESS_CONTROL_MAX_AGE], MAX_AGE);
        let (is_preflight, headers) = said(&["https://b"], "OPTIONS", &asked);
        assert!(is_preflight && !headers.contains_key(ACCESS_CONTROL_ALLOW_METHODS));
    }

    #[test]
    fn any_other_options_is_no_preflight() {
        for fields in [&[][..], &[("origin", "https://a")], &[("access-control-request-method", "GET")]] {
            assert!(!said(&["*"], "OPTIONS", fields).0, "{fields:?}");
        }
        let asked = [("origin", "https://a"), ("access-control-request-method", "GET")];
        assert!(!said(&["*"], "GET", &asked).0);
    }
}
