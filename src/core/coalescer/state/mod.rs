//! State of the [`Coalescer`](super::Coalescer): waits, polls, the links between both, the job index, the timers. Each
//! method keeps all of them consistent. No method decides anything.

mod removal;

use std::collections::BTreeSet;
use std::time::Instant;

pub(super) use self::removal::remove_sorted;
use super::chain::ChainLink;
use super::job_index::JobIndex;
use super::poll_set::PollSet;
use super::private_states::PrivateStates;
use super::timing::Timing;
use super::types::{Cause, Cost, Failure, LastFailure, PollId, PollSpec, Proof, WaitId, WaitSpec};
use crate::core::Map;
use crate::core::job::{JobId, JobState, KeyDomain};
use crate::core::route::Goal;

#[derive(Debug)]
pub(super) struct Wait {
    pub(super) spec: WaitSpec,
    pub(super) phase: WaitPhase,
    pub(super) attached_polls: PollSet,
    /// Whether the wait has opened a poll.
    pub(super) opened: bool,
    /// Whether an answer on its jobs could not be split. From then on only a poll for exactly its set, at its own
    /// endpoint, can answer it.
    pub(super) exact_set_only: bool,
    /// Whether a poll of the wait was shed.
    pub(super) was_shed: bool,
    /// States that count for this wait only.
    pub(super) private_states: PrivateStates,
    /// Number of jobs, from the first on, that had an answer at the last look.
    pub(super) answered: usize,
    /// Last failure of the polls that the wait was attached to at its deadline.
    pub(super) last_failure: Option<LastFailure>,
    /// The goal of `spec`. In [`WaitPhase::Snapshot`] the lowest rung.
    pub(super) current_goal: Goal,
    due: Instant,
}

impl Wait {
    pub(super) fn new(mut spec: WaitSpec) -> Self {
        let known = std::mem::take(&mut spec.known).into_iter().collect();
        let due = spec.arrived + spec.timeout;
        Wait {
            current_goal: spec.goal,
            spec,
            phase: WaitPhase::Waiting,
            attached_polls: PollSet::default(),
            opened: false,
            exact_set_only: false,
            was_shed: false,
            private_states: known,
            answered: 0,
            last_failure: None,
            due,
        }
    }

    /// Returns when the phase of the wait ends.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    pub(super) fn deadline(&self) -> Instant {
        self.spec.arrived + self.spec.timeout // P2: from the wait's own arrival
    }

    pub(super) fn cost(&self) -> Cost {
        if self.opened { Cost::Opened } else { Cost::Coalesced }
    }

    /// Returns whether the client expects an answer at once.
    pub(super) fn is_immediate(&self, timing: &Timing) -> bool {
        !self.spec.is_patient && timing.is_immediate(self.spec.goal)
    }

    pub(super) fn is_in_snapshot(&self) -> bool {
        matches!(self.phase, WaitPhase::Snapshot { .. })
    }
}

/// Phase of a wait. The page of [`Coalescer`](super::Coalescer) has the table of transitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WaitPhase {
    /// Before its deadline: held until its jobs reach its goal.
    Waiting,
    /// Past its deadline since then: held for the answer to a poll that the upstream ends at the same moment.
    Grace { since: Instant },
    /// Past its deadline: answered by any state seen from `since` on.
    Snapshot { since: Instant },
}

#[derive(Debug)]
pub(super) struct Poll {
    pub(super) spec: PollSpec,
    pub(super) phase: PollPhase,
    pub(super) attempt: AttemptState,
    /// Waits that are attached.
    pub(super) waits: BTreeSet<WaitId>,
    /// Wait that opened the poll. It may have ended. `None` for one opened as a watch.
    pub(super) opener: Option<WaitId>,
    /// Whether the poll is a watch. Changed by [`CoalescerState::set_watch`] only.
    pub(super) is_watch: bool,
    /// Whether a wait was attached whose answer may be cached.
    pub(super) may_cache: bool,
    /// Whether a wait was attached whose client asked for the upstream's own answer.
    pub(super) may_contradict: bool,
    pub(super) opened_at: Instant,
    /// Whether another replica makes the poll, or made it until now.
    pub(super) is_elsewhere: bool,
    /// Start of the newest attempt.
    pub(super) attempted_at: Instant,
    /// Failure of the newest attempt that failed.
    pub(super) last_failure: Option<Failure>,
    /// A `Retry-After` on a success: when it came, and the end of the pause.
    pub(super) retry_after: Option<(Instant, Instant)>,
    pub(super) cause: Cause,
    /// Links of the poll to its chain. Only where the upstream never holds.
    pub(super) chain: ChainLink,
}

