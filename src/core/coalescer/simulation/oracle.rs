//! The oracle: one function for each guarantee of `docs/guarantees.md`.
//!
//! Each answer is compared with the answer that its client would have had alone. A client alone is reckoned without any
//! time on the way. `lag` is the longest time that a request takes there and back, in five hops: to get a connection, to
//! the upstream, back, until the caller takes the answer in, and the delay of the caller's timers.

use std::sync::Arc;
use std::time::Duration;

use super::upstream::{OpenPoll, SentReply};
use super::{GRACE, HOLD, MIN_SILENCE, REPOLL_INTERVAL, SKEW, Sweep, SweepClient, UpstreamMode, domain};
use crate::core::coalescer::{
    Cause, Cost, Failure, PollSpec, Proof, SNAPSHOT_LIMIT, WaitId, WaitOutcome, WaitResult,
};
use crate::core::job::{JobState, UpstreamResponse};
use crate::core::route::{Form, Goal};

impl Sweep {
    /// Checks the answer that a client has just got.
    pub(super) fn check_answer(&self, client: &SweepClient, result: &WaitResult) {
        let end = &result.end;
        if result.how == Cost::Proven {
            self.p7_proofs_hold(client, result);
        }
        self.p1_no_wait_is_late(client, end);
        self.p2_no_wait_is_cut_short(client, end);
        self.p5_no_wait_depends_on_another_job(client, end);
        self.p7_states_are_true(client, end);
        self.p8_bytes_and_order_are_right(client, end);
        self.p11_keys_never_mix(client, end);
        self.p12_no_fault_is_made_worse(client, end);
    }

    /// Checks the whole schedule after its last event.
    pub(super) fn check_end(&self) {
        self.p6_clients_come_and_go_freely();
        self.p4_clients_alone_would_make_as_many_polls();
        self.p4_a_watch_costs_one_call_more_where_it_is_abandoned();
    }

    /// A client alone would have its answer at T: the wait has it by T + 2 lags. It may have to ask again when the poll it
    /// is attached to lands, or to take a snapshot when its deadline is nearer than the skew. Before an upstream that does
    /// not hold, one repoll interval more. A refusal takes 3 lags from the arrival.
    ///
    /// Any wait ends by its deadline + skew + 2 lags; + grace where the upstream holds longer than it should; + grace and
    /// the limit of a snapshot where it fails.
    fn p1_no_wait_is_late(&self, client: &SweepClient, end: &WaitOutcome) {
        let (now, lag, deadline) = (self.now, self.lag(), client.deadline());
        let latest = match self.mode {
            UpstreamMode::Clean | UpstreamMode::Short | UpstreamMode::Eager => deadline + SKEW + lag * 2,
            UpstreamMode::Slow => deadline + GRACE + lag * 2,
            UpstreamMode::Faulty => deadline + GRACE + SNAPSHOT_LIMIT + lag * 2,
        };
        assert!(now <= latest, "{client:?} is answered {:?} late", now - latest);
        if self.is_faulty() {
            return;
        }
        match end {
            WaitOutcome::Reached(_) => {
                let alone = self.reached_alone_at(client).expect("its jobs reach the goal");
                assert!(now <= alone + self.tolerance(), "{client:?} is late by {:?}", now - alone);
            }
            WaitOutcome::TimedOut(_) => {
                if let Some(alone) = self.reached_alone_at(client) {
                    assert!(alone + self.tolerance() >= now, "{client:?} timed out, reached at {alone:?}");
                }
            }
            WaitOutcome::Refused(_) => {
                assert!(now <= client.arrives + lag * 3, "{client:?} is refused late");
            }
            WaitOutcome::Unsplit(_) | WaitOutcome::Failed(_) => {}
        }
    }

    /// A wait times out no sooner than the skew before its deadline. States that it gets as reached are at its goal. An
    /// answer that cannot be split is one at its goal, or comes at its deadline.
    fn p2_no_wait_is_cut_short(&self, client: &SweepClient, end: &WaitOutcome) {
        let is_past_deadline = self.is_past_deadline(client);
        match end {
            WaitOutcome::Reached(states) => {
                for rung in states.iter().filter_map(|state| self.rung_number(state)) {
                    assert!(rung >= client.goal.unwrap_or(0), "{client:?} gets {states:?}");
                }
            }
            WaitOutcome::TimedOut(_) => assert!(is_past_deadline, "{client:?} is cut short"),
            WaitOutcome::Unsplit(reply) => {
                let reply = self.sent_reply(reply);
                let goal = client.goal.map_or(Goal::Now, |goal| Goal::Rung(self.rungs[goal]));
                assert!(reply.spec.goal == goal || is_past_deadline, "{client:?} gets {reply:?}");
            }
            WaitOutcome::Refused(_) | WaitOutcome::Failed(_) => {}
        }
    }

