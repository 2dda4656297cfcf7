//! HTTP/1.1 connection of the upstream: one request after the other.
//!
//! ```text
//! Pool ── lease ──► Http1 ── request ──► driver: hyper's codec over an ObservedStream
//!   ▲                                     │
//!   └────────── idle again ───────────────┘
//! ```
//!
//! The driver is the task of the connection. It returns the connection to the pool once the codec is ready for the
//! next request, so requests need not watch for that. Only this file names the codec: another one would have to offer
//! [`Lease::send`] and the driver.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, Uri};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::time::Sleep;

use super::connect::Stream;
use super::observed_stream::{IoActivity, ObservedStream, SentNotice};
use super::pool::Pool;
use super::response_body::ResponseBody;
use super::{SendError, UNREAD_UPLOAD_TIMEOUT};
use crate::protocol::body::Body;

/// HTTP/1.1 connection, shared by the pool, its lease and its driver.
pub(super) struct Http1 {
    /// Held while the codec runs and while a request is passed to it. The codec finds its queue empty and then
    /// reports that it is ready, in two steps. A request passed between them would make a busy connection look idle.
    codec_lock: Mutex<()>,
    sender: Mutex<Sender>,
    /// Wakes the driver when the state of the response has changed.
    driver: AtomicWaker,
    activity: Arc<IoActivity>,
    /// Set once the connection has been returned to the pool.
    is_kept: AtomicBool,
    /// Age limit: no more requests after this time.
    retire_at: Instant,
}

struct Sender {
    /// `None` once the connection is to close.
    requests: Option<SendRequest<Body>>,
    /// Whether a lease is out.
    is_busy: bool,
    /// Response to the current request.
    response: Arc<ResponseState>,
}

/// End of a response. The codec needs it, because it goes on sending the request body after the
/// response has ended.
#[derive(Debug, Default)]
struct ResponseState {
    /// The response was dropped before its end.
    is_dropped: AtomicBool,
    /// The whole response was read.
    is_complete: AtomicBool,
}

/// Reason why a request got no response.
pub(super) enum Http1Failure {
    /// No byte was sent. Contains the request as it was.
    Unsent(Box<Request<Body>>, SendError),
    /// The request may have been sent, or cannot be recovered.
    Final(SendError),
}

struct Http1Driver<C> {
    connection: C,
    http1: Arc<Http1>,
    /// Runs while the response has ended and the request body has not.
    upload_timer: Option<Pin<Box<Sleep>>>,
    pool: Weak<Pool>,
}

impl Http1 {
    /// Performs the handshake. The caller has to spawn the second value, the driver, which ends with the connection.
    pub(super) async fn handshake(
        stream: Stream,
        retire_at: Instant,
        pool: Weak<Pool>,
    ) -> Result<(Arc<Self>, impl Future<Output = ()> + Send + use<>), SendError> {
        let activity = Arc::new(IoActivity::default());
        let io = TokioIo::new(ObservedStream::new(stream, Arc::clone(&activity)));
        let (requests, connection) =
            http1::Builder::new().handshake(io).await.map_err(|error| SendError::Connect(Arc::new(error)))?;
        let sender =
            Mutex::new(Sender { requests: Some(requests), is_busy: false, response: Arc::default() });
        let (codec_lock, is_kept) = (Mutex::default(), AtomicBool::new(false));
        let http1 =
            Arc::new(Self { codec_lock, sender, driver: AtomicWaker::new(), activity, is_kept, retire_at });
        let connection = connection.with_upgrades();
        Ok((Arc::clone(&http1), Http1Driver { connection, http1, upload_timer: None, pool }))
    }

    /// Returns whether the connection may carry another request.
    pub(super) fn is_usable(&self, now: Instant) -> bool {
        let is_open = self.sender.lock().requests.as_ref().is_some_and(|requests| !requests.is_closed());
        // A new connection carries one request, however low the age limit.
        is_open && (now < self.retire_at || !self.is_kept.load(Ordering::Relaxed))
    }

    /// Closes the connection unless a lease is out.
    pub(super) fn close(&self) {
        self.sender.lock().requests = None;
    }
}

/// Connection that is lent to one request. Dropping it unused returns it to the pool.
pub(super) struct Lease {
    http1: Option<Arc<Http1>>,
    pool: Weak<Pool>,
}

impl Lease {
    pub(super) fn new(http1: Arc<Http1>, pool: Weak<Pool>) -> Self {
        Self { http1: Some(http1), pool }
    }

