//! Connection pool of one upstream: which connection a request gets, when another is dialed, when one is closed.
//!
//! ```text
//! request ──► take: a slot on an HTTP/2 connection, else an idle HTTP/1.1 connection
//!             └─ none ──► wait in order of arrival ◄── a connection returned, or a slot released
//!                          │                       ◄── a new connection
//!                          └─ too few dials ──► dial, in a task of the pool
//! ```
//!
//! The pool owns the dials. If the request that caused a dial is cancelled, others use its connection. A dial serves
//! as many waiting requests as its connection will probably carry: one over HTTP/1.1, the peer's limit over HTTP/2,
//! and all of them until the version is known. So a burst on a cold pool makes one TLS handshake. A failed dial fails
//! the requests that it was to serve, if they waited before it began. The others get another dial.
//!
//! The pool does not look at requests. Its connections ([`Lease`], [`StreamSlot`]) return themselves when dropped.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use http::{Request, Response};
use http_body::Body as _;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use super::connect::{Connector, timed_out};
use super::http1::{Http1, Http1Failure, Lease};
use super::http2::{self, Http2, Http2Failure, Http2Status, MAX_STREAMS, StreamSlot};
use super::response_body::ResponseBody;
use super::target::BaseUrl;
use super::{OutgoingRequest, ResendPolicy, SendError, SentNotice};
use crate::clock;
use crate::protocol::body::Body;

/// Time that an idle HTTP/1.1 connection stays open. Servers commonly close theirs after 60 s or more.
const MAX_UNUSED: Duration = Duration::from_secs(30);
/// Interval of the search for connections that have been idle for too long.
const REAP_INTERVAL: Duration = Duration::from_secs(10);
/// Most idle HTTP/1.1 connections.
const MAX_IDLE: usize = 64;
/// Most resends of a request that no upstream has processed.
const MAX_RESENDS: u32 = 3;

pub(super) struct Pool {
    base: Arc<BaseUrl>,
    connector: Connector,
    max_age: Duration,
    resend: ResendPolicy,
    tasks: TaskTracker,
    state: Mutex<PoolState>,
    myself: Weak<Self>,
}

struct PoolState {
    /// HTTP/1.1, the most recently used last.
    idle: VecDeque<IdleHttp1>,
    /// HTTP/2, those that take requests.
    shared: Vec<Arc<Http2>>,
    /// In order of arrival.
    waiting: BTreeMap<u64, oneshot::Sender<Result<PooledConnection, SendError>>>,
    /// Dials in progress.
    dials: usize,
    /// Numbers waiting requests, and dials when they begin.
    next: u64,
    /// Expected concurrent requests on the next connection.
    expected: usize,
    is_reaping: bool,
}

struct IdleHttp1 {
    http1: Box<Http1>,
    since: Instant,
}

/// Connection, or a part of one, for a single request.
enum PooledConnection {
    Http1(Lease),
    Http2(StreamSlot),
}

#[derive(Debug, thiserror::Error)]
#[error("the upstream closed the connection before it sent its stream limit")]
struct NoSettings;

#[derive(Debug, thiserror::Error)]
#[error("the upstream allows no stream on a new connection")]
struct NoStreams;

#[derive(Debug, thiserror::Error)]
#[error("the upstream closed several connections before the request was sent")]
struct ClosedBeforeSending;

/// Connections for waiting requests. They are sent after the lock is released.
type Handover =
    Vec<(oneshot::Sender<Result<PooledConnection, SendError>>, Result<PooledConnection, SendError>)>;

impl Pool {
    /// `max_age`: age at which a connection takes no more requests.
    pub(super) fn new(
        base: Arc<BaseUrl>,
        connector: Connector,
        max_age: Duration,
        resend: ResendPolicy,
    ) -> Arc<Self> {
        let expected = if connector.may_speak_http2() { usize::MAX } else { 1 };
        let state = PoolState {
            idle: VecDeque::new(),
            shared: Vec::new(),
            waiting: BTreeMap::new(),
            dials: 0,
            next: 0,
            expected,
            is_reaping: false,
        };
        Arc::new_cyclic(|myself| Self {
            base,
            connector,
            max_age,
            resend,
            tasks: TaskTracker::new(),
            state: Mutex::new(state),
            myself: myself.clone(),
        })
    }

