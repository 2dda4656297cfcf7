//! Chains of snapshots, for an upstream that never holds a request.

use super::*;

impl Scenario {
    /// Returns a machine whose upstream never holds. A chain has a first gap of half to all of `min`.
    fn paced(min: f64, max: f64, live_ttl: f64) -> Self {
        let mut s = Self::new();
        let pace = Pace { min: secs(min), max: secs(max), live_ttl: secs(live_ttl) };
        let timing = Timing {
            ladder: s.ladder.clone(),
            hold: Duration::ZERO,
            linger: secs(2.0),
            watch_idle: Duration::ZERO,
            max_jobs: 6,
            proves: false,
            pace: Some(pace),
        };
        s.machine = Coalescer::new(timing);
        s
    }

    /// Lands a snapshot that was sent at this second.
    fn land_sent(&mut self, sent: f64, what: &str, states: &str) -> &mut Self {
        let as_of = self.zero + secs(sent);
        let states = states.split(' ').map(|state| {
            let (id, word) = state.split_once('=').unwrap();
            JobState { as_of, ..self.state(id, word) }
        });
        let outcome = PollOutcome::Jobs(states.collect());
        self.land_as(what, outcome)
    }

    /// Runs until this second. The upstream answers each poll after `takes` seconds, with the state that `word` returns for
    /// the second at which the poll was opened.
    fn run_until(&mut self, until: f64, takes: f64, word: impl Fn(f64) -> &'static str) -> &mut Self {
        loop {
            let due = self.machine.poll_timeout().map_or(f64::MAX, |at| (at - self.zero).as_secs_f64());
            if due > until && self.open.is_empty() {
                return self.at(until);
            }
            if self.open.is_empty() {
                self.at(due);
                continue;
            }
            let sent = (self.now - self.zero).as_secs_f64();
            let what = self.open[0].1.clone();
            self.at(sent + takes);
            let states = what.split(' ').filter(|id| *id != "now");
            let states = states.map(|id| format!("{id}={}", word(sent))).collect::<Vec<_>>().join(" ");
            self.land_sent(sent, &what, &states);
        }
    }

    fn seconds(&self) -> f64 {
        (self.now - self.zero).as_secs_f64()
    }

    fn patient(&mut self, number: u64, ids: &str) -> &mut Self {
        let spec = WaitSpec { is_patient: true, ..self.spec(ids, "") };
        self.join_with(number, spec)
    }

    fn changed(&mut self, id: &str) -> &mut Self {
        self.handle(Input::JobChanged(domain(0), JobId::new(id).unwrap()))
    }

    fn hint(&mut self, what: &str, pause: f64) -> &mut Self {
        let id = self.poll(what);
        self.machine.handle(Input::RetryAfter(id, secs(pause)), self.now);
        self
    }
}

fn done_at(moment: f64) -> impl Fn(f64) -> &'static str {
    move |at| if at < moment { "queued" } else { "complete" }
}

#[test]
fn a_wait_for_a_job_that_is_done_at_ten_seconds_is_answered_within_the_pace() {
    let mut s = Scenario::paced(2.0, 2.0, 2.0);
    s.join(1, "a", "completed").run_until(10.0, 0.1, done_at(10.0)).assert_answers(&[""]);
    s.run_until(12.2, 0.1, done_at(10.0)).assert_answers(&["reached a=complete"]);
    assert!(s.opened <= 7, "{}", s.opened);
    assert!(s.is_idle());
    assert_eq!((s.causes[0], s.causes[1]), (Cause::Wait, Cause::Reopen));
}

#[test]
fn the_gap_grows_with_the_age_of_the_chain() {
    let mut s = Scenario::paced(1.0, 10.0, 1.0);
    s.join_for(1, "a", "completed", 1000.0).run_until(5.0, 0.0, |_| "queued");
    let before = s.opened;
    s.run_until(50.0, 0.0, |_| "queued");
    assert!((15..=25).contains(&(s.opened - before)), "{}", s.opened - before);
    let before = s.opened;
    s.run_until(500.0, 0.0, |_| "queued");
    assert!((45..=52).contains(&(s.opened - before)), "{}", s.opened - before);
}

