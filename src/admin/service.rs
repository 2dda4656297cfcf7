//! Service of the admin listener: answers requests, and samples the state each second.

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
use super::events::{StateEvents, state_event};
use super::guard::Guard;
use super::history::{History, STEP};
use super::routes::AdminRoute;
use super::state::{ConfiguredLimits, StaticInfo, state};
use super::{AdminContext, ReadinessPhase};
use crate::clock;
use crate::config::Config;
use crate::gateway::Gateway;
use crate::gateway::response::X_REQUEST_ID;
use crate::protocol::body::Body;
use crate::protocol::request::{Peer, RequestId};

/// Bound of event streams, far below the limit of connections.
const MAX_STREAMS: usize = 32;

/// Time between two states of an event stream.
const TICK: Duration = Duration::from_secs(1);

/// Ticks between two samples of the history.
const TICKS_PER_STEP: u64 = STEP.as_secs() / TICK.as_secs();

/// Shared by all connections of the admin listener.
pub(super) struct AdminService {
    gateway: Gateway,
    registry: Registry,
    guard: Guard,
    info: StaticInfo,
    history: Mutex<History>,
    /// The newest state as an event, updated while there are event streams.
    states: watch::Sender<Bytes>,
    streams: Arc<Semaphore>,
}

impl AdminService {
    pub(super) fn new(config: &Config, context: AdminContext) -> Self {
        let AdminContext { gateway, mut registry, readiness, listen, example } = context;
        let limits = ConfiguredLimits::new(config);
        registry.register_collector(Box::new(GatewayCollector { gateway: gateway.clone(), limits }));
        Self {
            registry,
            guard: Guard::new(config.admin.token.as_ref()),
            info: StaticInfo {
                readiness,
                limits,
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

    /// Adds samples to the history, and sends the state to the event streams. Cancel safe.
    pub(super) async fn run_sampler(&self) -> Infallible {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.history.lock().add(&self.gateway);
        let mut to_next_step = TICKS_PER_STEP;
        loop {
            ticks.tick().await;
            if to_next_step == 0 {
                to_next_step = TICKS_PER_STEP;
                self.history.lock().add(&self.gateway);
            }
            to_next_step -= 1;
            if self.states.receiver_count() > 0 {
                self.states.send_replace(self.event().await);
            }
        }
    }

    /// Returns whether the request has the token; `None` if no token is configured.
    pub(super) fn has_token<B>(&self, request: &Request<B>) -> Option<bool> {
        self.guard.has_token(request)
    }

    /// Answers a request without reading the body.
    pub(super) async fn respond<B>(&self, request: &Request<B>, peer: Peer) -> Response<Body> {
        let id = RequestId::new(request.headers().get(X_REQUEST_ID));
        let (method, path) = (request.method(), request.uri().path());
        let mut response = match self.route(request, peer).await {
            Ok(response) => {
                let method = method.as_str();
                debug!(http.request.method = method, url.path = path, clipgate.request_id = %id, "admin request");
                response
            }
            Err(error) => {
                info!(
                    http.request.method = method.as_str(),
                    url.path = path,
                    clipgate.reason = error.reason(),
                    clipgate.request_id = %id,
                    "admin request rejected"
                );
                error.respond(&id, path)
            }
        };
        let headers = response.headers_mut();
        headers.insert(X_REQUEST_ID, id.value().clone());
        headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(RESOURCE_POLICY, HeaderValue::from_static("same-origin"));
        response
    }

    async fn route<B>(&self, request: &Request<B>, peer: Peer) -> Result<Response<Body>, AdminError> {
        let route = AdminRoute::from_path(request.uri().path());
        // Unknown paths are guarded too: without access a client learns nothing.
        if !route.as_ref().is_ok_and(AdminRoute::is_public) {
            self.guard.check(request, peer, &self.gateway.allowed_hosts())?;
        }
        let route = route?;
        let methods = route.methods();
        if !methods.contains(&request.method().as_str()) {
            return Err(AdminError::MethodNotAllowed(methods));
        }
        match route {
            AdminRoute::Dashboard(file) => Ok(file.respond(request.headers())),
            AdminRoute::Health => Ok(text_response(StatusCode::OK, "ok\n")),
            AdminRoute::Readiness => Ok(self.readiness()),
            AdminRoute::Metrics => Ok(self.metrics(request.headers())),
            AdminRoute::State => Ok(json_response(state(&self.gateway, &self.info, &self.history).await)),
            AdminRoute::Events => self.events().await,
            AdminRoute::History => Ok(json_response(self.history.lock().json())),
            AdminRoute::Cache => Ok(removed_response(self.gateway.remove_cached(None))),
            AdminRoute::CachedJob(id) => Ok(removed_response(self.gateway.remove_cached(Some(&id)))),
        }
    }

    fn readiness(&self) -> Response<Body> {
        match self.info.readiness.phase() {
            ReadinessPhase::Starting => text_response(StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
            ReadinessPhase::Ready => text_response(StatusCode::OK, "ready\n"),
            ReadinessPhase::Draining => text_response(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        }
    }

    /// Returns the metrics in OpenMetrics if `Accept` asks for it, else in the Prometheus text format.
    fn metrics(&self, headers: &HeaderMap) -> Response<Body> {
        let mut page = String::new();
        let (result, content_type) = match accepts_open_metrics(headers) {
            true => (text::encode(&mut page, &self.registry), OPEN_METRICS),
            false => (prometheus_text::encode(&mut page, &self.registry), prometheus_text::CONTENT_TYPE),
        };
        result.expect("writing to a String cannot fail");
        response(StatusCode::OK, content_type, page)
    }

    async fn events(&self) -> Result<Response<Body>, AdminError> {
        let permit = Arc::clone(&self.streams).try_acquire_owned().map_err(|_| AdminError::TooManyStreams)?;
        let events = self.states.subscribe();
        let events = StateEvents::new(&self.event().await, events, permit);
        let mut response = Response::new(Body::stream(events));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
        Ok(response)
    }

    async fn event(&self) -> Bytes {
        state_event(&state(&self.gateway, &self.info, &self.history).await)
    }
}

fn accepts_open_metrics(headers: &HeaderMap) -> bool {
    crate::protocol::field_value::tokens(headers, &ACCEPT)
        .any(|media_type| media_type.starts_with("application/openmetrics-text"))
}

fn removed_response(entries: u64) -> Response<Body> {
    info!(entries, "cache entries removed");
    json_response(json!({ "removed": entries }).to_string())
}

fn json_response(body: impl Into<Bytes>) -> Response<Body> {
    response(StatusCode::OK, "application/json", body)
}

fn text_response(status: StatusCode, body: &'static str) -> Response<Body> {
    response(status, "text/plain; charset=utf-8", body)
}

fn response(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
