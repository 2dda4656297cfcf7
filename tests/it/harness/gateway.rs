//! A gateway inside the test process, in front of a simulated upstream, and a client.
//!
//! ```text
//!   test ── get, spawn_get, send ──▶ Server + Gateway ──▶ Sim ◀── set_status, schedule, fault ── test
//! ```
//!
//! Everything runs on the test's thread and ends with the [`TestGateway`]. Tests synchronise with
//! [`TestGateway::wait_until`], which observes the upstream, and [`TestGateway::wait_until_parked`], which observes the
//! waits.

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

/// Seconds until a test fails. Longer than any step takes on a busy machine.
const TIMEOUT_SECS: u64 = 30;

/// Pause between two checks of the number of waits.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// A gateway in front of a simulated upstream.
pub(crate) struct TestGateway {
    pub(crate) sim: Sim,
    /// Address of the gateway's listener.
    pub(crate) address: SocketAddr,
    gateway: Gateway,
    config: Config,
    /// The gateway's metrics, until the admin listener takes them.
    registry: Option<Registry>,
    client: Client<HttpConnector, Full<Bytes>>,
    /// The bound socket of the upstream's port while the upstream is down.
    closed: Option<TcpSocket>,
    /// Stops the upstream, and its task.
    upstream: Option<(CancellationToken, AbortOnDropHandle<()>)>,
    stop: CancellationToken,
    _tasks: JoinSet<()>,
}

/// A response of the gateway.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Time from before the connection to the end of the body.
    pub(crate) took: Duration,
}

impl TestGateway {
    /// Starts a gateway with holds and waits of 2 s and a linger of 200 ms, without a cache of live states and without
    /// quotas that a test reaches.
    pub(crate) async fn new() -> Self {
        Self::with(|_, _| {}).await
    }

    /// Like [`Self::new`], with this time for holds and waits.
    pub(crate) async fn with_hold(hold: Duration) -> Self {
        Self::with(|config, options| set_hold(hold, config, options)).await
    }

    /// Like [`Self::new`], with a changed configuration.
    pub(crate) async fn with(configure: impl FnOnce(&mut Config, &mut SimOptions)) -> Self {
        let mut gateway = Self::without_upstream(configure).await;
        gateway.start_upstream();
        gateway
    }

    /// Like [`Self::with`], but the upstream's port refuses connections until [`Self::start_upstream`].
    pub(crate) async fn without_upstream(configure: impl FnOnce(&mut Config, &mut SimOptions)) -> Self {
        Self::with_server(Server::new, configure).await
    }

    /// Like [`Self::new`], but the server disconnects clients that stall for this time, also in the middle of a head.
    pub(crate) async fn with_stall_timeout(timeout: Duration) -> Self {
        let configure = |config: &mut Config, _: &mut SimOptions| config.server.header_timeout = timeout;
        let mut gateway = Self::with_server(stall_timeout_server(timeout), configure).await;
        gateway.start_upstream();
        gateway
    }

    /// Like [`Self::with_stall_timeout`], with another upstream and the default `header_timeout`.
    pub(crate) async fn with_stall_timeout_and_upstream(timeout: Duration, upstream: &Uri) -> Self {
        let configure = |config: &mut Config, _: &mut SimOptions| config.upstream.base_url = upstream.clone();
        Self::with_server(stall_timeout_server(timeout), configure).await
    }

    async fn with_server(
        build_server: impl BuildServer,
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
        let upstream = closed.local_addr().expect("the socket is bound");
        config.upstream.base_url = format!("http://{upstream}").parse().expect("the URL is valid");
        configure(&mut config, &mut options);

        let mut tasks = JoinSet::new();
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let (gateway, hub) = Gateway::new(&config, metrics).expect("the configuration is valid");
        tasks.spawn(hub);
        let listen = Listen::Tcp(([127, 0, 0, 1], 0).into());
        let listener = Listener::bind(&listen).await.expect("there are ports left");
        let address = tcp_address(&listener).expect("the listener is TCP");
        let stop = CancellationToken::new();
        let server =
            build_server(gateway.clone(), &config.server, stop.clone()).expect("TLS is not configured");
        tasks.spawn(server.run(vec![listener]));
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
        let registry = Some(registry);
        let closed = Some(closed);
        let sim = Sim::new(options);
        Self { sim, address, gateway, config, registry, client, closed, upstream: None, stop, _tasks: tasks }
    }

