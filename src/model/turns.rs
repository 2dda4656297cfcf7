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
//!
//! Places are held for minutes, so that turns alone are not fair: who comes when all are taken would wait for
//! minutes. So a key that holds places takes another one only while a sixteenth as many stay free afterwards: alone
//! it gets all but a seventeenth, two get half each of nearly all, and whoever comes finds a place. Cancelling one
//! of the polls of the key that holds most would cost the upstream requests; that is why some places are kept free.
//!
//! A 429 rests its whole key, for a minute at most whatever it asks: then one poll of the key asks for all, and the
//! key goes on once that is answered, or held as a long-poll is. The poll that was told 429 or 503 waits out all
//! that it was told.

mod rota;
mod vocabulary;

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use self::rota::{End, Place, Rota};
pub use self::vocabulary::{Advice, Haste, TurnOutput, TurnRules, Verdict};
use crate::model::Map;
use crate::model::breaker::Breaker;
use crate::model::clip::KeyDomain;
use crate::model::coalesce::{Failure, PollId};

/// The machine. After each call but the readers take outputs until there are none.
#[derive(Debug)]
pub struct Turns {
    rules: TurnRules,
    breaker: Breaker,
    jitter: fastrand::Rng,
    polls: Map<PollId, Asking>,
    keys: Map<KeyDomain, Key>,
    quick: Rota,
    long: Rota,
    open: usize,
    /// Polls that the upstream holds: as long as there are any, it works.
    held: BTreeSet<PollId>,
    next_try: Option<Instant>,
    timers: BTreeSet<(Instant, Timer)>,
    outputs: VecDeque<TurnOutput>,
}

#[derive(Clone, Copy, Debug)]
struct Asking {
    domain: KeyDomain,
    haste: Haste,
    failures: u32,
    /// No try of it has ended yet.
    is_new: bool,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    InLine {
        place: Place,
    },
    /// It is a success at `stood`, once its request stands: for the breaker as its probe, and for its key.
    Trying {
        is_probe: bool,
        stood: Option<Instant>,
    },
    Pausing {
        until: Instant,
    },
}

/// A key domain with polls, or one that rests.
#[derive(Debug, Default)]
struct Key {
    polls: usize,
    /// Long ones of them that are being tried.
    long: usize,
    rest: Rest,
}

