//! The oracle: one function for each guarantee. Each answer is compared with the answer that its client would have had
//! alone.
//!
//! An answer may be later by a few hops. It may be later by a bound only if, when it was due, the replica depended for it
//! on a sibling or on the engine, and one of them was lost shortly before. Nothing excuses a poll that the replica makes
//! itself.

use std::collections::BTreeSet;
use std::time::Duration;

use super::engine::EngineLease;
use super::network::SHUFFLED;
use super::plan::{Fault, SweepClient};
use super::replica::{PollMaker, Replica, attempt_of};
use super::{HOLD, SweepEvent, ToEngine, World, domain};
use crate::core::coalescer::{Failure, PollId, PollOutcome, PollSpec, WaitOutcome, WaitResult};
use crate::core::job::{JobState, KeyDomain};
use crate::core::route::Goal;
use crate::core::siblings::{EngineCall, PollName, ReplicaName, SharePhase, SiblingInput, SiblingMessage};

/// Tolerance of the coalescer for a hold of two minutes.
const SKEW: Duration = Duration::from_millis(240);
/// Longest time that a wait may stay for a poll that is about to end.
const GRACE: Duration = Duration::from_secs(5);
/// Time after the loss of a holder or of the engine in which an answer that is due may be late.
const LOSS: Duration = Duration::from_millis(2_500);
/// Longest silence of a holder in which its poll proves states.
const PROOF: Duration = Duration::from_millis(1_200);
/// Greatest age of bytes that a held poll proves.
const PROVEN: Duration = Duration::from_secs(30);
/// Delay by rank after a failed poll.
const RANK: Duration = Duration::from_millis(200);
/// Time after a fault within which links and members are as before.
const SETTLING: Duration = Duration::from_millis(600);
/// Time after the last fault by which nothing is left of it.
const CALM: Duration = Duration::from_secs(5);

/// Lateness that a fault excuses.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lateness {
    /// Answers that are due after the fault come within this time of it.
    pub(super) once: Duration,
    /// While the fault lasts, answers are late by this time.
    pub(super) steady: Duration,
    /// Replica that stands still as long as the fault lasts.
    pub(super) frozen: Option<usize>,
    /// Whether messages are out of order as long as the fault lasts.
    pub(super) is_shuffle: bool,
}

impl Lateness {
    pub(super) fn once(once: Duration) -> Self {
        Self { once, ..Self::default() }
    }

    pub(super) fn steady(steady: Duration) -> Self {
        Self { steady, ..Self::default() }
    }
}

/// A fault.
#[derive(Clone, Copy, Debug)]
pub(super) struct Disturbance {
    from: Duration,
    until: Duration,
    late: Lateness,
}

/// Answer about a job that is lost: it was sent, and its connection fails later.
#[derive(Clone, Copy, Debug)]
pub(super) struct LostAnswer {
    pub(super) job: usize,
    pub(super) from: Duration,
    pub(super) until: Duration,
}

impl World {
    pub(super) fn disturb(&mut self, from: Duration, time: Duration, late: Lateness) {
        self.disturbances.push(Disturbance { from, until: from + time, late });
    }

    /// Returns whether a fault lasted at some moment of this time, or a little before it.
    fn was_disturbed(&self, from: Duration, to: Duration, settling: Duration) -> bool {
        let settling = settling + self.lag();
        self.disturbances.iter().any(|fault| fault.from <= to && from <= fault.until + settling)
    }

