//! The oracle: one function for each guarantee. Each answer is compared with the answer that its client would have had
//! alone, less the time of a few hops, and the bounds after the loss of a holder or of the engine.

use std::time::Duration;

use super::plan::SweepClient;
use super::{HOLD, World};
use crate::core::coalescer::{Failure, PollId, PollSpec, WaitOutcome, WaitResult};
use crate::core::job::JobState;
use crate::core::route::Goal;

/// Tolerance of the coalescer for a hold of two minutes.
const SKEW: Duration = Duration::from_millis(240);
/// Time that a wait may stay for a poll that is about to end.
const GRACE: Duration = Duration::from_secs(5);

/// A fault, and how late it makes answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Disturbance {
    from: Duration,
    /// End of the fault and of its consequences.
    until: Duration,
    late: Duration,
    /// Replica whose waits alone are late.
    replica: Option<usize>,
}

impl World {
    pub(super) fn disturb(&mut self, from: Duration, time: Duration, late: Duration, replica: Option<usize>) {
        // Links are back within a second, and a wrong suspicion of a silent sibling lasts as long as its takeover.
        let until = from + time + Duration::from_secs(4);
        self.disturbances.push(Disturbance { from, until, late, replica });
    }

    /// Returns whether nothing was disturbed at this moment and lately before it.
    fn was_calm(&self, at: Duration, before: u64) -> bool {
        let since = at.saturating_sub(Duration::from_secs(before));
        !self.disturbances.iter().any(|d| d.from <= at && since <= d.until)
    }

    /// Returns how much later than at `at` something may happen now because of faults.
    fn allowance(&self, client: &SweepClient, at: Duration) -> Duration {
        let lag = self.lag();
        let counts = |d: &&Disturbance| {
            d.replica.is_none_or(|n| n == client.replica) && d.from <= at + lag && at <= d.until
        };
        self.disturbances.iter().filter(counts).map(|d| d.late).max().unwrap_or_default()
    }

    /// Returns how late any answer may be by hops alone: to the upstream and back, and two round trips to the engine.
    fn lag(&self) -> Duration {
        self.plan.hop * 5 + self.plan.engine_hop * 6 + Duration::from_nanos(1)
    }

    pub(super) fn settled(&mut self, number: usize, result: &WaitResult) {
        let now = self.now;
        let client = &mut self.plan.clients[number];
        assert!(client.settled.replace(now).is_none() && !client.has_left, "{client:?} is answered again");
        let client = &self.plan.clients[number];
        if !self.plan.is_failing {
            self.p1_no_wait_is_late(client, &result.end);
        }
        self.p2_no_wait_is_cut_short(client, &result.end);
        self.p7_states_are_true(client, &result.end);
        self.p11_keys_never_mix(client, &result.end);
        self.p12_failures_are_the_upstreams(client, &result.end);
    }

