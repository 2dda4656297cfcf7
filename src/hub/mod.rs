//! The Coalescer's shell: one task, which owns the polls.
//!
//! ```text
//!   gateway ── Join, Leave ──▶ ┌─────────────────────┐ ── Open, Abort ──▶ poll tasks (JoinSet)
//!           ◀── Settled ────── │  Turns   · one now  │ ◀── Standing, Ended ──
//!                              └─────────────────────┘
//! ```
//!
//! Clients hold a [`Hub`] and wait; dropping the wait leaves. The task decides nothing: it takes all there is,
//! asks the clock once, feeds the machine and does what comes out without awaiting. It must never know HTTP.

mod inspect;
mod keys;
mod task;
mod tracing;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

pub(crate) use self::inspect::{HubOverview, KeyInFlight};
use self::task::HubTask;
use crate::auth::Identity;
use crate::cache::Cache;
use crate::config::{self, Config};
use crate::core::backoff::Backoff;
use crate::core::breaker::BreakerRules;
use crate::core::coalescer::{Timing, WaitId, WaitResult};
use crate::core::job::JobSet;
use crate::core::route::{Form, Goal, Ladder};
use crate::core::scheduler::SchedulerConfig;
use crate::limits::{AddressFull, Limits, QuotaExceeded, Subject, UnprovenWait, UnprovenWaits};
use crate::telemetry::metrics::{Fanout, Metrics};
use crate::telemetry::trace::{Links, Tracer};
use crate::upstream::poll::Poller;

/// The pauses between the attempts of a poll. Two seconds at most: nobody waits longer than that for an upstream that
/// is back, unless the breaker is open.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(200), cap: Duration::from_secs(2) };

/// The waits' side of the hub. Clones are the same hub.
#[derive(Clone, Debug)]
pub struct Hub {
    commands: mpsc::Sender<HubCommand>,
    inspections: mpsc::Sender<InspectRequest>,
    parked: Arc<Semaphore>,
    unproven: UnprovenWaits,
    next: Arc<AtomicU64>,
}

/// What the hub works with.
pub struct HubDeps {
    /// Does the polls.
    pub poller: Poller,
    /// Keeps what they learn.
    pub cache: Arc<Cache>,
    /// Counts whom they cost a call.
    pub limits: Arc<Limits>,
    /// Counts all of it.
    pub metrics: Arc<Metrics>,
    /// Tells of polls.
    pub tracer: Tracer,
}

/// One client's wait.
#[derive(Debug)]
pub struct WaitRequest {
    /// Whose key asks.
    pub identity: Identity,
    /// For whom a request that it costs is counted.
    pub quota_subject: Subject,
    /// Which endpoint was asked.
    pub form: Form,
    /// The jobs named.
    pub jobs: JobSet,
    /// What must be reached.
    pub goal: Goal,
    /// When the request came.
    pub arrived: Instant,
    /// How long it waits from then on.
    pub timeout: Duration,
    /// Whether what is kept may be part of the answer, if it is no older than this.
    pub max_age: Option<Duration>,
    /// Whether the answer may be kept for others.
    pub may_store: bool,
    /// Whether its client expects to be held although its goal may be reached at once.
    pub is_patient: bool,
    /// Links the request to the polls that the wait leans on.
    pub links: Links,
}

/// Why a wait could not be parked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HubError {
    /// The wait would cost a request, and its quota of calls is used up.
    #[error("{0}")]
    Limited(QuotaExceeded),
    /// Its key has `limits.max_waits_per_key` parked.
    #[error("too many waits of this key")]
    KeyFull,
    /// Its key is not proven, and such keys have `limits.max_waits_per_key` parked from its address.
    #[error("too many waits from this address with keys that the API has not accepted yet")]
    AddressFull,
    /// `limits.max_waits` are parked.
    #[error("too many waits")]
    Full,
    /// The hub has ended.
    #[error("shutting down")]
    Closed,
}

#[derive(Debug)]
enum HubCommand {
    Join(WaitId, WaitRequest, Responder),
    Leave(WaitId),
    Drain(Instant),
}

/// Somebody wants to see what is under way.
#[derive(Debug)]
struct InspectRequest {
    limit: usize,
    reply_to: oneshot::Sender<HubOverview>,
}

/// Who may look at a time: each look costs the hub up to some milliseconds.
const MAX_INSPECTIONS: usize = 4;

/// Who waits, as the hub's task knows it.
#[derive(Debug)]
struct Responder {
    answer: oneshot::Sender<Result<WaitReply, HubError>>,
    /// Told when the wait is parked, or settled at once; dropped untold where it is refused.
    parked: Option<oneshot::Sender<()>>,
    reservation: SharedReservation,
}

/// What a wait takes up, until it is settled or leaves: whichever is first takes it. So a client that does not take
/// its answer takes up nothing.
type SharedReservation = Arc<Mutex<Option<Reservation>>>;

/// The way out comes first, as it is dropped first: whoever has a permit finds room in the inbox.
#[derive(Debug)]
struct Reservation {
    leave: mpsc::OwnedPermit<HubCommand>,
    /// Its place among the waits of its address, if its key is not proven; the hub's task takes it over.
    unproven: Option<UnprovenWait>,
    _permit: OwnedSemaphorePermit,
}

/// A wait on its way or parked. Dropping it leaves.
#[derive(Debug)]
pub struct WaitHandle {
    id: WaitId,
    settled: oneshot::Receiver<Result<WaitReply, HubError>>,
    place: SharedReservation,
}

