//! The answers that are under way on a connection: what stands between hyper and the socket must know whether there
//! are any, and for how long their client has taken nothing of them, since hyper does not say.
//!
//! ```text
//! gateway ── AnsweringBody ── Piece ──► hyper (HTTP/2: the stream's window) ──► Ahead ── is the socket full? ──► client
//! ```

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use http::{StatusCode, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tracing::debug;

use super::streams::Taken;
use crate::clock;
use crate::protocol::body::{Body, BoxError};

/// The service's answers on one connection, as far as their bytes may still be written. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct ConnectionActivity(Arc<Underway>);

#[derive(Debug)]
struct Underway {
    begun: AtomicUsize,
    /// Those of them that the gateway has to go on with, not the client.
    owed: AtomicUsize,
    /// What hyper has had of bodies, and what the socket has had of that.
    taken: Taken,
    /// Requests whose bodies are still arriving.
    uploads: AtomicUsize,
    /// The gateway rejected a request before all of it arrived. The client may still be sending the rest.
    is_cut: AtomicBool,
    /// Status of hyper's own response to a malformed head, 0 while there is none.
    rejected_head: AtomicU16,
    /// Some ended since the last flush: hyper may hold their last bytes.
    unflushed: AtomicBool,
    /// One has begun since that was last looked at.
    has_begun_anew: AtomicBool,
    /// Something has come since the last of them was out.
    is_head_begun: AtomicBool,
    /// The connection is no HTTP any more.
    is_tunnel: AtomicBool,
    /// The socket takes no more for now.
    is_full: AtomicBool,
    /// The client has taken something, or could begin to, since that was last looked at.
    has_moved: AtomicBool,
    born: Instant,
    /// Since when there is nothing to answer, in nanoseconds after `born`; [`BUSY`] while there is.
    idle_since: AtomicU64,
}

/// What a client may leave untaken for long, in bytes: the ends of some answers that it has lost interest in.
const MOST_UNTAKEN: u64 = 256 << 10;

/// There is something to answer.
const BUSY: u64 = u64::MAX;

impl ConnectionActivity {
    /// None yet, on a new connection.
    pub(super) fn new() -> Self {
        Self(Arc::new(Underway {
            begun: AtomicUsize::new(0),
            owed: AtomicUsize::new(0),
            taken: Taken::default(),
            uploads: AtomicUsize::new(0),
            is_cut: AtomicBool::new(false),
            rejected_head: AtomicU16::new(0),
            unflushed: AtomicBool::new(false),
            has_begun_anew: AtomicBool::new(false),
            is_head_begun: AtomicBool::new(false),
            is_tunnel: AtomicBool::new(false),
            is_full: AtomicBool::new(false),
            has_moved: AtomicBool::new(false),
            born: clock::now(),
            idle_since: AtomicU64::new(0),
        }))
    }

    /// From now on the connection is idle, or busy.
    pub(super) fn note_idle(&self, is_idle: bool, now: Instant) {
        let since = match is_idle {
            true => now.saturating_duration_since(self.0.born).as_nanos() as u64, // 584 years
            false => BUSY,
        };
        self.0.idle_since.store(since, Ordering::Relaxed);
    }

    /// Since when the connection is idle, if it is.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        match self.0.idle_since.load(Ordering::Relaxed) {
            BUSY => None,
            since => Some(self.0.born + Duration::from_nanos(since)),
        }
    }

    /// An answer is under way from now until what comes back is dropped, and its last bytes are flushed.
    pub(super) fn begin(&self) -> ResponseGuard {
        self.begin_stream(None)
    }

    /// The same, where what is taken of it is counted on a stream of its own too.
    pub(super) fn begin_stream(&self, stream: Option<Arc<Taken>>) -> ResponseGuard {
        self.0.begun.fetch_add(1, Ordering::Relaxed);
        self.0.unflushed.store(true, Ordering::Relaxed);
        self.0.has_begun_anew.store(true, Ordering::Relaxed);
        self.0.is_head_begun.store(false, Ordering::Relaxed);
        ResponseGuard { owed: Some(PendingGuard::new(self)), answers: self.clone(), stream }
    }

    /// The same for a tunnel, which the connection becomes.
    pub(super) fn begin_tunnel(&self) -> ResponseGuard {
        self.0.is_tunnel.store(true, Ordering::Relaxed);
        self.begin()
    }

    /// The body of a request is arriving until what comes back is dropped.
    pub(super) fn begin_upload(&self) -> UploadGuard {
        self.0.uploads.fetch_add(1, Ordering::Relaxed);
        UploadGuard { answers: self.clone(), is_whole: false }
    }

    /// A request is refused before all of it has come.
    pub(super) fn cut(&self) {
        self.0.is_cut.store(true, Ordering::Relaxed);
    }

    /// Whether one was.
    pub(super) fn is_cut(&self) -> bool {
        self.0.is_cut.load(Ordering::Relaxed)
    }

    /// Records that hyper answers a malformed head with this status. The rest of the request may still arrive.
    pub(super) fn reject_head(&self, status: StatusCode) {
        self.0.rejected_head.store(status.as_u16(), Ordering::Relaxed);
        self.cut();
    }

    /// Returns the status of hyper's own response to a malformed head. Such a response is the last of a connection.
    pub(super) fn rejected_head(&self) -> Option<StatusCode> {
        StatusCode::from_u16(self.0.rejected_head.load(Ordering::Relaxed)).ok()
    }

    /// Whether the client has said all and waits: if it hangs up now, it does so before its time.
    pub(super) fn is_request_complete(&self) -> bool {
        let Underway { uploads, is_tunnel, .. } = &*self.0;
        self.has_pending() && uploads.load(Ordering::Relaxed) == 0 && !is_tunnel.load(Ordering::Relaxed)
    }

    /// Whether every byte of them is with the client, or on its way.
    pub(super) fn is_flushed(&self) -> bool {
        !self.has_pending() && !self.0.unflushed.load(Ordering::Relaxed)
    }

    /// Whether there are any.
    pub(super) fn has_pending(&self) -> bool {
        self.0.begun.load(Ordering::Relaxed) > 0
    }

    /// Something has come from the client. While it has nothing to wait for or to take, that is a request's beginning.
    pub(super) fn on_bytes_read(&self) {
        if self.is_flushed() {
            self.0.is_head_begun.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a request has begun to come, and is not here yet.
    pub(super) fn is_head_begun(&self) -> bool {
        self.0.is_head_begun.load(Ordering::Relaxed)
    }

    /// Whether one has begun since this was last asked.
    pub(super) fn have_begun_anew(&self) -> bool {
        self.0.has_begun_anew.swap(false, Ordering::Relaxed)
    }

    /// hyper flushes when it has written all it has.
    pub(super) fn flushed(&self) {
        if !self.has_pending() {
            self.0.unflushed.store(false, Ordering::Relaxed);
        }
    }

    /// Looks at what the socket said to something that was to be written.
    pub(super) fn on_write<T>(&self, polled: Poll<T>) -> Poll<T> {
        if self.0.is_full.swap(polled.is_pending(), Ordering::Relaxed) != polled.is_pending() {
            self.moved();
        }
        polled
    }

    /// Ends when the client is to be given up: it has refused all for so long, or, of HTTP/2, has hoarded for twice as
    /// long. To be polled as [`Self::refused_for`] is.
    pub(super) async fn given_up(&self, patience: Duration, version: Version) {
        if version < Version::HTTP_2 {
            return self.client_stalled(patience).await;
        }
        let (refused, hoarded) = (pin!(self.client_stalled(patience)), pin!(self.hoarded_for(2 * patience)));
        futures_util::future::select(refused, hoarded).await;
    }

    /// Ends when the client has left much untaken for so long, whatever it waits for beside. What it refuses stream by
    /// stream is reset before; but a stream whose window takes a byte hands its whole answer over, and cannot be.
    async fn hoarded_for(&self, time: Duration) {
        self.0.taken.stalled(time, MOST_UNTAKEN, MOST_UNTAKEN).await;
        debug!("much of the answers is not taken, connection closed");
    }

    /// Ends when the client has taken nothing for so long although there was something to take. Never does so while
    /// the gateway owes it an answer, or the rest of one, that it may be waiting for beside.
    ///
    /// To be polled after the connection, each time that it is: that wakes nobody by itself, and it is only then that
    /// the clock is looked at, and only while somebody has something to take.
    pub(super) async fn client_stalled(&self, patience: Duration) {
        loop {
            std::future::poll_fn(|_| if self.wait_for_client() { Poll::Ready(()) } else { Poll::Pending })
                .await;
            self.0.has_moved.store(false, Ordering::Relaxed);
            let mut sleep = std::pin::pin!(tokio::time::sleep(patience));
            let is_over = std::future::poll_fn(|cx| match self.0.has_moved.swap(false, Ordering::Relaxed) {
                true => Poll::Ready(false),
                false => sleep.as_mut().poll(cx).map(|()| true),
            });
            if is_over.await && self.wait_for_client() {
                debug!("nobody takes the answers, connection closed");
                return;
            }
        }
    }

    fn wait_for_client(&self) -> bool {
        let Underway { owed, taken, is_full, .. } = &*self.0;
        // A full window of an HTTP/2 stream is its own affair while others go on; a full socket is everybody's.
        is_full.load(Ordering::Relaxed) || (taken.rest() > 0 && owed.load(Ordering::Relaxed) == 0)
    }

    fn moved(&self) {
        self.0.has_moved.store(true, Ordering::Relaxed);
    }
}

/// One answer that is under way.
#[derive(Debug)]
pub(super) struct ResponseGuard {
    owed: Option<PendingGuard>,
    answers: ConnectionActivity,
    /// Of HTTP/2: what is taken of this one.
    stream: Option<Arc<Taken>>,
}

impl ResponseGuard {
    /// The answer's body, which is under way as long as it lives.
    pub(super) fn with(mut self, body: Body) -> TrackedBody {
        self.owed = None;
        TrackedBody { body, answering: self }
    }
}

impl Drop for ResponseGuard {
    fn drop(&mut self) {
        self.answers.0.begun.fetch_sub(1, Ordering::Relaxed);
    }
}

/// That it is the gateway's turn with an answer.
#[derive(Debug)]
struct PendingGuard(ConnectionActivity);

impl PendingGuard {
    fn new(answers: &ConnectionActivity) -> Self {
        answers.0.owed.fetch_add(1, Ordering::Relaxed);
        Self(answers.clone())
    }
}

impl Drop for PendingGuard {
    fn drop(&mut self) {
        self.0.0.owed.fetch_sub(1, Ordering::Relaxed);
        self.0.moved();
    }
}

/// That a request's body is arriving. Where nobody says that it is whole, it is cut off.
#[derive(Debug)]
pub(super) struct UploadGuard {
    answers: ConnectionActivity,
    is_whole: bool,
}

impl UploadGuard {
    /// All of it has come.
    pub(super) fn end(mut self) {
        self.is_whole = true;
    }
}

impl Drop for UploadGuard {
    fn drop(&mut self) {
        self.answers.0.uploads.fetch_sub(1, Ordering::Relaxed);
        if !self.is_whole {
            self.answers.cut();
        }
    }
}

/// A body that says when hyper is done with it, and whose turn it is.
pub(super) struct TrackedBody {
    body: Body,
    answering: ResponseGuard,
}

impl HttpBody for TrackedBody {
    type Data = TrackedBytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<TrackedBytes>, BoxError>>> {
        let Self { body, answering: ResponseGuard { owed, answers, stream } } = self.get_mut();
        match Pin::new(body).poll_frame(cx) {
            Poll::Pending => {
                owed.get_or_insert_with(|| PendingGuard::new(answers));
                Poll::Pending
            }
            Poll::Ready(frame) => {
                *owed = None;
                let piece =
                    |frame: Frame<Bytes>| frame.map_data(|bytes| TrackedBytes::new(bytes, answers, stream));
                Poll::Ready(frame.map(|frame| frame.map(piece)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Bytes of an answer that say when they are gone.
#[derive(Debug)]
pub(super) struct TrackedBytes {
    bytes: Bytes,
    answers: ConnectionActivity,
    stream: Option<Arc<Taken>>,
}

impl TrackedBytes {
    fn new(bytes: Bytes, answers: &ConnectionActivity, stream: &Option<Arc<Taken>>) -> Self {
        answers.0.taken.give(bytes.len());
        if let Some(stream) = stream {
            stream.give(bytes.len());
        }
        answers.moved();
        Self { bytes, answers: answers.clone(), stream: stream.clone() }
    }

    fn taken(&self, count: usize) {
        self.answers.0.taken.take(count);
        if let Some(stream) = &self.stream {
            stream.take(count);
        }
        self.answers.moved();
    }
}

impl Buf for TrackedBytes {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.taken(count);
    }
}

impl Drop for TrackedBytes {
    fn drop(&mut self) {
        self.taken(self.bytes.len());
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    const STALL_TIMEOUT: Duration = Duration::from_secs(60);

    /// Whether the client is given up within this time from now.
    async fn is_given_up(refused: &mut (impl Future<Output = ()> + Unpin), within: Duration) -> bool {
        tokio::time::timeout(within, refused).await.is_ok()
    }

    /// What hyper is given of a body.
    async fn piece(body: &mut TrackedBody) -> TrackedBytes {
        body.frame().await.unwrap().unwrap().into_data().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_waits_is_never_given_up() {
        let answers = ConnectionActivity::new();
        let mut refused = Box::pin(answers.client_stalled(STALL_TIMEOUT));
        assert!(!is_given_up(&mut refused, 10 * STALL_TIMEOUT).await, "nobody asked for anything");
        let parked = answers.begin();
        assert!(!is_given_up(&mut refused, 10 * STALL_TIMEOUT).await);
        let (_upstream, silent) = http_body_util::Channel::<Bytes>::new(1);
        let mut body = parked.with(Body::stream(silent));
        assert!(tokio::time::timeout(10 * STALL_TIMEOUT, body.frame()).await.is_err());
        assert!(!is_given_up(&mut refused, 10 * STALL_TIMEOUT).await);
        drop(body);
        let _tunnel = answers.begin_tunnel();
        assert!(!is_given_up(&mut refused, 10 * STALL_TIMEOUT).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_of_an_answer_is_given_up_and_one_that_takes_some_is_not() {
        let answers = ConnectionActivity::new();
        let mut refused = Box::pin(answers.client_stalled(STALL_TIMEOUT));
        let mut body = answers.begin().with(Body::full("twelve bytes"));
        let mut piece = piece(&mut body).await;
        drop(body);
        for _ in 0..5 {
            assert!(!is_given_up(&mut refused, STALL_TIMEOUT / 2).await);
            piece.advance(2);
        }
        assert!(!is_given_up(&mut refused, STALL_TIMEOUT - Duration::from_secs(1)).await);
        assert!(is_given_up(&mut refused, Duration::from_secs(2)).await);
        drop(piece);
        let mut refused = Box::pin(answers.client_stalled(STALL_TIMEOUT));
        assert!(!is_given_up(&mut refused, 10 * STALL_TIMEOUT).await, "it has it all");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_taken_does_not_count_while_another_answer_is_owed() {
        let answers = ConnectionActivity::new();
        let mut refused = Box::pin(answers.client_stalled(STALL_TIMEOUT));
        let mut body = answers.begin().with(Body::full("unread"));
        let _piece = piece(&mut body).await;
        let parked = answers.begin();
        assert!(!is_given_up(&mut refused, 10 * STALL_TIMEOUT).await);
        drop(parked);
        assert!(!is_given_up(&mut refused, STALL_TIMEOUT - Duration::from_secs(1)).await, "from then on");
        assert!(is_given_up(&mut refused, Duration::from_secs(2)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_socket_counts_from_the_last_byte_it_took() {
        let answers = ConnectionActivity::new();
        let mut refused = Box::pin(answers.client_stalled(STALL_TIMEOUT));
        let _parked = answers.begin();
        let wrote = |polled: Poll<usize>| assert_eq!(answers.on_write(polled), polled);
        wrote(Poll::Pending);
        for _ in 0..5 {
            assert!(!is_given_up(&mut refused, STALL_TIMEOUT / 2).await);
            wrote(Poll::Ready(1));
            wrote(Poll::Pending);
        }
        for _ in 0..5 {
            assert!(!is_given_up(&mut refused, STALL_TIMEOUT / 6).await);
            wrote(Poll::Pending); // nothing new
        }
        assert!(is_given_up(&mut refused, STALL_TIMEOUT / 5).await);
        wrote(Poll::Ready(1));
        let mut refused = Box::pin(answers.client_stalled(STALL_TIMEOUT));
        assert!(!is_given_up(&mut refused, 10 * STALL_TIMEOUT).await);
    }
}
