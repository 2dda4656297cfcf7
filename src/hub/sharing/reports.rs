//! Reports about the link after a round: metrics, the log, the parts of quotas, the end of a drain.

use std::time::Instant;

use super::PollSharing;
use crate::core::siblings::LinkState;
use crate::hub::task::HubTask;
use crate::telemetry::metrics::LinkLabel;

impl HubTask {
    /// Reports the link after a round.
    pub(in crate::hub) fn report_sharing(&mut self, now: Instant) {
        let Some(sharing) = &mut self.sharing else { return };
        let PollSharing { machine, reports, handed_over, is_draining, strict, replicas, .. } = &mut **sharing;
        reports.update(machine.link(), machine.members(), now);
        let is_apart = machine.link() == LinkState::Apart;
        if !is_apart {
            *replicas = u32::try_from(machine.members()).unwrap_or(u32::MAX).max(1);
        }
        self.limits.set_replicas(*replicas, is_apart && *strict);
        self.metrics.cluster.set_link(link_label(machine.link()));
        self.metrics.cluster.set_counts(machine.members(), machine.unanswered());
        if *is_draining {
            // Without the engine siblings find out by themselves.
            let is_done = machine.polls().1 == 0 && machine.unanswered() == 0;
            let is_done = is_done || machine.is_alone();
            handed_over.send_if_modified(|done| std::mem::replace(done, is_done) != is_done);
        }
    }
}

fn link_label(link: LinkState) -> LinkLabel {
    match link {
        LinkState::Near => LinkLabel::Near,
        LinkState::Far => LinkLabel::Far,
        LinkState::Apart => LinkLabel::Apart,
    }
}