#[test]
fn forty_waits_with_two_goals_share_one_chain() {
    let mut s = Scenario::paced(1.0, 1.0, 1.0);
    for number in 1..=40 {
        s.join(number, "a", if number % 2 == 0 { "completed" } else { "streaming" });
    }
    let word =
        |at: f64| ["queued", "streaming", "complete"][usize::from(at >= 5.0) + usize::from(at >= 10.0)];
    s.run_until(10.0, 0.1, word);
    assert_eq!((s.answer(1), s.answer(2)), ("reached a=streaming".into(), String::new()));
    s.run_until(12.0, 0.1, word);
    assert_eq!((s.answer(39), s.answer(40)), ("reached a=streaming".into(), "reached a=complete".into()));
    assert!(s.opened <= 12, "{}", s.opened);
    assert!(s.is_idle());
}

/// The gateway answers the others from its cache of states that are at most `live_ttl` old.
#[test]
fn plain_requests_share_the_snapshot_under_way_and_bring_the_next_one_forward() {
    let mut s = Scenario::paced(10.0, 10.0, 1.0);
    s.get(1, "a").get(2, "a").at(0.5).get(3, "a");
    assert_eq!((s.opened, s.causes[0]), (1, Cause::Snapshot));
    s.at(0.9).land_sent(0.0, "a now", "a=queued").assert_answers(&["reached a=queued"; 3]);
    assert!(s.is_idle());
    s.join(4, "a", "completed").land("a now", "a=queued").at(3.0).get(5, "a");
    assert_eq!((s.opened, s.causes[2]), (3, Cause::Snapshot), "at once");
    s.land("a now", "a=queued").at(12.9);
    assert_eq!((s.answer(5), s.opened), ("reached a=queued".into(), 3), "the chain counts from that read");
    s.at(13.0);
    assert_eq!((s.opened, s.causes[3]), (4, Cause::Reopen));
}

/// P1: it tells the waits of the chain nothing.
#[test]
fn an_unknown_status_of_a_plain_request_does_not_put_off_the_next_snapshot_of_a_chain() {
    let mut s = Scenario::paced(10.0, 10.0, 1.0);
    s.join(1, "a", "completed").land("a now", "a=queued");
    s.at(3.0).get(2, "a").land("a now", "a=paused").assert_answers(&["", "reached a=paused"]);
    let next = s.machine.poll_timeout().unwrap();
    assert!(next <= s.zero + secs(10.0), "{next:?}");
    s.now = next;
    s.machine.handle_timeout(s.now);
    s.take_outputs();
    s.land("a now", "a=complete");
    assert_eq!(s.answer(1), "reached a=complete");
}

#[test]
fn a_plain_request_answers_the_waits_of_the_chain() {
    let mut s = Scenario::paced(10.0, 10.0, 1.0);
    s.join(1, "a", "completed").land("a now", "a=queued").at(3.0).get(2, "a").land("a now", "a=complete");
    s.assert_answers(&["reached a=complete"; 2]);
    assert!(s.is_idle());
}

#[test]
fn a_wait_that_joins_between_two_snapshots_is_answered_within_live_ttl() {
    let mut s = Scenario::paced(2.0, 20.0, 1.0);
    s.join_for(1, "a", "completed", 1000.0).run_until(100.0, 0.0, done_at(1000.0));
    let next = s.machine.poll_timeout().unwrap();
    assert!(next > s.now + secs(1.2));
    s.now = s.machine.poll_timeout().unwrap();
    s.machine.handle_timeout(s.now);
    s.take_outputs();
    s.land("a now", "a=queued");
    let read = s.seconds();
    s.at(read + 0.2).join(2, "a", "completed").at(read + 0.9);
    assert_eq!(s.open(), [""; 0]);
    s.at(read + 1.0).land("a now", "a=complete").assert_answers(&["reached a=complete"; 2]);
}

#[test]
fn a_wait_that_joins_while_a_snapshot_is_under_way_is_answered_by_it() {
    let mut s = Scenario::paced(2.0, 20.0, 1.0);
    s.join(1, "a", "completed").at(0.8).join(2, "a", "completed").patient(3, "a");
    s.at(0.9).land_sent(0.0, "a now", "a=streaming");
    s.assert_answers(&["", "", "reached a=streaming"]);
    // The job may have completed between the sending and the arrival of the second wait.
    s.at(1.9).land("a now", "a=complete");
    s.assert_answers(&["reached a=complete"; 2]);
}

