//! Links from the spans of waits to the spans of the polls that they are attached to.

use super::task::HubTask;
use crate::core::coalescer::{PollId, PollSpec, WaitId};
use crate::telemetry::trace::{PollAttributes, PollSpan};

impl HubTask {
    /// Starts the span of a new poll, and links the attached waits to it.
    pub(super) fn poll_span(&self, id: PollId, spec: &PollSpec) -> PollSpan {
        if self.tracer.is_off() {
            return PollSpan::default();
        }
        let attached =
            || self.machines.of_poll(id).attached_waits(id).filter_map(|wait| self.parked.get(&wait));
        let attributes =
            PollAttributes { path: self.poller.path(spec), jobs: spec.jobs.len(), key: spec.domain };
        let span = self.tracer.poll(&attributes, attached().any(|wait| wait.links.is_recorded()));
        for wait in attached() {
            wait.links.add(&span);
        }
        span
    }

    /// Links a wait to the open polls that it is attached to.
    pub(super) fn link_to_polls(&self, id: WaitId) {
        if self.tracer.is_off() {
            return;
        }
        let Some(wait) = self.parked.get(&id) else { return };
        for poll in
            self.machines.of_route(wait.route).attached_polls(id).filter_map(|poll| self.polls.get(&poll))
        {
            wait.links.add(&poll.span);
        }
    }

    /// Returns the waits that are attached to a poll, which need new links after it has landed. Empty if tracing is
    /// off.
    pub(super) fn waits_to_relink(&self, id: PollId) -> Vec<WaitId> {
        if self.tracer.is_off() { Vec::new() } else { self.machines.of_poll(id).attached_waits(id).collect() }
    }
}
