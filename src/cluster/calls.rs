//! Calls of the machine as scripts with keys and arguments.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;

use super::ClusterWorld;
use super::epochs::KnownEpochs;
use super::names::{Names, ShardIndex, member};
use super::polls::ClusterPoll;
use super::scripts::EngineScript;
use super::seal::{MessageCodes, StateSeal};
use super::wire::message::{
    TEXT_AT, WireKind, beat_text, epoch_record, guest_text, lease_record, lease_text, message, millis,
    note_text, token_bytes,
};
use super::wire::put_field;
use super::wire::state::{encode_response, encode_state};
use crate::config::{CacheConfig, ClusterConfig, Share};
use crate::core::job::{KeyDomain, UpstreamResponse};
use crate::core::route::{Goal, Route};
use crate::core::siblings::{
    ClaimRequest, EngineCall, EngineTime, KeyEpoch, LeaseToken, PollName, ReplicaName, ShareSpec,
    SharedOutcome, SharedState,
};

/// Time by which a lease outlasts the upstream's hold.
const LEASE_MARGIN: Duration = Duration::from_secs(30);
/// Lifetime of a state that may still change.
const LIVE_TTL: Duration = Duration::from_secs(120);
/// Shortest lifetime of an epoch.
const MIN_EPOCH_TTL: Duration = Duration::from_secs(3600);
/// Most bytes of bodies in one message, unless a single body may be longer. The engine closes the connection of a
/// subscriber with 32 MiB of unread messages, by default.
const MAX_BODIES: usize = 4 << 20;
/// Largest response that is shared where it is not split by job.
const MAX_RESPONSE: usize = 64 << 10;

/// Everything that calls and answers are translated with.
pub(super) struct Dialect {
    pub(super) names: Names,
    pub(super) codes: MessageCodes,
    /// Seal of the ids in removals, which concern all keys.
    pub(super) removals: StateSeal,
    pub(super) shares_jobs: bool,
    pub(super) shares_polls: bool,
    pub(super) takeover: Duration,
    pub(super) max_body: usize,
    /// Current epochs, as far as known.
    pub(super) epochs: KnownEpochs,
    /// Random number of this process.
    pub(super) instance: u64,
    pub(super) cache: Arc<ArcSwap<CacheConfig>>,
    /// Longest lifetime of a state so far, in milliseconds: a reload may have made it shorter.
    longest_lifetime: AtomicU64,
}

/// A script with its keys and arguments.
#[derive(Debug)]
pub(super) struct ScriptCall {
    pub(super) script: EngineScript,
    pub(super) keys: Vec<String>,
    pub(super) args: Vec<Vec<u8>>,
}

/// Way in which a claim is repeated after an entry that could not be opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Distrust {
    pub(super) of_states: bool,
}

