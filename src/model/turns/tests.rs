use super::*;
use crate::model::backoff::Backoff;
use crate::model::breaker::BreakerRules;

const A: KeyDomain = KeyDomain([1; 16]);
const B: KeyDomain = KeyDomain([2; 16]);
const C: KeyDomain = KeyDomain([3; 16]);

fn key(number: u64) -> KeyDomain {
    KeyDomain([u8::try_from(number).unwrap(); 16])
}

fn rules(max_polls: usize) -> TurnRules {
    TurnRules {
        max_polls,
        interval: Duration::ZERO,
        retries: 2,
        backoff: Backoff { first: Duration::from_millis(100), cap: Duration::from_secs(1) },
        breaker: BreakerRules { failures: 5, cooldown: Duration::from_secs(5) },
    }
}

/// The machine with a clock of its own.
struct Desk {
    turns: Turns,
    now: Instant,
}

impl Desk {
    fn new(rules: TurnRules) -> Self {
        Self { turns: Turns::new(rules, 1), now: crate::clock::now() }
    }

    fn ask(&mut self, id: u64, domain: KeyDomain) {
        self.turns.ask(PollId(id), domain, Haste::Long, self.now);
    }

    fn tries(&mut self) -> Vec<u64> {
        std::iter::from_fn(|| self.turns.poll_output())
            .filter_map(|output| match output {
                TurnOutput::Try(PollId(id)) => Some(id),
                TurnOutput::Stalled(..) | TurnOutput::Rests(..) | TurnOutput::GiveUp(..) => None,
            })
            .collect()
    }

    /// Which polls are to rest for how many seconds, because of what.
    fn rests(&mut self) -> Vec<(u64, &'static str, u64)> {
        std::iter::from_fn(|| self.turns.poll_output())
            .filter_map(|output| match output {
                TurnOutput::Rests(PollId(id), failure, pause) => {
                    Some((id, failure.reason(), pause.as_secs()))
                }
                TurnOutput::Stalled(..) | TurnOutput::Try(_) | TurnOutput::GiveUp(..) => None,
            })
            .collect()
    }

    fn given_up(&mut self) -> Vec<(u64, &'static str)> {
        std::iter::from_fn(|| self.turns.poll_output())
            .filter_map(|output| match output {
                TurnOutput::Stalled(..) | TurnOutput::Rests(..) | TurnOutput::Try(_) => None,
                TurnOutput::GiveUp(PollId(id), failure) => Some((id, failure.reason())),
            })
            .collect()
    }

    fn answered(&mut self, id: u64) {
        self.turns.ended(PollId(id), Verdict::Answered, self.now);
    }

    fn failed(&mut self, id: u64) {
        self.ended(id, Advice::BackOff);
    }

    /// The poll is answered 429 with so many seconds' `Retry-After`.
    fn limited(&mut self, id: u64, secs: u64) {
        self.ended(id, Advice::RestKey(Duration::from_secs(secs)));
    }

    fn ended(&mut self, id: u64, advice: Advice) {
        self.turns.ended(PollId(id), Verdict::Failed(Failure::Unreachable, advice), self.now);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.turns.handle_timeout(self.now);
        assert!(self.turns.poll_timeout().is_none_or(|at| at > self.now));
    }
}

#[test]
fn a_poll_over_the_limit_waits_for_a_place() {
    let mut desk = Desk::new(rules(3));
    (1..=4).for_each(|id| desk.ask(id, key(id)));
    assert_eq!(desk.tries(), [1, 2], "the last place is for quick ones");
    desk.answered(1);
    assert_eq!(desk.tries(), [3]);
    desk.turns.withdraw(PollId(2), desk.now);
    assert_eq!(desk.tries(), [4]);
    assert_eq!(desk.turns.open(), 2);
}

#[test]
fn a_quick_poll_goes_first_and_has_the_last_place() {
    let mut desk = Desk::new(rules(3));
    (1..=4).for_each(|id| desk.ask(id, key(id)));
    desk.turns.ask(PollId(5), A, Haste::Quick, desk.now);
    desk.turns.ask(PollId(6), A, Haste::Quick, desk.now);
    assert_eq!(desk.tries(), [1, 2, 5]);
    desk.answered(1);
    assert_eq!(desk.tries(), [6]);
}

