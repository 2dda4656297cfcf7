//! Coalescer: decides which wait attaches to which poll, which polls to open or abort, and how each wait ends.
//!
//! [`Coalescer`] has the calling protocol, the state tables and the attach rule.
//!
//! | file | content |
//! | --- | --- |
//! | `types` | inputs and outputs |
//! | `timing` | the settings, and the tolerances that follow from them |
//! | `state`, `job_index` | the memory: waits, polls, links, timers; decides nothing |
//! | `private_states` | states that count for one wait only |
//! | `poll_set` | the polls of a wait |
//! | `plan` | the attach rule |
//! | `chain` | the snapshots of an upstream that never holds |
//! | `resolve` | the states that answer a wait: at its goal, at its deadline, or proven at its arrival |
//! | `shed` | the end of polls that other polls make superfluous |
//! | `settle` | the end of a wait |
//! | `poll_result` | the progress and the landing of a poll |
//! | `interest`, `watch` | jobs asked for repeatedly, and the polls that prove their states |
//! | `drain` | the end of all waits when the gateway stops |
//! | `inspect` | the view for people |
//! | `invariants` | the checks of debug builds |

mod chain;
mod drain;
mod inspect;
mod interest;
mod invariants;
mod job_index;
mod plan;
mod poll_result;
mod poll_set;
mod private_states;
mod resolve;
mod settle;
mod shed;
#[cfg(test)]
mod simulation;
mod state;
#[cfg(test)]
mod tests;
mod timing;
mod types;
mod watch;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

pub use self::inspect::JobStatus;
use self::interest::Interests;
use self::poll_result::Landing;
use self::shed::ShedChecks;
use self::state::{AttemptState, CoalescerState, Poll, PollPhase, TimerOwner, Wait, WaitPhase};
pub use self::timing::{Pace, SNAPSHOT_LIMIT, Timing};
pub use self::types::{
    Cause, Cost, Failure, FaultKind, Input, Output, PollId, PollOutcome, PollProgress, PollSpec, Proof,
    WaitId, WaitOutcome, WaitResult, WaitSpec,
};
use crate::core::route::Goal;

