//! `clipgate watch`: follows jobs in the terminal until each reaches a state.
//!
//! ```text
//!   follow: a task per job ── Update ──▶ run ──▶ view: bars, lines or JSON
//! ```
//!
//! | file | content |
//! | --- | --- |
//! | `selection` | the route and the jobs that the arguments name |
//! | `follow` | one job: its states, failures and polls |
//! | `events`, `event_reader` | the event stream of a gateway |
//! | `create` | new clips of `--new` |
//! | `job_result` | title, duration and address of a finished job |
//! | `view` | the output |
//!
//! The command sends the requests of a client. A gateway answers with events; any other server with the state of the job,
//! and is polled.

use std::fmt::Display;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use self::follow::{Ending, Follower, Update};
use self::selection::{JobArg, Selection, goal, job_arg, select};
use self::view::View;
use crate::cli::api_key;
use crate::cli::error::{CommandError, UsageError};
use crate::cli::job_client::{KeyField, header, url};
use crate::clock;
use crate::config::{self, Config, KeyTemplate};
use crate::core::route::{Ladder, Route, Rung};
use crate::upstream::client::Client;

mod create;
mod event_reader;
mod events;
mod follow;
mod job_result;
mod selection;
#[cfg(test)]
mod tests;
mod view;

const MAX_JOBS: usize = 100;

/// Updates that wait to be shown. The tasks wait while the channel is full.
const UPDATES: usize = 64;

const HELP: &str = "\
A terminal shows a progress bar for each job. Other outputs get a line for each state, with --json a JSON object. \
Failed connections are retried until --timeout.

Examples:
  clipgate watch ID                                in front of a gateway on this machine
  clipgate watch ID ID --url https://jobs.example  in front of a team's gateway
  clipgate watch ID --json | jq -r .status         for scripts
  clipgate watch /v1/predictions/ID                a job of a preset or of a route of --config
  clipgate watch --new 'night drive'               make clips of a prompt, which costs money, and follow them

A path or a URL selects its route. With an id alone the route is the one of --route, the only one of --config, or the \
built-in one. A URL is also the server, if --url is not given.

Without --key the command sends the key in the environment variable AIMLAPI_KEY, if it is set. A gateway in sidecar \
mode needs no key.

Exit code: 0 if every job reached the state, 3 if a job failed, 4 if a job ran out of time, 1 if a job could not be \
followed, 2 for an invalid command line.";

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Args {
    /// Jobs to follow: ids, paths or URLs
    #[arg(value_name = "ID", required_unless_present = "new", num_args = 1..=MAX_JOBS, value_parser = job_arg)]
    jobs: Vec<JobArg>,
    /// Make clips of this prompt, and follow them
    #[arg(long, value_name = "PROMPT", conflicts_with_all = ["jobs", "route"])]
    new: Option<String>,
    /// Address of a gateway or of the API [default: http://127.0.0.1:8080]
    #[arg(long, value_name = "URL", env = "CLIPGATE_URL", value_parser = url)]
    url: Option<Uri>,
    /// Route of the jobs: a preset, or one of --config
    #[arg(long, value_name = "NAME")]
    route: Option<String>,
    /// Configuration file whose routes are known
    #[arg(short, long, value_name = "FILE", env = "CLIPGATE_CONFIG")]
    config: Option<PathBuf>,
    /// State to follow the jobs to [default: the last one]
    #[arg(long, value_name = "STATUS")]
    until: Option<String>,
    /// Longest time for all jobs
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Key: env:NAME or file:PATH [default: env:AIMLAPI_KEY, if set]
    #[arg(long, value_name = "SOURCE")]
    key: Option<String>,
    /// Field of all requests, such as 'X-Api-Version: 2'
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<KeyField>,
    /// Authorities to trust in place of those of the system: a PEM file
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Print one line with a JSON object for each state
    #[arg(long)]
    json: bool,
}

/// Server without `--url`: a gateway on this machine.
const DEFAULT_SERVER: &str = "http://127.0.0.1:8080";

pub(super) async fn run(args: Args) -> Result<ExitCode, CommandError> {
    let config = match &args.config {
        Some(path) => Some(Config::load(Some(path), config::environment())?),
        None => None,
    };
    let selected = match &args.new {
        Some(_) => Selection { route: Route::suno(), jobs: Vec::new(), server: None },
        None => select(&args.jobs, args.route.as_deref(), config.as_ref())?,
    };
    let (route, mut ids) = (Arc::new(selected.route), selected.jobs);
    let goal = goal(&route, args.until.as_deref())?;
    let key = api_key::client_key(args.key.as_deref())?;
    let send = config.as_ref().map_or_else(KeyTemplate::default, |config| config.auth.send.clone());
    let server = args.url.or(selected.server).unwrap_or_else(|| Uri::from_static(DEFAULT_SERVER));
    let mut fields = args.headers;
    fields.extend(key.and_then(|key| send.field(&key)));
    let upstream = config::UpstreamConfig { base_url: server.clone(), ..Config::default().upstream };
    let follower = Arc::new(Follower {
        client: match &args.ca {
            Some(path) => Client::trusting_only(&upstream, authorities(path)?)?,
            None => Client::new(&upstream)?,
        },
        server,
        has_own_authorities: args.ca.is_some(),
        fields,
        goal,
        deadline: clock::now() + args.timeout,
        route: Arc::clone(&route),
    });
    if let Some(prompt) = &args.new {
        ids = create::create(&follower, prompt).await?;
    }
    let mut view = match args.json {
        true => View::json(&ids, route.ladder.clone()),
        false if std::io::stdout().is_terminal() => View::bars(&ids, route.ladder.clone(), goal),
        false => View::lines(&ids, route.ladder.clone()),
    };
    let (updates, mut received) = mpsc::channel(UPDATES);
    let mut following = JoinSet::new();
    for (nth, id) in ids.into_iter().enumerate() {
        let (follower, updates) = (Arc::clone(&follower), updates.clone());
        following.spawn(async move { follower.follow(&id, nth, &updates).await });
    }
    drop(updates);
    let mut code = 0;
    while let Some((nth, update)) = received.recv().await {
        if let Update::Ended(ending) = &update {
            code = worse_code(code, ending);
        }
        view.show(nth, &update)?;
    }
    while let Some(ended) = following.join_next().await {
        ended?;
    }
    view.finish()?;
    Ok(ExitCode::from(code))
}

/// Reads the certificates of `--ca`.
fn authorities(path: &Path) -> Result<RootCertStore, UsageError> {
    let problem = |why: &dyn Display| UsageError(format!("--ca: {}: {why}", path.display()));
    let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let mut roots = RootCertStore::empty();
    for certificate in certificates.map_err(|error| problem(&error))? {
        roots.add(certificate).map_err(|error| problem(&error))?;
    }
    if roots.is_empty() { Err(problem(&"the file holds no certificate")) } else { Ok(roots) }
}

/// Returns the worse of an exit code and that of one more job.
fn worse_code(code: u8, ending: &Ending) -> u8 {
    let other = match ending {
        Ending::Reached => 0,
        Ending::Failed => 3,
        Ending::TimedOut => 4,
        Ending::Rejected(_) => 1,
    };
    // An unknown state is worse than a known one.
    [1, 4, 3].into_iter().find(|worst| [code, other].contains(worst)).unwrap_or(0)
}

/// Returns the number of rungs up to this one.
fn steps_to(ladder: &Ladder, rung: Rung) -> u64 {
    ladder.rungs().take_while(|other| *other <= rung).count() as u64
}
