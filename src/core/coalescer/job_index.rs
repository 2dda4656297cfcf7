//! Index by job: the last state seen, the waits that name the job, and the polls that ask for it.
//!
//! A job is in the index while a wait or a poll concerns it. Thousands of different waits may share one job, so each
//! lookup costs as much as it finds, not as much as there is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::state::remove_sorted;
use super::types::{PollId, PollSpec, WaitId};
use crate::core::Map;
use crate::core::job::{JobId, JobSet, JobState, KeyDomain};
use crate::core::route::{Goal, Rung};

/// All jobs under way, by key domain: no lookup crosses from one domain to another (P11).
///
/// Maps are only looked up, sets are iterated, so the same inputs give the same outputs.
#[derive(Debug, Default)]
pub(super) struct JobIndex(Map<KeyDomain, Map<JobId, JobEntry>>);

#[derive(Debug, Default)]
struct JobEntry {
    /// Highest state seen since the entry was created.
    state: Option<JobState>,
    /// When the bytes of `state` were seen. Its own `seen_at` is later where another answer confirmed it.
    bytes_at: Option<Instant>,
    /// When an answer last contradicted `state`: a refusal, an unknown status, a body that could not be read.
    proof_ended_at: Option<Instant>,
    /// Waits that name the job.
    waits: BTreeSet<WaitId>,
    /// Those of `waits` that may have no answer for the job yet, by their current goal.
    interested: BTreeSet<(Goal, WaitId)>,
    /// Polls that ask for the job.
    polls: BTreeSet<PollId>,
    /// Those of `polls` that this job blocks, because it was not seen at their goal; with all jobs of the poll.
    blocked_polls: BTreeMap<(Goal, PollId), JobSet>,
    /// Those of `blocked_polls` that no other job blocks.
    solely_blocked_polls: BTreeSet<(Goal, PollId)>,
    /// Each poll is owned by one of its jobs: the one that owned the fewest. A wait that names all jobs of a poll finds
    /// the poll there, and only once.
    owned_polls: BTreeSet<PollId>,
}

/// A borrowed view of one entry.
pub(super) struct IndexedJob<'b> {
    pub(super) domain: KeyDomain,
    pub(super) id: &'b JobId,
    pub(super) state: Option<&'b JobState>,
    pub(super) waits: &'b BTreeSet<WaitId>,
    pub(super) polls: &'b BTreeSet<PollId>,
}

impl JobIndex {
    /// Returns the highest state of a job seen while the job was in the index.
    pub(super) fn state(&self, domain: KeyDomain, job: &JobId) -> Option<&JobState> {
        self.entry(domain, job)?.state.as_ref()
    }

    /// Returns the highest state of a job and the time at which its bytes were seen, unless an answer has ended
    /// its proof since.
    pub(super) fn provable_state(&self, domain: KeyDomain, job: &JobId) -> Option<(&JobState, Instant)> {
        let entry = self.entry(domain, job)?;
        let bytes_at =
            entry.bytes_at.filter(|at| entry.proof_ended_at.is_none_or(|ended_at| *at >= ended_at))?;
        Some((entry.state.as_ref()?, bytes_at))
    }

    /// Ends the proof of the job's state, until the job is seen again.
    pub(super) fn end_proof(&mut self, domain: KeyDomain, job: &JobId, now: Instant) {
        if let Some(entry) = self.entry_mut(domain, job) {
            entry.proof_ended_at = Some(now);
        }
    }

    /// Returns whether the job was seen at the goal.
    pub(super) fn is_at(&self, domain: KeyDomain, job: &JobId, goal: Goal) -> bool {
        self.entry(domain, job).is_some_and(|entry| entry.is_at(goal))
    }

