//! One line a request in the log, and its place in what is counted: when it is answered, or when its client hangs up
//! before.
//!
//! Ids of clips and members' names are in it, keys and tokens are not: a query is shown only where it is understood,
//! for elsewhere it may hold anything.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, Request, Response, StatusCode};
use tracing::info;

use crate::auth::Identity;
use crate::clock;
use crate::metrics::{self, Endpoint, Metrics, Word as _};
use crate::model::clip::{ClipSet, KeyDomain};
use crate::model::coalesce::How;
use crate::model::query::WaitQuery;
use crate::reply::X_REQUEST_ID;
use crate::request::{Peer, RequestCtx, RequestId};

/// How a request was dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing yet: the client hung up.
    Left,
    /// Answered from the cache.
    Hit,
    /// Parked, and how that ended.
    Waited(How, &'static str),
    /// A stream of events has begun; a line of its own tells how it ends.
    Streamed,
    /// Passed through.
    Passed,
    /// A browser's question, answered here.
    Preflight,
    /// Answered by the gateway itself, for this reason.
    Refused(&'static str),
}

impl Outcome {
    /// What it is counted as.
    fn counted(self) -> metrics::Outcome {
        match self {
            Outcome::Left => metrics::Outcome::Left,
            Outcome::Hit => metrics::Outcome::Hit,
            Outcome::Waited(How::Opened, _) => metrics::Outcome::Opened,
            Outcome::Waited(How::Leaned, _) => metrics::Outcome::Leaned,
            Outcome::Streamed => metrics::Outcome::Streamed,
            Outcome::Passed => metrics::Outcome::Passed,
            Outcome::Preflight => metrics::Outcome::Preflight,
            Outcome::Refused(_) => metrics::Outcome::Refused,
        }
    }

    fn reason(self) -> Option<&'static str> {
        match self {
            Outcome::Waited(_, reason) | Outcome::Refused(reason) => Some(reason),
            Outcome::Left | Outcome::Hit | Outcome::Streamed | Outcome::Passed | Outcome::Preflight => None,
        }
    }
}

/// The line. Dropping it writes it, and counts the request.
#[derive(Debug)]
pub struct AccessLine {
    /// How the request was dealt with, so far.
    pub outcome: Outcome,
    /// Which member of the team asks.
    pub member: Option<Arc<str>>,
    id: RequestId,
    client: Option<IpAddr>,
    peer: Peer,
    method: Method,
    path: String,
    key: Option<KeyDomain>,
    clips: Option<ClipSet>,
    status: Option<u16>,
    upstream_id: Option<String>,
    since: Instant,
    endpoint: Endpoint,
    metrics: Arc<Metrics>,
}

impl AccessLine {
    /// The line of a request that has just arrived.
    pub fn new<B>(request: &Request<B>, ctx: &RequestCtx, endpoint: Endpoint, metrics: Arc<Metrics>) -> Self {
        Self {
            outcome: Outcome::Left,
            member: None,
            id: ctx.id.clone(),
            client: ctx.trail.client(),
            peer: ctx.trail.peer(),
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            key: None,
            clips: None,
            status: None,
            upstream_id: None,
            since: ctx.arrived,
            endpoint,
            metrics,
        }
    }

    /// It is a wait for these clips, by this key.
    pub fn asked(&mut self, asked: &WaitQuery, identity: &Identity) {
        self.clips = Some(asked.clips());
        self.key = Some(identity.domain);
    }

    /// This is the answer.
    pub fn answered<B>(&mut self, response: &Response<B>) {
        self.status = Some(response.status().as_u16());
        let id = response.headers().get(X_REQUEST_ID).filter(|id| *id != self.id.value());
        self.upstream_id = id.and_then(|id| id.to_str().ok()).map(str::to_owned);
    }
}

impl Drop for AccessLine {
    fn drop(&mut self) {
        let (outcome, took) = (self.outcome.counted(), clock::now().saturating_duration_since(self.since));
        self.metrics.requests.ended(self.endpoint, outcome, took);
        let clips = self
            .clips
            .as_ref()
            .map(|clips| clips.iter().map(crate::model::clip::ClipId::as_str).collect::<Vec<_>>().join(","));
        info!(
            method = %self.method,
            path = %self.path.escape_debug(),
            clips = clips.as_ref().map(|clips| tracing::field::display(clips.escape_debug())),
            status = self.status,
            outcome = outcome.word(),
            reason = self.outcome.reason(),
            seconds = took.as_secs_f64(),
            member = self.member.as_deref(),
            key = self.key.as_ref().map(tracing::field::display),
            client = self.client.map(tracing::field::display),
            peer = %self.peer,
            request_id = %self.id,
            upstream_request_id = self.upstream_id,
            "request"
        );
    }
}

/// The line and the count of a request whose head is no HTTP: nothing of it is known.
pub fn refused_head(status: StatusCode, reason: &'static str, peer: Peer, id: &RequestId, metrics: &Metrics) {
    let outcome = metrics::Outcome::Refused;
    metrics.requests.ended(Endpoint::Other, outcome, Duration::ZERO);
    info!(status = status.as_u16(), outcome = outcome.word(), reason, %peer, request_id = %id, "request");
}
