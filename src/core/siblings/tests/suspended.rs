//! Polls of a holder that cannot reach the upstream or has to pause: siblings try for themselves.

use super::*;
use crate::core::coalescer::Failure;

fn backing_off() -> PollProgress {
    PollProgress::BackingOff(Failure::Unreachable, ms(500))
}

fn paused() -> PollProgress {
    PollProgress::Paused(Failure::Unreachable, ms(60_000))
}

impl Gateway {
    fn progress(&mut self, progress: PollProgress) -> Vec<String> {
        self.input(SiblingInput::Progress(PollId(1), progress));
        self.take()
    }
}

/// P5, P12
#[test]
fn a_holder_that_backs_off_or_is_paused_leaves_its_poll_and_goes_on_for_its_own_waits() {
    for suspended in [backing_off(), paused()] {
        let mut gateway = Gateway::linked();
        let mine = gateway.open_granted(1);
        gateway.message(SiblingMessage::Attached(name(1), mine, SIBLING));
        assert_eq!(gateway.progress(suspended), ["leave", "progress 1"]);
        gateway.message(SiblingMessage::Taken(name(1), mine));
        assert_eq!(gateway.take(), Vec::<String>::new());
        let outcome = gateway.outcome(3);
        gateway.input(SiblingInput::Ended(PollId(1), outcome));
        assert_eq!(gateway.take(), ["land", "landed 1"]);
    }
}

/// P4: the poll would be opened again at once, in the middle of its pause.
#[test]
fn a_result_of_an_earlier_poll_of_this_replica_ends_no_poll_that_backs_off() {
    let mut gateway = Gateway::linked();
    let mine = gateway.open_granted(1);
    let earlier = LeaseToken { number: mine.number - 1, ..mine };
    gateway.progress(backing_off());
    let outcome = SharedOutcome::Jobs(vec![gateway.state(3, ms(5_000))]);
    gateway.message(SiblingMessage::Landed(name(1), earlier, EPOCH, outcome));
    assert!(!gateway.take().contains(&"landed 1".to_owned()));
    let message = gateway.landed_message(1, 3, ms(0));
    gateway.message(message);
    assert_eq!(gateway.take(), ["landed 1", "cancel 1", "leave"]);
}

/// P6: make before break.
#[test]
fn a_holder_without_waits_that_backs_off_goes_on_until_a_guest_has_claimed() {
    let mut gateway = Gateway::linked();
    let mine = gateway.open_granted(1);
    gateway.message(SiblingMessage::Attached(name(1), mine, SIBLING));
    gateway.input(SiblingInput::Abort(PollId(1)));
    assert_eq!(gateway.progress(backing_off()), ["leave"]);
    gateway.message(SiblingMessage::Taken(name(1), mine));
    assert_eq!(gateway.take(), ["cancel 1", "leave"]);
}

/// P12: its client alone would make a request now, and so does its replica.
#[test]
fn a_new_guest_of_a_poll_that_backs_off_claims_it() {
    let mut gateway = Gateway::linked();
    let mine = gateway.open_granted(1);
    assert_eq!(gateway.progress(backing_off()), ["leave", "progress 1"]);
    // On its way when the lease was given up.
    gateway.message(SiblingMessage::Attached(name(1), mine, SIBLING));
    gateway.message(SiblingMessage::Left(name(1), mine));
    assert_eq!(gateway.take(), Vec::<String>::new());
}

#[test]
fn a_poll_that_backs_off_asks_for_its_lease_once_the_upstream_holds_it() {
    let mut gateway = Gateway::linked();
    gateway.open_granted(1);
    gateway.progress(backing_off());
    gateway.message(SiblingMessage::Left(name(1), token(1)));
    gateway.message(SiblingMessage::Flushed);
    assert_eq!(gateway.take(), Vec::<String>::new());
    assert_eq!(gateway.progress(PollProgress::AttemptStarted), Vec::<String>::new());
    assert_eq!(gateway.progress(PollProgress::Held), ["progress 1"]);
    gateway.pass(ms(999));
    assert_eq!(gateway.take(), Vec::<String>::new());
    gateway.pass(ms(1));
    assert_eq!(gateway.take(), ["adopt"]);
    let guests = Vec::new();
    gateway.answer("adopt", EngineAnswer::Adopted { is_mine: true, epoch: EPOCH, guests });
    assert_eq!(gateway.progress(PollProgress::Held), ["progress 1"]);
}

#[test]
fn a_lease_that_comes_while_the_poll_backs_off_is_given_back() {
    let mut gateway = Gateway::alone();
    gateway.open(1);
    gateway.link_up(ME);
    assert_eq!(gateway.progress(backing_off()), ["start 1", "adopt", "progress 1"]);
    let guests = vec![SIBLING];
    gateway.answer("adopt", EngineAnswer::Adopted { is_mine: true, epoch: EPOCH, guests });
    assert_eq!(gateway.take(), ["leave"]);
}

/// P5: siblings make attempts of their own meanwhile.
#[test]
fn a_retry_that_seems_held_for_a_moment_does_not_ask_for_the_lease() {
    let mut gateway = Gateway::linked();
    gateway.open_granted(1);
    gateway.progress(backing_off());
    for _ in 0..3 {
        gateway.progress(PollProgress::AttemptStarted);
        gateway.progress(PollProgress::Held);
        gateway.message(SiblingMessage::Left(name(1), token(1)));
        gateway.pass(ms(900));
        assert_eq!(gateway.progress(backing_off()), ["progress 1"]);
        gateway.pass(ms(900));
        assert_eq!(gateway.take(), Vec::<String>::new());
    }
}

/// P12: a retry whose connection breaks at once was held for a moment.
#[test]
fn a_retry_that_fails_again_does_not_miss_the_landing_of_a_sibling() {
    for lands_while_held in [false, true] {
        let mut gateway = Gateway::linked();
        gateway.open_granted(1);
        gateway.progress(backing_off());
        gateway.progress(PollProgress::AttemptStarted);
        gateway.progress(PollProgress::Held);
        if !lands_while_held {
            assert_eq!(gateway.progress(backing_off()), ["progress 1"]);
        }
        let landing = gateway.landed_message(1, 3, ms(0));
        gateway.message(landing);
        assert_eq!(gateway.take(), ["landed 1", "cancel 1", "leave"], "{lands_while_held}");
    }
}

/// P4: the upstream holds the retry longer than the poll of the sibling.
#[test]
fn the_end_of_a_siblings_hold_does_not_end_a_retry_that_the_upstream_holds() {
    let mut gateway = Gateway::linked();
    gateway.open_granted(1);
    gateway.progress(backing_off());
    gateway.progress(PollProgress::AttemptStarted);
    gateway.progress(PollProgress::Held);
    let landing = gateway.landed_message(1, 2, ms(0));
    gateway.message(landing);
    assert_eq!(gateway.take(), Vec::<String>::new());
    gateway.pass(ms(1_000));
    assert_eq!(gateway.take(), ["adopt"]);
}

/// P12
#[test]
fn a_poll_that_backs_off_ends_with_the_landing_of_a_sibling() {
    let mut gateway = Gateway::linked();
    gateway.open_granted(1);
    let landing = gateway.landed_message(1, 3, ms(0));
    gateway.message(landing.clone());
    assert_eq!(gateway.take(), ["adopt"]); // it makes an attempt, and keeps the lease
    gateway.progress(backing_off());
    gateway.message(landing);
    assert_eq!(gateway.take(), ["landed 1", "cancel 1", "leave"]);
    assert_eq!(gateway.machine.polls(), (0, 0));
}
