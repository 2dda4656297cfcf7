//! The hub's task: it feeds the machines and does what they say.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tracing::{debug, error};

use super::keys::ParkedKey;
use super::{HubCommand, HubDeps, HubError, InspectRequest, Responder, WaitReply, WaitRequest};
use crate::cache::Cache;
use crate::clock;
use crate::core::Map;
use crate::core::coalescer::{
    Coalescer, Failure, Input, Output, PollId, PollOutcome, PollProgress, PollSpec, Timing, WaitId,
    WaitOutcome, WaitSpec,
};
use crate::core::job::KeyDomain;
use crate::core::route::{Goal, Rung};
use crate::core::scheduler::{
    AttemptResult, PollClass, PollRequest, PollScheduler, RetryAdvice, SchedulerConfig, SchedulerOutput,
};
use crate::limits::{Limits, Subject};
use crate::telemetry::metrics::{Fanout, Metrics, PollCounts, WaitEnd};
use crate::telemetry::trace::{Links, PollSpan, Tracer};
use crate::upstream::poll::{AttemptOutcome, KeyVerdict, PollLanding, Poller};

/// Commands taken at a time, so that polls that land are not kept waiting.
const MAX_BATCH: usize = 1024;

/// A wait with less time left gets an answer that cannot be read after one retry.
const SHORT_WAIT: Duration = Duration::from_secs(5);

/// Events of polls under way. A poll that finds no room waits a moment; the hub never waits for a poll.
const EVENT_CAPACITY: usize = 1024;

pub(super) struct HubTask {
    pub(super) coalescer: Coalescer,
    /// The rung that every job has reached.
    pub(super) lowest: Rung,
    pub(super) scheduler: PollScheduler,
    pub(super) poller: Arc<Poller>,
    pub(super) cache: Arc<Cache>,
    pub(super) limits: Arc<Limits>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) tracer: Tracer,
    pub(super) max_waits_per_key: usize,
    pub(super) parked: Map<WaitId, ParkedWait>,
    pub(super) keys: Map<KeyDomain, ParkedKey>,
    pub(super) polls: Map<PollId, PollTask>,
    pub(super) tasks: JoinSet<()>,
    pub(super) event_sender: mpsc::Sender<PollEvent>,
    pub(super) event_receiver: mpsc::Receiver<PollEvent>,
    /// The answer that is being acted on.
    pub(super) current_answer: Option<UpstreamAnswer>,
}

/// An answer of the upstream's: when it came, and what the waits share that it ends.
pub(super) struct UpstreamAnswer {
    at: Instant,
    fanout: Option<Arc<Fanout>>,
}

pub(super) enum PollEvent {
    Held(PollId),
    AttemptEnded(PollId, AttemptOutcome),
}

pub(super) struct ParkedWait {
    pub(super) client: Responder,
    pub(super) domain: KeyDomain,
    pub(super) member: Option<Arc<str>>,
    pub(super) since: Instant,
    pub(super) links: Links,
}

/// A poll that the machine has opened: in line, being tried, or pausing.
pub(super) struct PollTask {
    pub(super) spec: Arc<PollSpec>,
    pub(super) authorization: HeaderValue,
    /// When the newest try began.
    pub(super) attempt_started_at: Instant,
    pub(super) has_failed: bool,
    /// Answers in a row that could not be read.
    pub(super) invalid_responses: u32,
    pub(super) task: Option<AbortHandle>,
    pub(super) span: PollSpan,
}

impl HubTask {
    pub(super) fn new(
        rules: Timing,
        scheduler: SchedulerConfig,
        max_waits_per_key: usize,
        means: HubDeps,
    ) -> Self {
        let HubDeps { poller, cache, limits, metrics, tracer } = means;
        let (events, landed) = mpsc::channel(EVENT_CAPACITY);
        Self {
            lowest: rules.ladder.lowest(),
            coalescer: Coalescer::new(rules),
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
            event_sender: events,
            event_receiver: landed,
            current_answer: None,
        }
    }