#[test]
fn a_request_that_comes_between_the_reading_and_the_landing_of_a_snapshot_is_answered_by_it() {
    let mut s = Scenario::paced(2.0, 2.0, 1.0);
    s.get(1, "a").at(0.5);
    let read = s.state("a", "streaming");
    s.at(0.501).get(2, "a").join(3, "a", "streaming").at(0.502);
    s.land_as("a now", PollOutcome::Jobs(vec![read])).assert_answers(&["reached a=streaming"; 3]);
    assert_eq!((s.opened, s.is_idle()), (1, true));
}

#[test]
fn the_chain_ends_with_its_last_wait() {
    let mut s = Scenario::paced(1.0, 10.0, 1.0);
    s.join(1, "a", "completed").land("a now", "a=queued").leave(1);
    assert!(s.is_idle());
    s.at(50.0).join(2, "a", "completed").leave(2).at(50.5);
    assert_eq!(s.open(), ["a now"], "one under way lingers");
    s.join(3, "a", "completed").land("a now", "a=complete");
    assert_eq!((s.answer(3), s.opened), ("reached a=complete".into(), 2));
}

#[test]
fn slow_answers_prove_nothing_at_a_deadline() {
    let mut s = Scenario::paced(5.0, 5.0, 1.0);
    s.join_for(1, "a", "completed", 2.5).at(0.9).land_sent(0.0, "a now", "a=queued").at(2.4);
    assert_eq!(s.opened, 1);
    s.at(2.5);
    assert_eq!(
        (s.open(), s.causes[1]),
        (vec!["a now"], Cause::Deadline),
        "the state is 2.5 s old, not 1.6 s"
    );
    s.at(3.4).land_sent(2.5, "a now", "a=streaming").assert_answers(&["timed out a=streaming"]);
    assert!(s.is_idle());
}

#[test]
fn a_deadline_takes_a_state_at_most_live_ttl_old_or_a_snapshot_sent_as_lately() {
    let mut s = Scenario::paced(5.0, 5.0, 1.0);
    s.join_for(1, "a", "completed", 1.0).at(0.9).land_sent(0.0, "a now", "a=queued").at(1.0);
    s.assert_answers(&["timed out a=queued"]);
    let mut s = Scenario::paced(5.0, 5.0, 1.0);
    s.join_for(1, "a", "completed", 0.8).join_for(2, "a", "completed", 1.1).at(1.1);
    assert_eq!((s.opened, s.causes[1]), (2, Cause::Deadline), "the first one takes the one under way");
    s.land_sent(0.0, "a now", "a=queued").assert_answers(&["timed out a=queued", ""]);
    s.at(2.0).land_sent(1.1, "a now", "a=queued").assert_answers(&["timed out a=queued"; 2]);
    assert!(s.is_idle());
}

#[test]
fn a_429_in_mid_chain_fails_no_wait() {
    let mut s = Scenario::paced(1.0, 1.0, 1.0);
    s.join_for(1, "a", "completed", 3.0);
    for number in 2..=5 {
        s.join(number, "a", "completed");
    }
    s.land("a now", "a=queued").at(1.0).progress("a now", paused(429, 60.0)).at(3.0);
    s.assert_answers(&["timed out a=queued", "", "", "", ""]);
    s.get(6, "a");
    assert_eq!((s.opened, *s.causes.last().unwrap()), (3, Cause::Snapshot), "the client's own request");
    let own = s.open[1].0;
    s.open.remove(1);
    s.handle(Input::Landed(own, PollOutcome::Failed(Failure::UpstreamError(reply(429)))));
    assert_eq!(s.answer(6), "failed 429");
    s.at(61.0).progress("a now", PollProgress::AttemptStarted).land("a now", "a=complete");
    assert_eq!(s.answer(5), "reached a=complete");
    assert_eq!(s.opened, 3);
    assert!(s.is_idle());
}

#[test]
fn a_wait_gets_the_429_at_its_deadline_where_nothing_was_ever_read() {
    let mut s = Scenario::paced(1.0, 1.0, 1.0);
    s.join_for(1, "a", "completed", 5.0).progress("a now", paused(429, 600.0)).at(4.9).assert_answers(&[""]);
    s.at(5.0).assert_answers(&["failed 429"]);
    assert!(s.results[&1].direct && s.is_idle());
}