    /// No poll is opened while an identical one is open, where no client names more jobs than a poll may ask for.
    pub(super) fn p3_identical_waits_share_one_poll(&self, spec: &PollSpec) {
        let is_split = self.clients.iter().any(|client| client.jobs.len() > self.max_jobs);
        let is_same = |other: &OpenPoll| {
            let other = &other.spec;
            (other.domain, &other.jobs, other.goal) == (spec.domain, &spec.jobs, spec.goal)
        };
        let is_shared = is_split || self.is_faulty() || !self.open_polls.values().any(is_same);
        assert!(is_shared, "{spec:?} is open already");
    }

    /// For each key domain and goal: no more polls are opened than the clients alone would make calls.
    ///
    /// At the lowest rung there may be more by one snapshot (for each `max_jobs` of its jobs) a wait that came to its
    /// deadline. There is none where all clients wait for `completed` from one moment on for as long as the upstream
    /// holds.
    fn p4_clients_alone_would_make_as_many_polls(&self) {
        if self.is_faulty() {
            return;
        }
        for (&(number, goal), &opened) in &self.opened {
            let mut alone = 0;
            for client in self.clients.iter().filter(|client| client.domain == number) {
                if client.goal.map_or(Goal::Now, |goal| Goal::Rung(self.rungs[goal])) == goal {
                    alone += self.calls_alone(client);
                }
                let end = client.settled.or(client.leaves).unwrap();
                let may_take_snapshot = end + SKEW >= client.deadline() && !self.is_burst(number);
                if goal == Goal::Rung(self.rungs[0]) && may_take_snapshot && !client.cancelled {
                    alone += client.jobs.len().div_ceil(self.max_jobs) as u64;
                }
            }
            assert!(opened <= alone, "domain {number}, {goal:?}: {opened} opened, {alone} alone");
        }
    }

    /// For each job: no more watches are attempted than plain requests were answered from proof, and one for each time
    /// that the job was asked for twice or more within `watch_idle`, and then not for as long.
    fn p4_a_watch_costs_one_call_more_where_it_is_abandoned(&self) {
        for (job, &watches) in &self.watches {
            let asked = &self.asked[job];
            let runs = asked.chunk_by(|one, other| *other < *one + self.watch_idle);
            let abandoned = runs.filter(|run| run.len() > 1).count() as u64;
            let proven = self.proven.get(job).copied().unwrap_or(0);
            assert!(watches <= proven + abandoned, "{job}: {watches} watches, {proven} proven, {abandoned}");
        }
    }

    /// A poll that the upstream holds and that has waits is aborted only if each of its several jobs is at its rung, or has
    /// a poll of its own at that rung that was opened and sent later and has been silent for the margin. Returns whether it
    /// was such a poll.
    pub(super) fn p4_a_poll_with_waits_is_aborted_only_if_silent_polls_outlast_it(
        &self,
        poll: &OpenPoll,
    ) -> bool {
        // Without a linger, a poll may end in the same step as its last wait.
        let has_waits = !self.linger.is_zero() && poll.had_waits && poll.idle_since.is_none();
        if poll.held_since.is_none() || !has_waits {
            return false;
        }
        let goal = self.rungs.iter().position(|&rung| poll.spec.goal == Goal::Rung(rung));
        let goal = goal.expect("a poll without a status has no successor");
        for job in self.jobs_of(&poll.spec) {
            let is_successor = |other: &OpenPoll| {
                (other.spec.domain, other.spec.goal) == (poll.spec.domain, poll.spec.goal)
                    && self.jobs_of(&other.spec) == [job]
                    && other.opened_at > poll.opened_at
                    && other.attempted_at > poll.attempted_at
                    && other.held_since.is_some_and(|since| since + MIN_SILENCE <= self.now)
            };
            // An unknown status answers the waits of its poll for that job.
            let came_before = |at| poll.clients.iter().all(|client| self.clients[*client].arrives <= at);
            let is_for_all = |at: Duration| at <= self.now && came_before(at);
            if self.sent_unknown.iter().any(|&(sent, at)| sent == job && is_for_all(at)) {
                continue;
            }
            let was_seen = self.sent.iter().any(|&(sent, rung, _)| sent == job && rung >= goal);
            let is_outlasted = was_seen || self.open_polls.values().any(is_successor);
            let is_shed = goal > 0 && poll.spec.jobs.len() > 1 && is_outlasted;
            assert!(is_shed, "{poll:?} is aborted, but nothing else asks for {job}");
            // P7: a wait that lasts as long as the hold would need a snapshot at its deadline, unless a proof spares it.
            let ends_before =
                |client: &usize| self.clients[*client].deadline() + SKEW < poll.opened_at + HOLD;
            let is_provable = self.sent.iter().any(|&(sent, rung, _)| sent == job && rung + 1 >= goal);
            assert!(is_provable || poll.clients.iter().all(ends_before), "{poll:?} would spare a snapshot");
        }
        true
    }

