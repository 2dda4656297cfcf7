//! Reads the head of a request: is it a wait, is it for the upstream to judge, or does the gateway answer it itself?

use http::header::{RANGE, TRANSFER_ENCODING};
use http::{HeaderMap, Method, Request, Version};
use http_body::Body as HttpBody;

use super::{Decision, Gateway};
use crate::core::query::{self, Query};
use crate::protocol::preferences::prefers_events;
use crate::protocol::via::max_forwards;

/// A request's target, understood or not.
pub(super) struct Target {
    pub(super) query: Query,
    /// The target's own `lastEventId`, where the request is for an event stream.
    pub(super) last_event_id: Option<String>,
}

/// How a request goes on once its head is known.
pub(super) enum TargetAction {
    /// The request goes on at once.
    Now(Decision),
    /// The target could be a wait's. The end of the body decides: only a request without a body is a wait.
    AfterBody(Target),
}

impl Gateway {
    /// A wait is a GET without a body, in the form that asks this server and for the whole of the answer. Where the
    /// head does not tell whether there is a body, its end decides.
    pub(super) fn read<B: HttpBody>(&self, request: &Request<B>) -> Target {
        let uri = request.uri();
        let names_a_server = request.version() < Version::HTTP_2 && uri.authority().is_some();
        let has_body = request.body().size_hint().lower() > 0;
        if request.method() != Method::GET
            || names_a_server
            || has_body
            || request.headers().contains_key(RANGE)
        {
            return Target { query: Query::Other, last_event_id: None };
        }
        let max_jobs = self.0.wait.load().max_jobs;
        let read = |query| query::parse(&self.0.route, uri.path(), query, max_jobs);
        let query = read(uri.query());
        // The polyfill of `EventSource` for browsers cannot send the header field.
        if query == Query::Other
            && prefers_events(request.headers())
            && let Some((rest, id)) = uri.query().and_then(|query| query::take(query, LAST_EVENT_ID_PARAM))
        {
            return Target { query: read(Some(&rest)), last_event_id: Some(id) };
        }
        Target { query, last_event_id: None }
    }
}

/// The query parameter that stands for `Last-Event-ID`.
const LAST_EVENT_ID_PARAM: &str = "lastEventId";

/// Whether the method asks the upstream to repeat the request in its answer, the key that the gateway added included:
/// TRACE (RFC 9110 §9.3.8), and the older TRACK and DEBUG of Microsoft's servers.
pub(super) fn is_echo(method: &Method) -> bool {
    ["TRACE", "TRACK", "DEBUG"].iter().any(|echo| method.as_str().eq_ignore_ascii_case(echo))
}

/// Whether the gateway is the last that may receive the request (RFC 9110 §7.6.2).
pub(super) fn ends_here<B>(request: &Request<B>) -> bool {
    request.method() == Method::OPTIONS && max_forwards(request.headers()) == Some(0)
}

/// Whether the body's coding is `chunked` and nothing else: hyper takes other codings before it, which would be lost
/// on the way. (A length beside it hyper drops, and ends the connection: RFC 9112 §6.3.)
pub(super) fn is_plain(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => true,
        (Some(coding), None) => coding.as_bytes().eq_ignore_ascii_case(b"chunked"),
        (Some(_), Some(_)) => false,
    }
}
