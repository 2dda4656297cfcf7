use std::collections::BTreeSet;

use super::keys::MAX_KEY_PAUSE;
use super::*;
use crate::core::backoff::Backoff;
use crate::core::breaker::BreakerRules;
use crate::core::job::{JobId, JobSet};

const A: KeyDomain = KeyDomain([1; 16]);
const B: KeyDomain = KeyDomain([2; 16]);
const C: KeyDomain = KeyDomain([3; 16]);
const SECOND: Duration = Duration::from_secs(1);

fn key(number: u64) -> KeyDomain {
    KeyDomain([u8::try_from(number).unwrap(); 16])
}

fn config(max_polls: usize) -> SchedulerConfig {
    SchedulerConfig {
        max_polls,
        interval: Duration::ZERO,
        retries: 2,
        retry_for: Duration::from_secs(30),
        backoff: Backoff { first: Duration::from_millis(100), cap: SECOND },
        breaker: BreakerRules { failures: 5, cooldown: Duration::from_secs(5) },
    }
}

fn jobs(id: u64) -> JobSet {
    JobSet::new([JobId::new(&format!("job{id}")).unwrap()])
}

/// The machine with a clock of its own. Each poll asks for a job of its own.
struct Scenario {
    scheduler: PollScheduler,
    now: Instant,
}

impl Scenario {
    fn new(config: SchedulerConfig) -> Self {
        Self { scheduler: PollScheduler::new(config, 1), now: crate::clock::now() }
    }

    /// A scheduler that has met an upstream that works.
    fn proven(config: SchedulerConfig) -> Self {
        let mut s = Self::new(config);
        s.ask(1_000_000, C);
        assert_eq!(s.starts(), [1_000_000]);
        s.answered(1_000_000);
        s
    }

    fn request(&mut self, id: u64, domain: KeyDomain, class: PollClass) {
        self.scheduler.request(PollId(id), PollRequest { domain, jobs: jobs(id), class }, self.now);
    }

    fn ask(&mut self, id: u64, domain: KeyDomain) {
        self.request(id, domain, PollClass::LongPoll);
    }

    fn outputs(&mut self) -> Vec<SchedulerOutput> {
        std::iter::from_fn(|| self.scheduler.poll_output()).collect()
    }

    fn starts(&mut self) -> Vec<u64> {
        let start = |output| match output {
            SchedulerOutput::Start(PollId(id)) => Some(id),
            SchedulerOutput::BackOff(..) | SchedulerOutput::Pause(..) | SchedulerOutput::GiveUp(..) => None,
        };
        self.outputs().into_iter().filter_map(start).collect()
    }

    fn sorted_starts(&mut self) -> Vec<u64> {
        let mut starts = self.starts();
        starts.sort_unstable();
        starts
    }

    /// Which polls are to pause for how many seconds, because of what.
    fn pauses(&mut self) -> Vec<(u64, &'static str, u64)> {
        let pause = |output| match output {
            SchedulerOutput::Pause(PollId(id), failure, pause) => {
                Some((id, failure.reason(), pause.as_secs()))
            }
            SchedulerOutput::BackOff(..) | SchedulerOutput::Start(_) | SchedulerOutput::GiveUp(..) => None,
        };
        self.outputs().into_iter().filter_map(pause).collect()
    }

    fn given_up(&mut self) -> Vec<(u64, &'static str)> {
        let given_up = |output| match output {
            SchedulerOutput::GiveUp(PollId(id), failure) => Some((id, failure.reason())),
            SchedulerOutput::BackOff(..) | SchedulerOutput::Start(_) | SchedulerOutput::Pause(..) => None,
        };
        self.outputs().into_iter().filter_map(given_up).collect()
    }

    fn answered(&mut self, id: u64) {
        self.scheduler.ended(PollId(id), AttemptResult::Answered, self.now);
    }

    fn sent(&mut self, id: u64) {
        self.scheduler.sent(PollId(id), self.now);
    }

    /// The connection is lost.
    fn failed(&mut self, id: u64) {
        self.ended(id, Failure::Unreachable, RetryAdvice::BackOff);
    }

    /// The upstream answers with an error of its own.
    fn error(&mut self, id: u64) {
        self.ended(id, Failure::InvalidResponse(None), RetryAdvice::BackOff);
    }

    /// The upstream answers 429 with so many seconds in `Retry-After`.
    fn limited(&mut self, id: u64, secs: u64) {
        self.ended(id, Failure::InvalidResponse(None), RetryAdvice::PauseKey(Duration::from_secs(secs)));
    }

    fn ended(&mut self, id: u64, failure: Failure, advice: RetryAdvice) {
        self.scheduler.ended(PollId(id), AttemptResult::Failed(failure, advice), self.now);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.scheduler.handle_timeout(self.now);
        assert!(self.scheduler.poll_timeout().is_none_or(|at| at > self.now));
    }

