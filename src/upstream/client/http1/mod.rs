//! HTTP/1.1 connection of the upstream: one request after the other.
//!
//! ```text
//! Pool ── lease ──► Http1 ── request ──► Exchange ── head ──► Http1Body: reads the response itself
//!   ▲                                     │                     │ or, if the request body is not sent yet,
//!   │                                     │                     ▼
//!   └────────── idle again ───────────────┴────────────── a task of its own
//! ```
//!
//! A connection has one owner at a time: the pool, its lease, or the request that is on it. So no request can get the
//! response of another, and to drop a request or its response closes the connection. hyper's client needs a task for each
//! connection, and two passages between tasks for each request; here the task of the request reads and writes.
//!
//! | file | content |
//! | --- | --- |
//! | `head` | writes the heads of requests, reads those of responses |
//! | `decoder` | bodies of responses |
//! | `upload` | sends a request with its body |
//! | `exchange` | a request and its response on one connection |
//! | `body` | the body of a response |

mod body;
mod decoder;
mod exchange;
mod head;
mod upload;

use std::future::poll_fn;
use std::io;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::BytesMut;
use http::{HeaderValue, Response, StatusCode};
use tokio::io::AsyncReadExt as _;
use tokio_util::task::TaskTracker;

pub(super) use self::body::Http1Body;
pub use self::decoder::{BodyDecoder, BodyFault, BodyPart};
use self::exchange::Exchange;
use self::head::{HeadFault, write_request};
pub use self::head::{HeadReader, ResponseStart};
use super::connect::Stream;
use super::pool::Pool;
use super::response_body::ResponseBody;
use super::{OutgoingRequest, SendError, SentNotice};
use crate::protocol::body::{Body, BoxError};

/// Bytes that a connection reads at once, at least and at most.
const READ_SIZES: (usize, usize) = (8 << 10, 256 << 10);

/// An open connection without a request.
#[derive(Debug)]
pub(super) struct Http1 {
    stream: Stream,
    /// Bytes that are received and not decoded.
    read: BytesMut,
    read_size: usize,
    /// Whether it has carried a request.
    is_kept: bool,
    /// Age limit: no more requests after this time.
    retire_at: Instant,
}

/// Reason why a connection failed during a request.
#[derive(Debug, thiserror::Error)]
pub enum Http1Fault {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the upstream closed the connection before it responded")]
    Closed,
    #[error(transparent)]
    Head(#[from] HeadFault),
    #[error(transparent)]
    Body(#[from] BodyFault),
    #[error("the request body failed: {0}")]
    Upload(BoxError),
    #[error("the request body does not have its declared length")]
    UploadLength,
    #[error("the upstream sent too many interim responses")]
    TooManyInterim,
    /// The task of the exchange has ended.
    #[error("the exchange with the upstream was aborted")]
    Aborted,
}

/// Reason why a request got no response.
pub(super) enum Http1Failure {
    /// No byte was sent. Contains the request as it was.
    Unsent(Box<OutgoingRequest>, SendError),
    /// The request may have been sent, or cannot be recovered.
    Final(SendError),
}

impl Http1 {
    pub(super) fn new(stream: Stream, retire_at: Instant) -> Box<Self> {
        let (read, read_size) = (BytesMut::new(), READ_SIZES.0);
        Box::new(Self { stream, read, read_size, is_kept: false, retire_at })
    }

    /// Returns whether the connection is too old for another request. A new one carries one, however low the age limit.
    pub(super) fn is_retired(&self, now: Instant) -> bool {
        self.is_kept && now >= self.retire_at
    }

    /// Returns whether the peer has closed the connection, or has sent bytes that no request waits for.
    pub(super) fn is_broken(&mut self) -> bool {
        self.stream.is_readable()
    }

    /// Reads more bytes. Returns their number; 0 at the end of the stream. Has no buffer while the peer is silent.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        ready!(self.stream.poll_read_ready(cx))?;
        self.read.reserve(self.read_size);
        let room = self.read.capacity() - self.read.len();
        let reading = std::pin::pin!(self.stream.read_buf(&mut self.read));
        let count = ready!(reading.poll(cx))?;
        if count == room {
            self.read_size = (2 * self.read_size).min(READ_SIZES.1);
        }
        Poll::Ready(Ok(count))
    }
}

/// Connection that is lent to one request. Dropping it unused returns it to the pool.
pub(super) struct Lease {
    http1: Option<Box<Http1>>,
    pool: Weak<Pool>,
}

impl Lease {
    pub(super) fn new(http1: Box<Http1>, pool: Weak<Pool>) -> Self {
        Self { http1: Some(http1), pool }
    }

    /// Returns whether the connection has carried a request before.
    pub(super) fn is_kept(&self) -> bool {
        self.http1.as_ref().is_some_and(|http1| http1.is_kept)
    }

    /// Sends a request with an absolute URI. An upload that outlasts the head of the response gets one of `tasks`.
    ///
    /// Cancel safe: dropping the future, or the response before its end, closes
    /// the connection.
    pub(super) async fn send(
        mut self,
        mut request: Box<OutgoingRequest>,
        host: &HeaderValue,
        notice: Option<SentNotice>,
        tasks: &TaskTracker,
    ) -> Result<Response<ResponseBody>, Http1Failure> {
        let http1 = self.http1.take().expect("a lease is used once");
        let is_kept = http1.is_kept;
        let (head, framing) = write_request(&request, host);
        let body = framing.map(|framing| (std::mem::replace(&mut request.body, Body::empty()), framing));
        let mut exchange = Exchange::new(http1, head, body, notice, self.pool.clone());
        let start = match poll_fn(|cx| exchange.poll_head(&request.head.method, cx)).await {
            Ok(start) => start,
            Err(fault) => return Err(failure(fault, exchange, is_kept, request)),
        };
        let (head, mut decoder) = start.response.into_parts();
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            let mut response = Response::from_parts(head, ResponseBody::http1(Http1Body::ended()));
            response.extensions_mut().insert(exchange.into_upgraded());
            return Ok(response);
        }
        let body = match exchange.take_complete_body(&mut decoder) {
            Some(bytes) => {
                exchange.finish(start.keeps_alive);
                ResponseBody::complete(bytes)
            }
            None => ResponseBody::http1(Http1Body::new(exchange, decoder, start.keeps_alive, tasks)),
        };
        Ok(Response::from_parts(head, body))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let (Some(http1), Some(pool)) = (self.http1.take(), self.pool.upgrade()) {
            pool.put_back(http1);
        }
    }
}

fn failure(
    fault: Http1Fault,
    exchange: Exchange,
    is_kept: bool,
    mut request: Box<OutgoingRequest>,
) -> Http1Failure {
    if matches!(fault, Http1Fault::TooManyInterim) {
        return Http1Failure::Final(SendError::TooManyInterim);
    }
    let closed = |error| if is_kept { SendError::Closed(error) } else { SendError::Reset(error) };
    let (has_written, unsent) = exchange.into_unsent_body();
    let error = Arc::new(fault);
    match unsent {
        Some(body) => {
            request.body = body.unwrap_or_else(Body::empty);
            Http1Failure::Unsent(request, closed(error))
        }
        None if has_written => Http1Failure::Final(SendError::Reset(error)),
        None => Http1Failure::Final(closed(error)),
    }
}
