//! Retries of a poll: backoff, budget, `retry_for`, and the last attempt (P12).

use super::*;

/// Before the first answer since the start the likeliest cause is a wrong address.
#[test]
fn before_the_first_answer_a_poll_is_given_up_after_its_retries() {
    let mut s = Scenario::new(config(9));
    s.long_poll(1, A);
    for _ in 0..3 {
        assert_eq!(s.starts(), [1]);
        s.lose_connection(1);
        if s.scheduler.is_pausing(PollId(1)) {
            assert_eq!(s.scheduler.open(), 0, "a poll that backs off takes no slot");
            s.advance(SECOND);
        }
    }
    assert_eq!(s.given_up(), [(1, "unreachable")]);
}

/// An upstream closes idle connections, and a request may cross such a close on its way.
#[test]
fn a_first_attempt_on_a_closed_kept_connection_is_repeated_at_once_and_does_not_count() {
    let mut s = Scenario::new(SchedulerConfig { retries: 0, retry_for: Duration::ZERO, ..config(50) });
    for id in 1..=20 {
        s.long_poll(id, A);
        assert_eq!(s.starts(), [id]);
        s.sent(id);
        s.ended(id, Failure::Unreachable, RetryAdvice::Reconnect);
        let expected = SchedulerOutput::BackOff(PollId(id), Failure::Unreachable, Duration::ZERO);
        assert_eq!(s.scheduler.poll_output(), Some(expected));
        assert_eq!(s.starts(), [id]);
        s.answer(id);
    }
    assert!(s.scheduler.is_closed());
    s.long_poll(21, A);
    s.ended(21, Failure::Unreachable, RetryAdvice::Reconnect);
    s.ended(21, Failure::Unreachable, RetryAdvice::Reconnect);
    assert_eq!(s.given_up(), [(21, "unreachable")], "a poll reconnects once");
}

/// P11: the errors of one key cost other keys nothing.
#[test]
fn a_key_whose_polls_the_upstream_fails_delays_no_other_key_and_gets_the_errors() {
    let mut s = Scenario::new(config(50));
    (1..=2).for_each(|id| s.long_poll(id, A));
    s.starts();
    for _ in 0..5 {
        (1..=2).for_each(|id| s.upstream_error(id));
        s.advance(SECOND);
    }
    let outputs = s.outputs();
    for id in 1..=2 {
        assert!(
            outputs.contains(&SchedulerOutput::GiveUp(PollId(id), Failure::InvalidResponse(None))),
            "{outputs:?}"
        );
    }
    assert!(s.scheduler.is_closed());
    s.long_poll(10, B);
    assert_eq!(s.starts(), [10]);
}

#[test]
fn errors_beyond_the_retry_budget_of_their_key_are_final_at_once() {
    let mut s = Scenario::new(config(1000));
    (1..=100).for_each(|id| s.long_poll(id, A));
    s.starts();
    (1..=100).for_each(|id| s.upstream_error(id));
    assert_eq!(s.given_up().len(), 50, "30 retries, and one for five polls");
    s.long_poll(200, B);
    s.upstream_error(200);
    assert_eq!(s.given_up(), [], "key B has its own budget");
}

/// P12: a shorter outage fails no wait that has time left.
#[test]
fn an_outage_shorter_than_retry_for_gives_up_no_poll_and_a_new_poll_ends_it() {
    for away in [300, 5_000, 29_000] {
        let mut s = Scenario::after_first_success(config(50));
        (1..=20).for_each(|id| s.long_poll(id, A));
        s.starts();
        (1..=20).for_each(|id| s.lose_connection(id));
        let attempts = s.run_timers(Duration::from_millis(away), true).len();
        assert!(attempts <= 300, "{attempts} attempts");
        assert_eq!(s.given_up(), []);
        s.long_poll(100, B);
        assert_eq!(s.starts(), [100], "a first attempt is always made");
        s.answer(100);
        let starts = s.run_timers(Duration::from_millis(100), false);
        assert_eq!(starts.len(), 20, "all retries go on within the first backoff");
    }
}

