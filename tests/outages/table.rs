//! Figures of a run, printed as a table.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

/// Counters at a time, or the differences between two times.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counts {
    /// Requests that reached the upstream.
    pub(crate) calls: usize,
    /// Connections that the upstream accepted.
    pub(crate) connections: usize,
    /// Retries of polls by the gateway, including refused connections.
    pub(crate) retries: usize,
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            calls: self.calls - before.calls,
            connections: self.connections - before.connections,
            retries: self.retries - before.retries,
        }
    }
}

impl Add for Counts {
    type Output = Self;

    fn add(self, more: Self) -> Self {
        Self {
            calls: self.calls + more.calls,
            connections: self.connections + more.connections,
            retries: self.retries + more.retries,
        }
    }
}

/// A part of the run.
#[derive(Default)]
pub(crate) struct Row {
    pub(crate) name: String,
    /// Waits that were open at the start of this part.
    pub(crate) open: usize,
    pub(crate) answered: usize,
    pub(crate) lost: usize,
    /// Time from the return of the upstream to the last response for jobs that finished in the outage.
    pub(crate) answered_during: Option<Duration>,
    /// Time from the end of the other jobs to the last response for them.
    pub(crate) answered_later: Option<Duration>,
    /// Time from the return of the upstream until it held a poll for each unfinished job again.
    pub(crate) held_again: Option<Duration>,
    pub(crate) counts: Counts,
    /// Requests of the same clients without the gateway.
    pub(crate) direct: usize,
}

/// All parts in order, and their total.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

impl Table {
    pub(crate) fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    pub(crate) fn lost(&self) -> usize {
        self.rows.iter().map(|row| row.lost).sum()
    }

    fn total(&self) -> Row {
        let sum = |figure: fn(&Row) -> usize| self.rows.iter().map(figure).sum();
        Row {
            name: "total".to_owned(),
            open: self.rows.first().map_or(0, |row| row.open),
            answered: sum(|row| row.answered),
            lost: self.lost(),
            answered_during: self.rows.iter().filter_map(|row| row.answered_during).max(),
            answered_later: self.rows.iter().filter_map(|row| row.answered_later).max(),
            held_again: None,
            counts: self.rows.iter().map(|row| row.counts).fold(Counts::default(), Counts::add),
            direct: sum(|row| row.direct),
        }
    }
}

const HEADS: [[&str; 11]; 2] = [
    ["", "waits", "", "", "last answer,", "last answer,", "all polls", "upstream", "", "", "direct,"],
    [
        "",
        "open",
        "answered",
        "lost",
        "done in it",
        "done later",
        "held",
        "calls",
        "connections",
        "retries",
        "calls",
    ],
];

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for head in HEADS {
            line(f, head)?;
        }
        for row in self.rows.iter().chain([&self.total()]) {
            let Counts { calls, connections, retries } = row.counts;
            let [meanwhile, later, held] =
                [row.answered_during, row.answered_later, row.held_again].map(seconds);
            let [open, answered, lost] = [row.open, row.answered, row.lost].map(|count| count.to_string());
            let [calls, connections, retries, direct] =
                [calls, connections, retries, row.direct].map(|count| count.to_string());
            let cells = [
                &row.name,
                &open,
                &answered,
                &lost,
                &meanwhile,
                &later,
                &held,
                &calls,
                &connections,
                &retries,
                &direct,
            ];
            line(f, cells.map(String::as_str))?;
        }
        Ok(())
    }
}

fn line(f: &mut fmt::Formatter<'_>, [name, numbers @ ..]: [&str; 11]) -> fmt::Result {
    write!(f, "{name:<10}")?;
    for number in numbers {
        write!(f, " {number:>11}")?;
    }
    writeln!(f)
}

fn seconds(time: Option<Duration>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| format!("{:.3} s", time.as_secs_f64()))
}
