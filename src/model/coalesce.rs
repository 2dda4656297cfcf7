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
//! The rule of leaning: a wait leans on the running polls whose clips are a subset of its own, at its own
//! goal or, where none is, at a lower one. Clips that nothing covers at its own goal it asks for itself, in
//! one poll, once none of them is covered at a lower goal. A poll that the upstream ends unreached is
//! opened again as it was, so whoever leans on it goes on leaning.

mod board;
#[cfg(test)]
mod sweep;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::board::{Board, Phase, Poll, PollPhase, Timer, Wait};
use crate::model::clip::{ClipId, ClipSet, ClipState, Head, KeyDomain, Reply};
use crate::model::route::{Form, Goal, Ladder, Rung};

/// How long the look at a deadline may take before the wait is given up, which only a failing upstream needs.
pub const SNAPSHOT_LIMIT: Duration = Duration::from_secs(10);

/// One client's request. The shell chooses the number and never uses it twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaitId(pub u64);

/// One long-poll held at the upstream, however often it is opened again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PollId(pub u64);

/// What a client waits for.
#[derive(Clone, Debug)]
pub struct WaitSpec {
    /// Whose answers it may share.
    pub domain: KeyDomain,
    /// Which endpoint was asked.
    pub form: Form,
    /// The clips named, at least one.
    pub clips: ClipSet,
    /// What must be reached.
    pub goal: Goal,
    /// When the request came.
    pub arrived: Instant,
    /// How long it waits from then on.
    pub timeout: Duration,
    /// Whether the answer may be kept for others.
    pub keep: bool,
    /// States of its clips that the shell vouches for. Of all else only what is seen from `arrived` on counts.
    pub known: Vec<ClipState>,
}

/// What to ask the upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PollSpec {
    /// With whose key.
    pub domain: KeyDomain,
    /// At which endpoint.
    pub form: Form,
    /// For which clips.
    pub clips: ClipSet,
    /// Until what is reached.
    pub goal: Goal,
}

/// Where a poll that has not landed stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A try begins.
    Trying,
    /// Its request is on a connection: from here on the upstream answers as soon as it can.
    Standing,
    /// The try failed, another will come.
    Stalled,
}

/// How a poll ended, for good: tries and their limits are the shell's.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Each clip asked for, by id.
    Clips(Vec<ClipState>),
    /// A success that could not be taken apart by id.
    Whole(Arc<Reply>),
    /// The upstream's final word, as it wrote it: a redirect or a refusal.
    Refused(Arc<Reply>),
    /// The tries ran out.
    Failed(Failure),
}

/// Why a poll failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// With an error that the upstream wrote.
    Answered(Arc<Reply>),
    /// No connection, or it broke.
    Unreachable,
    /// A success that is no answer.
    Garbled,
    /// No answer within the upstream's limit.
    Overdue,
}

/// Something happened.
#[derive(Debug)]
pub enum Input {
    /// A client waits.
    Join(WaitId, WaitSpec),
    /// It hung up.
    Leave(WaitId),
    /// A poll got on or fell back.
    Progress(PollId, Progress),
    /// A poll ended.
    Landed(PollId, Outcome),
}

/// Something is to be done.
#[derive(Debug)]
pub enum Output {
    /// Ask the upstream; the same number comes again when a landed poll is opened again.
    Open(PollId, PollSpec),
    /// Stop asking; the poll is forgotten.
    Abort(PollId),
    /// Answer the client; the wait is forgotten.
    Settle(WaitId, Settled),
}

/// What a client is told.
#[derive(Clone, Debug)]
pub struct Settled {
    /// Whether the wait cost an upstream request.
    pub how: How,
    /// Whether the upstream's answer is the one to a poll that this wait opened, so that its own head may go along.
    pub direct: bool,
    /// The answer.
    pub end: End,
}

/// Whether a wait made the upstream see a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It opened a poll.
    Opened,
    /// It leaned on running polls only.
    Leaned,
}

