//! Polls for several jobs end once each job has a silent poll of its own (P4), and their waits lose nothing (P12).

use super::*;

/// Returns a machine with a poll for `a` and `b`, which were seen streaming, and since 10 s one for `a` alone.
fn batch() -> Scenario {
    let mut s = Scenario::new();
    s.join(1, "a b", "completed").join(2, "a b", "").land("a b now", "a=streaming b=streaming");
    s.at(10.0).join(3, "a", "completed");
    assert_eq!(s.open(), ["a b completed", "a completed"]);
    s
}

/// Returns a machine whose poll for `a` and `b` was shed at 20.5 s.
fn shed() -> Scenario {
    let mut s = batch();
    s.at(20.0).join(4, "b", "completed").at(20.4);
    assert_eq!(s.open(), ["a b completed", "a completed", "b completed"]);
    s.at(20.5);
    assert_eq!((s.open(), s.aborted), (vec!["a completed", "b completed"], 1));
    s
}

#[test]
fn a_poll_for_two_jobs_ends_once_each_of_them_has_a_silent_poll_of_its_own() {
    let mut s = shed();
    s.leave(3).leave(4).at(60.0).land("a completed", "a=complete").land("b completed", "b=complete");
    assert_eq!(s.answer(1), "reached a=complete b=complete");
    assert_eq!((s.opened, s.is_idle()), (4, true));
}

#[test]
fn its_waits_are_answered_at_their_deadline_without_a_further_request() {
    let mut s = shed();
    s.at(120.0);
    assert_eq!((s.answer(1).as_str(), s.opened), ("timed out a=streaming b=streaming", 4));
}

#[test]
fn its_waits_ask_again_where_one_of_those_polls_is_refused() {
    let mut s = shed();
    s.at(30.0).land_as("a completed", PollOutcome::Refused(reply(404)));
    assert_eq!((s.answer(1).as_str(), s.answer(3).as_str()), ("", "refused 404"));
    assert_eq!(s.open(), ["b completed", "a completed"]);
    s.at(40.0).land("a completed", "a=complete").land("b completed", "b=complete");
    assert_eq!((s.answer(1).as_str(), s.opened), ("reached a=complete b=complete", 5));
}

#[test]
fn its_waits_get_the_refusal_of_the_poll_that_they_open_then() {
    let mut s = shed();
    s.at(30.0).land_as("a completed", PollOutcome::Refused(reply(404)));
    s.at(31.0).land_as("a completed", PollOutcome::Refused(reply(404)));
    assert_eq!((s.answer(1).as_str(), s.opened), ("refused 404", 5));
}

#[test]
fn its_waits_ask_again_where_one_of_those_polls_fails_or_cannot_be_split() {
    let failure = Failure::UpstreamError(reply(500));
    for (outcome, answer) in [
        (PollOutcome::Failed(failure), "failed 500"),
        (PollOutcome::Failed(Failure::InvalidResponse(None)), "failed InvalidResponse(None)"),
        (PollOutcome::Unsplit(reply(204)), "unsplit 204"),
    ] {
        let mut s = shed();
        s.at(30.0).land_as("b completed", outcome);
        assert_eq!((s.answer(4).as_str(), s.open()), (answer, vec!["a completed", "b completed"]));
        s.at(40.0).land("a completed", "a=complete").land("b completed", "b=complete");
        assert_eq!((s.answer(1).as_str(), s.opened), ("reached a=complete b=complete", 5));
    }
}

/// P1: without the poll, no event would lead to one for the other job.
#[test]
fn the_poll_stays_while_one_of_its_waits_has_no_poll_for_another_job() {
    let mut s = Scenario::with(2, secs(2.0));
    s.join_for(1, "a b c", "completed", 300.0).join(2, "a b", "").land("a b now", "a=streaming b=streaming");
    s.at(10.0).join(3, "a", "completed").at(15.0).land("c completed", "c=queued");
    assert_eq!(s.open(), ["a b completed", "a completed"]);
    s.at(20.0).join(4, "b", "completed").at(20.5);
    assert_eq!((s.open(), s.aborted), (vec!["a b completed", "a completed", "b completed"], 0));
    s.land("a b completed", "a=complete b=complete");
    assert_eq!(s.open(), ["a completed", "b completed", "c completed"]);
}

