//! What each client alone would have had, and what the gateway may make of it: one function a guarantee.

use std::time::Duration;

use super::plan::{Client, DRAIN};
use super::upstream::{Said, Why};
use super::{BACKOFF, COOLDOWN, Failure, PollId, RETRY_FOR, Run, domain};
use crate::core::coalescer::{SNAPSHOT_LIMIT, WaitOutcome};
use crate::core::job::{JobId, JobState, Reply};

/// Two clocks count the same time.
const SKEW: Duration = Duration::from_millis(240);
/// How long after its deadline a wait stays for a poll that is about to end.
const GRACE: Duration = Duration::from_secs(5);

/// The time from the opening of the breaker to its first probe.
const FIRST_COOLDOWN: Duration = Duration::from_millis(250);
/// A probe that is held for so long is a success.
const HELD: Duration = Duration::from_secs(1);

impl Run {
    /// The longest that a request takes there and back, with what the gateway does on the way.
    fn lag(&self) -> Duration {
        self.plan.hop * 6 + Duration::from_nanos(1)
    }

    /// While the breaker is open one retry is made after 250 ms, the next one after twice the time, and so on up to the
    /// cooldown. First attempts are always made.
    pub(super) fn check_start(&mut self, id: PollId) {
        let is_retry = self.scheduler.is_retry(id);
        if self.scheduler.is_closed() {
            (self.probed_at, self.probes) = (None, 0);
        } else if is_retry {
            let gap = (FIRST_COOLDOWN * (1 << self.probes.min(5))).min(COOLDOWN);
            if let Some(before) = self.probed_at {
                assert!(self.now >= before + gap, "two probes within {gap:?}");
            }
            (self.probed_at, self.probes) = (Some(self.now), self.probes + 1);
        }
        if !is_retry {
            let spec = &self.specs[&id];
            *self.first_attempts.entry(spec.domain.0[0]).or_default() += 1;
        }
    }

    pub(super) fn check_answer(&mut self, number: usize, end: &WaitOutcome) {
        self.trace(|| format!("client {number} is told {end:?}"));
        let now = self.now;
        let client = &mut self.plan.clients[number];
        assert!(client.has_joined && !client.has_left, "client {number} is answered after it left");
        assert!(client.told_at.replace(now).is_none(), "client {number} is answered twice");
        let client = client.clone();
        self.check_latest(&client);
        match end {
            WaitOutcome::Reached(states) => {
                self.check_states(&client, states);
                self.check_reached(&client, states);
            }
            WaitOutcome::TimedOut(states) => {
                self.check_states(&client, states);
                self.check_deadline_state(&client, states);
            }
            WaitOutcome::Failed(failure) => self.check_failure(&client, failure),
            WaitOutcome::Unsplit(_) | WaitOutcome::Refused(_) => {
                panic!("the upstream says nothing like that")
            }
        }
    }

    /// Every wait ends: at its deadline and what the look then may take, or with the drain.
    fn check_latest(&self, client: &Client) {
        let by_itself = client.deadline() + GRACE + SNAPSHOT_LIMIT;
        let drained = self.drained_at.map(|at| (at + DRAIN).max(client.arrives));
        let latest = drained.map_or(by_itself, |at| at.min(by_itself)) + self.lag() * 2;
        assert!(self.now <= latest, "{client:?} is answered {:?} late", self.now - latest);
    }

    /// P8, P11: bodies are its own key's, one a job, in the order of the ids.
    fn check_states(&self, client: &Client, states: &[JobState]) {
        let jobs = self.sorted(client);
        assert_eq!(states.len(), jobs.len());
        for (state, job) in states.iter().zip(jobs) {
            let right = self.state(job, self.number(state), Duration::ZERO);
            assert_eq!((&state.id, &state.body), (&right.id, &right.body), "{client:?}");
        }
    }

