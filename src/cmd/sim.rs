//! `clipgate sim`: the simulated upstream alone.

use std::process::ExitCode;

use crate::cmd::CommandError;

/// How `sim` is called.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where it listens
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8081")]
    pub listen: std::net::SocketAddr,
}

/// Runs the simulated upstream until it is told to stop.
pub async fn run(_args: Args) -> Result<ExitCode, CommandError> {
    Err("sim is not built yet".into())
}
