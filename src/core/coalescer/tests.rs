//! One scenario for each promise of the contract's section 2, and one for each schedule that broke one.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::*;
use crate::core::job::{Head, JobId, JobSet, KeyDomain, Reply};
use crate::core::route::{Form, Ladder, Route};

#[expect(clippy::disallowed_methods, reason = "an arbitrary zero for virtual time")]
pub(super) fn zero() -> Instant {
    Instant::now()
}

/// A machine in virtual time, with clients by number and an upstream played by the test.
struct Scenario {
    machine: Coalescer,
    ladder: Ladder,
    zero: Instant,
    now: Instant,
    /// The polls that are open, as `jobs goal` in the order they were opened.
    open: Vec<(PollId, String)>,
    /// All that were ever opened.
    opened: usize,
    aborted: usize,
    told: HashMap<u64, WaitResult>,
    /// Whether a poll stands at the upstream as soon as it is opened.
    stands: bool,
    /// Whether polls wait for their turn, until the test says that they are tried.
    in_line: bool,
}

fn domain(number: u8) -> KeyDomain {
    KeyDomain([number; 16])
}

fn secs(secs: f64) -> Duration {
    Duration::from_secs_f64(secs)
}

fn jobs(ids: &str) -> JobSet {
    JobSet::new(ids.split(' ').map(|id| JobId::new(id).unwrap()))
}

fn reply(status: u16) -> Arc<Reply> {
    Arc::new(Reply { status, head: Arc::new(Head::default()), body: Bytes::new() })
}

impl Scenario {
    fn new() -> Self {
        Self::with(6, secs(2.0))
    }

    fn with(max_jobs: usize, linger: Duration) -> Self {
        let ladder = Route::suno().ladder;
        let timing = Timing { ladder: ladder.clone(), hold: secs(120.0), linger, max_jobs };
        let zero = zero();
        Self {
            machine: Coalescer::new(timing),
            ladder,
            zero,
            now: zero,
            open: Vec::new(),
            opened: 0,
            aborted: 0,
            told: HashMap::new(),
            stands: true,
            in_line: false,
        }
    }

    /// Lets time pass until so many seconds from the start, with all that is due up to then.
    fn at(&mut self, seconds: f64) -> &mut Self {
        let until = self.zero + secs(seconds);
        while let Some(due) = self.machine.poll_timeout().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            self.machine.handle_timeout(self.now);
            self.act();
        }
        self.now = until;
        self
    }

    fn act(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Open(id, spec) => {
                    let ids: Vec<_> = spec.jobs.iter().map(JobId::as_str).collect();
                    let goal = match spec.goal {
                        Goal::Now => "now",
                        Goal::Rung(rung) => self.ladder.name(rung),
                    };
                    self.open.push((id, format!("{} {goal}", ids.join(" "))));
                    self.opened += 1;
                    if !self.in_line {
                        self.machine.handle(Input::Progress(id, PollProgress::AttemptStarted), self.now);
                    }
                    if self.stands && !self.in_line {
                        self.machine.handle(Input::Progress(id, PollProgress::Held), self.now);
                    }
                }
                Output::Abort(id) => {
                    self.take(id);
                    self.aborted += 1;
                }
                Output::Settle(WaitId(number), settled) => {
                    assert!(self.told.insert(number, settled).is_none(), "{number} is told twice");
                }
            }
        }
    }

    fn take(&mut self, id: PollId) {
        let at = self.open.iter().position(|(open, _)| *open == id).expect("it is open");
        self.open.remove(at);
    }

    fn poll(&self, what: &str) -> PollId {
        let found = self.open.iter().find(|(_, open)| open == what);
        found.unwrap_or_else(|| panic!("no poll for {what}: {:?}", self.open)).0
    }

    fn spec(&self, ids: &str, word: &str) -> WaitSpec {
        let jobs = jobs(ids);
        WaitSpec {
            domain: domain(0),
            form: if jobs.len() == 1 { Form::Single } else { Form::Multi },
            jobs,
            goal: self.ladder.rung(word).map_or(Goal::Now, Goal::Rung),
            arrived: self.now,
            timeout: secs(120.0),
            keep: true,
            is_patient: false,
            known: Vec::new(),
        }
    }

    fn enter(&mut self, number: u64, spec: WaitSpec) -> &mut Self {
        self.handle(Input::Join(WaitId(number), spec))
    }

    /// A client waits its 2 minutes for these jobs to be where the word says.
    fn join(&mut self, number: u64, ids: &str, word: &str) -> &mut Self {
        let spec = self.spec(ids, word);
        self.enter(number, spec)
    }

    fn join_for(&mut self, number: u64, ids: &str, word: &str, timeout: f64) -> &mut Self {
        let spec = WaitSpec { timeout: secs(timeout), ..self.spec(ids, word) };
        self.enter(number, spec)
    }

    fn leave(&mut self, number: u64) -> &mut Self {
        self.handle(Input::Leave(WaitId(number)))
    }

    fn handle(&mut self, input: Input) -> &mut Self {
        self.machine.handle(input, self.now);
        self.act();
        self
    }

    fn progress(&mut self, what: &str, progress: PollProgress) -> &mut Self {
        let id = self.poll(what);
        self.handle(Input::Progress(id, progress))
    }

    fn end(&mut self, what: &str, outcome: PollOutcome) -> &mut Self {
        let id = self.poll(what);
        self.take(id);
        self.handle(Input::Landed(id, outcome))
    }

    fn state(&self, id: &str, word: &str) -> JobState {
        JobState {
            id: JobId::new(id).unwrap(),
            rung: self.ladder.rung(word),
            body: Bytes::from(format!("{id}={word}")),
            head: Arc::new(Head::default()),
            seen_at: self.now,
        }
    }

    /// The poll comes back with jobs where they are: `a=queued b=completed`.
    fn land(&mut self, what: &str, states: &str) -> &mut Self {
        let head = Arc::new(Head::default());
        let states = states.split(' ').map(|state| {
            let (id, word) = state.split_once('=').unwrap();
            JobState { head: Arc::clone(&head), ..self.state(id, word) }
        });
        let outcome = PollOutcome::Jobs(states.collect());
        self.end(what, outcome)
    }

    /// What a client was told, by now; nothing while it waits.
    fn act_and_tell(&mut self, number: u64) -> String {
        self.act();
        self.told(number)
    }

    fn told(&self, number: u64) -> String {
        let Some(settled) = self.told.get(&number) else { return String::new() };
        let bodies = |states: &[JobState]| {
            let bodies = states.iter().map(|state| String::from_utf8(state.body.to_vec()).unwrap());
            bodies.collect::<Vec<_>>().join(" ")
        };
        match &settled.end {
            WaitOutcome::Reached(states) => format!("reached {}", bodies(states)),
            WaitOutcome::TimedOut(states) => format!("timed out {}", bodies(states)),
            WaitOutcome::Unsplit(reply) => format!("unsplit {}", reply.status),
            WaitOutcome::Refused(reply) => format!("refused {}", reply.status),
            WaitOutcome::Failed(Failure::UpstreamError(reply)) => format!("failed {}", reply.status),
            WaitOutcome::Failed(failure) => format!("failed {failure:?}"),
        }
    }

    /// Asserts what clients were told, those numbered 1 and up in turn.
    #[track_caller]
    fn assert_told(&self, told: &[&str]) {
        let all: Vec<String> = (1..).take(told.len()).map(|number| self.told(number)).collect();
        assert_eq!(all, told);
    }

    fn open(&self) -> Vec<&str> {
        self.open.iter().map(|(_, what)| what.as_str()).collect()
    }

    fn is_idle(&self) -> bool {
        self.machine.waits() == 0
            && self.machine.polls() == 0
            && self.machine.poll_timeout().is_none()
            && self.open.is_empty()
    }
}

