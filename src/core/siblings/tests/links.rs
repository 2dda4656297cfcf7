//! The link to the engine: slow, silent, down, without memory.

use super::*;

#[test]
fn a_claim_without_an_answer_is_given_up_after_the_patience() {
    let mut gateway = Gateway::linked();
    gateway.is_engine_up = false;
    gateway.pass(ms(100));
    gateway.open(1);
    gateway.pass(ms(49));
    assert_eq!(gateway.take(), ["claim"]);
    gateway.pass(ms(1));
    assert_eq!(gateway.take(), ["start 1"]);
    gateway.answer("claim", EngineAnswer::Granted(EPOCH));
    gateway.input(SiblingInput::Abort(PollId(1)));
    assert_eq!(gateway.take(), ["cancel 1", "leave"]);
}

#[test]
fn the_patience_counts_from_the_last_word_and_ends_after_a_quarter_of_a_second() {
    let mut gateway = Gateway::linked();
    gateway.open(1);
    for _ in 0..8 {
        gateway.pass(ms(30));
        gateway.beat(SIBLING);
    }
    assert_eq!(gateway.take(), ["claim"]);
    gateway.pass(ms(10));
    assert_eq!(gateway.take(), ["start 1"]);
}

#[test]
fn new_polls_do_not_wait_for_a_far_engine() {
    let mut gateway = Gateway::linked();
    for poll in 1..=3 {
        gateway.open(poll);
        gateway.pass(ms(60));
    }
    gateway.take();
    assert_eq!(gateway.machine.link(), LinkState::Far);
    gateway.open(4);
    assert_eq!(gateway.take(), ["start 4", "adopt"]);
    gateway.pass(ms(500)); // a beat is answered at once
    assert_eq!(gateway.machine.link(), LinkState::Near);
}

#[test]
fn a_replica_without_a_link_goes_on_alone_within_a_second() {
    let mut gateway = Gateway::linked();
    gateway.open_held(1);
    gateway.input(SiblingInput::LinkDown);
    gateway.open(2);
    assert_eq!(gateway.take(), ["start 2"]);
    gateway.pass(ms(499));
    assert_eq!(gateway.take(), Vec::<String>::new());
    gateway.pass(ms(501));
    assert_eq!(gateway.take(), ["start 1"]);
    assert_eq!(gateway.machine.link(), LinkState::Apart);
}

#[test]
fn a_silent_engine_leaves_each_replica_alone_within_a_second_and_a_half() {
    let mut gateway = Gateway::linked();
    gateway.open_held(1);
    gateway.is_engine_up = false;
    gateway.pass(ms(999));
    assert_eq!(gateway.take(), Vec::<String>::new());
    gateway.pass(ms(501));
    assert_eq!(gateway.take(), ["start 1", "detach", "adopt"]);
    assert_eq!(gateway.machine.link(), LinkState::Apart);
}

/// P1
#[test]
fn an_engine_that_accepts_links_and_answers_nothing_leaves_a_replica_alone_within_a_second_and_a_half() {
    let mut gateway = Gateway::linked();
    gateway.open_held(1);
    gateway.take();
    gateway.is_engine_up = false;
    for me in 10..40 {
        gateway.input(SiblingInput::LinkDown);
        gateway.pass(ms(50));
        gateway.link_up(ReplicaName(me));
        gateway.pass(ms(1));
    }
    assert!(gateway.take().contains(&"start 1".to_owned()));
}

#[test]
fn a_short_break_of_the_link_starts_no_poll() {
    let mut gateway = Gateway::linked();
    gateway.open_held(1);
    gateway.input(SiblingInput::LinkDown);
    gateway.pass(ms(200));
    gateway.link_up(OTHER);
    assert_eq!(gateway.take(), ["look"]);
    gateway.answer("look", EngineAnswer::Vacant); // the holder has not adopted its poll yet
    gateway.pass(ms(299));
    assert_eq!(gateway.take(), Vec::<String>::new());
    gateway.pass(ms(1));
    assert_eq!(gateway.take(), ["claim"]);
}

#[test]
fn own_polls_are_adopted_when_the_link_is_up() {
    let mut gateway = Gateway::alone();
    gateway.open(1);
    assert_eq!(gateway.take(), ["start 1"]);
    gateway.link_up(ME);
    assert_eq!(gateway.take(), ["adopt"]);
    gateway.answer("adopt", EngineAnswer::Adopted { is_mine: true, epoch: EPOCH, guests: vec![SIBLING] });
    gateway.input(SiblingInput::Abort(PollId(1)));
    assert_eq!(gateway.take(), Vec::<String>::new());
}

