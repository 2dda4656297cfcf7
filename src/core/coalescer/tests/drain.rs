//! Drain: every wait ends with the state of its jobs before the gateway exits (P2, P7).

use super::*;

#[test]
fn a_drain_answers_every_wait_with_the_true_state_spread_over_the_time() {
    let mut s = Scenario::new();
    for (number, id) in ["c", "d", "e"].iter().enumerate() {
        s.join(10 + number as u64, id, "streaming").join(2 + number as u64, id, "completed");
        for n in 1..=200 {
            s.join(1000 * (number as u64 + 1) + n, id, "completed");
        }
        s.land(&format!("{id} streaming"), &format!("{id}=streaming"));
    }
    s.join(1, "a", "streaming").join(5, "a", "completed").land("a streaming", "a=streaming");
    let until = s.zero + secs(20.0);
    s.join(6, "b", "completed").at(10.0).handle(Input::Drain(until));
    let mut answered = Vec::new();
    for second in 10..=18 {
        s.at(f64::from(second));
        if s.open.iter().any(|(_, what)| what == "b submitted") {
            s.land("b submitted", "b=queued");
        }
        answered.push((2..=6).filter(|number| s.results.contains_key(number)).count());
    }
    assert!(answered[2] < 3 && answered[8] == 5, "{answered:?}");
    let expected = ["c", "d", "e", "a"].map(|id| format!("timed out {id}=streaming"));
    assert_eq!([2, 3, 4, 5].map(|number| s.answer(number)), expected);
    assert_eq!(s.answer(6), "timed out b=queued");
    s.join(7, "c", "completed").at(18.0);
    assert_eq!(
        s.open().last().map(|open| &**open),
        Some("c submitted"),
        "a wait that joins during the drain takes its snapshot at once"
    );
    s.land("c submitted", "c=queued");
    assert_eq!(s.answer(7), "timed out c=queued");
}

#[test]
fn a_drain_takes_one_snapshot_for_all_waits_on_a_job() {
    let mut s = Scenario::new();
    for number in 1..=6 {
        s.join(number, "a", "completed").join(10 + number, "b", "completed");
    }
    s.join(20, "b c", "completed").join(21, "c", "streaming").at(10.0);
    let until = s.zero + secs(20.0);
    s.handle(Input::Drain(until)).at(10.0);
    assert_eq!(s.open().iter().filter(|what| what.ends_with("submitted")).count(), 1);
    s.land("a submitted", "a=queued");
    assert_eq!((1..=6).filter(|number| s.answer(*number) == "timed out a=queued").count(), 6);
    s.at(19.0);
    let snapshots = s.open().iter().filter(|what| what.ends_with("submitted")).count();
    assert_eq!(snapshots, 2, "{:?}", s.open());
    s.land("b submitted", "b=queued").land("c submitted", "c=queued");
    assert_eq!(s.results.len(), 14);
}

#[test]
fn a_drain_answers_a_few_waits_at_once() {
    let mut s = Scenario::new();
    for (number, id) in ["a", "b", "c"].iter().enumerate() {
        s.join(10 + number as u64, id, "streaming").join(1 + number as u64, id, "completed");
        s.land(&format!("{id} streaming"), &format!("{id}=streaming"));
    }
    let until = s.zero + secs(110.0);
    s.at(10.0).handle(Input::Drain(until)).at(10.1);
    assert_eq!(
        [1, 2, 3].map(|number| s.answer(number)),
        ["a", "b", "c"].map(|id| format!("timed out {id}=streaming"))
    );
}

#[test]
fn a_drained_wait_gets_the_last_seen_state_while_the_upstream_fails() {
    let mut s = Scenario::new();
    s.join(1, "a", "queued").join(2, "a", "completed").land("a queued", "a=queued");
    s.join(3, "b", "completed").at(10.0);
    let until = s.zero + secs(20.0);
    s.handle(Input::Drain(until)).at(19.0);
    s.land_as("a submitted", PollOutcome::Failed(Failure::Unreachable));
    s.progress("b submitted", PollProgress::BackingOff(Failure::Unreachable, secs(0.1))).at(21.0);
    assert_eq!(s.answer(2), "timed out a=queued");
    assert_eq!(s.answer(3), "failed Unreachable", "nothing was seen of it");
}

/// Each parked wait is answered within `server.drain_timeout`, also one that was in its snapshot already.
#[test]
fn a_drain_ends_in_time_for_a_wait_whose_snapshot_is_not_answered() {
    let mut s = Scenario::new();
    s.join_for(1, "a", "completed", 10.0).at(11.0);
    assert_eq!(s.answer(1), "");
    let until = s.zero + secs(13.0);
    s.handle(Input::Drain(until)).at(13.1);
    assert_ne!(s.answer(1), "", "it is cut off at 13 s");
}
