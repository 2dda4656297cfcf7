//! Interest: the jobs that clients lately asked for with plain requests, one job at a time.
//!
//! A plain request asks for the state at once and accepts an answer from proof. A job that is asked for repeatedly is
//! worth a watch.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::types::WaitId;
use crate::core::Map;
use crate::core::job::{JobId, KeyDomain};

/// Most jobs remembered. A job that was not asked for the longest goes first, and loses no more than its next watch.
const MAX_JOBS: usize = 4096;

type JobKey = (KeyDomain, JobId);

/// Plain requests for one job, as long as none comes later than `watch_idle` after the one before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interest {
    pub(super) last_asked: Instant,
    /// Wait of the last request.
    pub(super) asked_by: WaitId,
    /// Whether there was more than one request.
    pub(super) is_repeated: bool,
    /// Whether the answer to one of the requests may be cached.
    pub(super) keep: bool,
    /// Answers from proof less the watches that were opened (P4).
    credit: i32,
    turn: u64,
}

/// All jobs asked for within `watch_idle`. Never iterated in the order of the map.
#[derive(Debug, Default)]
pub(super) struct Interests {
    jobs: Map<JobKey, Interest>,
    /// Each job by the turn of its last request.
    by_turn: BTreeMap<u64, JobKey>,
    next_turn: u64,
}

impl Interests {
    /// Records a plain request. Forgets the jobs that were not asked for within `idle`.
    pub(super) fn ask(
        &mut self,
        (domain, job): (KeyDomain, &JobId),
        asked_by: WaitId,
        keep: bool,
        idle: Duration,
        now: Instant,
    ) {
        self.forget_idle(idle, now);
        let key = (domain, job.clone());
        let turn = self.next_turn;
        self.next_turn += 1;
        let before = self.jobs.get(&key).copied();
        if let Some(before) = before {
            self.by_turn.remove(&before.turn);
        } else if self.jobs.len() >= MAX_JOBS
            && let Some((_, oldest)) = self.by_turn.pop_first()
        {
            self.jobs.remove(&oldest);
        }
        self.by_turn.insert(turn, key.clone());
        let interest = Interest {
            last_asked: now,
            asked_by,
            is_repeated: before.is_some(),
            keep: keep || before.is_some_and(|before| before.keep),
            credit: before.map_or(0, |before| before.credit),
            turn,
        };
        self.jobs.insert(key, interest);
    }

    /// Returns the interest in a job that was asked for repeatedly, the last time less than `idle` ago.
    pub(super) fn repeated(
        &self,
        domain: KeyDomain,
        job: &JobId,
        idle: Duration,
        now: Instant,
    ) -> Option<Interest> {
        let interest = self.jobs.get(&(domain, job.clone())).copied();
        interest.filter(|interest| interest.is_repeated && interest.last_asked + idle > now)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    pub(super) fn last_asked(&self, domain: KeyDomain, job: &JobId) -> Option<Instant> {
        self.jobs.get(&(domain, job.clone())).map(|interest| interest.last_asked)
    }

    /// Adds to the credit of a job: one for each call that a proof has spared.
    pub(super) fn give_credit(&mut self, domain: KeyDomain, job: &JobId) {
        if let Some(interest) = self.jobs.get_mut(&(domain, job.clone())) {
            interest.credit = interest.credit.saturating_add(1);
        }
    }

    /// Takes the price of one watch from the credit of a job. Returns false if the last watch has spared nothing yet (P4).
    pub(super) fn take_credit(&mut self, domain: KeyDomain, job: &JobId) -> bool {
        let Some(interest) = self.jobs.get_mut(&(domain, job.clone())) else { return false };
        let is_enough = interest.credit >= 0;
        interest.credit -= i32::from(is_enough);
        is_enough
    }

    fn forget_idle(&mut self, idle: Duration, now: Instant) {
        while let Some(oldest) = self.by_turn.first_entry() {
            if self.jobs.get(oldest.get()).is_some_and(|interest| interest.last_asked + idle > now) {
                return;
            }
            self.jobs.remove(&oldest.remove());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const KEY: KeyDomain = KeyDomain([0; 16]);
    const IDLE: Duration = Duration::from_secs(20);

    fn job(number: usize) -> JobId {
        JobId::new(&format!("j{number}")).unwrap()
    }

    #[test]
    fn the_job_that_was_not_asked_for_the_longest_is_forgotten_first() {
        let (mut interests, now) = (Interests::default(), clock::now());
        let mut ask = |number| interests.ask((KEY, &job(number)), WaitId(0), true, IDLE, now);
        (0..MAX_JOBS).for_each(&mut ask);
        ask(0);
        ask(MAX_JOBS);
        ask(1);
        assert_eq!((interests.jobs.len(), interests.by_turn.len()), (MAX_JOBS, MAX_JOBS));
        let is_repeated = |number| interests.repeated(KEY, &job(number), IDLE, now).is_some();
        assert_eq!((is_repeated(0), is_repeated(1)), (true, false));
    }

    #[test]
    fn a_job_is_forgotten_once_it_was_not_asked_for_in_time() {
        let (mut interests, now) = (Interests::default(), clock::now());
        interests.ask((KEY, &job(0)), WaitId(0), true, IDLE, now);
        interests.ask((KEY, &job(1)), WaitId(1), true, IDLE, now + IDLE);
        assert_eq!((interests.jobs.len(), interests.by_turn.len()), (1, 1));
    }
}
