//! Timing rules: the ladder, the upstream's hold, and the tolerances that follow from the hold.

use std::time::Duration;

use crate::core::route::{Goal, Ladder};

/// Longest time for the snapshot at a deadline. Only a failing upstream needs all of it.
pub const SNAPSHOT_LIMIT: Duration = Duration::from_secs(10);

/// Settings of the machine.
#[derive(Clone, Debug)]
pub struct Timing {
    /// Rungs in their order.
    pub ladder: Ladder,
    /// Time after which the upstream ends a poll whose goal is not reached.
    pub hold: Duration,
    /// Time that a poll without waits stays open.
    pub linger: Duration,
    /// Time after the last plain request for a job until its watch ends. Zero: no watches.
    pub watch_idle: Duration,
    /// Most jobs that one poll may ask for, at least one.
    pub max_jobs: usize,
    /// Whether a held poll proves that its goal is not reached. `false`: the upstream may hold it past the rung that it asks
    /// for, so that its silence proves nothing.
    pub proves: bool,
    /// Times of an upstream that never holds a request; then `hold` is zero. `None`: the upstream holds.
    pub pace: Option<Pace>,
}

/// Times between the polls of an upstream that answers every request at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Shortest time between two polls of a job.
    pub min: Duration,
    /// Longest time between two polls of a job.
    pub max: Duration,
    /// Age up to which a state counts as current.
    pub live_ttl: Duration,
}

impl Timing {
    /// Returns the distance below which two moments count as one. Gateway and upstream measure the hold by two clocks.
    pub(super) fn clock_skew(&self) -> Duration {
        self.hold / 500
    }

    /// Returns the time that a poll must be held in silence to prove that its goal is not reached: at least one round
    /// trip (P7).
    pub(super) fn min_silence(&self) -> Duration {
        self.hold / 240
    }

    /// Returns the time that a wait may stay past its deadline for a poll that the upstream is about to end (P7).
    pub(super) fn grace(&self) -> Duration {
        self.hold / 24
    }

    /// Returns the shortest interval between two polls of an upstream that does not hold them (P1, P4).
    pub(super) fn min_repoll_interval(&self) -> Duration {
        self.hold / 100
    }

    /// Returns whether the upstream answers a request for this goal at once. Its client does not expect to be held.
    pub(super) fn is_immediate(&self, goal: Goal) -> bool {
        match goal {
            Goal::Now => true,
            // Where the upstream never holds, the gateway holds such a request until the job has a known state.
            Goal::Rung(rung) => self.pace.is_none() && rung == self.ladder.lowest(),
            Goal::Not(_) => false,
        }
    }

    /// Returns whether a poll at goal `poll` ends no later than one at goal `wait` would.
    ///
    /// Only other waits without a status attach to a poll without a status: the upstream's documents do not promise
    /// that it answers one at once. Where it never holds, no poll has a status, and each serves all waits.
    pub(super) fn is_within(&self, poll: Goal, wait: Goal) -> bool {
        match (poll, wait) {
            (Goal::Now, _) if self.pace.is_some() => true,
            (Goal::Now, Goal::Now) => true,
            (Goal::Now, Goal::Rung(_) | Goal::Not(_)) | (Goal::Not(_), _) | (Goal::Rung(_), Goal::Not(_)) => {
                false
            }
            (Goal::Rung(poll), Goal::Now) => poll == self.ladder.lowest(),
            (Goal::Rung(poll), Goal::Rung(wait)) => poll <= wait,
        }
    }
}
