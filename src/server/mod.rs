//! Connections: from an accepted socket to the gateway's answer.
//!
//! ```text
//! listener ── accept ── a place (max_connections) ──► TLS? ──► Ahead ──► Refusals ──► hyper ──► gateway
//! ```
//!
//! It owns the tasks of the connections and of their tunnels. It must never know what is asked for.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures_util::FutureExt as _;
use http::header::CONNECTION;
use http::{HeaderValue, Version};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use ipnet::IpNet;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use self::activity::ConnectionActivity;
pub(crate) use self::listener::{Accepted, Listeners};
pub use self::listener::{Listener, tcp_address};
use self::places::{Place, Places};
use self::read_ahead::ReadAhead;
use self::refusals::Refusals;
use self::streams::{Streams, Taken};
use self::timeouts::ConnectionTimeouts;
use self::tls::Tls;
pub use self::tls::TlsError;
use self::upload_timeout::UploadTimeout;
use crate::clock;
use crate::config;
use crate::gateway::Gateway;
use crate::gateway::response::X_REQUEST_ID;
use crate::protocol::request::{ForwardedChain, Peer, RequestCtx, RequestId};

mod accept;
mod activity;
pub(crate) mod descriptors;
mod listener;
mod places;
mod read_ahead;
mod refusals;
mod streams;
mod timeouts;
mod tls;
mod upload_timeout;

/// The largest request head, in bytes. A target alone may have half of it; hyper says 414 and 431.
const MAX_HEAD: usize = 128 << 10;

/// Requests at once on one HTTP/2 connection, most of them parked. A client may reset them all before any was looked at,
/// as one does whose user closes a page; with hyper's own bound of 20 its other waits would end with them.
const MAX_STREAMS: u32 = 1000;

/// How often a silent HTTP/2 connection is pinged, so that a client that vanished does not wait on.
const PING_EVERY: Duration = Duration::from_secs(30);

/// How long a client may do nothing in the middle of its upload, or of an answer that it is to take. It is not what
/// limits a client that waits.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// How long nothing may come from a TCP connection until its other end is probed, and how often and how many times in
/// vain: a client that vanished does not wait on.
const PROBE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(60))
    .with_interval(Duration::from_secs(10))
    .with_retries(3);

/// How long a client that has connected has for its first request once the server stops.
const LAST_HEAD: Duration = Duration::from_secs(1);

/// The least that is kept for the last answers when the server stops.
const ANSWER_TIME: Duration = Duration::from_millis(100);

/// Serves clients. Clones are the same server.
#[derive(Clone)]
pub struct Server(Arc<Shared>);

/// What a [`Server`] is to take over.
#[derive(Debug)]
pub struct Prepared {
    tls: Option<Arc<rustls::ServerConfig>>,
    trusted: Vec<IpNet>,
}

struct Shared {
    gateway: Gateway,
    http1: http1::Builder,
    header_timeout: Duration,
    idle_timeout: Duration,
    drain_timeout: Duration,
    patience: Duration,
    /// TCP listeners speak TLS with it; who reaches a unix socket is on this machine already.
    tls: Option<Tls>,
    /// The proxies that are believed.
    trusted: ArcSwap<Vec<IpNet>>,
    /// One for each connection that may be open.
    places: Arc<Places>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// The time for the drain is over.
    cut: CancellationToken,
    /// The server stops: `stop`, for those who ask with each request.
    is_stopping: AtomicBool,
}

impl Server {
    /// A server for this gateway, until `stop` is cancelled.
    ///
    /// # Errors
    ///
    /// When the files of `server.tls` are not what they should be.
    pub fn new(gateway: Gateway, config: &config::Server, stop: CancellationToken) -> Result<Self, TlsError> {
        Self::with_patience(STALL_TIMEOUT, gateway, config, stop)
    }

    /// The same with another patience than a minute, for clients whose turn it is and who do nothing: nothing comes of
    /// a request's body, or nothing is taken of an answer.
    ///
    /// # Errors
    ///
    /// When the files of `server.tls` are not what they should be.
    pub fn with_patience(
        patience: Duration,
        gateway: Gateway,
        config: &config::Server,
        stop: CancellationToken,
    ) -> Result<Self, TlsError> {
        let mut http1 = http1::Builder::new();
        // Its own limit would count an idle connection's time as well, and set a timer anew for each request.
        http1.header_read_timeout(None).max_buf_size(MAX_HEAD);
        Ok(Self(Arc::new(Shared {
            gateway,
            http1,
            header_timeout: config.header_timeout,
            idle_timeout: config.idle_timeout,
            drain_timeout: config.drain_timeout,
            patience,
            tls: config.tls.as_ref().map(Tls::new).transpose()?,
            trusted: ArcSwap::from_pointee(config.trusted_proxies.clone()),
            places: Arc::new(Places::new(config.max_connections, stop.clone())),
            tasks: TaskTracker::new(),
            stop,
            cut: CancellationToken::new(),
            is_stopping: AtomicBool::new(false),
        })))
    }

