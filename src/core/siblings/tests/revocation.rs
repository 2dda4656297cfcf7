//! Keys that the upstream rejected: polls that began before.

use super::*;
use crate::core::siblings::shared_poll::{SharedPoll, SharedPolls};

const LATER_EPOCH: KeyEpoch = KeyEpoch(8);

fn adopted(epoch: KeyEpoch) -> EngineAnswer {
    EngineAnswer::Adopted { is_mine: true, epoch, guests: Vec::new() }
}

fn revoked(age: Duration) -> SiblingMessage {
    SiblingMessage::Revoked { domain: KEY, dead: EPOCH, age, by: None }
}

impl Gateway {
    fn end(&mut self, poll: u64) -> Vec<String> {
        let outcome = self.outcome(3);
        self.input(SiblingInput::Ended(PollId(poll), outcome));
        self.take()
    }
}

/// P11
#[test]
fn a_poll_that_began_before_a_rejection_never_lands_and_is_never_adopted() {
    let mut gateway = Gateway::linked();
    let mine = gateway.open_granted(1);
    gateway.message(revoked(ms(0)));
    // A guest claims the poll in the next epoch, and leaves it after its own 401.
    gateway.message(SiblingMessage::Taken(name(1), mine));
    gateway.message(SiblingMessage::Left(name(1), token(1)));
    gateway.message(SiblingMessage::Flushed);
    assert_eq!(gateway.take(), Vec::<String>::new());
    gateway.input(SiblingInput::LinkDown);
    gateway.link_up(OTHER);
    assert_eq!(gateway.take(), Vec::<String>::new());
    assert_eq!(gateway.end(1), ["leave", "landed 1"]);
}

/// P11
#[test]
fn a_poll_made_apart_that_began_before_a_rejection_never_lands() {
    let mut gateway = Gateway::alone();
    gateway.open(1);
    gateway.pass(ms(500));
    gateway.link_up(ME);
    gateway.message(revoked(ms(100)));
    assert_eq!(gateway.take(), ["start 1", "adopt"]);
    // The engine did not know the rejection yet.
    gateway.answer("adopt", adopted(LATER_EPOCH));
    assert_eq!(gateway.take(), ["leave"]);
    assert_eq!(gateway.end(1), ["leave", "landed 1"]);
}

/// P11
#[test]
fn a_late_grant_does_not_revive_a_poll_that_began_before_a_rejection() {
    let mut gateway = Gateway::linked();
    gateway.is_engine_up = false;
    gateway.open(1);
    gateway.pass(ms(100));
    gateway.message(revoked(ms(0)));
    gateway.answer("claim", EngineAnswer::Granted(LATER_EPOCH));
    assert_eq!(gateway.take(), ["claim", "start 1", "leave"]);
    assert_eq!(gateway.end(1), ["leave", "landed 1"]);
}

/// P6: the holder keeps no poll for a replica that does not wait for it.
#[test]
fn a_replica_leaves_the_lease_of_an_epoch_that_died_before_the_answer_came() {
    let mut gateway = Gateway::linked();
    gateway.open(1);
    gateway.message(revoked(ms(0)));
    gateway.answer("claim", held(SIBLING, 1, ms(0)));
    assert_eq!(gateway.take(), ["claim", "detach", "lost 1"]);
}

/// P1: the engine dates the poll before the rejection of its key, since its clock went back, and keeps the lease.
#[test]
fn a_holder_that_does_not_get_its_lease_back_leaves_it_to_its_guests() {
    let mut gateway = Gateway::linked();
    let mine = gateway.open_granted(1);
    gateway.message(SiblingMessage::Attached(name(1), mine, SIBLING));
    gateway.link_up(OTHER);
    gateway.answer("adopt", EngineAnswer::Adopted { is_mine: false, epoch: EPOCH, guests: Vec::new() });
    assert_eq!(gateway.take(), ["adopt", "leave"]);
}

#[test]
fn a_poll_that_began_after_a_rejection_lands() {
    for (age, epoch) in [(ms(200), None), (ms(0), Some(LATER_EPOCH))] {
        let mut gateway = if epoch.is_some() { Gateway::linked() } else { Gateway::alone() };
        gateway.pass(ms(1_000));
        gateway.open(1);
        if let Some(epoch) = epoch {
            gateway.answer("claim", EngineAnswer::Granted(epoch));
        }
        gateway.pass(ms(100));
        if epoch.is_none() {
            gateway.link_up(ME);
        }
        gateway.message(revoked(age));
        gateway.take();
        assert_eq!(gateway.end(1), ["land", "landed 1"], "{age:?}");
    }
}