    pub(super) fn record_shed(&mut self, poll: &OpenPoll) {
        for &client in &poll.clients {
            let before = self.shed.insert(client, (self.now, poll.spec.jobs.clone()));
            assert!(before.is_none(), "polls of client {client} are shed twice");
        }
    }

    /// Until its deadline, a client whose poll was shed gets no refusal, failure or unreadable answer to one of the polls
    /// that replaced it, nor to a later poll of another client: alone it would have a good poll. Only an outage or a
    /// paused key concerns every poll.
    pub(super) fn p12_no_client_of_a_shed_poll_gets_the_failure_of_another(
        &self,
        number: usize,
        result: &WaitResult,
    ) {
        let Some((shed_at, jobs)) = self.shed.get(&number) else { return };
        let Some(reply) = self.reply_of(&result.end) else { return };
        if self.is_past_deadline(&self.clients[number]) {
            return;
        }
        let replaces = reply.spec.jobs.iter().any(|job| jobs.contains(job));
        let is_own = result.direct && (!replaces || reply.attempted_at >= *shed_at);
        assert!(is_own, "{:?} lost its poll at {shed_at:?} and gets {reply:?}", self.clients[number]);
    }

    /// A watch asks for one job, which was asked for twice within `watch_idle`, the last time by `asked_by`. The other
    /// causes follow from what the poll asks for.
    pub(super) fn causes_are_right(&self, spec: &PollSpec, cause: Cause) {
        let is_immediate = spec.goal <= Goal::Rung(self.rungs[0]);
        let is_right = match cause {
            Cause::Wait => !is_immediate && spec.jobs.len() == 1,
            Cause::Batch => !is_immediate && spec.jobs.len() > 1,
            Cause::Reopen => !is_immediate,
            Cause::Snapshot => is_immediate,
            Cause::NoCache => {
                is_immediate && self.clients.iter().any(|client| client.proof == Proof::NoCache)
            }
            Cause::Deadline => spec.goal == Goal::Rung(self.rungs[0]),
            Cause::Watch { asked_by: WaitId(asked_by), .. } => {
                let job = self.jobs_of(spec)[0];
                let asked_by = &self.clients[usize::try_from(asked_by).unwrap()];
                let asked = self.asked[&job].as_slice();
                let [.., one, other] = *asked else { panic!("{spec:?} is a watch, asked for once") };
                let is_repeated = other < one + self.watch_idle && self.now < other + self.watch_idle;
                let is_asker = asked_by.is_plain() && asked_by.jobs == [job] && asked_by.arrives == other;
                is_repeated && is_asker && !is_immediate && spec.jobs.len() == 1 && spec.form == Form::Single
            }
        };
        assert!(is_right, "{spec:?} is opened for {cause:?}");
    }

