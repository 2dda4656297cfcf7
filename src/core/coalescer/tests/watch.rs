//! Watches: polls for jobs that clients ask for repeatedly (P4).

use super::*;

fn watching() -> Scenario {
    let mut s = Scenario::new();
    s.machine.set_watch_idle(secs(20.0));
    s
}

/// Returns a machine that watches `a`, seen queued at 5 s.
fn watching_a() -> Scenario {
    let mut s = watching();
    s.get(1, "a").land("a now", "a=queued").at(5.0).get(2, "a").land("a now", "a=queued");
    assert_eq!(s.open(), ["a streaming"]);
    s
}

#[test]
fn the_second_plain_request_within_the_time_opens_a_watch_for_the_next_rung() {
    let mut s = watching();
    s.get(1, "a").land("a now", "a=queued");
    assert_eq!((s.open(), s.machine.watches()), (vec![], 0));
    s.at(5.0).get(2, "a");
    let snapshot = s.poll("a now");
    s.land("a now", "a=queued");
    assert_eq!((s.open(), s.machine.watches()), (vec!["a streaming"], 1));
    assert_eq!(s.causes[2], Cause::Watch { asked_by: WaitId(2), follows: Some(snapshot) });
    s.at(5.5).get(3, "a").at(20.0).get(4, "a");
    assert!(s.is_proven(3) && s.is_proven(4));
}

/// The caller looks up who pays while the wait is still known to it.
#[test]
fn a_watch_is_opened_before_the_request_that_it_is_for_is_answered() {
    let mut s = watching();
    s.get(1, "a").land("a now", "a=queued").at(5.0).get(2, "a");
    let (id, state) = (s.poll("a now"), s.state("a", "queued"));
    s.machine.handle(Input::Landed(id, PollOutcome::Jobs(vec![state])), s.now);
    assert!(matches!(s.machine.poll_output(), Some(Output::Open(_, _, Cause::Watch { .. }))));
    assert!(matches!(s.machine.poll_output(), Some(Output::Settle(WaitId(2), _))));
}

#[test]
fn requests_that_do_not_accept_proof_or_come_too_late_open_no_watch() {
    let mut s = watching();
    s.get(1, "a").land("a now", "a=queued").at(20.0).get(2, "a").land("a now", "a=queued");
    assert_eq!(s.open(), [""; 0]);
    s.at(21.0).join(3, "a", "").land("a now", "a=queued").join(4, "b", "").land("b now", "b=queued");
    s.at(22.0).join(5, "b", "").land("b now", "b=queued").get(6, "c d").land("c d now", "c=queued d=queued");
    s.at(23.0).get(7, "c d").land("c d now", "c=queued d=queued");
    assert_eq!(s.open(), [""; 0]);
}

#[test]
fn a_finished_job_is_not_watched() {
    let mut s = watching();
    s.get(1, "a").land("a now", "a=complete").at(5.0).get(2, "a").land("a now", "a=complete");
    assert!(s.is_idle());
}

#[test]
fn a_watch_ends_once_its_job_was_not_asked_for_in_time() {
    let mut s = watching_a();
    s.at(20.0).get(3, "a").at(39.9);
    assert_eq!((s.open(), s.machine.watches()), (vec!["a streaming"], 1));
    s.at(40.0);
    assert!(s.is_idle() && s.machine.watches() == 0);
}

#[test]
fn a_watched_job_costs_one_request_a_rung() {
    let mut s = watching_a();
    s.at(6.0).get(3, "a").at(10.0).land("a streaming", "a=streaming");
    assert_eq!(s.open(), ["a completed"]);
    s.at(11.0).get(4, "a");
    assert_eq!(s.answer(4), "reached a=streaming");
    s.at(25.0).get(5, "a").at(30.0).land("a completed", "a=complete");
    assert!(s.is_proven(3) && s.is_proven(4) && s.is_proven(5) && s.is_idle());
    assert_eq!(s.opened, 4);
}

#[test]
fn a_watch_that_the_upstream_ends_is_opened_again_while_its_job_is_asked_for() {
    let mut s = watching_a();
    for number in 3..14 {
        s.at(number as f64 * 10.0).get(number, "a");
        if !s.is_proven(number) {
            s.land("a now", "a=queued");
        }
    }
    let watch = s.poll("a streaming");
    s.land("a streaming", "a=queued");
    assert_ne!(s.poll("a streaming"), watch);
}

/// P4
#[test]
fn a_watch_that_spared_no_request_is_not_followed_by_another() {
    let mut s = watching_a();
    s.at(10.0).land("a streaming", "a=streaming");
    assert!(s.is_idle());
    s.at(11.0).get(3, "a").land("a now", "a=streaming");
    assert!(s.is_idle());
}

#[test]
fn an_upstream_that_does_not_hold_is_not_watched_in_a_loop() {
    let mut s = watching_a();
    s.land("a streaming", "a=queued");
    assert!(s.is_idle());
}

#[test]
fn the_waits_that_a_landing_frees_attach_to_the_watch() {
    let mut s = watching();
    s.get(1, "a").land("a now", "a=queued").join(2, "a b", "completed").join(3, "a", "streaming");
    s.at(5.0).get(4, "a").land("a now", "a=queued").at(8.0).land("a streaming", "a=streaming");
    assert_eq!(s.open(), ["a b completed", "a completed"]);
    assert!(matches!(s.causes[4], Cause::Watch { .. }), "{:?}", s.causes);
    s.join(5, "a", "completed");
    assert_eq!(s.opened, 5);
}

