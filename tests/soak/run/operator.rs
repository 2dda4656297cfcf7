//! An operator who scrapes the admin listener and removes clips from the cache. The admin listener never answers with an
//! error, whatever the upstream does, and the next request for a removed clip goes to the upstream.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use super::ask::{Ask, Errand, Key, Kind, Manner};
use super::client::{Clients, chain};
use super::clips::{COMPLETED, Clips};
use super::counts::{Tally, Wrong};
use super::oracle::wrong;

/// Nothing here takes so long, on however busy a machine.
const LONGEST: Duration = Duration::from_secs(20);

/// The operator's client.
pub(crate) struct Operator {
    /// Scheme, host and port of the admin listener.
    base: String,
    http: legacy::Client<HttpConnector, Empty<Bytes>>,
    clients: Arc<Clients>,
    clips: Arc<Clips>,
    tally: Arc<Tally>,
}

impl Operator {
    pub(crate) fn new(base: String, clients: Arc<Clients>, clips: Arc<Clips>, tally: Arc<Tally>) -> Self {
        let http = legacy::Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
        Self { base, http, clients, clips, tally }
    }

    /// Goes on until it is dropped.
    pub(crate) async fn run(self: Arc<Self>, mut rng: Rng) {
        loop {
            tokio::time::sleep(Duration::from_millis(rng.u64(100..600))).await;
            let looked = match rng.u8(..5) {
                0 => self.scrape().await,
                1 => self.look_at_the_state().await,
                2 => self.is_told("/healthz", StatusCode::OK, "ok\n").await,
                3 => self.is_told("/readyz", StatusCode::OK, "ready\n").await,
                _ => self.remove(&mut rng).await,
            };
            match looked {
                Ok(()) => self.tally.admin_answered(),
                Err(wrong) => self.tally.wrong(wrong),
            }
        }
    }

    async fn scrape(&self) -> Result<(), Wrong> {
        let page = self.ask(Method::GET, "/metrics", StatusCode::OK).await?;
        let page = String::from_utf8_lossy(page.body()).into_owned();
        let samples = page.lines().filter(|line| line.starts_with("clipgate_"));
        let unread = samples
            .clone()
            .find(|line| line.rsplit_once(' ').is_none_or(|(_, value)| value.parse::<f64>().is_err()));
        match (samples.count(), unread) {
            (0, _) => wrong("metrics are missing", page.chars().take(200).collect()),
            (_, Some(line)) => wrong("a metric without a value", line.to_owned()),
            (_, None) => Ok(()),
        }
    }

    async fn look_at_the_state(&self) -> Result<(), Wrong> {
        let answer = self.ask(Method::GET, "/api/state", StatusCode::OK).await?;
        let state: Option<Value> = serde_json::from_slice(answer.body()).ok();
        if state.is_some_and(|state| state["waits"]["parked"].is_u64()) {
            Ok(())
        } else {
            wrong("a state without waits", String::from_utf8_lossy(answer.body()).into_owned())
        }
    }

    /// Has a clip cached, removes it, and asks for it again: that must not be a hit.
    async fn remove(&self, rng: &mut Rng) -> Result<(), Wrong> {
        let clip = self.clips.make_done(rng);
        let ask = |kind| {
            let (key, clips) = (Key::Good(0), vec![Arc::clone(&clip)]);
            Errand::Clips(Ask { kind, key, is_single: true, clips, goal: Some(COMPLETED), prefer: None })
        };
        let manner = || Manner { is_http2: false, leaves: None };
        self.clients.run(ask(Kind::Single), manner()).await;
        self.ask(Method::DELETE, &format!("/api/cache/{}", clip.id), StatusCode::OK).await?;
        self.clients.run(ask(Kind::Removed), manner()).await;
        Ok(())
    }

    /// Checks that readiness fails during the drain.
    pub(crate) async fn sees_the_drain(&self) {
        if let Err(wrong) = self.is_told("/readyz", StatusCode::SERVICE_UNAVAILABLE, "draining\n").await {
            self.tally.wrong(wrong);
        }
    }

    /// Checks that this path is answered with this status and this text.
    async fn is_told(&self, path: &str, status: StatusCode, text: &str) -> Result<(), Wrong> {
        let answer = self.ask(Method::GET, path, status).await?;
        let told = String::from_utf8_lossy(answer.body()).into_owned();
        if told == text {
            Ok(())
        } else {
            wrong("the admin listener says something else", format!("{path}: {told}"))
        }
    }

    async fn ask(&self, method: Method, path: &str, right: StatusCode) -> Result<Response<Bytes>, Wrong> {
        let request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        let request = request.body(Empty::new()).expect("paths here are written well");
        let whole = async {
            let (head, body) = self.http.request(request).await.map_err(|error| chain(&error))?.into_parts();
            let body = body.collect().await.map_err(|error| chain(&error))?.to_bytes();
            Ok::<_, String>(Response::from_parts(head, body))
        };
        match tokio::time::timeout(LONGEST, whole).await {
            Ok(Ok(answer)) if answer.status() == right => Ok(answer),
            Ok(Ok(answer)) => wrong("the admin listener fails", format!("{path}: {answer:?}")),
            Ok(Err(error)) => wrong("the admin listener does not answer", format!("{path}: {error}")),
            Err(_) => wrong("the admin listener is silent", path.to_owned()),
        }
    }
}
