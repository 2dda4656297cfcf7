//! The hub's task: feeds the coalescer and the scheduler, and applies their outputs.
//!
//! ```text
//!  command or event ──▶ Coalescer ── Open ──▶ PollScheduler ── Start ──▶ poll task ── AttemptEnded ──▶ event
//!                           │ Settle                │ BackOff, Pause, GiveUp ──▶ Coalescer
//!                           ▼
//!                       Responder
//! ```
//!
//! One answer of the upstream passes through here once: it proves or rejects the key, enters the cache, and settles the
//! attached waits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::debug;

use super::job_changes::{JobChanges, PendingChanges};
use super::machines::Machines;
use super::parked::{ParkedKey, ParkedWait};
use super::poll_task::{EVENT_CAPACITY, PollEvent, PollTask};
use super::watches::Askers;
use super::{HubCommand, HubDeps, HubError, InspectRequest, Responder, WaitReply, WaitRequest};
use crate::auth::{Credential, KeyOrigin};
use crate::cache::Cache;
use crate::clock;
use crate::core::Map;
use crate::core::coalescer::{
    Failure, Input, Output, PollId, PollOutcome, PollProgress, WaitId, WaitOutcome, WaitSpec,
};
use crate::core::job::{KeyDomain, RouteIndex};
use crate::core::scheduler::{AttemptResult, PollScheduler, RetryAdvice, SchedulerConfig, SchedulerOutput};
use crate::limits::{Limits, Subject};
use crate::telemetry::metrics::{CallCause, Fanout, Metrics, PollCounts, WaitEnd};
use crate::telemetry::trace::Tracer;
use crate::upstream::poll::{AttemptOutcome, KeyVerdict, PollLanding, Poller};

/// The most commands, and the most events, of one round. The bound keeps a flood of commands from delaying answers.
const MAX_BATCH: usize = 1024;

/// A poll whose waits have less time left gets one retry after an invalid response. Then the wait gets that response.
const SHORT_WAIT: Duration = Duration::from_secs(5);

pub(super) struct HubTask {
    pub(super) machines: Machines,
    pub(super) scheduler: PollScheduler,
    pub(super) poller: Arc<Poller>,
    pub(super) cache: Arc<Cache>,
    pub(super) limits: Arc<Limits>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) tracer: Tracer,
    pub(super) max_waits_per_key: usize,
    pub(super) askers: Askers,
    pub(super) parked: Map<WaitId, ParkedWait>,
    pub(super) keys: Map<KeyDomain, ParkedKey>,
    pub(super) polls: Map<PollId, PollTask>,
    /// The attempts that are being made. All end with the hub's task.
    pub(super) tasks: JoinSet<()>,
    pub(super) event_sender: mpsc::Sender<PollEvent>,
    pub(super) event_receiver: mpsc::Receiver<PollEvent>,
    /// The answer that is being applied. `None` outside of [`Self::handle_event`].
    pub(super) current_answer: Option<UpstreamAnswer>,
}

pub(super) struct UpstreamAnswer {
    at: Instant,
    /// Shared by all waits that this answer settles.
    fanout: Option<Arc<Fanout>>,
    /// The poll that landed, its credential and the payer of a watch: a watch on its job may follow.
    pub(super) poll: PollId,
    pub(super) domain: KeyDomain,
    pub(super) credential: Credential,
    pub(super) payer: Option<Subject>,
}

impl HubTask {
    pub(super) fn new(
        machines: Machines,
        scheduler: SchedulerConfig,
        max_waits_per_key: usize,
        deps: HubDeps,
    ) -> Self {
        let HubDeps { poller, cache, limits, metrics, tracer } = deps;
        let (event_sender, event_receiver) = mpsc::channel(EVENT_CAPACITY);
        Self {
            machines,
            askers: Askers::default(),
            scheduler: PollScheduler::new(scheduler, fastrand::u64(..)),
            poller: Arc::new(poller),
            cache,
            limits,
            metrics,
            tracer,
            max_waits_per_key,
            parked: Map::default(),
            keys: Map::default(),
            polls: Map::default(),
            tasks: JoinSet::new(),
            event_sender,
            event_receiver,
            current_answer: None,
        }
    }

