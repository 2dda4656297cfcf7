//! The Coalescer: which wait leans on which poll, what to open, what to abort, whom to answer and when.
//!
//! A state machine with no IO and no clock: inputs go in with `now`, outputs come out. It must never know
//! HTTP, the cache, or how a poll is done. The hub owns the one value of it.
//!
//! ```text
//!            Join Leave                 Settle
//!   waits ───────────────▶ ┌─────────┐ ────────▶ waits
//!                          │  Board  │
//!   polls ───────────────▶ └─────────┘ ────────▶ polls
//!         Progress Landed               Open Abort
//! ```
//!
//! The rule of leaning: a wait leans on every running poll whose jobs are a subset of its own, at its own
//! goal or a lower one. While these ask for each job that it lacks, it opens nothing. Else it opens one poll
//! of its own, for all that no poll at its own goal will answer before its time is over: as it has to ask
//! anyway, asking for those too costs nothing, and spares the request that it would need when the upstream
//! ends the older poll. When a poll lands, whoever leaned on it and is not answered is planned anew. So the
//! polls that one wait opens are apart by the upstream's whole time, as those of a client alone are.

mod drain;
mod inspect;
mod job_index;
mod plan;
mod poll_result;
mod resolve;
#[cfg(test)]
mod simulation;
mod state;
#[cfg(test)]
mod tests;
mod timing;
mod types;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::inspect::JobStatus;
use self::poll_result::Landing;
use self::state::{AttemptState, Poll, PollPhase, State, Timer, Wait, WaitPhase};
pub use self::timing::{SNAPSHOT_LIMIT, Timing};
pub use self::types::{
    Cost, Failure, FaultKind, Input, Output, PollId, PollOutcome, PollProgress, PollSpec, WaitId,
    WaitOutcome, WaitResult, WaitSpec,
};
use crate::core::job::JobState;
use crate::core::route::Goal;

/// The machine. After each call of [`handle`](Self::handle) or [`handle_timeout`](Self::handle_timeout)
/// take outputs until there are none.
#[derive(Debug)]
pub struct Coalescer {
    rules: Timing,
    board: State,
    outputs: VecDeque<Output>,
    next_poll: u64,
    /// When the shell ends, once that is known.
    draining: Option<Instant>,
    /// How many whole plans were made.
    #[cfg(test)]
    plans: usize,
}

impl Coalescer {
    /// A machine with nothing to do.
    pub fn new(rules: Timing) -> Self {
        assert!(rules.max_jobs > 0, "max_jobs is validated > 0");
        Self {
            rules,
            board: State::default(),
            outputs: VecDeque::new(),
            next_poll: 0,
            draining: None,
            #[cfg(test)]
            plans: 0,
        }
    }

