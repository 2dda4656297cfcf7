//! 429s, `Retry-After`, and the pause of a key (P12).

use super::*;

/// P12: one job that is always refused does not delay another job of its key.
#[test]
fn one_429_pauses_the_poll_that_got_it_and_no_other_of_the_key() {
    let mut s = Scenario::new(config(50));
    s.long_poll(1, A);
    s.starts();
    s.rate_limited(1, 3);
    assert_eq!(s.pauses(), [(1, "invalid-upstream-response", 3)]);
    s.advance(Duration::from_millis(200));
    s.long_poll(2, A);
    assert_eq!(s.starts(), [2]);
    s.answer(2);
    s.advance(Duration::from_millis(2800));
    assert_eq!(s.starts(), [1]);
    s.rate_limited(1, 3);
    s.long_poll(3, A);
    assert_eq!(s.starts(), [3], "429s on the same job are not evidence about the key");
}

#[test]
fn a_429_to_a_second_job_within_the_time_of_the_first_pauses_the_key() {
    let mut s = Scenario::new(config(50));
    (1..=2).for_each(|id| s.long_poll(id, A));
    s.starts();
    s.rate_limited(1, 3);
    s.rate_limited(2, 2);
    s.long_poll(3, A);
    assert_eq!(
        s.pauses(),
        [
            (1, "invalid-upstream-response", 3),
            (2, "invalid-upstream-response", 2),
            (3, "key-rate-limited", 3)
        ]
    );
    s.long_poll(10, B);
    assert_eq!(s.starts(), [10], "key B is not paused");
    s.advance(Duration::from_millis(2999));
    assert_eq!(s.starts(), [0; 0]);
    s.advance(Duration::from_millis(1));
    assert_eq!(s.starts(), [3], "a poll that was refused does not go first");
    s.answer(3);
    assert_eq!(s.sorted_starts(), [1, 2]);
}

#[test]
fn a_429_to_a_second_job_after_the_time_of_the_first_does_not_pause_the_key() {
    let mut s = Scenario::new(config(50));
    (1..=2).for_each(|id| s.long_poll(id, A));
    s.starts();
    s.rate_limited(1, 3);
    s.advance(Duration::from_secs(3));
    assert_eq!(s.starts(), [1]);
    s.rate_limited(2, 3);
    s.long_poll(3, A);
    assert_eq!(s.starts(), [3]);
}

/// P12: the refused job is the same, in a list and alone, so the key need not be the reason.
#[test]
fn one_refused_job_in_two_polls_does_not_pause_its_key() {
    let mut s = Scenario::after_first_success(config(50));
    s.long_poll(1, A);
    let both = JobSet::new(jobs(1).iter().chain(&jobs(2)).cloned());
    let request = PollRequest { domain: A, jobs: both, class: PollClass::LongPoll };
    s.scheduler.request(PollId(2), request, s.now);
    s.starts();
    s.rate_limited(1, 30);
    s.rate_limited(2, 30);
    s.outputs();
    s.long_poll(3, A);
    assert_eq!(s.starts(), [3]);
}

#[test]
fn a_poll_that_was_queued_when_its_key_was_paused_goes_before_those_that_were_refused() {
    let mut s = Scenario::new(config(3));
    (1..=3).for_each(|id| s.long_poll(id, key(id)));
    assert_eq!(s.starts(), [1, 2]);
    s.answer(1);
    s.answer(2);
    s.starts();
    s.answer(3);
    s.long_poll(11, A);
    s.long_poll(12, A);
    s.long_poll(13, A);
    assert_eq!(s.starts(), [11], "of two slots a key takes one");
    s.rate_limited(11, 3);
    assert_eq!(s.starts(), [12]);
    s.rate_limited(12, 3);
    assert_eq!(s.pauses(), [(13, "key-rate-limited", 3), (12, "invalid-upstream-response", 3)]);
    s.advance(Duration::from_secs(3));
    assert_eq!(s.starts(), [13]);
    s.answer(13);
    assert_eq!(s.starts(), [11]);
}

#[test]
fn a_probe_of_a_key_that_is_refused_again_lets_another_job_probe() {
    let mut s = Scenario::new(config(50));
    (1..=2).for_each(|id| s.long_poll(id, A));
    s.starts();
    s.rate_limited(1, 2);
    s.rate_limited(2, 2);
    s.advance(Duration::from_secs(2));
    assert_eq!(s.starts(), [1], "no other poll is queued");
    s.rate_limited(1, 60);
    assert_eq!(s.starts(), [2]);
    s.rate_limited(2, 60);
    s.long_poll(3, A);
    assert_eq!(s.starts(), [3], "the new poll probes at once");
    s.long_poll(4, A);
    assert_eq!(s.starts(), [0; 0]);
    s.rate_limited(3, 20);
    assert_eq!(
        s.pauses(),
        [(4, "key-rate-limited", 20), (3, "invalid-upstream-response", 20)],
        "a 429 on a third job pauses the key"
    );
    s.advance(Duration::from_secs(20));
    assert_eq!(s.starts(), [4]);
}

