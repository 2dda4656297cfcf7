//! Read-only view of the machine for its caller: the link, the members, and the polls of each.

use std::time::Instant;

use super::Siblings;
use super::types::{LinkState, ReplicaName};
use crate::core::coalescer::PollId;

/// A replica that is heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SiblingView {
    /// Its name.
    pub name: ReplicaName,
    /// When it was last heard.
    pub heard_at: Instant,
    /// Number of the polls that it makes for this replica.
    pub polls: usize,
}

impl Siblings {
    /// Returns the state of the link to the engine.
    pub fn link(&self) -> LinkState {
        self.link.state()
    }

    /// Returns whether this replica goes on without the engine. One whose link is too new to be heard on does not.
    pub fn is_alone(&self) -> bool {
        !self.link.is_up() || self.link.is_apart
    }

    /// Returns the number of replicas that are heard, this one included.
    pub fn members(&self) -> usize {
        self.members.len() + 1
    }

    /// Returns the number of shared polls, and of those without waits here.
    pub fn polls(&self) -> (usize, usize) {
        let kept = self.polls.iter().filter(|(_, poll)| poll.local.is_none()).count();
        (self.polls.len(), kept)
    }

    /// Returns the number of calls that the engine has not answered.
    pub fn unanswered(&self) -> usize {
        self.outbox.len()
    }

    /// Returns the sibling that makes a poll of the coalescer.
    pub fn holder(&self, id: PollId) -> Option<ReplicaName> {
        self.polls.get(self.polls.of_local(id)?)?.holder()
    }

    /// Returns [`SiblingConfig::instance`](super::SiblingConfig::instance).
    pub fn instance(&self) -> u64 {
        self.config.instance
    }

    /// Returns the name of this replica, while the link is up.
    pub fn name(&self) -> Option<ReplicaName> {
        self.link.me
    }

    /// Returns the number of polls that this replica makes.
    pub fn own_polls(&self) -> usize {
        self.solo.len() + self.polls.iter().filter(|(_, poll)| poll.own().is_some()).count()
    }

    /// Returns the other replicas.
    pub fn siblings(&self) -> impl Iterator<Item = SiblingView> {
        self.members.iter().map(|(name, sibling)| {
            let polls = self.polls.iter().filter(|(_, poll)| poll.holder() == Some(name)).count();
            SiblingView { name, heard_at: sibling.heard_at, polls }
        })
    }

    /// Returns whether a poll was started under this number and has not ended.
    pub fn is_running(&self, run: PollId) -> bool {
        self.solo.contains(&run) || self.polls.of_run(run).is_some()
    }

    /// Returns the coalescer's number of a started poll. `None`: it is made for siblings only.
    pub fn local(&self, run: PollId) -> Option<PollId> {
        match self.polls.of_run(run) {
            Some(name) => self.polls.get(name)?.local,
            None => self.solo.contains(&run).then_some(run),
        }
    }

    /// Returns the number under which a poll of the coalescer was started here.
    pub fn run(&self, local: PollId) -> Option<PollId> {
        match self.polls.of_local(local) {
            Some(name) => self.polls.get(name)?.own().map(|own| own.run),
            None => self.solo.contains(&local).then_some(local),
        }
    }
}