    /// P1: what is told is reached and true, and not later than alone but for what faults take.
    fn check_reached(&self, client: &Client, states: &[JobState]) {
        let (now, lag, goal) = (self.now, self.lag(), client.goal.unwrap_or(0));
        for (state, &job) in states.iter().zip(&self.sorted(client)) {
            let rung = self.number(state);
            assert!(rung >= goal, "{client:?} is told {state:?}");
            let age = if client.jobs.len() == 1 { lag * 2 } else { now - client.arrives + lag };
            let was_there = self.plan.jobs[job].was_at(rung, now.saturating_sub(age), now);
            assert!(was_there, "{client:?} is told {state:?}");
        }
        if self.has_own_faults(client) {
            return;
        }
        let alone = self.alone(client).expect("it reaches the goal");
        let mut latest = alone + lag * 4;
        if self.plan.cuts_after.is_some() {
            latest += BACKOFF.first;
        }
        if let Some(clear) = self.last_fault(client) {
            // A probe that met the last moment of the outage, the next one, until it counts as held, and the release of
            // the others.
            latest = latest.max(clear + COOLDOWN + HELD + BACKOFF.first * 2 + lag * 4);
        }
        assert!(now <= latest, "{client:?} is late by {:?} beyond its bound", now - latest);
    }

    /// P2, P7: not before its time, and true then.
    fn check_deadline_state(&self, client: &Client, states: &[JobState]) {
        let (now, lag, deadline) = (self.now, self.lag(), client.deadline());
        if self.drained_at.is_some() {
            for (state, &job) in states.iter().zip(&self.sorted(client)) {
                let was_there = self.plan.jobs[job].was_at(self.number(state), Duration::ZERO, now);
                assert!(was_there, "{client:?} is told {state:?}");
            }
            return;
        }
        assert!(now + SKEW >= deadline, "{client:?} is cut short");
        let from = now.min(deadline).saturating_sub(SKEW + lag * 2);
        for (state, &job) in states.iter().zip(&self.sorted(client)) {
            let was_there = self.plan.jobs[job].was_at(self.number(state), from, now);
            assert!(was_there, "{client:?} is told {state:?}");
        }
    }

    /// P11, P12: a failure is the client's own, or that of an outage that its time or `retry_for` did not outlast.
    fn check_failure(&self, client: &Client, failure: &Failure) {
        let is_over = self.now + SKEW >= client.deadline();
        match failure {
            Failure::Unreachable | Failure::Timeout => {
                // Who comes at the very end of a drain finds no time to ask.
                let is_gone = self.drained_at.is_some_and(|at| self.now + self.lag() >= at + DRAIN);
                let is_excused = self.outlasts_retry_for(client)
                    || is_gone
                    || (is_over || self.drained_at.is_some()) && self.last_fault(client).is_some();
                assert!(is_excused, "{client:?} fails with {failure:?}");
            }
            Failure::UpstreamError(reply) => self.check_error(client, reply, is_over),
            Failure::KeyRateLimited { .. } => {
                assert!(
                    self.plan.refused_jobs(client.domain) > 1,
                    "{client:?} is told of a pause of its key"
                );
            }
            Failure::InvalidResponse(_) | Failure::LocalResources => panic!("nothing says that"),
        }
    }

    fn check_error(&self, client: &Client, reply: &Reply, is_over: bool) {
        let number: usize = std::str::from_utf8(&reply.body).unwrap().parse().unwrap();
        let Said { spec, began, why } = &self.said[number];
        assert_eq!(spec.domain, domain(client.domain), "{client:?} is told of another key's error");
        let names = |id: &JobId| client.jobs.iter().any(|&job| self.plan.jobs[job].id == *id);
        assert!(spec.jobs.iter().all(names), "{client:?} is told of a neighbour's error");
        let is_over = is_over || self.drained_at.is_some();
        let is_own = match *why {
            Why::KeyErrors => *began >= client.arrives || is_over,
            Why::Refused { until } => {
                client.is_immediate() || until > client.deadline() + SNAPSHOT_LIMIT || is_over
            }
            Why::Cut => is_over && self.last_fault(client).is_some(),
        };
        assert!(is_own, "{client:?} fails with {why:?}");
    }

    /// When a client alone has its answer, were it not for its deadline and for faults; it may never come.
    fn alone(&self, client: &Client) -> Option<Duration> {
        let goal = client.goal.unwrap_or(0);
        let each = client.jobs.iter().map(|&job| self.plan.jobs[job].reaches_at(goal));
        let all = each.collect::<Option<Vec<_>>>()?;
        Some(all.into_iter().fold(client.arrives, Duration::max))
    }

