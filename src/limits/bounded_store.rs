//! A store of bounded size for governor's counts. governor's own stores grow with the number of keys.
//!
//! ```text
//!   check ──▶ recent ── full ──▶ previous ── full again ──▶ removed
//!               ▲                   │
//!               └── counted again ──┘
//! ```
//!
//! A removed subject has its whole burst again, nothing more. So a flood of invented keys gains nothing, and removes no
//! subject that keeps sending requests.

use std::collections::HashMap;
use std::hash::BuildHasher as _;

use foldhash::quality::RandomState;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::state::keyed::ShrinkableKeyedStateStore;
use parking_lot::Mutex;

use super::Subject;

/// Shards of the store for all subjects without their own quota.
const SHARDS: usize = 64;

/// The most subjects in one generation of a shard. They fill a hash table of 4096 slots.
const GENERATION_SIZE: usize = 3584;

/// A check of one subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct StoreKey {
    pub(super) subject: Subject,
    pub(super) effect: StoreEffect,
}

/// Effect of a check on the count of its subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum StoreEffect {
    /// Stores the count of a check that passed, later by so many nanoseconds.
    Count { surcharge: u64 },
    /// None.
    Peek,
    /// Stores this count if it is later, whether the check passes or not.
    Raise(u64),
}

/// Counts by subject, at most 458,752 (two generations in 64 shards).
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
    /// Returns a store for many subjects.
    pub(super) fn sharded() -> Self {
        Self::with_shards(SHARDS)
    }

    /// Returns a store for one subject, or few.
    pub(super) fn single_shard() -> Self {
        Self::with_shards(1)
    }

    fn with_shards(shards: usize) -> Self {
        Self { shards: (0..shards).map(|_| Mutex::default()).collect(), hasher: RandomState::default() }
    }

    fn shard(&self, subject: &Subject) -> &Mutex<Shard> {
        let hash = self.hasher.hash_one(subject) % self.shards.len() as u64;
        &self.shards[usize::try_from(hash).expect("it is below a length")]
    }
}

impl StateStore for BoundedStore {
    type Key = StoreKey;

    fn measure_and_replace<T, F, E>(&self, key: &StoreKey, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut shard = self.shard(&key.subject).lock();
        let decide = |before: Option<Nanos>| {
            let decided = f(before);
            let stored = match key.effect {
                // A rejected check puts the old count again, so that the subject stays in the recent generation.
                StoreEffect::Count { surcharge } => {
                    decided.as_ref().map_or(before, |(_, after)| Some(*after + Nanos::new(surcharge)))
                }
                StoreEffect::Peek => None,
                StoreEffect::Raise(to) => {
                    Some(Nanos::new(to)).filter(|to| before.is_none_or(|before| before < *to))
                }
            };
            (decided.map(|(decision, _)| decision), stored)
        };
        // Most subjects are here: one lookup reads and writes.
        if let Some(state) = shard.recent.get_mut(&key.subject) {
            let (decision, stored) = decide(Some(*state));
            *state = stored.unwrap_or(*state);
            return decision;
        }
        let (decision, stored) = decide(shard.previous.get(&key.subject).copied());
        if let Some(state) = stored {
            shard.put_recent(key.subject, state);
        }
        decision
    }
}

impl ShrinkableKeyedStateStore<StoreKey> for BoundedStore {
    fn retain_recent(&self, drop_below: Nanos) {
        for shard in &self.shards {
            let Shard { recent, previous } = &mut *shard.lock();
            for generation in [recent, previous] {
                generation.retain(|_, state| *state > drop_below);
            }
        }
    }

    fn shrink_to_fit(&self) {
        for shard in &self.shards {
            let Shard { recent, previous } = &mut *shard.lock();
            recent.shrink_to_fit();
            previous.shrink_to_fit();
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
    /// Stores a subject that is not in the recent generation.
    fn put_recent(&mut self, subject: Subject, state: Nanos) {
        self.previous.remove(&subject);
        if self.recent.len() >= GENERATION_SIZE {
            self.previous = std::mem::take(&mut self.recent);
        }
        self.recent.insert(subject, state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNT: StoreEffect = StoreEffect::Count { surcharge: 0 };

    fn key(n: u64) -> Subject {
        Subject::member(&n.to_string())
    }

    fn put(store: &BoundedStore, subject: Subject) {
        let check = StoreKey { subject, effect: COUNT };
        store.measure_and_replace(&check, |_| Ok::<_, ()>(((), Nanos::new(1)))).unwrap();
    }

    fn get(store: &BoundedStore, subject: Subject) -> Option<u64> {
        let peek = |state: Option<Nanos>| Ok::<_, ()>((state, Nanos::new(2)));
        store
            .measure_and_replace(&StoreKey { subject, effect: StoreEffect::Peek }, peek)
            .unwrap()
            .map(Nanos::as_u64)
    }

    #[test]
    fn a_flood_of_keys_ends_at_the_bound_and_spares_a_subject_that_keeps_sending() {
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
    fn a_peek_changes_nothing() {
        let store = BoundedStore::sharded();
        assert_eq!(get(&store, key(1)), None);
        assert!(store.is_empty());
        put(&store, key(1));
        assert_eq!(get(&store, key(1)), Some(1));
        assert_eq!(get(&store, key(1)), Some(1));
        assert_eq!(store.len(), 1);
    }

    #[test]
    fn a_count_is_raised_and_never_lowered() {
        let store = BoundedStore::single_shard();
        for (to, expected) in [(5, 5), (3, 5), (9, 9)] {
            let raise = StoreKey { subject: key(1), effect: StoreEffect::Raise(to) };
            let _ = store.measure_and_replace(&raise, |_| Err::<((), Nanos), _>(()));
            assert_eq!(get(&store, key(1)), Some(expected));
        }
        let check = StoreKey { subject: key(1), effect: StoreEffect::Count { surcharge: 7 } };
        store.measure_and_replace(&check, |_| Ok::<_, ()>(((), Nanos::new(10)))).unwrap();
        assert_eq!(get(&store, key(1)), Some(17));
    }

    #[test]
    fn a_subject_over_its_quota_is_not_removed_earlier() {
        let store = BoundedStore::single_shard();
        put(&store, key(0));
        for n in 1..3 * GENERATION_SIZE as u64 {
            let check = StoreKey { subject: key(0), effect: COUNT };
            assert_eq!(store.measure_and_replace(&check, |_| Err::<((), Nanos), _>(())), Err(()));
            put(&store, key(n));
        }
        assert_eq!(get(&store, key(0)), Some(1));
    }
}
