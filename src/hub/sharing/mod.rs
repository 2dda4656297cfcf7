//! Polls that replicas share: the hub's side of `core::siblings`.
//!
//! ```text
//!  Coalescer ── Open, Abort ──▶ ┌──────────┐ ── Start, Cancel, TryNow ──▶ PollScheduler, poll tasks
//!            ◀─ Progress, ───── │ Siblings │ ◀── Progress, Ended ────────
//!               Landed          └──────────┘
//!                           Call │  ▲ LinkUp, LinkDown, Answer, Message
//!                                ▼  │
//!                               Cluster
//! ```
//!
//! | not shared | reason |
//! | --- | --- |
//! | polls of an upstream without keys | no credential can seal the answer (P11) |
//! | polls of requests with `no-store` only | their answers are stored nowhere |
//! | all polls, if `cluster.share` has neither `"polls"` nor `"jobs"` | the configuration |
//!
//! With `"jobs"` only, the engine answers with states and grants each poll to each replica that asks.
//!
//! Quotas go past the machine: `quotas` sends counted requests to the engine.
//!
//! A poll has up to two numbers: the coalescer's, and that of its attempts here, its run. They differ if the coalescer
//! opens a poll again that continued for siblings only.

mod counts;
mod messages;
mod quotas;
mod registrations;
mod removals;
mod reports;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::debug;

use self::counts::{ClaimCounts, StartReason};
use self::quotas::share_quotas;
use self::registrations::Registrations;
use self::removals::CacheRemovals;
use super::inspect::ClusterOverview;
use super::landing::{AnswerOrigin, UpstreamAnswer};
use super::link_reports::LinkReports;
use super::poll_task::OpenedPoll;
use super::task::HubTask;
use crate::cluster::Cluster;
use crate::core::Map;
use crate::core::coalescer::{Cause, Failure, Input, PollId, PollOutcome, PollProgress, PollSpec};
use crate::core::job::JobState;
use crate::core::route::Form;
use crate::core::siblings::{
    EngineCall, LinkState, PollName, ReplicaName, ShareSpec, SharedOutcome, SiblingConfig, SiblingInput,
    SiblingOutput, Siblings,
};
use crate::limits::Limits;

/// Dependencies of a hub that shares polls.
pub(crate) struct SharingDeps {
    pub(crate) cluster: Cluster,
    pub(crate) inbox: mpsc::Receiver<SiblingInput>,
    /// The task of the link, which the hub runs.
    pub(crate) link: BoxFuture<'static, ()>,
    pub(crate) config: SiblingConfig,
    /// Whether polls or their states are shared. Rejected keys, pauses and removals are always.
    pub(crate) offers_polls: bool,
    /// Whether each replica uses only its part of the quotas without the engine.
    pub(crate) strict: bool,
    /// Number of replicas below which the log has a warning.
    pub(crate) expected: usize,
}

pub(super) struct PollSharing {
    machine: Siblings,
    cluster: Cluster,
    inbox: mpsc::Receiver<SiblingInput>,
    /// `None` once it runs.
    link: Option<BoxFuture<'static, ()>>,
    offers_polls: bool,
    strict: bool,
    /// Number of replicas when the engine was there last.
    replicas: u32,
    /// The task that shares quotas, which ends with the hub, and the thread of removals.
    tasks: JoinSet<()>,
    /// The polls that the machine has, by their numbers at the coalescer; and those that go on for siblings only.
    offered: Map<PollId, OfferedPoll>,
    names: Registrations,
    claims: ClaimCounts,
    removals: CacheRemovals,
    /// When all states, or those of an id, were removed last, here or by a sibling.
    removed_at: Option<Instant>,
    reports: LinkReports,
    /// Whether siblings have all that they need at present, so that the process may end.
    handed_over: watch::Sender<bool>,
    is_draining: bool,
}

struct OfferedPoll {
    name: PollName,
    poll: OpenedPoll,
}

/// The most inputs of one round.
const MAX_INPUTS: usize = 1024;
/// Time after which no answer to a claim counts.
const LONGEST_CLAIM: Duration = Duration::from_secs(1);

