//! Polls of the hub and the tasks that make their attempts.
//!
//! A poll lives from `Output::Open` until it lands, is cancelled or given up. Each attempt is one task, which sends its
//! events to the hub.

use std::sync::Arc;
use std::time::Instant;

use http::HeaderValue;
use tokio::task::{AbortHandle, JoinError};
use tracing::error;

use super::task::HubTask;
use crate::clock;
use crate::core::coalescer::{Failure, Input, PollId, PollProgress, PollSpec};
use crate::core::scheduler::RetryAdvice;
use crate::limits::Subject;
use crate::telemetry::metrics::CallCause;
use crate::telemetry::trace::PollSpan;
use crate::upstream::poll::AttemptOutcome;

/// Capacity of the event channel. A poll task waits for room; the hub never waits for a poll task.
pub(super) const EVENT_CAPACITY: usize = 1024;

/// A poll that the coalescer has opened: queued, held at the upstream, backing off or paused.
pub(super) struct PollTask {
    pub(super) spec: Arc<PollSpec>,
    pub(super) cause: CallCause,
    /// Owner of the quota that a watch was charged to; `None` for other polls.
    pub(super) payer: Option<Subject>,
    pub(super) authorization: HeaderValue,
    pub(super) attempt_started_at: Instant,
    /// Whether the newest attempt failed.
    pub(super) has_failed: bool,
    /// Whether the upstream or the scheduler has paused the poll since its last attempt.
    pub(super) is_paused: bool,
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
    /// Starts an attempt of a poll in a task of its own.
    pub(super) fn start_attempt(&mut self, id: PollId, now: Instant) {
        let Some(poll) = self.polls.get_mut(&id) else { return };
        poll.attempt_started_at = now;
        poll.is_paused = false;
        let mut cause = poll.cause;
        if poll.has_failed {
            self.metrics.upstream.retried();
            cause = CallCause::Retry;
        }
        self.coalescer.handle(Input::Progress(id, PollProgress::AttemptStarted), now);
        let (poller, events) = (Arc::clone(&self.poller), self.event_sender.clone());
        let (spec, authorization) = (Arc::clone(&poll.spec), poll.authorization.clone());
        let trace = poll.span.context().clone();
        poll.task = Some(self.tasks.spawn(async move {
            // Sending fails only if the hub's task has ended.
            let on_held = async { drop(events.send(PollEvent::Held(id)).await) };
            let outcome = poller.run(&spec, cause, &authorization, &trace, on_held).await;
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