    /// Sends a request with an absolute URI. Uses the notice when the request is on a connection. Cancel safe:
    /// dropping the future, or the response before its end, cancels the request.
    pub(super) async fn send(
        &self,
        mut request: Box<OutgoingRequest>,
        mut notice: Option<SentNotice>,
    ) -> Result<Response<ResponseBody>, SendError> {
        let mut resends = 0;
        loop {
            let (unsent, error) = match self.connection().await? {
                PooledConnection::Http1(lease) => {
                    let is_kept = lease.is_kept();
                    match lease.send(request, self.base.host(), notice.take(), &self.tasks).await {
                        Ok(response) => return Ok(response),
                        Err(Http1Failure::Unsent(unsent, error)) if is_kept => (unsent, error),
                        Err(Http1Failure::Unsent(_, error) | Http1Failure::Final(error)) => {
                            return Err(error);
                        }
                    }
                }
                PooledConnection::Http2(slot) => {
                    request.added.move_into(&mut request.head.headers);
                    let OutgoingRequest { head: spare, body, .. } = *request;
                    let has_no_body = body.is_end_stream();
                    resends += 1;
                    let sending = http2::send(slot, spare.clone(), body, notice.take(), &self.tasks);
                    // Boxed, so that a request over HTTP/1.1 does not move its state.
                    match Box::pin(sending).await {
                        Ok(response) => return Ok(response),
                        // No byte was sent and no notice used, so this resend is safe for polls, too.
                        Err(Http2Failure::NotAccepted(body, unused)) if resends <= MAX_RESENDS => {
                            request = Request::from_parts(spare, body).into();
                            notice = unused;
                            continue;
                        }
                        Err(Http2Failure::NotAccepted(..)) => {
                            return Err(SendError::Closed(Arc::new(ClosedBeforeSending)));
                        }
                        Err(Http2Failure::Unprocessed(error)) => {
                            let error = SendError::Closed(Arc::new(error));
                            if !has_no_body || resends > MAX_RESENDS {
                                return Err(error);
                            }
                            (Request::from_parts(spare, Body::empty()).into(), error)
                        }
                        Err(Http2Failure::Final(error)) => return Err(error),
                    }
                }
            };
            if self.resend == ResendPolicy::Never {
                return Err(error);
            }
            tracing::trace!(%error, "resending a request that the upstream has not processed");
            request = unsent;
        }
    }

