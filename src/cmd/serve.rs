//! `clipgate serve`: the gateway.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::cmd::CommandError;

/// How `serve` is called.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "CLIPGATE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Where clients connect, in place of server.listen (HOST:PORT or unix:PATH)
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// The API's address, in place of upstream.base_url
    #[arg(long, value_name = "URL", conflicts_with = "sim")]
    pub upstream: Option<String>,
    /// Put the gateway before a simulated upstream of its own: needs no key and no network
    #[arg(long)]
    pub sim: bool,
    /// How many times faster than life the simulated clips are made
    #[arg(long, value_name = "X", requires = "sim", default_value_t = 1.0)]
    pub speed: f64,
}

/// Runs the gateway until it is told to stop.
pub async fn run(_args: Args) -> Result<ExitCode, CommandError> {
    Err("serve is not built yet".into())
}