#[test]
fn a_landing_without_a_link_is_sent_with_its_age_when_the_link_is_up() {
    let mut gateway = Gateway::linked();
    gateway.open_granted(1);
    gateway.input(SiblingInput::LinkDown);
    let outcome = gateway.outcome(2);
    gateway.input(SiblingInput::Ended(PollId(1), outcome));
    assert_eq!(gateway.take(), ["landed 1"]);
    gateway.pass(ms(700));
    gateway.link_up(OTHER);
    assert_eq!(gateway.take(), ["land"]);
    let EngineCall::Land { outcome: SharedOutcome::Jobs(states), .. } = &gateway.calls["land"].1 else {
        panic!("{:?}", gateway.calls)
    };
    assert_eq!(states[0].age, ms(700));
}

#[test]
fn the_outbox_keeps_1024_calls_for_two_minutes() {
    let mut gateway = Gateway::alone();
    for poll in 0..1_100 {
        gateway.open(poll);
        let outcome = gateway.outcome(2);
        gateway.input(SiblingInput::Ended(PollId(poll), outcome));
    }
    assert_eq!(gateway.machine.unanswered(), outbox::MAX_CALLS);
    gateway.pass(outbox::MAX_AGE);
    assert_eq!(gateway.machine.unanswered(), 0);
}

/// P10: the next link has one removal of all states for those that are lost.
#[test]
fn removals_that_the_outbox_has_forgotten_are_followed_by_one_of_all_states() {
    let removal = || EngineCall::Remove(Removal::Id(JobId::new("a").unwrap()));
    let removed = |gateway: &Gateway| match &gateway.calls["remove"].1 {
        EngineCall::Remove(removal) => removal.clone(),
        call => panic!("{call:?}"),
    };
    for (removals, pause, is_lost) in [
        (1, outbox::MAX_AGE - ms(1), false),
        (1, outbox::MAX_AGE, true),
        (outbox::MAX_CALLS + 1, ms(0), true),
    ] {
        let mut gateway = Gateway::linked();
        gateway.input(SiblingInput::LinkDown);
        (0..removals).for_each(|_| gateway.input(SiblingInput::Publish(removal())));
        gateway.pass(pause);
        gateway.link_up(OTHER);
        assert_eq!(removed(&gateway) == Removal::All, is_lost, "{removals} {pause:?}");
    }
}

/// P10: the engine was full all the time.
#[test]
fn a_removal_that_failed_for_two_minutes_is_followed_by_one_of_all_states() {
    let mut gateway = Gateway::linked();
    gateway.input(SiblingInput::Publish(EngineCall::Remove(Removal::Id(JobId::new("a").unwrap()))));
    gateway.is_engine_up = false;
    for _ in 0..1_201 {
        for kind in ["remove", "beat"] {
            if gateway.calls.contains_key(kind) {
                gateway.fail(kind);
            }
        }
        gateway.pass(ms(100));
    }
    assert_eq!(gateway.machine.unanswered(), 0);
    gateway.is_engine_up = true;
    gateway.calls.clear();
    gateway.pass(ms(1_000));
    assert!(matches!(gateway.calls["remove"].1, EngineCall::Remove(Removal::All)));
    gateway.answer("remove", EngineAnswer::Done(EngineTime(ms(0))));
    gateway.take();
    gateway.link_up(OTHER);
    assert_eq!(gateway.take(), Vec::<String>::new());
}

#[test]
fn the_outbox_keeps_16_mebibytes() {
    let mut gateway = Gateway::alone();
    for poll in 0..20 {
        gateway.open(poll);
        let PollOutcome::Jobs(mut states) = gateway.outcome(2) else { panic!() };
        states[0].body = Bytes::from(vec![0; 1 << 20]);
        gateway.input(SiblingInput::Ended(PollId(poll), PollOutcome::Jobs(states)));
    }
    assert_eq!(gateway.machine.unanswered(), outbox::MAX_BYTES >> 20);
}

#[test]
fn a_replica_that_does_not_hear_itself_subscribes_again_and_then_looks() {
    let mut gateway = Gateway::linked();
    gateway.open_held(1);
    gateway.deafen();
    gateway.beat(ME);
    assert_eq!(gateway.take(), ["look"]);
}

