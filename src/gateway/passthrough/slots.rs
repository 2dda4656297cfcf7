//! Bounds the requests that are passed through at once: in all, and of one key, member or address.
//!
//! A slot is taken before the request goes up and given back by `Drop`, when the last of its upload, its answer and its
//! tunnel has ended. The map holds at most one entry a slot, so `limits.max_passthrough` bounds it.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::limits::Subject;

/// The slots. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Slots(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    max: usize,
    max_per_key: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// Every entry is at least 1.
    of: HashMap<Subject, usize>,
}

/// One request that is passed through. Dropping it makes room for another.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Slots,
    subject: Subject,
}

/// Why a request may not be passed through now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SlotError {
    /// The key, member or address has `limits.max_passthrough_per_key` open.
    #[error("this key has too many passed-through requests open; try again when one has ended")]
    FullForKey,
    /// `limits.max_passthrough` are open.
    #[error("the gateway passes through as many requests as it may; try again")]
    Full,
}

impl Slots {
    /// Creates `max` slots, of which one key, member or address may hold `max_per_key`.
    pub(crate) fn new(max: usize, max_per_key: usize) -> Self {
        Self(Arc::new(Shared { max, max_per_key, taken: Mutex::default() }))
    }

    /// Takes a slot.
    pub(crate) fn take(&self, who: Subject) -> Result<Slot, SlotError> {
        let Shared { max, max_per_key, taken } = &*self.0;
        let mut taken = taken.lock();
        let own = taken.of.get(&who).copied().unwrap_or_default();
        if own >= *max_per_key {
            return Err(SlotError::FullForKey);
        }
        if taken.all >= *max {
            return Err(SlotError::Full);
        }
        taken.all += 1;
        taken.of.insert(who, own + 1);
        Ok(Slot { slots: self.clone(), subject: who })
    }

    /// Returns the number of slots in use.
    pub(crate) fn taken(&self) -> usize {
        self.0.taken.lock().all
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.0.taken.lock();
        taken.all -= 1;
        match taken.of.get_mut(&self.subject) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(taken.of.remove(&self.subject)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_its_share_and_all_together_have_a_bound() {
        let slots = Slots::new(3, 2);
        let [ann, bob] = ["ann", "bob"].map(Subject::member);
        let first = slots.take(ann).unwrap();
        let _second = slots.take(ann).unwrap();
        assert_eq!(slots.take(ann).unwrap_err(), SlotError::FullForKey);
        let _third = slots.take(bob).unwrap();
        assert_eq!(slots.take(bob).unwrap_err(), SlotError::Full);
        assert_eq!(slots.take(ann).unwrap_err(), SlotError::FullForKey, "its own share is told first");
        drop(first);
        let _fourth = slots.take(bob).unwrap();
        assert_eq!(slots.taken(), 3);
    }

    #[test]
    fn what_is_given_back_leaves_nothing_behind() {
        let slots = Slots::new(100, 10);
        let taken: Vec<_> =
            (0..50).map(|n| slots.take(Subject::member(&(n % 5).to_string())).unwrap()).collect();
        assert_eq!((slots.taken(), slots.0.taken.lock().of.len()), (50, 5));
        drop(taken);
        assert_eq!((slots.taken(), slots.0.taken.lock().of.len()), (0, 0));
    }
}
