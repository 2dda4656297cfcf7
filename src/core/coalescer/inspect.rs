//! What is under way, for people to look at. It changes nothing.

use std::collections::BTreeSet;
use std::time::Instant;

use super::job_index::IndexedJob;
use super::{Coalescer, PollId, WaitId};
use crate::core::job::{JobId, KeyDomain};
use crate::core::route::{Goal, Rung};

/// Waits of one clip whose goals are looked at.
const MOST_GOALS: usize = 64;

/// A clip that waits name or polls ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobStatus {
    /// With whose key.
    pub domain: KeyDomain,
    /// Which one.
    pub id: JobId,
    /// The highest rung that it was seen on since anybody cared.
    pub rung: Option<Rung>,
    /// The rungs that it is waited for to reach, of its oldest waits at least.
    pub asked: BTreeSet<Rung>,
    /// How many waits name it.
    pub waits: usize,
    /// How many polls ask for it.
    pub polls: usize,
    /// Since when: its oldest wait's arrival, or its oldest poll's opening.
    pub since: Option<Instant>,
}

impl Coalescer {
    /// How many clips are under way.
    pub fn clips(&self) -> usize {
        self.board.slots().count()
    }

    /// The oldest of them, the oldest first; `most` at most, of as many as `looked_at`.
    pub fn oldest_jobs(&self, most: usize, looked_at: usize) -> Vec<JobStatus> {
        let clips = self.board.slots().all().take(looked_at);
        let mut clips: Vec<_> = clips.map(|clip| (self.since(&clip), clip)).collect();
        clips.sort_unstable_by_key(|(since, clip)| (*since, clip.domain, clip.id));
        clips.truncate(most);
        clips.into_iter().map(|(since, clip)| self.in_flight(since, &clip)).collect()
    }

    /// What a wait leans on now.
    pub fn attached_polls(&self, id: WaitId) -> impl Iterator<Item = PollId> {
        self.board.wait(id).into_iter().flat_map(|wait| wait.attached_polls.iter().copied())
    }

    /// Who leans on a poll now.
    pub fn attached_waits(&self, id: PollId) -> impl Iterator<Item = WaitId> {
        self.board.poll(id).into_iter().flat_map(|poll| poll.waits.iter().copied())
    }

    fn since(&self, clip: &IndexedJob<'_>) -> Option<Instant> {
        // Numbers are given in order.
        let wait = clip.waits.first().and_then(|wait| self.board.wait(*wait));
        let poll = clip.polls.first().and_then(|poll| self.board.poll(*poll));
        wait.map(|wait| wait.spec.arrived).into_iter().chain(poll.map(|poll| poll.opened_at)).min()
    }

    fn in_flight(&self, since: Option<Instant>, clip: &IndexedJob<'_>) -> JobStatus {
        let waits = clip.waits.iter().take(MOST_GOALS).filter_map(|wait| self.board.wait(*wait));
        let asked = waits.filter_map(|wait| match wait.spec.goal {
            Goal::Now => None,
            Goal::Rung(rung) => Some(rung),
        });
        JobStatus {
            domain: clip.domain,
            id: clip.id.clone(),
            rung: clip.state.and_then(|state| state.rung),
            asked: asked.collect(),
            waits: clip.waits.len(),
            polls: clip.polls.len(),
            since,
        }
    }
}
