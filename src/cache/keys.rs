//! Proof of keys: which key domains the upstream has accepted (P11), and the list format of each on each route.
//!
//! ```text
//!                2xx                 403                 2xx to a later request
//!  unknown ────────────▶ accepted ────────▶ suspended ──────────────────────────▶ accepted
//!     ▲                     │                   │
//!     └──────── 401 ────────┴───────────────────┘   a 401 ends the epoch: entries stored under it become invalid
//! ```
//!
//! | state | cache hits | waits count for |
//! | --- | --- | --- |
//! | unknown | no | the address |
//! | accepted | until `cache.key_recheck_interval` has passed | the key |
//! | suspended | no | the key |
//!
//! Bounded: the least recently used key is removed, and the upstream must accept it again.

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use foldhash::quality::RandomState;
use moka::policy::EvictionPolicy;
use parking_lot::Mutex;

use crate::core::job::{KeyDomain, RouteIndex};
use crate::core::job_body::ListShape;

/// The most keys in memory. `tests/cache_memory.rs` measures their memory.
const MAX_KEYS: u64 = 100_000;

/// Proof that the upstream has accepted a key. A copy of the state at one moment.
#[derive(Clone, Copy, Debug)]
pub struct KeyProof {
    pub(super) epoch: u64,
    /// Start of the newest accepted request. `None`: a 403 came later, and the key is suspended.
    pub(super) accepted_at: Option<Instant>,
    /// Time of the last 401 or 403. States that were seen before it prove nothing (P11).
    pub(super) rejected_at: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct KeyTable {
    records: moka::sync::Cache<KeyDomain, KeyRecord, RandomState>,
    /// The list format of each key on each route. Arrays, the most common format, are kept with `[cluster]` only.
    list_shapes: moka::sync::Cache<(KeyDomain, RouteIndex), Arc<ListShape>, RandomState>,
    /// Serialises changes, so that an acceptance in progress cannot undo a rejection.
    write_lock: Mutex<()>,
    next_epoch: AtomicU64,
    keeps_arrays: AtomicBool,
}

#[derive(Clone, Copy, Debug)]
struct KeyRecord {
    epoch: u64,
    /// Whether the upstream has accepted the key and has not answered 401 since.
    is_proven: bool,
    /// Start of the newest accepted request. `None` after a rejection.
    accepted_at: Option<Instant>,
    /// Time of the last 401 or 403.
    rejected_at: Option<Instant>,
    /// Time at which all jobs of the key counted as changed.
    changed_at: Option<Instant>,
}

impl KeyTable {
    pub(super) fn new() -> Self {
        Self {
            records: bounded(),
            list_shapes: bounded(),
            write_lock: Mutex::new(()),
            next_epoch: AtomicU64::new(0),
            keeps_arrays: AtomicBool::new(false),
        }
    }

    pub(super) fn domains(&self) -> impl Iterator<Item = KeyDomain> + '_ {
        self.records.iter().map(|(domain, _)| *domain)
    }

    /// Returns the proof of an accepted or suspended key.
    pub(super) fn proof(&self, domain: KeyDomain) -> Option<KeyProof> {
        let KeyRecord { epoch, is_proven, accepted_at, rejected_at, .. } = self.records.get(&domain)?;
        is_proven.then_some(KeyProof { epoch, accepted_at, rejected_at })
    }

    /// Records a 2xx to a request that started at `began`. The upstream checks the key when a request arrives. A request
    /// that started before a rejection therefore proves nothing about the time after it.
    pub(super) fn key_accepted(&self, domain: KeyDomain, began: Instant) {
        let _guard = self.write_lock.lock();
        let known = self.records.get(&domain);
        if known.is_some_and(|known| known.is_rejected_since(began)) {
            return;
        }
        let epoch = match known {
            Some(known) if known.is_proven => known.epoch,
            Some(_) | None => self.new_epoch(),
        };
        let accepted_at = known.and_then(|known| known.accepted_at).max(Some(began));
        let rejected_at = known.and_then(|known| known.rejected_at);
        let changed_at = known.and_then(|known| known.changed_at);
        let accepted = KeyRecord { epoch, is_proven: true, accepted_at, rejected_at, changed_at };
        self.records.insert(domain, accepted);
    }