impl PollSharing {
    pub(super) fn new(deps: SharingDeps) -> Self {
        let SharingDeps { cluster, inbox, link, config, offers_polls, strict, expected } = deps;
        Self {
            machine: Siblings::new(config),
            cluster,
            inbox,
            link: Some(link),
            offers_polls,
            strict,
            replicas: u32::try_from(expected).unwrap_or_default().max(1),
            tasks: JoinSet::new(),
            offered: Map::default(),
            names: Registrations::default(),
            claims: ClaimCounts::default(),
            removals: CacheRemovals::default(),
            removed_at: None,
            reports: LinkReports::new(expected),
            handed_over: watch::Sender::new(false),
            is_draining: false,
        }
    }

    /// Starts the task of the link, which ends after the last handle of the cluster is dropped, and that of the quotas.
    pub(super) fn start_link(&mut self, limits: &Arc<Limits>) {
        if let Some(link) = self.link.take() {
            tokio::spawn(link);
            self.tasks.spawn(share_quotas(Arc::clone(limits), self.cluster.clone()));
        }
    }

    /// Returns a receiver that has `true` once siblings have taken over.
    pub(super) fn handover(&self) -> watch::Receiver<bool> {
        self.handed_over.subscribe()
    }

    /// Receives inputs of the link. Never resolves without `[cluster]`. Cancel safe, like `recv_many`.
    pub(super) async fn receive(sharing: &mut Option<Box<Self>>, inputs: &mut Vec<SiblingInput>) {
        let taken = match sharing {
            Some(sharing) => sharing.inbox.recv_many(inputs, MAX_INPUTS).await,
            None => 0,
        };
        if taken == 0 {
            std::future::pending().await
        }
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.machine.poll_timeout().into_iter().chain(self.reports.next_due()).min()
    }

    pub(super) fn poll_output(&mut self) -> Option<SiblingOutput> {
        self.machine.poll_output()
    }

    pub(super) fn overview(&self) -> ClusterOverview {
        ClusterOverview {
            link: self.machine.link(),
            id: self.cluster.id().to_owned(),
            name: self.machine.name(),
            own_polls: self.machine.own_polls(),
            siblings: self.machine.siblings().collect(),
        }
    }

    /// Returns the replica that makes a poll, this one included. `None`: the engine has not decided, or the link is down.
    pub(super) fn holder(&self, id: PollId) -> Option<ReplicaName> {
        self.machine.holder(id).or_else(|| self.machine.run(id).and_then(|_| self.machine.name()))
    }

    fn remove(&mut self, id: PollId, now: Instant) -> Option<OpenedPoll> {
        let OfferedPoll { name, poll } = self.offered.remove(&id)?;
        self.names.release(name, now);
        self.claims.remove(name);
        self.names.forget_old(now).into_iter().for_each(|name| self.cluster.forget(name));
        Some(poll)
    }
}

impl HubTask {
    /// Gives a poll to the siblings' machine. Returns a poll that is not shared.
    pub(super) fn offer_poll(&mut self, id: PollId, poll: OpenedPoll, now: Instant) -> Option<OpenedPoll> {
        let age = self.accepted_age(id, &poll);
        self.offer_with(id, poll, age, now)
    }

    /// Like [`Self::offer_poll`]. `age`: the greatest one of a stored state that is not terminal. `None`: no stored state
    /// may answer.
    fn offer_with(
        &mut self,
        id: PollId,
        poll: OpenedPoll,
        age: Option<Duration>,
        now: Instant,
    ) -> Option<OpenedPoll> {
        let Some(key) = self
            .sharing
            .as_ref()
            .filter(|sharing| sharing.offers_polls && self.machines.of_poll(id).may_cache(id))
            .and_then(|_| poll.credential.key_bytes())
        else {
            return Some(poll);
        };
        let (takes_known, max_age) = (age.is_some(), age.unwrap_or_default());
        let route = self.poller.route(&poll.spec);
        let Some(sharing) = &mut self.sharing else { return Some(poll) };
        let PollSpec { domain, ref jobs, goal, form } = poll.spec;
        let Some(name) = sharing.cluster.poll_name(domain, jobs, form, goal) else { return Some(poll) };
        let needs_shape = form == Form::Multi && self.cache.known_list_shape(domain, jobs.route()).is_none();
        let (jobs, hold) = (jobs.clone(), route.hold);
        let share = ShareSpec { name, domain, jobs, goal, hold, takes_known, max_age, needs_shape };
        sharing.cluster.register(&share, &key);
        sharing.names.add(name);
        sharing.offered.insert(id, OfferedPoll { name, poll });
        sharing.machine.handle(SiblingInput::Open(id, share), now);
        None
    }