// Promises 1 to 3: nobody is late, nobody is cut short, identical waits share one poll.

#[test]
fn identical_waits_share_one_poll_in_any_order_and_at_any_time() {
    let mut s = Scenario::new();
    s.join(1, "a b", "completed").join(2, "b a", "completed").at(60.0).join(3, "a b", "completed");
    assert_eq!(s.open(), ["a b completed"]);
    s.at(70.0).land("a b completed", "b=complete a=error");
    s.assert_told(&["reached a=error b=complete"; 3]);
    assert_eq!((s.told[&1].how, s.told[&1].direct), (Cost::Opened, true));
    assert_eq!((s.told[&3].how, s.told[&3].direct), (Cost::Coalesced, false));
    assert!(s.is_idle());
}

#[test]
fn a_late_joiner_has_its_own_two_minutes_and_the_poll_is_opened_again_for_it() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(60.0).join(2, "a", "completed");
    s.at(120.1).land("a completed", "a=streaming");
    s.assert_told(&["timed out a=streaming", ""]);
    assert_eq!((s.open(), s.opened), (vec!["a completed"], 2));
    s.at(179.9).assert_told(&["timed out a=streaming", ""]);
    s.at(180.0).assert_told(&["timed out a=streaming"; 2]);
    assert_eq!(s.opened, 2, "what is proven costs no request");
}

#[test]
fn a_late_joiner_is_answered_by_the_poll_it_joined() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(119.0).join(2, "a", "completed");
    s.at(119.5).land("a completed", "a=complete").assert_told(&["reached a=complete"; 2]);
    assert_eq!(s.opened, 1);
}

#[test]
fn a_poll_that_ends_unreached_with_nobody_left_is_not_opened_again() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").join(2, "a", "completed").at(120.05).land("a completed", "a=queued");
    s.assert_told(&["timed out a=queued"; 2]);
    assert_eq!((s.opened, s.is_idle()), (1, true));
}

#[test]
fn the_answer_to_a_poll_that_was_opened_again_belongs_to_whom_it_was_opened_for() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(60.0).join(2, "a", "completed");
    s.at(120.1).land("a completed", "a=queued").at(130.0).land("a completed", "a=complete");
    for wait in 1..=2 {
        assert_eq!((s.told[&wait].how, s.told[&wait].direct), (Cost::Opened, true), "{wait}");
    }
}

#[test]
fn a_long_wait_asks_again_each_time_the_upstream_ends_its_poll() {
    let mut s = Scenario::new();
    s.join_for(1, "a", "completed", 600.0);
    for round in 1..5 {
        s.at(120.1 * f64::from(round)).land("a completed", "a=queued");
    }
    s.at(600.0);
    assert_eq!((s.opened, s.open()), (6, vec!["a completed", "a submitted"]), "five, and a snapshot");
    s.land("a submitted", "a=streaming").assert_told(&["timed out a=streaming"]);
}

#[test]
fn a_rung_that_is_skipped_ends_the_waits_for_it() {
    let mut s = Scenario::new();
    s.join(1, "a", "queued").join(2, "a", "streaming").at(5.0).land("a queued", "a=complete");
    s.assert_told(&["reached a=complete"; 2]);
    assert!(s.is_idle());
}

#[test]
fn ten_thousand_waits_are_one_poll() {
    let mut s = Scenario::new();
    for wait in 0..10_000 {
        s.join(wait, "a", "completed");
    }
    s.at(60.0).land("a completed", "a=complete");
    assert_eq!((s.told.len(), s.opened, s.is_idle()), (10_000, 1, true));
}

// Promise 4: leaning, and never more requests than the clients alone would make.

#[test]
fn an_error_told_to_a_lower_poll_ends_the_waits_for_completed() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(1.0).join(2, "a", "streaming");
    assert_eq!(s.open(), ["a completed", "a streaming"]);
    s.at(9.0).land("a streaming", "a=error").assert_told(&["reached a=error"; 2]);
    s.at(12.0);
    assert!(s.is_idle() && s.aborted == 1);
}

#[test]
fn a_wait_leans_on_a_lower_poll_and_asks_for_itself_once_that_is_reached() {
    let mut s = Scenario::new();
    s.join(1, "a", "streaming").at(1.0).join(2, "a", "completed");
    assert_eq!(s.open(), ["a streaming"]);
    s.at(9.0).land("a streaming", "a=streaming").assert_told(&["reached a=streaming", ""]);
    assert_eq!(s.open(), ["a completed"]);
    s.at(20.0).land("a completed", "a=complete").assert_told(&["reached a=streaming", "reached a=complete"]);
    assert_eq!(s.opened, 2);
}

#[test]
fn the_lower_of_two_waits_opens_first_when_their_poll_ended_and_the_higher_leans() {
    let mut s = Scenario::new();
    s.join(1, "a", "streaming").at(1.0).join(2, "a", "completed").at(60.0).join(3, "a", "streaming");
    s.at(120.1).land("a streaming", "a=queued");
    assert_eq!(s.open(), ["a streaming"]);
}

#[test]
fn a_batch_asks_only_for_what_is_neither_known_nor_asked_for_as_long_as_it_waits() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(0.1);
    let known = vec![s.state("c", "complete")];
    s.enter(2, WaitSpec { known, ..s.spec("a b c", "completed") });
    assert_eq!(s.open(), ["a completed", "b completed"]);
    s.at(5.0).land("b completed", "b=complete").at(6.0).land("a completed", "a=complete");
    s.assert_told(&["reached a=complete", "reached a=complete b=complete c=complete"]);
    assert_eq!(s.opened, 2);
}

