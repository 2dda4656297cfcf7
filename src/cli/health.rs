//! `clipgate health`: asks the gateway on this machine how it is, for whoever starts and stops containers.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use http::StatusCode;

use super::error::{CommandError, chain};
use crate::admin::probe::{Check, probe};
use crate::config::{self, Config, Flag, Listen};

const HELP: &str = "\
It asks the address that admin.listen names, read from where `serve` reads it: the file, CLIPGATE__ADMIN__LISTEN. \
So the same environment and flags fit both. No token is needed.

Examples:
  clipgate health                            is it ready? As HEALTHCHECK of a container, or readiness probe
  clipgate health --live                     does it live, if only to end? As liveness probe
  clipgate health --admin 127.0.0.1:9090     ask there, whatever the configuration says

Exit code: 0 for yes; 1 for no, with the reason on stderr; 2 for a bad command line or configuration, or one without \
an admin listener.";

/// How `health` is called.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "CLIPGATE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Whom to ask, in place of admin.listen (HOST:PORT or unix:PATH)
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<String>,
    /// Ask only whether it lives, not whether it takes requests
    #[arg(long)]
    pub live: bool,
    /// How long the answer may take
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
}

/// Exit code 0 if it is well, 1 if not, 2 if nobody can be asked.
pub(super) async fn run(args: Args) -> Result<ExitCode, CommandError> {
    let listen = match admin(&args)? {
        Some(Listen::Tcp(address)) if address.port() == 0 => {
            return Ok(unavailable("admin.listen leaves the port to the system: name it with --admin"));
        }
        Some(listen) => listen,
        None => return Ok(unavailable("admin.listen is off: nobody answers")),
    };
    let question = if args.live { Check::Liveness } else { Check::Readiness };
    let health = match tokio::time::timeout(args.timeout, probe(&listen, question)).await {
        Ok(Ok(health)) => health,
        Ok(Err(error)) => return Err(format!("{listen} {}", chain(&error)).into()),
        Err(_) => {
            let timeout = humantime::format_duration(args.timeout);
            return Err(format!("{listen} did not answer in {timeout}").into());
        }
    };
    if health.status != StatusCode::OK {
        return Err(format!("{listen} says {} ({})", health.word, health.status.as_u16()).into());
    }
    // The exit code is the answer, whether or not somebody reads the words.
    let _ = writeln!(std::io::stdout(), "{listen} says {}", health.word);
    Ok(ExitCode::SUCCESS)
}

/// The admin listener's address, by flag, environment, file or default.
fn admin(args: &Args) -> Result<Option<Listen>, CommandError> {
    let env: Vec<_> = config::environment().collect();
    let path = config::locate(args.config.as_deref(), env.iter().cloned());
    let flags =
        args.admin.iter().map(|value| Flag { flag: "--admin", key: "admin.listen", value: value.clone() });
    Ok(Config::load_with(path.as_deref(), env, flags)?.admin.listen)
}

fn unavailable(why: &str) -> ExitCode {
    // Nobody is left to be told where that fails.
    let _ = writeln!(std::io::stderr(), "clipgate: {why}");
    ExitCode::from(2)
}
