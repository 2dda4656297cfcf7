//! An operator: scrapes the admin listener, and removes clips from the cache.
//!
//! The admin listener must never respond with an error, even during upstream faults. The next request for a removed clip
//! must go to the upstream.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use super::client::{Clients, chain};
use super::clips::{COMPLETED, Clips};
use super::counts::{Counts, Violation};
use super::oracle::violation;
use super::requests::{Action, ClipQuery, Delivery, Key, RequestKind};

/// Upper bound of a request, even on a busy machine.
const LONGEST: Duration = Duration::from_secs(20);

pub(crate) struct Operator {
    /// URL of the admin listener.
    base: String,
    http: legacy::Client<HttpConnector, Empty<Bytes>>,
    clients: Arc<Clients>,
    clips: Arc<Clips>,
    counts: Arc<Counts>,
}

impl Operator {
    pub(crate) fn new(base: String, clients: Arc<Clients>, clips: Arc<Clips>, counts: Arc<Counts>) -> Self {
        let http = legacy::Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
        Self { base, http, clients, clips, counts }
    }

    /// Sends requests until dropped.
    pub(crate) async fn run(self: Arc<Self>, mut rng: Rng) {
        loop {
            tokio::time::sleep(Duration::from_millis(rng.u64(100..600))).await;
            let result = match rng.u8(..5) {
                0 => self.scrape().await,
                1 => self.read_state().await,
                2 => self.expect_text("/healthz", StatusCode::OK, "ok\n").await,
                3 => self.expect_text("/readyz", StatusCode::OK, "ready\n").await,
                _ => self.remove(&mut rng).await,
            };
            match result {
                Ok(()) => self.counts.record_admin_response(),
                Err(violation) => self.counts.record_violation(violation),
            }
        }
    }

    async fn scrape(&self) -> Result<(), Violation> {
        let page = self.query(Method::GET, "/metrics", StatusCode::OK).await?;
        let page = String::from_utf8_lossy(page.body()).into_owned();
        let samples = page.lines().filter(|line| line.starts_with("clipgate_"));
        let unread = samples
            .clone()
            .find(|line| line.rsplit_once(' ').is_none_or(|(_, value)| value.parse::<f64>().is_err()));
        match (samples.count(), unread) {
            (0, _) => violation("metrics are missing", page.chars().take(200).collect()),
            (_, Some(line)) => violation("a metric without a value", line.to_owned()),
            (_, None) => Ok(()),
        }
    }

    async fn read_state(&self) -> Result<(), Violation> {
        let response = self.query(Method::GET, "/api/state", StatusCode::OK).await?;
        let state: Option<Value> = serde_json::from_slice(response.body()).ok();
        if state.is_some_and(|state| state["waits"]["parked"].is_u64()) {
            Ok(())
        } else {
            violation("a state without waits", String::from_utf8_lossy(response.body()).into_owned())
        }
    }

    /// Caches a clip, removes it, and requests it again. That must not be a hit.
    async fn remove(&self, rng: &mut Rng) -> Result<(), Violation> {
        let clip = self.clips.make_finished(rng);
        let query = |kind| {
            let (key, clips) = (Key::Valid(0), vec![Arc::clone(&clip)]);
            Action::Clips(ClipQuery {
                kind,
                key,
                is_single: true,
                clips,
                goal: Some(COMPLETED),
                prefer: None,
            })
        };
        let delivery = || Delivery { is_http2: false, disconnect_after: None };
        self.clients.run(query(RequestKind::Single), delivery()).await;
        self.query(Method::DELETE, &format!("/api/cache/{}", clip.id), StatusCode::OK).await?;
        self.clients.run(query(RequestKind::Removed), delivery()).await;
        Ok(())
    }

    /// Checks that readiness fails during the drain.
    pub(crate) async fn check_draining(&self) {
        if let Err(violation) =
            self.expect_text("/readyz", StatusCode::SERVICE_UNAVAILABLE, "draining\n").await
        {
            self.counts.record_violation(violation);
        }
    }

    /// Checks the status and the text of this path.
    async fn expect_text(&self, path: &str, status: StatusCode, text: &str) -> Result<(), Violation> {
        let response = self.query(Method::GET, path, status).await?;
        let body = String::from_utf8_lossy(response.body()).into_owned();
        if body == text {
            Ok(())
        } else {
            violation("the admin listener returns a different text", format!("{path}: {body}"))
        }
    }

    async fn query(
        &self,
        method: Method,
        path: &str,
        right: StatusCode,
    ) -> Result<Response<Bytes>, Violation> {
        let request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        let request = request.body(Empty::new()).expect("all paths are valid");
        let exchange = async {
            let (head, body) = self.http.request(request).await.map_err(|error| chain(&error))?.into_parts();
            let body = body.collect().await.map_err(|error| chain(&error))?.to_bytes();
            Ok::<_, String>(Response::from_parts(head, body))
        };
        match tokio::time::timeout(LONGEST, exchange).await {
            Ok(Ok(response)) if response.status() == right => Ok(response),
            Ok(Ok(response)) => {
                violation("the admin listener returns an error", format!("{path}: {response:?}"))
            }
            Ok(Err(error)) => violation("the admin listener does not answer", format!("{path}: {error}")),
            Err(_) => violation("the admin listener does not respond in time", path.to_owned()),
        }
    }
}