    /// Reads what may change while it serves. Whether there is TLS at all does not.
    ///
    /// # Errors
    ///
    /// When the files of `server.tls` are not what they should be.
    pub fn prepare_reload(&self, config: &config::Server) -> Result<Prepared, TlsError> {
        let tls = config.tls.as_ref().filter(|_| self.0.tls.is_some()).map(tls::read).transpose()?;
        Ok(Prepared { tls, trusted: config.trusted_proxies.clone() })
    }

    /// Takes it over: certificates for connections to come, trusted proxies for requests to come.
    pub fn apply_reload(&self, prepared: Prepared) {
        if let (Some(tls), Some(config)) = (&self.0.tls, prepared.tls) {
            tls.replace(config);
        }
        self.0.trusted.store(Arc::new(prepared.trusted));
    }

    /// Serves until `stop`; then takes who has connected already and nobody else, has parked waits answered and lets
    /// requests and tunnels end within `drain_timeout`, and returns.
    pub async fn run(self, listeners: Vec<Listener>) {
        let Shared { gateway, stop, cut, tasks, drain_timeout, is_stopping, .. } = &*self.0;
        let (mut listeners, mut newcomer) = (Listeners::new(listeners), None);
        tokio::select! {
            // Cancel safe: a connection is in a listener's queue, or `newcomer`, or a task of its own.
            _ = self.accept_all(&mut listeners, &mut newcomer) => {}
            () = stop.cancelled() => {}
        }
        is_stopping.store(true, Ordering::Relaxed);
        for accepted in newcomer.into_iter().chain(listeners.backlog()) {
            let answers = ConnectionActivity::new();
            let place = self.0.places.enter_last(&answers);
            self.begin(accepted, answers, place);
        }
        drop(listeners);
        tasks.close();
        let until = clock::now() + *drain_timeout;
        // The last answers still have to get out.
        let margin = (*drain_timeout / 10).max(ANSWER_TIME).min(*drain_timeout / 2);
        gateway.drain(until - margin).await;
        if tokio::time::timeout_at(until.into(), tasks.wait()).await.is_err() {
            warn!(connections = tasks.len(), "drain_timeout is over, connections are cut off");
            cut.cancel();
        }
    }

    fn begin(&self, accepted: Accepted, answers: ConnectionActivity, place: Place) {
        self.0.tasks.spawn(self.clone().connection(accepted, answers, Arc::new(place)));
    }

    async fn connection(self, accepted: Accepted, answers: ConnectionActivity, place: Arc<Place>) {
        match (accepted, &self.0.tls) {
            (Accepted::Unix(stream), _) => self.serve(stream, Peer::Unix, false, answers, place).await,
            (Accepted::Tcp(stream, address), tls) => {
                // A socket that is already gone shows itself below.
                let _ = prepare(&stream);
                match tls {
                    None => self.serve(stream, Peer::Tcp(address), false, answers, place).await,
                    // Boxed: it is large, and most connections have none of it.
                    Some(tls) => {
                        Box::pin(self.serve_tls(tls, stream, Peer::Tcp(address), answers, place)).await
                    }
                }
            }
        }
    }

    async fn serve_tls(
        &self,
        tls: &Tls,
        stream: TcpStream,
        peer: Peer,
        answers: ConnectionActivity,
        place: Arc<Place>,
    ) {
        // Boxed: it is large, and gone before the connection's long life begins.
        let handshake = Box::pin(tls.acceptor().accept(stream));
        match self.before_request(&place, handshake).await {
            Some(Ok(stream)) => self.serve(stream, peer, true, answers, place).await,
            Some(Err(error)) => debug!(?peer, %error, "handshake failed"),
            None => debug!(?peer, "handshake took too long"),
        }
    }

    /// Does what comes before a connection's first request, in `header_timeout`; in less once the server stops, and not
    /// at all where its place is needed.
    async fn before_request<T>(&self, place: &Place, step: impl Future<Output = T> + Unpin) -> Option<T> {
        let mut step = step;
        // Cancel safe, both: the step is polled on below, or dropped where nobody needs it.
        tokio::select! {
            biased;
            done = tokio::time::timeout(self.0.header_timeout, &mut step) => return done.ok(),
            () = place.leave().cancelled() => {}
        }
        match self.is_stopping() {
            true => tokio::time::timeout(LAST_HEAD, step).await.ok(),
            false => None,
        }
    }

    /// Whether a place's token was cancelled because the server stops: that happens before the flag is there.
    fn is_stopping(&self) -> bool {
        self.0.stop.is_cancelled()
    }

