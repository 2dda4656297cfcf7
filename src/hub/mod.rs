//! The hub: one task that runs the coalescer and the poll scheduler, and owns all polls.
//!
//! ```text
//!            Join, Leave, Drain   ┌────────── HubTask ──────────┐   spawn, abort
//!  gateway ─────────────────────▶ │ Coalescer      which polls  │ ────────────────▶ poll tasks ──▶ upstream
//!   (Hub)  ◀───────────────────── │ PollScheduler  when to send │ ◀────────────────   (JoinSet)
//!               WaitReply         └─────────────────────────────┘  Held, AttemptEnded
//! ```
//!
//! | owner | owns |
//! | --- | --- |
//! | client's request | its [`WaitHandle`]. Dropping it sends `Leave` and cancels no poll (P6) |
//! | hub's task | coalescer, scheduler, polls and their tasks, the [`Responder`] of each wait |
//! | both | the [`Reservation`] of a wait: the first of answer and disconnect takes it |
//! | poll task | one attempt. The hub aborts it when the coalescer cancels the poll |
//!
//! The core decides, the task acts. In each round the task takes all pending commands and events, reads the clock once,
//! feeds both state machines, and applies their outputs without awaiting. It does not know HTTP.

mod inspect;
mod job_changes;
mod landing;
mod link_reports;
mod machines;
mod outputs;
mod parked;
mod poll_task;
mod sharing;
mod task;
mod tracing;
mod watches;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

pub(crate) use self::inspect::{ClusterOverview, HubOverview, JobInFlight, KeyInFlight};
use self::job_changes::JobChanges;
use self::machines::Machines;
use self::sharing::PollSharing;
pub(crate) use self::sharing::SharingDeps;
use self::task::HubTask;
use crate::auth::Identity;
use crate::cache::Cache;
use crate::config::{self, Config};
use crate::core::backoff::Backoff;
use crate::core::breaker::BreakerRules;
use crate::core::coalescer::{WaitId, WaitResult};
use crate::core::job::{JobId, JobSet, KeyDomain};
use crate::core::route::{Form, Goal, Routes};
use crate::core::scheduler::SchedulerConfig;
use crate::core::siblings::Removal;
use crate::limits::{AddressFull, Limits, QuotaExceeded, Subject, UnprovenWait, UnprovenWaits};
use crate::telemetry::metrics::{Fanout, Metrics};
use crate::telemetry::trace::{Links, Tracer};
use crate::upstream::poll::Poller;

/// Pauses between the attempts of a poll. The cap of 2 s bounds the wait for an upstream that is back, unless the
/// breaker is open (P12).
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(200), cap: Duration::from_secs(2) };

/// A handle of the hub. Clones share one hub.
#[derive(Clone, Debug)]
pub struct Hub {
    commands: mpsc::Sender<HubCommand>,
    inspections: mpsc::Sender<InspectRequest>,
    changes: Arc<JobChanges>,
    /// `wait.watch_idle`, which the task reads at the start of a round.
    watch_idle: watch::Sender<Duration>,
    /// One permit for each wait up to `limits.max_waits`.
    parked: Arc<Semaphore>,
    unproven: UnprovenWaits,
    next_wait: Arc<AtomicU64>,
    /// Whether siblings have taken over. `None` without siblings.
    handover: Option<watch::Receiver<bool>>,
}

/// Dependencies of the hub.
pub struct HubDeps {
    pub poller: Poller,
    pub cache: Arc<Cache>,
    pub limits: Arc<Limits>,
    pub metrics: Arc<Metrics>,
    pub tracer: Tracer,
}

/// One client's wait.
#[derive(Clone, Debug)]
pub struct WaitRequest {
    pub identity: Identity,
    /// The upstream requests of this wait count against this subject's quota.
    pub quota_subject: Subject,
    /// Endpoint of the request.
    pub form: Form,
    pub jobs: JobSet,
    /// The state that all jobs must reach.
    pub goal: Goal,
    /// When the gateway received the request. The wait's time starts here, also if it attaches to an older poll (P2).
    pub arrived: Instant,
    /// Time of the wait, from `arrived` on.
    pub timeout: Duration,
    /// The greatest age of a cached or proven state that may be part of the response. `None`: no such state.
    pub max_age: Option<Duration>,
    /// Whether the cache may store the response.
    pub may_store: bool,
    /// Whether the client expects to be held although the goal may be reached already.
    pub is_patient: bool,
    /// Moment of the state that the client has: no older one is the answer before the end of the wait's time.
    pub newer_than: Option<Instant>,
    /// Links from the request's span to the polls that the wait attaches to.
    pub links: Links,
}

