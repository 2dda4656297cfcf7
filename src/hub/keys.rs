//! What the hub's task remembers of a key with parked waits.

use std::sync::Arc;

use http::HeaderValue;

use crate::core::Map;
use crate::core::coalescer::WaitId;
use crate::limits::UnprovenWait;

/// A key, while a wait needs it: what its polls are made with, and who waits.
pub(super) struct ParkedKey {
    pub(super) authorization: HeaderValue,
    pub(super) waits: usize,
    /// Those of them that count for their address, until the key is proven.
    pub(super) unproven_waits: Map<WaitId, UnprovenWait>,
    /// How many of them are whose, in team mode.
    pub(super) members: Map<Arc<str>, usize>,
}

impl ParkedKey {
    pub(super) fn new(authorization: HeaderValue) -> Self {
        Self { authorization, waits: 0, unproven_waits: Map::default(), members: Map::default() }
    }

    pub(super) fn park(&mut self, member: Option<Arc<str>>) {
        self.waits += 1;
        if let Some(member) = member {
            *self.members.entry(member).or_default() += 1;
        }
    }

    pub(super) fn unpark(&mut self, member: Option<&Arc<str>>) {
        self.waits -= 1;
        if let Some(member) = member
            && let Some(waits) = self.members.get_mut(member)
        {
            *waits -= 1;
            if *waits == 0 {
                self.members.remove(member);
            }
        }
    }
}
