//! Client socket of an HTTP/2 connection that collects writes until the end of the runtime's turn.
//!
//! Each stream is a task that wakes the connection when its response is ready, and hyper then flushes. Without this
//! wrapper the responses of one turn cost a system call each. `tokio::io::BufWriter` writes at each flush too.
//!
//! ```text
//!   stream, stream, stream ──▶ hyper ── poll_write ──▶ buffered ── end of the turn, or MAX_BUFFERED ──▶ socket
//! ```
//!
//! A flush is reported as done before that. The end of the turn wakes the connection, and hyper flushes again.
//!
//! The turn ends once all tasks that are ready have run: tokio wakes the tasks that yield then, before it waits for the
//! system.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker, ready};

use bytes::{Buf as _, BytesMut};
use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::activity::ConnectionActivity;

/// Most bytes that are collected.
const MAX_BUFFERED: usize = 64 << 10;

/// Writes from this size on are not copied.
const LARGE_WRITE: usize = 16 << 10;

/// Writes up to this size have no response, only control frames. They get no large buffer: a drain sends one to every
/// connection.
const CONTROL_WRITE: usize = 64;

#[derive(Debug)]
pub(super) struct TurnWrites<S> {
    socket: S,
    activity: ConnectionActivity,
    buffered: BytesMut,
    /// Bytes of a large turn, less an eighth for each turn since: the capacity of the next one, whose buffer then seldom
    /// grows. A client's turns differ: some have only window updates.
    capacity: usize,
    /// Whether `turn` is to be notified at the end of this turn.
    awaits_end: bool,
    turn: Arc<TurnEnd>,
}

/// Notified at the end of a turn. A waker of its own, because the streams wake the connection before that.
#[derive(Debug, Default)]
struct TurnEnd {
    has_ended: AtomicBool,
    connection: AtomicWaker,
}

impl Wake for TurnEnd {
    fn wake(self: Arc<Self>) {
        self.has_ended.store(true, Ordering::Release);
        self.connection.wake();
    }
}

impl<S: AsyncWrite + Unpin> TurnWrites<S> {
    pub(super) fn new(socket: S, activity: ConnectionActivity) -> Self {
        Self {
            socket,
            activity,
            buffered: BytesMut::new(),
            capacity: 0,
            awaits_end: false,
            turn: Arc::default(),
        }
    }

    /// Writes all collected bytes.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.buffered.is_empty() {
            let written = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.buffered))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.buffered.advance(written);
        }
        // Frees its memory: most connections are idle or parked.
        self.buffered = BytesMut::new();
        self.awaits_end = false;
        Poll::Ready(Ok(()))
    }

    /// Resolves at the end of the turn in which it was first polled.
    fn poll_end_of_turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.turn.connection.register(cx.waker());
        if !self.awaits_end {
            self.awaits_end = true;
            self.turn.has_ended.store(false, Ordering::Release);
            let waker = Waker::from(Arc::clone(&self.turn));
            // The runtime keeps the waker until the end of the turn; the future itself is not needed for that.
            let _ = pin!(tokio::task::yield_now()).poll(&mut Context::from_waker(&waker));
        }
        match self.turn.has_ended.load(Ordering::Acquire) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TurnWrites<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TurnWrites<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let length: usize = bufs.iter().map(|buf| buf.len()).sum();
        if this.buffered.len() + length > MAX_BUFFERED || length >= LARGE_WRITE {
            ready!(this.poll_drain(cx))?;
        }
        if length >= LARGE_WRITE {
            return Pin::new(&mut this.socket).poll_write_vectored(cx, bufs);
        }
        if length > CONTROL_WRITE && this.buffered.capacity() < this.capacity {
            this.buffered.reserve(this.capacity);
        }
        bufs.iter().for_each(|buf| this.buffered.extend_from_slice(buf));
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.buffered.is_empty() {
            // Ready, because hyper would write no frame of another stream before a pending flush is done.
            if !this.activity.writes_at_once() && this.poll_end_of_turn(cx).is_pending() {
                return Poll::Ready(Ok(()));
            }
            this.capacity = this.buffered.len().max(this.capacity - this.capacity / 8);
            ready!(this.poll_drain(cx))?;
        }
        Pin::new(&mut this.socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use parking_lot::Mutex;
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// Records each write.
    #[derive(Clone, Default)]
    struct Recorder(Arc<Mutex<Vec<Vec<u8>>>>);

    impl AsyncWrite for Recorder {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.0.lock().push(buf.to_vec());
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn socket() -> (TurnWrites<Recorder>, Recorder, ConnectionActivity) {
        let (recorder, activity) = (Recorder::default(), ConnectionActivity::new());
        (TurnWrites::new(recorder.clone(), activity.clone()), recorder, activity)
    }

    /// Flushes whenever it is woken, until the socket has something.
    async fn flush_until_written(socket: &mut TurnWrites<Recorder>, recorder: &Recorder) -> Vec<Vec<u8>> {
        poll_fn(|cx| {
            let flushed = Pin::new(&mut *socket).poll_flush(cx);
            if recorder.0.lock().is_empty() { Poll::Pending } else { flushed }
        })
        .await
        .unwrap();
        std::mem::take(&mut *recorder.0.lock())
    }

    #[tokio::test]
    async fn the_writes_of_one_turn_go_out_together_when_it_ends() {
        let (mut socket, recorder, _) = socket();
        for _ in 0..3 {
            for part in [b"one", b"two"] {
                socket.write_all(part).await.unwrap();
                socket.flush().await.unwrap();
            }
            assert!(recorder.0.lock().is_empty());
            assert_eq!(flush_until_written(&mut socket, &recorder).await, [b"onetwo"]);
        }
    }

    #[tokio::test]
    async fn a_large_write_and_a_full_buffer_do_not_wait_for_the_end_of_the_turn() {
        let (mut socket, recorder, _) = socket();
        socket.write_all(b"small").await.unwrap();
        socket.write_all(&[b'x'; LARGE_WRITE]).await.unwrap();
        assert_eq!(recorder.0.lock().iter().map(Vec::len).collect::<Vec<_>>(), [5, LARGE_WRITE]);
        recorder.0.lock().clear();
        let part = [b'x'; 10 << 10];
        for _ in 0..=MAX_BUFFERED / part.len() {
            socket.write_all(&part).await.unwrap();
        }
        assert_eq!(
            recorder.0.lock().iter().map(Vec::len).collect::<Vec<_>>(),
            [MAX_BUFFERED / part.len() * part.len()]
        );
    }

    #[tokio::test]
    async fn a_closing_connection_writes_at_once() {
        let (mut socket, recorder, activity) = socket();
        socket.write_all(b"last").await.unwrap();
        activity.write_at_once();
        socket.flush().await.unwrap();
        assert_eq!(*recorder.0.lock(), [b"last"]);
        socket.write_all(b"end").await.unwrap();
        socket.shutdown().await.unwrap();
        assert_eq!(*recorder.0.lock(), [&b"last"[..], b"end"]);
    }
}
