//! What came of the requests, counted: the figures, and what was wrong.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;

use super::ask::Kind;
use super::explain::Cause;

/// How many of the same wrong things are told in full.
const TOLD: usize = 3;

/// The longest time that is told apart from longer ones, in microseconds.
const LONGEST: u64 = 60_000_000;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Hit,
    Opened,
    Leaned,
    Passed,
    /// 304.
    Unchanged,
    /// Over a quota.
    Limited,
    /// Not let in, not there, not kept: as it should be.
    Refused,
    /// A fault of the upstream's explains it.
    Failed,
    /// An event stream was told all, or as much as there was when the gateway was told to stop.
    Followed,
    /// The client hung up.
    Left,
}

impl Outcome {
    const ALL: [(Outcome, &'static str); 10] = [
        (Outcome::Hit, "hit"),
        (Outcome::Opened, "opened"),
        (Outcome::Leaned, "coalesced"),
        (Outcome::Passed, "passthrough"),
        (Outcome::Unchanged, "304"),
        (Outcome::Limited, "limited"),
        (Outcome::Refused, "rejected"),
        (Outcome::Failed, "failed"),
        (Outcome::Followed, "followed"),
        (Outcome::Left, "client_closed"),
    ];
}

/// Something that must not be.
#[derive(Debug)]
pub(crate) struct Wrong {
    /// What sort of thing.
    pub(crate) what: &'static str,
    /// Where and how.
    pub(crate) story: String,
}

/// The figures. Shared by all clients.
pub(crate) struct Tally(Mutex<Counts>);

struct Counts {
    ended: [[u64; Outcome::ALL.len()]; Kind::ALL.len()],
    /// From the request to the answer, in microseconds.
    hits: Histogram<u64>,
    /// From when a client alone would know to the answer, in microseconds; in a calm.
    waits: Histogram<u64>,
    /// From when the upstream was back to the answer, in microseconds, of those who waited through an outage.
    after_outages: Histogram<u64>,
    /// From when a client alone would know to the event, in microseconds; in a calm.
    events: Histogram<u64>,
    timed_out: u64,
    explained: [u64; Cause::ALL.len()],
    admin: u64,
    wrong: BTreeMap<&'static str, (u64, Vec<String>)>,
}

impl Tally {
    pub(crate) fn new() -> Self {
        let histogram =
            || Histogram::new_with_bounds(1, LONGEST, 2).expect("two digits of these are possible");
        Self(Mutex::new(Counts {
            ended: Default::default(),
            hits: histogram(),
            waits: histogram(),
            after_outages: histogram(),
            events: histogram(),
            timed_out: 0,
            explained: Default::default(),
            admin: 0,
            wrong: BTreeMap::new(),
        }))
    }

    pub(crate) fn ended(&self, kind: Kind, outcome: Outcome) {
        self.0.lock().ended[place(&Kind::ALL, kind)][place(&Outcome::ALL, outcome)] += 1;
    }

    pub(crate) fn hit_after(&self, time: Duration) {
        self.0.lock().hits.saturating_record(micros(time));
    }

    pub(crate) fn told_after(&self, late: Duration) {
        self.0.lock().waits.saturating_record(micros(late));
    }

    pub(crate) fn told_after_outage(&self, late: Duration) {
        self.0.lock().after_outages.saturating_record(micros(late));
    }

    pub(crate) fn event_after(&self, late: Duration) {
        self.0.lock().events.saturating_record(micros(late));
    }

    /// A failure has this cause.
    pub(crate) fn explained(&self, cause: Cause) {
        self.0.lock().explained[place(&Cause::ALL, cause)] += 1;
    }

    /// The admin listener has answered well.
    pub(crate) fn admin_answered(&self) {
        self.0.lock().admin += 1;
    }

    pub(crate) fn timed_out(&self) {
        self.0.lock().timed_out += 1;
    }

    pub(crate) fn wrong(&self, wrong: Wrong) {
        let mut counts = self.0.lock();
        let (count, stories) = counts.wrong.entry(wrong.what).or_default();
        *count += 1;
        if stories.len() < TOLD {
            stories.push(wrong.story);
        }
    }

    /// Requests that have ended, those that hit among them, and what was wrong.
    pub(crate) fn so_far(&self) -> (u64, u64, u64) {
        let counts = self.0.lock();
        let of = |outcome| counts.ended.iter().map(|row| row[place(&Outcome::ALL, outcome)]).sum::<u64>();
        let all = counts.ended.iter().flatten().sum();
        (all, of(Outcome::Hit) + of(Outcome::Unchanged), counts.wrong.values().map(|(count, _)| count).sum())
    }

    /// How many requests of a kind ended so.
    pub(crate) fn count(&self, kind: Kind, outcome: Outcome) -> u64 {
        self.0.lock().ended[place(&Kind::ALL, kind)][place(&Outcome::ALL, outcome)]
    }
}

fn place<T: PartialEq>(all: &[(T, &str)], one: T) -> usize {
    all.iter().position(|(other, _)| *other == one).expect("all are listed")
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.0.lock();
        write!(f, "{:<16}", "")?;
        for (_, name) in Outcome::ALL {
            write!(f, "{name:>9}")?;
        }
        writeln!(f)?;
        for ((_, name), row) in Kind::ALL.iter().zip(&counts.ended) {
            write!(f, "{name:<16}")?;
            row.iter().try_for_each(|count| write!(f, "{count:>9}"))?;
            writeln!(f)?;
        }
        writeln!(f, "\n{:<58}{:>9}{:>10}{:>10}{:>10}", "late", "times", "median", "99 %", "longest")?;
        line(f, "hits and 304s, since the request", &counts.hits)?;
        line(f, "waits told in a calm, since a client alone would know", &counts.waits)?;
        line(f, "events told in a calm, since a client alone would know", &counts.events)?;
        line(f, "waits told after an outage, since the upstream was back", &counts.after_outages)?;
        writeln!(f, "\n{:<58}{:>9}", "failed, and why", "times")?;
        for ((_, name), count) in Cause::ALL.iter().zip(&counts.explained) {
            writeln!(f, "{name:<58}{count:>9}")?;
        }
        let unexplained: u64 = counts.wrong.values().map(|(count, _)| count).sum();
        writeln!(f, "{:<58}{unexplained:>9}\n", "unexplained, or wrong in another way")?;
        writeln!(f, "{:<58}{:>9}", "waits told at their deadline", counts.timed_out)?;
        writeln!(f, "{:<58}{:>9}", "answers of the admin listener", counts.admin)?;
        for (what, (count, stories)) in &counts.wrong {
            writeln!(f, "WRONG {count} times: {what}")?;
            stories.iter().try_for_each(|story| writeln!(f, "    {story}"))?;
        }
        Ok(())
    }
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, times: &Histogram<u64>) -> fmt::Result {
    let at = |quantile| format!("{:.1?}", Duration::from_micros(times.value_at_quantile(quantile)));
    let longest = format!("{:.1?}", Duration::from_micros(times.max()));
    writeln!(f, "{name:<58}{:>9}{:>10}{:>10}{longest:>10}", times.len(), at(0.5), at(0.99))
}
