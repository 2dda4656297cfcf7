//! Connection that has switched to another protocol (RFC 9110 section 7.8).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf as _, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connect::Stream;

/// Extension of a 101 response: its connection, which can be taken once.
#[derive(Clone, Debug)]
pub(crate) struct UpstreamUpgrade(Arc<Mutex<Option<UpgradedStream>>>);

/// Connection after the 101, with the bytes that arrived after it.
#[derive(Debug)]
pub(crate) struct UpgradedStream {
    stream: Stream,
    read: BytesMut,
}

impl UpstreamUpgrade {
    pub(super) fn new(stream: Stream, read: BytesMut) -> Self {
        Self(Arc::new(Mutex::new(Some(UpgradedStream { stream, read }))))
    }

    /// Returns the connection. `None` if it was taken before.
    pub(crate) fn take(&self) -> Option<UpgradedStream> {
        self.0.lock().take()
    }
}

impl AsyncRead for UpgradedStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.read.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, buf);
        }
        let count = this.read.len().min(buf.remaining());
        buf.put_slice(&this.read[..count]);
        this.read.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for UpgradedStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
