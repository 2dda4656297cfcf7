//! Claims and landings while all is well.

use super::*;

#[test]
fn a_new_poll_starts_once_its_lease_is_granted() {
    let mut gateway = Gateway::linked();
    gateway.open(1);
    assert_eq!(gateway.take(), ["claim"]);
    gateway.answer("claim", EngineAnswer::Granted(EPOCH));
    assert_eq!(gateway.take(), ["start 1"]);
}

#[test]
fn a_poll_that_a_sibling_makes_lands_with_its_message() {
    let mut gateway = Gateway::linked();
    gateway.pass(ms(400));
    gateway.open(1);
    gateway.answer("claim", held(SIBLING, 1, ms(300)));
    assert_eq!(gateway.take(), ["claim", "elsewhere 1 since 100"]);
    assert_eq!(gateway.machine.holder(PollId(1)), Some(SIBLING));
    let message = gateway.landed_message(1, 2, ms(40));
    gateway.message(message);
    assert_eq!(gateway.take(), ["landed 1"]);
    let PollOutcome::Jobs(states) = &gateway.landed[0] else { panic!("{:?}", gateway.landed) };
    assert_eq!(states[0].seen_at, gateway.now - ms(40));
    assert_eq!(gateway.machine.polls(), (0, 0));
}

#[test]
fn a_final_state_of_a_sibling_is_as_true_as_a_new_one() {
    let mut gateway = Gateway::linked();
    gateway.open_held(1);
    let message = gateway.landed_message(1, 3, ms(400));
    gateway.message(message);
    let PollOutcome::Jobs(states) = &gateway.landed[0] else { panic!("{:?}", gateway.landed) };
    assert_eq!(states[0].as_of, gateway.now);
}

#[test]
fn stored_states_answer_a_poll_without_an_attempt() {
    let mut gateway = Gateway::linked();
    gateway.open(1);
    let states = vec![gateway.state(3, ms(9_000))];
    gateway.answer("claim", EngineAnswer::Known(states, EPOCH));
    assert_eq!(gateway.take(), ["claim", "landed 1"]);
}

#[test]
fn each_replica_asks_at_once_for_a_landing_without_bytes() {
    let state = |gateway: &Gateway| SharedState { body: None, ..gateway.state(3, ms(0)) };
    for has_states in [true, false] {
        let mut gateway = Gateway::linked();
        gateway.open_held(1);
        let outcome = SharedOutcome::Jobs(has_states.then(|| state(&gateway)).into_iter().collect());
        gateway.message(SiblingMessage::Landed(name(1), token(1), EPOCH, outcome));
        assert_eq!(gateway.take(), ["start 1", "detach", "adopt"]);
        let EngineCall::Adopt { spec, .. } = &gateway.calls["adopt"].1 else { panic!() };
        assert!(!spec.takes_known);
    }
}

#[test]
fn a_landing_that_comes_before_the_answer_to_the_claim_is_kept() {
    let mut gateway = Gateway::linked();
    gateway.open(1);
    let message = gateway.landed_message(1, 3, ms(0));
    gateway.message(message);
    assert_eq!(gateway.take(), ["claim"]);
    gateway.answer("claim", held(SIBLING, 1, ms(0)));
    assert_eq!(gateway.take(), ["elsewhere 1 since 0", "landed 1"]);
}

#[test]
fn a_landing_of_another_lease_changes_nothing() {
    let mut gateway = Gateway::linked();
    gateway.open_held(1);
    let outcome = SharedOutcome::Jobs(vec![gateway.state(3, ms(0))]);
    gateway.message(SiblingMessage::Landed(name(1), token(8), EPOCH, outcome));
    assert_eq!(gateway.take(), Vec::<String>::new());
}

#[test]
fn a_result_is_published_before_the_coalescer_has_it() {
    let mut gateway = Gateway::linked();
    gateway.open_granted(1);
    let outcome = gateway.outcome(3);
    gateway.input(SiblingInput::Ended(PollId(1), outcome));
    assert_eq!(gateway.take(), ["land", "landed 1"]);
    assert_eq!(gateway.machine.unanswered(), 1);
    gateway.answer("land", EngineAnswer::Done(EngineTime(ms(0))));
    assert_eq!(gateway.machine.unanswered(), 0);
}