    /// Ends when all [`Hub`](super::Hub)s are gone.
    pub(super) async fn run(
        mut self,
        mut inbox: mpsc::Receiver<HubCommand>,
        mut looks: mpsc::Receiver<InspectRequest>,
    ) {
        let mut commands = Vec::with_capacity(MAX_BATCH);
        let mut landed = Vec::with_capacity(MAX_BATCH);
        loop {
            let due =
                [self.coalescer.poll_timeout(), self.scheduler.poll_timeout()].into_iter().flatten().min();
            // Cancel safe: the channels lose nothing, and join_next leaves a task in its set.
            tokio::select! {
                taken = inbox.recv_many(&mut commands, MAX_BATCH) => {
                    if taken == 0 {
                        return;
                    }
                }
                _ = self.event_receiver.recv_many(&mut landed, MAX_BATCH) => {}
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => self.task_ended(ended),
                // Who has hung up meanwhile is told nothing.
                Some(look) = looks.recv() => drop(look.reply_to.send(self.overview(look.limit))),
                () = sleep_until(due) => {}
            }
            let now = clock::now();
            for command in commands.drain(..) {
                self.handle_command(command, now);
            }
            for event in landed.drain(..) {
                self.handle_event(event, now);
            }
            while let Some(ended) = self.tasks.try_join_next() {
                self.task_ended(ended);
            }
            self.scheduler.handle_timeout(now);
            self.coalescer.handle_timeout(now); // a part of it: for the rest the loop comes round at once
            self.drain_outputs(now);
            let open = self.scheduler.open();
            self.metrics.upstream.set_poll_counts(PollCounts {
                open,
                waiting: self.polls.len().saturating_sub(open),
                is_breaker_open: !self.scheduler.is_closed(),
            });
        }
    }

    fn handle_command(&mut self, command: HubCommand, now: Instant) {
        match command {
            HubCommand::Join(id, wait, client) => self.join(id, wait, client, now),
            HubCommand::Leave(id) => {
                self.coalescer.handle(Input::Leave(id), now);
                self.unpark(id, Some(WaitEnd::Left), now);
            }
            HubCommand::Drain(until) => self.coalescer.handle(Input::Drain(until), now),
        }
        self.drain_outputs(now);
    }

