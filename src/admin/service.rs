//! The one value behind all of the operator's connections: it answers their requests, and looks each second.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderName, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use parking_lot::Mutex;
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::sync::{Semaphore, watch};
use tokio::time::MissedTickBehavior;
use tracing::{debug, info};

use super::collector::GatewayCollector;
use super::error::AdminError;
use super::events::{Events, event};
use super::guard::Guard;
use super::history::{History, STEP};
use super::routes::AdminRoute;
use super::state::{ConfiguredLimits, StaticInfo, state};
use super::{AdminContext, Phase};
use crate::clock;
use crate::config::Config;
use crate::gateway::Gateway;
use crate::gateway::response::X_REQUEST_ID;
use crate::protocol::body::Body;
use crate::protocol::request::{Peer, RequestId};

/// Event streams at once, far below the connections that there may be.
const MAX_STREAMS: usize = 32;

/// The time between two states of an event stream.
const TICK: Duration = Duration::from_secs(1);

/// Ticks between two moments of the history.
const TICKS_A_STEP: u64 = STEP.as_secs() / TICK.as_secs();

/// What the operator's side is made of.
pub(super) struct AdminService {
    gateway: Gateway,
    registry: Registry,
    guard: Guard,
    about: StaticInfo,
    history: Mutex<History>,
    /// The newest state, as an event; looked after while somebody reads it.
    states: watch::Sender<Bytes>,
    streams: Arc<Semaphore>,
}

impl AdminService {
    pub(super) fn new(config: &Config, subject: AdminContext) -> Self {
        let AdminContext { gateway, mut registry, readiness, listen, example } = subject;
        let caps = ConfiguredLimits::new(config);
        registry.register_collector(Box::new(GatewayCollector { gateway: gateway.clone(), caps }));
        Self {
            registry,
            guard: Guard::new(config.admin.token.as_ref()),
            about: StaticInfo {
                readiness,
                caps,
                base_url: config.upstream.base_url.to_string(),
                listen,
                example,
                started: clock::now(),
                started_at: SystemTime::now(),
            },
            history: Mutex::default(),
            states: watch::Sender::new(Bytes::new()),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            gateway,
        }
    }

    /// Remembers now and then how it stands, and tells those who read along. Cancel safe.
    pub(super) async fn run_sampler(&self) -> Infallible {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.history.lock().add(&self.gateway);
        let mut to_next_step = TICKS_A_STEP;
        loop {
            ticks.tick().await;
            if to_next_step == 0 {
                to_next_step = TICKS_A_STEP;
                self.history.lock().add(&self.gateway);
            }
            to_next_step -= 1;
            if self.states.receiver_count() > 0 {
                self.states.send_replace(self.event().await);
            }
        }
    }

    /// Whether the request brings the token; `None` where there is none to bring.
    pub(super) fn brings_token<B>(&self, request: &Request<B>) -> Option<bool> {
        self.guard.brings_token(request)
    }

    /// Answers a request. Its body is not read.
    pub(super) async fn answer<B>(&self, request: &Request<B>, peer: Peer) -> Response<Body> {
        let id = RequestId::new(request.headers().get(X_REQUEST_ID));
        let (method, path) = (request.method(), request.uri().path());
        let mut response = match self.answer_or_refuse(request, peer).await {
            Ok(response) => {
                let method = method.as_str();
                debug!(http.request.method = method, url.path = path, clipgate.request_id = %id, "admin request");
                response
            }
            Err(refusal) => {
                info!(
                    http.request.method = method.as_str(),
                    url.path = path,
                    clipgate.reason = refusal.reason(),
                    clipgate.request_id = %id,
                    "admin request refused"
                );
                refusal.answer(&id, path)
            }
        };
        let headers = response.headers_mut();
        headers.insert(X_REQUEST_ID, id.value().clone());
        headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(RESOURCE_POLICY, HeaderValue::from_static("same-origin"));
        response
    }

    async fn answer_or_refuse<B>(
        &self,
        request: &Request<B>,
        peer: Peer,
    ) -> Result<Response<Body>, AdminError> {
        let resource = AdminRoute::of(request.uri().path());
        if !resource.as_ref().is_ok_and(AdminRoute::is_open) {
            self.guard.check(request, peer, &self.gateway.allowed_hosts())?;
        }
        let resource = resource?;
        let methods = resource.methods();
        if !methods.contains(&request.method().as_str()) {
            return Err(AdminError::Method(methods));
        }
        match resource {
            AdminRoute::Dashboard(file) => Ok(file.answer(request.headers())),
            AdminRoute::Health => Ok(text_of(StatusCode::OK, "ok\n")),
            AdminRoute::Readiness => Ok(self.readiness()),
            AdminRoute::Metrics => Ok(self.metrics(request.headers())),
            AdminRoute::State => Ok(json_of(state(&self.gateway, &self.about).await)),
            AdminRoute::Events => self.events().await,
            AdminRoute::History => Ok(json_of(self.history.lock().json())),
            AdminRoute::Cache => Ok(removed_response(self.gateway.cache().remove_all())),
            AdminRoute::Job(id) => Ok(removed_response(self.gateway.cache().remove(&id))),
        }
    }

    fn readiness(&self) -> Response<Body> {
        match self.about.readiness.phase() {
            Phase::Starting => text_of(StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
            Phase::Ready => text_of(StatusCode::OK, "ready\n"),
            Phase::Draining => text_of(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        }
    }

    /// In OpenMetrics for who asks for it, else in Prometheus' older text format, which everybody reads.
    fn metrics(&self, request: &HeaderMap) -> Response<Body> {
        let mut page = String::new();
        let (encoded, kind) = match wants_open_metrics(request) {
            true => (text::encode(&mut page, &self.registry), OPEN_METRICS),
            false => (prometheus_text::encode(&mut page, &self.registry), prometheus_text::CONTENT_TYPE),
        };
        encoded.expect("a String takes all that is written");
        content(StatusCode::OK, kind, page)
    }

    async fn events(&self) -> Result<Response<Body>, AdminError> {
        let place = Arc::clone(&self.streams).try_acquire_owned().map_err(|_| AdminError::Busy)?;
        let events = self.states.subscribe();
        let events = Events::new(&self.event().await, events, place);
        let mut response = Response::new(Body::stream(events));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
        Ok(response)
    }

    async fn event(&self) -> Bytes {
        event(&state(&self.gateway, &self.about).await)
    }
}

fn wants_open_metrics(request: &HeaderMap) -> bool {
    crate::protocol::field_value::tokens(request, &ACCEPT)
        .any(|kind| kind.starts_with("application/openmetrics-text"))
}

fn removed_response(entries: u64) -> Response<Body> {
    info!(entries, "cache entries forgotten");
    json_of(json!({ "removed": entries }).to_string())
}

fn json_of(body: impl Into<Bytes>) -> Response<Body> {
    content(StatusCode::OK, "application/json", body)
}

fn text_of(status: StatusCode, body: &'static str) -> Response<Body> {
    content(status, "text/plain; charset=utf-8", body)
}

fn content(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
