//! What concerns one job, while anything does: where it was seen, who wants to know, which polls ask for it.
//!
//! An index over the board's waits and polls, cut so that a step costs what it changes and not what there is:
//! thousands of different batches may share a job. It must never know why anything is looked up.

use std::collections::{BTreeMap, BTreeSet};

use super::types::{PollId, PollSpec, WaitId};
use crate::core::Map;
use crate::core::job::{JobId, JobSet, JobState, KeyDomain};
use crate::core::route::{Goal, Rung};

/// All jobs of all key domains. Maps are only looked up, sets are walked: the same inputs give the same outputs.
#[derive(Debug, Default)]
pub(super) struct JobIndex(Map<KeyDomain, Map<JobId, JobEntry>>);

#[derive(Debug, Default)]
struct JobEntry {
    /// The highest state seen while anyone cared.
    state: Option<JobState>,
    /// The waits that name the job.
    waits: BTreeSet<WaitId>,
    /// Those of them that may have no answer for it yet, by what they ask for.
    wanting: BTreeSet<(Goal, WaitId)>,
    /// The polls that ask for it.
    polls: BTreeSet<PollId>,
    /// Those of them that it holds, since it is not known to be where they want it; and all that they ask for.
    blocked_polls: BTreeMap<(Goal, PollId), JobSet>,
    /// Those of them that nothing else holds.
    solely_blocked_polls: BTreeSet<(Goal, PollId)>,
    /// Each poll is in one of its jobs' slots, the emptiest: whoever names all its jobs finds it there.
    owned_polls: BTreeSet<PollId>,
}

/// A job that anything concerns.
pub(super) struct IndexedJob<'b> {
    pub(super) domain: KeyDomain,
    pub(super) id: &'b JobId,
    pub(super) state: Option<&'b JobState>,
    pub(super) waits: &'b BTreeSet<WaitId>,
    pub(super) polls: &'b BTreeSet<PollId>,
}

impl JobIndex {
    /// The highest state seen of a job while anyone cared.
    pub(super) fn state(&self, domain: KeyDomain, job: &JobId) -> Option<&JobState> {
        self.slot(domain, job)?.state.as_ref()
    }

    /// Whether the job was seen at the goal.
    pub(super) fn is_at(&self, domain: KeyDomain, job: &JobId, goal: Goal) -> bool {
        self.slot(domain, job).is_some_and(|slot| slot.is_at(goal))
    }