#[test]
fn one_place_serves_both_sorts() {
    let mut desk = Desk::new(rules(1));
    desk.ask(1, A);
    desk.ask(2, A);
    desk.turns.ask(PollId(3), A, Haste::Quick, desk.now);
    assert_eq!(desk.tries(), [1]);
    desk.answered(1);
    assert_eq!(desk.tries(), [3]);
    desk.answered(3);
    assert_eq!(desk.tries(), [2]);
}

#[test]
fn turns_go_round_the_key_domains_and_in_order_of_arrival_within_one() {
    let mut desk = Desk::new(rules(2));
    (1..=4).for_each(|id| desk.ask(id, A));
    desk.ask(10, B);
    assert_eq!(desk.tries(), [1]);
    desk.answered(1);
    assert_eq!(desk.tries(), [2]);
    desk.answered(2);
    assert_eq!(desk.tries(), [10], "A's clips do not starve B's");
    desk.answered(10);
    assert_eq!(desk.tries(), [3]);
}

#[test]
fn the_pace_lets_one_try_through_each_interval() {
    let mut desk = Desk::new(TurnRules { interval: Duration::from_millis(100), ..rules(9) });
    (1..=3).for_each(|id| desk.ask(id, A));
    assert_eq!(desk.tries(), [1]);
    desk.pass(Duration::from_millis(99));
    assert_eq!(desk.tries(), [0; 0]);
    desk.pass(Duration::from_millis(1));
    assert_eq!(desk.tries(), [2]);
    desk.pass(Duration::from_millis(500));
    assert_eq!(desk.tries(), [3]);
}

#[test]
fn a_failed_try_is_made_again_after_a_pause_and_not_for_ever() {
    let mut desk = Desk::new(rules(9));
    desk.ask(1, A);
    for _ in 0..3 {
        assert_eq!(desk.tries(), [1]);
        desk.failed(1);
        if desk.turns.poll_timeout().is_some() {
            assert_eq!(desk.turns.open(), 0, "a pause takes no place");
            desk.pass(Duration::from_secs(1));
        }
    }
    assert_eq!(desk.given_up(), [(1, "unreachable")]);
    assert_eq!(desk.turns.poll_timeout(), None);
}

/// Turns alone would not do: the places are held for minutes.
#[test]
fn a_key_with_a_thousand_clips_leaves_places_to_those_who_come_later() {
    let mut desk = Desk::new(rules(512));
    (0..1000).for_each(|id| desk.ask(id, A));
    assert_eq!(desk.tries().len(), 481, "of 511");
    (2000..2100).for_each(|id| desk.ask(id, B));
    assert_eq!(desk.tries().len(), 28);
    (3000..3100).for_each(|id| desk.ask(id, C));
    assert_eq!(desk.tries(), [3000], "one who has none may take any");
    desk.ask(4000, key(4));
    assert_eq!(desk.tries(), [4000]);
    (0..50).for_each(|id| desk.answered(id));
    let tries = desk.tries();
    assert!(tries.iter().all(|id| *id >= 2000), "who has most waits: {tries:?}");
}

#[test]
fn of_two_places_one_key_has_one() {
    let mut desk = Desk::new(rules(3));
    (1..=3).for_each(|id| desk.ask(id, A));
    assert_eq!(desk.tries(), [1]);
    desk.ask(10, B);
    desk.ask(11, B);
    assert_eq!(desk.tries(), [10]);
    desk.answered(10);
    assert_eq!(desk.tries(), [11]);
}

#[test]
fn looks_at_deadlines_go_by_turns_as_well() {
    let mut desk = Desk::new(rules(1));
    desk.ask(1, A);
    (2..=4).for_each(|id| desk.turns.ask(PollId(id), A, Haste::Quick, desk.now));
    desk.turns.ask(PollId(10), B, Haste::Quick, desk.now);
    let mut order = desk.tries();
    for _ in 0..4 {
        desk.answered(*order.last().unwrap());
        order.extend(desk.tries());
    }
    assert_eq!(order, [1, 2, 10, 3, 4]);
}