/// P4: they ask again for each failed poll once, and while that poll is open for no other job.
#[test]
fn its_waits_ask_again_for_one_poll_at_a_time() {
    let refused = || PollOutcome::Refused(reply(404));
    let failed = || PollOutcome::Failed(Failure::UpstreamError(reply(500)));
    for outcome in [refused, failed] {
        let mut s = shed();
        s.at(30.0).land_as("a completed", outcome()).at(31.0).land_as("b completed", outcome());
        assert_eq!((s.answer(1), s.open(), s.opened), (String::new(), vec!["a completed"], 5));
        s.at(40.0).land("a completed", "a=complete");
        assert_eq!((s.open(), s.opened), (vec!["b completed"], 6));
    }
}

#[test]
fn its_waits_ask_again_where_the_upstream_pauses_one_of_those_polls() {
    let mut s = shed();
    s.at(30.0).progress("b completed", paused(429, 60.0));
    assert_eq!(s.open(), ["a completed", "b completed", "b completed"]);
    let own = s.open[2].0;
    // The pause of the poll that the wait opened itself is its own.
    s.handle(Input::Progress(own, paused(429, 60.0)));
    assert_eq!((s.answer(1).as_str(), s.opened), ("", 5));
}

#[test]
fn its_waits_stay_through_a_retry_and_share_an_outage() {
    let mut s = shed();
    s.at(30.0).progress("b completed", PollProgress::BackingOff(Failure::Unreachable, secs(1.0)));
    assert_eq!((s.opened, s.open()), (4, vec!["a completed", "b completed"]));
    s.at(60.0).land_as("b completed", PollOutcome::Failed(Failure::Unreachable));
    assert_eq!(s.answer(1), "failed Unreachable");
}

#[test]
fn those_polls_stay_open_when_their_own_waits_leave() {
    let mut s = shed();
    s.leave(3).leave(4).at(60.0);
    assert_eq!((s.open(), s.aborted), (vec!["a completed", "b completed"], 1));
}

#[test]
fn the_poll_stays_if_one_of_the_others_is_refused_before_it_was_silent_for_long_enough() {
    let mut s = batch();
    s.at(20.0).join(4, "b", "completed");
    s.at(20.4).land_as("b completed", PollOutcome::Refused(reply(429)));
    s.at(30.0);
    assert_eq!((s.answer(1).as_str(), s.open()), ("", vec!["a b completed", "a completed"]));
}

#[test]
fn it_stays_while_the_upstream_does_not_hold_the_others() {
    let mut s = batch();
    s.at(20.0).holds = false;
    s.join(4, "b", "completed").at(30.0);
    assert_eq!(s.open(), ["a b completed", "a completed", "b completed"]);
    s.progress("b completed", PollProgress::Held).at(30.5);
    assert_eq!(s.open(), ["a completed", "b completed"]);
}

#[test]
fn it_stays_beside_polls_at_another_rung_or_opened_before_it() {
    let mut s = batch();
    s.at(20.0).join(4, "b", "streaming").at(30.0);
    assert_eq!(s.open(), ["a b completed", "a completed", "b streaming"]);

    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(10.0).join(2, "a b", "completed").at(20.0).join(3, "b", "completed");
    s.at(30.0);
    assert_eq!(s.open(), ["a completed", "a b completed", "b completed"]);
}

/// The state at the deadline would cost a snapshot that the landing of the poll spares.
#[test]
fn it_stays_for_a_wait_that_ends_with_it_if_a_state_was_not_seen() {
    let mut s = Scenario::new();
    s.join(1, "a b", "completed").at(10.0).join(2, "a", "completed").join(3, "b", "completed").at(20.0);
    assert_eq!(s.open().len(), 3);
    s.at(120.0).land("a b completed", "a=queued b=streaming");
    assert_eq!((s.answer(1).as_str(), s.opened), ("timed out a=queued b=streaming", 3));
}

#[test]
fn it_ends_if_its_waits_end_before_it_whether_their_states_were_seen_or_not() {
    let mut s = Scenario::new();
    s.join_for(1, "a b", "completed", 60.0).at(10.0).join(2, "a", "completed").join(3, "b", "completed");
    s.at(10.5);
    assert_eq!(s.open(), ["a completed", "b completed"]);
}

#[test]
fn a_job_that_is_done_needs_no_poll_of_its_own() {
    let mut s = batch();
    s.at(20.0).land("a completed", "a=complete").join(4, "b", "completed").at(20.5);
    assert_eq!(s.open(), ["b completed"]);
    s.land("b completed", "b=complete");
    assert_eq!(s.answer(1), "reached a=complete b=complete");
}

#[test]
fn watches_make_it_superfluous_too() {
    let mut s = batch();
    s.machine.set_watch_idle(secs(20.0));
    s.at(20.0).get(4, "b").land("b now", "b=streaming").at(21.0).get(5, "b").land("b now", "b=streaming");
    s.at(21.5);
    assert_eq!(s.open(), ["a completed", "b completed"]);
}