    /// A poll without waits ends after its linger, or once its job was not asked for within `watch_idle`.
    pub(super) fn idle_polls_end_in_time(&mut self) {
        let now = self.now;
        for (id, poll) in &mut self.open_polls {
            let waits = self.machine.attached_waits(*id);
            poll.clients = waits.map(|WaitId(number)| usize::try_from(number).unwrap()).collect();
            if !poll.clients.is_empty() {
                (poll.had_waits, poll.idle_since) = (true, None);
            } else if poll.had_waits && poll.idle_since.is_none() {
                poll.idle_since = Some(now);
            }
        }
        for (id, poll) in &self.open_polls {
            if self.machine.attached_waits(*id).next().is_some() {
                continue;
            }
            let lingers_until = poll.idle_since.map(|since| since + self.linger);
            let jobs = self.jobs_of(&poll.spec);
            let last_asked =
                jobs.first().filter(|_| jobs.len() == 1).and_then(|job| self.asked.get(job)?.last());
            let until = lingers_until.max(last_asked.map(|at| *at + self.watch_idle));
            let until = until.expect("a poll without waits lingers or is a watch") + self.hop;
            assert!(now <= until, "{id:?} is open until {now:?}, not {until:?}: {poll:?}");
        }
    }

    /// An answer without states is one to a poll that asked for jobs of the wait only. One that cannot be split is one to a
    /// poll for all of them.
    fn p5_no_wait_depends_on_another_job(&self, client: &SweepClient, end: &WaitOutcome) {
        let Some(reply) = self.reply_of(end) else { return };
        let ids: Vec<_> = client.jobs.iter().map(|&job| &self.jobs[job].id).collect();
        assert!(reply.spec.jobs.iter().all(|id| ids.contains(&id)), "{client:?} gets {reply:?}");
        if let WaitOutcome::Unsplit(_) = end {
            assert_eq!(reply.spec.jobs.len(), client.jobs.len(), "{client:?} gets {reply:?}");
        }
    }

    /// Each client that stayed has its answer, and nothing is left of those that left. `carry_out` asserts that a client is
    /// answered once and not after it left.
    fn p6_clients_come_and_go_freely(&self) {
        for client in &self.clients {
            assert!(client.left != client.settled.is_some(), "{client:?} is forgotten");
        }
        assert_eq!((self.machine.waits(), self.machine.polls()), (0, 0));
        assert!(self.machine.poll_timeout().is_none());
        // Without waits and polls this finds each job and timer that was left behind.
        self.machine.check_invariants();
        assert!(self.open_polls.is_empty(), "{:?}", self.open_polls);
    }

    /// A state at the deadline was the true one at most skew + 2 lags ago. A state at the goal was the true one since the
    /// wait arrived, less a lag; for a wait on one job at most 2 lags ago. Before a faulty upstream: at any time.
    fn p7_states_are_true(&self, client: &SweepClient, end: &WaitOutcome) {
        let (now, lag) = (self.now, self.lag());
        let (states, from) = match end {
            WaitOutcome::Reached(states) => {
                let age = if client.jobs.len() == 1 { lag * 2 } else { now - client.arrives + lag };
                (states, now.saturating_sub(age))
            }
            WaitOutcome::TimedOut(states) => {
                (states, now.min(client.deadline()).saturating_sub(SKEW + lag * 2))
            }
            WaitOutcome::Unsplit(_) | WaitOutcome::Refused(_) | WaitOutcome::Failed(_) => return,
        };
        let from = if self.is_faulty() { Duration::ZERO } else { from };
        for (state, &job) in states.iter().zip(&self.sorted_jobs(client)) {
            if let Some(rung) = self.rung_number(state) {
                assert!(self.jobs[job].steps.was_at(rung, from, now), "{client:?} gets {state:?}");
            }
        }
    }

    /// An answer from proof goes to a client that accepts it. Each of its states was the true one a lag ago, has bytes that
    /// the upstream sent no longer ago than the client accepts, and since when no answer refused the job. An open poll of
    /// the key asks for the next rung of the job, and its request has been on a connection for the margin.
    fn p7_proofs_hold(&self, client: &SweepClient, result: &WaitResult) {
        let Proof::Within(max_age) = client.proof else { panic!("{client:?} is answered from proof") };
        let WaitOutcome::Reached(states) = &result.end else { panic!("{client:?} gets {result:?}") };
        assert!(!result.direct && self.now == client.arrives, "{client:?} gets {result:?}");
        for (state, job) in states.iter().zip(self.sorted_jobs(client)) {
            let seen_at = state.seen_at - self.zero;
            if seen_at == self.now && client.known.iter().any(|(known, _)| *known == job) {
                continue;
            }
            let rung = self.rung_number(state).expect("only a state on the ladder has a next rung");
            let from = self.now.saturating_sub(self.lag());
            let is_true = self.is_faulty() || self.jobs[job].steps.was_at(rung, from, self.now);
            assert!(is_true, "{client:?} gets {state:?}");
            assert!(self.sent.contains(&(job, rung, seen_at)), "{state:?} was never sent");
            assert!(self.now - seen_at <= max_age, "{client:?} gets {state:?}");
            let is_refused = self.refused_at.get(&job).is_some_and(|at| *at > seen_at);
            assert!(!is_refused, "{client:?} gets {state:?}, which was refused since");
            let proves = |poll: &OpenPoll| {
                poll.spec.domain == domain(client.domain)
                    && poll.spec.goal == Goal::Rung(self.rungs[rung + 1])
                    && poll.spec.jobs.contains(&state.id)
                    && poll.held_since.is_some_and(|since| since + MIN_SILENCE <= self.now)
            };
            assert!(self.open_polls.values().any(proves), "no poll proves {state:?} for {client:?}");
        }
    }

