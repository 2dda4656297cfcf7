//! Connections of the admin listener: plain HTTP/1.1, few and bounded.
//!
//! A new connection always gets a slot, so that a health check never waits; see [`super::connection_limit`]. If a token
//! is configured, the response to a request without it closes the connection.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;
use http::header::CONNECTION;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::connection_limit::{AdminConnectionLimit, AdminConnectionPermit, LimitedConnection};
use super::service::AdminService;
use crate::clock;
use crate::protocol::request::Peer;
use crate::server::{Accepted, Listener, Listeners, descriptors};

/// Largest request head, in bytes.
const MAX_HEAD: usize = 32 << 10;

/// Timeout for a request head, and for the next head on an idle connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest life of a connection: a client that does not read its response must not hold a slot for ever.
const MAX_LIFE: Duration = Duration::from_secs(15 * 60);

/// Time for the last response after that.
const LAST_RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause after a failed accept; the usual cause is a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Shortest time between two warnings about failed accepts.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// Accepts and serves connections. Dropping the future closes them all.
pub(super) async fn accept_all(listener: Listener, service: Arc<AdminService>) -> Infallible {
    let limit = Arc::new(AdminConnectionLimit::new(descriptors::admin_connections()));
    let mut listeners = Listeners::new(vec![listener]);
    let (mut connections, mut warned_at) = (JoinSet::new(), None::<Instant>);
    loop {
        match listeners.accept().await {
            Ok(accepted) => {
                let (service, permit) = (Arc::clone(&service), limit.acquire());
                connections.spawn(async move {
                    match accepted {
                        Accepted::Tcp(stream, address) => {
                            run_connection(stream, Peer::Tcp(address), service, permit).await;
                        }
                        Accepted::Unix(stream) => run_connection(stream, Peer::Unix, service, permit).await,
                    }
                });
                // Lets an evicted connection close before the next accept.
                tokio::task::yield_now().await;
            }
            // The client disconnected before the accept.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                let now = clock::now();
                if warned_at.is_none_or(|last| now.saturating_duration_since(last) >= WARN_INTERVAL) {
                    warned_at = Some(now);
                    warn!(%error, "accept failed on admin.listen");
                }
                limit.evict_one();
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn run_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: Peer,
    service: Arc<AdminService>,
    permit: AdminConnectionPermit,
) {
    // Cancel safe: an eviction closes the connection and drops its requests.
    let connection = &permit.connection;
    let _ = connection.evicted().run_until_cancelled(serve(stream, peer, service, connection)).await;
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: Peer,
    service: Arc<AdminService>,
    limited: &Arc<LimitedConnection>,
) {
    let handler = service_fn(move |request: Request<Incoming>| {
        let (service, limited) = (Arc::clone(&service), Arc::clone(limited));
        async move {
            let has_token = service.has_token(&request);
            let active = limited.begin_request(has_token == Some(true));
            let mut response = service.respond(&request, peer).await;
            if has_token == Some(false) {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response.map(|body| active.track(body)))
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_HEAD);
    let connection = http.serve_connection(TokioIo::new(stream), handler);
    tokio::pin!(connection);
    let ended = match tokio::time::timeout(MAX_LIFE, connection.as_mut()).await {
        Ok(ended) => ended,
        Err(_) => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(LAST_RESPONSE_TIMEOUT, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        debug!(%error, "admin connection ended");
    }
}