    /// Records a 401.
    pub(super) fn key_rejected(&self, domain: KeyDomain, now: Instant) {
        let _guard = self.write_lock.lock();
        let changed_at = self.records.get(&domain).and_then(|known| known.changed_at);
        let (epoch, rejected_at) = (self.new_epoch(), Some(now));
        let rejected = KeyRecord { epoch, is_proven: false, accepted_at: None, rejected_at, changed_at };
        self.records.insert(domain, rejected);
    }

    /// Records a 403.
    pub(super) fn key_forbidden(&self, domain: KeyDomain, now: Instant) {
        let _guard = self.write_lock.lock();
        let known = self.records.get(&domain).unwrap_or_else(|| self.unknown());
        let forbidden = KeyRecord { accepted_at: None, rejected_at: Some(now), ..known };
        self.records.insert(domain, forbidden);
    }

    /// Records that all jobs of a key changed: entries stored under the epoch become invalid. The verdict on the key stays.
    pub(super) fn jobs_changed(&self, domain: KeyDomain, now: Instant) {
        let _guard = self.write_lock.lock();
        let known = self.records.get(&domain).unwrap_or_else(|| self.unknown());
        let changed = KeyRecord { epoch: self.new_epoch(), changed_at: Some(now), ..known };
        self.records.insert(domain, changed);
    }

    /// Returns whether all jobs of the key changed at `began` or later.
    pub(super) fn is_changed_since(&self, domain: KeyDomain, began: Instant) -> bool {
        let is_since = |known: KeyRecord| known.changed_at.is_some_and(|changed_at| changed_at >= began);
        self.records.get(&domain).is_some_and(is_since)
    }

    fn unknown(&self) -> KeyRecord {
        let epoch = self.new_epoch();
        KeyRecord { epoch, is_proven: false, accepted_at: None, rejected_at: None, changed_at: None }
    }

    /// Returns whether the upstream answered 401 or 403 at `began` or later.
    pub(super) fn is_rejected_since(&self, domain: KeyDomain, began: Instant) -> bool {
        self.records.get(&domain).is_some_and(|known| known.is_rejected_since(began))
    }

    /// Returns the format of the upstream's last list of a route for this key. An array before the first list.
    pub(super) fn list_shape(&self, domain: KeyDomain, route: RouteIndex) -> Arc<ListShape> {
        self.known_list_shape(domain, route).unwrap_or_default()
    }

    /// Returns the format of the upstream's last list of a route for this key, if there was one.
    pub(super) fn known_list_shape(&self, domain: KeyDomain, route: RouteIndex) -> Option<Arc<ListShape>> {
        self.list_shapes.get(&(domain, route))
    }

    pub(super) fn keep_array_shapes(&self) {
        self.keeps_arrays.store(true, Ordering::Relaxed);
    }

    pub(super) fn set_list_shape(&self, domain: KeyDomain, route: RouteIndex, shape: &ListShape) {
        let key = (domain, route);
        let is_kept = *shape != ListShape::Array || self.keeps_arrays.load(Ordering::Relaxed);
        match self.list_shapes.get(&key) {
            None if !is_kept => {}
            Some(_) if !is_kept => self.list_shapes.invalidate(&key),
            Some(known) if *known == *shape => {}
            Some(_) | None => self.list_shapes.insert(key, Arc::new(shape.clone())),
        }
    }

    fn new_epoch(&self) -> u64 {
        self.next_epoch.fetch_add(1, Ordering::Relaxed)
    }
}

impl KeyRecord {
    fn is_rejected_since(&self, began: Instant) -> bool {
        self.rejected_at.is_some_and(|rejected_at| rejected_at >= began)
    }
}

fn bounded<K, V>() -> moka::sync::Cache<K, V, RandomState>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    moka::sync::Cache::builder()
        .max_capacity(MAX_KEYS)
        .eviction_policy(EvictionPolicy::lru())
        .build_with_hasher(RandomState::default())
}
