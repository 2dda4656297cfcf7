//! A connection of HTTP/2: many requests at once, as many as its peer allows.
//!
//! ```text
//! Pool ── slot ──▶ Http2 ── request ──▶ driver: h2's connection over a Watched stream
//!   ▲                                     │
//!   └── the peer's limit, GOAWAY, end ────┘
//! ```
//!
//! h2 is driven here without hyper, whose connection tells neither the peer's limit on streams in time nor whether a
//! request's HEADERS have left or wait behind that limit. A request takes a slot before it is sent, and gives it
//! back after both its bodies have ended, never before h2 itself takes the stream for closed. So as long as the
//! slots taken are within the limit, h2 holds no request back.
//!
//! Windows are cut so that all slots' answers unread cannot use up the connection's: one that is not read never
//! stalls the others.

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
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderName, TE, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use self::probe::{Found, Probe};
use super::answer::ResponseBody;
use super::connect::Stream;
use super::link::{Link, Notice, Watched};
use super::pool::Pool;
use super::upload::Http2Upload;
use super::{MAX_INTERIM, SendError};
use crate::protocol::body::Body;

/// Requests at once on a connection, however many more its peer allows. Servers allow 100 at least, mostly
/// (RFC 9113 §6.5.2).
pub(super) const MAX_STREAMS: usize = 90;
/// Requests before the peer has told its limit.
const EARLY_STREAMS: usize = 1;
/// What one unread answer may hold back.
const STREAM_WINDOW: u32 = 256 << 10;
/// What all of a connection's hold back, and one stream more.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * (MAX_STREAMS as u32 + 1);
/// The largest head of an answer, in bytes.
const MAX_HEAD: u32 = 64 << 10;
/// What is not known yet. A peer's own limit has 32 bits, and none at all is `usize::MAX` to h2.
const UNKNOWN: usize = usize::MAX - 1;

/// A connection, whoever uses it. Once it is dropped, the connection closes behind its last request.
pub(super) struct Http2 {
    requests: SendRequest<Bytes>,
    shared: Arc<Http2State>,
    /// Ends with this, which the driver watches.
    _held: oneshot::Sender<Infallible>,
}

/// What requests, pool and driver know of a connection.
struct Http2State {
    /// Streams that the peer allows, or [`UNKNOWN`].
    limit: AtomicUsize,
    /// Slots taken. Changed under the pool's lock, but for what is given back.
    taken: AtomicUsize,
    /// Slots ever taken.
    served: AtomicU64,
    /// Whether it takes no more requests.
    is_closing: AtomicBool,
    /// For requests that h2 has and has not sent yet.
    notices: Mutex<Vec<Notice>>,
    /// For those that h2 holds back, since the limit was lowered in the very moment in which they were handed to it.
    held_back: Mutex<Vec<Notice>>,
    /// When it becomes too old for another request.
    retire_at: Instant,
    /// The number of the dial that made it: who waited before can blame it.
    dial: u64,
}

impl Http2 {
    /// Speaks HTTP/2 on the stream. The driver has to be spawned.
    pub(super) async fn handshake(
        stream: Stream,
        retire_at: Instant,
        dial: u64,
        patience: Duration,
        pool: Weak<Pool>,
    ) -> Result<(Arc<Self>, Http2Driver), SendError> {
        let link = Arc::new(Link::default());
        let (requests, mut connection) = h2::client::Builder::new()
            .initial_max_send_streams(UNKNOWN)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEAD)
            .enable_push(false)
            .handshake(Watched::new(stream, Arc::clone(&link)))
            .await
            .map_err(|error| SendError::Connect(Arc::new(error)))?;
        let shared = Arc::new(Http2State {
            limit: AtomicUsize::new(UNKNOWN),
            taken: AtomicUsize::new(0),
            served: AtomicU64::new(0),
            is_closing: AtomicBool::new(false),
            notices: Mutex::default(),
            held_back: Mutex::default(),
            retire_at,
            dial,
        });
        let (held, dropped) = oneshot::channel();
        let driver = Http2Driver {
            probe: connection.ping_pong().map(|ping| Probe::new(ping, link, patience)),
            connection,
            requests: Some(requests.clone()),
            dropped,
            shared: Arc::clone(&shared),
            is_retired: false,
            pool,
        };
        Ok((Arc::new(Self { requests, shared, _held: held }), driver))
    }

    /// Whether the peer has told its limit.
    pub(super) fn is_ready(&self) -> bool {
        self.shared.limit.load(Ordering::Relaxed) != UNKNOWN
    }

    /// Whether it may be given requests, now or later.
    pub(super) fn is_usable(&self, now: Instant) -> bool {
        // A new one carries one request, however young connections have to be.
        let is_young = now < self.shared.retire_at || self.shared.served.load(Ordering::Relaxed) == 0;
        is_young && !self.shared.is_closing.load(Ordering::Relaxed)
    }

    /// Whether there is a slot. To be asked under the pool's lock, and followed by [`StreamSlot::take`] under the same.
    pub(super) fn has_room(&self) -> bool {
        let limit = match self.shared.limit.load(Ordering::Relaxed) {
            UNKNOWN => EARLY_STREAMS,
            limit => limit.min(MAX_STREAMS),
        };
        self.shared.taken.load(Ordering::Relaxed) < limit
    }

    /// Slots taken.
    #[cfg(test)]
    pub(super) fn taken(&self) -> usize {
        self.shared.taken.load(Ordering::Relaxed)
    }

    /// Whether this is the connection that the driver has.
    pub(super) fn is(&self, driven: &Driven) -> bool {
        Arc::ptr_eq(&self.shared, &driven.0)
    }
}

