//! The command: parse the line, run it, turn an error into an exit code.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use clipgate::cli::Cli;

fn main() -> ExitCode {
    Cli::parse().run().unwrap_or_else(|error| {
        let _ = writeln!(std::io::stderr(), "clipgate: {error}");
        ExitCode::FAILURE
    })
}