    /// Returns the greatest age of a stored state that may answer a new poll and is not terminal. `None`: no stored state
    /// may.
    fn accepted_age(&self, id: PollId, poll: &OpenedPoll) -> Option<Duration> {
        let limit = match poll.cause {
            Cause::NoCache => return None,
            Cause::Deadline => Duration::ZERO, // P7
            _ => self.cache.live_ttl(poll.spec.jobs.route()),
        };
        self.waits_max_age(id).map(|age| age.min(limit))
    }

    /// Returns the smallest `max-age` of the waits on a poll. `None` if one has `no-cache`.
    fn waits_max_age(&self, id: PollId) -> Option<Duration> {
        let mut waits =
            self.machines.of_poll(id).attached_waits(id).filter_map(|wait| self.parked.get(&wait));
        waits.try_fold(Duration::MAX, |least, wait| wait.max_age.map(|age| age.min(least)))
    }

    /// Returns whether stored states may answer a poll. A wait may have come since the claim, and the engine does not
    /// compare the ages of terminal states.
    fn accepts_stored(&self, id: PollId, origin: &AnswerOrigin) -> bool {
        let AnswerOrigin::Store(ages) = origin else { return true };
        self.waits_max_age(id).is_some_and(|limit| ages.iter().all(|(_, age)| *age <= limit))
    }

    /// Returns the sharing of a poll. `None`: the poll is not shared.
    fn sharing_of(&self, id: PollId) -> Option<&PollSharing> {
        self.sharing.as_deref().filter(|sharing| sharing.offered.contains_key(&id))
    }

    fn sharing_of_mut(&mut self, id: PollId) -> Option<&mut PollSharing> {
        self.sharing.as_deref_mut().filter(|sharing| sharing.offered.contains_key(&id))
    }

    /// Carries out the abort of a poll by the coalescer.
    pub(super) fn abort_poll(&mut self, id: PollId, now: Instant) {
        let Some(sharing) = self.sharing_of_mut(id) else { return self.cancel_attempts(id, now) };
        sharing.machine.handle(SiblingInput::Abort(id), now);
        if !sharing.machine.is_running(id) {
            sharing.remove(id, now);
        }
    }

    /// Passes the progress of a poll's attempts to the coalescer.
    pub(super) fn report_progress(&mut self, run: PollId, progress: PollProgress, now: Instant) {
        match self.sharing_of_mut(run) {
            Some(sharing) => {
                sharing.machine.handle(SiblingInput::Progress(run, progress), now);
                self.drain_sharing_outputs(&AnswerOrigin::Own, now);
            }
            None => self.machines.of_poll_mut(run).handle(Input::Progress(run, progress), now),
        }
    }

    /// Passes the outcome of a poll's attempts to the coalescer and to siblings.
    pub(super) fn end_poll(&mut self, run: PollId, outcome: PollOutcome, now: Instant) {
        // An action changed the jobs since the attempt began. The coalescer asks again, and so must siblings.
        let is_outdated = matches!(outcome, PollOutcome::Jobs(_))
            && self.local_poll(run).is_some_and(|local| !self.machines.of_poll(local).may_cache(local));
        let Some(sharing) = self.sharing_of_mut(run) else { return self.settle(run, outcome, now) };
        let outcome = if is_outdated { PollOutcome::Failed(Failure::InvalidResponse(None)) } else { outcome };
        sharing.machine.handle(SiblingInput::Ended(run, outcome), now);
        self.drain_sharing_outputs(&AnswerOrigin::Own, now);
        if let Some(sharing) = &mut self.sharing {
            sharing.remove(run, now);
        }
    }

