//! Responses to waits, and the header fields that all responses have.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use headers::{ETag, HeaderMapExt as _, IfNoneMatch};
use http::header::{AGE, ALLOW, CACHE_CONTROL, CONTENT_TYPE, ETAG, VARY, VIA};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version};

use crate::cache::{Cache, CachedJob};
use crate::core::coalescer::Cost;
use crate::core::job::{JobState, ResponseHead, UpstreamResponse};
use crate::core::job_body::{self, ListShape};
use crate::core::route::{Form, Route};
use crate::gateway::request_options::AppliedPreference;
use crate::limits::{RATELIMIT, RATELIMIT_POLICY};
use crate::protocol::body::Body;
use crate::protocol::request::RequestId;
use crate::protocol::stored_headers::write_stored;
use crate::protocol::via::{PSEUDONYM, append_via};

/// The origin of the states in a response.
#[derive(Clone, Debug)]
pub(crate) enum ResponseOrigin {
    Hit {
        /// The time until the first of the states expires.
        ttl: Duration,
        first: Arc<CachedJob>,
    },
    Poll {
        cost: Cost,
        /// Whether the wait opened the poll, so that its per-response headers are this client's own (P8).
        is_own: bool,
    },
}

/// A response with jobs.
#[derive(Clone, Debug)]
pub(crate) struct JobResponse {
    pub form: Form,
    /// At least one, in the order of the query.
    pub states: Vec<JobState>,
    pub origin: ResponseOrigin,
    /// Whether the gateway and the client may store the response.
    pub keep: bool,
    /// The granted preference.
    pub applied: Option<AppliedPreference>,
    pub style: JobResponseStyle,
    /// When the response was decided.
    pub now: Instant,
}

/// Properties of responses that depend on the route.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct JobResponseStyle {
    /// Whether the client gets the upstream's success code, which is a part of the state. The built-in route has 200 for
    /// every state.
    keeps_code: bool,
    /// Whether unfinished states have a validator: a request with it is held for another state.
    revalidates: bool,
}

impl JobResponseStyle {
    pub(crate) fn of(route: &Route) -> Self {
        Self { keeps_code: !route.is_built_in, revalidates: !route.default_wait.is_zero() }
    }
}

impl JobResponse {
    /// Returns the response; 304 if it has the client's `ETag`. `shape` is called for lists only,
    /// `vary` for responses that caches of clients may store.
    pub(crate) fn into_response(
        self,
        cache: &Cache,
        shape: impl FnOnce() -> Arc<ListShape>,
        vary: impl FnOnce() -> HeaderValue,
        condition: Option<&IfNoneMatch>,
    ) -> Response<Body> {
        let mut headers = self.upstream_headers();
        let body = self.body(shape);
        let lifetime = self.lifetime(cache);
        let cache_control = match lifetime {
            Some(lifetime) => with_number("private, max-age=", lifetime.as_secs()),
            None if self.is_validated() => HeaderValue::from_static("private, no-cache"),
            None => HeaderValue::from_static("no-store"),
        };
        if lifetime.is_some() || self.is_validated() {
            headers.insert(ETAG, self.etag(cache, &body));
            headers.append(VARY, vary());
        }
        headers.insert(CACHE_CONTROL, cache_control);
        let age = self.age().as_secs();
        let is_stored = matches!(
            self.origin,
            ResponseOrigin::Hit { .. } | ResponseOrigin::Poll { cost: Cost::Proven | Cost::SharedHit, .. }
        );
        if is_stored || (lifetime.is_some() && age > 0) {
            headers.insert(AGE, age_value(age));
        }
        match &self.origin {
            ResponseOrigin::Hit { ttl, first } => {
                append_hit_status(&mut headers, *ttl, if first.take_news() { SIBLING } else { "" });
            }
            ResponseOrigin::Poll { cost: Cost::SharedHit, .. } => {
                let ttl = lifetime.map(|lifetime| lifetime.saturating_sub(self.age()));
                append_hit_status(&mut headers, ttl.unwrap_or_default(), SIBLING);
            }
            ResponseOrigin::Poll { cost, .. } => {
                let stored = if lifetime.is_some() { "; stored" } else { "" };
                append_wait_status(&mut headers, *cost, self.upstream_status(), stored);
            }
        }
        insert_preference_applied(&mut headers, self.applied);
        let mut response = match is_not_modified(condition, &headers) {
            true => {
                headers.remove(CONTENT_TYPE);
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::NOT_MODIFIED;
                response
            }
            false => {
                let mut response = Response::new(Body::full(body));
                *response.status_mut() = self.code();
                response
            }
        };
        *response.headers_mut() = headers;
        response
    }