    /// Lets time pass from timer to timer, so that each goes off at its moment. The starts come back with their
    /// milliseconds; each such attempt fails at once if `is_away`.
    fn run(&mut self, time: Duration, is_away: bool) -> Vec<(u128, u64)> {
        let (from, until, mut starts) = (self.now, self.now + time, Vec::new());
        loop {
            for id in self.starts() {
                starts.push(((self.now - from).as_millis(), id));
                if is_away {
                    self.failed(id);
                }
            }
            match self.scheduler.poll_timeout().filter(|at| *at <= until) {
                Some(at) => {
                    self.now = at;
                    self.scheduler.handle_timeout(at);
                }
                None => break,
            }
        }
        self.now = until;
        starts
    }
}

#[test]
fn a_poll_over_the_limit_waits_for_a_place() {
    let mut s = Scenario::new(config(3));
    (1..=4).for_each(|id| s.ask(id, key(id)));
    assert_eq!(s.starts(), [1, 2], "the last place is for quick ones");
    s.answered(1);
    assert_eq!(s.starts(), [3]);
    s.scheduler.withdraw(PollId(2), s.now);
    assert_eq!(s.starts(), [4]);
    assert_eq!(s.scheduler.open(), 2);
}

#[test]
fn a_quick_poll_goes_first_and_has_the_last_place() {
    let mut s = Scenario::new(config(3));
    (1..=4).for_each(|id| s.ask(id, key(id)));
    s.request(5, A, PollClass::Snapshot);
    s.request(6, B, PollClass::Snapshot);
    assert_eq!(s.starts(), [1, 2, 5]);
    s.answered(1);
    assert_eq!(s.starts(), [6]);
}

#[test]
fn one_place_serves_both_sorts() {
    let mut s = Scenario::new(config(1));
    s.ask(1, A);
    s.ask(2, A);
    s.request(3, A, PollClass::Snapshot);
    assert_eq!(s.starts(), [1]);
    s.answered(1);
    assert_eq!(s.starts(), [3]);
    s.answered(3);
    assert_eq!(s.starts(), [2]);
}

#[test]
fn turns_go_round_the_key_domains_and_in_order_of_arrival_within_one() {
    let mut s = Scenario::new(config(2));
    (1..=4).for_each(|id| s.ask(id, A));
    s.ask(10, B);
    assert_eq!(s.starts(), [1]);
    s.answered(1);
    assert_eq!(s.starts(), [2]);
    s.answered(2);
    assert_eq!(s.starts(), [10], "A's clips do not starve B's");
    s.answered(10);
    assert_eq!(s.starts(), [3]);
}

#[test]
fn the_pace_lets_one_try_through_each_interval() {
    let mut s = Scenario::new(SchedulerConfig { interval: Duration::from_millis(100), ..config(9) });
    (1..=3).for_each(|id| s.ask(id, A));
    assert_eq!(s.starts(), [1]);
    s.pass(Duration::from_millis(99));
    assert_eq!(s.starts(), [0; 0]);
    s.pass(Duration::from_millis(1));
    assert_eq!(s.starts(), [2]);
    s.pass(Duration::from_millis(500));
    assert_eq!(s.starts(), [3]);
}

/// Before the first answer since the start a wrong address is the likeliest cause.
#[test]
fn before_the_first_answer_a_poll_is_given_up_after_its_retries() {
    let mut s = Scenario::new(config(9));
    s.ask(1, A);
    for _ in 0..3 {
        assert_eq!(s.starts(), [1]);
        s.failed(1);
        if s.scheduler.is_pausing(PollId(1)) {
            assert_eq!(s.scheduler.open(), 0, "a poll that backs off takes no place");
            s.pass(SECOND);
        }
    }
    assert_eq!(s.given_up(), [(1, "unreachable")]);
}

/// Turns alone would not do: the places are held for minutes.
#[test]
fn a_key_with_a_thousand_jobs_leaves_places_to_those_who_come_later() {
    let mut s = Scenario::new(config(512));
    (0..1000).for_each(|id| s.ask(id, A));
    assert_eq!(s.starts().len(), 481, "of 511");
    (2000..2100).for_each(|id| s.ask(id, B));
    assert_eq!(s.starts().len(), 28);
    (3000..3100).for_each(|id| s.ask(id, C));
    assert_eq!(s.starts(), [3000], "one who has none may take any");
    s.ask(4000, key(4));
    assert_eq!(s.starts(), [4000]);
    (0..50).for_each(|id| s.answered(id));
    let starts = s.starts();
    assert!(starts.iter().all(|id| *id >= 2000), "who has most waits: {starts:?}");
}

#[test]
fn of_two_places_one_key_has_one() {
    let mut s = Scenario::new(config(3));
    (1..=3).for_each(|id| s.ask(id, A));
    assert_eq!(s.starts(), [1]);
    s.ask(10, B);
    s.ask(11, B);
    assert_eq!(s.starts(), [10]);
    s.answered(10);
    assert_eq!(s.starts(), [11]);
}

#[test]
fn looks_at_deadlines_go_by_turns_as_well() {
    let mut s = Scenario::new(config(1));
    s.ask(1, A);
    (2..=4).for_each(|id| s.request(id, A, PollClass::Snapshot));
    s.request(10, B, PollClass::Snapshot);
    let mut order = s.starts();
    for _ in 0..4 {
        s.answered(*order.last().unwrap());
        order.extend(s.starts());
    }
    assert_eq!(order, [1, 2, 10, 3, 4]);
}

