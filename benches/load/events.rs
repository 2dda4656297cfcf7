//! A queue of events in virtual time.

use std::collections::BTreeMap;
use std::time::Duration;

/// Events by their time since the start of the day. Events of one moment come in the order in which they were added.
#[derive(Debug)]
pub(crate) struct EventQueue<E> {
    events: BTreeMap<(Duration, u64), E>,
    added: u64,
}

impl<E> EventQueue<E> {
    pub(crate) fn new() -> Self {
        Self { events: BTreeMap::new(), added: 0 }
    }

    pub(crate) fn add(&mut self, at: Duration, event: E) {
        self.added += 1;
        self.events.insert((at, self.added), event);
    }

    /// Returns the time of the next event.
    pub(crate) fn next_at(&self) -> Option<Duration> {
        self.events.first_key_value().map(|((at, _), _)| *at)
    }

    /// Removes the next event.
    pub(crate) fn pop(&mut self) -> Option<(Duration, E)> {
        self.events.pop_first().map(|((at, _), event)| (at, event))
    }
}
