//! Report of a run: figures and violations.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::Settings;
use super::counts::{Counts, Outcome, Violation};
use super::monitor::{Memory, Monitor};
use super::oracle::Oracle;
use super::requests::RequestKind;

/// Limit of the growth of allocated memory from a third of the run to its last calm period, in bytes. Load varies from
/// moment to moment.
const MAX_GROWTH: usize = 16 << 20;
/// Limit of allocated memory after the run, in bytes: the report, and static data of libraries.
const MAX_LEFTOVER: usize = 8 << 20;

pub(crate) struct Report {
    settings: Settings,
    counts: Arc<Counts>,
    upstream_requests: usize,
    calibration: Duration,
    memory: Vec<Memory>,
    /// Allocated bytes before and after the run.
    memory_at_end: (usize, usize),
    skipped: u64,
    clips: u64,
    parked_at_end: usize,
    schedule: String,
}

impl Report {
    pub(crate) fn new(settings: Settings, counts: Arc<Counts>, schedule: String) -> Self {
        Self {
            settings,
            counts,
            upstream_requests: 0,
            calibration: Duration::ZERO,
            memory: Vec::new(),
            memory_at_end: (0, 0),
            skipped: 0,
            clips: 0,
            parked_at_end: 0,
            schedule,
        }
    }

    /// Returns whether there was no violation.
    pub(crate) fn is_good(&self) -> bool {
        self.counts.summary().2 == 0
    }

    /// Records a violation unless the values are equal.
    pub(crate) fn expect<T: PartialEq + fmt::Debug>(&mut self, rule: &'static str, right: T, found: T) {
        if right != found {
            self.counts
                .record_violation(Violation { rule, details: format!("{found:?}, expected {right:?}") });
        }
    }

    pub(crate) fn expect_at_most<T: PartialOrd + fmt::Display>(
        &mut self,
        rule: &'static str,
        limit: T,
        found: T,
    ) {
        if found > limit {
            self.counts.record_violation(Violation { rule, details: format!("{found}, limit {limit}") });
        }
    }

    /// Adds the figures of the monitor.
    pub(crate) fn add_monitor(&mut self, monitor: &Monitor, clips: u64) {
        (self.memory, self.clips) = (monitor.memory(), clips);
        // By then all bounded stores are full.
        let warm = self.memory.iter().find(|memory| memory.at >= self.settings.length / 3);
        if let (Some(warm), Some(last)) = (warm, self.memory.last()) {
            let (warm, last) = (warm.allocated, last.allocated);
            self.expect_at_most("memory grows", warm + warm / 4 + MAX_GROWTH, last);
        }
        let planned = f64::from(self.settings.rate) * self.settings.length.as_secs_f64();
        let is_much = self.counts.summary().0 as f64 > planned / 4.0;
        self.expect("most requests were not sent", true, is_much);
    }

    /// Records a violation for each usual outcome that never occurred: such a run proves little.
    pub(crate) fn expect_all_outcomes(&mut self) {
        let rows = [
            (RequestKind::Single, Outcome::Hit),
            (RequestKind::Multi, Outcome::Hit),
            (RequestKind::Wait, Outcome::Opened),
            (RequestKind::Wait, Outcome::Coalesced),
            (RequestKind::Wait, Outcome::ClientClosed),
            (RequestKind::Waits, Outcome::Opened),
            (RequestKind::Prefer, Outcome::Opened),
            (RequestKind::Conditional, Outcome::NotModified),
            (RequestKind::OnlyIfCached, Outcome::Hit),
            (RequestKind::InvalidKey, Outcome::Rejected),
            (RequestKind::UnknownClip, Outcome::Rejected),
            (RequestKind::OverQuota, Outcome::RateLimited),
            (RequestKind::EventStream, Outcome::StreamDone),
            (RequestKind::Removed, Outcome::Opened),
            (RequestKind::Echo, Outcome::PassedThrough),
            (RequestKind::Mirror, Outcome::PassedThrough),
            (RequestKind::Stream, Outcome::PassedThrough),
        ];
        for (kind, outcome) in rows {
            if self.counts.count(kind, outcome) == 0 {
                let details = format!("{kind:?} never ended as {outcome:?}");
                self.counts.record_violation(Violation { rule: "an outcome never occurred", details });
            }
        }
    }

    /// Checks that each wait and stream that was parked at the stop was answered.
    pub(crate) fn add_drain(&mut self, parked: usize, sent: u64) {
        self.parked_at_end = parked;
        let ends = [Outcome::Hit, Outcome::Opened, Outcome::Coalesced, Outcome::Proven];
        let answered = ends.map(|end| self.counts.count(RequestKind::Parked, end)).iter().sum::<u64>()
            + self.counts.count(RequestKind::ParkedStream, Outcome::StreamDone);
        self.expect("waits are not answered at the stop", sent, answered);
    }

    pub(crate) fn set_upstream_figures(&mut self, oracle: &Oracle) {
        (self.upstream_requests, self.calibration) =
            (oracle.upstream_requests(), oracle.calibration.longest());
    }

    /// Checks the memory after everything is dropped.
    pub(crate) fn memory_at_end(&mut self, before: usize, after: usize) {
        self.memory_at_end = (before, after);
        self.expect_at_most("memory is left", before + MAX_LEFTOVER, after);
    }

    /// Sets the number of requests that the limit on concurrent requests prevented, as on a slow machine.
    pub(crate) fn set_skipped(&mut self, requests: u64) {
        self.skipped = requests;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings { length, rate, seed, hold, .. } = self.settings;
        writeln!(f, "{length:?} at {rate} requests/s, the upstream holds {hold:?}, seed {seed}")?;
        writeln!(f, "faults: {}\n", self.schedule)?;
        write!(f, "{}", self.counts)?;
        let (all, hits, violation) = self.counts.summary();
        for (what, count) in [
            ("requests", all),
            ("of these, hits", hits),
            ("requests at the upstream", self.upstream_requests as u64),
            ("clips", self.clips),
            ("waits and streams parked at the stop", self.parked_at_end as u64),
            ("requests skipped", self.skipped),
        ] {
            writeln!(f, "{what:<58}{count:>9}")?;
        }
        writeln!(f, "{:<58}{:>9.1?}", "longest direct request to the upstream", self.calibration)?;
        let (before, after) = self.memory_at_end;
        write!(f, "MiB allocated of MiB resident: {} before", before >> 20)?;
        for Memory { at, allocated, resident } in &self.memory {
            write!(f, ", {} of {} after {} s", allocated >> 20, resident >> 20, at.as_secs())?;
        }
        writeln!(f, ", {} at the end", after >> 20)?;
        writeln!(f, "{}", if violation == 0 { "no violations" } else { "VIOLATIONS" })
    }
}
