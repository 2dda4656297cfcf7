//! Identical waits share one poll, and each keeps its own time (P1, P2, P3).

use super::*;

#[test]
fn identical_waits_share_one_poll_whenever_they_come_and_in_any_order_of_jobs() {
    let mut s = Scenario::new();
    s.join(1, "a b", "completed").join(2, "b a", "completed").at(60.0).join(3, "a b", "completed");
    assert_eq!(s.open(), ["a b completed"]);
    s.at(70.0).land("a b completed", "b=complete a=error");
    s.assert_answers(&["reached a=error b=complete"; 3]);
    assert_eq!((s.results[&1].how, s.results[&1].direct), (Cost::Opened, true));
    assert_eq!((s.results[&3].how, s.results[&3].direct), (Cost::Coalesced, false));
    assert!(s.is_idle());
}

#[test]
fn ten_thousand_identical_waits_open_one_poll() {
    let mut s = Scenario::new();
    for wait in 0..10_000 {
        s.join(wait, "a", "completed");
    }
    s.at(60.0).land("a completed", "a=complete");
    assert_eq!((s.results.len(), s.opened, s.is_idle()), (10_000, 1, true));
}

#[test]
fn a_late_joiner_keeps_its_own_two_minutes_and_gets_a_second_poll() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(60.0).join(2, "a", "completed");
    s.at(120.1).land("a completed", "a=streaming");
    s.assert_answers(&["timed out a=streaming", ""]);
    assert_eq!((s.open(), s.opened), (vec!["a completed"], 2));
    s.at(179.9).assert_answers(&["timed out a=streaming", ""]);
    s.at(180.0).assert_answers(&["timed out a=streaming"; 2]);
    assert_eq!(s.opened, 2, "what is proven costs no request");
}

#[test]
fn a_late_joiner_is_answered_by_the_poll_that_it_attached_to() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(119.0).join(2, "a", "completed");
    s.at(119.5).land("a completed", "a=complete").assert_answers(&["reached a=complete"; 2]);
    assert_eq!(s.opened, 1);
}

#[test]
fn a_poll_that_ends_together_with_its_last_wait_is_not_opened_again() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").join(2, "a", "completed").at(120.05).land("a completed", "a=queued");
    s.assert_answers(&["timed out a=queued"; 2]);
    assert_eq!((s.opened, s.is_idle()), (1, true));
}

#[test]
fn the_second_poll_belongs_to_the_late_joiner_that_opened_it() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(60.0).join(2, "a", "completed");
    s.at(120.1).land("a completed", "a=queued").at(130.0).land("a completed", "a=complete");
    for wait in 1..=2 {
        assert_eq!((s.results[&wait].how, s.results[&wait].direct), (Cost::Opened, true), "{wait}");
    }
}

#[test]
fn a_long_wait_opens_a_poll_each_time_the_upstream_ends_one() {
    let mut s = Scenario::new();
    s.join_for(1, "a", "completed", 600.0);
    for round in 1..5 {
        s.at(120.1 * f64::from(round)).land("a completed", "a=queued");
    }
    s.at(600.0);
    assert_eq!((s.opened, s.open()), (6, vec!["a completed", "a submitted"]), "five, and a snapshot");
    s.land("a submitted", "a=streaming").assert_answers(&["timed out a=streaming"]);
}

#[test]
fn a_wait_for_a_rung_that_the_job_skips_is_answered() {
    let mut s = Scenario::new();
    s.join(1, "a", "queued").join(2, "a", "streaming").at(5.0).land("a queued", "a=complete");
    s.assert_answers(&["reached a=complete"; 2]);
    assert!(s.is_idle());
}
