//! A gateway with the parts of `clipgate serve`, on one thread, with one job in its cache.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use clipgate::sim::{Sim, SimOptions};
use clipgate::testing::clock;
use clipgate::testing::config::{ClusterConfig, Config, EngineUrl, Listen, Share};
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

/// A gateway, its server and its upstream. The log goes to stderr.
pub struct GatewayFixture {
    runtime: Runtime,
    gateway: Gateway,
    client: TcpStream,
    http2: TcpStream,
    /// The id of the next stream.
    next_stream: u32,
    /// The job's bytes, which end every response.
    body: Bytes,
    /// Buffer for a response.
    response: Vec<u8>,
    /// Clients whose waits are parked.
    parked: Vec<std::net::TcpStream>,
    /// `None` with another upstream.
    sim: Option<Sim>,
    _log: log::Handle,
    _registry: Registry,
    _engine: Option<std::net::TcpListener>,
}

impl GatewayFixture {
    /// Creates a fixture, and sends enough requests that caches and tables are filled and connections are open.
    pub fn new() -> Self {
        Self::with_hits(None)
    }

    /// Like [`Self::new`], with siblings that share this. The engine accepts a connection and never answers: the beats of a
    /// link would count too.
    pub fn of_replica(share: &[Share]) -> Self {
        let engine = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a socket");
        let port = engine.local_addr().expect("a bound socket has an address").port();
        let host = "127.0.0.1".to_owned();
        let url = EngineUrl { is_tls: false, host, port, user: None, password: None, database: 0 };
        let cluster = ClusterConfig { urls: vec![url], share: share.to_vec(), ..ClusterConfig::default() };
        Self { _engine: Some(engine), ..Self::with_hits(Some(cluster)) }
    }

    fn with_hits(cluster: Option<ClusterConfig>) -> Self {
        let (runtime, sim) = (runtime(), Sim::new(SimOptions::default()));
        let address = runtime.block_on(async {
            let upstream = TcpListener::bind(("127.0.0.1", 0)).await.expect("a socket");
            let address = upstream.local_addr().expect("a bound socket has an address");
            sim.set_status(JOB, "completed");
            tokio::spawn(sim.clone().serve(upstream, std::future::pending()));
            address
        });
        let mut fixture = Self { sim: Some(sim), ..Self::start(runtime, address, cluster) };
        fixture.body = fixture.hit();
        for _ in 0..WARM_UP {
            fixture.hit();
            fixture.hit_over_http1();
        }
        for _ in 0..WARM_UP / STREAMS {
            fixture.hits_over_http2();
        }
        let response = String::from_utf8_lossy(fixture.hit_over_http1());
        assert!(response.contains("\r\ncache-status: clipgate; hit; "), "{response}");
        fixture
    }

    /// Creates a fixture whose upstream answers every request with the same bytes.
    pub fn with_fixed_upstream() -> Self {
        let mut fixture = Self::start(runtime(), fixed_upstream(), None);
        fixture.body = Bytes::from(FIXED_BODY.repeat(64));
        for _ in 0..WARM_UP {
            fixture.pass_over_http1();
        }
        let response = String::from_utf8_lossy(fixture.pass_over_http1());
        assert!(response.contains("\r\ncache-status: clipgate; fwd=bypass"), "{response}");
        fixture
    }

