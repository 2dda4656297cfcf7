//! Epochs that this replica has seen in answers and messages: results of polls without a grant are sealed for them.

use parking_lot::Mutex;

use crate::core::Map;
use crate::core::job::KeyDomain;
use crate::core::siblings::KeyEpoch;

/// Most epochs. With more all are forgotten: results without a grant are not stored then.
const MAX_EPOCHS: usize = 16_384;

#[derive(Default)]
pub(super) struct KnownEpochs(Mutex<Map<KeyDomain, KeyEpoch>>);

impl KnownEpochs {
    pub(super) fn get(&self, domain: KeyDomain) -> Option<KeyEpoch> {
        self.0.lock().get(&domain).copied()
    }

    pub(super) fn seen(&self, domain: KeyDomain, epoch: KeyEpoch) {
        let mut epochs = self.0.lock();
        if epochs.len() >= MAX_EPOCHS && !epochs.contains_key(&domain) {
            epochs.clear();
        }
        epochs.insert(domain, epoch);
    }

    pub(super) fn died(&self, domain: KeyDomain, dead: KeyEpoch) {
        let mut epochs = self.0.lock();
        if epochs.get(&domain) == Some(&dead) {
            epochs.remove(&domain);
        }
    }
}