/// Had the batch asked for `b` only, it would need a third request at 120 s, where clients alone make two.
#[test]
fn a_batch_that_must_ask_asks_along_for_jobs_whose_poll_ends_before_its_time() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(60.0).join(2, "a b", "completed");
    assert_eq!(s.open(), ["a completed", "a b completed"]);
    s.at(61.0).leave(1).at(120.1);
    assert_eq!((s.open(), s.opened), (vec!["a completed", "a b completed"], 2));
    s.land("a completed", "a=queued");
    assert_eq!((s.open(), s.opened), (vec!["a b completed"], 2));
    s.at(180.1).land("a b completed", "a=queued b=complete");
    s.assert_told(&["", "timed out a=queued b=complete"]);
    assert_eq!(s.opened, 2);
}

#[test]
fn a_batch_opens_nothing_while_running_polls_ask_for_all_its_jobs() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(30.0).join(2, "b", "streaming").at(60.0).join(3, "a b", "completed");
    assert_eq!(s.opened, 2);
    s.at(70.0).land("b streaming", "b=complete").land("a completed", "a=complete");
    s.assert_told(&["reached a=complete", "reached b=complete", "reached a=complete b=complete"]);
    assert_eq!((s.opened, s.told[&3].how), (2, Cost::Coalesced));
}

#[test]
fn a_batch_that_leaned_makes_up_for_an_ended_poll_with_one_request_for_all() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(30.0).join(2, "b", "completed").at(60.0).join(3, "a b", "completed");
    s.at(61.0).leave(1).leave(2).at(120.1).land("a completed", "a=queued");
    assert_eq!(s.open(), ["b completed", "a b completed"]);
    s.at(150.1).land("b completed", "b=queued");
    assert_eq!((s.open(), s.opened), (vec!["a b completed"], 3), "three clients, three requests");
}

/// Leaning on the lower poll alone would have kept the refusal back until that one landed.
#[test]
fn a_refused_job_is_asked_for_at_once_although_a_lower_poll_asks_for_its_neighbour() {
    let mut s = Scenario::new();
    s.join(1, "a", "streaming").at(1.0).join(2, "a b", "completed");
    assert_eq!(s.open(), ["a streaming", "a b completed"]);
    s.end("a b completed", PollOutcome::Refused(reply(404))).assert_told(&["", "refused 404"]);
}

#[test]
fn a_wait_for_more_jobs_than_a_poll_may_ask_for_is_split() {
    let mut s = Scenario::with(2, secs(2.0));
    s.join(1, "a b c d e", "completed").at(1.0).join(2, "e d c b a", "completed");
    assert_eq!(s.open(), ["a b completed", "c d completed", "e completed"]);
    s.at(9.0).land("c d completed", "c=complete d=complete");
    s.at(120.1).land("a b completed", "a=queued b=complete");
    assert_eq!(s.open(), ["e completed", "a e completed"]);
    s.at(120.2).land("e completed", "e=queued");
    s.assert_told(&["timed out a=queued b=complete c=complete d=complete e=queued", ""]);
    s.at(120.9).land("a e completed", "a=complete e=complete");
    assert_eq!(s.told(2), "reached a=complete b=complete c=complete d=complete e=complete");
}

#[test]
fn a_split_wait_asks_again_once_all_its_polls_have_ended() {
    let mut s = Scenario::with(1, secs(2.0));
    s.join_for(1, "a b", "completed", 240.0).at(120.1).land("a completed", "a=queued");
    assert_eq!(s.open(), ["b completed"]);
    s.at(120.2).land("b completed", "b=queued");
    assert_eq!(s.open(), ["a completed", "b completed"]);
}

/// Row 3.7: each landing of one of its polls used to plan a wait for a thousand jobs as a whole.
#[test]
fn a_landing_plans_for_a_wide_wait_what_it_brought_and_no_more() {
    let ids: Vec<String> = (0..600).map(|n| format!("c{n:03}")).collect();
    let mut s = Scenario::new();
    s.join(1, &ids.join(" "), "completed").join(2, &ids.join(" "), "completed").at(60.0);
    assert_eq!((s.opened, s.machine.plans), (100, 2));
    for what in s.open().iter().map(ToString::to_string).collect::<Vec<_>>() {
        let ids = what.strip_suffix(" completed").expect("that is asked for").split(' ');
        let states: Vec<String> = ids.map(|id| format!("{id}=queued")).collect();
        s.land(&what, &states.join(" "));
    }
    // The one who opened the polls opens the next ones when the last of them has landed; the other asks once for all.
    assert!(s.machine.plans <= 6, "{} plans", s.machine.plans);
    assert_eq!(s.opened, 200);
}

#[test]
fn an_upstream_that_does_not_hold_is_asked_once_a_gap() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(0.1).land("a completed", "a=queued");
    assert!(s.open().is_empty());
    s.at(0.5).join(2, "a", "completed").at(1.19);
    assert_eq!((s.opened, s.machine.polls()), (1, 1));
    s.at(1.2);
    assert_eq!((s.open(), s.opened), (vec!["a completed"], 2));
    s.at(1.3).land("a completed", "a=queued").leave(1).leave(2);
    assert!(s.is_idle() && s.aborted == 0, "a resting poll is forgotten with its last wait");
}

#[test]
fn a_request_without_a_status_leans_on_its_like_and_on_snapshots_only() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").join(2, "a", "").join(3, "a", "");
    assert_eq!(s.open(), ["a completed", "a now"]);
    s.join(4, "a", "submitted");
    assert_eq!(s.open(), ["a completed", "a now", "a submitted"], "no other leans on one without status");
    s.land("a now", "a=queued");
    s.assert_told(&["", "reached a=queued", "reached a=queued", "reached a=queued"]);
    s.join(5, "b", "submitted").join(6, "b", "").land("b submitted", "b=queued");
    assert_eq!(s.told(6), "reached b=queued");
}

// Promise 5, key domains, and states that are nobody else's.

#[test]
fn a_single_wait_never_leans_on_a_batch_nor_fails_by_it() {
    let mut s = Scenario::new();
    s.join(1, "a b", "completed").join(2, "a", "completed");
    assert_eq!(s.open(), ["a b completed", "a completed"]);
    s.end("a b completed", PollOutcome::Refused(reply(404))).assert_told(&["refused 404", ""]);
    s.land("a completed", "a=complete").assert_told(&["refused 404", "reached a=complete"]);
}

#[test]
fn what_a_batch_learns_of_a_job_reaches_the_single_wait_on_it() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(1.0).join(2, "a b", "streaming");
    s.at(9.0).land("a b streaming", "a=complete b=streaming");
    s.assert_told(&["reached a=complete", "reached a=complete b=streaming"]);
}