    /// The waits that may want the job's state as it was last seen, and have no answer for it yet.
    pub(super) fn wanting(&self, domain: KeyDomain, job: &JobId) -> impl Iterator<Item = WaitId> + '_ {
        let slot = self.slot(domain, job).and_then(|slot| Some((slot, slot.rung()?)));
        slot.into_iter()
            .flat_map(|(slot, rung)| slot.wanting.range(..=(Goal::Rung(rung), WaitId(u64::MAX))))
            .map(|&(_, wait)| wait)
    }

    /// Whether the wait is among those that may have no answer for the job.
    pub(super) fn is_wanting(&self, domain: KeyDomain, job: &JobId, goal: Goal, wait: WaitId) -> bool {
        self.slot(domain, job).is_some_and(|slot| slot.wanting.contains(&(goal, wait)))
    }

    /// Polls that may ask for some of these jobs and for no others: each that does so is among them, once.
    pub(super) fn polls_within<'a>(
        &'a self,
        domain: KeyDomain,
        jobs: &'a JobSet,
    ) -> impl Iterator<Item = PollId> + 'a {
        let slots = jobs.iter().filter_map(move |job| self.slot(domain, job));
        slots.flat_map(|slot| slot.owned_polls.iter().copied())
    }

    /// The polls that ask for the job.
    pub(super) fn polls_for(&self, domain: KeyDomain, job: &JobId) -> impl Iterator<Item = PollId> + '_ {
        self.slot(domain, job).into_iter().flat_map(|slot| slot.polls.iter().copied())
    }

    /// The polls at this goal that nothing but this job holds.
    pub(super) fn held_by(
        &self,
        domain: KeyDomain,
        job: &JobId,
        goal: Goal,
    ) -> impl Iterator<Item = PollId> + '_ {
        let all = (goal, PollId(0))..=(goal, PollId(u64::MAX));
        let slot = self.slot(domain, job).into_iter();
        slot.flat_map(move |slot| slot.solely_blocked_polls.range(all.clone())).map(|&(_, poll)| poll)
    }

    /// Each job that anything concerns, in no order.
    pub(super) fn all(&self) -> impl Iterator<Item = IndexedJob<'_>> {
        self.0.iter().flat_map(|(&domain, slots)| {
            slots.iter().map(move |(id, slot)| IndexedJob {
                domain,
                id,
                state: slot.state.as_ref(),
                waits: &slot.waits,
                polls: &slot.polls,
            })
        })
    }

    /// How many these are.
    pub(super) fn count(&self) -> usize {
        self.0.values().map(Map::len).sum()
    }

    /// A wait names these jobs.
    pub(super) fn enter_wait(&mut self, id: WaitId, domain: KeyDomain, jobs: &JobSet, goal: Goal) {
        let slots = self.0.entry(domain).or_default();
        for job in jobs {
            let slot = slots.entry(job.clone()).or_default();
            slot.waits.insert(id);
            slot.wanting.insert((goal, id));
        }
    }

    /// The wait wants to know of all its jobs again, for another goal.
    pub(super) fn reset_interest(
        &mut self,
        id: WaitId,
        domain: KeyDomain,
        jobs: &JobSet,
        before: Goal,
        goal: Goal,
    ) {
        for job in jobs {
            if let Some(slot) = self.slot_mut(domain, job) {
                slot.wanting.remove(&(before, id));
                slot.wanting.insert((goal, id));
            }
        }
    }

    /// The wait has its answer for this job.
    pub(super) fn clear_interest(&mut self, id: WaitId, domain: KeyDomain, job: &JobId, goal: Goal) {
        if let Some(slot) = self.slot_mut(domain, job) {
            slot.wanting.remove(&(goal, id));
        }
    }

    /// The wait is gone.
    pub(super) fn leave_wait(&mut self, id: WaitId, domain: KeyDomain, jobs: &JobSet, goal: Goal) {
        self.leave(domain, jobs, |slot| {
            slot.waits.remove(&id);
            slot.wanting.remove(&(goal, id));
        });
    }

    /// A poll asks for these jobs.
    pub(super) fn enter_poll(&mut self, id: PollId, spec: &PollSpec) {
        let PollSpec { domain, ref jobs, goal, .. } = *spec;
        let slots = self.0.entry(domain).or_default();
        for job in jobs {
            let slot = slots.entry(job.clone()).or_default();
            slot.polls.insert(id);
            if !slot.is_at(goal) {
                slot.blocked_polls.insert((goal, id), jobs.clone());
            }
        }
        let anchor = jobs.iter().min_by_key(|job| slots.get(*job).map(|slot| slot.owned_polls.len()));
        if let Some(slot) = anchor.and_then(|job| slots.get_mut(job)) {
            slot.owned_polls.insert(id);
        }
        self.record_sole_blocker(domain, id, goal, jobs);
    }

    /// The poll is gone.
    pub(super) fn leave_poll(&mut self, id: PollId, spec: &PollSpec) {
        self.leave(spec.domain, &spec.jobs, |slot| {
            slot.polls.remove(&id);
            slot.blocked_polls.remove(&(spec.goal, id));
            slot.solely_blocked_polls.remove(&(spec.goal, id));
            slot.owned_polls.remove(&id);
        });
    }

    /// Remembers a state, unless it goes back behind what is known, which only confirms that.
    pub(super) fn learn(&mut self, domain: KeyDomain, state: JobState) {
        let job = state.id.clone();
        let Some(slot) = self.slot_mut(domain, &job) else { return };
        match &mut slot.state {
            Some(known) if state.rung < known.rung => known.seen_at = known.seen_at.max(state.seen_at),
            Some(known) if state.rung == known.rung && state.seen_at < known.seen_at => {}
            // Answers may come in another order than they were read: what had reached a rung before has it since.
            Some(known) => *known = JobState { seen_at: known.seen_at.max(state.seen_at), ..state },
            none => *none = Some(state),
        }
        let Some(rung) = slot.rung() else { return };
        let still = slot.blocked_polls.split_off(&(Goal::Rung(rung), PollId(u64::MAX)));
        for ((goal, id), jobs) in std::mem::replace(&mut slot.blocked_polls, still) {
            if let Some(slot) = self.slot_mut(domain, &job) {
                slot.solely_blocked_polls.remove(&(goal, id));
            }
            self.record_sole_blocker(domain, id, goal, &jobs);
        }
    }

    /// Writes down what holds a poll, if that is one job only.
    fn record_sole_blocker(&mut self, domain: KeyDomain, id: PollId, goal: Goal, jobs: &JobSet) {
        if let Some(job) = self.holder(domain, goal, jobs)
            && let Some(slot) = self.slot_mut(domain, job)
        {
            slot.solely_blocked_polls.insert((goal, id));
        }
    }

    /// The only one of these jobs that is not known to be at the goal.
    fn holder<'a>(&self, domain: KeyDomain, goal: Goal, jobs: &'a JobSet) -> Option<&'a JobId> {
        let mut lacking = jobs.iter().filter(|job| !self.is_at(domain, job, goal));
        lacking.next().filter(|_| lacking.next().is_none())
    }

    fn slot(&self, domain: KeyDomain, job: &JobId) -> Option<&JobEntry> {
        self.0.get(&domain)?.get(job)
    }

    fn slot_mut(&mut self, domain: KeyDomain, job: &JobId) -> Option<&mut JobEntry> {
        self.0.get_mut(&domain)?.get_mut(job)
    }

    /// Takes somebody out of these jobs' slots, and forgets those of the jobs that concern nobody any more.
    fn leave(&mut self, domain: KeyDomain, jobs: &JobSet, mut take_out: impl FnMut(&mut JobEntry)) {
        let Some(slots) = self.0.get_mut(&domain) else { return };
        for job in jobs {
            let Some(slot) = slots.get_mut(job) else { continue };
            take_out(slot);
            if slot.waits.is_empty() && slot.polls.is_empty() {
                slots.remove(job);
            }
        }
        if slots.is_empty() {
            self.0.remove(&domain);
        }
    }

    /// All that is written down follows from these waits and polls.
    pub(super) fn check<'a>(
        &self,
        waits: impl Iterator<Item = (WaitId, KeyDomain, &'a JobSet, Goal)>,
        polls: impl Iterator<Item = (PollId, &'a PollSpec)>,
    ) {
        let mut all = Map::<(KeyDomain, &JobId), JobEntry>::default();
        let mut anchors = Map::<PollId, usize>::default();
        for (id, domain, jobs, goal) in waits {
            for job in jobs {
                let slot = all.entry((domain, job)).or_default();
                slot.waits.insert(id);
                slot.wanting.insert((goal, id));
            }
        }
        for (id, PollSpec { domain, jobs, goal, .. }) in polls {
            for job in jobs {
                let slot = all.entry((*domain, job)).or_default();
                slot.polls.insert(id);
                slot.owned_polls.insert(id);
                if !self.is_at(*domain, job, *goal) {
                    slot.blocked_polls.insert((*goal, id), jobs.clone());
                }
            }
            if let Some(job) = self.holder(*domain, *goal, jobs) {
                all.entry((*domain, job)).or_default().solely_blocked_polls.insert((*goal, id));
            }
            anchors.insert(id, 0);
        }
        assert!(self.0.values().all(|slots| !slots.is_empty()));
        assert_eq!(self.count(), all.len());
        for ((domain, job), right) in all {
            let slot = self.slot(domain, job).expect("it concerns somebody");
            assert_eq!(slot.waits, right.waits, "{job}");
            assert!(slot.wanting.is_subset(&right.wanting), "{job}");
            assert_eq!(slot.polls, right.polls, "{job}");
            assert_eq!(slot.blocked_polls, right.blocked_polls, "{job}");
            assert_eq!(slot.solely_blocked_polls, right.solely_blocked_polls, "{job}");
            assert!(slot.owned_polls.is_subset(&right.owned_polls), "{job}");
            slot.owned_polls.iter().for_each(|id| *anchors.entry(*id).or_default() += 1);
        }
        assert!(anchors.values().all(|count| *count == 1), "{anchors:?}");
    }
}

