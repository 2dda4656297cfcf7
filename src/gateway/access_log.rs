//! One line a request in the log, and its place in what is counted: when it is answered, or when its client hangs up
//! before.
//!
//! Its fields are named by OpenTelemetry's semantic conventions for HTTP where these have a name, else `clipgate.…`;
//! README.md lists them. Ids of jobs and members' names are in it, keys and tokens are not: a query is shown only
//! where it is understood, for elsewhere it may hold anything.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::header::USER_AGENT;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body as HttpBody;
use tracing::info;

use super::response::X_REQUEST_ID;
use crate::auth::Identity;
use crate::clock;
use crate::core::coalescer::Cost;
use crate::core::job::{JobId, KeyDomain};
use crate::core::query::WaitQuery;
use crate::protocol::request::{Peer, RequestCtx, RequestId, shown};
use crate::telemetry::metrics::{self, EndpointLabel, Metrics};

/// How a request was dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disposition {
    /// Nothing yet: the client hung up.
    Left,
    /// Answered from the cache.
    Hit,
    /// Parked, and how that ended.
    Waited(Cost, &'static str),
    /// A stream of events has begun; a line of its own tells how it ends.
    Streamed,
    /// Passed through.
    Passed,
    /// A browser's question, answered here.
    Preflight,
    /// Answered by the gateway itself, for this reason.
    Refused(&'static str),
}

impl Disposition {
    /// What it is counted as.
    pub(crate) fn counted(self) -> metrics::Outcome {
        match self {
            Disposition::Left => metrics::Outcome::ClientClosed,
            Disposition::Hit => metrics::Outcome::Hit,
            Disposition::Waited(Cost::Opened, _) => metrics::Outcome::Opened,
            Disposition::Waited(Cost::Coalesced, _) => metrics::Outcome::Coalesced,
            Disposition::Streamed => metrics::Outcome::EventStream,
            Disposition::Passed => metrics::Outcome::Passthrough,
            Disposition::Preflight => metrics::Outcome::Preflight,
            Disposition::Refused(_) => metrics::Outcome::Rejected,
        }
    }

    /// Why, where the word for it does not say.
    pub(crate) fn reason(self) -> Option<&'static str> {
        match self {
            Disposition::Waited(_, reason) | Disposition::Refused(reason) => Some(reason),
            Disposition::Left
            | Disposition::Hit
            | Disposition::Streamed
            | Disposition::Passed
            | Disposition::Preflight => None,
        }
    }
}

/// The line. Dropping it writes it, and counts the request.
#[derive(Debug)]
pub(crate) struct AccessLog {
    /// How the request was dealt with, so far.
    pub outcome: Disposition,
    /// Which member of the team asks.
    pub member: Option<Arc<str>>,
    /// The host that the request is refused for.
    pub foreign_host: Option<String>,
    ctx: RequestCtx,
    method: Method,
    path: Box<str>,
    version: Version,
    user_agent: Option<Box<str>>,
    key: Option<KeyDomain>,
    jobs: Option<Box<str>>,
    status: Option<u16>,
    body_size: Option<u64>,
    upstream_id: Option<String>,
    endpoint: EndpointLabel,
    metrics: Arc<Metrics>,
}

