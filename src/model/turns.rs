//! Whose turn it is at the upstream: how many polls are open at once, how often one begins, which is tried again
//! and when, and when it is better to ask nobody.
//!
//! A state machine like the Coalescer: no IO, no clock, no waits. It knows polls by number and key domain; the hub
//! owns the one value of it and makes the tries.
//!
//! ```text
//!   ask ──▶ line of its key domain ──(place, pace, breaker)──▶ Try ──▶ ended well: forgotten
//!            ▲  taken by turns, domain by domain                  └──▶ failed: a pause, then the line again,
//!            └───────────────────────────────────────────────────────  or GiveUp
//! ```

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::model::backoff::Backoff;
use crate::model::breaker::{Breaker, BreakerRules};
use crate::model::clip::KeyDomain;
use crate::model::coalesce::{Failure, PollId};

/// What the machine goes by.
#[derive(Clone, Copy, Debug)]
pub struct TurnRules {
    /// Polls open at once, at least one. With two or more the last place is for quick ones only.
    pub max_polls: usize,
    /// The least time between two tries; zero: none.
    pub interval: Duration,
    /// Tries in a row after the first.
    pub retries: u32,
    /// The pauses between them.
    pub backoff: Backoff,
    /// When to ask nobody.
    pub breaker: BreakerRules,
}

/// What sort of poll asks for a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Haste {
    /// It may stand for as long as the upstream holds.
    Long,
    /// It is answered at once: the look at somebody's deadline. It goes first.
    Quick,
}

/// How a try ended.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// With the upstream's final word, whatever that is.
    Answered,
    /// With a fault.
    Failed(Failure),
    /// With the wish not to be asked for so long, by that key.
    Paused(Failure, Duration),
    /// With the wish not to be asked this for so long.
    PausedAlone(Failure, Duration),
}

/// Something is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TurnOutput {
    /// Try the poll now.
    Try(PollId),
    /// The poll is not tried for so long, because of this.
    Stalled(PollId, Failure, Duration),
    /// The poll has failed for good, and is forgotten.
    GiveUp(PollId, Failure),
}

/// The machine. After each call but the readers take outputs until there are none.
#[derive(Debug)]
pub struct Turns {
    rules: TurnRules,
    breaker: Breaker,
    jitter: fastrand::Rng,
    polls: HashMap<PollId, Asking>,
    quick: VecDeque<PollId>,
    lines: HashMap<KeyDomain, VecDeque<PollId>>,
    /// The domains with a line that are not paused, in the order of their turns.
    ring: VecDeque<KeyDomain>,
    /// Until when, and because of what.
    paused: HashMap<KeyDomain, (Instant, Failure)>,
    open: usize,
    /// Polls that the upstream holds: as long as there are any, it works.
    held: BTreeSet<PollId>,
    next_try: Option<Instant>,
    timers: BTreeSet<(Instant, Timer)>,
    outputs: VecDeque<TurnOutput>,
}

#[derive(Debug)]
struct Asking {
    domain: KeyDomain,
    haste: Haste,
    failures: u32,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    InLine,
    /// As the breaker's probe, it is a success at `stood`, once its request stands.
    Trying {
        is_probe: bool,
        stood: Option<Instant>,
    },
    Pausing {
        until: Instant,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// The pace allows another try.
    Pace,
    /// A poll's pause is over.
    Retry(PollId),
    /// A key's pause is over.
    Resume(KeyDomain),
    /// A poll has stood long enough to be a success.
    Stood(PollId),
}

impl Turns {
    /// A machine with nothing to do. The seed is the jitter's.
    pub fn new(rules: TurnRules, seed: u64) -> Self {
        assert!(rules.max_polls > 0, "max_polls is validated > 0");
        Self {
            breaker: Breaker::new(rules.breaker),
            rules,
            jitter: fastrand::Rng::with_seed(seed),
            polls: HashMap::new(),
            quick: VecDeque::new(),
            lines: HashMap::new(),
            ring: VecDeque::new(),
            paused: HashMap::new(),
            open: 0,
            held: BTreeSet::new(),
            next_try: None,
            timers: BTreeSet::new(),
            outputs: VecDeque::new(),
        }
    }

    /// A poll wants its turn.
    pub fn ask(&mut self, id: PollId, domain: KeyDomain, haste: Haste, now: Instant) {
        let before = self.polls.insert(id, Asking { domain, haste, failures: 0, phase: Phase::InLine });
        debug_assert!(before.is_none(), "{id:?} asks twice");
        if let Some((until, failure)) = self.paused.get(&domain) {
            let pause = until.saturating_duration_since(now);
            self.outputs.push_back(TurnOutput::Stalled(id, failure.clone(), pause));
        }
        self.line_up(id, End::Back);
        self.grant(now);
    }