impl Http2State {
    /// Tells requests that they are on their way, if h2 holds none back.
    fn let_go_on(&self) {
        if self.taken.load(Ordering::Acquire) <= self.limit.load(Ordering::Relaxed) {
            for notice in std::mem::take(&mut *self.held_back.lock()) {
                let _ = notice.send(()); // its caller may have gone
            }
        }
    }
}

/// A connection as its driver names it.
pub(super) struct Driven(Arc<Http2State>);

impl Driven {
    /// The peer's limit, as far as it is used.
    pub(super) fn streams(&self) -> usize {
        self.0.limit.load(Ordering::Relaxed).min(MAX_STREAMS)
    }

    /// Whether the peer has told its limit.
    pub(super) fn is_ready(&self) -> bool {
        self.0.limit.load(Ordering::Relaxed) != UNKNOWN
    }

    /// The number of the dial that made it.
    pub(super) fn dial(&self) -> u64 {
        self.0.dial
    }
}

/// A slot on a connection, from a request's start to the end of both its bodies.
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
        http2.shared.taken.fetch_add(1, Ordering::Relaxed);
        http2.shared.served.fetch_add(1, Ordering::Relaxed);
        Self { http2: Some(Arc::clone(http2)), pool }
    }
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        if let Some(http2) = self.http2.take() {
            http2.shared.taken.fetch_sub(1, Ordering::AcqRel);
            http2.shared.let_go_on();
        }
        if let Some(pool) = self.pool.upgrade() {
            pool.has_room();
        }
    }
}

/// What was not answered.
pub(super) enum Http2Failure {
    /// The connection took no request any more. Nothing was sent, and nobody was told so.
    Refused(Body, Option<Notice>),
    /// The peer says that it has not looked at the request (RFC 9113 §8.7).
    Unprocessed(h2::Error),
    Final(SendError),
}

/// Sends the request, whose URI is absolute. Cancel safe: dropping the future, or the answer before its end, resets the
/// stream.
pub(super) async fn send(
    slot: StreamSlot,
    mut head: Parts,
    body: Body,
    notice: Option<Notice>,
    tasks: &TaskTracker,
) -> Result<Response<ResponseBody>, Http2Failure> {
    head.version = Version::HTTP_2;
    strip(&mut head.headers);
    if let Some(length) = body.size_hint().exact()
        && (length > 0 || [Method::POST, Method::PUT, Method::PATCH].contains(&head.method))
    {
        head.headers.entry(CONTENT_LENGTH).or_insert(length.into());
    }
    let is_whole = body.is_end_stream();
    let http2 = slot.http2.as_ref().expect("a slot has its connection until it is dropped");
    let shared = Arc::clone(&http2.shared);
    let (response, stream) = {
        let mut requests = http2.requests.clone();
        // Held, so that the driver takes no notice whose HEADERS h2 has not got.
        let mut notices = shared.notices.lock();
        match requests.send_request(Request::from_parts(head, ()), is_whole) {
            Ok(sent) => {
                notices.extend(notice);
                sent
            }
            Err(error) if error.is_io() || error.is_go_away() => {
                shared.is_closing.store(true, Ordering::Relaxed);
                return Err(Http2Failure::Refused(body, notice));
            }
            // It cannot be sent at all.
            Err(error) => return Err(Http2Failure::Final(SendError::Broke(Arc::new(error)))),
        }
    };
    let slot = Arc::new(slot);
    let upload = if is_whole {
        drop(stream);
        None
    } else {
        Http2Upload::start(body, stream, Arc::clone(&slot), tasks).await
    };
    match answered(response).await {
        Ok(response) => {
            let (head, stream) = response.into_parts();
            let body = Http2Body::new(&head.headers, stream, slot, upload);
            Ok(Response::from_parts(head, ResponseBody::http2(body)))
        }
        Err(Unanswered::Flooded) => {
            // It may well go on, until the peer is told.
            shared.is_closing.store(true, Ordering::Relaxed);
            Err(Http2Failure::Final(SendError::TooManyInterim))
        }
        Err(Unanswered::Broke(error)) => Err(match is_unprocessed(&error) {
            true => Http2Failure::Unprocessed(error),
            false => Http2Failure::Final(SendError::Broke(Arc::new(error))),
        }),
    }
}

