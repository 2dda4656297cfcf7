//! Carries out the outputs of the hub's state machines, without awaiting.

use std::sync::Arc;
use std::time::Instant;

use tracing::debug;

use super::landing::UpstreamAnswer;
use super::task::HubTask;
use crate::core::coalescer::{Input, Output, PollId, PollOutcome, PollProgress, WaitOutcome};
use crate::core::scheduler::SchedulerOutput;
use crate::telemetry::metrics::{Fanout, WaitEnd};

impl HubTask {
    /// Applies the outputs of all state machines.
    pub(super) fn drain_outputs(&mut self, now: Instant) {
        loop {
            if let Some(output) = self.machines.poll_output() {
                self.apply(output, now);
            } else if let Some(output) = self.sharing.as_mut().and_then(|sharing| sharing.poll_output()) {
                self.apply_sharing(output, now);
            } else if let Some(output) = self.scheduler.poll_output() {
                self.apply_schedule(output, now);
            } else {
                return;
            }
        }
    }

    pub(super) fn apply(&mut self, output: Output, now: Instant) {
        match output {
            Output::Open(id, spec, cause) => self.open_poll(id, spec, cause, now),
            Output::Abort(id) => self.abort_poll(id, now),
            Output::Settle(id, mut settled) => {
                if let Some(answer) = &self.current_answer {
                    answer.origin.mark(&mut settled, now);
                }
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
                self.report_progress(id, PollProgress::BackingOff(failure, pause), now);
                if self.local_poll(id).is_some_and(|local| self.machines.of_poll(local).has_newcomer(local)) {
                    self.scheduler.try_now(id, now);
                }
            }
            SchedulerOutput::Pause(id, failure, pause) => {
                self.report_progress(id, PollProgress::Paused(failure, pause), now);
            }
            SchedulerOutput::GiveUp(id, failure) => {
                if let Some(poll) = self.polls.remove(&id) {
                    poll.span.gave_up(failure.reason());
                }
                self.end_poll(id, PollOutcome::Failed(failure), now);
            }
        }
    }

    /// Cancels the attempts of a poll.
    pub(super) fn cancel_attempts(&mut self, id: PollId, now: Instant) {
        self.scheduler.withdraw(id, now);
        let Some(poll) = self.polls.remove(&id) else { return };
        if let Some(task) = poll.task {
            task.abort();
        }
        debug!(poll = id.0, clipgate.cause = poll.cause.into_str(), "poll cancelled");
    }

    /// Passes the outcome of a poll to the coalescer, which settles each attached wait or attaches it to other polls.
    pub(super) fn settle(&mut self, id: PollId, outcome: PollOutcome, now: Instant) {
        let waits = self.waits_to_relink(id);
        self.machines.of_poll_mut(id).handle(Input::Landed(id, outcome), now);
        for wait in waits {
            self.link_to_polls(wait);
        }
    }

    /// Returns the fan-out timer of the current answer, which all waits share that this answer settles.
    fn fanout_timer(&mut self) -> Option<Arc<Fanout>> {
        let UpstreamAnswer { at, fanout, .. } = self.current_answer.as_mut()?;
        Some(Arc::clone(fanout.get_or_insert_with(|| Arc::new(self.metrics.waits.fanout(*at)))))
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