    /// Takes in what happened at `now`. What concerns a wait or poll that is forgotten changes nothing.
    pub fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Join(id, spec) => self.join(id, spec, now),
            Input::Leave(id) => self.leave(id, now),
            Input::CancelJoin(id) => self.refuse(id, now),
            Input::Drain(until) => self.drain(until, now),
            Input::Progress(id, progress) => self.progress(id, progress, now),
            Input::RetryAfter(id, pause) => self.retry_after(id, pause, now),
            Input::Landed(id, outcome) => self.landed(id, outcome, now),
        }
        self.check_invariants();
    }

    /// Does what is due at `now`, a part of it at a time: where there is more the next deadline is still due.
    pub fn handle_timeout(&mut self, now: Instant) {
        for _ in 0..MAX_TIMERS_PER_CALL {
            let Some(timer) = self.board.due(now) else { break };
            match timer {
                Timer::Wait(id) => self.wait_is_due(id, now),
                Timer::Poll(id) => self.poll_is_due(id, now),
            }
        }
        self.check_invariants();
    }

    /// The earliest moment at which [`handle_timeout`](Self::handle_timeout) has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.board.next_due()
    }

    /// The next thing to be done, in order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Whether anyone who leaned on the poll allows its answer to be kept.
    pub fn may_cache(&self, id: PollId) -> bool {
        self.board.poll(id).is_some_and(|poll| poll.keep)
    }

    /// Waits that are parked now.
    pub fn waits(&self) -> usize {
        self.board.wait_count()
    }

    /// Polls that are open, resting or lingering now.
    pub fn polls(&self) -> usize {
        self.board.poll_count()
    }

    /// Returns how many polls the outputs not yet taken open.
    pub fn pending_opens(&self) -> usize {
        self.outputs.iter().filter(|output| matches!(output, Output::Open(..))).count()
    }

    /// Returns the polls of a wait whose newest attempt failed or was refused, and which are not tried at the moment. A
    /// wait that has just joined makes the shell try them at once, as its client alone would (contract section 9).
    pub fn pausing(&self, id: WaitId) -> impl Iterator<Item = PollId> {
        let is_pausing = |poll: &Poll| {
            matches!(
                poll.tries,
                AttemptState::BackingOff { .. } | AttemptState::Paused { is_of_key: false, .. }
            )
        };
        self.attached_polls(id).filter(move |poll| self.board.poll(*poll).is_some_and(is_pausing))
    }

    /// Returns whether a wait came after the newest attempt of a poll had begun: where that failed, its client alone
    /// would have made one of its own since, so the shell makes another one at once.
    pub fn has_newcomer(&self, id: PollId) -> bool {
        let Some(poll) = self.board.poll(id) else { return false };
        let arrived = |wait: &WaitId| self.board.wait(*wait).map(|wait| wait.spec.arrived);
        poll.waits.iter().next_back().and_then(arrived).is_some_and(|arrived| arrived > poll.tried_at)
    }

    /// Returns how much time the waits on a poll have left, at most.
    pub fn time_left(&self, id: PollId, now: Instant) -> Duration {
        let waits = self.board.poll(id).into_iter().flat_map(|poll| &poll.waits);
        let deadlines = waits.filter_map(|wait| self.board.wait(*wait)).map(Wait::deadline);
        deadlines.max().map_or(Duration::ZERO, |deadline| deadline.saturating_duration_since(now))
    }

    fn join(&mut self, id: WaitId, mut spec: WaitSpec, now: Instant) {
        self.shorten_if_draining(&mut spec, now);
        self.board.add_wait(id, spec);
        if !self.settle_if_answered(id, None, now) {
            self.attach_or_open(id, None, now);
        }
    }

    fn leave(&mut self, id: WaitId, now: Instant) {
        if let Some(wait) = self.board.remove_wait(id) {
            self.let_linger(wait.attached_polls, now);
        }
    }

    fn refuse(&mut self, id: WaitId, now: Instant) {
        let Some(wait) = self.board.remove_wait(id) else { return };
        let is_its = |poll: &PollId| self.board.poll(*poll).is_some_and(|poll| poll.opener == id);
        let (own, others): (Vec<PollId>, Vec<PollId>) = wait.attached_polls.into_iter().partition(is_its);
        for poll in own {
            self.forget_poll(poll);
            self.take_back_open(poll);
        }
        self.let_linger(others, now);
    }

    fn progress(&mut self, id: PollId, progress: PollProgress, now: Instant) {
        let Some(poll) = self.board.poll_mut(id) else { return };
        match progress {
            PollProgress::AttemptStarted => (poll.tried_at, poll.tries) = (now, AttemptState::Sending),
            PollProgress::Held => poll.tries = AttemptState::Held { since: now },
            PollProgress::BackingOff(failure, pause) => {
                let waits = self.put_off(id, failure, AttemptState::BackingOff { until: now + pause }, now);
                let is_over =
                    |id: &WaitId| self.board.wait(*id).is_some_and(|wait| wait.phase != WaitPhase::Waiting);
                let waits: Vec<WaitId> = waits.into_iter().filter(is_over).collect();
                self.attach_or_open_all(waits, None, now);
            }
            PollProgress::Paused(failure, pause) => {
                let is_of_key = matches!(failure, Failure::KeyRateLimited { .. });
                let waits =
                    self.put_off(id, failure, AttemptState::Paused { until: now + pause, is_of_key }, now);
                self.attach_or_open_all(waits, None, now);
            }
        }
    }

    fn retry_after(&mut self, id: PollId, pause: Duration, now: Instant) {
        if let Some(poll) = self.board.poll_mut(id) {
            poll.not_before = Some((now, now + pause.min(MAX_RETRY_AFTER)));
        }
    }

    /// Notes that a poll is not tried for a while; whom that may concern comes back.
    fn put_off(
        &mut self,
        id: PollId,
        failure: Failure,
        tries: AttemptState,
        now: Instant,
    ) -> BTreeSet<WaitId> {
        let Some(poll) = self.board.poll_mut(id) else { return BTreeSet::new() };
        (poll.failed, poll.tries) = (Some(failure), tries);
        let waits = poll.waits.clone();
        self.let_linger([id], now);
        waits
    }

    fn give_up(&mut self, id: WaitId, now: Instant) {
        let Some(wait) = self.board.wait(id) else { return };
        let (failure, direct) = self.last_failure(id, wait, now).unwrap_or((Failure::Timeout, false));
        self.settle_failed(id, failure, direct, now);
    }

    /// Ends a wait with a failure. While draining, a wait on jobs that were all seen is told where they were seen: it
    /// cannot wait for the upstream to come back.
    fn settle_failed(&mut self, id: WaitId, failure: Failure, direct: bool, now: Instant) {
        let seen = self.draining.and_then(|_| self.last_seen(self.board.wait(id)?));
        let end = seen.map_or(WaitOutcome::Failed(failure), WaitOutcome::TimedOut);
        self.settle(id, end, direct, now);
    }

    fn wait_is_due(&mut self, id: WaitId, now: Instant) {
        let Some(wait) = self.board.wait(id) else { return };
        match wait.phase {
            WaitPhase::Waiting => self.end(id, None, now),
            WaitPhase::Grace { since } => self.take_snapshot(id, since, None, now),
            WaitPhase::Snapshot { .. } => self.give_up(id, now),
        }
    }

    /// Whether the wait's time is over, by one clock or the other.
    fn is_over(&self, wait: &Wait, now: Instant) -> bool {
        wait.deadline() <= now + self.rules.clock_skew()
    }

    /// The wait's time is over: it stays for a poll that is about to land, else it gets what can be had.
    fn end(&mut self, id: WaitId, landing: Option<&Landing>, now: Instant) {
        let Some(wait) = self.board.wait(id) else { return };
        let since = match wait.phase {
            WaitPhase::Waiting => now,
            WaitPhase::Grace { since } | WaitPhase::Snapshot { since } => since,
        };
        // What has just landed was read a moment ago, and is as true as it was then: to who was there.
        let since = landing.map_or(since, |landing| since.min(landing.read_at.max(wait.spec.arrived)));
        if self.is_about_to_be_told(wait, since, now) {
            let until = self.cap_at_drain(wait.deadline() + self.rules.grace());
            self.board.set_phase(id, WaitPhase::Grace { since }, until);
        } else {
            self.take_snapshot(id, since, landing, now);
        }
    }

    /// Gives the wait the truth (promise 7): from what is proven, and for the rest from one snapshot.
    fn take_snapshot(&mut self, id: WaitId, since: Instant, landing: Option<&Landing>, now: Instant) {
        let Some(wait) = self.board.wait(id) else { return };
        let truths = wait.spec.jobs.iter().filter_map(|job| self.deadline_state(wait, job, since, now));
        let (given, failed) = (truths.cloned().collect(), self.last_failure(id, wait, now));
        let limit = self.cap_at_drain(now + SNAPSHOT_LIMIT);
        let is_hopeless = self.is_paused_past(wait, limit);
        self.board.set_phase(id, WaitPhase::Snapshot { since }, limit);
        self.board.want(id, Goal::Rung(self.rules.ladder.lowest()));
        if let Some(wait) = self.board.wait_mut(id) {
            (wait.private_states, wait.failed) = (given, failed);
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

    /// Not later than the shell is there.
    pub(super) fn cap_at_drain(&self, at: Instant) -> Instant {
        self.draining.map_or(at, |until| at.min(until))
    }

    fn poll_is_due(&mut self, id: PollId, now: Instant) {
        let Some(poll) = self.board.poll(id) else { return };
        match poll.phase {
            PollPhase::Throttled { .. } => self.release(id, None, now),
            PollPhase::Open | PollPhase::Lingering { .. } => self.abort(id),
        }
    }

    fn abort(&mut self, id: PollId) {
        self.forget_poll(id);
        if !self.take_back_open(id) {
            self.outputs.push_back(Output::Abort(id));
        }
    }

    /// Takes the opening of a poll back, if the shell does not know of it yet.
    fn take_back_open(&mut self, id: PollId) -> bool {
        let before = self.outputs.len();
        self.outputs.retain(|output| !matches!(output, Output::Open(opened, _) if *opened == id));
        self.outputs.len() < before
    }

    /// Forgets a poll; its waits come back, each with whether it opened the poll.
    fn forget_poll(&mut self, id: PollId) -> Vec<(WaitId, bool)> {
        let Some(poll) = self.board.remove_poll(id) else { return Vec::new() };
        poll.waits.into_iter().map(|wait| (wait, wait == poll.opener)).collect()
    }

    /// Polls that a wait leaned on until now: those without a wait linger, or are forgotten if the upstream does
    /// not know of them.
    fn let_linger(&mut self, polls: impl IntoIterator<Item = PollId>, now: Instant) {
        for id in polls {
            match self.board.poll(id) {
                Some(poll) if !poll.waits.is_empty() => {}
                Some(Poll { phase: PollPhase::Throttled { .. }, .. }) => drop(self.forget_poll(id)),
                Some(poll) if poll.is_idle() => self.abort(id),
                Some(_) => {
                    let until = now + self.rules.linger;
                    self.board.set_poll_phase(id, PollPhase::Lingering { until });
                }
                None => {}
            }
        }
    }

    /// Answers the wait if each of its jobs has an answer.
    fn settle_if_answered(&mut self, id: WaitId, landing: Option<&Landing>, now: Instant) -> bool {
        let Some(wait) = self.board.wait(id) else { return false };
        // Answers stay: of many jobs those before the first one without an answer need not be looked at each time.
        let is_wide = wait.spec.jobs.len() > FEW_JOBS;
        let mut rest = wait.spec.jobs.iter().skip(wait.answered);
        if is_wide && let Some(further) = rest.position(|job| self.reached_state(wait, job).is_none()) {
            if let Some(wait) = self.board.wait_mut(id) {
                wait.answered += further;
            }
            return false;
        }
        let answers = wait.spec.jobs.iter().map(|job| self.reached_state(wait, job).cloned());
        let Some(states) = answers.collect::<Option<Vec<JobState>>>() else { return false };
        let direct = landing.is_some_and(|landing| {
            landing.opener == id && states.iter().all(|state| Arc::ptr_eq(&state.head, &landing.head))
        });
        let reached =
            states.iter().all(|state| state.rung.is_none_or(|rung| self.rules.reaches(rung, wait.spec.goal)));
        let end = if reached { WaitOutcome::Reached(states) } else { WaitOutcome::TimedOut(states) };
        self.settle(id, end, direct, now);
        true
    }

    fn settle(&mut self, id: WaitId, end: WaitOutcome, direct: bool, now: Instant) {
        let Some(wait) = self.board.remove_wait(id) else { return };
        let how = if wait.opened { Cost::Opened } else { Cost::Coalesced };
        self.outputs.push_back(Output::Settle(id, WaitResult { how, direct, end }));
        self.let_linger(wait.attached_polls, now);
    }

    /// What must hold after every call; a debug build stops where it does not.
    fn check_invariants(&self) {
        if cfg!(debug_assertions) && self.waits() + self.polls() <= MAX_CHECKED {
            self.board.check_links();
            for (id, wait) in self.board.all_waits() {
                assert!(!wait.attached_polls.is_empty(), "{id:?} leans on nothing");
                let is_looking = matches!(wait.phase, WaitPhase::Snapshot { .. });
                let lowest = Goal::Rung(self.rules.ladder.lowest());
                assert_eq!(wait.current_goal, if is_looking { lowest } else { wait.spec.goal }, "{id:?}");
                let domain = wait.spec.domain;
                for job in wait.spec.jobs.iter().filter(|job| self.reached_state(wait, job).is_none()) {
                    let is_wanting = self.board.slots().is_wanting(domain, job, wait.current_goal, id);
                    assert!(is_wanting, "{id:?} would not hear of {job}");
                }
                let polls = || wait.attached_polls.iter().filter_map(|&poll| self.board.poll(poll));
                for poll in polls() {
                    assert_eq!(poll.spec.domain, domain, "{id:?} leans across key domains");
                    assert!(poll.spec.jobs.is_subset(&wait.spec.jobs), "{id:?} leans on a neighbour");
                    assert!(
                        self.rules.is_within(poll.spec.goal, wait.current_goal),
                        "{id:?} leans on a higher rung"
                    );
                }
                let own = polls().filter(|poll| poll.opener == id).count();
                assert!(own <= wait.spec.jobs.len().div_ceil(self.rules.max_jobs), "{id:?} has {own} polls");
            }
        }
    }
}

/// Up to so many jobs of a wait are looked at without a thought.
const FEW_JOBS: usize = 8;

/// How many timers go off in one call, so that thousands of waits whose time is over together do not keep what else
/// has happened waiting.
const MAX_TIMERS_PER_CALL: usize = 256;

/// The longest `Retry-After` of an answered poll that is followed.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// How many waits and polls there may be for all of them to be checked after each call.
const MAX_CHECKED: usize = 256;
