//! The connections to the upstream: which one a request gets, when another is opened, when one is let go.
//!
//! ```text
//! request ─▶ take: a slot on an HTTP/2 connection, else an unused HTTP/1.1 one
//!            └─ none ─▶ wait, first come, first served ◀─ given back, or room again
//!                         │                            ◀─ a dial's connection
//!                         └─ too few on their way ─▶ dial, a task of the pool's
//! ```
//!
//! Dials belong to the pool: who asked for one may go, and the others still get it. A dial stands for as many
//! waiting requests as its connection will probably carry: one over HTTP/1.1; the peer's limit over HTTP/2; all of
//! them until it is known which is spoken. So a burst on a cold pool makes one handshake. A dial that fails fails
//! those for whom it stood, if they came before it began; the others get another one.
//!
//! The pool knows no request. What it hands out ([`Lease`], [`StreamSlot`]) gives itself back.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use http::{Request, Response};
use http_body::Body as _;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use super::answer::ResponseBody;
use super::connect::{Connector, timed_out};
use super::http1::{Http1, Http1Failure, Lease};
use super::http2::{self, Driven, Http2, Http2Failure, MAX_STREAMS, StreamSlot};
use super::link::Notice;
use super::target::Base;
use super::{ResendPolicy, SendError};
use crate::clock;
use crate::protocol::body::Body;

/// How long an unused HTTP/1.1 connection stays open; servers commonly close theirs after 60 s or more.
const MAX_UNUSED: Duration = Duration::from_secs(30);
/// How often those that have been unused for too long are looked for.
const REAP_EVERY: Duration = Duration::from_secs(10);
/// Unused HTTP/1.1 connections that are kept.
const MAX_IDLE: usize = 64;
/// How often a request is sent again that no upstream has looked at.
const MAX_RESENDS: u32 = 3;

/// The connections to one upstream.
pub(super) struct Pool {
    base: Arc<Base>,
    connector: Connector,
    max_age: Duration,
    resend: ResendPolicy,
    tasks: TaskTracker,
    state: Mutex<PoolState>,
    myself: Weak<Self>,
}

struct PoolState {
    /// HTTP/1.1, the one used last at the end.
    idle: VecDeque<Idle>,
    /// HTTP/2, those that take requests.
    shared: Vec<Arc<Http2>>,
    /// In the order of their coming.
    waiting: BTreeMap<u64, oneshot::Sender<Result<Connection, SendError>>>,
    /// Dials on their way.
    dials: usize,
    /// Numbers waiting requests and the beginnings of dials.
    next: u64,
    /// How many requests the next connection will carry at once.
    expected: usize,
    is_reaping: bool,
}

struct Idle {
    http1: Arc<Http1>,
    since: Instant,
}

/// What a request is sent on.
enum Connection {
    Http1(Lease),
    Http2(StreamSlot),
}

#[derive(Debug, thiserror::Error)]
#[error("the upstream closed the connection before it told how many requests it may carry")]
struct NoSettings;

#[derive(Debug, thiserror::Error)]
#[error("the upstream allows no request on a new connection")]
struct NoStreams;

#[derive(Debug, thiserror::Error)]
#[error("the upstream closed one connection after the other before a request was sent")]
struct Refused;

/// Connections for requests that waited, to be handed over without the lock.
type Handed = Vec<(oneshot::Sender<Result<Connection, SendError>>, Result<Connection, SendError>)>;

