//! The stage that tests play on: a gateway on a port of its own before a simulated upstream, and a client.
//!
//! ```text
//!   test ── get, spawn_get, send ──▶ Server + Gateway ──▶ Sim ◀── put, plan, fault, until ── test
//! ```
//!
//! All of it runs on the test's own thread and ends with the [`Stage`]. Tests synchronise with [`Stage::until`],
//! which sees the upstream's side, and [`Stage::until_parked`], which sees the waits.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use clipgate::sim::{Observation, Sim, SimOptions};
use clipgate::testing::admin::{Admin, AdminContext, Readiness};
use clipgate::testing::clock;
use clipgate::testing::config::{self, Config, Listen};
use clipgate::testing::gateway::Gateway;
use clipgate::testing::server::{Listener, Server, TlsError, tcp_address};
use clipgate::testing::telemetry::metrics::Metrics;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use prometheus_client::registry::Registry;
use tokio::net::TcpSocket;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Nothing here takes so long, on however busy a machine.
const PATIENCE: u64 = 30;

/// How often the gateway is asked how many waits it has.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// A gateway before a simulated upstream.
pub(crate) struct TestGateway {
    /// The upstream.
    pub(crate) sim: Sim,
    /// Where the gateway listens.
    pub(crate) address: SocketAddr,
    gateway: Gateway,
    config: Config,
    /// What the gateway counts, until the operator's side has it.
    registry: Option<Registry>,
    client: Client<HttpConnector, Full<Bytes>>,
    /// The upstream's port while nothing listens on it.
    closed: Option<TcpSocket>,
    /// Ends the upstream, and the task that it runs in.
    upstream: Option<(CancellationToken, AbortOnDropHandle<()>)>,
    stop: CancellationToken,
    _tasks: JoinSet<()>,
}

/// What the gateway answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// From before the connection was made until the body's end.
    pub(crate) took: Duration,
}

impl TestGateway {
    /// The upstream holds polls for 2 s, waits wait for 2 s, polls linger for 200 ms; live states are not kept
    /// and limits are far away.
    pub(crate) async fn new() -> Self {
        Self::with(|_, _| {}).await
    }

    /// The same, but the upstream holds and waits wait for so long.
    pub(crate) async fn with_hold(hold: Duration) -> Self {
        Self::with(|config, options| set_hold(hold, config, options)).await
    }

    /// The same as [`Stage::new`], changed.
    pub(crate) async fn with(configure: impl FnOnce(&mut Config, &mut SimOptions)) -> Self {
        let mut stage = Self::without_upstream(configure).await;
        stage.start_upstream();
        stage
    }

    /// The same, but connections to the upstream are refused until [`Stage::raise_upstream`].
    pub(crate) async fn without_upstream(configure: impl FnOnce(&mut Config, &mut SimOptions)) -> Self {
        Self::served_by(Server::new, configure).await
    }

    /// The same as [`Stage::new`], but clients who do nothing when it is their turn are given up after so long, those
    /// who owe the rest of a head among them.
    pub(crate) async fn with_stall_timeout(patience: Duration) -> Self {
        let configure = |config: &mut Config, _: &mut SimOptions| config.server.header_timeout = patience;
        let mut stage = Self::served_by(impatiently(patience), configure).await;
        stage.start_upstream();
        stage
    }

    /// The same, before another upstream.
    pub(crate) async fn with_stall_timeout_and_upstream(patience: Duration, upstream: &Uri) -> Self {
        let configure = |config: &mut Config, _: &mut SimOptions| config.upstream.base_url = upstream.clone();
        Self::served_by(impatiently(patience), configure).await
    }