    /// Runs until the last [`Hub`](super::Hub) is dropped.
    pub(super) async fn run(
        mut self,
        mut inbox: mpsc::Receiver<HubCommand>,
        mut inspections: mpsc::Receiver<InspectRequest>,
        changes: Arc<JobChanges>,
        mut watch_idle: watch::Receiver<Duration>,
    ) {
        let mut commands = Vec::with_capacity(MAX_BATCH);
        let mut events = Vec::with_capacity(MAX_BATCH);
        loop {
            let due =
                [self.machines.poll_timeout(), self.scheduler.poll_timeout()].into_iter().flatten().min();
            // Cancel safe: `recv`, `recv_many` and `join_next` lose nothing when another branch completes.
            tokio::select! {
                taken = inbox.recv_many(&mut commands, MAX_BATCH) => {
                    if taken == 0 {
                        return;
                    }
                }
                _ = self.event_receiver.recv_many(&mut events, MAX_BATCH) => {}
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => self.task_ended(ended),
                // Sending fails if the requester has left.
                Some(request) = inspections.recv() => {
                    drop(request.reply_to.send(self.overview(request.limit)));
                }
                () = changes.notified() => {}
                () = sleep_until(due) => {}
            }
            let now = clock::now();
            // An error means that the last hub is gone, and the inbox says so too.
            if watch_idle.has_changed().unwrap_or(false) {
                self.machines.set_watch_idle(*watch_idle.borrow_and_update());
            }
            self.jobs_changed(changes.take(), now);
            for command in commands.drain(..) {
                self.handle_command(command, now);
            }
            for event in events.drain(..) {
                self.handle_event(event, now);
            }
            while let Some(ended) = self.tasks.try_join_next() {
                self.task_ended(ended);
            }
            self.scheduler.handle_timeout(now);
            // Handles a bounded number of timers. With more due, `poll_timeout` is in the past and the loop runs again.
            self.machines.iter_mut().for_each(|machine| machine.handle_timeout(now));
            self.drain_outputs(now);
            self.yield_watches(now);
            let open = self.scheduler.open();
            self.metrics.upstream.set_poll_counts(PollCounts {
                open,
                waiting: self.polls.len().saturating_sub(open),
                watches: self.machines.watches(),
                is_breaker_open: !self.scheduler.is_closed(),
            });
        }
    }

    fn handle_command(&mut self, command: HubCommand, now: Instant) {
        match command {
            HubCommand::Join(id, wait, responder) => self.join(id, wait, responder, now),
            HubCommand::Leave(id) => {
                // P6: this ends the wait only. The coalescer lets its polls linger.
                if let Some(route) = self.parked.get(&id).map(|wait| wait.route) {
                    self.machines.of_route_mut(route).handle(Input::Leave(id), now);
                }
                self.unpark(id, Some(WaitEnd::ClientClosed), now);
            }
            HubCommand::Drain(until) => self.machines.handle_all(|| Input::Drain(until), now),
        }
        self.drain_outputs(now);
    }

    /// Passes changes of jobs on to the coalescers. Those of jobs with parameters concern all their variants.
    fn jobs_changed(&mut self, changes: PendingChanges, now: Instant) {
        if changes.is_overflown {
            self.machines.forget_states(now);
        }
        for (domain, job) in changes.jobs {
            let machine = self.machines.of_route_mut(job.route());
            for variant in machine.variants(domain, &job) {
                machine.handle(Input::JobChanged(domain, variant), now);
            }
            self.drain_outputs(now);
        }
        self.drain_outputs(now);
    }

    fn join(&mut self, id: WaitId, wait: WaitRequest, mut responder: Responder, now: Instant) {
        let (domain, route) = (wait.identity.domain, wait.jobs.route());
        // Without keys the waits of a client count for its address, to their end.
        let is_open = wait.identity.origin == KeyOrigin::Open;
        if !is_open && self.keys.get(&domain).is_some_and(|key| key.waits >= self.max_waits_per_key) {
            responder.answer(Err(HubError::KeyFull));
            return;
        }
        let known = match wait.max_age {
            None => Vec::new(),
            // A second lookup after the gateway's: an answer that came in between did not settle this wait.
            Some(max_age) => wait
                .jobs
                .iter()
                .filter_map(|job| self.cache.get_within(domain, job, max_age, now))
                .map(|hit| hit.entry.state.clone())
                .collect(),
        };
        let proof = self.accepted_proof(&wait, now);
        let member = wait.identity.member.clone();
        let key = self.keys.entry(domain).or_insert_with(|| ParkedKey::new(wait.identity.credential));
        key.park(member.clone());
        if !is_open
            && let Some(unproven) =
                responder.reservation.lock().as_mut().and_then(|reserved| reserved.unproven.take())
            && !self.cache.is_key_proven(domain)
        {
            key.unproven_waits.insert(id, unproven);
        }
        let parked = responder.parked.take();
        self.parked
            .insert(id, ParkedWait { responder, domain, route, member, since: now, links: wait.links });
        let spec = WaitSpec {
            domain,
            form: wait.form,
            jobs: wait.jobs,
            goal: wait.goal,
            arrived: wait.arrived,
            timeout: wait.timeout,
            keep: wait.may_store,
            is_patient: wait.is_patient,
            known,
            proof,
        };
        self.record_asker(id, &spec, wait.quota_subject, now);
        let machine = self.machines.of_route_mut(route);
        machine.handle(Input::Join(id, spec), now);
        let opens = machine.pending_opens();
        self.link_to_polls(id);
        if opens > 0
            && let Err(limited) = self.limits.check_calls(wait.quota_subject, opens)
        {
            self.machines.of_route_mut(route).handle(Input::CancelJoin(id), now);
            if let Some(responder) = self.unpark(id, None, now) {
                responder.answer(Err(HubError::Limited(limited)));
            }
            return;
        }
        self.retry_backed_off_polls(id, route, wait.quota_subject, now);
        if let Some(parked) = parked {
            // Fails if the client has just left.
            let _ = parked.send(());
        }
    }