impl Dialect {
    /// Returns the script calls of a call: one, or one for each shard. [`Self::last_script`] comes after them. Empty if it
    /// concerns a poll that is not registered.
    pub(super) fn script_calls(
        &self,
        me: ReplicaName,
        call: &EngineCall,
        poll: Option<&ClusterPoll>,
        beat: u64,
    ) -> Vec<ScriptCall> {
        match call {
            EngineCall::Claim(request) => {
                poll.map(|poll| self.claim(me, request, poll, Distrust::default())).into_iter().collect()
            }
            EngineCall::Adopt { spec, token, age, attempt_age, is_first } => {
                let ages = [*age, *attempt_age];
                let adopt = |poll| self.adopt(me, spec, poll, *token, ages, *is_first);
                poll.map(adopt).into_iter().collect()
            }
            EngineCall::Land { spec, token, epoch, attempt_age, outcome, sent_at } => {
                let times = [number(millis(*attempt_age)), moment(*sent_at)];
                poll.map(|poll| self.land(spec, poll, *token, *epoch, outcome, times)).into_iter().collect()
            }
            EngineCall::Fail(name, token, _) => vec![self.release(*name, *token, WireKind::Failed)],
            EngineCall::Leave(name, token) => vec![self.release(*name, *token, WireKind::Left)],
            EngineCall::Detach(name) => {
                let shard = ShardIndex::of_poll(*name);
                let keys = vec![self.names.channel(shard), self.names.poll_key(*name)];
                let text = message(&self.codes, WireKind::Detached, &guest_text(*name, me));
                vec![ScriptCall { script: EngineScript::Detach, keys, args: vec![member(me).into(), text] }]
            }
            EngineCall::Note(name, token, held_for) => {
                let text = note_text(*name, *token, *held_for);
                vec![self.publish(ShardIndex::of_poll(*name), message(&self.codes, WireKind::Note, &text))]
            }
            EngineCall::Beat(former) => {
                let text = message(&self.codes, WireKind::Beat, &beat_text(me, *former, beat));
                let former = former.map(member).unwrap_or_default();
                let call = |shard| ScriptCall {
                    script: EngineScript::Beat,
                    keys: vec![self.names.channel(shard), self.names.members_key(shard)],
                    args: vec![member(me).into(), former.clone().into(), text.clone()],
                };
                ShardIndex::all().map(call).collect()
            }
            EngineCall::Refuse { domain, age, sent_at, repeats_within } => {
                let shard = ShardIndex::of_domain(*domain);
                let keys = vec![self.names.channel(shard), self.names.domain_key(*domain)];
                let text = [&domain.0[..], &me.0.to_be_bytes()].concat();
                let args = vec![
                    message(&self.codes, WireKind::Revoked, &text),
                    self.new_epoch(*domain),
                    self.epoch_ttl(),
                    number(millis(*age)),
                    moment(*sent_at),
                    repeats_within.map(|margin| number(millis(margin))).unwrap_or_default(),
                    self.new_epoch(*domain),
                    self.unproven_ttl(),
                ];
                vec![ScriptCall { script: EngineScript::Refuse, keys, args }]
            }
            EngineCall::Remove(removal) => self.removal_marks(removal),
            EngineCall::Pause(domain, pause) => {
                let mut text = domain.0.to_vec();
                text.extend_from_slice(&millis(*pause).to_be_bytes());
                let channel = self.names.channel(ShardIndex::of_domain(*domain));
                let keys = vec![channel, self.names.pause_key(*domain)];
                let args = vec![message(&self.codes, WireKind::Paused, &text), number(millis(*pause))];
                vec![ScriptCall { script: EngineScript::Pause, keys, args }]
            }
            EngineCall::Flushed => {
                let text = message(&self.codes, WireKind::Flushed, &me.0.to_be_bytes());
                ShardIndex::all().map(|shard| self.publish(shard, text.clone())).collect()
            }
        }
    }

    pub(super) fn claim(
        &self,
        me: ReplicaName,
        request: &ClaimRequest,
        poll: &ClusterPoll,
        distrust: Distrust,
    ) -> ScriptCall {
        let ClaimRequest { spec, token, suspicion, follows, is_look } = request;
        let shard = poll.shard();
        let mut keys = vec![
            self.names.channel(shard),
            self.names.members_key(shard),
            self.names.domain_key(poll.domain),
            self.names.poll_key(poll.name),
            self.names.removal_key(shard),
            self.names.pause_key(poll.domain),
        ];
        for (job, id) in poll.job_names.iter().zip(&poll.jobs) {
            keys.push(self.names.job_key(shard, job));
            keys.push(self.names.removed_id_key(shard, id));
            keys.push(self.names.changed_job_key(poll.domain, &poll.route, id));
        }
        let takes_known = spec.takes_known && self.shares_jobs && !distrust.of_states;
        let goal = match spec.goal {
            Goal::Now => 0,
            Goal::Rung(rung) => i32::from(rung.position()) + 1,
            Goal::Not(_) => -1,
        };
        let suspect =
            suspicion.filter(|suspicion| suspicion.is_proven).map(|suspicion| member(suspicion.holder));
        let taken = follows.map(|lease| message(&self.codes, WireKind::Taken, &lease_text(poll.name, lease)));
        let args = vec![
            member(me).into(),
            token_bytes(*token).to_vec(),
            self.new_epoch(poll.domain),
            lease_record(&self.codes, poll.name, *token, me),
            flag(takes_known),
            flag(*is_look),
            number(goal),
            number(millis(spec.max_age)),
            number(millis(self.cache.load().key_recheck_interval)),
            number(millis(self.takeover)),
            number(millis(spec.hold + LEASE_MARGIN)),
            self.epoch_ttl(),
            suspect.unwrap_or_default().into(),
            message(&self.codes, WireKind::Attached, &guest_text(poll.name, me)),
            taken.unwrap_or_default(),
            flag(self.shares_polls),
            follows.map(|lease| token_bytes(lease).to_vec()).unwrap_or_default(),
            self.unproven_ttl(),
        ];
        ScriptCall { script: EngineScript::Claim, keys, args }
    }

