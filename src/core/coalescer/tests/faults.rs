//! Failing attempts and pauses that the upstream asks for (P12).

use super::*;

/// The client alone would have had that answer at once, and no other can come in time.
#[test]
fn a_wait_gets_the_429_or_503_at_once_if_the_pause_outlasts_it() {
    for status in [429, 503] {
        let mut s = Scenario::new();
        s.join(1, "a", "completed").at(0.5).join(2, "a b", "completed").at(1.0);
        s.progress("a completed", paused(status, 3600.0));
        s.assert_answers(&[&format!("failed {status}"), ""]);
        assert!(s.results[&1].direct, "Retry-After goes along");
        s.leave(2).at(10.0);
        assert!(s.is_idle());
    }
    let mut s = Scenario::new();
    s.join_for(1, "a", "completed", 0.0).progress("a submitted", paused(429, 60.0));
    s.assert_answers(&["failed 429"]);
}

#[test]
fn a_wait_that_outlasts_the_pause_is_held_through_it() {
    let mut s = Scenario::new();
    s.join_for(1, "a", "completed", 600.0).at(1.0).progress("a completed", paused(429, 500.0));
    s.at(501.0).assert_answers(&[""]);
    s.progress("a completed", PollProgress::AttemptStarted).at(502.0).land("a completed", "a=complete");
    s.assert_answers(&["reached a=complete"]);
}

/// The other poll may bring a refusal. Without one the wait gets the same 429 later.
#[test]
fn a_wait_is_held_through_a_longer_pause_while_another_poll_may_answer_it() {
    let mut s = Scenario::with(1, secs(2.0));
    s.join(1, "a b", "completed").at(1.0).progress("a completed", paused(429, 3600.0)).at(60.0);
    s.assert_answers(&[""]);
    s.land("b completed", "b=complete").assert_answers(&["failed 429"]);

    let mut s = Scenario::new();
    s.join(1, "a", "completed").join(2, "a", "streaming").at(1.0);
    s.progress("a streaming", paused(503, 3600.0)).assert_answers(&["", "failed 503"]);
    s.at(2.0).land("a completed", "a=complete").assert_answers(&["reached a=complete", "failed 503"]);
}

#[test]
fn a_wait_with_a_proven_state_is_held_through_a_pause_that_outlasts_it() {
    let mut s = Scenario::new();
    s.join(1, "a b", "completed").join(2, "a", "streaming").join(3, "b", "completed").at(10.0);
    s.land("a streaming", "a=streaming").land("b completed", "b=complete");
    s.at(20.0).join(4, "a", "completed").at(20.4).progress("a completed", paused(429, 3600.0));
    assert_eq!(s.answer(4), "", "the poll for a and b is held, and only a keeps it open");
    s.at(90.0).land("a b completed", "a=complete b=complete");
    assert_eq!(s.answer(4), "reached a=complete");
}

/// The client alone would make a request now, and the upstream may well answer it.
#[test]
fn a_wait_that_arrives_in_a_pause_that_would_outlast_it_opens_its_own_poll() {
    let mut s = Scenario::new();
    s.join_for(1, "a", "completed", 600.0).at(1.0).progress("a completed", paused(503, 500.0));
    s.at(2.0).join(2, "a", "completed");
    assert_eq!((s.open(), s.opened), (vec!["a completed"; 2], 2));
    s.at(3.0).join_for(3, "a", "completed", 600.0);
    assert_eq!(s.opened, 2, "a wait that outlasts the pause attaches to both");
    let asked_anew = s.open.pop().unwrap();
    s.open.insert(0, asked_anew);
    s.at(9.0).land("a completed", "a=complete").assert_answers(&["reached a=complete"; 3]);
    assert!(s.is_idle());
}

#[test]
fn a_wait_that_attached_during_an_attempt_opens_its_own_poll_if_that_ends_with_a_long_pause() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(1.0).join(2, "a", "completed").at(2.0);
    s.progress("a completed", paused(503, 3600.0)).assert_answers(&["failed 503", ""]);
    assert_eq!((s.open(), s.opened), (vec!["a completed"], 2));
    s.progress("a completed", paused(503, 3600.0)).assert_answers(&["failed 503", "failed 503"]);
    assert!(s.is_idle());
}

#[test]
fn a_pause_of_the_key_fails_at_once_the_waits_that_it_outlasts_and_no_others() {
    let mut s = Scenario::new();
    s.queues = true;
    s.join(1, "a", "completed").join_for(2, "a", "completed", 30.0).join_for(3, "a b", "completed", 30.0);
    s.progress("a completed", key_paused(60.0));
    s.assert_answers(&["", "failed KeyRateLimited { retry_after: 60s }", ""]);
    s.progress("b completed", key_paused(60.0));
    assert_eq!(s.answer(3), "failed KeyRateLimited { retry_after: 60s }");
    s.at(40.0).join_for(4, "a", "completed", 5.0);
    assert_eq!(s.answer(4), "failed KeyRateLimited { retry_after: 20s }", "whenever it came");
    s.at(60.0).progress("a completed", PollProgress::AttemptStarted).land("a completed", "a=complete");
    assert_eq!(s.answer(1), "reached a=complete");
    assert!(s.is_idle());
}