impl Pool {
    /// `max_age`: how old a connection may become before it takes no more requests.
    pub(super) fn new(
        base: Arc<Base>,
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

    /// Sends the request, whose URI is absolute, and tells the notice when it is on its way. Cancel safe: dropping
    /// the future, or the answer before its end, ends the request.
    pub(super) async fn send(
        &self,
        mut request: Request<Body>,
        mut notice: Option<Notice>,
    ) -> Result<Response<ResponseBody>, SendError> {
        let mut resends = 0;
        loop {
            let (unsent, error) = match self.connection().await? {
                Connection::Http1(lease) => {
                    let is_kept = lease.is_kept();
                    match lease.send(request, self.base.host(), notice.take()).await {
                        Ok(response) => return Ok(response),
                        Err(Http1Failure::Unsent(unsent, error)) if is_kept => (*unsent, error),
                        Err(Http1Failure::Unsent(_, error) | Http1Failure::Final(error)) => {
                            return Err(error);
                        }
                    }
                }
                Connection::Http2(slot) => {
                    let (spare, body) = request.into_parts();
                    let is_whole = body.is_end_stream();
                    resends += 1;
                    match http2::send(slot, spare.clone(), body, notice.take(), &self.tasks).await {
                        Ok(response) => return Ok(response),
                        // Nothing was sent, and nobody was told that it was: that goes for polls too.
                        Err(Http2Failure::Refused(body, unused)) if resends <= MAX_RESENDS => {
                            request = Request::from_parts(spare, body);
                            notice = unused;
                            continue;
                        }
                        Err(Http2Failure::Refused(..)) => return Err(SendError::Closed(Arc::new(Refused))),
                        Err(Http2Failure::Unprocessed(error)) => {
                            let error = SendError::Closed(Arc::new(error));
                            if !is_whole || resends > MAX_RESENDS {
                                return Err(error);
                            }
                            (Request::from_parts(spare, Body::empty()), error)
                        }
                        Err(Http2Failure::Final(error)) => return Err(error),
                    }
                }
            };
            if self.resend == ResendPolicy::Nothing {
                return Err(error);
            }
            tracing::trace!(%error, "sending a request again that nobody has seen");
            request = unsent;
        }
    }

    /// Returns a connection that is open and has room, unless others wait for one; else waits, as long as opening one
    /// may take.
    async fn connection(&self) -> Result<Connection, SendError> {
        let (given, ticket, dials) = {
            let mut state = self.state.lock();
            if state.waiting.is_empty()
                && let Some(connection) = state.take(&self.myself, clock::now())
            {
                return Ok(connection);
            }
            let (give, given) = oneshot::channel();
            let ticket = state.number();
            state.waiting.insert(ticket, give);
            (given, ticket, state.start_dials())
        };
        let _waiting = QueuedRequest { pool: self, ticket };
        self.dial(dials);
        match tokio::time::timeout(self.connector.timeout(), given).await {
            Ok(Ok(given)) => given,
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
        let number = self.state.lock().number();
        let opened = self.open(number).await;
        let (handed, dials) = {
            let mut state = self.state.lock();
            state.dials -= 1;
            let handed = match opened {
                Ok(Opened::Http1(http1)) => {
                    state.expected = 1;
                    state.idle.push_back(Idle { http1, since: clock::now() });
                    self.hand_out(&mut state)
                }
                Ok(Opened::Http2(http2)) => {
                    state.expected = state.expected.min(MAX_STREAMS);
                    state.shared.push(http2);
                    self.hand_out(&mut state)
                }
                Err(error) => state.fail(number, &error),
            };
            (handed, state.start_dials())
        };
        hand_over(handed);
        self.dial(dials);
        self.reap_later();
    }

    async fn open(&self, number: u64) -> Result<Opened, SendError> {
        let connected = self.connector.connect().await?;
        // Jittered, so that connections opened together do not end together.
        let age = self.max_age.mul_f64(0.9 + 0.2 * fastrand::f64());
        let (retire_at, pool) = (clock::now() + age, self.myself.clone());
        if connected.is_http2 {
            let patience = self.connector.timeout();
            let (http2, driver) =
                Http2::handshake(connected.stream, retire_at, number, patience, pool).await?;
            self.tasks.spawn(driver);
            Ok(Opened::Http2(http2))
        } else {
            let (http1, driver) = Http1::handshake(connected.stream, retire_at, pool).await?;
            self.tasks.spawn(driver);
            Ok(Opened::Http1(http1))
        }
    }

    /// Takes back an HTTP/1.1 connection that wants the next request.
    pub(super) fn put_back(&self, http1: Arc<Http1>) {
        let now = clock::now();
        let handed = {
            let mut state = self.state.lock();
            if !http1.is_usable(now) || (state.idle.len() >= MAX_IDLE && state.waiting.is_empty()) {
                http1.close();
                return;
            }
            state.idle.push_back(Idle { http1, since: now });
            self.hand_out(&mut state)
        };
        hand_over(handed);
        self.reap_later();
    }

    /// There may be room on an HTTP/2 connection again.
    pub(super) fn has_room(&self) {
        let handed = {
            let mut state = self.state.lock();
            self.hand_out(&mut state)
        };
        hand_over(handed);
    }

    /// The peer of an HTTP/2 connection has changed its limit. The first one may be none at all.
    pub(super) fn limit_changed(&self, driven: &Driven, is_first: bool) {
        let (handed, dials) = {
            let mut state = self.state.lock();
            state.expected = driven.streams().max(1);
            let handed = if is_first && driven.streams() == 0 {
                state.shared.retain(|http2| !http2.is(driven));
                state.fail(driven.dial(), &SendError::Connect(Arc::new(NoStreams)))
            } else {
                self.hand_out(&mut state)
            };
            (handed, state.start_dials())
        };
        hand_over(handed);
        self.dial(dials);
    }

    /// An HTTP/2 connection takes no more requests. One that has never told its limit is a dial that failed.
    pub(super) fn forget(&self, driven: &Driven) {
        let (handed, dials) = {
            let mut state = self.state.lock();
            let before = state.shared.len();
            state.shared.retain(|http2| !http2.is(driven));
            let handed = if state.shared.len() < before && !driven.is_ready() {
                state.fail(driven.dial(), &SendError::Connect(Arc::new(NoSettings)))
            } else {
                Handed::new()
            };
            (handed, state.start_dials())
        };
        hand_over(handed);
        self.dial(dials);
    }

    /// Finds connections for those that wait.
    fn hand_out(&self, state: &mut PoolState) -> Handed {
        let mut handed = Handed::new();
        if state.waiting.is_empty() {
            return handed;
        }
        let now = clock::now();
        while !state.waiting.is_empty()
            && let Some(connection) = state.take(&self.myself, now)
            && let Some((_, waiting)) = state.waiting.pop_first()
        {
            handed.push((waiting, Ok(connection)));
        }
        handed
    }

    /// Sees to it that unused HTTP/1.1 connections do not stay for ever.
    fn reap_later(&self) {
        {
            let mut state = self.state.lock();
            if state.is_reaping || state.idle.is_empty() {
                return;
            }
            state.is_reaping = true;
        }
        let pool = self.myself.clone();
        self.tasks.spawn(async move {
            loop {
                tokio::time::sleep(REAP_EVERY).await;
                match pool.upgrade() {
                    Some(pool) if pool.reap() => {}
                    Some(_) | None => return,
                }
            }
        });
    }

    /// Returns whether some are left.
    fn reap(&self) -> bool {
        let mut state = self.state.lock();
        let now = clock::now();
        state.idle.retain(|idle| {
            let is_usable = idle.is_usable(now);
            if !is_usable {
                idle.http1.close();
            }
            is_usable
        });
        state.is_reaping = !state.idle.is_empty();
        state.is_reaping
    }

    /// Requests that wait for a connection.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.state.lock().waiting.len()
    }

    /// Connections that take requests, or have just been unused.
    #[cfg(test)]
    pub(super) fn usable(&self) -> usize {
        let mut state = self.state.lock();
        let now = clock::now();
        state.shared.retain(|http2| http2.is_usable(now));
        state.shared.len() + state.idle.len()
    }

    /// Slots taken on HTTP/2 connections.
    #[cfg(test)]
    pub(super) fn taken(&self) -> usize {
        self.state.lock().shared.iter().map(|http2| http2.taken()).sum()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.state.get_mut().idle.iter().for_each(|idle| idle.http1.close());
    }
}

impl Idle {
    fn is_usable(&self, now: Instant) -> bool {
        self.http1.is_usable(now) && now.saturating_duration_since(self.since) < MAX_UNUSED
    }
}

/// A connection of a dial's.
enum Opened {
    Http1(Arc<Http1>),
    Http2(Arc<Http2>),
}

impl PoolState {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn take(&mut self, pool: &Weak<Pool>, now: Instant) -> Option<Connection> {
        self.shared.retain(|http2| http2.is_usable(now));
        if let Some(http2) = self.shared.iter().find(|http2| http2.has_room()) {
            return Some(Connection::Http2(StreamSlot::take(http2, pool.clone())));
        }
        while let Some(idle) = self.idle.pop_back() {
            if idle.is_usable(now) {
                return Some(Connection::Http1(Lease::new(Arc::clone(&idle.http1), pool.clone())));
            }
            idle.http1.close();
        }
        None
    }