/// P8
#[test]
fn per_response_headers_stay_here() {
    let mut gateway = Gateway::linked();
    gateway.open_granted(1);
    let PollOutcome::Jobs(mut states) = gateway.outcome(3) else { panic!() };
    let header = |name: &str| (name.into(), Bytes::from_static(b"1"));
    states[0].head = Arc::new(ResponseHead {
        shared: vec![header("etag")],
        per_response: vec![header("set-cookie")],
        ..ResponseHead::default()
    });
    gateway.input(SiblingInput::Ended(PollId(1), PollOutcome::Jobs(states)));
    let EngineCall::Land { outcome: SharedOutcome::Jobs(states), .. } = &gateway.calls["land"].1 else {
        panic!("{:?}", gateway.calls)
    };
    assert_eq!((states[0].head.shared.len(), states[0].head.per_response.len()), (1, 0));
}

/// P11
#[test]
fn a_state_of_a_dead_epoch_is_never_used() {
    let mut gateway = Gateway::linked();
    gateway.open_held(1);
    gateway.message(SiblingMessage::Revoked { domain: KEY, dead: EPOCH, age: ms(0), by: None });
    let message = gateway.landed_message(1, 3, ms(0));
    gateway.message(message);
    gateway.wait_for("claim", ms(200));
    assert_eq!(gateway.take(), ["lost 1", "claim"]);
    let states = vec![gateway.state(3, ms(0))];
    gateway.answer("claim", EngineAnswer::Known(states, EPOCH));
    assert_eq!(gateway.take(), ["lost 1"]);
}

#[test]
fn a_poll_whose_name_is_in_use_is_made_without_the_engine() {
    let mut gateway = Gateway::linked();
    gateway.open_held(1);
    let spec = gateway.spec(1);
    gateway.input(SiblingInput::Open(PollId(2), spec));
    gateway.input(SiblingInput::Progress(PollId(2), PollProgress::Held));
    let outcome = gateway.outcome(3);
    gateway.input(SiblingInput::Ended(PollId(2), outcome));
    assert_eq!(gateway.take(), ["start 2", "progress 2", "landed 2"]);
}

#[test]
fn the_grant_of_a_forgotten_poll_is_given_back() {
    let mut gateway = Gateway::linked();
    gateway.open(1);
    gateway.input(SiblingInput::Abort(PollId(1)));
    gateway.answer("claim", EngineAnswer::Granted(EPOCH));
    assert_eq!(gateway.take(), ["claim", "leave"]);
    gateway.open(2);
    gateway.input(SiblingInput::Abort(PollId(2)));
    gateway.answer("claim", held(SIBLING, 2, ms(0)));
    assert_eq!(gateway.take(), ["claim", "detach"]);
}

/// P7
#[test]
fn the_poll_of_a_sibling_proves_states_while_it_is_held_and_its_holder_is_heard() {
    let mut gateway = Gateway::linked();
    gateway.open_held(1);
    gateway.message(SiblingMessage::Note(name(1), token(1), Some(ms(0))));
    assert_eq!(gateway.take(), ["elsewhere 1 since 0 held"]);
    gateway.message(SiblingMessage::Note(name(1), token(1), None));
    assert_eq!(gateway.take(), ["elsewhere 1 since 0"]);
    gateway.message(SiblingMessage::Note(name(1), token(1), Some(ms(0))));
    gateway.take();
    gateway.pass_with(&[SIBLING], ms(1_000));
    assert_eq!(gateway.take(), Vec::<String>::new());
    gateway.pass(ms(1_200));
    assert_eq!(gateway.take(), ["elsewhere 1 since 0"]);
    gateway.beat(SIBLING);
    assert_eq!(gateway.take(), ["elsewhere 1 since 0 held"]);
}

/// P8: a replica that has seen no list of the key needs its outer shape with the states.
#[test]
fn a_list_of_a_sibling_comes_with_its_shape_or_is_asked_for_anew() {
    let shape = Arc::new(ListShape::Wrapped("data".to_owned()));
    for (sent, lines) in
        [(Some(shape), ["shape 1 Wrapped(\"data\")", "landed 1"]), (None, ["lost 1", "claim"])]
    {
        let mut gateway = Gateway::linked();
        let spec = ShareSpec { needs_shape: true, ..gateway.spec(1) };
        gateway.input(SiblingInput::Open(PollId(1), spec));
        gateway.answer("claim", held(SIBLING, 1, ms(0)));
        gateway.take();
        let state = SharedState { shape: sent, ..gateway.state(3, ms(0)) };
        let outcome = SharedOutcome::Jobs(vec![state]);
        gateway.message(SiblingMessage::Landed(name(1), token(1), EPOCH, outcome));
        gateway.wait_for(lines[1], ms(200));
        assert_eq!(gateway.take(), lines);
    }
}