#[test]
fn key_domains_never_touch() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed");
    s.enter(2, WaitSpec { domain: domain(1), ..s.spec("a", "completed") });
    assert_eq!((s.open(), s.poll("a completed")), (vec!["a completed", "a completed"], PollId(0)));
    s.land("a completed", "a=complete").assert_told(&["reached a=complete", ""]);
    s.end("a completed", PollOutcome::Refused(reply(401)))
        .assert_told(&["reached a=complete", "refused 401"]);
}

#[test]
fn a_state_that_went_back_is_ignored() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").join(2, "a", "streaming").at(5.0).land("a streaming", "a=streaming");
    s.at(6.0).join(3, "a", "queued").land("a queued", "a=submitted");
    s.assert_told(&["", "reached a=streaming", "reached a=streaming"]);
    s.at(120.0).land("a completed", "a=queued");
    assert_eq!(s.told(1), "timed out a=streaming");
}

#[test]
fn a_word_on_no_ladder_is_handed_over_at_once_and_not_spread() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").join(2, "a b", "completed");
    s.join(3, "a", "streaming").at(5.0).land("a streaming", "a=paused");
    s.assert_told(&["", "", "reached a=paused"]);
    s.join(4, "a", "streaming").assert_told(&["", "", "reached a=paused", ""]);
    assert_eq!(s.open(), ["a completed", "b completed", "a streaming"], "it is not kept");
}

#[test]
fn a_batch_that_was_handed_an_odd_word_asks_on_for_the_rest_only() {
    let mut s = Scenario::new();
    s.join(1, "a b", "completed").at(5.0).land("a b completed", "a=paused b=queued");
    s.assert_told(&[""]);
    assert_eq!(s.open(), ["b completed"]);
    s.at(9.0).land("b completed", "b=complete").assert_told(&["reached a=paused b=complete"]);
}

/// Found by the sweep: the state vouched for to one wait satisfied another, which then leaned on nothing and
/// was held until its deadline.
#[test]
fn a_state_vouched_for_to_one_wait_is_that_waits_only() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(0.1).land("a completed", "a=queued").at(1.0);
    let known = vec![s.state("a", "complete")];
    s.enter(2, WaitSpec { known, ..s.spec("a", "completed") }).assert_told(&["", "reached a=complete"]);
    s.at(2.0);
    assert_eq!(s.open(), ["a completed"]);
    s.land("a completed", "a=complete").assert_told(&["reached a=complete"; 2]);
}

// Promise 6: clients come and go freely.

#[test]
fn the_opener_leaves_and_the_rest_is_served() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(1.0).join(2, "a", "completed").at(2.0).leave(1);
    s.at(50.0).land("a completed", "a=complete").assert_told(&["", "reached a=complete"]);
    assert_eq!((s.opened, s.aborted), (1, 0));
}

#[test]
fn the_last_leaver_aborts_the_poll_after_the_linger() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").join(2, "a", "completed").leave(1).at(5.0).leave(2).at(6.9);
    assert_eq!((s.open(), s.aborted, s.machine.waits()), (vec!["a completed"], 0, 0));
    s.at(7.0);
    assert!(s.is_idle() && s.aborted == 1);
}

#[test]
fn one_who_comes_back_within_the_linger_finds_the_poll_still_there() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(5.0).leave(1).at(6.5).join(2, "a", "completed").at(60.0);
    assert_eq!((s.open(), s.opened, s.aborted), (vec!["a completed"], 1, 0));
    s.land("a completed", "a=complete").assert_told(&["", "reached a=complete"]);
}

/// There is nothing at the upstream to be found again, and it would have been given a turn.
#[test]
fn a_poll_that_is_not_being_tried_is_forgotten_with_its_last_wait() {
    let mut s = Scenario::new();
    s.in_line = true;
    s.join(1, "a", "completed").join(2, "a", "completed").at(1.0).leave(1);
    assert_eq!(s.aborted, 0);
    s.leave(2);
    assert!(s.is_idle() && s.aborted == 1, "in line");

    let failing = PollProgress::BackingOff(Failure::Unreachable, secs(5.0));
    let mut s = Scenario::new();
    s.join(1, "a", "completed").progress("a completed", failing.clone()).leave(1);
    assert!(s.is_idle() && s.aborted == 1, "pausing");

    let mut s = Scenario::new();
    s.join(1, "a", "completed").leave(1);
    assert_eq!(s.open(), ["a completed"]);
    s.at(1.0).progress("a completed", failing);
    assert!(s.is_idle() && s.aborted == 1, "pausing, while it lingers");
}

#[test]
fn a_poll_that_lands_while_it_lingers_is_forgotten() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").leave(1).at(1.0).land("a completed", "a=queued");
    assert!(s.is_idle() && s.aborted == 0);
}

#[test]
fn what_concerns_the_forgotten_changes_nothing() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").leave(1).leave(1).at(3.0);
    let late = PollOutcome::Jobs(vec![s.state("a", "complete")]);
    s.handle(Input::Landed(PollId(0), late));
    s.handle(Input::Progress(PollId(0), PollProgress::Held)).leave(7);
    assert!(s.is_idle() && s.told.is_empty());
}

// Promise 7: the deadline's answer is true.

#[test]
fn what_a_pending_poll_proves_at_the_deadline_costs_no_request() {
    let mut s = Scenario::new();
    s.join_for(1, "a", "completed", 60.0).join(2, "a", "streaming");
    s.at(30.0).land("a streaming", "a=streaming").at(60.0).assert_told(&["timed out a=streaming"]);
    assert_eq!(s.opened, 2);
}

#[test]
fn what_nothing_proves_at_the_deadline_costs_one_snapshot_for_all_who_look() {
    let mut s = Scenario::new();
    s.join_for(1, "a", "completed", 60.0).join_for(2, "a", "completed", 60.0).at(60.0);
    s.assert_told(&["", ""]);
    assert_eq!(s.open(), ["a completed", "a submitted"]);
    s.at(60.1).land("a submitted", "a=queued").assert_told(&["timed out a=queued"; 2]);
    s.at(62.0);
    assert!(s.is_idle());
}

#[test]
fn a_poll_that_does_not_stand_yet_proves_nothing() {
    let mut s = Scenario::new();
    s.stands = false;
    s.join_for(1, "a", "completed", 60.0).join(2, "a", "streaming");
    s.at(30.0).land("a streaming", "a=streaming").at(60.0);
    assert_eq!(s.open(), ["a completed", "a submitted"]);
}