    /// Returns the coalescer's number of a poll that is made here. `None`: it goes on for siblings only.
    pub(super) fn local_poll(&self, run: PollId) -> Option<PollId> {
        match self.sharing_of(run) {
            Some(sharing) => sharing.machine.local(run),
            None => Some(run),
        }
    }

    /// Returns the number under which a poll of the coalescer is made here.
    pub(super) fn running_poll(&self, local: PollId) -> Option<PollId> {
        match self.sharing_of(local) {
            Some(sharing) => sharing.machine.run(local),
            None => Some(local),
        }
    }

    /// Applies the outputs of the siblings' machine. `origin` is that of an answer among them.
    pub(super) fn drain_sharing_outputs(&mut self, origin: &AnswerOrigin, now: Instant) {
        while let Some(output) = self.sharing.as_mut().and_then(|sharing| sharing.poll_output()) {
            match (output, origin) {
                (SiblingOutput::Landed(id, outcome), AnswerOrigin::Own) => {
                    self.settle(id, outcome, now);
                    self.release_poll(id, now);
                }
                (SiblingOutput::Landed(id, outcome), AnswerOrigin::Sibling) => {
                    self.sibling_landed(id, outcome, AnswerOrigin::Sibling, now);
                }
                (SiblingOutput::Landed(id, outcome), AnswerOrigin::Store(ages)) => {
                    self.sibling_landed(id, outcome, AnswerOrigin::Store(ages.clone()), now);
                }
                (output, _) => self.apply_sharing(output, now),
            }
        }
    }

    pub(super) fn apply_sharing(&mut self, output: SiblingOutput, now: Instant) {
        let Some(sharing) = &mut self.sharing else { return };
        match output {
            SiblingOutput::Start(run) => {
                let Some(OfferedPoll { name, poll }) = sharing.offered.get(&run) else { return };
                let is_apart = sharing.machine.link() == LinkState::Apart;
                match sharing.claims.started(*name, is_apart) {
                    StartReason::Opened => {}
                    StartReason::TimedOut => self.metrics.cluster.claim_timed_out(),
                    StartReason::TakenOver(why) => self.metrics.cluster.takeover(why),
                }
                let poll = poll.clone();
                self.make_poll(run, poll, now);
            }
            SiblingOutput::Cancel(run) => {
                self.cancel_attempts(run, now);
                self.release_poll(run, now);
            }
            SiblingOutput::TryNow(run) => self.scheduler.try_now(run, now),
            SiblingOutput::Progress(id, progress) => {
                if let PollProgress::Elsewhere { opened_at, .. } = progress {
                    debug!(poll = id.0, "poll made by a sibling");
                    self.is_free(id, opened_at);
                }
                self.machines.of_poll_mut(id).handle(Input::Progress(id, progress), now);
            }
            SiblingOutput::Landed(id, outcome) => {
                self.sibling_landed(id, outcome, AnswerOrigin::Sibling, now);
            }
            SiblingOutput::Shape(id, shape) => {
                if let Some(OfferedPoll { poll, .. }) = sharing.offered.get(&id) {
                    self.cache.set_list_shape(poll.spec.domain, poll.spec.jobs.route(), &shape);
                }
            }
            SiblingOutput::Call(id, mut call) => {
                match &mut call {
                    EngineCall::Claim(request) => sharing.claims.claimed(id, request),
                    EngineCall::Land { spec, outcome: SharedOutcome::Jobs(states), .. } => {
                        // P8: a sibling may have seen no list of the key.
                        let shape = self.cache.known_list_shape(spec.domain, spec.jobs.route());
                        states.iter_mut().for_each(|state| state.shape.clone_from(&shape));
                    }
                    _ => {}
                }
                sharing.cluster.call(id, call);
            }
            SiblingOutput::CountSubscribers(name) => sharing.cluster.count_subscribers(name),
            SiblingOutput::Resubscribe => {
                sharing.cluster.resubscribe();
                self.review();
            }
        }
    }

    /// Records that a sibling makes a poll: this one costs its clients nothing, also if it is taken over.
    fn is_free(&mut self, id: PollId, opened_at: Instant) {
        if let Some(sharing) = &mut self.sharing
            && let Some(offered) = sharing.offered.get_mut(&id)
        {
            (offered.poll.opener, offered.poll.began_elsewhere) = (None, Some(opened_at));
            sharing.claims.is_elsewhere(offered.name);
        }
    }