#[test]
fn a_429_rests_the_whole_key_once_and_no_other() {
    let mut desk = Desk::new(rules(50));
    (1..=3).for_each(|id| desk.ask(id, A));
    desk.tries();
    desk.limited(1, 10);
    desk.limited(2, 8);
    assert_eq!(desk.rests(), [(1, "unreachable", 10), (2, "unreachable", 8)]);
    desk.pass(Duration::from_secs(1));
    desk.ask(4, A);
    desk.turns.ask(PollId(5), A, Haste::Quick, desk.now);
    assert_eq!(desk.rests(), [(4, "key-rests", 9), (5, "key-rests", 9)]);
    desk.ask(10, B);
    assert_eq!(desk.tries(), [10]);
    desk.pass(Duration::from_millis(8999));
    assert_eq!(desk.tries(), [0; 0], "the longer rest holds");
    desk.pass(Duration::from_millis(1));
    assert_eq!(desk.tries(), [5], "one for all");
    desk.answered(5);
    let mut tries = desk.tries();
    tries.sort_unstable();
    assert_eq!(tries, [1, 2, 4]);
}

/// An hour is believed for the request that was told so, and a minute for the others.
#[test]
fn a_key_that_is_to_rest_for_an_hour_is_asked_for_once_a_minute() {
    let mut desk = Desk::new(rules(50));
    (1..=3).for_each(|id| desk.ask(id, A));
    desk.tries();
    desk.limited(1, 3600);
    (2..=3).for_each(|id| desk.answered(id));
    (4..=6).for_each(|id| desk.ask(id, A));
    desk.pass(Duration::from_millis(59_999));
    assert_eq!(desk.tries(), [0; 0]);
    desk.pass(Duration::from_millis(1));
    assert_eq!(desk.tries(), [4]);
    desk.limited(4, 3600);
    assert_eq!(desk.rests(), [(5, "key-rests", 60), (6, "key-rests", 60), (4, "unreachable", 3600)]);
    desk.pass(Duration::from_secs(60));
    assert_eq!(desk.tries(), [5]);
    desk.turns.standing(PollId(5), desk.now);
    desk.pass(Duration::from_millis(999));
    assert_eq!(desk.tries(), [0; 0]);
    desk.pass(Duration::from_millis(1));
    assert_eq!(desk.tries(), [6], "a poll that is held is let in");
    desk.pass(Duration::from_secs(3478));
    assert_eq!(desk.tries(), [0; 0], "it waits out all that it was told");
    desk.pass(Duration::from_secs(1));
    assert_eq!(desk.tries(), [1]);
}

#[test]
fn a_keys_probe_that_tells_nothing_leaves_it_to_the_next() {
    let mut desk = Desk::new(rules(50));
    desk.ask(1, A);
    desk.tries();
    desk.limited(1, 20);
    (2..=5).for_each(|id| desk.ask(id, A));
    desk.pass(Duration::from_secs(20));
    assert_eq!(desk.tries(), [1]);
    desk.turns.withdraw(PollId(1), desk.now);
    assert_eq!(desk.tries(), [2]);
    desk.failed(2);
    assert_eq!(desk.tries(), [3]);
    desk.ended(3, Advice::RestPoll(Duration::from_secs(90)));
    assert_eq!(desk.tries(), [4]);
    desk.answered(4);
    assert_eq!(desk.tries(), [5]);
}

#[test]
fn a_503_rests_its_own_poll_only() {
    let mut desk = Desk::new(rules(50));
    desk.ask(1, A);
    desk.tries();
    desk.ended(1, Advice::RestPoll(Duration::from_secs(90)));
    desk.ask(2, A);
    assert_eq!(desk.tries(), [2]);
    desk.pass(Duration::from_secs(89));
    assert_eq!(desk.tries(), [0; 0]);
    desk.pass(Duration::from_secs(1));
    assert_eq!(desk.tries(), [1]);
}

