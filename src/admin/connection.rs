//! Connections of the operator's clients: plain HTTP/1.1, few and bounded.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::panel::Panel;
use crate::request::Peer;
use crate::server::{Accepted, Listener, Listeners};

/// Connections at once. Those above wait to be accepted.
const MAX_CONNECTIONS: usize = 256;

/// The largest request head, in bytes.
const MAX_HEAD: usize = 32 << 10;

/// How long a head may take to arrive, an idle connection's next one too.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may live: one whose other end takes no answer must not stay for ever.
const LIFE: Duration = Duration::from_secs(15 * 60);

/// How long its last answer may take after that.
const LAST_ANSWER: Duration = Duration::from_secs(5);

/// The pause after a failed accept, which mostly means that descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until it is dropped, and then cuts all off.
pub(super) async fn accept_all(listener: Listener, panel: Arc<Panel>) -> Infallible {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut listeners = Listeners::new(vec![listener]);
    let mut connections = JoinSet::new();
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("nobody closes the semaphore");
        match listeners.accept().await {
            Ok(accepted) => {
                let panel = Arc::clone(&panel);
                connections.spawn(async move {
                    match accepted {
                        Accepted::Tcp(stream, address) => connection(stream, Peer::Tcp(address), panel).await,
                        Accepted::Unix(stream) => connection(stream, Peer::Unix, panel).await,
                    }
                    drop(place);
                });
            }
            Err(error) => {
                warn!(%error, "accept failed on admin.listen");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin, peer: Peer, panel: Arc<Panel>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let panel = Arc::clone(&panel);
        async move { Ok::<_, Infallible>(panel.answer(&request, peer).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_HEAD);
    let connection = http.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = match tokio::time::timeout(LIFE, connection.as_mut()).await {
        Ok(ended) => ended,
        Err(_) => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(LAST_ANSWER, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        debug!(%error, "admin connection ended");
    }
}
