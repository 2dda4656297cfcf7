//! Status words that the ladder of a route does not have: counted, and reported once.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::warn;

use crate::core::route::{Route, RouteIndex, Routes};
use crate::printable::escape;
use crate::telemetry::metrics::Metrics;

/// The most words of one route that are reported. An upstream may put anything where the status should be.
const MAX_WORDS: usize = 32;
/// The most characters of a word in the log.
const MAX_CHARACTERS: usize = 64;

/// Clones share the words.
#[derive(Clone, Debug)]
pub(super) struct UnknownWords {
    /// The reported words of each route.
    reported: Arc<Mutex<Vec<BTreeSet<String>>>>,
    metrics: Arc<Metrics>,
}

impl UnknownWords {
    pub(super) fn new(routes: &Routes, metrics: Arc<Metrics>) -> Self {
        Self { reported: Arc::new(Mutex::new(vec![BTreeSet::new(); routes.count()])), metrics }
    }

    /// Counts a state. Reports its word if it is a new one.
    pub(super) fn record(&self, index: RouteIndex, route: &Route, word: &str) {
        self.metrics.unknown_states.record(index);
        let word: String = word.chars().take(MAX_CHARACTERS).collect();
        if !self.is_new(index, &word) {
            return;
        }
        let (name, word) = (route.name.as_str(), &*escape(&word));
        if route.is_built_in {
            warn!(
                clipgate.route = name,
                word,
                "unknown state: clients get it as it came; `clipgate presets suno` prints a route to add the word to"
            );
        } else {
            warn!(
                clipgate.route = name,
                word, "unknown state: add the word to `pending`, `succeeded` or `failed` of the route"
            );
        }
    }

    fn is_new(&self, index: RouteIndex, word: &str) -> bool {
        let mut reported = self.reported.lock();
        let words = &mut reported[usize::from(index.0)];
        words.len() < MAX_WORDS && words.insert(word.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn each_word_of_a_route_is_reported_once_and_their_number_is_bounded() {
        let routes = Routes::new(vec![Route::suno(), Route::suno()]);
        let words = UnknownWords::new(&routes, Metrics::new(&mut Registry::default()));
        let [first, second] = [RouteIndex(0), RouteIndex(1)];
        assert_eq!([first, first, second].map(|route| words.is_new(route, "paused")), [true, false, true]);
        let new = (0..100).filter(|number| words.is_new(first, &number.to_string())).count();
        assert_eq!(new, MAX_WORDS - 1);
    }
}
