//! The hub's task: it feeds the machines and does what they say.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tracing::{debug, error};

use super::keys::Key;
use super::{Command, HubDeps, HubError, InspectRequest, Responder, WaitReply, WaitRequest};
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
const BATCH: usize = 1024;

/// A wait with less time left gets an answer that cannot be read after one retry.
const SHORT_WAIT: Duration = Duration::from_secs(5);

/// Events of polls under way. A poll that finds no room waits a moment; the hub never waits for a poll.
const EVENTS: usize = 1024;

pub(super) struct HubTask {
    pub(super) machine: Coalescer,
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
    pub(super) keys: Map<KeyDomain, Key>,
    pub(super) polls: Map<PollId, PollTask>,
    pub(super) tasks: JoinSet<()>,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) landed: mpsc::Receiver<Event>,
    /// The answer that is being acted on.
    pub(super) answer: Option<Answer>,
}

/// An answer of the upstream's: when it came, and what the waits share that it ends.
pub(super) struct Answer {
    at: Instant,
    fanout: Option<Arc<Fanout>>,
}

pub(super) enum Event {
    Standing(PollId),
    Ended(PollId, AttemptOutcome),
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
    pub(super) tried_at: Instant,
    pub(super) has_failed: bool,
    /// Answers in a row that could not be read.
    pub(super) unreadable: u32,
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
        let (events, landed) = mpsc::channel(EVENTS);
        Self {
            lowest: rules.ladder.lowest(),
            machine: Coalescer::new(rules),
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
            events,
            landed,
            answer: None,
        }
    }

    /// Ends when all [`Hub`](super::Hub)s are gone.
    pub(super) async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Command>,
        mut looks: mpsc::Receiver<InspectRequest>,
    ) {
        let mut commands = Vec::with_capacity(BATCH);
        let mut landed = Vec::with_capacity(BATCH);
        loop {
            let due =
                [self.machine.poll_timeout(), self.scheduler.poll_timeout()].into_iter().flatten().min();
            // Cancel safe: the channels lose nothing, and join_next leaves a task in its set.
            tokio::select! {
                taken = inbox.recv_many(&mut commands, BATCH) => {
                    if taken == 0 {
                        return;
                    }
                }
                _ = self.landed.recv_many(&mut landed, BATCH) => {}
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => self.task_ended(ended),
                // Who has hung up meanwhile is told nothing.
                Some(look) = looks.recv() => drop(look.tell.send(self.overview(look.most))),
                () = sleep_until(due) => {}
            }
            let now = clock::now();
            for command in commands.drain(..) {
                self.command(command, now);
            }
            for event in landed.drain(..) {
                self.event(event, now);
            }
            while let Some(ended) = self.tasks.try_join_next() {
                self.task_ended(ended);
            }
            self.scheduler.handle_timeout(now);
            self.machine.handle_timeout(now); // a part of it: for the rest the loop comes round at once
            self.drain_outputs(now);
            let open = self.scheduler.open();
            self.metrics.upstream.set_poll_counts(PollCounts {
                open,
                waiting: self.polls.len().saturating_sub(open),
                is_breaker_open: !self.scheduler.is_closed(),
            });
        }
    }

    fn command(&mut self, command: Command, now: Instant) {
        match command {
            Command::Join(id, wait, client) => self.join(id, wait, client, now),
            Command::Leave(id) => {
                self.machine.handle(Input::Leave(id), now);
                self.unpark(id, Some(WaitEnd::ClientClosed), now);
            }
            Command::Drain(until) => self.machine.handle(Input::Drain(until), now),
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
                .map(|hit| hit.kept.state.clone())
                .collect(),
        };
        let member = wait.identity.member.clone();
        let key = self.keys.entry(domain).or_insert_with(|| Key::new(wait.identity.authorization));
        key.park(member.clone());
        let unproven = client.place.lock().as_mut().and_then(|place| place.unproven.take());
        if let Some(unproven) = unproven
            && !self.cache.is_key_proven(domain)
        {
            key.unproven.insert(id, unproven);
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
            keep: wait.keep,
            is_patient: wait.is_patient,
            known,
        };
        self.machine.handle(Input::Join(id, spec), now);
        self.link(id);
        let opens = self.machine.pending_opens();
        if opens > 0
            && let Err(limited) = self.limits.calls(wait.who, opens)
        {
            self.machine.handle(Input::CancelJoin(id), now);
            if let Some(client) = self.unpark(id, None, now) {
                client.answer(Err(HubError::Limited(limited)));
            }
            return;
        }
        self.try_at_once(id, wait.who, now);
        if let Some(parked) = parked {
            // Fails where the client has just left.
            let _ = parked.send(());
        }
    }

    /// Has the polls of a new wait tried that back off: a first attempt each, paid by the wait. One whose quota is
    /// used up waits for the retry.
    fn try_at_once(&mut self, id: WaitId, who: Subject, now: Instant) {
        let polls = self.machine.pausing(id).filter(|poll| self.scheduler.is_pausing(*poll));
        let polls: Vec<PollId> = polls.collect();
        if !polls.is_empty() && self.limits.calls(who, polls.len()).is_ok() {
            polls.into_iter().for_each(|poll| self.scheduler.try_now(poll, now));
        }
    }

    fn event(&mut self, event: Event, now: Instant) {
        match event {
            Event::Standing(id) => {
                self.scheduler.sent(id, now);
                self.machine.handle(Input::Progress(id, PollProgress::Held), now);
            }
            Event::Ended(id, tried) => self.ended(id, tried, now),
        }
        self.drain_outputs(now);
        self.answer = None;
    }

    fn ended(&mut self, id: PollId, tried: AttemptOutcome, now: Instant) {
        // An aborted poll's try may have ended all the same, and nothing waits for it any more.
        let Some(poll) = self.polls.get_mut(&id) else { return };
        poll.task = None;
        poll.has_failed = matches!(tried, AttemptOutcome::Failed(..));
        match tried {
            AttemptOutcome::Landed(landing) => {
                self.scheduler.ended(id, AttemptResult::Answered, now);
                self.landed(id, landing, now);
            }
            AttemptOutcome::Failed(failure, advice) => {
                debug!(poll = id.0, reason = failure.reason(), ?advice, "attempt failed");
                poll.span.attempt_failed(failure.reason());
                poll.unreadable =
                    if matches!(failure, Failure::InvalidResponse(_)) { poll.unreadable + 1 } else { 0 };
                let is_short = poll.unreadable > 1 && self.machine.time_left(id, now) <= SHORT_WAIT;
                let advice = if is_short { RetryAdvice::GiveUp } else { advice };
                self.scheduler.ended(id, AttemptResult::Failed(failure, advice), now);
            }
        }
    }

    fn landed(&mut self, id: PollId, landing: PollLanding, now: Instant) {
        let Some(PollTask { spec, tried_at, span, .. }) = self.polls.remove(&id) else { return };
        span.landed(landing.status.as_u16());
        let domain = spec.domain;
        self.answer = Some(Answer { at: landing.answered_at, fanout: None });
        match landing.key {
            Some(KeyVerdict::Accepted) => self.accepted(domain, tried_at),
            Some(KeyVerdict::Refused) => self.cache.key_rejected(domain, now),
            Some(KeyVerdict::Forbidden) => self.cache.forbidden(domain, &spec.jobs, now),
            None => {}
        }
        if let Some(shape) = &landing.shape {
            self.cache.set_shape(domain, shape);
        }
        if let PollOutcome::Jobs(states) = &landing.outcome
            && self.machine.may_cache(id)
        {
            for state in states {
                self.cache.store(domain, state, tried_at, now);
            }
        }
        if let Some(pause) = landing.retry_after {
            self.machine.handle(Input::RetryAfter(id, pause), now);
        }
        self.settle(id, landing.outcome, now);
    }

    /// From its first proof on a key's waits count for the key alone.
    fn accepted(&mut self, domain: KeyDomain, began: Instant) {
        self.cache.key_accepted(domain, began);
        if let Some(key) = self.keys.get_mut(&domain)
            && !key.unproven.is_empty()
            && self.cache.is_key_proven(domain)
        {
            key.unproven = Map::default();
        }
    }

    /// Whoever leaned on the poll is answered, or leans on others.
    fn settle(&mut self, id: PollId, outcome: PollOutcome, now: Instant) {
        let waits = self.traced(id);
        self.machine.handle(Input::Landed(id, outcome), now);
        for wait in waits {
            self.link(wait);
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
            self.ended(id, AttemptOutcome::Failed(Failure::InvalidResponse(None), RetryAdvice::BackOff), now);
            self.drain_outputs(now);
        }
    }

    /// Does what the machines say, without awaiting.
    fn drain_outputs(&mut self, now: Instant) {
        loop {
            if let Some(output) = self.machine.poll_output() {
                self.apply(output, now);
            } else if let Some(output) = self.scheduler.poll_output() {
                self.act_on_schedule(output, now);
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
                let poll = PollTask { spec, authorization, tried_at, has_failed, unreadable, task, span };
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

    fn act_on_schedule(&mut self, output: SchedulerOutput, now: Instant) {
        match output {
            SchedulerOutput::Start(id) => self.try_poll(id, now),
            SchedulerOutput::BackOff(id, failure, pause) => {
                self.machine.handle(Input::Progress(id, PollProgress::BackingOff(failure, pause)), now);
                if self.machine.has_newcomer(id) {
                    self.scheduler.try_now(id, now);
                }
            }
            SchedulerOutput::Pause(id, failure, pause) => {
                self.machine.handle(Input::Progress(id, PollProgress::Paused(failure, pause)), now);
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
        let Answer { at, fanout } = self.answer.as_mut()?;
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
            key.unproven.remove(&id);
            if key.waits == 0 {
                self.keys.remove(&domain);
            }
        }
        Some(client)
    }

    fn try_poll(&mut self, id: PollId, now: Instant) {
        let Some(poll) = self.polls.get_mut(&id) else { return };
        poll.tried_at = now;
        if poll.has_failed {
            self.metrics.upstream.retried();
        }
        self.machine.handle(Input::Progress(id, PollProgress::AttemptStarted), now);
        let (poller, events) = (Arc::clone(&self.poller), self.events.clone());
        let (spec, authorization) = (Arc::clone(&poll.spec), poll.authorization.clone());
        let trace = poll.span.context().clone();
        poll.task = Some(self.tasks.spawn(async move {
            // Sending fails only when the hub has ended.
            let standing = async { drop(events.send(Event::Standing(id)).await) };
            let tried = poller.run(&spec, &authorization, &trace, standing).await;
            let _ = events.send(Event::Ended(id, tried)).await;
        }));
    }
}

impl Responder {
    /// The wait is over. A client that has just left is told nothing; its Leave finds nothing to do.
    fn answer(self, answer: Result<WaitReply, HubError>) {
        drop(self.place.lock().take());
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
