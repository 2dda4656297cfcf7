//! Who has been seen lately: governor's memory, which cannot grow without bound.
//!
//! ```text
//!   take ──▶ young ── full ──▶ old ── the next time ──▶ forgotten
//!              ▲                │
//!              └─── seen again ─┘
//! ```
//!
//! To be forgotten early is to have a whole burst again, no more; so a flood of made-up keys buys its sender
//! nothing, and takes the memory of nobody who has asked since.

use std::collections::HashMap;
use std::hash::BuildHasher as _;

use foldhash::quality::RandomState;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::state::keyed::ShrinkableKeyedStateStore;
use parking_lot::Mutex;

use super::Subject;

/// Shards of a store that many are counted in.
const SHARDS: usize = 64;

/// Keys of one generation of a shard: what fills a table of 4096 places.
const GENERATION_SIZE: usize = 3584;

/// What one of many asks of its quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct StoreKey {
    pub(super) subject: Subject,
    /// Whether it is only told what would be.
    pub(super) is_peek: bool,
}

/// A state for each of at most 458 752.
#[derive(Debug)]
pub(super) struct BoundedStore {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct Shard {
    recent: HashMap<Subject, Nanos, RandomState>,
    previous: HashMap<Subject, Nanos, RandomState>,
}

impl BoundedStore {
    /// For anybody who comes.
    pub(super) fn sharded() -> Self {
        Self::with_shards(SHARDS)
    }

    /// For one, or few.
    pub(super) fn single_shard() -> Self {
        Self::with_shards(1)
    }

    fn with_shards(shards: usize) -> Self {
        Self { shards: (0..shards).map(|_| Mutex::default()).collect(), hasher: RandomState::default() }
    }

    fn shard(&self, who: &Subject) -> &Mutex<Shard> {
        let hash = self.hasher.hash_one(who) % self.shards.len() as u64;
        &self.shards[usize::try_from(hash).expect("it is below a length")]
    }
}

impl StateStore for BoundedStore {
    type Key = StoreKey;

    fn measure_and_replace<T, F, E>(&self, ask: &StoreKey, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut shard = self.shard(&ask.subject).lock();
        let before = shard.get(&ask.subject);
        let decided = f(before);
        if !ask.is_peek
            && let Some(state) = decided.as_ref().map_or(before, |(_, after)| Some(*after))
        {
            shard.put(ask.subject, state);
        }
        decided.map(|(told, _)| told)
    }
}

impl ShrinkableKeyedStateStore<StoreKey> for BoundedStore {
    fn retain_recent(&self, drop_below: Nanos) {
        for shard in &self.shards {
            let Shard { recent: young, previous: old } = &mut *shard.lock();
            for generation in [young, old] {
                generation.retain(|_, state| *state > drop_below);
            }
        }
    }

    fn shrink_to_fit(&self) {
        for shard in &self.shards {
            let Shard { recent: young, previous: old } = &mut *shard.lock();
            young.shrink_to_fit();
            old.shrink_to_fit();
        }
    }

    fn len(&self) -> usize {
        let len = |shard: &Mutex<Shard>| {
            let shard = shard.lock();
            shard.recent.len() + shard.previous.len()
        };
        self.shards.iter().map(len).sum()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Shard {
    fn get(&self, who: &Subject) -> Option<Nanos> {
        self.recent.get(who).or_else(|| self.previous.get(who)).copied()
    }

    fn put(&mut self, who: Subject, state: Nanos) {
        if let Some(known) = self.recent.get_mut(&who) {
            *known = state;
            return;
        }
        self.previous.remove(&who);
        if self.recent.len() >= GENERATION_SIZE {
            self.previous = std::mem::take(&mut self.recent);
        }
        self.recent.insert(who, state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u64) -> Subject {
        Subject::member(&n.to_string())
    }

    fn put(store: &BoundedStore, who: Subject) {
        let ask = StoreKey { subject: who, is_peek: false };
        store.measure_and_replace(&ask, |_| Ok::<_, ()>(((), Nanos::new(1)))).unwrap();
    }

    fn get(store: &BoundedStore, who: Subject) -> Option<u64> {
        let told = |state: Option<Nanos>| Ok::<_, ()>((state, Nanos::new(2)));
        store.measure_and_replace(&StoreKey { subject: who, is_peek: true }, told).unwrap().map(Nanos::as_u64)
    }

    #[test]
    fn a_flood_of_keys_ends_at_the_bound_and_forgets_nobody_who_goes_on_asking() {
        let store = BoundedStore::single_shard();
        let flood = 5 * GENERATION_SIZE as u64;
        for n in 1..flood {
            put(&store, key(0));
            put(&store, key(n));
            assert!(store.len() <= 2 * GENERATION_SIZE, "{}", store.len());
        }
        assert_eq!(get(&store, key(0)), Some(1));
        assert_eq!(get(&store, key(flood - 1)), Some(1));
        assert_eq!(get(&store, key(1)), None);
    }

    #[test]
    fn a_look_changes_nothing() {
        let store = BoundedStore::sharded();
        assert_eq!(get(&store, key(1)), None);
        assert!(store.is_empty());
        put(&store, key(1));
        assert_eq!(get(&store, key(1)), Some(1));
        assert_eq!(get(&store, key(1)), Some(1));
        assert_eq!(store.len(), 1);
    }

    #[test]
    fn who_is_over_its_quota_is_no_less_remembered() {
        let store = BoundedStore::single_shard();
        put(&store, key(0));
        for n in 1..3 * GENERATION_SIZE as u64 {
            let ask = StoreKey { subject: key(0), is_peek: false };
            assert_eq!(store.measure_and_replace(&ask, |_| Err::<((), Nanos), _>(())), Err(()));
            put(&store, key(n));
        }
        assert_eq!(get(&store, key(0)), Some(1));
    }
}