/// Why a wait ended.
#[derive(Clone, Debug)]
pub enum End {
    /// Every clip is where it was waited for; in the set's order.
    Reached(Vec<ClipState>),
    /// Its time is over; the clips as they are, in the set's order.
    TimedOut(Vec<ClipState>),
    /// The upstream answered something that has no clips to tell apart.
    Whole(Arc<Reply>),
    /// The upstream refused.
    Refused(Arc<Reply>),
    /// The upstream failed.
    Failed(Failure),
}

/// What the machine goes by.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The states and their order.
    pub ladder: Ladder,
    /// When the upstream ends a poll unreached.
    pub hold: Duration,
    /// How long a poll stays open without a wait.
    pub linger: Duration,
    /// Clips one poll may ask for, at least one.
    pub max_clips: usize,
}

impl Rules {
    /// Two moments closer than this are one: the upstream and the gateway count the same time by two clocks.
    fn skew(&self) -> Duration {
        self.hold / 500
    }

    /// How long a poll must have stood for its silence to prove that its goal is not reached.
    fn proof(&self) -> Duration {
        self.hold / 240
    }

    /// How long after its deadline a wait stays for the poll that is as old as itself.
    fn grace(&self) -> Duration {
        self.hold / 24
    }

    /// How often an upstream that does not hold its polls is asked at most.
    fn gap(&self) -> Duration {
        self.hold / 100
    }

    fn reaches(&self, rung: Rung, goal: Goal) -> bool {
        match goal {
            Goal::Now => true,
            Goal::Rung(asked) => rung >= asked,
        }
    }

    /// Whether a poll for `poll` is at or below the goal `wait`, so that leaning on it makes nobody late.
    /// A request without a status is only believed to be answered at once: no other leans on it.
    fn is_within(&self, poll: Goal, wait: Goal) -> bool {
        match (poll, wait) {
            (Goal::Now, Goal::Now) => true,
            (Goal::Now, Goal::Rung(_)) => false,
            (Goal::Rung(poll), Goal::Now) => poll == self.ladder.lowest(),
            (Goal::Rung(poll), Goal::Rung(wait)) => poll <= wait,
        }
    }
}

/// The machine. After each call of [`handle`](Self::handle) or [`handle_timeout`](Self::handle_timeout)
/// take outputs until there are none.
#[derive(Debug)]
pub struct Coalescer {
    rules: Rules,
    board: Board,
    outputs: VecDeque<Output>,
    next_poll: u64,
}

impl Coalescer {
    /// A machine with nothing to do.
    pub fn new(rules: Rules) -> Self {
        assert!(rules.max_clips > 0, "max_clips is validated > 0");
        Self { rules, board: Board::default(), outputs: VecDeque::new(), next_poll: 0 }
    }

