//! The attach rule in whole schedules: no more polls than the clients alone would make (P4).
//!
//! The rule itself is tested by the table in `plan.rs`.

use super::*;

#[test]
fn a_poll_for_streaming_that_brings_error_answers_the_waits_for_completed() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(1.0).join(2, "a", "streaming");
    assert_eq!(s.open(), ["a completed", "a streaming"]);
    s.at(9.0).land("a streaming", "a=error").assert_answers(&["reached a=error"; 2]);
    s.at(12.0);
    assert!(s.is_idle() && s.aborted == 1);
}

#[test]
fn a_wait_attaches_to_a_poll_for_a_lower_rung_and_opens_its_own_when_that_lands() {
    let mut s = Scenario::new();
    s.join(1, "a", "streaming").at(1.0).join(2, "a", "completed");
    assert_eq!(s.open(), ["a streaming"]);
    s.at(9.0).land("a streaming", "a=streaming").assert_answers(&["reached a=streaming", ""]);
    assert_eq!(s.open(), ["a completed"]);
    s.at(20.0)
        .land("a completed", "a=complete")
        .assert_answers(&["reached a=streaming", "reached a=complete"]);
    assert_eq!(s.opened, 2);
}

#[test]
fn when_a_shared_poll_lands_the_wait_for_the_lower_rung_opens_the_next_and_the_other_attaches() {
    let mut s = Scenario::new();
    s.join(1, "a", "streaming").at(1.0).join(2, "a", "completed").at(60.0).join(3, "a", "streaming");
    s.at(120.1).land("a streaming", "a=queued");
    assert_eq!(s.open(), ["a streaming"]);
}

#[test]
fn a_wait_for_three_jobs_asks_only_for_the_one_that_is_neither_cached_nor_polled() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(0.1);
    let known = vec![s.state("c", "complete")];
    s.join_with(2, WaitSpec { known, ..s.spec("a b c", "completed") });
    assert_eq!(s.open(), ["a completed", "b completed"]);
    s.at(5.0).land("b completed", "b=complete").at(6.0).land("a completed", "a=complete");
    s.assert_answers(&["reached a=complete", "reached a=complete b=complete c=complete"]);
    assert_eq!(s.opened, 2);
}

/// A poll for `b` alone would need a third request at 120 s, where the clients alone make two.
#[test]
fn a_wait_for_two_jobs_asks_along_for_the_one_whose_poll_ends_before_it_does() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(60.0).join(2, "a b", "completed");
    assert_eq!(s.open(), ["a completed", "a b completed"]);
    s.at(61.0).leave(1).at(120.1);
    assert_eq!((s.open(), s.opened), (vec!["a completed", "a b completed"], 2));
    s.land("a completed", "a=queued");
    assert_eq!((s.open(), s.opened), (vec!["a b completed"], 2));
    s.at(180.1).land("a b completed", "a=queued b=complete");
    s.assert_answers(&["", "timed out a=queued b=complete"]);
    assert_eq!(s.opened, 2);
}

#[test]
fn a_wait_for_two_jobs_opens_no_poll_while_open_polls_ask_for_both() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(30.0).join(2, "b", "streaming").at(60.0).join(3, "a b", "completed");
    assert_eq!(s.opened, 2);
    s.at(70.0).land("b streaming", "b=complete").land("a completed", "a=complete");
    s.assert_answers(&["reached a=complete", "reached b=complete", "reached a=complete b=complete"]);
    assert_eq!((s.opened, s.results[&3].how), (2, Cost::Coalesced));
}

#[test]
fn an_attached_wait_for_two_jobs_opens_one_poll_for_both_when_one_of_its_polls_ends() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(30.0).join(2, "b", "completed").at(60.0).join(3, "a b", "completed");
    s.at(61.0).leave(1).leave(2).at(120.1).land("a completed", "a=queued");
    assert_eq!(s.open(), ["b completed", "a b completed"]);
    s.at(150.1).land("b completed", "b=queued");
    assert_eq!((s.open(), s.opened), (vec!["a b completed"], 3), "three clients, three requests");
}

