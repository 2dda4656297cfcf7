//! Classifies a request by its head: a wait, a request to pass through, or one that the gateway answers itself.

use http::header::TRANSFER_ENCODING;
use http::uri::Authority;
use http::{HeaderMap, Method, Request, Version};
use http_body::Body as HttpBody;

use super::{Decision, Gateway};
use crate::core::job::RouteIndex;
use crate::core::query::{self, Query, WaitQuery};
use crate::core::route::{Form, StatusSource};
use crate::protocol::host::requested_host;
use crate::protocol::preferences::{accepts_everything, accepts_json, prefers_events};
use crate::protocol::via::max_forwards;

/// The parsed target of a request.
pub(super) struct RequestTarget {
    pub(super) query: Query,
    /// The query parameter `lastEventId` of a request for an event stream.
    pub(super) last_event_id: Option<String>,
    /// The host of the request, on configured routes.
    pub(super) host: Option<Box<Authority>>,
}

impl RequestTarget {
    fn passed_through() -> Self {
        Self { query: Query::Other, last_event_id: None, host: None }
    }
}

pub(super) enum TargetAction {
    Now(Decision),
    /// Read the body until its first bytes or its end: only a request without a body is a wait.
    AfterBody(RequestTarget),
}

impl Gateway {
    /// Parses the target of a request that can be a wait: a GET of the whole response, in origin form, without a body.
    /// If the head does not say whether there is a body, the caller must find out.
    pub(super) fn classify<B: HttpBody>(
        &self,
        request: &Request<B>,
        endpoint: Option<(RouteIndex, Form)>,
        has_range: bool,
    ) -> RequestTarget {
        let uri = request.uri();
        let is_absolute_form = request.version() < Version::HTTP_2 && uri.authority().is_some();
        let has_body = request.body().size_hint().lower() > 0;
        if request.method() != Method::GET || is_absolute_form || has_body || has_range {
            return RequestTarget::passed_through();
        }
        let Some(found) = endpoint.and_then(|(index, form)| {
            let found = self.0.routes.get(index).endpoint_of_form(form, uri.path())?;
            Some((index, found))
        }) else {
            return RequestTarget::passed_through();
        };
        let max_jobs = self.0.wait.load().max_jobs;
        let parse = |query| query::parse_at(&self.0.routes, found.0, &found.1, query, max_jobs);
        let query = parse(uri.query());
        // The `EventSource` polyfill of browsers cannot send the header field.
        if query == Query::Other
            && prefers_events(request.headers())
            && let Some((rest, id)) = uri.query().and_then(|query| query::take(query, LAST_EVENT_ID_PARAM))
        {
            return self.apply_route(request, parse(Some(&rest)), Some(id));
        }
        self.apply_route(request, query, None)
    }

    /// Passes requests of configured routes through whose `Accept` takes neither JSON nor events, and those for events
    /// where the body of a job can be anything.
    fn apply_route<B>(
        &self,
        request: &Request<B>,
        query: Query,
        last_event_id: Option<String>,
    ) -> RequestTarget {
        let Query::Wait(WaitQuery { route, .. }) = &query else {
            return RequestTarget { query, last_event_id, host: None };
        };
        let route = self.0.routes.get(*route);
        if route.is_built_in {
            return RequestTarget { query, last_event_id, host: None };
        }
        let headers = request.headers();
        // A poll of a route whose body can be anything accepts everything, so only such requests share it (P8).
        let is_understood = match route.status {
            StatusSource::HttpStatus => accepts_everything(headers),
            StatusSource::Body(_) => prefers_events(headers) || accepts_json(headers),
        };
        match is_understood {
            true => RequestTarget {
                query,
                last_event_id,
                host: requested_host(request.uri(), headers).map(Box::new),
            },
            false => RequestTarget::passed_through(),
        }
    }
}

/// The query parameter that replaces `Last-Event-ID`.
const LAST_EVENT_ID_PARAM: &str = "lastEventId";

/// Returns whether the upstream repeats the request in its response to this method, including a key that the gateway
/// added: TRACE (RFC 9110 §9.3.8), and TRACK and DEBUG of older Microsoft servers.
pub(super) fn echoes_request(method: &Method) -> bool {
    ["TRACE", "TRACK", "DEBUG"].iter().any(|echo| method.as_str().eq_ignore_ascii_case(echo))
}

/// Returns whether the gateway is the final recipient of the request (RFC 9110 §7.6.2).
pub(super) fn ends_here<B>(request: &Request<B>) -> bool {
    request.method() == Method::OPTIONS && max_forwards(request.headers()) == Some(0)
}

/// Returns whether the body has no transfer coding but `chunked`. hyper accepts further codings before it; the gateway
/// would lose them. If there is a `Content-Length` too, hyper drops it and closes the connection (RFC 9112 §6.3).
pub(super) fn is_chunked_only(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => true,
        (Some(coding), None) => coding.as_bytes().eq_ignore_ascii_case(b"chunked"),
        (Some(_), Some(_)) => false,
    }
}
