//! Set of polls, sorted by number. Nearly all waits are attached to one poll, which needs no allocation here; the leaf of a
//! `BTreeSet` has 104 bytes.

use std::iter::Chain;
use std::ops::Deref;
use std::{option, slice, vec};

use super::types::PollId;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum PollSet {
    #[default]
    Empty,
    One(PollId),
    /// Two or more, unless some were removed.
    Many(Vec<PollId>),
}

impl PollSet {
    /// Inserts a poll. Costs as much as there are polls: a wait for a thousand jobs has two hundred.
    pub(super) fn insert(&mut self, id: PollId) {
        let Err(at) = self.binary_search(&id) else { return };
        *self = match std::mem::take(self) {
            PollSet::Empty => PollSet::One(id),
            PollSet::One(only) => PollSet::Many(vec![only.min(id), only.max(id)]),
            PollSet::Many(mut ids) => {
                ids.insert(at, id);
                PollSet::Many(ids)
            }
        };
    }

    pub(super) fn remove(&mut self, id: PollId) {
        let Ok(at) = self.binary_search(&id) else { return };
        match self {
            PollSet::Empty => {}
            PollSet::One(_) => *self = PollSet::Empty,
            PollSet::Many(ids) => drop(ids.remove(at)),
        }
    }

    pub(super) fn contains(&self, id: &PollId) -> bool {
        self.binary_search(id).is_ok()
    }
}

impl Deref for PollSet {
    type Target = [PollId];

    fn deref(&self) -> &[PollId] {
        match self {
            PollSet::Empty => &[],
            PollSet::One(id) => slice::from_ref(id),
            PollSet::Many(ids) => ids,
        }
    }
}

impl IntoIterator for PollSet {
    type Item = PollId;
    type IntoIter = Chain<option::IntoIter<PollId>, vec::IntoIter<PollId>>;

    fn into_iter(self) -> Self::IntoIter {
        let (one, many) = match self {
            PollSet::Empty => (None, Vec::new()),
            PollSet::One(id) => (Some(id), Vec::new()),
            PollSet::Many(ids) => (None, ids),
        };
        one.into_iter().chain(many)
    }
}

impl<'a> IntoIterator for &'a PollSet {
    type Item = &'a PollId;
    type IntoIter = slice::Iter<'a, PollId>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_poll_set_has_the_polls_of_a_sorted_set_after_any_inserts_and_removals() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut set, mut expected) = (PollSet::default(), BTreeSet::new());
            for _ in 0..20 {
                let id = PollId(random.u64(..6));
                if random.bool() {
                    set.insert(id);
                    expected.insert(id);
                } else {
                    set.remove(id);
                    expected.remove(&id);
                }
                assert!(set.iter().eq(&expected), "seed {seed}: {set:?}, expected {expected:?}");
                assert!((0..6).map(PollId).all(|id| set.contains(&id) == expected.contains(&id)));
            }
            assert!(set.into_iter().eq(expected), "seed {seed}");
        }
    }
}
