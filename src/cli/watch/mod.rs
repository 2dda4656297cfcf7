//! `clipgate watch`: follows jobs in the terminal until each is where it is wanted.
//!
//! ```text
//!   follow, one a job ── News ──▶ run ──▶ view: bars, lines or JSON
//! ```
//!
//! It asks as any client would, rung by rung, so it works before a gateway and before the API itself.

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
use crate::config;
use crate::core::job::JobId;
use crate::core::route::{Ladder, Route, Rung};
use crate::upstream::client::Client;

mod follow;
mod view;

/// Jobs followed at once.
const MAX_JOBS: usize = 100;

/// News that wait to be shown.
const NEWS: usize = 64;

const HELP: &str = "\
Each job has a bar that climbs its ladder. Where stdout is no terminal there is a plain line for each state, with \
--json a JSON object. Connections that break are made again until --timeout is over.

Examples:
  clipgate watch ID                                 before a gateway on this machine
  clipgate watch ID ID --url https://jobs.example  before a team's gateway
  clipgate watch ID --json | jq -r .status          for scripts

The key is that of the environment variable AIMLAPI_KEY, where it is set; a gateway in sidecar mode needs none.

Exit code: 0 when every job got there, 3 when one ended in error, 4 when one ran out of time, 1 when one could not be \
followed, 2 for a bad command line.";

/// How `watch` is called.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Args {
    /// The jobs to follow
    #[arg(value_name = "ID", required = true, num_args = 1..=MAX_JOBS, value_parser = job_id)]
    ids: Vec<JobId>,
    /// Where to ask: a gateway, or the API itself
    #[arg(long, value_name = "URL", env = "CLIPGATE_URL", default_value = "http://127.0.0.1:8080", value_parser = url)]
    url: Uri,
    /// The state to follow them to; the last one if it is not given
    #[arg(long, value_name = "STATUS", value_parser = goal)]
    until: Option<Rung>,
    /// How long at most
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Where the key is: env:NAME or file:PATH
    #[arg(long, value_name = "SOURCE")]
    key: Option<String>,
    /// One JSON object a state, on a line of its own
    #[arg(long)]
    json: bool,
}

fn goal(word: &str) -> Result<Rung, String> {
    let ladder = Route::suno().ladder;
    match ladder.rung(word) {
        Some(rung) if ladder.is_askable(rung) => Ok(rung),
        _ => Err(format!("give one of {}", ladder.askable_words().collect::<Vec<_>>().join(", "))),
    }
}

/// Follows the jobs to their ends.
pub(super) async fn run(args: Args) -> Result<ExitCode, CommandError> {
    let route = Arc::new(Route::suno());
    let last = || route.ladder.rungs().filter(|rung| route.ladder.is_askable(*rung)).last();
    let goal = args.until.or_else(last).expect("some rung can be asked for");
    let authorization = api_key::authorization(args.key.as_deref())?;
    let upstream =
        config::UpstreamConfig { base_url: args.url.clone(), ..config::Config::default().upstream };
    let follower = Arc::new(Follower {
        client: Client::new(&upstream)?,
        authorization,
        goal,
        until: clock::now() + args.timeout,
        route: Arc::clone(&route),
    });
    let ids = without_repeats(args.ids);
    let mut view = match args.json {
        true => View::json(&ids, route.ladder.clone()),
        false if std::io::stdout().is_terminal() => View::bars(&ids, route.ladder.clone(), goal),
        false => View::lines(&ids, route.ladder.clone()),
    };
    let (tell, mut news) = mpsc::channel(NEWS);
    let mut following = JoinSet::new();
    for (nth, id) in ids.into_iter().enumerate() {
        let (follower, tell) = (Arc::clone(&follower), tell.clone());
        following.spawn(async move { follower.follow(&id, nth, &tell).await });
    }
    drop(tell);
    let mut code = 0;
    while let Some((nth, news)) = news.recv().await {
        if let Update::Ended(ending) = &news {
            code = worse(code, ending);
        }
        view.show(nth, &news)?;
    }
    while let Some(ended) = following.join_next().await {
        ended?;
    }
    Ok(ExitCode::from(code))
}

/// The exit code, once a job more has ended so.
fn worse(code: u8, ending: &Ending) -> u8 {
    let its = match ending {
        Ending::Reached => 0,
        Ending::Failed => 3,
        Ending::TimedOut => 4,
        Ending::Refused(_) => 1,
    };
    // What is not known weighs more than what is.
    [1, 4, 3].into_iter().find(|one| [code, its].contains(one)).unwrap_or(0)
}

fn without_repeats(ids: Vec<JobId>) -> Vec<JobId> {
    let mut once: Vec<JobId> = Vec::with_capacity(ids.len());
    for id in ids {
        if !once.contains(&id) {
            once.push(id);
        }
    }
    once
}

/// The rungs on the way to this one.
fn steps_to(ladder: &Ladder, rung: Rung) -> u64 {
    ladder.rungs().take_while(|other| *other <= rung).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_end_of_all_is_the_exit_code() {
        let rows = [
            (&[Ending::Reached, Ending::Reached][..], 0),
            (&[Ending::Failed, Ending::Reached], 3),
            (&[Ending::TimedOut, Ending::Failed], 4),
            (&[Ending::Failed, Ending::TimedOut], 4),
            (&[Ending::TimedOut, Ending::Refused("no".to_owned()), Ending::Failed], 1),
        ];
        for (endings, code) in rows {
            assert_eq!(endings.iter().fold(0, worse), code, "{endings:?}");
        }
        assert_eq!(rows.len(), 5);
    }
}
