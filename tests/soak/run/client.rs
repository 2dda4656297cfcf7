//! Clients: send a request over a real socket, read the response, and have the oracle check it.
//!
//! Clients know nothing of the gateway except its address.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clipgate::core::route::SunoEndpoints;
use clipgate::testing::clock;
use http::header::{AUTHORIZATION, CACHE_CONTROL, ETAG, IF_NONE_MATCH};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::clips::STATUSES;
use super::counts::{Counts, Outcome, Violation};
use super::oracle::{Oracle, ReceivedResponse, violation};
use super::requests::{Action, ClipQuery, Delivery, Key, OtherRequest, RequestKind};

/// Idle time-out of client connections, shorter than the gateway's.
const IDLE: Duration = Duration::from_secs(4);
/// Pause before a second check of a response that seems late. By then the calibration of that time is complete.
pub(super) const SECOND_LOOK: Duration = Duration::from_secs(1);

/// Enough connections that the requests cancelled on each stay below the limits against reset floods.
const HTTP2_CONNECTIONS: usize = 32;

type Http = legacy::Client<HttpConnector, Full<Bytes>>;

/// All clients. Requests share connections.
pub(crate) struct Clients {
    address: SocketAddr,
    route: SunoEndpoints,
    http1: Http,
    /// One connection each.
    http2: Vec<Http>,
    pub(super) oracle: Arc<Oracle>,
    pub(super) counts: Arc<Counts>,
}

