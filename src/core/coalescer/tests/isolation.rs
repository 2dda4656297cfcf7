//! No wait depends on the jobs or the key of another (P5, P11), and states reach the waits that they concern.

use super::*;

#[test]
fn a_wait_for_one_job_does_not_attach_to_a_poll_for_two_and_does_not_fail_with_it() {
    let mut s = Scenario::new();
    s.join(1, "a b", "completed").join(2, "a", "completed");
    assert_eq!(s.open(), ["a b completed", "a completed"]);
    s.land_as("a b completed", PollOutcome::Refused(reply(404))).assert_answers(&["refused 404", ""]);
    s.land("a completed", "a=complete").assert_answers(&["refused 404", "reached a=complete"]);
}

#[test]
fn a_poll_for_two_jobs_answers_the_wait_on_one_of_them() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(1.0).join(2, "a b", "streaming");
    s.at(9.0).land("a b streaming", "a=complete b=streaming");
    s.assert_answers(&["reached a=complete", "reached a=complete b=streaming"]);
}

#[test]
fn waits_of_two_keys_on_one_job_open_two_polls_and_get_two_answers() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed");
    s.join_with(2, WaitSpec { domain: domain(1), ..s.spec("a", "completed") });
    assert_eq!((s.open(), s.poll("a completed")), (vec!["a completed", "a completed"], PollId(0)));
    s.land("a completed", "a=complete").assert_answers(&["reached a=complete", ""]);
    s.land_as("a completed", PollOutcome::Refused(reply(401)))
        .assert_answers(&["reached a=complete", "refused 401"]);
}

#[test]
fn a_state_below_the_last_one_seen_is_ignored() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").join(2, "a", "streaming").at(5.0).land("a streaming", "a=streaming");
    s.at(6.0).join(3, "a", "queued").land("a queued", "a=submitted");
    s.assert_answers(&["", "reached a=streaming", "reached a=streaming"]);
    s.at(120.0).land("a completed", "a=queued");
    assert_eq!(s.answer(1), "timed out a=streaming");
}

#[test]
fn an_unknown_status_answers_the_waits_on_its_poll_at_once_and_no_later_wait() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").join(2, "a b", "completed");
    s.join(3, "a", "streaming").at(5.0).land("a streaming", "a=paused");
    s.assert_answers(&["", "", "reached a=paused"]);
    s.join(4, "a", "streaming").assert_answers(&["", "", "reached a=paused", ""]);
    assert_eq!(s.open(), ["a completed", "b completed", "a streaming"], "it is not kept");
}

#[test]
fn a_wait_for_two_jobs_that_got_an_unknown_status_asks_on_for_the_other_job_only() {
    let mut s = Scenario::new();
    s.join(1, "a b", "completed").at(5.0).land("a b completed", "a=paused b=queued");
    s.assert_answers(&[""]);
    assert_eq!(s.open(), ["b completed"]);
    s.at(9.0).land("b completed", "b=complete").assert_answers(&["reached a=paused b=complete"]);
}

/// The sweep found that such a state satisfied another wait too. That wait was attached to no poll and held until its
/// deadline.
#[test]
fn a_cached_state_of_one_wait_does_not_answer_another() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(0.1).land("a completed", "a=queued").at(1.0);
    let known = vec![s.state("a", "complete")];
    s.join_with(2, WaitSpec { known, ..s.spec("a", "completed") })
        .assert_answers(&["", "reached a=complete"]);
    s.at(2.0);
    assert_eq!(s.open(), ["a completed"]);
    s.land("a completed", "a=complete").assert_answers(&["reached a=complete"; 2]);
}