impl Poll {
    pub(super) fn new(spec: PollSpec, opener: Option<WaitId>, now: Instant) -> Self {
        Self {
            spec,
            phase: PollPhase::Open,
            attempt: AttemptState::Queued,
            waits: BTreeSet::new(),
            opener,
            is_watch: false,
            may_cache: false,
            may_contradict: false,
            opened_at: now,
            is_elsewhere: false,
            attempted_at: now,
            last_failure: None,
            retry_after: None,
            cause: Cause::Wait,
            chain: ChainLink::default(),
        }
    }

    /// Returns the moment before which no attempt is made, if one is known.
    pub(super) fn suspended_until(&self) -> Option<Instant> {
        match self.attempt {
            AttemptState::BackingOff { until } | AttemptState::Paused { until, .. } => Some(until),
            AttemptState::Queued | AttemptState::Sending | AttemptState::Held { .. } | AttemptState::Done => {
                None
            }
        }
    }

    /// Returns since when the upstream has held the request, if it does.
    pub(super) fn held_since(&self) -> Option<Instant> {
        if let AttemptState::Held { since } = self.attempt { Some(since) } else { None }
    }

    /// Returns whether the poll is the request of a client that expects an answer at once.
    pub(super) fn is_plain_request(&self) -> bool {
        matches!(self.cause, Cause::Snapshot | Cause::NoCache)
    }

    /// Returns whether the upstream knows nothing of the poll: an attempt is still to come and none is under way.
    pub(super) fn is_idle(&self) -> bool {
        match self.attempt {
            AttemptState::Queued | AttemptState::BackingOff { .. } | AttemptState::Paused { .. } => true,
            AttemptState::Sending | AttemptState::Held { .. } | AttemptState::Done => false,
        }
    }
}

/// State of a poll's attempts, as the caller reported it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AttemptState {
    /// Waits for its turn; no attempt so far.
    Queued,
    /// An attempt is on its way.
    Sending,
    /// The upstream has held the request since then.
    Held { since: Instant },
    /// The newest attempt failed; the next one starts then.
    BackingOff { until: Instant },
    /// The upstream asked for a pause, of this poll or of its whole key.
    Paused { until: Instant, is_of_key: bool },
    /// The poll has landed.
    Done,
}

/// Phase of a poll. The page of [`Coalescer`](super::Coalescer) has the table of transitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PollPhase {
    /// Under way, with waits attached.
    Open,
    /// Under way without waits; aborted then, unless it is watched.
    Lingering { until: Instant },
    /// Landed too early without reaching its goal; its waits ask again then.
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

/// Owner of a timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TimerOwner {
    Wait(WaitId),
    Poll(PollId),
}

/// Everything that the machine remembers of waits and polls.
///
/// Maps are only looked up, sets are iterated, so the same inputs give the same outputs.
#[derive(Debug, Default)]
pub(super) struct CoalescerState {
    /// Boxed: a table has up to twice as many places as entries.
    waits: Map<WaitId, Box<Wait>>,
    polls: Map<PollId, Poll>,
    watches: BTreeSet<PollId>,
    job_index: JobIndex,
    timers: BTreeSet<(Instant, TimerOwner)>,
}

impl CoalescerState {
    pub(super) fn wait(&self, id: WaitId) -> Option<&Wait> {
        self.waits.get(&id).map(Box::as_ref)
    }

