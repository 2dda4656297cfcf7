//! Client connections: from an accepted socket to the response of the gateway.
//!
//! ```text
//! listener ──► accept ──► permit (max_connections) ──► TLS? ──► ReadAhead ──► hyper ──► gateway
//! ```
//!
//! The server owns the tasks of the connections and of their tunnels. It does not know the meaning of a request.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures_util::FutureExt as _;
use http::header::{CONNECTION, CONTENT_LENGTH};
use http::{HeaderValue, Response, StatusCode, Version};
use http_body::Body as HttpBody;
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
use self::connection_limit::{ConnectionLimit, ConnectionPermit};
pub(crate) use self::listener::{Accepted, Listeners};
pub use self::listener::{Listener, tcp_address};
use self::read_ahead::ReadAhead;
use self::stream_executor::{DeliveryProgress, StreamExecutor};
use self::timeouts::ConnectionTimeouts;
use self::tls::ReloadableTls;
pub use self::tls::TlsError;
pub(crate) use self::tls::{check_files, validity_warnings};
use self::turn_writes::TurnWrites;
use self::upload_timeout::UploadTimeout;
use crate::clock;
use crate::config;
use crate::gateway::error::{GatewayError, HttpFault};
use crate::gateway::response::X_REQUEST_ID;
use crate::gateway::{Gateway, access_log};
use crate::protocol::request::{ForwardedChain, Peer, RequestCtx, RequestId};

mod accept;
mod activity;
mod connection_limit;
pub(crate) mod descriptors;
mod listener;
mod read_ahead;
mod stream_executor;
mod timeouts;
mod tls;
mod turn_writes;
mod upload_timeout;

/// Largest request head in bytes. The target alone may have half of it; hyper answers 414 and 431.
///
const MAX_HEAD: usize = 128 << 10;

/// Fields of a head that hyper parses without a buffer on the heap. A higher limit costs each request 6,300 instructions.
///
/// Up to this number, or to twice a higher `server.max_headers`, the gateway rejects a head itself, with a body that names
/// the limit. hyper rejects the others.
const CHEAP_FIELDS: usize = 100;

/// Concurrent requests on one HTTP/2 connection, most of them parked. A client may reset them all before the gateway
/// reads one, for example when its user closes a page. With hyper's default bound of 20 pending resets, the
/// connection would end, and all other waits on it.
const MAX_STREAMS: u32 = 1000;

/// Interval of pings on a silent HTTP/2 connection. They find vanished clients.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// Longest pause of a client in the middle of its upload, or in reading a response. Does not limit a client that
/// waits for the gateway.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// TCP keep-alive. It finds vanished clients 90 s after their last byte.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(60))
    .with_interval(Duration::from_secs(10))
    .with_retries(3);

/// Time for the first request of a connected client once the server stops.
const FINAL_HEAD_TIMEOUT: Duration = Duration::from_secs(1);

/// Least time that stays for the last responses when the server stops.
const MIN_FLUSH_TIME: Duration = Duration::from_millis(100);

/// Serves clients. Clones share one server.
#[derive(Clone)]
pub struct Server(Arc<ServerInner>);

/// Settings that [`Server::apply_reload`] applies.
#[derive(Debug)]
pub struct PreparedReload {
    tls: Option<Arc<rustls::ServerConfig>>,
    trusted: Vec<IpNet>,
}

struct ServerInner {
    gateway: Gateway,
    http1: http1::Builder,
    header_timeout: Duration,
    idle_timeout: Duration,
    drain_timeout: Duration,
    stall_timeout: Duration,
    /// For TCP listeners. Clients of a unix socket are on this machine already.
    tls: Option<ReloadableTls>,
    /// Proxies whose `Forwarded` and `X-Forwarded-*` headers count.
    trusted: ArcSwap<Vec<IpNet>>,
    connection_limit: Arc<ConnectionLimit>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Cancelled when `drain_timeout` is over.
    abort: CancellationToken,
    /// Set when `stop` is cancelled. Every request reads it.
    is_stopping: AtomicBool,
}

impl Server {
    /// Returns a server that runs until `stop` is cancelled.
    ///
    /// # Errors
    ///
    /// If a file of `server.tls` is missing or invalid.
    pub fn new(
        gateway: Gateway,
        config: &config::ServerConfig,
        stop: CancellationToken,
    ) -> Result<Self, TlsError> {
        Self::with_stall_timeout(STALL_TIMEOUT, gateway, config, stop)
    }

