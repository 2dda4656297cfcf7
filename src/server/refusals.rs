//! hyper refuses a head that it cannot read with a bare status line. This gives such a refusal the id and the
//! body that every answer of the gateway's own has (contract, section 6).
//!
//! It stands between hyper and the socket and lets everything pass, but for a write that is nothing but a head
//! with hyper's own few fields. That is held: if hyper then closes the connection, as it does after a refusal, the
//! whole refusal goes out in its place; if it does anything else, the held bytes were somebody's and go first.
//! While an answer of the service's is under way nothing is held: its body, or a tunnel's bytes, may be anything.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use bytes::{Buf as _, Bytes};
use http::HeaderValue;
use http::header::{CONNECTION, CONTENT_LENGTH, DATE};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::activity::ConnectionActivity;
use crate::gateway::Gateway;
use crate::gateway::access_log;
use crate::gateway::error::{GatewayError, HttpFault};
use crate::protocol::request::{Peer, RequestId};
use crate::telemetry::metrics::Metrics;

/// A client's socket.
pub(super) struct Refusals<S> {
    socket: S,
    peer: Peer,
    answers: ConnectionActivity,
    gateway: Gateway,
    /// What hyper wrote last, if that looks like a refusal, or the rest of what replaces it.
    held: Bytes,
    fault: Option<HttpFault>,
}

impl<S: AsyncWrite + Unpin> Refusals<S> {
    pub(super) fn new(socket: S, peer: Peer, answers: ConnectionActivity, gateway: Gateway) -> Self {
        Self { socket, peer, answers, gateway, held: Bytes::new(), fault: None }
    }

    /// Sends what is held as it is.
    fn release(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.fault = None;
        while self.held.has_remaining() {
            let sent = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.held))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.advance(sent);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Refusals<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.release(cx))?;
        Pin::new(&mut this.socket).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Refusals<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.release(cx))?;
        match fault(buf).filter(|_| this.answers.is_flushed()) {
            Some(fault) => {
                (this.held, this.fault) = (Bytes::copy_from_slice(buf), Some(fault));
                Poll::Ready(Ok(buf.len()))
            }
            None => Pin::new(&mut this.socket).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut filled = bufs.iter().filter(|buf| !buf.is_empty());
        match (filled.next(), filled.next()) {
            (Some(only), None) => self.poll_write(cx, only),
            _ => {
                let this = self.get_mut();
                ready!(this.release(cx))?;
                Pin::new(&mut this.socket).poll_write_vectored(cx, bufs)
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.socket).poll_flush(cx))?;
        this.answers.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(fault) = this.fault.take() {
            this.gateway.count_malformed_head(this.peer);
            this.held = refusal(fault, this.peer, this.gateway.metrics());
            this.answers.cut();
        }
        ready!(this.release(cx))?;
        Pin::new(&mut this.socket).poll_shutdown(cx)
    }
}

/// Which of hyper's own refusals these bytes are.
fn fault(written: &[u8]) -> Option<HttpFault> {
    let rest = written.strip_prefix(b"HTTP/1.1 4").or_else(|| written.strip_prefix(b"HTTP/1.0 4"))?;
    let fault = match rest.get(..2)? {
        b"00" => HttpFault::Malformed,
        b"14" => HttpFault::Target,
        b"31" => HttpFault::Head,
        _ => return None,
    };
    let head = str::from_utf8(rest).ok()?.strip_suffix("\r\n\r\n")?;
    let mut fields = head.split("\r\n").skip(1);
    let is_hypers = |field: &str| {
        ["content-length: 0", "connection: close"].contains(&field) || field.starts_with("date: ")
    };
    fields.all(is_hypers).then_some(fault)
}

/// The whole refusal as it goes over the wire. Its path is not known, and neither is who asked.
fn refusal(fault: HttpFault, peer: Peer, metrics: &Metrics) -> Bytes {
    let (id, refusal) = (RequestId::new(None), GatewayError::Http(fault));
    let status = refusal.status();
    access_log::log_malformed_head(status, refusal.reason(), peer, &id, metrics);
    let (head, body) = refusal.to_response_bytes(&id, "").into_parts();
    let mut wire = format!("HTTP/1.1 {status}\r\n").into_bytes();
    let date = HeaderValue::try_from(httpdate::fmt_http_date(SystemTime::now())).expect("a date is a value");
    let length = HeaderValue::from(body.len());
    let framing =
        [(&DATE, &date), (&CONTENT_LENGTH, &length), (&CONNECTION, &HeaderValue::from_static("close"))];
    for (name, value) in head.headers.iter().chain(framing) {
        wire.extend_from_slice(name.as_str().as_bytes());
        wire.extend_from_slice(b": ");
        wire.extend_from_slice(value.as_bytes());
        wire.extend_from_slice(b"\r\n");
    }
    wire.extend_from_slice(b"\r\n");
    wire.extend_from_slice(&body);
    wire.into()
}
