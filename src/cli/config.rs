//! `clipgate config`: the commented defaults, or the values in force and their places.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use super::error::CommandError;
use crate::config::{self, Config};
use crate::printable::escape;

/// All keys with their defaults and comments.
const DEFAULTS: &str = include_str!("../../config.toml");

const HELP: &str = "\
With --effective the command reads what `serve` reads: the file, the environment and the defaults. Secrets are not shown. \
Flags of `serve` are not known here.

Examples:
  clipgate config > config.toml              start a configuration with all defaults and comments
  clipgate config --effective                print the value of each key and the place where it was set
  clipgate config --effective | grep -v '# default'    print only the keys that are set

Exit code: 0 on success, 2 for an invalid configuration.";

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Args {
    /// Configuration file
    #[arg(short, long, value_name = "FILE", env = "CLIPGATE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Print the values in force and the place of each: file and line, variable or default
    #[arg(long)]
    pub effective: bool,
}

/// Writes the defaults, or a line for each key.
pub(super) fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let mut out = std::io::stdout();
    if !args.effective {
        out.write_all(DEFAULTS.as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    let env: Vec<(String, String)> = config::environment().collect();
    let path = config::locate(args.config.as_deref(), env.iter().cloned());
    let values = Config::effective(path.as_deref(), env)?;
    let mut text = String::new();
    for value in values {
        let line = format!("{} = {}", value.key, value.value);
        text.push_str(&format!("{:<52}  # {}\n", escape(&line), escape(&value.source)));
    }
    out.write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
