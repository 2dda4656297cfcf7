//! Calls that the engine fails, for lack of memory for example, while the link goes on.

use super::*;

/// P1, P12
#[test]
fn a_claim_that_fails_is_made_here_and_its_lease_is_asked_for_later() {
    let mut gateway = Gateway::linked();
    gateway.open(1);
    gateway.fail("claim");
    assert_eq!(gateway.take(), ["claim", "start 1"]);
    assert!(gateway.machine.calls.is_empty());
    for pause in [2_000, 4_000, 8_000] {
        gateway.pass(ms(pause - 1));
        assert_eq!(gateway.take(), Vec::<String>::new(), "{pause}");
        gateway.pass(ms(1));
        assert_eq!(gateway.take(), ["adopt"]);
        gateway.fail("adopt");
    }
    assert!(gateway.machine.calls.is_empty());
}

#[test]
fn a_look_that_fails_is_followed_by_the_claim_at_its_time() {
    let mut gateway = Gateway::linked();
    gateway.open_held(1);
    gateway.link_up(OTHER);
    assert_eq!(gateway.take(), ["look"]);
    gateway.fail("look");
    gateway.pass(ms(299));
    assert_eq!(gateway.take(), Vec::<String>::new());
    gateway.pass(ms(1));
    assert_eq!(gateway.take(), ["claim"]);
}

/// P1: siblings with waits hang without it.
#[test]
fn a_landing_that_fails_is_sent_again_after_growing_pauses_with_its_age() {
    let mut gateway = Gateway::linked();
    gateway.open_granted(1);
    let outcome = gateway.outcome(2);
    gateway.input(SiblingInput::Ended(PollId(1), outcome));
    assert_eq!(gateway.take(), ["land", "landed 1"]);
    let mut age = 0;
    for pause in [500, 1_000, 2_000, 4_000, 8_000, 8_000] {
        gateway.fail("land");
        gateway.pass(ms(pause - 1));
        assert_eq!(gateway.take(), Vec::<String>::new(), "{pause}");
        gateway.pass(ms(1));
        assert_eq!(gateway.take(), ["land"]);
        age += pause;
        let EngineCall::Land { outcome: SharedOutcome::Jobs(states), .. } = &gateway.calls["land"].1 else {
            panic!("{:?}", gateway.calls)
        };
        assert_eq!(states[0].age, ms(age));
    }
    gateway.answer("land", EngineAnswer::Done(EngineTime(ms(0))));
    assert_eq!(gateway.machine.unanswered(), 0);
    gateway.pass(ms(60_000));
    assert_eq!(gateway.take(), Vec::<String>::new());
}

#[test]
fn a_call_that_always_fails_is_forgotten_after_two_minutes() {
    let mut gateway = Gateway::linked();
    gateway.input(SiblingInput::KeyRefused(KEY));
    let mut calls = 0;
    for _ in 0..1_200 {
        calls += gateway.take().len();
        if gateway.calls.contains_key("refuse") {
            gateway.fail("refuse");
        }
        gateway.pass(ms(100));
    }
    assert!((10..25).contains(&calls), "{calls}");
    assert_eq!(gateway.machine.unanswered(), 0);
}

#[test]
fn a_failed_call_is_sent_once_on_the_next_link() {
    let mut gateway = Gateway::linked();
    gateway.input(SiblingInput::Publish(EngineCall::Remove(Removal::All)));
    gateway.fail("remove");
    gateway.link_up(OTHER);
    assert_eq!(gateway.take(), ["remove", "remove"]);
    gateway.pass(ms(5_000));
    assert_eq!(gateway.take(), Vec::<String>::new());
}

#[test]
fn the_first_beat_that_succeeds_after_one_that_failed_makes_failed_calls_due_and_asks_for_all_leases() {
    let mut gateway = Gateway::linked();
    gateway.open_granted(1);
    gateway.input(SiblingInput::Publish(EngineCall::Remove(Removal::All)));
    gateway.is_engine_up = false;
    gateway.fail("remove");
    gateway.pass(ms(500));
    gateway.fail("remove");
    gateway.fail("beat");
    assert_eq!(gateway.take(), ["remove", "remove"]);
    gateway.is_engine_up = true;
    gateway.pass(ms(500));
    assert_eq!(gateway.take(), ["remove", "adopt"]);
}

/// The engine does not know the name before a beat has succeeded.
#[test]
fn the_beat_after_a_first_one_that_failed_has_the_former_name_too() {
    let mut gateway = Gateway::linked();
    gateway.is_engine_up = false;
    gateway.link_up(OTHER);
    for _ in 0..2 {
        assert!(matches!(gateway.calls["beat"].1, EngineCall::Beat(Some(ME))));
        gateway.fail("beat");
        gateway.pass(ms(500));
    }
    gateway.answer("beat", EngineAnswer::Flushed);
    assert_eq!(gateway.take(), Vec::<String>::new());
}