/// What a 429 did to a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Rest {
    /// Nothing, or that is over.
    #[default]
    None,
    /// Nobody asks.
    Until(Instant),
    /// The next to be tried asks for all.
    Probe,
    /// This one does.
    Probing(PollId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// The pace allows another try.
    Pace,
    /// A poll's pause is over.
    Retry(PollId),
    /// A key's rest is over.
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
            polls: Map::default(),
            keys: Map::default(),
            quick: Rota::default(),
            long: Rota::default(),
            open: 0,
            held: BTreeSet::new(),
            next_try: None,
            timers: BTreeSet::new(),
            outputs: VecDeque::new(),
        }
    }

    /// A poll wants its turn.
    pub fn ask(&mut self, id: PollId, domain: KeyDomain, haste: Haste, now: Instant) {
        self.keys.entry(domain).or_default().polls += 1;
        let place = self.line_up(id, domain, haste, End::Back, now);
        let asking = Asking { domain, haste, failures: 0, is_new: true, phase: Phase::InLine { place } };
        let before = self.polls.insert(id, asking);
        debug_assert!(before.is_none(), "{id:?} asks twice");
        self.grant(now);
    }

    /// A poll is not wanted any more. One that is not known changes nothing.
    pub fn withdraw(&mut self, id: PollId, now: Instant) {
        if let Some(asking) = self.forget(id) {
            self.call_off(asking.phase, now);
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
        let Some(asking) = self.polls.get_mut(&id) else { return };
        let phase @ Phase::Trying { .. } = asking.phase else { return };
        let is_first = std::mem::take(&mut asking.is_new);
        match verdict {
            Verdict::Answered => {
                self.breaker.succeeded();
                self.let_go_on(id);
                self.forget(id);
            }
            Verdict::Failed(failure, Advice::Reconnect) if is_first && !self.held.contains(&id) => {
                self.call_off(phase, now);
                self.reconnect(id, failure, now);
            }
            Verdict::Failed(failure, Advice::BackOff | Advice::Reconnect) => {
                let opened = !self.is_its_own(id, &failure) && self.breaker.failed(now);
                self.try_again(id, failure, None, now);
                if opened {
                    self.give_up_all(now);
                }
            }
            Verdict::Failed(failure, Advice::RestPoll(pause)) => {
                self.breaker.succeeded(); // it answers
                self.try_again(id, failure, Some(pause), now);
            }
            Verdict::Failed(failure, Advice::RestKey(pause)) => {
                self.breaker.succeeded();
                self.rest(id, pause, now);
                self.try_again(id, failure, Some(pause), now);
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
                Timer::Retry(id) => self.line_up_again(id, now),
                Timer::Resume(domain) => self.set_rest(domain, Rest::Probe),
                Timer::Stood(id) => {
                    self.held.insert(id);
                    self.breaker.succeeded();
                    self.let_go_on(id);
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
            self.begin(id, !was_closed);
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
        if let Some(id) = self.quick.next(|_| true) {
            return Some(id);
        }
        let left = long_places.checked_sub(self.open + 1)?;
        let keys = &self.keys;
        self.long.next(|domain| {
            let has = keys.get(&domain).map_or(0, |key| key.long);
            has == 0 || has <= left.saturating_mul(SHARE)
        })
    }

    fn begin(&mut self, id: PollId, is_probe: bool) {
        let Some(asking) = self.polls.get_mut(&id) else { return };
        asking.phase = Phase::Trying { is_probe, stood: None };
        let (domain, haste) = (asking.domain, asking.haste);
        self.open += 1;
        self.outputs.push_back(TurnOutput::Try(id));
        if let Some(key) = self.keys.get_mut(&domain) {
            key.long += usize::from(haste == Haste::Long);
            if key.rest == Rest::Probe {
                self.set_rest(domain, Rest::Probing(id));
            }
        }
    }

    /// A try is over. Whoever probed for its key leaves that to the next one.
    fn give_place_back(&mut self, id: PollId, stood: Option<Instant>) {
        let Some(&Asking { domain, haste, .. }) = self.polls.get(&id) else { return };
        self.open -= 1;
        self.held.remove(&id);
        if let Some(at) = stood {
            self.timers.remove(&(at, Timer::Stood(id)));
        }
        if let Some(key) = self.keys.get_mut(&domain) {
            key.long -= usize::from(haste == Haste::Long);
            if key.rest == Rest::Probing(id) {
                self.set_rest(domain, Rest::Probe);
            }
        }
    }

    /// A try was called off before it told anything of the upstream.
    fn call_off(&mut self, phase: Phase, now: Instant) {
        if let Phase::Trying { is_probe: true, .. } = phase {
            self.breaker.called_off(now);
        }
    }

    /// While the upstream holds others, an error is that poll's own affair.
    fn is_its_own(&self, id: PollId, failure: &Failure) -> bool {
        matches!(failure, Failure::Answered(_) | Failure::Garbled)
            && !self.breaker.is_half_open()
            && self.held.iter().any(|held| *held != id)
    }

    fn line_up(&mut self, id: PollId, domain: KeyDomain, haste: Haste, end: End, now: Instant) -> Place {
        let rest = self.keys.get(&domain).map_or(Rest::None, |key| key.rest);
        if let Rest::Until(until) = rest {
            self.tell_rest(id, until.saturating_duration_since(now));
        }
        self.rota(haste).line_up(id, domain, end, rest.is_open())
    }

    fn rota(&mut self, haste: Haste) -> &mut Rota {
        match haste {
            Haste::Quick => &mut self.quick,
            Haste::Long => &mut self.long,
        }
    }

    fn line_up_again(&mut self, id: PollId, now: Instant) {
        let Some(&Asking { domain, haste, .. }) = self.polls.get(&id) else { return };
        let place = self.line_up(id, domain, haste, End::Front, now);
        if let Some(asking) = self.polls.get_mut(&id) {
            asking.phase = Phase::InLine { place };
        }
    }

    /// The connection was dead before the upstream had a say. On another one that is soon seen.
    fn reconnect(&mut self, id: PollId, failure: Failure, now: Instant) {
        if let Some(&Asking { phase: Phase::Trying { stood, .. }, .. }) = self.polls.get(&id) {
            self.give_place_back(id, stood);
            self.outputs.push_back(TurnOutput::Stalled(id, failure, Duration::ZERO));
            self.line_up_again(id, now);
        }
    }

    /// Pauses a poll whose try failed, for as long as the upstream asked if it did, or gives it up.
    fn try_again(&mut self, id: PollId, failure: Failure, asked: Option<Duration>, now: Instant) {
        let Some(Asking { phase: Phase::Trying { stood, .. }, failures, .. }) = self.polls.get_mut(&id)
        else {
            return;
        };
        *failures += 1;
        let (stood, failures) = (*stood, *failures);
        if failures > self.rules.retries {
            self.forget(id);
            self.outputs.push_back(TurnOutput::GiveUp(id, failure));
            return;
        }
        self.give_place_back(id, stood);
        let pause = match asked.filter(|pause| !pause.is_zero()) {
            Some(pause) => {
                self.outputs.push_back(TurnOutput::Rests(id, failure, pause));
                pause
            }
            None => {
                let pause = self.rules.backoff.pause(failures, self.jitter.f64());
                self.outputs.push_back(TurnOutput::Stalled(id, failure, pause));
                pause
            }
        };
        let until = now + pause;
        self.timers.insert((until, Timer::Retry(id)));
        if let Some(asking) = self.polls.get_mut(&id) {
            asking.phase = Phase::Pausing { until };
        }
    }

    /// A key's polls all rest, once, however many of them were told to.
    fn rest(&mut self, id: PollId, pause: Duration, now: Instant) {
        let Some(domain) = self.polls.get(&id).map(|asking| asking.domain) else { return };
        let pause = pause.min(MOST_REST);
        let until = now + pause;
        match self.keys.get(&domain).map(|key| key.rest) {
            Some(Rest::Until(known)) if known + MORE_REST >= until => return,
            Some(Rest::Until(known)) => drop(self.timers.remove(&(known, Timer::Resume(domain)))),
            Some(Rest::None | Rest::Probe | Rest::Probing(_)) | None if pause.is_zero() => return,
            Some(Rest::None | Rest::Probe | Rest::Probing(_)) | None => {}
        }
        self.timers.insert((until, Timer::Resume(domain)));
        self.set_rest(domain, Rest::Until(until));
        let in_line: Vec<PollId> = self.quick.of(domain).chain(self.long.of(domain)).collect();
        in_line.into_iter().for_each(|id| self.tell_rest(id, pause));
    }

    fn tell_rest(&mut self, id: PollId, pause: Duration) {
        self.outputs.push_back(TurnOutput::Rests(id, Failure::KeyRests { retry_after: pause }, pause));
    }

    /// The upstream takes the key: if this poll asked for all of them, they go on.
    fn let_go_on(&mut self, id: PollId) {
        let Some(domain) = self.polls.get(&id).map(|asking| asking.domain) else { return };
        if self.keys.get(&domain).is_some_and(|key| key.rest == Rest::Probing(id)) {
            self.set_rest(domain, Rest::None);
        }
    }

    fn set_rest(&mut self, domain: KeyDomain, rest: Rest) {
        let Some(key) = self.keys.get_mut(&domain) else { return };
        key.rest = rest;
        self.quick.set_open(domain, rest.is_open());
        self.long.set_open(domain, rest.is_open());
        self.drop_key_if_idle(domain);
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
        let Asking { domain, haste, phase, .. } = *self.polls.get(&id)?;
        match phase {
            Phase::Trying { stood, .. } => self.give_place_back(id, stood),
            Phase::Pausing { until } => drop(self.timers.remove(&(until, Timer::Retry(id)))),
            // One whose turn has just come is in no line any more, and leaving changes nothing.
            Phase::InLine { place } => self.rota(haste).leave(domain, place),
        }
        let asking = self.polls.remove(&id)?;
        if let Some(key) = self.keys.get_mut(&asking.domain) {
            key.polls -= 1;
            self.drop_key_if_idle(asking.domain);
        }
        Some(asking)
    }

    /// A key without polls is remembered only as long as it rests.
    fn drop_key_if_idle(&mut self, domain: KeyDomain) {
        let is_idle = |key: &Key| key.polls == 0 && !matches!(key.rest, Rest::Until(_));
        if self.keys.get(&domain).is_some_and(is_idle) {
            self.keys.remove(&domain);
        }
    }
}

impl Rest {
    fn is_open(self) -> bool {
        match self {
            Rest::None | Rest::Probe => true,
            Rest::Until(_) | Rest::Probing(_) => false,
        }
    }
}

/// How many long places a key may hold for each that stays free when it takes another.
const SHARE: usize = 16;

/// How long a 429 rests its key at most.
const MOST_REST: Duration = Duration::from_secs(60);

/// A rest is not made longer by less than this, so that a hundred polls that are told 429 together rest their key
/// once.
const MORE_REST: Duration = Duration::from_secs(1);

/// How long a probe must stand to be a success: a long-poll that is held says that the upstream works, and
/// nobody would wait for its end to ask again.
const STOOD: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
