//! Inputs of the link that concern more than polls: rejected keys, pauses and removals.

use std::collections::BTreeSet;
use std::time::Instant;

use http::StatusCode;

use super::{AnswerOrigin, PollSharing};
use crate::core::coalescer::PollSpec;
use crate::core::job::KeyDomain;
use crate::core::siblings::{EngineAnswer, EngineCall, Removal, ReplicaName, SiblingInput, SiblingMessage};
use crate::hub::task::HubTask;
use crate::upstream::poll::{KeyVerdict, key_verdict};

/// Most own removals whose return is awaited.
const MAX_ECHOES: usize = 1024;

impl HubTask {
    /// Takes in an input of the link.
    pub(in crate::hub) fn handle_sibling(&mut self, input: SiblingInput, now: Instant) {
        let origin = match &input {
            SiblingInput::Answer(_, EngineAnswer::Known(states, _)) => {
                AnswerOrigin::Store(states.iter().map(|state| (state.id.clone(), state.age)).collect())
            }
            _ => AnswerOrigin::Sibling,
        };
        if let SiblingInput::Message(message) = &input {
            self.message_of_sibling(message, now);
        }
        if let Some(sharing) = &mut self.sharing {
            sharing.cluster.observe(&input);
            if let SiblingInput::Answer(call, _) = &input {
                sharing.claims.answered(*call);
            }
            let is_up = matches!(input, SiblingInput::LinkUp(_));
            sharing.machine.handle(input, now);
            if is_up {
                self.review();
            }
            self.drain_sharing_outputs(&origin, now);
            self.drain_outputs(now);
        }
    }

    /// Reads the news that this replica may have missed about the keys that it knows. They come as messages.
    pub(super) fn review(&self) {
        if let Some(sharing) = &self.sharing {
            let keys: BTreeSet<KeyDomain> = self.keys.keys().copied().chain(self.cache.keys()).collect();
            sharing.cluster.review(keys.into_iter().collect());
        }
    }

    fn message_of_sibling(&mut self, message: &SiblingMessage, now: Instant) {
        match message {
            SiblingMessage::Revoked { by, .. } if by.is_some() && *by == self.own_name() => {}
            SiblingMessage::Revoked { domain, .. } => self.key_rejected(*domain, now),
            SiblingMessage::Paused(domain, pause) => self.scheduler.pause_by_sibling(*domain, *pause, now),
            SiblingMessage::Removed(removal) if self.is_echo(removal) => {}
            SiblingMessage::Removed(Removal::All) => drop(self.cache.remove_all()),
            SiblingMessage::Removed(Removal::Id(job)) => drop(self.cache.remove(job)),
            SiblingMessage::Removed(Removal::Changed(domain, job)) => {
                self.cache.job_changed(*domain, job, now);
                self.job_changed(*domain, job, now);
            }
            _ => {}
        }
    }

    fn own_name(&self) -> Option<ReplicaName> {
        self.sharing.as_ref().and_then(|sharing| sharing.machine.name())
    }

    /// Returns whether this replica published the removal itself. Its effect here is done.
    fn is_echo(&mut self, removal: &Removal) -> bool {
        let Some(sharing) = &mut self.sharing else { return false };
        let found = sharing.echoes.iter().position(|echo| echo == removal);
        found.map(|at| sharing.echoes.remove(at)).is_some()
    }

    /// Records the verdict on a key in a sibling's answer. The sibling publishes a 401 as well.
    pub(super) fn refused_elsewhere(&mut self, spec: &PollSpec, status: u16, now: Instant) {
        match StatusCode::from_u16(status).ok().and_then(key_verdict) {
            Some(KeyVerdict::Refused) => self.key_rejected(spec.domain, now),
            Some(KeyVerdict::Forbidden) => self.cache.key_forbidden(spec.domain, &spec.jobs, now),
            Some(KeyVerdict::Accepted) | None => {}
        }
    }

    /// Publishes that the upstream rejected a key here.
    pub(in crate::hub) fn publish_refusal(&mut self, domain: KeyDomain, now: Instant) {
        if let Some(sharing) = &mut self.sharing {
            sharing.machine.handle(SiblingInput::KeyRefused(domain), now);
        }
    }

    /// Records for siblings that the upstream accepted a key: an earlier rejection is not published again.
    pub(in crate::hub) fn accepted_for_siblings(&mut self, domain: KeyDomain, began: Instant, now: Instant) {
        if let Some(sharing) = &mut self.sharing {
            sharing.machine.handle(SiblingInput::KeyAccepted(domain, began), now);
        }
    }

    /// Publishes that states are not used any more.
    pub(in crate::hub) fn publish_removal(&mut self, removal: Removal, now: Instant) {
        let Some(sharing) = &mut self.sharing else { return };
        if sharing.echoes.len() >= MAX_ECHOES {
            sharing.echoes.remove(0);
        }
        sharing.echoes.push(removal.clone());
        sharing.machine.handle(SiblingInput::Publish(EngineCall::Remove(removal)), now);
    }

    /// Publishes the pause of a key, if it is a new one.
    pub(in crate::hub) fn publish_pause(&mut self, domain: KeyDomain, before: Option<Instant>, now: Instant) {
        let Some(PollSharing { machine, .. }) = self.sharing.as_deref_mut() else { return };
        if let Some(until) = self.scheduler.paused_until(domain).filter(|until| Some(*until) != before) {
            let pause = until.saturating_duration_since(now);
            machine.handle(SiblingInput::Publish(EngineCall::Pause(domain, pause)), now);
        }
    }
}
