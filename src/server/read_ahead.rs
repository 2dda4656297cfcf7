//! Client socket that reads where hyper does not. Ahead of hyper, while a response is under way, to notice that the
//! client has closed the connection (P6). After hyper, to drain the rest of a rejected request.
//!
//! hyper also watches for the client's end. But on an HTTP/1 connection it stops reading once bytes follow the
//! current request, such as a lone line break or the next request. A parked wait would then stay until its deadline.
//! `ReadAhead` takes such bytes from the socket and keeps them for hyper, up to a bound; beyond it TCP flow control
//! holds the client back.
//!
//! A client that closes its sending side counts as gone, even if it could still read. hyper decides the same where no
//! bytes follow a request, and so does nginx.
//!
//! If a connection is closed while unread bytes are left on it, the system resets it. The reset can overtake the
//! response, or make the client fail before it reads it. So the socket is drained for a while (RFC 9112 section 9.6).

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use http::{StatusCode, Version};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::activity::ConnectionActivity;

/// Most bytes that are read ahead: as many as a socket commonly buffers.
const MAX_READ_AHEAD: usize = 64 << 10;

/// First bytes of an HTTP/2 client.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Time and bytes for which the rest of a rejected request is drained.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 64 << 20;

/// Bytes of one read.
const READ_CHUNK: usize = 8 << 10;

#[derive(Debug)]
pub(super) struct ReadAhead<S> {
    socket: S,
    activity: ConnectionActivity,
    /// Bytes that hyper has not read yet.
    buffered: BytesMut,
    /// Deadline of the drain, and the bytes that it may still discard. Set after the write side is closed.
    lingering: Option<(Pin<Box<Sleep>>, usize)>,
}

impl<S: AsyncRead + Unpin> ReadAhead<S> {
    pub(super) fn new(socket: S, activity: ConnectionActivity) -> Self {
        Self { socket, activity, buffered: BytesMut::new(), lingering: None }
    }

    /// Returns the socket and the HTTP version of the client, HTTP/2 or older, from its first bytes (RFC 9113 section
    /// 3.4). They stay to be read.
    ///
    /// hyper-util's detection reads the first 24 bytes apart from the rest of a head, which makes hyper's buffer
    /// twice as large.
    pub(super) async fn with_version(mut self) -> io::Result<(Self, Version)> {
        let version = poll_fn(|cx| self.poll_version(cx)).await?;
        Ok((self, version))
    }

    fn poll_version(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Version>> {
        loop {
            let length = self.buffered.len().min(PREFACE.len());
            if self.buffered[..length] != PREFACE[..length] {
                return Poll::Ready(Ok(Version::HTTP_11));
            }
            if length == PREFACE.len() {
                return Poll::Ready(Ok(Version::HTTP_2));
            }
            if ready!(self.poll_more(cx))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Reads one chunk into `buffered`. Returns 0 at the end of the client's stream.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut space = [MaybeUninit::uninit(); READ_CHUNK];
        let mut chunk = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut self.socket).poll_read(cx, &mut chunk))?;
        self.buffered.extend_from_slice(chunk.filled());
        Poll::Ready(Ok(chunk.filled().len()))
    }

    /// Reads ahead the bytes that have arrived. Fails if the client has closed the connection.
    fn read_ahead(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while self.activity.is_request_complete() && self.buffered.len() < MAX_READ_AHEAD {
            match self.poll_more(cx) {
                Poll::Pending => break,
                // P6: ends the wait of a client that has gone.
                Poll::Ready(Ok(0)) => {
                    return Err(io::Error::new(
                        io::ErrorKind::ConnectionAborted,
                        "client closed the connection",
                    ));
                }
                Poll::Ready(read) => read?,
            };
            // hyper may have tried to read a moment before the bytes came.
            cx.waker().wake_by_ref();
        }
        Ok(())
    }

