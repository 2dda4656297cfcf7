//! Polls that another replica makes: they count from their opening there, and they can be lost.

use super::*;

/// Returns a machine at 10 s with a poll for `completed` that another replica opened at 0 s.
fn elsewhere(timeout: f64, is_held: bool) -> Scenario {
    let mut s = Scenario::new();
    s.queues = true;
    s.at(10.0).join_for(1, "a", "completed", timeout);
    let opened_at = s.zero;
    s.progress("a completed", PollProgress::Elsewhere { opened_at, held_from: is_held.then_some(opened_at) });
    s
}

/// P4, P7
#[test]
fn a_deadline_at_the_end_of_a_poll_elsewhere_needs_no_snapshot() {
    let mut s = elsewhere(110.0, true);
    s.at(120.1).land("a completed", "a=queued");
    assert_eq!((s.answer(1), s.opened), ("timed out a=queued".into(), 1));
}

/// P7: the hold begins again with each attempt.
#[test]
fn a_wait_past_its_deadline_takes_a_snapshot_if_the_other_replica_has_had_to_try_again() {
    let mut s = elsewhere(110.0, true);
    let (opened_at, held_from) = (s.zero, Some(s.zero + secs(69.0)));
    s.at(70.0).progress("a completed", PollProgress::Elsewhere { opened_at, held_from: None });
    s.progress("a completed", PollProgress::Elsewhere { opened_at, held_from }).at(120.1);
    assert_eq!(s.open(), ["a submitted"]);
}

/// P2
#[test]
fn a_poll_elsewhere_that_ends_before_the_deadline_is_opened_again() {
    let mut s = elsewhere(120.0, true);
    s.at(120.1).land("a completed", "a=queued");
    assert_eq!((s.answer(1), s.opened, s.open()), (String::new(), 2, vec!["a completed"]));
}

/// P7
#[test]
fn a_wait_past_its_deadline_takes_a_snapshot_when_the_poll_elsewhere_is_lost() {
    let mut s = elsewhere(110.0, true);
    s.at(120.1);
    assert_eq!(s.open(), ["a completed"]);
    s.progress("a completed", PollProgress::Lost);
    assert_eq!(s.open(), ["a submitted"]);
}

/// P7: the hold begins again at the replica that makes the poll now.
#[test]
fn a_wait_past_its_deadline_takes_a_snapshot_when_the_poll_is_made_here() {
    let mut s = elsewhere(110.0, true);
    s.at(120.1).progress("a completed", PollProgress::AttemptStarted);
    assert_eq!(s.open(), ["a completed", "a submitted"]); // the first one lingers
}

/// P7
#[test]
fn a_poll_elsewhere_proves_states_while_it_is_held_and_not_lost() {
    for (progress, is_proven) in [(None, true), (Some(false), false), (Some(true), false)] {
        let mut s = Scenario::new();
        s.queues = true;
        s.join(1, "a", "completed");
        let opened_at = s.zero;
        s.progress("a completed", PollProgress::Elsewhere { opened_at, held_from: Some(opened_at) });
        s.at(10.0).join(2, "a", "").land("a now", "a=streaming").at(11.0);
        match progress {
            None => {}
            Some(true) => drop(s.progress("a completed", PollProgress::Lost)),
            Some(false) => {
                s.progress("a completed", PollProgress::Elsewhere { opened_at, held_from: None });
            }
        }
        s.get(3, "a");
        assert_eq!(s.is_proven(3), is_proven, "{progress:?}");
    }
}

/// P2
#[test]
fn a_lost_poll_counts_from_its_first_attempt_here() {
    let mut s = elsewhere(120.0, true);
    s.at(12.0).progress("a completed", PollProgress::Lost);
    s.at(12.1)
        .progress("a completed", PollProgress::AttemptStarted)
        .progress("a completed", PollProgress::Held);
    // Its hold outlasts the wait, and a held poll without a known state proves nothing.
    s.at(130.1);
    assert_eq!((s.opened, s.open()), (2, vec!["a completed", "a submitted"]));
}

/// P6: the linger is counted where the poll is made.
#[test]
fn a_poll_elsewhere_ends_here_with_its_last_wait() {
    let mut s = elsewhere(120.0, true);
    s.at(20.0).leave(1);
    assert!(s.is_idle() && s.aborted == 1);
    let mut s = elsewhere(120.0, true);
    s.at(20.0).progress("a completed", PollProgress::Lost).leave(1);
    assert!(s.is_idle() && s.aborted == 1);
}