/// P12, row 1.7: `bad` is always refused, `good` of the same key is asked for at once.
#[test]
fn one_429_pauses_the_poll_that_got_it_and_no_other_of_the_key() {
    let mut s = Scenario::new(config(50));
    s.ask(1, A);
    s.starts();
    s.limited(1, 3);
    assert_eq!(s.pauses(), [(1, "invalid-upstream-response", 3)]);
    s.pass(Duration::from_millis(200));
    s.ask(2, A);
    assert_eq!(s.starts(), [2]);
    s.answered(2);
    s.pass(Duration::from_millis(2800));
    assert_eq!(s.starts(), [1]);
    s.limited(1, 3);
    s.ask(3, A);
    assert_eq!(s.starts(), [3], "the same job says nothing of the key, however often");
}

#[test]
fn a_429_to_a_second_job_within_the_time_of_the_first_pauses_the_key() {
    let mut s = Scenario::new(config(50));
    (1..=2).for_each(|id| s.ask(id, A));
    s.starts();
    s.limited(1, 3);
    s.limited(2, 2);
    s.ask(3, A);
    assert_eq!(
        s.pauses(),
        [
            (1, "invalid-upstream-response", 3),
            (2, "invalid-upstream-response", 2),
            (3, "key-rate-limited", 3)
        ]
    );
    s.ask(10, B);
    assert_eq!(s.starts(), [10], "another key is not concerned");
    s.pass(Duration::from_millis(2999));
    assert_eq!(s.starts(), [0; 0]);
    s.pass(Duration::from_millis(1));
    assert_eq!(s.starts(), [3], "nobody goes first twice");
    s.answered(3);
    assert_eq!(s.sorted_starts(), [1, 2]);
}

#[test]
fn a_429_to_a_second_job_after_the_time_of_the_first_pauses_no_key() {
    let mut s = Scenario::new(config(50));
    (1..=2).for_each(|id| s.ask(id, A));
    s.starts();
    s.limited(1, 3);
    s.pass(Duration::from_secs(3));
    assert_eq!(s.starts(), [1]);
    s.limited(2, 3);
    s.ask(3, A);
    assert_eq!(s.starts(), [3]);
}

#[test]
fn a_poll_that_was_queued_when_its_key_was_paused_goes_before_those_that_were_refused() {
    let mut s = Scenario::new(config(3));
    (1..=3).for_each(|id| s.ask(id, key(id)));
    assert_eq!(s.starts(), [1, 2]);
    s.answered(1);
    s.answered(2);
    s.starts();
    s.answered(3);
    s.ask(11, A);
    s.ask(12, A);
    s.ask(13, A);
    assert_eq!(s.starts(), [11], "of two places a key has one");
    s.limited(11, 3);
    assert_eq!(s.starts(), [12]);
    s.limited(12, 3);
    assert_eq!(s.pauses(), [(13, "key-rate-limited", 3), (12, "invalid-upstream-response", 3)]);
    s.pass(Duration::from_secs(3));
    assert_eq!(s.starts(), [13]);
    s.answered(13);
    assert_eq!(s.starts(), [11]);
}

#[test]
fn a_probe_of_a_key_that_is_refused_again_lets_another_job_probe() {
    let mut s = Scenario::new(config(50));
    (1..=2).for_each(|id| s.ask(id, A));
    s.starts();
    s.limited(1, 2);
    s.limited(2, 2);
    s.pass(Duration::from_secs(2));
    assert_eq!(s.starts(), [1], "nothing else is queued");
    s.limited(1, 60);
    assert_eq!(s.starts(), [2]);
    s.limited(2, 60);
    s.ask(3, A);
    assert_eq!(s.starts(), [3], "it probes at once");
    s.ask(4, A);
    assert_eq!(s.starts(), [0; 0]);
    s.limited(3, 20);
    assert_eq!(
        s.pauses(),
        [(4, "key-rate-limited", 20), (3, "invalid-upstream-response", 20)],
        "a third job: it is the key"
    );
    s.pass(Duration::from_secs(20));
    assert_eq!(s.starts(), [4]);
}

#[test]
fn a_429_pauses_its_key_for_a_minute_at_most_and_its_poll_for_all_that_it_was_told() {
    let mut s = Scenario::new(config(50));
    (1..=2).for_each(|id| s.ask(id, A));
    s.starts();
    (1..=2).for_each(|id| s.limited(id, 3600));
    (4..=6).for_each(|id| s.ask(id, A));
    s.pass(Duration::from_millis(59_999));
    assert_eq!(s.starts(), [0; 0]);
    s.pass(Duration::from_millis(1));
    assert_eq!(s.starts(), [4]);
    s.sent(4);
    s.pass(Duration::from_millis(999));
    assert_eq!(s.starts(), [0; 0]);
    s.pass(Duration::from_millis(1));
    assert_eq!(s.starts(), [5, 6], "a poll that is held shows that the key is let in");
    s.pass(Duration::from_secs(3538));
    assert_eq!(s.starts(), [0; 0]);
    s.pass(SECOND);
    assert_eq!(s.sorted_starts(), [1, 2]);
}

