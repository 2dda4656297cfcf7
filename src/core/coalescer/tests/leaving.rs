//! Clients come and go freely: polls linger, are found again, and are aborted (P6).

use super::*;

#[test]
fn the_waits_on_a_poll_are_answered_after_its_opener_has_left() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(1.0).join(2, "a", "completed").at(2.0).leave(1);
    s.at(50.0).land("a completed", "a=complete").assert_answers(&["", "reached a=complete"]);
    assert_eq!((s.opened, s.aborted), (1, 0));
}

#[test]
fn a_poll_is_aborted_after_the_linger_when_its_last_wait_has_left() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").join(2, "a", "completed").leave(1).at(5.0).leave(2).at(6.9);
    assert_eq!((s.open(), s.aborted, s.machine.waits()), (vec!["a completed"], 0, 0));
    s.at(7.0);
    assert!(s.is_idle() && s.aborted == 1);
}

#[test]
fn a_client_that_comes_back_within_the_linger_finds_its_poll() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(5.0).leave(1).at(6.5).join(2, "a", "completed").at(60.0);
    assert_eq!((s.open(), s.opened, s.aborted), (vec!["a completed"], 1, 0));
    s.land("a completed", "a=complete").assert_answers(&["", "reached a=complete"]);
}

/// The upstream knows nothing of such a poll, and the poll would take a turn that others could use.
#[test]
fn a_poll_without_an_attempt_under_way_is_forgotten_with_its_last_wait() {
    let mut s = Scenario::new();
    s.queues = true;
    s.join(1, "a", "completed").join(2, "a", "completed").at(1.0).leave(1);
    assert_eq!(s.aborted, 0);
    s.leave(2);
    assert!(s.is_idle() && s.aborted == 1, "in line");

    let failing = PollProgress::BackingOff(Failure::Unreachable, secs(5.0));
    let mut s = Scenario::new();
    s.join(1, "a", "completed").progress("a completed", failing.clone()).leave(1);
    assert!(s.is_idle() && s.aborted == 1, "pausing");

    let mut s = Scenario::new();
    s.join(1, "a", "completed").leave(1);
    assert_eq!(s.open(), ["a completed"]);
    s.at(1.0).progress("a completed", failing);
    assert!(s.is_idle() && s.aborted == 1, "pausing, while it lingers");
}

#[test]
fn a_poll_that_lands_while_it_lingers_is_forgotten() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").leave(1).at(1.0).land("a completed", "a=queued");
    assert!(s.is_idle() && s.aborted == 0);
}

#[test]
fn an_event_of_a_forgotten_wait_or_poll_changes_nothing() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").leave(1).leave(1).at(3.0);
    let late = PollOutcome::Jobs(vec![s.state("a", "complete")]);
    s.handle(Input::Landed(PollId(0), late));
    s.handle(Input::Progress(PollId(0), PollProgress::Held)).leave(7);
    assert!(s.is_idle() && s.results.is_empty());
}

#[test]
fn a_cancelled_join_leaves_nothing_behind() {
    let mut s = Scenario::new();
    let spec = s.spec("a b", "completed");
    s.join(1, "a", "completed");
    s.machine.handle(Input::Join(WaitId(2), spec), s.now);
    assert_eq!(s.machine.pending_opens(), 1);
    s.machine.handle(Input::CancelJoin(WaitId(2)), s.now);
    assert_eq!(s.machine.pending_opens(), 0);
    assert_eq!((s.machine.waits(), s.machine.polls()), (1, 1));
    s.join(3, "b", "completed");
    assert_eq!(s.open(), ["a completed", "b completed"]);
}

/// Sweep seed 26092.
#[test]
fn a_join_that_fails_at_once_takes_back_the_poll_that_it_opened() {
    let mut s = Scenario::new();
    s.queues = true;
    s.join_for(1, "a", "completed", 5.0).at(5.0).join(2, "a", "streaming");
    s.progress("a submitted", key_paused(60.0)).at(6.0);
    let spec = WaitSpec { timeout: Duration::ZERO, ..s.spec("a b", "completed") };
    s.machine.handle(Input::Join(WaitId(3), spec), s.now);
    assert_eq!(s.machine.pending_opens(), 0);
    assert!(s.answer_now(3).starts_with("failed KeyRateLimited"));
}
