//! Removals by siblings. Each searches the whole cache, so a thread of its own does it and not the hub's task.
//!
//! Removals that come during a search wait for the next one, which is for all of them.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::cache::Cache;
use crate::core::job::JobId;

/// Most ids of one search. With more, all states are removed.
const MAX_IDS: usize = 4096;

#[derive(Clone, Default)]
pub(super) struct CacheRemovals(Arc<Mutex<PendingRemovals>>);

#[derive(Default)]
struct PendingRemovals {
    ids: BTreeSet<JobId>,
    has_all: bool,
    /// Whether a thread takes the removals.
    is_running: bool,
}

impl CacheRemovals {
    /// Removes the states of the jobs with this id, or all states, soon.
    pub(super) fn remove(&self, id: Option<&JobId>, cache: &Arc<Cache>, tasks: &mut JoinSet<()>) {
        if self.add(id) {
            // Finished tasks would stay in the set.
            while tasks.try_join_next().is_some() {}
            let (removals, cache) = (self.clone(), Arc::clone(cache));
            tasks.spawn_blocking(move || _ = removals.run(&cache));
        }
    }

    /// Returns whether a thread is needed.
    fn add(&self, id: Option<&JobId>) -> bool {
        let mut pending = self.0.lock();
        match id {
            Some(id) if pending.ids.len() < MAX_IDS => _ = pending.ids.insert(id.clone()),
            Some(_) | None => pending.has_all = true,
        }
        !std::mem::replace(&mut pending.is_running, true)
    }

    /// Makes the removals that wait, until none is left. Returns the number of searches.
    fn run(&self, cache: &Cache) -> usize {
        let mut searches = 0;
        while let Some((ids, has_all)) = self.take() {
            searches += 1;
            if has_all {
                cache.remove_all();
            } else {
                let ids: BTreeSet<&str> = ids.iter().map(JobId::as_str).collect();
                cache.remove_each(|id| ids.contains(id));
            }
        }
        searches
    }

    /// Returns the removals that came. `None`: there are none, and the thread ends.
    fn take(&self) -> Option<(BTreeSet<JobId>, bool)> {
        let mut pending = self.0.lock();
        let has_all = std::mem::take(&mut pending.has_all);
        let ids = std::mem::take(&mut pending.ids);
        pending.is_running = has_all || !ids.is_empty();
        pending.is_running.then_some((ids, has_all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::core::route::Route;

    #[test]
    fn removals_that_wait_for_each_other_are_one_search() {
        let cache = Cache::new(Config::default().cache, Arc::new(Route::suno().into()));
        let removals = CacheRemovals::default();
        let job = |number: usize| JobId::new(&format!("job-{number}")).unwrap();
        assert!(removals.add(Some(&job(0))));
        for number in (0..100).chain(0..100) {
            assert!(!removals.add(Some(&job(number))), "a thread is on its way");
        }
        assert_eq!(removals.0.lock().ids.len(), 100);
        assert_eq!(removals.run(&cache), 1);
        assert!(removals.add(None), "the thread has ended");
        assert_eq!(removals.run(&cache), 1);
        for number in 0..=MAX_IDS {
            removals.add(Some(&job(number)));
        }
        assert!(removals.0.lock().has_all);
    }
}
