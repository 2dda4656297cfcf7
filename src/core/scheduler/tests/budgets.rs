//! The budget of a key: its polls start `key_interval` apart, and wait for nothing else (P11, P12).

use std::collections::BTreeMap;

use super::*;

const INTERVAL: Duration = Duration::from_millis(100);

fn with_budget(max_polls: usize) -> SchedulerConfig {
    SchedulerConfig { key_interval: INTERVAL, ..config(max_polls) }
}

#[test]
fn the_polls_of_a_key_start_evenly_spaced_and_none_fails() {
    let mut s = Scenario::new(with_budget(1000));
    (0..100).for_each(|id| s.request(id, A, PollClass::Chain));
    let starts = s.run_timers(Duration::from_secs(20), false);
    let expected: Vec<_> = (0..100).map(|id| (u128::from(id) * 100, id)).collect();
    assert_eq!(starts, expected, "100 jobs within a budget of 10 a second");
}

#[test]
fn a_key_that_was_idle_starts_one_poll_at_once_and_saves_no_burst() {
    let mut s = Scenario::new(with_budget(50));
    s.request(1, A, PollClass::Chain);
    assert_eq!(s.starts(), [1]);
    s.advance(Duration::from_secs(5));
    (2..=4).for_each(|id| s.request(id, A, PollClass::Chain));
    assert_eq!(s.run_timers(SECOND, false), [(0, 2), (100, 3), (200, 4)]);
}

/// P11
#[test]
fn the_budget_of_one_key_delays_no_other_key() {
    let mut s = Scenario::new(with_budget(50));
    let classes = [PollClass::Plain, PollClass::Snapshot, PollClass::Chain, PollClass::LongPoll];
    for (class, first) in classes.into_iter().zip([100, 200, 300, 400]) {
        (0..5).for_each(|id| s.request(first + id, A, class));
    }
    assert_eq!(s.starts(), [100]);
    (2..=30).for_each(|number| s.request(number, key(number), PollClass::LongPoll));
    assert_eq!(s.starts(), (2..=30).collect::<Vec<_>>());
}

#[test]
fn all_classes_count_and_snapshots_and_plain_polls_go_first() {
    let mut s = Scenario::new(with_budget(50));
    (1..=2).for_each(|id| s.request(id, A, PollClass::Chain));
    (11..=12).for_each(|id| s.long_poll(id, A));
    s.request(21, A, PollClass::Plain);
    s.request(31, A, PollClass::Snapshot);
    let expected = [(0, 1), (100, 31), (200, 21), (300, 2), (400, 11), (500, 12)];
    assert_eq!(s.run_timers(SECOND, false), expected);
}

#[test]
fn every_fifth_start_of_a_key_is_for_a_chain_or_long_poll_however_many_plain_polls_come() {
    let mut s = Scenario::new(with_budget(50));
    (1..=2).for_each(|id| s.request(id, A, PollClass::Chain));
    s.long_poll(3, A);
    (10..50).for_each(|id| s.request(id, A, PollClass::Plain));
    let starts: Vec<u64> =
        s.run_timers(Duration::from_secs(2), false).into_iter().map(|(_, id)| id).collect();
    assert_eq!(starts[..16], [1, 10, 11, 12, 13, 2, 14, 15, 16, 17, 3, 18, 19, 20, 21, 22]);
}

#[test]
fn plain_polls_do_not_yield_to_a_poll_that_cannot_start() {
    let mut s = Scenario::new(with_budget(2));
    (1..=2).for_each(|id| s.long_poll(id, B)); // the one slot for long-polls is taken
    s.long_poll(3, A);
    (10..20).for_each(|id| s.request(id, A, PollClass::Plain));
    assert_eq!(s.starts(), [1, 10]);
    for id in 11..20 {
        s.answer(id - 1);
        s.advance(INTERVAL);
        assert_eq!(s.starts(), [id]);
    }
}

#[test]
fn retries_count_against_the_budget() {
    let mut s = Scenario::after_first_success(with_budget(50));
    (1..=2).for_each(|id| s.request(id, A, PollClass::Chain));
    assert_eq!(s.starts(), [1]);
    s.ended(1, Failure::Unreachable, RetryAdvice::Reconnect);
    assert_eq!(s.starts(), [0; 0]);
    assert_eq!(s.run_timers(SECOND, false), [(100, 1), (200, 2)]);
}

#[test]
fn a_plain_poll_waits_for_the_budget_although_it_ignores_a_pause() {
    let mut s = Scenario::new(with_budget(50));
    s.request(1, A, PollClass::Chain);
    s.starts();
    s.rate_limited(1, 30);
    s.outputs();
    (2..=3).for_each(|id| s.request(id, A, PollClass::Plain));
    assert_eq!(s.run_timers(SECOND, false), [(100, 2), (200, 3)]);
}

#[test]
fn after_a_pause_the_polls_of_a_key_start_within_its_budget() {
    let mut s = Scenario::new(with_budget(50));
    (1..=5).for_each(|id| s.request(id, A, PollClass::Chain));
    assert_eq!(s.starts(), [1]);
    s.rate_limited(1, 1);
    s.outputs();
    s.advance(SECOND);
    assert_eq!(s.starts(), [2]);
    s.answer(2);
    assert_eq!(s.run_timers(SECOND, false), [(100, 3), (200, 4), (300, 5), (400, 1)]);
}

