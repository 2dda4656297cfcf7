//! HTTP/2 connection of the upstream: as many concurrent requests as the peer allows.
//!
//! ```text
//! Pool ── slot ──► Http2 ── request ──► driver: h2's connection over an ObservedStream
//!   ▲                                     │
//!   └── peer's limit, GOAWAY, end ────────┘
//! ```
//!
//! This file drives h2 without hyper. hyper reports neither the peer's stream limit in time, nor whether the HEADERS
//! of a request have left or wait for that limit. A request takes a slot before it is sent. It releases the slot
//! after both its bodies have ended, and never before h2 counts the stream as closed. So while the slots taken are
//! within the limit, h2 holds no request back.
//!
//! Windows are sized so that the unread responses of all slots cannot fill the window of the connection: an unread
//! response never stalls the others.

mod probe;

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::{Connection, ResponseFuture, SendRequest};
use h2::{Reason, RecvStream};
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderName, TE, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use self::probe::{Probe, ProbeFinding};
use super::connect::Stream;
use super::observed_stream::{IoActivity, ObservedStream};
use super::pool::Pool;
use super::response_body::ResponseBody;
use super::upload::Http2Upload;
use super::{MAX_INTERIM, SendError, SentNotice};
use crate::protocol::body::Body;

/// Most concurrent requests on a connection, even if its peer allows more. Most servers allow at least 100 (RFC 9113
/// section 6.5.2).
pub(super) const MAX_STREAMS: usize = 90;
/// Concurrent requests before the peer's limit is known.
const EARLY_STREAMS: usize = 1;
/// Bytes that one unread response may hold back.
const STREAM_WINDOW: u32 = 256 << 10;
/// Bytes that all unread responses of a connection may hold back, and one more stream.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * (MAX_STREAMS as u32 + 1);
/// Largest response head in bytes.
const MAX_HEAD: u32 = 64 << 10;
/// Placeholder for an unknown limit. A peer's limit has 32 bits; h2 reports `usize::MAX` for an unlimited peer.
const UNKNOWN: usize = usize::MAX - 1;

/// HTTP/2 connection. Dropping it closes the connection after its last request.
pub(super) struct Http2 {
    requests: SendRequest<Bytes>,
    shared: Arc<Http2State>,
    /// Dropping it wakes the driver.
    _alive: oneshot::Sender<Infallible>,
}

/// State that requests, pool and driver share.
struct Http2State {
    /// Streams that the peer allows, or [`UNKNOWN`].
    limit: AtomicUsize,
    /// Slots taken now. Taken under the lock of the pool, released without it.
    slots_taken: AtomicUsize,
    /// Slots taken so far.
    served: AtomicU64,
    /// Whether the connection takes no more requests.
    is_closing: AtomicBool,
    /// Notices of requests that h2 has not written yet.
    notices: Mutex<Vec<SentNotice>>,
    /// Notices of requests that h2 holds back, because the limit was lowered at the moment they were passed to it.
    held_back: Mutex<Vec<SentNotice>>,
    /// Age limit: no more requests after this time.
    retire_at: Instant,
    /// Number of the dial that opened the connection. If the dial fails, it fails requests that waited before it.
    dial: u64,
}

