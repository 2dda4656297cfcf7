//! The model of the engine: leases, members, stored states and epochs, and the messages that its scripts publish.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::core::job::{JobId, KeyDomain};
use crate::core::route::Goal;
use crate::core::siblings::{
    ClaimRequest, EngineAnswer, EngineCall, EngineTime, KeyEpoch, LeaseToken, PollName, ReplicaName,
    ShareSpec, SharedOutcome, SharedState, SiblingMessage,
};

#[derive(Clone, Debug)]
pub(super) struct EngineLease {
    pub(super) holder: ReplicaName,
    pub(super) token: LeaseToken,
    started: Duration,
    until: Duration,
    epoch: KeyEpoch,
    guests: BTreeSet<ReplicaName>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct EngineModel {
    members: BTreeMap<ReplicaName, Duration>,
    pub(super) leases: BTreeMap<PollName, EngineLease>,
    /// Each state with the moment for which it was certain.
    states: BTreeMap<(KeyDomain, JobId), (SharedState, Duration, KeyEpoch)>,
    epochs: BTreeMap<KeyDomain, KeyEpoch>,
    /// Last rejection of each key: attempts that began before it land no more.
    refused_at: BTreeMap<KeyDomain, Duration>,
    next_epoch: u64,
}

pub(super) const TAKEOVER: Duration = Duration::from_secs(2);

impl EngineModel {
    /// Forgets everything but the number of the next epoch, which is random in truth.
    pub(super) fn flush(&mut self) {
        *self = Self { next_epoch: self.next_epoch, ..Self::default() };
    }

    /// Goes back to an earlier state, as after a failover to a server that had not received all writes.
    pub(super) fn go_back(&mut self, to: Self) {
        *self = Self { next_epoch: self.next_epoch, ..to };
    }

    fn epoch(&mut self, domain: KeyDomain) -> KeyEpoch {
        self.next_epoch += 1;
        *self.epochs.entry(domain).or_insert(KeyEpoch(self.next_epoch))
    }

    /// Returns whether a script writes. An engine without memory executes the others.
    pub(super) fn needs_memory(call: &EngineCall) -> bool {
        match call {
            EngineCall::Claim(_)
            | EngineCall::Adopt { .. }
            | EngineCall::Land { .. }
            | EngineCall::Beat(_)
            | EngineCall::Refuse { .. }
            | EngineCall::Remove(_)
            | EngineCall::Pause(..) => true,
            EngineCall::Fail(..)
            | EngineCall::Leave(..)
            | EngineCall::Detach(_)
            | EngineCall::Note(..)
            | EngineCall::Flushed => false,
        }
    }

    /// Executes the part of a script before its first write that needs memory.
    pub(super) fn fail(&mut self, call: &EngineCall) {
        if let EngineCall::Land { spec, token, .. } = call {
            self.release(spec.name, *token);
        }
    }