    fn join(&mut self, id: WaitId, wait: WaitRequest, mut client: Responder, now: Instant) {
        let domain = wait.identity.domain;
        if self.keys.get(&domain).is_some_and(|key| key.waits >= self.max_waits_per_key) {
            client.answer(Err(HubError::KeyFull));
            return;
        }
        let known = match wait.max_age {
            None => Vec::new(),
            // Once more: what landed since the gateway looked was told to nobody who was not here yet.
            Some(max_age) => wait
                .jobs
                .iter()
                .filter_map(|job| self.cache.get_within(domain, job, max_age, now))
                .map(|hit| hit.entry.state.clone())
                .collect(),
        };
        let member = wait.identity.member.clone();
        let key = self.keys.entry(domain).or_insert_with(|| ParkedKey::new(wait.identity.authorization));
        key.park(member.clone());
        let unproven = client.reservation.lock().as_mut().and_then(|place| place.unproven.take());
        if let Some(unproven) = unproven
            && !self.cache.is_key_proven(domain)
        {
            key.unproven_waits.insert(id, unproven);
        }
        let parked = client.parked.take();
        self.parked.insert(id, ParkedWait { client, domain, member, since: now, links: wait.links });
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
        };
        self.coalescer.handle(Input::Join(id, spec), now);
        self.link_to_polls(id);
        let opens = self.coalescer.pending_opens();
        if opens > 0
            && let Err(limited) = self.limits.check_calls(wait.quota_subject, opens)
        {
            self.coalescer.handle(Input::CancelJoin(id), now);
            if let Some(client) = self.unpark(id, None, now) {
                client.answer(Err(HubError::Limited(limited)));
            }
            return;
        }
        self.retry_backed_off_polls(id, wait.quota_subject, now);
        if let Some(parked) = parked {
            // Fails where the client has just left.
            let _ = parked.send(());
        }
    }

    /// Has the polls of a new wait tried that back off: a first attempt each, paid by the wait. One whose quota is
    /// used up waits for the retry.
    fn retry_backed_off_polls(&mut self, id: WaitId, who: Subject, now: Instant) {
        let polls = self.coalescer.pausing(id).filter(|poll| self.scheduler.is_pausing(*poll));
        let polls: Vec<PollId> = polls.collect();
        if !polls.is_empty() && self.limits.check_calls(who, polls.len()).is_ok() {
            polls.into_iter().for_each(|poll| self.scheduler.try_now(poll, now));
        }
    }

    fn handle_event(&mut self, event: PollEvent, now: Instant) {
        match event {
            PollEvent::Held(id) => {
                self.scheduler.sent(id, now);
                self.coalescer.handle(Input::Progress(id, PollProgress::Held), now);
            }
            PollEvent::AttemptEnded(id, tried) => self.attempt_ended(id, tried, now),
        }
        self.drain_outputs(now);
        self.current_answer = None;
    }

    fn attempt_ended(&mut self, id: PollId, tried: AttemptOutcome, now: Instant) {
        // An aborted poll's try may have ended all the same, and nothing waits for it any more.
        let Some(poll) = self.polls.get_mut(&id) else { return };
        poll.task = None;
        poll.has_failed = matches!(tried, AttemptOutcome::Failed(..));
        match tried {
            AttemptOutcome::Landed(landing) => {
                self.scheduler.ended(id, AttemptResult::Answered, now);
                self.poll_landed(id, landing, now);
            }
            AttemptOutcome::Failed(failure, advice) => {
                debug!(poll = id.0, reason = failure.reason(), ?advice, "attempt failed");
                poll.span.try_failed(failure.reason());
                poll.invalid_responses = if matches!(failure, Failure::InvalidResponse(_)) {
                    poll.invalid_responses + 1
                } else {
                    0
                };
                let is_short = poll.invalid_responses > 1 && self.coalescer.time_left(id, now) <= SHORT_WAIT;
                let advice = if is_short { RetryAdvice::GiveUp } else { advice };
                self.scheduler.ended(id, AttemptResult::Failed(failure, advice), now);
            }
        }
    }

    fn poll_landed(&mut self, id: PollId, landing: PollLanding, now: Instant) {
        let Some(PollTask { spec, attempt_started_at: tried_at, span, .. }) = self.polls.remove(&id) else {
            return;
        };
        span.landed(landing.status.as_u16());
        let domain = spec.domain;
        self.current_answer = Some(UpstreamAnswer { at: landing.answered_at, fanout: None });
        match landing.key {
            Some(KeyVerdict::Accepted) => self.key_accepted(domain, tried_at),
            Some(KeyVerdict::Refused) => self.cache.key_rejected(domain, now),
            Some(KeyVerdict::Forbidden) => self.cache.key_forbidden(domain, &spec.jobs, now),
            None => {}
        }
        if let Some(shape) = &landing.shape {
            self.cache.set_list_shape(domain, shape);
        }
        if let PollOutcome::Jobs(states) = &landing.outcome
            && self.coalescer.may_cache(id)
        {
            for state in states {
                self.cache.store(domain, state, tried_at, now);
            }
        }
        if let Some(pause) = landing.retry_after {
            self.coalescer.handle(Input::RetryAfter(id, pause), now);
        }
        self.settle(id, landing.outcome, now);
    }

    /// From its first proof on a key's waits count for the key alone.
    fn key_accepted(&mut self, domain: KeyDomain, began: Instant) {
        self.cache.key_accepted(domain, began);
        if let Some(key) = self.keys.get_mut(&domain)
            && !key.unproven_waits.is_empty()
            && self.cache.is_key_proven(domain)
        {
            key.unproven_waits = Map::default();
        }
    }

    /// Whoever leaned on the poll is answered, or leans on others.
    fn settle(&mut self, id: PollId, outcome: PollOutcome, now: Instant) {
        let waits = self.waits_to_relink(id);
        self.coalescer.handle(Input::Landed(id, outcome), now);
        for wait in waits {
            self.link_to_polls(wait);
        }
    }

    fn task_ended(&mut self, ended: Result<(), JoinError>) {
        let Err(fault) = ended else { return };
        if fault.is_cancelled() {
            return;
        }
        error!(%fault, "a try panicked");
        let is_its = |poll: &PollTask| poll.task.as_ref().is_some_and(|task| task.id() == fault.id());
        if let Some(id) = self.polls.iter().find(|(_, poll)| is_its(poll)).map(|(id, _)| *id) {
            let now = clock::now();
            self.attempt_ended(
                id,
                AttemptOutcome::Failed(Failure::InvalidResponse(None), RetryAdvice::BackOff),
                now,
            );
            self.drain_outputs(now);
        }
    }

    /// Does what the machines say, without awaiting.
    fn drain_outputs(&mut self, now: Instant) {
        loop {
            if let Some(output) = self.coalescer.poll_output() {
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
            Output::Open(id, spec) => {
                let Some(key) = self.keys.get(&spec.domain) else {
                    // The machine opens polls for waits only, and each has its key here.
                    debug_assert!(false, "{id:?} has no key");
                    return;
                };
                debug!(poll = id.0, key = %spec.domain, jobs = spec.jobs.len(), goal = ?spec.goal, "poll opened");
                let (domain, jobs, class) = (spec.domain, spec.jobs.clone(), self.class(spec.goal));
                let authorization = key.authorization.clone();
                let (spec, tried_at) = (Arc::new(spec), now);
                let span = self.poll_span(id, &spec);
                let (has_failed, unreadable, task) = (false, 0, None);
                let poll = PollTask {
                    spec,
                    authorization,
                    attempt_started_at: tried_at,
                    has_failed,
                    invalid_responses: unreadable,
                    task,
                    span,
                };
                self.polls.insert(id, poll);
                self.scheduler.request(id, PollRequest { domain, jobs, class }, now);
            }
            Output::Abort(id) => {
                self.scheduler.withdraw(id, now);
                if let Some(task) = self.polls.remove(&id).and_then(|poll| poll.task) {
                    task.abort();
                }
                debug!(poll = id.0, "poll cancelled");
            }
            Output::Settle(id, settled) => {
                if let Some(client) = self.unpark(id, Some(wait_end(&settled.end)), now) {
                    client.answer(Ok((settled, self.fanout_timer())));
                }
            }
        }
    }

    fn apply_schedule(&mut self, output: SchedulerOutput, now: Instant) {
        match output {
            SchedulerOutput::Start(id) => self.start_attempt(id, now),
            SchedulerOutput::BackOff(id, failure, pause) => {
                self.coalescer.handle(Input::Progress(id, PollProgress::BackingOff(failure, pause)), now);
                if self.coalescer.has_newcomer(id) {
                    self.scheduler.try_now(id, now);
                }
            }
            SchedulerOutput::Pause(id, failure, pause) => {
                self.coalescer.handle(Input::Progress(id, PollProgress::Paused(failure, pause)), now);
            }
            SchedulerOutput::GiveUp(id, failure) => {
                if let Some(poll) = self.polls.remove(&id) {
                    poll.span.gave_up(failure.reason());
                }
                self.settle(id, PollOutcome::Failed(failure), now);
            }
        }
    }

    /// Every job has reached the lowest rung, so a poll for it is answered at once.
    fn class(&self, goal: Goal) -> PollClass {
        match goal {
            Goal::Now => PollClass::Plain,
            Goal::Rung(rung) if rung == self.lowest => PollClass::Snapshot,
            Goal::Rung(_) => PollClass::LongPoll,
        }
    }

    /// What a wait that is settled now shares with the others that the same answer ended.
    fn fanout_timer(&mut self) -> Option<Arc<Fanout>> {
        let UpstreamAnswer { at, fanout } = self.current_answer.as_mut()?;
        Some(Arc::clone(fanout.get_or_insert_with(|| Arc::new(self.metrics.waits.fanout(*at)))))
    }

    /// `end` is `None` for a wait that was not let stay.
    fn unpark(&mut self, id: WaitId, end: Option<WaitEnd>, now: Instant) -> Option<Responder> {
        let ParkedWait { client, domain, member, since, .. } = self.parked.remove(&id)?;
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
        Some(client)
    }

    fn start_attempt(&mut self, id: PollId, now: Instant) {
        let Some(poll) = self.polls.get_mut(&id) else { return };
        poll.attempt_started_at = now;
        if poll.has_failed {
            self.metrics.upstream.retried();
        }
        self.coalescer.handle(Input::Progress(id, PollProgress::AttemptStarted), now);
        let (poller, events) = (Arc::clone(&self.poller), self.event_sender.clone());
        let (spec, authorization) = (Arc::clone(&poll.spec), poll.authorization.clone());
        let trace = poll.span.context().clone();
        poll.task = Some(self.tasks.spawn(async move {
            // Sending fails only when the hub has ended.
            let standing = async { drop(events.send(PollEvent::Held(id)).await) };
            let tried = poller.run(&spec, &authorization, &trace, standing).await;
            let _ = events.send(PollEvent::AttemptEnded(id, tried)).await;
        }));
    }
}

impl Responder {
    /// The wait is over. A client that has just left is told nothing; its Leave finds nothing to do.
    fn answer(self, answer: Result<WaitReply, HubError>) {
        drop(self.reservation.lock().take());
        let _ = self.answer.send(answer);
    }
}

fn wait_end(end: &WaitOutcome) -> WaitEnd {
    match end {
        WaitOutcome::Reached(_) => WaitEnd::Reached,
        WaitOutcome::TimedOut(_) => WaitEnd::TimedOut,
        WaitOutcome::Unsplit(_) => WaitEnd::Whole,
        WaitOutcome::Refused(_) => WaitEnd::Refused,
        WaitOutcome::Failed(_) => WaitEnd::Failed,
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
