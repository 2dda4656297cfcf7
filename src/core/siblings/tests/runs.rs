//! Polls that this replica makes: guests, linger, drain.

use super::*;

/// P6
#[test]
fn a_poll_with_guests_goes_on_without_waits() {
    let mut gateway = Gateway::linked();
    let mine = gateway.open_granted(1);
    gateway.message(SiblingMessage::Attached(name(1), mine, SIBLING));
    gateway.input(SiblingInput::Abort(PollId(1)));
    gateway.pass_with(&[SIBLING], ms(60_000));
    assert_eq!(gateway.take(), Vec::<String>::new());
    let outcome = gateway.outcome(3);
    gateway.input(SiblingInput::Ended(PollId(1), outcome));
    assert_eq!(gateway.take(), ["land"]);
}

/// P6
#[test]
fn a_poll_lingers_once_after_its_last_guest() {
    let mut gateway = Gateway::linked();
    let mine = gateway.open_granted(1);
    gateway.message(SiblingMessage::Attached(name(1), mine, SIBLING));
    gateway.input(SiblingInput::Abort(PollId(1)));
    gateway.message(SiblingMessage::Detached(name(1), SIBLING));
    gateway.pass(ms(1_999));
    assert_eq!(gateway.take(), Vec::<String>::new());
    gateway.pass(ms(1));
    assert_eq!(gateway.take(), ["cancel 1", "leave"]);
}

#[test]
fn a_poll_without_guests_ends_with_its_last_wait() {
    let mut gateway = Gateway::linked();
    gateway.open_granted(1);
    gateway.input(SiblingInput::Abort(PollId(1)));
    assert_eq!(gateway.take(), ["cancel 1", "leave"]);
    assert_eq!(gateway.machine.polls(), (0, 0));
}

/// P1: the quota of the wait that opened the poll refuses it after a guest has come.
#[test]
fn a_poll_that_was_never_attempted_is_left_to_its_guests() {
    let mut gateway = Gateway::linked();
    gateway.makes_attempts = false;
    gateway.open(1);
    let EngineCall::Claim(request) = gateway.calls["claim"].1.clone() else { panic!() };
    gateway.message(SiblingMessage::Attached(name(1), request.token, SIBLING));
    gateway.answer("claim", EngineAnswer::Granted(EPOCH));
    gateway.input(SiblingInput::Abort(PollId(1)));
    assert_eq!(gateway.take(), ["claim", "start 1", "cancel 1", "leave"]);
    assert_eq!(gateway.machine.polls(), (0, 0));
}

#[test]
fn a_guest_that_is_dead_is_a_guest_no_more() {
    let mut gateway = Gateway::linked();
    let mine = gateway.open_granted(1);
    gateway.beat(SIBLING);
    gateway.message(SiblingMessage::Attached(name(1), mine, SIBLING));
    gateway.input(SiblingInput::Abort(PollId(1)));
    gateway.pass(ms(4_000));
    assert_eq!(gateway.take(), ["cancel 1", "leave"]);
}

#[test]
fn a_guest_that_is_never_heard_counts_as_dead() {
    let mut gateway = Gateway::linked();
    let mine = gateway.open_granted(1);
    gateway.message(SiblingMessage::Attached(name(1), mine, SIBLING));
    gateway.input(SiblingInput::Abort(PollId(1)));
    gateway.pass(ms(3_999));
    assert_eq!(gateway.take(), Vec::<String>::new());
    gateway.pass(ms(1));
    assert_eq!(gateway.take(), ["cancel 1", "leave"]);
}

/// P6
#[test]
fn a_replica_that_was_deaf_asks_for_the_guests_of_its_polls() {
    let mut gateway = Gateway::linked();
    let mine = gateway.open_granted(1);
    gateway.message(SiblingMessage::Attached(name(1), mine, SIBLING));
    gateway.deafen();
    gateway.beat(ME);
    assert_eq!(gateway.take(), ["adopt"]);
    let guests = vec![ME, OTHER];
    gateway.answer("adopt", EngineAnswer::Adopted { is_mine: true, epoch: EPOCH, guests });
    gateway.is_engine_up = true;
    gateway.input(SiblingInput::Abort(PollId(1)));
    gateway.pass_with(&[OTHER], ms(10_000));
    assert_eq!(gateway.take(), Vec::<String>::new());
    gateway.message(SiblingMessage::Detached(name(1), OTHER));
    gateway.pass(ms(2_000));
    assert_eq!(gateway.take(), ["cancel 1", "leave"]);
}