#[test]
fn a_poll_is_given_up_when_retry_for_ends() {
    let mut s = Scenario::after_first_success(config(50));
    (1..=20).for_each(|id| s.long_poll(id, A));
    s.starts();
    (1..=20).for_each(|id| s.lose_connection(id));
    let from = s.now;
    let mut given_up = Vec::new();
    while let Some(at) = s.scheduler.poll_timeout().filter(|at| *at <= from + Duration::from_secs(31)) {
        s.now = at;
        s.scheduler.handle_timeout(at);
        while let Some(output) = s.scheduler.poll_output() {
            match output {
                SchedulerOutput::Start(PollId(id)) => s.lose_connection(id),
                SchedulerOutput::GiveUp(PollId(id), _) => given_up.push((id, s.now - from)),
                SchedulerOutput::BackOff(..) | SchedulerOutput::Pause(..) => {}
            }
        }
    }
    assert_eq!(given_up.len(), 20);
    assert!(given_up.iter().all(|(_, after)| *after == Duration::from_secs(30)), "{given_up:?}");
}

/// P12: a shorter outage fails no wait that has time left, even if it ends just before `retry_for`.
#[test]
fn a_poll_that_is_held_back_has_a_last_attempt_before_it_is_given_up() {
    let mut s = Scenario::after_first_success(config(50));
    (1..=20).for_each(|id| s.long_poll(id, A));
    s.starts();
    (1..=20).for_each(|id| s.lose_connection(id));
    let from = s.now;
    s.run_timers(Duration::from_millis(29_900), true);
    // The upstream is back a tenth of a second before `retry_for` ends, and no other poll is attempted.
    while let Some(at) = s.scheduler.poll_timeout().filter(|at| *at <= from + Duration::from_secs(31)) {
        s.now = at;
        s.scheduler.handle_timeout(at);
        for output in s.outputs() {
            match output {
                SchedulerOutput::Start(PollId(id)) => s.answer(id),
                SchedulerOutput::GiveUp(id, _) => panic!("{id:?} is given up after {:?}", s.now - from),
                SchedulerOutput::BackOff(..) | SchedulerOutput::Pause(..) => {}
            }
        }
    }
}

#[test]
fn a_new_wait_has_its_held_back_poll_attempted_at_once() {
    let mut s = Scenario::after_first_success(config(50));
    (1..=20).for_each(|id| s.long_poll(id, A));
    s.starts();
    (1..=20).for_each(|id| s.lose_connection(id));
    s.run_timers(Duration::from_secs(8), true);
    assert!(!s.scheduler.is_closed() && s.scheduler.is_pausing(PollId(7)));
    s.scheduler.try_now(PollId(7), s.now);
    assert_eq!(s.starts(), [7]);
    s.scheduler.try_now(PollId(7), s.now);
    assert_eq!(s.starts(), [0; 0]);
    s.lose_connection(7);
    assert!(s.scheduler.is_pausing(PollId(7)), "the next attempt is a retry again");
}

/// A proxy in front of the upstream ends each held poll with 504.
#[test]
fn a_poll_that_is_cut_after_it_was_held_has_made_progress() {
    let mut s = Scenario::new(config(50));
    s.long_poll(1, A);
    for _ in 0..100 {
        assert_eq!(s.starts(), [1]);
        s.sent(1);
        s.advance(Duration::from_millis(1300));
        s.ended(1, Failure::InvalidResponse(None), RetryAdvice::BackOffHeld);
        s.advance(Duration::from_millis(100));
    }
    assert_eq!(s.starts(), [1]);
    s.sent(1);
    s.advance(Duration::from_millis(1300));
    s.lose_connection(1);
    s.advance(Duration::from_millis(100));
    assert_eq!(s.starts(), [1], "a poll whose connection was lost has made progress too");
}

#[test]
fn an_error_of_the_job_itself_is_not_progress_after_any_hold() {
    let mut s = Scenario::new(config(50));
    s.long_poll(1, A);
    for _ in 0..3 {
        assert_eq!(s.starts(), [1]);
        s.sent(1);
        s.advance(Duration::from_millis(1300));
        s.upstream_error(1);
        s.advance(SECOND);
    }
    assert_eq!(s.given_up(), [(1, "invalid-upstream-response")]);
}
