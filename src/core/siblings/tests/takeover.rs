//! The end of a lease without a result: left, failed, dead.

use super::*;

#[test]
fn a_poll_that_its_holder_left_is_claimed_at_once() {
    let mut gateway = Gateway::linked();
    gateway.open_held(1);
    gateway.message(SiblingMessage::Left(name(1), token(1)));
    assert_eq!(gateway.take(), ["lost 1", "claim"]);
    let EngineCall::Claim(request) = &gateway.calls["claim"].1 else { panic!() };
    assert_eq!(request.follows, Some(token(1)));
}

/// The draining holder goes on until a sibling has claimed.
#[test]
fn the_former_holder_may_still_land_the_poll_that_it_left() {
    let mut gateway = Gateway::linked();
    gateway.open_held(1);
    gateway.message(SiblingMessage::Left(name(1), token(1)));
    let message = gateway.landed_message(1, 3, ms(0));
    gateway.message(message);
    assert_eq!(gateway.take(), ["lost 1", "claim", "landed 1"]);
    gateway.answer("claim", EngineAnswer::Granted(EPOCH));
    assert_eq!(gateway.take(), ["leave"]);
}

#[test]
fn a_failed_poll_is_claimed_by_rank() {
    let mut gateway = Gateway::linked();
    gateway.open_held(1);
    gateway.message(SiblingMessage::Failed(name(1), token(1)));
    gateway.wait_for("claim", ms(200));
    assert_eq!(gateway.take(), ["lost 1", "claim"]);
}

#[test]
fn a_holder_that_is_not_heard_for_the_takeover_is_suspected() {
    let mut gateway = Gateway::linked();
    gateway.open_held(1);
    gateway.pass(ms(1_990));
    assert_eq!(gateway.take(), Vec::<String>::new());
    let waited = gateway.wait_for("claim", ms(210));
    assert_eq!(gateway.take(), ["lost 1", "claim"]);
    assert_eq!(gateway.suspicion(), Some(Suspicion { holder: SIBLING, is_proven: false }));
    // The engine has heard of it: the suspicion was wrong.
    gateway.answer("claim", held(SIBLING, 1, ms(1_990) + waited));
    assert_eq!(gateway.take(), ["elsewhere 1 since 0"]);
    gateway.pass_with(&[SIBLING], ms(5_000));
    assert_eq!(gateway.take(), Vec::<String>::new());
}

/// P1: the engine may know a dead holder for a living one. Its answer prolongs nothing.
#[test]
fn a_poll_that_joins_a_silent_holder_is_claimed_once_that_one_was_not_heard_for_the_takeover() {
    let mut gateway = Gateway::linked();
    gateway.beat(SIBLING);
    gateway.pass(ms(1_500));
    gateway.open_held(1);
    gateway.wait_for("claim", ms(710));
    assert_eq!(gateway.suspicion(), Some(Suspicion { holder: SIBLING, is_proven: false }));
}

#[test]
fn two_counts_without_a_subscriber_prove_the_death_of_a_holder() {
    let mut gateway = Gateway::linked();
    gateway.open_held(1);
    gateway.pass_with(&[SIBLING], ms(1_000));
    gateway.input(SiblingInput::Subscribers(SIBLING, 0));
    gateway.input(SiblingInput::Subscribers(SIBLING, 1));
    gateway.input(SiblingInput::Subscribers(SIBLING, 0));
    assert_eq!(gateway.take(), Vec::<String>::new());
    gateway.input(SiblingInput::Subscribers(SIBLING, 0));
    gateway.wait_for("claim", ms(200));
    assert_eq!(gateway.take(), ["lost 1", "claim"]);
    assert_eq!(gateway.suspicion(), Some(Suspicion { holder: SIBLING, is_proven: true }));
}

#[test]
fn counts_prove_nothing_in_the_first_second_of_a_link() {
    let mut gateway = Gateway::linked();
    gateway.open_held(1);
    for _ in 0..4 {
        gateway.input(SiblingInput::Subscribers(SIBLING, 0));
    }
    gateway.pass(ms(200));
    assert_eq!(gateway.take(), Vec::<String>::new());
}

#[test]
fn the_poll_of_a_renamed_holder_is_looked_at() {
    let mut gateway = Gateway::linked();
    gateway.open_held(1);
    gateway.message(SiblingMessage::Beat(OTHER, Some(SIBLING)));
    assert_eq!(gateway.take(), ["look"]);
    gateway.answer("look", held(OTHER, 1, ms(0)));
    assert_eq!(gateway.machine.holder(PollId(1)), Some(OTHER));
    // Its token is the same, so a landing on the way counts in any case.
    let message = gateway.landed_message(1, 3, ms(0));
    gateway.message(message);
    assert_eq!(gateway.take(), ["elsewhere 1 since 0", "landed 1"]);
}

#[test]
fn a_poll_that_nothing_is_heard_of_is_claimed_at_the_end_of_its_lease() {
    let mut gateway = Gateway::linked();
    gateway.open_held(1);
    gateway.pass_with(&[SIBLING], ms(149_000));
    assert_eq!(gateway.take(), Vec::<String>::new());
    gateway.pass_with(&[SIBLING], ms(1_000));
    assert_eq!(gateway.take(), ["claim"]);
}

#[test]
fn a_replica_waits_two_tenths_of_a_second_for_its_rank_at_most() {
    let mut members = members::Members::default();
    for sibling in 2..40 {
        members.heard(ReplicaName(sibling), crate::clock::now());
    }
    let delays: Vec<Duration> = (0..64).map(|poll| members.rank_delay(name(poll), Some(ME))).collect();
    assert!(delays.iter().all(|delay| *delay <= ms(200)));
}

/// All replicas rank the same members in the same order.
#[test]
fn one_replica_is_first_for_each_poll() {
    let all = [ME, SIBLING, OTHER];
    for poll in 0..64 {
        let rank = |me: ReplicaName| {
            let mut members = members::Members::default();
            for sibling in all.iter().filter(|other| **other != me) {
                members.heard(*sibling, crate::clock::now());
            }
            members.rank_delay(name(poll), Some(me))
        };
        let mut ranks = all.map(rank);
        ranks.sort();
        assert_eq!(ranks, [ms(0), ms(100), ms(200)]);
    }
}