    /// One state for each job in the order of the set, with the bytes that the upstream has for it.
    fn p8_bytes_and_order_are_right(&self, client: &SweepClient, end: &WaitOutcome) {
        let (WaitOutcome::Reached(states) | WaitOutcome::TimedOut(states)) = end else { return };
        let jobs = self.sorted_jobs(client);
        assert_eq!(states.len(), jobs.len());
        for (state, job) in states.iter().zip(jobs) {
            let expected = JobState {
                head: Arc::clone(&state.head),
                seen_at: state.seen_at,
                as_of: state.as_of,
                ..self.state(job, self.rung_number(state))
            };
            assert_eq!(*state, expected, "{client:?}");
        }
    }

    /// An answer without states is one to a poll of the client's own key domain. The body of a state names its domain, which
    /// P8 compares.
    fn p11_keys_never_mix(&self, client: &SweepClient, end: &WaitOutcome) {
        if let Some(reply) = self.reply_of(end) {
            assert_eq!(reply.spec.domain, domain(client.domain), "{client:?} gets {reply:?}");
        }
    }

    /// Without faults, a client is refused if and only if one of its jobs is, and no wait fails.
    ///
    /// With faults, an upstream's error before the deadline is one to an attempt that began after the client arrived. It
    /// is the last one, or asks for a pause past the snapshot of the wait, or the client expects an answer at once. A wait
    /// hears of a paused key if the pause lasts as long.
    fn p12_no_fault_is_made_worse(&self, client: &SweepClient, end: &WaitOutcome) {
        if !self.is_faulty() {
            assert_eq!(matches!(end, WaitOutcome::Refused(_)), self.is_refused(client), "{client:?}");
            let is_fault = matches!(end, WaitOutcome::Unsplit(_) | WaitOutcome::Failed(_));
            assert!(!is_fault, "{client:?} gets {end:?}");
            return;
        }
        let WaitOutcome::Failed(failure) = end else { return };
        let (now, deadline) = (self.now, client.deadline());
        let is_past_deadline = self.is_past_deadline(client);
        match failure {
            Failure::UpstreamError(reply) => {
                let reply = self.sent_reply(reply);
                let is_certain =
                    reply.is_final || reply.paused_until > deadline + SNAPSHOT_LIMIT || client.is_immediate();
                let is_own = is_certain && reply.attempted_at >= client.arrives;
                assert!(is_own || is_past_deadline, "{client:?} gets {reply:?}");
            }
            Failure::KeyRateLimited { retry_after } => {
                let outlasts = now + *retry_after > deadline + SNAPSHOT_LIMIT;
                assert!(client.is_immediate() || outlasts || is_past_deadline, "{client:?}");
            }
            Failure::Timeout => assert!(now + SKEW >= deadline + SNAPSHOT_LIMIT, "{client:?}"),
            Failure::InvalidResponse(_) => assert!(client.jobs.len() > self.max_jobs, "{client:?}"),
            Failure::Unreachable | Failure::TooLarge | Failure::LocalResources => {
                panic!("the upstream never fails so")
            }
        }
    }

    fn is_faulty(&self) -> bool {
        self.mode == UpstreamMode::Faulty
    }

    fn is_past_deadline(&self, client: &SweepClient) -> bool {
        self.now + SKEW >= client.deadline()
    }

    fn lag(&self) -> Duration {
        self.hop * 5 + Duration::from_nanos(1)
    }

