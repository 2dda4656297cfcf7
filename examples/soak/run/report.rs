//! What a run came to.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::Setting;
use super::ask::Kind;
use super::oracle::Oracle;
use super::tally::{Outcome, Tally, Wrong};
use super::watch::Watch;

/// How much more memory there may be at the end than after the warm-up, in bytes: what the allocator does not give
/// back.
const MORE_MEMORY: u64 = 24 << 20;

/// The figures, and whether all was well.
pub(crate) struct Report {
    setting: Setting,
    tally: Arc<Tally>,
    oracle: Arc<Oracle>,
    memory: Vec<(Duration, u64)>,
    memory_at_end: Option<u64>,
    clips: u64,
    parked_at_end: usize,
}

impl Report {
    pub(crate) fn new(setting: Setting, tally: Arc<Tally>, oracle: Arc<Oracle>) -> Self {
        Self { setting, tally, oracle, memory: Vec::new(), memory_at_end: None, clips: 0, parked_at_end: 0 }
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

    pub(crate) fn expect_at_most(&mut self, what: &'static str, most: u64, found: u64) {
        if found > most {
            self.tally.wrong(Wrong { what, story: format!("{found}, where {most} are the most") });
        }
    }

    /// What was seen beside the clients.
    pub(crate) fn watched(&mut self, watch: &Watch, clips: u64) {
        (self.memory, self.clips) = (watch.memory(), clips);
        // The first calm has no storm before it, whose memory the allocator keeps.
        if let ([_, warm, .., last], true) = (&self.memory[..], self.setting.is_alone) {
            let (warm, last) = (warm.1, last.1);
            self.expect_at_most("memory grows", warm + warm / 8 + MORE_MEMORY, last);
        }
        let asked = f64::from(self.setting.rate) * self.setting.length.as_secs_f64();
        let is_much = self.tally.so_far().0 as f64 > asked / 4.0;
        self.expect("most requests were never made", true, is_much);
        if self.setting.length >= self.oracle.weather.cycle() {
            self.expect_all_sorts();
        }
    }

    /// All that can happen has happened: else the run says little.
    fn expect_all_sorts(&mut self) {
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

    /// Each wait that was parked when the gateway was told to stop was answered.
    pub(crate) fn drained(&mut self, parked: usize, asked: u64) {
        self.parked_at_end = parked;
        let ends = [Outcome::Hit, Outcome::Opened, Outcome::Leaned];
        let answered = ends.map(|end| self.tally.count(Kind::Parked, end)).iter().sum::<u64>();
        self.expect("waits are not answered at the end", asked, answered);
    }

    pub(crate) fn memory_at_end(&mut self, bytes: Option<u64>) {
        self.memory_at_end = bytes;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Setting { length, rate, seed, hold, .. } = self.setting;
        writeln!(f, "{length:?} at {rate} requests/s, the upstream holds {hold:?}, seed {seed}\n")?;
        write!(f, "{}", self.tally)?;
        let (all, hits, wrong) = self.tally.so_far();
        let upstream = self.oracle.upstream_requests();
        writeln!(f, "{all} requests, {hits} of them hits, {upstream} at the upstream, {} clips", self.clips)?;
        writeln!(f, "waits parked when told to stop: {}", self.parked_at_end)?;
        writeln!(f, "a request straight to the upstream took {:.1?} at most", self.oracle.noise.longest())?;
        write!(f, "memory in MiB:")?;
        for (at, bytes) in &self.memory {
            write!(f, " {}s {}", at.as_secs(), bytes >> 20)?;
        }
        writeln!(f, ", at the end {}", self.memory_at_end.unwrap_or(0) >> 20)?;
        writeln!(f, "{}", if wrong == 0 { "all was well" } else { "NOT WELL" })
    }
}
