//! Gateway processes that share an engine and a simulated upstream.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use clipgate::sim::{RequestEnd, SimOptions};
use clipgate::testing::clock;
use http::{Request, Response};
use http_body_util::Empty;
use serde_json::Value;
use tokio_util::task::AbortOnDropHandle;

use super::engine::TestEngine;
use crate::harness::admin_client::AdminClient;
use crate::harness::process::{GatewayProcess, TestClient, TestEnv, completed_target, within_timeout};

/// Pause between two looks at a state.
const LOOK: Duration = Duration::from_millis(5);

/// Replicas, the first of which is started first.
pub(super) struct Replicas {
    pub(super) env: TestEnv,
    pub(super) engine: TestEngine,
    pub(super) all: Vec<Replica>,
}

pub(super) struct Replica {
    pub(super) process: GatewayProcess,
    pub(super) address: SocketAddr,
    pub(super) admin: AdminClient,
}

/// A wait's answer and the time at which it came.
#[derive(Debug)]
pub(super) struct Settled {
    pub(super) at: Instant,
    pub(super) status: u16,
    pub(super) cache_status: String,
}

pub(super) type PendingWait = AbortOnDropHandle<Settled>;

impl Replicas {
    /// Starts replicas whose links are up.
    pub(super) async fn start(count: usize) -> Self {
        let engine = TestEngine::start().await;
        let urls = vec![engine.url(); count];
        Self::with_urls(engine, &urls).await
    }

    /// Starts one replica for each URL of the engine, and waits until all know each other.
    pub(super) async fn with_urls(engine: TestEngine, urls: &[String]) -> Self {
        Self::with_options(engine, urls, SimOptions::default()).await
    }

    pub(super) async fn with_options(engine: TestEngine, urls: &[String], options: SimOptions) -> Self {
        let env = TestEnv::with_options(options).await;
        configure(&env, "");
        let mut replicas = Self { env, engine, all: Vec::new() };
        for url in urls {
            replicas.add(url, &[]).await;
        }
        replicas.wait_until_all_meet().await;
        replicas
    }

    /// Starts a replica that uses this URL of the engine, with these variables.
    pub(super) async fn add(&mut self, url: &str, variables: &[(&str, &str)]) {
        self.all.push(Replica::start(&self.env, url, variables).await);
    }

    /// Waits until each replica hears all others.
    pub(super) async fn wait_until_all_meet(&self) {
        for replica in &self.all {
            replica
                .wait_for_state("all replicas", |state| {
                    let members = state["cluster"]["members"].as_array().map_or(0, Vec::len);
                    state["cluster"]["link"] == "near" && members == self.all.len()
                })
                .await;
        }
    }

    /// Parks waits for this job at each replica, first at the first one, which makes the poll.
    pub(super) async fn park(&self, id: &str, count: usize) -> Vec<Vec<PendingWait>> {
        self.env.sim.set_status(id, "queued");
        let before = self.polls(id);
        let mut waits = Vec::new();
        for (number, replica) in self.all.iter().enumerate() {
            waits.push(replica.park(id, count).await);
            if number == 0 {
                self.wait_for_polls(id, before + 1).await;
            } else {
                replica.wait_for_state("a poll of a sibling", is_guest).await;
            }
        }
        waits
    }

    /// Returns the number of polls for this job that reached the upstream, without the snapshots of waits that end early.
    pub(super) fn polls(&self, id: &str) -> usize {
        self.env.sim.requests().iter().filter(|seen| *seen.target == *completed_target(id)).count()
    }

    /// Returns the number of polls for this job that the upstream holds.
    pub(super) fn held(&self, id: &str) -> usize {
        let requests = self.env.sim.requests();
        let held = requests.iter().filter(|seen| seen.end == RequestEnd::Open);
        held.filter(|seen| *seen.target == *completed_target(id)).count()
    }

    pub(super) async fn wait_for_polls(&self, id: &str, count: usize) {
        let waiting = async {
            while self.polls(id) < count {
                tokio::time::sleep(LOOK).await;
            }
        };
        within_timeout("polls", waiting).await;
    }

    /// Completes the job and returns how late its last answer is: zero is the moment of completion.
    pub(super) async fn complete(&self, id: &str, waits: Vec<PendingWait>) -> Duration {
        let completed = clock::now();
        self.env.sim.set_status(id, "completed");
        latest(completed, waits).await
    }
}

/// Returns the time from a moment to the last answer. All have to be successes.
pub(super) async fn latest(from: Instant, waits: Vec<PendingWait>) -> Duration {
    let mut latest = Duration::ZERO;
    for wait in waits {
        let settled = within_timeout("an answer", wait).await.unwrap();
        assert_eq!(settled.status, 200, "{settled:?}");
        latest = latest.max(settled.at.saturating_duration_since(from));
    }
    latest
}

