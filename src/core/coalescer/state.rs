//! What the Coalescer remembers: waits, polls, what is known of jobs, and who is due when.
//!
//! It keeps the links between them whole, and decides nothing.

use std::collections::BTreeSet;
use std::time::Instant;

use super::job_index::JobIndex;
use super::types::{Failure, PollId, PollSpec, WaitId, WaitSpec};
use crate::core::Map;
use crate::core::job::{JobId, JobState, KeyDomain};
use crate::core::route::Goal;

/// A failure, and whether it is the answer to a poll of the wait's own.
pub(super) type LastFailure = (Failure, bool);

/// One client's wait.
#[derive(Debug)]
pub(super) struct Wait {
    pub(super) spec: WaitSpec,
    pub(super) phase: WaitPhase,
    /// The polls that will tell it more.
    pub(super) attached_polls: BTreeSet<PollId>,
    /// It made the upstream see a request.
    pub(super) opened: bool,
    /// Answers on its jobs could not be taken apart: it needs one on just its set, from its own endpoint.
    pub(super) exact_set_only: bool,
    /// States that are good for this wait only: vouched for at its arrival, on no ladder, or true when its
    /// time was over.
    pub(super) private_states: PrivateStates,
    /// The place in its set of the first job that had no answer when last looked: those before it have one.
    pub(super) answered: usize,
    /// How the polls that it leaned on until its time was over failed last, if they did.
    pub(super) failed: Option<LastFailure>,
    /// Its goal; past its deadline no more than to see where its jobs are.
    pub(super) current_goal: Goal,
    due: Instant,
}

/// States that one wait knows, by the job's id. A wait may name a thousand jobs.
#[derive(Debug, Default)]
pub(super) struct PrivateStates(Vec<JobState>);

impl PrivateStates {
    pub(super) fn get(&self, job: &JobId) -> Option<&JobState> {
        self.place(job).ok().map(|place| &self.0[place])
    }

    pub(super) fn insert(&mut self, state: JobState) {
        match self.place(&state.id) {
            Ok(place) => self.0[place] = state,
            Err(place) => self.0.insert(place, state),
        }
    }

    fn place(&self, job: &JobId) -> Result<usize, usize> {
        self.0.binary_search_by(|state| state.id.cmp(job))
    }
}

impl FromIterator<JobState> for PrivateStates {
    fn from_iter<I: IntoIterator<Item = JobState>>(states: I) -> Self {
        let mut states: Vec<JobState> = states.into_iter().collect();
        if states.len() < 2 {
            return Self(states);
        }
        states.sort_by(|a, b| a.id.cmp(&b.id));
        states.dedup_by(|a, b| a.id == b.id);
        Self(states)
    }
}