#[test]
fn a_key_without_polls_is_forgotten_when_its_rest_is_over() {
    let mut desk = Desk::new(TurnRules { retries: 0, ..rules(50) });
    desk.ask(1, A);
    desk.tries();
    desk.limited(1, 20);
    assert_eq!(desk.given_up(), [(1, "unreachable")]);
    assert_eq!(desk.turns.keys.len(), 1);
    desk.pass(Duration::from_secs(20));
    assert!(desk.turns.keys.is_empty());
    assert_eq!(desk.turns.poll_timeout(), None);
}

/// Upstreams close connections that they find idle, and now and then a request meets that on its way.
#[test]
fn a_first_try_whose_connection_broke_at_once_is_made_anew_and_counts_for_nothing() {
    let mut desk = Desk::new(TurnRules { retries: 0, ..rules(50) });
    for id in 1..=20 {
        desk.ask(id, A);
        assert_eq!(desk.tries(), [id]);
        desk.turns.standing(PollId(id), desk.now);
        desk.ended(id, Advice::Reconnect);
        let stalled = TurnOutput::Stalled(PollId(id), Failure::Unreachable, Duration::ZERO);
        assert_eq!(desk.turns.poll_output(), Some(stalled));
        assert_eq!(desk.tries(), [id]);
        desk.answered(id);
    }
    assert!(desk.turns.is_closed());
    desk.ask(21, A);
    desk.ended(21, Advice::Reconnect);
    desk.ended(21, Advice::Reconnect);
    assert_eq!(desk.given_up(), [(21, "unreachable")], "once");
    desk.ask(22, A);
    desk.turns.standing(PollId(22), desk.now);
    desk.pass(STOOD);
    desk.ended(22, Advice::Reconnect);
    assert_eq!(desk.given_up(), [(22, "unreachable")], "what has been held was no stale connection");
}

#[test]
fn a_probe_that_meets_a_dead_connection_is_made_anew() {
    let mut desk = Desk::new(rules(20));
    (1..=5).for_each(|id| desk.ask(id, A));
    (1..=5).for_each(|id| desk.failed(id));
    desk.pass(Duration::from_secs(5));
    desk.ask(6, A);
    desk.tries();
    desk.ended(6, Advice::Reconnect);
    assert_eq!(desk.tries(), [6]);
    desk.answered(6);
    assert!(desk.turns.is_closed());
}

#[test]
fn an_upstream_that_fails_and_fails_is_asked_no_more() {
    let mut desk = Desk::new(rules(20));
    (1..=7).for_each(|id| desk.ask(id, A));
    assert_eq!(desk.tries().len(), 7);
    (1..=4).for_each(|id| desk.failed(id));
    assert_eq!(desk.given_up(), []);
    desk.failed(5);
    let expected: Vec<_> = (1..=5).map(|id| (id, "breaker-open")).collect();
    assert_eq!(desk.given_up(), expected, "6 and 7 still stand");
    desk.ask(8, B);
    assert_eq!(desk.given_up(), [(8, "breaker-open")]);
    desk.pass(Duration::from_secs(5));
    desk.ask(9, B);
    desk.ask(10, B);
    assert_eq!(desk.turns.poll_output(), Some(TurnOutput::Try(PollId(9))), "the probe");
    assert_eq!(desk.given_up(), [(10, "breaker-open")]);
}

#[test]
fn a_probe_that_the_upstream_holds_closes_the_breaker() {
    let mut desk = Desk::new(rules(20));
    (1..=5).for_each(|id| desk.ask(id, A));
    (1..=5).for_each(|id| desk.failed(id));
    desk.pass(Duration::from_secs(5));
    desk.ask(6, A);
    desk.turns.standing(PollId(6), desk.now);
    desk.pass(Duration::from_millis(900));
    assert!(!desk.turns.is_closed());
    desk.pass(Duration::from_millis(100));
    assert!(desk.turns.is_closed());
    desk.ask(7, A);
    assert_eq!(desk.tries().last(), Some(&7));
}

