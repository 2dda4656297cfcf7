//! The access line of a request and its count in the metrics, both written when the head of the response is sent, or
//! when the client disconnects before.
//!
//! Field names follow OpenTelemetry's semantic conventions for HTTP, else they are `clipgate.…`; docs/observability.md
//! lists them. The line has ids of jobs and names of members, but no keys and no tokens. A query is never logged as it
//! is, because unknown parameters may contain secrets.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::header::USER_AGENT;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body as HttpBody;

use super::response::X_REQUEST_ID;
use crate::auth::Identity;
use crate::clock;
use crate::core::coalescer::Cost;
use crate::core::job::{JobId, KeyDomain};
use crate::core::query::WaitQuery;
use crate::protocol::request::{Peer, RequestCtx, RequestId};
use crate::telemetry::log::{KeptText, RequestLine, log_kept_text, log_request};
use crate::telemetry::metrics::{self, EndpointLabel, Metrics, RouteLabel};

/// The way in which a request was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disposition {
    /// Not answered: the client disconnected before.
    ClientClosed,
    Hit,
    /// Parked, with the reason of its end.
    Waited(Cost, &'static str),
    /// An event stream has begun. Its end has a line of its own.
    EventStream,
    Passthrough,
    /// A CORS preflight, or an OPTIONS that must not be forwarded.
    Preflight,
    /// Answered with an error of the gateway, for this reason.
    Rejected(&'static str),
}

impl Disposition {
    /// Returns the metrics label `outcome`.
    pub(crate) fn outcome(self) -> metrics::Outcome {
        match self {
            Disposition::ClientClosed => metrics::Outcome::ClientClosed,
            Disposition::Hit | Disposition::Waited(Cost::SharedHit, _) => metrics::Outcome::Hit,
            Disposition::Waited(Cost::Opened, _) => metrics::Outcome::Opened,
            Disposition::Waited(Cost::Coalesced | Cost::Sibling, _) => metrics::Outcome::Coalesced,
            Disposition::Waited(Cost::Proven, _) => metrics::Outcome::Proven,
            Disposition::EventStream => metrics::Outcome::EventStream,
            Disposition::Passthrough => metrics::Outcome::Passthrough,
            Disposition::Preflight => metrics::Outcome::Preflight,
            Disposition::Rejected(_) => metrics::Outcome::Rejected,
        }
    }

    /// Returns the reason, if the outcome alone does not say it.
    pub(crate) fn reason(self) -> Option<&'static str> {
        match self {
            Disposition::Waited(_, reason) | Disposition::Rejected(reason) => Some(reason),
            Disposition::ClientClosed
            | Disposition::Hit
            | Disposition::EventStream
            | Disposition::Passthrough
            | Disposition::Preflight => None,
        }
    }
}

/// The access line. Dropping it writes the line and counts the request.
#[derive(Debug)]
pub(crate) struct AccessLog {
    pub disposition: Disposition,
    /// The team member.
    pub member: Option<Arc<str>>,
    /// The host name for which the request is rejected.
    pub foreign_host: Option<Box<str>>,
    ctx: RequestCtx,
    method: Method,
    path: Box<str>,
    version: Version,
    user_agent: Option<Box<str>>,
    key: Option<KeyDomain>,
    jobs: Option<Arc<str>>,
    status: Option<u16>,
    body_size: Option<u64>,
    upstream_id: Option<Box<str>>,
    route: RouteLabel,
    metrics: Arc<Metrics>,
}

