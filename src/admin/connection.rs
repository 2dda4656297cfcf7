//! Connections of the operator's clients: plain HTTP/1.1, few and bounded.
//!
//! A newcomer always gets a place, if need be that of another: a health check is never kept waiting. Where there is a
//! token, who does not bring it is told to go after each answer.

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

use super::seats::{Seat, Seated, Seats};
use super::service::AdminService;
use crate::clock;
use crate::protocol::request::Peer;
use crate::server::{Accepted, Listener, Listeners, descriptors};

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

/// How often a warning is worth repeating.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Serves until it is dropped, and then cuts all off.
pub(super) async fn accept_all(listener: Listener, panel: Arc<AdminService>) -> Infallible {
    let seats = Arc::new(Seats::new(descriptors::admin_connections()));
    let mut listeners = Listeners::new(vec![listener]);
    let (mut connections, mut warned_at) = (JoinSet::new(), None::<Instant>);
    loop {
        match listeners.accept().await {
            Ok(accepted) => {
                let (panel, seat) = (Arc::clone(&panel), seats.take());
                connections.spawn(async move {
                    match accepted {
                        Accepted::Tcp(stream, address) => {
                            connection(stream, Peer::Tcp(address), panel, seat).await;
                        }
                        Accepted::Unix(stream) => connection(stream, Peer::Unix, panel, seat).await,
                    }
                });
                // Who has to go for it goes before the next one comes.
                tokio::task::yield_now().await;
            }
            // It has gone before its turn came.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                let now = clock::now();
                if warned_at.is_none_or(|last| now.saturating_duration_since(last) >= WARN_EVERY) {
                    warned_at = Some(now);
                    warn!(%error, "accept failed on admin.listen");
                }
                seats.make_room();
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: Peer,
    panel: Arc<AdminService>,
    seat: Seat,
) {
    // Cancel safe: what is cut off here has to go.
    let _ = seat.seated.leave().run_until_cancelled(serve(stream, peer, panel, &seat.seated)).await;
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: Peer,
    panel: Arc<AdminService>,
    seated: &Arc<Seated>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (panel, seated) = (Arc::clone(&panel), Arc::clone(seated));
        async move {
            let brings_token = panel.brings_token(&request);
            let asking = seated.ask(brings_token == Some(true));
            let mut response = panel.answer(&request, peer).await;
            if brings_token == Some(false) {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response.map(|body| asking.with(body)))
        }
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
