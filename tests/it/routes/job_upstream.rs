//! An upstream that never holds a request: each path has the response that the test sets.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clipgate::core::route::{Ladder, Lifetimes, PathTemplate, Route, RungSpec};
use clipgate::testing::config::Config;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::harness::gateway::TestGateway;

/// Dropping it ends the upstream. Paths without a response get 404.
pub(crate) struct JobUpstream {
    pub(crate) url: Uri,
    shared: Arc<Mutex<Script>>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Script {
    replies: HashMap<String, Reply>,
    requests: Vec<(String, HeaderMap)>,
}

/// A response. Its content is that of the moment when the request arrives, also if it is sent later.
#[derive(Clone)]
pub(crate) struct Reply {
    status: u16,
    fields: Vec<(&'static str, String)>,
    body: String,
    delay: Duration,
    is_broken: bool,
}

impl Reply {
    pub(crate) fn new(status: u16, body: &str) -> Self {
        Self { status, fields: Vec::new(), body: body.to_owned(), delay: Duration::ZERO, is_broken: false }
    }

    /// Returns a 200 with a job in this state.
    pub(crate) fn job(id: &str, word: &str) -> Self {
        Self::new(200, &job_body(id, word)).with_field("content-type", "application/json")
    }

    /// Closes the connection in place of a response.
    pub(crate) fn broken() -> Self {
        Self { is_broken: true, ..Self::new(200, "") }
    }

    pub(crate) fn with_status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    pub(crate) fn with_field(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.fields.push((name, value.into()));
        self
    }

    pub(crate) fn after(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }
}

pub(crate) fn job_body(id: &str, word: &str) -> String {
    format!("{{\"id\": \"{id}\", \"status\": \"{word}\"}}")
}

impl JobUpstream {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let shared = Arc::<Mutex<Script>>::default();
        let script = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let script = Arc::clone(&script);
                let service = service_fn(move |request| respond(Arc::clone(&script), request));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(socket), service));
            }
        });
        Self { url, shared, _task: AbortOnDropHandle::new(task) }
    }

    /// Sets the response to a method and a path with its query.
    pub(crate) fn set(&self, method: &str, target: &str, reply: Reply) {
        self.shared.lock().replies.insert(format!("{method} {target}"), reply);
    }

    /// Sets the state of `/jobs/ID`.
    pub(crate) fn set_job(&self, id: &str, word: &str) {
        self.set("GET", &format!("/jobs/{id}"), Reply::job(id, word));
    }

    pub(crate) fn remove(&self, method: &str, target: &str) {
        self.shared.lock().replies.remove(&format!("{method} {target}"));
    }

    /// Returns methods and targets of the requests so far, in order.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.shared.lock().requests.iter().map(|(line, _)| line.clone()).collect()
    }

    pub(crate) fn last_fields(&self) -> HeaderMap {
        self.shared.lock().requests.last().unwrap().1.clone()
    }

    pub(crate) async fn wait_until_requests(&self, count: usize) {
        let reached = async {
            while self.requests().len() < count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let reached = tokio::time::timeout(Duration::from_secs(30), reached).await;
        assert!(reached.is_ok(), "{count} requests: {:?}", self.requests());
    }

    /// Starts a gateway with this upstream and these routes.
    pub(crate) async fn gateway(&self, routes: Vec<Route>) -> TestGateway {
        self.gateway_with(routes, |_| {}).await
    }

    pub(crate) async fn gateway_with(
        &self,
        routes: Vec<Route>,
        configure: impl FnOnce(&mut Config),
    ) -> TestGateway {
        TestGateway::with(|config, _| {
            config.upstream.base_url = self.url.clone();
            config.routes = routes;
            configure(config);
        })
        .await
    }
}

async fn respond(
    script: Arc<Mutex<Script>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, std::io::Error> {
    let line = format!("{} {}", request.method(), request.uri());
    let reply = {
        let mut script = script.lock();
        script.requests.push((line.clone(), request.headers().clone()));
        script.replies.get(&line).cloned().unwrap_or_else(|| Reply::new(404, "{\"detail\":\"no such job\"}"))
    };
    tokio::time::sleep(reply.delay).await;
    if reply.is_broken {
        return Err(std::io::ErrorKind::ConnectionReset.into());
    }
    let mut response = Response::new(Full::from(reply.body));
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap();
    for (name, value) in reply.fields {
        let value = HeaderValue::try_from(value).unwrap();
        response.headers_mut().append(HeaderName::from_static(name), value);
    }
    Ok(response)
}

/// The time between two polls of the test routes.
pub(crate) const PACE: Duration = Duration::from_millis(50);

/// Returns a route that never holds: `waiting`, `running`, then `done` or `failed`.
pub(crate) fn plain_route() -> Route {
    Route {
        name: "jobs".to_owned(),
        path: PathTemplate::parse("/jobs/{id}").unwrap(),
        id_param: None,
        params: vec!["logs".to_owned()],
        list: None,
        ladder: Ladder::new(vec![
            RungSpec::pending("waiting"),
            RungSpec::pending("running"),
            RungSpec::succeeded("done"),
            RungSpec::failed("failed"),
        ]),
        hold: Duration::ZERO,
        wait_param: Some("until".to_owned()),
        pace: PACE,
        max_pace: PACE,
        lifetimes: Lifetimes { live: Some(PACE), ..Lifetimes::default() },
        is_built_in: false,
        ..Route::suno()
    }
}
