//! Invariants of the machine, checked after every call in debug builds.

use super::Coalescer;
use crate::core::route::Goal;

/// Most waits and polls for which the invariants are checked after each call.
const MAX_CHECKED: usize = 256;

impl Coalescer {
    /// Asserts the invariants, in debug builds and while there are few waits and polls.
    pub(super) fn check_invariants(&self) {
        if !cfg!(debug_assertions) || self.waits() + self.polls() > MAX_CHECKED {
            return;
        }
        self.state.check_links();
        for (id, wait) in self.state.all_waits() {
            assert!(!wait.attached_polls.is_empty(), "{id:?} is attached to no poll");
            let lowest = Goal::Rung(self.timing.ladder.lowest());
            let goal = if wait.is_in_snapshot() { lowest } else { wait.spec.goal };
            assert_eq!(wait.current_goal, goal, "{id:?}");
            let domain = wait.spec.domain;
            for job in wait.spec.jobs.iter().filter(|job| self.reached_state(wait, job).is_none()) {
                let is_interested = self.state.job_index().is_interested(domain, job, wait.current_goal, id);
                assert!(is_interested, "{id:?} would not hear of {job}");
            }
            let polls = || wait.attached_polls.iter().filter_map(|&poll| self.state.poll(poll));
            for poll in polls() {
                assert_eq!(poll.spec.domain, domain, "P11: {id:?} is attached across key domains");
                assert!(poll.spec.jobs.is_subset(&wait.spec.jobs), "P5: {id:?} depends on another job");
                let is_within = self.timing.is_within(poll.spec.goal, wait.current_goal);
                assert!(is_within, "P1: {id:?} is attached to a poll for a higher rung");
            }
            let own = polls().filter(|poll| poll.opener == Some(id)).count();
            let at_once = wait.spec.jobs.len().div_ceil(self.timing.max_jobs);
            // Where the upstream never holds, an action on a job opens one more for it, and so does a deadline.
            let most = match self.timing.pace {
                Some(_) if wait.is_in_snapshot() => wait.spec.jobs.len() + at_once,
                Some(_) => wait.spec.jobs.len(),
                None => at_once,
            };
            assert!(own <= most, "P4: {id:?} has {own} polls");
        }
    }
}
