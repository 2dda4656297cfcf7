//! `clipgate check`: reads the configuration and says what is wrong and where; with `--live` also tries the upstream.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use http::Uri;

use self::probe::{Finding, ProbePlan, Severity};
use crate::cli::api_key;
use crate::cli::error::CommandError;
use crate::cli::job_client::{job_id, url};
use crate::config::{self, AuthConfig, Config};
use crate::core::job::JobId;
use crate::printable::{escape, escape_lines};

mod probe;

const HELP: &str = "\
Without --config it reads $XDG_CONFIG_HOME/clipgate/config.toml (~/.config where that is not set) or \
/etc/clipgate/config.toml, else the defaults stand. CLIPGATE__SECTION__KEY variables are read in any case.

With --live it looks the upstream's name up, connects, and tries each key on the id of no job, which costs nothing. \
With --job it also holds a poll on that job, which takes upstream.poll_timeout, and tells whether something on the \
way cuts long requests; with --through it does the same on the way that clients take.

Examples:
  clipgate check --config config.toml
  clipgate check --live
  clipgate check --live --job ID --through https://jobs.example

Exit code: 0 if all is good, 2 if not; warnings do not count.";

/// How `check` is called.
#[derive(Debug, clap::Args)]
#[command(
    after_help = HELP
)]
pub(super) struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "CLIPGATE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Try the upstream too: name, TLS, keys
    #[arg(long)]
    pub live: bool,
    /// A job that is still being made: try how long it is waited for
    #[arg(long, value_name = "ID", requires = "live", value_parser = job_id)]
    pub job: Option<JobId>,
    /// Where clients connect, to try the whole way: what is in front included
    #[arg(long, value_name = "URL", requires = "job", value_parser = url)]
    pub through: Option<Uri>,
    /// Where the key is that a client sends: env:NAME or file:PATH (AIMLAPI_KEY, where that is set)
    #[arg(long, value_name = "SOURCE", requires = "live")]
    pub key: Option<String>,
}

/// Exit code 0 if all is good, 2 if not.
pub(super) async fn run(args: Args) -> Result<ExitCode, CommandError> {
    let env: Vec<(String, String)> = config::environment().collect();
    let path = config::locate(args.config.as_deref(), env.iter().cloned());
    let config = Config::load(path.as_deref(), env)?;
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    for warning in config.warnings() {
        // What is said on stderr is not the answer: where nobody takes it, the answer still counts.
        let _ = writeln!(err, "warning: {}", escape_lines(&warning));
    }
    summarize(&mut out, &config, path.as_deref())?;
    if path.is_none() && Path::new("config.toml").exists() {
        let _ = writeln!(err, "note: ./config.toml is read only when named: --config config.toml");
    }
    if !args.live {
        return Ok(ExitCode::SUCCESS);
    }
    let plan = ProbePlan {
        client_key: api_key::authorization(args.key.as_deref())?,
        job: args.job,
        through: args.through,
    };
    if plan.job.is_some() {
        let longest = humantime::format_duration(config.upstream.poll_timeout);
        let _ = writeln!(err, "holding a poll takes up to {longest}");
    }
    let (mut is_good, mut written) = (true, Ok(()));
    let mut tell = |finding: Finding| {
        is_good &= finding.severity != Severity::Error;
        written = std::mem::replace(&mut written, Ok(())).and_then(|()| write_finding(&mut out, &finding));
    };
    probe::run(&config, plan, &mut tell).await;
    written?;
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

fn write_finding(out: &mut impl Write, finding: &Finding) -> std::io::Result<()> {
    let grade = match finding.severity {
        Severity::Good => "",
        Severity::Warning => "warning: ",
        Severity::Error => "FAULT: ",
    };
    writeln!(out, "  {:<8}  {grade}{}", finding.about, escape(&finding.message))
}

fn summarize(out: &mut impl Write, config: &Config, path: Option<&Path>) -> std::io::Result<()> {
    let file = path.map_or("none, the defaults stand".to_owned(), |path| path.display().to_string());
    let mode = match &config.auth {
        AuthConfig::Passthrough => "passthrough".to_owned(),
        AuthConfig::Sidecar => "sidecar".to_owned(),
        AuthConfig::Team(members) => format!("team of {}", members.len()),
    };
    let listen = config.server.listen.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let admin = config.admin.listen.as_ref().map_or("off".to_owned(), ToString::to_string);
    writeln!(out, "config is good")?;
    writeln!(out, "  file      {file}")?;
    writeln!(out, "  mode      {mode}")?;
    writeln!(out, "  upstream  {}", config.upstream.base_url)?;
    writeln!(out, "  listen    {listen}")?;
    writeln!(out, "  admin     {admin}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_says_which_file_mode_upstream_and_listen() {
        let mut out = Vec::new();
        summarize(&mut out, &Config::default(), None).unwrap();
        let expected = "config is good\n  file      none, the defaults stand\n  mode      passthrough\n  \
            upstream  https://api.aimlapi.com/\n  listen    127.0.0.1:8080\n  admin     127.0.0.1:9090\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
