//! The command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::cmd::{CommandError, check, serve, sim};

/// A caching reverse proxy that merges identical long-polls of a job API into one.
#[derive(Debug, Parser)]
#[command(name = "clipgate", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway (what plain `clipgate` does)
    Serve(serve::Args),
    /// Run the simulated upstream alone
    Sim(sim::Args),
    /// Read the configuration and say what is wrong and where
    Check(check::Args),
}

impl Cli {
    /// Runs the command that the line named.
    pub fn run(self) -> Result<ExitCode, CommandError> {
        match self.command {
            None => block_on(serve::run(serve::Args::default())),
            Some(Command::Serve(args)) => block_on(serve::run(args)),
            Some(Command::Sim(args)) => block_on(sim::run(args)),
            Some(Command::Check(args)) => check::run(&args),
        }
    }
}

fn block_on(command: impl Future<Output = Result<ExitCode, CommandError>>) -> Result<ExitCode, CommandError> {
    tokio::runtime::Runtime::new()?.block_on(command)
}