    /// Returns an open connection with room, unless other requests wait for one. Else waits for one, at most as long
    /// as a dial may take.
    async fn connection(&self) -> Result<PooledConnection, SendError> {
        let (receiver, ticket, dials) = {
            let mut state = self.state.lock();
            if state.waiting.is_empty()
                && let Some(connection) = state.take(&self.myself, clock::now())
            {
                return Ok(connection);
            }
            let (sender, receiver) = oneshot::channel();
            let ticket = state.next_number();
            state.waiting.insert(ticket, sender);
            (receiver, ticket, state.count_needed_dials())
        };
        let _waiting = QueuedRequest { pool: self, ticket };
        self.dial(dials);
        match tokio::time::timeout(self.connector.timeout(), receiver).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(_)) | Err(_) => Err(timed_out()),
        }
    }

    fn dial(&self, dials: usize) {
        for _ in 0..dials {
            if let Some(pool) = self.myself.upgrade() {
                self.tasks.spawn(async move { pool.dial_once().await });
            }
        }
    }

    async fn dial_once(&self) {
        let number = self.state.lock().next_number();
        let opened = self.open(number).await;
        let (handover, dials, is_reaper_due) = {
            let mut state = self.state.lock();
            state.dials -= 1;
            let handover = match opened {
                Ok(NewConnection::Http1(http1)) => {
                    state.expected = 1;
                    state.idle.push_back(IdleHttp1 { http1, since: clock::now() });
                    self.hand_out(&mut state)
                }
                Ok(NewConnection::Http2(http2)) => {
                    state.expected = state.expected.min(MAX_STREAMS);
                    state.shared.push(http2);
                    self.hand_out(&mut state)
                }
                Err(error) => state.fail_waiting(number, &error),
            };
            (handover, state.count_needed_dials(), state.begin_reaping())
        };
        hand_over(handover);
        self.dial(dials);
        if is_reaper_due {
            self.spawn_reaper();
        }
    }

    async fn open(&self, number: u64) -> Result<NewConnection, SendError> {
        let connected = self.connector.connect().await?;
        // Jitter keeps connections that were opened together from ending together.
        let age = self.max_age.mul_f64(0.9 + 0.2 * fastrand::f64());
        let retire_at = clock::now() + age;
        if connected.is_http2 {
            let settings_timeout = self.connector.timeout();
            let (http2, driver) =
                Http2::handshake(connected.stream, retire_at, number, settings_timeout, self.myself.clone())
                    .await?;
            self.tasks.spawn(driver);
            Ok(NewConnection::Http2(http2))
        } else {
            Ok(NewConnection::Http1(Http1::new(connected.stream, retire_at)))
        }
    }

    /// Takes back an HTTP/1.1 connection that is ready for the next request.
    pub(super) fn put_back(&self, http1: Box<Http1>) {
        let now = clock::now();
        let (handover, is_reaper_due) = {
            let mut state = self.state.lock();
            if http1.is_retired(now) || (state.idle.len() >= MAX_IDLE && state.waiting.is_empty()) {
                return;
            }
            state.idle.push_back(IdleHttp1 { http1, since: now });
            (self.hand_out(&mut state), state.begin_reaping())
        };
        hand_over(handover);
        if is_reaper_due {
            self.spawn_reaper();
        }
    }

    /// Serves waiting requests after a slot on an HTTP/2 connection may have become free.
    pub(super) fn on_room(&self) {
        let handover = {
            let mut state = self.state.lock();
            self.hand_out(&mut state)
        };
        hand_over(handover);
    }

    /// Applies a changed stream limit of an HTTP/2 peer. The first limit may be 0, which fails the dial.
    pub(super) fn limit_changed(&self, status: &Http2Status, is_first: bool) {
        let (handover, dials) = {
            let mut state = self.state.lock();
            state.expected = status.streams().max(1);
            let handover = if is_first && status.streams() == 0 {
                state.shared.retain(|http2| !http2.is(status));
                state.fail_waiting(status.dial(), &SendError::Connect(Arc::new(NoStreams)))
            } else {
                self.hand_out(&mut state)
            };
            (handover, state.count_needed_dials())
        };
        hand_over(handover);
        self.dial(dials);
    }

    /// Removes an HTTP/2 connection that takes no more requests. If its limit was never received, the dial has
    /// failed.
    pub(super) fn remove(&self, status: &Http2Status) {
        let (handover, dials) = {
            let mut state = self.state.lock();
            let before = state.shared.len();
            state.shared.retain(|http2| !http2.is(status));
            let handover = if state.shared.len() < before && !status.is_ready() {
                state.fail_waiting(status.dial(), &SendError::Connect(Arc::new(NoSettings)))
            } else {
                Handover::new()
            };
            (handover, state.count_needed_dials())
        };
        hand_over(handover);
        self.dial(dials);
    }

    /// Finds connections for waiting requests.
    fn hand_out(&self, state: &mut PoolState) -> Handover {
        let mut handover = Handover::new();
        if state.waiting.is_empty() {
            return handover;
        }
        let now = clock::now();
        while !state.waiting.is_empty()
            && let Some(connection) = state.take(&self.myself, now)
            && let Some((_, waiting)) = state.waiting.pop_first()
        {
            handover.push((waiting, Ok(connection)));
        }
        handover
    }

    /// Closes idle HTTP/1.1 connections after their time, until none is left.
    fn spawn_reaper(&self) {
        let pool = self.myself.clone();
        self.tasks.spawn(async move {
            loop {
                tokio::time::sleep(REAP_INTERVAL).await;
                match pool.upgrade() {
                    Some(pool) if pool.reap() => {}
                    Some(_) | None => return,
                }
            }
        });
    }

    /// Closes those that are idle for too long. Returns whether some are left.
    fn reap(&self) -> bool {
        let mut state = self.state.lock();
        let now = clock::now();
        state.idle.retain_mut(|idle| idle.is_usable(now));
        state.is_reaping = !state.idle.is_empty();
        state.is_reaping
    }

    /// Returns the number of requests that wait for a connection.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.state.lock().waiting.len()
    }

    /// Returns the number of connections that take requests or are idle.
    #[cfg(test)]
    pub(super) fn usable(&self) -> usize {
        let mut state = self.state.lock();
        let now = clock::now();
        state.shared.retain(|http2| http2.is_usable(now));
        state.idle.retain_mut(|idle| idle.is_usable(now));
        state.shared.len() + state.idle.len()
    }

    /// Returns the number of slots taken on HTTP/2 connections.
    #[cfg(test)]
    pub(super) fn slots_taken(&self) -> usize {
        self.state.lock().shared.iter().map(|http2| http2.slots_taken()).sum()
    }
}