    /// Returns the latest moment for an answer that is due for this job at that one, but for hops.
    ///
    /// The bounds of several faults do not add up. Each fault before the answer starts its own bound, and so does its end.
    fn latest(&self, client: &SweepClient, job: usize, due: Duration) -> Duration {
        let (lag, mut latest) = (self.lag(), due);
        if self.plan.is_failing {
            // An attempt that fails later holds the waits until then, and siblings claim the poll afterwards.
            latest = self.fails_at.get(&job).map_or(latest, |at| latest.max(*at + RANK));
        }
        let depends = self.depends_on_others(client, job, due);
        loop {
            // A claim that waits for members to come back may meet a loss that comes after the answer was due.
            let before = self.delayed(latest, due, depends);
            let reached = latest;
            for fault in self.disturbances.iter().filter(|fault| fault.from <= before + lag) {
                if fault.late.frozen == Some(client.replica) && latest <= fault.until {
                    latest = fault.until;
                }
                let changes = [Some(fault.from), self.plan.is_stormy.then_some(fault.until)];
                for change in changes.into_iter().flatten() {
                    if depends && change <= before + lag && due <= change + LOSS {
                        latest = latest.max(change + fault.late.once);
                    }
                }
            }
            if latest == reached {
                return before;
            }
        }
    }

    /// Returns the moment with the delays of all faults that last until then. They add up: a claim that waits for members
    /// to come back may find that the engine lost its memory once more.
    fn delayed(&self, mut latest: Duration, due: Duration, depends: bool) -> Duration {
        for fault in self.disturbances.iter().filter(|fault| depends && due <= fault.until) {
            if fault.from <= latest + self.lag() {
                latest += fault.late.steady;
            }
        }
        latest
    }

    /// Returns the time that a wait may stay past its deadline for a poll that its replica began late, because it stood
    /// still: the upstream is about to end it (P7).
    fn late_end(&self, client: &SweepClient) -> Duration {
        let (lag, deadline) = (self.lag(), client.deadline());
        let replica = &self.replicas[client.replica];
        let frozen = || self.disturbances.iter().filter(|fault| fault.late.frozen == Some(client.replica));
        let polls = replica.polls.values().filter(|poll| poll.spec.domain == domain(client.domain));
        let begun = polls.flat_map(|poll| &poll.maker).filter(|(_, maker)| *maker == PollMaker::Own);
        let is_late = |at: &Duration| {
            client.arrives <= *at && frozen().any(|fault| fault.from <= *at && *at <= fault.until + lag)
        };
        let ends = begun.map(|(at, _)| *at).filter(is_late).map(|at| at + HOLD).max();
        ends.unwrap_or_default().min(deadline + GRACE).saturating_sub(deadline)
    }

    /// Returns whether, around this moment, the replica of the client did not make the poll for this job itself.
    fn depends_on_others(&self, client: &SweepClient, job: usize, at: Duration) -> bool {
        let (lag, id) = (self.lag(), &self.plan.jobs[job].id);
        let mut own: BTreeSet<Goal> = BTreeSet::new();
        let mut others = false;
        for poll in self.replicas[client.replica].polls.values() {
            if poll.spec.domain != domain(client.domain) || poll.spec.jobs.iter().all(|asked| asked != id) {
                continue;
            }
            let next = poll.maker.iter().skip(1).map(|(at, _)| *at).chain([Duration::MAX]);
            for ((from, maker), until) in poll.maker.iter().zip(next) {
                let lasts = *from <= at + lag && at <= until.saturating_add(lag);
                others |= lasts && *maker == PollMaker::Elsewhere;
                if *maker == PollMaker::Own && *from + lag <= at && at <= until && poll.spec.jobs.len() == 1 {
                    own.insert(poll.spec.goal);
                }
            }
        }
        let goal = client.goal.map_or(Goal::Now, |goal| Goal::Rung(self.rungs[goal]));
        others && !(client.jobs.len() == 1 && own.contains(&goal) && at < client.deadline())
    }

    /// Returns how late any answer may be by hops alone: to the upstream and back, and two round trips to the engine.
    pub(super) fn lag(&self) -> Duration {
        self.plan.hop * 5 + self.plan.engine_hop * 6 + Duration::from_nanos(1)
    }

