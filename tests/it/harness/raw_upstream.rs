//! An upstream that sends raw bytes, for responses that the simulated upstream never sends.
//!
//! Only a request for the clip `cached` gets a valid response.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use crate::harness::gateway::within_secs;

/// Accepts any number of connections and sends the same bytes to the first request on each.
pub(crate) struct RawUpstream {
    pub(crate) url: Uri,
    counts: Arc<Counts>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Counts {
    /// Requests for anything but the clip `cached`.
    requests: AtomicU64,
    body_bytes: AtomicU64,
    closed_connections: AtomicU64,
}

/// A part of each request for the clip `cached`, and the response to it.
const CACHED: &[u8] = b"clip_id=cached&";
const GOOD: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"id\":\"cached\",\"status\":\"complete\"}";

/// The action after the head of a response.
#[derive(Clone)]
pub(crate) enum AfterHead {
    /// Sends nothing and keeps the connection open.
    Silence,
    /// Sends these bytes and closes the connection.
    Bytes(Bytes),
    /// Sends these bytes again and again.
    Endless(Bytes),
}

impl RawUpstream {
    /// Sends `head` as it is. An empty head sends no response.
    pub(crate) async fn start(head: &str, then: AfterHead) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let counts = Arc::new(Counts::default());
        let task = tokio::spawn({
            let (counts, head) = (Arc::clone(&counts), head.to_owned());
            async move {
                loop {
                    let (socket, _) = listener.accept().await.unwrap();
                    let (counts, head, then) = (Arc::clone(&counts), head.clone(), then.clone());
                    tokio::spawn(async move {
                        let _ = counts.serve(socket, &head, then).await;
                        counts.closed_connections.fetch_add(1, Ordering::Relaxed);
                    });
                }
            }
        });
        Self { url, counts, _task: AbortOnDropHandle::new(task) }
    }

    /// Returns the number of requests for anything but the clip `cached`.
    pub(crate) fn request_count(&self) -> u64 {
        self.counts.requests.load(Ordering::Relaxed)
    }

    /// Returns the number of body bytes that the gateway has taken.
    pub(crate) fn body_bytes_sent(&self) -> u64 {
        self.counts.body_bytes.load(Ordering::Relaxed)
    }

    /// Waits until this number of connections has ended.
    pub(crate) async fn wait_until_closed(&self, count: u64) {
        self.until(|counts| counts.closed_connections.load(Ordering::Relaxed) == count).await;
    }

    /// Waits until this number of requests has arrived.
    pub(crate) async fn wait_until_requests(&self, count: u64) {
        self.until(|counts| counts.requests.load(Ordering::Relaxed) == count).await;
    }

    async fn until(&self, holds: impl Fn(&Counts) -> bool) {
        let reached = async {
            while !holds(&self.counts) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        within_secs(30, reached).await;
    }
}

impl Counts {
    async fn serve(&self, mut socket: TcpStream, head: &str, then: AfterHead) -> std::io::Result<()> {
        let mut seen = Vec::new();
        while !seen.windows(4).any(|four| four == b"\r\n\r\n") {
            if socket.read_buf(&mut seen).await? == 0 {
                return Ok(());
            }
        }
        if seen.windows(CACHED.len()).any(|window| window == CACHED) {
            return socket.write_all(GOOD.as_bytes()).await;
        }
        self.requests.fetch_add(1, Ordering::Relaxed);
        let (mut read, mut write) = socket.split();
        let answering = async {
            write.write_all(head.as_bytes()).await?;
            match then {
                AfterHead::Silence => std::future::pending().await,
                AfterHead::Bytes(bytes) => write.write_all(&bytes).await,
                AfterHead::Endless(piece) => loop {
                    write.write_all(&piece).await?;
                    self.body_bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
                },
            }
        };
        let mut rest = tokio::io::sink();
        // Cancel safe: the connection ends with the first branch that completes.
        tokio::select! {
            answered = answering => answered,
            gone = tokio::io::copy(&mut read, &mut rest) => gone.map(|_| ()),
        }
    }
}
