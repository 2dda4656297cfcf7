//! `clipgate check`: reads the configuration and says what is wrong and where.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::cmd::CommandError;
use crate::config::{self, Auth, Config};

/// How `check` is called.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without --config it reads $XDG_CONFIG_HOME/clipgate/config.toml (~/.config where that \
    is not set) or /etc/clipgate/config.toml, else the defaults stand. CLIPGATE__SECTION__KEY variables are \
    read in any case.\n\nExit code: 0 if the configuration is good, 2 if not."
)]
pub struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "CLIPGATE_CONFIG")]
    pub config: Option<PathBuf>,
}

/// Exit code 0 if the configuration is good, 2 if not.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let env: Vec<(String, String)> = config::environment().collect();
    let path = config::locate(args.config.as_deref(), env.iter().cloned());
    let config = Config::load(path.as_deref(), env)?;
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    for warning in config.warnings() {
        writeln!(err, "warning: {warning}")?;
    }
    summarize(&mut out, &config, path.as_deref())?;
    if path.is_none() && Path::new("config.toml").exists() {
        writeln!(err, "note: ./config.toml is read only when named: --config config.toml")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn summarize(out: &mut impl Write, config: &Config, path: Option<&Path>) -> std::io::Result<()> {
    let file = path.map_or("none, the defaults stand".to_owned(), |path| path.display().to_string());
    let mode = match &config.auth {
        Auth::Passthrough => "passthrough".to_owned(),
        Auth::Sidecar => "sidecar".to_owned(),
        Auth::Team(members) => format!("team of {}", members.len()),
    };
    let listen = config.server.listen.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    writeln!(out, "config is good")?;
    writeln!(out, "  file      {file}")?;
    writeln!(out, "  mode      {mode}")?;
    writeln!(out, "  upstream  {}", config.upstream.base_url)?;
    writeln!(out, "  listen    {listen}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_says_which_file_mode_upstream_and_listen() {
        let mut out = Vec::new();
        summarize(&mut out, &Config::default(), None).unwrap();
        let expected = "config is good\n  file      none, the defaults stand\n  mode      passthrough\n  \
            upstream  https://api.aimlapi.com/\n  listen    127.0.0.1:8080\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
