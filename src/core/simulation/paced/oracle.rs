//! Step 3, the oracle: one function a guarantee. It knows the plan and not the coalescer.
//!
//! `round` is the longest time of a request there and back, until the caller has taken in the answer.

use std::time::Duration;

use super::plan::{ClientKind, PacedClient};
use super::{DRAIN, PacedRun, domain};
use crate::core::coalescer::{Cause, Failure, PollSpec, SNAPSHOT_LIMIT, WaitOutcome};
use crate::core::job::JobState;
use crate::core::route::Goal;

/// Longest pause of a 429.
pub(super) const MAX_PAUSE: Duration = Duration::from_secs(20);
/// Longest `Retry-After` of a success.
pub(super) const MAX_HINT: Duration = Duration::from_secs(12);

impl PacedRun {
    /// P5, P11: a poll serves a client of its key that names all its jobs. P3: a chain has no two snapshots under way.
    pub(super) fn check_open(&self, spec: &PollSpec, cause: Cause) {
        assert_eq!(spec.goal, Goal::Now);
        assert!((1..=self.plan.max_jobs).contains(&spec.jobs.len()), "{spec:?}");
        let jobs = self.jobs_of(spec);
        let serves = |client: &PacedClient| {
            client.joined_at.is_some()
                && client.ended_at.is_none()
                && domain(client.domain) == spec.domain
                && jobs.iter().all(|job| client.jobs.contains(job))
        };
        assert!(self.plan.clients.iter().any(serves), "{spec:?} serves no client");
        let is_outdated =
            |began: Duration| jobs.iter().any(|job| self.changed.get(job).is_some_and(|at| *at >= began));
        let is_for_waits = matches!(cause, Cause::Wait | Cause::Batch | Cause::Reopen);
        let is_same = |other: &super::PacedPoll| {
            other.spec.domain == spec.domain
                && other.spec.jobs == spec.jobs
                && other.spec.form == spec.form
                && other.began.is_some_and(|began| !is_outdated(began))
        };
        assert!(!is_for_waits || !self.polls.values().any(is_same), "P3: {spec:?} is asked already");
    }

    /// Checks the answer to a client.
    pub(super) fn check_answer(&mut self, number: usize, outcome: &WaitOutcome) {
        self.trace(|| format!("client {number} gets {outcome:?}"));
        let now = self.now;
        let client = &mut self.plan.clients[number];
        assert!(client.joined_at.is_some() && !client.has_left, "client {number} is answered after it left");
        assert!(client.ended_at.replace(now).is_none(), "client {number} is answered twice");
        let client = client.clone();
        self.p7_no_answer_is_later_than_the_snapshot(&client);
        match outcome {
            WaitOutcome::Reached(states) => {
                self.p8_states_are_the_upstreams(&client, states);
                let is_reached =
                    |state: &JobState| self.rung_number(state).is_none_or(|rung| client.is_met(rung));
                assert!(states.iter().all(is_reached), "{client:?} gets {states:?}");
                self.p1_states_are_fresh(&client, states);
                self.p1_no_wait_is_late(&client);
                self.p1_no_plain_request_is_held(&client);
            }
            WaitOutcome::TimedOut(states) => {
                self.p8_states_are_the_upstreams(&client, states);
                assert!(self.is_over(&client), "P2: {client:?} is cut short");
                self.p7_states_at_the_deadline_are_current(&client, states);
                self.p1_no_wait_is_late(&client);
            }
            WaitOutcome::Refused(reply) => {
                let reply = self.reply_with(reply);
                assert!(reply.is_final && self.is_about(&reply.spec, &client), "P5: {client:?} {reply:?}");
            }
            WaitOutcome::Failed(failure) => self.p12_a_failure_is_the_clients_own(&client, failure),
            WaitOutcome::Unsplit(_) => panic!("this upstream sends no unsplit body"),
        }
    }

    pub(super) fn check_end(&self) {
        for client in &self.plan.clients {
            assert!(client.is_cached || client.ended_at.is_some(), "{client:?} was never answered");
        }
        assert_eq!((self.coalescer.waits(), self.coalescer.polls()), (0, 0));
        assert!(self.polls.is_empty() && self.coalescer.poll_timeout().is_none(), "{:?}", self.polls);
        self.p4_no_more_snapshots_than_alone();
    }

    /// P2, P7: every wait ends by its deadline and the time of a snapshot, or with the drain.
    fn p7_no_answer_is_later_than_the_snapshot(&self, client: &PacedClient) {
        let undrained = client.deadline() + SNAPSHOT_LIMIT;
        let drained = self.drained_at.map(|at| (at + DRAIN).max(client.arrives));
        let latest = drained.map_or(undrained, |at| at.min(undrained));
        let is_slow = self.plan.has_faults || self.plan.has_queue;
        let latest = if is_slow || self.drained_at.is_some() {
            latest
        } else {
            latest.min(client.deadline() + self.round() * 2)
        };
        assert!(self.now <= latest, "{client:?} is answered {:?} late", self.now - latest);
    }