#[test]
fn a_plain_request_that_is_refused_with_a_429_leaves_the_waits_on_it() {
    let mut s = Scenario::paced(1.0, 1.0, 1.0);
    s.get(1, "a").at(0.1).join(2, "a", "completed");
    assert_eq!(s.opened, 1);
    s.land_as("a now", PollOutcome::Failed(Failure::UpstreamError(reply(429))));
    s.assert_answers(&["failed 429", ""]);
    s.at(1.1);
    assert_eq!((s.open(), s.causes[1]), (vec!["a now"], Cause::Reopen));
}

#[test]
fn a_plain_request_attaches_to_no_queued_snapshot_of_a_chain() {
    let mut s = Scenario::paced(1.0, 1.0, 1.0);
    s.queues = true;
    s.join(1, "a", "completed").get(2, "a").get(3, "a");
    assert_eq!((s.opened, s.causes[1]), (2, Cause::Snapshot));
}

#[test]
fn a_snapshot_that_began_before_an_action_is_not_delivered() {
    let mut s = Scenario::paced(1.0, 1.0, 1.0);
    s.join(1, "a", "completed").at(0.5).changed("a");
    assert_eq!((s.opened, s.causes[1]), (2, Cause::Reopen), "at once");
    let (old, new) = (s.open[0].0, s.open[1].0);
    s.changed("b").at(0.9).land("a now", "a=complete");
    assert_eq!(s.open[0].0, new, "{old:?} has landed");
    s.assert_answers(&[""]);
    s.get(2, "a").at(1.0).land("a now", "a=error").assert_answers(&["reached a=error"; 2]);
    assert!(s.is_idle());
}

#[test]
fn a_snapshot_that_began_before_an_action_may_not_be_cached() {
    let mut s = Scenario::paced(2.0, 2.0, 1.0);
    s.get(1, "a").progress("a now", PollProgress::AttemptStarted).progress("a now", PollProgress::Held);
    let poll = s.poll("a now");
    assert!(s.machine.may_cache(poll));
    s.changed("a");
    assert!(!s.machine.may_cache(poll));
}

#[test]
fn a_snapshot_may_contradict_a_kept_state_once_a_client_asked_for_the_upstreams_own_answer() {
    let mut s = Scenario::paced(2.0, 2.0, 1.0);
    s.join(1, "a", "completed").progress("a now", PollProgress::AttemptStarted);
    let poll = s.poll("a now");
    s.get(2, "a");
    assert!(!s.machine.may_contradict(poll));
    let spec = WaitSpec { proof: Proof::NoCache, keep: false, ..s.spec("a", "") };
    s.join_with(3, spec).leave(3);
    assert!(s.machine.may_contradict(poll));
    s.changed("a");
    assert!(!s.machine.may_contradict(poll));
}

#[test]
fn an_action_between_two_snapshots_opens_the_next_one_at_once() {
    let mut s = Scenario::paced(10.0, 10.0, 1.0);
    s.join_for(1, "a b", "completed", 20.0).land("a b now", "a=complete b=queued").at(1.0);
    assert_eq!(s.open(), [""; 0]);
    s.changed("a");
    assert_eq!((s.open(), s.causes[1]), (vec!["a b now"], Cause::Reopen));
    s.land("a b now", "a=queued b=complete").assert_answers(&[""]);
    s.at(11.0);
    assert_eq!(s.open(), ["a now"]);
    s.land("a now", "a=complete").assert_answers(&["reached a=complete b=complete"]);
}

#[test]
fn an_action_forgets_what_a_wait_knew_of_the_job() {
    let mut s = Scenario::paced(1.0, 1.0, 1.0);
    let spec = WaitSpec { known: vec![s.state("a", "error")], ..s.spec("a b", "completed") };
    s.join_with(1, spec);
    assert_eq!(s.open(), ["b now"]);
    s.changed("a");
    assert_eq!(s.open(), ["b now", "a now"]);
    s.land("b now", "b=complete").land("a now", "a=queued").assert_answers(&[""]);
}

#[test]
fn a_held_poll_keeps_its_waits_through_an_action() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").join(2, "a", "streaming").at(10.0).land("a streaming", "a=streaming");
    s.at(20.0).changed("a").at(21.0).get(3, "a");
    assert_eq!(s.open(), ["a completed", "a now"], "nothing is proven any more");
    s.land("a completed", "a=error").assert_answers(&["reached a=error"]);
}

