//! Inputs of the link that concern more than polls: rejected keys, pauses and removals.

use std::collections::BTreeSet;
use std::time::Instant;

use http::StatusCode;

use super::{AnswerOrigin, PollSharing};
use crate::core::coalescer::PollSpec;
use crate::core::job::KeyDomain;
use crate::core::siblings::{EngineAnswer, EngineCall, Removal, ReplicaName, SiblingInput, SiblingMessage};
use crate::hub::job_changes::PendingChanges;
use crate::hub::task::HubTask;
use crate::upstream::poll::{KeyVerdict, key_verdict};

impl PollSharing {
    /// Records that states are removed, which answers to claims under way may still have.
    fn record_removal(&mut self, removal: &Removal, now: Instant) {
        if matches!(removal, Removal::All | Removal::Id(_)) {
            self.removed_at = Some(now);
        }
    }
}

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
            if matches!(input, SiblingInput::LinkUp(_)) {
                sharing.machine.set_refusal_ttl(self.cache.config().load().key_recheck_interval);
            }
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
            // Its effect here is done.
            SiblingMessage::Removed { by, .. } if by.is_some() && *by == self.own_instance() => {}
            SiblingMessage::Removed { removal, .. } => self.removed_by_sibling(removal, now),
            _ => {}
        }
    }

    fn own_name(&self) -> Option<ReplicaName> {
        self.sharing.as_ref().and_then(|sharing| sharing.machine.name())
    }

    fn own_instance(&self) -> Option<u64> {
        self.sharing.as_ref().map(|sharing| sharing.machine.instance())
    }

    fn removed_by_sibling(&mut self, removal: &Removal, now: Instant) {
        let Some(sharing) = self.sharing.as_deref_mut() else { return };
        sharing.record_removal(removal, now);
        let PollSharing { removals, tasks, .. } = sharing;
        match removal {
            Removal::All => removals.remove(None, &self.cache, tasks),
            Removal::Id(job) => removals.remove(Some(job), &self.cache, tasks),
            Removal::Changed(domain, job) => {
                self.cache.job_changed(*domain, job, now);
                self.job_changed(*domain, job, now);
            }
            Removal::AllChanged(concerned) => {
                self.cache.all_jobs_changed(*concerned, now);
                self.machines.forget_states(|domain| concerned.is_none_or(|of| of == domain), now);
                self.drain_outputs(now);
            }
        }
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
        if let Some(sharing) = &mut self.sharing {
            sharing.record_removal(&removal, now);
            sharing.machine.handle(SiblingInput::Publish(EngineCall::Remove(removal)), now);
        }
    }

    /// Publishes the changes of a round. Siblings forget all states of a key of which many jobs changed.
    pub(in crate::hub) fn publish_changes(&mut self, changes: &PendingChanges, now: Instant) {
        if self.sharing.is_some() {
            changes.removals().into_iter().for_each(|removal| self.publish_removal(removal, now));
        }
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
