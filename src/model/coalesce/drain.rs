//! The end of all waits: each is told the truth of its clips before the gateway goes, one after the other.
//!
//! To the client that is the upstream's own time-out answer, and it asks again. Nothing here answers: a drained
//! wait is one whose time is over sooner.

use std::time::Instant;

use super::Coalescer;
use super::vocabulary::{WaitId, WaitSpec};

impl Coalescer {
    /// Spreads the deadlines of all waits over the first part of the time that is left; the rest of it is for
    /// what the last ones still have to ask.
    pub(super) fn drain(&mut self, until: Instant, now: Instant) {
        self.draining = Some(until);
        let window = until.saturating_duration_since(now);
        let spread = window - window / SHARE_FOR_LOOKS;
        let mut waits: Vec<(Instant, WaitId)> =
            self.board.all_waits().map(|(id, wait)| (wait.deadline(), id)).collect();
        waits.sort_unstable();
        let count = u32::try_from(waits.len()).unwrap_or(u32::MAX).max(1);
        for (place, (_, id)) in (0..count).zip(waits) {
            self.board.shorten(id, now + spread / count * place);
        }
    }

    /// A wait that comes while draining is told at once.
    pub(super) fn shorten_if_draining(&self, spec: &mut WaitSpec, now: Instant) {
        if self.draining.is_some() {
            spec.timeout = spec.timeout.min(now.saturating_duration_since(spec.arrived));
        }
    }
}

/// What part of the time is kept for looks.
const SHARE_FOR_LOOKS: u32 = 4;
