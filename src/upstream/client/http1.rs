//! A connection of HTTP/1.1: one request after the other.
//!
//! ```text
//! Pool ── lease ──▶ Http1 ── request ──▶ driver: hyper's codec over a Watched stream
//!   ▲                                     │
//!   └────────── idle again ───────────────┘
//! ```
//!
//! The driver is the connection's own task. It gives the connection back to the pool once the codec wants the next
//! request, so that no request has to watch for that. The codec is named in this file only: [`Lease::send`] and
//! the driver are all that another one would have to offer.

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

use super::answer::ResponseBody;
use super::connect::Stream;
use super::link::{Link, Notice, Watched};
use super::pool::Pool;
use super::{SendError, UNWANTED_AFTER};
use crate::protocol::body::Body;

/// A connection, whoever uses it.
pub(super) struct Http1 {
    /// Held while the codec runs and while a request is handed to it. The codec finds its queue empty and then says that
    /// it wants a request, in two steps: a request that came between them would make a busy connection look idle.
    handing: Mutex<()>,
    sender: Mutex<Sender>,
    /// Wakes the driver when what is known of the answer has changed.
    driver: AtomicWaker,
    link: Arc<Link>,
    /// Whether it has been given back before.
    is_kept: AtomicBool,
    /// When it becomes too old for another request.
    retire_at: Instant,
}

struct Sender {
    /// `None` once the connection is to close.
    requests: Option<SendRequest<Body>>,
    /// Whether it is lent out.
    is_busy: bool,
    /// The answer to the request that it is lent out for.
    answer: Arc<AnswerState>,
}

/// How an answer ended, for the codec: that goes on sending the request's body whatever becomes of the answer.
#[derive(Debug, Default)]
struct AnswerState {
    /// It was dropped before its end.
    is_dropped: AtomicBool,
    /// All of it was read.
    is_over: AtomicBool,
}

/// What was not answered.
pub(super) enum Http1Failure {
    /// Not a byte was sent: here it is again, as it was.
    Unsent(Box<Request<Body>>, SendError),
    /// Nor is it known to be unsent, or it cannot be had back.
    Final(SendError),
}

struct Http1Driver<C> {
    connection: C,
    http1: Arc<Http1>,
    /// Runs while the answer is over and the request's body is not.
    unwanted: Option<Pin<Box<Sleep>>>,
    pool: Weak<Pool>,
}

impl Http1 {
    /// Speaks HTTP/1.1 on the stream. The second is its driver, which has to be spawned and ends with the connection.
    pub(super) async fn handshake(
        stream: Stream,
        retire_at: Instant,
        pool: Weak<Pool>,
    ) -> Result<(Arc<Self>, impl Future<Output = ()> + Send + use<>), SendError> {
        let link = Arc::new(Link::default());
        let io = TokioIo::new(Watched::new(stream, Arc::clone(&link)));
        let (requests, connection) =
            http1::Builder::new().handshake(io).await.map_err(|error| SendError::Connect(Arc::new(error)))?;
        let sender = Mutex::new(Sender { requests: Some(requests), is_busy: false, answer: Arc::default() });
        let (handing, is_kept) = (Mutex::default(), AtomicBool::new(false));
        let http1 = Arc::new(Self { handing, sender, driver: AtomicWaker::new(), link, is_kept, retire_at });
        let connection = connection.with_upgrades();
        Ok((Arc::clone(&http1), Http1Driver { connection, http1, unwanted: None, pool }))
    }

    /// Whether it may be given another request.
    pub(super) fn is_usable(&self, now: Instant) -> bool {
        let is_open = self.sender.lock().requests.as_ref().is_some_and(|requests| !requests.is_closed());
        // A new one carries one request, however young connections have to be.
        is_open && (now < self.retire_at || !self.is_kept.load(Ordering::Relaxed))
    }

    /// Closes it, unless it is lent out.
    pub(super) fn close(&self) {
        self.sender.lock().requests = None;
    }
}

/// A connection that is lent to one request. Dropped unused, it goes back to the pool.
pub(super) struct Lease {
    http1: Option<Arc<Http1>>,
    pool: Weak<Pool>,
}

impl Lease {
    pub(super) fn new(http1: Arc<Http1>, pool: Weak<Pool>) -> Self {
        Self { http1: Some(http1), pool }
    }

