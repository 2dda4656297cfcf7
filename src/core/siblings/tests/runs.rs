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
fn a_renamed_guest_stays() {
    let mut gateway = Gateway::linked();
    let mine = gateway.open_granted(1);
    gateway.message(SiblingMessage::Attached(name(1), mine, SIBLING));
    gateway.input(SiblingInput::Abort(PollId(1)));
    gateway.message(SiblingMessage::Beat(OTHER, Some(SIBLING)));
    gateway.pass_with(&[OTHER], ms(10_000));
    assert_eq!(gateway.take(), Vec::<String>::new());
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
    assert_eq!(gateway.take(), ["progress 1"]); // without guests it is no news
    gateway.message(SiblingMessage::Attached(name(1), mine, SIBLING));
    assert_eq!(gateway.take(), ["note held"]);
    let failure = crate::core::coalescer::Failure::Unreachable;
    gateway.input(SiblingInput::Progress(PollId(1), PollProgress::BackingOff(failure, ms(500))));
    assert_eq!(gateway.take(), ["note not held", "progress 1"]);
}

/// P12
#[test]
fn a_new_guest_of_a_poll_that_backs_off_causes_an_attempt_at_once() {
    let mut gateway = Gateway::linked();
    let mine = gateway.open_granted(1);
    let failure = crate::core::coalescer::Failure::Unreachable;
    gateway.input(SiblingInput::Progress(PollId(1), PollProgress::BackingOff(failure, ms(500))));
    gateway.take();
    gateway.message(SiblingMessage::Attached(name(1), mine, SIBLING));
    assert_eq!(gateway.take(), ["try 1"]);
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
    assert_eq!(gateway.take(), ["cancel 1"]);
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
    assert_eq!(lines[..2], ["leave", "cancel 1"]);
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