impl Http2 {
    /// Performs the handshake. The caller has to spawn the driver.
    pub(super) async fn handshake(
        stream: Stream,
        retire_at: Instant,
        dial: u64,
        settings_timeout: Duration,
        pool: Weak<Pool>,
    ) -> Result<(Arc<Self>, Http2Driver), SendError> {
        let activity = Arc::new(IoActivity::default());
        let (requests, mut connection) = h2::client::Builder::new()
            .initial_max_send_streams(UNKNOWN)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEAD)
            .enable_push(false)
            .handshake(ObservedStream::new(stream, Arc::clone(&activity)))
            .await
            .map_err(|error| SendError::Connect(Arc::new(error)))?;
        let shared = Arc::new(Http2State {
            limit: AtomicUsize::new(UNKNOWN),
            slots_taken: AtomicUsize::new(0),
            served: AtomicU64::new(0),
            is_closing: AtomicBool::new(false),
            notices: Mutex::default(),
            held_back: Mutex::default(),
            retire_at,
            dial,
        });
        let (alive, dropped) = oneshot::channel();
        let driver = Http2Driver {
            probe: connection.ping_pong().map(|ping| Probe::new(ping, activity, settings_timeout)),
            connection,
            requests: Some(requests.clone()),
            dropped,
            shared: Arc::clone(&shared),
            is_retired: false,
            pool,
        };
        Ok((Arc::new(Self { requests, shared, _alive: alive }), driver))
    }

    /// Returns whether the peer's limit is known.
    pub(super) fn is_ready(&self) -> bool {
        self.shared.limit.load(Ordering::Relaxed) != UNKNOWN
    }

    /// Returns whether the connection may carry requests, now or later.
    pub(super) fn is_usable(&self, now: Instant) -> bool {
        // A new connection carries one request, however low the age limit.
        let is_young = now < self.shared.retire_at || self.shared.served.load(Ordering::Relaxed) == 0;
        is_young && !self.shared.is_closing.load(Ordering::Relaxed)
    }

    /// Returns whether a slot is free. Call it, and then [`StreamSlot::take`], under one lock of the pool.
    pub(super) fn has_room(&self) -> bool {
        let limit = match self.shared.limit.load(Ordering::Relaxed) {
            UNKNOWN => EARLY_STREAMS,
            limit => limit.min(MAX_STREAMS),
        };
        self.shared.slots_taken.load(Ordering::Relaxed) < limit
    }

    /// Returns the number of slots taken now.
    #[cfg(test)]
    pub(super) fn slots_taken(&self) -> usize {
        self.shared.slots_taken.load(Ordering::Relaxed)
    }

    /// Returns whether the status belongs to this connection.
    pub(super) fn is(&self, status: &Http2Status) -> bool {
        Arc::ptr_eq(&self.shared, &status.0)
    }
}

impl Http2State {
    /// Uses the held-back notices once h2 holds no request back.
    fn release_held_back(&self) {
        if self.slots_taken.load(Ordering::Acquire) <= self.limit.load(Ordering::Relaxed) {
            for notice in std::mem::take(&mut *self.held_back.lock()) {
                let _ = notice.send(()); // the caller may have been cancelled
            }
        }
    }
}

/// State of a connection as its driver passes it to the pool.
pub(super) struct Http2Status(Arc<Http2State>);

impl Http2Status {
    /// Returns the number of streams in use at most.
    pub(super) fn streams(&self) -> usize {
        self.0.limit.load(Ordering::Relaxed).min(MAX_STREAMS)
    }

    /// Returns whether the peer's limit is known.
    pub(super) fn is_ready(&self) -> bool {
        self.0.limit.load(Ordering::Relaxed) != UNKNOWN
    }

    pub(super) fn dial(&self) -> u64 {
        self.0.dial
    }
}

/// Slot on a connection, from the start of a request to the end of both its bodies.
pub(super) struct StreamSlot {
    http2: Option<Arc<Http2>>,
    pool: Weak<Pool>,
}

impl std::fmt::Debug for StreamSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StreamSlot")
    }
}

impl StreamSlot {
    pub(super) fn take(http2: &Arc<Http2>, pool: Weak<Pool>) -> Self {
        http2.shared.slots_taken.fetch_add(1, Ordering::Relaxed);
        http2.shared.served.fetch_add(1, Ordering::Relaxed);
        Self { http2: Some(Arc::clone(http2)), pool }
    }
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        if let Some(http2) = self.http2.take() {
            http2.shared.slots_taken.fetch_sub(1, Ordering::AcqRel);
            http2.shared.release_held_back();
        }
        if let Some(pool) = self.pool.upgrade() {
            pool.on_room();
        }
    }
}

/// Reason why a request got no response.
pub(super) enum Http2Failure {
    /// The connection takes no more requests. No byte was sent and the notice is unused.
    NotAccepted(Body, Option<SentNotice>),
    /// The peer reports that it has not processed the request (RFC 9113 section 8.7).
    Unprocessed(h2::Error),
    Final(SendError),
}