    /// Executes a script at this time by the clock of the engine.
    pub(super) fn execute(
        &mut self,
        me: ReplicaName,
        call: EngineCall,
        now: Duration,
    ) -> (EngineAnswer, Vec<SiblingMessage>) {
        let done = EngineAnswer::Done(EngineTime(now));
        match call {
            EngineCall::Claim(request) => self.claim(me, &request, now),
            EngineCall::Adopt { is_first: false, .. } if !self.members.contains_key(&me) => {
                (EngineAnswer::Flushed, Vec::new())
            }
            EngineCall::Adopt { spec, token, age, attempt_age, .. } => {
                self.adopt(me, &spec, token, [age, attempt_age], now)
            }
            EngineCall::Land { spec, token, epoch, attempt_age, outcome, sent_at } => {
                let delay = delay(sent_at, now);
                let began = now.saturating_sub(attempt_age + delay);
                (done, vec![self.land(&spec, token, epoch, outcome, [began, delay], now)])
            }
            EngineCall::Fail(name, token, _) => {
                self.release(name, token);
                (done, vec![SiblingMessage::Failed(name, token)])
            }
            EngineCall::Leave(name, token) => {
                self.release(name, token);
                (done, vec![SiblingMessage::Left(name, token)])
            }
            EngineCall::Detach(name) => {
                if let Some(lease) = self.leases.get_mut(&name) {
                    lease.guests.remove(&me);
                }
                (done, vec![SiblingMessage::Detached(name, me)])
            }
            EngineCall::Note(name, token, held_for) => {
                (done, vec![SiblingMessage::Note(name, token, held_for)])
            }
            EngineCall::Beat(former) => {
                if let Some(former) = former {
                    self.members.remove(&former);
                }
                let was_member = self.members.insert(me, now).is_some();
                let answer = if was_member { done } else { EngineAnswer::Flushed };
                (answer, vec![SiblingMessage::Beat(me, former)])
            }
            EngineCall::Refuse { domain, age, sent_at, repeats_within } => {
                let age = age + delay(sent_at, now);
                let at = now.saturating_sub(age);
                let refused_at = self.refused_at.entry(domain).or_default();
                if repeats_within.is_some_and(|margin| *refused_at + margin >= at) {
                    return (done, Vec::new());
                }
                *refused_at = at.max(*refused_at);
                let dead = self.epoch(domain);
                self.epochs.remove(&domain);
                (done, vec![SiblingMessage::Revoked { domain, dead, age, by: Some(me) }])
            }
            EngineCall::Remove(removal) => (done, vec![SiblingMessage::Removed { removal, by: None }]),
            EngineCall::Pause(domain, pause) => (done, vec![SiblingMessage::Paused(domain, pause)]),
            EngineCall::Flushed => (done, vec![SiblingMessage::Flushed]),
        }
    }

    fn claim(
        &mut self,
        me: ReplicaName,
        request: &ClaimRequest,
        now: Duration,
    ) -> (EngineAnswer, Vec<SiblingMessage>) {
        let ClaimRequest { spec, token, suspicion, follows, is_look } = request;
        if !self.members.contains_key(&me) {
            return (EngineAnswer::Flushed, Vec::new());
        }
        let epoch = self.epoch(spec.domain);
        let found = self.leases.get(&spec.name).map(|lease| lease.token);
        let taken = follows.filter(|follows| found != Some(*follows));
        let taken = taken.map(|follows| SiblingMessage::Taken(spec.name, follows));
        if spec.takes_known
            && let Some(states) = self.known(spec, epoch, now)
        {
            return (EngineAnswer::Known(states, epoch), taken.into_iter().collect());
        }
        let members = &self.members;
        let is_valid = |lease: &EngineLease| {
            let beats = members.get(&lease.holder).is_some_and(|beat| is_recent(*beat, now));
            let is_suspected =
                suspicion.is_some_and(|suspicion| suspicion.is_proven && suspicion.holder == lease.holder);
            lease.until > now && beats && !is_suspected && lease.epoch == epoch && lease.holder != me
        };
        if let Some(lease) = self.leases.get_mut(&spec.name).filter(|lease| is_valid(lease)) {
            lease.guests.insert(me);
            let (by, token, age) = (lease.holder, lease.token, now.saturating_sub(lease.started));
            let attached = SiblingMessage::Attached(spec.name, token, me);
            let messages = [Some(attached), taken].into_iter().flatten().collect();
            return (EngineAnswer::Held { by, token, age, epoch }, messages);
        }
        if *is_look {
            return (EngineAnswer::Vacant, Vec::new());
        }
        let lease = EngineLease {
            holder: me,
            token: *token,
            started: now,
            until: now + spec.hold + Duration::from_secs(30),
            epoch,
            guests: BTreeSet::new(),
        };
        self.leases.insert(spec.name, lease);
        let taken = follows.map(|follows| SiblingMessage::Taken(spec.name, follows));
        (EngineAnswer::Granted(epoch), taken.into_iter().collect())
    }

