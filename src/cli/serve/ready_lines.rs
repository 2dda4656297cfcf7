//! The ready lines on stdout: one for each listener, and with `--sim` commands to try.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use tracing::warn;

use crate::admin::Admin;
use crate::cli::error::CommandError;
use crate::config::Config;
use crate::core::route::SunoEndpoints;
use crate::server::{Listener, tcp_address};

/// Longest delay of the start by a full pipe on stdout.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) fn format(
    listeners: &[Listener],
    admin: Option<&Admin>,
    simulated: Option<&Config>,
) -> Result<String, CommandError> {
    let mut lines = String::new();
    for listener in listeners {
        writeln!(lines, "clipgate listening on {}", listener.address()?)?;
    }
    if let Some(admin) = admin {
        writeln!(lines, "clipgate admin listening on {}", admin.address())?;
    }
    if let Some(config) = simulated
        && let Some(address) = listeners.iter().find_map(tcp_address)
    {
        lines += &sample_commands(config, &address.to_string());
    }
    Ok(lines)
}

/// Writes to stdout. The gateway serves clients with or without a reader, so a failure is logged only, and a full pipe
/// delays the start by at most [`WRITE_TIMEOUT`].
pub(super) async fn write(lines: String) {
    let writing = tokio::task::spawn_blocking(move || {
        let mut out = std::io::stdout().lock();
        out.write_all(lines.as_bytes()).and_then(|()| out.flush())
    });
    match tokio::time::timeout(WRITE_TIMEOUT, writing).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => warn!(%error, "cannot write the ready lines to stdout"),
        Ok(Err(error)) => warn!(%error, "the ready lines were not written to stdout"),
        Err(_) => warn!("stdout accepts no data, starting without the ready lines"),
    }
}

/// Returns commands for each kind of simulated job that the gateway has a route for.
fn sample_commands(config: &Config, address: &str) -> String {
    let routes = config.routes();
    let mut lines = "\nThe upstream is simulated: it needs no network and accepts any key. Commands to try in another shell:\n"
        .to_owned();
    if routes.iter().any(|(_, route)| route.is_built_in) {
        lines += &clip_commands(address);
    }
    if routes.endpoint(&format!("{PREDICTIONS}/ID")).is_some() {
        lines += &prediction_commands(address);
    }
    lines.push('\n');
    lines
}

fn clip_commands(address: &str) -> String {
    let SunoEndpoints { single_path, multi_path, single_param, multi_param, status_param, ladder, .. } =
        SunoEndpoints::default();
    let words: Vec<_> = ladder.askable_words().collect();
    let (&last, before) = words.split_last().expect("a ladder has a state that clients can wait for");
    let first = before.last().unwrap_or(&last);
    format!(
        r#"
  # create two clips; the response has their ids
  curl -s http://{address}{single_path} {AUTH} \
       -H 'Content-Type: application/json' -d '{{"prompt":"night drive"}}' | tee clips.json
  ID1=$(grep -oE '[0-9a-f-]{{36}}' clips.json | sed -n 1p)
  ID2=$(grep -oE '[0-9a-f-]{{36}}' clips.json | sed -n 2p)

  # wait until the first one can be heard, then until it is done
  curl -si "http://{address}{single_path}?{single_param}=$ID1&{status_param}={first}" {AUTH}
  curl -si "http://{address}{single_path}?{single_param}=$ID1&{status_param}={last}" {AUTH}

  # wait for both at once; run it in several shells: the upstream gets one request
  curl -sig "http://{address}{multi_path}?{multi_param}[]=$ID1&{multi_param}[]=$ID2&{status_param}={last}" \
       {AUTH}
"#
    )
}

fn prediction_commands(address: &str) -> String {
    format!(
        r#"
  # create a prediction, at an API that never holds a request: its clients poll
  curl -s http://{address}{PREDICTIONS} {AUTH} \
       -H 'Content-Type: application/json' -d '{{"input":{{"prompt":"a red door"}}}}' | tee prediction.json
  ID=$(sed 's/.*"id":"\([^"]*\)".*/\1/' prediction.json)

  # wait until it is done; the gateway polls once for all shells that wait
  curl -si "http://{address}{PREDICTIONS}/$ID" {AUTH} -H 'Prefer: wait'
"#
    )
}

/// Path of the predictions of the simulated upstream.
const PREDICTIONS: &str = "/v1/predictions";

const AUTH: &str = "-H 'Authorization: Bearer demo'";
