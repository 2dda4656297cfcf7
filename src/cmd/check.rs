//! `clipgate check`: reads the configuration and says what is wrong and where.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::cmd::CommandError;

/// How `check` is called.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "CLIPGATE_CONFIG")]
    pub config: Option<PathBuf>,
}

/// Exit code 0 if the configuration is good, 2 if not.
pub fn run(_args: &Args) -> Result<ExitCode, CommandError> {
    Err("check is not built yet".into())
}
