//! `clipgate watch`: follows jobs in the terminal until each reaches a state.
//!
//! ```text
//!   follow: a task per job ── Update ──▶ run ──▶ view: bars, lines or JSON
//! ```
//!
//! The command sends the requests of a client, rung by rung, so it works with a gateway and with the API itself.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use self::follow::{Ending, Follower, Update};
use self::view::View;
use crate::cli::api_key;
use crate::cli::error::CommandError;
use crate::cli::job_client::{job_id, url};
use crate::clock;
use crate::config::{self, KeyTemplate};
use crate::core::job::JobId;
use crate::core::route::{Ladder, Route, Rung};
use crate::upstream::client::Client;

mod follow;
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

Without --key the command sends the key in the environment variable AIMLAPI_KEY, if it is set. A gateway in sidecar \
mode needs no key.

Exit code: 0 if every job reached the state, 3 if a job failed, 4 if a job ran out of time, 1 if a job could not be \
followed, 2 for an invalid command line.";

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Args {
    /// Jobs to follow
    #[arg(value_name = "ID", required = true, num_args = 1..=MAX_JOBS, value_parser = job_id)]
    ids: Vec<JobId>,
    /// Address of a gateway or of the API
    #[arg(long, value_name = "URL", env = "CLIPGATE_URL", default_value = "http://127.0.0.1:8080", value_parser = url)]
    url: Uri,
    /// State to follow the jobs to [default: the last one]
    #[arg(long, value_name = "STATUS", value_parser = goal)]
    until: Option<Rung>,
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

fn goal(word: &str) -> Result<Rung, String> {
    let ladder = Route::suno().ladder;
    match ladder.rung(word) {
        Some(rung) if ladder.is_askable(rung) => Ok(rung),
        _ => Err(format!("use one of {}", ladder.askable_words().collect::<Vec<_>>().join(", "))),
    }
}

pub(super) async fn run(args: Args) -> Result<ExitCode, CommandError> {
    let route = Arc::new(Route::suno());
    let last = || route.ladder.rungs().filter(|rung| route.ladder.is_askable(*rung)).last();
    let goal = args.until.or_else(last).expect("a ladder has a state that clients can wait for");
    let key = api_key::client_key(args.key.as_deref())?;
    let upstream =
        config::UpstreamConfig { base_url: args.url.clone(), ..config::Config::default().upstream };
    let follower = Arc::new(Follower {
        client: Client::new(&upstream)?,
        key: key.and_then(|key| KeyTemplate::default().field(&key)),
        goal,
        deadline: clock::now() + args.timeout,
        route: Arc::clone(&route),
    });
    let ids = without_duplicates(args.ids);
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

fn without_duplicates(ids: Vec<JobId>) -> Vec<JobId> {
    let mut unique: Vec<JobId> = Vec::with_capacity(ids.len());
    for id in ids {
        if !unique.contains(&id) {
            unique.push(id);
        }
    }
    unique
}

/// Returns the number of rungs up to this one.
fn steps_to(ladder: &Ladder, rung: Rung) -> u64 {
    ladder.rungs().take_while(|other| *other <= rung).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_that_of_the_worst_ending() {
        let rows = [
            (&[Ending::Reached, Ending::Reached][..], 0),
            (&[Ending::Failed, Ending::Reached], 3),
            (&[Ending::TimedOut, Ending::Failed], 4),
            (&[Ending::Failed, Ending::TimedOut], 4),
            (&[Ending::TimedOut, Ending::Rejected("no".to_owned()), Ending::Failed], 1),
        ];
        for (endings, code) in rows {
            assert_eq!(endings.iter().fold(0, worse_code), code, "{endings:?}");
        }
        assert_eq!(rows.len(), 5);
    }
}
