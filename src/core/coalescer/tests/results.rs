//! Landings without jobs: answers that cannot be split, refusals, failures.

use super::*;

#[test]
fn an_unsplit_answer_goes_to_the_waits_on_exactly_its_jobs_and_the_others_open_their_own_poll() {
    let mut s = Scenario::new();
    s.join(1, "a b", "completed").join(2, "a b", "completed").join(3, "a b c", "completed");
    assert_eq!(s.open(), ["a b completed", "c completed"]);
    s.at(9.0).land_as("a b completed", PollOutcome::Unsplit(reply(200)));
    s.assert_answers(&["unsplit 200", "unsplit 200", ""]);
    assert_eq!(s.open(), ["c completed", "a b c completed"]);
    s.at(12.0)
        .land_as("a b c completed", PollOutcome::Unsplit(reply(200)))
        .assert_answers(&["unsplit 200"; 3]);
    assert!(s.is_idle());
}

#[test]
fn an_unsplit_answer_for_a_lower_rung_does_not_cut_a_wait_for_a_higher_one_short() {
    let mut s = Scenario::new();
    s.join(1, "a b", "streaming").join(2, "a b", "completed");
    s.at(9.0).land_as("a b streaming", PollOutcome::Unsplit(reply(200))).assert_answers(&["unsplit 200", ""]);
    assert_eq!(s.open(), ["a b completed"]);
}

#[test]
fn an_unsplit_answer_at_the_end_of_the_hold_does_not_cut_a_late_joiner_short() {
    let mut s = Scenario::new();
    s.join(1, "a b", "completed").at(60.0).join(2, "a b", "completed");
    s.at(120.1)
        .land_as("a b completed", PollOutcome::Unsplit(reply(200)))
        .assert_answers(&["unsplit 200", ""]);
    s.at(130.0)
        .land_as("a b completed", PollOutcome::Unsplit(reply(200)))
        .assert_answers(&["unsplit 200"; 2]);
}

#[test]
fn an_unsplit_answer_to_one_of_several_polls_of_a_wait_fails_it() {
    let mut s = Scenario::with(2, secs(2.0));
    s.join(1, "a b c", "completed").land_as("a b completed", PollOutcome::Unsplit(reply(200)));
    s.assert_answers(&["failed InvalidResponse(None)"]);
}

#[test]
fn a_refusal_answers_every_wait_on_its_poll() {
    let mut s = Scenario::new();
    s.join(1, "a", "streaming").at(1.0).join(2, "a", "completed").join(3, "b", "completed");
    s.land_as("a streaming", PollOutcome::Refused(reply(404))).assert_answers(&[
        "refused 404",
        "refused 404",
        "",
    ]);
    assert_eq!((s.results[&1].direct, s.results[&2].direct), (true, false));
}

#[test]
fn a_failure_ends_only_the_waits_that_arrived_before_the_failed_attempt() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed")
        .at(1.0)
        .progress("a completed", PollProgress::BackingOff(Failure::Unreachable, secs(1.0)));
    s.join(2, "a", "completed").at(2.0).progress("a completed", PollProgress::AttemptStarted);
    s.at(3.0).join(3, "a", "completed").at(4.0);
    s.land_as("a completed", PollOutcome::Failed(Failure::Unreachable));
    s.assert_answers(&["failed Unreachable", "failed Unreachable", ""]);
    assert_eq!(s.open(), ["a completed"]);
}

/// The client alone asks for all of its jobs at once, and hears of the refusal then (P1).
#[test]
fn a_wait_with_a_poll_of_its_own_asks_again_for_the_jobs_of_a_poll_that_failed() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(1.0);
    s.join_for(2, "a b c", "completed", 60.0).join_for(3, "a b d", "completed", 60.0);
    assert_eq!(s.open(), ["a completed", "b c completed", "b d completed"]);
    s.at(4.0).land_as("a completed", PollOutcome::Failed(Failure::Unreachable));
    s.assert_answers(&["failed Unreachable", "", ""]);
    assert_eq!(s.open(), ["b c completed", "b d completed", "a completed"], "one poll more for both");
    s.land_as("a completed", PollOutcome::Refused(reply(404)));
    s.assert_answers(&["failed Unreachable", "refused 404", "refused 404"]);
}
