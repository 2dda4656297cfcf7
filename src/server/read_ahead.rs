//! Reads what hyper does not: ahead of it while an answer is under way, so that it shows when the client has hung up
//! (contract, promise 6); and after it what a client still sends of a request that was refused.
//!
//! hyper looks for that too, but not on an HTTP/1 connection where anything has come after the request that it is
//! answering: a stray line break, or the next request. Then it reads no more until it has answered, and a parked wait
//! would stay until its deadline. Here such bytes are taken from the socket and kept for hyper, up to a bound; beyond
//! it the client is held back.
//!
//! The end of what a client sends is its hanging up, also where it could still read: hyper takes it so where nothing
//! follows a request, and nginx does.
//!
//! A connection that is closed while there is something unread on it is reset by the system, and the reset can overtake
//! the refusal, or make the client fail before it reads it. So it is read on for a while (RFC 9112 §9.6).

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

/// What is read ahead, at most: as much as a socket commonly holds by itself.
const MAX_READ_AHEAD: usize = 64 << 10;

/// What an HTTP/2 client sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long, and how much of, what comes after a refusal is read, at most.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 64 << 20;

/// What is read at once.
const READ_CHUNK: usize = 8 << 10;

/// A client's socket.
#[derive(Debug)]
pub(super) struct ReadAhead<S> {
    socket: S,
    answers: ConnectionActivity,
    /// What was read, and hyper has not had yet.
    kept: BytesMut,
    /// After all has been written: until when what comes is read, and how much more of it.
    lingering: Option<(Pin<Box<Sleep>>, usize)>,
}

impl<S: AsyncRead + Unpin> ReadAhead<S> {
    pub(super) fn new(socket: S, answers: ConnectionActivity) -> Self {
        Self { socket, answers, kept: BytesMut::new(), lingering: None }
    }

    /// The version of HTTP that its client speaks, HTTP/2 or an older one, which its first bytes tell (RFC 9113 §3.4).
    /// They stay to be read.
    ///
    /// hyper-util's own look at them reads the first 24 bytes apart from the rest of a head, and makes hyper's buffer
    /// twice as large.
    pub(super) async fn version(&mut self) -> io::Result<Version> {
        poll_fn(|cx| self.poll_version(cx)).await
    }

    fn poll_version(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Version>> {
        loop {
            let seen = self.kept.len().min(PREFACE.len());
            if self.kept[..seen] != PREFACE[..seen] {
                return Poll::Ready(Ok(Version::HTTP_11));
            }
            if seen == PREFACE.len() {
                return Poll::Ready(Ok(Version::HTTP_2));
            }
            if ready!(self.poll_more(cx))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Reads a piece more into what is kept; 0 at the client's end.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut space = [MaybeUninit::uninit(); READ_CHUNK];
        let mut piece = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut self.socket).poll_read(cx, &mut piece))?;
        self.kept.extend_from_slice(piece.filled());
        Poll::Ready(Ok(piece.filled().len()))
    }

    /// Takes what has come. An error is the client's end.
    fn look(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while self.answers.is_request_complete() && self.kept.len() < MAX_READ_AHEAD {
            match self.poll_more(cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => {
                    return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the client has hung up"));
                }
                Poll::Ready(read) => read?,
            };
            // hyper may have asked for it a moment before it came.
            cx.waker().wake_by_ref();
        }
        Ok(())
    }

    /// Throws away what comes, until nothing does any more or it has been long enough.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some((timer, left)) = &mut self.lingering else { return Poll::Ready(()) };
        while *left > 0 && timer.as_mut().poll(cx).is_pending() {
            let mut space = [MaybeUninit::uninit(); READ_CHUNK];
            let mut piece = ReadBuf::uninit(&mut space);
            match ready!(Pin::new(&mut self.socket).poll_read(cx, &mut piece)) {
                Ok(()) if !piece.filled().is_empty() => *left = left.saturating_sub(piece.filled().len()),
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(())
    }
}

impl<S> ReadAhead<S> {
    /// Notes a response that hyper writes on its own, which it does to a malformed head only: a response head that
    /// begins while no response of the gateway is under way. hyper reports the error after the connection's end, too
    /// late to read the rest of the request.
    fn note_own_response(&self, start: &[u8]) {
        if self.answers.is_flushed()
            && let Some(status) = response_status(start)
        {
            self.answers.reject_head(status);
        }
    }
}

/// Returns the status of a response head of HTTP/1.
fn response_status(start: &[u8]) -> Option<StatusCode> {
    let rest = start.strip_prefix(b"HTTP/1.1 ").or_else(|| start.strip_prefix(b"HTTP/1.0 "))?;
    StatusCode::from_bytes(rest.get(..3)?).ok()
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if this.kept.is_empty() {
            ready!(Pin::new(&mut this.socket).poll_read(cx, buf))?;
        } else {
            let piece = this.kept.len().min(buf.remaining());
            buf.put_slice(&this.kept[..piece]);
            this.kept.advance(piece);
            if this.kept.is_empty() {
                this.kept = BytesMut::new(); // whose memory is given back
            }
        }
        if buf.filled().len() > before {
            this.answers.on_bytes_read();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.note_own_response(buf);
        let polled = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.answers.on_write(polled)
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
        self.answers.on_write(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    /// The one thing that hyper does each time that it does anything, and so the moment to look.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.look(cx)?;
        let polled = Pin::new(&mut this.socket).poll_flush(cx);
        ready!(this.answers.on_write(polled))?;
        this.answers.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.lingering.is_none() {
            let polled = Pin::new(&mut this.socket).poll_shutdown(cx);
            ready!(this.answers.on_write(polled))?;
            let begin = || (Box::pin(tokio::time::sleep(LINGER)), LINGER_BYTES);
            this.lingering = this.answers.is_cut().then(begin);
        }
        this.poll_linger(cx).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn no_more_is_read_ahead_than_is_bearable_and_nothing_is_lost() {
        let (mut client, server) = tokio::io::duplex(4096);
        let answers = ConnectionActivity::new();
        let mut ahead = ReadAhead::new(server, answers.clone());
        let sent: Vec<u8> = (0..50_000_u32).flat_map(u32::to_le_bytes).collect();
        let writing = tokio::spawn({
            let sent = sent.clone();
            async move { client.write_all(&sent).await.map(|()| client) }
        });
        ahead.flush().await.unwrap();
        assert!(ahead.kept.is_empty(), "nobody waits for an answer");

        let answering = answers.begin();
        poll_fn(|cx| {
            let flushed = Pin::new(&mut ahead).poll_flush(cx);
            // The one that writes has its turn each time that there is room.
            if ahead.kept.len() < MAX_READ_AHEAD { Poll::Pending } else { flushed }
        })
        .await
        .unwrap();
        assert!(
            (MAX_READ_AHEAD..MAX_READ_AHEAD + READ_CHUNK).contains(&ahead.kept.len()),
            "{}",
            ahead.kept.len()
        );
        ahead.flush().await.unwrap();
        assert!(
            (MAX_READ_AHEAD..MAX_READ_AHEAD + READ_CHUNK).contains(&ahead.kept.len()),
            "{}",
            ahead.kept.len()
        );

        let mut back = vec![0; sent.len()];
        ahead.read_exact(&mut back).await.unwrap();
        assert!(back == sent);
        assert_eq!(ahead.kept.capacity(), 0, "its memory is given back");

        ahead.flush().await.unwrap();
        drop(writing.await.unwrap().unwrap());
        assert_eq!(ahead.flush().await.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        drop(answering);
        ahead.flush().await.unwrap();
    }
}