    /// Starts an attempt of each poll of a new wait that is backing off. It is the wait's first attempt (P12) and counts
    /// against its quota. Without quota the wait gets the next retry.
    fn retry_backed_off_polls(&mut self, id: WaitId, route: RouteIndex, subject: Subject, now: Instant) {
        let machine = self.machines.of_route(route);
        let polls = machine.pausing(id).filter(|poll| self.scheduler.is_pausing(*poll));
        let polls: Vec<PollId> = polls.collect();
        if !polls.is_empty() && self.limits.check_calls(subject, polls.len()).is_ok() {
            polls.into_iter().for_each(|poll| self.scheduler.try_now(poll, now));
        }
    }

    fn handle_event(&mut self, event: PollEvent, now: Instant) {
        match event {
            PollEvent::Held(id) => {
                self.scheduler.sent(id, now);
                self.machines.of_poll_mut(id).handle(Input::Progress(id, PollProgress::Held), now);
            }
            PollEvent::AttemptEnded(id, outcome) => self.attempt_ended(id, outcome, now),
        }
        self.drain_outputs(now);
        self.current_answer = None;
    }

    pub(super) fn attempt_ended(&mut self, id: PollId, outcome: AttemptOutcome, now: Instant) {
        // The attempt of a cancelled poll may have ended before the abort. No wait needs it.
        let Some(poll) = self.polls.get_mut(&id) else { return };
        poll.task = None;
        poll.has_failed = matches!(outcome, AttemptOutcome::Failed(..));
        match outcome {
            AttemptOutcome::Landed(landing) => {
                self.scheduler.ended(id, AttemptResult::Answered, now);
                self.poll_landed(id, landing, now);
            }
            AttemptOutcome::Failed(failure, advice) => {
                let cause = poll.cause.into_str();
                debug!(
                    poll = id.0,
                    reason = failure.reason(),
                    ?advice,
                    clipgate.cause = cause,
                    "attempt failed"
                );
                poll.span.attempt_failed(failure.reason());
                poll.invalid_responses = if matches!(failure, Failure::InvalidResponse(_)) {
                    poll.invalid_responses + 1
                } else {
                    0
                };
                let is_short =
                    poll.invalid_responses > 1 && self.machines.of_poll(id).time_left(id, now) <= SHORT_WAIT;
                let advice = if is_short { RetryAdvice::GiveUp } else { advice };
                self.scheduler.ended(id, AttemptResult::Failed(failure, advice), now);
            }
        }
    }

    fn poll_landed(&mut self, id: PollId, landing: PollLanding, now: Instant) {
        let Some(poll) = self.polls.remove(&id) else { return };
        let PollTask { spec, cause, attempt_started_at: began, span, credential, payer, .. } = poll;
        span.landed(landing.status.as_u16());
        let domain = spec.domain;
        self.current_answer = Some(UpstreamAnswer {
            at: landing.answered_at,
            fanout: None,
            poll: id,
            domain,
            credential,
            payer,
        });
        // P11: the verdict on the key comes before its states enter the cache.
        match landing.key {
            Some(KeyVerdict::Accepted) => self.key_accepted(domain, began),
            Some(KeyVerdict::Refused) => {
                self.cache.key_rejected(domain, now);
                self.machines.handle_all(|| Input::CancelWatches(domain), now);
            }
            Some(KeyVerdict::Forbidden) => self.cache.key_forbidden(domain, &spec.jobs, now),
            None => {}
        }
        if let Some(shape) = &landing.shape {
            self.cache.set_list_shape(domain, shape);
        }
        let route = self.poller.route(&spec);
        if landing.status == StatusCode::NOT_FOUND && !route.is_built_in {
            spec.jobs.iter().for_each(|job| self.cache.job_changed(domain, job, now));
        }
        if let PollOutcome::Jobs(states) = &landing.outcome
            && self.machines.of_poll(id).may_cache(id)
        {
            for state in states {
                if cause == CallCause::NoCache && route.never_holds() {
                    self.cache.contradict(domain, state);
                }
                self.cache.store(domain, state, began, now);
            }
        }
        if let Some(pause) = landing.retry_after {
            self.machines.of_poll_mut(id).handle(Input::RetryAfter(id, pause), now);
        }
        self.settle(id, landing.outcome, now);
    }