    /// Like [`Server::new`], with another timeout than 60 s for clients that stall in an upload or in reading a
    /// response.
    ///
    /// # Errors
    ///
    /// If a file of `server.tls` is missing or invalid.
    pub fn with_stall_timeout(
        stall_timeout: Duration,
        gateway: Gateway,
        config: &config::ServerConfig,
        stop: CancellationToken,
    ) -> Result<Self, TlsError> {
        let mut http1 = http1::Builder::new();
        // hyper's timeout would also count the time of an idle connection, and sets a timer for each request.
        http1.header_read_timeout(None).max_buf_size(MAX_HEAD);
        if config.max_headers > CHEAP_FIELDS {
            http1.max_headers(2 * config.max_headers);
        }
        Ok(Self(Arc::new(ServerInner {
            gateway,
            http1,
            header_timeout: config.header_timeout,
            idle_timeout: config.idle_timeout,
            drain_timeout: config.drain_timeout,
            stall_timeout,
            tls: config.tls.as_ref().map(ReloadableTls::new).transpose()?,
            trusted: ArcSwap::from_pointee(config.trusted_proxies.clone()),
            connection_limit: Arc::new(ConnectionLimit::new(config.max_connections, stop.clone())),
            tasks: TaskTracker::new(),
            stop,
            abort: CancellationToken::new(),
            is_stopping: AtomicBool::new(false),
        })))
    }

    /// Loads the settings that may change while the server runs. TLS itself cannot be switched on or off.
    ///
    /// # Errors
    ///
    /// If a file of `server.tls` is missing or invalid.
    pub fn prepare_reload(&self, config: &config::ServerConfig) -> Result<PreparedReload, TlsError> {
        let tls = config.tls.as_ref().filter(|_| self.0.tls.is_some()).map(tls::load).transpose()?;
        Ok(PreparedReload { tls, trusted: config.trusted_proxies.clone() })
    }

    /// Applies new certificates to new connections, and new trusted proxies to new requests.
    pub fn apply_reload(&self, prepared: PreparedReload) {
        if let (Some(tls), Some(config)) = (&self.0.tls, prepared.tls) {
            tls.replace(config);
        }
        self.0.trusted.store(Arc::new(prepared.trusted));
    }

    /// Serves until `stop`. Then serves the connections that wait in the backlog, answers parked waits, and returns
    /// when all requests and tunnels have ended, at the latest after `drain_timeout`.
    pub async fn run(self, listeners: Vec<Listener>) {
        let ServerInner { gateway, stop, abort, tasks, drain_timeout, is_stopping, .. } = &*self.0;
        let (mut listeners, mut pending) = (Listeners::new(listeners), None);
        tokio::select! {
            // Cancel safe: a connection is in the queue of a listener, in `pending`, or has a task.
            _ = self.accept_all(&mut listeners, &mut pending) => {}
            () = stop.cancelled() => {}
        }
        is_stopping.store(true, Ordering::Relaxed);
        for accepted in pending.into_iter().chain(listeners.backlog()) {
            let activity = ConnectionActivity::new();
            let permit = self.0.connection_limit.acquire_over_limit(&activity);
            self.begin(accepted, activity, permit);
        }
        drop(listeners);
        tasks.close();
        let until = clock::now() + *drain_timeout;
        // Time to send the last responses.
        let margin = (*drain_timeout / 10).max(MIN_FLUSH_TIME).min(*drain_timeout / 2);
        gateway.drain(until - margin).await;
        if tokio::time::timeout_at(until.into(), tasks.wait()).await.is_err() {
            warn!(connections = tasks.len(), "drain timeout is over, open connections are cut off");
            abort.cancel();
        }
    }

    fn begin(&self, accepted: Accepted, activity: ConnectionActivity, permit: ConnectionPermit) {
        self.0.tasks.spawn(self.clone().connection(accepted, activity, permit));
    }

    async fn connection(self, accepted: Accepted, activity: ConnectionActivity, permit: ConnectionPermit) {
        match (accepted, &self.0.tls) {
            (Accepted::Unix(stream), _) => self.serve(stream, Peer::Unix, false, activity, permit).await,
            (Accepted::Tcp(stream, address), tls) => {
                // A failure means that the socket is gone already; the first read reports it.
                let _ = set_socket_options(&stream);
                match tls {
                    None => self.serve(stream, Peer::Tcp(address), false, activity, permit).await,
                    // Boxed: the future is large, and most connections do not use TLS.
                    Some(tls) => {
                        Box::pin(self.serve_tls(tls, stream, Peer::Tcp(address), activity, permit)).await
                    }
                }
            }
        }
    }

    async fn serve_tls(
        &self,
        tls: &ReloadableTls,
        stream: TcpStream,
        peer: Peer,
        activity: ConnectionActivity,
        permit: ConnectionPermit,
    ) {
        // Boxed: the future is large, and is dropped before the long part of the connection's life.
        let handshake = Box::pin(tls.acceptor().accept(stream));
        match self.within_header_timeout(&permit, handshake).await {
            Some(Ok(stream)) => self.serve(stream, peer, true, activity, permit).await,
            Some(Err(error)) => debug!(?peer, %error, "TLS handshake failed"),
            None => debug!(?peer, "TLS handshake timed out"),
        }
    }