impl JobEntry {
    fn rung(&self) -> Option<Rung> {
        self.state.as_ref()?.rung
    }

    fn is_at(&self, goal: Goal) -> bool {
        self.rung().is_some_and(|rung| goal <= Goal::Rung(rung))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::clock;
    use crate::core::job::Head;
    use crate::core::route::{Form, Route};

    const KEY: KeyDomain = KeyDomain([0; 16]);

    fn jobs(ids: &str) -> JobSet {
        JobSet::new(ids.split(' ').map(|id| JobId::new(id).unwrap()))
    }

    fn rung(word: &str) -> Rung {
        Route::suno().ladder.rung(word).unwrap()
    }

    fn state(id: &str, word: &str) -> JobState {
        let (id, head, seen_at) = (JobId::new(id).unwrap(), Arc::new(Head::default()), clock::now());
        JobState { id, rung: Some(rung(word)), body: Bytes::new(), head, seen_at }
    }

    /// A thousand waits and polls, each on a job of its own and on one that they share.
    fn crowd() -> JobIndex {
        let (mut slots, goal) = (JobIndex::default(), Goal::Rung(rung("completed")));
        for n in 0..1000 {
            let jobs = jobs(&format!("shared own{n}"));
            slots.enter_wait(WaitId(n), KEY, &jobs, goal);
            slots.enter_poll(PollId(n), &PollSpec { domain: KEY, form: Form::Multi, jobs, goal });
        }
        slots
    }

    #[test]
    fn a_batch_finds_its_poll_without_walking_those_of_all_who_share_a_job() {
        let slots = crowd();
        for n in [0, 7, 999] {
            let found: Vec<PollId> = slots.polls_within(KEY, &jobs(&format!("shared own{n}"))).collect();
            assert!(found.contains(&PollId(n)) && found.len() <= 2, "{n}: {found:?}");
        }
    }

    #[test]
    fn only_the_polls_that_a_job_alone_holds_can_prove_where_it_is() {
        let (mut slots, goal) = (crowd(), Goal::Rung(rung("completed")));
        let shared = JobId::new("shared").unwrap();
        slots.learn(KEY, state("shared", "streaming"));
        assert_eq!(slots.held_by(KEY, &shared, goal).count(), 0);
        slots.learn(KEY, state("own7", "complete"));
        assert_eq!(slots.held_by(KEY, &shared, goal).collect::<Vec<_>>(), [PollId(7)]);
        slots.learn(KEY, state("shared", "complete"));
        assert_eq!(slots.held_by(KEY, &shared, goal).count(), 0);
        let own = JobId::new("own8").unwrap();
        assert_eq!(slots.held_by(KEY, &own, goal).collect::<Vec<_>>(), [PollId(8)]);
    }

    #[test]
    fn a_state_concerns_those_only_who_want_it_and_do_not_have_it() {
        let (mut slots, goal) = (crowd(), Goal::Rung(rung("completed")));
        let shared = JobId::new("shared").unwrap();
        slots.learn(KEY, state("shared", "streaming"));
        assert_eq!(slots.wanting(KEY, &shared).count(), 0);
        slots.learn(KEY, state("shared", "complete"));
        assert_eq!(slots.wanting(KEY, &shared).count(), 1000);
        (1..1000).for_each(|n| slots.clear_interest(WaitId(n), KEY, &shared, goal));
        slots.learn(KEY, state("shared", "complete"));
        assert_eq!(slots.wanting(KEY, &shared).collect::<Vec<_>>(), [WaitId(0)]);
    }
}