    /// Forgets a poll that has ended, unless its attempts go on.
    fn release_poll(&mut self, id: PollId, now: Instant) {
        if let Some(sharing) = &mut self.sharing
            && !sharing.machine.is_running(id)
        {
            sharing.remove(id, now);
        }
    }

    /// Settles the waits of a poll with the answer to a sibling, and stores its states like own ones.
    fn sibling_landed(&mut self, id: PollId, outcome: PollOutcome, origin: AnswerOrigin, now: Instant) {
        let Some(poll) = self.sharing.as_mut().and_then(|sharing| sharing.remove(id, now)) else { return };
        if !self.accepts_stored(id, &origin) {
            if let Some(poll) = self.offer_with(id, poll, None, now) {
                self.make_poll(id, poll, now);
            }
            return;
        }
        let OpenedPoll { spec, credential, payer, began_elsewhere, .. } = poll;
        let domain = spec.domain;
        match &outcome {
            PollOutcome::Jobs(states) => {
                self.store_shared(id, &spec, states, (&origin, began_elsewhere), now);
            }
            PollOutcome::Refused(reply) => self.refused_elsewhere(&spec, reply.status, now),
            PollOutcome::Unsplit(_) | PollOutcome::Failed(_) => {}
        }
        let answer = UpstreamAnswer { at: now, origin, fanout: None, poll: id, domain, credential, payer };
        let outer = self.current_answer.replace(answer);
        self.settle(id, outcome, now);
        while let Some(output) = self.machines.poll_output() {
            self.apply(output, now);
        }
        self.current_answer = outer;
    }

    /// Stores states that a sibling read. The upstream accepted the key then (P11).
    fn store_shared(
        &mut self,
        id: PollId,
        spec: &PollSpec,
        states: &[JobState],
        (origin, began): (&AnswerOrigin, Option<Instant>),
        now: Instant,
    ) {
        let as_read = |state: &JobState| {
            let AnswerOrigin::Store(ages) = origin else { return state.clone() };
            let age = ages.iter().find(|(id, _)| *id == state.id).map(|(_, age)| *age);
            let at = age.and_then(|age| now.checked_sub(age)).unwrap_or(state.as_of);
            JobState { as_of: at, seen_at: at, ..state.clone() }
        };
        let states: Vec<JobState> = states.iter().map(as_read).collect();
        let Some(read_at) = states.iter().map(|state| state.as_of).min() else { return };
        let is_stored = matches!(origin, AnswerOrigin::Store(_));
        // P11: the key counts as accepted since the attempt began, or the poll at the latest.
        if let Some(began) = began.map(|began| began.min(read_at)).or(is_stored.then_some(read_at)) {
            self.key_accepted(spec.domain, began, now);
        }
        if self.machines.of_poll(id).may_cache(id) {
            let is_new = !is_stored;
            for state in states.iter().filter(|state| is_new || !self.is_removed(state, now)) {
                self.cache.store_shared(spec.domain, state, is_new, now);
            }
        }
    }

    /// Returns whether a state may have been removed after the engine read it: a removal can overtake the answer to a claim.
    fn is_removed(&self, state: &JobState, now: Instant) -> bool {
        let removed_at = self.sharing.as_ref().and_then(|sharing| sharing.removed_at);
        removed_at.is_some_and(|at| state.as_of <= at && now < at + LONGEST_CLAIM)
    }

    /// Leaves all polls to siblings, and goes on with each until they have taken over.
    pub(super) fn drain_sharing(&mut self, until: Instant, now: Instant) {
        if let Some(sharing) = &mut self.sharing {
            sharing.is_draining = true;
            sharing.machine.handle(SiblingInput::Drain(until), now);
            self.drain_outputs(now);
        }
    }

    pub(super) fn handle_sharing_timeout(&mut self, now: Instant) {
        let Some(sharing) = &mut self.sharing else { return };
        if sharing.machine.poll_timeout().is_some_and(|due| due <= now) {
            sharing.machine.handle_timeout(now);
        }
    }
}