/// A state machine that lets many waits share few polls.
///
/// It does no IO, reads no clock, spawns nothing, logs nothing and never fails. It knows neither HTTP nor the cache nor
/// retries: a poll with all its attempts is one poll here. One task owns the machine (the hub) and is called the caller
/// below.
///
/// ```text
///       Join Leave CancelJoin             Settle
///   ─────────────────────────▶ ┌───────┐ ────────▶ clients
///                              │ state │
///   ─────────────────────────▶ └───────┘ ────────▶ polls
///  Progress RetryAfter Landed            Open Abort
///    CancelWatch JobChanged
/// ```
///
/// # Calling protocol
///
/// 1. [`handle`](Self::handle) each event as it happens, with the current time.
/// 2. Call [`handle_timeout`](Self::handle_timeout) when [`poll_timeout`](Self::poll_timeout) is due.
/// 3. After either, call [`poll_output`](Self::poll_output) until it returns `None`, and carry out each output.
/// 4. Sleep until the next event, or until [`poll_timeout`](Self::poll_timeout), which any call may have changed.
///
/// The caller owes:
///
/// * Times that never go back. A late `handle_timeout` makes answers late by as much and has no other effect.
/// * Fresh [`WaitId`]s, in order of arrival. Poll numbers come from the machine.
/// * For each [`Output::Open`] one [`Input::Landed`], however often it retries, unless [`Output::Abort`] came first. An
///   event of an aborted poll or of a settled wait is ignored.
/// * [`Input::Progress`] for each attempt: without [`PollProgress::Held`] no poll proves a state, and each deadline costs a
///   snapshot.
/// * [`Input::CancelJoin`], if at all, directly after its `Join` and before the outputs are taken.
///   [`pending_opens`](Self::pending_opens) then says how many upstream requests the join costs.
/// * [`Input::RetryAfter`] directly before the `Landed` that it belongs to.
/// * [`Input::CancelWatch`] for a watch that the quota of its client does not allow, at best as soon as it opens.
///   [`idle_watch`](Self::idle_watch) is the watch to cancel where another poll lacks a place. A watch opens before the
///   waits that its landing answers are settled, so the caller still knows the wait that asked for it.
/// * A new attempt at once for each of the [`pausing`](Self::pausing) polls of a wait that has just joined (P12).
///
/// # Attach rule
///
/// A wait attaches to each open poll whose jobs are a subset of its own, at its own rung or a lower one. If these polls
/// do not ask for every job that it still needs, it opens one poll. That poll also asks for the jobs whose open poll ends
/// before the wait does. A wait for more jobs than a poll may ask for opens several at once.
///
/// When a poll lands, each of its waits without an answer is planned again. So the polls that one wait opens are apart by
/// the upstream's whole hold, like the calls of a client alone (P4). A poll that failed under a wait with a poll of its own
/// is repeated once for all such waits. `plan` is the rule, and a table of cases.
///
/// Where the upstream never holds ([`Timing::pace`]), every poll is a snapshot with the goal [`Goal::Now`], and serves waits of
/// all goals. The causes of a chain are [`Cause::Wait`], [`Cause::Batch`] and [`Cause::Reopen`]: no client made these requests.
/// `chain.rs` has the rules.
///
/// # Proof and watches
///
/// A held, silent poll for the next rung proves the state of its job (P7). A wait that accepts proof is answered from it
/// when it joins, if all its jobs are cached or proven. The bytes of each proven state are no older than the wait
/// accepts, and no answer has contradicted it since: a refusal, an unknown status.
///
/// A plain request asks for the state of one job at once, and accepts proof. A job with two plain requests within
/// [`Timing::watch_idle`] is watched: the machine opens a poll for its next rung when a poll lands with a state of the
/// job, unless such a poll is open. Each watch takes one from the credit of its job, each plain request that is answered
/// from proof adds one, and a watch needs a credit of zero or more. So the watches of a job cost at most one call more
/// than its clients alone, each time that it is abandoned (P4).
///
/// # Shedding
///
/// A poll for several jobs is shed once each of its jobs has a poll of its own at the same rung that was sent later and
/// has been held in silence for as long as a proof takes, unless its end would spare one of its waits a snapshot. If one
/// of those polls is refused, paused or fails by an answer of the upstream, the waits of the shed poll are planned again.
///
/// # States of a wait
///
/// | phase | event | next |
/// | --- | --- | --- |
/// | | `Join`, cached states answer every job | settled: `Reached` |
/// | | `Join`, cached and proven states answer every job | settled: `Reached`, at the cost `Proven` |
/// | | `Join` | `Waiting`, attached by the rule |
/// | `Waiting`, `Grace` | every job was seen at the goal | settled: `Reached` |
/// | `Waiting` | deadline, and the upstream is about to end a held poll that asks for an unknown state | `Grace` until the deadline + hold / 24 |
/// | `Waiting` | any other deadline | `Snapshot` |
/// | `Waiting` | pauses of the upstream outlast the wait and its snapshot | settled: `Failed` |
/// | `Grace` | that poll lands, or the grace ends | `Snapshot` |
/// | `Snapshot` | on entry: every state is known or proven (P7) | settled: `Reached` or `TimedOut` |
/// | `Snapshot` | on entry: a state is unknown | attached by the rule to a poll at the lowest rung |
/// | `Snapshot` | every job was seen since the deadline | settled: `Reached` or `TimedOut` |
/// | `Snapshot` | [`SNAPSHOT_LIMIT`] is over, or the poll is paused past it | settled: `Failed` |
/// | `Waiting`, `Grace`, a poll of it was shed | a poll that it did not open lands `Refused`, `Unsplit` or `Failed` by the upstream | attached by the rule |
/// | any | a poll lands `Refused` | settled: `Refused` |
/// | any | a poll lands `Unsplit` | on exactly this wait's jobs: settled. Otherwise attached by the rule to polls on exactly its jobs |
/// | any | a poll lands `Failed` | arrived before the failed attempt: settled. Otherwise attached by the rule |
/// | any | `Leave`, `CancelJoin` | forgotten without an output |
/// | any | `Drain` | deadline, or end of the phase, moved ahead. `Failed` becomes `TimedOut` where every job was seen |
///
/// # States of a poll
///
/// | phase | event | next |
/// | --- | --- | --- |
/// | | a plan opens it | `Open` |
/// | | a watch opens | `Lingering` until `watch_idle` after the last plain request |
/// | `Open` | its last wait ends; the upstream has the request | `Lingering` for [`Timing::linger`], or as a watch |
/// | `Open` | its last wait ends; the attempt is `Queued`, `BackingOff` or `Paused` | forgotten, `Abort` |
/// | `Lingering` | a wait attaches | `Open` |
/// | `Lingering` | its time is over, and its job is watched | `Lingering` until `watch_idle` after the last plain request |
/// | `Lingering` | its time is over, or the attempt fails | forgotten, `Abort` |
/// | `Open` | its last wait ends; another replica makes the poll, not as a watch | forgotten, `Abort` |
/// | `Lingering` as a watch | `Drain`, `CancelWatch`, `CancelWatches` | forgotten, `Abort` |
/// | `Open` as a watch | `CancelWatch`, `CancelWatches`; the upstream may have the request | `Open`, no longer a watch |
/// | `Open` as a watch | `CancelWatch`, `CancelWatches`; no attempt so far | forgotten, `Abort`; its waits are planned again |
/// | `Open` | each of its several jobs has a silent poll of its own | forgotten, `Abort`; its waits attach to these |
/// | `Open` | lands with jobs below its goal, sooner than hold / 100 after it was opened or within a `Retry-After` | `Throttled` until then |
/// | `Throttled` | the time is over | forgotten; its waits open the next one |
/// | `Throttled` | its last wait ends | forgotten |
/// | `Open`, `Lingering` | any other landing | forgotten; its waits are settled or attached by the rule |
///
/// | attempt | event | next |
/// | --- | --- | --- |
/// | `Queued`, `BackingOff`, `Paused` | `AttemptStarted` | `Sending` |
/// | `Sending` | `Held` | `Held`: from now on its silence can prove a state |
/// | any | `BackingOff` | `BackingOff` |
/// | any | `Paused` | `Paused`, of the poll or of its key |
/// | any | `Elsewhere` | `Sending` or `Held`; the poll and its attempt count from their start at the other replica |
/// | any | `Lost` | `Queued`; with the next `AttemptStarted` the poll counts from then |
/// | any | `Landed` | `Done` |
///
/// # Guarantees
///
/// `// P2` at a line means that the line decides this guarantee of `docs/guarantees.md`.
/// `check_invariants` runs after every call in debug builds.
#[derive(Debug)]
pub struct Coalescer {
    timing: Timing,
    state: CoalescerState,
    interests: Interests,
    shed_checks: ShedChecks,
    /// Whether polls are shed.
    sheds: bool,
    outputs: VecDeque<Output>,
    next_poll: u64,
    /// Difference between the numbers of two polls.
    poll_step: u64,
    /// End of the drain, once it has begun.
    draining: Option<Instant>,
    /// Number of waits planned as a whole.
    #[cfg(test)]
    plans: usize,
}