    async fn serve<S>(
        &self,
        stream: S,
        peer: Peer,
        is_tls: bool,
        answers: ConnectionActivity,
        place: Arc<Place>,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let began = clock::now();
        let mut stream = ReadAhead::new(stream, answers.clone());
        let Some(Ok(version)) = self.before_request(&place, pin!(stream.version())).await else {
            debug!(?peer, "nothing was asked");
            return;
        };
        let streams = (version >= Version::HTTP_2).then(|| Streams::new(self.0.patience));
        let service = service_fn(|request: hyper::Request<Incoming>| {
            let ctx = RequestCtx {
                id: RequestId::new(request.headers().get(X_REQUEST_ID)),
                forwarded: ForwardedChain::from_headers(request.headers(), peer, &self.0.trusted.load()),
                is_tls,
                arrived: clock::now(),
            };
            let (server, place) = (self.clone(), Arc::clone(&place));
            let stream = streams.as_ref().map(|streams| {
                let taken = Arc::<Taken>::default();
                streams.announce(Arc::clone(&taken));
                taken
            });
            let (answering, answers) = (answers.begin_stream(stream), answers.clone());
            let request = request.map(|body| UploadTimeout::new(body, self.0.patience, &answers));
            server.0.gateway.handle(request, ctx).map(move |forwarded| {
                if let Some(tunnel) = forwarded.tunnel {
                    let held = (answers.begin_tunnel(), place);
                    let tunnel = async move {
                        tunnel.await;
                        drop(held);
                    };
                    server.0.tasks.spawn(server.0.cut.clone().run_until_cancelled_owned(tunnel));
                }
                let mut response = forwarded.response.map(|body| answering.with(body));
                if version < Version::HTTP_2 && server.0.is_stopping.load(Ordering::Relaxed) {
                    // Its client is not to find out by a request that fails.
                    response.headers_mut().entry(CONNECTION).or_insert(HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response)
            })
        });
        let gateway = self.0.gateway.clone();
        let io = TokioIo::new(Refusals::new(stream, peer, answers.clone(), gateway));
        let life = ConnectionInfo { began, version, answers: &answers, place: &place };
        let served = match &streams {
            Some(streams) => {
                // Boxed: only a few have room for many streams.
                let mut connection = Box::pin(http2(streams.clone()).serve_connection(io, service));
                self.drive(connection.as_mut(), http2::Connection::graceful_shutdown, life).await
            }
            None => {
                let connection = with_fresh_buffer(|| self.0.http1.serve_connection(io, service));
                let connection = std::pin::pin!(connection.with_upgrades());
                self.drive(connection, http1::UpgradeableConnection::graceful_shutdown, life).await
            }
        };
        if let Err(error) = served {
            debug!(%error, "connection ended");
        }
    }

    /// Until it ends by itself, or it is time to say goodbye, or its client does nothing.
    async fn drive<C: Future<Output = hyper::Result<()>>>(
        &self,
        mut connection: Pin<&mut C>,
        say_goodbye: fn(Pin<&mut C>),
        ConnectionInfo { began, version, answers, place }: ConnectionInfo<'_>,
    ) -> hyper::Result<()> {
        let Shared { patience, header_timeout, idle_timeout, .. } = &*self.0;
        let mut silence = ConnectionTimeouts { head: *header_timeout, idle: *idle_timeout, version };
        // Cancel safe, all: the connection is polled on below, or dropped where nobody needs it.
        tokio::select! {
            biased; // what the client asks for and takes shows itself while the connection is polled
            served = connection.as_mut() => return served,
            () = place.leave().cancelled() => {}
            () = silence.is_over(answers, began) => if version < Version::HTTP_2 {
                // Only what is late with a head does not end at the goodbye; HTTP/2 waits for the client's own.
                silence.head = Duration::ZERO;
            },
            () = answers.given_up(*patience, version) => return Ok(()),
        }
        say_goodbye(connection.as_mut());
        if place.leave().is_cancelled() && !self.is_stopping() && !answers.has_pending() {
            // Somebody needs the place now: the goodbye is written as far as the socket takes it.
            return connection.now_or_never().unwrap_or(Ok(()));
        }
        tokio::select! {
            biased;
            served = connection => served,
            () = silence.is_over(answers, clock::now()) => Ok(()),
            () = answers.given_up(*patience, version) => Ok(()),
        }
    }
}

/// What there is to know of a connection as it begins.
struct ConnectionInfo<'a> {
    began: Instant,
    version: Version,
    answers: &'a ConnectionActivity,
    place: &'a Place,
}

/// Makes a connection whose buffer for answers, unlike the one for requests, is not what another connection's request
/// was in last: allocators hand out first what they took back last. What it does not write to, a parked connection's
/// buffer for answers, costs no memory then. hyper allocates it at once, and as large as it reads.
fn with_fresh_buffer<C>(serve: impl FnOnce() -> C) -> C {
    let recycled = std::hint::black_box(Vec::<u8>::with_capacity(HYPER_BUFFER));
    let connection = serve();
    drop(recycled);
    connection
}

/// What hyper's two buffers of an HTTP/1 connection have at first, in bytes.
const HYPER_BUFFER: usize = 8 << 10;

fn http2(streams: Streams) -> http2::Builder<Streams> {
    let mut http2 = http2::Builder::new(streams);
    http2
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_STREAMS as usize)
        .max_header_list_size(u32::try_from(MAX_HEAD).expect("it is small"));
    http2
}

/// Small answers must not wait for acknowledgements, and vanished clients are to be noticed.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_keepalive(&PROBE)
}
