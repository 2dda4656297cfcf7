//! Polls of the hub and the tasks that make their attempts.
//!
//! A poll lives from `Output::Open` until it lands, is cancelled or given up. Each attempt is one task, which sends its
//! events to the hub.

use std::sync::Arc;
use std::time::Instant;

use http::HeaderMap;
use tokio::task::{AbortHandle, JoinError};
use tracing::{debug, error};

use super::HubError;
use super::task::HubTask;
use crate::auth::Credential;
use crate::clock;
use crate::core::coalescer::{Cause, Failure, Input, PollId, PollProgress, PollSpec, WaitId};
use crate::core::job::KeyDomain;
use crate::core::route::Goal;
use crate::core::scheduler::{PollClass, PollRequest, RetryAdvice};
use crate::limits::Subject;
use crate::telemetry::metrics::CallCause;
use crate::telemetry::trace::PollSpan;
use crate::upstream::poll::AttemptOutcome;

/// Capacity of the event channel. A poll task waits for room; the hub never waits for a poll task.
pub(super) const EVENT_CAPACITY: usize = 1024;

/// A poll that the coalescer has opened, before an attempt is requested.
#[derive(Clone, Debug)]
pub(super) struct OpenedPoll {
    pub(super) spec: PollSpec,
    pub(super) cause: Cause,
    /// Owner of the quota that a watch is charged to; `None` for other polls.
    pub(super) payer: Option<Subject>,
    pub(super) credential: Credential,
    /// The wait that pays when the poll is made here and no sibling has made it; only with siblings.
    pub(super) opener: Option<(WaitId, Subject)>,
    /// Start of the poll that a sibling makes.
    pub(super) began_elsewhere: Option<Instant>,
}

/// A poll that this replica makes: queued, held at the upstream, backing off or paused.
pub(super) struct PollTask {
    pub(super) spec: Arc<PollSpec>,
    pub(super) cause: CallCause,
    /// Owner of the quota that a watch was charged to; `None` for other polls.
    pub(super) payer: Option<Subject>,
    pub(super) credential: Credential,
    pub(super) attempt_started_at: Instant,
    /// Whether the newest attempt failed.
    pub(super) has_failed: bool,
    /// Number of consecutive invalid responses.
    pub(super) invalid_responses: u32,
    pub(super) task: Option<AbortHandle>,
    pub(super) span: PollSpan,
}

/// An event that a poll task sends to the hub.
pub(super) enum PollEvent {
    /// The request is on its connection, so the upstream may hold it.
    Held(PollId),
    AttemptEnded(PollId, AttemptOutcome),
}

impl HubTask {
    /// Makes a poll that the coalescer has opened, or leaves it to a sibling that makes it already. A watch needs a slot
    /// and a payer.
    pub(super) fn open_poll(&mut self, id: PollId, spec: PollSpec, cause: Cause, now: Instant) {
        let payer = match cause {
            Cause::Watch { asked_by, follows } => {
                let has_slot = self.scheduler.has_long_poll_slot();
                match has_slot.then(|| self.watch_payer(&spec, asked_by, follows)).flatten() {
                    Some(payer) => Some(payer),
                    None => return self.machines.of_poll_mut(id).handle(Input::CancelWatch(id), now),
                }
            }
            Cause::Wait
            | Cause::Batch
            | Cause::Reopen
            | Cause::Snapshot
            | Cause::Deadline
            | Cause::NoCache => None,
        };
        let Some(credential) = self.credential(spec.domain) else {
            // The coalescer opens polls only for parked waits, whose keys are stored here, and watches when a poll of the
            // same key has landed.
            debug_assert!(false, "{id:?} has no key");
            return;
        };
        let opener = self.opener.filter(|_| payer.is_none());
        let poll = OpenedPoll { spec, cause, payer, credential, opener, began_elsewhere: None };
        if let Some(poll) = self.offer_poll(id, poll, now) {
            self.make_poll(id, poll, now);
        }
    }

    /// Requests attempts of a poll, and counts a watch against the quota of its client.
    pub(super) fn make_poll(&mut self, id: PollId, poll: OpenedPoll, now: Instant) {
        let OpenedPoll { spec, cause, payer, credential, opener, .. } = poll;
        if opener.is_some_and(|opener| !self.charge_opener(id, opener, now)) {
            return;
        }
        if payer.is_some_and(|payer| self.limits.check_call(payer).is_err()) {
            return self.machines.of_poll_mut(id).handle(Input::CancelWatch(id), now);
        }
        let (class, cause) = (self.class(&spec, cause), call_cause(cause));
        debug!(
            poll = id.0,
            key = %spec.domain,
            jobs = spec.jobs.len(),
            goal = ?spec.goal,
            clipgate.cause = cause.into_str(),
            "poll opened"
        );
        let (domain, jobs) = (spec.domain, spec.jobs.clone());
        let span = self.poll_span(id, &spec);
        let poll = PollTask {
            spec: Arc::new(spec),
            cause,
            payer,
            credential,
            attempt_started_at: now,
            has_failed: false,
            invalid_responses: 0,
            task: None,
            span,
        };
        self.polls.insert(id, poll);
        self.scheduler.request(id, PollRequest { domain, jobs, class }, now);
    }