/// Why a wait could not be parked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HubError {
    /// The wait needs an upstream request, and its quota `calls` is used up.
    #[error("{0}")]
    Limited(QuotaExceeded),
    /// The key has `limits.max_waits_per_key` parked waits.
    #[error("too many waits of this key")]
    KeyFull,
    /// The upstream has not accepted the key, and the address has `limits.max_waits_per_key` waits of such keys.
    #[error("too many waits from this address with keys that the API has not accepted yet")]
    AddressFull,
    /// `limits.max_waits` waits are parked.
    #[error("too many waits")]
    Full,
    /// The hub's task has ended.
    #[error("shutting down")]
    Closed,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a box for each join costs more than the slots of the channel")]
enum HubCommand {
    Join(WaitId, WaitRequest, Responder),
    Leave(WaitId),
    Drain(Instant),
}

/// A request for a [`HubOverview`] with at most `limit` jobs and keys.
#[derive(Debug)]
struct InspectRequest {
    limit: usize,
    reply_to: oneshot::Sender<HubOverview>,
}

/// Inspections that may be pending. Each takes up to some milliseconds of the hub's task.
const MAX_INSPECTIONS: usize = 4;

/// The hub's end of a wait: the channel to its client.
#[derive(Debug)]
struct Responder {
    answer: oneshot::Sender<Result<WaitReply, HubError>>,
    /// Notified when the wait is parked or settled at once. Dropped without a message if the hub rejects the wait.
    parked: Option<oneshot::Sender<()>>,
    reservation: SharedReservation,
}

/// The capacity that a wait uses until it is settled or its client leaves; the first of both takes it. So a client that
/// is slow to take its answer uses no capacity.
type SharedReservation = Arc<Mutex<Option<Reservation>>>;

/// Capacity for one wait. `leave` is dropped before the permit: a wait with a permit always finds room in the channel.
#[derive(Debug)]
struct Reservation {
    leave: mpsc::OwnedPermit<HubCommand>,
    /// The wait's slot among the waits of its address, if the upstream has not accepted its key. The hub's task moves
    /// it to the key when it parks the wait.
    unproven: Option<UnprovenWait>,
    _permit: OwnedSemaphorePermit,
}

/// A wait that has been sent to the hub. It resolves to the wait's result; dropping it sends `Leave` (P6).
#[derive(Debug)]
pub struct WaitHandle {
    id: WaitId,
    settled: oneshot::Receiver<Result<WaitReply, HubError>>,
    reservation: SharedReservation,
}

/// The result of a wait, and the timer of the upstream answer that settled it. All waits of one answer share the timer;
/// it stops when the last of them has taken its reply.
type WaitReply = (WaitResult, Option<Arc<Fanout>>);

impl Hub {
    /// Returns a hub without siblings, and its task. The task ends when the last clone of the [`Hub`] is dropped.
    pub fn new(config: &Config, routes: &Routes, deps: HubDeps) -> (Self, impl Future<Output = ()> + use<>) {
        Self::with_siblings(config, routes, deps, None)
    }

    /// Like [`Self::new`], for one of several replicas.
    pub(crate) fn with_siblings(
        config: &Config,
        routes: &Routes,
        deps: HubDeps,
        sharing: Option<SharingDeps>,
    ) -> (Self, impl Future<Output = ()> + use<>) {
        let limits = &config.limits;
        let max_waits = limits.max_waits.min(Semaphore::MAX_PERMITS / 4);
        // A wait uses at most two slots: one for its Join until the task takes it, one reserved for its Leave. The last
        // slot is for Drain.
        let (commands, inbox) = mpsc::channel(2 * max_waits + 1);
        let (machines, scheduler) = (Machines::new(config, routes), scheduler_config(&config.upstream));
        let sharing = sharing.map(|deps| Box::new(PollSharing::new(deps)));
        if sharing.is_some() {
            deps.cache.keep_array_shapes();
        }
        let handover = sharing.as_ref().map(|sharing| sharing.handover());
        let task = HubTask::new(machines, scheduler, limits.max_waits_per_key, deps, sharing);
        let (inspections, inspect_inbox) = mpsc::channel(MAX_INSPECTIONS);
        let hub = Self {
            commands,
            inspections,
            changes: Arc::default(),
            watch_idle: watch::Sender::new(config.wait.watch_idle),
            parked: Arc::new(Semaphore::new(max_waits)),
            unproven: UnprovenWaits::new(limits.max_waits_per_key),
            next_wait: Arc::new(AtomicU64::new(0)),
            handover,
        };
        let (watch_idle, changes) = (hub.watch_idle.subscribe(), Arc::clone(&hub.changes));
        (hub, task.run(inbox, inspect_inbox, changes, watch_idle))
    }