    /// Records that the upstream accepted the key. From then on its waits count for the key, no longer for their
    /// addresses.
    fn key_accepted(&mut self, domain: KeyDomain, began: Instant) {
        self.cache.key_accepted(domain, began);
        if let Some(key) = self.keys.get_mut(&domain)
            && !key.unproven_waits.is_empty()
            && self.cache.is_key_proven(domain)
        {
            key.unproven_waits = Map::default();
        }
    }

    /// Passes the outcome of a poll to the coalescer, which settles each attached wait or attaches it to other polls.
    fn settle(&mut self, id: PollId, outcome: PollOutcome, now: Instant) {
        let waits = self.waits_to_relink(id);
        self.machines.of_poll_mut(id).handle(Input::Landed(id, outcome), now);
        for wait in waits {
            self.link_to_polls(wait);
        }
    }

    /// Applies the outputs of both state machines, without awaiting.
    pub(super) fn drain_outputs(&mut self, now: Instant) {
        loop {
            if let Some(output) = self.machines.poll_output() {
                self.apply(output, now);
            } else if let Some(output) = self.scheduler.poll_output() {
                self.apply_schedule(output, now);
            } else {
                return;
            }
        }
    }

    fn apply(&mut self, output: Output, now: Instant) {
        match output {
            Output::Open(id, spec, cause) => self.open_poll(id, spec, cause, now),
            Output::Abort(id) => {
                self.scheduler.withdraw(id, now);
                let Some(poll) = self.polls.remove(&id) else { return };
                if let Some(task) = poll.task {
                    task.abort();
                }
                debug!(poll = id.0, clipgate.cause = poll.cause.into_str(), "poll cancelled");
            }
            Output::Settle(id, settled) => {
                if let Some(responder) = self.unpark(id, Some(wait_end(&settled.end)), now) {
                    responder.answer(Ok((settled, self.fanout_timer())));
                }
            }
        }
    }

    fn apply_schedule(&mut self, output: SchedulerOutput, now: Instant) {
        match output {
            SchedulerOutput::Start(id) => self.start_attempt(id, now),
            SchedulerOutput::BackOff(id, failure, pause) => {
                self.machines
                    .of_poll_mut(id)
                    .handle(Input::Progress(id, PollProgress::BackingOff(failure, pause)), now);
                if self.machines.of_poll(id).has_newcomer(id) {
                    self.scheduler.try_now(id, now);
                }
            }
            SchedulerOutput::Pause(id, failure, pause) => {
                self.machines
                    .of_poll_mut(id)
                    .handle(Input::Progress(id, PollProgress::Paused(failure, pause)), now);
            }
            SchedulerOutput::GiveUp(id, failure) => {
                if let Some(poll) = self.polls.remove(&id) {
                    poll.span.gave_up(failure.reason());
                }
                self.settle(id, PollOutcome::Failed(failure), now);
            }
        }
    }

    /// Returns the fan-out timer of the current answer, which all waits share that this answer settles.
    fn fanout_timer(&mut self) -> Option<Arc<Fanout>> {
        let UpstreamAnswer { at, fanout, .. } = self.current_answer.as_mut()?;
        Some(Arc::clone(fanout.get_or_insert_with(|| Arc::new(self.metrics.waits.fanout(*at)))))
    }

    /// Removes a wait. `end` is `None` for a wait that the hub rejects.
    fn unpark(&mut self, id: WaitId, end: Option<WaitEnd>, now: Instant) -> Option<Responder> {
        let ParkedWait { responder, domain, member, since, .. } = self.parked.remove(&id)?;
        if let Some(end) = end {
            self.metrics.waits.finish(end, now.saturating_duration_since(since));
        }
        if let Some(key) = self.keys.get_mut(&domain) {
            key.unpark(member.as_ref());
            key.unproven_waits.remove(&id);
            if key.waits == 0 {
                self.keys.remove(&domain);
            }
        }
        Some(responder)
    }
}

impl Responder {
    /// Ends the wait: frees its capacity and sends the answer. Sending fails if the client has just left; the coalescer
    /// then ignores its `Leave`.
    fn answer(self, answer: Result<WaitReply, HubError>) {
        drop(self.reservation.lock().take());
        let _ = self.answer.send(answer);
    }
}

fn wait_end(end: &WaitOutcome) -> WaitEnd {
    match end {
        WaitOutcome::Reached(_) => WaitEnd::Reached,
        WaitOutcome::TimedOut(_) => WaitEnd::TimedOut,
        WaitOutcome::Unsplit(_) => WaitEnd::Unsplit,
        WaitOutcome::Refused(_) => WaitEnd::UpstreamRejected,
        WaitOutcome::Failed(_) => WaitEnd::Failed,
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