impl Clients {
    pub(crate) fn new(address: SocketAddr, oracle: Arc<Oracle>, counts: Arc<Counts>) -> Self {
        let client = |is_http2| {
            let mut builder = legacy::Client::builder(TokioExecutor::new());
            builder.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE).http2_only(is_http2);
            let mut connector = HttpConnector::new();
            connector.set_nodelay(true);
            builder.build(connector)
        };
        let http2 = (0..HTTP2_CONNECTIONS).map(|_| client(true)).collect();
        Self { address, route: SunoEndpoints::default(), http1: client(false), http2, oracle, counts }
    }

    /// Performs one action, and records its outcome. Cancel safe: dropping the future disconnects the client.
    pub(crate) async fn run(&self, action: Action, delivery: Delivery) {
        let kind = action.kind();
        let result = async {
            match action {
                Action::Clips(query) => self.query(&query, delivery.is_http2).await,
                Action::EventStream(query, seed) => self.follow(&query, seed, delivery.is_http2).await,
                Action::Other(other) => self.send_other(&other, delivery.is_http2).await,
            }
        };
        let ended = match delivery.disconnect_after {
            None => Some(result.await),
            Some(after) => tokio::time::timeout(after, result).await.ok(),
        };
        match ended {
            Some(Ok(outcome)) => self.counts.record_outcome(kind, outcome),
            Some(Err(violation)) => self.counts.record_violation(violation),
            None => self.counts.record_outcome(kind, Outcome::ClientClosed),
        }
    }

    /// Sends bytes that are not a complete HTTP request, and disconnects.
    pub(crate) async fn send_malformed(&self, bytes: &[u8], pause: Duration) {
        if let Ok(mut stream) = TcpStream::connect(self.address).await {
            let _ = stream.write_all(bytes).await;
            tokio::time::sleep(pause).await;
        }
    }

    async fn query(&self, query: &ClipQuery, is_http2: bool) -> Result<Outcome, Violation> {
        let mut response = self.send(self.request(query), is_http2, query).await?;
        self.oracle.record_response(query.key, &response)?;
        if query.kind == RequestKind::Conditional
            && response.status == StatusCode::OK
            && let Some(etag) = response.headers.get(ETAG).cloned()
        {
            self.check_twice(query, &response).await?;
            let mut request = self.request(query);
            request.headers_mut().insert(IF_NONE_MATCH, etag);
            response = self.send(request, is_http2, query).await?;
            self.oracle.record_response(query.key, &response)?;
        }
        self.check_twice(query, &response).await
    }

    /// Checks a response, and once more after a second: the calibration then covers the whole request.
    async fn check_twice(
        &self,
        query: &ClipQuery,
        response: &ReceivedResponse,
    ) -> Result<Outcome, Violation> {
        match self.oracle.check(query, response, &self.counts) {
            Ok(outcome) => Ok(outcome),
            Err(_) => {
                tokio::time::sleep(SECOND_LOOK).await;
                self.oracle.check(query, response, &self.counts)
            }
        }
    }

    async fn send(
        &self,
        request: Request<Full<Bytes>>,
        is_http2: bool,
        query: &ClipQuery,
    ) -> Result<ReceivedResponse, Violation> {
        let (sent, limit) = (clock::now(), self.oracle.max_duration(query.prefer) + Duration::from_secs(20));
        let details =
            |why: String| format!("{:?} by {:?} after {:?}: {why}", query.kind, query.key, sent.elapsed());
        match tokio::time::timeout(limit, self.exchange(request, is_http2, sent)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => violation("an incomplete response", details(chain(&*error))),
            Err(_) => violation("no response", details("timed out".to_owned())),
        }
    }

    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
        is_http2: bool,
        sent: Instant,
    ) -> Result<ReceivedResponse, Box<dyn std::error::Error + Send + Sync>> {
        let (head, body) = self.start(request, is_http2).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(ReceivedResponse {
            status: head.status,
            headers: head.headers,
            body,
            sent,
            received: clock::now(),
        })
    }

    pub(super) async fn start(
        &self,
        request: Request<Full<Bytes>>,
        is_http2: bool,
    ) -> Result<Response<Incoming>, legacy::Error> {
        let number = fastrand::usize(..HTTP2_CONNECTIONS);
        let client = if is_http2 { &self.http2[number] } else { &self.http1 };
        client.request(request).await
    }

    pub(super) fn request(&self, query: &ClipQuery) -> Request<Full<Bytes>> {
        let SunoEndpoints { single_path, multi_path, single_param, multi_param, status_param, .. } =
            &self.route;
        let (path, param) = if query.is_single {
            (single_path, single_param.clone())
        } else {
            (multi_path, format!("{multi_param}[]"))
        };
        let mut pairs = form_urlencoded::Serializer::new(String::new());
        for clip in &query.clips {
            pairs.append_pair(&param, &clip.id);
        }
        if let Some(goal) = query.goal {
            pairs.append_pair(status_param, STATUSES[goal]);
        }
        let mut request = self.get(query.key, &format!("{path}?{}", pairs.finish()));
        let control = match query.kind {
            RequestKind::NoCache => Some("no-cache"),
            RequestKind::NoStore => Some("no-store"),
            RequestKind::OnlyIfCached => Some("only-if-cached"),
            _ => None,
        };
        let fields = request.headers_mut();
        if let Some(control) = control {
            fields.insert(CACHE_CONTROL, HeaderValue::from_static(control));
        }
        if let Some(wait) = query.prefer {
            let wait = format!("wait={}", wait.as_secs());
            fields.insert("prefer", wait.parse().expect("digits are a value"));
        }
        request
    }

    fn get(&self, key: Key, target: &str) -> Request<Full<Bytes>> {
        Request::get(format!("http://{}{target}", self.address))
            .header(AUTHORIZATION, format!("Bearer {}", key.text()))
            .body(Full::default())
            .expect("all targets are valid")
    }

    /// Sends one passed-through request. The response is the upstream's, unless a fault explains the failure.
    async fn send_other(&self, other: &OtherRequest, is_http2: bool) -> Result<Outcome, Violation> {
        let (key, target) = other.target();
        let mut request = self.get(key, &target);
        if let OtherRequest::Mirror(_, _, body) = other {
            *request.method_mut() = http::Method::POST;
            *request.body_mut() = Full::new(body.clone());
        }
        let sent = clock::now();
        let limit = self.oracle.max_duration(None) * 2;
        let result = tokio::time::timeout(limit, self.exchange(request, is_http2, sent)).await;
        let explain = |details: String| match self.oracle.explain_passed(key, &target, sent, clock::now()) {
            Ok(cause) => {
                self.counts.record_cause(cause);
                Ok(Outcome::Failed)
            }
            Err(why) => violation(why, details),
        };
        let response = match result {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return explain(format!("{}: {}", other.name(), chain(&*error))),
            Err(_) => return explain(format!("{}: no response", other.name())),
        };
        self.oracle.record_response(key, &response)?;
        match other.is_right(&response) {
            Some(outcome) => Ok(outcome),
            // An error, or an HTML page with status 200.
            None => explain(other.describe(&response)),
        }
    }
}