/// Its silence may be that of the wire.
#[test]
fn a_poll_that_only_just_stands_proves_nothing() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").join(2, "a", "streaming").land("a streaming", "a=streaming");
    s.at(0.4).join_for(3, "a", "completed", 0.0);
    assert_eq!(s.open(), ["a completed", "a submitted"]);
    s.land("a submitted", "a=streaming").at(0.6).join_for(4, "a", "completed", 0.0);
    assert_eq!((s.told(4), s.opened), ("timed out a=streaming".into(), 3));
}

/// Found by the sweep: the batch was silent because `b` held it, until this very moment.
#[test]
fn a_batch_whose_other_job_only_just_got_there_proves_nothing() {
    let mut s = Scenario::new();
    s.join(1, "a b", "completed").at(10.0).join(2, "a", "streaming").land("a streaming", "a=streaming");
    s.at(60.0).join(3, "b", "completed").at(70.0).land("b completed", "b=complete");
    s.join_for(4, "a", "completed", 0.0);
    assert_eq!(s.open(), ["a b completed", "a submitted"]);
    s.land("a submitted", "a=complete");
    assert_eq!(s.told(4), "reached a=complete");
    assert_eq!(s.told(1), "reached a=complete b=complete");
}

#[test]
fn a_batch_whose_other_job_is_long_there_proves_the_rest() {
    let mut s = Scenario::new();
    s.join(1, "a b", "completed").at(10.0).join(2, "a", "streaming").land("a streaming", "a=streaming");
    s.at(60.0).join(3, "b", "completed").at(70.0).land("b completed", "b=complete");
    s.at(80.0).join_for(4, "a", "completed", 0.0);
    assert_eq!((s.told(4), s.opened), ("timed out a=streaming".into(), 3));
}

#[test]
fn a_wait_without_time_costs_one_snapshot() {
    let mut s = Scenario::new();
    s.join_for(1, "a", "completed", 0.0);
    assert_eq!((s.open(), s.opened), (vec!["a submitted"], 1));
}

#[test]
fn what_was_proven_at_the_deadline_is_not_asked_for_again_when_the_proof_is_aborted() {
    let mut s = Scenario::with(6, Duration::ZERO);
    s.join_for(1, "a b", "completed", 60.0).join(2, "a", "completed").join(3, "a", "streaming");
    s.at(10.0).land("a streaming", "a=streaming").at(60.0);
    assert_eq!(s.open(), ["a completed", "b submitted"]);
    s.leave(2).at(60.1).land("b submitted", "b=queued").assert_told(&["timed out a=streaming b=queued"]);
    assert!(s.is_idle());
}

/// What else happens need not wait for the last of them.
#[test]
fn a_crowd_of_deadlines_is_worked_off_in_parts() {
    let mut s = Scenario::new();
    for number in 0..1000 {
        s.join_for(number, &format!("c{number}"), "completed", 60.0);
    }
    s.now = s.zero + secs(60.0);
    let mut calls = 0;
    while s.machine.poll_timeout().is_some_and(|due| due <= s.now) {
        let before = s.opened;
        s.machine.handle_timeout(s.now);
        s.act();
        assert!(s.opened - before <= MAX_TIMERS_PER_CALL);
        calls += 1;
        if calls == 1 {
            s.land("c999 completed", "c999=complete");
            assert_eq!(s.told(999), "reached c999=complete", "between two parts");
        }
    }
    assert_eq!((calls, s.opened), (4, 1999), "a look for each of the others");
}

// The deadline's races: two clocks count the same two minutes.

#[test]
fn a_wait_and_its_poll_that_end_at_the_same_moment_cost_no_extra_request() {
    for ends in [119.8, 119.999, 120.0, 120.001, 120.3, 124.9] {
        let mut s = Scenario::new();
        s.join(1, "a", "completed").at(0.04).join(2, "a", "completed");
        s.at(ends).land("a completed", "a=queued").assert_told(&["timed out a=queued"; 2]);
        assert_eq!((s.opened, s.is_idle()), (1, true), "{ends}");
    }
}

#[test]
fn a_split_wait_and_its_polls_that_end_at_the_same_moment_cost_no_extra_request() {
    for (first, second) in [(119.9, 120.2), (120.1, 120.2), (119.8, 119.9), (120.0, 120.0)] {
        let mut s = Scenario::with(1, secs(2.0));
        s.join(1, "a b", "completed").at(first).land("a completed", "a=queued");
        s.at(second).land("b completed", "b=queued").assert_told(&["timed out a=queued b=queued"]);
        assert_eq!((s.opened, s.is_idle()), (2, true), "{first} {second}");
    }
}

#[test]
fn an_upstream_that_overruns_its_time_is_waited_for_no_longer_than_the_grace() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(124.9);
    assert_eq!(s.open(), ["a completed"]);
    s.at(125.0);
    assert_eq!(s.open(), ["a completed", "a submitted"]);
    s.at(125.1).land("a submitted", "a=queued").assert_told(&["timed out a=queued"]);
}

/// It stayed for its own poll, which had another minute to go, until the grace was over.
#[test]
fn a_wait_shorter_than_the_upstreams_time_looks_when_its_own_is_over() {
    let mut s = Scenario::new();
    s.join_for(1, "a", "completed", 60.0).at(60.0);
    assert_eq!(s.open(), ["a completed", "a submitted"]);
    s.land("a submitted", "a=queued").assert_told(&["timed out a=queued"]);
}

#[test]
fn a_wait_of_twice_the_upstreams_time_ends_with_its_second_poll() {
    let mut s = Scenario::new();
    s.join_for(1, "a", "completed", 240.0).at(120.1).land("a completed", "a=queued").at(240.0);
    s.assert_told(&[""]);
    assert_eq!(s.open(), ["a completed"]);
    s.at(240.2).land("a completed", "a=queued").assert_told(&["timed out a=queued"]);
    assert_eq!(s.opened, 2);
}

// Answers that are no jobs.

#[test]
fn a_whole_answer_goes_to_the_waits_on_just_that_set_and_the_others_ask_alone() {
    let mut s = Scenario::new();
    s.join(1, "a b", "completed").join(2, "a b", "completed").join(3, "a b c", "completed");
    assert_eq!(s.open(), ["a b completed", "c completed"]);
    s.at(9.0).end("a b completed", PollOutcome::Unsplit(reply(200)));
    s.assert_told(&["unsplit 200", "unsplit 200", ""]);
    assert_eq!(s.open(), ["c completed", "a b c completed"]);
    s.at(12.0).end("a b c completed", PollOutcome::Unsplit(reply(200))).assert_told(&["unsplit 200"; 3]);
    assert!(s.is_idle());
}

#[test]
fn a_whole_answer_to_a_lower_poll_does_not_cut_a_higher_wait_short() {
    let mut s = Scenario::new();
    s.join(1, "a b", "streaming").join(2, "a b", "completed");
    s.at(9.0).end("a b streaming", PollOutcome::Unsplit(reply(200))).assert_told(&["unsplit 200", ""]);
    assert_eq!(s.open(), ["a b completed"]);
}

