//! The answer at the deadline is true: known, proven, or from one snapshot (P7).
//!
//! The upstream and the gateway measure the same two minutes by two clocks.

use super::*;

#[test]
fn a_state_that_a_held_poll_proves_at_the_deadline_costs_no_request() {
    let mut s = Scenario::new();
    s.join_for(1, "a", "completed", 60.0).join(2, "a", "streaming");
    s.at(30.0).land("a streaming", "a=streaming").at(60.0).assert_answers(&["timed out a=streaming"]);
    assert_eq!(s.opened, 2);
}

#[test]
fn two_waits_whose_deadlines_coincide_share_one_snapshot() {
    let mut s = Scenario::new();
    s.join_for(1, "a", "completed", 60.0).join_for(2, "a", "completed", 60.0).at(60.0);
    s.assert_answers(&["", ""]);
    assert_eq!(s.open(), ["a completed", "a submitted"]);
    s.at(60.1).land("a submitted", "a=queued").assert_answers(&["timed out a=queued"; 2]);
    s.at(62.0);
    assert!(s.is_idle());
}

#[test]
fn a_poll_that_the_upstream_does_not_hold_yet_proves_no_state() {
    let mut s = Scenario::new();
    s.holds = false;
    s.join_for(1, "a", "completed", 60.0).join(2, "a", "streaming");
    s.at(30.0).land("a streaming", "a=streaming").at(60.0);
    assert_eq!(s.open(), ["a completed", "a submitted"]);
}

/// The answer may still be on its way.
#[test]
fn a_poll_held_for_less_than_half_a_second_proves_no_state() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").join(2, "a", "streaming").land("a streaming", "a=streaming");
    s.at(0.4).join_for(3, "a", "completed", 0.0);
    assert_eq!(s.open(), ["a completed", "a submitted"]);
    s.land("a submitted", "a=streaming").at(0.6).join_for(4, "a", "completed", 0.0);
    assert_eq!((s.answer(4), s.opened), ("timed out a=streaming".into(), 3));
}

/// Found by the sweep: until that moment `b` kept the poll silent.
#[test]
fn a_poll_for_two_jobs_proves_no_state_right_after_its_other_job_got_there() {
    let mut s = Scenario::new();
    s.join(1, "a b", "completed").at(10.0).join(2, "a", "streaming").land("a streaming", "a=streaming");
    s.at(60.0).join(3, "b", "completed").at(70.0).land("b completed", "b=complete");
    s.join_for(4, "a", "completed", 0.0);
    assert_eq!(s.open(), ["a b completed", "a submitted"]);
    s.land("a submitted", "a=complete");
    assert_eq!(s.answer(4), "reached a=complete");
    assert_eq!(s.answer(1), "reached a=complete b=complete");
}

#[test]
fn a_poll_for_two_jobs_proves_the_state_of_one_if_the_other_has_long_got_there() {
    let mut s = Scenario::new();
    s.join(1, "a b", "completed").at(10.0).join(2, "a", "streaming").land("a streaming", "a=streaming");
    s.at(60.0).join(3, "b", "completed").at(70.0).land("b completed", "b=complete");
    s.at(80.0).join_for(4, "a", "completed", 0.0);
    assert_eq!((s.answer(4), s.opened), ("timed out a=streaming".into(), 3));
}

#[test]
fn a_wait_without_time_costs_one_snapshot() {
    let mut s = Scenario::new();
    s.join_for(1, "a", "completed", 0.0);
    assert_eq!((s.open(), s.opened), (vec!["a submitted"], 1));
}

#[test]
fn a_state_proven_at_the_deadline_stays_proven_after_its_poll_is_aborted() {
    let mut s = Scenario::with(6, Duration::ZERO);
    s.join_for(1, "a b", "completed", 60.0).join(2, "a", "completed").join(3, "a", "streaming");
    s.at(10.0).land("a streaming", "a=streaming").at(60.0);
    assert_eq!(s.open(), ["a completed", "b submitted"]);
    s.leave(2).at(60.1).land("b submitted", "b=queued").assert_answers(&["timed out a=streaming b=queued"]);
    assert!(s.is_idle());
}

/// `handle_timeout` takes them in parts.
#[test]
fn a_thousand_deadlines_at_one_moment_do_not_delay_a_landing() {
    let mut s = Scenario::new();
    for number in 0..1000 {
        s.join_for(number, &format!("c{number}"), "completed", 60.0);
    }
    s.now = s.zero + secs(60.0);
    let mut calls = 0;
    while s.machine.poll_timeout().is_some_and(|due| due <= s.now) {
        let before = s.opened;
        s.machine.handle_timeout(s.now);
        s.take_outputs();
        assert!(s.opened - before <= MAX_TIMERS_PER_CALL);
        calls += 1;
        if calls == 1 {
            s.land("c999 completed", "c999=complete");
            assert_eq!(s.answer(999), "reached c999=complete", "between two parts");
        }
    }
    assert_eq!((calls, s.opened), (4, 1999), "one snapshot for each of the other waits");
}

