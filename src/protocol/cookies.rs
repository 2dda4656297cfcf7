//! Cookies in the fields of a message.

use http::header::{self, HeaderMap, HeaderValue};

/// Removes the cookies of the upstream account from the head or the trailers of a response.
pub(crate) fn strip_set_cookie(headers: &mut HeaderMap) {
    headers.remove(header::SET_COOKIE);
    headers.remove("set-cookie2");
}

/// Joins several `Cookie` fields into one: HTTP/2 lets a client split the field, HTTP/1.1 does not (RFC 9113 §8.2.3).
pub(crate) fn join_cookie_fields(headers: &mut HeaderMap) {
    let crumbs: Vec<&[u8]> = headers.get_all(header::COOKIE).into_iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, joined);
    }
}
