//! Activity of one client connection: which responses are under way, and how long the client has not read from them.
//!
//! hyper does not report either, so the body of each response and the socket below hyper report them here.
//!
//! ```text
//! gateway ──► TrackedBody ──► TrackedBytes ──► hyper (HTTP/2: stream window) ──► ReadAhead (socket full?) ──► client
//! ```

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use http::{StatusCode, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Sleep;
use tracing::debug;

use super::stream_executor::{DeliveryProgress, StallTimer};
use crate::clock;
use crate::protocol::body::{Body, BoxError};

/// Activity of one connection. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct ConnectionActivity(Arc<ActivityState>);

#[derive(Debug)]
struct ActivityState {
    responses: AtomicUsize,
    /// Responses of which the gateway, not the client, has to provide the next step.
    pending: AtomicUsize,
    /// Bytes of bodies that hyper has received, and how many of them the socket has taken.
    delivery: DeliveryProgress,
    /// Requests whose bodies are still arriving.
    uploads: AtomicUsize,
    /// The gateway rejected a request before all of it arrived. The client may still be sending the rest.
    is_incomplete: AtomicBool,
    /// Status of hyper's own response to a malformed head, 0 while there is none.
    rejected_head: AtomicU16,
    /// A response has ended since the last flush: hyper may still hold its last bytes.
    unflushed: AtomicBool,
    /// A response has begun since the last call of `take_has_begun`.
    has_begun: AtomicBool,
    /// Bytes have arrived since the last response was flushed.
    is_head_begun: AtomicBool,
    /// The connection has become a tunnel.
    is_tunnel: AtomicBool,
    /// No write may wait for others: the connection is polled for the last time.
    writes_at_once: AtomicBool,
    /// The socket takes no more bytes for now.
    is_full: AtomicBool,
    /// The client has read bytes, or new bytes have become available to it, since the flag was last cleared.
    has_progressed: AtomicBool,
    opened_at: Instant,
    /// Start of the idle time in nanoseconds after `opened_at`, or [`BUSY`].
    idle_since: AtomicU64,
}

/// Bytes that a client may leave unread for long: the ends of some responses that it no longer needs.
const MAX_UNDELIVERED: u64 = 256 << 10;

/// Value of `idle_since` while a response is under way.
const BUSY: u64 = u64::MAX;

impl ConnectionActivity {
    pub(super) fn new() -> Self {
        Self(Arc::new(ActivityState {
            responses: AtomicUsize::new(0),
            pending: AtomicUsize::new(0),
            delivery: DeliveryProgress::default(),
            uploads: AtomicUsize::new(0),
            is_incomplete: AtomicBool::new(false),
            rejected_head: AtomicU16::new(0),
            unflushed: AtomicBool::new(false),
            has_begun: AtomicBool::new(false),
            is_head_begun: AtomicBool::new(false),
            is_tunnel: AtomicBool::new(false),
            writes_at_once: AtomicBool::new(false),
            is_full: AtomicBool::new(false),
            has_progressed: AtomicBool::new(false),
            opened_at: clock::now(),
            idle_since: AtomicU64::new(0),
        }))
    }

    /// Records that no response is under way from now on.
    pub(super) fn set_idle(&self, now: Instant) {
        // Overflows after 584 years.
        let since = now.saturating_duration_since(self.0.opened_at).as_nanos() as u64;
        self.0.idle_since.store(since, Ordering::Relaxed);
    }

    /// Records that a response is under way.
    pub(super) fn set_busy(&self) {
        self.0.idle_since.store(BUSY, Ordering::Relaxed);
    }

    pub(super) fn idle_since(&self) -> Option<Instant> {
        match self.0.idle_since.load(Ordering::Relaxed) {
            BUSY => None,
            since => Some(self.0.opened_at + Duration::from_nanos(since)),
        }
    }

    /// Begins a response. It is under way until the guard is dropped and its last bytes are flushed.
    pub(super) fn begin(&self) -> ResponseGuard {
        self.begin_on_stream(None)
    }

    /// Like [`Self::begin`], and also counts the delivered bytes for one HTTP/2 stream.
    pub(super) fn begin_on_stream(&self, stream: Option<Arc<DeliveryProgress>>) -> ResponseGuard {
        self.0.responses.fetch_add(1, Ordering::Relaxed);
        self.0.unflushed.store(true, Ordering::Relaxed);
        self.0.has_begun.store(true, Ordering::Relaxed);
        self.0.is_head_begun.store(false, Ordering::Relaxed);
        ResponseGuard { pending: Some(PendingGuard::new(self)), activity: self.clone(), stream }
    }

    /// Like [`Self::begin`], for a tunnel that the connection becomes.
    pub(super) fn begin_tunnel(&self) -> ResponseGuard {
        self.0.is_tunnel.store(true, Ordering::Relaxed);
        self.begin()
    }

    /// Begins an upload: the body of a request arrives until the guard is dropped.
    pub(super) fn begin_upload(&self) -> UploadGuard {
        self.0.uploads.fetch_add(1, Ordering::Relaxed);
        UploadGuard { activity: self.clone(), is_complete: false }
    }

    /// Records that a request was rejected before all of it arrived.
    pub(super) fn mark_incomplete(&self) {
        self.0.is_incomplete.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_incomplete(&self) -> bool {
        self.0.is_incomplete.load(Ordering::Relaxed)
    }

    /// Records that hyper answers a malformed head with this status. The rest of the request may still arrive.
    pub(super) fn reject_head(&self, status: StatusCode) {
        self.0.rejected_head.store(status.as_u16(), Ordering::Relaxed);
        self.mark_incomplete();
    }

    /// Returns the status of hyper's own response to a malformed head, once. Such a response is the last of a connection.
    pub(super) fn take_rejected_head(&self) -> Option<StatusCode> {
        StatusCode::from_u16(self.0.rejected_head.swap(0, Ordering::Relaxed)).ok()
    }

    /// Returns whether the client has sent its whole request and waits. If it closes the connection now, it leaves
    /// early.
    pub(super) fn is_request_complete(&self) -> bool {
        let ActivityState { uploads, is_tunnel, .. } = &*self.0;
        self.is_responding() && uploads.load(Ordering::Relaxed) == 0 && !is_tunnel.load(Ordering::Relaxed)
    }

    /// Returns whether every byte of every response is on its way to the client.
    pub(super) fn is_flushed(&self) -> bool {
        !self.is_responding() && !self.0.unflushed.load(Ordering::Relaxed)
    }

    /// Returns whether responses are under way.
    pub(super) fn is_responding(&self) -> bool {
        self.0.responses.load(Ordering::Relaxed) > 0
    }

    /// Records that bytes have arrived. They begin a request if no response is under way.
    pub(super) fn on_bytes_read(&self) {
        if self.is_flushed() {
            self.0.is_head_begun.store(true, Ordering::Relaxed);
        }
    }

    /// Returns whether a request has begun to arrive and is not complete.
    pub(super) fn is_head_begun(&self) -> bool {
        self.0.is_head_begun.load(Ordering::Relaxed)
    }

    /// Returns whether a response has begun since the last call.
    pub(super) fn take_has_begun(&self) -> bool {
        self.0.has_begun.swap(false, Ordering::Relaxed)
    }

    /// Records that hyper has flushed, which it does after it has written all of its buffer.
    pub(super) fn flushed(&self) {
        if !self.is_responding() {
            self.0.unflushed.store(false, Ordering::Relaxed);
        }
    }

    /// Writes all further bytes as soon as hyper flushes them.
    pub(super) fn write_at_once(&self) {
        self.0.writes_at_once.store(true, Ordering::Relaxed);
    }

    pub(super) fn writes_at_once(&self) -> bool {
        self.0.writes_at_once.load(Ordering::Relaxed)
    }

    /// Records the result of a write to the socket.
    pub(super) fn on_write<T>(&self, polled: Poll<T>) -> Poll<T> {
        if self.0.is_full.swap(polled.is_pending(), Ordering::Relaxed) != polled.is_pending() {
            self.note_progress();
        }
        polled
    }

    /// Resolves when the client has read nothing for `stall_timeout`, or, over HTTP/2, too little for twice as long.
    ///
    /// Poll it after the connection, each time: it registers no waker for activity.
    pub(super) fn stalled(&self, stall_timeout: Duration, version: Version) -> impl Future<Output = ()> {
        let (mut client, mut delivery) = (None, StallTimer::default());
        poll_fn(move |cx| {
            if self.poll_client_stalled(&mut client, stall_timeout, cx).is_ready() {
                return Poll::Ready(());
            }
            match version < Version::HTTP_2 {
                true => Poll::Pending,
                false => self.poll_undelivered_for(&mut delivery, 2 * stall_timeout, cx),
            }
        })
    }

    /// Is ready when much has been left unread for this time, even if the client also waits for other responses. A
    /// stream that is not read at all is reset before. A stream that takes a single byte hands its whole response
    /// over to h2, and cannot be reset.
    fn poll_undelivered_for(&self, timer: &mut StallTimer, time: Duration, cx: &mut Context<'_>) -> Poll<()> {
        ready!(self.0.delivery.poll_stalled(timer, time, MAX_UNDELIVERED, MAX_UNDELIVERED, cx));
        debug!("client left too many bytes unread, closing connection");
        Poll::Ready(())
    }

    #[cfg(test)]
    async fn client_stalled(&self, stall_timeout: Duration) {
        let mut timer = None;
        poll_fn(|cx| self.poll_client_stalled(&mut timer, stall_timeout, cx)).await;
    }

    /// Is ready when the client has read nothing for `stall_timeout` although bytes were available. Never while the gateway
    /// has to provide a response, or the rest of one, that the client may be waiting for.
    ///
    /// The timer runs only while the client has bytes to read. It is large, so a parked connection has none.
    fn poll_client_stalled(
        &self,
        timer: &mut Option<Pin<Box<Sleep>>>,
        stall_timeout: Duration,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        loop {
            let Some(sleep) = timer else {
                if !self.awaits_client() {
                    return Poll::Pending;
                }
                self.0.has_progressed.store(false, Ordering::Relaxed);
                *timer = Some(Box::pin(tokio::time::sleep(stall_timeout)));
                continue;
            };
            if !self.0.has_progressed.swap(false, Ordering::Relaxed) {
                ready!(sleep.as_mut().poll(cx));
                if self.awaits_client() {
                    debug!("client stopped reading, closing connection");
                    return Poll::Ready(());
                }
            }
            *timer = None;
        }
    }

    fn awaits_client(&self) -> bool {
        let ActivityState { pending, delivery, is_full, .. } = &*self.0;
        // A full window blocks one HTTP/2 stream; a full socket blocks all of them.
        is_full.load(Ordering::Relaxed)
            || (delivery.undelivered() > 0 && pending.load(Ordering::Relaxed) == 0)
    }

    fn note_progress(&self) {
        self.0.has_progressed.store(true, Ordering::Relaxed);
    }
}

/// A response that is under way.
#[derive(Debug)]
pub(super) struct ResponseGuard {
    pending: Option<PendingGuard>,
    activity: ConnectionActivity,
    /// Bytes delivered on this HTTP/2 stream.
    stream: Option<Arc<DeliveryProgress>>,
}

impl ResponseGuard {
    /// Attaches the body. The response is under way as long as the body lives.
    pub(super) fn with(mut self, body: Body) -> TrackedBody {
        self.pending = None;
        TrackedBody { body, guard: self }
    }
}

impl Drop for ResponseGuard {
    fn drop(&mut self) {
        self.activity.0.responses.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Marks a response of which the gateway has to provide the next step.
#[derive(Debug)]
struct PendingGuard(ConnectionActivity);

impl PendingGuard {
    fn new(activity: &ConnectionActivity) -> Self {
        activity.0.pending.fetch_add(1, Ordering::Relaxed);
        Self(activity.clone())
    }
}

impl Drop for PendingGuard {
    fn drop(&mut self) {
        self.0.0.pending.fetch_sub(1, Ordering::Relaxed);
        self.0.note_progress();
    }
}

/// Marks a request body that is arriving. Records the request as incomplete unless [`Self::end`] is called.
#[derive(Debug)]
pub(super) struct UploadGuard {
    activity: ConnectionActivity,
    is_complete: bool,
}

impl UploadGuard {
    /// Records that the whole body has arrived.
    pub(super) fn end(mut self) {
        self.is_complete = true;
    }
}

impl Drop for UploadGuard {
    fn drop(&mut self) {
        self.activity.0.uploads.fetch_sub(1, Ordering::Relaxed);
        if !self.is_complete {
            self.activity.mark_incomplete();
        }
    }
}

/// The body of a response. Reports when hyper is done with it, and whether it waits for the gateway.
pub(super) struct TrackedBody {
    body: Body,
    guard: ResponseGuard,
}

impl HttpBody for TrackedBody {
    type Data = TrackedBytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<TrackedBytes>, BoxError>>> {
        let Self { body, guard: ResponseGuard { pending, activity, stream } } = self.get_mut();
        match Pin::new(body).poll_frame(cx) {
            Poll::Pending => {
                pending.get_or_insert_with(|| PendingGuard::new(activity));
                Poll::Pending
            }
            Poll::Ready(frame) => {
                *pending = None;
                let bytes =
                    |frame: Frame<Bytes>| frame.map_data(|bytes| TrackedBytes::new(bytes, activity, stream));
                Poll::Ready(frame.map(|frame| frame.map(bytes)))
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

/// Bytes of a response. They report when hyper has written them.
#[derive(Debug)]
pub(super) struct TrackedBytes {
    bytes: Bytes,
    activity: ConnectionActivity,
    stream: Option<Arc<DeliveryProgress>>,
}

impl TrackedBytes {
    fn new(bytes: Bytes, activity: &ConnectionActivity, stream: &Option<Arc<DeliveryProgress>>) -> Self {
        activity.0.delivery.receive(bytes.len());
        if let Some(stream) = stream {
            stream.receive(bytes.len());
        }
        activity.note_progress();
        Self { bytes, activity: activity.clone(), stream: stream.clone() }
    }

    fn on_delivered(&self, count: usize) {
        self.activity.0.delivery.deliver(count);
        if let Some(stream) = &self.stream {
            stream.deliver(count);
        }
        self.activity.note_progress();
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
        self.on_delivered(count);
    }
}

impl Drop for TrackedBytes {
    fn drop(&mut self) {
        self.on_delivered(self.bytes.len());
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    const STALL_TIMEOUT: Duration = Duration::from_secs(60);

    /// Returns whether the client counts as stalled within this time from now.
    async fn is_stalled(stalled: &mut (impl Future<Output = ()> + Unpin), within: Duration) -> bool {
        tokio::time::timeout(within, stalled).await.is_ok()
    }

    /// Returns the next bytes of the body, as hyper receives them.
    async fn bytes(body: &mut TrackedBody) -> TrackedBytes {
        body.frame().await.unwrap().unwrap().into_data().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_client_never_counts_as_stalled() {
        let activity = ConnectionActivity::new();
        let mut stalled = Box::pin(activity.client_stalled(STALL_TIMEOUT));
        assert!(!is_stalled(&mut stalled, 10 * STALL_TIMEOUT).await, "no request");
        let parked = activity.begin();
        assert!(!is_stalled(&mut stalled, 10 * STALL_TIMEOUT).await);
        let (_upstream, silent) = http_body_util::Channel::<Bytes>::new(1);
        let mut body = parked.with(Body::stream(silent));
        assert!(tokio::time::timeout(10 * STALL_TIMEOUT, body.frame()).await.is_err());
        assert!(!is_stalled(&mut stalled, 10 * STALL_TIMEOUT).await);
        drop(body);
        let _tunnel = activity.begin_tunnel();
        assert!(!is_stalled(&mut stalled, 10 * STALL_TIMEOUT).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_of_an_answer_is_stalled_and_one_that_takes_some_is_not() {
        let activity = ConnectionActivity::new();
        let mut stalled = Box::pin(activity.client_stalled(STALL_TIMEOUT));
        let mut body = activity.begin().with(Body::full("twelve bytes"));
        let mut bytes = bytes(&mut body).await;
        drop(body);
        for _ in 0..5 {
            assert!(!is_stalled(&mut stalled, STALL_TIMEOUT / 2).await);
            bytes.advance(2);
        }
        assert!(!is_stalled(&mut stalled, STALL_TIMEOUT - Duration::from_secs(1)).await);
        assert!(is_stalled(&mut stalled, Duration::from_secs(2)).await);
        drop(bytes);
        let mut stalled = Box::pin(activity.client_stalled(STALL_TIMEOUT));
        assert!(!is_stalled(&mut stalled, 10 * STALL_TIMEOUT).await, "all bytes are delivered");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_with_unread_bytes_does_not_stall_while_another_response_is_pending() {
        let activity = ConnectionActivity::new();
        let mut stalled = Box::pin(activity.client_stalled(STALL_TIMEOUT));
        let mut body = activity.begin().with(Body::full("unread"));
        let _piece = bytes(&mut body).await;
        let parked = activity.begin();
        assert!(!is_stalled(&mut stalled, 10 * STALL_TIMEOUT).await);
        drop(parked);
        assert!(
            !is_stalled(&mut stalled, STALL_TIMEOUT - Duration::from_secs(1)).await,
            "counted from the end of the pending response"
        );
        assert!(is_stalled(&mut stalled, Duration::from_secs(2)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_with_a_full_socket_stalls_after_the_last_byte_that_the_socket_took() {
        let activity = ConnectionActivity::new();
        let mut stalled = Box::pin(activity.client_stalled(STALL_TIMEOUT));
        let _parked = activity.begin();
        let wrote = |polled: Poll<usize>| assert_eq!(activity.on_write(polled), polled);
        wrote(Poll::Pending);
        for _ in 0..5 {
            assert!(!is_stalled(&mut stalled, STALL_TIMEOUT / 2).await);
            wrote(Poll::Ready(1));
            wrote(Poll::Pending);
        }
        for _ in 0..5 {
            assert!(!is_stalled(&mut stalled, STALL_TIMEOUT / 6).await);
            wrote(Poll::Pending); // nothing new
        }
        assert!(is_stalled(&mut stalled, STALL_TIMEOUT / 5).await);
        wrote(Poll::Ready(1));
        let mut stalled = Box::pin(activity.client_stalled(STALL_TIMEOUT));
        assert!(!is_stalled(&mut stalled, 10 * STALL_TIMEOUT).await);
    }
}
