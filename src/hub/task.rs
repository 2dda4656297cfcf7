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

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::job_changes::{JobChanges, PendingChanges};
use super::landing::UpstreamAnswer;
use super::machines::Machines;
use super::parked::{ParkedKey, ParkedWait};
use super::poll_task::{EVENT_CAPACITY, PollEvent, PollTask};
use super::sharing::PollSharing;
use super::watches::Askers;
use super::{HubCommand, HubDeps, HubError, InspectRequest, Responder, WaitReply, WaitRequest};
use crate::auth::KeyOrigin;
use crate::cache::Cache;
use crate::clock;
use crate::core::Map;
use crate::core::coalescer::{Input, PollId, PollProgress, WaitId, WaitSpec};
use crate::core::job::{JobId, KeyDomain, RouteIndex};
use crate::core::scheduler::{PollScheduler, SchedulerConfig};
use crate::limits::{Limits, Subject};
use crate::telemetry::metrics::{Metrics, PollCounts, WaitEnd};
use crate::telemetry::trace::Tracer;
use crate::upstream::poll::Poller;

/// The most commands, and the most events, of one round. The bound keeps a flood of commands from delaying answers.
const MAX_BATCH: usize = 1024;

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
    /// Boxed: a table has up to twice as many places as entries.
    pub(super) parked: Map<WaitId, Box<ParkedWait>>,
    pub(super) keys: Map<KeyDomain, ParkedKey>,
    pub(super) polls: Map<PollId, PollTask>,
    /// The attempts that are being made. All end with the hub's task.
    pub(super) tasks: JoinSet<()>,
    pub(super) event_sender: mpsc::Sender<PollEvent>,
    pub(super) event_receiver: mpsc::Receiver<PollEvent>,
    /// `None`: this replica is alone.
    pub(super) sharing: Option<Box<PollSharing>>,
    /// The wait whose polls are being opened, with siblings: its quota `calls` pays once a poll is granted.
    pub(super) opener: Option<(WaitId, Subject)>,
    /// The answer that is being applied. `None` outside of [`Self::handle_event`].
    pub(super) current_answer: Option<UpstreamAnswer>,
}

impl HubTask {
    pub(super) fn new(
        machines: Machines,
        scheduler: SchedulerConfig,
        max_waits_per_key: usize,
        deps: HubDeps,
        sharing: Option<Box<PollSharing>>,
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
            sharing,
            opener: None,
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
        let mut inputs = Vec::new();
        self.sharing.iter_mut().for_each(|sharing| sharing.start_link(&self.limits));
        loop {
            let sharing_due = self.sharing.as_ref().and_then(|sharing| sharing.next_due());
            let due = [self.machines.poll_timeout(), self.scheduler.poll_timeout(), sharing_due];
            let due = due.into_iter().flatten().min();
            // Cancel safe: `recv`, `recv_many` and `join_next` lose nothing when another branch completes.
            tokio::select! {
                taken = inbox.recv_many(&mut commands, MAX_BATCH) => {
                    if taken == 0 {
                        return;
                    }
                }
                _ = self.event_receiver.recv_many(&mut events, MAX_BATCH) => {}
                () = PollSharing::receive(&mut self.sharing, &mut inputs) => {}
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
            for input in inputs.drain(..) {
                self.handle_sibling(input, now);
            }
            while let Some(ended) = self.tasks.try_join_next() {
                self.task_ended(ended);
            }
            self.handle_sharing_timeout(now);
            self.scheduler.handle_timeout(now);
            // Handles a bounded number of timers. With more due, `poll_timeout` is in the past and the loop runs again.
            self.machines.iter_mut().for_each(|machine| machine.handle_timeout(now));
            self.drain_outputs(now);
            self.yield_watches(now);
            if let Some(at) = self.scheduler.reached_at() {
                self.metrics.upstream.reached(at);
            }
            self.metrics.upstream.set_parked(self.parked.len());
            self.report_sharing(now);
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
            HubCommand::Drain(until) => {
                // Siblings take over while the polls go on here: make before break.
                self.drain_sharing(until, now);
                self.machines.handle_all(|| Input::Drain(until), now);
            }
        }
        self.drain_outputs(now);
    }

    /// Passes changes of jobs on to the coalescers. Those of jobs with parameters concern all their variants.
    fn jobs_changed(&mut self, changes: PendingChanges, now: Instant) {
        if changes.is_overflown || !changes.domains.is_empty() {
            let is_concerned = |domain| changes.is_overflown || changes.domains.contains(&domain);
            self.machines.forget_states(is_concerned, now);
        }
        for (domain, job) in &changes.jobs {
            self.job_changed(*domain, job, now);
        }
        self.publish_changes(&changes, now);
        for domain in changes.refused {
            self.publish_refusal(domain, now);
        }
        for removal in changes.removed {
            self.publish_removal(removal, now);
        }
        self.drain_outputs(now);
    }

    pub(super) fn job_changed(&mut self, domain: KeyDomain, job: &JobId, now: Instant) {
        let machine = self.machines.of_route_mut(job.route());
        for variant in machine.variants(domain, job) {
            machine.handle(Input::JobChanged(domain, variant), now);
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
        let (proof, max_age) = (self.accepted_proof(&wait, now), wait.max_age);
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
        let member_wait = member.as_ref().and_then(|member| self.metrics.members.park(member));
        let links = wait.links;
        let parked_wait = ParkedWait {
            responder,
            domain,
            route,
            member,
            _member_wait: member_wait,
            since: now,
            max_age,
            links,
        };
        self.parked.insert(id, Box::new(parked_wait));
        let spec = WaitSpec {
            domain,
            form: wait.form,
            jobs: wait.jobs,
            goal: wait.goal,
            arrived: wait.arrived,
            timeout: wait.timeout,
            keep: wait.may_store,
            is_patient: wait.is_patient,
            newer_than: wait.newer_than,
            known,
            proof,
        };
        self.record_asker(id, &spec, wait.quota_subject, now);
        let machine = self.machines.of_route_mut(route);
        machine.handle(Input::Join(id, spec), now);
        let opens = machine.pending_opens();
        self.link_to_polls(id);
        if self.sharing.is_some() {
            self.opener = Some((id, wait.quota_subject));
            self.drain_outputs(now);
            self.opener = None;
        } else if opens > 0
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
        let polls = machine.pausing(id).filter_map(|poll| self.running_poll(poll));
        let polls = polls.filter(|poll| self.scheduler.is_pausing(*poll));
        let polls: Vec<PollId> = polls.collect();
        if !polls.is_empty() && self.limits.check_calls(subject, polls.len()).is_ok() {
            polls.into_iter().for_each(|poll| self.scheduler.try_now(poll, now));
        }
    }

    fn handle_event(&mut self, event: PollEvent, now: Instant) {
        match event {
            PollEvent::Held(id) => {
                self.scheduler.sent(id, now);
                self.report_progress(id, PollProgress::Held, now);
            }
            PollEvent::AttemptEnded(id, outcome) => self.attempt_ended(id, outcome, now),
        }
        self.drain_outputs(now);
        self.current_answer = None;
    }

    /// Removes a wait. `end` is `None` for a wait that the hub rejects.
    pub(super) fn unpark(&mut self, id: WaitId, end: Option<WaitEnd>, now: Instant) -> Option<Responder> {
        let ParkedWait { responder, domain, member, since, .. } = *self.parked.remove(&id)?;
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
    pub(super) fn answer(self, answer: Result<WaitReply, HubError>) {
        drop(self.reservation.lock().take());
        let _ = self.answer.send(answer);
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
