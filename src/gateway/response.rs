//! The answer to a wait: a job's or several jobs' bytes, with the fields that go along.
//!
//! It must never know how the states were come by beyond their [`Source`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use headers::{ETag, HeaderMapExt as _, IfNoneMatch};
use http::header::{AGE, ALLOW, CACHE_CONTROL, CONTENT_TYPE, ETAG, VARY, VIA};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version};

use crate::cache::{Cache, CachedJob};
use crate::clock;
use crate::core::coalescer::Cost;
use crate::core::job::{Head, JobState, Reply};
use crate::core::job_body::{self, ListShape};
use crate::core::route::Form;
use crate::protocol::body::Body;
use crate::protocol::request::RequestId;
use crate::protocol::stored_headers::write_stored;
use crate::protocol::via::{PSEUDONYM, append_via};

/// Where states come from.
#[derive(Clone, Debug)]
pub(crate) enum ResponseOrigin {
    /// The cache.
    Hit {
        /// How long the answer may go on being given.
        ttl: Duration,
        /// What is kept of the first job.
        first: Arc<CachedJob>,
    },
    /// Polls.
    Poll {
        /// Whether the wait cost a request.
        how: Cost,
        /// Whether the upstream's answer is this wait's own.
        direct: bool,
    },
}

/// The answer with jobs in it.
#[derive(Clone, Debug)]
pub(crate) struct JobResponse {
    /// Which endpoint was asked.
    pub form: Form,
    /// The jobs, in the order asked for; at least one.
    pub states: Vec<JobState>,
    /// Where they come from.
    pub source: ResponseOrigin,
    /// Whether anybody may keep the answer.
    pub keep: bool,
    /// The wait that the client preferred and got.
    pub applied: Option<Duration>,
}

impl JobResponse {
    /// The answer, or 304 where the client has it already.
    /// `shape` is asked for the outer shape of a list only.
    pub(crate) fn answer(
        self,
        cache: &Cache,
        shape: impl FnOnce() -> Arc<ListShape>,
        condition: Option<IfNoneMatch>,
    ) -> Response<Body> {
        let mut headers = self.head();
        let body = self.body(shape);
        let lifetime = self.lifetime(cache);
        match (lifetime, &self.source) {
            (None, ResponseOrigin::Hit { .. } | ResponseOrigin::Poll { .. }) => {
                headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            }
            (Some(lifetime), source) => {
                let etag = match (source, self.form) {
                    (ResponseOrigin::Hit { first, .. }, Form::Single) => first.etag.clone(),
                    // Its bytes are more than the job's, even with one job.
                    (ResponseOrigin::Hit { .. }, Form::Multi) | (ResponseOrigin::Poll { .. }, _) => {
                        cache.etag(&body)
                    }
                };
                headers.insert(ETAG, etag);
                headers.append(VARY, HeaderValue::from_static("authorization, accept"));
                headers.insert(CACHE_CONTROL, with_number("private, max-age=", lifetime.as_secs()));
            }
        }
        let age = self.age().as_secs();
        if matches!(self.source, ResponseOrigin::Hit { .. }) || (lifetime.is_some() && age > 0) {
            headers.insert(AGE, with_number("", age));
        }
        match &self.source {
            ResponseOrigin::Hit { ttl, .. } => hit(&mut headers, *ttl),
            ResponseOrigin::Poll { how, .. } => {
                let stored = if lifetime.is_some() { "; stored" } else { "" };
                forwarded(&mut headers, *how, self.upstream_status(), stored);
            }
        }
        prefer_applied(&mut headers, self.applied);
        let mut response = match not_modified(condition, &headers) {
            true => {
                headers.remove(CONTENT_TYPE);
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::NOT_MODIFIED;
                response
            }
            false => Response::new(Body::full(body)),
        };
        *response.headers_mut() = headers;
        response
    }

    /// What goes along with the first job.
    fn head(&self) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(TYPICAL_HEADERS);
        match &self.source {
            ResponseOrigin::Hit { first, .. } => {
                for (name, value) in &first.head.fields {
                    headers.append(name, value.clone());
                }
            }
            ResponseOrigin::Poll { direct, .. } => {
                if let Some(first) = self.states.first() {
                    write_head(&first.head, *direct, &mut headers);
                }
            }
        }
        headers
    }

    fn body(&self, shape: impl FnOnce() -> Arc<ListShape>) -> Bytes {
        match (self.form, self.states.as_slice()) {
            (Form::Single, [state]) => state.body.clone(),
            (Form::Single | Form::Multi, states) => {
                job_body::join(&shape(), states.iter().map(|state| (&state.id, &state.body)))
            }
        }
    }

    /// For how long the client may keep it, from when the oldest state was seen; `None`: not at all.
    fn lifetime(&self, cache: &Cache) -> Option<Duration> {
        let ttls = self.states.iter().map(|state| state.rung.and_then(|rung| cache.terminal_ttl(rung)));
        let is_whole = self.states.iter().all(|state| state.head.is_whole);
        ttls.min().flatten().filter(|ttl| self.keep && is_whole && !ttl.is_zero())
    }

    /// The status that the upstream answered with. The client gets a 200 whichever 2xx that is: the answer to a wait is the
    /// job, however it was come by.
    fn upstream_status(&self) -> StatusCode {
        let status = self.states.first().and_then(|first| StatusCode::from_u16(first.head.status).ok());
        status.unwrap_or_default()
    }

    fn age(&self) -> Duration {
        let now = clock::now();
        self.states.iter().map(|state| now.saturating_duration_since(state.seen_at)).max().unwrap_or_default()
    }
}