#[test]
fn a_probe_of_a_key_that_says_nothing_leaves_it_to_the_next() {
    let mut s = Scenario::new(config(50));
    (1..=2).for_each(|id| s.ask(id, A));
    s.starts();
    (1..=2).for_each(|id| s.limited(id, 20));
    (3..=6).for_each(|id| s.ask(id, A));
    s.pass(Duration::from_secs(20));
    assert_eq!(s.starts(), [3]);
    s.scheduler.withdraw(PollId(3), s.now);
    assert_eq!(s.starts(), [4]);
    s.failed(4);
    assert_eq!(s.starts(), [5]);
    s.ended(5, Failure::InvalidResponse(None), RetryAdvice::PausePoll(Duration::from_secs(90)));
    assert_eq!(s.starts(), [6]);
    s.answered(6);
    assert_eq!(s.sorted_starts(), [1, 2]);
}

#[test]
fn a_503_with_retry_after_pauses_its_own_poll_only() {
    let mut s = Scenario::new(config(50));
    (1..=2).for_each(|id| s.ask(id, A));
    s.starts();
    for id in 1..=2 {
        s.ended(id, Failure::InvalidResponse(None), RetryAdvice::PausePoll(Duration::from_secs(90)));
    }
    s.ask(3, A);
    assert_eq!(s.starts(), [3]);
    s.pass(Duration::from_secs(89));
    assert_eq!(s.starts(), [0; 0]);
    s.pass(SECOND);
    assert_eq!(s.sorted_starts(), [1, 2]);
}

#[test]
fn pauses_that_the_upstream_asked_for_count_as_no_retries() {
    let mut s = Scenario::new(config(50));
    s.ask(1, A);
    for _ in 0..40 {
        assert_eq!(s.starts(), [1]);
        s.limited(1, 3);
        s.pass(Duration::from_secs(3));
    }
}

/// P12, row 1.8.
#[test]
fn a_plain_request_is_made_although_its_key_is_paused_and_is_told_429_at_once() {
    let mut s = Scenario::new(config(50));
    (1..=2).for_each(|id| s.ask(id, A));
    s.starts();
    (1..=2).for_each(|id| s.limited(id, 60));
    s.request(3, A, PollClass::Snapshot);
    s.request(4, A, PollClass::Plain);
    assert_eq!(s.starts(), [4]);
    s.limited(4, 60);
    assert_eq!(s.given_up(), [(4, "invalid-upstream-response")]);
    s.request(5, A, PollClass::Plain);
    assert_eq!(s.starts(), [5]);
    s.answered(5);
    assert_eq!(s.starts(), [0; 0], "the pause of the others holds");
}

#[test]
fn a_key_without_polls_is_forgotten_when_its_past_counts_no_more() {
    let mut s = Scenario::new(SchedulerConfig { retries: 0, ..config(50) });
    (1..=2).for_each(|id| s.ask(id, A));
    s.starts();
    (1..=2).for_each(|id| s.limited(id, 20));
    (1..=2).for_each(|id| s.scheduler.withdraw(PollId(id), s.now));
    assert_eq!(s.scheduler.keys.len(), 1);
    s.pass(Duration::from_secs(20));
    s.pass(Duration::from_secs(20));
    assert!(s.scheduler.keys.is_empty());
    s.ask(3, A);
    s.answered(3);
    assert_eq!(s.scheduler.keys.len(), 1, "its retry budget counts for a while");
    s.pass(Duration::from_secs(11));
    assert!(s.scheduler.keys.is_empty());
    assert_eq!(s.scheduler.poll_timeout(), None);
}

/// Upstreams close connections that they find idle, and now and then a request meets that on its way.
#[test]
fn a_first_attempt_on_a_kept_connection_that_was_closed_is_made_again_at_once_and_counts_for_nothing() {
    let mut s = Scenario::new(SchedulerConfig { retries: 0, retry_for: Duration::ZERO, ..config(50) });
    for id in 1..=20 {
        s.ask(id, A);
        assert_eq!(s.starts(), [id]);
        s.sent(id);
        s.ended(id, Failure::Unreachable, RetryAdvice::Reconnect);
        let expected = SchedulerOutput::BackOff(PollId(id), Failure::Unreachable, Duration::ZERO);
        assert_eq!(s.scheduler.poll_output(), Some(expected));
        assert_eq!(s.starts(), [id]);
        s.answered(id);
    }
    assert!(s.scheduler.is_closed());
    s.ask(21, A);
    s.ended(21, Failure::Unreachable, RetryAdvice::Reconnect);
    s.ended(21, Failure::Unreachable, RetryAdvice::Reconnect);
    assert_eq!(s.given_up(), [(21, "unreachable")], "once");
}

/// P12, row 1.1.
#[test]
fn twenty_held_polls_that_fail_in_one_instant_are_all_tried_again() {
    let mut s = Scenario::new(config(50));
    (1..=20).for_each(|id| s.ask(id, A));
    s.starts();
    (1..=20).for_each(|id| s.sent(id));
    s.pass(Duration::from_secs(10));
    (1..=20).for_each(|id| s.failed(id));
    assert!(s.scheduler.is_closed(), "one event");
    assert_eq!(s.given_up(), []);
    let mut starts: Vec<u64> = s.run(SECOND, false).into_iter().map(|(_, id)| id).collect();
    starts.sort_unstable();
    assert_eq!(starts, (1..=20).collect::<Vec<_>>());
}

