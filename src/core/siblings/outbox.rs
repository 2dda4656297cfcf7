//! The outbox: calls that siblings depend on, kept until the engine has answered them.

use std::collections::{BTreeMap, BTreeSet};
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
/// Pause after a call that the engine failed. Each further failure doubles it, to 8 s.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
const MAX_DOUBLINGS: u32 = 4;

/// A call that is sent again after each loss of the link, and some time after each failure.
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
    /// Returns the call with the ages of now. `is_repeated`: the engine may have executed it.
    pub(super) fn call(&self, is_repeated: bool, sent_at: Option<EngineTime>, now: Instant) -> EngineCall {
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
                // P11: the key may have been accepted and rejected again within a moment.
                let repeats_within = is_repeated.then_some(Duration::ZERO);
                EngineCall::Refuse { domain: *domain, age, sent_at, repeats_within }
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
    letters: BTreeMap<CallId, KeptLetter>,
    /// Letters that the engine failed, and when they are sent again.
    retries: BTreeSet<(Instant, CallId)>,
    bytes: usize,
    /// Whether a removal was forgotten without an answer.
    has_lost_removal: bool,
}

#[derive(Debug)]
struct KeptLetter {
    letter: Letter,
    since: Instant,
    failures: u32,
    retry_at: Option<Instant>,
}

impl Outbox {
    pub(super) fn push(&mut self, call: CallId, letter: Letter, now: Instant) {
        self.bytes += letter.bytes();
        self.letters.insert(call, KeptLetter { letter, since: now, failures: 0, retry_at: None });
        self.prune(now);
    }

    /// Removes a call that the engine has answered. Returns whether it was here.
    pub(super) fn answered(&mut self, call: CallId) -> bool {
        let Some(KeptLetter { letter, retry_at, .. }) = self.letters.remove(&call) else { return false };
        self.bytes -= letter.bytes();
        if let Some(at) = retry_at {
            self.retries.remove(&(at, call));
        }
        true
    }

    /// Records that the engine failed a call.
    pub(super) fn failed(&mut self, call: CallId, now: Instant) {
        let Some(kept) = self.letters.get_mut(&call) else { return };
        let at = now + RETRY_PAUSE * (1 << kept.failures.min(MAX_DOUBLINGS));
        kept.failures += 1;
        if let Some(before) = kept.retry_at.replace(at) {
            self.retries.remove(&(before, call));
        }
        self.retries.insert((at, call));
    }

    /// Makes all calls that the engine failed due at once, in their order.
    pub(super) fn retry_now(&mut self, now: Instant) {
        let failed: Vec<CallId> = self.retries.iter().map(|(_, call)| *call).collect();
        self.retries = failed.iter().map(|call| (now, *call)).collect();
        for call in failed {
            self.letters.get_mut(&call).into_iter().for_each(|kept| kept.retry_at = Some(now));
        }
    }

    /// Forgets when to send calls again: a new link gets all of them.
    pub(super) fn clear_retries(&mut self) {
        self.retries.clear();
        self.letters.values_mut().for_each(|kept| kept.retry_at = None);
    }

    /// Removes a due retry and returns its call.
    pub(super) fn take_retry(&mut self, now: Instant) -> Option<(CallId, &Letter)> {
        let due = *self.retries.first().filter(|(at, _)| *at <= now)?;
        self.retries.remove(&due);
        let (_, call) = due;
        let kept = self.letters.get_mut(&call)?;
        kept.retry_at = None;
        Some((call, &kept.letter))
    }

    /// Removes old calls, pauses that are over, and the oldest where there are too many.
    pub(super) fn prune(&mut self, now: Instant) {
        let is_over = |kept: &KeptLetter| matches!(kept.letter, Letter::Pause(_, until) if until <= now);
        let over: Vec<CallId> =
            self.letters.iter().filter(|(_, kept)| is_over(kept)).map(|(call, _)| *call).collect();
        over.into_iter().for_each(|call| _ = self.answered(call));
        while let Some((&call, KeptLetter { since, letter, .. })) = self.letters.first_key_value() {
            if *since + MAX_AGE > now && self.bytes <= MAX_BYTES && self.letters.len() <= MAX_CALLS {
                return;
            }
            self.has_lost_removal |= matches!(letter, Letter::Other(EngineCall::Remove(_)));
            self.answered(call);
        }
    }

    /// Returns whether a removal was forgotten without an answer, and forgets that.
    pub(super) fn take_lost_removal(&mut self) -> bool {
        std::mem::take(&mut self.has_lost_removal)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (CallId, &Letter)> {
        self.letters.iter().map(|(call, kept)| (*call, &kept.letter))
    }

    pub(super) fn len(&self) -> usize {
        self.letters.len()
    }

    /// Returns when the oldest call is forgotten, or one is sent again.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let oldest = self.letters.first_key_value().map(|(_, kept)| kept.since + MAX_AGE);
        let retry = self.retries.first().map(|(at, _)| *at);
        oldest.into_iter().chain(retry).min()
    }
}