/// Sends a request with an absolute URI. Cancel safe: dropping the future, or the response before its end, resets the
/// stream.
pub(super) async fn send(
    slot: StreamSlot,
    mut head: Parts,
    body: Body,
    notice: Option<SentNotice>,
    tasks: &TaskTracker,
) -> Result<Response<ResponseBody>, Http2Failure> {
    head.version = Version::HTTP_2;
    strip(&mut head.headers);
    if let Some(length) = body.size_hint().exact()
        && (length > 0 || [Method::POST, Method::PUT, Method::PATCH].contains(&head.method))
    {
        head.headers.entry(CONTENT_LENGTH).or_insert(length.into());
    }
    let has_no_body = body.is_end_stream();
    let http2 = slot.http2.as_ref().expect("a slot has its connection until it is dropped");
    let shared = Arc::clone(&http2.shared);
    let (response, stream) = {
        let mut requests = http2.requests.clone();
        // Locked until h2 has the request: the driver must not take its notice before.
        let mut notices = shared.notices.lock();
        match requests.send_request(Request::from_parts(head, ()), has_no_body) {
            Ok(sent) => {
                notices.extend(notice);
                sent
            }
            Err(error) if error.is_io() || error.is_go_away() => {
                shared.is_closing.store(true, Ordering::Relaxed);
                return Err(Http2Failure::NotAccepted(body, notice));
            }
            // The request itself is invalid.
            Err(error) => return Err(Http2Failure::Final(SendError::Reset(Arc::new(error)))),
        }
    };
    let slot = Arc::new(slot);
    let upload = if has_no_body {
        drop(stream);
        None
    } else {
        Http2Upload::start(body, stream, Arc::clone(&slot), tasks).await
    };
    match response_head(response).await {
        Ok(response) => {
            let (head, stream) = response.into_parts();
            let body = Http2Body::new(&head.headers, stream, slot, upload);
            Ok(Response::from_parts(head, ResponseBody::http2(body)))
        }
        Err(ResponseFailure::TooManyInterim) => {
            // The peer may send more interim responses until the stream is reset.
            shared.is_closing.store(true, Ordering::Relaxed);
            Err(Http2Failure::Final(SendError::TooManyInterim))
        }
        Err(ResponseFailure::Http2(error)) => Err(match is_unprocessed(&error) {
            true => Http2Failure::Unprocessed(error),
            false => Http2Failure::Final(SendError::Reset(Arc::new(error))),
        }),
    }
}

/// Removes headers that HTTP/2 forbids (RFC 9113 section 8.2.2), and `Host`: the URI names the upstream.
fn strip(headers: &mut HeaderMap) {
    const CONNECTION_HEADERS: [HeaderName; 6] = [
        HOST,
        CONNECTION,
        TRANSFER_ENCODING,
        UPGRADE,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
    ];
    for name in CONNECTION_HEADERS {
        headers.remove(name);
    }
    if headers.get(TE).is_some_and(|te| te != "trailers") {
        headers.remove(TE);
    }
}

enum ResponseFailure {
    TooManyInterim,
    Http2(h2::Error),
}

/// Returns the response head. Fails after [`MAX_INTERIM`] interim responses.
async fn response_head(mut response: ResponseFuture) -> Result<Response<RecvStream>, ResponseFailure> {
    let mut interim = 0;
    poll_fn(move |cx| {
        while let Poll::Ready(Some(Ok(_))) = response.poll_informational(cx) {
            interim += 1;
            if interim > MAX_INTERIM {
                return Poll::Ready(Err(ResponseFailure::TooManyInterim));
            }
        }
        Pin::new(&mut response).poll(cx).map_err(ResponseFailure::Http2)
    })
    .await
}

/// Returns whether the peer has not processed the request: it refused the stream, or its GOAWAY excludes the stream.
fn is_unprocessed(error: &h2::Error) -> bool {
    let is_refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    error.is_remote() && (is_refused || error.is_go_away())
}

/// Response body. Dropping it before its end resets the stream, which aborts the request body, too.
#[derive(Debug)]
pub(super) struct Http2Body {
    stream: RecvStream,
    length: Option<u64>,
    is_data_over: bool,
    upload: Option<Http2Upload>,
    _slot: Arc<StreamSlot>,
}

