//! The load of a team's day: mixed clients through the gateway's two state machines, beside the same clients alone.
//!
//! ```text
//!   team.toml ──▶ mix ──▶ day ──┬──▶ direct:  clients ─────────────────────────────▶ upstream
//!                  seed ──┘     └──▶ gateway: clients ──▶ coalescer, scheduler ──▶ upstream
//!                                                └──▶ outcome: calls and poll-seconds by cause
//! ```
//!
//! Time is virtual, and everything follows from the seed: `make load`. Without one of the gateway's rules: `--no-proof`,
//! `--no-watch`, `--no-shed`; each rule alone and together: `--rules`.

mod clients;
mod day;
mod direct;
mod events;
mod gateway;
mod mix;
mod outcome;
mod upstream;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use self::day::Day;
use self::gateway::Rules;
use self::mix::Mix;
use self::outcome::{Outcome, saving};
use self::upstream::Calls;

/// Plays days of mixed clients through the gateway's state machines and without a gateway, and counts upstream calls
#[derive(Debug, Parser)]
struct Args {
    /// Seed of the first day; each further day has the next one
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of days
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    days: u64,
    /// File with the team, like benches/load/team.toml [default: that file]
    #[arg(long)]
    mix: Option<PathBuf>,
    /// No answers from proof
    #[arg(long)]
    no_proof: bool,
    /// No watches
    #[arg(long)]
    no_watch: bool,
    /// No shedding
    #[arg(long)]
    no_shed: bool,
    /// One line for each combination of the rules, instead of the tables
    #[arg(long)]
    rules: bool,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> io::Result<ExitCode> {
    let args = Args::parse();
    let mix = match args.mix.as_deref().map_or_else(|| Ok(Mix::team()), read) {
        Ok(mix) => mix,
        Err(problem) => {
            writeln!(io::stderr(), "{problem}")?;
            return Ok(ExitCode::FAILURE);
        }
    };
    let rules = Rules { proof: !args.no_proof, watch: !args.no_watch, shed: !args.no_shed };
    let mut out = io::stdout().lock();
    if args.rules {
        print_rules(&mut out, &args, &mix)?;
    } else {
        let (direct, gateway) = play(&args, &mix, rules)?;
        print_tables(&mut out, &args, &mix, &direct, &gateway)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads a mix from a file.
fn read(path: &Path) -> Result<Mix, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Mix::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
}

/// Plays all days. Returns the sums, without and with the gateway.
fn play(args: &Args, mix: &Mix, rules: Rules) -> io::Result<(Outcome, Outcome)> {
    let (mut direct, mut gateway) = (Outcome::default(), Outcome::default());
    for number in 0..args.days {
        let day = Day::new(mix, args.seed.wrapping_add(number));
        direct.add(&direct::play(&day, mix));
        gateway.add(&gateway::play(&day, mix, rules));
        if (number + 1) % 10 == 0 && number + 1 < args.days {
            writeln!(io::stderr(), "{} of {} days", number + 1, args.days)?;
        }
    }
    Ok((direct, gateway))
}

fn print_tables(
    out: &mut impl Write,
    args: &Args,
    mix: &Mix,
    direct: &Outcome,
    gateway: &Outcome,
) -> io::Result<()> {
    let (people, workers) = (Mix::count(&mix.people), Mix::count(&mix.workers));
    writeln!(out, "{people} people, {workers} workers, {} keys, {} jobs a day", mix.day.keys, mix.day.jobs)?;
    writeln!(out, "{} days from seed {}; figures are means of a day\n", args.days, args.seed)?;
    writeln!(out, "| upstream calls | cause | calls | poll-seconds |\n| --- | --- | --- | --- |")?;
    for (side, outcome) in [("directly", direct), ("by clipgate", gateway)] {
        for cause in CAUSES {
            if let Some(calls) = outcome.calls.get(cause) {
                print_calls(out, args, side, cause, *calls)?;
            }
        }
        print_calls(out, args, side, "all", outcome.total())?;
    }
    let (asked, answers) = (&gateway.record, gateway.answers);
    writeln!(out, "\nsaving: {:.2} (calls directly / calls by clipgate)", saving(direct, gateway))?;
    writeln!(
        out,
        "requests: {} a day, {} of them without a status; answered from the cache {}, from proof {}, by a shared poll {}, \
         by a poll of their own {}",
        args.a_day(asked.requests),
        args.a_day(asked.plain),
        args.a_day(answers.hits),
        args.a_day(answers.proven),
        args.a_day(answers.coalesced),
        args.a_day(answers.opened),
    )?;
    writeln!(
        out,
        "answers: at most {:.2} s later than directly; status true until at most {:.2} s before; {} false",
        asked.latest.as_secs_f64(),
        asked.oldest_status.as_secs_f64(),
        asked.false_statuses,
    )
}

fn print_calls(out: &mut impl Write, args: &Args, side: &str, cause: &str, calls: Calls) -> io::Result<()> {
    let (count, seconds) = (args.a_day(calls.count), args.a_day(calls.open.as_secs()));
    writeln!(out, "| {side} | {cause} | {count} | {seconds} |")
}

/// Prints one line for each combination of the rules.
fn print_rules(out: &mut impl Write, args: &Args, mix: &Mix) -> io::Result<()> {
    writeln!(
        out,
        "| rules | calls | poll-seconds | saving | latest answer |\n| --- | --- | --- | --- | --- |"
    )?;
    for (name, proof, watch, shed) in [
        ("none", false, false, false),
        ("proof", true, false, false),
        ("watches", false, true, false),
        ("shedding", false, false, true),
        ("proof, watches", true, true, false),
        ("proof, watches, shedding", true, true, true),
    ] {
        let (direct, gateway) = play(args, mix, Rules { proof, watch, shed })?;
        let (calls, saved) = (gateway.total(), saving(&direct, &gateway));
        let (count, seconds) = (args.a_day(calls.count), args.a_day(calls.open.as_secs()));
        let latest = gateway.record.latest.as_secs_f64();
        writeln!(out, "| {name} | {count} | {seconds} | {saved:.2} | {latest:.2} s |")?;
    }
    Ok(())
}

impl Args {
    /// Returns the mean of a day, with a comma before each three digits.
    fn a_day(&self, sum: u64) -> String {
        let digits = ((sum + self.days / 2) / self.days).to_string();
        let groups: Vec<&str> =
            digits.as_bytes().rchunks(3).rev().filter_map(|group| str::from_utf8(group).ok()).collect();
        groups.join(",")
    }
}

/// Causes of upstream calls, in the order of the table.
const CAUSES: [&str; 7] = ["snapshot", "wait", "batch", "reopen", "deadline", "watch", "no-cache"];
