//! Chains: snapshots for waits where the upstream never holds. Their 429s (P12) and turns (P11).

use super::*;

fn rate_limited_for_unknown_time(s: &mut Scenario, id: u64) {
    s.ended(id, Failure::InvalidResponse(None), RetryAdvice::PauseKey(None));
}

/// A chain that gets a 429 without `Retry-After`, started and refused again after each pause. Returns the pauses.
fn refusals_in_a_row(s: &mut Scenario, id: u64, count: usize) -> Vec<u64> {
    let mut pauses = Vec::new();
    for _ in 0..count {
        assert_eq!(s.starts(), [id]);
        rate_limited_for_unknown_time(s, id);
        let [(refused, _, pause)] = s.pauses()[..] else { panic!("a 429 pauses its chain once") };
        assert_eq!(refused, id);
        pauses.push(pause);
        s.advance(Duration::from_secs(pause));
    }
    pauses
}

#[test]
fn one_429_to_a_chain_pauses_its_key_at_once_and_no_other_key() {
    let mut s = Scenario::new(config(50));
    (1..=2).for_each(|id| s.request(id, A, PollClass::Chain));
    assert_eq!(s.starts(), [1, 2]);
    s.rate_limited(1, 3);
    s.request(3, A, PollClass::Chain);
    s.request(4, A, PollClass::Snapshot);
    s.long_poll(5, A);
    let key = "key-rate-limited";
    let expected = [(1, "invalid-upstream-response", 3), (3, key, 3), (4, key, 3), (5, key, 3)];
    assert_eq!(s.pauses(), expected);
    s.request(10, B, PollClass::Chain);
    s.request(6, A, PollClass::Plain);
    assert_eq!(s.starts(), [10, 6], "a plain poll is its client's own request");
    s.answer(2);
    s.advance(Duration::from_secs(3));
    assert_eq!(s.starts(), [4], "the snapshot probes");
    s.answer(4);
    assert_eq!(s.starts(), [3, 5, 1], "a chain that was refused goes last of its line");
}