#[test]
fn a_poll_stays_as_a_watch_when_its_last_wait_leaves() {
    let mut s = watching();
    s.join(1, "a", "streaming").get(2, "a").land("a now", "a=queued").at(5.0).get(3, "a").leave(1);
    assert_eq!((s.is_proven(3), s.machine.watches()), (true, 1));
    s.at(24.9);
    assert_eq!(s.open(), ["a streaming"]);
    s.at(25.0);
    assert!(s.is_idle());
}

#[test]
fn a_lingering_poll_becomes_a_watch_if_its_job_is_asked_for_meanwhile() {
    let mut s = watching();
    s.join(1, "a", "streaming").get(2, "a").land("a now", "a=queued").at(5.0).leave(1).at(6.0).get(3, "a");
    s.at(25.0);
    assert_eq!(s.open(), ["a streaming"]);
    s.at(26.0);
    assert!(s.is_idle());
}

#[test]
fn a_refused_or_failed_watch_is_not_opened_again() {
    let failed = PollOutcome::Failed(Failure::Unreachable);
    for outcome in [PollOutcome::Refused(reply(404)), failed, PollOutcome::Unsplit(reply(200))] {
        let mut s = watching_a();
        s.land_as("a streaming", outcome);
        assert!(s.is_idle());
    }
    let mut s = watching_a();
    s.progress("a streaming", PollProgress::BackingOff(Failure::Unreachable, secs(1.0)));
    assert!(s.is_idle() && s.aborted == 1);
}

#[test]
fn a_cancelled_watch_is_aborted_and_its_waits_stay_on_it_if_the_upstream_has_it() {
    let mut s = watching_a();
    let watch = s.poll("a streaming");
    assert_eq!(s.machine.idle_watch(), Some(watch));
    s.handle(Input::CancelWatch(watch));
    assert!(s.is_idle() && s.aborted == 1);

    let mut s = watching_a();
    let watch = s.poll("a streaming");
    s.join(3, "a", "streaming");
    assert_eq!(s.machine.idle_watch(), None);
    s.handle(Input::CancelWatch(watch));
    assert_eq!((s.open(), s.machine.watches(), s.aborted), (vec!["a streaming"], 0, 0));
}

#[test]
fn the_waits_of_a_watch_that_was_not_allowed_open_a_poll_of_their_own() {
    let mut s = watching();
    s.get(1, "a").land("a now", "a=queued").at(5.0).queues = true;
    s.get(2, "a").land("a now", "a=queued").join(3, "a", "streaming");
    let watch = s.poll("a streaming");
    s.handle(Input::CancelWatch(watch));
    assert_eq!((s.open(), s.aborted, s.machine.watches()), (vec!["a streaming"], 1, 0));
    assert_ne!(s.poll("a streaming"), watch);
}

#[test]
fn a_watch_that_was_never_sent_costs_nothing() {
    let mut s = watching();
    s.get(1, "a").land("a now", "a=queued").at(5.0).queues = true;
    for number in 2..5 {
        s.get(number, "a").land("a now", "a=queued");
        let watch = s.poll("a streaming");
        s.handle(Input::CancelWatch(watch));
    }
    assert!(s.is_idle());
}

#[test]
fn the_watch_asked_for_the_longest_ago_gives_up_its_place_first() {
    let mut s = watching_a();
    s.at(6.0).get(3, "b").land("b now", "b=queued").at(7.0).get(4, "b").land("b now", "b=queued");
    assert_eq!(s.machine.idle_watch(), Some(s.poll("a streaming")));
    s.at(8.0).get(5, "a");
    assert_eq!(s.machine.idle_watch(), Some(s.poll("b streaming")));
}

/// P11
#[test]
fn the_watches_of_a_rejected_key_end_and_those_of_another_stay() {
    let mut s = watching_a();
    for number in 3..=4 {
        let spec = WaitSpec { domain: domain(1), proof: Proof::Within(secs(30.0)), ..s.spec("b", "") };
        s.join_with(number, spec).land("b now", "b=queued");
    }
    assert_eq!(s.open(), ["a streaming", "b streaming"]);
    s.handle(Input::CancelWatches(domain(0)));
    assert_eq!(s.open(), ["b streaming"]);
}

#[test]
fn a_drain_ends_the_watches_without_waits_and_opens_none() {
    let mut s = watching_a();
    s.get(3, "b").land("b now", "b=queued").join(4, "b", "streaming").get(5, "b");
    let until = s.zero + secs(16.0);
    s.at(6.0).handle(Input::Drain(until));
    assert!(!s.open().contains(&"a streaming") && s.machine.watches() == 0);
    s.land("b now", "b=streaming");
    assert!(!s.open().contains(&"b completed"));
}

#[test]
fn no_time_means_no_watches() {
    let mut s = Scenario::new();
    s.get(1, "a").land("a now", "a=queued").at(5.0).get(2, "a").land("a now", "a=queued");
    assert!(s.is_idle());
}