    async fn served_by(
        serve: impl BuildServer,
        configure: impl FnOnce(&mut Config, &mut SimOptions),
    ) -> Self {
        let (mut config, mut options) = (Config::default(), SimOptions::default());
        set_hold(Duration::from_secs(2), &mut config, &mut options);
        config.wait.linger = Duration::from_millis(200);
        config.cache.live_ttl = Duration::ZERO;
        config.limits.requests_per_second = 1_000_000;
        config.limits.burst = 1_000_000;
        config.limits.calls_per_second = 1_000_000;
        config.limits.calls_burst = 1_000_000;

        let closed = bound(([127, 0, 0, 1], 0).into());
        let upstream = closed.local_addr().expect("it is bound");
        config.upstream.base_url = format!("http://{upstream}").parse().expect("it is a URL");
        configure(&mut config, &mut options);

        let mut tasks = JoinSet::new();
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let (gateway, hub) = Gateway::new(&config, metrics).expect("the configuration is good");
        tasks.spawn(hub);
        let listen = Listen::Tcp(([127, 0, 0, 1], 0).into());
        let listener = Listener::bind(&listen).await.expect("there are ports left");
        let address = tcp_address(&listener).expect("it is TCP");
        let stop = CancellationToken::new();
        let server = serve(gateway.clone(), &config.server, stop.clone()).expect("it speaks no TLS");
        tasks.spawn(server.run(vec![listener]));
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
        let registry = Some(registry);
        let closed = Some(closed);
        let sim = Sim::new(options);
        Self { sim, address, gateway, config, registry, client, closed, upstream: None, stop, _tasks: tasks }
    }

    /// From now on the upstream accepts connections.
    pub(crate) fn start_upstream(&mut self) {
        let closed = self.closed.take().expect("the upstream is away");
        let listener = closed.listen(1024).expect("the port is its own");
        let end = CancellationToken::new();
        let serving = self.sim.clone().serve(listener, end.clone().cancelled_owned());
        self.upstream = Some((end, AbortOnDropHandle::new(tokio::spawn(serving))));
    }

    /// Drops all connections of the upstream; until [`Stage::raise_upstream`] its port refuses new ones.
    pub(crate) async fn stop_upstream(&mut self) {
        let (end, serving) = self.upstream.take().expect("the upstream is there");
        end.cancel();
        within_secs(PATIENCE, serving).await.expect("the upstream does not panic");
        let upstream = &self.config.upstream.base_url;
        let address =
            upstream.authority().expect("it has a port").as_str().parse().expect("it is an address");
        self.closed = Some(bound(address));
    }

    /// Asks on a connection of its own, with `Authorization: Bearer demo` if no other is given.
    pub(crate) async fn get(&self, target: &str, headers: &[(&str, &str)]) -> Answer {
        self.spawn_get(target, headers).await.expect("the request does not panic")
    }

    /// The same, beside the test. Aborting or dropping the handle hangs up.
    pub(crate) fn spawn_get(&self, target: &str, headers: &[(&str, &str)]) -> AbortOnDropHandle<Answer> {
        let mut request = Request::get(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(Full::default()).expect("the test asks for something sensible");
        request.headers_mut().entry(AUTHORIZATION).or_insert("Bearer demo".parse().expect("it is text"));
        self.spawn(request)
    }

    /// Gives the running gateway another configuration, as SIGHUP does.
    pub(crate) fn reconfigure(&self, config: &Config) {
        self.gateway.reload(config).expect("the configuration is good");
    }

    /// Opens the operator's side, on a port of its own.
    pub(crate) async fn open_admin(&mut self, readiness: &Readiness) -> Admin {
        let subject = AdminContext {
            gateway: self.gateway.clone(),
            registry: self.registry.take().expect("it is opened once"),
            readiness: readiness.clone(),
            listen: vec![Listen::Tcp(self.address)],
            example: "curl".to_owned(),
        };
        let listen = vec![Listen::Tcp(([127, 0, 0, 1], 0).into())];
        Admin::start(listen, &self.config, subject).await.expect("there are ports left")
    }

    /// Tells the gateway to stop, as SIGTERM does.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// Sends a request as it is, but to the gateway.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        self.spawn(request).await.expect("the request does not panic")
    }