    /// Sends the request, whose URI is absolute. Cancel safe: dropping the future closes the connection, and so does
    /// dropping the answer before its end.
    pub(super) async fn send(
        mut self,
        mut request: Request<Body>,
        host: &HeaderValue,
        notice: Option<Notice>,
    ) -> Result<Response<ResponseBody>, Http1Failure> {
        let http1 = self.http1.take().expect("a lease is used once");
        let uri = to_origin_form(&mut request);
        let adds_host = !request.headers().contains_key(HOST);
        if adds_host {
            request.headers_mut().insert(HOST, host.clone());
        }
        let link = Arc::clone(&http1.link);
        hyper::ext::on_informational(&mut request, move |_| link.interim());
        let as_it_was = move |mut request: Request<Body>| {
            *request.uri_mut() = uri;
            if adds_host {
                request.headers_mut().remove(HOST);
            }
            Box::new(request)
        };

        let is_kept = http1.is_kept.load(Ordering::Relaxed);
        let closed = |error| if is_kept { SendError::Closed(error) } else { SendError::Broke(error) };
        let answer = Arc::<AnswerState>::default();
        let sending = {
            let _handing = http1.handing.lock();
            let mut sender = http1.sender.lock();
            let Sender { requests, is_busy, answer: current } = &mut *sender;
            let Some(requests) = requests else {
                let error = SendError::Closed(Arc::new(ClosedByPool));
                return Err(Http1Failure::Unsent(as_it_was(request), error));
            };
            http1.link.begin(notice);
            (*is_busy, *current) = (true, Arc::clone(&answer));
            requests.try_send_request(request)
        };
        let mut error = match sending.await {
            Ok(response) => {
                let body = |incoming| ResponseBody::http1(Http1Body::new(incoming, http1, answer));
                return Ok(response.map(body));
            }
            Err(error) => error,
        };
        let request = error.take_message();
        let error = Arc::new(error.into_error());
        Err(match request {
            Some(request) => Http1Failure::Unsent(as_it_was(request), closed(error)),
            None if http1.link.is_flooded() => Http1Failure::Final(SendError::TooManyInterim),
            None if http1.link.has_written() => Http1Failure::Final(SendError::Broke(error)),
            None => Http1Failure::Final(closed(error)),
        })
    }

    /// Whether the connection has carried a request before.
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

/// Why a connection that the pool has just lent out has no codec any more.
#[derive(Debug, thiserror::Error)]
#[error("the pool closed the connection")]
struct ClosedByPool;

/// Leaves the path and query, as HTTP/1.1 sends them to an origin, and returns the URI as it was.
fn to_origin_form(request: &mut Request<Body>) -> Uri {
    let target = request.uri().path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    std::mem::replace(request.uri_mut(), Uri::from(target))
}

/// An answer's body. Its connection closes if it is dropped before its end.
#[derive(Debug)]
pub(super) struct Http1Body {
    incoming: Incoming,
    /// `None` once it is over.
    open: Option<OpenAnswer>,
}

struct OpenAnswer {
    http1: Arc<Http1>,
    state: Arc<AnswerState>,
}

impl Http1Body {
    fn new(incoming: Incoming, http1: Arc<Http1>, state: Arc<AnswerState>) -> Self {
        let mut body = Self { incoming, open: Some(OpenAnswer { http1, state }) };
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
            open.state.is_over.store(true, Ordering::Release);
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

impl std::fmt::Debug for OpenAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OpenAnswer")
    }
}

impl Drop for OpenAnswer {
    fn drop(&mut self) {
        if !self.state.is_over.load(Ordering::Acquire) {
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
        let handing = this.http1.handing.lock();
        let polled = Pin::new(&mut this.connection).poll(cx);
        drop(handing);
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
                if this.is_given_up(cx) {
                    tracing::debug!(
                        "answer was dropped, or its peer takes nothing more, closing the connection"
                    );
                    this.http1.close();
                    return Poll::Ready(()); // the request's body ends with it
                }
                Poll::Pending
            }
        }
    }
}

impl<C> Http1Driver<C> {
    /// Whether nobody wants the rest of the exchange: the answer was dropped before its end, or it is over and its peer has
    /// taken nothing of the request's body for [`UNWANTED_AFTER`].
    fn is_given_up(&mut self, cx: &mut Context<'_>) -> bool {
        let (is_dropped, is_over) = {
            let Sender { is_busy, answer, .. } = &*self.http1.sender.lock();
            let is = |flag: &AtomicBool| *is_busy && flag.load(Ordering::Acquire);
            (is(&answer.is_dropped), is(&answer.is_over))
        };
        if !is_over {
            self.unwanted = None;
            return is_dropped;
        }
        loop {
            let begin = || {
                self.http1.link.take_has_moved();
                Box::pin(tokio::time::sleep(UNWANTED_AFTER))
            };
            if self.unwanted.get_or_insert_with(begin).as_mut().poll(cx).is_pending() {
                return false;
            }
            self.unwanted = None;
            if !self.http1.link.take_has_moved() {
                return true;
            }
        }
    }

    /// Gives the connection back once the codec wants another request.
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