/// What the upstream wrote, as it wrote it.
pub(crate) fn unsplit_response(
    reply: &Reply,
    how: Cost,
    direct: bool,
    applied: Option<Duration>,
) -> Response<Body> {
    let mut response = Response::new(Body::full(reply.body.clone()));
    *response.status_mut() =
        StatusCode::from_u16(reply.status).expect("it was a status when the upstream wrote it");
    let status = response.status();
    let headers = response.headers_mut();
    write_head(&reply.head, direct, headers);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    forwarded(headers, how, status, "");
    prefer_applied(headers, applied);
    response
}

/// Says that the upstream was asked; for who caused that, what came of it too.
fn forwarded(headers: &mut HeaderMap, how: Cost, status: StatusCode, stored: &str) {
    match how {
        Cost::Opened => {
            append_status(headers, &[PSEUDONYM, "; fwd=miss; fwd-status=", status.as_str(), stored])
        }
        Cost::Coalesced => append_status(headers, &[PSEUDONYM, "; fwd=miss; collapsed"]),
    }
}

fn write_head(head: &Head, direct: bool, headers: &mut HeaderMap) {
    write_stored(head, direct, headers);
    append_via(headers, Version::HTTP_11);
}

/// Says which preference was followed (RFC 7240 §3).
pub(crate) fn prefer_applied(headers: &mut HeaderMap, applied: Option<Duration>) {
    if let Some(applied) = applied {
        headers.insert(PREFERENCE_APPLIED, with_number("wait=", applied.as_secs()));
    }
}

/// RFC 9110 §13.1.2.
fn not_modified(condition: Option<IfNoneMatch>, answer: &HeaderMap) -> bool {
    let Some(condition) = condition else { return false };
    answer.typed_get::<ETag>().is_some_and(|etag| !condition.precondition_passes(&etag))
}

/// Says what the gateway did with the request (RFC 9211), after what others before it said.
pub(crate) fn cache_status(headers: &mut HeaderMap, member: &str) {
    append_status(headers, &[PSEUDONYM, "; ", member]);
}

/// Says that the answer was kept, and may be given for so much longer.
pub(crate) fn hit(headers: &mut HeaderMap, ttl: Duration) {
    append_status(headers, &[PSEUDONYM, "; hit; ttl=", itoa::Buffer::new().format(ttl.as_secs())]);
}

fn append_status(headers: &mut HeaderMap, parts: &[&str]) {
    headers.append(CACHE_STATUS, joined(parts));
}

fn with_number(text: &str, number: u64) -> HeaderValue {
    joined(&[text, itoa::Buffer::new().format(number)])
}

/// A field's value out of its parts. Without formatting machinery: every answer has some.
fn joined(parts: &[&str]) -> HeaderValue {
    HeaderValue::from_maybe_shared(Bytes::from(parts.concat())).expect("tokens and digits are a value")
}

/// The answer to a preflight; what it lets in is written by [`crate::protocol::cors`].
pub(crate) fn preflight() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    cache_status(response.headers_mut(), "detail=preflight");
    response
}

/// Returns the answer to an OPTIONS request that must not be forwarded (RFC 9110 §7.6.2).
pub(crate) fn options() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(ALLOW, ALLOWED_METHODS);
    cache_status(response.headers_mut(), "detail=max-forwards");
    response
}

/// The methods that the gateway forwards, among those that HTTP defines. Which of them a resource knows is the
/// upstream's to say.
pub(crate) const ALLOWED_METHODS: HeaderValue =
    HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");

/// Adds what every answer carries. An id that the upstream gave its own answer stays.
pub(crate) fn add_common_headers(headers: &mut HeaderMap, id: &RequestId) {
    headers.entry(X_REQUEST_ID).or_insert_with(|| id.value().clone());
    if !headers.contains_key(VIA) {
        append_via(headers, Version::HTTP_11);
    }
}

/// Room for the fields of an answer: as much as a map of 16 places takes before it grows. hyper keeps it, empty, as long
/// as the connection lasts.
const TYPICAL_HEADERS: usize = 12;
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
/// The name of a request, in requests and answers.
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