    /// Counts a poll against the quota of the wait that opened it. Without quota the wait is rejected. Returns whether the
    /// poll is needed: it is paid for, or other waits have attached to it.
    fn charge_opener(&mut self, id: PollId, (wait, subject): (WaitId, Subject), now: Instant) -> bool {
        let Err(limited) = self.limits.check_call(subject) else { return true };
        let machine = self.machines.of_poll_mut(id);
        machine.handle(Input::Leave(wait), now);
        let is_needed = machine.attached_waits(id).next().is_some();
        if let Some(responder) = self.unpark(wait, None, now) {
            responder.answer(Err(HubError::Limited(limited)));
        }
        is_needed
    }

    /// Returns the credential of a key with parked waits, or of the poll that has just landed.
    fn credential(&self, domain: KeyDomain) -> Option<Credential> {
        let landed = self.current_answer.as_ref().filter(|answer| answer.domain == domain);
        let parked = self.keys.get(&domain).map(|key| &key.credential);
        parked.or(landed.map(|answer| &answer.credential)).cloned()
    }

    /// Returns the class of a poll: by its cause where the upstream never holds, else by its goal. Every job has reached the
    /// lowest rung, so the upstream answers a poll for it at once.
    fn class(&self, spec: &PollSpec, cause: Cause) -> PollClass {
        let route = self.poller.route(spec);
        if route.never_holds() {
            return match cause {
                Cause::Snapshot | Cause::NoCache => PollClass::Plain,
                Cause::Deadline => PollClass::Snapshot,
                Cause::Wait | Cause::Batch | Cause::Reopen | Cause::Watch { .. } => PollClass::Chain,
            };
        }
        match spec.goal {
            Goal::Now => PollClass::Plain,
            Goal::Rung(rung) if rung == route.ladder.lowest() => PollClass::Snapshot,
            Goal::Rung(_) | Goal::Not(_) => PollClass::LongPoll,
        }
    }

    /// Starts an attempt of a poll in a task of its own.
    pub(super) fn start_attempt(&mut self, id: PollId, now: Instant) {
        if !self.polls.contains_key(&id) {
            return;
        }
        self.report_progress(id, PollProgress::AttemptStarted, now);
        let Some(poll) = self.polls.get_mut(&id) else { return };
        poll.attempt_started_at = now;
        let mut cause = poll.cause;
        if poll.has_failed {
            self.metrics.upstream.retried();
            cause = CallCause::Retry;
        }
        let (poller, events) = (Arc::clone(&self.poller), self.event_sender.clone());
        let (spec, credential) = (Arc::clone(&poll.spec), poll.credential.clone());
        let trace = poll.span.context().clone();
        poll.task = Some(self.tasks.spawn(async move {
            // Sending fails only if the hub's task has ended.
            let on_held = async { drop(events.send(PollEvent::Held(id)).await) };
            let write_credential = |fields: &mut HeaderMap| credential.apply(fields);
            let outcome = poller.run(&spec, cause, write_credential, &trace, on_held).await;
            let _ = events.send(PollEvent::AttemptEnded(id, outcome)).await;
        }));
    }

    /// Records a panic of a poll task as a failed attempt.
    pub(super) fn task_ended(&mut self, ended: Result<(), JoinError>) {
        let Err(error) = ended else { return };
        if error.is_cancelled() {
            return;
        }
        error!(%error, "poll task panicked");
        let is_owner = |poll: &PollTask| poll.task.as_ref().is_some_and(|task| task.id() == error.id());
        if let Some(id) = self.polls.iter().find(|(_, poll)| is_owner(poll)).map(|(id, _)| *id) {
            let now = clock::now();
            self.attempt_ended(
                id,
                AttemptOutcome::Failed(Failure::InvalidResponse(None), RetryAdvice::BackOff),
                now,
            );
            self.drain_outputs(now);
        }
    }
}

fn call_cause(cause: Cause) -> CallCause {
    match cause {
        Cause::Wait => CallCause::Wait,
        Cause::Batch => CallCause::Batch,
        Cause::Reopen => CallCause::Reopen,
        Cause::Snapshot => CallCause::Snapshot,
        Cause::Deadline => CallCause::Deadline,
        Cause::Watch { .. } => CallCause::Watch,
        Cause::NoCache => CallCause::NoCache,
    }
}
