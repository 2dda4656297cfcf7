//! `clipgate health`: the health check of containers and orchestrators.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use http::StatusCode;

use super::admin_config::AdminArgs;
use super::error::{CommandError, UsageError, chain};
use crate::admin::probe::{Check, probe};
use crate::config::Listen;

const HELP: &str = "\
The command sends a request to admin.listen. It reads the same file and variables as `serve`, so both can have the same \
environment and flags. It needs no token.

Examples:
  clipgate health                            readiness: HEALTHCHECK of a container, readiness probe
  clipgate health --live                     liveness, also during a drain: liveness probe
  clipgate health --admin 127.0.0.1:9090     the gateway at this address

Exit code: 0 for yes; 1 for no, with the reason on stderr; 2 for an invalid command line or configuration, or one \
without an admin listener.";

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Args {
    #[command(flatten)]
    listener: AdminArgs,
    /// Check only that the process responds, not that it accepts requests
    #[arg(long)]
    pub live: bool,
    /// Longest time for the response
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
}

pub(super) async fn run(args: Args) -> Result<ExitCode, CommandError> {
    let listen = match args.listener.load()?.admin.listen {
        Some(Listen::Tcp(address)) if address.port() == 0 => {
            return Err(unavailable("admin.listen has port 0, so the port is unknown: use --admin"));
        }
        Some(listen) => listen,
        None => return Err(unavailable("there is no admin listener: admin.listen is empty")),
    };
    let check = if args.live { Check::Liveness } else { Check::Readiness };
    let health = match tokio::time::timeout(args.timeout, probe(&listen, check)).await {
        Ok(Ok(health)) => health,
        Ok(Err(error)) => return Err(format!("{listen} {}", chain(&error)).into()),
        Err(_) => {
            let timeout = humantime::format_duration(args.timeout);
            return Err(format!("{listen} did not respond within {timeout}").into());
        }
    };
    if health.status != StatusCode::OK {
        return Err(format!("{listen} reports {} ({})", health.word, health.status.as_u16()).into());
    }
    // The exit code is the result. A closed stdout does not change it.
    let _ = writeln!(std::io::stdout(), "{listen} reports {}", health.word);
    Ok(ExitCode::SUCCESS)
}

fn unavailable(why: &str) -> CommandError {
    UsageError(why.to_owned()).into()
}