    /// Uses this time for all watches from now on. Open watches keep their end until the next request for their job.
    pub fn set_watch_idle(&self, watch_idle: Duration) {
        self.watch_idle.send_replace(watch_idle);
    }

    /// Parks a wait and returns its result. Cancel safe: dropping the future sends `Leave` and frees the wait's
    /// capacity.
    pub async fn wait(&self, wait: WaitRequest) -> Result<WaitResult, HubError> {
        self.join(wait)?.await
    }

    /// Sends a wait to the hub and returns its handle at once. Errors of the hub's task come through the handle.
    pub fn join(&self, wait: WaitRequest) -> Result<WaitHandle, HubError> {
        self.send(wait, None)
    }

    /// Like [`Self::join`], but resolves once the wait is parked, settled or rejected. Cancel safe, like
    /// [`Self::wait`].
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
        let id = WaitId(self.next_wait.fetch_add(1, Ordering::Relaxed));
        let leave = self.commands.clone().try_reserve_owned().map_err(|error| send_error(&error))?;
        let reservation = Arc::new(Mutex::new(Some(Reservation { leave, unproven, _permit: permit })));
        let (answer, settled) = oneshot::channel();
        let responder = Responder { answer, parked, reservation: Arc::clone(&reservation) };
        self.commands.try_send(HubCommand::Join(id, wait, responder)).map_err(|error| send_error(&error))?;
        Ok(WaitHandle { id, settled, reservation })
    }

    /// Reports that an action changed these jobs of a key and all their variants: no state that was read before answers a
    /// later wait, and parked waits get a new snapshot. Returns at once.
    pub fn jobs_changed(&self, domain: KeyDomain, jobs: &[JobId]) {
        self.changes.report(domain, jobs);
    }

    /// Reports that the upstream rejected a key by its answer to a passed-through request. Returns at once.
    pub fn key_refused(&self, domain: KeyDomain) {
        if self.handover.is_some() {
            self.changes.report_refusal(domain);
        }
    }

    /// Reports that an operator removed cached states, which siblings then do as well. Returns at once.
    pub fn states_removed(&self, removal: Removal) {
        if self.handover.is_some() {
            self.changes.report_removal(removal);
        }
    }

    /// Resolves once siblings have taken over all polls that they need, after [`Self::drain`]. Cancel safe.
    pub async fn handed_over(&self) {
        if let Some(mut handover) = self.handover.clone() {
            // An error means that the hub's task has ended.
            let _ = handover.wait_for(|is_done| *is_done).await;
        }
    }

    /// Starts the drain: the hub settles every wait with the current state of its jobs by `until`, spread over the time
    /// that is left (P2).
    pub async fn drain(&self, until: Instant) {
        // Fails only if the hub's task has ended, and then no wait is left.
        let _ = self.commands.send(HubCommand::Drain(until)).await;
    }

    /// Returns the `limit` oldest jobs and the `limit` keys with the most waits. `None`: too many inspections are
    /// pending, or the hub's task has ended. Takes as long as the task is busy. Cancel safe.
    pub async fn inspect(&self, limit: usize) -> Option<HubOverview> {
        let (reply_to, reply) = oneshot::channel();
        self.inspections.try_send(InspectRequest { limit, reply_to }).ok()?;
        reply.await.ok()
    }

    /// Returns the number of parked waits.
    pub fn waits(&self) -> usize {
        self.commands.max_capacity() / 2 - self.parked.available_permits()
    }
}

fn scheduler_config(upstream: &config::UpstreamConfig) -> SchedulerConfig {
    SchedulerConfig {
        max_polls: upstream.max_polls,
        interval: start_interval(upstream.requests_per_second),
        key_interval: start_interval(upstream.requests_per_second_per_key),
        retries: upstream.retries,
        retry_for: upstream.retry_for,
        backoff: BACKOFF,
        breaker: BreakerRules { failures: upstream.breaker_failures, cooldown: upstream.breaker_cooldown },
    }
}

/// Returns the time between two starts at this rate per second; zero for no limit.
fn start_interval(rate: u32) -> Duration {
    Duration::from_secs(1).checked_div(rate).unwrap_or_default()
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
        let reply = ready!(Pin::new(&mut self.settled).poll(cx));
        Poll::Ready(reply.unwrap_or(Err(HubError::Closed)).map(|(settled, _fanout)| settled))
    }
}

impl Drop for WaitHandle {
    fn drop(&mut self) {
        let reservation = self.reservation.lock().take();
        if let Some(reservation) = reservation {
            // P6: a disconnect ends this wait only.
            reservation.leave.send(HubCommand::Leave(self.id));
        }
    }
}