    /// Whether the upstream fails or refuses this client by its own hand.
    fn has_own_faults(&self, client: &Client) -> bool {
        let has_errors = self.plan.key_errors.as_ref().is_some_and(|(key, _)| *key == client.domain);
        let is_refused = client.jobs.iter().any(|&job| self.plan.jobs[job].refused.is_some());
        has_errors || is_refused || self.plan.refused_jobs(client.domain) > 1
    }

    /// When the last fault of the way to the upstream ended that this client can have met, if it met one.
    fn last_fault(&self, client: &Client) -> Option<Duration> {
        let resets = self.plan.resets.iter().chain(&self.plan.single_resets).map(|&at| (at, at));
        let faults = self.plan.away.iter().copied().chain(resets);
        // An attempt that began before the wait came may fail after that.
        let earliest = client.arrives.saturating_sub(self.lag());
        let met = faults.filter(|&(from, to)| from <= self.now && to >= earliest);
        met.map(|(_, to)| to.min(self.now)).max()
    }

    /// Whether an outage lasted for `retry_for` while the client waited. Outages between which no retry need be made
    /// are one.
    fn outlasts_retry_for(&self, client: &Client) -> bool {
        let gap = COOLDOWN + BACKOFF.cap + Duration::from_secs(1) + self.lag() * 4;
        let mut outages: Vec<(Duration, Duration)> = self.plan.away.clone();
        outages.extend(self.plan.resets.iter().chain(&self.plan.single_resets).map(|&at| (at, at)));
        outages.sort_unstable();
        let mut merged: Vec<(Duration, Duration)> = Vec::new();
        for (from, to) in outages {
            match merged.last_mut() {
                Some((_, end)) if from <= *end + gap => *end = (*end).max(to),
                _ => merged.push((from, to)),
            }
        }
        let lag = self.lag() * 2;
        merged.iter().any(|&(from, to)| {
            to + gap >= client.arrives && from <= self.now && self.now + lag >= from + RETRY_FOR
        })
    }

    /// The client's jobs in the order of their ids.
    fn sorted(&self, client: &Client) -> Vec<usize> {
        let mut jobs = client.jobs.clone();
        jobs.sort_by_key(|&job| &self.plan.jobs[job].id);
        jobs
    }

    fn number(&self, state: &JobState) -> usize {
        self.rungs.iter().position(|&rung| Some(rung) == state.rung).unwrap()
    }

    /// Nobody is forgotten, and nothing is left behind.
    pub(super) fn check_whole(&self) {
        for client in &self.plan.clients {
            assert!(client.has_left != client.told_at.is_some(), "{client:?} is forgotten");
        }
        assert_eq!((self.coalescer.waits(), self.coalescer.polls()), (0, 0));
        assert!(self.attempts.is_empty() && self.specs.is_empty(), "{:?}", self.specs);
        assert_eq!(self.scheduler.open(), 0);
        self.check_calls();
    }

    /// P4 where nothing fails: no more polls for a rung than the clients alone would have made requests.
    fn check_calls(&self) {
        let plan = &self.plan;
        let has_faults = !plan.away.is_empty()
            || !plan.resets.is_empty()
            || !plan.single_resets.is_empty()
            || plan.key_errors.is_some()
            || plan.cuts_after.is_some()
            || plan.jobs.iter().any(|job| job.refused.is_some());
        if has_faults {
            return;
        }
        for (&number, &first) in &self.first_attempts {
            let clients = plan.clients.iter().filter(|client| client.domain == number);
            let alone: u64 = clients.map(|client| self.calls_alone(client)).sum();
            assert!(first <= alone, "domain {number}: {first} attempts, {alone} alone");
        }
    }

    /// How many requests the client alone would make, and one snapshot at its deadline.
    fn calls_alone(&self, client: &Client) -> u64 {
        let end = self.alone(client).map_or(client.deadline(), |at| at.min(client.deadline()));
        let end = client.leaves.map_or(end, |at| at.min(end));
        let held = end.saturating_sub(client.arrives).as_nanos() / super::HOLD.as_nanos();
        2 + u64::try_from(held).unwrap()
    }
}