    fn p1_no_wait_is_late(&self, client: &SweepClient, end: &WaitOutcome) {
        let (now, lag) = (self.now, self.lag());
        let deadline = client.deadline();
        let latest = deadline + SKEW + lag * 2 + self.allowance(client, deadline);
        let is_held_in_grace = !self.disturbances.is_empty() && now <= deadline + GRACE + lag * 2;
        assert!(now <= latest || is_held_in_grace, "{client:?} is answered {:?} late", now - latest);
        let alone = self.reached_alone_at(client);
        match end {
            WaitOutcome::Reached(_) => {
                let alone = alone.expect("its jobs reach the goal");
                let latest = alone + lag * 2 + self.allowance(client, alone);
                assert!(now <= latest, "{client:?} is late by {:?}", now - alone);
            }
            WaitOutcome::TimedOut(_) => {
                if let Some(alone) = alone {
                    let latest = alone + lag * 2 + self.allowance(client, alone);
                    assert!(latest >= now.min(deadline), "{client:?} timed out, reached at {alone:?}");
                }
            }
            WaitOutcome::Refused(_) => {
                let latest = client.arrives + lag * 3 + self.allowance(client, client.arrives);
                assert!(now <= latest, "{client:?} is refused late");
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

    /// No attempt starts for a poll that a sibling makes already, while nothing is disturbed.
    pub(super) fn p3_identical_waits_share_one_poll(&self, n: usize, spec: &PollSpec) {
        if self.plan.is_failing || !self.was_calm(self.now, 3) {
            return;
        }
        for (other, replica) in self.replicas.iter().enumerate().filter(|(other, _)| *other != n) {
            // What a poll of a dead epoch brings may not be used by siblings.
            let revoked_at = self.revoked_at.get(&spec.domain.0[0]).copied().unwrap_or_default();
            let is_same = |(run, at): &(&PollId, &Duration)| {
                replica.specs[*run].0 == *spec && **at > revoked_at + self.lag() && self.was_calm(**at, 3) // else it may have no lease
            };
            let run = replica.runs.iter().find(is_same);
            assert!(run.is_none(), "{n} starts {spec:?}, which {other} makes as {run:?}");
        }
    }

    /// For each key domain and goal: no more attempts than the clients alone would make calls. At the lowest rung one
    /// snapshot more for each wait that came to its deadline.
    fn p4_clients_alone_would_make_as_many_calls(&self) {
        if self.plan.is_failing {
            return;
        }
        for (&(number, goal), &started) in &self.started {
            let mut alone = 0;
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
        let each = client.jobs.iter().map(|&job| self.plan.jobs[job].reaches_at(goal));
        let all = each.collect::<Option<Vec<_>>>()?;
        Some(all.into_iter().fold(client.arrives, Duration::max))
    }

    fn p7_states_are_true(&self, client: &SweepClient, end: &WaitOutcome) {
        let (now, lag) = (self.now, self.lag());
        let (states, age) = match end {
            WaitOutcome::Reached(states) if client.jobs.len() == 1 => (states, lag * 2),
            WaitOutcome::Reached(states) => (states, now - client.arrives + lag),
            WaitOutcome::TimedOut(states) => (states, SKEW + lag * 2 + now.saturating_sub(client.deadline())),
            WaitOutcome::Unsplit(_) | WaitOutcome::Refused(_) | WaitOutcome::Failed(_) => return,
        };
        let from = now.saturating_sub(age + self.allowance(client, now));
        let mut jobs = client.jobs.clone();
        jobs.sort_by_key(|&job| &self.plan.jobs[job].id);
        assert_eq!(states.len(), jobs.len());
        for (state, job) in states.iter().zip(jobs) {
            let planned = &self.plan.jobs[job];
            let rung = self.rung_number(state);
            assert!(planned.was_at(rung, from, now), "{client:?} gets {state:?}");
            // P8, P11: the bytes are those of this job under this key.
            assert_eq!(state.body, format!("{} {} {rung}", planned.domain, planned.id), "{client:?}");
        }
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
            let is_failing =
                self.plan.is_failing && matches!(failure, Failure::Unreachable | Failure::Timeout);
            assert!(is_failing, "{client:?} fails: {failure:?}");
        }
    }

    /// While nothing is disturbed, each poll of a sibling has a holder that lives and makes it.
    pub(super) fn polls_of_siblings_have_living_holders(&self) {
        if !self.was_calm(self.now, 5) {
            return;
        }
        for (n, replica) in self.replicas.iter().enumerate().filter(|(_, replica)| replica.is_alive) {
            for (id, (spec, _)) in &replica.specs {
                let Some(holder) = replica.siblings.holder(*id) else { continue };
                let holder = self.replicas.iter().find(|other| other.link == Some(holder));
                let holder = holder.unwrap_or_else(|| panic!("{n} depends for {id:?} on a dead replica"));
                // A landing or a new claim may be on its way.
                let is_made = holder.runs.keys().any(|run| holder.specs[run].0 == *spec);
                let is_on_its_way = self.queue.values().any(|event| {
                    matches!(event, super::SweepEvent::AtEngine(..) | super::SweepEvent::AtReplica(..))
                });
                assert!(is_made || is_on_its_way, "{n} depends for {id:?} on a poll that is not made");
            }
        }
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
            let instance = n as u64 + 1;
            let lease = self.engine.leases.values().find(|lease| lease.token.instance == instance);
            assert!(lease.is_none(), "replica {n}: {lease:?}");
        }
        self.p4_clients_alone_would_make_as_many_calls();
    }
}
