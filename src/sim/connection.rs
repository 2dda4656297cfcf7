//! Control of one connection of the simulated upstream by its requests: a TCP reset, or a tunnel after HTTP.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use hyper::upgrade::OnUpgrade;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Shared by a connection's socket, its task and its requests.
#[derive(Default)]
pub(super) struct ConnectionControl {
    is_reset: AtomicBool,
    tunnel: Mutex<Option<OnUpgrade>>,
}

impl ConnectionControl {
    /// Makes the connection end with a TCP RST when its socket is dropped.
    pub(super) fn reset(&self) {
        self.is_reset.store(true, Ordering::Relaxed);
    }

    fn is_reset(&self) -> bool {
        self.is_reset.load(Ordering::Relaxed)
    }

    /// Turns the connection into a tunnel once its last response is sent.
    pub(super) fn set_tunnel(&self, upgrade: OnUpgrade) {
        *self.tunnel.lock() = Some(upgrade);
    }

    pub(super) fn take_tunnel(&self) -> Option<OnUpgrade> {
        self.tunnel.lock().take()
    }
}

/// A connection's socket. It closes with an RST if its [`ConnectionControl`] says so.
pub(super) struct ResettableSocket {
    pub(super) stream: TcpStream,
    pub(super) control: Arc<ConnectionControl>,
}

impl Drop for ResettableSocket {
    fn drop(&mut self) {
        if self.control.is_reset() {
            // If it fails, the connection is still closed, with a FIN.
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for ResettableSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for ResettableSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.control.is_reset() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