/// Returns whether a replica waits for a poll of a sibling.
pub(super) fn is_guest(state: &Value) -> bool {
    let members = state["cluster"]["members"].as_array();
    members
        .is_some_and(|members| members.iter().any(|member| member["self"] == false && member["polls"] != 0))
}

/// Sections without the limits that a test would meet.
pub(super) const LIMITS: &str = "[wait]\nlinger = \"500ms\"\n[limits]\nrequests_per_second = 100000\nburst = 100000\n\
    calls_per_second = 100000\ncalls_burst = 100000\nmax_waits_per_key = 10000\n";

/// Writes the configuration of all replicas, with these lines in `[cluster]`. The patience is longer than the default: on a
/// busy machine a replica would make a poll alone, as it should.
pub(super) fn configure(env: &TestEnv, lines: &str) {
    write_config(env, LIMITS, lines);
}

/// Like [`configure`], with these lines in `[limits]`. A quota that they do not name is wide.
pub(super) fn limited(env: &TestEnv, limits: &str, lines: &str) {
    let wide = [("requests_per_second", "burst"), ("calls_per_second", "calls_burst")];
    let wide = wide.iter().filter(|(rate, _)| !limits.contains(rate));
    let wide: String = wide.map(|(rate, burst)| format!("{rate} = 100000\n{burst} = 100000\n")).collect();
    write_config(env, &format!("[wait]\nlinger = \"500ms\"\n[limits]\n{limits}{wide}"), lines);
}

fn write_config(env: &TestEnv, sections: &str, lines: &str) {
    let patience = if lines.contains("patience") { "" } else { "patience = \"500ms\"\n" };
    env.configure(&format!(
        "{sections}[cluster]\nurl = \"redis://127.0.0.1:1\"\nsecret = \"{SECRET}\"\n{patience}{lines}"
    ));
}

/// The secret of all replicas.
pub(super) const SECRET: &str = "a-secret-of-all-replicas-0123456789";

impl Replica {
    pub(super) async fn start(env: &TestEnv, url: &str, variables: &[(&str, &str)]) -> Self {
        let mut command = env.command();
        command.env("CLIPGATE__ADMIN__LISTEN", "127.0.0.1:0").env("CLIPGATE__CLUSTER__URL", url);
        command.envs(variables.iter().copied());
        let mut process = GatewayProcess::spawn(command);
        let address = process.address().await;
        let line = process.next_line().await;
        let admin = line.strip_prefix("clipgate admin listening on ").expect("the admin listener");
        Self { process, address, admin: AdminClient::at(admin.parse().unwrap()) }
    }

    /// Parks further waits for the completion of this job.
    pub(super) async fn park(&self, id: &str, count: usize) -> Vec<PendingWait> {
        let before = self.admin.state().await["waits"]["parked"].as_u64().unwrap();
        let waits = (0..count).map(|_| self.wait(id)).collect();
        let all = before + count as u64;
        self.wait_for_state("parked waits", |state| state["waits"]["parked"] == all).await;
        waits
    }

    /// Sends a wait for the completion of this job.
    pub(super) fn wait(&self, id: &str) -> PendingWait {
        let (address, target) = (self.address, completed_target(id));
        AbortOnDropHandle::new(tokio::spawn(async move {
            let answer = TestClient::connect(address).await.get(&target, &[]).await;
            let cache_status = answer.headers()["cache-status"].to_str().unwrap().to_owned();
            Settled { at: clock::now(), status: answer.status().as_u16(), cache_status }
        }))
    }

    pub(super) async fn client(&self) -> TestClient {
        TestClient::connect(self.address).await
    }

    pub(super) async fn get(&self, target: &str, fields: &[(&str, &str)]) -> Response<bytes::Bytes> {
        TestClient::connect(self.address).await.get(target, fields).await
    }

    /// Sends a request with this value of `Authorization`.
    pub(super) async fn get_with_key(&self, target: &str, key: &str) -> Response<bytes::Bytes> {
        let request = Request::get(target).header("host", "gw.example").header("authorization", key);
        TestClient::connect(self.address).await.send(request.body(Empty::new()).unwrap()).await.unwrap()
    }

    pub(super) async fn wait_for_state(&self, what: &str, is: impl Fn(&Value) -> bool) {
        let waiting = async {
            while !is(&self.admin.state().await) {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(20), waiting).await.is_err() {
            panic!("{what}: {:#}", self.admin.state().await["cluster"]);
        }
    }
}
