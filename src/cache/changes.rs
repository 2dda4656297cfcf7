//! Changes of jobs by actions (RFC 9111 section 4.4), and the variants of a job that differ in query parameters.
//!
//! ```text
//!   (KeyDomain, job without parameters) ─▶ changed_at   what a request that began before read is not stored
//!                                          stamp        entries of variants with another stamp are invalid
//! ```
//!
//! An action invalidates all variants at once by a new stamp, without a search for them. A record that is removed for room
//! costs its variants a miss.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use foldhash::quality::RandomState;
use moka::policy::EvictionPolicy;
use parking_lot::Mutex;

use crate::core::job::{JobId, KeyDomain};

/// The most records. Each has about 500 bytes.
const MAX_RECORDS: u64 = 16_384;

#[derive(Debug)]
pub(super) struct ChangeTable {
    records: moka::sync::Cache<(KeyDomain, JobId), ChangeRecord, RandomState>,
    /// False before the first record: then no lookup is needed.
    has_records: AtomicBool,
    /// Time at which all jobs of all keys counted as changed.
    all_changed_at: Mutex<Option<Instant>>,
    next_stamp: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
struct ChangeRecord {
    stamp: u64,
    changed_at: Option<Instant>,
}

impl ChangeTable {
    pub(super) fn new() -> Self {
        let records = moka::sync::Cache::builder()
            .max_capacity(MAX_RECORDS)
            .eviction_policy(EvictionPolicy::lru())
            .build_with_hasher(RandomState::default());
        let (has_records, next_stamp) = (AtomicBool::new(false), AtomicU64::new(1));
        Self { records, has_records, all_changed_at: Mutex::default(), next_stamp }
    }

    /// Records a change of a job and of all its variants.
    pub(super) fn record(&self, domain: KeyDomain, job: &JobId, now: Instant) {
        let record = ChangeRecord { stamp: self.new_stamp(), changed_at: Some(now) };
        self.insert_flag();
        self.records.insert((domain, job.without_params()), record);
    }

    /// Records a change of all jobs of all keys.
    pub(super) fn record_all(&self, now: Instant) {
        *self.all_changed_at.lock() = Some(now);
        self.insert_flag();
    }

    /// Returns whether the job changed at `began` or later.
    pub(super) fn is_changed_since(&self, domain: KeyDomain, job: &JobId, began: Instant) -> bool {
        if !self.has_records.load(Ordering::Acquire) {
            return false;
        }
        let record = self.records.get(&(domain, job.without_params()));
        let has_all_changed = || self.all_changed_at.lock().is_some_and(|changed_at| changed_at >= began);
        record.is_some_and(|record| record.is_since(began)) || has_all_changed()
    }

    /// Returns the stamp for an entry of this job.
    pub(super) fn stamp(&self, domain: KeyDomain, job: &JobId) -> u64 {
        if !job.has_params() {
            return NO_VARIANT;
        }
        self.insert_flag();
        let new = || ChangeRecord { stamp: self.new_stamp(), changed_at: None };
        self.records.get_with((domain, job.without_params()), new).stamp
    }

    /// Returns whether an entry with this stamp is still valid.
    pub(super) fn is_current(&self, domain: KeyDomain, job: &JobId, stamp: u64) -> bool {
        let record = || self.records.get(&(domain, job.without_params()));
        !job.has_params() || record().is_some_and(|record| record.stamp == stamp)
    }

    fn insert_flag(&self) {
        self.has_records.store(true, Ordering::Release);
    }

    fn new_stamp(&self) -> u64 {
        self.next_stamp.fetch_add(1, Ordering::Relaxed)
    }
}

/// The stamp of entries of jobs without parameters, which an action removes itself.
const NO_VARIANT: u64 = 0;

impl ChangeRecord {
    fn is_since(&self, began: Instant) -> bool {
        self.changed_at.is_some_and(|changed_at| changed_at >= began)
    }
}