    /// P8, P11: one body for each job, in the order of the ids. A state was true between its sending and its reading. None is
    /// older than an action on its job that was answered.
    fn p8_states_are_the_upstreams(&self, client: &PacedClient, states: &[JobState]) {
        let jobs = self.sorted_jobs(client);
        assert_eq!(states.len(), jobs.len());
        for (state, job) in states.iter().zip(jobs) {
            assert!(super::is_of(state, &self.plan.jobs[job]), "P11: {client:?} gets {state:?}");
            let (as_of, seen_at) = (state.as_of - self.zero, state.seen_at - self.zero);
            if let Some(rung) = self.rung_number(state) {
                let was_true = self.plan.jobs[job].steps.was_at(rung, as_of, seen_at);
                assert!(was_true && seen_at <= self.now, "{client:?} gets {state:?}");
            }
            let is_outdated = self.changed.get(&job).is_some_and(|at| *at > as_of);
            assert!(!is_outdated, "{client:?} gets {state:?}, from before an action");
        }
    }

    /// P1: a state that reaches the goal was read since the arrival, or was on its way then, or came from the cache.
    fn p1_states_are_fresh(&self, client: &PacedClient, states: &[JobState]) {
        for state in states {
            let (as_of, seen_at) = (state.as_of - self.zero, state.seen_at - self.zero);
            let is_fresh = seen_at + self.plan.lag >= client.arrives
                || as_of + self.plan.pace.live_ttl >= client.arrives
                || self.is_terminal(state) && client.kind != ClientKind::NoCache;
            assert!(is_fresh, "{client:?} gets {state:?}");
            let is_newer = client.newer_than.is_none_or(|at| as_of > at) || state.rung.is_none();
            assert!(is_newer, "{client:?} gets {state:?}, and has a newer one");
        }
    }

    /// P1: a wait is late by one gap and the requests on the way, from the moment since when its jobs have been at its goal.
    /// One that came later is late by `live_ttl` or `pace`.
    fn p1_no_wait_is_late(&self, client: &PacedClient) {
        let plan = &self.plan;
        let is_gone = client.jobs.iter().any(|&job| plan.jobs[job].gone_from.is_some());
        if plan.has_faults || plan.has_queue || is_gone {
            return;
        }
        let limited = plan.limited.iter().filter(|(key, _)| *key == client.domain);
        let limited_until = limited.map(|(_, range)| range.end + MAX_PAUSE + self.round()).max();
        let holds_since = |&job: &usize| {
            let since = plan.jobs[job].holds_since(self.now, |rung| client.is_met(rung))?;
            Some(since.max(self.changed.get(&job).copied().unwrap_or_default()))
        };
        let Some(since) = client.jobs.iter().map(holds_since).collect::<Option<Vec<_>>>() else { return };
        let since = since.into_iter().max().unwrap();
        let round = self.round();
        let late = if client.jobs.len() > 1 {
            (plan.pace.max + round) * 2 + round
        } else if since < client.arrives {
            plan.pace.live_ttl.min(plan.pace.min) + round * 2
        } else {
            self.gap(client) + round * 2
        };
        let late = if plan.has_hints { late + MAX_HINT } else { late };
        let latest = since.max(client.arrives).max(limited_until.unwrap_or_default()) + late;
        assert!(self.now <= latest, "{client:?} is late by {:?}", self.now - latest);
    }

    /// Returns the longest gap that the chain of a client's job can have now.
    fn gap(&self, client: &PacedClient) -> Duration {
        let pace = self.plan.pace;
        let concerns = |other: &&PacedClient| other.jobs.iter().any(|job| client.jobs.contains(job));
        let first = self.plan.clients.iter().filter(concerns).map(|client| client.arrives).min().unwrap();
        ((self.now - first) / 10).clamp(pace.min, pace.max)
    }

    /// P1, P12: a plain request gets its own snapshot at once, also in a pause, or one that is under way.
    fn p1_no_plain_request_is_held(&self, client: &PacedClient) {
        let plan = &self.plan;
        let has_actions = client.jobs.iter().any(|job| plan.actions.iter().any(|(of, _)| of == job));
        if !client.is_plain() || plan.has_faults || plan.has_queue || has_actions || client.jobs.len() > 1 {
            return;
        }
        let latest = client.arrives + self.round() * 2;
        assert!(self.now <= latest, "{client:?} is held for {:?}", self.now - client.arrives);
    }