impl AccessLog {
    pub(crate) fn new<B>(
        request: &Request<B>,
        ctx: RequestCtx,
        route: RouteLabel,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            disposition: Disposition::ClientClosed,
            member: None,
            foreign_host: None,
            ctx,
            method: request.method().clone(),
            // Copied, so that a parked request does not keep the buffer of its head.
            path: request.uri().path().into(),
            version: request.version(),
            user_agent: request.headers().get(USER_AGENT).map(|value| shortened_user_agent(value).into()),
            key: None,
            jobs: None,
            status: None,
            body_size: None,
            upstream_id: None,
            route,
            metrics,
        }
    }

    pub(crate) fn ctx(&self) -> &RequestCtx {
        &self.ctx
    }

    pub(crate) fn route(&self) -> RouteLabel {
        self.route
    }

    /// Returns the key and the jobs of a wait.
    pub(crate) fn wait(&self) -> Option<(KeyDomain, &str)> {
        self.key.zip(self.jobs.as_deref())
    }

    /// Returns the path of the target.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Records a wait on these jobs with this key.
    pub(crate) fn record_wait(&mut self, query: &WaitQuery, identity: &Identity) {
        self.jobs = Some(joined_ids(&query.asked));
        self.key = Some(identity.domain);
    }

    /// `has_id`: the response may have another id than that of the gateway.
    pub(crate) fn record_response<B: HttpBody>(&mut self, response: &Response<B>, has_id: bool) {
        self.status = Some(response.status().as_u16());
        self.body_size = response.body().size_hint().exact();
        if has_id {
            let id = response.headers().get(X_REQUEST_ID).filter(|id| *id != self.ctx.id.value());
            self.upstream_id = id.and_then(|id| id.to_str().ok()).map(Into::into);
        }
    }

    /// Returns the text of the lines of all requests that get the same answer.
    pub(super) fn kept_text(&self) -> KeptText {
        KeptText::of(&self.line())
    }

    /// Returns the line without its duration.
    fn line(&self) -> RequestLine<'_> {
        RequestLine {
            method: Some(self.method.as_str()),
            path: Some(&self.path),
            status: self.status,
            body_size: self.body_size,
            seconds: None,
            outcome: self.disposition.outcome().into_str(),
            reason: self.disposition.reason(),
            route: self.metrics.requests.route_name(self.route),
            jobs: self.jobs.as_deref(),
            member: self.member.as_deref(),
            key: self.key,
            client: self.ctx.forwarded.client_ip(),
            foreign_host: self.foreign_host.as_deref(),
            peer: self.ctx.forwarded.peer(),
            version: Some(version_number(self.version)),
            user_agent: self.user_agent.as_deref(),
            id: self.ctx.id.as_str(),
            upstream_id: self.upstream_id.as_deref(),
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        let (outcome, took) =
            (self.disposition.outcome(), clock::now().saturating_duration_since(self.ctx.arrived));
        self.metrics.requests.finish(self.route, outcome, took);
        let rejection = match self.disposition {
            Disposition::Rejected(reason) => Some(reason),
            _ => None,
        };
        if let Some(status) = self.status {
            self.metrics.rejections.record(status, rejection);
        }
        self.metrics.members.finish(self.member.as_deref(), outcome.is_saved(), rejection.is_some());
        log_request(&RequestLine { seconds: Some(took.as_secs_f64()), ..self.line() });
    }
}

/// A hit that was answered without an [`AccessLog`].
pub(super) struct AnsweredHit<'a> {
    pub(super) status: StatusCode,
    pub(super) body_size: usize,
    pub(super) route: RouteLabel,
    pub(super) domain: KeyDomain,
    pub(super) jobs: &'a str,
    pub(super) member: Option<&'a str>,
    pub(super) text: &'a KeptText,
}

/// Counts a hit, and writes its line.
pub(super) fn log_hit<B>(metrics: &Metrics, request: &Request<B>, ctx: &RequestCtx, hit: &AnsweredHit<'_>) {
    let (disposition, took) = (Disposition::Hit, clock::now().saturating_duration_since(ctx.arrived));
    let outcome = disposition.outcome();
    metrics.requests.finish(hit.route, outcome, took);
    metrics.rejections.record(hit.status.as_u16(), None);
    metrics.members.finish(hit.member, outcome.is_saved(), false);
    let seconds = took.as_secs_f64();
    if log_kept_text(hit.text, seconds) {
        return;
    }
    let user_agent = request.headers().get(USER_AGENT).map(shortened_user_agent);
    let line = RequestLine {
        method: Some(request.method().as_str()),
        path: Some(request.uri().path()),
        status: Some(hit.status.as_u16()),
        body_size: Some(hit.body_size as u64),
        seconds: Some(seconds),
        outcome: outcome.into_str(),
        reason: disposition.reason(),
        route: metrics.requests.route_name(hit.route),
        jobs: Some(hit.jobs),
        member: hit.member,
        key: Some(hit.domain),
        client: ctx.forwarded.client_ip(),
        foreign_host: None,
        peer: ctx.forwarded.peer(),
        version: Some(version_number(request.version())),
        user_agent: user_agent.as_deref(),
        id: ctx.id.as_str(),
        upstream_id: None,
    };
    debug_assert_eq!(*hit.text, KeptText::of(&line));
    log_request(&line);
}

/// Writes the line of a request with a malformed head, and counts it.
pub(crate) fn log_malformed_head(
    status: StatusCode,
    reason: &'static str,
    peer: Peer,
    id: &RequestId,
    metrics: &Metrics,
) {
    let outcome = metrics::Outcome::Rejected;
    metrics.requests.finish(EndpointLabel::Other, outcome, Duration::ZERO);
    metrics.rejections.record(status.as_u16(), Some(reason));
    metrics.members.finish(None, false, true);
    let (outcome, id) = (outcome.into_str(), id.as_str());
    log_request(&RequestLine::malformed(status.as_u16(), outcome, reason, peer, id));
}

/// Joins the ids in sorted order. A single one shares its text with the wait.
fn joined_ids(ids: &[JobId]) -> Arc<str> {
    if let [only] = ids {
        return only.to_shared_str();
    }
    let mut ids: Vec<_> = ids.iter().map(JobId::as_str).collect();
    ids.sort_unstable();
    ids.join(",").into()
}

/// Returns the version as OpenTelemetry writes it.
fn version_number(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "0.9",
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        Version::HTTP_3 => "3",
        _ => "1.1",
    }
}

fn shortened_user_agent(value: &HeaderValue) -> Cow<'_, str> {
    let bytes = value.as_bytes();
    String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_USER_AGENT)])
}

/// The number of bytes of `User-Agent` that are logged: a head may have 128 KiB.
const MAX_USER_AGENT: usize = 256;
