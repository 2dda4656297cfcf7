//! The figures of a run, as a table for people.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

/// What was counted up to a moment, or between two of them.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counts {
    /// Requests that reached the upstream.
    pub(crate) calls: usize,
    /// Connections that the upstream accepted.
    pub(crate) connections: usize,
    /// Retries of polls by the gateway, those to a closed port included.
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
    /// Waits that were open at its beginning.
    pub(crate) open: usize,
    pub(crate) answered: usize,
    pub(crate) lost: usize,
    /// How late the last wait was told of the jobs that finished while the upstream was away, after its return.
    pub(crate) told_meanwhile: Option<Duration>,
    /// How late the last wait was told of the other jobs, after they finished.
    pub(crate) told_later: Option<Duration>,
    /// When the upstream held a poll for each unfinished job again, after its return.
    pub(crate) held_again: Option<Duration>,
    pub(crate) counts: Counts,
    /// The calls of clients without the gateway.
    pub(crate) alone: usize,
}

/// All parts in order; the totals come from them.
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
            told_meanwhile: self.rows.iter().filter_map(|row| row.told_meanwhile).max(),
            told_later: self.rows.iter().filter_map(|row| row.told_later).max(),
            held_again: None,
            counts: self.rows.iter().map(|row| row.counts).fold(Counts::default(), Counts::add),
            alone: sum(|row| row.alone),
        }
    }
}

const HEADS: [[&str; 11]; 2] = [
    ["", "waits", "", "", "last told,", "last told,", "all polls", "upstream", "", "", "alone,"],
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
            let [meanwhile, later, held] = [row.told_meanwhile, row.told_later, row.held_again].map(seconds);
            let [open, answered, lost] = [row.open, row.answered, row.lost].map(|count| count.to_string());
            let [calls, connections, retries, alone] =
                [calls, connections, retries, row.alone].map(|count| count.to_string());
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
                &alone,
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
