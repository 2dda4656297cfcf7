//! Generations: counters of changes. An answer that was kept with their values is right while they stay the same.
//!
//! | counter | changes with |
//! | --- | --- |
//! | `all` | a reload of the configuration, a removal by an operator here or at a sibling |
//! | `keys` | a 401 or 403 to this key domain |
//! | `jobs` | a stored state of this job, an action on it, a contradiction, a 404 |
//!
//! Each change is applied first and counted then. The gateway reads the counters first and the state then, so an answer
//! from before a change has a count from before it. An expiry changes no counter: the kept answer has its time.
//!
//! Keys and jobs share counters by their hashes, so a change can also end answers that it does not concern.

use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_utils::CachePadded;
use foldhash::quality::RandomState;

use crate::core::job::{JobId, KeyDomain};

/// Counters for keys, and as many for jobs: 32 KiB each.
const COUNTERS: usize = 4096;

#[derive(Debug)]
pub(super) struct Generations {
    /// Padded: each hit reads it.
    all: CachePadded<AtomicU64>,
    keys: Box<[AtomicU64]>,
    jobs: Box<[AtomicU64]>,
    hasher: RandomState,
}

/// Counts of everything that the answer to one key about one job depends on, at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Generation {
    all: u64,
    key: Counted,
    job: Counted,
}

#[derive(Clone, Copy, Debug)]
struct Counted {
    index: usize,
    count: u64,
}

impl Generations {
    pub(super) fn new() -> Self {
        let counters = || (0..COUNTERS).map(|_| AtomicU64::new(0)).collect();
        Self {
            all: CachePadded::default(),
            keys: counters(),
            jobs: counters(),
            hasher: RandomState::default(),
        }
    }

    pub(super) fn everything_changed(&self) {
        self.all.fetch_add(1, Ordering::Release);
    }

    pub(super) fn key_changed(&self, domain: KeyDomain) {
        self.keys[self.index(&domain)].fetch_add(1, Ordering::Release);
    }

    /// Counts a change of the job and of all its variants.
    pub(super) fn job_changed(&self, domain: KeyDomain, job: &JobId) {
        self.jobs[self.job_index(domain, job)].fetch_add(1, Ordering::Release);
    }

    /// Returns the count of changes that concern all answers.
    pub(super) fn all(&self) -> u64 {
        self.all.load(Ordering::Acquire)
    }

    /// Returns the counts of now for this key and job; `all` is from the moment when the answer was begun.
    pub(super) fn generation(&self, all: u64, domain: KeyDomain, job: &JobId) -> Generation {
        let counted = |counters: &[AtomicU64], index: usize| Counted {
            index,
            count: counters[index].load(Ordering::Acquire),
        };
        Generation {
            all,
            key: counted(&self.keys, self.index(&domain)),
            job: counted(&self.jobs, self.job_index(domain, job)),
        }
    }

    /// Returns whether no change has been counted since.
    pub(super) fn is_current(&self, Generation { all, key, job }: Generation) -> bool {
        let is_unchanged = |counters: &[AtomicU64], Counted { index, count }| {
            counters[index].load(Ordering::Acquire) == count
        };
        self.all() == all && is_unchanged(&self.keys, key) && is_unchanged(&self.jobs, job)
    }

    #[cfg(test)]
    pub(super) fn shares_counters(&self, keys: [KeyDomain; 2], jobs: [&JobId; 2]) -> bool {
        let [one, other] = jobs.map(|job| self.job_index(keys[0], job));
        one == other || self.index(&keys[0]) == self.index(&keys[1])
    }

    fn job_index(&self, domain: KeyDomain, job: &JobId) -> usize {
        self.index(&(domain, job.without_params()))
    }

    fn index(&self, of: &impl std::hash::Hash) -> usize {
        usize::try_from(self.hasher.hash_one(of) % COUNTERS as u64).unwrap_or_default()
    }
}
