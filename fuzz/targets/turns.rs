//! Any schedule: tries keep to the places, the pace and the pauses, and no poll is forgotten.
//!
//! Everything happens in virtual time. The shell is this file, and is never late.

#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use clipgate::clock;
use clipgate::model::backoff::Backoff;
use clipgate::model::breaker::BreakerRules;
use clipgate::model::clip::KeyDomain;
use clipgate::model::coalesce::{Failure, PollId};
use clipgate::model::turns::{Advice, Haste, TurnOutput, TurnRules, Turns, Verdict};
use libfuzzer_sys::fuzz_target;

const BACKOFF: Backoff = Backoff { first: Duration::from_millis(200), cap: Duration::from_secs(10) };
const MOST_POLLS: usize = 100;
/// How long a key rests at most, and by how much less than it was told to last.
const MOST_REST: Duration = Duration::from_secs(60);
const LESS_REST: Duration = Duration::from_secs(1);

/// So that durations are all there is.
static ZERO: LazyLock<Instant> = LazyLock::new(clock::now);

#[derive(Arbitrary, Debug)]
struct Schedule {
    max_polls: u8,
    interval_millis: u8,
    retries: u8,
    breaker_failures: u8,
    cooldown_millis: u16,
    seed: u64,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Ask {
        domain: u8,
        is_quick: bool,
    },
    /// Which of the polls that are there.
    Withdraw(u8),
    /// Which of the polls that are tried.
    Stand(u8),
    Answer(u8),
    Fail {
        poll: u8,
        is_written: bool,
    },
    Break(u8),
    Rest {
        poll: u8,
        is_of_key: bool,
        millis: u32,
    },
    Pass {
        millis: u16,
    },
}

fuzz_target!(|schedule: Schedule| {
    let mut shell = Shell::new(&schedule);
    for step in &schedule.steps {
        shell.step(step);
        shell.act();
    }
    shell.finish();
});

struct Shell {
    turns: Turns,
    rules: TurnRules,
    now: Duration,
    polls: BTreeMap<PollId, Poll>,
    next_poll: u64,
    paused: BTreeMap<KeyDomain, Duration>,
    last_try: Option<Duration>,
}

struct Poll {
    domain: KeyDomain,
    haste: Haste,
    is_trying: bool,
    tries: u32,
    /// Until then it is to rest.
    not_before: Duration,
}

impl Shell {
    fn new(schedule: &Schedule) -> Self {
        let rules = TurnRules {
            max_polls: usize::from(schedule.max_polls % 8) + 1,
            interval: Duration::from_millis(schedule.interval_millis.into()),
            retries: u32::from(schedule.retries % 5),
            backoff: BACKOFF,
            breaker: BreakerRules {
                failures: u32::from(schedule.breaker_failures % 8) + 1,
                cooldown: Duration::from_millis(schedule.cooldown_millis.into()),
            },
        };
        Self {
            turns: Turns::new(rules, schedule.seed),
            rules,
            now: Duration::ZERO,
            polls: BTreeMap::new(),
            next_poll: 0,
            paused: BTreeMap::new(),
            last_try: None,
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Ask { domain, is_quick } => self.ask(domain, is_quick),
            Step::Withdraw(place) => {
                if let Some(id) = self.pick(place, |_| true) {
                    self.polls.remove(&id);
                    self.turns.withdraw(id, self.at());
                }
            }
            Step::Stand(place) => {
                if let Some(id) = self.pick(place, |poll| poll.is_trying) {
                    self.turns.standing(id, self.at());
                }
            }
            Step::Answer(place) => self.end(place, Verdict::Answered),
            Step::Fail { poll, is_written } => {
                let failure = if is_written { Failure::Garbled } else { Failure::Unreachable };
                self.end(poll, Verdict::Failed(failure, Advice::BackOff));
            }
            Step::Break(poll) => self.end(poll, Verdict::Failed(Failure::Unreachable, Advice::Reconnect)),
            Step::Rest { poll, is_of_key, millis } => {
                let pause = Duration::from_millis(millis.into());
                let advice = if is_of_key { Advice::RestKey(pause) } else { Advice::RestPoll(pause) };
                self.end(poll, Verdict::Failed(Failure::Garbled, advice));
            }
            Step::Pass { millis } => self.pass(Duration::from_millis(millis.into())),
        }
    }

    fn at(&self) -> Instant {
        *ZERO + self.now
    }

