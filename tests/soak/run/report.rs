//! What a run came to.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::Setting;
use super::ask::Kind;
use super::counts::{Outcome, Tally, Wrong};
use super::oracle::Oracle;
use super::watch::{Memory, Watch};

/// How much more may be allocated at the end of the last calm than after a third of the run, in bytes: no two moments
/// are the same.
const MORE: usize = 16 << 20;
/// How much more may be allocated at the end than at the beginning, in bytes: the report, what libraries keep for good.
const REST: usize = 8 << 20;

/// The figures, and whether all was well.
pub(crate) struct Report {
    setting: Setting,
    tally: Arc<Tally>,
    upstream_requests: usize,
    noise: Duration,
    memory: Vec<Memory>,
    /// Allocated before and after.
    memory_at_end: (usize, usize),
    held_back: u64,
    clips: u64,
    parked_at_end: usize,
    schedule: String,
}

impl Report {
    pub(crate) fn new(setting: Setting, tally: Arc<Tally>, schedule: String) -> Self {
        Self {
            setting,
            tally,
            upstream_requests: 0,
            noise: Duration::ZERO,
            memory: Vec::new(),
            memory_at_end: (0, 0),
            held_back: 0,
            clips: 0,
            parked_at_end: 0,
            schedule,
        }
    }

    /// Whether nothing was wrong.
    pub(crate) fn is_good(&self) -> bool {
        self.tally.so_far().2 == 0
    }

    /// It must be just that.
    pub(crate) fn expect<T: PartialEq + fmt::Debug>(&mut self, what: &'static str, right: T, found: T) {
        if right != found {
            self.tally.wrong(Wrong { what, story: format!("{found:?} in place of {right:?}") });
        }
    }

    pub(crate) fn expect_at_most<T: PartialOrd + fmt::Display>(
        &mut self,
        what: &'static str,
        most: T,
        found: T,
    ) {
        if found > most {
            self.tally.wrong(Wrong { what, story: format!("{found}, where {most} are the most") });
        }
    }

    /// What was seen beside the clients.
    pub(crate) fn watched(&mut self, watch: &Watch, clips: u64) {
        (self.memory, self.clips) = (watch.memory(), clips);
        // By then all that is kept up to a bound has come to it.
        let warm = self.memory.iter().find(|memory| memory.at >= self.setting.length / 3);
        if let (Some(warm), Some(last)) = (warm, self.memory.last()) {
            let (warm, last) = (warm.allocated, last.allocated);
            self.expect_at_most("memory grows", warm + warm / 4 + MORE, last);
        }
        let asked = f64::from(self.setting.rate) * self.setting.length.as_secs_f64();
        let is_much = self.tally.so_far().0 as f64 > asked / 4.0;
        self.expect("most requests were never made", true, is_much);
    }

    /// All that can happen has happened: else the run says little.
    pub(crate) fn expect_all_sorts(&mut self) {
        let rows = [
            (Kind::Single, Outcome::Hit),
            (Kind::Multi, Outcome::Hit),
            (Kind::Wait, Outcome::Opened),
            (Kind::Wait, Outcome::Leaned),
            (Kind::Wait, Outcome::Left),
            (Kind::Waits, Outcome::Opened),
            (Kind::Preferring, Outcome::Opened),
            (Kind::Conditional, Outcome::Unchanged),
            (Kind::OnlyIfCached, Outcome::Hit),
            (Kind::Stranger, Outcome::Refused),
            (Kind::Unknown, Outcome::Refused),
            (Kind::Greedy, Outcome::Limited),
            (Kind::Follow, Outcome::Followed),
            (Kind::Removed, Outcome::Opened),
            (Kind::Echo, Outcome::Passed),
            (Kind::Mirror, Outcome::Passed),
            (Kind::Stream, Outcome::Passed),
        ];
        for (kind, outcome) in rows {
            if self.tally.count(kind, outcome) == 0 {
                let story = format!("{kind:?} never ended as {outcome:?}");
                self.tally.wrong(Wrong { what: "something never happened", story });
            }
        }
    }

    /// Each wait and each stream that was parked when the gateway was told to stop was answered.
    pub(crate) fn drained(&mut self, parked: usize, asked: u64) {
        self.parked_at_end = parked;
        let ends = [Outcome::Hit, Outcome::Opened, Outcome::Leaned];
        let answered = ends.map(|end| self.tally.count(Kind::Parked, end)).iter().sum::<u64>()
            + self.tally.count(Kind::ParkedStream, Outcome::Followed);
        self.expect("waits are not answered at the end", asked, answered);
    }

    /// What the oracle has seen of the upstream by the end.
    pub(crate) fn told_by(&mut self, oracle: &Oracle) {
        (self.upstream_requests, self.noise) = (oracle.upstream_requests(), oracle.noise.longest());
    }

    /// Everything is dropped, and so is its memory.
    pub(crate) fn memory_at_end(&mut self, before: usize, after: usize) {
        self.memory_at_end = (before, after);
        self.expect_at_most("memory is left", before + REST, after);
    }

    /// So many requests were not sent since too many were under way, which a slow machine needs.
    pub(crate) fn held_back(&mut self, requests: u64) {
        self.held_back = requests;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Setting { length, rate, seed, hold, .. } = self.setting;
        writeln!(f, "{length:?} at {rate} requests/s, the upstream holds {hold:?}, seed {seed}")?;
        writeln!(f, "faults: {}\n", self.schedule)?;
        write!(f, "{}", self.tally)?;
        let (all, hits, wrong) = self.tally.so_far();
        for (what, count) in [
            ("requests", all),
            ("hits of them", hits),
            ("requests at the upstream", self.upstream_requests as u64),
            ("clips", self.clips),
            ("waits and streams parked when told to stop", self.parked_at_end as u64),
            ("requests held back", self.held_back),
        ] {
            writeln!(f, "{what:<58}{count:>9}")?;
        }
        writeln!(f, "{:<58}{:>9.1?}", "longest request straight to the upstream", self.noise)?;
        let (before, after) = self.memory_at_end;
        write!(f, "MiB allocated, of those resident: {} before", before >> 20)?;
        for Memory { at, allocated, resident } in &self.memory {
            write!(f, ", {} of {} after {} s", allocated >> 20, resident >> 20, at.as_secs())?;
        }
        writeln!(f, ", {} at the end", after >> 20)?;
        writeln!(f, "{}", if wrong == 0 { "all was well" } else { "NOT WELL" })
    }
}