/// P1: the engine answers, so that it is not silent, and no landing would come.
#[test]
fn a_replica_that_stays_deaf_makes_its_polls_within_2_2_s_and_asks_for_no_new_one() {
    let mut gateway = Gateway::linked();
    gateway.open_held(1);
    let heard_at = gateway.now;
    gateway.deafen();
    assert_eq!(gateway.machine.link(), LinkState::Far);
    gateway.open(2);
    assert_eq!(gateway.take(), ["start 2", "adopt"]);
    while !gateway.lines.contains(&"start 1".to_owned()) {
        gateway.pass(ms(10));
        gateway.input(SiblingInput::Subscribers(SIBLING, 1));
        assert!(gateway.now <= heard_at + ms(2_200));
    }
    gateway.beat(ME);
    assert_eq!(gateway.machine.link(), LinkState::Near);
    gateway.open(3);
    assert_eq!(gateway.take().last().unwrap(), "claim");
}

/// P6: a drain that ends now would leave its guests without a word.
#[test]
fn a_replica_whose_link_is_too_new_to_be_heard_on_is_not_alone() {
    let mut gateway = Gateway::linked();
    gateway.input(SiblingInput::LinkDown);
    assert!(gateway.machine.is_alone());
    gateway.is_engine_up = false;
    gateway.link_up(OTHER);
    assert_eq!((gateway.machine.link(), gateway.machine.is_alone()), (LinkState::Apart, false));
    gateway.pass(ms(1_500));
    assert!(gateway.machine.is_alone(), "the engine is silent");
}

/// P1
#[test]
fn a_new_link_joins_no_poll_before_it_is_heard_on() {
    let mut gateway = Gateway::alone();
    gateway.is_engine_up = false;
    gateway.link_up(ME);
    gateway.open(1);
    gateway.answer("claim", held(SIBLING, 1, ms(0)));
    assert_eq!(gateway.take(), ["claim"]);
    assert_eq!(gateway.machine.holder(PollId(1)), None);
    gateway.beat(ME);
    assert_eq!(gateway.take(), ["look"]);
    gateway.answer("look", held(SIBLING, 1, ms(0)));
    assert_eq!(gateway.machine.holder(PollId(1)), Some(SIBLING));
}

/// P1
#[test]
fn a_poll_on_links_that_are_never_heard_on_is_made_here_within_2_2_s() {
    let mut gateway = Gateway::linked();
    gateway.open_held(1);
    let heard_at = gateway.now;
    gateway.is_engine_up = false;
    for me in 10.. {
        gateway.input(SiblingInput::LinkDown);
        gateway.pass(ms(20));
        gateway.link_up(ReplicaName(me));
        gateway.pass(ms(150));
        gateway.input(SiblingInput::Subscribers(SIBLING, 1));
        if gateway.take().contains(&"start 1".to_owned()) {
            break;
        }
        assert!(gateway.now <= heard_at + ms(2_200));
    }
}

#[test]
fn an_engine_without_memory_is_given_all_own_polls_and_asked_again() {
    let mut gateway = Gateway::linked();
    gateway.open_granted(1);
    gateway.open(2);
    gateway.take();
    gateway.answer("claim", EngineAnswer::Flushed);
    assert_eq!(gateway.take(), ["flushed", "adopt", "lost 2"]);
    gateway.pass(ms(100));
    assert_eq!(gateway.take(), ["claim"]);
}

#[test]
fn all_replicas_adopt_their_polls_when_one_finds_the_engine_without_memory() {
    let mut gateway = Gateway::linked();
    gateway.open_granted(1);
    gateway.message(SiblingMessage::Flushed);
    gateway.message(SiblingMessage::Flushed);
    assert_eq!(gateway.take(), ["adopt"]);
}

#[test]
fn a_beat_finds_the_engine_without_memory() {
    let mut gateway = Gateway::linked();
    gateway.open_granted(1);
    gateway.is_engine_up = false;
    gateway.pass(ms(500));
    gateway.answer("beat", EngineAnswer::Flushed);
    assert_eq!(gateway.take(), ["flushed", "adopt"]);
}