impl Wait {
    /// When it is looked at next.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// When its time is over.
    pub(super) fn deadline(&self) -> Instant {
        self.spec.arrived + self.spec.timeout
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WaitPhase {
    /// Until its deadline.
    Waiting,
    /// Past it since then, while the upstream ends a poll that tells where the jobs are.
    Grace { since: Instant },
    /// Past it: what is seen from `since` on is the answer, reached or not.
    Snapshot { since: Instant },
}

/// One long-poll.
#[derive(Debug)]
pub(super) struct Poll {
    pub(super) spec: PollSpec,
    pub(super) phase: PollPhase,
    /// Who lean on it.
    pub(super) waits: BTreeSet<WaitId>,
    /// The wait that caused it, which may be gone.
    pub(super) opener: WaitId,
    /// Anyone who leaned on it allows its answer to be kept.
    pub(super) keep: bool,
    pub(super) opened_at: Instant,
    /// When the newest try began.
    pub(super) tried_at: Instant,
    pub(super) tries: AttemptState,
    /// How the newest failed try failed.
    pub(super) failed: Option<Failure>,
    /// When the upstream asked that its jobs are not asked about again, and until when.
    pub(super) not_before: Option<(Instant, Instant)>,
}

impl Poll {
    pub(super) fn new(spec: PollSpec, opener: WaitId, now: Instant) -> Self {
        Self {
            spec,
            phase: PollPhase::Open,
            waits: BTreeSet::new(),
            opener,
            keep: false,
            opened_at: now,
            tried_at: now,
            tries: AttemptState::Queued,
            failed: None,
            not_before: None,
        }
    }

    /// Until when it is not even tried, if that is known.
    pub(super) fn paused_until(&self) -> Option<Instant> {
        match self.tries {
            AttemptState::BackingOff { until } | AttemptState::Paused { until, .. } => Some(until),
            AttemptState::Queued | AttemptState::Sending | AttemptState::Held { .. } | AttemptState::Done => {
                None
            }
        }
    }

    /// Since when its request has stood at the upstream, if it does.
    pub(super) fn standing(&self) -> Option<Instant> {
        match self.tries {
            AttemptState::Held { since } => Some(since),
            AttemptState::Queued
            | AttemptState::Sending
            | AttemptState::BackingOff { .. }
            | AttemptState::Paused { .. }
            | AttemptState::Done => None,
        }
    }

    /// Whether no try is under way, and another is to come.
    pub(super) fn is_idle(&self) -> bool {
        match self.tries {
            AttemptState::Queued | AttemptState::BackingOff { .. } | AttemptState::Paused { .. } => true,
            AttemptState::Sending | AttemptState::Held { .. } | AttemptState::Done => false,
        }
    }
}

/// Where the tries of a poll stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AttemptState {
    /// It waits for its turn.
    Queued,
    /// One is under way.
    Sending,
    /// Its request has stood at the upstream since then.
    Held { since: Instant },
    /// The newest one failed, another is made then.
    BackingOff { until: Instant },
    /// None is made until then, as the upstream asked; of this poll, or of all polls of its key.
    Paused { until: Instant, is_of_key: bool },
    /// It has landed.
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PollPhase {
    /// The shell does it.
    Open,
    /// The shell does it, and nobody leans on it.
    Lingering { until: Instant },
    /// It landed too early and is opened again then.
    Throttled { until: Instant },
}

impl PollPhase {
    fn due(self) -> Option<Instant> {
        match self {
            PollPhase::Open => None,
            PollPhase::Lingering { until } | PollPhase::Throttled { until } => Some(until),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    Wait(WaitId),
    Poll(PollId),
}

/// All of it. Maps are only looked up, sets are walked: the same inputs give the same outputs.
#[derive(Debug, Default)]
pub(super) struct State {
    waits: Map<WaitId, Wait>,
    polls: Map<PollId, Poll>,
    slots: JobIndex,
    timers: BTreeSet<(Instant, Timer)>,
}

impl State {
    pub(super) fn wait(&self, id: WaitId) -> Option<&Wait> {
        self.waits.get(&id)
    }

    pub(super) fn wait_mut(&mut self, id: WaitId) -> Option<&mut Wait> {
        self.waits.get_mut(&id)
    }

    pub(super) fn poll(&self, id: PollId) -> Option<&Poll> {
        self.polls.get(&id)
    }

    pub(super) fn poll_mut(&mut self, id: PollId) -> Option<&mut Poll> {
        self.polls.get_mut(&id)
    }

    pub(super) fn wait_count(&self) -> usize {
        self.waits.len()
    }

    pub(super) fn poll_count(&self) -> usize {
        self.polls.len()
    }

    /// What is known of the jobs, and whom that concerns.
    pub(super) fn slots(&self) -> &JobIndex {
        &self.slots
    }

    /// Who is due first, if that is by now.
    pub(super) fn due(&self, now: Instant) -> Option<Timer> {
        self.timers.first().filter(|(at, _)| *at <= now).map(|&(_, timer)| timer)
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.timers.first().map(|&(at, _)| at)
    }

    pub(super) fn add_wait(&mut self, id: WaitId, mut spec: WaitSpec) {
        let given = std::mem::take(&mut spec.known).into_iter().collect();
        self.slots.enter_wait(id, spec.domain, &spec.jobs, spec.goal);
        let due = spec.arrived + spec.timeout;
        self.timers.insert((due, Timer::Wait(id)));
        let wait = Wait {
            current_goal: spec.goal,
            spec,
            phase: WaitPhase::Waiting,
            attached_polls: BTreeSet::new(),
            opened: false,
            exact_set_only: false,
            private_states: given,
            answered: 0,
            failed: None,
            due,
        };
        let before = self.waits.insert(id, wait);
        debug_assert!(before.is_none(), "{id:?} joined twice");
    }

    /// Takes a wait out. Its polls no longer count it; they are in `leans` for the caller to look after.
    pub(super) fn remove_wait(&mut self, id: WaitId) -> Option<Wait> {
        let wait = self.waits.remove(&id)?;
        self.timers.remove(&(wait.due, Timer::Wait(id)));
        for poll in &wait.attached_polls {
            if let Some(poll) = self.polls.get_mut(poll) {
                poll.waits.remove(&id);
            }
        }
        self.slots.leave_wait(id, wait.spec.domain, &wait.spec.jobs, wait.current_goal);
        Some(wait)
    }

    pub(super) fn set_phase(&mut self, id: WaitId, phase: WaitPhase, due: Instant) {
        if let Some(wait) = self.waits.get_mut(&id) {
            self.timers.remove(&(wait.due, Timer::Wait(id)));
            self.timers.insert((due, Timer::Wait(id)));
            (wait.phase, wait.due, wait.answered) = (phase, due, 0);
        }
    }

    /// Ends the wait's time at this moment, if it would not end before.
    pub(super) fn shorten(&mut self, id: WaitId, deadline: Instant) {
        let Some(wait) = self.waits.get_mut(&id) else { return };
        if wait.phase == WaitPhase::Waiting && deadline < wait.deadline() {
            wait.spec.timeout = deadline.saturating_duration_since(wait.spec.arrived);
            let due = wait.deadline();
            self.set_phase(id, WaitPhase::Waiting, due);
        }
    }

    /// Ends what the wait does past its deadline at this moment, if it would not end before.
    pub(super) fn cap(&mut self, id: WaitId, until: Instant) {
        if let Some(&Wait {
            phase: phase @ (WaitPhase::Grace { .. } | WaitPhase::Snapshot { .. }), due, ..
        }) = self.waits.get(&id)
            && until < due
        {
            self.set_phase(id, phase, until);
        }
    }

    pub(super) fn add_poll(&mut self, id: PollId, poll: Poll) {
        self.slots.enter_poll(id, &poll.spec);
        self.polls.insert(id, poll);
    }

    /// Takes a poll out; its waits no longer lean on it.
    pub(super) fn remove_poll(&mut self, id: PollId) -> Option<Poll> {
        let poll = self.polls.remove(&id)?;
        if let Some(due) = poll.phase.due() {
            self.timers.remove(&(due, Timer::Poll(id)));
        }
        for wait in &poll.waits {
            if let Some(wait) = self.waits.get_mut(wait) {
                wait.attached_polls.remove(&id);
            }
        }
        self.slots.leave_poll(id, &poll.spec);
        Some(poll)
    }

    pub(super) fn set_poll_phase(&mut self, id: PollId, phase: PollPhase) {
        let Some(poll) = self.polls.get_mut(&id) else { return };
        if let Some(due) = poll.phase.due() {
            self.timers.remove(&(due, Timer::Poll(id)));
        }
        if let Some(due) = phase.due() {
            self.timers.insert((due, Timer::Poll(id)));
        }
        poll.phase = phase;
    }

    /// Attaches a wait to exactly these polls. Returns the polls that it was attached to before.
    pub(super) fn set_attached(&mut self, id: WaitId, leans: BTreeSet<PollId>) -> Vec<PollId> {
        let Some(wait) = self.waits.get_mut(&id) else { return Vec::new() };
        let before = std::mem::replace(&mut wait.attached_polls, leans.clone());
        let dropped: Vec<PollId> = before.difference(&leans).copied().collect();
        for poll in &dropped {
            if let Some(poll) = self.polls.get_mut(poll) {
                poll.waits.remove(&id);
            }
        }
        for poll in leans {
            self.link(id, poll);
        }
        dropped
    }

    /// Makes a wait lean on further polls.
    pub(super) fn attach(&mut self, id: WaitId, polls: impl IntoIterator<Item = PollId>) {
        for poll in polls {
            if let Some(wait) = self.waits.get_mut(&id) {
                wait.attached_polls.insert(poll);
            }
            self.link(id, poll);
        }
    }

    /// Makes a wait lean on this poll no more.
    pub(super) fn detach(&mut self, id: WaitId, poll_id: PollId) {
        if let Some(wait) = self.waits.get_mut(&id) {
            wait.attached_polls.remove(&poll_id);
        }
        if let Some(poll) = self.polls.get_mut(&poll_id) {
            poll.waits.remove(&id);
        }
    }

    /// Makes a wait lean on the poll that it just opened.
    pub(super) fn attach_opened(&mut self, id: WaitId, poll: PollId) {
        if let Some(wait) = self.waits.get_mut(&id) {
            wait.attached_polls.insert(poll);
            wait.opened = true;
        }
        self.link(id, poll);
    }

    fn link(&mut self, wait: WaitId, poll_id: PollId) {
        let keep = self.waits.get(&wait).is_some_and(|wait| wait.spec.keep);
        let Some(poll) = self.polls.get_mut(&poll_id) else { return };
        poll.waits.insert(wait);
        poll.keep |= keep;
        if let PollPhase::Lingering { .. } = poll.phase {
            self.set_poll_phase(poll_id, PollPhase::Open);
        }
    }

    /// Remembers a state, unless it goes back behind what is known, which only confirms that.
    pub(super) fn learn(&mut self, domain: KeyDomain, state: JobState) {
        self.slots.learn(domain, state);
    }

    /// From now on the wait wants to know of all its jobs for this goal.
    pub(super) fn want(&mut self, id: WaitId, goal: Goal) {
        let Some(wait) = self.waits.get_mut(&id) else { return };
        let before = std::mem::replace(&mut wait.current_goal, goal);
        self.slots.reset_interest(id, wait.spec.domain, &wait.spec.jobs, before, goal);
    }

    /// The wait has its answer for this job, and keeps it until it wants something else.
    pub(super) fn clear_interest(&mut self, id: WaitId, job: &JobId) {
        if let Some(wait) = self.waits.get(&id) {
            self.slots.clear_interest(id, wait.spec.domain, job, wait.current_goal);
        }
    }

    /// Gives a state on no ladder to those who lean on the poll that brought it, and to nobody else.
    pub(super) fn deliver_unknown_status(&mut self, poll: PollId, state: &JobState) {
        let Some(poll) = self.polls.get(&poll) else { return };
        for wait in &poll.waits {
            if let Some(wait) = self.waits.get_mut(wait) {
                wait.private_states.insert(state.clone());
            }
        }
    }

    pub(super) fn all_waits(&self) -> impl Iterator<Item = (WaitId, &Wait)> {
        self.waits.iter().map(|(&id, wait)| (id, wait))
    }

    /// Every link has its other end, and every timer its owner.
    pub(super) fn check_links(&self) {
        let mut timers = BTreeSet::new();
        for (&id, wait) in &self.waits {
            timers.insert((wait.due, Timer::Wait(id)));
            assert!(wait.attached_polls.iter().all(|poll| self.polls[poll].waits.contains(&id)), "{id:?}");
        }
        for (&id, poll) in &self.polls {
            timers.extend(poll.phase.due().map(|due| (due, Timer::Poll(id))));
            let is_lingering = matches!(poll.phase, PollPhase::Lingering { .. });
            assert_eq!(poll.waits.is_empty(), is_lingering, "{id:?} {:?}", poll.phase);
            assert!(!is_lingering || !poll.is_idle(), "{id:?} lingers for nothing");
            assert!(poll.waits.iter().all(|wait| self.waits[wait].attached_polls.contains(&id)), "{id:?}");
        }
        assert_eq!(timers, self.timers);
        self.slots.check(
            self.waits.iter().map(|(&id, wait)| (id, wait.spec.domain, &wait.spec.jobs, wait.current_goal)),
            self.polls.iter().map(|(&id, poll)| (id, &poll.spec)),
        );
    }
}
