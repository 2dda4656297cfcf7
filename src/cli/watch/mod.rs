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
//! | `view` | the output |
//!
//! The command sends the requests of a client. A gateway answers with events; any other server with the state of the job,
//! and is polled.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use self::follow::{Ending, Follower, Update};
use self::selection::{JobArg, goal, job_arg, select};
use self::view::View;
use crate::cli::api_key;
use crate::cli::error::CommandError;
use crate::cli::job_client::url;
use crate::clock;
use crate::config::{self, Config, KeyTemplate};
use crate::core::route::{Ladder, Rung};
use crate::upstream::client::Client;

mod event_reader;
mod events;
mod follow;
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
    #[arg(value_name = "ID", required = true, num_args = 1..=MAX_JOBS, value_parser = job_arg)]
    jobs: Vec<JobArg>,
    /// Address of a gateway or of the API [default: http://127.0.0.1:8080]
    #[arg(long, value_name = "URL", env = "CLIPGATE_URL", value_parser = url)]
    url: Option<Uri>,
    /// Route of the jobs: a preset, or one of --config
    #[arg(long, value_name = "NAME")]
    route: Option<String>,
    /// Configuration file whose routes are known
    #[arg(long, value_name = "FILE", env = "CLIPGATE_CONFIG")]
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
    let selected = select(&args.jobs, args.route.as_deref(), config.as_ref())?;
    let (route, ids) = (Arc::new(selected.route), selected.jobs);
    let goal = goal(&route, args.until.as_deref())?;
    let key = api_key::client_key(args.key.as_deref())?;
    let send = config.as_ref().map_or_else(KeyTemplate::default, |config| config.auth.send.clone());
    let server = args.url.or(selected.server).unwrap_or_else(|| Uri::from_static(DEFAULT_SERVER));
    let upstream = config::UpstreamConfig { base_url: server, ..Config::default().upstream };
    let follower = Arc::new(Follower {
        client: Client::new(&upstream)?,
        key: key.and_then(|key| send.field(&key)),
        goal,
        deadline: clock::now() + args.timeout,
        route: Arc::clone(&route),
    });
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
    Ok(ExitCode::from(code))
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
