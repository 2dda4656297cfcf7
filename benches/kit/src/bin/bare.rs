//! The bare server: the cost of hyper alone, and of the minimum that a gateway must do.
//!
//! | mode | response |
//! | --- | --- |
//! | `static` | a fixed body of 2.5 kB |
//! | `logic` | this body from a cache, after it parsed the query, hashed the key and checked its quota |
//! | `logged` | like `logic`, with the header fields of a gateway's hit and an access log line |
//! | `merge` | the upstream's body; identical concurrent requests share one upstream request |
//! | `proxy` | the upstream's response, with hyper's client |

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::Write as _;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use clap::{Parser, ValueEnum};
use governor::clock::DefaultClock;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

/// The bare server
#[derive(Debug, Parser)]
struct Args {
    mode: Mode,
    #[arg(long, default_value = "127.0.0.1:8100")]
    listen: SocketAddr,
    /// Address for HTTP/2 with prior knowledge
    #[arg(long, default_value = "127.0.0.1:8110")]
    listen_http2: SocketAddr,
    #[arg(long, default_value = "127.0.0.1:9000")]
    upstream: SocketAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Mode {
    Static,
    Logic,
    Logged,
    Merge,
    Proxy,
}

/// Hash of key, path, id and status.
type Fingerprint = u128;
/// The body of an upstream request in flight.
type PendingBody = watch::Receiver<Option<Bytes>>;

struct Bare {
    mode: Mode,
    upstream: SocketAddr,
    body: Bytes,
    cache: moka::sync::Cache<Fingerprint, Bytes, ahash::RandomState>,
    quota: RateLimiter<u64, DashMapStateStore<u64>, DefaultClock>,
    hashers: [ahash::RandomState; 2],
    in_flight: Mutex<HashMap<Fingerprint, PendingBody>>,
    log: Mutex<Vec<u8>>,
    client: Client<HttpConnector, Incoming>,
}

fn main() -> std::io::Result<()> {
    let args = Args::parse();
    let bare = Arc::new(Bare::new(&args));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (http1, http2) = (listen(args.listen)?, listen(args.listen_http2)?);
        loop {
            tokio::select! {
                accepted = http1.accept() => drop(tokio::spawn(Arc::clone(&bare).http1(accepted?.0))),
                accepted = http2.accept() => drop(tokio::spawn(Arc::clone(&bare).http2(accepted?.0))),
            }
        }
    })
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(4096)
}

impl Bare {
    fn new(args: &Args) -> Self {
        let unlimited = NonZeroU32::new(1_000_000_000).expect("not 0");
        Self {
            mode: args.mode,
            upstream: args.upstream,
            body: Bytes::from(format!(
                r#"{{"id":"0","status":"completed","prompt":"{}"}}"#,
                "x".repeat(2456)
            )),
            cache: moka::sync::Cache::builder()
                .max_capacity(100_000)
                .time_to_live(Duration::from_secs(3600))
                .build_with_hasher(ahash::RandomState::default()),
            quota: RateLimiter::dashmap(Quota::per_second(unlimited)),
            hashers: [ahash::RandomState::default(), ahash::RandomState::default()],
            in_flight: Mutex::default(),
            log: Mutex::default(),
            client: Client::builder(TokioExecutor::new()).build_http(),
        }
    }

    async fn http1(self: Arc<Self>, stream: TcpStream) {
        // Both fail if the client has disconnected.
        let _ = stream.set_nodelay(true);
        let service = service_fn(|request| Arc::clone(&self).answer(request));
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
        let _ = http.serve_connection(TokioIo::new(stream), service).await;
    }

    async fn http2(self: Arc<Self>, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let service = service_fn(|request| Arc::clone(&self).answer(request));
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new()).max_concurrent_streams(1000);
        let _ = http.serve_connection(TokioIo::new(stream), service).await;
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Either<Full<Bytes>, Incoming>>, Infallible> {
        match self.mode {
            Mode::Static => Ok(json(self.body.clone()).map(Either::Left)),
            Mode::Proxy => Ok(self.forward(request).await),
            Mode::Logic | Mode::Logged | Mode::Merge => Ok(self.merged(request).await.map(Either::Left)),
        }
    }

    async fn forward(&self, mut request: Request<Incoming>) -> Response<Either<Full<Bytes>, Incoming>> {
        let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
        let Ok(uri) = format!("http://{}{target}", self.upstream).parse() else {
            return empty(StatusCode::BAD_REQUEST).map(Either::Left);
        };
        *request.uri_mut() = uri;
        match self.client.request(request).await {
            Ok(answer) => answer.map(Either::Right),
            Err(_) => empty(StatusCode::BAD_GATEWAY).map(Either::Left),
        }
    }

    async fn merged(self: Arc<Self>, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let Some((key, fingerprint)) = self.parse(&request) else { return empty(StatusCode::BAD_REQUEST) };
        if self.mode != Mode::Merge && self.quota.check_key(&key).is_err() {
            return empty(StatusCode::TOO_MANY_REQUESTS);
        }
        if let Some(body) = self.cache.get(&fingerprint) {
            return if self.mode == Mode::Logged {
                self.logged(&request, fingerprint, body)
            } else {
                json(body)
            };
        }
        if self.mode != Mode::Merge {
            self.cache.insert(fingerprint, self.body.clone());
            return json(self.body.clone());
        }
        let mut body = self.fetch_once(fingerprint, &request);
        // Frees the request before the wait.
        drop(request);
        let body = body.wait_for(Option::is_some).await.ok().and_then(|body| body.clone());
        json(body.unwrap_or_default())
    }