/// Attached to the lower poll alone, the wait would have got the refusal only after that one had landed.
#[test]
fn a_wait_gets_a_refusal_of_one_job_at_once_although_a_lower_poll_asks_for_the_other() {
    let mut s = Scenario::new();
    s.join(1, "a", "streaming").at(1.0).join(2, "a b", "completed");
    assert_eq!(s.open(), ["a streaming", "a b completed"]);
    s.land_as("a b completed", PollOutcome::Refused(reply(404))).assert_answers(&["", "refused 404"]);
}

#[test]
fn a_wait_for_more_jobs_than_a_poll_may_ask_for_opens_several_polls() {
    let mut s = Scenario::with(2, secs(2.0));
    s.join(1, "a b c d e", "completed").at(1.0).join(2, "e d c b a", "completed");
    assert_eq!(s.open(), ["a b completed", "c d completed", "e completed"]);
    s.at(9.0).land("c d completed", "c=complete d=complete");
    s.at(120.1).land("a b completed", "a=queued b=complete");
    assert_eq!(s.open(), ["e completed", "a e completed"]);
    s.at(120.2).land("e completed", "e=queued");
    s.assert_answers(&["timed out a=queued b=complete c=complete d=complete e=queued", ""]);
    s.at(120.9).land("a e completed", "a=complete e=complete");
    assert_eq!(s.answer(2), "reached a=complete b=complete c=complete d=complete e=complete");
}

#[test]
fn a_wait_with_several_polls_opens_the_next_ones_after_all_of_them_have_landed() {
    let mut s = Scenario::with(1, secs(2.0));
    s.join_for(1, "a b", "completed", 240.0).at(120.1).land("a completed", "a=queued");
    assert_eq!(s.open(), ["b completed"]);
    s.at(120.2).land("b completed", "b=queued");
    assert_eq!(s.open(), ["a completed", "b completed"]);
}

/// Each landing used to plan a wait for a thousand jobs as a whole.
#[test]
fn a_landing_costs_a_wait_for_hundreds_of_jobs_no_plan_of_all_its_jobs() {
    let ids: Vec<String> = (0..600).map(|n| format!("c{n:03}")).collect();
    let mut s = Scenario::new();
    s.join(1, &ids.join(" "), "completed").join(2, &ids.join(" "), "completed").at(60.0);
    assert_eq!((s.opened, s.machine.plans), (100, 2));
    for what in s.open().iter().map(ToString::to_string).collect::<Vec<_>>() {
        let ids = what.strip_suffix(" completed").expect("that is asked for").split(' ');
        let states: Vec<String> = ids.map(|id| format!("{id}=queued")).collect();
        s.land(&what, &states.join(" "));
    }
    // The opener opens its next polls after the last one has landed. The other wait then attaches to these.
    assert!(s.machine.plans <= 6, "{} plans", s.machine.plans);
    assert_eq!(s.opened, 200);
}

#[test]
fn an_upstream_that_does_not_hold_gets_one_poll_an_interval() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(0.1).land("a completed", "a=queued");
    assert!(s.open().is_empty());
    s.at(0.5).join(2, "a", "completed").at(1.19);
    assert_eq!((s.opened, s.machine.polls()), (1, 1));
    s.at(1.2);
    assert_eq!((s.open(), s.opened), (vec!["a completed"], 2));
    s.at(1.3).land("a completed", "a=queued").leave(1).leave(2);
    assert!(s.is_idle() && s.aborted == 0, "a throttled poll is forgotten with its last wait");
}

#[test]
fn a_wait_without_a_status_attaches_to_polls_without_a_status_and_to_snapshots_only() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").join(2, "a", "").join(3, "a", "");
    assert_eq!(s.open(), ["a completed", "a now"]);
    s.join(4, "a", "submitted");
    assert_eq!(
        s.open(),
        ["a completed", "a now", "a submitted"],
        "a wait for a rung does not attach to a poll without a status"
    );
    s.land("a now", "a=queued");
    s.assert_answers(&["", "reached a=queued", "reached a=queued", "reached a=queued"]);
    s.join(5, "b", "submitted").join(6, "b", "").land("b submitted", "b=queued");
    assert_eq!(s.answer(6), "reached b=queued");
}