    /// Waiting requests that dials on their way, and connections whose limit is not known yet, will probably serve.
    fn coming(&self) -> usize {
        let unready = self.shared.iter().filter(|http2| !http2.is_ready()).count();
        self.expected.saturating_mul(self.dials + unready)
    }

    /// Counts the dials that those who wait need beside those on their way; they have to be begun.
    fn start_dials(&mut self) -> usize {
        let dials = self.waiting.len().saturating_sub(self.coming()).div_ceil(self.expected);
        self.dials += dials;
        dials
    }

    /// Those for whom the dial of this number stood get its error, if they were there when it began: the last of them,
    /// as what is still coming goes to the first.
    fn fail(&mut self, number: u64, error: &SendError) -> Handed {
        let count = self.waiting.len().saturating_sub(self.coming());
        let failed: Vec<u64> =
            self.waiting.range(..number).rev().map(|(ticket, _)| *ticket).take(count).collect();
        let failed = failed.iter().filter_map(|ticket| self.waiting.remove(ticket));
        failed.map(|waiting| (waiting, Err(error.clone()))).collect()
    }
}

/// A request that waits. Dropped, it waits no more.
struct QueuedRequest<'p> {
    pool: &'p Pool,
    ticket: u64,
}

impl Drop for QueuedRequest<'_> {
    fn drop(&mut self) {
        self.pool.state.lock().waiting.remove(&self.ticket);
    }
}

/// What nobody takes any more gives itself back.
fn hand_over(handed: Handed) {
    for (waiting, connection) in handed {
        drop(waiting.send(connection));
    }
}