    fn adopt(
        &self,
        me: ReplicaName,
        spec: &ShareSpec,
        poll: &ClusterPoll,
        token: LeaseToken,
        [age, attempt_age]: [Duration; 2],
        is_first: bool,
    ) -> ScriptCall {
        let shard = poll.shard();
        let keys = vec![
            self.names.channel(shard),
            self.names.members_key(shard),
            self.names.domain_key(poll.domain),
            self.names.poll_key(poll.name),
        ];
        let args = vec![
            member(me).into(),
            token_bytes(token).to_vec(),
            self.new_epoch(poll.domain),
            lease_record(&self.codes, poll.name, token, me),
            number(millis(age)),
            number(millis(self.takeover)),
            number(millis(spec.hold + LEASE_MARGIN)),
            self.epoch_ttl(),
            flag(self.shares_polls),
            number(millis(attempt_age)),
            flag(is_first),
            self.unproven_ttl(),
        ];
        ScriptCall { script: EngineScript::Adopt, keys, args }
    }

    fn land(
        &self,
        spec: &ShareSpec,
        poll: &ClusterPoll,
        token: LeaseToken,
        epoch: Option<KeyEpoch>,
        outcome: &SharedOutcome,
        [attempt_age, sent_at]: [Vec<u8>; 2],
    ) -> ScriptCall {
        let fresh = random_epoch();
        // Without a grant the engine may have another epoch by now: then it publishes the states and stores none.
        let sealed_for = epoch.or_else(|| self.epochs.get(poll.domain)).unwrap_or(fresh);
        let start = || {
            let mut text = lease_text(poll.name, token);
            text.extend_from_slice(&sealed_for.0.to_be_bytes());
            text.push(epoch.is_some().into());
            text
        };
        let mut text = start();
        let stored = self.write_outcome(&mut text, poll, sealed_for, outcome).unwrap_or_else(|| {
            // Too long: siblings with waits make requests of their own, all at once.
            text = start();
            text.push(OUTCOME_JOBS);
            text.extend_from_slice(&0_u16.to_be_bytes());
            Vec::new()
        });
        let shard = poll.shard();
        let mut keys = vec![
            self.names.channel(shard),
            self.names.domain_key(poll.domain),
            self.names.poll_key(poll.name),
        ];
        let is_accepted = !matches!(outcome, SharedOutcome::Refused(_));
        let mut args = vec![
            token_bytes(token).to_vec(),
            epoch.map(|epoch| epoch_record(&self.codes, poll.domain, epoch)).unwrap_or_default(),
            epoch_record(&self.codes, poll.domain, fresh),
            message(&self.codes, WireKind::Landed, &text),
            message(&self.codes, WireKind::Left, &lease_text(poll.name, token)),
            sent_at,
            self.epoch_ttl(),
            flag(is_accepted),
            attempt_age,
            epoch_record(&self.codes, poll.domain, sealed_for),
            flag(self.shares_polls),
            self.unproven_ttl(),
        ];
        for (state, index, at, len) in stored.into_iter().filter(|_| self.shares_jobs) {
            let lifetime = self.lifetime(&poll.route, state);
            self.longest_lifetime.fetch_max(millis(lifetime), Ordering::Relaxed);
            let is_known = state.rung.is_some() && state.body.is_some();
            if lifetime.is_zero() || !is_known || len == 0 || spec.jobs != poll.jobs {
                continue;
            }
            keys.push(self.names.job_key(shard, &poll.job_names[index]));
            args.push(number(state.rung.map_or(0, |rung| u16::from(rung.position()) + 1)));
            args.push(flag(state.is_final));
            args.push(number(millis(state.age)));
            args.push(number(TEXT_AT + at));
            args.push(number(len));
            args.push(number(millis(lifetime)));
        }
        ScriptCall { script: EngineScript::Land, keys, args }
    }