#[test]
fn a_failed_job_that_is_retried_is_followed_again() {
    let mut s = Scenario::paced(1.0, 1.0, 0.5);
    s.join(1, "a", "completed").land("a now", "a=error").assert_answers(&["reached a=error"]);
    s.at(5.0)
        .changed("a")
        .join(2, "a", "completed")
        .land("a now", "a=queued")
        .assert_answers(&["reached a=error", ""]);
    s.run_until(10.0, 0.0, done_at(9.0));
    assert_eq!(s.answer(2), "reached a=complete");
}

#[test]
fn the_latest_read_counts_also_where_a_job_goes_back() {
    let mut s = Scenario::paced(1.0, 1.0, 1.0);
    s.join_for(1, "a", "completed", 2.5)
        .land("a now", "a=streaming")
        .at(1.5)
        .land("a now", "a=queued")
        .at(2.5);
    s.assert_answers(&["timed out a=queued"]);
    let not =
        |s: &Scenario, word| WaitSpec { goal: Goal::Not(s.ladder.rung(word).unwrap()), ..s.spec("a", "") };
    let spec = not(&s, "queued");
    s.join_with(2, spec).land("a now", "a=queued").at(4.0).land("a now", "a=submitted");
    assert_eq!(s.answer(2), "reached a=submitted");
}

#[test]
fn an_older_read_does_not_replace_a_newer_one() {
    let mut s = Scenario::paced(5.0, 5.0, 0.2);
    s.join(1, "a", "completed").at(0.5).join_for(2, "a", "completed", 0.0);
    assert_eq!(s.opened, 2);
    let newer = s.open.pop().unwrap();
    let state = s.state("a", "queued");
    s.at(0.6).handle(Input::Landed(newer.0, PollOutcome::Jobs(vec![state])));
    assert_eq!(s.answer(2), "timed out a=queued");
    s.at(0.65).land_sent(0.0, "a now", "a=streaming").join_for(3, "a", "completed", 0.0);
    assert_eq!(s.answer(3), "timed out a=queued");
}

#[test]
fn an_unknown_word_ends_the_waits_on_its_snapshot() {
    let mut s = Scenario::paced(1.0, 1.0, 1.0);
    s.join(1, "a", "completed").join(2, "a", "streaming").land("a now", "a=queued").at(1.0);
    s.land("a now", "a=paused").assert_answers(&["reached a=paused"; 2]);
    assert!(s.is_idle());
}

#[test]
fn a_404_in_mid_chain_ends_its_waits() {
    let mut s = Scenario::paced(1.0, 1.0, 1.0);
    s.join(1, "a", "completed").join(2, "a", "streaming").land("a now", "a=queued").at(1.0);
    s.land_as("a now", PollOutcome::Refused(reply(404))).assert_answers(&["refused 404"; 2]);
    assert!(s.is_idle());
}

#[test]
fn a_hint_of_the_vendor_takes_the_place_of_the_gap() {
    let mut s = Scenario::paced(1.0, 1.0, 1.0);
    s.join(1, "a", "completed").hint("a now", 7.0).land("a now", "a=queued").at(3.0);
    s.join(2, "a", "completed").at(6.9);
    assert_eq!(s.opened, 1, "a join does not bring it forward");
    s.at(7.0).hint("a now", 0.0).land("a now", "a=queued").at(7.9);
    assert_eq!(s.opened, 2, "below the pace it counts as the pace");
    s.at(8.0).hint("a now", 30.0).land("a now", "a=queued").at(9.0).get(3, "a");
    assert_eq!(
        (s.opened, *s.causes.last().unwrap()),
        (4, Cause::Snapshot),
        "a plain request is sent all the same"
    );
    s.land("a now", "a=queued").at(37.9);
    assert_eq!(s.opened, 4, "the hint is still in force");
    s.at(38.0);
    assert_eq!(s.opened, 5);
}