#[test]
fn a_guest_that_comes_before_the_answer_to_the_claim_is_kept() {
    let mut gateway = Gateway::linked();
    gateway.open(1);
    let EngineCall::Claim(request) = gateway.calls["claim"].1.clone() else { panic!() };
    gateway.message(SiblingMessage::Attached(name(1), request.token, SIBLING));
    gateway.message(SiblingMessage::Attached(name(1), request.token, OTHER));
    gateway.message(SiblingMessage::Detached(name(1), OTHER));
    gateway.answer("claim", EngineAnswer::Granted(EPOCH));
    gateway.input(SiblingInput::Progress(PollId(1), PollProgress::Held));
    assert_eq!(gateway.take(), ["claim", "start 1", "note held", "progress 1"]);
    gateway.input(SiblingInput::Abort(PollId(1)));
    gateway.message(SiblingMessage::Detached(name(1), SIBLING));
    gateway.pass(ms(2_000));
    assert_eq!(gateway.take(), ["cancel 1", "leave"]);
}

#[test]
fn guests_that_came_or_left_since_the_question_are_newer_than_the_answer() {
    let mut gateway = Gateway::linked();
    let mine = gateway.open_granted(1);
    gateway.message(SiblingMessage::Attached(name(1), mine, SIBLING));
    gateway.message(SiblingMessage::Flushed);
    gateway.message(SiblingMessage::Attached(name(1), mine, OTHER));
    gateway.message(SiblingMessage::Detached(name(1), SIBLING));
    gateway.answer("adopt", EngineAnswer::Adopted { is_mine: true, epoch: EPOCH, guests: vec![SIBLING] });
    gateway.input(SiblingInput::Abort(PollId(1)));
    gateway.message(SiblingMessage::Detached(name(1), OTHER));
    gateway.pass_with(&[OTHER, SIBLING], ms(2_000));
    assert_eq!(gateway.take(), ["adopt", "cancel 1", "leave"]);
}

/// P6
#[test]
fn a_poll_stays_until_an_engine_without_memory_knows_its_guests_again() {
    let mut gateway = Gateway::with_linger(Duration::ZERO);
    let mine = gateway.open_granted(1);
    gateway.message(SiblingMessage::Attached(name(1), mine, SIBLING));
    gateway.input(SiblingInput::Abort(PollId(1)));
    gateway.message(SiblingMessage::Flushed);
    gateway.answer("adopt", EngineAnswer::Adopted { is_mine: true, epoch: EPOCH, guests: Vec::new() });
    gateway.pass_with(&[SIBLING], ms(400));
    gateway.message(SiblingMessage::Attached(name(1), mine, SIBLING));
    gateway.pass_with(&[SIBLING], ms(10_000));
    assert_eq!(gateway.take(), ["adopt"]);
}

/// P6
#[test]
fn a_renamed_guest_stays_if_it_looks() {
    for looks in [true, false] {
        let mut gateway = Gateway::with_linger(Duration::ZERO);
        let mine = gateway.open_granted(1);
        gateway.message(SiblingMessage::Attached(name(1), mine, SIBLING));
        gateway.input(SiblingInput::Abort(PollId(1)));
        gateway.message(SiblingMessage::Beat(OTHER, Some(SIBLING)));
        gateway.pass_with(&[OTHER], ms(500));
        assert_eq!(gateway.take(), Vec::<String>::new());
        if looks {
            gateway.message(SiblingMessage::Attached(name(1), mine, OTHER));
        }
        gateway.pass_with(&[OTHER], ms(10_000));
        assert_eq!(gateway.take().is_empty(), looks);
    }
}

#[test]
fn the_coalescer_joins_the_poll_that_is_kept_for_guests() {
    let mut gateway = Gateway::linked();
    let mine = gateway.open_granted(1);
    gateway.message(SiblingMessage::Attached(name(1), mine, SIBLING));
    gateway.input(SiblingInput::Progress(PollId(1), PollProgress::Held));
    gateway.input(SiblingInput::Abort(PollId(1)));
    gateway.pass_with(&[SIBLING], ms(500));
    gateway.take();
    let spec = gateway.spec(1);
    gateway.input(SiblingInput::Open(PollId(2), spec));
    assert_eq!(gateway.take(), ["elsewhere 2 since 0 held"]);
    let outcome = gateway.outcome(3);
    gateway.input(SiblingInput::Ended(PollId(1), outcome));
    assert_eq!(gateway.take(), ["land", "landed 2"]);
}

