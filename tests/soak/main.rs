//! Runs the gateway in front of the simulated upstream under load and injected faults, and checks each response.
//!
//! ```text
//!                                                             ┌── faults, resets, a closed port (fault_schedule)
//!                                                             ▼
//!  random clients ─── real sockets ──▶ Server + Gateway ──▶ Sim ◀── clips with known lives (clips)
//!     │                                     ▲      ▲
//!     │                    reload (monitor) ┘      └ scrapes, removals (operator)
//!     └── each response ──▶ oracle: compares it with the response to the same client without a gateway
//!                              └─ failure ──▶ explain: the fault of its own key and job, or the outage
//! ```
//!
//! Run it with `make soak`, or `cargo run --release --example soak -- --minutes 10`. Figures go to stdout, progress to
//! stderr. The exit code is 1 after a violation. `--seed` and `--scenario away-2` narrow a failure down.

mod failures;
mod run;

use std::alloc::System;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use cap::Cap;
use clap::Parser;

use crate::failures::FailureCounter;
use crate::run::{ScenarioKind, Settings};

/// Counts allocated bytes.
#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, usize::MAX);

/// Runs the gateway in front of a simulated upstream under load, and checks each response
#[derive(Debug, Parser)]
struct Args {
    /// Length of the run
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Requests per second of all clients
    #[arg(long, default_value_t = 2000)]
    rate: u32,
    /// Seed of all random choices of clients and faults
    #[arg(long)]
    seed: Option<u64>,
    /// Fault scenario, for example away-2; may be repeated [default: all in turn]
    #[arg(long = "scenario", value_name = "NAME")]
    scenarios: Vec<ScenarioKind>,
}

fn main() -> std::io::Result<ExitCode> {
    let args = Args::parse();
    let settings = Settings {
        length: Duration::from_secs_f64(args.minutes.clamp(0.0, 60.0 * 24.0 * 30.0) * 60.0),
        rate: args.rate.max(10),
        seed: args.seed.unwrap_or_else(|| fastrand::u64(..)),
        hold: Duration::from_secs(8),
        scenarios: if args.scenarios.is_empty() { ScenarioKind::all() } else { args.scenarios },
        heap: Some(|| HEAP.allocated()),
    };
    let failures = FailureCounter::install().map_err(std::io::Error::other)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(run::soak(settings))?;
    let (panics, errors) = (failures.panics(), failures.errors());
    writeln!(std::io::stdout().lock(), "{report}{panics} panics, {errors} errors logged")?;
    let is_good = report.is_good() && panics == 0 && errors == 0;
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