/// Takes out what has no place in HTTP/2 (RFC 9113 §8.2.2).
fn strip(headers: &mut HeaderMap) {
    const OF_CONNECTION: [HeaderName; 5] = [
        CONNECTION,
        TRANSFER_ENCODING,
        UPGRADE,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
    ];
    for name in OF_CONNECTION {
        headers.remove(name);
    }
    if headers.get(TE).is_some_and(|te| te != "trailers") {
        headers.remove(TE);
    }
}

enum Unanswered {
    Flooded,
    Broke(h2::Error),
}

/// The answer's head, after so many interim responses at most.
async fn answered(mut response: ResponseFuture) -> Result<Response<RecvStream>, Unanswered> {
    let mut interim = 0;
    poll_fn(move |cx| {
        while let Poll::Ready(Some(Ok(_))) = response.poll_informational(cx) {
            interim += 1;
            if interim > MAX_INTERIM {
                return Poll::Ready(Err(Unanswered::Flooded));
            }
        }
        Pin::new(&mut response).poll(cx).map_err(Unanswered::Broke)
    })
    .await
}

/// Whether the peer says that it has not looked at the request: it refused the stream, or closes the connection and
/// counts the stream among those that it will not see.
fn is_unprocessed(error: &h2::Error) -> bool {
    let is_refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    error.is_remote() && (is_refused || error.is_go_away())
}

/// An answer's body. Its stream is reset if it is dropped before its end, and the request's body with it.
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
        let told = head.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let length = told.or(stream.is_end_stream().then_some(0));
        let mut body = Self { stream, length, is_data_over: false, upload, _slot: slot };
        body.let_upload_go_on();
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
                    self.let_upload_go_on();
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(self.ended_by(error)),
                None => self.is_data_over = true,
            }
        }
        self.let_upload_go_on();
        match ready!(self.stream.poll_trailers(cx)) {
            Ok(trailers) => Poll::Ready(trailers.map(Frame::trailers).map(Ok)),
            Err(error) => Poll::Ready(self.ended_by(error)),
        }
    }

    /// A peer that has answered all and wants no more of the request says so by NO_ERROR (RFC 9113 §8.1).
    fn ended_by(&self, error: h2::Error) -> Option<Result<Frame<Bytes>, h2::Error>> {
        (error.reason() != Some(Reason::NO_ERROR)).then_some(Err(error))
    }

    /// The request's body outlives an answer that has ended.
    fn let_upload_go_on(&mut self) {
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

/// The task of a connection. It ends with the connection.
pub(super) struct Http2Driver {
    connection: Connection<Watched, Bytes>,
    /// To see by whether the connection takes requests; `None` once nobody holds it.
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
            this.requests = None; // h2 closes a connection without requests and handles
        }
        match this.probe.as_mut().map(|probe| probe.poll(cx, &this.shared)) {
            Some(Poll::Ready(Found::Dead)) => {
                tracing::debug!("upstream connection is silent, closing it");
                this.retire();
                return Poll::Ready(()); // its requests end with it
            }
            Some(Poll::Ready(Found::Unused)) => this.retire(),
            Some(Poll::Pending) | None => {}
        }
        // Whoever is in it is known to h2 before h2 is let write.
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
                this.look_at_limit(notices);
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
    /// Tells the pool of a limit that has changed, and requests that they are on their way.
    fn look_at_limit(&mut self, notices: Vec<Notice>) {
        let limit = self.connection.max_concurrent_send_streams();
        let before = self.shared.limit.swap(limit, Ordering::Relaxed);
        self.shared.held_back.lock().extend(notices);
        self.shared.let_go_on();
        if limit != before
            && let Some(pool) = self.pool.upgrade()
        {
            pool.limit_changed(&Driven(Arc::clone(&self.shared)), before == UNKNOWN);
        }
    }

    /// No more requests go to it.
    fn retire(&mut self) {
        self.shared.is_closing.store(true, Ordering::Relaxed);
        let was_retired = std::mem::replace(&mut self.is_retired, true);
        if !was_retired && let Some(pool) = self.pool.upgrade() {
            pool.forget(&Driven(Arc::clone(&self.shared)));
        }
    }
}
