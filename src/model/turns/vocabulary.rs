//! The words of the turns: what the machine goes by, what it is told and what it says.
//!
//! Plain values. It must never know who decides what by them.

use std::time::Duration;

use crate::model::backoff::Backoff;
use crate::model::breaker::BreakerRules;
use crate::model::coalesce::{Failure, PollId};

/// What the machine goes by.
#[derive(Clone, Copy, Debug)]
pub struct TurnRules {
    /// Polls open at once, at least one. With two or more the last place is for quick ones only.
    pub max_polls: usize,
    /// The least time between two tries; zero: none.
    pub interval: Duration,
    /// Tries in a row after the first.
    pub retries: u32,
    /// The pauses between them.
    pub backoff: Backoff,
    /// When to ask nobody.
    pub breaker: BreakerRules,
}

/// What sort of poll asks for a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Haste {
    /// It may stand for as long as the upstream holds.
    Long,
    /// It is answered at once: the look at somebody's deadline. It goes first.
    Quick,
}

/// How a try ended.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// With the upstream's final word, whatever that is.
    Answered,
    /// With a fault, and what that says of another try.
    Failed(Failure, Advice),
}

/// What a failed try says of the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Nothing: there is a pause, and a longer one each time.
    BackOff,
    /// Nothing of it was sent: it was given a kept connection that the upstream had closed meanwhile.
    Reconnect,
    /// The upstream asked for so long a pause of this request.
    RestPoll(Duration),
    /// The upstream asked for so long a pause of whoever uses this key.
    RestKey(Duration),
}

/// Something is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TurnOutput {
    /// Try the poll now.
    Try(PollId),
    /// The poll failed so, and is tried again after so long.
    Stalled(PollId, Failure, Duration),
    /// The upstream asked for it: the poll is not tried for so long, because of this.
    Rests(PollId, Failure, Duration),
    /// The poll has failed for good, and is forgotten.
    GiveUp(PollId, Failure),
}