    /// Runs a step that precedes the first request, for at most `header_timeout`. Stops waiting early when the server
    /// stops, and at once when the permit is needed for another connection.
    async fn within_header_timeout<T>(
        &self,
        permit: &ConnectionPermit,
        step: impl Future<Output = T> + Unpin,
    ) -> Option<T> {
        let mut step = step;
        // Cancel safe: `step` is polled on below, or dropped with the connection.
        tokio::select! {
            biased;
            done = tokio::time::timeout(self.0.header_timeout, &mut step) => return done.ok(),
            () = permit.close_requested().cancelled() => {}
        }
        match self.is_stopping() {
            true => tokio::time::timeout(FINAL_HEAD_TIMEOUT, step).await.ok(),
            false => None,
        }
    }

    /// Returns whether the server stops. The token is cancelled before the flag `is_stopping` is set.
    fn is_stopping(&self) -> bool {
        self.0.stop.is_cancelled()
    }

    async fn serve<S>(
        &self,
        stream: S,
        peer: Peer,
        is_tls: bool,
        activity: ConnectionActivity,
        permit: ConnectionPermit,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let opened_at = clock::now();
        // Boxed: dropped before the long part of the connection's life, which does not reserve space for the stream twice.
        let detected = Box::pin(ReadAhead::new(stream, activity.clone()).with_version());
        let Some(Ok((stream, version))) = self.within_header_timeout(&permit, detected).await else {
            debug!(?peer, "connection ended before its first request");
            return;
        };
        let streams = (version >= Version::HTTP_2).then(|| StreamExecutor::new(self.0.stall_timeout));
        // One count of references for each request, in memory of this connection: all threads share that of the server.
        let owner = Arc::new(ConnectionOwner { server: self.clone(), permit });
        let permit = &owner.permit;
        let service = service_fn(|request: hyper::Request<Incoming>| {
            let ctx = RequestCtx {
                id: RequestId::new(request.headers().get(X_REQUEST_ID)),
                forwarded: ForwardedChain::from_headers(request.headers(), peer, &self.0.trusted.load()),
                is_tls,
                arrived: clock::now(),
            };
            let owner = Arc::clone(&owner);
            let stream = streams.as_ref().map(|streams| {
                let delivery = Arc::<DeliveryProgress>::default();
                streams.announce(Arc::clone(&delivery));
                delivery
            });
            let (guard, activity) = (activity.begin_on_stream(stream), activity.clone());
            let is_http10 = request.version() == Version::HTTP_10;
            let request = request.map(|body| UploadTimeout::new(body, self.0.stall_timeout, &activity));
            self.0.gateway.handle(request, ctx).map(move |forwarded| {
                let server = &owner.server.0;
                if let Some(tunnel) = forwarded.tunnel {
                    let guards = (activity.begin_tunnel(), Arc::clone(&owner));
                    let tunnel = async move {
                        tunnel.await;
                        drop(guards);
                    };
                    server.tasks.spawn(server.abort.clone().run_until_cancelled_owned(tunnel));
                }
                let mut response = forwarded.response.map(|body| guard.with(body));
                // Otherwise the client would send its next request into a closing connection.
                let is_last = server.is_stopping.load(Ordering::Relaxed)
                    || (is_http10 && is_of_unknown_length(&response));
                if version < Version::HTTP_2 && is_last {
                    announce_close(&mut response, is_http10);
                }
                Ok::<_, Infallible>(response)
            })
        });
        let info = ConnectionInfo { opened_at, version, activity: &activity, permit };
        let served = match &streams {
            Some(streams) => {
                // Boxed: only HTTP/2 connections need the space.
                let io = TokioIo::new(TurnWrites::new(stream, activity.clone()));
                let mut connection = Box::pin(http2(streams.clone()).serve_connection(io, service));
                self.drive(connection.as_mut(), http2::Connection::graceful_shutdown, info).await
            }
            None => {
                let io = TokioIo::new(stream);
                let connection = with_fresh_buffer(|| self.0.http1.serve_connection(io, service));
                let connection = std::pin::pin!(connection.with_upgrades());
                let driven = std::pin::pin!(self.drive(
                    connection,
                    http1::UpgradeableConnection::graceful_shutdown,
                    info
                ));
                self.record_rejected_heads(driven, &activity, peer).await
            }
        };
        if let Err(error) = served {
            debug!(%error, "connection ended");
        }
    }