/// How a wait ended; and the answer that ended it, if one did, until all that it ended have taken theirs.
type WaitReply = (WaitResult, Option<Arc<Fanout>>);

impl Hub {
    /// A hub and its task, which ends when all its [`Hub`]s are gone.
    pub fn new(config: &Config, ladder: &Ladder, means: HubDeps) -> (Self, impl Future<Output = ()> + use<>) {
        let caps = &config.limits;
        let max_waits = caps.max_waits.min(Semaphore::MAX_PERMITS / 4);
        // A wait takes two places at most: its Join until that is taken in, and its Leave, held from the start.
        // The last one is for the drain.
        let (commands, inbox) = mpsc::channel(2 * max_waits + 1);
        let (rules, scheduler) = (coalescer_timing(config, ladder), scheduler_config(&config.upstream));
        let shell = HubTask::new(rules, scheduler, caps.max_waits_per_key, means);
        let (looks, looked) = mpsc::channel(MAX_INSPECTIONS);
        let hub = Self {
            commands,
            inspections: looks,
            parked: Arc::new(Semaphore::new(max_waits)),
            unproven: UnprovenWaits::new(caps.max_waits_per_key),
            next: Arc::new(AtomicU64::new(0)),
        };
        (hub, shell.run(inbox, looked))
    }

    /// Waits until there is an answer. Cancel safe: dropping the future leaves, and frees all it held.
    pub async fn wait(&self, wait: WaitRequest) -> Result<WaitResult, HubError> {
        self.join(wait)?.await
    }

    /// Sends a wait on its way, without waiting for anything: what comes back will be its answer.
    pub fn join(&self, wait: WaitRequest) -> Result<WaitHandle, HubError> {
        self.send(wait, None)
    }

    /// The same, but comes back when it is parked, or refused. Cancel safe, as [`Hub::wait`] is.
    pub async fn park(&self, wait: WaitRequest) -> Result<WaitHandle, HubError> {
        let (parked, is_parked) = oneshot::channel();
        let wait = self.send(wait, Some(parked))?;
        match is_parked.await {
            Ok(()) => Ok(wait),
            Err(_) => Err(wait.await.err().unwrap_or(HubError::Closed)),
        }
    }

    fn send(&self, wait: WaitRequest, parked: Option<oneshot::Sender<()>>) -> Result<WaitHandle, HubError> {
        let unproven = self.unproven.park(wait.quota_subject).map_err(|AddressFull| HubError::AddressFull)?;
        let permit = Arc::clone(&self.parked).try_acquire_owned().map_err(|_| HubError::Full)?;
        let id = WaitId(self.next.fetch_add(1, Ordering::Relaxed));
        let leave = self.commands.clone().try_reserve_owned().map_err(|error| send_error(&error))?;
        let place = Arc::new(Mutex::new(Some(Reservation { leave, unproven, _permit: permit })));
        let (answer, settled) = oneshot::channel();
        let client = Responder { answer, parked, reservation: Arc::clone(&place) };
        self.commands.try_send(HubCommand::Join(id, wait, client)).map_err(|error| send_error(&error))?;
        Ok(WaitHandle { id, settled, place })
    }

    /// Has every wait told the truth of its jobs by `until`, spread over the time that is left.
    pub async fn drain(&self, until: Instant) {
        // Fails only when the hub has ended, and no wait is left.
        let _ = self.commands.send(HubCommand::Drain(until)).await;
    }

    /// What is under way, the oldest `most` jobs of it and the `most` keys with the most waits. `None`: too many
    /// look already, or the hub has ended. It may take as long as the hub is busy. Cancel safe.
    pub async fn inspect(&self, most: usize) -> Option<HubOverview> {
        let (tell, told) = oneshot::channel();
        self.inspections.try_send(InspectRequest { limit: most, reply_to: tell }).ok()?;
        told.await.ok()
    }

    /// Waits that are parked now.
    pub fn waits(&self) -> usize {
        self.commands.max_capacity() / 2 - self.parked.available_permits()
    }
}

fn coalescer_timing(config: &Config, ladder: &Ladder) -> Timing {
    Timing {
        ladder: ladder.clone(),
        hold: config.upstream.poll_timeout,
        linger: config.wait.linger,
        max_jobs: config.upstream.max_jobs,
    }
}

fn scheduler_config(upstream: &config::Upstream) -> SchedulerConfig {
    SchedulerConfig {
        max_polls: upstream.max_polls,
        interval: match upstream.requests_per_second {
            0 => Duration::ZERO,
            rate => Duration::from_secs(1) / rate,
        },
        retries: upstream.retries,
        retry_for: upstream.retry_for,
        backoff: BACKOFF,
        breaker: BreakerRules { failures: upstream.breaker_failures, cooldown: upstream.breaker_cooldown },
    }
}

fn send_error<T>(error: &mpsc::error::TrySendError<T>) -> HubError {
    match error {
        mpsc::error::TrySendError::Full(_) => HubError::Full,
        mpsc::error::TrySendError::Closed(_) => HubError::Closed,
    }
}

impl Future for WaitHandle {
    type Output = Result<WaitResult, HubError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let told = ready!(Pin::new(&mut self.settled).poll(cx));
        Poll::Ready(told.unwrap_or(Err(HubError::Closed)).map(|(settled, _fanout)| settled))
    }
}

impl Drop for WaitHandle {
    fn drop(&mut self) {
        let place = self.place.lock().take();
        if let Some(place) = place {
            place.leave.send(HubCommand::Leave(self.id));
        }
    }
}