    /// Discards incoming bytes until the client closes the connection or a bound is reached.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some((timer, left)) = &mut self.lingering else { return Poll::Ready(()) };
        while *left > 0 && timer.as_mut().poll(cx).is_pending() {
            let mut space = [MaybeUninit::uninit(); READ_CHUNK];
            let mut chunk = ReadBuf::uninit(&mut space);
            match ready!(Pin::new(&mut self.socket).poll_read(cx, &mut chunk)) {
                Ok(()) if !chunk.filled().is_empty() => *left = left.saturating_sub(chunk.filled().len()),
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(())
    }
}

impl<S> ReadAhead<S> {
    /// Notes hyper's own response to a malformed head: a response head that begins while no response of the gateway
    /// is under way. hyper returns the error only after the shutdown, too late to drain the rest of the request.
    fn note_own_response(&self, start: &[u8]) {
        if self.activity.is_flushed()
            && let Some(status) = response_status(start)
        {
            self.activity.reject_head(status);
        }
    }
}

/// Returns the status of an HTTP/1 response head, if hyper answers malformed heads with it.
fn response_status(start: &[u8]) -> Option<StatusCode> {
    let rest = start.strip_prefix(b"HTTP/1.1 ").or_else(|| start.strip_prefix(b"HTTP/1.0 "))?;
    let status = StatusCode::from_bytes(rest.get(..3)?).ok()?;
    HYPERS_REJECTIONS.contains(&status).then_some(status)
}

/// The statuses with which hyper 1.12 answers a head that it cannot parse.
const HYPERS_REJECTIONS: [StatusCode; 3] =
    [StatusCode::BAD_REQUEST, StatusCode::URI_TOO_LONG, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE];

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if this.buffered.is_empty() {
            ready!(Pin::new(&mut this.socket).poll_read(cx, buf))?;
        } else {
            let chunk = this.buffered.len().min(buf.remaining());
            buf.put_slice(&this.buffered[..chunk]);
            this.buffered.advance(chunk);
            if this.buffered.is_empty() {
                this.buffered = BytesMut::new(); // frees its memory
            }
        }
        if buf.filled().len() > before {
            this.activity.on_bytes_read();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.note_own_response(buf);
        let polled = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.activity.on_write(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(first) = bufs.iter().find(|buf| !buf.is_empty()) {
            self.note_own_response(first);
        }
        let polled = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.activity.on_write(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    /// Also reads ahead: hyper flushes each time it is polled.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.read_ahead(cx)?;
        let polled = Pin::new(&mut this.socket).poll_flush(cx);
        ready!(this.activity.on_write(polled))?;
        this.activity.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.lingering.is_none() {
            let polled = Pin::new(&mut this.socket).poll_shutdown(cx);
            ready!(this.activity.on_write(polled))?;
            let begin = || (Box::pin(tokio::time::sleep(LINGER)), LINGER_BYTES);
            this.lingering = this.activity.is_incomplete().then(begin);
        }
        this.poll_linger(cx).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn the_socket_reads_no_more_ahead_than_its_bound_and_loses_no_byte() {
        let (mut client, server) = tokio::io::duplex(4096);
        let activity = ConnectionActivity::new();
        let mut socket = ReadAhead::new(server, activity.clone());
        let sent: Vec<u8> = (0..50_000_u32).flat_map(u32::to_le_bytes).collect();
        let writing = tokio::spawn({
            let sent = sent.clone();
            async move { client.write_all(&sent).await.map(|()| client) }
        });
        socket.flush().await.unwrap();
        assert!(socket.buffered.is_empty(), "no response is under way");

        let guard = activity.begin();
        poll_fn(|cx| {
            let flushed = Pin::new(&mut socket).poll_flush(cx);
            // The writer runs each time that there is room.
            if socket.buffered.len() < MAX_READ_AHEAD { Poll::Pending } else { flushed }
        })
        .await
        .unwrap();
        assert!(
            (MAX_READ_AHEAD..MAX_READ_AHEAD + READ_CHUNK).contains(&socket.buffered.len()),
            "{}",
            socket.buffered.len()
        );
        socket.flush().await.unwrap();
        assert!(
            (MAX_READ_AHEAD..MAX_READ_AHEAD + READ_CHUNK).contains(&socket.buffered.len()),
            "{}",
            socket.buffered.len()
        );

        let mut back = vec![0; sent.len()];
        socket.read_exact(&mut back).await.unwrap();
        assert!(back == sent);
        assert_eq!(socket.buffered.capacity(), 0, "its memory is freed");

        socket.flush().await.unwrap();
        drop(writing.await.unwrap().unwrap());
        assert_eq!(socket.flush().await.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        drop(guard);
        socket.flush().await.unwrap();
    }
}