    pub(super) fn settled(&mut self, number: usize, result: &WaitResult) {
        let now = self.now;
        let client = &mut self.plan.clients[number];
        assert!(client.settled.replace(now).is_none() && !client.has_left, "{client:?} is answered again");
        if self.plan.pace.is_some() {
            return; // the sweep of chains has its own oracle
        }
        let client = &self.plan.clients[number];
        self.p1_no_wait_is_late(client, &result.end);
        self.p2_no_wait_is_cut_short(client, &result.end);
        self.p7_states_are_true(client, &result.end);
        self.p11_keys_never_mix(client, &result.end);
        self.p12_failures_are_the_upstreams(client, &result.end);
    }

    fn p1_no_wait_is_late(&self, client: &SweepClient, end: &WaitOutcome) {
        let (now, lag, deadline) = (self.now, self.lag(), client.deadline());
        let latest = |due: &dyn Fn(usize) -> Duration| {
            let each = client.jobs.iter().map(|&job| self.latest(client, job, due(job)));
            each.max().expect("a client names a job") + lag * 2
        };
        let at_deadline = latest(&|_| deadline) + SKEW + self.late_end(client);
        assert!(now <= at_deadline, "{client:?} is answered {:?} after its deadline", now - deadline);
        let goal = client.goal.unwrap_or(0);
        let reached =
            |job: usize| self.plan.jobs[job].steps.reaches_at(goal).map(|at| at.max(client.arrives));
        match end {
            WaitOutcome::Reached(_) => {
                let latest = latest(&|job| reached(job).expect("its jobs reach the goal"));
                assert!(now <= latest, "{client:?} is late by {:?} too much", now - latest);
            }
            WaitOutcome::TimedOut(_) => {
                if let Some(alone) = self.reached_alone_at(client) {
                    let latest = latest(&|job| reached(job).expect("its jobs reach the goal"));
                    assert!(latest >= now.min(deadline), "{client:?} timed out, reached at {alone:?}");
                }
            }
            WaitOutcome::Refused(_) => {
                let latest = latest(&|_| client.arrives) + lag;
                assert!(now <= latest, "{client:?} is refused {:?} too late", now - latest);
            }
            WaitOutcome::Unsplit(_) | WaitOutcome::Failed(_) => {}
        }
    }

    fn p2_no_wait_is_cut_short(&self, client: &SweepClient, end: &WaitOutcome) {
        match end {
            WaitOutcome::Reached(states) => {
                for rung in states.iter().map(|state| self.rung_number(state)) {
                    assert!(rung >= client.goal.unwrap_or(0), "{client:?} gets {states:?}");
                }
            }
            WaitOutcome::TimedOut(_) => {
                let is_drained = !self.replicas[client.replica].is_accepting;
                assert!(self.now + SKEW >= client.deadline() || is_drained, "{client:?} is cut short");
            }
            WaitOutcome::Refused(_) | WaitOutcome::Unsplit(_) | WaitOutcome::Failed(_) => {}
        }
    }

    /// No attempt starts for a poll that another replica makes and that this one could know of.
    ///
    /// Replicas apart make the same poll once each, and go on with it: k - 1 extra calls. One of those polls has the
    /// lease again as soon as the engine is back.
    pub(super) fn p3_identical_waits_share_one_poll(&self, n: usize, run: PollId, spec: &PollSpec) {
        let starting = &self.replicas[n];
        let is_apart = starting.link.is_none() || self.was_disturbed(self.now, self.now, SETTLING);
        if starting.siblings.solo.contains(&run) || self.plan.pace.is_some() {
            return;
        }
        for (other, replica) in self.replicas.iter().enumerate().filter(|(other, _)| *other != n) {
            let Some((id, since)) = replica.runs.iter().find(|(run, _)| replica.polls[*run].spec == *spec)
            else {
                continue;
            };
            let Some(name) = replica.siblings.polls.of_run(*id) else { continue };
            let poll = replica.siblings.polls.get(name).expect("it makes the poll");
            let has_lease = self.engine.leases.get(&name).is_some_and(|lease| lease.token == poll.token);
            let was_apart = self.was_disturbed(*since, self.now, SETTLING);
            let is_revoked =
                self.revoked_at.get(&spec.domain.0[0]).is_some_and(|at| *at + self.lag() >= *since);
            let is_excused = if has_lease && !is_revoked { is_apart } else { was_apart || is_revoked };
            assert!(is_excused, "{n} starts {spec:?}, which {other} makes as {id:?} since {since:?}");
        }
    }

