//! A gateway as `clipgate serve` puts it together, on one thread, with one job in its cache.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use clipgate::sim::{Options, Sim};
use clipgate::testing::clock;
use clipgate::testing::config::{Config, Listen};
use clipgate::testing::gateway::Gateway;
use clipgate::testing::protocol::request::{ForwardedChain, Peer, RequestCtx, RequestId};
use clipgate::testing::server::{Listener, Server, tcp_address};
use clipgate::testing::telemetry::log;
use clipgate::testing::telemetry::metrics::Metrics;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

const JOB: &str = "9d1f3c52-4a55-4c1e-a6f0-5d7d0f3b7f11";
const TARGET: &str = concat!(
    "/v2/generate/audio/suno-ai/clip?clip_id=",
    "9d1f3c52-4a55-4c1e-a6f0-5d7d0f3b7f11",
    "&status=completed"
);
const AUTHORIZATION: &str = "Bearer 8a1c5b3b0f5d4f3e9c2a7d6e1b0f4c3d";

/// The gateway, its server and its upstream; the log goes to stderr.
pub struct House {
    runtime: Runtime,
    gateway: Gateway,
    client: TcpStream,
    /// The job's bytes, with which an answer ends.
    body: Bytes,
    /// Room for an answer.
    answer: Vec<u8>,
    _log: log::Handle,
    _registry: Registry,
}

impl House {
    /// With the job asked for once through the gateway and often enough over the connection that nothing happens
    /// for the first time any more.
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let mut config = Config::default();
        config.limits.requests_per_second = 1_000_000;
        config.limits.burst = 1_000_000;
        let log = log::init(&config.log).expect("it is started once");
        let mut registry = Registry::default();
        let (gateway, client) = runtime.block_on(async {
            let upstream = TcpListener::bind(("127.0.0.1", 0)).await.expect("a socket");
            let address = upstream.local_addr().expect("it is bound");
            config.upstream.base_url = format!("http://{address}").parse().expect("it is a URL");
            let sim = Sim::new(Options::default());
            sim.set_status(JOB, "completed");
            tokio::spawn(sim.serve(upstream, std::future::pending()));
            let (gateway, hub) = Gateway::new(&config, Metrics::new(&mut registry)).expect("a gateway");
            tokio::spawn(hub);
            let stop = CancellationToken::new();
            let server = Server::new(gateway.clone(), &config.server, stop).expect("it has no TLS");
            let listen = Listen::Tcp(([127, 0, 0, 1], 0).into());
            let listener = Listener::bind(&listen).await.expect("a socket");
            let address = tcp_address(&listener).expect("it is TCP");
            tokio::spawn(server.run(vec![listener]));
            (gateway, TcpStream::connect(address).await.expect("somebody listens"))
        });
        let answer = vec![0; 16 << 10];
        let body = Bytes::new();
        let mut house = Self { runtime, gateway, client, body, answer, _log: log, _registry: registry };
        house.body = house.hit();
        for _ in 0..WARM_UP {
            house.hit();
            house.hit_over_the_wire();
        }
        let answer = String::from_utf8_lossy(house.hit_over_the_wire());
        assert!(answer.contains("\r\ncache-status: clipgate; hit; "), "{answer}");
        house
    }

    /// One request through [`Gateway::handle`]; the job's bytes.
    pub fn hit(&mut self) -> Bytes {
        self.runtime.block_on(async {
            let request = Request::get(TARGET)
                .header("host", "gateway")
                .header("authorization", AUTHORIZATION)
                .body(Empty::new())
                .expect("it is well-formed");
            let ctx = RequestCtx {
                id: RequestId::new(None),
                forwarded: ForwardedChain::from_peer(Peer::Tcp(SocketAddr::from(([127, 0, 0, 1], 40_000)))),
                is_tls: false,
                arrived: clock::now(),
            };
            let response = self.gateway.handle(request, ctx).await.response;
            body_of(response).await
        })
    }

    /// One request over the client's connection, and its answer as it came: parser, server and writer are in what that
    /// costs, the kernel is not.
    pub fn hit_over_the_wire(&mut self) -> &[u8] {
        let request =
            format!("GET {TARGET} HTTP/1.1\r\nhost: gateway\r\nauthorization: {AUTHORIZATION}\r\n\r\n");
        let Self { runtime, client, answer, body, .. } = self;
        let read = runtime.block_on(async {
            client.write_all(request.as_bytes()).await.expect("the connection stands");
            let mut read = 0;
            while !answer[..read].ends_with(body) {
                let more = tokio::time::timeout(PATIENCE, client.read(&mut answer[read..]));
                read += match more.await {
                    Ok(Ok(more)) if more > 0 => more,
                    _ => panic!("no answer after {read} bytes"),
                };
            }
            read
        });
        let answer = &self.answer[..read];
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(answer));
        answer
    }
}

async fn body_of<B: http_body::Body<Data = Bytes>>(response: Response<B>) -> Bytes {
    assert_eq!(response.status(), StatusCode::OK);
    response.into_body().collect().await.ok().expect("a hit's body is at hand").to_bytes()
}

/// The first hits fill caches and tables, and open the connection to the upstream.
const WARM_UP: usize = 200;

/// Under valgrind all takes fifty times as long.
const PATIENCE: Duration = Duration::from_secs(60);
