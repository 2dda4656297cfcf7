//! Slots at the upstream: order, fairness between keys, and the reserve for short polls (P11).

use super::*;

#[test]
fn a_poll_over_max_polls_waits_for_a_slot() {
    let mut s = Scenario::new(config(3));
    (1..=4).for_each(|id| s.long_poll(id, key(id)));
    assert_eq!(s.starts(), [1, 2], "the last slot is reserved for short polls");
    s.answer(1);
    assert_eq!(s.starts(), [3]);
    s.scheduler.withdraw(PollId(2), s.now);
    assert_eq!(s.starts(), [4]);
    assert_eq!(s.scheduler.open(), 2);
}

#[test]
fn a_snapshot_goes_first_and_may_take_the_last_slot() {
    let mut s = Scenario::new(config(3));
    (1..=4).for_each(|id| s.long_poll(id, key(id)));
    s.request(5, A, PollClass::Snapshot);
    s.request(6, B, PollClass::Snapshot);
    assert_eq!(s.starts(), [1, 2, 5]);
    s.answer(1);
    assert_eq!(s.starts(), [6]);
}

#[test]
fn a_single_slot_serves_long_polls_and_snapshots() {
    let mut s = Scenario::new(config(1));
    s.long_poll(1, A);
    s.long_poll(2, A);
    s.request(3, A, PollClass::Snapshot);
    assert_eq!(s.starts(), [1]);
    s.answer(1);
    assert_eq!(s.starts(), [3]);
    s.answer(3);
    assert_eq!(s.starts(), [2]);
}

#[test]
fn keys_take_turns_and_the_polls_of_a_key_go_in_order_of_arrival() {
    let mut s = Scenario::new(config(2));
    (1..=4).for_each(|id| s.long_poll(id, A));
    s.long_poll(10, B);
    assert_eq!(s.starts(), [1]);
    s.answer(1);
    assert_eq!(s.starts(), [2]);
    s.answer(2);
    assert_eq!(s.starts(), [10], "key B is served although key A has more polls");
    s.answer(10);
    assert_eq!(s.starts(), [3]);
}

#[test]
fn the_scheduler_starts_one_attempt_in_each_interval() {
    let mut s = Scenario::new(SchedulerConfig { interval: Duration::from_millis(100), ..config(9) });
    (1..=3).for_each(|id| s.long_poll(id, A));
    assert_eq!(s.starts(), [1]);
    s.advance(Duration::from_millis(99));
    assert_eq!(s.starts(), [0; 0]);
    s.advance(Duration::from_millis(1));
    assert_eq!(s.starts(), [2]);
    s.advance(Duration::from_millis(500));
    assert_eq!(s.starts(), [3]);
}

/// P11. Turns alone are not fair: polls hold slots for minutes.
#[test]
fn a_key_with_a_thousand_jobs_leaves_slots_to_later_keys() {
    let mut s = Scenario::new(config(512));
    (0..1000).for_each(|id| s.long_poll(id, A));
    assert_eq!(s.starts().len(), 481, "of 511");
    (2000..2100).for_each(|id| s.long_poll(id, B));
    assert_eq!(s.starts().len(), 28);
    (3000..3100).for_each(|id| s.long_poll(id, C));
    assert_eq!(s.starts(), [3000], "a key without slots may take any");
    s.long_poll(4000, key(4));
    assert_eq!(s.starts(), [4000]);
    (0..50).for_each(|id| s.answer(id));
    let starts = s.starts();
    assert!(starts.iter().all(|id| *id >= 2000), "the key with the most slots waits: {starts:?}");
}

#[test]
fn of_two_slots_a_key_takes_one() {
    let mut s = Scenario::new(config(3));
    (1..=3).for_each(|id| s.long_poll(id, A));
    assert_eq!(s.starts(), [1]);
    s.long_poll(10, B);
    s.long_poll(11, B);
    assert_eq!(s.starts(), [10]);
    s.answer(10);
    assert_eq!(s.starts(), [11]);
}

#[test]
fn snapshots_take_turns_over_the_keys() {
    let mut s = Scenario::new(config(1));
    s.long_poll(1, A);
    (2..=4).for_each(|id| s.request(id, A, PollClass::Snapshot));
    s.request(10, B, PollClass::Snapshot);
    let mut order = s.starts();
    for _ in 0..4 {
        s.answer(*order.last().unwrap());
        order.extend(s.starts());
    }
    assert_eq!(order, [1, 2, 10, 3, 4]);
}

/// P11: requests without a status of key A, on which the upstream hangs, must not take every slot.
#[test]
fn plain_polls_of_one_key_leave_slots_to_others() {
    let mut s = Scenario::after_first_success(config(10));
    (1..=40).for_each(|id| s.request(id, A, PollClass::Plain));
    s.starts();
    s.long_poll(100, B);
    assert_eq!(s.starts(), [100]);
}