#[test]
fn a_429_pauses_its_key_for_a_minute_at_most_and_its_poll_for_all_of_retry_after() {
    let mut s = Scenario::new(config(50));
    (1..=2).for_each(|id| s.long_poll(id, A));
    s.starts();
    (1..=2).for_each(|id| s.rate_limited(id, 3600));
    (4..=6).for_each(|id| s.long_poll(id, A));
    s.advance(Duration::from_millis(59_999));
    assert_eq!(s.starts(), [0; 0]);
    s.advance(Duration::from_millis(1));
    assert_eq!(s.starts(), [4]);
    s.sent(4);
    s.advance(Duration::from_millis(999));
    assert_eq!(s.starts(), [0; 0]);
    s.advance(Duration::from_millis(1));
    assert_eq!(s.starts(), [5, 6], "a held poll proves that the upstream accepts the key");
    s.advance(Duration::from_secs(3538));
    assert_eq!(s.starts(), [0; 0]);
    s.advance(SECOND);
    assert_eq!(s.sorted_starts(), [1, 2]);
}

#[test]
fn after_a_probe_without_evidence_the_next_poll_of_the_key_probes() {
    let mut s = Scenario::new(config(50));
    (1..=2).for_each(|id| s.long_poll(id, A));
    s.starts();
    (1..=2).for_each(|id| s.rate_limited(id, 20));
    (3..=6).for_each(|id| s.long_poll(id, A));
    s.advance(Duration::from_secs(20));
    assert_eq!(s.starts(), [3]);
    s.scheduler.withdraw(PollId(3), s.now);
    assert_eq!(s.starts(), [4]);
    s.lose_connection(4);
    assert_eq!(s.starts(), [5]);
    s.ended(5, Failure::InvalidResponse(None), RetryAdvice::PausePoll(Duration::from_secs(90)));
    assert_eq!(s.starts(), [6]);
    s.answer(6);
    assert_eq!(s.sorted_starts(), [1, 2]);
}

#[test]
fn a_503_with_retry_after_pauses_its_own_poll_only() {
    let mut s = Scenario::new(config(50));
    (1..=2).for_each(|id| s.long_poll(id, A));
    s.starts();
    for id in 1..=2 {
        s.ended(id, Failure::InvalidResponse(None), RetryAdvice::PausePoll(Duration::from_secs(90)));
    }
    s.long_poll(3, A);
    assert_eq!(s.starts(), [3]);
    s.advance(Duration::from_secs(89));
    assert_eq!(s.starts(), [0; 0]);
    s.advance(SECOND);
    assert_eq!(s.sorted_starts(), [1, 2]);
}

#[test]
fn pauses_that_the_upstream_asked_for_do_not_count_as_retries() {
    let mut s = Scenario::new(config(50));
    s.long_poll(1, A);
    for _ in 0..40 {
        assert_eq!(s.starts(), [1]);
        s.rate_limited(1, 3);
        s.advance(Duration::from_secs(3));
    }
}

/// P12: its client expects an answer at once.
#[test]
fn a_plain_poll_ignores_the_pause_of_its_key_and_a_429_is_final_for_it() {
    let mut s = Scenario::new(config(50));
    (1..=2).for_each(|id| s.long_poll(id, A));
    s.starts();
    (1..=2).for_each(|id| s.rate_limited(id, 60));
    s.request(3, A, PollClass::Snapshot);
    s.request(4, A, PollClass::Plain);
    assert_eq!(s.starts(), [4]);
    s.rate_limited(4, 60);
    assert_eq!(s.given_up(), [(4, "invalid-upstream-response")]);
    s.request(5, A, PollClass::Plain);
    assert_eq!(s.starts(), [5]);
    s.answer(5);
    assert_eq!(s.starts(), [0; 0], "the other polls stay paused");
}

#[test]
fn the_scheduler_forgets_a_key_without_polls_once_its_history_expires() {
    let mut s = Scenario::new(SchedulerConfig { retries: 0, ..config(50) });
    (1..=2).for_each(|id| s.long_poll(id, A));
    s.starts();
    (1..=2).for_each(|id| s.rate_limited(id, 20));
    (1..=2).for_each(|id| s.scheduler.withdraw(PollId(id), s.now));
    assert_eq!(s.scheduler.keys.len(), 1);
    s.advance(Duration::from_secs(20));
    s.advance(Duration::from_secs(20));
    assert!(s.scheduler.keys.is_empty());
    s.long_poll(3, A);
    s.answer(3);
    assert_eq!(s.scheduler.keys.len(), 1, "its retry budget still counts");
    s.advance(Duration::from_secs(11));
    assert!(s.scheduler.keys.is_empty());
    assert_eq!(s.scheduler.poll_timeout(), None);
}

/// A watch that gives up its slot helps only polls that lack one.
#[test]
fn a_poll_of_a_paused_or_probing_key_does_not_wait_for_a_slot() {
    let mut s = Scenario::new(config(50));
    (1..=2).for_each(|id| s.long_poll(id, A));
    s.starts();
    s.rate_limited(1, 3);
    s.rate_limited(2, 2);
    s.long_poll(3, A);
    assert!(!s.scheduler.waits_for_slot(PollId(3)), "its key is paused");
    s.advance(Duration::from_millis(2999));
    s.advance(Duration::from_millis(1));
    assert!(s.starts().contains(&3));
    s.long_poll(4, A);
    assert_eq!(s.starts(), [0; 0]);
    assert!(!s.scheduler.waits_for_slot(PollId(4)), "its key is being probed");

    let mut full = Scenario::new(config(3));
    (10..=12).for_each(|id| full.long_poll(id, B));
    assert_eq!(full.starts(), [10], "a key leaves a slot to the others");
    assert_eq!([10, 11, 12].map(|id| full.scheduler.waits_for_slot(PollId(id))), [false, true, true]);
}
