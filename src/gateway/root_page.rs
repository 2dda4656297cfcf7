//! The page for a person who opens the address of the gateway in a browser.
//!
//! A page of the upstream at `/` is passed through. The browser gets this page instead of an error only.

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_SECURITY_POLICY,
    CONTENT_TYPE, ETAG, LAST_MODIFIED, WWW_AUTHENTICATE,
};
use http::{HeaderName, HeaderValue, Request, Response};

use crate::protocol::body::Body;
use crate::protocol::fetch_metadata::is_top_level_navigation;

const PAGE: &[u8] = include_bytes!("root_page.html");

/// Fields that describe the replaced body, and the challenge, which would open a dialog of the browser.
const REPLACED: [HeaderName; 6] =
    [CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LENGTH, ETAG, LAST_MODIFIED, WWW_AUTHENTICATE];

/// Returns whether a browser opens `/` as a page.
pub(super) fn is_root_page<B>(request: &Request<B>) -> bool {
    request.uri().path() == "/" && is_top_level_navigation(request)
}

/// Replaces the body of an error by the page. The status stays.
pub(super) fn replace_error(response: Response<Body>) -> Response<Body> {
    let status = response.status();
    if !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let mut response = response.map(|_| Body::full(Bytes::from_static(PAGE)));
    let headers = response.headers_mut();
    for name in &REPLACED {
        headers.remove(name);
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let policy =
        HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'");
    headers.insert(CONTENT_SECURITY_POLICY, policy);
    response
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    fn request(path: &str, fields: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::get(path);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    #[test]
    fn only_a_browser_that_opens_the_root_gets_the_page() {
        let browser = [("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
        assert!(is_root_page(&request("/", &browser)));
        assert!(!is_root_page(&request("/", &[])));
        assert!(!is_root_page(&request("/v1", &browser)));
        assert!(!is_root_page(&request("/", &[("sec-fetch-mode", "cors"), ("sec-fetch-dest", "empty")])));
    }

    #[test]
    fn the_page_replaces_errors_only_and_keeps_the_status() {
        for (status, is_replaced) in [(200, false), (302, false), (404, true), (502, true)] {
            let response =
                Response::builder().status(status).header(CONTENT_LENGTH, "4").header(ETAG, "\"x\"");
            let response = replace_error(response.body(Body::full("body")).unwrap());
            assert_eq!(response.status(), StatusCode::from_u16(status).unwrap());
            assert_eq!(response.headers().contains_key(ETAG), !is_replaced);
            assert_eq!(response.headers().contains_key(CONTENT_SECURITY_POLICY), is_replaced);
        }
    }
}