/// P7
#[test]
fn guests_hear_whether_the_upstream_holds_the_poll() {
    let mut gateway = Gateway::linked();
    let mine = gateway.open_granted(1);
    gateway.input(SiblingInput::Progress(PollId(1), PollProgress::Held));
    assert_eq!(gateway.take(), ["progress 1"]); // no guest needs to know
    gateway.message(SiblingMessage::Attached(name(1), mine, SIBLING));
    assert_eq!(gateway.take(), ["note held"]);
    let failure = crate::core::coalescer::Failure::Unreachable;
    gateway.input(SiblingInput::Progress(PollId(1), PollProgress::BackingOff(failure, ms(500))));
    assert_eq!(gateway.take(), ["note not held", "leave", "progress 1"]);
}

#[test]
fn a_failure_is_published_as_one() {
    let mut gateway = Gateway::linked();
    gateway.open_granted(1);
    let failure = crate::core::coalescer::Failure::Unreachable;
    gateway.input(SiblingInput::Ended(PollId(1), PollOutcome::Failed(failure)));
    assert_eq!(gateway.take(), ["fail", "landed 1"]);
}

#[test]
fn a_draining_replica_goes_on_until_a_sibling_has_claimed() {
    let mut gateway = Gateway::linked();
    let mine = gateway.open_granted(1);
    gateway.message(SiblingMessage::Attached(name(1), mine, SIBLING));
    let until = gateway.now + ms(10_000);
    gateway.input(SiblingInput::Drain(until));
    assert_eq!(gateway.take(), ["leave"]);
    gateway.input(SiblingInput::Abort(PollId(1)));
    gateway.pass_with(&[SIBLING], ms(1_000));
    assert_eq!(gateway.take(), Vec::<String>::new());
    gateway.message(SiblingMessage::Taken(name(1), mine));
    assert_eq!(gateway.take(), ["cancel 1", "leave"]);
}

#[test]
fn a_draining_replica_ends_its_polls_for_guests_when_its_time_is_over() {
    let mut gateway = Gateway::linked();
    let mine = gateway.open_granted(1);
    let until = gateway.now + ms(10_000);
    gateway.input(SiblingInput::Drain(until));
    gateway.message(SiblingMessage::Attached(name(1), mine, SIBLING));
    gateway.input(SiblingInput::Abort(PollId(1)));
    gateway.pass_with(&[SIBLING], ms(10_250));
    let lines = gateway.take();
    assert_eq!(lines, ["leave", "cancel 1", "leave"]);
}

#[test]
fn two_replicas_that_make_one_poll_have_one_lease() {
    let mut gateway = Gateway::linked();
    gateway.input(SiblingInput::LinkDown);
    gateway.open(1);
    gateway.link_up(ME);
    gateway.answer("adopt", EngineAnswer::Adopted { is_mine: false, epoch: EPOCH, guests: Vec::new() });
    gateway.take();
    // The other one ends: this one asks for the lease again.
    gateway.message(SiblingMessage::Left(name(1), token(1)));
    assert_eq!(gateway.take(), ["adopt"]);
}

#[test]
fn a_poll_without_a_lease_asks_for_that_of_a_dead_sibling() {
    let mut gateway = Gateway::linked();
    gateway.beat(SIBLING);
    gateway.input(SiblingInput::LinkDown);
    gateway.open(1);
    gateway.link_up(ME);
    gateway.answer("adopt", EngineAnswer::Adopted { is_mine: false, epoch: EPOCH, guests: Vec::new() });
    gateway.take();
    gateway.wait_for("adopt", ms(2_000));
}

/// The lease that a guest claims after the drain began may be a third replica's, or stored states answer it.
#[test]
fn a_guest_that_finds_stored_states_is_a_guest_no_more() {
    let mut gateway = Gateway::linked();
    gateway.open_held(1);
    gateway.message(SiblingMessage::Left(name(1), token(1)));
    let EngineCall::Claim(request) = &gateway.calls["claim"].1 else { panic!() };
    assert_eq!(request.follows, Some(token(1)));
    let states = vec![gateway.state(3, ms(0))];
    gateway.answer("claim", EngineAnswer::Known(states, EPOCH));
    assert_eq!(gateway.take(), ["lost 1", "claim", "detach", "landed 1"]);
}