impl Http2Body {
    fn new(head: &HeaderMap, stream: RecvStream, slot: Arc<StreamSlot>, upload: Option<Http2Upload>) -> Self {
        let declared = head.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let length = declared.or(stream.is_end_stream().then_some(0));
        let mut body = Self { stream, length, is_data_over: false, upload, _slot: slot };
        body.detach_finished_upload();
        body
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.is_data_over {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    let _ = self.stream.flow_control().release_capacity(data.len()); // fails on a closed stream
                    self.length = self.length.map(|length| length.saturating_sub(data.len() as u64));
                    self.detach_finished_upload();
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(self.ended_by(error)),
                None => self.is_data_over = true,
            }
        }
        self.detach_finished_upload();
        match ready!(self.stream.poll_trailers(cx)) {
            Ok(trailers) => Poll::Ready(trailers.map(Frame::trailers).map(Ok)),
            Err(error) => Poll::Ready(self.ended_by(error)),
        }
    }

    /// After a complete response the peer sends NO_ERROR if it does not need the rest of the request (RFC 9113
    /// section 8.1).
    fn ended_by(&self, error: h2::Error) -> Option<Result<Frame<Bytes>, h2::Error>> {
        (error.reason() != Some(Reason::NO_ERROR)).then_some(Err(error))
    }

    /// Detaches the upload once the response has ended: the request body may outlive it.
    fn detach_finished_upload(&mut self) {
        if (self.is_data_over || self.stream.is_end_stream())
            && let Some(upload) = self.upload.take()
        {
            upload.detach();
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Task of a connection. It ends with the connection.
pub(super) struct Http2Driver {
    connection: Connection<ObservedStream, Bytes>,
    /// Shows whether the connection takes requests. `None` once the pool and all requests have dropped it.
    requests: Option<SendRequest<Bytes>>,
    dropped: oneshot::Receiver<Infallible>,
    probe: Option<Probe>,
    shared: Arc<Http2State>,
    is_retired: bool,
    pool: Weak<Pool>,
}

impl Future for Http2Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if this.requests.is_some() && Pin::new(&mut this.dropped).poll(cx).is_ready() {
            this.requests = None; // h2 closes a connection that has no streams and no handles
        }
        match this.probe.as_mut().map(|probe| probe.poll(cx, &this.shared)) {
            Some(Poll::Ready(ProbeFinding::Dead)) => {
                tracing::debug!("upstream connection is silent, closing connection");
                this.retire();
                return Poll::Ready(()); // fails its requests
            }
            Some(Poll::Ready(ProbeFinding::Unused)) => this.retire(),
            Some(Poll::Pending) | None => {}
        }
        // Taken before h2 runs: h2 then has the HEADERS of all of these requests.
        let notices = std::mem::take(&mut *this.shared.notices.lock());
        match Pin::new(&mut this.connection).poll(cx) {
            Poll::Ready(ended) => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "upstream connection ended");
                }
                this.retire();
                Poll::Ready(())
            }
            Poll::Pending => {
                this.update_limit(notices);
                if this.requests.as_mut().is_some_and(|requests| has_ended(requests, cx)) {
                    this.retire();
                }
                Poll::Pending
            }
        }
    }
}

fn has_ended(requests: &mut SendRequest<Bytes>, cx: &mut Context<'_>) -> bool {
    matches!(requests.poll_ready(cx), Poll::Ready(Err(_)))
}

impl Http2Driver {
    /// Passes a changed limit to the pool, and uses the notices of requests that have left.
    fn update_limit(&mut self, notices: Vec<SentNotice>) {
        let limit = self.connection.max_concurrent_send_streams();
        let before = self.shared.limit.swap(limit, Ordering::Relaxed);
        self.shared.held_back.lock().extend(notices);
        self.shared.release_held_back();
        if limit != before
            && let Some(pool) = self.pool.upgrade()
        {
            pool.limit_changed(&Http2Status(Arc::clone(&self.shared)), before == UNKNOWN);
        }
    }

    /// Stops new requests on the connection.
    fn retire(&mut self) {
        self.shared.is_closing.store(true, Ordering::Relaxed);
        let was_retired = std::mem::replace(&mut self.is_retired, true);
        if !was_retired && let Some(pool) = self.pool.upgrade() {
            pool.remove(&Http2Status(Arc::clone(&self.shared)));
        }
    }
}