#[test]
fn a_429_without_retry_after_pauses_the_key_for_a_second_and_twice_as_long_each_time_up_to_a_minute() {
    let mut s = Scenario::new(config(50));
    s.request(1, A, PollClass::Chain);
    assert_eq!(refusals_in_a_row(&mut s, 1, 9), [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    assert_eq!(s.starts(), [1]);
    s.answer(1);
    s.request(2, A, PollClass::Chain);
    assert_eq!(refusals_in_a_row(&mut s, 2, 2), [1, 2], "a success of the key ends it");
}

#[test]
fn a_chain_is_never_given_up_because_of_429s() {
    let mut s = Scenario::new(SchedulerConfig { retries: 0, retry_for: Duration::ZERO, ..config(50) });
    s.request(1, A, PollClass::Chain);
    let advice = [None, Some(Duration::ZERO), Some(SECOND), Some(Duration::from_secs(3600))];
    for advice in advice.into_iter().cycle().take(100) {
        assert_eq!(s.starts(), [1]);
        s.ended(1, Failure::InvalidResponse(None), RetryAdvice::PauseKey(advice));
        let pauses = s.pauses();
        let [(1, _, 1..=60)] = pauses[..] else { panic!("{advice:?}: {pauses:?}") };
        s.advance(MAX_KEY_PAUSE);
    }
}

#[test]
fn errors_and_transport_faults_of_a_chain_are_retried_as_those_of_other_polls() {
    let mut s = Scenario::after_first_success(config(50));
    s.request(1, A, PollClass::Chain);
    for _ in 0..3 {
        assert_eq!(s.starts(), [1]);
        s.upstream_error(1);
        s.advance(SECOND);
    }
    assert_eq!(s.outputs().pop(), Some(SchedulerOutput::GiveUp(PollId(1), Failure::InvalidResponse(None))));
    s.request(2, A, PollClass::Chain);
    let starts = s.run_timers(Duration::from_secs(60), true);
    assert!(starts.iter().any(|(millis, _)| *millis >= 30_000), "{starts:?}");
    assert!(s.scheduler.polls.is_empty(), "given up after `retry_for`");
}

/// P12: requests that crossed are one event.
#[test]
fn chains_that_get_a_429_together_lengthen_the_pause_once() {
    let mut s = Scenario::new(config(50));
    (1..=20).for_each(|id| s.request(id, A, PollClass::Chain));
    s.starts();
    for id in 1..=20 {
        rate_limited_for_unknown_time(&mut s, id);
        s.advance(Duration::from_millis(10));
    }
    let own = |outputs: Vec<(u64, &str, u64)>| outputs.into_iter().map(|(id, ..)| id).collect::<Vec<_>>();
    assert_eq!(own(s.pauses()), (1..=20).collect::<Vec<_>>());
    s.advance(Duration::from_millis(799));
    assert_eq!(s.starts(), [0; 0]);
    s.advance(Duration::from_millis(1));
    assert_eq!(s.starts(), [1], "one chain probes");
    rate_limited_for_unknown_time(&mut s, 1);
    assert_eq!(s.pauses().last(), Some(&(1, "invalid-upstream-response", 2)));
    s.advance(Duration::from_secs(2));
    assert_eq!(s.starts(), [2], "another one probes");
    s.answer(2);
    assert_eq!(s.starts().len(), 19);
}

#[test]
fn a_429_that_is_older_than_the_probe_of_its_key_does_not_pause_it_again() {
    let mut s = Scenario::new(config(50));
    (1..=2).for_each(|id| s.request(id, A, PollClass::Chain));
    s.starts();
    rate_limited_for_unknown_time(&mut s, 1);
    s.advance(SECOND);
    assert_eq!(s.starts(), [1]);
    rate_limited_for_unknown_time(&mut s, 2);
    assert_eq!(s.starts(), [0; 0], "chain 2 waits for the probe");
    s.answer(1);
    assert_eq!(s.starts(), [2]);
}

/// A wait that ends in a pause before any state was read gets the answer of the upstream.
#[test]
fn a_chain_reports_its_own_429_for_as_long_as_its_key_is_paused() {
    let mut s = Scenario::new(config(50));
    (1..=2).for_each(|id| s.request(id, A, PollClass::Chain));
    s.starts();
    let response = crate::core::job::UpstreamResponse {
        status: 429,
        head: std::sync::Arc::default(),
        body: bytes::Bytes::from_static(b"slow down"),
    };
    let failure = Failure::UpstreamError(std::sync::Arc::new(response));
    for id in 1..=2 {
        s.ended(id, failure.clone(), RetryAdvice::PauseKey(None));
    }
    s.outputs();
    s.advance(SECOND);
    assert_eq!(s.starts(), [1]);
    s.ended(1, failure.clone(), RetryAdvice::PauseKey(None));
    let two = Duration::from_secs(2);
    let expected = [2, 1].map(|id| SchedulerOutput::Pause(PollId(id), failure.clone(), two));
    assert_eq!(s.outputs(), expected);
}

/// Plain polls ignore the pause, and their 429s must not extend it without end.
#[test]
fn plain_polls_that_are_refused_extend_the_pause_of_a_key_to_a_minute_at_most() {
    let mut s = Scenario::new(config(50));
    s.request(1, A, PollClass::Chain);
    s.starts();
    rate_limited_for_unknown_time(&mut s, 1);
    s.outputs();
    let mut seconds = 0;
    let started = loop {
        s.request(100 + seconds, A, PollClass::Plain);
        let starts = s.starts();
        if starts.contains(&1) {
            break seconds;
        }
        assert_eq!(starts, [100 + seconds]);
        s.rate_limited(100 + seconds, 5);
        s.advance(SECOND);
        seconds += 1;
    };
    assert_eq!(started, 59, "the pause began a second before");
}

#[test]
fn a_plain_poll_that_is_refused_without_retry_after_does_not_lengthen_the_pause_of_its_key() {
    let mut s = Scenario::new(config(50));
    s.request(1, A, PollClass::Chain);
    assert_eq!(refusals_in_a_row(&mut s, 1, 3), [1, 2, 4]);
    assert_eq!(s.starts(), [1]);
    for id in 10..20 {
        s.request(id, A, PollClass::Plain);
        rate_limited_for_unknown_time(&mut s, id);
        assert_eq!(s.given_up(), [(id, "invalid-upstream-response")]);
    }
    rate_limited_for_unknown_time(&mut s, 1);
    assert_eq!(s.pauses(), [(1, "invalid-upstream-response", 8)]);
}

#[test]
fn snapshots_and_plain_polls_go_before_chains_which_may_take_the_last_slot() {
    let mut s = Scenario::new(config(3));
    (1..=4).for_each(|id| s.request(id, key(id), PollClass::Chain));
    assert_eq!(s.starts(), [1, 2, 3]);
    s.request(10, key(10), PollClass::Plain);
    s.request(11, key(11), PollClass::Snapshot);
    s.answer(1);
    s.answer(2);
    s.answer(3);
    assert_eq!(s.starts(), [11, 10, 4]);
}

#[test]
fn chains_and_long_polls_take_turns() {
    let interval = Duration::from_millis(100);
    let mut s = Scenario::new(SchedulerConfig { interval, ..config(1000) });
    (1..=5).for_each(|id| s.request(id, A, PollClass::Chain));
    (11..=15).for_each(|id| s.long_poll(id, A));
    (21..=22).for_each(|id| s.long_poll(id, B));
    let starts: Vec<u64> = s.run_timers(SECOND, false).into_iter().map(|(_, id)| id).collect();
    assert_eq!(starts, [1, 2, 11, 21, 3, 12, 22, 4, 13, 5, 14]);
}

#[test]
fn a_long_poll_without_a_slot_does_not_delay_a_chain_of_its_key() {
    let mut s = Scenario::new(config(2));
    (1..=2).for_each(|id| s.long_poll(id, A));
    s.request(3, A, PollClass::Chain);
    assert_eq!(s.starts(), [1, 3]);
}

#[test]
fn the_scheduler_forgets_the_pauses_of_a_key_without_polls_a_minute_after_the_last_one() {
    let mut s = Scenario::new(config(50));
    s.request(1, A, PollClass::Chain);
    assert_eq!(refusals_in_a_row(&mut s, 1, 4), [1, 2, 4, 8]);
    assert_eq!(s.starts(), [1]);
    s.scheduler.withdraw(PollId(1), s.now);
    s.advance(Duration::from_secs(59));
    s.request(2, A, PollClass::Chain);
    assert_eq!(refusals_in_a_row(&mut s, 2, 1), [16]);
    assert_eq!(s.starts(), [2]);
    s.scheduler.withdraw(PollId(2), s.now);
    s.advance(Duration::from_secs(61));
    assert!(s.scheduler.keys.is_empty());
    assert_eq!(s.scheduler.poll_timeout(), None);
}
