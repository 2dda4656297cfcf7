//! The keys that the upstream has accepted or refused, and how it answers each of them with a list.
//!
//! ```text
//!   KeyDomain ─▶ unknown ── 2xx ──▶ accepted ── 403 ──▶ doubted ── 2xx to a later request ──▶ accepted
//!                   ▲                   │                  │
//!                   └─────── 401 ───────┴──────────────────┘   the epoch ends: all stored under it is void
//! ```
//!
//! Bounded; the longest unused key is forgotten, and has to be proven again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use foldhash::quality::RandomState;
use moka::policy::EvictionPolicy;
use parking_lot::Mutex;

use crate::core::job::KeyDomain;
use crate::core::job_body::ListShape;

/// The keys that are remembered.
const MAX_KEYS: u64 = 100_000;

/// That the upstream has accepted a key, as far as was known a moment ago.
#[derive(Clone, Copy, Debug)]
pub struct KeyProof {
    pub(super) epoch: u64,
    /// When the newest request began that was accepted; `None`: a 403 came since, hits need a new proof.
    pub(super) accepted_at: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct KeyTable {
    records: moka::sync::Cache<KeyDomain, KeyRecord, RandomState>,
    /// The outer shape of each key's lists. An array, the usual one, is not listed.
    list_shapes: moka::sync::Cache<KeyDomain, Arc<ListShape>, RandomState>,
    /// Held while a domain is changed, so that a refusal cannot be undone by an acceptance under way.
    write_lock: Mutex<()>,
    next_epoch: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
struct KeyRecord {
    epoch: u64,
    /// Whether the upstream has accepted the key, and has not answered 401 since.
    is_proven: bool,
    /// When the newest request began that the upstream accepted the key of; `None` after a refusal.
    accepted_at: Option<Instant>,
    /// When the upstream last answered 401 or 403.
    rejected_at: Option<Instant>,
}

impl KeyTable {
    pub(super) fn new() -> Self {
        Self {
            records: by_domain(),
            list_shapes: by_domain(),
            write_lock: Mutex::new(()),
            next_epoch: AtomicU64::new(0),
        }
    }

    /// Returns the proof of a key that the upstream has accepted, and has not answered 401 since.
    pub(super) fn proof(&self, domain: KeyDomain) -> Option<KeyProof> {
        let KeyRecord { epoch, is_proven: is_known, accepted_at, .. } = self.records.get(&domain)?;
        is_known.then_some(KeyProof { epoch, accepted_at })
    }

    /// Records a success of a request that began at `began`. The upstream checks the key when a request comes: one that
    /// began before a refusal says nothing of the time after it.
    pub(super) fn key_accepted(&self, domain: KeyDomain, began: Instant) {
        let _changing = self.write_lock.lock();
        let known = self.records.get(&domain);
        if known.is_some_and(|known| known.is_rejected_since(began)) {
            return;
        }
        let epoch = match known {
            Some(known) if known.is_proven => known.epoch,
            Some(_) | None => self.new_epoch(),
        };
        let accepted_at = known.and_then(|known| known.accepted_at).max(Some(began));
        let refused_at = known.and_then(|known| known.rejected_at);
        self.records
            .insert(domain, KeyRecord { epoch, is_proven: true, accepted_at, rejected_at: refused_at });
    }

    /// Records a 401.
    pub(super) fn key_rejected(&self, domain: KeyDomain, now: Instant) {
        let _changing = self.write_lock.lock();
        let epoch = self.new_epoch();
        let refused = KeyRecord { epoch, is_proven: false, accepted_at: None, rejected_at: Some(now) };
        self.records.insert(domain, refused);
    }

    /// Records a 403.
    pub(super) fn key_forbidden(&self, domain: KeyDomain, now: Instant) {
        let _changing = self.write_lock.lock();
        let (epoch, is_known) = match self.records.get(&domain) {
            Some(known) => (known.epoch, known.is_proven),
            None => (self.new_epoch(), false),
        };
        self.records.insert(
            domain,
            KeyRecord { epoch, is_proven: is_known, accepted_at: None, rejected_at: Some(now) },
        );
    }

    /// Whether the upstream has answered 401 or 403 at `began` or later.
    pub(super) fn is_rejected_since(&self, domain: KeyDomain, began: Instant) -> bool {
        self.records.get(&domain).is_some_and(|known| known.is_rejected_since(began))
    }

    /// Returns how the upstream last answered this key with a list; an array before the first one.
    pub(super) fn list_shape(&self, domain: KeyDomain) -> Arc<ListShape> {
        self.list_shapes.get(&domain).unwrap_or_default()
    }

    pub(super) fn set_list_shape(&self, domain: KeyDomain, shape: &ListShape) {
        match (self.list_shapes.get(&domain), shape) {
            (None, ListShape::Array) => {}
            (Some(_), ListShape::Array) => self.list_shapes.invalidate(&domain),
            (Some(known), shape) if *known == *shape => {}
            (_, shape) => self.list_shapes.insert(domain, Arc::new(shape.clone())),
        }
    }

    fn new_epoch(&self) -> u64 {
        self.next_epoch.fetch_add(1, Ordering::Relaxed)
    }
}

impl KeyRecord {
    fn is_rejected_since(&self, began: Instant) -> bool {
        self.rejected_at.is_some_and(|refused_at| refused_at >= began)
    }
}

fn by_domain<V: Clone + Send + Sync + 'static>() -> moka::sync::Cache<KeyDomain, V, RandomState> {
    moka::sync::Cache::builder()
        .max_capacity(MAX_KEYS)
        .eviction_policy(EvictionPolicy::lru())
        .build_with_hasher(RandomState::default())
}
