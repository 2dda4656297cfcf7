//! Counts for the metrics of claims: how each poll came to be made here.

use crate::core::Map;
use crate::core::siblings::{CallId, ClaimRequest, PollName};
use crate::telemetry::metrics::TakeoverReason;

/// The claims of the shared polls.
#[derive(Default)]
pub(super) struct ClaimCounts {
    polls: Map<PollName, ClaimedPoll>,
    /// Claims without an answer.
    pending: Map<CallId, PollName>,
}

#[derive(Default)]
struct ClaimedPoll {
    claim: Option<CallId>,
    /// Why the last claim followed a sibling's lease.
    follows: Option<TakeoverReason>,
    is_elsewhere: bool,
}

/// Reason for which a poll is made here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StartReason {
    /// The engine granted it, or it was not asked.
    Opened,
    /// The engine did not answer in time.
    TimedOut,
    /// A sibling had it.
    TakenOver(TakeoverReason),
}

impl ClaimCounts {
    /// Records a claim.
    pub(super) fn claimed(&mut self, call: CallId, request: &ClaimRequest) {
        let name = request.spec.name;
        let poll = self.polls.entry(name).or_default();
        if let Some(before) = poll.claim.replace(call) {
            self.pending.remove(&before);
        }
        poll.follows = match (&request.suspicion, &request.follows) {
            (Some(_), _) => Some(TakeoverReason::Dead),
            (None, Some(_)) => Some(TakeoverReason::Left),
            (None, None) => None,
        };
        self.pending.insert(call, name);
    }

    pub(super) fn answered(&mut self, call: CallId) {
        if let Some(poll) = self.pending.remove(&call).and_then(|name| self.polls.get_mut(&name)) {
            poll.claim.take_if(|claim| *claim == call);
        }
    }

    /// Records that a sibling makes the poll.
    pub(super) fn is_elsewhere(&mut self, name: PollName) {
        self.polls.entry(name).or_default().is_elsewhere = true;
    }

    /// Returns why a poll starts here.
    pub(super) fn started(&self, name: PollName, is_apart: bool) -> StartReason {
        match self.polls.get(&name) {
            Some(poll) if poll.is_elsewhere => {
                let reason = poll.follows.filter(|_| !is_apart).unwrap_or(TakeoverReason::Apart);
                StartReason::TakenOver(reason)
            }
            Some(poll) if poll.claim.is_some() => StartReason::TimedOut,
            Some(_) | None => StartReason::Opened,
        }
    }

    pub(super) fn remove(&mut self, name: PollName) {
        if let Some(call) = self.polls.remove(&name).and_then(|poll| poll.claim) {
            self.pending.remove(&call);
        }
    }
}