/// The pause outlasts the wait by less than the snapshot may take, so the snapshot can still get the state.
#[test]
fn a_wait_whose_snapshot_would_outlast_the_pause_is_held_through_it() {
    let mut s = Scenario::new();
    s.join_for(1, "a", "completed", 60.0).at(55.0).progress("a completed", paused(429, 10.0)).at(60.0);
    s.assert_answers(&[""]);
    assert_eq!(s.open(), ["a submitted"]);
    s.progress("a submitted", key_paused(5.0)).at(65.0).progress("a submitted", PollProgress::AttemptStarted);
    s.land("a submitted", "a=streaming").assert_answers(&["timed out a=streaming"]);
}

#[test]
fn a_wait_whose_snapshot_is_paused_past_its_limit_fails_at_once() {
    let mut s = Scenario::new();
    s.join_for(1, "a", "completed", 60.0).at(30.0).join_for(2, "a", "completed", 30.0).at(60.0);
    s.progress("a submitted", key_paused(60.0));
    s.assert_answers(&[
        "failed KeyRateLimited { retry_after: 60s }",
        "failed KeyRateLimited { retry_after: 60s }",
    ]);
}

#[test]
fn a_wait_with_time_left_is_held_through_failed_attempts() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(1.0);
    s.progress("a completed", PollProgress::BackingOff(Failure::UpstreamError(reply(500)), secs(89.0)))
        .at(90.0)
        .assert_answers(&[""]);
    s.progress("a completed", PollProgress::AttemptStarted).progress("a completed", PollProgress::Held);
    s.at(100.0).land("a completed", "a=complete").assert_answers(&["reached a=complete"]);
}

#[test]
fn a_wait_past_its_deadline_gets_the_last_failure_of_the_upstream() {
    let failing =
        |status, pause| PollProgress::BackingOff(Failure::UpstreamError(reply(status)), secs(pause));
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(1.0).progress("a completed", failing(500, 120.0)).at(120.0);
    s.assert_answers(&[""]);
    assert_eq!(s.open(), ["a submitted"]);
    s.at(120.1).progress("a submitted", failing(502, 1.0)).at(130.0);
    s.assert_answers(&["failed 502"]);

    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(1.0).progress("a completed", failing(500, 120.0)).at(130.0);
    s.assert_answers(&["failed 500"]);
    assert!(s.results[&1].direct);

    let mut s = Scenario::new();
    s.join_for(1, "a", "completed", 60.0).at(70.0).assert_answers(&["failed Timeout"]);
}

#[test]
fn a_retry_after_on_a_success_sets_the_time_of_the_next_poll() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed");
    let poll = s.poll("a completed");
    s.machine.handle(Input::RetryAfter(poll, secs(7.0)), s.now);
    s.land("a completed", "a=queued").at(6.9);
    assert_eq!(s.opened, 1);
    s.at(7.1);
    assert_eq!(s.opened, 2);
    let poll = s.poll("a completed");
    s.machine.handle(Input::RetryAfter(poll, secs(3600.0)), s.now);
    s.land("a completed", "a=queued").at(8.0).join(2, "a", "completed");
    assert_eq!(s.opened, 3, "a later wait asks at once, as its client alone would");
    s.land("a completed", "a=queued").at(67.2);
    assert_eq!(s.opened, 4, "a minute at most");
}

/// P1: the job may have completed before the second client came, which alone would have had it at once.
#[test]
fn a_wait_that_arrives_in_the_pause_after_a_success_opens_its_own_poll() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed");
    let poll = s.poll("a completed");
    s.machine.handle(Input::RetryAfter(poll, secs(60.0)), s.now);
    s.land("a completed", "a=queued").at(5.0);
    s.join(2, "a", "completed").at(5.1);
    assert_eq!(s.opened, 2, "its client alone would make a request at 5 s, not at 60 s");
}

#[test]
fn a_request_that_expects_an_answer_at_once_gets_the_429_or_503_at_once() {
    let mut s = Scenario::new();
    s.join(1, "a", "").progress("a now", paused(429, 60.0)).assert_answers(&["failed 429"]);
    s.join(2, "b", "submitted").progress("b submitted", paused(503, 60.0));
    assert_eq!(s.answer(2), "failed 503");
    let patient = WaitSpec { is_patient: true, ..s.spec("d", "submitted") };
    s.join_with(4, patient).progress("d submitted", paused(503, 60.0));
    assert_eq!(s.answer(4), "", "an event stream is held");
    s.join(3, "c", "submitted").progress("c submitted", key_paused(60.0));
    assert!(s.answer(3).starts_with("failed KeyRateLimited"), "{}", s.answer(3));
}