impl AccessLog {
    /// The line of a request that has just arrived.
    pub(crate) fn new<B>(
        request: &Request<B>,
        ctx: RequestCtx,
        endpoint: EndpointLabel,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            outcome: Disposition::Left,
            member: None,
            foreign_host: None,
            ctx,
            method: request.method().clone(),
            // Texts of its own: what the head was read into need not be kept for them while the request is parked.
            path: request.uri().path().into(),
            version: request.version(),
            user_agent: request.headers().get(USER_AGENT).map(|value| readable(value).into()),
            key: None,
            jobs: None,
            status: None,
            body_size: None,
            upstream_id: None,
            endpoint,
            metrics,
        }
    }

    /// What is known of the request beside what it says.
    pub(crate) fn ctx(&self) -> &RequestCtx {
        &self.ctx
    }

    /// The path that was asked for.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// It is a wait for these jobs, by this key.
    pub(crate) fn asked(&mut self, asked: &WaitQuery, identity: &Identity) {
        self.jobs = Some(joined(&asked.asked));
        self.key = Some(identity.domain);
    }

    /// This is the answer.
    pub(crate) fn answered<B: HttpBody>(&mut self, response: &Response<B>) {
        self.status = Some(response.status().as_u16());
        self.body_size = response.body().size_hint().exact();
        let id = response.headers().get(X_REQUEST_ID).filter(|id| *id != self.ctx.id.value());
        self.upstream_id = id.and_then(|id| id.to_str().ok()).map(str::to_owned);
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        let (outcome, took) =
            (self.outcome.counted(), clock::now().saturating_duration_since(self.ctx.arrived));
        self.metrics.requests.finish(self.endpoint, outcome, took);
        let (from, peer) = (self.ctx.trail.peer(), self.ctx.trail.peer().address());
        // Mostly the same, written once.
        let client = self.ctx.trail.client().map(|ip| match from.ip() == Some(ip) {
            true => Cow::Borrowed(&*peer),
            false => Cow::Owned(shown(ip)),
        });
        // Texts as texts: so they are quoted and escaped as each form of the log does it.
        info!(
            http.request.method = self.method.as_str(),
            url.path = &*self.path,
            http.response.status_code = self.status,
            http.response.body.size = self.body_size,
            http.server.request.duration = took.as_secs_f64(),
            clipgate.outcome = outcome.into_str(),
            clipgate.reason = self.outcome.reason(),
            clipgate.jobs = self.jobs.as_deref(),
            clipgate.member = self.member.as_deref(),
            clipgate.key = self.key.as_ref().map(KeyDomain::short),
            client.address = client.as_deref(),
            server.address = self.foreign_host.as_deref(),
            network.peer.address = &*peer,
            network.peer.port = from.port(),
            network.protocol.version = protocol(self.version),
            user_agent.original = self.user_agent.as_deref(),
            clipgate.request_id = self.ctx.id.as_str(),
            clipgate.upstream_request_id = self.upstream_id,
            "request"
        );
    }
}

/// The line and the count of a request whose head is no HTTP: nothing of it is known.
pub(crate) fn refused_head(
    status: StatusCode,
    reason: &'static str,
    peer: Peer,
    id: &RequestId,
    metrics: &Metrics,
) {
    let outcome = metrics::Outcome::Rejected;
    metrics.requests.finish(EndpointLabel::Other, outcome, Duration::ZERO);
    info!(
        http.response.status_code = status.as_u16(),
        clipgate.outcome = outcome.into_str(),
        clipgate.reason = reason,
        network.peer.address = &*peer.address(),
        network.peer.port = peer.port(),
        clipgate.request_id = id.as_str(),
        "request"
    );
}

/// The ids, mostly one; in one order whatever order they were named in.
fn joined(ids: &[JobId]) -> Box<str> {
    match ids {
        [only] => only.as_str().into(),
        ids => {
            let mut ids: Vec<_> = ids.iter().map(JobId::as_str).collect();
            ids.sort_unstable();
            ids.join(",").into()
        }
    }
}

/// Its version as OpenTelemetry spells it.
fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "0.9",
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        Version::HTTP_3 => "3",
        _ => "1.1",
    }
}

/// The beginning of a field that may hold any bytes.
fn readable(value: &HeaderValue) -> Cow<'_, str> {
    let bytes = value.as_bytes();
    String::from_utf8_lossy(&bytes[..bytes.len().min(MOST_OF_USER_AGENT)])
}

/// The bytes of `User-Agent` that are worth logging: a head may be 128 KiB.
const MOST_OF_USER_AGENT: usize = 256;