    /// Makes the upstream accept connections.
    pub(crate) fn start_upstream(&mut self) {
        let closed = self.closed.take().expect("the upstream is down");
        let listener = closed.listen(1024).expect("the socket is bound");
        let end = CancellationToken::new();
        let serving = self.sim.clone().serve(listener, end.clone().cancelled_owned());
        self.upstream = Some((end, AbortOnDropHandle::new(tokio::spawn(serving))));
    }

    /// Drops all connections of the upstream. Its port refuses new ones until [`Self::start_upstream`].
    pub(crate) async fn stop_upstream(&mut self) {
        let (end, serving) = self.upstream.take().expect("the upstream is up");
        end.cancel();
        within_secs(TIMEOUT_SECS, serving).await.expect("the upstream does not panic");
        let upstream = &self.config.upstream.base_url;
        let address =
            upstream.authority().expect("the URL has a port").as_str().parse().expect("an IP address");
        self.closed = Some(bound(address));
    }

    /// Sends a request on a new connection, by default with `Authorization: Bearer demo`, and waits for the response.
    pub(crate) async fn get(&self, target: &str, headers: &[(&str, &str)]) -> Answer {
        self.spawn_get(target, headers).await.expect("the request does not panic")
    }

    /// Like [`Self::get`], in a task of its own. Aborting or dropping the handle disconnects.
    pub(crate) fn spawn_get(&self, target: &str, headers: &[(&str, &str)]) -> AbortOnDropHandle<Answer> {
        let mut request = Request::get(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(Full::default()).expect("the test's target is valid");
        request.headers_mut().entry(AUTHORIZATION).or_insert("Bearer demo".parse().expect("valid value"));
        self.spawn(request)
    }

    /// Returns the configuration at the start.
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Reloads the running gateway with another configuration, as SIGHUP does.
    pub(crate) fn reconfigure(&self, config: &Config) {
        self.gateway.reload(config).expect("the configuration is valid");
    }

    /// Opens the admin listener on a free port.
    pub(crate) async fn open_admin(&mut self, readiness: &Readiness) -> Admin {
        let context = AdminContext {
            gateway: self.gateway.clone(),
            registry: self.registry.take().expect("the admin listener is opened once"),
            readiness: readiness.clone(),
            listen: vec![Listen::Tcp(self.address)],
            example: "curl".to_owned(),
        };
        let listen = vec![Listen::Tcp(([127, 0, 0, 1], 0).into())];
        Admin::start(listen, &self.config, context).await.expect("there are ports left")
    }

    /// Stops the gateway as SIGTERM does.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// Sends a request to the gateway without adding headers.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        self.spawn(request).await.expect("the request does not panic")
    }

    fn spawn(&self, mut request: Request<Full<Bytes>>) -> AbortOnDropHandle<Answer> {
        let began = clock::now();
        let uri = format!("http://{}{}", self.address, request.uri());
        *request.uri_mut() = Uri::try_from(uri).expect("the test's target is valid");
        let client = self.client.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            let answer = async {
                let (head, body) = client.request(request).await.expect("the gateway responds").into_parts();
                let body = body.collect().await.expect("the response is complete").to_bytes();
                Answer { status: head.status, headers: head.headers, body, took: began.elapsed() }
            };
            within_secs(TIMEOUT_SECS, answer).await
        }))
    }

    /// Waits until the condition holds at the upstream: [`Sim::wait_until`] with a timeout.
    pub(crate) async fn wait_until(&self, condition: impl FnMut(&Observation) -> bool) {
        let waiting = self.sim.wait_until(condition);
        let reached = tokio::time::timeout(Duration::from_secs(TIMEOUT_SECS), waiting).await;
        assert!(
            reached.is_ok(),
            "the condition does not hold after {TIMEOUT_SECS} s: {:#?}",
            self.upstream_requests()
        );
    }

    /// Waits until this number of waits is parked.
    pub(crate) async fn wait_until_parked(&self, waits: usize) {
        let parked = async {
            while self.gateway.waits() != waits {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        };
        let reached = tokio::time::timeout(Duration::from_secs(TIMEOUT_SECS), parked).await;
        assert!(
            reached.is_ok(),
            "{} waits are parked after {TIMEOUT_SECS} s, not {waits}",
            self.gateway.waits()
        );
    }

    /// Returns the targets of the upstream requests so far, in order.
    pub(crate) fn upstream_requests(&self) -> Vec<String> {
        self.sim.requests().iter().map(|seen| seen.target.to_string()).collect()
    }

    /// Returns the number of upstream requests for this status so far.
    pub(crate) fn upstream_requests_for_status(&self, status: &str) -> usize {
        self.upstream_requests().iter().filter(|target| target.ends_with(&format!("status={status}"))).count()
    }
}

