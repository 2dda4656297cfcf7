//! Server-sent events: a wait that gets each state of its jobs as it is reached (P10).
//!
//! ```text
//!   gateway ── StreamRequest ──▶ EventStreams::open ── cache, first waits ──▶ or an error, as for any wait
//!                                      │
//!                                      ▼                 ┌─ a wait for the next rung of each job ──▶ hub
//!   client ◀── events ── JobStream, polled as the ───────┤
//!                        client reads                    └─ WaitResult ◀─────────────────────────── hub
//! ```
//!
//! A stream is a sequence of ordinary waits: attaching, quotas, bounds and the cache apply to each. Every job has its
//! own wait, so that a slow job does not delay events of the others. The upstream's cost is that of a client that waits
//! for one rung after the other.
//!
//! The body of the response is the stream. It has no task. A client that does not read holds at most one response per
//! job, and dropping the body ends its waits (P6).

mod last_event_id;
mod stream;

use std::sync::Arc;
use std::time::Instant;

use futures_util::future::BoxFuture;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use self::last_event_id::{Position, PositionCodec};
use self::stream::{JobStream, StreamStart};
use crate::auth::Identity;
use crate::cache::Cache;
use crate::core::query::WaitQuery;
use crate::core::route::{Goal, Routes};
use crate::gateway::error::GatewayError;
use crate::gateway::guarded_body::{GuardedBody, OpenRequest};
use crate::gateway::passthrough::PassthroughResponse;
use crate::gateway::request_options::RequestOptions;
use crate::gateway::response::{append_cache_status, append_hit_status, insert_preference_applied};
use crate::gateway::{Gateway, RequestState};
use crate::hub::Hub;
use crate::limits::Subject;
use crate::protocol::body::Body;
use crate::protocol::request::RequestId;
use crate::telemetry::trace::Links;

/// Opens event streams. Clones share hub and cache.
#[derive(Clone)]
pub(super) struct EventStreams {
    hub: Hub,
    cache: Arc<Cache>,
    routes: Arc<Routes>,
}

/// A request for an event stream.
pub(super) struct StreamRequest {
    query: WaitQuery,
    identity: Identity,
    subject: Subject,
    /// The timeout is that of the stream.
    options: RequestOptions,
    /// The id of the last event that the client has.
    last_event_id: Option<String>,
    id: RequestId,
    arrived: Instant,
    /// Links the request to its polls until the stream begins.
    links: Links,
}

impl StreamRequest {
    /// `in_query` is the query parameter that replaces the field `Last-Event-ID`.
    pub(super) fn new(
        headers: &HeaderMap,
        in_query: Option<String>,
        query: WaitQuery,
        options: RequestOptions,
        identity: Identity,
        state: &RequestState,
    ) -> Self {
        let last_event_id = match headers.get(LAST_EVENT_ID) {
            Some(field) => field.to_str().ok().map(str::to_owned),
            None => in_query,
        };
        Self {
            query,
            identity,
            subject: state.subject,
            options,
            last_event_id,
            id: state.log.ctx().id.clone(),
            arrived: state.log.ctx().arrived,
            links: state.span.links(),
        }
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }
}

impl Gateway {
    pub(super) fn stream(
        self,
        request: StreamRequest,
        open: Arc<OpenRequest>,
        state: Box<RequestState>,
    ) -> BoxFuture<'static, PassthroughResponse> {
        Box::pin(async move {
            let result = self.0.streams.open(request).await;
            let guarded = |body| Body::stream(GuardedBody::new(body, open));
            self.respond(state, result.map(|response| response.map(guarded).into()))
        })
    }
}

impl EventStreams {
    pub(super) fn new(hub: Hub, cache: Arc<Cache>, routes: Arc<Routes>) -> Self {
        Self { hub, cache, routes }
    }

    /// Returns the head of the stream at once, or 204 for a client that already has all events. All errors that are
    /// known by then are returned instead of a head.
    ///
    /// Cancel safe: dropping the future, or later the body of the response, ends the stream's waits.
    async fn open(&self, request: StreamRequest) -> Result<Response<Body>, GatewayError> {
        let route = self.routes.get(request.query.route);
        let goal = match request.query.goal {
            Goal::Now | Goal::Not(_) => route.ladder.highest_askable(),
            Goal::Rung(rung) => rung,
        };
        let codec = PositionCodec::new(route, &request.query.asked, goal);
        let sent = match request.last_event_id.as_deref().and_then(|id| codec.decode(id)) {
            Some(Position::Over) => return Ok(stream_over_response()),
            Some(Position::Sent(sent)) => sent,
            None => vec![None; request.query.asked.len()],
        };
        let applied = request.options.applied;
        let mut stream = JobStream::new(self.clone(), request, goal, codec, sent);
        let start = stream.start().await?;
        let mut response = Response::new(Body::stream(stream.into_body()));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
        insert_preference_applied(headers, applied);
        match start {
            StreamStart::Waiting => append_cache_status(headers, "fwd=miss"),
            StreamStart::Cached { ttl } => append_hit_status(headers, ttl, ""),
            StreamStart::SentBefore => append_cache_status(headers, STREAM_OVER),
        }
        Ok(response)
    }
}

/// Returns the 204 after which an `EventSource` does not reconnect (HTML Standard, section 9.2.3).
fn stream_over_response() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    append_cache_status(response.headers_mut(), STREAM_OVER);
    response
}

const STREAM_OVER: &str = "detail=stream-over";
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Makes nginx and other proxies pass events on without buffering.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