    pub(super) fn wait_mut(&mut self, id: WaitId) -> Option<&mut Wait> {
        self.waits.get_mut(&id).map(Box::as_mut)
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

    pub(super) fn watches(&self) -> &BTreeSet<PollId> {
        &self.watches
    }

    pub(super) fn set_watch(&mut self, id: PollId, is_watch: bool) {
        let Some(poll) = self.polls.get_mut(&id) else { return };
        poll.is_watch = is_watch;
        if is_watch {
            self.watches.insert(id);
        } else {
            self.watches.remove(&id);
        }
    }

    pub(super) fn job_index(&self) -> &JobIndex {
        &self.job_index
    }

    /// Returns the owner of the first timer that is due by now.
    pub(super) fn due(&self, now: Instant) -> Option<TimerOwner> {
        self.timers.first().filter(|(at, _)| *at <= now).map(|&(_, owner)| owner)
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.timers.first().map(|&(at, _)| at)
    }

    pub(super) fn add_wait(&mut self, id: WaitId, spec: WaitSpec) {
        let wait = Wait::new(spec);
        self.job_index.add_wait(id, wait.spec.domain, &wait.spec.jobs, wait.spec.goal);
        self.timers.insert((wait.due, TimerOwner::Wait(id)));
        let before = self.waits.insert(id, Box::new(wait));
        debug_assert!(before.is_none(), "{id:?} joined twice");
    }

    pub(super) fn set_phase(&mut self, id: WaitId, phase: WaitPhase, due: Instant) {
        if let Some(wait) = self.waits.get_mut(&id) {
            self.timers.remove(&(wait.due, TimerOwner::Wait(id)));
            self.timers.insert((due, TimerOwner::Wait(id)));
            (wait.phase, wait.due, wait.answered) = (phase, due, 0);
        }
    }

    /// Moves the deadline of a wait to this moment if that is earlier.
    pub(super) fn shorten(&mut self, id: WaitId, deadline: Instant) {
        let Some(wait) = self.waits.get_mut(&id) else { return };
        if wait.phase == WaitPhase::Waiting && deadline < wait.deadline() {
            wait.spec.timeout = deadline.saturating_duration_since(wait.spec.arrived);
            let due = wait.deadline();
            self.set_phase(id, WaitPhase::Waiting, due);
        }
    }

    /// Moves the end of a wait's grace or snapshot to this moment if that is earlier.
    pub(super) fn cap(&mut self, id: WaitId, until: Instant) {
        if let Some(&Wait {
            phase: phase @ (WaitPhase::Grace { .. } | WaitPhase::Snapshot { .. }), due, ..
        }) = self.wait(id)
            && until < due
        {
            self.set_phase(id, phase, until);
        }
    }

    pub(super) fn add_poll(&mut self, id: PollId, poll: Poll) {
        self.job_index.add_poll(id, &poll.spec);
        self.polls.insert(id, poll);
    }

    /// Removes a poll and detaches its waits. They are still in its `waits`.
    pub(super) fn remove_poll(&mut self, id: PollId) -> Option<Poll> {
        let poll = self.polls.remove(&id)?;
        if poll.is_watch {
            self.watches.remove(&id);
        }
        if let Some(due) = poll.phase.due() {
            self.timers.remove(&(due, TimerOwner::Poll(id)));
        }
        for wait in &poll.waits {
            if let Some(wait) = self.waits.get_mut(wait) {
                wait.attached_polls.remove(id);
            }
        }
        self.job_index.remove_poll(id, &poll.spec);
        Some(poll)
    }

    pub(super) fn set_poll_phase(&mut self, id: PollId, phase: PollPhase) {
        let Some(poll) = self.polls.get_mut(&id) else { return };
        if let Some(due) = poll.phase.due() {
            self.timers.remove(&(due, TimerOwner::Poll(id)));
        }
        if let Some(due) = phase.due() {
            self.timers.insert((due, TimerOwner::Poll(id)));
        }
        poll.phase = phase;
    }

    /// Attaches a wait to exactly these polls. Returns the polls that it is detached from.
    pub(super) fn set_attached(&mut self, id: WaitId, polls: PollSet) -> Vec<PollId> {
        let Some(wait) = self.waits.get_mut(&id) else { return Vec::new() };
        let before = std::mem::replace(&mut wait.attached_polls, polls.clone());
        let detached: Vec<PollId> = before.into_iter().filter(|poll| !polls.contains(poll)).collect();
        for poll in &detached {
            if let Some(poll) = self.polls.get_mut(poll) {
                poll.waits.remove(&id);
            }
        }
        for poll in polls {
            self.link(id, poll);
        }
        detached
    }

    /// Attaches a wait to further polls.
    pub(super) fn attach(&mut self, id: WaitId, polls: impl IntoIterator<Item = PollId>) {
        for poll in polls {
            if let Some(wait) = self.waits.get_mut(&id) {
                wait.attached_polls.insert(poll);
            }
            self.link(id, poll);
        }
    }

    pub(super) fn detach(&mut self, id: WaitId, poll_id: PollId) {
        if let Some(wait) = self.waits.get_mut(&id) {
            wait.attached_polls.remove(poll_id);
        }
        if let Some(poll) = self.polls.get_mut(&poll_id) {
            poll.waits.remove(&id);
        }
    }

    /// Attaches a wait to the poll that it just opened.
    pub(super) fn attach_opened(&mut self, id: WaitId, poll: PollId) {
        if let Some(wait) = self.waits.get_mut(&id) {
            wait.attached_polls.insert(poll);
            wait.opened = true;
        }
        self.link(id, poll);
    }

    fn link(&mut self, wait: WaitId, poll_id: PollId) {
        let spec = self.waits.get_mut(&wait).map(|wait| &mut wait.spec);
        let (keep, proof) = spec.as_ref().map_or((false, Proof::Never), |spec| (spec.keep, spec.proof));
        let Some(poll) = self.polls.get_mut(&poll_id) else { return };
        if let Some(spec) = spec
            && spec.jobs == poll.spec.jobs
        {
            spec.jobs = poll.spec.jobs.clone(); // one set in memory for all of its waits
        }
        poll.waits.insert(wait);
        poll.may_cache |= keep;
        poll.may_contradict |= proof == Proof::NoCache;
        if let PollPhase::Lingering { .. } = poll.phase {
            self.set_poll_phase(poll_id, PollPhase::Open);
        }
    }

    pub(super) fn learn(&mut self, domain: KeyDomain, state: JobState) {
        self.job_index.learn(domain, state);
    }

    /// Ends the proofs of the jobs of a poll, whose answer contradicts the states that were seen before.
    pub(super) fn end_proofs(&mut self, id: PollId, now: Instant) {
        let Some(PollSpec { domain, jobs, .. }) = self.polls.get(&id).map(|poll| &poll.spec) else { return };
        jobs.iter().for_each(|job| self.job_index.end_proof(*domain, job, now));
    }

    /// Records the state of a snapshot, which replaces an older one in any case.
    pub(super) fn learn_latest(&mut self, domain: KeyDomain, state: JobState) {
        self.job_index.learn_latest(domain, state);
    }

    /// Forgets all states of a job. Returns its waits, which need an answer for it again.
    pub(super) fn forget_job(&mut self, domain: KeyDomain, job: &JobId) -> Vec<WaitId> {
        let waits = self.job_index.waits_for(domain, job);
        let mut interested = Vec::new();
        for id in &waits {
            let Some(wait) = self.waits.get_mut(id) else { continue };
            wait.private_states.remove(job);
            wait.answered = 0;
            interested.push((wait.current_goal, *id));
        }
        let polls: Vec<PollId> = self.job_index.polls_for(domain, job).collect();
        let polls = polls.iter().filter_map(|id| Some((*id, &self.polls.get(id)?.spec)));
        self.job_index.forget(domain, job, interested, polls);
        waits
    }

    /// Sets the current goal of a wait, which then needs an answer for each of its jobs again.
    pub(super) fn set_goal(&mut self, id: WaitId, goal: Goal) {
        let Some(wait) = self.waits.get_mut(&id) else { return };
        let before = std::mem::replace(&mut wait.current_goal, goal);
        self.job_index.reset_interest(id, wait.spec.domain, &wait.spec.jobs, before, goal);
    }

    /// Records that the wait has its answer for this job, until its goal changes.
    pub(super) fn clear_interest(&mut self, id: WaitId, job: &JobId) {
        if let Some(wait) = self.waits.get(&id) {
            self.job_index.clear_interest(id, wait.spec.domain, job, wait.current_goal);
        }
    }

    /// Gives a state with an unknown status to the waits on the poll that brought it, and to no other wait. The last
    /// known state is not proven any more (P7).
    pub(super) fn deliver_unknown_status(&mut self, poll: PollId, state: &JobState, now: Instant) {
        let Some(poll) = self.polls.get(&poll) else { return };
        self.job_index.end_proof(poll.spec.domain, &state.id, now);
        for wait in &poll.waits {
            if let Some(wait) = self.waits.get_mut(wait) {
                wait.private_states.insert(state.clone());
            }
        }
    }

    pub(super) fn all_waits(&self) -> impl Iterator<Item = (WaitId, &Wait)> {
        self.waits.iter().map(|(&id, wait)| (id, wait.as_ref()))
    }

    /// Asserts that each link has its other end and each timer its owner.
    pub(super) fn check_links(&self) {
        let mut timers = BTreeSet::new();
        for (&id, wait) in &self.waits {
            timers.insert((wait.due, TimerOwner::Wait(id)));
            assert!(wait.attached_polls.iter().all(|poll| self.polls[poll].waits.contains(&id)), "{id:?}");
        }
        for (&id, poll) in &self.polls {
            timers.extend(poll.phase.due().map(|due| (due, TimerOwner::Poll(id))));
            let is_lingering = matches!(poll.phase, PollPhase::Lingering { .. });
            assert_eq!(poll.waits.is_empty(), is_lingering, "{id:?} {:?}", poll.phase);
            let is_new_watch = poll.is_watch && poll.attempt == AttemptState::Queued;
            let is_known = !poll.is_idle() || is_new_watch;
            assert!(!is_lingering || is_known, "{id:?} lingers but the upstream does not know it");
            assert_eq!(poll.is_watch, self.watches.contains(&id), "{id:?}");
            assert!(poll.waits.iter().all(|wait| self.waits[wait].attached_polls.contains(&id)), "{id:?}");
        }
        assert_eq!(timers, self.timers);
        self.job_index.check(
            self.waits.iter().map(|(&id, wait)| (id, wait.spec.domain, &wait.spec.jobs, wait.current_goal)),
            self.polls.iter().map(|(&id, poll)| (id, &poll.spec)),
        );
    }
}