#[test]
fn an_attempt_after_a_rejection_asks_for_the_verdict_again() {
    let mut gateway = Gateway::linked();
    gateway.open_granted(1);
    gateway.message(revoked(ms(0)));
    gateway.pass(ms(100));
    gateway.input(SiblingInput::Progress(PollId(1), PollProgress::AttemptStarted));
    gateway.pass(ms(70));
    assert_eq!(gateway.end(1), ["land", "landed 1"]);
    let EngineCall::Land { epoch, attempt_age, .. } = &gateway.calls["land"].1 else { panic!() };
    assert_eq!((*epoch, *attempt_age), (None, ms(70)));
}

#[test]
fn a_landing_without_a_link_is_sent_with_the_age_of_its_attempt() {
    let mut gateway = Gateway::linked();
    gateway.open_granted(1);
    gateway.pass(ms(300));
    gateway.input(SiblingInput::LinkDown);
    gateway.end(1);
    gateway.pass(ms(700));
    gateway.link_up(OTHER);
    let EngineCall::Land { attempt_age, .. } = &gateway.calls["land"].1 else { panic!() };
    assert_eq!(*attempt_age, ms(1_000));
}

/// P11: the acceptance of an earlier attempt proves nothing.
#[test]
fn a_rejection_is_not_repeated_once_the_key_is_accepted_again() {
    for (began, is_repeated) in [(ms(300), false), (ms(100), true)] {
        let mut gateway = Gateway::linked();
        let zero = gateway.now;
        gateway.pass(ms(200));
        gateway.input(SiblingInput::KeyRefused(KEY));
        gateway.answer("refuse", EngineAnswer::Done(EngineTime(ms(0))));
        gateway.pass(ms(400));
        gateway.input(SiblingInput::KeyAccepted(KEY, zero + began));
        gateway.take();
        gateway.link_up(OTHER);
        let expected: &[&str] = if is_repeated { &["refuse"] } else { &[] };
        assert_eq!(gateway.take(), expected, "{began:?}");
        if is_repeated {
            let EngineCall::Refuse { age, repeats_within, .. } = gateway.calls["refuse"].1 else { panic!() };
            assert_eq!((age, repeats_within), (ms(400), Some(ms(1_000))));
        }
    }
}

/// P11: an acceptance at a sibling ends it. A second rejection within a moment is another one.
#[test]
fn a_rejection_that_the_engine_failed_is_sent_again_as_repeated_without_a_margin() {
    let mut gateway = Gateway::linked();
    gateway.input(SiblingInput::KeyRefused(KEY));
    for (repeats_within, pause) in [(None, ms(500)), (Some(ms(0)), ms(1_000)), (Some(ms(0)), ms(2_000))] {
        let (call, _) = gateway.calls["refuse"];
        let EngineCall::Refuse { repeats_within: sent, .. } = gateway.calls["refuse"].1 else { panic!() };
        assert_eq!(sent, repeats_within, "{call:?}");
        gateway.fail("refuse");
        gateway.pass(pause);
    }
}

/// P11: the caller has reloaded its configuration.
#[test]
fn a_rejection_is_repeated_for_the_time_that_was_set_last() {
    for (ttl, is_repeated) in [(ms(300), false), (ms(500), true)] {
        let mut gateway = Gateway::linked();
        gateway.input(SiblingInput::KeyRefused(KEY));
        gateway.answer("refuse", EngineAnswer::Done(EngineTime(ms(0))));
        gateway.pass(ms(400));
        gateway.machine.set_refusal_ttl(ttl);
        gateway.take();
        gateway.link_up(OTHER);
        let expected: &[&str] = if is_repeated { &["refuse"] } else { &[] };
        assert_eq!(gateway.take(), expected, "{ttl:?}");
    }
}

#[test]
fn a_rejection_looks_at_the_polls_of_its_key_only() {
    let mut polls = SharedPolls::default();
    let token = LeaseToken { instance: 1, number: 1 };
    let keys = [KEY, KeyDomain([0; 16]), KeyDomain([255; 16])];
    let gateway = Gateway::alone();
    for number in 0..300_u64 {
        let spec = ShareSpec { domain: keys[number as usize % 3], ..gateway.spec(number) };
        polls.insert(SharedPoll::new(spec, PollId(number), token, gateway.now));
    }
    polls.remove(name(3));
    let seen = std::cell::Cell::new(0);
    let names = polls.names_of(KEY, |poll| {
        seen.set(seen.get() + 1);
        poll.spec.domain == KEY
    });
    assert_eq!((names.len(), seen.get()), (99, 99));
}
