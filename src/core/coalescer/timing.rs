//! What the Coalescer goes by: the ladder, the upstream's time, and the small times that follow from it.
//!
//! It must never know a wait or a poll.

use std::time::Duration;

use crate::core::route::{Goal, Ladder, Rung};

/// How long the look at a deadline may take before the wait is given up, which only a failing upstream needs.
pub const SNAPSHOT_LIMIT: Duration = Duration::from_secs(10);

/// What the machine goes by.
#[derive(Clone, Debug)]
pub struct Timing {
    /// The states and their order.
    pub ladder: Ladder,
    /// When the upstream ends a poll unreached.
    pub hold: Duration,
    /// How long a poll stays open without a wait.
    pub linger: Duration,
    /// Jobs one poll may ask for, at least one.
    pub max_jobs: usize,
}

impl Timing {
    /// Two moments closer than this are one: the upstream and the gateway count the same time by two clocks.
    pub(super) fn clock_skew(&self) -> Duration {
        self.hold / 500
    }

    /// How long a poll must be silent to prove that its goal is not reached: a way there and back at least.
    pub(super) fn min_silence(&self) -> Duration {
        self.hold / 240
    }

    /// How long after its deadline a wait stays for a poll that the upstream is about to end.
    pub(super) fn grace(&self) -> Duration {
        self.hold / 24
    }

    /// How often an upstream that does not hold its polls is asked at most.
    pub(super) fn min_repoll_interval(&self) -> Duration {
        self.hold / 100
    }

    /// Returns whether the upstream answers a request for this goal at once: its client expects no wait.
    pub(super) fn is_immediate(&self, goal: Goal) -> bool {
        match goal {
            Goal::Now => true,
            Goal::Rung(rung) => rung == self.ladder.lowest(),
        }
    }

    pub(super) fn reaches(&self, rung: Rung, goal: Goal) -> bool {
        match goal {
            Goal::Now => true,
            Goal::Rung(asked) => rung >= asked,
        }
    }

    /// Whether a poll for `poll` is at or below the goal `wait`, so that leaning on it makes nobody late.
    /// A request without a status is only believed to be answered at once: no other leans on it.
    pub(super) fn is_within(&self, poll: Goal, wait: Goal) -> bool {
        match (poll, wait) {
            (Goal::Now, Goal::Now) => true,
            (Goal::Now, Goal::Rung(_)) => false,
            (Goal::Rung(poll), Goal::Now) => poll == self.ladder.lowest(),
            (Goal::Rung(poll), Goal::Rung(wait)) => poll <= wait,
        }
    }
}