/// P3: a claim or a beat would find it later, or never: an adoption that counted as a beat hid the loss.
#[test]
fn an_adoption_finds_the_engine_without_memory() {
    let mut gateway = Gateway::linked();
    gateway.open_granted(1);
    gateway.message(SiblingMessage::Left(name(1), token(1)));
    assert_eq!(gateway.take(), ["adopt"]);
    gateway.answer("adopt", EngineAnswer::Flushed);
    assert_eq!(gateway.take(), ["flushed", "adopt"]);
    gateway.answer("adopt", EngineAnswer::Flushed); // it lost its memory twice within 0.1 s
    assert_eq!(gateway.take(), ["flushed", "adopt"]);
    gateway.answer("adopt", EngineAnswer::Adopted { is_mine: true, epoch: EPOCH, guests: Vec::new() });
    assert_eq!(gateway.take(), Vec::<String>::new());
}

/// Returns a gateway with a lease, whose beat is on its way, and the engine's time.
fn with_a_lease_and_a_beat_on_its_way() -> (Gateway, Duration) {
    let mut gateway = Gateway::linked();
    gateway.pass(ms(2_000));
    gateway.open_granted(1);
    gateway.is_engine_up = false;
    gateway.pass(ms(500));
    let time = gateway.now.saturating_duration_since(gateway.zero);
    (gateway, time)
}

/// P3: beats count as older than they are, or as not made yet, so that siblings may have taken the leases.
#[test]
fn an_engine_whose_clock_went_ahead_or_back_is_asked_for_the_leases() {
    for (ahead, asked) in [(999, 0), (1_001, 1), (-999, 0), (-1_001, 1)] {
        let (mut gateway, time) = with_a_lease_and_a_beat_on_its_way();
        let time = if ahead < 0 { time - ms(-ahead as u64) } else { time + ms(ahead as u64) };
        gateway.answer("beat", EngineAnswer::Done(EngineTime(time)));
        assert_eq!(gateway.take(), vec!["adopt"; asked], "{ahead}");
    }
}

#[test]
fn an_answer_that_was_long_on_its_way_does_not_count_as_a_clock_that_went_back() {
    let (mut gateway, time) = with_a_lease_and_a_beat_on_its_way();
    let beat = gateway.calls["beat"].0;
    gateway.pass(ms(1_200));
    gateway.input(SiblingInput::Answer(beat, EngineAnswer::Done(EngineTime(time))));
    assert!(!gateway.take().contains(&"adopt".to_owned()));
}

/// The nodes of a cluster have clocks of their own. A beat has the latest time of all.
#[test]
fn the_clock_of_the_node_that_answers_another_call_counts_for_nothing() {
    let mut gateway = Gateway::linked();
    gateway.open_granted(1);
    gateway.open_held(2);
    gateway.pass(ms(500));
    for _ in 0..2 {
        let time = gateway.now.saturating_duration_since(gateway.zero);
        for of_node in [time, time + ms(5_000)] {
            gateway.input(SiblingInput::Publish(EngineCall::Remove(Removal::All)));
            gateway.answer("remove", EngineAnswer::Done(EngineTime(of_node)));
            assert_eq!(gateway.take(), ["remove"]);
        }
        gateway.pass(ms(500));
        gateway.input(SiblingInput::KeyRefused(KEY));
        let EngineCall::Refuse { sent_at, .. } = gateway.calls["refuse"].1 else { panic!() };
        assert_eq!(sent_at, Some(EngineTime(time + ms(500))));
        gateway.take();
    }
}

/// P6: a holder whose lease was taken meanwhile gets it back without guests.
#[test]
fn a_guest_makes_itself_known_again_to_an_engine_whose_clock_went_ahead() {
    let mut gateway = Gateway::linked();
    gateway.open_held(1);
    gateway.is_engine_up = false;
    gateway.pass(ms(500));
    let time = gateway.now.saturating_duration_since(gateway.zero) + ms(5_000);
    gateway.answer("beat", EngineAnswer::Done(EngineTime(time)));
    assert_eq!(gateway.take(), ["look"]);
}

#[test]
fn only_the_adoptions_before_the_first_beat_of_a_link_make_the_replica_known() {
    let is_first = |gateway: &Gateway| match gateway.calls["adopt"].1 {
        EngineCall::Adopt { is_first, .. } => is_first,
        ref call => panic!("{call:?}"),
    };
    let mut gateway = Gateway::alone();
    gateway.open(1);
    gateway.link_up(ME);
    assert!(is_first(&gateway));
    gateway.message(SiblingMessage::Flushed);
    assert!(!is_first(&gateway));
}

