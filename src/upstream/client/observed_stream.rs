//! Connection stream that records its activity. The HTTP codecs above it do not report when bytes are written or
//! read.

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

/// Sender that is used when a request is on a connection. Dropped unused if the request fails before.
pub(super) type SentNotice = oneshot::Sender<()>;

/// Activity on one connection, shared by its requests and its stream.
#[derive(Debug, Default)]
pub(super) struct IoActivity {
    has_read: AtomicBool,
    has_written: AtomicBool,
    wrote_since: AtomicBool,
    /// Interim responses to the current request (HTTP/1.1).
    interim: AtomicUsize,
    /// Used when the first byte is written (HTTP/1.1).
    notice: Mutex<Option<SentNotice>>,
}

impl IoActivity {
    /// Begins the next HTTP/1.1 request, before the codec receives it.
    pub(super) fn begin(&self, notice: Option<SentNotice>) {
        self.interim.store(0, Ordering::Relaxed);
        *self.notice.lock() = notice;
        self.has_written.store(false, Ordering::Release);
    }

    /// Returns whether the stream has taken a byte of the request.
    pub(super) fn has_written(&self) -> bool {
        self.has_written.load(Ordering::Acquire)
    }

    pub(super) fn count_interim(&self) {
        self.interim.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns whether there were too many interim responses.
    pub(super) fn is_flooded(&self) -> bool {
        self.interim.load(Ordering::Relaxed) > MAX_INTERIM
    }

    /// Returns whether bytes were read since the last call.
    pub(super) fn take_has_read(&self) -> bool {
        self.has_read.swap(false, Ordering::Relaxed)
    }

    /// Returns whether bytes were written since the last call.
    pub(super) fn take_has_written(&self) -> bool {
        self.wrote_since.swap(false, Ordering::Relaxed)
    }

    fn wrote(&self, written: usize) {
        if written > 0 {
            self.wrote_since.store(true, Ordering::Relaxed);
        }
        if written > 0 && !self.has_written.load(Ordering::Relaxed) {
            self.has_written.store(true, Ordering::Release);
            if let Some(notice) = self.notice.lock().take() {
                let _ = notice.send(()); // the caller may have been cancelled
            }
        }
    }
}

/// Stream that keeps its [`IoActivity`] up to date. Fails after too many interim responses: hyper would go on reading
/// them.
#[derive(Debug)]
pub(super) struct ObservedStream {
    stream: Stream,
    activity: Arc<IoActivity>,
}

impl ObservedStream {
    pub(super) fn new(stream: Stream, activity: Arc<IoActivity>) -> Self {
        Self { stream, activity }
    }
}

impl AsyncRead for ObservedStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.activity.is_flooded() {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "too many interim responses",
            )));
        }
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        this.activity.has_read.store(true, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ObservedStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write(cx, bytes))?;
        this.activity.wrote(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, bufs))?;
        this.activity.wrote(written);
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
