//! Step 4, the oracle: checks each answer, each attempt and the end of a run. One function a guarantee.
//!
//! The oracle knows the plan. It compares with a client that calls the upstream alone, and allows for the time that
//! requests, faults and the breaker take. P3, P5 and P11 have a second check in each run: the invariants of the
//! coalescer, which debug builds check after every input.
//!
//! | an answer | functions |
//! | --- | --- |
//! | any | `p6`, `p7_no_answer_is_later_than_the_snapshot` |
//! | states that reach the goal | `p8`, `p1_reached_states_are_true`, `p1_no_wait_is_late` |
//! | states at the deadline | `p8`, `p2`, `p7_deadline_states_are_true` |
//! | a failure | `p12_a_failure_is_the_clients_own` |
//! | an error that the upstream wrote | `p11`, `p5`, `p12_an_error_is_final_for_the_client_alone_too` |

use std::time::Duration;

use super::plan::{DRAIN, PlannedClient};
use super::upstream::{ErrorCause, ErrorReply};
use super::{BACKOFF, COOLDOWN, Failure, PollId, RETRY_FOR, Run, domain};
use crate::core::coalescer::{SNAPSHOT_LIMIT, WaitOutcome};
use crate::core::job::{JobId, JobState, UpstreamResponse};

/// Allowed difference between two clocks that count the same time.
const SKEW: Duration = Duration::from_millis(240);
/// Time after its deadline for which a wait stays for a poll that is about to end.
const GRACE: Duration = Duration::from_secs(5);
/// Time from the opening of the breaker to its first probe.
const FIRST_COOLDOWN: Duration = Duration::from_millis(250);
/// A probe that is held for this time is a success.
const HELD: Duration = Duration::from_secs(1);

impl Run {
    /// Checks an attempt that starts.
    pub(super) fn check_attempt(&mut self, id: PollId) {
        let is_retry = self.scheduler.is_retry(id);
        if self.scheduler.is_closed() {
            (self.probed_at, self.probes) = (None, 0);
        } else if is_retry {
            self.p12_an_open_breaker_spaces_its_probes();
        }
        if !is_retry {
            let spec = &self.specs[&id];
            *self.first_attempts.entry(spec.domain.0[0]).or_default() += 1;
        }
    }

    /// Checks the answer to a client.
    pub(super) fn check_answer(&mut self, number: usize, outcome: &WaitOutcome) {
        self.trace(|| format!("client {number} gets {outcome:?}"));
        self.p6_a_client_is_answered_once_and_never_after_it_left(number);
        let client = self.plan.clients[number].clone();
        self.p7_no_answer_is_later_than_the_snapshot(&client);
        match outcome {
            WaitOutcome::Reached(states) => {
                self.p8_bodies_are_the_upstreams(&client, states);
                self.p1_reached_states_are_true(&client, states);
                self.p1_no_wait_is_late(&client);
            }
            WaitOutcome::TimedOut(states) => {
                self.p8_bodies_are_the_upstreams(&client, states);
                self.p2_no_wait_is_cut_short(&client);
                self.p7_deadline_states_are_true(&client, states);
            }
            WaitOutcome::Failed(failure) => self.p12_a_failure_is_the_clients_own(&client, failure),
            WaitOutcome::Unsplit(_) | WaitOutcome::Refused(_) => {
                panic!("this upstream sends no unsplit body and no refusal")
            }
        }
    }

    /// Checks the end of a run: every client that stayed was answered, and both state machines are empty.
    pub(super) fn check_end(&self) {
        for client in &self.plan.clients {
            assert!(client.has_left != client.answered_at.is_some(), "{client:?} was never answered");
        }
        assert_eq!((self.coalescer.waits(), self.coalescer.polls()), (0, 0));
        assert!(self.attempts.is_empty() && self.specs.is_empty(), "{:?}", self.specs);
        assert_eq!(self.scheduler.open(), 0);
        self.p4_no_more_polls_than_alone();
    }