impl IdleHttp1 {
    fn is_usable(&mut self, now: Instant) -> bool {
        let is_recent = now.saturating_duration_since(self.since) < MAX_UNUSED;
        is_recent && !self.http1.is_retired(now) && !self.http1.is_broken()
    }
}

/// Connection that a dial has opened.
enum NewConnection {
    Http1(Box<Http1>),
    Http2(Arc<Http2>),
}

impl PoolState {
    fn next_number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn take(&mut self, pool: &Weak<Pool>, now: Instant) -> Option<PooledConnection> {
        self.shared.retain(|http2| http2.is_usable(now));
        if let Some(http2) = self.shared.iter().find(|http2| http2.has_room()) {
            return Some(PooledConnection::Http2(StreamSlot::take(http2, pool.clone())));
        }
        while let Some(mut idle) = self.idle.pop_back() {
            if idle.is_usable(now) {
                return Some(PooledConnection::Http1(Lease::new(idle.http1, pool.clone())));
            }
        }
        None
    }

    /// Returns whether idle connections need a reaper, and counts on the caller to start it.
    fn begin_reaping(&mut self) -> bool {
        let is_due = !self.is_reaping && !self.idle.is_empty();
        self.is_reaping |= is_due;
        is_due
    }

    /// Returns how many waiting requests the current dials, and connections whose limit is unknown, will probably
    /// serve.
    fn expected_capacity(&self) -> usize {
        let unready = self.shared.iter().filter(|http2| !http2.is_ready()).count();
        self.expected.saturating_mul(self.dials + unready)
    }

    /// Returns how many more dials the waiting requests need, and counts them as in progress. The caller has to begin
    /// them.
    fn count_needed_dials(&mut self) -> usize {
        let dials = self.waiting.len().saturating_sub(self.expected_capacity()).div_ceil(self.expected);
        self.dials += dials;
        dials
    }

    /// Fails the requests that the dial with this number was to serve, if they waited before it began. Takes the last
    /// of them, because connections that still come go to the first.
    fn fail_waiting(&mut self, number: u64, error: &SendError) -> Handover {
        let count = self.waiting.len().saturating_sub(self.expected_capacity());
        let failed: Vec<u64> =
            self.waiting.range(..number).rev().map(|(ticket, _)| *ticket).take(count).collect();
        let failed = failed.iter().filter_map(|ticket| self.waiting.remove(ticket));
        failed.map(|waiting| (waiting, Err(error.clone()))).collect()
    }
}

/// A waiting request. Dropping it leaves the queue.
struct QueuedRequest<'p> {
    pool: &'p Pool,
    ticket: u64,
}

impl Drop for QueuedRequest<'_> {
    fn drop(&mut self) {
        self.pool.state.lock().waiting.remove(&self.ticket);
    }
}

/// Sends connections to requests. A connection whose request was cancelled returns itself to the pool.
fn hand_over(handover: Handover) {
    for (waiting, connection) in handover {
        drop(waiting.send(connection));
    }
}