    /// For each key domain and goal: no more attempts than the clients alone would make calls, and than failed before. At the
    /// lowest rung one snapshot more for each wait that came to its deadline.
    fn p4_clients_alone_would_make_as_many_calls(&self) {
        for (&(number, goal), &started) in &self.started {
            let mut alone = self.failed.get(&(number, goal)).copied().unwrap_or_default();
            for client in
                self.plan.clients.iter().filter(|client| client.domain == number && client.has_joined)
            {
                if client.goal.map_or(Goal::Now, |goal| Goal::Rung(self.rungs[goal])) == goal {
                    alone += self.calls_alone(client);
                }
                let end = client.settled.or(client.leaves).unwrap_or(self.now);
                let is_drained = !self.replicas[client.replica].is_accepting;
                let may_take_snapshot = end + SKEW >= client.deadline() || is_drained;
                if goal == Goal::Rung(self.rungs[0]) && may_take_snapshot {
                    alone += client.jobs.len().div_ceil(self.plan.max_jobs) as u64;
                }
            }
            assert!(started <= alone, "domain {number}, {goal:?}: {started} started, {alone} alone");
        }
    }

    fn calls_alone(&self, client: &SweepClient) -> u64 {
        let is_refused = client.jobs.iter().any(|&job| self.plan.jobs[job].is_refused);
        let over = match self.reached_alone_at(client) {
            _ if is_refused || client.goal.is_none() => client.arrives,
            Some(at) => client.deadline().min(at),
            None => client.deadline(),
        };
        let mut calls = 1;
        let mut at = client.arrives + HOLD;
        while at < over && client.leaves.is_none_or(|leaves| at <= leaves) {
            calls += 1;
            at += HOLD;
        }
        (calls * client.jobs.len().div_ceil(self.plan.max_jobs)) as u64
    }

    fn reached_alone_at(&self, client: &SweepClient) -> Option<Duration> {
        let goal = client.goal.unwrap_or(0);
        let each = client.jobs.iter().map(|&job| self.plan.jobs[job].steps.reaches_at(goal));
        let all = each.collect::<Option<Vec<_>>>()?;
        Some(all.into_iter().fold(client.arrives, Duration::max))
    }