    fn spawn(&self, mut request: Request<Full<Bytes>>) -> AbortOnDropHandle<Answer> {
        let began = clock::now();
        let uri = format!("http://{}{}", self.address, request.uri());
        *request.uri_mut() = Uri::try_from(uri).expect("the test asks for something sensible");
        let client = self.client.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            let answer = async {
                let (head, body) = client.request(request).await.expect("there is an answer").into_parts();
                let body = body.collect().await.expect("the answer is whole").to_bytes();
                Answer { status: head.status, headers: head.headers, body, took: began.elapsed() }
            };
            within_secs(PATIENCE, answer).await
        }))
    }

    /// Comes back when this holds at the upstream; [`Sim::until`] with a limit.
    pub(crate) async fn wait_until(&self, what: impl FnMut(&Observation) -> bool) {
        let came = tokio::time::timeout(Duration::from_secs(PATIENCE), self.sim.wait_until(what)).await;
        assert!(came.is_ok(), "it did not come about within {PATIENCE} s: {:#?}", self.upstream_requests());
    }

    /// Comes back when so many waits are parked.
    pub(crate) async fn wait_until_parked(&self, waits: usize) {
        let parked = async {
            while self.gateway.waits() != waits {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let came = tokio::time::timeout(Duration::from_secs(PATIENCE), parked).await;
        assert!(came.is_ok(), "there are {} waits after {PATIENCE} s, not {waits}", self.gateway.waits());
    }

    /// The targets that the upstream was asked for so far, in order.
    pub(crate) fn upstream_requests(&self) -> Vec<String> {
        self.sim.requests().iter().map(|seen| seen.target.to_string()).collect()
    }

    /// How many requests the upstream has seen with this status so far.
    pub(crate) fn upstream_requests_for_status(&self, status: &str) -> usize {
        self.upstream_requests().iter().filter(|target| target.ends_with(&format!("status={status}"))).count()
    }
}

impl Answer {
    /// A field's value; empty if it is not there.
    pub(crate) fn field(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("it is text"))
    }

    /// Whether this answer, and no other, cost an upstream request.
    pub(crate) fn is_opener(&self) -> bool {
        self.field("cache-status").starts_with("clipgate; fwd=miss; fwd-status=")
    }

    /// Whether it was had by leaning on what others asked for.
    pub(crate) fn is_coalesced(&self) -> bool {
        self.field("cache-status") == "clipgate; fwd=miss; collapsed"
    }

    /// Whether it was known.
    pub(crate) fn is_hit(&self) -> bool {
        self.field("cache-status").starts_with("clipgate; hit; ")
    }
}

/// What makes a server of a gateway.
trait BuildServer: FnOnce(Gateway, &config::Server, CancellationToken) -> Result<Server, TlsError> {}

impl<F: FnOnce(Gateway, &config::Server, CancellationToken) -> Result<Server, TlsError>> BuildServer for F {}

fn impatiently(patience: Duration) -> impl BuildServer {
    move |gateway: Gateway, config: &config::Server, stop: CancellationToken| {
        Server::with_patience(patience, gateway, config, stop)
    }
}

/// A socket that does not listen yet. Connections that its port had before are no hindrance.
fn bound(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().expect("there are sockets left");
    socket.set_reuseaddr(true).expect("it is not bound");
    socket.bind(address).expect("the port is free");
    socket
}

/// The upstream holds polls and waits wait for so long.
pub(crate) fn set_hold(hold: Duration, config: &mut Config, options: &mut SimOptions) {
    options.hold = hold;
    config.upstream.poll_timeout = hold;
    config.wait.timeout = hold;
}

/// The target that asks for one clip. An empty status is none.
pub(crate) fn clip_target(id: &str, status: &str) -> String {
    with_status(format!("/v2/generate/audio/suno-ai/clip?clip_id={id}"), status)
}

/// The target that asks for several clips, spelled as polls are. An empty status is none.
pub(crate) fn clips_target(ids: &[&str], status: &str) -> String {
    let ids: Vec<_> = ids.iter().map(|id| format!("clip_ids%5B%5D={id}")).collect();
    with_status(format!("/v2/generate/audio/suno-ai/clips?{}", ids.join("&")), status)
}

fn with_status(target: String, status: &str) -> String {
    if status.is_empty() { target } else { format!("{target}&status={status}") }
}

/// Waits for what must come within so many seconds.
pub(crate) async fn within_secs<T>(secs: u64, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(secs), future).await {
        Ok(value) => value,
        Err(_) => panic!("it took longer than {secs} s"),
    }
}

/// All that they answer.
pub(crate) async fn join_all(handles: Vec<AbortOnDropHandle<Answer>>) -> Vec<Answer> {
    let mut answers = Vec::new();
    for handle in handles {
        answers.push(handle.await.expect("the request does not panic"));
    }
    answers
}

/// Moves clips to this status now.
pub(crate) fn set_status_of_all(stage: &TestGateway, ids: &[&str], status: &str) {
    for id in ids {
        stage.sim.set_status(id, status);
    }
}
