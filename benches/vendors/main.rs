//! The polling loops of five vendors' clients in virtual time: directly, and through the gateway.
//!
//! ```text
//!   loops ──▶ clients ──┬──▶ direct:  each read is an upstream call
//!   (table)             └──▶ gateway: live cache ──▶ coalescer ──▶ upstream
//! ```
//!
//! One job a run, and clients of one key that begin within their first interval. Everything follows from the seed:
//! `make vendors`.

mod clients;
mod direct;
#[path = "../load/events.rs"]
#[expect(dead_code, reason = "the other bench uses all of it")]
mod events;
mod gateway;
mod loops;

use std::io::{self, Write};
use std::time::Duration;

use clap::Parser;

use self::clients::Outcome;
use self::gateway::Asking;
use self::loops::{LOOPS, VendorLoop};

/// Plays the polling loops of vendors' clients, and counts upstream calls and the delay of results
#[derive(Debug, Parser)]
struct Args {
    /// Seed of the first run; each further run has the next one
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Runs of each loop
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// Numbers of clients of a job.
const CLIENTS: [usize; 2] = [1, 10];

fn main() -> io::Result<()> {
    let args = Args::parse();
    let mut out = io::stdout().lock();
    writeln!(out, "{} runs from seed {}; calls are means of a run\n", args.runs, args.seed)?;
    writeln!(out, "| loop | interval | job | clients | side | calls | late at most | late in the mean |")?;
    writeln!(out, "| --- | --- | --- | --- | --- | --- | --- | --- |")?;
    for vendor in &LOOPS {
        let route = vendor.route();
        for clients in CLIENTS {
            let through = |max_pace: Duration, asking: Asking| {
                move |vendor: &VendorLoop, clients: usize, seed: u64| {
                    gateway::play(vendor, max_pace, asking, clients, seed)
                }
            };
            let (pace, max_pace) = (route.pace, route.max_pace);
            let mut row = |side: &str, play: &dyn Fn(&VendorLoop, usize, u64) -> Outcome| {
                print_row(&mut out, &args, vendor, clients, side, play)
            };
            row("directly", &direct::play)?;
            row("plain GETs", &through(max_pace, Asking::Plain))?;
            row("`Prefer: wait`, fixed pace", &through(pace, Asking::Waiting))?;
            row("`Prefer: wait`", &through(max_pace, Asking::Waiting))?;
        }
    }
    Ok(())
}

/// Plays all runs of one side and prints their figures.
fn print_row(
    out: &mut impl Write,
    args: &Args,
    vendor: &VendorLoop,
    clients: usize,
    side: &str,
    play: impl Fn(&VendorLoop, usize, u64) -> Outcome,
) -> io::Result<()> {
    let mut sum = Outcome::default();
    for run in 0..args.runs {
        sum.add(&play(vendor, clients, args.seed + u64::from(run)));
    }
    let late = |time: Duration| format!("{:.2} s", time.as_secs_f64());
    writeln!(
        out,
        "| {} | {:?} | {:?} | {clients} | {side} | {:.0} | {} | {} |",
        vendor.name,
        vendor.interval,
        vendor.life,
        f64::from(sum.calls) / f64::from(args.runs),
        late(sum.latest),
        late(sum.lateness / sum.results),
    )
}