#[test]
fn one_keys_bad_clip_does_not_close_the_upstream_for_those_whom_it_holds() {
    let mut desk = Desk::new(rules(20));
    desk.ask(100, B);
    desk.turns.standing(PollId(100), desk.now);
    desk.pass(STOOD);
    (1..=9).for_each(|id| desk.ask(id, A));
    for id in 1..=9 {
        desk.turns.ended(PollId(id), Verdict::Failed(Failure::Garbled, Advice::BackOff), desk.now);
    }
    assert!(desk.turns.is_closed());
    (11..=15).for_each(|id| desk.ask(id, A));
    (11..=15).for_each(|id| desk.failed(id));
    assert!(!desk.turns.is_closed(), "that nobody can connect is everybody's affair");
}

#[test]
fn a_probe_that_is_withdrawn_makes_room_for_the_next() {
    let mut desk = Desk::new(rules(20));
    (1..=5).for_each(|id| desk.ask(id, A));
    (1..=5).for_each(|id| desk.failed(id));
    desk.pass(Duration::from_secs(5));
    desk.ask(6, A);
    desk.turns.withdraw(PollId(6), desk.now);
    desk.ask(7, A);
    assert_eq!(desk.tries().last(), Some(&7));
}

/// Random schedules: never over the limit, every poll ends, nothing is left.
#[test]
fn no_schedule_breaks_the_limit_or_leaves_anything_behind() {
    for seed in 0..500 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let max_polls = rng.usize(1..5);
        let interval = Duration::from_millis(rng.u64(0..2) * 50);
        let mut desk = Desk::new(TurnRules { interval, ..rules(max_polls) });
        let (mut alive, mut trying) = (BTreeSet::new(), BTreeSet::new());
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
                    let haste = if rng.bool() { Haste::Quick } else { Haste::Long };
                    desk.turns.ask(PollId(next), KeyDomain([rng.u8(0..3); 16]), haste, desk.now);
                    alive.insert(next);
                    next += 1;
                }
                2 => {
                    if let Some(id) = pick(&alive, &mut rng).filter(|_| rng.bool()) {
                        desk.turns.withdraw(PollId(id), desk.now);
                        alive.remove(&id);
                        trying.remove(&id);
                    }
                }
                3 | 4 => {
                    if let Some(id) = pick(&trying, &mut rng) {
                        trying.remove(&id);
                        match rng.u32(0..7) {
                            0 => desk.failed(id),
                            1 => desk.limited(id, rng.u64(0..90)),
                            2 => desk.ended(id, Advice::RestPoll(Duration::from_secs(rng.u64(0..90)))),
                            3 => desk.ended(id, Advice::Reconnect),
                            _ => {
                                desk.answered(id);
                                alive.remove(&id);
                            }
                        }
                    }
                }
                _ => desk.pass(Duration::from_millis(rng.u64(0..400))),
            }
            if let Some(id) = pick(&trying, &mut rng) {
                desk.turns.standing(PollId(id), desk.now);
            }
            while let Some(output) = desk.turns.poll_output() {
                match output {
                    TurnOutput::Try(PollId(id)) => {
                        assert!(alive.contains(&id) && trying.insert(id), "seed {seed}: {id} is tried twice");
                    }
                    TurnOutput::Stalled(PollId(id), ..) | TurnOutput::Rests(PollId(id), ..) => {
                        assert!(alive.contains(&id) && !trying.contains(&id), "seed {seed}: {id}");
                    }
                    TurnOutput::GiveUp(PollId(id), _) => {
                        assert!(alive.remove(&id) && !trying.contains(&id), "seed {seed}: {id}");
                    }
                }
            }
            assert_eq!(desk.turns.open(), trying.len(), "seed {seed}");
            assert!(trying.len() <= max_polls, "seed {seed}");
        }
        desk.pass(MOST_REST);
        let turns = &desk.turns;
        assert!(turns.polls.is_empty() && turns.long.is_empty() && turns.quick.is_empty(), "seed {seed}");
        assert!(turns.held.is_empty() && turns.keys.is_empty(), "seed {seed}: {:?}", turns.keys);
    }
}
