//! The breaker: which faults count, and which retries are probes (P12).

use super::*;

/// P12: one event counts once.
#[test]
fn twenty_held_polls_that_fail_in_one_instant_are_all_retried() {
    let mut s = Scenario::new(config(50));
    (1..=20).for_each(|id| s.long_poll(id, A));
    s.starts();
    (1..=20).for_each(|id| s.sent(id));
    s.advance(Duration::from_secs(10));
    (1..=20).for_each(|id| s.lose_connection(id));
    assert!(s.scheduler.is_closed(), "one event counts once");
    assert_eq!(s.given_up(), []);
    let mut starts: Vec<u64> = s.run_timers(SECOND, false).into_iter().map(|(_, id)| id).collect();
    starts.sort_unstable();
    assert_eq!(starts, (1..=20).collect::<Vec<_>>());
}

/// P12: the polls are on connections that began before the first failure.
#[test]
fn a_burst_of_failures_among_held_polls_does_not_open_the_breaker() {
    let mut s = Scenario::new(config(512));
    (1..=400).for_each(|id| s.long_poll(id, key(id % 7)));
    s.starts();
    (1..=400).for_each(|id| s.sent(id));
    s.advance(Duration::from_secs(10));
    let mut starts = 0;
    for id in 1..=35 {
        s.advance(Duration::from_millis(2));
        s.lose_connection(id);
        let outputs = s.outputs();
        assert!(!outputs.iter().any(|output| matches!(output, SchedulerOutput::GiveUp(..))), "{outputs:?}");
        starts += outputs.iter().filter(|output| matches!(output, SchedulerOutput::Start(_))).count();
    }
    assert!(s.scheduler.is_closed());
    assert_eq!(starts + s.run_timers(SECOND, false).len(), 35);
}

#[test]
fn an_open_breaker_lets_one_retry_through_each_cooldown_and_never_the_same_poll_twice() {
    let mut s = Scenario::after_first_success(config(50));
    (1..=20).for_each(|id| s.long_poll(id, A));
    s.starts();
    (1..=20).for_each(|id| s.lose_connection(id));
    s.run_timers(Duration::from_secs(8), true);
    assert!(!s.scheduler.is_closed());
    let probes = s.run_timers(Duration::from_secs(20), true);
    assert!((3..=4).contains(&probes.len()), "{probes:?}");
    let polls: BTreeSet<u64> = probes.iter().map(|(_, id)| *id).collect();
    assert_eq!(polls.len(), probes.len(), "{probes:?}");
}

#[test]
fn the_gateways_own_lack_of_descriptors_is_never_counted_against_the_upstream() {
    let mut s = Scenario::after_first_success(config(50));
    (1..=20).for_each(|id| s.long_poll(id, A));
    s.starts();
    for _ in 0..5 {
        (1..=20).for_each(|id| s.ended(id, Failure::LocalResources, RetryAdvice::BackOff));
        s.advance(SECOND);
        assert_eq!(s.starts().len(), 20);
    }
    assert!(s.scheduler.is_closed());
}

#[test]
fn a_poll_that_the_upstream_holds_for_a_second_closes_the_breaker() {
    let mut s = Scenario::after_first_success(config(50));
    (1..=20).for_each(|id| s.long_poll(id, A));
    s.starts();
    (1..=20).for_each(|id| s.lose_connection(id));
    s.run_timers(Duration::from_secs(8), true);
    s.long_poll(100, B);
    assert_eq!(s.starts(), [100]);
    s.sent(100);
    s.run_timers(Duration::from_millis(900), true);
    assert!(!s.scheduler.is_closed());
    s.advance(Duration::from_millis(100));
    assert!(s.scheduler.is_closed());
}

#[test]
fn after_a_withdrawn_probe_the_next_begins_at_once() {
    let mut s = Scenario::after_first_success(config(50));
    (1..=20).for_each(|id| s.long_poll(id, A));
    s.starts();
    (1..=20).for_each(|id| s.lose_connection(id));
    s.run_timers(Duration::from_secs(8), true);
    let probe = loop {
        s.now = s.scheduler.poll_timeout().unwrap();
        s.scheduler.handle_timeout(s.now);
        if let [id] = s.starts()[..] {
            break id;
        }
    };
    s.scheduler.withdraw(PollId(probe), s.now);
    assert_eq!(s.starts().len(), 1, "the next probe");
}

/// Found by fuzz/targets/scheduler.rs: the breaker closes and opens again while a probe waits for a slot.
#[test]
fn a_probe_of_an_earlier_outage_does_not_end_the_current_probe() {
    let open_the_breaker = |s: &mut Scenario| {
        for _ in 0..5 {
            s.now += Duration::from_millis(60);
            s.request(90, B, PollClass::Snapshot);
            assert_eq!(s.starts(), [90]);
            s.now += Duration::from_millis(1);
            s.lose_connection(90);
            s.scheduler.withdraw(PollId(90), s.now);
            s.outputs();
        }
        assert!(!s.scheduler.is_closed());
    };
    let mut s = Scenario::after_first_success(config(3));
    s.request(1, A, PollClass::Snapshot);
    s.starts();
    s.lose_connection(1);
    open_the_breaker(&mut s);
    s.advance(Duration::from_millis(100));
    s.long_poll(60, C);
    s.request(61, B, PollClass::Snapshot);
    s.request(62, key(9), PollClass::Snapshot);
    assert_eq!(s.starts(), [60, 61, 62]);
    s.advance(Duration::from_secs(6));
    assert!(s.starts().is_empty(), "the probe waits for a slot");
    s.sent(60);
    s.advance(SECOND);
    assert!(s.scheduler.is_closed());
    s.lose_connection(61);
    assert_eq!(s.starts(), [1]);
    s.scheduler.withdraw(PollId(62), s.now);
    open_the_breaker(&mut s);
    s.advance(SECOND);
    assert_eq!(s.starts(), [61], "the probe");
    s.lose_connection(1);
    s.advance(Duration::from_secs(4));
    assert_eq!(s.starts(), [0; 0], "the current probe is not answered yet");
}

