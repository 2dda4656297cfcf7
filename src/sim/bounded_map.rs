//! A map that forgets its oldest names, so that a simulation that runs for weeks keeps its size.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Values by name, at most `keep`.
pub(super) struct BoundedMap<V> {
    by_name: HashMap<Arc<str>, V>,
    /// The names, the oldest first.
    order: VecDeque<Arc<str>>,
    keep: usize,
}

impl<V> BoundedMap<V> {
    pub(super) fn new(keep: usize) -> Self {
        Self { by_name: HashMap::new(), order: VecDeque::new(), keep: keep.max(1) }
    }

    pub(super) fn get(&self, name: &str) -> Option<&V> {
        self.by_name.get(name)
    }

    /// A name that is known keeps its age.
    pub(super) fn insert(&mut self, name: &str, value: V) {
        if let Some(known) = self.by_name.get_mut(name) {
            *known = value;
            return;
        }
        if self.order.len() == self.keep
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
    fn the_oldest_name_is_forgotten_first() {
        let mut recent = BoundedMap::new(2);
        for name in ["a", "b", "a", "c"] {
            recent.insert(name, ());
        }
        assert_eq!(["a", "b", "c"].map(|name| recent.get(name).is_some()), [false, true, true]);
    }
}
