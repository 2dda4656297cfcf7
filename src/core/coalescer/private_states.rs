//! States that count for one wait only.

use crate::core::job::{JobId, JobState};

/// States of one wait, sorted by job: cached ones, ones with an unknown status, and those of its deadline. A wait may
/// name a thousand jobs.
#[derive(Debug, Default)]
pub(super) struct PrivateStates(Vec<JobState>);

impl PrivateStates {
    pub(super) fn get(&self, job: &JobId) -> Option<&JobState> {
        self.position(job).ok().map(|at| &self.0[at])
    }

    pub(super) fn insert(&mut self, state: JobState) {
        match self.position(&state.id) {
            Ok(at) => self.0[at] = state,
            Err(at) => self.0.insert(at, state),
        }
    }

    pub(super) fn remove(&mut self, job: &JobId) {
        if let Ok(at) = self.position(job) {
            self.0.remove(at);
        }
    }

    fn position(&self, job: &JobId) -> Result<usize, usize> {
        self.0.binary_search_by(|state| state.id.cmp(job))
    }
}

impl FromIterator<JobState> for PrivateStates {
    fn from_iter<I: IntoIterator<Item = JobState>>(states: I) -> Self {
        let mut states: Vec<JobState> = states.into_iter().collect();
        if states.len() < 2 {
            return Self(states);
        }
        states.sort_by(|a, b| a.id.cmp(&b.id));
        states.dedup_by(|a, b| a.id == b.id);
        Self(states)
    }
}