impl Action {
    fn kind(&self) -> RequestKind {
        match self {
            Action::Clips(query) | Action::EventStream(query, _) => query.kind,
            Action::Other(other) => other.kind(),
        }
    }
}

impl OtherRequest {
    fn kind(&self) -> RequestKind {
        match self {
            OtherRequest::Unknown(_) => RequestKind::UnknownClip,
            OtherRequest::Echo(..) => RequestKind::Echo,
            OtherRequest::Mirror(..) => RequestKind::Mirror,
            OtherRequest::Stream(..) => RequestKind::Stream,
        }
    }

    /// Returns the key and the target. Numbers make targets unique.
    fn target(&self) -> (Key, String) {
        match self {
            OtherRequest::Unknown(key) => {
                let SunoEndpoints { single_path, single_param, .. } = SunoEndpoints::default();
                (*key, format!("{single_path}?{single_param}=unknown&status=queued"))
            }
            OtherRequest::Echo(key, number) => (*key, format!("/sim/echo?n={number}")),
            OtherRequest::Mirror(key, number, _) => (*key, format!("/sim/mirror?number={number}")),
            OtherRequest::Stream(key, number, lines) => {
                (*key, format!("/sim/stream?n={lines}&every=20ms&number={number}"))
            }
        }
    }

    fn name(&self) -> &'static str {
        RequestKind::ALL.iter().find(|(kind, _)| *kind == self.kind()).map_or("", |(_, name)| name)
    }

    fn is_right(&self, response: &ReceivedResponse) -> Option<Outcome> {
        let ReceivedResponse { status, body, .. } = response;
        let has =
            |status_word: &str| response.field("cache-status") == format!("clipgate; fwd={status_word}");
        let is_so = match self {
            OtherRequest::Unknown(_) => {
                return (*status == StatusCode::NOT_FOUND).then_some(Outcome::Rejected);
            }
            OtherRequest::Echo(_, number) => {
                let seen: Option<Value> = serde_json::from_slice(body).ok();
                let target = format!("/sim/echo?n={number}");
                has("bypass") && seen.is_some_and(|seen| seen["target"] == target && seen["has_key"] == true)
            }
            OtherRequest::Mirror(_, _, sent) => has("method") && body == sent,
            OtherRequest::Stream(_, _, lines) => {
                let all: String = (0..*lines).map(|line| format!("{line}\n")).collect();
                has("bypass") && all.as_bytes() == body
            }
        };
        (*status == StatusCode::OK && is_so).then_some(Outcome::PassedThrough)
    }

    fn describe(&self, response: &ReceivedResponse) -> String {
        let text: String = String::from_utf8_lossy(&response.body).chars().take(120).collect();
        let took = response.received - response.sent;
        format!(
            "{}: {} after {took:?}, {}; {text}",
            self.name(),
            response.status,
            response.field("cache-status")
        )
    }
}

/// Returns the text of an error and its causes.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.extend([": ", &inner.to_string()]);
        source = inner.source();
    }
    text
}
