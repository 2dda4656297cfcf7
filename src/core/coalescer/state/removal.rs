//! Removal of waits. Ten thousand may end with one poll, so many of them leave each set in one pass.

use std::collections::BTreeSet;

use super::{CoalescerState, TimerOwner, Wait};
use crate::core::coalescer::types::{PollId, WaitId};
use crate::core::job::{JobSet, KeyDomain};
use crate::core::route::Goal;

impl CoalescerState {
    /// Removes a wait and detaches it from its polls, which stay in its `attached_polls`: the caller lets them linger.
    pub(in crate::core::coalescer) fn remove_wait(&mut self, id: WaitId) -> Option<Box<Wait>> {
        let wait = self.waits.remove(&id)?;
        self.timers.remove(&(wait.due, TimerOwner::Wait(id)));
        for poll in &wait.attached_polls {
            if let Some(poll) = self.polls.get_mut(poll) {
                poll.waits.remove(&id);
            }
        }
        self.job_index.remove_wait(id, wait.spec.domain, &wait.spec.jobs, wait.current_goal);
        Some(wait)
    }

    /// Removes sorted waits and detaches them from their polls. Returns these polls: the caller lets them linger.
    pub(in crate::core::coalescer) fn remove_waits(&mut self, ids: &[WaitId]) -> Vec<PollId> {
        let count = ids.len();
        let (mut timers, mut goals) = (Vec::with_capacity(count), Vec::with_capacity(count));
        let mut links = Vec::with_capacity(count);
        for &id in ids {
            let Some(wait) = self.waits.remove(&id) else { continue };
            timers.push((wait.due, TimerOwner::Wait(id)));
            links.extend(wait.attached_polls.iter().map(|poll| (*poll, id)));
            goals.push((wait.spec.domain, wait.spec.jobs, wait.current_goal, id));
        }
        timers.sort_unstable();
        remove_sorted(&mut self.timers, &timers);
        links.sort_unstable();
        let mut polls = Vec::new();
        for links in links.chunk_by(|(a, _), (b, _)| a == b) {
            let (id, waits): (PollId, Vec<WaitId>) = (links[0].0, links.iter().map(|link| link.1).collect());
            if let Some(poll) = self.polls.get_mut(&id) {
                remove_sorted(&mut poll.waits, &waits);
            }
            polls.push(id);
        }
        let has_same_jobs = |a: &(KeyDomain, JobSet, _, _), b: &(KeyDomain, JobSet, _, _)| {
            a.0 == b.0 && (a.1.is_same(&b.1) || a.1 == b.1)
        };
        for goals in goals.chunk_by(has_same_jobs) {
            let (domain, jobs) = (goals[0].0, &goals[0].1);
            let (waits, mut interested): (Vec<WaitId>, Vec<(Goal, WaitId)>) =
                goals.iter().map(|&(_, _, goal, id)| (id, (goal, id))).unzip();
            interested.sort_unstable();
            self.job_index.remove_waits(domain, jobs, &waits, &interested);
        }
        polls
    }
}

/// Removes sorted items from a set. Many of them are removed in one pass.
pub(in crate::core::coalescer) fn remove_sorted<T: Ord>(set: &mut BTreeSet<T>, items: &[T]) {
    if items.len() < set.len() / 4 {
        for item in items {
            set.remove(item);
        }
        return;
    }
    let mut items = items.iter().peekable();
    let is_kept = |kept: &T| {
        while items.next_if(|item| *item < kept).is_some() {}
        items.next_if(|item| *item == kept).is_none()
    };
    *set = std::mem::take(set).into_iter().filter(is_kept).collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_keeps_exactly_the_items_that_are_not_removed() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let before: BTreeSet<u8> = (0..random.usize(..60)).map(|_| random.u8(..80)).collect();
            let removed: BTreeSet<u8> = (0..random.usize(..60)).map(|_| random.u8(..80)).collect();
            let mut set = before.clone();
            remove_sorted(&mut set, &removed.iter().copied().collect::<Vec<_>>());
            assert!(set.iter().eq(before.difference(&removed)), "seed {seed}");
        }
    }
}
