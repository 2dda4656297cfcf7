//! Polls for several jobs end once each job has a poll of its own (P4).

use super::*;

/// Returns a machine with a poll for `a` and `b`, which were seen streaming, and one for `a` alone.
fn batch() -> Scenario {
    let mut s = Scenario::new();
    s.join(1, "a b", "completed").join(2, "a b", "").land("a b now", "a=streaming b=streaming");
    s.at(10.0).join(3, "a", "completed");
    assert_eq!(s.open(), ["a b completed", "a completed"]);
    s
}

#[test]
fn a_poll_for_two_jobs_ends_once_each_of_them_has_its_own() {
    let mut s = batch();
    s.at(20.0).join(4, "b", "completed");
    assert_eq!((s.open(), s.aborted), (vec!["a completed", "b completed"], 1));
    s.leave(3).leave(4).at(60.0).land("a completed", "a=complete").land("b completed", "b=complete");
    assert_eq!(s.answer(1), "reached a=complete b=complete");
    assert_eq!((s.opened, s.is_idle()), (4, true));
}

#[test]
fn its_waits_are_answered_at_their_deadline_without_a_further_request() {
    let mut s = batch();
    s.at(20.0).join(4, "b", "completed").at(120.0);
    assert_eq!((s.answer(1).as_str(), s.opened), ("timed out a=streaming b=streaming", 4));
}

#[test]
fn it_stays_while_the_upstream_does_not_hold_the_others() {
    let mut s = batch();
    s.at(20.0).holds = false;
    s.join(4, "b", "completed");
    assert_eq!(s.open(), ["a b completed", "a completed", "b completed"]);
    s.at(21.0).progress("b completed", PollProgress::Held);
    assert_eq!(s.open(), ["a completed", "b completed"]);
}

#[test]
fn it_stays_beside_polls_at_another_rung_or_opened_before_it() {
    let mut s = batch();
    s.at(20.0).join(4, "b", "streaming");
    assert_eq!(s.open(), ["a b completed", "a completed", "b streaming"]);

    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(10.0).join(2, "a b", "completed").at(20.0).join(3, "b", "completed");
    assert_eq!(s.open(), ["a completed", "a b completed", "b completed"]);
}

/// The state at the deadline would cost a snapshot that the landing of the poll spares.
#[test]
fn it_stays_for_a_wait_that_ends_with_it_if_a_state_was_not_seen() {
    let mut s = Scenario::new();
    s.join(1, "a b", "completed").at(10.0).join(2, "a", "completed").join(3, "b", "completed");
    assert_eq!(s.open().len(), 3);
    s.at(120.0).land("a b completed", "a=queued b=streaming");
    assert_eq!((s.answer(1).as_str(), s.opened), ("timed out a=queued b=streaming", 3));
}

#[test]
fn it_ends_if_its_waits_end_before_it_whether_their_states_were_seen_or_not() {
    let mut s = Scenario::new();
    s.join_for(1, "a b", "completed", 60.0).at(10.0).join(2, "a", "completed").join(3, "b", "completed");
    assert_eq!(s.open(), ["a completed", "b completed"]);
}

#[test]
fn watches_make_it_superfluous_too() {
    let mut s = batch();
    s.machine.set_watch_idle(secs(20.0));
    s.at(20.0).get(4, "b").land("b now", "b=streaming").at(21.0).get(5, "b").land("b now", "b=streaming");
    assert_eq!(s.open(), ["a completed", "b completed"]);
}