    /// Returns how much later than alone a client may get its answer.
    fn tolerance(&self) -> Duration {
        let repoll = if self.mode == UpstreamMode::Eager { REPOLL_INTERVAL } else { Duration::ZERO };
        self.lag() * 2 + repoll
    }

    /// Returns when a client alone, without a deadline, would have its jobs at its goal.
    fn reached_alone_at(&self, client: &SweepClient) -> Option<Duration> {
        let goal = client.goal.unwrap_or(0);
        let each = client.jobs.iter().map(|&job| self.jobs[job].steps.reaches_at(goal));
        let all = each.collect::<Option<Vec<_>>>()?;
        Some(all.into_iter().fold(client.arrives, Duration::max))
    }

    fn is_refused(&self, client: &SweepClient) -> bool {
        client.jobs.iter().any(|&job| self.jobs[job].is_refused)
    }

    /// Returns the reply of the upstream that an answer passes on.
    fn reply_of(&self, end: &WaitOutcome) -> Option<&SentReply> {
        match end {
            WaitOutcome::Refused(reply)
            | WaitOutcome::Unsplit(reply)
            | WaitOutcome::Failed(Failure::UpstreamError(reply)) => Some(self.sent_reply(reply)),
            WaitOutcome::Reached(_) | WaitOutcome::TimedOut(_) | WaitOutcome::Failed(_) => None,
        }
    }

    fn sent_reply(&self, reply: &UpstreamResponse) -> &SentReply {
        let number: usize = std::str::from_utf8(&reply.body).unwrap().parse().unwrap();
        &self.replies[number]
    }

    /// Returns the client's jobs in the order of their ids.
    fn sorted_jobs(&self, client: &SweepClient) -> Vec<usize> {
        let mut jobs = client.jobs.clone();
        jobs.sort_by_key(|&job| &self.jobs[job].id);
        jobs
    }

    pub(super) fn rung_number(&self, state: &JobState) -> Option<usize> {
        state.rung.map(|rung| self.rungs.iter().position(|&r| r == rung).unwrap())
    }

    /// Returns how many calls the client alone would make: at its arrival one for each `max_jobs` of its jobs, and again
    /// each time the upstream's hold is over, while its goal is not reached, its deadline has not come and it has not left.
    ///
    /// Where the upstream ends polls early, a wait may open one poll more for each job but one. Where it does not hold at
    /// all, the repoll interval stands for the hold.
    fn calls_alone(&self, client: &SweepClient) -> u64 {
        if client.cancelled {
            return 0;
        }
        let polls_at_once = client.jobs.len().div_ceil(self.max_jobs);
        let again = match self.mode {
            UpstreamMode::Eager => REPOLL_INTERVAL,
            _ => self.hold,
        };
        let over = client.deadline();
        let over = if self.is_refused(client) { client.arrives } else { over };
        let over = match (self.mode, client.goal, self.reached_alone_at(client)) {
            (_, None, _) => client.arrives,
            // Until its answer is late: meanwhile a poll may come too early, by one interval at most.
            (UpstreamMode::Eager, _, Some(at)) => over.min(at + self.tolerance()),
            (_, _, Some(at)) => over.min(at),
            (_, _, None) => over,
        };
        let mut calls = 1;
        let mut at = client.arrives + again;
        while at < over && client.leaves.is_none_or(|leaves| at <= leaves) {
            calls += 1;
            at += again;
        }
        let ends_early = matches!(self.mode, UpstreamMode::Short | UpstreamMode::Eager);
        let more = if ends_early { client.jobs.len() - 1 } else { 0 };
        (calls * polls_at_once + more) as u64
    }

    /// Returns whether all clients of a key domain wait for the end of the ladder from one moment on, as long as the
    /// upstream holds. Then the ends of their polls answer all of them.
    fn is_burst(&self, number: u8) -> bool {
        let clients = || self.clients.iter().filter(|client| client.domain == number);
        let arrivals = || clients().map(|client| client.arrives);
        let (Some(first), Some(last)) = (arrivals().min(), arrivals().max()) else { return false };
        let goal = clients().next().and_then(|client| client.goal);
        self.mode == UpstreamMode::Clean
            && last - first <= SKEW
            && goal.is_some_and(|goal| goal >= 3)
            && clients().all(|client| client.goal == goal && client.timeout == HOLD)
    }
}