/// A probe that finds no descriptor is not evidence about the upstream. The next one must not begin in the same
/// instant: without a rate limit that is a loop as fast as attempts can fail.
#[test]
fn a_probe_that_finds_no_descriptor_is_not_repeated_at_once() {
    let mut s = Scenario::after_first_success(config(50));
    with_open_breaker(&mut s);
    let until = s.now + Duration::from_secs(10);
    let mut attempts = 0;
    while let Some(at) = s.scheduler.poll_timeout().filter(|at| *at <= until) {
        s.now = s.now.max(at);
        s.scheduler.handle_timeout(s.now);
        for _ in 0..100 {
            for id in s.starts() {
                attempts += 1;
                s.ended(id, Failure::LocalResources, RetryAdvice::BackOff);
            }
        }
    }
    assert!(attempts <= 200, "{attempts} attempts in 10 s");
}

/// P11, P12: the probe is a request without a status, on a job where the upstream hangs. Such a request never counts as
/// held. If all retries waited for its end, the polls of other keys would run out of time.
#[test]
fn a_probe_that_the_upstream_never_answers_does_not_hold_back_the_retries_of_others() {
    let mut s = Scenario::after_first_success(config(50));
    s.request(30, B, PollClass::Plain);
    s.starts();
    s.lose_connection(30);
    s.now += Duration::from_millis(1);
    (1..=5).for_each(|id| s.long_poll(id, A));
    s.starts();
    s.now += Duration::from_millis(1);
    (1..=5).for_each(|id| s.lose_connection(id));
    let until = s.now + Duration::from_secs(60);
    let (mut is_back, mut given_up) = (false, Vec::new());
    while let Some(at) = s.scheduler.poll_timeout().filter(|at| *at <= until) {
        s.now = s.now.max(at);
        s.scheduler.handle_timeout(s.now);
        for output in s.outputs() {
            match output {
                // The upstream is back, except for the job of poll 30.
                SchedulerOutput::Start(PollId(30)) if !s.scheduler.is_closed() => {
                    is_back = true;
                    s.sent(30);
                }
                SchedulerOutput::Start(PollId(id)) if is_back => s.answer(id),
                SchedulerOutput::Start(PollId(id)) => s.lose_connection(id),
                SchedulerOutput::GiveUp(PollId(id), _) => given_up.push((id, is_back)),
                SchedulerOutput::BackOff(..) | SchedulerOutput::Pause(..) => {}
            }
        }
    }
    assert!(is_back);
    assert_eq!(given_up, []);
}

/// P11: twenty jobs of key A break each connection that asks for them. Key B's poll is reset once; its retry would be
/// answered.
#[test]
fn jobs_that_break_their_connections_fail_no_poll_of_another_key() {
    let mut s = Scenario::after_first_success(config(50));
    s.long_poll(100, B);
    s.starts();
    s.sent(100);
    s.advance(SECOND);
    (1..=10).for_each(|id| s.long_poll(id, A));
    s.starts();
    (1..=10).for_each(|id| s.lose_connection(id));
    s.run_timers(Duration::from_secs(4), true);
    assert!(!s.scheduler.is_closed());
    (11..=20).for_each(|id| s.long_poll(id, A));
    s.starts();
    (11..=20).for_each(|id| s.lose_connection(id));
    s.now += Duration::from_millis(1);
    s.lose_connection(100);
    let until = s.now + Duration::from_secs(60);
    let mut next = 200;
    while let Some(at) = s.scheduler.poll_timeout().filter(|at| *at <= until) {
        s.now = s.now.max(at);
        s.scheduler.handle_timeout(s.now);
        for output in s.outputs() {
            match output {
                SchedulerOutput::Start(PollId(100)) => return, // answered
                SchedulerOutput::Start(PollId(id)) => s.lose_connection(id),
                SchedulerOutput::GiveUp(PollId(100), failure) => panic!("key B fails with {failure:?}"),
                SchedulerOutput::GiveUp(..) => {
                    s.long_poll(next, A); // its client asks again
                    next += 1;
                }
                SchedulerOutput::BackOff(..) | SchedulerOutput::Pause(..) => {}
            }
        }
    }
    panic!("key B is never retried");
}

/// Opens the breaker: the polls 1 to 20 of key A fail, and the upstream stays unreachable.
fn with_open_breaker(s: &mut Scenario) {
    (1..=20).for_each(|id| s.long_poll(id, A));
    s.starts();
    (1..=20).for_each(|id| s.lose_connection(id));
    s.run_timers(Duration::from_secs(8), true);
    assert!(!s.scheduler.is_closed());
}