    /// Takes in what happened at `now`. What concerns a wait or poll that is forgotten changes nothing.
    pub fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Join(id, spec) => self.join(id, spec, now),
            Input::Leave(id) => self.leave(id, now),
            Input::Progress(id, progress) => self.progress(id, progress, now),
            Input::Landed(id, outcome) => self.landed(id, outcome, now),
        }
        self.check_invariants();
    }

    /// Does what is due at `now`; afterwards the next deadline is strictly later.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(timer) = self.board.due(now) {
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
    pub fn keeps(&self, id: PollId) -> bool {
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

    fn join(&mut self, id: WaitId, spec: WaitSpec, now: Instant) {
        self.board.add_wait(id, spec);
        if !self.settle_if_answered(id, None, now) {
            self.plan(id, now);
        }
    }

    fn leave(&mut self, id: WaitId, now: Instant) {
        if let Some(wait) = self.board.remove_wait(id) {
            self.let_linger(wait.leans, now);
        }
    }

    fn progress(&mut self, id: PollId, progress: Progress, now: Instant) {
        if let Some(poll) = self.board.poll_mut(id) {
            match progress {
                Progress::Trying => (poll.tried_at, poll.standing) = (now, None),
                Progress::Standing => poll.standing = Some(now),
                Progress::Stalled => poll.standing = None,
            }
        }
    }

    fn landed(&mut self, id: PollId, outcome: Outcome, now: Instant) {
        // An aborted poll may land all the same, and nothing waits for it any more.
        let Some(poll) = self.board.poll_mut(id) else { return };
        poll.standing = None;
        match outcome {
            Outcome::Clips(states) => self.landed_clips(id, states, now),
            Outcome::Whole(reply) => self.landed_whole(id, &reply, now),
            Outcome::Refused(reply) => {
                for (wait, direct) in self.forget_poll(id) {
                    self.settle(wait, End::Refused(Arc::clone(&reply)), direct, now);
                }
            }
            Outcome::Failed(failure) => self.landed_failed(id, &failure, now),
        }
    }

    fn landed_clips(&mut self, id: PollId, states: Vec<ClipState>, now: Instant) {
        let Some(poll) = self.board.poll(id) else { return };
        let (domain, goal) = (poll.spec.domain, poll.spec.goal);
        let mut affected = poll.waits.clone();
        let head = states.first().map(|state| Arc::clone(&state.head));
        for state in states {
            if state.rung.is_some() {
                affected.extend(self.board.waits_on(domain, &state.id));
                self.board.learn(domain, state);
            } else {
                self.board.hand_over(id, &state);
            }
        }
        for wait in affected {
            self.settle_if_answered(wait, head.as_ref().map(|head| (id, head)), now);
        }
        let Some(poll) = self.board.poll(id) else { return };
        let open: Vec<ClipId> =
            poll.spec.clips.iter().filter(|clip| !self.is_known_at(domain, clip, goal)).cloned().collect();
        if open.is_empty() {
            let waits = self.forget_poll(id);
            self.plan_all(waits.into_iter().map(|(wait, _)| wait), now);
        } else {
            self.ended_unreached(id, ClipSet::new(open), now);
        }
    }

    /// The upstream's own time was over before the goal was reached.
    fn ended_unreached(&mut self, id: PollId, open: ClipSet, now: Instant) {
        let skew = self.rules.skew();
        let Some(poll) = self.board.poll(id) else { return };
        let over: Vec<WaitId> = poll
            .waits
            .iter()
            .filter(|&&wait| self.board.wait(wait).is_some_and(|wait| wait.is_over(now + skew)))
            .copied()
            .collect();
        for wait in over {
            self.look(wait, now);
        }
        let Some(poll) = self.board.poll(id) else { return };
        let goal = poll.spec.goal;
        let same_goal = |wait: &WaitId| self.board.wait(*wait).is_some_and(|wait| self.goal_of(wait) == goal);
        if poll.waits.iter().any(same_goal) {
            self.open_again(id, open, now);
        } else {
            let waits = self.forget_poll(id);
            self.plan_all(waits.into_iter().map(|(wait, _)| wait), now);
        }
    }

    fn landed_whole(&mut self, id: PollId, reply: &Arc<Reply>, now: Instant) {
        let Some(poll) = self.board.poll(id) else { return };
        let spec = poll.spec.clone();
        let mut others = Vec::new();
        for (wait_id, direct) in self.forget_poll(id) {
            let Some(wait) = self.board.wait_mut(wait_id) else { continue };
            if wait.spec.clips == spec.clips && wait.spec.form == spec.form {
                self.settle(wait_id, End::Whole(Arc::clone(reply)), direct, now);
            } else if wait.spec.clips.len() > self.rules.max_clips {
                self.settle(wait_id, End::Failed(Failure::Garbled), direct, now);
            } else {
                wait.alone = true;
                others.push(wait_id);
            }
        }
        self.plan_all(others, now);
    }

    /// A failure is news only for those who were there when the failed try began; the rest would have made
    /// a try of their own since.
    fn landed_failed(&mut self, id: PollId, failure: &Failure, now: Instant) {
        let Some(poll) = self.board.poll(id) else { return };
        let (tried_at, clips) = (poll.tried_at, poll.spec.clips.clone());
        let failed: Vec<WaitId> = poll
            .waits
            .iter()
            .filter(|&&wait| self.board.wait(wait).is_some_and(|wait| wait.spec.arrived <= tried_at))
            .copied()
            .collect();
        let opener = poll.opener;
        for wait in failed {
            self.settle(wait, End::Failed(failure.clone()), wait == opener, now);
        }
        match self.board.poll(id) {
            Some(poll) if poll.waits.is_empty() => drop(self.forget_poll(id)),
            Some(_) => self.open_again(id, clips, now),
            None => {}
        }
    }

    fn wait_is_due(&mut self, id: WaitId, now: Instant) {
        let Some(wait) = self.board.wait(id) else { return };
        match wait.phase {
            Phase::Waiting if self.own_poll_is_ending(wait, now) => {
                self.board.set_phase(id, Phase::Ending, now + self.rules.grace());
            }
            Phase::Waiting | Phase::Ending => self.look(id, now),
            Phase::Looking { .. } => self.settle(id, End::Failed(Failure::Overdue), false, now),
        }
    }

    /// Whether a poll as old as the wait, which therefore ends with it, is about to tell more than is known.
    fn own_poll_is_ending(&self, wait: &Wait, now: Instant) -> bool {
        let as_old = |poll: &Poll| {
            poll.standing.is_some()
                && poll.opened_at.saturating_duration_since(wait.spec.arrived) <= self.rules.skew()
                && wait.spec.arrived.saturating_duration_since(poll.opened_at) <= self.rules.skew()
        };
        let tells = |poll: &Poll| {
            poll.spec.clips.iter().any(|clip| {
                wait.spec.clips.contains(clip) && self.answer_for(wait, clip, Some(now), now).is_none()
            })
        };
        wait.leans.iter().filter_map(|&id| self.board.poll(id)).any(|poll| as_old(poll) && tells(poll))
    }

    /// The wait's time is over: it gets the truth of this moment (promise 7), from what is proven or from one snapshot.
    fn look(&mut self, id: WaitId, now: Instant) {
        self.board.set_phase(id, Phase::Looking { since: now }, now + SNAPSHOT_LIMIT);
        if !self.settle_if_answered(id, None, now) {
            self.plan(id, now);
        }
    }

    fn poll_is_due(&mut self, id: PollId, now: Instant) {
        let Some(poll) = self.board.poll(id) else { return };
        match poll.phase {
            PollPhase::Resting { .. } => {
                let clips = poll.spec.clips.clone();
                self.open_again(id, clips, now);
            }
            PollPhase::Open | PollPhase::Lingering { .. } => {
                self.forget_poll(id);
                self.outputs.push_back(Output::Abort(id));
            }
        }
    }

    /// Replans waits, those that name fewer clips first, so that the others can lean on what these open.
    fn plan_all(&mut self, waits: impl IntoIterator<Item = WaitId>, now: Instant) {
        let mut waits: Vec<(usize, WaitId)> = waits
            .into_iter()
            .filter_map(|id| self.board.wait(id).map(|wait| (wait.spec.clips.len(), id)))
            .collect();
        waits.sort_unstable();
        for (_, id) in waits {
            self.plan(id, now);
        }
    }

    /// Applies the rule of leaning to a wait that is not answered yet.
    fn plan(&mut self, id: WaitId, now: Instant) {
        let Some(wait) = self.board.wait(id) else { return };
        let goal = self.goal_of(wait);
        let open: Vec<&ClipId> = if wait.alone {
            wait.spec.clips.iter().collect()
        } else {
            wait.spec.clips.iter().filter(|clip| self.answer(wait, clip, now).is_none()).collect()
        };
        let mut leans = BTreeSet::new();
        let mut uncovered = Vec::new();
        let mut is_climbing = false;
        for clip in open {
            let (same, lower): (Vec<PollId>, Vec<PollId>) =
                self.leanable(wait, clip).partition(|&poll| self.poll_goal(poll) == Some(goal));
            if same.is_empty() {
                is_climbing |= !lower.is_empty();
                leans.extend(lower);
                uncovered.push(clip.clone());
            } else {
                leans.extend(same);
            }
        }
        let has_own = leans.iter().any(|&poll| self.board.poll(poll).is_some_and(|poll| poll.opener == id));
        let spec =
            PollSpec { domain: wait.spec.domain, form: wait.spec.form, clips: wait.spec.clips.clone(), goal };
        let dropped = self.board.lean(id, leans);
        if !uncovered.is_empty() && !is_climbing && !has_own {
            for clips in uncovered.chunks(self.rules.max_clips) {
                self.open(id, PollSpec { clips: ClipSet::new(clips.iter().cloned()), ..spec.clone() }, now);
            }
        }
        self.let_linger(dropped, now);
    }

    /// The running polls that ask for this clip and cannot make the wait late (promises 4 and 5).
    fn leanable<'a>(&'a self, wait: &'a Wait, clip: &'a ClipId) -> impl Iterator<Item = PollId> + 'a {
        let goal = self.goal_of(wait);
        self.board.polls_on(wait.spec.domain, clip).filter(move |&id| {
            self.board.poll(id).is_some_and(|poll| {
                let fits = if wait.alone {
                    poll.spec.clips == wait.spec.clips && poll.spec.form == wait.spec.form
                } else {
                    poll.spec.clips.is_subset(&wait.spec.clips)
                };
                fits && self.rules.is_within(poll.spec.goal, goal)
            })
        })
    }

    fn open(&mut self, opener: WaitId, spec: PollSpec, now: Instant) {
        let id = PollId(self.next_poll);
        self.next_poll += 1;
        self.board.add_poll(id, Poll::new(spec.clone(), opener, now));
        self.board.lean_also(opener, id);
        self.outputs.push_back(Output::Open(id, spec));
    }

    /// Opens a landed poll again for its clips in `open`, at once if the upstream held it, else after a gap.
    fn open_again(&mut self, id: PollId, open: ClipSet, now: Instant) {
        self.board.narrow_poll(id, open);
        let Some(poll) = self.board.poll_mut(id) else { return };
        let earliest = poll.opened_at + self.rules.gap();
        if now < earliest {
            self.board.set_poll_phase(id, PollPhase::Resting { until: earliest });
            return;
        }
        (poll.opened_at, poll.tried_at, poll.standing) = (now, now, None);
        let spec = poll.spec.clone();
        self.board.set_poll_phase(id, PollPhase::Open);
        self.outputs.push_back(Output::Open(id, spec));
    }

    /// Forgets a poll; its waits come back, each with whether it opened the poll.
    fn forget_poll(&mut self, id: PollId) -> Vec<(WaitId, bool)> {
        let Some(poll) = self.board.remove_poll(id) else { return Vec::new() };
        poll.waits.into_iter().map(|wait| (wait, wait == poll.opener)).collect()
    }

    /// Polls that a wait leaned on until now: those without a wait linger, or are forgotten if not open.
    fn let_linger(&mut self, polls: impl IntoIterator<Item = PollId>, now: Instant) {
        for id in polls {
            match self.board.poll(id) {
                Some(poll) if !poll.waits.is_empty() => {}
                Some(Poll { phase: PollPhase::Resting { .. }, .. }) => drop(self.forget_poll(id)),
                Some(_) => {
                    let until = now + self.rules.linger;
                    self.board.set_poll_phase(id, PollPhase::Lingering { until });
                }
                None => {}
            }
        }
    }

    /// Answers the wait if each of its clips has an answer. `landing` is the poll that just landed and its head.
    fn settle_if_answered(
        &mut self,
        id: WaitId,
        landing: Option<(PollId, &Arc<Head>)>,
        now: Instant,
    ) -> bool {
        let Some(wait) = self.board.wait(id) else { return false };
        let answers = wait.spec.clips.iter().map(|clip| self.answer(wait, clip, now));
        let Some(states) = answers.collect::<Option<Vec<&ClipState>>>() else { return false };
        let opened = |poll| self.board.poll(poll).is_some_and(|poll| poll.opener == id);
        let direct = landing.is_some_and(|(poll, head)| {
            opened(poll) && states.iter().all(|state| Arc::ptr_eq(&state.head, head))
        });
        let reached =
            states.iter().all(|state| state.rung.is_none_or(|rung| self.rules.reaches(rung, wait.spec.goal)));
        let states = states.into_iter().cloned().collect();
        let end = if reached { End::Reached(states) } else { End::TimedOut(states) };
        self.settle(id, end, direct, now);
        true
    }

    fn settle(&mut self, id: WaitId, end: End, direct: bool, now: Instant) {
        let Some(wait) = self.board.remove_wait(id) else { return };
        let how = if wait.opened { How::Opened } else { How::Leaned };
        self.outputs.push_back(Output::Settle(id, Settled { how, direct, end }));
        self.let_linger(wait.leans, now);
    }

    /// What the wait asks the upstream for by now: at its deadline no more than to see where its clips are.
    fn goal_of(&self, wait: &Wait) -> Goal {
        match wait.phase {
            Phase::Waiting | Phase::Ending => wait.spec.goal,
            Phase::Looking { .. } => Goal::Rung(self.rules.ladder.lowest()),
        }
    }

    fn poll_goal(&self, id: PollId) -> Option<Goal> {
        self.board.poll(id).map(|poll| poll.spec.goal)
    }

    fn is_known_at(&self, domain: KeyDomain, clip: &ClipId, goal: Goal) -> bool {
        self.board
            .state(domain, clip)
            .and_then(|state| state.rung)
            .is_some_and(|rung| self.rules.reaches(rung, goal))
    }

    /// The state that this clip of the wait is answered with, if there is one yet.
    fn answer<'a>(&'a self, wait: &'a Wait, clip: &ClipId, now: Instant) -> Option<&'a ClipState> {
        let since = match wait.phase {
            Phase::Waiting | Phase::Ending => None,
            Phase::Looking { since } => Some(since),
        };
        self.answer_for(wait, clip, since, now)
    }

    /// The same for a wait whose time is over since `over`: then the state counts whatever the goal, but must be true.
    fn answer_for<'a>(
        &'a self,
        wait: &'a Wait,
        clip: &ClipId,
        over: Option<Instant>,
        now: Instant,
    ) -> Option<&'a ClipState> {
        let given = wait.given.iter().find(|state| state.id == *clip);
        let seen = self.board.state(wait.spec.domain, clip);
        let is_terminal =
            |state: &ClipState| state.rung.is_some_and(|rung| self.rules.ladder.is_terminal(rung));
        let seen_in_time = seen.filter(|state| state.seen_at >= wait.spec.arrived);
        match over {
            None => {
                let reached = |state: &&ClipState| {
                    state.rung.is_none_or(|rung| self.rules.reaches(rung, wait.spec.goal))
                };
                seen_in_time.filter(reached).or(given.filter(reached))
            }
            Some(since) => seen_in_time
                .filter(|state| is_terminal(state) || state.seen_at >= since)
                .or(given.filter(|state| state.rung.is_none() || is_terminal(state)))
                .or(seen.filter(|state| self.is_proven(wait.spec.domain, state, now))),
        }
    }

    /// Whether a poll that asks for the next rung, and stands unanswered, proves that the clip is still where
    /// it was seen (promise 7): nothing else that the poll asks for can be what holds it.
    fn is_proven(&self, domain: KeyDomain, state: &ClipState, now: Instant) -> bool {
        let Some(next) = state.rung.and_then(|rung| self.rules.ladder.next(rung)) else { return false };
        self.board.polls_on(domain, &state.id).filter_map(|id| self.board.poll(id)).any(|poll| {
            let would_have_answered = poll
                .standing
                .is_some_and(|since| state.seen_at >= since || now >= since + self.rules.proof());
            would_have_answered
                && poll.spec.goal == Goal::Rung(next)
                && poll
                    .spec
                    .clips
                    .iter()
                    .all(|clip| *clip == state.id || self.is_known_at(domain, clip, poll.spec.goal))
        })
    }

    /// What must hold after every call; a debug build stops where it does not.
    fn check_invariants(&self) {
        if cfg!(debug_assertions) {
            self.board.check_links();
            for (id, wait) in self.board.all_waits() {
                assert!(!wait.leans.is_empty(), "{id:?} leans on nothing");
                let goal = self.goal_of(wait);
                let polls = || wait.leans.iter().filter_map(|&poll| self.board.poll(poll));
                for poll in polls() {
                    assert_eq!(poll.spec.domain, wait.spec.domain, "{id:?} leans across key domains");
                    assert!(poll.spec.clips.is_subset(&wait.spec.clips), "{id:?} leans on a neighbour");
                    assert!(self.rules.is_within(poll.spec.goal, goal), "{id:?} leans on a higher rung");
                }
                let own = polls().filter(|poll| poll.opener == id).count();
                assert!(
                    own <= wait.spec.clips.len().div_ceil(self.rules.max_clips),
                    "{id:?} has {own} polls"
                );
            }
        }
    }
}
