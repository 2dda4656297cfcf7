//! Log lines about the link to the engine and the number of replicas.

use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::clock;
use crate::core::siblings::LinkState;

/// Time with too few replicas until the warning.
const FEW_FOR: Duration = Duration::from_secs(60);
/// Time for the first connection, before the log says that there is none.
const STARTING: Duration = Duration::from_secs(2);

/// Writes one line at each change.
pub(super) struct LinkReports {
    expected: usize,
    link: Option<LinkState>,
    /// End of the time for the first connection.
    starts_until: Instant,
    few_since: Option<Instant>,
    has_warned: bool,
}

impl LinkReports {
    /// `expected` is zero if the number of replicas is not checked.
    pub(super) fn new(expected: usize) -> Self {
        let now = clock::now();
        let starts_until = now + STARTING;
        Self { expected, link: None, starts_until, few_since: Some(now), has_warned: false }
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        let first = self.link.is_none().then_some(self.starts_until);
        let few =
            self.few_since.filter(|_| self.expected > 0 && !self.has_warned).map(|since| since + FEW_FOR);
        first.into_iter().chain(few).min()
    }

    /// Takes in the state after a round.
    pub(super) fn update(&mut self, link: LinkState, members: usize, now: Instant) {
        let is_starting = self.link.is_none() && link == LinkState::Apart && now < self.starts_until;
        if self.link != Some(link) && !is_starting {
            self.link = Some(link);
            match link {
                LinkState::Near => info!(link = "near", members, "link to the engine changed"),
                LinkState::Far => warn!(link = "far", members, "link to the engine changed"),
                LinkState::Apart => warn!(link = "apart", members, "link to the engine changed"),
            }
        }
        if members >= self.expected {
            if std::mem::take(&mut self.has_warned) {
                info!(members, "as many replicas as expected");
            }
            self.few_since = None;
        } else if now >= *self.few_since.get_or_insert(now) + FEW_FOR && !self.has_warned {
            self.has_warned = true;
            warn!(members, expected = self.expected, "fewer replicas than expected");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_replicas_are_reported_once_after_a_minute() {
        let mut reports = LinkReports::new(3);
        let t0 = clock::now();
        reports.update(LinkState::Near, 2, t0);
        assert!(!reports.has_warned && reports.next_due().is_some_and(|due| due <= t0 + FEW_FOR));
        reports.update(LinkState::Near, 2, t0 + FEW_FOR);
        assert!(reports.has_warned && reports.next_due().is_none());
        reports.update(LinkState::Near, 3, t0 + FEW_FOR);
        assert!(!reports.has_warned && reports.few_since.is_none());
        let mut unchecked = LinkReports::new(0);
        unchecked.update(LinkState::Apart, 1, t0 + FEW_FOR * 2);
        assert!(!unchecked.has_warned && unchecked.next_due().is_none());
    }
}
