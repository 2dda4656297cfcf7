//! Listeners and connections: from an accepted socket to the gateway's answer.
//!
//! It owns the tasks of the connections and of their tunnels. It must never know what is asked for.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use self::refusals::{Answers, Refusals};
use crate::clock;
use crate::config::{self, Listen};
use crate::gateway::Gateway;
use crate::reply::X_REQUEST_ID;
use crate::request::{Peer, RequestCtx, RequestId};

mod refusals;

/// The largest request head, in bytes. A target alone may have half of it; hyper says 414 and 431.
const MAX_HEAD: usize = 128 << 10;

/// Requests at once on one HTTP/2 connection, most of them parked.
const MAX_STREAMS: u32 = 1000;

/// How often a silent HTTP/2 connection is pinged, so that a client that vanished does not wait on.
const PING_EVERY: Duration = Duration::from_secs(30);

/// The pause after a failed accept, which mostly means that descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A socket that clients can connect to.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Binds an address. A unix socket's file that nobody listens on any more is replaced.
    pub async fn bind(listen: &Listen) -> io::Result<Self> {
        let socket = match listen {
            Listen::Tcp(address) => Socket::Tcp(TcpListener::bind(address).await?),
            Listen::Unix(path) => {
                let socket = match UnixListener::bind(path) {
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(path).await => {
                        std::fs::remove_file(path)?;
                        UnixListener::bind(path)?
                    }
                    bound => bound?,
                };
                Socket::Unix(socket, path.clone())
            }
        };
        Ok(Self { socket })
    }

    /// Where it listens, with the real port.
    pub fn address(&self) -> io::Result<Listen> {
        match &self.socket {
            Socket::Tcp(socket) => socket.local_addr().map(Listen::Tcp),
            Socket::Unix(_, path) => Ok(Listen::Unix(path.clone())),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Socket::Unix(_, path) = &self.socket {
            let _ = std::fs::remove_file(path);
        }
    }
}

async fn is_stale(path: &std::path::Path) -> bool {
    let refused = tokio::net::UnixStream::connect(path).await.err();
    refused.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Serves clients.
#[derive(Clone)]
pub struct Server {
    gateway: Gateway,
    http: auto::Builder<TokioExecutor>,
    drain_timeout: Duration,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Server {
    /// A server for this gateway, until `stop` is cancelled.
    pub fn new(gateway: Gateway, config: &config::Server, stop: CancellationToken) -> Self {
        let mut http = auto::Builder::new(TokioExecutor::new());
        http.http1()
            .timer(TokioTimer::new())
            .header_read_timeout(config.header_timeout)
            .max_buf_size(MAX_HEAD);
        http.http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_EVERY)
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(u32::try_from(MAX_HEAD).expect("it is small"));
        Self { gateway, http, drain_timeout: config.drain_timeout, tasks: TaskTracker::new(), stop }
    }

    /// Serves until `stop`; then takes no more connections, has parked waits answered and lets requests end within
    /// `drain_timeout`, and returns.
    pub async fn run(self, listeners: Vec<Listener>) {
        for listener in listeners {
            let server = self.clone();
            self.tasks.spawn(async move {
                tokio::select! {
                    // Cancel safe: a connection is either still in the listener's queue or a task of its own.
                    () = server.accept_all(&listener) => {}
                    () = server.stop.cancelled() => {}
                }
            });
        }
        self.stop.cancelled().await;
        self.tasks.close();
        let until = clock::now() + self.drain_timeout;
        self.gateway.drain(until).await;
        if tokio::time::timeout_at(until.into(), self.tasks.wait()).await.is_err() {
            warn!(connections = self.tasks.len(), "drain_timeout is over, connections are cut off");
        }
    }

    async fn accept_all(&self, listener: &Listener) {
        loop {
            let accepted = match &listener.socket {
                Socket::Tcp(socket) => socket.accept().await.map(|(stream, address)| {
                    let _ = stream.set_nodelay(true);
                    self.spawn(stream, Peer::Tcp(address));
                }),
                Socket::Unix(socket, _) => {
                    socket.accept().await.map(|(stream, _)| self.spawn(stream, Peer::Unix))
                }
            };
            if let Err(error) = accepted {
                warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }

    fn spawn(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, peer: Peer) {
        let server = self.clone();
        self.tasks.spawn(async move { server.serve(stream, peer).await });
    }

    async fn serve(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, peer: Peer) {
        let answers = Answers::default();
        let service = service_fn(|request: hyper::Request<Incoming>| {
            let ctx = RequestCtx {
                id: RequestId::new(request.headers().get(X_REQUEST_ID)),
                peer,
                is_tls: false,
                arrived: clock::now(),
            };
            let server = self.clone();
            let (answering, answers) = (answers.begin(), answers.clone());
            async move {
                let forwarded = server.gateway.handle(request, &ctx).await;
                if let Some(tunnel) = forwarded.tunnel {
                    let answering = answers.begin();
                    let tunnel = async move {
                        tunnel.await;
                        drop(answering);
                    };
                    server.tasks.spawn(server.stop.clone().run_until_cancelled_owned(tunnel));
                }
                Ok::<_, Infallible>(forwarded.response.map(|body| answering.with(body)))
            }
        });
        let io = TokioIo::new(Refusals::new(stream, peer, answers.clone()));
        let connection = self.http.serve_connection_with_upgrades(io, service);
        tokio::pin!(connection);
        let served = tokio::select! {
            served = connection.as_mut() => served,
            () = self.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = served {
            debug!(%error, "connection ended");
        }
    }
}

/// The address of a TCP listener, for those who asked for port 0.
pub fn tcp_address(listener: &Listener) -> Option<SocketAddr> {
    match listener.address() {
        Ok(Listen::Tcp(address)) => Some(address),
        Ok(Listen::Unix(_)) | Err(_) => None,
    }
}
