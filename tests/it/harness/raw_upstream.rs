//! An upstream of raw bytes, for what the simulated one is too well-behaved for.
//!
//! It answers well in one case only: when it is asked for the clip `kept`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use crate::harness::gateway::within_secs;

/// Takes any number of connections and answers the first request on each in the same way, be it what it may.
pub(crate) struct RawUpstream {
    pub(crate) url: Uri,
    counts: Arc<Counts>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Counts {
    /// Requests, but for that clip.
    asked: AtomicU64,
    /// Bytes of bodies.
    sent: AtomicU64,
    gone: AtomicU64,
}

/// What asks for that clip, and what answers it.
const KEPT: &[u8] = b"clip_id=kept&";
const GOOD: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"id\":\"kept\",\"status\":\"complete\"}";

/// What comes after an answer's head.
#[derive(Clone)]
pub(crate) enum AfterHead {
    /// Nothing, and the connection stays.
    Silence,
    /// These bytes, and the connection ends.
    Bytes(Bytes),
    /// These bytes, for ever.
    Endless(Bytes),
}

impl RawUpstream {
    /// `head` is written as it is; nothing at all is no answer.
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
                        counts.gone.fetch_add(1, Ordering::Relaxed);
                    });
                }
            }
        });
        Self { url, counts, _task: AbortOnDropHandle::new(task) }
    }

    /// How many requests for anything but the clip `kept` have come.
    pub(crate) fn request_count(&self) -> u64 {
        self.counts.asked.load(Ordering::Relaxed)
    }

    /// How many bytes of bodies were taken from it.
    pub(crate) fn body_bytes_sent(&self) -> u64 {
        self.counts.sent.load(Ordering::Relaxed)
    }

    /// Comes back when this holds of the connections that have ended.
    pub(crate) async fn wait_until_closed(&self, count: u64) {
        self.until(|counts| counts.gone.load(Ordering::Relaxed) == count).await;
    }

    /// Comes back when so many requests have come.
    pub(crate) async fn wait_until_requests(&self, count: u64) {
        self.until(|counts| counts.asked.load(Ordering::Relaxed) == count).await;
    }

    async fn until(&self, holds: impl Fn(&Counts) -> bool) {
        let came = async {
            while !holds(&self.counts) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        within_secs(30, came).await;
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
        if seen.windows(KEPT.len()).any(|window| window == KEPT) {
            return socket.write_all(GOOD.as_bytes()).await;
        }
        self.asked.fetch_add(1, Ordering::Relaxed);
        let (mut read, mut write) = socket.split();
        let answering = async {
            write.write_all(head.as_bytes()).await?;
            match then {
                AfterHead::Silence => std::future::pending().await,
                AfterHead::Bytes(bytes) => write.write_all(&bytes).await,
                AfterHead::Endless(piece) => loop {
                    write.write_all(&piece).await?;
                    self.sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
                },
            }
        };
        let mut rest = tokio::io::sink();
        // Cancel safe: whichever ends, the connection does.
        tokio::select! {
            answered = answering => answered,
            gone = tokio::io::copy(&mut read, &mut rest) => gone.map(|_| ()),
        }
    }
}
