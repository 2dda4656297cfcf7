//! A long run of the gateway before the simulated upstream, through all sorts of faults, each answer checked.
//!
//! ```text
//!                                                             ┌── faults, resets, a closed port (fault_schedule)
//!                                                             ▼
//!  clients, random ── real sockets ──▶ Server + Gateway ──▶ Sim ◀── jobs whose whole lives are known (clips)
//!     │                                     ▲      ▲
//!     │                              reload ┘      └ scrapes, removals (operator)
//!     └── each answer ──▶ oracle: what would the client alone have been told, and when?
//!                            └─ a failure ──▶ explain: which fault of its own key and job, or which outage?
//! ```
//!
//! `cargo run --release --example soak -- --minutes 10`; exit code 1 if anything was wrong or unexplained. The figures
//! are on stdout, the progress is on stderr. `--scenario away-2` alone, or `--seed`, replays what was found.

mod failures;
mod run;

use std::alloc::System;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use cap::Cap;
use clap::Parser;

use crate::failures::Complaints;
use crate::run::{ScenarioKind, Setting};

/// Counts what is allocated.
#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, usize::MAX);

/// Runs the gateway before a simulated upstream under load, and checks each answer
#[derive(Debug, Parser)]
struct Args {
    /// How long
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Requests a second, all clients together
    #[arg(long, default_value_t = 2000)]
    rate: u32,
    /// What the clients do follows from it
    #[arg(long)]
    seed: Option<u64>,
    /// What goes wrong at the upstream, away-2 for example; may be repeated [default: all in turn]
    #[arg(long = "scenario", value_name = "NAME")]
    scenarios: Vec<ScenarioKind>,
}

fn main() -> std::io::Result<ExitCode> {
    let args = Args::parse();
    let setting = Setting {
        length: Duration::from_secs_f64(args.minutes.clamp(0.0, 60.0 * 24.0 * 30.0) * 60.0),
        rate: args.rate.max(10),
        seed: args.seed.unwrap_or_else(|| fastrand::u64(..)),
        hold: Duration::from_secs(8),
        scenarios: if args.scenarios.is_empty() { ScenarioKind::all() } else { args.scenarios },
        heap: Some(|| HEAP.allocated()),
    };
    let complaints = Complaints::watch().map_err(std::io::Error::other)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(run::soak(setting))?;
    let (panics, errors) = (complaints.panics(), complaints.errors());
    writeln!(std::io::stdout().lock(), "{report}{panics} panics, {errors} errors logged")?;
    let is_good = report.is_good() && panics == 0 && errors == 0;
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