    fn start(runtime: Runtime, upstream: SocketAddr, cluster: Option<ClusterConfig>) -> Self {
        let mut config = Config { cluster, ..Config::default() };
        config.limits.requests_per_second = 1_000_000;
        config.limits.burst = 1_000_000;
        config.limits.calls_per_second = 1_000_000;
        config.limits.calls_burst = 1_000_000;
        config.upstream.base_url = format!("http://{upstream}").parse().expect("a valid URL");
        let log = log::init(&config.log).expect("no other log is started");
        let mut registry = Registry::default();
        let (gateway, client, http2) = runtime.block_on(async {
            let (gateway, hub) = Gateway::new(&config, Metrics::new(&mut registry)).expect("a gateway");
            tokio::spawn(hub);
            let stop = CancellationToken::new();
            let server = Server::new(gateway.clone(), &config.server, stop).expect("a server without TLS");
            let listen = Listen::Tcp(([127, 0, 0, 1], 0).into());
            let listener = Listener::bind(&listen).await.expect("a socket");
            let address = tcp_address(&listener).expect("a TCP listener");
            tokio::spawn(server.run(vec![listener]));
            let connect = || TcpStream::connect(address);
            let client = connect().await.expect("the server listens");
            let mut http2 = connect().await.expect("the server listens");
            // Windows for many responses: in the settings of the client, and for the connection.
            let settings = [PREFACE, &frame(4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff])].concat();
            http2.write_all(&settings).await.expect("the connection is open");
            http2.write_all(&frame(8, 0, 0, &[0x7f, 0, 0, 0])).await.expect("the connection is open");
            (gateway, client, http2)
        });
        let response = vec![0; 64 << 10];
        let body = Bytes::new();
        Self {
            runtime,
            gateway,
            client,
            http2,
            next_stream: 1,
            body,
            response,
            parked: Vec::new(),
            sim: None,
            _log: log,
            _registry: registry,
            _engine: None,
        }
    }

    pub fn gateway(&self) -> Gateway {
        self.gateway.clone()
    }

    /// Sends one request through [`Gateway::handle`]. Returns the job's bytes.
    pub fn hit(&mut self) -> Bytes {
        self.runtime.block_on(async {
            let response = self.gateway.handle(request(), context()).await.response;
            body_of(response).await
        })
    }

    /// Sends one request over the client's HTTP/1.1 connection. Returns the raw response. The count includes parser,
    /// server and writer, and no instructions of the kernel.
    pub fn hit_over_http1(&mut self) -> &[u8] {
        self.get_over_http1(TARGET)
    }

    /// Sends one request that the gateway passes through to the upstream, and returns the raw response.
    pub fn pass_over_http1(&mut self) -> &[u8] {
        self.get_over_http1("/plain")
    }

    fn get_over_http1(&mut self, target: &str) -> &[u8] {
        let request =
            format!("GET {target} HTTP/1.1\r\nhost: gateway\r\nauthorization: {AUTHORIZATION}\r\n\r\n");
        let Self { runtime, client, response, body, .. } = self;
        let read = runtime.block_on(async {
            client.write_all(request.as_bytes()).await.expect("the connection is open");
            let mut read = 0;
            while !response[..read].ends_with(body) {
                let more = tokio::time::timeout(READ_TIMEOUT, client.read(&mut response[read..]));
                read += match more.await {
                    Ok(Ok(more)) if more > 0 => more,
                    _ => panic!("no response after {read} bytes"),
                };
            }
            read
        });
        let response = &self.response[..read];
        assert!(response.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(response));
        response
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Starts an upstream with a thread for each connection. It costs some hundred instructions a request.
fn fixed_upstream() -> SocketAddr {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a socket");
    let address = listener.local_addr().expect("a bound socket has an address");
    let body = FIXED_BODY.repeat(64);
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ndate: Mon, 01 Jan 2024 00:00:00 GMT\r\n";
    let response = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, response) = (stream.expect("a connection"), response.clone());
            std::thread::spawn(move || {
                let mut request = [0; 4096];
                // A request is short, so that one read takes all of it.
                while stream.read(&mut request).is_ok_and(|read| read > 0) {
                    stream.write_all(response.as_bytes()).expect("the gateway reads the response");
                }
            });
        }
    });
    address
}

/// A part of the body of the fixed upstream, which has 64 of them: 2.5 kB.
const FIXED_BODY: &str = "Headlights paint the empty road at night";

impl GatewayFixture {
    /// Sends ten requests at once over the client's HTTP/2 connection, and reads until all responses have ended. Returns
    /// the bytes that were read.
    pub fn hits_over_http2(&mut self) -> usize {
        let mut requests = Vec::new();
        for _ in 0..STREAMS {
            // END_STREAM and END_HEADERS.
            requests.extend_from_slice(&frame(1, 5, self.next_stream, &header_block()));
            self.next_stream += 2;
        }
        let Self { runtime, http2, response, .. } = self;
        runtime.block_on(async {
            http2.write_all(&requests).await.expect("the connection is open");
            let (mut read, mut ended) = (0, 0);
            while ended < STREAMS {
                let more = tokio::time::timeout(READ_TIMEOUT, http2.read(&mut response[read..]));
                read += match more.await {
                    Ok(Ok(more)) if more > 0 => more,
                    _ => panic!("no response after {read} bytes"),
                };
                ended = ended_streams(&response[..read]);
            }
            read
        })
    }
}

/// Returns the number of streams that have ended in these frames.
fn ended_streams(mut frames: &[u8]) -> usize {
    let mut ended = 0;
    while let Some(([high, middle, low, kind, flags, ..], rest)) = frames.split_first_chunk::<9>() {
        let length = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
        let Some(next) = rest.get(length..) else { break };
        // DATA or HEADERS with END_STREAM.
        ended += usize::from(*kind <= 1 && flags & 1 != 0);
        frames = next;
    }
    ended
}