/// P12, row 1.5.
#[test]
fn a_burst_of_failures_among_polls_that_are_held_opens_nothing() {
    let mut s = Scenario::new(config(512));
    (1..=400).for_each(|id| s.ask(id, key(id % 7)));
    s.starts();
    (1..=400).for_each(|id| s.sent(id));
    s.pass(Duration::from_secs(10));
    let mut starts = 0;
    for id in 1..=35 {
        s.pass(Duration::from_millis(2));
        s.failed(id);
        let outputs = s.outputs();
        assert!(!outputs.iter().any(|output| matches!(output, SchedulerOutput::GiveUp(..))), "{outputs:?}");
        starts += outputs.iter().filter(|output| matches!(output, SchedulerOutput::Start(_))).count();
    }
    assert!(s.scheduler.is_closed());
    assert_eq!(starts + s.run(SECOND, false).len(), 35);
}

/// P11, row 1.4.
#[test]
fn a_key_whose_polls_the_upstream_fails_delays_no_other_key_and_gets_the_errors() {
    let mut s = Scenario::new(config(50));
    (1..=2).for_each(|id| s.ask(id, A));
    s.starts();
    for _ in 0..5 {
        (1..=2).for_each(|id| s.error(id));
        s.pass(SECOND);
    }
    let outputs = s.outputs();
    for id in 1..=2 {
        assert!(
            outputs.contains(&SchedulerOutput::GiveUp(PollId(id), Failure::InvalidResponse(None))),
            "{outputs:?}"
        );
    }
    assert!(s.scheduler.is_closed());
    s.ask(10, B);
    assert_eq!(s.starts(), [10]);
}

#[test]
fn errors_beyond_the_retry_budget_of_their_key_are_final_at_once() {
    let mut s = Scenario::new(config(1000));
    (1..=100).for_each(|id| s.ask(id, A));
    s.starts();
    (1..=100).for_each(|id| s.error(id));
    assert_eq!(s.given_up().len(), 50, "30 retries, and one for five polls");
    s.ask(200, B);
    s.error(200);
    assert_eq!(s.given_up(), [], "another key has a budget of its own");
}

/// P12, row 1.3: the scheduler's part.
#[test]
fn an_outage_shorter_than_retry_for_gives_up_no_poll_and_newcomers_end_it() {
    for away in [300, 5_000, 29_000] {
        let mut s = Scenario::proven(config(50));
        (1..=20).for_each(|id| s.ask(id, A));
        s.starts();
        (1..=20).for_each(|id| s.failed(id));
        let attempts = s.run(Duration::from_millis(away), true).len();
        assert!(attempts <= 300, "{attempts} attempts");
        assert_eq!(s.given_up(), []);
        s.ask(100, B);
        assert_eq!(s.starts(), [100], "a first attempt is always made");
        s.answered(100);
        let starts = s.run(Duration::from_millis(100), false);
        assert_eq!(starts.len(), 20, "all go on within the first pause");
    }
}

#[test]
fn while_the_breaker_is_open_one_retry_is_made_each_cooldown_and_never_twice_by_the_same_poll() {
    let mut s = Scenario::proven(config(50));
    (1..=20).for_each(|id| s.ask(id, A));
    s.starts();
    (1..=20).for_each(|id| s.failed(id));
    s.run(Duration::from_secs(8), true);
    assert!(!s.scheduler.is_closed());
    let probes = s.run(Duration::from_secs(20), true);
    assert!((3..=4).contains(&probes.len()), "{probes:?}");
    let polls: BTreeSet<u64> = probes.iter().map(|(_, id)| *id).collect();
    assert_eq!(polls.len(), probes.len(), "{probes:?}");
}

#[test]
fn a_poll_is_given_up_when_retry_for_is_over() {
    let mut s = Scenario::proven(config(50));
    (1..=20).for_each(|id| s.ask(id, A));
    s.starts();
    (1..=20).for_each(|id| s.failed(id));
    let from = s.now;
    let mut given_up = Vec::new();
    while let Some(at) = s.scheduler.poll_timeout().filter(|at| *at <= from + Duration::from_secs(31)) {
        s.now = at;
        s.scheduler.handle_timeout(at);
        while let Some(output) = s.scheduler.poll_output() {
            match output {
                SchedulerOutput::Start(PollId(id)) => s.failed(id),
                SchedulerOutput::GiveUp(PollId(id), _) => given_up.push((id, s.now - from)),
                SchedulerOutput::BackOff(..) | SchedulerOutput::Pause(..) => {}
            }
        }
    }
    assert_eq!(given_up.len(), 20);
    assert!(given_up.iter().all(|(_, after)| *after == Duration::from_secs(30)), "{given_up:?}");
}

#[test]
fn a_wait_that_comes_while_its_poll_is_held_back_has_it_tried_at_once() {
    let mut s = Scenario::proven(config(50));
    (1..=20).for_each(|id| s.ask(id, A));
    s.starts();
    (1..=20).for_each(|id| s.failed(id));
    s.run(Duration::from_secs(8), true);
    assert!(!s.scheduler.is_closed() && s.scheduler.is_pausing(PollId(7)));
    s.scheduler.try_now(PollId(7), s.now);
    assert_eq!(s.starts(), [7]);
    s.scheduler.try_now(PollId(7), s.now);
    assert_eq!(s.starts(), [0; 0]);
    s.failed(7);
    assert!(s.scheduler.is_pausing(PollId(7)), "it is a retry again");
}