    /// Returns a response with as many header fields as a hit of the gateway, and writes a log line of the same length.
    fn logged(
        &self,
        request: &Request<Incoming>,
        fingerprint: Fingerprint,
        body: Bytes,
    ) -> Response<Full<Bytes>> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (length, id) = (body.len(), format!("{:032x}", fingerprint ^ now.as_nanos()));
        let mut response = json(body);
        let text = |text: String| HeaderValue::try_from(text).expect("ASCII text");
        let fields = [
            ("via", HeaderValue::from_static("1.1 bare")),
            ("etag", HeaderValue::from_static("\"0123456789abcdef0123456789abcdef\"")),
            ("vary", HeaderValue::from_static("authorization, accept")),
            ("cache-control", HeaderValue::from_static("private, max-age=86400")),
            ("age", HeaderValue::from(now.subsec_millis())),
            ("cache-status", text(format!("bare; hit; ttl={}", 86_400 - now.subsec_millis()))),
            ("ratelimit-policy", HeaderValue::from_static("\"requests\";q=200;w=2, \"calls\";q=20;w=2")),
            ("ratelimit", text(format!("\"requests\";r={}, \"calls\";r=20", now.subsec_millis()))),
            ("x-request-id", text(id.clone())),
        ];
        for (name, value) in fields {
            response.headers_mut().insert(name, value);
        }
        let mut log = self.log.lock().expect("no holder panics");
        // Writing to memory cannot fail. A failing log cannot be reported.
        let _ = writeln!(
            log,
            "{}.{:06} INFO bare::access: request http.request.method=GET url.path={} \
             http.response.status_code=200 http.response.body.size={length} \
             http.server.request.duration={:?} clipgate.outcome=hit clipgate.jobs={fingerprint:032x} \
             clipgate.key=01234567 client.address=127.0.0.1 network.peer.address=127.0.0.1 \
             network.peer.port={} network.protocol.version=1.1 clipgate.request_id={id}",
            now.as_secs(),
            now.subsec_micros(),
            request.uri().path(),
            now.as_secs_f64(),
            now.subsec_millis(),
        );
        if log.len() >= LOG_BUFFER {
            let _ = std::io::stderr().write_all(&log);
            log.clear();
        }
        response
    }

    fn parse(&self, request: &Request<Incoming>) -> Option<(u64, Fingerprint)> {
        let key = request.headers().get(AUTHORIZATION)?.as_bytes();
        let (mut id, mut status) = ("", "");
        for pair in request.uri().query()?.split('&') {
            match pair.split_once('=') {
                Some(("clip_id", value)) => id = value,
                Some(("status", value)) => status = value,
                Some(_) | None => {}
            }
        }
        let hash = |hasher: &ahash::RandomState| {
            u128::from(hasher.hash_one((key, request.uri().path(), id, status)))
        };
        let [first, second] = &self.hashers;
        Some((first.hash_one(key), (hash(first) << 64) | hash(second)))
    }

    /// Returns the body of the identical upstream request in flight, or starts one.
    fn fetch_once(self: &Arc<Self>, fingerprint: Fingerprint, request: &Request<Incoming>) -> PendingBody {
        let mut in_flight = self.in_flight.lock().expect("no holder panics");
        if let Some(body) = in_flight.get(&fingerprint) {
            return body.clone();
        }
        let (sender, receiver) = watch::channel(None);
        in_flight.insert(fingerprint, receiver.clone());
        let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
        let key = request.headers().get(AUTHORIZATION).and_then(|key| key.to_str().ok()).unwrap_or_default();
        let head =
            format!("GET {target} HTTP/1.1\r\nHost: u\r\nAuthorization: {key}\r\nConnection: close\r\n\r\n");
        let bare = Arc::clone(self);
        tokio::spawn(async move {
            let body = fetch(bare.upstream, &head).await.unwrap_or_default();
            bare.cache.insert(fingerprint, body.clone());
            sender.send_replace(Some(body));
            bare.in_flight.lock().expect("no holder panics").remove(&fingerprint);
        });
        receiver
    }
}

/// Sends a request on a new connection, and returns the body of the response.
async fn fetch(upstream: SocketAddr, head: &str) -> std::io::Result<Bytes> {
    let mut stream = TcpStream::connect(upstream).await?;
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::with_capacity(4096);
    stream.read_to_end(&mut answer).await?;
    let body = answer.windows(4).position(|end| end == b"\r\n\r\n").map_or(0, |end| end + 4);
    Ok(Bytes::from(answer).slice(body..))
}

/// Log lines are written in blocks of this many bytes.
const LOG_BUFFER: usize = 64 << 10;

fn json(body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    let kind = HeaderValue::from_static("application/json; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn empty(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}
