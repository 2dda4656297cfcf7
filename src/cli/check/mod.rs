//! `clipgate check`: reports the errors of a configuration. With `--live` it also tests the upstream.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use http::Uri;

use self::job_report::{named_job, route_index, route_line};
use self::probe::{Finding, ProbePlan, Severity};
use crate::cli::api_key;
use crate::cli::error::CommandError;
use crate::cli::job_client::{KeyField, header, url};
use crate::cli::start_check::{check_start, start_warnings};
use crate::config::{self, AuthMode, Config};
use crate::printable::{escape, escape_lines};

mod job_report;
mod probe;

const HELP: &str = "\
Without --config the command reads $XDG_CONFIG_HOME/clipgate/config.toml (~/.config without that variable) or \
/etc/clipgate/config.toml. If neither exists, the defaults apply. It always reads CLIPGATE__SECTION__KEY variables.

The command opens the certificates and checks RUST_LOG too, as `serve` does, and reports all errors at once. It warns of \
certificates that end within 14 days.

With --live it resolves the name of the upstream, connects, and tests each key with the id of a job that does not exist, \
which costs nothing. With --job it also holds a poll for that job, which takes as long as the upstream holds it, and reports if a \
proxy on the way ends long requests. With --through it does this on the clients' way too.

With --id it reads that job through the configuration and says which id, word and state it found, and for how long the \
upstream held the request. For a path with further variables ID is the whole path, as in \
/fal-ai/flux/requests/ID/status.

Examples:
  clipgate check --config config.toml
  clipgate check --live
  clipgate check --live --job ID --through https://jobs.example
  clipgate check --live --route replicate --id ID
  clipgate check --live -H 'anthropic-version: 2023-06-01'

Exit code: 0 without errors, 2 with errors. Warnings do not change it.";

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Args {
    /// Configuration file
    #[arg(short, long, value_name = "FILE", env = "CLIPGATE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Test the upstream too: name, TLS, keys
    #[arg(long)]
    pub live: bool,
    /// Unfinished job: measure how long a poll for it is held
    #[arg(long, value_name = "ID", requires = "live")]
    pub job: Option<String>,
    /// Route of the job and of the tests [default: the first one]
    #[arg(long, value_name = "NAME", requires = "live")]
    pub route: Option<String>,
    /// Job to read through the configuration: its id, or the path of its GET
    #[arg(long, value_name = "ID", requires = "live", conflicts_with = "job")]
    pub id: Option<String>,
    /// Address that clients use: measure on their way too, with all proxies
    #[arg(long, value_name = "URL", requires = "job", value_parser = url)]
    pub through: Option<Uri>,
    /// Key of a client: env:NAME or file:PATH [default: env:AIMLAPI_KEY, if set]
    #[arg(long, value_name = "SOURCE", requires = "live")]
    pub key: Option<String>,
    /// Field of all requests of the tests, such as one of auth.with_key: 'X-Api-Version: 2'
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", requires = "live", value_parser = header)]
    pub headers: Vec<KeyField>,
}

/// Returns exit code 2 for an invalid configuration or a failed test, else 0.
pub(super) async fn run(args: Args) -> Result<ExitCode, CommandError> {
    let env: Vec<(String, String)> = config::environment().collect();
    let path = config::locate(args.config.as_deref(), env.iter().cloned());
    let config = check_start(Config::load(path.as_deref(), env.iter().cloned()))?;
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    for warning in start_warnings(&config, path.as_deref(), &env) {
        // The result is on stdout. A closed stderr does not change it.
        let _ = writeln!(err, "warning: {}", escape_lines(&warning));
    }
    summarize(&mut out, &config, path.as_deref())?;
    if path.is_none() && Path::new("config.toml").exists() {
        let _ = writeln!(err, "note: ./config.toml is read only with --config config.toml");
    }
    if !args.live {
        return Ok(ExitCode::SUCCESS);
    }
    let routes = config.routes();
    let route = route_index(&routes, args.route.as_deref())?;
    let job = args.job.as_deref().or(args.id.as_deref()).map(|text| named_job(&routes, route, text));
    let plan = ProbePlan {
        route,
        is_read: args.id.is_some(),
        client_key: api_key::client_key(args.key.as_deref())?,
        job: job.transpose()?,
        through: args.through,
        fields: args.headers,
    };
    let hold = routes.get(route).hold;
    if plan.job.is_some() && !hold.is_zero() {
        let longest = humantime::format_duration(hold);
        let _ = writeln!(err, "holding a poll takes up to {longest}");
    }
    let (mut has_errors, mut written) = (false, Ok(()));
    let mut report = |finding: Finding| {
        has_errors |= finding.severity == Severity::Error;
        written = std::mem::replace(&mut written, Ok(())).and_then(|()| write_finding(&mut out, &finding));
    };
    probe::run(&config, plan, &mut report).await;
    written?;
    Ok(if has_errors { ExitCode::from(2) } else { ExitCode::SUCCESS })
}

fn write_finding(out: &mut impl Write, finding: &Finding) -> std::io::Result<()> {
    let severity = match finding.severity {
        Severity::Good => "",
        Severity::Warning => "warning: ",
        Severity::Error => "error: ",
    };
    writeln!(out, "  {:<8}  {severity}{}", finding.subject, escape(&finding.message))
}

fn summarize(out: &mut impl Write, config: &Config, path: Option<&Path>) -> std::io::Result<()> {
    let file = path.map_or("none, the defaults apply".to_owned(), |path| path.display().to_string());
    let mode = match &config.auth.mode {
        AuthMode::Passthrough => "passthrough".to_owned(),
        AuthMode::Sidecar => "sidecar".to_owned(),
        AuthMode::Team(members) => format!("team of {}", members.len()),
        AuthMode::Open => "open".to_owned(),
    };
    let listen = config.server.listen.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let admin = config.admin.listen.as_ref().map_or("off".to_owned(), ToString::to_string);
    writeln!(out, "the configuration is valid")?;
    writeln!(out, "  file      {file}")?;
    writeln!(out, "  mode      {mode}")?;
    writeln!(out, "  upstream  {}", config.upstream.base_url)?;
    writeln!(out, "  listen    {listen}")?;
    writeln!(out, "  admin     {admin}")?;
    let routes = config.routes();
    routes.iter().try_for_each(|(_, route)| writeln!(out, "  route     {}", escape(&route_line(route))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_has_file_mode_upstream_listeners_and_routes() {
        let mut out = Vec::new();
        summarize(&mut out, &Config::default(), None).unwrap();
        let expected = "the configuration is valid\n  file      none, the defaults apply\n  mode      passthrough\n  \
            upstream  https://api.aimlapi.com/\n  listen    127.0.0.1:8080\n  admin     127.0.0.1:9090\n  \
            route     suno: /v2/generate/audio/suno-ai/clip?clip_id={id}, holds for 2m; submitted, queued, streaming, \
            then completed or error\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