    /// Returns whether the response has a validator although no client may reuse it unasked.
    fn is_validated(&self) -> bool {
        self.style.revalidates
            && self.keep
            && self.states.iter().all(|state| state.rung.is_some() && state.head.is_complete)
    }

    fn etag(&self, cache: &Cache, body: &Bytes) -> HeaderValue {
        match (&self.origin, self.form) {
            (ResponseOrigin::Hit { first, .. }, Form::Single) => first.etag.clone(),
            // The bytes of a list differ from those of its job, even with a single one.
            (ResponseOrigin::Hit { .. }, Form::Multi) | (ResponseOrigin::Poll { .. }, _) => cache.etag(body),
        }
    }

    /// Returns the code of the states, if they have one in common.
    fn code(&self) -> StatusCode {
        let code = self.states.first().map_or(OK, |first| first.head.status);
        let is_common = self.states.iter().all(|state| state.head.status == code);
        let code = if self.style.keeps_code && is_common { code } else { OK };
        StatusCode::from_u16(code).unwrap_or_default()
    }

    /// Returns the upstream's header fields of the first job.
    fn upstream_headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(TYPICAL_HEADERS);
        match &self.origin {
            ResponseOrigin::Hit { first, .. } => {
                for (name, value) in &first.head.fields {
                    headers.append(name, value.clone());
                }
            }
            ResponseOrigin::Poll { is_own, .. } => {
                if let Some(first) = self.states.first() {
                    write_head(&first.head, *is_own, &mut headers);
                }
            }
        }
        headers
    }

    // P8: the bytes of each job are the upstream's.
    fn body(&self, shape: impl FnOnce() -> Arc<ListShape>) -> Bytes {
        match (self.form, self.states.as_slice()) {
            (Form::Single, [state]) => state.body.clone(),
            (Form::Single | Form::Multi, states) => {
                job_body::join(&shape(), states.iter().map(|state| (&state.id, &state.body)))
            }
        }
    }

    /// Returns the time for which the client may store the response, counted from when the oldest state was seen.
    fn lifetime(&self, cache: &Cache) -> Option<Duration> {
        let ttls = self
            .states
            .iter()
            .map(|state| state.rung.and_then(|rung| cache.terminal_ttl(state.id.route(), rung)));
        let is_whole = self.states.iter().all(|state| state.head.is_complete);
        ttls.min().flatten().filter(|ttl| self.keep && is_whole && !ttl.is_zero())
    }

    /// Returns the status of the upstream.
    fn upstream_status(&self) -> StatusCode {
        let status = self.states.first().and_then(|first| StatusCode::from_u16(first.head.status).ok());
        status.unwrap_or_default()
    }

    fn age(&self) -> Duration {
        self.states
            .iter()
            .map(|state| self.now.saturating_duration_since(state.as_of))
            .max()
            .unwrap_or_default()
    }
}

/// Returns the upstream's reply as it came (P8).
pub(crate) fn unsplit_response(
    reply: &UpstreamResponse,
    cost: Cost,
    is_own: bool,
    applied: Option<AppliedPreference>,
) -> Response<Body> {
    let mut response = Response::new(Body::full(reply.body.clone()));
    *response.status_mut() = StatusCode::from_u16(reply.status).expect("a reply has a valid status");
    let status = response.status();
    let headers = response.headers_mut();
    write_head(&reply.head, is_own, headers);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    append_wait_status(headers, cost, status, "");
    insert_preference_applied(headers, applied);
    response
}

/// Appends `Cache-Status` of a wait's answer; with the upstream's status if the wait cost an upstream request.
fn append_wait_status(headers: &mut HeaderMap, cost: Cost, status: StatusCode, stored: &str) {
    match cost {
        Cost::Opened => {
            append_status(headers, &[PSEUDONYM, "; fwd=miss; fwd-status=", status.as_str(), stored])
        }
        Cost::Coalesced => append_status(headers, &[PSEUDONYM, "; fwd=miss; collapsed"]),
        Cost::Proven => append_status(headers, &[PSEUDONYM, "; hit; ttl=0; detail=proven"]),
        Cost::Sibling => append_status(headers, &[PSEUDONYM, "; fwd=miss; collapsed", SIBLING]),
        Cost::SharedHit => append_hit_status(headers, Duration::ZERO, SIBLING),
    }
}

fn write_head(head: &ResponseHead, is_own: bool, headers: &mut HeaderMap) {
    write_stored(head, is_own, headers);
    append_via(headers, Version::HTTP_11);
}

