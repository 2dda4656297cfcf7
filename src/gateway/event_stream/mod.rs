//! A wait that is told each state as it is reached, as server-sent events (promise 10; contract, section 7).
//!
//! ```text
//!   gateway ── Ask ──▶ Streams::open ── what is kept, first waits ──▶ or a refusal, as any wait's
//!                           │
//!                           ▼                ┌─ a wait on the next rung of each job ──▶ hub
//!   client ◀── events ── Climb, polled as ───┤
//!                        the client reads    └─ settled ◀──────────────────────────────── hub
//! ```
//!
//! A stream is a sequence of ordinary waits, with all that holds for them: leaning, quotas, bounds, the cache. Each
//! job has its own, as a slow neighbour must hold nobody's news; so a stream costs the upstream no more than a
//! client that asks for one rung after the other. The body is the stream: nothing runs beside it, a client that does
//! not read holds no more than an answer a job, and dropping it leaves. It must never know how a wait is answered.

mod last_event_id;
mod stream;

use std::sync::Arc;
use std::time::Instant;

use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Response, StatusCode};

use self::last_event_id::{Position, PositionCodec};
use self::stream::{JobStream, StreamStart};
use crate::auth::Identity;
use crate::cache::Cache;
use crate::core::query::WaitQuery;
use crate::core::route::{Goal, Route};
use crate::gateway::error::GatewayError;
use crate::gateway::request_options::RequestOptions;
use crate::gateway::response::{self, cache_status, prefer_applied};
use crate::hub::Hub;
use crate::limits::Subject;
use crate::protocol::body::Body;
use crate::protocol::request::RequestId;
use crate::telemetry::trace::Links;

/// Opens streams. Clones are the same.
#[derive(Clone)]
pub(super) struct EventStreams {
    hub: Hub,
    cache: Arc<Cache>,
    route: Arc<Route>,
}

/// What a client asks to be told.
pub(super) struct StreamRequest {
    /// The jobs and the rung; without one it is the highest that may be asked for.
    pub asked: WaitQuery,
    /// Whose key asks.
    pub identity: Identity,
    /// For whom requests are counted.
    pub subject: Subject,
    /// How it wants to be served. Its time is the stream's.
    pub wish: RequestOptions,
    /// The id of the last event that the client has.
    pub last_event_id: Option<String>,
    /// The request's id.
    pub id: RequestId,
    /// When the request came.
    pub arrived: Instant,
    /// Links it to its polls, until the stream begins.
    pub links: Links,
}

impl EventStreams {
    /// Streams of what this hub and this cache tell.
    pub(super) fn new(hub: Hub, cache: Arc<Cache>, route: Arc<Route>) -> Self {
        Self { hub, cache, route }
    }

    /// The stream, its head at once; 204 where the client has been told all. What is refused is refused before the
    /// head. Cancel safe: dropping the future, or the answer's body later, leaves.
    pub(super) async fn open(&self, ask: StreamRequest) -> Result<Response<Body>, GatewayError> {
        let goal = match ask.asked.goal {
            Goal::Now => self.route.ladder.highest_askable(),
            Goal::Rung(rung) => rung,
        };
        let marks = PositionCodec::new(&self.route.ladder, &ask.asked.asked, goal);
        let told = match ask.last_event_id.as_deref().and_then(|id| marks.read(id)) {
            Some(Position::Over) => return Ok(over()),
            Some(Position::Told(told)) => told,
            None => vec![None; ask.asked.asked.len()],
        };
        let applied = ask.wish.applied;
        let mut climb = JobStream::new(self.clone(), ask, goal, marks, told);
        let begun = climb.begin().await?;
        let mut response = Response::new(Body::stream(climb.into_body()));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
        prefer_applied(headers, applied);
        match begun {
            StreamStart::Asking => cache_status(headers, "fwd=miss"),
            StreamStart::Kept { ttl } => response::hit(headers, ttl),
            StreamStart::ToldBefore => cache_status(headers, STREAM_OVER),
        }
        Ok(response)
    }
}

/// To a client that was told all: it stops an `EventSource` (HTML Standard, section 9.2.3).
fn over() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    cache_status(response.headers_mut(), STREAM_OVER);
    response
}

const STREAM_OVER: &str = "detail=stream-over";
/// The field in which a client that connects anew says which event it has last.
pub(super) const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Tells nginx and its like to pass events on as they come.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