    /// P7: a state at the deadline is terminal, or was true within `live_ttl`. In a pause it is the last one known.
    fn p7_states_at_the_deadline_are_current(&self, client: &PacedClient, states: &[JobState]) {
        let is_limited = self.plan.limited.iter().any(|(key, _)| *key == client.domain);
        if is_limited || self.plan.has_queue || self.drained_at.is_some() {
            return;
        }
        for state in states {
            let as_of = state.as_of - self.zero;
            let is_current = as_of + self.plan.pace.live_ttl >= client.deadline();
            let is_final = state.rung.is_none() || self.is_terminal(state);
            assert!(is_current || is_final, "{client:?} gets {state:?}");
            assert!(
                client.newer_than.is_none_or(|at| as_of >= at),
                "{client:?} gets {state:?}, and has a newer one"
            );
        }
    }

    /// P12: a 429 ends a plain request, or a wait at its deadline where nothing was read. The other failures last.
    fn p12_a_failure_is_the_clients_own(&self, client: &PacedClient, failure: &Failure) {
        let is_over = self.is_over(client);
        match failure {
            Failure::UpstreamError(reply) => {
                let reply = self.reply_with(reply);
                assert!(self.is_about(&reply.spec, client), "P5: {client:?} gets {reply:?}");
                assert!(client.is_plain() || is_over, "{client:?} fails with a 429");
                let is_read = |job: &usize| self.read.get(job).is_some_and(|at| *at > client.arrives);
                let is_known = client.jobs.iter().all(is_read);
                assert!(client.is_plain() || !is_known, "{client:?} gets a 429, not the last state");
            }
            Failure::KeyRateLimited { .. } => {
                assert!(is_over && !self.plan.limited.is_empty(), "{client:?} fails with a pause");
            }
            Failure::Unreachable => assert!(self.plan.has_faults, "{client:?} fails"),
            Failure::Timeout => {
                let is_slow = self.plan.has_queue || self.plan.has_faults || self.drained_at.is_some();
                assert!(is_slow && is_over, "{client:?} is given up");
            }
            Failure::InvalidResponse(_) | Failure::TooLarge | Failure::LocalResources => {
                panic!("the upstream never fails so")
            }
        }
    }

    /// P4: a key has no more snapshots than its clients alone would make, each polling at `pace`: one more for the spread of
    /// the first gap, one for each deadline, and one for each action in their time.
    fn p4_no_more_snapshots_than_alone(&self) {
        for (&key, &sent) in &self.sent {
            let clients = self.plan.clients.iter().filter(|client| client.domain == key);
            let alone: u64 = clients.map(|client| self.snapshots_alone(client)).sum();
            assert!(sent <= alone, "domain {key}: {sent} snapshots, {alone} alone");
        }
    }

    fn snapshots_alone(&self, client: &PacedClient) -> u64 {
        let (Some(_), Some(end)) = (client.joined_at, client.ended_at) else { return 0 };
        if client.is_cached {
            return 0;
        }
        let each = client.jobs.len().div_ceil(self.plan.max_jobs) as u64;
        let time = end - client.arrives;
        let again = if client.is_plain() { 0 } else { time.as_nanos() / self.plan.pace.min.as_nanos() };
        let again = u64::try_from(again).unwrap();
        let spread = u64::from(!client.is_plain());
        let deadline = u64::from(end >= client.deadline() || self.drained_at.is_some());
        let in_time = |at: Duration| client.arrives <= at && at <= end;
        let is_own = |&&(job, at): &&(usize, Duration)| client.jobs.contains(&job) && in_time(at);
        let actions = self.plan.actions.iter().filter(is_own).count() as u64;
        // A failed request is not the last one, and pauses set polls apart that were one.
        let more = if client.is_plain() { 0 } else { client.jobs.len() as u64 - 1 };
        each * (1 + again + spread + deadline + actions) + more
    }

    fn is_over(&self, client: &PacedClient) -> bool {
        self.now >= client.deadline() || self.drained_at.is_some()
    }

    fn round(&self) -> Duration {
        self.plan.hop * 2 + self.plan.lag + Duration::from_nanos(10)
    }

    fn is_about(&self, spec: &PollSpec, client: &PacedClient) -> bool {
        domain(client.domain) == spec.domain && self.jobs_of(spec).iter().all(|job| client.jobs.contains(job))
    }

    fn reply_with(&self, reply: &crate::core::job::UpstreamResponse) -> &super::PacedReply {
        let number: usize = std::str::from_utf8(&reply.body).unwrap().parse().unwrap();
        &self.replies[number]
    }

    fn sorted_jobs(&self, client: &PacedClient) -> Vec<usize> {
        let mut jobs = client.jobs.clone();
        jobs.sort_by_key(|&job| &self.plan.jobs[job].id);
        jobs
    }
}