#[test]
fn a_wait_and_its_poll_that_end_at_the_same_moment_cost_no_snapshot() {
    for ends in [119.8, 119.999, 120.0, 120.001, 120.3, 124.9] {
        let mut s = Scenario::new();
        s.join(1, "a", "completed").at(0.04).join(2, "a", "completed");
        s.at(ends).land("a completed", "a=queued").assert_answers(&["timed out a=queued"; 2]);
        assert_eq!((s.opened, s.is_idle()), (1, true), "{ends}");
    }
}

#[test]
fn a_wait_with_two_polls_that_end_at_the_same_moment_costs_no_snapshot() {
    for (first, second) in [(119.9, 120.2), (120.1, 120.2), (119.8, 119.9), (120.0, 120.0)] {
        let mut s = Scenario::with(1, secs(2.0));
        s.join(1, "a b", "completed").at(first).land("a completed", "a=queued");
        s.at(second).land("b completed", "b=queued").assert_answers(&["timed out a=queued b=queued"]);
        assert_eq!((s.opened, s.is_idle()), (2, true), "{first} {second}");
    }
}

#[test]
fn a_wait_stays_no_longer_than_the_grace_for_an_upstream_that_overruns_its_hold() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(124.9);
    assert_eq!(s.open(), ["a completed"]);
    s.at(125.0);
    assert_eq!(s.open(), ["a completed", "a submitted"]);
    s.at(125.1).land("a submitted", "a=queued").assert_answers(&["timed out a=queued"]);
}

/// Such a wait used to stay for its poll, which had another minute to go, until the grace was over.
#[test]
fn a_wait_shorter_than_the_hold_takes_its_snapshot_at_its_own_deadline() {
    let mut s = Scenario::new();
    s.join_for(1, "a", "completed", 60.0).at(60.0);
    assert_eq!(s.open(), ["a completed", "a submitted"]);
    s.land("a submitted", "a=queued").assert_answers(&["timed out a=queued"]);
}

/// P1: the upstream's hold began with the second attempt, and ends long after the wait.
#[test]
fn a_wait_whose_poll_was_tried_again_takes_its_snapshot_at_its_own_deadline() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(80.0);
    s.progress("a completed", PollProgress::BackingOff(Failure::Unreachable, secs(1.0))).at(81.0);
    s.progress("a completed", PollProgress::AttemptStarted).progress("a completed", PollProgress::Held);
    s.at(120.0);
    assert_eq!(s.open(), ["a completed", "a submitted"]);
    s.land("a submitted", "a=queued").assert_answers(&["timed out a=queued"]);
}

#[test]
fn a_wait_of_twice_the_hold_ends_with_its_second_poll() {
    let mut s = Scenario::new();
    s.join_for(1, "a", "completed", 240.0).at(120.1).land("a completed", "a=queued").at(240.0);
    s.assert_answers(&[""]);
    assert_eq!(s.open(), ["a completed"]);
    s.at(240.2).land("a completed", "a=queued").assert_answers(&["timed out a=queued"]);
    assert_eq!(s.opened, 2);
}

#[test]
fn an_answer_read_just_before_the_deadline_and_landed_after_it_is_the_final_state() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(0.1).join(2, "a", "completed").at(120.02);
    let read = s.state("a", "queued");
    s.at(120.0201).land_as("a completed", PollOutcome::Jobs(vec![read]));
    s.assert_answers(&["timed out a=queued", "timed out a=queued"]);
    assert_eq!((s.open(), s.opened), (vec![], 1));
}

#[test]
fn an_answer_read_before_a_wait_arrived_does_not_end_it() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(119.7);
    let read = s.state("a", "queued");
    s.at(119.8).join_for(2, "a", "completed", 0.3);
    assert_eq!(s.opened, 1);
    s.at(120.0).land_as("a completed", PollOutcome::Jobs(vec![read]));
    s.assert_answers(&["timed out a=queued", ""]);
    let open = s.open()[0].to_string();
    s.at(120.1).land(&open, "a=streaming");
    assert_eq!(s.answer(2), "timed out a=streaming");
}

#[test]
fn an_answer_that_lands_later_than_a_newer_one_takes_no_state_back() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(1.0).join(2, "a", "streaming");
    s.at(5.0);
    let complete = s.state("a", "complete"); // read now, landed at 6.1 s
    s.at(5.5).join(3, "a b", "streaming");
    s.at(6.0).land("a streaming", "a=streaming");
    s.at(6.1).land_as("a completed", PollOutcome::Jobs(vec![complete]));
    let open = s.open().iter().find(|what| what.contains('b')).unwrap().to_string();
    s.at(8.0).land(&open, if open.starts_with("a b") { "a=complete b=complete" } else { "b=complete" });
    assert_eq!(s.answer(3), "reached a=complete b=complete");
    assert_eq!(s.open(), [""; 0]);
}