#[test]
fn a_whole_answer_at_the_upstreams_time_does_not_cut_a_late_joiner_short() {
    let mut s = Scenario::new();
    s.join(1, "a b", "completed").at(60.0).join(2, "a b", "completed");
    s.at(120.1).end("a b completed", PollOutcome::Unsplit(reply(200))).assert_told(&["unsplit 200", ""]);
    s.at(130.0).end("a b completed", PollOutcome::Unsplit(reply(200))).assert_told(&["unsplit 200"; 2]);
}

#[test]
fn a_whole_answer_to_a_part_of_a_split_wait_is_no_answer() {
    let mut s = Scenario::with(2, secs(2.0));
    s.join(1, "a b c", "completed").end("a b completed", PollOutcome::Unsplit(reply(200)));
    s.assert_told(&["failed InvalidResponse(None)"]);
}

#[test]
fn a_refusal_goes_to_every_wait_on_the_poll() {
    let mut s = Scenario::new();
    s.join(1, "a", "streaming").at(1.0).join(2, "a", "completed").join(3, "b", "completed");
    s.end("a streaming", PollOutcome::Refused(reply(404))).assert_told(&["refused 404", "refused 404", ""]);
    assert_eq!((s.told[&1].direct, s.told[&2].direct), (true, false));
}

#[test]
fn a_failure_reaches_only_those_who_were_there_at_the_failed_try() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed")
        .at(1.0)
        .progress("a completed", PollProgress::BackingOff(Failure::Unreachable, secs(1.0)));
    s.join(2, "a", "completed").at(2.0).progress("a completed", PollProgress::AttemptStarted);
    s.at(3.0).join(3, "a", "completed").at(4.0);
    s.end("a completed", PollOutcome::Failed(Failure::Unreachable));
    s.assert_told(&["failed Unreachable", "failed Unreachable", ""]);
    assert_eq!(s.open(), ["a completed"]);
}

/// The upstream answers with this status, and asks to be left alone for so many seconds.
fn asked_to_rest(status: u16, pause: f64) -> PollProgress {
    PollProgress::Paused(Failure::UpstreamError(reply(status)), secs(pause))
}

fn key_rests(pause: f64) -> PollProgress {
    PollProgress::Paused(Failure::KeyRateLimited { retry_after: secs(pause) }, secs(pause))
}

/// Nobody is kept for an answer that cannot come in time: a client alone would have been told at once.
#[test]
fn a_wait_is_told_at_once_of_a_pause_that_outlasts_it() {
    for status in [429, 503] {
        let mut s = Scenario::new();
        s.join(1, "a", "completed").at(0.5).join(2, "a b", "completed").at(1.0);
        s.progress("a completed", asked_to_rest(status, 3600.0));
        s.assert_told(&[&format!("failed {status}"), ""]);
        assert!(s.told[&1].direct, "Retry-After goes along");
        s.leave(2).at(10.0);
        assert!(s.is_idle());
    }
    let mut s = Scenario::new();
    s.join_for(1, "a", "completed", 0.0).progress("a submitted", asked_to_rest(429, 60.0));
    s.assert_told(&["failed 429"]);
}

#[test]
fn a_wait_that_outlasts_the_pause_is_held_through_it() {
    let mut s = Scenario::new();
    s.join_for(1, "a", "completed", 600.0).at(1.0).progress("a completed", asked_to_rest(429, 500.0));
    s.at(501.0).assert_told(&[""]);
    s.progress("a completed", PollProgress::AttemptStarted).at(502.0).land("a completed", "a=complete");
    s.assert_told(&["reached a=complete"]);
}

/// The other poll may be the one that tells it of a refusal, and what it has to be told then is the same.
#[test]
fn a_wait_is_not_told_of_a_pause_while_something_else_may_answer_it() {
    let mut s = Scenario::with(1, secs(2.0));
    s.join(1, "a b", "completed").at(1.0).progress("a completed", asked_to_rest(429, 3600.0)).at(60.0);
    s.assert_told(&[""]);
    s.land("b completed", "b=complete").assert_told(&["failed 429"]);

    let mut s = Scenario::new();
    s.join(1, "a", "completed").join(2, "a", "streaming").at(1.0);
    s.progress("a streaming", asked_to_rest(503, 3600.0)).assert_told(&["", "failed 503"]);
    s.at(2.0).land("a completed", "a=complete").assert_told(&["reached a=complete", "failed 503"]);
}

#[test]
fn a_wait_that_has_a_truth_to_tell_is_held_through_a_pause_that_outlasts_it() {
    let mut s = Scenario::new();
    s.join(1, "a b", "completed").join(2, "a", "streaming").join(3, "b", "completed").at(10.0);
    s.land("a streaming", "a=streaming").land("b completed", "b=complete");
    s.at(20.0).join(4, "a", "completed").at(21.0).progress("a completed", asked_to_rest(429, 3600.0));
    assert_eq!(s.told(4), "", "the batch stands, and nothing but a holds it");
    s.at(90.0).land("a b completed", "a=complete b=complete");
    assert_eq!(s.told(4), "reached a=complete");
}

/// Its client alone would have asked anew, and may well be let in.
#[test]
fn a_pause_that_was_asked_for_before_a_wait_came_is_not_told_to_it() {
    let mut s = Scenario::new();
    s.join_for(1, "a", "completed", 600.0).at(1.0).progress("a completed", asked_to_rest(503, 500.0));
    s.at(2.0).join(2, "a", "completed");
    assert_eq!((s.open(), s.opened), (vec!["a completed"; 2], 2));
    s.at(3.0).join_for(3, "a", "completed", 600.0);
    assert_eq!(s.opened, 2, "one that outlasts it leans on both");
    let asked_anew = s.open.pop().unwrap();
    s.open.insert(0, asked_anew);
    s.at(9.0).land("a completed", "a=complete").assert_told(&["reached a=complete"; 3]);
    assert!(s.is_idle());
}

#[test]
fn a_wait_that_joined_a_try_under_way_asks_anew_where_that_ends_with_a_pause() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(1.0).join(2, "a", "completed").at(2.0);
    s.progress("a completed", asked_to_rest(503, 3600.0)).assert_told(&["failed 503", ""]);
    assert_eq!((s.open(), s.opened), (vec!["a completed"], 2));
    s.progress("a completed", asked_to_rest(503, 3600.0)).assert_told(&["failed 503", "failed 503"]);
    assert!(s.is_idle());
}