#[test]
fn the_first_beat_of_a_link_proves_no_loss_of_memory() {
    let mut gateway = Gateway::alone();
    gateway.is_engine_up = false;
    gateway.link_up(ME);
    gateway.answer("beat", EngineAnswer::Flushed);
    assert_eq!(gateway.take(), Vec::<String>::new());
}

/// P3: the engine may have lost its memory after the adoptions, and before this beat.
#[test]
fn the_first_beat_of_a_link_asks_again_for_the_leases_of_an_engine_that_does_not_know_the_replica() {
    let mut gateway = Gateway::alone();
    gateway.open(1);
    gateway.is_engine_up = false;
    gateway.link_up(ME);
    gateway.answer("adopt", EngineAnswer::Adopted { is_mine: true, epoch: EPOCH, guests: Vec::new() });
    gateway.take();
    gateway.answer("beat", EngineAnswer::Flushed);
    assert_eq!(gateway.take(), ["adopt"]);
}

#[test]
fn a_new_poll_waits_until_all_polls_are_adopted() {
    let mut gateway = Gateway::linked();
    gateway.message(SiblingMessage::Flushed);
    gateway.open(1);
    gateway.pass(ms(99));
    assert_eq!(gateway.take(), ["lost 1"]);
    gateway.pass(ms(1));
    assert_eq!(gateway.take(), ["claim"]);
}

#[test]
fn the_grant_of_an_engine_without_memory_is_given_back() {
    let mut gateway = Gateway::linked();
    gateway.open(1);
    gateway.message(SiblingMessage::Flushed);
    gateway.answer("claim", EngineAnswer::Granted(EPOCH));
    assert_eq!(gateway.take(), ["claim", "leave", "lost 1"]);
    gateway.pass(ms(100));
    assert_eq!(gateway.take(), ["claim"]);
}

#[test]
fn a_guest_makes_itself_known_to_an_engine_without_memory() {
    let mut gateway = Gateway::linked();
    gateway.open_held(1);
    gateway.message(SiblingMessage::Flushed);
    assert_eq!(gateway.take(), ["look"]);
    gateway.answer("look", held(SIBLING, 1, ms(0)));
    assert_eq!(gateway.take(), ["elsewhere 1 since 0"]);
}

/// P11
#[test]
fn a_rejected_key_is_named_again_at_each_link() {
    let mut gateway = Gateway::linked();
    gateway.input(SiblingInput::KeyRefused(KEY));
    gateway.answer("refuse", EngineAnswer::Done(EngineTime(ms(0))));
    gateway.input(SiblingInput::LinkDown);
    gateway.link_up(OTHER);
    assert_eq!(gateway.take(), ["refuse", "refuse"]);
    gateway.pass(ms(60_000));
    gateway.link_up(ME);
    assert_eq!(gateway.take(), Vec::<String>::new());
}

#[test]
fn a_pause_is_sent_again_with_its_rest_and_not_after_its_end() {
    let mut gateway = Gateway::linked();
    gateway.input(SiblingInput::LinkDown);
    gateway.input(SiblingInput::Publish(EngineCall::Pause(KEY, ms(60_000))));
    gateway.pass(ms(50_000));
    gateway.link_up(OTHER);
    assert!(matches!(gateway.calls["pause"].1, EngineCall::Pause(KEY, rest) if rest == ms(10_000)));
    gateway.input(SiblingInput::LinkDown);
    gateway.calls.clear();
    gateway.pass(ms(10_000));
    gateway.link_up(ME);
    assert!(!gateway.calls.contains_key("pause"));
}

#[test]
fn siblings_beyond_the_bound_are_not_joined() {
    let mut gateway = Gateway::linked();
    for sibling in 0..members::MAX_MEMBERS as u64 {
        gateway.beat(ReplicaName(1_000 + sibling));
    }
    gateway.open(1);
    gateway.answer("claim", held(SIBLING, 1, ms(0)));
    assert_eq!(gateway.take(), ["claim", "start 1", "adopt", "detach"]);
}

#[test]
fn a_long_takeover_leaves_an_idle_link_near() {
    let mut gateway = Gateway::alone();
    gateway.machine.config.takeover = ms(60_000);
    gateway.link_up(ME);
    gateway.pass(ms(5_000));
    assert_eq!(gateway.machine.link.state(), LinkState::Near);
}
