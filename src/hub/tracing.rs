//! Links between the spans of waits and those of the polls that they lean on.

use super::task::HubTask;
use crate::core::coalescer::{PollId, PollSpec, WaitId};
use crate::telemetry::trace::{PollAttributes, PollSpan};

impl HubTask {
    /// The span of a poll that the machine has just opened, linked to by all who lean on it.
    pub(super) fn poll_span(&self, id: PollId, spec: &PollSpec) -> PollSpan {
        if self.tracer.is_off() {
            return PollSpan::default();
        }
        let leaning = || self.coalescer.attached_waits(id).filter_map(|wait| self.parked.get(&wait));
        let asked =
            PollAttributes { path: self.poller.path(spec.form), jobs: spec.jobs.len(), key: spec.domain };
        let span = self.tracer.poll(&asked, leaning().any(|wait| wait.links.is_recorded()));
        for wait in leaning() {
            wait.links.add(&span);
        }
        span
    }

    /// Links a wait to the polls under way that it leans on.
    pub(super) fn link_to_polls(&self, id: WaitId) {
        if self.tracer.is_off() {
            return;
        }
        let Some(wait) = self.parked.get(&id) else { return };
        for poll in self.coalescer.attached_polls(id).filter_map(|poll| self.polls.get(&poll)) {
            wait.links.add(&poll.span);
        }
    }

    /// Who leans on a poll, to be linked anew after it; nobody where nothing is traced.
    pub(super) fn waits_to_relink(&self, id: PollId) -> Vec<WaitId> {
        if self.tracer.is_off() { Vec::new() } else { self.coalescer.attached_waits(id).collect() }
    }
}