    fn p7_states_are_true(&self, client: &SweepClient, end: &WaitOutcome) {
        let (now, lag) = (self.now, self.lag());
        // A sibling's poll proves states until its holder was silent for some time. Its landing may be lost in that time.
        let may_have_missed = self.was_disturbed(now.saturating_sub(PROOF), now, Duration::ZERO)
            && client.jobs.iter().any(|&job| self.depends_on_others(client, job, now));
        let missed = if may_have_missed { PROOF } else { Duration::ZERO };
        // A replica that stood still ends a wait before it reads the answers that came meanwhile.
        let is_thawing = |fault: &&Disturbance| {
            fault.late.frozen == Some(client.replica) && fault.from <= now && now <= fault.until + lag
        };
        let thawing = self.disturbances.iter().filter(is_thawing).map(|fault| now - fault.from).max();
        let missed = missed.max(thawing.unwrap_or_default());
        let alone = self.reached_alone_at(client).unwrap_or(now);
        let drained_at = self.replicas[client.replica].drained_at;
        // The last known state is all that a replica has that stops without a way to the upstream.
        let is_cut_off = drained_at.is_some() && now <= self.replicas[client.replica].cut_off_until;
        let (states, from) = match end {
            WaitOutcome::TimedOut(states) if is_cut_off => (states, Duration::ZERO),
            WaitOutcome::Reached(states) if client.jobs.len() == 1 => {
                let from = alone.min(now).saturating_sub(lag * 2 + missed);
                (states, self.silent_since(client, from))
            }
            WaitOutcome::Reached(states) => (states, client.arrives.saturating_sub(lag)),
            WaitOutcome::TimedOut(states) => {
                let ended = drained_at.map_or(client.deadline(), |at| at.min(client.deadline()));
                let from = now.min(ended.max(client.arrives)).saturating_sub(SKEW + lag * 2 + missed);
                (states, self.silent_since(client, from))
            }
            WaitOutcome::Unsplit(_) | WaitOutcome::Refused(_) | WaitOutcome::Failed(_) => return,
        };
        let mut jobs = client.jobs.clone();
        jobs.sort_by_key(|&job| &self.plan.jobs[job].id);
        assert_eq!(states.len(), jobs.len());
        for (state, job) in states.iter().zip(jobs) {
            let planned = &self.plan.jobs[job];
            let rung = self.rung_number(state);
            assert!(planned.steps.was_at(rung, from, now), "{client:?} gets {state:?}");
            // P8, P11: the bytes are those of this job under this key.
            assert_eq!(state.body, format!("{} {} {rung}", planned.domain, planned.id), "{client:?}");
        }
    }

    /// Returns the time from which on a state may be shown that was true at `from`: the silence of a dead connection looks
    /// like that of a held poll, and proves states that the lost answer would have changed.
    fn silent_since(&self, client: &SweepClient, from: Duration) -> Duration {
        let lag = self.lag();
        let lost =
            self.lost.iter().filter(|lost| client.jobs.contains(&lost.job) && from <= lost.until + lag);
        let since = lost.map(|lost| lost.from.saturating_sub(lag)).fold(from, Duration::min);
        // It proves states that were read long before, while an earlier connection was dead.
        if since < from { since.saturating_sub(PROVEN) } else { from }
    }

    fn rung_number(&self, state: &JobState) -> usize {
        self.rungs.iter().position(|rung| Some(*rung) == state.rung).expect("a rung of the ladder")
    }

    fn p11_keys_never_mix(&self, client: &SweepClient, end: &WaitOutcome) {
        if let WaitOutcome::Refused(reply) = end {
            assert_eq!(reply.body, format!("{}", client.domain), "{client:?}");
        }
    }

    fn p12_failures_are_the_upstreams(&self, client: &SweepClient, end: &WaitOutcome) {
        if let WaitOutcome::Failed(failure) = end {
            assert!(
                matches!(failure, Failure::Unreachable | Failure::Timeout),
                "{client:?} fails: {failure:?}"
            );
            let failed = client.jobs.iter().filter_map(|job| self.fails_at.get(job)).max();
            let is_own = failed.is_some_and(|at| *at >= client.arrives);
            // The drain was over before a snapshot could come.
            let drained_at = self.replicas[client.replica].drained_at;
            let is_hurried = drained_at.is_some_and(|at| self.now <= at + self.lag());
            if *failure == Failure::Timeout && is_hurried {
                return;
            }
            assert!(is_own, "{client:?} fails with {failure:?}: {failed:?}");
        }
    }

    /// P11: no replica uses a state that was published under an epoch that it knows to be dead.
    pub(super) fn no_state_survives_a_dead_epoch(&self, n: usize, outcome: &PollOutcome) {
        let PollOutcome::Jobs(states) = outcome else { return };
        for state in states {
            let epoch = self.published.get(&attempt_of(&state.head));
            let is_dead = epoch.is_some_and(|epoch| self.dead.contains(&(n, epoch.0)));
            assert!(!is_dead, "{n} uses a state of the dead {epoch:?}: {state:?}");
        }
    }

