//! Figures of a run: outcomes, delays, explained failures and violations.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;

use super::explain::Cause;
use super::requests::RequestKind;

/// Number of violations of one rule that the report prints in full.
const MAX_DETAILS: usize = 3;

/// Upper end of the histograms, in microseconds.
const LONGEST: u64 = 60_000_000;

/// Outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Hit,
    Opened,
    Coalesced,
    /// Answered from proof.
    Proven,
    PassedThrough,
    /// 304.
    NotModified,
    /// 429 of the gateway, over a quota.
    RateLimited,
    /// The expected 401, 404 or 504: rejected key, unknown clip, nothing cached.
    Rejected,
    /// A failure that a fault of the upstream explains.
    Failed,
    /// An event stream with all events, or with those until the gateway stopped.
    StreamDone,
    /// The client disconnected.
    ClientClosed,
}

impl Outcome {
    const ALL: [(Outcome, &'static str); 11] = [
        (Outcome::Hit, "hit"),
        (Outcome::Opened, "opened"),
        (Outcome::Coalesced, "coalesced"),
        (Outcome::Proven, "proven"),
        (Outcome::PassedThrough, "passthrough"),
        (Outcome::NotModified, "304"),
        (Outcome::RateLimited, "limited"),
        (Outcome::Rejected, "rejected"),
        (Outcome::Failed, "failed"),
        (Outcome::StreamDone, "followed"),
        (Outcome::ClientClosed, "client_closed"),
    ];
}

/// A response or figure that breaks a rule.
#[derive(Debug)]
pub(crate) struct Violation {
    pub(crate) rule: &'static str,
    pub(crate) details: String,
}

/// Figures, shared by all clients.
pub(crate) struct Counts(Mutex<Totals>);

struct Totals {
    outcomes: [[u64; Outcome::ALL.len()]; RequestKind::ALL.len()],
    /// Time from request to response, in microseconds.
    hits: Histogram<u64>,
    /// Delay after the response to a client without the gateway, in microseconds, in calm periods.
    waits: Histogram<u64>,
    /// Time from the end of an outage to the responses of waits that were held through it, in microseconds.
    after_outages: Histogram<u64>,
    /// Delay of events, measured like `waits`.
    events: Histogram<u64>,
    at_deadline: u64,
    causes: [u64; Cause::ALL.len()],
    admin: u64,
    violations: BTreeMap<&'static str, (u64, Vec<String>)>,
}

impl Counts {
    pub(crate) fn new() -> Self {
        let histogram =
            || Histogram::new_with_bounds(1, LONGEST, 2).expect("two digits of these are possible");
        Self(Mutex::new(Totals {
            outcomes: Default::default(),
            hits: histogram(),
            waits: histogram(),
            after_outages: histogram(),
            events: histogram(),
            at_deadline: 0,
            causes: Default::default(),
            admin: 0,
            violations: BTreeMap::new(),
        }))
    }

    pub(crate) fn record_outcome(&self, kind: RequestKind, outcome: Outcome) {
        self.0.lock().outcomes[index(&RequestKind::ALL, kind)][index(&Outcome::ALL, outcome)] += 1;
    }

    pub(crate) fn record_hit(&self, time: Duration) {
        self.0.lock().hits.saturating_record(micros(time));
    }

    pub(crate) fn record_wait(&self, late: Duration) {
        self.0.lock().waits.saturating_record(micros(late));
    }

    pub(crate) fn record_wait_after_outage(&self, late: Duration) {
        self.0.lock().after_outages.saturating_record(micros(late));
    }

    pub(crate) fn record_event(&self, late: Duration) {
        self.0.lock().events.saturating_record(micros(late));
    }

    pub(crate) fn record_cause(&self, cause: Cause) {
        self.0.lock().causes[index(&Cause::ALL, cause)] += 1;
    }

    pub(crate) fn record_admin_response(&self) {
        self.0.lock().admin += 1;
    }

    pub(crate) fn record_deadline(&self) {
        self.0.lock().at_deadline += 1;
    }

    pub(crate) fn record_violation(&self, violation: Violation) {
        let mut counts = self.0.lock();
        let (count, details) = counts.violations.entry(violation.rule).or_default();
        *count += 1;
        if details.len() < MAX_DETAILS {
            details.push(violation.details);
        }
    }

    /// Returns the numbers of ended requests, of hits among them, and of violations.
    pub(crate) fn summary(&self) -> (u64, u64, u64) {
        let counts = self.0.lock();
        let of = |outcome| counts.outcomes.iter().map(|row| row[index(&Outcome::ALL, outcome)]).sum::<u64>();
        let all = counts.outcomes.iter().flatten().sum();
        (
            all,
            of(Outcome::Hit) + of(Outcome::NotModified),
            counts.violations.values().map(|(count, _)| count).sum(),
        )
    }

    /// Returns the number of requests of this kind with this outcome.
    pub(crate) fn count(&self, kind: RequestKind, outcome: Outcome) -> u64 {
        self.0.lock().outcomes[index(&RequestKind::ALL, kind)][index(&Outcome::ALL, outcome)]
    }
}

fn index<T: PartialEq>(all: &[(T, &str)], one: T) -> usize {
    all.iter().position(|(other, _)| *other == one).expect("all are listed")
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.0.lock();
        write!(f, "{:<16}", "")?;
        for (_, name) in Outcome::ALL {
            write!(f, "{name:>0$}", width(name))?;
        }
        writeln!(f)?;
        for ((_, name), row) in RequestKind::ALL.iter().zip(&counts.outcomes) {
            write!(f, "{name:<16}")?;
            let cells = Outcome::ALL.iter().zip(row);
            cells.into_iter().try_for_each(|((_, name), count)| write!(f, "{count:>0$}", width(name)))?;
            writeln!(f)?;
        }
        writeln!(f, "\n{:<58}{:>9}{:>10}{:>10}{:>10}", "delays", "times", "median", "99 %", "longest")?;
        line(f, "hits and 304s, after the request", &counts.hits)?;
        line(f, "waits in calm periods, after a client alone", &counts.waits)?;
        line(f, "events in calm periods, after a client alone", &counts.events)?;
        line(f, "waits held through an outage, after its end", &counts.after_outages)?;
        writeln!(f, "\n{:<58}{:>9}", "failures by cause", "times")?;
        for ((_, name), count) in Cause::ALL.iter().zip(&counts.causes) {
            writeln!(f, "{name:<58}{count:>9}")?;
        }
        let violations: u64 = counts.violations.values().map(|(count, _)| count).sum();
        writeln!(f, "{:<58}{violations:>9}\n", "unexplained failures and other violations")?;
        writeln!(f, "{:<58}{:>9}", "waits answered at their deadline", counts.at_deadline)?;
        writeln!(f, "{:<58}{:>9}", "responses of the admin listener", counts.admin)?;
        for (rule, (count, details)) in &counts.violations {
            writeln!(f, "VIOLATION {count} times: {rule}")?;
            details.iter().try_for_each(|details| writeln!(f, "    {details}"))?;
        }
        Ok(())
    }
}

/// Returns the width of the column with this name.
fn width(name: &str) -> usize {
    name.len().max(8) + 1
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, times: &Histogram<u64>) -> fmt::Result {
    let at = |quantile| format!("{:.1?}", Duration::from_micros(times.value_at_quantile(quantile)));
    let longest = format!("{:.1?}", Duration::from_micros(times.max()));
    writeln!(f, "{name:<58}{:>9}{:>10}{:>10}{longest:>10}", times.len(), at(0.5), at(0.99))
}
