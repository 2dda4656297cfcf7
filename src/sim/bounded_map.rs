//! A map with a bound that removes its oldest names, so that a simulation of weeks keeps its size.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// At most `max` values by name.
pub(super) struct BoundedMap<V> {
    by_name: HashMap<Arc<str>, V>,
    /// The names, the oldest first.
    order: VecDeque<Arc<str>>,
    max: usize,
}

impl<V> BoundedMap<V> {
    pub(super) fn new(max: usize) -> Self {
        Self { by_name: HashMap::new(), order: VecDeque::new(), max: max.max(1) }
    }

    pub(super) fn get(&self, name: &str) -> Option<&V> {
        self.by_name.get(name)
    }

    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut V> {
        self.by_name.get_mut(name)
    }

    /// Removes a value. Takes time in proportion to the number of names.
    pub(super) fn remove(&mut self, name: &str) -> Option<V> {
        self.order.retain(|known| **known != *name);
        self.by_name.remove(name)
    }

    /// Inserts or replaces a value. A replaced value keeps the age of its name.
    pub(super) fn insert(&mut self, name: &str, value: V) {
        if let Some(known) = self.by_name.get_mut(name) {
            *known = value;
            return;
        }
        if self.order.len() == self.max
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_name.remove(&oldest);
        }
        let name: Arc<str> = name.into();
        self.order.push_back(Arc::clone(&name));
        self.by_name.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_name_is_removed_first() {
        let mut map = BoundedMap::new(2);
        for name in ["a", "b", "a", "c"] {
            map.insert(name, ());
        }
        assert_eq!(["a", "b", "c"].map(|name| map.get(name).is_some()), [false, true, true]);
    }
}