/// Inserts `Preference-Applied` (RFC 7240 §3) for a granted preference.
pub(crate) fn insert_preference_applied(headers: &mut HeaderMap, applied: Option<AppliedPreference>) {
    let value = match applied {
        Some(AppliedPreference::Wait(wait)) => with_number("wait=", wait.as_secs()), // P9
        Some(AppliedPreference::RespondAsync) => HeaderValue::from_static("respond-async"),
        None => return,
    };
    headers.insert(PREFERENCE_APPLIED, value);
}

/// Evaluates `If-None-Match` (RFC 9110 §13.1.2).
fn is_not_modified(condition: Option<&IfNoneMatch>, headers: &HeaderMap) -> bool {
    let Some(condition) = condition else { return false };
    headers.typed_get::<ETag>().is_some_and(|etag| !condition.precondition_passes(&etag))
}

/// Appends the gateway's member of `Cache-Status` (RFC 9211), after those of caches closer to the origin.
pub(crate) fn append_cache_status(headers: &mut HeaderMap, member: &str) {
    append_status(headers, &[PSEUDONYM, "; ", member]);
}

/// Appends `Cache-Status` of a passed-through request. Without `fwd-status`: it would repeat the status of the response.
pub(crate) fn append_passthrough_status(headers: &mut HeaderMap, method: &Method) {
    let is_get = *method == Method::GET;
    let text = if is_get { "clipgate; fwd=bypass" } else { "clipgate; fwd=method" };
    let mut value = HeaderValue::from_static(text);
    value.set_sensitive(true);
    headers.append(CACHE_STATUS, value);
}

/// Appends `Cache-Status` of a hit.
pub(crate) fn append_hit_status(headers: &mut HeaderMap, ttl: Duration, detail: &str) {
    headers.append(CACHE_STATUS, hit_status(ttl.as_secs(), detail));
}

/// Returns `Cache-Status` of a hit.
pub(crate) fn hit_status(ttl_seconds: u64, detail: &str) -> HeaderValue {
    status_value(&[PSEUDONYM, "; hit; ttl=", itoa::Buffer::new().format(ttl_seconds), detail])
}

/// Returns the value of `Age`.
pub(crate) fn age_value(seconds: u64) -> HeaderValue {
    with_number("", seconds)
}

/// Member of `Cache-Status` for states that another replica read.
const SIBLING: &str = "; detail=sibling";

fn append_status(headers: &mut HeaderMap, parts: &[&str]) {
    headers.append(CACHE_STATUS, status_value(parts));
}

fn status_value(parts: &[&str]) -> HeaderValue {
    let mut value = concat_value(parts);
    // Not secret, but different in most responses: HTTP/2 must not index it.
    value.set_sensitive(true);
    value
}

fn with_number(text: &str, number: u64) -> HeaderValue {
    concat_value(&[text, itoa::Buffer::new().format(number)])
}

/// Joins the parts of a value. Every response has some, so this avoids `format!`.
fn concat_value(parts: &[&str]) -> HeaderValue {
    HeaderValue::from_maybe_shared(Bytes::from(parts.concat())).expect("tokens and digits are valid")
}

/// Returns the response to a CORS preflight; [`crate::protocol::cors`] adds its fields.
pub(crate) fn preflight_response() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    append_cache_status(response.headers_mut(), "detail=preflight");
    response
}

/// Returns the response to an OPTIONS request that must not be forwarded (RFC 9110 §7.6.2).
pub(crate) fn max_forwards_response() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(ALLOW, ALLOWED_METHODS);
    append_cache_status(response.headers_mut(), "detail=max-forwards");
    response
}

/// The methods of HTTP that the gateway forwards. The upstream decides which of them a resource supports.
pub(crate) const ALLOWED_METHODS: HeaderValue =
    HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");

/// The fields that a response has already, of those that the gateway adds. One pass costs less than a lookup for each.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PresentFields {
    pub(crate) has_id: bool,
    pub(crate) has_quotas: bool,
    has_via: bool,
}

impl PresentFields {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut present = Self::default();
        for name in headers.keys() {
            present.has_id |= *name == X_REQUEST_ID;
            present.has_quotas |= *name == RATELIMIT || *name == RATELIMIT_POLICY;
            present.has_via |= *name == VIA;
        }
        present
    }

    /// Adds the fields that every response has. The upstream's own `X-Request-Id` stays.
    pub(crate) fn add_common(self, headers: &mut HeaderMap, id: &RequestId) {
        if !self.has_id {
            headers.append(X_REQUEST_ID, id.value().clone());
        }
        if !self.has_via {
            append_via(headers, Version::HTTP_11);
        }
    }
}

/// The initial capacity of a response's header map: the most that fits into 16 slots. hyper keeps the empty map for the
/// lifetime of the connection.
const TYPICAL_HEADERS: usize = 12;
/// 200, as upstream responses store their status.
const OK: u16 = StatusCode::OK.as_u16();
pub(crate) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