    /// Returns the waits whose goal the job has reached by its last state, and that may have no answer for it yet. Waits for
    /// any other state are among them in any case.
    pub(super) fn interested(&self, domain: KeyDomain, job: &JobId) -> impl Iterator<Item = WaitId> + '_ {
        let entry = self.entry(domain, job).and_then(|entry| Some((entry, entry.rung()?)));
        entry
            .into_iter()
            .flat_map(|(entry, rung)| {
                let others = entry.interested.iter().rev();
                let others = others.take_while(|(goal, _)| matches!(goal, Goal::Not(_)));
                entry.interested.range(..=(Goal::Rung(rung), WaitId(u64::MAX))).chain(others)
            })
            .map(|&(_, wait)| wait)
    }

    /// Returns whether the wait may have no answer for the job yet.
    pub(super) fn is_interested(&self, domain: KeyDomain, job: &JobId, goal: Goal, wait: WaitId) -> bool {
        self.entry(domain, job).is_some_and(|entry| entry.interested.contains(&(goal, wait)))
    }

    /// Returns each poll that asks for a subset of these jobs, once, and some that ask for other jobs too.
    pub(super) fn polls_within<'a>(
        &'a self,
        domain: KeyDomain,
        jobs: &'a JobSet,
    ) -> impl Iterator<Item = PollId> + 'a {
        let entries = jobs.iter().filter_map(move |job| self.entry(domain, job));
        entries.flat_map(|entry| entry.owned_polls.iter().copied())
    }

    /// Returns the polls that ask for the job.
    pub(super) fn polls_for(&self, domain: KeyDomain, job: &JobId) -> impl Iterator<Item = PollId> + '_ {
        self.entry(domain, job).into_iter().flat_map(|entry| entry.polls.iter().copied())
    }

    /// Returns the waits that name the job.
    pub(super) fn waits_for(&self, domain: KeyDomain, job: &JobId) -> Vec<WaitId> {
        self.entry(domain, job).into_iter().flat_map(|entry| entry.waits.iter().copied()).collect()
    }

    /// Returns the polls at this goal that no job but this one blocks.
    pub(super) fn solely_blocked_by(
        &self,
        domain: KeyDomain,
        job: &JobId,
        goal: Goal,
    ) -> impl Iterator<Item = PollId> + '_ {
        let all = (goal, PollId(0))..=(goal, PollId(u64::MAX));
        let entry = self.entry(domain, job).into_iter();
        entry.flat_map(move |entry| entry.solely_blocked_polls.range(all.clone())).map(|&(_, poll)| poll)
    }

    /// Returns all entries, in no order.
    pub(super) fn all(&self) -> impl Iterator<Item = IndexedJob<'_>> {
        self.0.iter().flat_map(|(&domain, entries)| {
            entries.iter().map(move |(id, entry)| IndexedJob {
                domain,
                id,
                state: entry.state.as_ref(),
                waits: &entry.waits,
                polls: &entry.polls,
            })
        })
    }

    /// Returns the jobs of a key domain, in no order.
    pub(super) fn of_domain(&self, domain: KeyDomain) -> impl Iterator<Item = &JobId> {
        self.0.get(&domain).into_iter().flat_map(Map::keys)
    }

    pub(super) fn count(&self) -> usize {
        self.0.values().map(Map::len).sum()
    }

    pub(super) fn add_wait(&mut self, id: WaitId, domain: KeyDomain, jobs: &JobSet, goal: Goal) {
        let entries = self.0.entry(domain).or_default();
        for job in jobs {
            let entry = entries.entry(job.clone()).or_default();
            entry.waits.insert(id);
            entry.interested.insert((goal, id));
        }
    }

    /// Records that the wait needs an answer for each of its jobs again, for another goal.
    pub(super) fn reset_interest(
        &mut self,
        id: WaitId,
        domain: KeyDomain,
        jobs: &JobSet,
        before: Goal,
        goal: Goal,
    ) {
        for job in jobs {
            if let Some(entry) = self.entry_mut(domain, job) {
                entry.interested.remove(&(before, id));
                entry.interested.insert((goal, id));
            }
        }
    }

    /// Records that the wait has its answer for this job.
    pub(super) fn clear_interest(&mut self, id: WaitId, domain: KeyDomain, job: &JobId, goal: Goal) {
        if let Some(entry) = self.entry_mut(domain, job) {
            entry.interested.remove(&(goal, id));
        }
    }

    pub(super) fn remove_wait(&mut self, id: WaitId, domain: KeyDomain, jobs: &JobSet, goal: Goal) {
        self.remove(domain, jobs, |entry| {
            entry.waits.remove(&id);
            entry.interested.remove(&(goal, id));
        });
    }

    /// Removes waits on these jobs. Both lists are sorted.
    pub(super) fn remove_waits(
        &mut self,
        domain: KeyDomain,
        jobs: &JobSet,
        waits: &[WaitId],
        interested: &[(Goal, WaitId)],
    ) {
        self.remove(domain, jobs, |entry| {
            remove_sorted(&mut entry.waits, waits);
            remove_sorted(&mut entry.interested, interested);
        });
    }

    pub(super) fn add_poll(&mut self, id: PollId, spec: &PollSpec) {
        let PollSpec { domain, ref jobs, goal, .. } = *spec;
        let entries = self.0.entry(domain).or_default();
        for job in jobs {
            let entry = entries.entry(job.clone()).or_default();
            entry.polls.insert(id);
            if !entry.is_at(goal) {
                entry.blocked_polls.insert((goal, id), jobs.clone());
            }
        }
        let owner = jobs.iter().min_by_key(|job| entries.get(*job).map(|entry| entry.owned_polls.len()));
        if let Some(entry) = owner.and_then(|job| entries.get_mut(job)) {
            entry.owned_polls.insert(id);
        }
        self.record_sole_blocker(domain, id, goal, jobs);
    }

    pub(super) fn remove_poll(&mut self, id: PollId, spec: &PollSpec) {
        self.remove(spec.domain, &spec.jobs, |entry| {
            entry.polls.remove(&id);
            entry.blocked_polls.remove(&(spec.goal, id));
            entry.solely_blocked_polls.remove(&(spec.goal, id));
            entry.owned_polls.remove(&id);
        });
    }

    /// Records a state. A state below the known one only confirms that one: jobs never go back.
    pub(super) fn learn(&mut self, domain: KeyDomain, state: JobState) {
        let job = state.id.clone();
        let Some(entry) = self.entry_mut(domain, &job) else { return };
        match &mut entry.state {
            Some(known) if state.rung < known.rung => {
                known.seen_at = known.seen_at.max(state.seen_at);
                known.as_of = known.as_of.max(state.as_of);
            }
            Some(known) if state.rung == known.rung && state.seen_at < known.seen_at => {}
            // Answers may land in another order than they were read. A rung that was reached stays reached.
            Some(known) => {
                entry.bytes_at = Some(state.seen_at);
                let (seen_at, as_of) = (known.seen_at.max(state.seen_at), known.as_of.max(state.as_of));
                *known = JobState { seen_at, as_of, ..state };
            }
            none => {
                entry.bytes_at = Some(state.seen_at);
                *none = Some(state);
            }
        }
        self.unblock(domain, &job);
    }

    /// Records a state that was read at once. The latest read replaces the others, also where a job went back.
    pub(super) fn learn_latest(&mut self, domain: KeyDomain, state: JobState) {
        let job = state.id.clone();
        let Some(entry) = self.entry_mut(domain, &job) else { return };
        let is_older = |known: &JobState| (state.as_of, state.seen_at) < (known.as_of, known.seen_at);
        if !entry.state.as_ref().is_some_and(is_older) {
            (entry.bytes_at, entry.state) = (Some(state.seen_at), Some(state));
            self.unblock(domain, &job);
        }
    }

    /// Forgets the state of a job. `interested` are its waits, which need an answer again, `polls` its polls.
    pub(super) fn forget<'a>(
        &mut self,
        domain: KeyDomain,
        job: &JobId,
        interested: Vec<(Goal, WaitId)>,
        polls: impl Iterator<Item = (PollId, &'a PollSpec)>,
    ) {
        let Some(entry) = self.entry_mut(domain, job) else { return };
        (entry.state, entry.bytes_at) = (None, None);
        entry.interested.extend(interested);
        for (id, PollSpec { jobs, goal, .. }) in polls {
            if let Some(entry) = self.entry_mut(domain, job) {
                entry.blocked_polls.insert((*goal, id), jobs.clone());
            }
            for job in jobs {
                if let Some(entry) = self.entry_mut(domain, job) {
                    entry.solely_blocked_polls.remove(&(*goal, id));
                }
            }
            self.record_sole_blocker(domain, id, *goal, jobs);
        }
    }

    /// Takes the job out of the blockers of the polls whose goal it has reached.
    fn unblock(&mut self, domain: KeyDomain, job: &JobId) {
        let Some(entry) = self.entry_mut(domain, job) else { return };
        let Some(rung) = entry.rung() else { return };
        let still_blocked = entry.blocked_polls.split_off(&(Goal::Rung(rung), PollId(u64::MAX)));
        for ((goal, id), jobs) in std::mem::replace(&mut entry.blocked_polls, still_blocked) {
            if let Some(entry) = self.entry_mut(domain, job) {
                entry.solely_blocked_polls.remove(&(goal, id));
            }
            self.record_sole_blocker(domain, id, goal, &jobs);
        }
    }

    /// Records the blocker of a poll if it is the only one.
    fn record_sole_blocker(&mut self, domain: KeyDomain, id: PollId, goal: Goal, jobs: &JobSet) {
        if let Some(job) = self.sole_blocker(domain, goal, jobs)
            && let Some(entry) = self.entry_mut(domain, job)
        {
            entry.solely_blocked_polls.insert((goal, id));
        }
    }

    /// Returns the only one of these jobs that was not seen at the goal.
    fn sole_blocker<'a>(&self, domain: KeyDomain, goal: Goal, jobs: &'a JobSet) -> Option<&'a JobId> {
        let mut blockers = jobs.iter().filter(|job| !self.is_at(domain, job, goal));
        blockers.next().filter(|_| blockers.next().is_none())
    }

    fn entry(&self, domain: KeyDomain, job: &JobId) -> Option<&JobEntry> {
        self.0.get(&domain)?.get(job)
    }

    fn entry_mut(&mut self, domain: KeyDomain, job: &JobId) -> Option<&mut JobEntry> {
        self.0.get_mut(&domain)?.get_mut(job)
    }

    /// Takes a wait or a poll out of the entries of its jobs, and drops the entries that are left without either.
    fn remove(&mut self, domain: KeyDomain, jobs: &JobSet, mut take_out: impl FnMut(&mut JobEntry)) {
        let Some(entries) = self.0.get_mut(&domain) else { return };
        for job in jobs {
            let Some(entry) = entries.get_mut(job) else { continue };
            take_out(entry);
            if entry.waits.is_empty() && entry.polls.is_empty() {
                entries.remove(job);
            }
        }
        if entries.is_empty() {
            self.0.remove(&domain);
        }
    }

    /// Asserts that the index is exactly the one that follows from these waits and polls.
    pub(super) fn check<'a>(
        &self,
        waits: impl Iterator<Item = (WaitId, KeyDomain, &'a JobSet, Goal)>,
        polls: impl Iterator<Item = (PollId, &'a PollSpec)>,
    ) {
        let mut all = Map::<(KeyDomain, &JobId), JobEntry>::default();
        let mut owners = Map::<PollId, usize>::default();
        for (id, domain, jobs, goal) in waits {
            for job in jobs {
                let entry = all.entry((domain, job)).or_default();
                entry.waits.insert(id);
                entry.interested.insert((goal, id));
            }
        }
        for (id, PollSpec { domain, jobs, goal, .. }) in polls {
            for job in jobs {
                let entry = all.entry((*domain, job)).or_default();
                entry.polls.insert(id);
                entry.owned_polls.insert(id);
                if !self.is_at(*domain, job, *goal) {
                    entry.blocked_polls.insert((*goal, id), jobs.clone());
                }
            }
            if let Some(job) = self.sole_blocker(*domain, *goal, jobs) {
                all.entry((*domain, job)).or_default().solely_blocked_polls.insert((*goal, id));
            }
            owners.insert(id, 0);
        }
        assert!(self.0.values().all(|entries| !entries.is_empty()));
        assert_eq!(self.count(), all.len());
        for ((domain, job), expected) in all {
            let entry = self.entry(domain, job).expect("the job of a wait or a poll is in the index");
            assert_eq!(entry.waits, expected.waits, "{job}");
            assert!(entry.interested.is_subset(&expected.interested), "{job}");
            assert_eq!(entry.polls, expected.polls, "{job}");
            assert_eq!(entry.blocked_polls, expected.blocked_polls, "{job}");
            assert_eq!(entry.solely_blocked_polls, expected.solely_blocked_polls, "{job}");
            assert!(entry.owned_polls.is_subset(&expected.owned_polls), "{job}");
            entry.owned_polls.iter().for_each(|id| *owners.entry(*id).or_default() += 1);
        }
        assert!(owners.values().all(|count| *count == 1), "{owners:?}");
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
    use crate::core::job::ResponseHead;
    use crate::core::route::{Form, Route};

    const KEY: KeyDomain = KeyDomain([0; 16]);

    fn jobs(ids: &str) -> JobSet {
        JobSet::new(ids.split(' ').map(|id| JobId::new(id).unwrap()))
    }

    fn rung(word: &str) -> Rung {
        Route::suno().ladder.rung(word).unwrap()
    }

    fn state(id: &str, word: &str) -> JobState {
        let (id, head, seen_at) = (JobId::new(id).unwrap(), Arc::new(ResponseHead::default()), clock::now());
        JobState { id, rung: Some(rung(word)), body: Bytes::new(), head, seen_at, as_of: seen_at }
    }

    /// Returns an index with a thousand waits and polls, each on a job of its own and on one that all share.
    fn thousand_waits() -> JobIndex {
        let (mut index, goal) = (JobIndex::default(), Goal::Rung(rung("completed")));
        for n in 0..1000 {
            let jobs = jobs(&format!("shared own{n}"));
            index.add_wait(WaitId(n), KEY, &jobs, goal);
            index.add_poll(PollId(n), &PollSpec { domain: KEY, form: Form::Multi, jobs, goal });
        }
        index
    }

    #[test]
    fn a_wait_for_two_jobs_finds_its_poll_among_thousands_that_share_one_of_them() {
        let index = thousand_waits();
        for n in [0, 7, 999] {
            let found: Vec<PollId> = index.polls_within(KEY, &jobs(&format!("shared own{n}"))).collect();
            assert!(found.contains(&PollId(n)) && found.len() <= 2, "{n}: {found:?}");
        }
    }

    #[test]
    fn only_a_poll_that_one_job_alone_blocks_can_prove_the_state_of_that_job() {
        let (mut index, goal) = (thousand_waits(), Goal::Rung(rung("completed")));
        let shared = JobId::new("shared").unwrap();
        index.learn(KEY, state("shared", "streaming"));
        assert_eq!(index.solely_blocked_by(KEY, &shared, goal).count(), 0);
        index.learn(KEY, state("own7", "complete"));
        assert_eq!(index.solely_blocked_by(KEY, &shared, goal).collect::<Vec<_>>(), [PollId(7)]);
        index.learn(KEY, state("shared", "complete"));
        assert_eq!(index.solely_blocked_by(KEY, &shared, goal).count(), 0);
        let own = JobId::new("own8").unwrap();
        assert_eq!(index.solely_blocked_by(KEY, &own, goal).collect::<Vec<_>>(), [PollId(8)]);
    }

    #[test]
    fn a_state_is_delivered_to_the_waits_that_need_it_and_do_not_have_it() {
        let (mut index, goal) = (thousand_waits(), Goal::Rung(rung("completed")));
        let shared = JobId::new("shared").unwrap();
        index.learn(KEY, state("shared", "streaming"));
        assert_eq!(index.interested(KEY, &shared).count(), 0);
        index.learn(KEY, state("shared", "complete"));
        assert_eq!(index.interested(KEY, &shared).count(), 1000);
        (1..1000).for_each(|n| index.clear_interest(WaitId(n), KEY, &shared, goal));
        index.learn(KEY, state("shared", "complete"));
        assert_eq!(index.interested(KEY, &shared).collect::<Vec<_>>(), [WaitId(0)]);
    }
}
