//! Recognises requests that a web page of another origin caused.

use http::header::{self, HeaderName, HeaderValue};
use http::uri::Scheme;
use http::{Method, Request, Uri};

use super::host::{is_same_host_port, requested_host};

/// Returns whether a page of another origin caused the request, or may have (Fetch Metadata; RFC 6454 for browsers
/// without it). Frames and links count too, and so does every prefetch: a page can order one, and the browser then
/// reports that no page caused it.
pub(crate) fn is_cross_origin<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    let mut sites = headers.get_all(SEC_FETCH_SITE).into_iter();
    let mut origins = headers.get_all(header::ORIGIN).into_iter();
    let is_foreign = match (sites.next(), origins.next()) {
        (Some(site), _) => !["same-origin", "none"].iter().any(|own| site == own),
        (None, Some(origin)) => !is_requested_host(origin, request),
        (None, None) => false,
    };
    is_foreign || sites.next().is_some() || origins.next().is_some() || headers.contains_key(SEC_PURPOSE)
}

/// Returns whether the origin is the requested host. Only the origin has a scheme; it counts for both.
fn is_requested_host<B>(origin: &HeaderValue, request: &Request<B>) -> bool {
    let Ok(origin) = Uri::try_from(origin.as_bytes()) else { return false };
    let Some(scheme) = origin.scheme().filter(|scheme| [Scheme::HTTP, Scheme::HTTPS].contains(scheme)) else {
        return false;
    };
    let requested = requested_host(request.uri(), request.headers());
    origin
        .authority()
        .zip(requested)
        .is_some_and(|(origin, requested)| is_same_host_port(scheme, origin, &requested))
}

/// Returns whether a browser loads the response as a page of its own, after a link or a script. No other page can read
/// it then.
pub(crate) fn is_top_level_navigation<B>(request: &Request<B>) -> bool {
    let has = |name, value: &str| request.headers().get(name).is_some_and(|sent| sent == value);
    request.method() == Method::GET && has(SEC_FETCH_MODE, "navigate") && has(SEC_FETCH_DEST, "document")
}

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");
const SEC_PURPOSE: HeaderName = HeaderName::from_static("sec-purpose");