    fn known(&self, spec: &ShareSpec, epoch: KeyEpoch, now: Duration) -> Option<Vec<SharedState>> {
        let state_of = |job: &JobId| {
            let (state, at, of) = self.states.get(&(spec.domain, job.clone()))?;
            let age = now.saturating_sub(*at);
            let is_at_goal = match spec.goal {
                Goal::Now => true,
                Goal::Rung(goal) => state.rung.is_some_and(|rung| rung >= goal),
                Goal::Not(_) => false,
            };
            let is_fresh = state.is_final || (is_at_goal && age <= spec.max_age && !spec.max_age.is_zero());
            (*of == epoch && is_fresh).then(|| SharedState { age, ..state.clone() })
        };
        spec.jobs.iter().map(state_of).collect()
    }

    fn adopt(
        &mut self,
        me: ReplicaName,
        spec: &ShareSpec,
        token: LeaseToken,
        [age, attempt_age]: [Duration; 2],
        now: Duration,
    ) -> (EngineAnswer, Vec<SiblingMessage>) {
        self.members.insert(me, now);
        let epoch = self.epoch(spec.domain);
        let is_revoked = self.is_refused_since(spec.domain, now.saturating_sub(attempt_age));
        let members = &self.members;
        let is_alive = |holder| members.get(&holder).is_some_and(|beat: &Duration| is_recent(*beat, now));
        let is_others = self.leases.get(&spec.name).is_some_and(|lease| {
            lease.token != token && lease.until > now && is_alive(lease.holder) && lease.epoch == epoch
        });
        if is_others || is_revoked {
            return (EngineAnswer::Adopted { is_mine: false, epoch, guests: Vec::new() }, Vec::new());
        }
        let started = now.saturating_sub(age);
        let until = started + spec.hold + Duration::from_secs(30);
        let guests = self.leases.remove(&spec.name).filter(|lease| lease.token == token);
        let guests = guests.map(|lease| lease.guests).unwrap_or_default();
        let answer = EngineAnswer::Adopted { is_mine: true, epoch, guests: guests.iter().copied().collect() };
        self.leases.insert(spec.name, EngineLease { holder: me, token, started, until, epoch, guests });
        (answer, Vec::new())
    }

    fn land(
        &mut self,
        spec: &ShareSpec,
        token: LeaseToken,
        epoch: Option<KeyEpoch>,
        mut outcome: SharedOutcome,
        [began, delay]: [Duration; 2],
        now: Duration,
    ) -> SiblingMessage {
        self.release(spec.name, token);
        let current = self.epoch(spec.domain);
        if epoch.is_some_and(|epoch| epoch != current) || self.is_refused_since(spec.domain, began) {
            return SiblingMessage::Left(spec.name, token);
        }
        if let SharedOutcome::Jobs(states) = &mut outcome {
            for state in states {
                state.age += delay;
                let at = now.saturating_sub(state.age);
                let key = (spec.domain, state.id.clone());
                let is_lower = self.states.get(&key).is_some_and(|(known, known_at, of)| {
                    *of == current && (known.rung, *known_at) > (state.rung, at)
                });
                if !is_lower {
                    self.states.insert(key, (state.clone(), at, current));
                }
            }
        }
        SiblingMessage::Landed(spec.name, token, current, outcome)
    }

    fn is_refused_since(&self, domain: KeyDomain, began: Duration) -> bool {
        self.refused_at.get(&domain).is_some_and(|at| began <= *at)
    }

    fn release(&mut self, name: PollName, token: LeaseToken) {
        if self.leases.get(&name).is_some_and(|lease| lease.token == token) {
            self.leases.remove(&name);
        }
    }
}

/// Returns whether a beat shows a living replica. One far in the future is of a clock that went back.
fn is_recent(beat: Duration, now: Duration) -> bool {
    beat + TAKEOVER > now && beat <= now + TAKEOVER
}

/// Returns the time that a call was on its way.
fn delay(sent_at: Option<EngineTime>, now: Duration) -> Duration {
    sent_at.map_or(Duration::ZERO, |EngineTime(sent)| now.saturating_sub(sent))
}