/// Row 1.10: a proxy ends each held poll with 504.
#[test]
fn a_poll_that_was_held_and_then_cut_has_made_progress() {
    let mut s = Scenario::new(config(50));
    s.ask(1, A);
    for _ in 0..100 {
        assert_eq!(s.starts(), [1]);
        s.sent(1);
        s.pass(Duration::from_millis(1300));
        s.ended(1, Failure::InvalidResponse(None), RetryAdvice::BackOffHeld);
        s.pass(Duration::from_millis(100));
    }
    assert_eq!(s.starts(), [1]);
    s.sent(1);
    s.pass(Duration::from_millis(1300));
    s.failed(1);
    s.pass(Duration::from_millis(100));
    assert_eq!(s.starts(), [1], "so has one whose connection was lost");
}

#[test]
fn an_error_of_the_job_itself_is_no_progress_however_long_the_poll_was_held() {
    let mut s = Scenario::new(config(50));
    s.ask(1, A);
    for _ in 0..3 {
        assert_eq!(s.starts(), [1]);
        s.sent(1);
        s.pass(Duration::from_millis(1300));
        s.error(1);
        s.pass(SECOND);
    }
    assert_eq!(s.given_up(), [(1, "invalid-upstream-response")]);
}

#[test]
fn the_gateways_own_lack_of_descriptors_is_never_counted_against_the_upstream() {
    let mut s = Scenario::proven(config(50));
    (1..=20).for_each(|id| s.ask(id, A));
    s.starts();
    for _ in 0..5 {
        (1..=20).for_each(|id| s.ended(id, Failure::LocalResources, RetryAdvice::BackOff));
        s.pass(SECOND);
        assert_eq!(s.starts().len(), 20);
    }
    assert!(s.scheduler.is_closed());
}

#[test]
fn a_poll_that_the_upstream_holds_for_a_second_closes_the_breaker() {
    let mut s = Scenario::proven(config(50));
    (1..=20).for_each(|id| s.ask(id, A));
    s.starts();
    (1..=20).for_each(|id| s.failed(id));
    s.run(Duration::from_secs(8), true);
    s.ask(100, B);
    assert_eq!(s.starts(), [100]);
    s.sent(100);
    s.run(Duration::from_millis(900), true);
    assert!(!s.scheduler.is_closed());
    s.pass(Duration::from_millis(100));
    assert!(s.scheduler.is_closed());
}

#[test]
fn a_probe_that_is_withdrawn_makes_room_for_the_next() {
    let mut s = Scenario::proven(config(50));
    (1..=20).for_each(|id| s.ask(id, A));
    s.starts();
    (1..=20).for_each(|id| s.failed(id));
    s.run(Duration::from_secs(8), true);
    let probe = loop {
        s.now = s.scheduler.poll_timeout().unwrap();
        s.scheduler.handle_timeout(s.now);
        if let [id] = s.starts()[..] {
            break id;
        }
    };
    s.scheduler.withdraw(PollId(probe), s.now);
    assert_eq!(s.starts().len(), 1, "the next");
}