    /// Writes the result of a poll. Returns the states, their jobs, and the places of their sealed bytes. `None` if the
    /// result cannot be shared.
    fn write_outcome<'o>(
        &self,
        text: &mut Vec<u8>,
        poll: &ClusterPoll,
        epoch: KeyEpoch,
        outcome: &'o SharedOutcome,
    ) -> Option<Vec<(&'o SharedState, usize, usize, usize)>> {
        let response = match outcome {
            SharedOutcome::Jobs(states) => {
                let known: Vec<(&SharedState, usize)> =
                    states.iter().filter_map(|state| Some((state, poll.jobs.position(&state.id)?))).collect();
                text.push(OUTCOME_JOBS);
                text.extend_from_slice(&u16::try_from(known.len()).ok()?.to_be_bytes());
                let mut places = Vec::with_capacity(known.len());
                let mut left = self.max_body.max(MAX_BODIES);
                for (state, index) in known {
                    text.extend_from_slice(&u16::try_from(index).ok()?.to_be_bytes());
                    text.extend_from_slice(&millis(state.age).to_be_bytes());
                    let place = self.state_place(&poll.job_names[index], epoch);
                    let max_body = self.max_body.min(left);
                    let sealed = poll.seal.seal(&place, encode_state(state, max_body))?;
                    put_field(text, &sealed);
                    let shared = state.body.as_ref().map(Bytes::len).filter(|len| *len <= max_body);
                    left -= shared.unwrap_or_default();
                    let len = if shared.is_some() { sealed.len() } else { 0 };
                    places.push((state, index, text.len() - sealed.len(), len));
                }
                return Some(places);
            }
            SharedOutcome::Unsplit(response) => {
                text.push(OUTCOME_UNSPLIT);
                response
            }
            SharedOutcome::Refused(response) => {
                text.push(OUTCOME_REFUSED);
                response
            }
        };
        self.write_response(text, poll, epoch, response)?;
        Some(Vec::new())
    }

    fn write_response(
        &self,
        text: &mut Vec<u8>,
        poll: &ClusterPoll,
        epoch: KeyEpoch,
        response: &Arc<UpstreamResponse>,
    ) -> Option<()> {
        if response.body.len() > MAX_RESPONSE.min(self.max_body) {
            return None;
        }
        put_field(text, &poll.seal.seal(&self.response_place(poll.name, epoch), encode_response(response))?);
        Some(())
    }

    fn release(&self, name: PollName, token: LeaseToken, kind: WireKind) -> ScriptCall {
        let shard = ShardIndex::of_poll(name);
        let keys = vec![self.names.channel(shard), self.names.poll_key(name)];
        let args = vec![token_bytes(token).to_vec(), message(&self.codes, kind, &lease_text(name, token))];
        ScriptCall { script: EngineScript::Release, keys, args }
    }

    fn publish(&self, shard: ShardIndex, text: Vec<u8>) -> ScriptCall {
        let keys = vec![self.names.channel(shard)];
        ScriptCall { script: EngineScript::Publish, keys, args: vec![text] }
    }

    /// Returns the place of a job's state among the sealed texts of its key. A dead epoch's is another one (P11).
    pub(super) fn state_place(&self, job: &[u8], KeyEpoch(epoch): KeyEpoch) -> Vec<u8> {
        [self.names.id_bytes(), b"c", job, &epoch.to_be_bytes()[..]].concat()
    }

    pub(super) fn response_place(&self, PollName(poll): PollName, KeyEpoch(epoch): KeyEpoch) -> Vec<u8> {
        [self.names.id_bytes(), b"p", &poll.to_be_bytes()[..], &epoch.to_be_bytes()].concat()
    }

    fn new_epoch(&self, domain: KeyDomain) -> Vec<u8> {
        epoch_record(&self.codes, domain, random_epoch())
    }

    fn epoch_ttl(&self) -> Vec<u8> {
        number(millis(self.cache.load().key_recheck_interval.max(MIN_EPOCH_TTL)))
    }

    /// Returns the lifetime of the record of a key that the upstream has not accepted: longer than any poll.
    fn unproven_ttl(&self) -> Vec<u8> {
        let hold = self.names.routes().map(|route| route.hold).max().unwrap_or_default();
        number(millis(hold + LEASE_MARGIN + LIVE_TTL))
    }

    fn lifetime(&self, route: &Route, state: &SharedState) -> Duration {
        let is_failure = state.rung.is_some_and(|rung| route.ladder.is_failure(rung));
        match (state.is_final, is_failure) {
            (false, _) => LIVE_TTL,
            (true, false) => route.lifetimes.success.unwrap_or_else(|| self.cache.load().completed_ttl),
            (true, true) => route.lifetimes.failure.unwrap_or_else(|| self.cache.load().error_ttl),
        }
    }

    /// Returns the longest lifetime of a state in the engine, in milliseconds.
    pub(super) fn longest_lifetime(&self) -> u64 {
        let routes = self.names.routes().flat_map(|route| [route.lifetimes.success, route.lifetimes.failure]);
        let cache = self.cache.load();
        let own = [cache.completed_ttl, cache.error_ttl, LIVE_TTL];
        let longest = millis(routes.flatten().chain(own).max().unwrap_or(LIVE_TTL));
        self.longest_lifetime.fetch_max(longest, Ordering::Relaxed).max(longest)
    }

    pub(super) fn new(names: Names, config: &ClusterConfig, world: &ClusterWorld<'_>) -> Self {
        let dialect = Self {
            codes: MessageCodes::new(&config.secret, names.id_bytes()),
            removals: StateSeal::new(&config.secret, b""),
            names,
            shares_jobs: config.shares(Share::Jobs),
            shares_polls: config.shares(Share::Polls),
            takeover: config.takeover,
            max_body: usize::try_from(config.max_body).unwrap_or(usize::MAX),
            epochs: KnownEpochs::default(),
            instance: world.instance,
            cache: Arc::clone(&world.cache),
            longest_lifetime: AtomicU64::new(0),
        };
        dialect.longest_lifetime();
        dialect
    }
}

pub(super) const OUTCOME_JOBS: u8 = 0;
pub(super) const OUTCOME_UNSPLIT: u8 = 1;
pub(super) const OUTCOME_REFUSED: u8 = 2;

fn random_epoch() -> KeyEpoch {
    KeyEpoch(fastrand::u64(..))
}

fn flag(is_set: bool) -> Vec<u8> {
    vec![if is_set { b'1' } else { b'0' }]
}

pub(super) fn number(number: impl ToString) -> Vec<u8> {
    number.to_string().into_bytes()
}

/// Returns a time of the engine, or nothing if it is unknown.
fn moment(time: Option<EngineTime>) -> Vec<u8> {
    time.map(|EngineTime(time)| number(millis(time))).unwrap_or_default()
}
