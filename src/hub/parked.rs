//! Parked waits and their keys, as the hub's task stores them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Responder;
use crate::auth::Credential;
use crate::core::Map;
use crate::core::coalescer::WaitId;
use crate::core::job::{KeyDomain, RouteIndex};
use crate::limits::UnprovenWait;
use crate::telemetry::metrics::MemberWait;
use crate::telemetry::trace::Links;

pub(super) struct ParkedWait {
    pub(super) responder: Responder,
    pub(super) domain: KeyDomain,
    pub(super) route: RouteIndex,
    /// Name of the client, in team mode.
    pub(super) member: Option<Arc<str>>,
    /// Counts the wait of the member.
    pub(super) _member_wait: Option<MemberWait>,
    pub(super) since: Instant,
    /// The greatest age of a stored state that its client accepts. `None`: no stored state.
    pub(super) max_age: Option<Duration>,
    pub(super) links: Links,
}

/// A key with at least one parked wait. It is removed with its last wait, and the key's clear text with it.
pub(super) struct ParkedKey {
    /// Credential of the key's polls.
    pub(super) credential: Credential,
    /// Number of parked waits.
    pub(super) waits: usize,
    /// The waits that count for their address until the upstream accepts the key.
    pub(super) unproven_waits: Map<WaitId, UnprovenWait>,
    /// Number of parked waits of each member, in team mode.
    pub(super) members: Map<Arc<str>, usize>,
}

impl ParkedKey {
    pub(super) fn new(credential: Credential) -> Self {
        Self { credential, waits: 0, unproven_waits: Map::default(), members: Map::default() }
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