/// Random schedules: never over the limit, every poll ends, nothing is left.
#[test]
fn no_schedule_breaks_the_limit_or_leaves_anything_behind() {
    for seed in 0..500 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let max_polls = rng.usize(1..5);
        let interval = Duration::from_millis(rng.u64(0..2) * 50);
        let mut s = Scenario::new(SchedulerConfig { interval, ..config(max_polls) });
        let (mut alive, mut attempts) = (BTreeSet::new(), BTreeSet::new());
        let mut next = 0;
        let mut steps = 0;
        while steps < 200 || !alive.is_empty() {
            steps += 1;
            assert!(steps < 20_000, "seed {seed}: {alive:?} never end");
            let pick = |set: &BTreeSet<u64>, rng: &mut fastrand::Rng| {
                set.iter().nth(rng.usize(0..set.len().max(1))).copied()
            };
            match rng.u32(0..6) {
                0 | 1 if steps < 200 => {
                    let classes =
                        [PollClass::Plain, PollClass::Snapshot, PollClass::LongPoll, PollClass::LongPoll];
                    s.request(next, KeyDomain([rng.u8(0..3); 16]), classes[rng.usize(..4)]);
                    alive.insert(next);
                    next += 1;
                }
                2 => {
                    if let Some(id) = pick(&alive, &mut rng).filter(|_| rng.bool()) {
                        s.scheduler.withdraw(PollId(id), s.now);
                        alive.remove(&id);
                        attempts.remove(&id);
                    }
                }
                3 | 4 => {
                    if let Some(id) = pick(&attempts, &mut rng) {
                        attempts.remove(&id);
                        let secs = Duration::from_secs(rng.u64(0..90));
                        match rng.u32(0..10) {
                            0 | 1 => s.failed(id),
                            2 => s.limited(id, rng.u64(0..90)),
                            3 => s.ended(id, Failure::InvalidResponse(None), RetryAdvice::PausePoll(secs)),
                            4 => s.ended(id, Failure::Unreachable, RetryAdvice::Reconnect),
                            5 => s.error(id),
                            6 => s.ended(id, Failure::InvalidResponse(None), RetryAdvice::BackOffHeld),
                            7 => s.ended(id, Failure::LocalResources, RetryAdvice::BackOff),
                            _ => {
                                s.answered(id);
                                alive.remove(&id);
                            }
                        }
                    }
                }
                _ => s.pass(Duration::from_millis(rng.u64(0..400))),
            }
            if let Some(id) = pick(&attempts, &mut rng) {
                s.sent(id);
            }
            if let Some(id) = pick(&alive, &mut rng).filter(|_| rng.u8(..4) == 0) {
                s.scheduler.try_now(PollId(id), s.now);
            }
            while let Some(output) = s.scheduler.poll_output() {
                match output {
                    SchedulerOutput::Start(PollId(id)) => {
                        assert!(
                            alive.contains(&id) && attempts.insert(id),
                            "seed {seed}: {id} is started twice"
                        );
                    }
                    SchedulerOutput::BackOff(PollId(id), ..) | SchedulerOutput::Pause(PollId(id), ..) => {
                        assert!(alive.contains(&id) && !attempts.contains(&id), "seed {seed}: {id}");
                    }
                    SchedulerOutput::GiveUp(PollId(id), _) => {
                        assert!(alive.remove(&id) && !attempts.contains(&id), "seed {seed}: {id}");
                    }
                }
            }
            assert_eq!(s.scheduler.open(), attempts.len(), "seed {seed}");
            assert!(attempts.len() <= max_polls, "seed {seed}");
        }
        (0..3).for_each(|_| s.pass(MAX_KEY_PAUSE));
        let left = &s.scheduler;
        assert!(left.polls.is_empty() && left.retrying.is_empty() && left.keys.is_empty(), "seed {seed}");
        let queues = [&left.plain, &left.snapshots, &left.long_polls];
        assert!(queues.iter().all(|queue| queue.is_empty()), "seed {seed}");
        assert!(
            left.timers.iter().all(|(_, timer)| *timer == Timer::Probe),
            "seed {seed}: {:?}",
            left.timers
        );
    }
}

/// Found by fuzz/targets/scheduler.rs: the breaker closes and opens again while a probe waits for a place.
#[test]
fn a_probe_of_an_earlier_opening_says_nothing_of_the_probe_under_way() {
    let open_the_breaker = |s: &mut Scenario| {
        for _ in 0..5 {
            s.now += Duration::from_millis(60);
            s.request(90, B, PollClass::Snapshot);
            assert_eq!(s.starts(), [90]);
            s.now += Duration::from_millis(1);
            s.failed(90);
            s.scheduler.withdraw(PollId(90), s.now);
            s.outputs();
        }
        assert!(!s.scheduler.is_closed());
    };
    let mut s = Scenario::proven(config(3));
    s.request(1, A, PollClass::Snapshot);
    s.starts();
    s.failed(1);
    open_the_breaker(&mut s);
    s.pass(Duration::from_millis(100));
    s.ask(60, C);
    s.request(61, B, PollClass::Snapshot);
    s.request(62, key(9), PollClass::Snapshot);
    assert_eq!(s.starts(), [60, 61, 62]);
    s.pass(Duration::from_secs(6));
    assert!(s.starts().is_empty(), "the probe waits for a place");
    s.sent(60);
    s.pass(SECOND);
    assert!(s.scheduler.is_closed());
    s.failed(61);
    assert_eq!(s.starts(), [1]);
    s.scheduler.withdraw(PollId(62), s.now);
    open_the_breaker(&mut s);
    s.pass(SECOND);
    assert_eq!(s.starts(), [61], "the probe");
    s.failed(1);
    s.pass(Duration::from_secs(4));
    assert_eq!(s.starts(), [0; 0], "it is not answered yet");
}

/// Lets the breaker open: the polls 1 to 20 of key A are away, and so is the upstream.
fn broken(s: &mut Scenario) {
    (1..=20).for_each(|id| s.ask(id, A));
    s.starts();
    (1..=20).for_each(|id| s.failed(id));
    s.run(Duration::from_secs(8), true);
    assert!(!s.scheduler.is_closed());
}

/// A probe that meets the gateway's own lack of descriptors ends without news of the upstream. The next one must not
/// begin in the same instant: without a bound on the rate, that is a loop as fast as attempts can fail.
#[test]
fn a_probe_that_finds_no_descriptor_is_not_made_again_at_once() {
    let mut s = Scenario::proven(config(50));
    broken(&mut s);
    let until = s.now + Duration::from_secs(10);
    let mut attempts = 0;
    while let Some(at) = s.scheduler.poll_timeout().filter(|at| *at <= until) {
        s.now = s.now.max(at);
        s.scheduler.handle_timeout(s.now);
        for _ in 0..100 {
            for id in s.starts() {
                attempts += 1;
                s.ended(id, Failure::LocalResources, RetryAdvice::BackOff);
            }
        }
    }
    assert!(attempts <= 200, "{attempts} attempts in 10 s");
}