    /// A poll is not wanted any more. One that is not known changes nothing.
    pub fn withdraw(&mut self, id: PollId, now: Instant) {
        if let Some(asking) = self.forget(id) {
            if matches!(asking.phase, Phase::Trying { is_probe: true, .. }) {
                self.breaker.called_off(now);
            }
            self.grant(now);
        }
    }

    /// A try's request stands on a connection.
    pub fn standing(&mut self, id: PollId, now: Instant) {
        if let Some(Asking { phase: Phase::Trying { stood: stood @ None, .. }, .. }) = self.polls.get_mut(&id)
        {
            *stood = Some(now + STOOD);
            self.timers.insert((now + STOOD, Timer::Stood(id)));
        }
    }

    /// A try ended. One of a poll that is not known changes nothing.
    pub fn ended(&mut self, id: PollId, verdict: Verdict, now: Instant) {
        let is_trying = |asking: &Asking| matches!(asking.phase, Phase::Trying { .. });
        if !self.polls.get(&id).is_some_and(is_trying) {
            return;
        }
        match verdict {
            Verdict::Answered => {
                self.breaker.succeeded();
                self.forget(id);
            }
            Verdict::Failed(failure) => {
                // While it holds others, an error is that poll's own affair.
                let is_its_own = matches!(failure, Failure::Answered(_) | Failure::Garbled)
                    && !self.breaker.is_half_open()
                    && self.held.iter().any(|held| *held != id);
                let opened = !is_its_own && self.breaker.failed(now);
                self.try_again(id, failure, Duration::ZERO, now);
                if opened {
                    self.give_up_all(now);
                }
            }
            Verdict::Paused(failure, pause) => {
                self.breaker.succeeded(); // it answers
                self.pause(id, &failure, pause.min(MOST_REST), now);
                self.try_again(id, failure, pause, now);
            }
            Verdict::PausedAlone(failure, pause) => {
                self.breaker.succeeded(); // it answers
                self.try_again(id, failure, pause, now);
            }
        }
        self.grant(now);
    }