#[test]
fn the_rest_of_a_key_is_told_at_once_to_those_only_whom_it_outlasts() {
    let mut s = Scenario::new();
    s.in_line = true;
    s.join(1, "a", "completed").join_for(2, "a", "completed", 30.0).join_for(3, "a b", "completed", 30.0);
    s.progress("a completed", key_rests(60.0));
    s.assert_told(&["", "failed KeyRateLimited { retry_after: 60s }", ""]);
    s.progress("b completed", key_rests(60.0));
    assert_eq!(s.told(3), "failed KeyRateLimited { retry_after: 60s }");
    s.at(40.0).join_for(4, "a", "completed", 5.0);
    assert_eq!(s.told(4), "failed KeyRateLimited { retry_after: 20s }", "whenever it came");
    s.at(60.0).progress("a completed", PollProgress::AttemptStarted).land("a completed", "a=complete");
    assert_eq!(s.told(1), "reached a=complete");
    assert!(s.is_idle());
}

/// An hour is an hour, but a moment later the look at its deadline may tell it the truth.
#[test]
fn a_wait_is_not_told_of_a_pause_that_its_look_would_outlast() {
    let mut s = Scenario::new();
    s.join_for(1, "a", "completed", 60.0).at(55.0).progress("a completed", asked_to_rest(429, 10.0)).at(60.0);
    s.assert_told(&[""]);
    assert_eq!(s.open(), ["a submitted"]);
    s.progress("a submitted", key_rests(5.0)).at(65.0).progress("a submitted", PollProgress::AttemptStarted);
    s.land("a submitted", "a=streaming").assert_told(&["timed out a=streaming"]);
}

#[test]
fn a_look_that_would_be_put_off_is_not_waited_for() {
    let mut s = Scenario::new();
    s.join_for(1, "a", "completed", 60.0).at(30.0).join_for(2, "a", "completed", 30.0).at(60.0);
    s.progress("a submitted", key_rests(60.0));
    s.assert_told(&[
        "failed KeyRateLimited { retry_after: 60s }",
        "failed KeyRateLimited { retry_after: 60s }",
    ]);
}

#[test]
fn a_wait_with_time_left_is_held_through_a_failing_upstream() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(1.0);
    s.progress("a completed", PollProgress::BackingOff(Failure::UpstreamError(reply(500)), secs(89.0)))
        .at(90.0)
        .assert_told(&[""]);
    s.progress("a completed", PollProgress::AttemptStarted).progress("a completed", PollProgress::Held);
    s.at(100.0).land("a completed", "a=complete").assert_told(&["reached a=complete"]);
}

#[test]
fn a_wait_whose_time_is_over_is_told_how_the_upstream_failed_last() {
    let failing =
        |status, pause| PollProgress::BackingOff(Failure::UpstreamError(reply(status)), secs(pause));
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(1.0).progress("a completed", failing(500, 120.0)).at(120.0);
    s.assert_told(&[""]);
    assert_eq!(s.open(), ["a submitted"]);
    s.at(120.1).progress("a submitted", failing(502, 1.0)).at(130.0);
    s.assert_told(&["failed 502"]);

    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(1.0).progress("a completed", failing(500, 120.0)).at(130.0);
    s.assert_told(&["failed 500"]);
    assert!(s.told[&1].direct);

    let mut s = Scenario::new();
    s.join_for(1, "a", "completed", 60.0).at(70.0).assert_told(&["failed Timeout"]);
}

#[test]
fn draining_tells_every_wait_the_truth_within_the_time_and_spread_over_it() {
    let mut s = Scenario::new();
    for (number, id) in ["c", "d", "e"].iter().enumerate() {
        s.join(10 + number as u64, id, "streaming").join(2 + number as u64, id, "completed");
        for n in 1..=200 {
            s.join(1000 * (number as u64 + 1) + n, id, "completed");
        }
        s.land(&format!("{id} streaming"), &format!("{id}=streaming"));
    }
    s.join(1, "a", "streaming").join(5, "a", "completed").land("a streaming", "a=streaming");
    let until = s.zero + secs(20.0);
    s.join(6, "b", "completed").at(10.0).handle(Input::Drain(until));
    let mut told = Vec::new();
    for second in 10..=18 {
        s.at(f64::from(second));
        if s.open.iter().any(|(_, what)| what == "b submitted") {
            s.land("b submitted", "b=queued");
        }
        told.push((2..=6).filter(|number| s.told.contains_key(number)).count());
    }
    assert!(told[2] < 3 && told[8] == 5, "{told:?}");
    let expected = ["c", "d", "e", "a"].map(|id| format!("timed out {id}=streaming"));
    assert_eq!([2, 3, 4, 5].map(|number| s.told(number)), expected);
    assert_eq!(s.told(6), "timed out b=queued");
    s.join(7, "c", "completed").at(18.0);
    assert_eq!(s.open().last().map(|open| &**open), Some("c submitted"), "who comes now is told at once");
    s.land("c submitted", "c=queued");
    assert_eq!(s.told(7), "timed out c=queued");
}

/// Row 1.12.
#[test]
fn waits_on_the_same_jobs_are_drained_together_by_one_snapshot_a_job() {
    let mut s = Scenario::new();
    for number in 1..=6 {
        s.join(number, "a", "completed").join(10 + number, "b", "completed");
    }
    s.join(20, "b c", "completed").join(21, "c", "streaming").at(10.0);
    let until = s.zero + secs(20.0);
    s.handle(Input::Drain(until)).at(10.0);
    assert_eq!(s.open().iter().filter(|what| what.ends_with("submitted")).count(), 1);
    s.land("a submitted", "a=queued");
    assert_eq!((1..=6).filter(|number| s.told(*number) == "timed out a=queued").count(), 6);
    s.at(19.0);
    let snapshots = s.open().iter().filter(|what| what.ends_with("submitted")).count();
    assert_eq!(snapshots, 2, "{:?}", s.open());
    s.land("b submitted", "b=queued").land("c submitted", "c=queued");
    assert_eq!(s.told.len(), 14);
}

#[test]
fn a_few_waits_are_drained_at_once() {
    let mut s = Scenario::new();
    for (number, id) in ["a", "b", "c"].iter().enumerate() {
        s.join(10 + number as u64, id, "streaming").join(1 + number as u64, id, "completed");
        s.land(&format!("{id} streaming"), &format!("{id}=streaming"));
    }
    let until = s.zero + secs(110.0);
    s.at(10.0).handle(Input::Drain(until)).at(10.1);
    assert_eq!(
        [1, 2, 3].map(|number| s.told(number)),
        ["a", "b", "c"].map(|id| format!("timed out {id}=streaming"))
    );
}