/// Returns a frame of HTTP/2 (RFC 9113 section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short payload").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Returns the fields of a request, none of them indexed (RFC 7541 section 6.2.2).
fn header_block() -> Vec<u8> {
    let mut block = vec![0x82, 0x86]; // GET, http
    for (name, value) in [(":path", TARGET), (":authority", "gateway"), ("authorization", AUTHORIZATION)] {
        block.push(0);
        for text in [name, value] {
            let length = u8::try_from(text.len()).expect("a short text");
            match length.checked_sub(127) {
                None => block.push(length),
                Some(rest) => block.extend([127, rest]),
            }
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

impl GatewayFixture {
    /// Like [`Self::new`], with identical waits that are parked, each on an HTTP/1.1 connection of its own. Before them the
    /// answer to others has filled caches and tables.
    pub fn with_waits() -> Self {
        let mut fixture = Self::new();
        fixture.park(WAITS, "warm-up");
        fixture.land("warm-up");
        fixture.park(WAITS, "counted");
        fixture
    }

    fn park(&mut self, waits: usize, job: &str) {
        let Self { runtime, client, gateway, sim, parked, .. } = self;
        sim.as_ref().expect("an upstream that holds").set_status(job, "streaming");
        let address = client.peer_addr().expect("the connection is open");
        let request = format!(
            "GET /v2/generate/audio/suno-ai/clip?clip_id={job}&status=completed HTTP/1.1\r\nhost: gateway\r\n\
             authorization: {AUTHORIZATION}\r\nuser-agent: bench\r\naccept: application/json\r\n\r\n"
        );
        runtime.block_on(async {
            for number in 1..=waits {
                let mut stream = TcpStream::connect(address).await.expect("the server listens");
                stream.write_all(request.as_bytes()).await.expect("the connection is open");
                while gateway.waits() < number {
                    tokio::task::yield_now().await;
                }
                let stream = stream.into_std().expect("the socket is registered");
                stream.set_nonblocking(false).expect("a socket can block");
                parked.push(stream);
            }
            // The hub parks the last wait, and the upstream holds its poll.
            tokio::time::sleep(READ_TIMEOUT / 60).await;
        });
    }

    /// Finishes the job of the parked waits. Returns once each client has its response and its connection is closed.
    pub fn land_waits(&mut self) {
        self.land("counted");
    }

    fn land(&mut self, job: &str) {
        let Self { runtime, parked, sim, .. } = self;
        let (parked, (sender, done)) = (std::mem::take(parked), tokio::sync::oneshot::channel());
        // The count includes no instructions of another thread.
        let clients = std::thread::spawn(move || {
            read_responses(parked);
            sender.send(()).expect("the runtime waits for the clients");
        });
        sim.as_ref().expect("an upstream that holds").set_status(job, "completed");
        runtime.block_on(done).expect("all clients have a response");
        clients.join().expect("the thread has sent its message");
    }
}

/// Reads a response from each connection, then closes all of them, and waits until the server has closed them too.
fn read_responses(mut clients: Vec<std::net::TcpStream>) {
    let mut response = vec![0; 64 << 10];
    for client in &mut clients {
        client.set_read_timeout(Some(READ_TIMEOUT)).expect("not zero");
        let mut read = 0;
        // The body is JSON, and the only one that ends with a brace.
        while !response[..read].ends_with(b"}") {
            read += client.read(&mut response[read..]).expect("a response in time");
        }
        assert!(response.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&response[..read]));
    }
    for client in &mut clients {
        client.shutdown(std::net::Shutdown::Write).expect("the connection is open");
    }
    for mut client in clients {
        assert_eq!(client.read(&mut response).expect("the server closes in time"), 0);
    }
}

/// Identical waits that are parked at once: with their clients fewer sockets than most systems allow a process.
pub const WAITS: usize = 400;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Requests that are sent at once over HTTP/2.
pub const STREAMS: usize = 10;

/// Returns a request that is a hit.
pub fn request() -> Request<Empty<Bytes>> {
    let request = Request::get(TARGET).header("host", "gateway").header("authorization", AUTHORIZATION);
    request.body(Empty::new()).expect("a valid request")
}

pub fn context() -> RequestCtx {
    RequestCtx {
        id: RequestId::new(None),
        forwarded: ForwardedChain::from_peer(Peer::Tcp(SocketAddr::from(([127, 0, 0, 1], 40_000)))),
        is_tls: false,
        arrived: clock::now(),
    }
}

async fn body_of<B: http_body::Body<Data = Bytes>>(response: Response<B>) -> Bytes {
    assert_eq!(response.status(), StatusCode::OK);
    response.into_body().collect().await.ok().expect("the body of a hit is in memory").to_bytes()
}

/// Requests that fill caches and tables, and open the connection to the upstream.
const WARM_UP: usize = 200;

/// Long, because valgrind runs everything fifty times slower.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