impl Coalescer {
    /// Creates a machine without waits and polls.
    pub fn new(timing: Timing) -> Self {
        Self::with_poll_ids(timing, 0, 1)
    }

    /// Creates a machine whose polls have the numbers `first`, `first + step`, and so on. So several machines, one for each
    /// route, give no number twice.
    pub fn with_poll_ids(timing: Timing, first: u64, step: u64) -> Self {
        assert!(timing.max_jobs > 0, "max_jobs is validated > 0");
        Self {
            timing,
            state: CoalescerState::default(),
            interests: Interests::default(),
            shed_checks: ShedChecks::new(),
            sheds: true,
            outputs: VecDeque::new(),
            next_poll: first,
            poll_step: step,
            draining: None,
            #[cfg(test)]
            plans: 0,
        }
    }

    /// Takes in an event that happened at `now`. An event of an unknown wait or poll changes nothing.
    pub fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Join(id, spec) => self.join(id, spec, now),
            Input::Leave(id) => self.leave(id, now),
            Input::CancelJoin(id) => self.cancel_join(id, now),
            Input::Drain(until) => self.drain(until, now),
            Input::Progress(id, progress) => self.progress(id, progress, now),
            Input::RetryAfter(id, pause) => self.retry_after(id, pause, now),
            Input::Landed(id, outcome) => self.landed(id, outcome, now),
            Input::CancelWatch(id) => self.cancel_watch(id, now),
            Input::CancelWatches(domain) => self.cancel_watches(domain, now),
            Input::JobChanged(domain, job) => self.job_changed(domain, &job, now),
        }
        self.check_invariants();
    }

    /// Handles up to 256 of the timers that are due at `now`. If more are due, [`poll_timeout`](Self::poll_timeout)
    /// still returns a moment in the past.
    pub fn handle_timeout(&mut self, now: Instant) {
        for _ in 0..MAX_TIMERS_PER_CALL {
            let Some(owner) = self.state.due(now) else { break };
            match owner {
                TimerOwner::Wait(id) => self.wait_is_due(id, now),
                TimerOwner::Poll(id) => self.poll_is_due(id, now),
            }
        }
        self.shed_due(now);
        self.check_invariants();
    }

    /// Returns when to call [`handle_timeout`](Self::handle_timeout) next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.state.next_due().into_iter().chain(self.shed_checks.first().map(|&(at, _)| at)).min()
    }

    /// Returns the next command, in order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Returns whether the answer to the poll may be cached: a wait that allows it was attached, and no action changed the
    /// jobs since the attempt began.
    pub fn may_cache(&self, id: PollId) -> bool {
        self.state.poll(id).is_some_and(|poll| poll.may_cache && !poll.chain.is_outdated)
    }

    /// Returns whether the answer to the poll may contradict a kept terminal state: a wait was attached whose client asked
    /// for the upstream's own answer, and no action changed the jobs since the attempt began.
    pub fn may_contradict(&self, id: PollId) -> bool {
        self.state.poll(id).is_some_and(|poll| poll.may_contradict && !poll.chain.is_outdated)
    }

    /// Returns the number of waits.
    pub fn waits(&self) -> usize {
        self.state.wait_count()
    }

    /// Returns the number of polls in any phase.
    pub fn polls(&self) -> usize {
        self.state.poll_count()
    }

    /// Returns the number of [`Output::Open`] that were not taken yet.
    pub fn pending_opens(&self) -> usize {
        self.outputs.iter().filter(|output| matches!(output, Output::Open(..))).count()
    }

    /// Returns the polls of a wait that are backing off or paused by themselves, not with their key.
    ///
    /// The caller starts an attempt of each at once when the wait has just joined: its client alone would make a request
    /// now (P12).
    pub fn pausing(&self, id: WaitId) -> impl Iterator<Item = PollId> {
        let is_pausing = |poll: &Poll| match poll.attempt {
            AttemptState::BackingOff { .. } => true,
            AttemptState::Paused { is_of_key, .. } => !is_of_key && self.timing.pace.is_none(),
            AttemptState::Queued | AttemptState::Sending | AttemptState::Held { .. } | AttemptState::Done => {
                false
            }
        };
        self.attached_polls(id).filter(move |poll| self.state.poll(*poll).is_some_and(is_pausing))
    }

    /// Returns whether a wait arrived after the newest attempt of the poll had begun.
    ///
    /// If that attempt fails, the caller makes the next one at once: the client of that wait alone would have made a
    /// request of its own since then (P12).
    pub fn has_newcomer(&self, id: PollId) -> bool {
        let Some(poll) = self.state.poll(id) else { return false };
        let arrived = |wait: &WaitId| self.state.wait(*wait).map(|wait| wait.spec.arrived);
        poll.waits.iter().next_back().and_then(arrived).is_some_and(|arrived| arrived > poll.attempted_at)
    }

    /// Returns the time until the last deadline among the waits on a poll.
    pub fn time_left(&self, id: PollId, now: Instant) -> Duration {
        let waits = self.state.poll(id).into_iter().flat_map(|poll| &poll.waits);
        let deadlines = waits.filter_map(|wait| self.state.wait(*wait)).map(Wait::deadline);
        deadlines.max().map_or(Duration::ZERO, |deadline| deadline.saturating_duration_since(now))
    }

    fn join(&mut self, id: WaitId, mut spec: WaitSpec, now: Instant) {
        self.shorten_if_draining(&mut spec, now);
        self.record_interest(id, &spec, now);
        let accepts_proof = matches!(spec.proof, Proof::Within(_));
        self.state.add_wait(id, spec);
        let is_settled =
            self.settle_if_answered(id, None, now) || (accepts_proof && self.settle_if_proven(id, now));
        if !is_settled {
            self.attach_or_open(id, None, now);
            self.bring_forward(id, now);
        }
    }

    fn leave(&mut self, id: WaitId, now: Instant) {
        if let Some(wait) = self.state.remove_wait(id) {
            self.let_linger(wait.attached_polls, now); // P6: the polls stay, also those that it opened
        }
    }

    fn cancel_join(&mut self, id: WaitId, now: Instant) {
        let Some(wait) = self.state.remove_wait(id) else { return };
        let is_opener = |poll: &PollId| self.state.poll(*poll).is_some_and(|poll| poll.opener == Some(id));
        let (own, others): (Vec<PollId>, Vec<PollId>) = wait.attached_polls.into_iter().partition(is_opener);
        for poll in own {
            self.forget_poll(poll);
            self.take_back_open(poll);
        }
        self.let_linger(others, now);
    }

    fn wait_is_due(&mut self, id: WaitId, now: Instant) {
        let Some(wait) = self.state.wait(id) else { return };
        match wait.phase {
            WaitPhase::Waiting => self.end(id, None, now),
            WaitPhase::Grace { since } => self.take_snapshot(id, since, None, now),
            WaitPhase::Snapshot { .. } => self.give_up(id, now),
        }
    }

    /// Returns whether the wait's deadline has come, by the clock of the gateway or of the upstream.
    fn is_past_deadline(&self, wait: &Wait, now: Instant) -> bool {
        wait.deadline() <= now + self.timing.clock_skew()
    }

    /// Handles the deadline of a wait: it stays for a poll that is about to land, otherwise it takes a snapshot.
    fn end(&mut self, id: WaitId, landing: Option<&Landing>, now: Instant) {
        let Some(wait) = self.state.wait(id) else { return };
        let since = match wait.phase {
            WaitPhase::Waiting => now,
            WaitPhase::Grace { since } | WaitPhase::Snapshot { since } => since,
        };
        // An answer that lands now was read slightly before. It is the state at the deadline, unless the wait arrived
        // later than that.
        let since = landing.map_or(since, |landing| since.min(landing.read_at.max(wait.spec.arrived)));
        if self.timing.pace.is_none() && self.expects_landing(wait, since, now) {
            let until = self.cap_at_drain(wait.deadline() + self.timing.grace());
            self.state.set_phase(id, WaitPhase::Grace { since }, until); // P4: that landing spares a snapshot
        } else {
            self.take_snapshot(id, since, landing, now);
        }
    }

    /// Answers the wait with the state of its jobs at the deadline (P7): known or proven states, and one snapshot for
    /// the rest.
    fn take_snapshot(&mut self, id: WaitId, since: Instant, landing: Option<&Landing>, now: Instant) {
        let Some(wait) = self.state.wait(id) else { return };
        let known = wait.spec.jobs.iter().filter_map(|job| self.deadline_state(wait, job, since, now));
        let known = self.timing.pace.is_none().then(|| known.cloned().collect());
        let last_failure = self.last_failure(id, wait, now);
        let limit = self.cap_at_drain(now + SNAPSHOT_LIMIT);
        let is_hopeless = self.timing.pace.is_none() && self.is_paused_past(wait, limit);
        self.state.set_phase(id, WaitPhase::Snapshot { since }, limit);
        self.state.set_goal(id, Goal::Rung(self.timing.ladder.lowest()));
        if let Some(wait) = self.state.wait_mut(id) {
            wait.last_failure = last_failure;
            wait.private_states = known.unwrap_or_else(|| std::mem::take(&mut wait.private_states));
        }
        if self.settle_if_answered(id, landing, now) {
            return;
        }
        if is_hopeless {
            self.give_up(id, now);
        } else {
            self.attach_or_open(id, None, now);
        }
    }

    fn poll_is_due(&mut self, id: PollId, now: Instant) {
        let Some(poll) = self.state.poll(id) else { return };
        match poll.phase {
            PollPhase::Throttled { .. } => self.release(id, None, now),
            PollPhase::Open | PollPhase::Lingering { .. } => match self.watched_until(poll, now) {
                Some(until) => self.keep_as_watch(id, until),
                None => self.abort(id), // P6
            },
        }
    }

    /// Keeps a poll open without waits: plain requests for its job came meanwhile.
    fn keep_as_watch(&mut self, id: PollId, until: Instant) {
        self.state.set_poll_phase(id, PollPhase::Lingering { until });
        self.state.set_watch(id, true);
    }

    fn abort(&mut self, id: PollId) {
        self.refund_watch(id);
        self.forget_poll(id);
        if !self.take_back_open(id) {
            self.outputs.push_back(Output::Abort(id));
        }
    }

    /// Removes the opening of a poll from the outputs. Returns false if the caller has taken it already.
    fn take_back_open(&mut self, id: PollId) -> bool {
        let before = self.outputs.len();
        self.outputs.retain(|output| !matches!(output, Output::Open(opened, ..) if *opened == id));
        self.outputs.len() < before
    }

    /// Forgets a poll. Returns its waits, each with whether it opened the poll.
    fn forget_poll(&mut self, id: PollId) -> Vec<(WaitId, bool)> {
        let Some(poll) = self.state.remove_poll(id) else { return Vec::new() };
        poll.waits.into_iter().map(|wait| (wait, poll.opener == Some(wait))).collect()
    }

    /// Lets those of the polls linger that have no waits left. Polls unknown to the upstream are forgotten at once (P6).
    fn let_linger(&mut self, polls: impl IntoIterator<Item = PollId>, now: Instant) {
        for id in polls {
            match self.state.poll(id) {
                Some(poll) if !poll.waits.is_empty() => {}
                Some(Poll { phase: PollPhase::Throttled { .. }, .. }) => drop(self.forget_poll(id)),
                Some(poll) if poll.is_idle() => self.abort(id),
                Some(poll) => {
                    // A poll of another replica lingers there, once all replicas have left it (P6).
                    let linger = if poll.is_elsewhere { Duration::ZERO } else { self.timing.linger };
                    let lingers_until = now + linger;
                    match self.watched_until(poll, now).filter(|until| *until > lingers_until) {
                        Some(until) => self.keep_as_watch(id, until),
                        None if poll.is_elsewhere => self.abort(id),
                        None => {
                            self.state.set_poll_phase(id, PollPhase::Lingering { until: lingers_until });
                        }
                    }
                }
                None => {}
            }
        }
    }
}

/// Most timers handled in one call, so that thousands of deadlines at one moment do not delay other events.
const MAX_TIMERS_PER_CALL: usize = 256;
