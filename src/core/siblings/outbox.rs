//! The outbox: calls that siblings depend on, kept until the engine has answered them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::types::{
    CallId, EngineCall, EngineTime, KeyEpoch, LeaseToken, ShareSpec, SharedOutcome, SharedState,
};
use crate::core::job::KeyDomain;

/// Most calls. The oldest goes first; guests whose landing is lost look again when the link is back.
pub(super) const MAX_CALLS: usize = 1024;
/// Most bytes of bodies.
pub(super) const MAX_BYTES: usize = 16 << 20;
/// Time for which a call is kept.
pub(super) const MAX_AGE: Duration = Duration::from_secs(120);

/// A call that is sent again after each loss of the link.
#[derive(Clone, Debug)]
pub(super) enum Letter {
    /// The result of a poll.
    Land(Arc<ShareSpec>, LeaseToken, Option<KeyEpoch>, SharedOutcome, LetterTimes),
    /// A key that the upstream rejected at this moment.
    Refuse(KeyDomain, Instant),
    /// A paused key, until the given moment.
    Pause(KeyDomain, Instant),
    Other(EngineCall),
}

/// Times of a result.
#[derive(Clone, Copy, Debug)]
pub(super) struct LetterTimes {
    /// Moment of the ages.
    pub(super) as_of: Instant,
    /// Start of the attempt.
    pub(super) began: Instant,
}

impl Letter {
    /// Returns the call with the ages of now.
    pub(super) fn call(&self, sent_at: Option<EngineTime>, now: Instant) -> EngineCall {
        match self {
            Letter::Land(spec, token, epoch, outcome, LetterTimes { as_of, began }) => {
                let mut outcome = outcome.clone();
                if let SharedOutcome::Jobs(states) = &mut outcome {
                    let passed = now.saturating_duration_since(*as_of);
                    states.iter_mut().for_each(|state| state.age += passed);
                }
                let (spec, token, epoch) = (Arc::clone(spec), *token, *epoch);
                let attempt_age = now.saturating_duration_since(*began);
                EngineCall::Land { spec, token, epoch, attempt_age, outcome, sent_at }
            }
            Letter::Refuse(domain, at) => {
                let age = now.saturating_duration_since(*at);
                EngineCall::Refuse { domain: *domain, age, sent_at, is_repeated: false }
            }
            Letter::Pause(domain, until) => EngineCall::Pause(*domain, until.saturating_duration_since(now)),
            Letter::Other(call) => call.clone(),
        }
    }

    fn bytes(&self) -> usize {
        let len = |state: &SharedState| state.body.as_ref().map_or(0, |body| body.len());
        match self {
            Letter::Land(_, _, _, SharedOutcome::Jobs(states), _) => states.iter().map(len).sum(),
            Letter::Land(_, _, _, SharedOutcome::Unsplit(reply) | SharedOutcome::Refused(reply), _) => {
                reply.body.len()
            }
            Letter::Pause(..) | Letter::Refuse(..) | Letter::Other(_) => 0,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Outbox {
    letters: BTreeMap<CallId, (Instant, Letter)>,
    bytes: usize,
}

impl Outbox {
    pub(super) fn push(&mut self, call: CallId, letter: Letter, now: Instant) {
        self.bytes += letter.bytes();
        self.letters.insert(call, (now, letter));
        self.prune(now);
    }

    /// Removes a call that the engine has answered. Returns whether it was here.
    pub(super) fn answered(&mut self, call: CallId) -> bool {
        let Some((_, letter)) = self.letters.remove(&call) else { return false };
        self.bytes -= letter.bytes();
        true
    }

    /// Removes old calls, pauses that are over, and the oldest where there are too many.
    pub(super) fn prune(&mut self, now: Instant) {
        self.letters.retain(|_, (_, letter)| !matches!(letter, Letter::Pause(_, until) if *until <= now));
        while let Some((&call, (at, _))) = self.letters.first_key_value() {
            if *at + MAX_AGE > now && self.bytes <= MAX_BYTES && self.letters.len() <= MAX_CALLS {
                return;
            }
            self.answered(call);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (CallId, &Letter)> {
        self.letters.iter().map(|(call, (_, letter))| (*call, letter))
    }

    pub(super) fn len(&self) -> usize {
        self.letters.len()
    }

    /// Returns when the oldest call is forgotten.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.letters.first_key_value().map(|(_, (at, _))| *at + MAX_AGE)
    }
}