    /// Sends a request with an absolute URI. Cancel safe: dropping the future, or the response before its end, closes
    /// the connection.
    pub(super) async fn send(
        mut self,
        mut request: Request<Body>,
        host: &HeaderValue,
        notice: Option<SentNotice>,
    ) -> Result<Response<ResponseBody>, Http1Failure> {
        let http1 = self.http1.take().expect("a lease is used once");
        let uri = to_origin_form(&mut request);
        let adds_host = !request.headers().contains_key(HOST);
        if adds_host {
            request.headers_mut().insert(HOST, host.clone());
        }
        let activity = Arc::clone(&http1.activity);
        hyper::ext::on_informational(&mut request, move |_| activity.count_interim());
        let restore = move |mut request: Request<Body>| {
            *request.uri_mut() = uri;
            if adds_host {
                request.headers_mut().remove(HOST);
            }
            Box::new(request)
        };

        let is_kept = http1.is_kept.load(Ordering::Relaxed);
        let closed = |error| if is_kept { SendError::Closed(error) } else { SendError::Reset(error) };
        let response_state = Arc::<ResponseState>::default();
        let sending = {
            let _codec = http1.codec_lock.lock();
            let mut sender = http1.sender.lock();
            let Sender { requests, is_busy, response: current } = &mut *sender;
            let Some(requests) = requests else {
                let error = SendError::Closed(Arc::new(ClosedByPool));
                return Err(Http1Failure::Unsent(restore(request), error));
            };
            http1.activity.begin(notice);
            (*is_busy, *current) = (true, Arc::clone(&response_state));
            requests.try_send_request(request)
        };
        let mut error = match sending.await {
            Ok(response) => {
                let body = |incoming| ResponseBody::http1(Http1Body::new(incoming, http1, response_state));
                return Ok(response.map(body));
            }
            Err(error) => error,
        };
        let request = error.take_message();
        let error = Arc::new(error.into_error());
        Err(match request {
            Some(request) => Http1Failure::Unsent(restore(request), closed(error)),
            None if http1.activity.is_flooded() => Http1Failure::Final(SendError::TooManyInterim),
            None if http1.activity.has_written() => Http1Failure::Final(SendError::Reset(error)),
            None => Http1Failure::Final(closed(error)),
        })
    }

    /// Returns whether the connection has carried a request before.
    pub(super) fn is_kept(&self) -> bool {
        self.http1.as_ref().is_some_and(|http1| http1.is_kept.load(Ordering::Relaxed))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let (Some(http1), Some(pool)) = (self.http1.take(), self.pool.upgrade()) {
            pool.put_back(http1);
        }
    }
}

/// Error of a lease whose connection the pool closed at the same moment.
#[derive(Debug, thiserror::Error)]
#[error("the pool closed the connection")]
struct ClosedByPool;

/// Reduces the URI to path and query, as HTTP/1.1 sends them to an origin. Returns the original URI.
fn to_origin_form(request: &mut Request<Body>) -> Uri {
    let target = request.uri().path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    std::mem::replace(request.uri_mut(), Uri::from(target))
}

/// Response body. Dropping it before its end closes the connection.
#[derive(Debug)]
pub(super) struct Http1Body {
    incoming: Incoming,
    /// `None` once the body has ended.
    open: Option<OpenResponse>,
}

struct OpenResponse {
    http1: Arc<Http1>,
    state: Arc<ResponseState>,
}

impl Http1Body {
    fn new(incoming: Incoming, http1: Arc<Http1>, state: Arc<ResponseState>) -> Self {
        let mut body = Self { incoming, open: Some(OpenResponse { http1, state }) };
        if body.incoming.is_end_stream() {
            body.end();
        }
        body
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.incoming).poll_frame(cx);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) || self.incoming.is_end_stream() {
            self.end();
        }
        polled
    }

    fn end(&mut self) {
        if let Some(open) = self.open.take() {
            open.state.is_complete.store(true, Ordering::Release);
            open.http1.driver.wake();
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl std::fmt::Debug for OpenResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OpenResponse")
    }
}

impl Drop for OpenResponse {
    fn drop(&mut self) {
        if !self.state.is_complete.load(Ordering::Acquire) {
            self.state.is_dropped.store(true, Ordering::Release);
            self.http1.driver.wake();
        }
    }
}

impl<C> Future for Http1Driver<C>
where
    C: Future<Output = hyper::Result<()>> + Unpin,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.http1.driver.register(cx.waker());
        let codec_lock = this.http1.codec_lock.lock();
        let polled = Pin::new(&mut this.connection).poll(cx);
        drop(codec_lock);
        match polled {
            Poll::Ready(ended) => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "upstream connection ended");
                }
                this.http1.close();
                Poll::Ready(())
            }
            Poll::Pending => {
                this.give_back();
                if this.is_abandoned(cx) {
                    tracing::debug!("response dropped or upload stalled, closing upstream connection");
                    this.http1.close();
                    return Poll::Ready(()); // aborts the request body
                }
                Poll::Pending
            }
        }
    }
}

impl<C> Http1Driver<C> {
    /// Returns whether the rest of the exchange is not needed: the response was dropped before its end, or it has
    /// ended and the peer has read nothing of the request body for [`UNREAD_UPLOAD_TIMEOUT`].
    fn is_abandoned(&mut self, cx: &mut Context<'_>) -> bool {
        let (is_dropped, is_complete) = {
            let Sender { is_busy, response, .. } = &*self.http1.sender.lock();
            let is = |flag: &AtomicBool| *is_busy && flag.load(Ordering::Acquire);
            (is(&response.is_dropped), is(&response.is_complete))
        };
        if !is_complete {
            self.upload_timer = None;
            return is_dropped;
        }
        loop {
            let begin = || {
                self.http1.activity.take_has_written();
                Box::pin(tokio::time::sleep(UNREAD_UPLOAD_TIMEOUT))
            };
            if self.upload_timer.get_or_insert_with(begin).as_mut().poll(cx).is_pending() {
                return false;
            }
            self.upload_timer = None;
            if !self.http1.activity.take_has_written() {
                return true;
            }
        }
    }

    /// Returns the connection to the pool once the codec is ready for another request.
    fn give_back(&self) {
        let mut sender = self.http1.sender.lock();
        let is_idle = sender.is_busy && sender.requests.as_ref().is_some_and(SendRequest::is_ready);
        if !is_idle {
            return;
        }
        sender.is_busy = false;
        drop(sender);
        self.http1.is_kept.store(true, Ordering::Relaxed);
        match self.pool.upgrade() {
            Some(pool) => pool.put_back(Arc::clone(&self.http1)),
            None => self.http1.close(),
        }
    }
}