    /// Some time after the last fault, holders and guests know of each other, one run of each poll has the lease, and the
    /// engine has answered everything.
    pub(super) fn siblings_agree(&self) {
        let since = self.now.saturating_sub(CALM);
        if self.was_disturbed(since, self.now, Duration::ZERO) {
            return;
        }
        let (names, calls) = self.on_their_way();
        for (n, replica) in self.replicas.iter().enumerate().filter(|(_, replica)| replica.is_alive) {
            assert!(
                calls.contains(&n) || replica.siblings.unanswered() == 0,
                "the outbox of {n} is not empty"
            );
            for (name, poll) in replica.siblings.polls.iter().filter(|(name, _)| !names.contains(name)) {
                match &poll.phase {
                    SharePhase::Away { holder, .. } => {
                        let holder = self.replica_named(*holder);
                        let holding =
                            holder.unwrap_or_else(|| panic!("{n} depends for {name:?} on a dead replica"));
                        let run =
                            holding.siblings.polls.get(name).and_then(|poll| Some((poll.token, poll.own()?)));
                        let (token, run) =
                            run.unwrap_or_else(|| panic!("{n} depends for {name:?} on no poll"));
                        assert_eq!(poll.awaited, Some(token), "{n} depends for {name:?} on another lease");
                        let is_guest = replica.link.is_some_and(|me| run.guests.contains(&me));
                        let was_shuffled = self.was_shuffled(holding.runs[&run.run]);
                        assert!(is_guest || was_shuffled, "{n} is not a guest of {name:?}: {run:?}");
                    }
                    SharePhase::Ours(own) => {
                        let is_guest = |guest: &&ReplicaName| {
                            let guest = self.replica_named(**guest)?;
                            let at_guest = guest.siblings.polls.get(name)?;
                            at_guest.own().is_none().then_some(())
                        };
                        let ghost = own.guests.iter().find(|guest| is_guest(guest).is_none());
                        let lease = self.engine.leases.get(&name);
                        let has_lease = lease.is_some_and(|lease| {
                            self.replica_named(lease.holder).is_some_and(|holder| {
                                let held = holder.siblings.polls.get(name);
                                held.is_some_and(|held| held.own().is_some() && held.token == lease.token)
                            })
                        });
                        let was_shuffled = self.was_shuffled(replica.runs[&own.run]);
                        assert!(ghost.is_none() || was_shuffled, "{n} has the guest {ghost:?} on {name:?}");
                        let is_linked = replica.link.is_some() && replica.is_accepting;
                        let is_revoked = self.is_revoked(poll.spec.domain, replica.runs[&own.run]);
                        assert!(
                            has_lease || !is_linked || is_revoked,
                            "no replica has the lease of {name:?}, made by {n}"
                        );
                    }
                    SharePhase::Asking { .. } | SharePhase::Delayed { .. } | SharePhase::Looking { .. } => {}
                }
            }
        }
    }

    /// Returns whether the key was rejected after an attempt began, as its replica knows it: a rejection counts as younger by
    /// the time of its message, which may come late, and of its call if the engine's clock went back before.
    fn is_revoked(&self, domain: KeyDomain, since: Duration) -> bool {
        let (far_until, far) = self.far;
        let went_back = self
            .plan
            .faults
            .iter()
            .any(|(at, fault)| matches!(fault, Fault::ClockJump(false, _)) && *at <= since + far);
        let far = if since <= far_until + far { far } else { Duration::ZERO };
        let on_its_way = if went_back { far } else { far / 2 };
        let shuffled = if self.was_shuffled(since) { SHUFFLED } else { Duration::ZERO };
        let latest = self.lag() + on_its_way + shuffled;
        self.revoked_at.get(&domain.0[0]).is_some_and(|at| *at + latest >= since)
    }

