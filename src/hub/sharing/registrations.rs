//! Names of polls whose answers the cluster's link can open and seal.
//!
//! A name is forgotten some time after its last poll: the machine may send a landing again until then.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::core::Map;
use crate::core::siblings::{MAX_SHARED_POLLS, PollName};

/// Time for which a name is kept after its last poll: a landing is sent again for 120 s.
const KEPT: Duration = Duration::from_secs(125);

#[derive(Default)]
pub(super) struct Registrations {
    users: Map<PollName, Registration>,
    /// Ends of names, the oldest first. A name may be in it several times.
    ended: VecDeque<(Instant, PollName)>,
}

#[derive(Default)]
struct Registration {
    polls: usize,
    /// Number of the entries in `ended`.
    ends: usize,
}

impl Registrations {
    pub(super) fn add(&mut self, name: PollName) {
        self.users.entry(name).or_default().polls += 1;
    }

    pub(super) fn release(&mut self, name: PollName, now: Instant) {
        let Some(registration) = self.users.get_mut(&name) else { return };
        registration.polls -= 1;
        if registration.polls == 0 {
            registration.ends += 1;
            self.ended.push_back((now, name));
        }
    }

    /// Returns the names without polls for some time, and the oldest where there are too many.
    pub(super) fn forget_old(&mut self, now: Instant) -> Vec<PollName> {
        let mut forgotten = Vec::new();
        while let Some(&(at, name)) = self.ended.front() {
            if at + KEPT > now && self.ended.len() <= MAX_SHARED_POLLS {
                break;
            }
            self.ended.pop_front();
            let Some(registration) = self.users.get_mut(&name) else { continue };
            registration.ends -= 1;
            if registration.ends == 0 && registration.polls == 0 {
                self.users.remove(&name);
                forgotten.push(name);
            }
        }
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn a_name_is_forgotten_some_time_after_its_last_poll() {
        let (mut names, t0, name) = (Registrations::default(), clock::now(), PollName(1));
        names.add(name);
        names.add(name);
        names.release(name, t0);
        assert_eq!(names.forget_old(t0 + KEPT), []);
        names.release(name, t0 + KEPT);
        assert_eq!(names.forget_old(t0 + KEPT), []);
        names.add(name);
        names.release(name, t0 + KEPT * 3 / 2);
        assert_eq!(names.forget_old(t0 + KEPT * 2), [], "it was used again");
        assert_eq!(names.forget_old(t0 + KEPT * 3), [name]);
        assert!(names.users.is_empty() && names.ended.is_empty());
    }

    #[test]
    fn the_names_are_bounded() {
        let (mut names, t0) = (Registrations::default(), clock::now());
        for name in 0..=MAX_SHARED_POLLS as u128 {
            names.add(PollName(name));
            names.release(PollName(name), t0);
        }
        assert_eq!(names.forget_old(t0), [PollName(0)]);
    }
}
