//! `--crowd`: clients that play a busy day in front of a simulated upstream, so that the dashboard is alive at once.
//!
//! Clients form groups. The first client of a group creates two clips, all of them wait for one or both, read them again
//! once they are done, and begin again. Groups use a few API keys in turn. All requests go through the listeners of
//! the gateways, each through a random one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, USER_AGENT};
use http::{HeaderValue, Method, Request, StatusCode};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::cli::error::CommandError;
use crate::cli::job_client::{JobRequestError, read_response};
use crate::config::{self, Config};
use crate::core::job::{JobId, JobSet};
use crate::core::query::build_target;
use crate::core::route::{Form, Goal, Route};
use crate::protocol::body::Body;
use crate::upstream::client::Client;

/// Most clients in a group.
const GROUP: usize = 8;

/// API keys of the crowd.
const KEYS: [&str; 3] = ["Bearer demo-ann", "Bearer demo-bob", "Bearer demo-eve"];

/// Pause after a failed request.
const AFTER_FAILURE: Duration = Duration::from_secs(2);

/// Starts the clients, which send each request to one of the gateways. They end when the returned set is dropped.
pub(super) fn start(
    clients: usize,
    gateways: &[SocketAddr],
    speed: f64,
) -> Result<JoinSet<()>, CommandError> {
    let client = |gateway: &SocketAddr| -> Result<Client, CommandError> {
        let base_url = config::base_url(&format!("http://{gateway}"))?;
        let upstream = config::UpstreamConfig { base_url, ..Config::default().upstream };
        Ok(Client::new(&upstream)?)
    };
    let ways = gateways.iter().map(client).collect::<Result<Vec<_>, _>>()?;
    let player = Arc::new(Player { ways, route: Route::suno(), speed });
    let mut tasks = JoinSet::new();
    for (group, first) in (0..clients).step_by(GROUP).enumerate() {
        let key = KEYS[group % KEYS.len()];
        let (clips, shared) = watch::channel(Vec::new());
        tasks.spawn(lead(Arc::clone(&player), key, clips));
        for _ in first + 1..clients.min(first + GROUP) {
            tasks.spawn(follow(Arc::clone(&player), key, shared.clone()));
        }
    }
    Ok(tasks)
}

/// The crowd's ways to the gateways, and what it plays.
struct Player {
    /// Never empty.
    ways: Vec<Client>,
    route: Route,
    speed: f64,
}

impl Player {
    /// Sleeps for a random part of this time, which is that at the speed of life.
    async fn dawdle(&self, seconds: f64) {
        tokio::time::sleep(Duration::from_secs_f64(seconds * fastrand::f64() / self.speed)).await;
    }

    async fn send(&self, method: Method, target: &str, key: &'static str) -> Option<(StatusCode, Value)> {
        let client = &self.ways[fastrand::usize(..self.ways.len())];
        let sent = async {
            let target = target.parse().map_err(|_| JobRequestError::Target)?;
            let mut request = Request::new(Body::empty());
            *request.uri_mut() = client.uri(&target).map_err(|_| JobRequestError::Target)?;
            *request.method_mut() = method;
            let headers = request.headers_mut();
            headers.insert(AUTHORIZATION, HeaderValue::from_static(key));
            headers.insert(USER_AGENT, HeaderValue::from_static("clipgate-crowd"));
            read_response(client.send(request).await?).await
        };
        let response: Result<_, JobRequestError> = sent.await;
        let Ok(response) = response else {
            tokio::time::sleep(AFTER_FAILURE).await;
            return None;
        };
        Some((response.status(), serde_json::from_slice(response.body()).unwrap_or_default()))
    }

    /// Creates clips and returns their ids.
    async fn create(&self, key: &'static str) -> Vec<JobId> {
        let answer = self.send(Method::POST, self.route.template(Form::Single), key).await;
        let Some((_, body)) = answer else { return Vec::new() };
        let ids = body["clip_ids"].as_array().into_iter().flatten().filter_map(Value::as_str);
        ids.filter_map(|id| JobId::new(id).ok()).collect()
    }

    /// Waits until the clips are done. Returns false if a request failed.
    async fn wait(&self, clips: &[JobId], key: &'static str) -> bool {
        let ladder = &self.route.ladder;
        let form = if clips.len() == 1 { Form::Single } else { Form::Multi };
        let goals = match fastrand::bool() {
            true => vec![ladder.highest_askable()],
            // First until the clips can be heard.
            false => ladder.rungs().filter(|rung| ladder.is_askable(*rung)).skip(2).collect(),
        };
        for goal in goals {
            loop {
                let jobs = JobSet::new(clips.iter().cloned());
                let target = build_target(&self.route, form, &jobs, Goal::Rung(goal));
                match self.send(Method::GET, &target, key).await {
                    Some((status, body)) if status.is_success() => {
                        let has_reached = |clip: &Value| {
                            let word = clip["status"].as_str().unwrap_or_default();
                            ladder.rung(word).is_some_and(|rung| rung >= goal)
                        };
                        let is_done = match body.as_array() {
                            Some(clips) => clips.iter().all(has_reached),
                            None => has_reached(&body),
                        };
                        if is_done {
                            break;
                        }
                    }
                    Some(_) => {
                        tokio::time::sleep(AFTER_FAILURE).await;
                        return false;
                    }
                    None => return false,
                }
            }
        }
        true
    }

    /// Reads clips again, and something else of the API from time to time.
    async fn read_again(&self, clips: &[JobId], key: &'static str) {
        for _ in 0..fastrand::usize(1..4) {
            self.dawdle(20.0).await;
            for clip in clips {
                let jobs = JobSet::new([clip.clone()]);
                let goal = Goal::Rung(self.route.ladder.highest_askable());
                self.send(Method::GET, &build_target(&self.route, Form::Single, &jobs, goal), key).await;
            }
        }
        if fastrand::u8(..4) == 0 {
            self.send(Method::GET, "/sim/echo", key).await;
        }
    }
}

/// Creates the clips of a group, one pair after the other.
async fn lead(player: Arc<Player>, key: &'static str, clips: watch::Sender<Vec<JobId>>) {
    loop {
        let created = player.create(key).await;
        if created.is_empty() {
            tokio::time::sleep(AFTER_FAILURE).await;
            continue;
        }
        clips.send_replace(created.clone());
        if player.wait(&created, key).await {
            player.dawdle(10.0).await;
        }
    }
}

/// Waits for each pair of clips of a group.
async fn follow(player: Arc<Player>, key: &'static str, mut clips: watch::Receiver<Vec<JobId>>) {
    while clips.changed().await.is_ok() {
        let mut wanted = clips.borrow_and_update().clone();
        if fastrand::bool() {
            wanted.truncate(1);
        }
        player.dawdle(15.0).await;
        if player.wait(&wanted, key).await {
            player.read_again(&wanted, key).await;
        }
    }
}