impl Answer {
    /// Returns the value of a header field. Empty if there is none.
    pub(crate) fn field(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("the value is text"))
    }

    /// Returns whether the wait opened the upstream request.
    pub(crate) fn is_opener(&self) -> bool {
        self.field("cache-status").starts_with("clipgate; fwd=miss; fwd-status=")
    }

    /// Returns whether the wait attached to the poll of another wait.
    pub(crate) fn is_coalesced(&self) -> bool {
        self.field("cache-status") == "clipgate; fwd=miss; collapsed"
    }

    /// Returns whether the response came from the cache.
    pub(crate) fn is_hit(&self) -> bool {
        self.field("cache-status").starts_with("clipgate; hit; ")
    }

    /// Returns whether an open poll proved the response.
    pub(crate) fn is_proven(&self) -> bool {
        self.field("cache-status") == "clipgate; hit; ttl=0; detail=proven"
    }
}

/// Builds the server for a gateway.
trait BuildServer: FnOnce(Gateway, &config::ServerConfig, CancellationToken) -> Result<Server, TlsError> {}

impl<F: FnOnce(Gateway, &config::ServerConfig, CancellationToken) -> Result<Server, TlsError>> BuildServer
    for F
{
}

fn stall_timeout_server(timeout: Duration) -> impl BuildServer {
    move |gateway: Gateway, config: &config::ServerConfig, stop: CancellationToken| {
        Server::with_stall_timeout(timeout, gateway, config, stop)
    }
}

/// Returns a bound socket that does not listen yet. Earlier connections on its port do not prevent the bind.
fn bound(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().expect("there are sockets left");
    socket.set_reuseaddr(true).expect("the socket is not bound");
    socket.bind(address).expect("the port is free");
    socket
}

/// Sets the time that the upstream holds polls and that waits last.
pub(crate) fn set_hold(hold: Duration, config: &mut Config, options: &mut SimOptions) {
    options.hold = hold;
    config.upstream.poll_timeout = hold;
    config.wait.timeout = hold;
}

/// Returns the target of a request for one clip. An empty status adds none.
pub(crate) fn clip_target(id: &str, status: &str) -> String {
    with_status(format!("/v2/generate/audio/suno-ai/clip?clip_id={id}"), status)
}

/// Returns the target of a request for several clips, spelled like the gateway's polls. An empty status adds none.
pub(crate) fn clips_target(ids: &[&str], status: &str) -> String {
    let ids: Vec<_> = ids.iter().map(|id| format!("clip_ids%5B%5D={id}")).collect();
    with_status(format!("/v2/generate/audio/suno-ai/clips?{}", ids.join("&")), status)
}

fn with_status(target: String, status: &str) -> String {
    if status.is_empty() { target } else { format!("{target}&status={status}") }
}

/// Returns the output of a future, or panics after this number of seconds.
pub(crate) async fn within_secs<T>(secs: u64, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(secs), future).await {
        Ok(value) => value,
        Err(_) => panic!("not ready after {secs} s"),
    }
}

/// Returns all responses.
pub(crate) async fn join_all(handles: Vec<AbortOnDropHandle<Answer>>) -> Vec<Answer> {
    let mut answers = Vec::new();
    for handle in handles {
        answers.push(handle.await.expect("the request does not panic"));
    }
    answers
}

/// Sets the status of several clips now.
pub(crate) fn set_status_of_all(gateway: &TestGateway, ids: &[&str], status: &str) {
    for id in ids {
        gateway.sim.set_status(id, status);
    }
}
