//! Answers from proof when a wait arrives (P7).

use super::*;

/// Returns a machine with a held poll for `completed`, and `a` seen streaming at 10 s.
fn streaming() -> Scenario {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(10.0).join(2, "a", "").land("a now", "a=streaming");
    s
}

#[test]
fn a_plain_request_is_answered_from_a_held_poll_for_the_next_rung() {
    let mut s = streaming();
    s.at(11.0).get(3, "a");
    assert_eq!((s.answer(3), s.is_proven(3), s.opened), ("reached a=streaming".into(), true, 2));
    let WaitOutcome::Reached(states) = &s.results[&3].end else { unreachable!() };
    assert_eq!((states[0].seen_at, s.results[&3].direct), (s.zero + secs(10.0), false));
}

#[test]
fn a_wait_whose_goal_is_reached_is_answered_from_proof() {
    let mut s = streaming();
    s.at(11.0);
    let spec = WaitSpec { proof: Proof::Within(secs(30.0)), ..s.spec("a", "queued") };
    s.join_with(3, spec);
    assert!(s.is_proven(3));
}

#[test]
fn a_poll_for_a_later_rung_than_the_next_proves_nothing() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(10.0).join(2, "a", "").land("a now", "a=queued").at(11.0).get(3, "a");
    assert_eq!((s.answer(3), s.open()), (String::new(), vec!["a completed", "a now"]));
}

#[test]
fn bytes_older_than_the_client_accepts_are_asked_for_again() {
    let mut s = streaming();
    s.at(40.0).get(3, "a").at(40.1).get(4, "a");
    assert_eq!((s.is_proven(3), s.is_proven(4), s.opened), (true, false, 3));
}

/// A state below the known one confirms it, and brings no bytes of it.
#[test]
fn the_age_of_the_bytes_is_that_of_the_answer_that_had_them() {
    let mut s = streaming();
    s.at(35.0).join(3, "a", "").land("a now", "a=queued").at(41.0).get(4, "a");
    assert!(!s.is_proven(4));
}

#[test]
fn a_client_that_does_not_accept_proof_is_never_answered_from_it() {
    let mut s = streaming();
    s.at(11.0);
    for (number, proof) in [(3, Proof::Never), (4, Proof::NoCache)] {
        let spec = WaitSpec { proof, ..s.spec("a", "") };
        s.join_with(number, spec);
    }
    let patient = WaitSpec { proof: Proof::Within(secs(30.0)), is_patient: true, ..s.spec("a", "queued") };
    s.join_with(5, patient);
    assert!((3..=5).all(|number| s.answer(number).is_empty()));
}

#[test]
fn a_list_is_answered_from_proof_if_each_of_its_jobs_is_cached_or_proven() {
    let mut s = streaming();
    let proof = Proof::Within(secs(30.0));
    s.at(11.0);
    let known = vec![s.state("b", "complete")];
    let spec = WaitSpec { proof, known, ..s.spec("a b", "") };
    s.join_with(3, spec);
    assert_eq!((s.answer(3), s.is_proven(3)), ("reached a=streaming b=complete".into(), true));
    let spec = WaitSpec { proof, ..s.spec("a c", "") };
    s.join_with(4, spec);
    assert_eq!(s.open(), ["a completed", "a c now"]);
}

#[test]
fn a_poll_proves_nothing_while_its_request_does_not_stand_at_the_upstream() {
    let failed = || PollProgress::BackingOff(Failure::Unreachable, secs(5.0));
    for progress in [failed(), paused(429, 5.0), key_paused(5.0), PollProgress::AttemptStarted] {
        let mut s = streaming();
        s.at(20.0).progress("a completed", progress.clone()).at(21.0).get(3, "a");
        assert!(!s.is_proven(3), "{progress:?}");
    }
    let mut s = streaming();
    s.at(20.0)
        .progress("a completed", failed())
        .at(25.0)
        .progress("a completed", PollProgress::AttemptStarted);
    s.progress("a completed", PollProgress::Held).at(25.4).get(3, "a").at(25.5).get(4, "a");
    assert_eq!((s.is_proven(3), s.is_proven(4)), (false, true));
}

#[test]
fn a_refused_job_is_not_proven_until_it_is_seen_again() {
    let mut s = streaming();
    s.at(12.0).join(3, "a", "").land_as("a now", PollOutcome::Refused(reply(404))).at(13.0).get(4, "a");
    assert_eq!((s.answer(4), s.open()), (String::new(), vec!["a completed", "a now"]));
    s.land("a now", "a=streaming").at(14.0).get(5, "a");
    assert!(s.is_proven(5));
}

/// The upstream has just said something else about the job than the state before.
#[test]
fn an_unknown_status_or_an_unreadable_answer_ends_the_proof_of_the_state_before() {
    let mut s = streaming();
    s.at(12.0).join(3, "a", "").land("a now", "a=paused").at(13.0).get(4, "a");
    assert_eq!((s.is_proven(4), s.open()), (false, vec!["a completed", "a now"]));
    let mut s = streaming();
    s.at(12.0).join(3, "a", "").land_as("a now", PollOutcome::Unsplit(reply(204))).at(13.0).get(4, "a");
    assert_eq!((s.is_proven(4), s.open()), (false, vec!["a completed", "a now"]));
}

#[test]
fn a_draining_gateway_answers_nothing_from_proof() {
    let mut s = streaming();
    let until = s.zero + secs(21.0);
    s.at(11.0).handle(Input::Drain(until)).get(3, "a");
    assert!(!s.is_proven(3));
}

/// P11
#[test]
fn the_poll_of_one_key_proves_nothing_to_another() {
    let mut s = streaming();
    s.at(11.0);
    let spec = WaitSpec { domain: domain(1), proof: Proof::Within(secs(30.0)), ..s.spec("a", "") };
    s.join_with(3, spec);
    assert!(!s.is_proven(3));
}

/// The upstream may hold a poll past the rung that it asks for.
#[test]
fn where_silence_proves_nothing_every_state_is_asked_for() {
    let mut s = Scenario::new();
    s.machine.timing.proves = false;
    s.join(1, "a", "completed").at(10.0).join(2, "a", "").land("a now", "a=streaming");
    s.at(11.0).get(3, "a");
    assert_eq!((s.answer(3), s.open()), (String::new(), vec!["a completed", "a now"]));
    s.land("a now", "a=streaming");
    let spec = WaitSpec { timeout: secs(40.0), ..s.spec("a", "completed") };
    s.join_with(4, spec).at(60.0);
    assert!(s.open().contains(&"a submitted"), "{:?}", s.open());
}