    /// Polls the connection, and records the rejection of a head as soon as hyper has begun its response: the connection
    /// may stay open while the client sends the rest, or may be cut off.
    async fn record_rejected_heads<F: Future>(
        &self,
        mut driven: Pin<&mut F>,
        activity: &ConnectionActivity,
        peer: Peer,
    ) -> F::Output {
        poll_fn(|cx| {
            let polled = driven.as_mut().poll(cx);
            if let Some(status) = activity.take_rejected_head() {
                self.record_rejected_head(status, peer);
            }
            polled
        })
        .await
    }

    /// Writes the access line of a head that hyper could not parse and answered itself, and counts the request.
    fn record_rejected_head(&self, status: StatusCode, peer: Peer) {
        let gateway = &self.0.gateway;
        let error = GatewayError::Http(match status {
            StatusCode::URI_TOO_LONG => HttpFault::Target,
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => HttpFault::Head,
            _ => HttpFault::Malformed,
        });
        gateway.count_malformed_head(peer);
        access_log::log_malformed_head(
            status,
            error.reason(),
            peer,
            &RequestId::new(None),
            gateway.metrics(),
        );
    }

    /// Polls the connection until it ends, has to close, or its client stalls.
    async fn drive<C: Future<Output = hyper::Result<()>>>(
        &self,
        mut connection: Pin<&mut C>,
        graceful_shutdown: fn(Pin<&mut C>),
        ConnectionInfo { opened_at, version, activity, permit }: ConnectionInfo<'_>,
    ) -> hyper::Result<()> {
        let ServerInner { stall_timeout, header_timeout, idle_timeout, .. } = &*self.0;
        let mut timeouts = ConnectionTimeouts { head: *header_timeout, idle: *idle_timeout, version };
        // Cancel safe: the connection is polled on below, or dropped.
        tokio::select! {
            biased; // the other branches read state that polling the connection updates
            served = connection.as_mut() => return served,
            () = permit.close_requested().cancelled() => {}
            () = timeouts.expired(activity, opened_at) => if version < Version::HTTP_2 {
                // Graceful shutdown does not end a connection in the middle of a head. HTTP/2 waits for the client's
                // GOAWAY.
                timeouts.head = Duration::ZERO;
            },
            () = activity.stalled(*stall_timeout, version) => return Ok(()),
        }
        graceful_shutdown(connection.as_mut());
        if permit.close_requested().is_cancelled() && !self.is_stopping() && !activity.is_responding() {
            activity.write_at_once();
            // Another connection needs the permit: writes as much of the shutdown as the socket takes at once.
            return connection.now_or_never().unwrap_or(Ok(()));
        }
        tokio::select! {
            biased;
            served = connection => served,
            () = timeouts.expired(activity, clock::now()) => Ok(()),
            () = activity.stalled(*stall_timeout, version) => Ok(()),
        }
    }
}

/// The server and the permit of a connection, shared by its requests and tunnels.
struct ConnectionOwner {
    server: Server,
    permit: ConnectionPermit,
}

/// State of a connection that [`Server::drive`] needs.
struct ConnectionInfo<'a> {
    opened_at: Instant,
    version: Version,
    activity: &'a ConnectionActivity,
    permit: &'a ConnectionPermit,
}

/// Makes a connection whose write buffer is not the recycled read buffer of another connection: allocators hand out
/// the most recently freed memory first. hyper allocates the write buffer at once, as large as the read buffer. A
/// parked connection never writes to it, so fresh memory costs no pages.
fn with_fresh_buffer<C>(serve: impl FnOnce() -> C) -> C {
    let recycled = std::hint::black_box(Vec::<u8>::with_capacity(HYPER_BUFFER));
    let connection = serve();
    drop(recycled);
    connection
}

/// Initial size of both buffers of an HTTP/1 connection in hyper, in bytes.
const HYPER_BUFFER: usize = 8 << 10;

/// Returns whether only the end of the connection ends the body for a client of HTTP/1.0, which knows no chunks.
fn is_of_unknown_length<B: HttpBody>(response: &Response<B>) -> bool {
    !response.headers().contains_key(CONTENT_LENGTH) && response.body().size_hint().exact().is_none()
}

/// Adds `Connection: close`. To a response with the version 1.1, hyper adds `keep-alive` for a client of HTTP/1.0.
fn announce_close<B>(response: &mut Response<B>, is_http10: bool) {
    if is_http10 {
        *response.version_mut() = Version::HTTP_10;
    }
    response.headers_mut().entry(CONNECTION).or_insert(HeaderValue::from_static("close"));
}

fn http2(streams: StreamExecutor) -> http2::Builder<StreamExecutor> {
    let mut http2 = http2::Builder::new(streams);
    http2
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_STREAMS as usize)
        .max_header_list_size(u32::try_from(MAX_HEAD).expect("128 KiB fits"));
    http2
}

/// Sets `TCP_NODELAY`, so that small responses do not wait for acknowledgements, and keep-alive.
fn set_socket_options(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_keepalive(&KEEPALIVE)
}