#[test]
fn a_hundred_jobs_made_together_are_not_polled_in_step() {
    let mut s = Scenario::paced(10.0, 10.0, 1.0);
    for number in 0..100 {
        let id = format!("j{number}");
        s.join(number, &id, "completed").land(&format!("{id} now"), &format!("{id}=queued"));
    }
    let mut most = 0;
    for tenth in 50..=100 {
        let before = s.opened;
        s.at(f64::from(tenth) / 10.0);
        most = most.max(s.opened - before);
    }
    assert_eq!(s.opened, 200, "each between 5 and 10 s");
    assert!(most <= 6, "{most} within 0.1 s");
}

#[test]
fn a_wait_for_more_jobs_than_a_poll_may_ask_for_has_several_snapshots_a_round() {
    let mut s = Scenario::paced(1.0, 1.0, 1.0);
    s.join(1, "a b c d e f g h", "completed").run_until(3.0, 0.1, done_at(2.5));
    s.run_until(5.0, 0.1, done_at(2.5));
    assert!(s.answer(1).starts_with("reached a=complete b=complete"));
    assert!(s.opened <= 8 && s.is_idle(), "{}", s.opened);
}

#[test]
fn an_answer_that_cannot_be_split_ends_the_waits_on_exactly_its_jobs() {
    let mut s = Scenario::paced(1.0, 1.0, 1.0);
    s.join(1, "a", "completed").join(2, "a b", "completed");
    s.land_as("a now", PollOutcome::Unsplit(reply(204))).assert_answers(&["unsplit 204", ""]);
    assert_eq!(s.open(), ["b now", "a b now"]);
}

#[test]
fn a_drain_gives_every_wait_the_last_known_state() {
    let mut s = Scenario::paced(10.0, 10.0, 5.0);
    s.join(1, "a", "completed").join(2, "a", "streaming").land("a now", "a=queued").at(1.0);
    let until = s.now + secs(10.0);
    s.handle(Input::Drain(until)).at(1.1).assert_answers(&["timed out a=queued"; 2]);
    assert_eq!(s.opened, 1);
    assert!(s.is_idle());
}

#[test]
fn a_wait_for_another_state_is_not_answered_by_one_that_is_older_than_its_clients() {
    let mut s = Scenario::paced(2.0, 2.0, 20.0);
    let [queued, streaming] = ["queued", "streaming"].map(|word| s.ladder.rung(word).unwrap());
    s.at(1.0);
    let cached = JobState { as_of: s.zero, ..s.state("a", "queued") };
    let newer_than = Some(s.zero + secs(0.5));
    let spec = |goal, known| WaitSpec { goal, newer_than, known, ..s.spec("a", "") };
    let (older, same) =
        (spec(Goal::Not(streaming), vec![cached.clone()]), spec(Goal::Not(queued), vec![cached]));
    s.join_with(1, older).join_with(2, same).assert_answers(&["", ""]);
    s.run_until(3.0, 0.1, |_| "queued").assert_answers(&["reached a=queued", ""]);
    s.run_until(6.0, 0.1, |_| "streaming").assert_answers(&["reached a=queued", "reached a=streaming"]);
}

#[test]
fn a_wait_that_comes_just_after_a_plain_request_takes_its_state_for_the_first_of_its_chain() {
    let mut s = Scenario::paced(2.0, 2.0, 1.0);
    s.get(1, "a").land_sent(0.0, "a now", "a=queued");
    s.at(0.4);
    let known = vec![JobState { as_of: s.zero, ..s.state("a", "queued") }];
    let spec = WaitSpec { known: known.clone(), ..s.spec("a", "completed") };
    s.join_with(2, spec);
    assert_eq!((s.opened, s.open().len()), (1, 0));
    let other = WaitSpec { known, timeout: secs(0.5), ..s.spec("a", "completed") };
    s.join_with(3, other).run_until(0.95, 0.0, |_| "queued");
    assert_eq!((s.opened, &*s.answer(3)), (1, "timed out a=queued"));
    s.run_until(1.1, 0.0, |_| "complete");
    assert_eq!((s.opened, &*s.answer(2)), (2, "reached a=complete"));
    assert!(s.is_idle());
}

#[test]
fn a_chain_that_waits_for_its_first_snapshot_ends_with_its_last_wait() {
    let mut s = Scenario::paced(2.0, 2.0, 1.0);
    let known = vec![s.state("a", "queued")];
    let spec = WaitSpec { known, ..s.spec("a", "completed") };
    s.join_with(1, spec).leave(1);
    assert_eq!(s.opened, 0);
    assert!(s.is_idle());
}
