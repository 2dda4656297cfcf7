//! The bytes of a connection, watched: what the codec above them does not tell.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use super::MAX_INTERIM;
use super::connect::Stream;

/// Resolves when a request is on its way. Dropped unsent where it never was.
pub(super) type Notice = oneshot::Sender<()>;

/// What is seen of one connection. Shared by its requests and the stream they go over.
#[derive(Debug, Default)]
pub(super) struct Link {
    has_read: AtomicBool,
    has_written: AtomicBool,
    has_moved: AtomicBool,
    /// Interim responses to the request at hand (HTTP/1.1).
    interim: AtomicUsize,
    /// For the first byte that is written (HTTP/1.1).
    notice: Mutex<Option<Notice>>,
}

impl Link {
    /// A request of HTTP/1.1 is handed to the codec next.
    pub(super) fn begin(&self, notice: Option<Notice>) {
        self.interim.store(0, Ordering::Relaxed);
        *self.notice.lock() = notice;
        self.has_written.store(false, Ordering::Release);
    }

    /// Whether a byte of the request was taken by the stream.
    pub(super) fn has_written(&self) -> bool {
        self.has_written.load(Ordering::Acquire)
    }

    /// Counts an interim response.
    pub(super) fn interim(&self) {
        self.interim.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether there were too many of them.
    pub(super) fn is_flooded(&self) -> bool {
        self.interim.load(Ordering::Relaxed) > MAX_INTERIM
    }

    /// Whether anything was read since the last call.
    pub(super) fn take_has_read(&self) -> bool {
        self.has_read.swap(false, Ordering::Relaxed)
    }

    /// Whether anything was written since the last call.
    pub(super) fn take_has_moved(&self) -> bool {
        self.has_moved.swap(false, Ordering::Relaxed)
    }

    fn wrote(&self, written: usize) {
        if written > 0 {
            self.has_moved.store(true, Ordering::Relaxed);
        }
        if written > 0 && !self.has_written.load(Ordering::Relaxed) {
            self.has_written.store(true, Ordering::Release);
            if let Some(notice) = self.notice.lock().take() {
                let _ = notice.send(()); // its caller may have gone
            }
        }
    }
}

/// A stream whose [`Link`] is kept up to date. It breaks off once it has carried too many interim responses: the
/// codec would go on reading them for ever.
#[derive(Debug)]
pub(super) struct Watched {
    stream: Stream,
    link: Arc<Link>,
}

impl Watched {
    pub(super) fn new(stream: Stream, link: Arc<Link>) -> Self {
        Self { stream, link }
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.link.is_flooded() {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "too many interim responses",
            )));
        }
        ready!(Pin::new(&mut this.stream).poll_read(cx, into))?;
        this.link.has_read.store(true, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write(cx, bytes))?;
        this.link.wrote(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, pieces))?;
        this.link.wrote(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