#[test]
fn the_guests_of_an_older_question_are_not_those_of_now() {
    let mut gateway = Gateway::linked();
    let mine = gateway.open_granted(1);
    gateway.message(SiblingMessage::Flushed);
    let (older, _) = gateway.calls["adopt"].clone();
    gateway.message(SiblingMessage::Attached(name(1), mine, SIBLING));
    gateway.pass(ms(150));
    gateway.message(SiblingMessage::Flushed);
    let none = EngineAnswer::Adopted { is_mine: true, epoch: EPOCH, guests: Vec::new() };
    gateway.input(SiblingInput::Answer(older, none));
    gateway.input(SiblingInput::Abort(PollId(1)));
    gateway.pass_with(&[SIBLING], ms(5_000));
    assert_eq!(gateway.take(), ["adopt", "adopt"]);
}

/// P3: the lease that the newer question took would end with a `Leave`.
#[test]
fn a_refusal_that_a_newer_question_supersedes_ends_no_lease() {
    let mut gateway = Gateway::linked();
    gateway.open_granted(1);
    gateway.message(SiblingMessage::Left(name(1), token(1)));
    let (older, _) = gateway.calls["adopt"].clone();
    gateway.message(SiblingMessage::Left(name(1), token(1)));
    let adopted = |is_mine| EngineAnswer::Adopted { is_mine, epoch: EPOCH, guests: Vec::new() };
    gateway.input(SiblingInput::Answer(older, adopted(false)));
    gateway.answer("adopt", adopted(true));
    assert_eq!(gateway.take(), ["adopt", "adopt"]);
    // The refusal of the last question counts.
    gateway.message(SiblingMessage::Left(name(1), token(1)));
    gateway.answer("adopt", adopted(false));
    assert_eq!(gateway.take(), ["adopt", "leave"]);
}

/// P3: three questions that were on their way together count as one refusal.
#[test]
fn refusals_of_the_same_moment_do_not_lengthen_the_pause() {
    let mut gateway = Gateway::alone();
    gateway.open(1);
    gateway.link_up(ME);
    let mut calls = vec![gateway.calls["adopt"].0];
    for _ in 0..2 {
        gateway.message(SiblingMessage::Left(name(1), token(1)));
        calls.push(gateway.calls["adopt"].0);
    }
    gateway.take();
    for call in calls {
        let refused = EngineAnswer::Adopted { is_mine: false, epoch: EPOCH, guests: Vec::new() };
        gateway.input(SiblingInput::Answer(call, refused));
    }
    gateway.pass(ms(2_000));
    assert_eq!(gateway.take(), ["adopt"]);
}

#[test]
fn a_refused_poll_asks_for_its_lease_again_one_takeover_later() {
    let mut gateway = Gateway::linked();
    gateway.input(SiblingInput::LinkDown);
    gateway.open(1);
    gateway.link_up(ME);
    let refused = EngineAnswer::Adopted { is_mine: false, epoch: EPOCH, guests: Vec::new() };
    for pause in [2_000, 4_000, 8_000, 16_000, 16_000] {
        gateway.answer("adopt", refused.clone());
        gateway.take();
        gateway.pass(ms(pause - 1));
        assert_eq!(gateway.take(), Vec::<String>::new());
        gateway.pass(ms(1));
        assert_eq!(gateway.take(), ["adopt"]);
    }
    gateway.answer("adopt", EngineAnswer::Adopted { is_mine: true, epoch: EPOCH, guests: Vec::new() });
    gateway.pass(ms(60_000));
    assert_eq!(gateway.take(), Vec::<String>::new());
}

/// P3
#[test]
fn a_poll_that_began_without_an_answer_takes_a_lease_that_the_late_answer_finds_vacant() {
    let mut gateway = Gateway::linked();
    gateway.open_held(1);
    gateway.message(SiblingMessage::Flushed);
    assert_eq!(gateway.take(), ["look"]);
    gateway.is_engine_up = false;
    gateway.wait_for("start 1", ms(2_000));
    gateway.take();
    gateway.answer("look", EngineAnswer::Vacant);
    assert_eq!(gateway.take(), ["adopt"]);
}

/// P2
#[test]
fn the_last_snapshots_of_a_drain_do_not_wait_for_the_engine() {
    let mut gateway = Gateway::linked();
    gateway.input(SiblingInput::Drain(gateway.now + ms(3_000)));
    gateway.open(1);
    assert_eq!(gateway.take(), ["claim"]);
    gateway.pass(ms(2_001));
    gateway.open(2);
    assert!(gateway.take().ends_with(&["start 2".to_owned(), "adopt".to_owned()]));
}