/// P11: a line that is closed for a moment, again and again, does not fall behind the lines of other keys.
#[test]
fn a_line_keeps_its_turn_while_the_budget_of_its_key_is_used_up() {
    let mut s = Scenario::new(SchedulerConfig { interval: Duration::from_millis(10), ..with_budget(2) });
    s.long_poll(1, B);
    assert_eq!(s.starts(), [1]);
    s.long_poll(2, A);
    (3..=20).for_each(|number| s.long_poll(100 + number, key(number)));
    // Chains of key A close its line for long-polls all the time, except when a slot is free.
    for id in 200..220 {
        s.request(id, A, PollClass::Chain);
        s.advance(INTERVAL);
        assert_eq!(s.starts(), [id]);
        s.answer(id);
        s.advance(INTERVAL);
    }
    s.answer(1);
    assert_eq!(s.starts(), [2]);
}

/// A watch that gives up its slot helps only polls that lack one.
#[test]
fn a_poll_that_waits_for_the_budget_does_not_wait_for_a_slot() {
    let mut s = Scenario::new(with_budget(50));
    (1..=2).for_each(|id| s.long_poll(id, A));
    s.starts();
    assert!(!s.scheduler.waits_for_slot(PollId(2)));
    assert_eq!(s.scheduler.poll_timeout(), Some(s.now + INTERVAL));
}

/// P11: the breaker waits for the result of its probe, which therefore must not wait for a budget.
#[test]
fn the_breaker_probes_with_a_key_whose_budget_allows_it() {
    let budget = Duration::from_secs(20);
    let mut s = Scenario::after_first_success(SchedulerConfig { key_interval: budget, ..config(50) });
    for id in 1..=5 {
        s.advance(Duration::from_millis(1));
        s.request(id, key(id + 10), PollClass::Chain);
        assert_eq!(s.starts(), [id]);
        s.advance(Duration::from_millis(60));
        s.lose_connection(id);
    }
    assert!(!s.scheduler.is_closed());
    let starts = s.run_timers(Duration::from_secs(30), false);
    assert_eq!(starts.first().map(|(_, id)| *id), Some(1), "{starts:?}");
    assert_eq!(starts.first().map(|(millis, _)| *millis / 1000), Some(19), "{starts:?}");
}

#[test]
fn a_key_without_polls_is_forgotten_once_its_budget_and_history_do_not_count_any_more() {
    let mut s = Scenario::new(SchedulerConfig { key_interval: Duration::from_secs(15), ..config(50) });
    s.request(1, A, PollClass::Chain);
    s.answer(1);
    s.advance(Duration::from_secs(14));
    s.advance(Duration::from_millis(999));
    assert_eq!(s.scheduler.keys.len(), 1);
    s.advance(Duration::from_millis(1));
    assert!(s.scheduler.keys.is_empty());
    assert_eq!(s.scheduler.poll_timeout(), None);
}

/// Random requests of four keys, with slots for all: a poll waits exactly while its key had a start within `key_interval`,
/// and not longer than the polls before it take.
#[test]
fn in_every_random_schedule_a_poll_waits_for_the_budget_of_its_own_key_and_for_nothing_else() {
    for seed in 0..300 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut s = Scenario::new(with_budget(1000));
        let mut last_starts: BTreeMap<KeyDomain, Vec<Instant>> = BTreeMap::new();
        let mut queued: BTreeMap<u64, (KeyDomain, PollClass, Instant, usize)> = BTreeMap::new();
        let mut next = 0;
        for step in 0..400 {
            let is_flood = step < 200;
            match rng.u32(0..4) {
                0 | 1 if is_flood => {
                    let classes =
                        [PollClass::Plain, PollClass::Snapshot, PollClass::Chain, PollClass::LongPoll];
                    let (domain, class) = (KeyDomain([rng.u8(0..4); 16]), classes[rng.usize(..4)]);
                    let ahead = queued.values().filter(|poll| poll.0 == domain).count();
                    queued.insert(next, (domain, class, s.now, ahead));
                    s.request(next, domain, class);
                    next += 1;
                }
                2 => {
                    let index = rng.usize(0..queued.len().max(1));
                    if let Some(id) = queued.keys().nth(index).copied().filter(|_| rng.u8(..4) == 0) {
                        queued.remove(&id);
                        s.scheduler.withdraw(PollId(id), s.now);
                    }
                }
                _ => {
                    let until = s.now + Duration::from_millis(rng.u64(0..300));
                    let due = s.scheduler.poll_timeout().map_or(until, |at| at.min(until));
                    s.advance(due - s.now);
                }
            }
            for id in s.starts() {
                let (domain, class, since, ahead) = queued.remove(&id).expect("a queued poll starts");
                let starts = last_starts.entry(domain).or_default();
                let waited = s.now - since;
                // Polls that come later may go first, but not more than four for each chain or long-poll before it.
                let turns = match class {
                    PollClass::Chain | PollClass::LongPoll => 5 * (2 * ahead + 2),
                    PollClass::Plain | PollClass::Snapshot => 400,
                };
                assert!(waited <= INTERVAL * u32::try_from(turns).unwrap(), "seed {seed}: {id} starves");
                assert!(starts.last().is_none_or(|last| *last + INTERVAL <= s.now), "seed {seed}: {id}");
                starts.push(s.now);
                let in_last_second = starts.iter().rev().take_while(|at| **at + SECOND >= s.now).count();
                assert!(in_last_second <= 13, "seed {seed}: {in_last_second} starts in a second");
            }
            for (id, (domain, ..)) in &queued {
                let last = last_starts.get(domain).and_then(|starts| starts.last());
                let is_used_up = last.is_some_and(|last| *last + INTERVAL > s.now);
                assert!(is_used_up, "seed {seed}: {id} waits for something other than its budget");
            }
        }
        s.run_timers(Duration::from_secs(30), false);
        (0..next).for_each(|id| s.scheduler.withdraw(PollId(id), s.now));
        s.advance(SECOND * 20);
        s.advance(SECOND * 20);
        assert!(s.scheduler.keys.is_empty() && s.scheduler.timers.is_empty(), "seed {seed}");
    }
}