    /// P1: a state that reaches the goal was true recently, or since the wait arrived where it names several jobs.
    fn p1_reached_states_are_true(&self, client: &PlannedClient, states: &[JobState]) {
        let (now, lag, goal) = (self.now, self.lag(), client.goal.unwrap_or(0));
        for (state, &job) in states.iter().zip(&self.sorted_jobs(client)) {
            let rung = self.rung_number(state);
            assert!(rung >= goal, "{client:?} gets {state:?}");
            let age = if client.jobs.len() == 1 { lag * 2 } else { now - client.arrives + lag };
            let was_true = self.plan.jobs[job].steps.was_at(rung, now.saturating_sub(age), now);
            assert!(was_true, "{client:?} gets {state:?}");
        }
    }

    /// P1: a goal is not reached later than alone, but for the time that faults take (P12).
    fn p1_no_wait_is_late(&self, client: &PlannedClient) {
        if self.has_own_faults(client) {
            return;
        }
        let lag = self.lag();
        let alone = self.alone(client).expect("the jobs reach the goal");
        let mut latest = alone + lag * 4;
        if self.plan.cuts_after.is_some() {
            latest += BACKOFF.first;
        }
        if let Some(end_of_fault) = self.last_fault(client) {
            // A probe may meet the last moment of the outage. Then the next probe follows, counts as held after a
            // second, and the other retries go on.
            latest = latest.max(end_of_fault + COOLDOWN + HELD + BACKOFF.first * 2 + lag * 4);
        }
        assert!(self.now <= latest, "{client:?} is late by {:?} beyond its bound", self.now - latest);
    }

    /// P2: a wait has its whole time, unless the gateway stops.
    fn p2_no_wait_is_cut_short(&self, client: &PlannedClient) {
        let has_its_time = self.now + SKEW >= client.deadline();
        assert!(has_its_time || self.drained_at.is_some(), "{client:?} is cut short");
    }

    /// P4: where nothing fails, a key has no more first attempts than its clients alone would have made requests.
    fn p4_no_more_polls_than_alone(&self) {
        let plan = &self.plan;
        let has_faults = !plan.outages.is_empty()
            || !plan.resets.is_empty()
            || !plan.single_resets.is_empty()
            || plan.key_errors.is_some()
            || plan.cuts_after.is_some()
            || plan.jobs.iter().any(|job| job.refused.is_some());
        if has_faults {
            return;
        }
        for (&number, &attempts) in &self.first_attempts {
            let clients = plan.clients.iter().filter(|client| client.domain == number);
            let alone: u64 = clients.map(|client| self.requests_alone(client)).sum();
            assert!(attempts <= alone, "domain {number}: {attempts} attempts, {alone} alone");
        }
    }

    /// P5: an error concerns only jobs that the client named.
    fn p5_an_error_is_about_the_clients_jobs(&self, client: &PlannedClient, error: &ErrorReply) {
        let names = |id: &JobId| client.jobs.iter().any(|&job| self.plan.jobs[job].id == *id);
        assert!(
            error.spec.jobs.iter().all(names),
            "{client:?} gets an error about a job that it did not name"
        );
    }

    /// P6.
    fn p6_a_client_is_answered_once_and_never_after_it_left(&mut self, number: usize) {
        let now = self.now;
        let client = &mut self.plan.clients[number];
        assert!(client.has_joined && !client.has_left, "client {number} is answered after it left");
        assert!(client.answered_at.replace(now).is_none(), "client {number} is answered twice");
    }

    /// P7: every wait ends by its deadline and the time of a snapshot, or with the drain.
    fn p7_no_answer_is_later_than_the_snapshot(&self, client: &PlannedClient) {
        let undrained = client.deadline() + GRACE + SNAPSHOT_LIMIT;
        let drained = self.drained_at.map(|at| (at + DRAIN).max(client.arrives));
        let latest = drained.map_or(undrained, |at| at.min(undrained)) + self.lag() * 2;
        assert!(self.now <= latest, "{client:?} is answered {:?} late", self.now - latest);
    }

