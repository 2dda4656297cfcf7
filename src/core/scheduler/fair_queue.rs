//! A fair queue of polls: one line for each key domain, served by turns.
//!
//! ```text
//!   ring: A ─▶ B ─▶ C ─▶ A      open lines, in the order of their turns
//!         │    │    │
//!         ▪    ▪    ▪            polls of one key, in order
//!         ▪         ▪
//! ```
//!
//! A closed line keeps its polls and has no turn. The queue does not know why a line is closed or skipped.

use std::collections::BTreeMap;

use crate::core::Map;
use crate::core::coalescer::PollId;
use crate::core::job::KeyDomain;

/// Lines of polls, served by turns.
#[derive(Debug, Default)]
pub(super) struct FairQueue {
    lines: Map<KeyDomain, KeyLine>,
    /// Domains with an open line, in the order of their turns.
    ring: OrderedQueue<KeyDomain>,
}

#[derive(Debug, Default)]
struct KeyLine {
    polls: OrderedQueue<PollId>,
    /// Position in the ring; `None` for a closed line.
    turn: Option<Ticket>,
}

/// Position of a poll in its line, or of a line in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(i64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QueueEnd {
    Front,
    Back,
}

impl FairQueue {
    /// Adds a poll to the line of its domain, and opens or closes that line.
    pub(super) fn enqueue(&mut self, id: PollId, domain: KeyDomain, end: QueueEnd, is_open: bool) -> Ticket {
        let ticket = self.lines.entry(domain).or_default().polls.push(id, end);
        self.set_open(domain, is_open);
        ticket
    }

    /// Removes a poll from the line of its domain.
    pub(super) fn leave(&mut self, domain: KeyDomain, ticket: Ticket) {
        if let Some(line) = self.lines.get_mut(&domain) {
            line.polls.remove(ticket);
            self.drop_if_empty(domain);
        }
    }

    /// Opens or closes the line of a domain.
    pub(super) fn set_open(&mut self, domain: KeyDomain, is_open: bool) {
        let Some(line) = self.lines.get_mut(&domain) else { return };
        match (line.turn, is_open) {
            (None, true) => line.turn = Some(self.ring.push(domain, QueueEnd::Back)),
            (Some(turn), false) => {
                self.ring.remove(turn);
                line.turn = None;
            }
            (None, false) | (Some(_), true) => {}
        }
    }

    /// Takes the first poll of the first open line that `may_serve` admits. That line then goes to the end of the ring.
    pub(super) fn next(&mut self, may_serve: impl Fn(KeyDomain) -> bool) -> Option<PollId> {
        let domain = self.ring.iter().find(|domain| may_serve(*domain))?;
        let line = self.lines.get_mut(&domain)?;
        let id = line.polls.pop();
        if let Some(turn) = line.turn.take() {
            self.ring.remove(turn);
        }
        self.set_open(domain, true);
        self.drop_if_empty(domain);
        id
    }

    /// Iterates over the queued polls of a domain, in order.
    pub(super) fn polls_of(&self, domain: KeyDomain) -> impl Iterator<Item = PollId> + '_ {
        self.lines.get(&domain).into_iter().flat_map(|line| line.polls.iter())
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.ring.0.is_empty()
    }

    fn drop_if_empty(&mut self, domain: KeyDomain) {
        if let Some(KeyLine { turn, .. }) = self.lines.get(&domain).filter(|line| line.polls.0.is_empty()) {
            turn.inspect(|turn| self.ring.remove(*turn));
            self.lines.remove(&domain);
        }
    }
}

/// A queue whose items can leave from any position.
#[derive(Debug)]
struct OrderedQueue<T>(BTreeMap<Ticket, T>);

impl<T: Copy> OrderedQueue<T> {
    fn push(&mut self, item: T, end: QueueEnd) -> Ticket {
        let ticket = match end {
            QueueEnd::Front => self.0.first_key_value().map_or(0, |(first, _)| first.0 - 1),
            QueueEnd::Back => self.0.last_key_value().map_or(0, |(last, _)| last.0 + 1),
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

impl<T> Default for OrderedQueue<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}
