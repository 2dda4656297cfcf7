//! A fair queue of polls: a line for each key domain, and the domains by turns.
//!
//! It does not know why a line is closed or passed over.

use std::collections::BTreeMap;

use crate::core::Map;
use crate::core::coalescer::PollId;
use crate::core::job::KeyDomain;

/// Lines that are served by turns.
#[derive(Debug, Default)]
pub(super) struct FairQueue {
    lines: Map<KeyDomain, Line>,
    /// The domains whose lines are open, in the order of their turns.
    ring: Queue<KeyDomain>,
}

#[derive(Debug, Default)]
struct Line {
    polls: Queue<PollId>,
    /// Its position in the ring; a closed line has none.
    turn: Option<Ticket>,
}

/// The position of a poll in its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(i64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Front,
    Back,
}

impl FairQueue {
    /// Puts a poll into its domain's line, which is open or closed by that.
    pub(super) fn enqueue(&mut self, id: PollId, domain: KeyDomain, end: End, is_open: bool) -> Ticket {
        let ticket = self.lines.entry(domain).or_default().polls.push(id, end);
        self.set_open(domain, is_open);
        ticket
    }

    /// Takes a poll out of its domain's line.
    pub(super) fn leave(&mut self, domain: KeyDomain, ticket: Ticket) {
        if let Some(line) = self.lines.get_mut(&domain) {
            line.polls.remove(ticket);
            self.drop_if_empty(domain);
        }
    }

    /// A closed line stays as it is, and has no turn.
    pub(super) fn set_open(&mut self, domain: KeyDomain, is_open: bool) {
        let Some(line) = self.lines.get_mut(&domain) else { return };
        match (line.turn, is_open) {
            (None, true) => line.turn = Some(self.ring.push(domain, End::Back)),
            (Some(turn), false) => {
                self.ring.remove(turn);
                line.turn = None;
            }
            (None, false) | (Some(_), true) => {}
        }
    }

    /// Takes the first poll of the first open line that may be served.
    pub(super) fn next(&mut self, may: impl Fn(KeyDomain) -> bool) -> Option<PollId> {
        let domain = self.ring.iter().find(|domain| may(*domain))?;
        let line = self.lines.get_mut(&domain)?;
        let id = line.polls.pop();
        if let Some(turn) = line.turn.take() {
            self.ring.remove(turn);
        }
        self.set_open(domain, true);
        self.drop_if_empty(domain);
        id
    }

    /// The domain's polls in line, in their order.
    pub(super) fn of(&self, domain: KeyDomain) -> impl Iterator<Item = PollId> + '_ {
        self.lines.get(&domain).into_iter().flat_map(|line| line.polls.iter())
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.ring.0.is_empty()
    }

    fn drop_if_empty(&mut self, domain: KeyDomain) {
        if let Some(Line { turn, .. }) = self.lines.get(&domain).filter(|line| line.polls.0.is_empty()) {
            turn.inspect(|turn| self.ring.remove(*turn));
            self.lines.remove(&domain);
        }
    }
}

/// A queue that can be left from the middle of it.
#[derive(Debug)]
struct Queue<T>(BTreeMap<Ticket, T>);

impl<T: Copy> Queue<T> {
    fn push(&mut self, item: T, end: End) -> Ticket {
        let ticket = match end {
            End::Front => self.0.first_key_value().map_or(0, |(first, _)| first.0 - 1),
            End::Back => self.0.last_key_value().map_or(0, |(last, _)| last.0 + 1),
        };
        self.0.insert(Ticket(ticket), item);
        Ticket(ticket)
    }

    fn pop(&mut self) -> Option<T> {
        self.0.pop_first().map(|(_, item)| item)
    }

    fn remove(&mut self, ticket: Ticket) {
        self.0.remove(&ticket);
    }

    fn iter(&self) -> impl Iterator<Item = T> + '_ {
        self.0.values().copied()
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}