    /// Returns whether messages were out of order since then. An `Attached` that is overtaken by the `Detached` before it
    /// leaves a wrong list of guests until the poll ends: they have no numbers. Connections keep their order.
    fn was_shuffled(&self, since: Duration) -> bool {
        self.disturbances.iter().any(|fault| fault.late.is_shuffle && since <= fault.until)
    }

    fn replica_named(&self, name: ReplicaName) -> Option<&Replica> {
        self.replicas.iter().find(|replica| replica.is_alive && replica.link == Some(name))
    }

    /// Returns the polls that calls, answers and messages on their way are about, and the replicas with calls or answers on
    /// their way.
    fn on_their_way(&self) -> (BTreeSet<PollName>, BTreeSet<usize>) {
        let (mut names, mut calls) = (BTreeSet::new(), BTreeSet::new());
        for event in self.queue.values() {
            match event {
                SweepEvent::AtEngine(n, _, command) => {
                    calls.insert(*n);
                    if let ToEngine::Call(_, call) = command {
                        names.extend(name_in_call(call));
                    }
                }
                SweepEvent::AtReplica(n, _, SiblingInput::Answer(call, _)) => {
                    calls.insert(*n);
                    names.extend(self.replicas[*n].siblings.calls.get(call).map(|(name, _)| *name));
                }
                SweepEvent::AtReplica(_, _, SiblingInput::Message(message)) => {
                    names.extend(name_in_message(message))
                }
                _ => {}
            }
        }
        (names, calls)
    }

    pub(super) fn check_end(&self) {
        for client in &self.plan.clients {
            let is_over = client.is_lost || client.has_left || client.settled.is_some();
            assert!(is_over, "{client:?} is forgotten");
        }
        for (n, replica) in self.replicas.iter().enumerate().filter(|(_, replica)| replica.is_alive) {
            assert_eq!((replica.coalescer.waits(), replica.coalescer.polls()), (0, 0), "replica {n}");
            assert_eq!(replica.siblings.polls(), (0, 0), "replica {n}");
            assert_eq!(replica.siblings.unanswered(), 0, "replica {n}");
            assert!(replica.runs.is_empty(), "replica {n}: {:?}", replica.runs);
            let is_own = |lease: &&EngineLease| Some(lease.holder) == replica.link;
            let lease = self.engine.leases.values().find(is_own);
            assert!(lease.is_none(), "replica {n}: {lease:?}");
        }
        if self.plan.pace.is_none() {
            self.p4_clients_alone_would_make_as_many_calls();
        }
    }
}

fn name_in_call(call: &EngineCall) -> Option<PollName> {
    match call {
        EngineCall::Claim(request) => Some(request.spec.name),
        EngineCall::Adopt { spec, .. } | EngineCall::Land { spec, .. } => Some(spec.name),
        EngineCall::Fail(name, ..)
        | EngineCall::Leave(name, _)
        | EngineCall::Detach(name)
        | EngineCall::Note(name, ..) => Some(*name),
        EngineCall::Beat(_)
        | EngineCall::Refuse { .. }
        | EngineCall::Remove(_)
        | EngineCall::Pause(..)
        | EngineCall::Flushed => None,
    }
}

fn name_in_message(message: &SiblingMessage) -> Option<PollName> {
    match message {
        SiblingMessage::Landed(name, ..)
        | SiblingMessage::Failed(name, _)
        | SiblingMessage::Left(name, _)
        | SiblingMessage::Taken(name, _)
        | SiblingMessage::Attached(name, ..)
        | SiblingMessage::Detached(name, _)
        | SiblingMessage::Note(name, ..) => Some(*name),
        SiblingMessage::Beat(..)
        | SiblingMessage::Revoked { .. }
        | SiblingMessage::Removed { .. }
        | SiblingMessage::Paused(..)
        | SiblingMessage::Flushed => None,
    }
}