    /// P7: the states at the deadline are true then. While the gateway stops, they were true once.
    fn p7_deadline_states_are_true(&self, client: &PlannedClient, states: &[JobState]) {
        let from = match self.drained_at {
            Some(_) => Duration::ZERO,
            None => self.now.min(client.deadline()).saturating_sub(SKEW + self.lag() * 2),
        };
        for (state, &job) in states.iter().zip(&self.sorted_jobs(client)) {
            let was_true = self.plan.jobs[job].steps.was_at(self.rung_number(state), from, self.now);
            assert!(was_true, "{client:?} gets {state:?}");
        }
    }

    /// P8, P11: one body for each job, in the order of the ids. A body names its key, so another key's body fails too.
    fn p8_bodies_are_the_upstreams(&self, client: &PlannedClient, states: &[JobState]) {
        let jobs = self.sorted_jobs(client);
        assert_eq!(states.len(), jobs.len());
        for (state, job) in states.iter().zip(jobs) {
            let expected = self.state(job, self.rung_number(state), Duration::ZERO);
            assert_eq!((&state.id, &state.body), (&expected.id, &expected.body), "{client:?}");
        }
    }

    /// P11: an error that the upstream wrote reaches clients of that key only.
    fn p11_an_error_is_of_the_clients_key(client: &PlannedClient, error: &ErrorReply) {
        assert_eq!(error.spec.domain, domain(client.domain), "{client:?} gets an error of another key");
    }

    /// P12: while the breaker is open, one retry is made after 250 ms, the next after twice the time, up to the
    /// cooldown.
    fn p12_an_open_breaker_spaces_its_probes(&mut self) {
        let pause = (FIRST_COOLDOWN * (1 << self.probes.min(5))).min(COOLDOWN);
        if let Some(last) = self.probed_at {
            assert!(self.now >= last + pause, "two probes within {pause:?}");
        }
        (self.probed_at, self.probes) = (Some(self.now), self.probes + 1);
    }

    /// P12: a new wait has the polls that it attaches to attempted at once.
    pub(super) fn p12_a_new_wait_is_attempted_at_once(&self, number: usize, poll: PollId) {
        assert!(!self.scheduler.is_pausing(poll), "{poll:?} is not attempted for client {number}");
    }

    /// P12: a failure is the client's own, or that of an outage that outlasted the client's time or `retry_for`.
    fn p12_a_failure_is_the_clients_own(&self, client: &PlannedClient, failure: &Failure) {
        let is_over = self.now + SKEW >= client.deadline();
        match failure {
            Failure::Unreachable | Failure::Timeout => {
                // A client that arrives at the very end of a drain has no time for a request.
                let is_drained = self.drained_at.is_some_and(|at| self.now + self.lag() >= at + DRAIN);
                let is_excused = self.outlasts_retry_for(client)
                    || is_drained
                    || (is_over || self.drained_at.is_some()) && self.last_fault(client).is_some();
                assert!(is_excused, "{client:?} fails with {failure:?}");
            }
            Failure::UpstreamError(reply) => {
                let error = self.error_of(reply);
                Self::p11_an_error_is_of_the_clients_key(client, error);
                self.p5_an_error_is_about_the_clients_jobs(client, error);
                self.p12_an_error_is_final_for_the_client_alone_too(client, error, is_over);
            }
            Failure::KeyRateLimited { .. } => {
                assert!(self.plan.refused_jobs(client.domain) > 1, "{client:?} gets a pause of its key");
            }
            Failure::InvalidResponse(_) | Failure::TooLarge | Failure::LocalResources => {
                panic!("this upstream fails in other ways")
            }
        }
    }