/// Row 1.6.
#[test]
fn a_wait_that_is_drained_while_the_upstream_fails_is_told_where_its_job_was_seen() {
    let mut s = Scenario::new();
    s.join(1, "a", "queued").join(2, "a", "completed").land("a queued", "a=queued");
    s.join(3, "b", "completed").at(10.0);
    let until = s.zero + secs(20.0);
    s.handle(Input::Drain(until)).at(19.0);
    s.end("a submitted", PollOutcome::Failed(Failure::Unreachable));
    s.progress("b submitted", PollProgress::BackingOff(Failure::Unreachable, secs(0.1))).at(21.0);
    assert_eq!(s.told(2), "timed out a=queued");
    assert_eq!(s.told(3), "failed Unreachable", "nothing was seen of it");
}

/// Row 2.5: a success with `Retry-After` on a job that is not where it is waited for.
#[test]
fn a_retry_after_on_a_success_sets_the_time_of_the_next_poll() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed");
    let poll = s.poll("a completed");
    s.machine.handle(Input::RetryAfter(poll, secs(7.0)), s.now);
    s.land("a completed", "a=queued").at(6.9);
    assert_eq!(s.opened, 1);
    s.at(7.1);
    assert_eq!(s.opened, 2);
    let poll = s.poll("a completed");
    s.machine.handle(Input::RetryAfter(poll, secs(3600.0)), s.now);
    s.land("a completed", "a=queued").at(8.0).join(2, "a", "completed");
    assert_eq!(s.opened, 3, "who comes later asks at once, as its client alone would");
    s.land("a completed", "a=queued").at(67.2);
    assert_eq!(s.opened, 4, "a minute at most");
}

/// Row 1.8.
#[test]
fn a_request_that_is_answered_at_once_gets_a_refusal_with_retry_after_at_once() {
    let mut s = Scenario::new();
    s.join(1, "a", "").progress("a now", asked_to_rest(429, 60.0)).assert_told(&["failed 429"]);
    s.join(2, "b", "submitted").progress("b submitted", asked_to_rest(503, 60.0));
    assert_eq!(s.told(2), "failed 503");
    let patient = WaitSpec { is_patient: true, ..s.spec("d", "submitted") };
    s.enter(4, patient).progress("d submitted", asked_to_rest(503, 60.0));
    assert_eq!(s.told(4), "", "an event stream is held");
    s.join(3, "c", "submitted").progress("c submitted", key_rests(60.0));
    assert!(s.told(3).starts_with("failed KeyRateLimited"), "{}", s.told(3));
}

/// Sweep seed 26092: a wait opened a poll and was given up within its join, and the poll was opened all the same.
#[test]
fn an_opening_that_was_not_taken_yet_is_taken_back_when_its_wait_ends() {
    let mut s = Scenario::new();
    s.in_line = true;
    s.join_for(1, "a", "completed", 5.0).at(5.0).join(2, "a", "streaming");
    s.progress("a submitted", key_rests(60.0)).at(6.0);
    let spec = WaitSpec { timeout: Duration::ZERO, ..s.spec("a b", "completed") };
    s.machine.handle(Input::Join(WaitId(3), spec), s.now);
    assert_eq!(s.machine.pending_opens(), 0);
    assert!(s.act_and_tell(3).starts_with("failed KeyRateLimited"));
}

#[test]
fn a_wait_that_is_refused_leaves_no_trace() {
    let mut s = Scenario::new();
    let spec = s.spec("a b", "completed");
    s.join(1, "a", "completed");
    s.machine.handle(Input::Join(WaitId(2), spec), s.now);
    assert_eq!(s.machine.pending_opens(), 1);
    s.machine.handle(Input::CancelJoin(WaitId(2)), s.now);
    assert_eq!(s.machine.pending_opens(), 0);
    assert_eq!((s.machine.waits(), s.machine.polls()), (1, 1));
    s.join(3, "b", "completed");
    assert_eq!(s.open(), ["a completed", "b completed"]);
}

#[test]
fn an_answer_that_was_read_earlier_and_comes_later_takes_nothing_back() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(1.0).join(2, "a", "streaming");
    s.at(5.0);
    let complete = s.state("a", "complete"); // read now, on its way for a while
    s.at(5.5).join(3, "a b", "streaming");
    s.at(6.0).land("a streaming", "a=streaming");
    s.at(6.1).end("a completed", PollOutcome::Jobs(vec![complete]));
    let open = s.open().iter().find(|what| what.contains('b')).unwrap().to_string();
    s.at(8.0).land(&open, if open.starts_with("a b") { "a=complete b=complete" } else { "b=complete" });
    assert_eq!(s.told(3), "reached a=complete b=complete");
    assert_eq!(s.open(), [""; 0]);
}

#[test]
fn an_answer_that_was_read_as_a_waits_time_ended_is_the_state_then() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(0.1).join(2, "a", "completed").at(120.02);
    let read = s.state("a", "queued");
    s.at(120.0201).end("a completed", PollOutcome::Jobs(vec![read]));
    s.assert_told(&["timed out a=queued", "timed out a=queued"]);
    assert_eq!((s.open(), s.opened), (vec![], 1));
}

#[test]
fn an_answer_that_was_read_before_a_wait_came_is_not_its_end() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed").at(119.7);
    let read = s.state("a", "queued");
    s.at(119.8).join_for(2, "a", "completed", 0.3);
    assert_eq!(s.opened, 1);
    s.at(120.0).end("a completed", PollOutcome::Jobs(vec![read]));
    s.assert_told(&["timed out a=queued", ""]);
    let open = s.open()[0].to_string();
    s.at(120.1).land(&open, "a=streaming");
    assert_eq!(s.told(2), "timed out a=streaming");
}

/// Each parked wait is answered within `server.drain_timeout` (contract section 9), one that looks already too.
#[test]
fn a_stop_ends_in_time_for_a_wait_whose_snapshot_is_not_answered() {
    let mut s = Scenario::new();
    s.join_for(1, "a", "completed", 10.0).at(11.0);
    assert_eq!(s.told(1), "");
    let until = s.zero + secs(13.0);
    s.handle(Input::Drain(until)).at(13.1);
    assert_ne!(s.told(1), "", "it is cut off at 13 s");
}

/// P1: the job was completed before the second client came, who would have been told so at once.
#[test]
fn a_client_who_comes_in_the_pause_after_a_success_is_not_late() {
    let mut s = Scenario::new();
    s.join(1, "a", "completed");
    let poll = s.poll("a completed");
    s.machine.handle(Input::RetryAfter(poll, secs(60.0)), s.now);
    s.land("a completed", "a=queued").at(5.0);
    s.join(2, "a", "completed").at(5.1);
    assert_eq!(s.opened, 2, "its client alone would ask at 5 s, and is told at 60 s");
}
