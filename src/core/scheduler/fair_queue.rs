//! A fair queue of polls: one line for each key domain, served by turns.
//!
//! ```text
//!   ring: A ─▶ B ─▶ C ─▶ A      open lines, in the order of their turns
//!         │    │    │
//!         ▪    ▪    ▪            polls of one key, in order
//!         ▪         ▪
//! ```
//!
//! A closed line keeps its polls and its turn, but is not served. So a key whose budget is used up for a moment does not
//! fall behind the others. The queue does not know why a line is closed or skipped.
//!
//! [`Turn`]s are numbered by the owner, so the first lines of two queues can be compared: the lower turn is the older.

use std::collections::BTreeMap;

use crate::core::Map;
use crate::core::coalescer::PollId;
use crate::core::job::KeyDomain;

/// Lines of polls, served by turns.
#[derive(Debug, Default)]
pub(super) struct FairQueue {
    lines: Map<KeyDomain, KeyLine>,
    /// Domains with an open line, by their turns.
    ring: BTreeMap<Turn, KeyDomain>,
}

#[derive(Debug)]
struct KeyLine {
    polls: BTreeMap<Ticket, PollId>,
    turn: Turn,
    is_open: bool,
}

/// Position of a poll in its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(i64);

/// Position of a line in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn(pub(super) u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QueueEnd {
    Front,
    Back,
}

impl FairQueue {
    /// Adds a poll to the line of its domain, and opens or closes that line. A new line gets the turn.
    pub(super) fn enqueue(
        &mut self,
        id: PollId,
        domain: KeyDomain,
        end: QueueEnd,
        is_open: bool,
        turn: Turn,
    ) -> Ticket {
        let line = self.lines.entry(domain).or_insert_with(|| KeyLine {
            polls: BTreeMap::new(),
            turn,
            is_open: false,
        });
        let ticket = Ticket(match end {
            QueueEnd::Front => line.polls.first_key_value().map_or(0, |(first, _)| first.0 - 1),
            QueueEnd::Back => line.polls.last_key_value().map_or(0, |(last, _)| last.0 + 1),
        });
        line.polls.insert(ticket, id);
        self.set_open(domain, is_open);
        ticket
    }

    /// Removes a poll from the line of its domain.
    pub(super) fn leave(&mut self, domain: KeyDomain, ticket: Ticket) {
        if let Some(line) = self.lines.get_mut(&domain) {
            line.polls.remove(&ticket);
            self.drop_if_empty(domain);
        }
    }

    /// Opens or closes the line of a domain.
    pub(super) fn set_open(&mut self, domain: KeyDomain, is_open: bool) {
        let Some(line) = self.lines.get_mut(&domain).filter(|line| line.is_open != is_open) else { return };
        line.is_open = is_open;
        if is_open {
            self.ring.insert(line.turn, domain);
        } else {
            self.ring.remove(&line.turn);
        }
    }

    /// Returns the first open line that `may_serve` admits.
    pub(super) fn first(&self, may_serve: impl Fn(KeyDomain) -> bool) -> Option<(Turn, KeyDomain)> {
        self.ring.iter().map(|(turn, domain)| (*turn, *domain)).find(|(_, domain)| may_serve(*domain))
    }

    /// Takes the first poll of this line. The line then waits for `next_turn`.
    pub(super) fn take(&mut self, domain: KeyDomain, next_turn: Turn) -> Option<PollId> {
        let line = self.lines.get_mut(&domain)?;
        let (_, id) = line.polls.pop_first()?;
        if line.is_open {
            self.ring.remove(&line.turn);
            self.ring.insert(next_turn, domain);
        }
        line.turn = next_turn;
        self.drop_if_empty(domain);
        Some(id)
    }

    /// Returns whether the domain has an open line.
    pub(super) fn is_open(&self, domain: KeyDomain) -> bool {
        self.lines.get(&domain).is_some_and(|line| line.is_open)
    }

    /// Iterates over the queued polls of a domain, in order.
    pub(super) fn polls_of(&self, domain: KeyDomain) -> impl Iterator<Item = PollId> + '_ {
        self.lines.get(&domain).into_iter().flat_map(|line| line.polls.values().copied())
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.ring.is_empty()
    }

    fn drop_if_empty(&mut self, domain: KeyDomain) {
        if let Some(line) = self.lines.get(&domain).filter(|line| line.polls.is_empty()) {
            self.ring.remove(&line.turn);
            self.lines.remove(&domain);
        }
    }
}