/// P11, P12: a request without a status to a job on which the upstream hangs becomes the probe. Such a request is never
/// counted as held, so that nothing else is repeated until its client gives up, and the polls of others run out of time.
#[test]
fn a_probe_that_the_upstream_leaves_unanswered_does_not_hold_the_retries_of_others_back() {
    let mut s = Scenario::proven(config(50));
    s.request(30, B, PollClass::Plain);
    s.starts();
    s.failed(30);
    s.now += Duration::from_millis(1);
    (1..=5).for_each(|id| s.ask(id, A));
    s.starts();
    s.now += Duration::from_millis(1);
    (1..=5).for_each(|id| s.failed(id));
    let until = s.now + Duration::from_secs(60);
    let (mut is_back, mut given_up) = (false, Vec::new());
    while let Some(at) = s.scheduler.poll_timeout().filter(|at| *at <= until) {
        s.now = s.now.max(at);
        s.scheduler.handle_timeout(s.now);
        for output in s.outputs() {
            match output {
                // The upstream is back, but for the job of poll 30.
                SchedulerOutput::Start(PollId(30)) if !s.scheduler.is_closed() => {
                    is_back = true;
                    s.sent(30);
                }
                SchedulerOutput::Start(PollId(id)) if is_back => s.answered(id),
                SchedulerOutput::Start(PollId(id)) => s.failed(id),
                SchedulerOutput::GiveUp(PollId(id), _) => given_up.push((id, is_back)),
                SchedulerOutput::BackOff(..) | SchedulerOutput::Pause(..) => {}
            }
        }
    }
    assert!(is_back);
    assert_eq!(given_up, []);
}

/// P11: twenty jobs of key A break each connection that asks for them. Key B's poll is reset once, and would be answered.
#[test]
fn jobs_that_break_their_connections_fail_no_poll_of_another_key() {
    let mut s = Scenario::proven(config(50));
    s.ask(100, B);
    s.starts();
    s.sent(100);
    s.pass(SECOND);
    (1..=10).for_each(|id| s.ask(id, A));
    s.starts();
    (1..=10).for_each(|id| s.failed(id));
    s.run(Duration::from_secs(4), true);
    assert!(!s.scheduler.is_closed());
    (11..=20).for_each(|id| s.ask(id, A));
    s.starts();
    (11..=20).for_each(|id| s.failed(id));
    s.now += Duration::from_millis(1);
    s.failed(100);
    let until = s.now + Duration::from_secs(60);
    let mut next = 200;
    while let Some(at) = s.scheduler.poll_timeout().filter(|at| *at <= until) {
        s.now = s.now.max(at);
        s.scheduler.handle_timeout(s.now);
        for output in s.outputs() {
            match output {
                SchedulerOutput::Start(PollId(100)) => return, // it is answered
                SchedulerOutput::Start(PollId(id)) => s.failed(id),
                SchedulerOutput::GiveUp(PollId(100), failure) => panic!("B is told {failure:?}"),
                SchedulerOutput::GiveUp(..) => {
                    s.ask(next, A); // its client asks again
                    next += 1;
                }
                SchedulerOutput::BackOff(..) | SchedulerOutput::Pause(..) => {}
            }
        }
    }
    panic!("it is never asked again");
}

/// P12: "an outage of the upstream shorter than `upstream.retry_for` fails no wait that has time left".
#[test]
fn a_poll_that_is_held_back_has_a_last_attempt_before_it_is_given_up() {
    let mut s = Scenario::proven(config(50));
    (1..=20).for_each(|id| s.ask(id, A));
    s.starts();
    (1..=20).for_each(|id| s.failed(id));
    let from = s.now;
    s.run(Duration::from_millis(29_900), true);
    // The upstream is back, a tenth of a second before the time is over, and nobody else asks.
    while let Some(at) = s.scheduler.poll_timeout().filter(|at| *at <= from + Duration::from_secs(31)) {
        s.now = at;
        s.scheduler.handle_timeout(at);
        for output in s.outputs() {
            match output {
                SchedulerOutput::Start(PollId(id)) => s.answered(id),
                SchedulerOutput::GiveUp(id, _) => panic!("{id:?} is given up after {:?}", s.now - from),
                SchedulerOutput::BackOff(..) | SchedulerOutput::Pause(..) => {}
            }
        }
    }
}

/// P11: requests without a status of key A, on which the upstream hangs, take every place.
#[test]
fn plain_requests_of_one_key_leave_places_to_others() {
    let mut s = Scenario::proven(config(10));
    (1..=40).for_each(|id| s.request(id, A, PollClass::Plain));
    s.starts();
    s.ask(100, B);
    assert_eq!(s.starts(), [100]);
}

/// Row 1.7: the refused job is the same, in a list and alone.
#[test]
fn one_refused_job_in_two_polls_does_not_pause_its_key() {
    let mut s = Scenario::proven(config(50));
    s.ask(1, A);
    let both = JobSet::new(jobs(1).iter().chain(&jobs(2)).cloned());
    let request = PollRequest { domain: A, jobs: both, class: PollClass::LongPoll };
    s.scheduler.request(PollId(2), request, s.now);
    s.starts();
    s.limited(1, 30);
    s.limited(2, 30);
    s.outputs();
    s.ask(3, A);
    assert_eq!(s.starts(), [3]);
}