    /// Does what is due at `now`; afterwards the next deadline is strictly later.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(at, timer)) = self.timers.first().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, timer));
            match timer {
                Timer::Pace => self.next_try = None,
                Timer::Retry(id) => {
                    if let Some(asking) = self.polls.get_mut(&id) {
                        asking.phase = Phase::InLine;
                        self.line_up(id, End::Front);
                    }
                }
                Timer::Resume(domain) => {
                    self.paused.remove(&domain);
                    if self.lines.contains_key(&domain) {
                        self.ring.push_back(domain);
                    }
                }
                Timer::Stood(id) => {
                    self.held.insert(id);
                    self.breaker.succeeded();
                }
            }
        }
        self.grant(now);
    }

    /// The earliest moment at which [`handle_timeout`](Self::handle_timeout) has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|&(at, _)| at)
    }

    /// The next thing to be done, in order.
    pub fn poll_output(&mut self) -> Option<TurnOutput> {
        self.outputs.pop_front()
    }

    /// Polls that are being tried now.
    pub fn open(&self) -> usize {
        self.open
    }

    /// Whether the breaker lets traffic flow.
    pub fn is_closed(&self) -> bool {
        self.breaker.is_closed()
    }

    /// Gives turns while there are any to give.
    fn grant(&mut self, now: Instant) {
        while self.next_try.is_none() {
            let Some(id) = self.take_next() else { return };
            let was_closed = self.breaker.is_closed();
            if let Err(retry_after) = self.breaker.permit(now) {
                self.forget(id);
                self.outputs.push_back(TurnOutput::GiveUp(id, Failure::BreakerOpen { retry_after }));
                continue;
            }
            if let Some(asking) = self.polls.get_mut(&id) {
                asking.phase = Phase::Trying { is_probe: !was_closed, stood: None };
                self.open += 1;
                self.outputs.push_back(TurnOutput::Try(id));
            }
            if !self.rules.interval.is_zero() {
                let next = now + self.rules.interval;
                self.next_try = Some(next);
                self.timers.insert((next, Timer::Pace));
            }
        }
    }

    /// Takes the first in line for whom there is a place.
    fn take_next(&mut self) -> Option<PollId> {
        let long_places = if self.rules.max_polls > 1 { self.rules.max_polls - 1 } else { 1 };
        if self.open >= self.rules.max_polls {
            return None;
        }
        if let Some(id) = self.quick.pop_front() {
            return Some(id);
        }
        if self.open >= long_places {
            return None;
        }
        let domain = self.ring.pop_front()?;
        let line = self.lines.get_mut(&domain)?;
        let id = line.pop_front();
        if line.is_empty() {
            self.lines.remove(&domain);
        } else {
            self.ring.push_back(domain);
        }
        id
    }

    fn line_up(&mut self, id: PollId, end: End) {
        let Some(asking) = self.polls.get(&id) else { return };
        let domain = asking.domain;
        let is_paused = self.paused.contains_key(&domain);
        let line = match asking.haste {
            Haste::Quick if !is_paused => &mut self.quick,
            Haste::Quick | Haste::Long => {
                if !self.lines.contains_key(&domain) && !is_paused {
                    self.ring.push_back(domain);
                }
                self.lines.entry(domain).or_default()
            }
        };
        match end {
            End::Front => line.push_front(id),
            End::Back => line.push_back(id),
        }
    }

    fn try_again(&mut self, id: PollId, failure: Failure, asked: Duration, now: Instant) {
        let Some(asking) = self.polls.get_mut(&id) else { return };
        self.open -= 1;
        self.held.remove(&id);
        if let Phase::Trying { stood: Some(at), .. } = asking.phase {
            self.timers.remove(&(at, Timer::Stood(id)));
        }
        asking.failures += 1;
        if asking.failures > self.rules.retries {
            asking.phase = Phase::InLine;
            self.forget(id);
            self.outputs.push_back(TurnOutput::GiveUp(id, failure));
            return;
        }
        let jittered = self.rules.backoff.pause(asking.failures, self.jitter.f64());
        let pause = if asked.is_zero() { jittered } else { asked };
        let until = now + pause;
        self.outputs.push_back(TurnOutput::Stalled(id, failure, pause));
        asking.phase = Phase::Pausing { until };
        self.timers.insert((until, Timer::Retry(id)));
    }

    /// A key's polls all rest, once, however many of them were told to.
    fn pause(&mut self, id: PollId, failure: &Failure, pause: Duration, now: Instant) {
        let Some(domain) = self.polls.get(&id).map(|asking| asking.domain) else { return };
        let until = now + pause;
        match self.paused.get(&domain) {
            Some(&(known, _)) if known >= until => return,
            Some(&(known, _)) => drop(self.timers.remove(&(known, Timer::Resume(domain)))),
            None => self.ring.retain(|other| *other != domain),
        }
        self.paused.insert(domain, (until, failure.clone()));
        self.timers.insert((until, Timer::Resume(domain)));
        let polls = &self.polls;
        let is_its = |id: &PollId| polls.get(id).is_some_and(|asking| asking.domain == domain);
        let (its, others) = std::mem::take(&mut self.quick).into_iter().partition(is_its);
        self.quick = others;
        for id in VecDeque::<PollId>::into_iter(its).rev() {
            self.lines.entry(domain).or_default().push_front(id);
        }
        for &id in self.lines.get(&domain).into_iter().flatten() {
            self.outputs.push_back(TurnOutput::Stalled(id, failure.clone(), pause));
        }
    }

    /// The breaker has opened: who is not being tried is told at once.
    fn give_up_all(&mut self, now: Instant) {
        let Err(retry_after) = self.breaker.permit(now) else { return };
        let is_trying = |asking: &Asking| matches!(asking.phase, Phase::Trying { .. });
        let mut idle: Vec<PollId> =
            self.polls.iter().filter(|(_, asking)| !is_trying(asking)).map(|(id, _)| *id).collect();
        idle.sort_unstable();
        for id in idle {
            self.forget(id);
            self.outputs.push_back(TurnOutput::GiveUp(id, Failure::BreakerOpen { retry_after }));
        }
    }

    fn forget(&mut self, id: PollId) -> Option<Asking> {
        let asking = self.polls.remove(&id)?;
        match asking.phase {
            Phase::Trying { stood, .. } => {
                self.open -= 1;
                self.held.remove(&id);
                if let Some(at) = stood {
                    self.timers.remove(&(at, Timer::Stood(id)));
                }
            }
            Phase::Pausing { until } => drop(self.timers.remove(&(until, Timer::Retry(id)))),
            Phase::InLine => {
                self.quick.retain(|other| *other != id);
                if let Some(line) = self.lines.get_mut(&asking.domain) {
                    line.retain(|other| *other != id);
                    if line.is_empty() {
                        self.lines.remove(&asking.domain);
                        self.ring.retain(|other| *other != asking.domain);
                    }
                }
            }
        }
        Some(asking)
    }
}

enum End {
    Front,
    Back,
}

/// The longest that what one poll was told is believed to hold for its whole key.
const MOST_REST: Duration = Duration::from_secs(60);

/// How long a probe must stand to be a success: a long-poll that is held says that the upstream works, and
/// nobody would wait for its end to ask again.
const STOOD: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
