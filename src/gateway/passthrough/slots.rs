//! Bounds the number of requests that are passed through at a time: in total, and of one key, member or address.
//!
//! A request takes a slot before it is sent. `Drop` gives it back, once upload, response and tunnel have all ended. The
//! map has at most one entry per slot, so `limits.max_passthrough` bounds it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use foldhash::quality::RandomState;
use parking_lot::Mutex;

use crate::limits::Subject;

/// Clones share the slots.
#[derive(Clone, Debug)]
pub(crate) struct PassthroughSlots(Arc<SharedSlots>);

#[derive(Debug)]
struct SharedSlots {
    max: usize,
    max_per_key: usize,
    taken: Mutex<SlotCounts>,
}

#[derive(Debug, Default)]
struct SlotCounts {
    total: usize,
    /// Every entry is at least 1.
    by_subject: HashMap<Subject, usize, RandomState>,
}

/// The slot of one request. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct PassthroughSlot {
    slots: PassthroughSlots,
    subject: Subject,
}

/// The exhausted bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SlotError {
    /// `limits.max_passthrough_per_key` requests of the key, member or address are in progress.
    #[error("too many passed-through requests of this key; try again when one has ended")]
    FullForKey,
    /// `limits.max_passthrough` requests are in progress.
    #[error("too many passed-through requests; try again")]
    Full,
}

impl PassthroughSlots {
    /// Creates `max` slots, at most `max_per_key` for one key, member or address.
    pub(crate) fn new(max: usize, max_per_key: usize) -> Self {
        Self(Arc::new(SharedSlots { max, max_per_key, taken: Mutex::default() }))
    }

    pub(crate) fn take(&self, subject: Subject) -> Result<PassthroughSlot, SlotError> {
        let SharedSlots { max, max_per_key, taken } = &*self.0;
        let SlotCounts { total, by_subject } = &mut *taken.lock();
        let entry = by_subject.entry(subject);
        let own = if let Entry::Occupied(own) = &entry { *own.get() } else { 0 };
        if own >= *max_per_key {
            return Err(SlotError::FullForKey);
        }
        if *total >= *max {
            return Err(SlotError::Full);
        }
        *total += 1;
        entry.insert_entry(own + 1);
        Ok(PassthroughSlot { slots: self.clone(), subject })
    }

    /// Returns the number of slots in use.
    pub(crate) fn taken(&self) -> usize {
        self.0.taken.lock().total
    }
}

impl Drop for PassthroughSlot {
    fn drop(&mut self) {
        let SlotCounts { total, by_subject } = &mut *self.slots.0.taken.lock();
        *total -= 1;
        if let Entry::Occupied(mut own) = by_subject.entry(self.subject) {
            *own.get_mut() -= 1;
            if *own.get() == 0 {
                own.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_bounded_per_key_and_in_total() {
        let slots = PassthroughSlots::new(3, 2);
        let [ann, bob] = ["ann", "bob"].map(Subject::member);
        let first = slots.take(ann).unwrap();
        let _second = slots.take(ann).unwrap();
        assert_eq!(slots.take(ann).unwrap_err(), SlotError::FullForKey);
        let _third = slots.take(bob).unwrap();
        assert_eq!(slots.take(bob).unwrap_err(), SlotError::Full);
        assert_eq!(
            slots.take(ann).unwrap_err(),
            SlotError::FullForKey,
            "the bound of the key is reported first"
        );
        drop(first);
        let _fourth = slots.take(bob).unwrap();
        assert_eq!(slots.taken(), 3);
    }

    #[test]
    fn given_back_slots_leave_no_entries() {
        let slots = PassthroughSlots::new(100, 10);
        let taken: Vec<_> =
            (0..50).map(|n| slots.take(Subject::member(&(n % 5).to_string())).unwrap()).collect();
        assert_eq!((slots.taken(), slots.0.taken.lock().by_subject.len()), (50, 5));
        drop(taken);
        assert_eq!((slots.taken(), slots.0.taken.lock().by_subject.len()), (0, 0));
    }
}