    fn ask(&mut self, domain: u8, is_quick: bool) {
        if self.polls.len() == MOST_POLLS {
            return;
        }
        let (id, domain) = (PollId(self.next_poll), KeyDomain([domain % 4; 16]));
        self.next_poll += 1;
        let haste = if is_quick { Haste::Quick } else { Haste::Long };
        self.polls.insert(id, Poll { domain, haste, is_trying: false, tries: 0, not_before: Duration::ZERO });
        self.turns.ask(id, domain, haste, self.at());
    }

    fn end(&mut self, place: u8, verdict: Verdict) {
        let Some(id) = self.pick(place, |poll| poll.is_trying) else { return };
        let poll = self.polls.get_mut(&id).expect("it was picked");
        poll.is_trying = false;
        match verdict {
            Verdict::Answered => drop(self.polls.remove(&id)),
            Verdict::Failed(_, Advice::BackOff | Advice::Reconnect) => {}
            Verdict::Failed(_, Advice::RestPoll(pause)) => poll.not_before = self.now + pause,
            Verdict::Failed(_, Advice::RestKey(pause)) => {
                poll.not_before = self.now + pause;
                let until = self.now + pause.min(MOST_REST);
                self.paused
                    .entry(poll.domain)
                    .and_modify(|known| *known = until.max(*known))
                    .or_insert(until);
            }
        }
        self.turns.ended(id, verdict, self.at());
    }

    /// One of the polls of which this is so.
    fn pick(&self, place: u8, is_so: impl Fn(&Poll) -> bool) -> Option<PollId> {
        let ids: Vec<PollId> = self.polls.iter().filter(|(_, poll)| is_so(poll)).map(|(id, _)| *id).collect();
        ids.get(usize::from(place) % ids.len().max(1)).copied()
    }

    /// Time passes, from one thing that is due to the next.
    fn pass(&mut self, by: Duration) {
        let end = self.now + by;
        while let Some(due) = self.due().filter(|at| *at <= end) {
            self.now = self.now.max(due);
            let now = self.at();
            self.turns.handle_timeout(now);
            assert!(self.turns.poll_timeout().is_none_or(|at| at > now), "still due");
            self.act();
        }
        self.now = end;
    }

    fn due(&self) -> Option<Duration> {
        self.turns.poll_timeout().map(|at| at.saturating_duration_since(*ZERO))
    }

    fn act(&mut self) {
        while let Some(output) = self.turns.poll_output() {
            match output {
                TurnOutput::Try(id) => self.tried(id),
                TurnOutput::Stalled(id, ..) | TurnOutput::Rests(id, ..) => {
                    assert!(self.polls.get(&id).is_some_and(|poll| !poll.is_trying), "{id:?} stalls");
                }
                TurnOutput::GiveUp(id, _) => {
                    let poll = self.polls.remove(&id).expect("only what is there is given up");
                    assert!(!poll.is_trying, "{id:?} is given up while it is tried");
                }
            }
        }
        let trying = self.polls.values().filter(|poll| poll.is_trying).count();
        assert_eq!(self.turns.open(), trying);
        assert!(trying <= self.rules.max_polls, "{trying} are open");
        let long = |poll: &&Poll| poll.is_trying && poll.haste == Haste::Long;
        let places = if self.rules.max_polls > 1 { self.rules.max_polls - 1 } else { 1 };
        assert!(self.polls.values().filter(long).count() <= places, "the last place is for quick ones");
    }

    fn tried(&mut self, id: PollId) {
        let poll = self.polls.get_mut(&id).expect("only what is there is tried");
        assert!(!poll.is_trying, "{id:?} is tried twice");
        (poll.is_trying, poll.tries) = (true, poll.tries + 1);
        assert!(poll.tries <= self.rules.retries + 2, "{id:?} is tried {} times", poll.tries);
        assert!(poll.not_before <= self.now, "{id:?} is tried while it is to rest");
        let is_paused = self.paused.get(&poll.domain).is_some_and(|until| *until > self.now + LESS_REST);
        assert!(!is_paused, "{id:?} is tried while its key is to rest");
        let is_early = self.last_try.is_some_and(|last| last + self.rules.interval > self.now);
        assert!(!is_early, "{id:?} is tried too soon");
        self.last_try = Some(self.now);
    }

    /// When the upstream answers all again, each poll gets its turn.
    fn finish(&mut self) {
        for _ in 0..10_000 {
            while self.polls.values().any(|poll| poll.is_trying) {
                self.end(0, Verdict::Answered);
                self.act();
            }
            let Some(due) = self.due() else { break };
            self.pass(due.saturating_sub(self.now));
        }
        assert!(self.polls.is_empty(), "{} polls are forgotten", self.polls.len());
        assert_eq!((self.turns.open(), self.due()), (0, None));
    }
}