    /// P12: the client alone would have had the error too, or its time was over.
    fn p12_an_error_is_final_for_the_client_alone_too(
        &self,
        client: &PlannedClient,
        error: &ErrorReply,
        is_over: bool,
    ) {
        let is_over = is_over || self.drained_at.is_some();
        let is_own = match error.cause {
            ErrorCause::KeyErrors => error.began >= client.arrives || is_over,
            ErrorCause::Refused { until } => {
                client.is_immediate() || until > client.deadline() + SNAPSHOT_LIMIT || is_over
            }
            ErrorCause::Cut => is_over && self.last_fault(client).is_some(),
        };
        assert!(is_own, "{client:?} fails with {:?}", error.cause);
    }

    /// Returns the longest time that a request takes there and back, including the steps in the gateway.
    fn lag(&self) -> Duration {
        self.plan.hop * 6 + Duration::from_nanos(1)
    }

    /// Returns the error response with this body.
    fn error_of(&self, reply: &UpstreamResponse) -> &ErrorReply {
        let index: usize = std::str::from_utf8(&reply.body).unwrap().parse().unwrap();
        &self.error_replies[index]
    }

    /// Returns the time at which a client alone has its answer, without deadline and faults; `None` for never.
    fn alone(&self, client: &PlannedClient) -> Option<Duration> {
        let goal = client.goal.unwrap_or(0);
        let each = client.jobs.iter().map(|&job| self.plan.jobs[job].steps.reaches_at(goal));
        let all = each.collect::<Option<Vec<_>>>()?;
        Some(all.into_iter().fold(client.arrives, Duration::max))
    }

    /// Returns the number of requests that the client alone would make, and one more for the snapshot at its deadline.
    fn requests_alone(&self, client: &PlannedClient) -> u64 {
        let end = self.alone(client).map_or(client.deadline(), |at| at.min(client.deadline()));
        let end = client.leaves.map_or(end, |at| at.min(end));
        let holds = end.saturating_sub(client.arrives).as_nanos() / super::HOLD.as_nanos();
        2 + u64::try_from(holds).unwrap()
    }

    /// Returns whether the upstream writes errors or 429s for this client.
    fn has_own_faults(&self, client: &PlannedClient) -> bool {
        let has_errors = self.plan.key_errors.as_ref().is_some_and(|(key, _)| *key == client.domain);
        let is_refused = client.jobs.iter().any(|&job| self.plan.jobs[job].refused.is_some());
        has_errors || is_refused || self.plan.refused_jobs(client.domain) > 1
    }

    /// Returns the end of the last transport fault that this client can have met.
    fn last_fault(&self, client: &PlannedClient) -> Option<Duration> {
        let resets = self.plan.resets.iter().chain(&self.plan.single_resets).map(|&at| (at, at));
        let faults = self.plan.outages.iter().copied().chain(resets);
        // An attempt that began before the wait arrived may fail afterwards.
        let earliest = client.arrives.saturating_sub(self.lag());
        let met = faults.filter(|&(from, to)| from <= self.now && to >= earliest);
        met.map(|(_, to)| to.min(self.now)).max()
    }

    /// Returns whether an outage lasted for `retry_for` while the client waited. Two outages count as one if no retry
    /// need be made between them.
    fn outlasts_retry_for(&self, client: &PlannedClient) -> bool {
        let gap = COOLDOWN + BACKOFF.cap + Duration::from_secs(1) + self.lag() * 4;
        let mut outages: Vec<(Duration, Duration)> = self.plan.outages.clone();
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

    /// Returns the client's jobs in the order of their ids.
    fn sorted_jobs(&self, client: &PlannedClient) -> Vec<usize> {
        let mut jobs = client.jobs.clone();
        jobs.sort_by_key(|&job| &self.plan.jobs[job].id);
        jobs
    }

    fn rung_number(&self, state: &JobState) -> usize {
        self.rungs.iter().position(|&rung| Some(rung) == state.rung).unwrap()
    }
}
