//! The examples with vendors' own SDKs, as a user runs them: the SDK polls, and the base URL is its only change.
//!
//! Needs Node with the package `replicate`, and Python with `replicate` and `openai`: `make tools` installs them.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use clipgate::sim::{RequestEnd, Sim, SimOptions, Vendor};
use http::Method;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::harness::process::{TestEnv, within_timeout};

/// An example and its interpreter.
#[derive(Clone, Copy)]
struct SdkExample {
    program: &'static str,
    file: &'static str,
    /// Variable with the API key.
    key: &'static str,
    /// Time between two reads of one client.
    interval: Duration,
}

const REPLICATE_NODE: SdkExample = SdkExample {
    program: "node",
    file: "replicate-sdk.mjs",
    key: "REPLICATE_API_TOKEN",
    interval: Duration::from_millis(500),
};
const REPLICATE_PYTHON: SdkExample =
    SdkExample { program: "python3", file: "replicate-sdk.py", ..REPLICATE_NODE };
const OPENAI_PYTHON: SdkExample = SdkExample {
    program: "python3",
    file: "openai-sdk.py",
    key: "OPENAI_API_KEY",
    interval: Duration::from_secs(1),
};

/// A directory with the examples beside the packages from npm, where Node looks for them.
fn examples() -> TempDir {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::tempdir().unwrap();
    for example in std::fs::read_dir(root.join("examples")).unwrap() {
        let example = example.unwrap();
        std::fs::copy(example.path(), dir.path().join(example.file_name())).unwrap();
    }
    std::os::unix::fs::symlink(root.join("target/node/node_modules"), dir.path().join("node_modules"))
        .unwrap();
    dir
}

/// A running example.
struct SdkClient {
    child: Child,
    name: &'static str,
}

impl SdkClient {
    fn start(example: SdkExample, dir: &TempDir, base_url: &str, args: &[&str]) -> Self {
        let file: PathBuf = dir.path().join(example.file);
        let child = Command::new(example.program)
            .arg(file)
            .args(args)
            .env("CLIPGATE_URL", base_url)
            .env(example.key, "key-1")
            .env("no_proxy", "*")
            .env("NO_PROXY", "*")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}: run `make tools`", example.program));
        Self { child, name: example.file }
    }

    /// Waits until the example has its job.
    async fn wait_until_waiting(&mut self) {
        let mut lines = BufReader::new(self.child.stderr.as_mut().unwrap()).lines();
        let mut seen = Vec::new();
        while let Some(line) = within_timeout(self.name, lines.next_line()).await.unwrap() {
            if line.starts_with("waiting for ") {
                return;
            }
            seen.push(line);
        }
        panic!("{}: run `make tools`? {seen:#?}", self.name);
    }

    /// Returns the JSON on stdout.
    async fn finish(mut self) -> Value {
        let mut out = String::new();
        let reading = async {
            self.child.stdout.take().unwrap().read_to_string(&mut out).await.unwrap();
            self.child.wait().await.unwrap()
        };
        let code = within_timeout(self.name, reading).await;
        assert!(code.success(), "{}: {code}", self.name);
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{}: {error}\n{out}", self.name))
    }
}

/// The upstream's reads of one job.
struct Reads {
    count: usize,
    /// Time from the first to the last.
    span: Duration,
}

/// Lets these clients follow one job, which goes on once all of them wait and ends 3 s later. Returns the results and
/// the reads that the upstream got.
async fn follow_one_job(
    sim: &Sim,
    base_url: &str,
    (vendor, path, words): (Vendor, &str, [&str; 3]),
    clients: &[SdkExample],
) -> (Vec<Value>, Reads) {
    let (dir, id) = (examples(), path.rsplit_once('/').unwrap().1);
    sim.set_job(vendor, id, words[0]);
    let mut running: Vec<_> =
        clients.iter().map(|&example| SdkClient::start(example, &dir, base_url, &["--id", id])).collect();
    for client in &mut running {
        client.wait_until_waiting().await;
    }
    sim.schedule_job(vendor, id, &[(words[1], Duration::from_secs(1)), (words[2], Duration::from_secs(3))]);
    let mut results = Vec::new();
    for client in running {
        results.push(client.finish().await);
    }
    let requests = sim.requests();
    let reads: Vec<_> =
        requests.iter().filter(|seen| seen.method == Method::GET && seen.path() == path).collect();
    assert!(reads.iter().all(|read| matches!(read.end, RequestEnd::Answered(_))));
    let span = reads.last().unwrap().at - reads[0].at;
    (results, Reads { count: reads.len(), span })
}

const PREDICTION: (Vendor, &str, [&str; 3]) =
    (Vendor::Replicate, "/v1/predictions/p1", ["starting", "processing", "succeeded"]);
const RESPONSE: (Vendor, &str, [&str; 3]) =
    (Vendor::OpenAi, "/v1/responses/resp_1", ["queued", "in_progress", "completed"]);

fn ten_replicate_clients() -> Vec<SdkExample> {
    [[REPLICATE_NODE; 5], [REPLICATE_PYTHON; 5]].concat()
}

/// Checks that each client has read the job for 3 s at its own interval.
fn assert_direct(reads: &Reads, clients: &[SdkExample]) {
    // Half of the reads, for a busy machine.
    let least: u128 = clients.iter().map(|client| 3000 / client.interval.as_millis() / 2).sum();
    assert!(reads.count as u128 >= least, "{} reads in {:?}", reads.count, reads.span);
}

#[tokio::test]
async fn each_sdk_creates_a_job_and_waits_for_it_through_the_gateway() {
    let env =
        TestEnv::with_options(SimOptions { speed: 20.0, error_rate: 0.0, ..SimOptions::default() }).await;
    env.configure("");
    let mut gateway = env.start();
    let base_url = format!("http://{}", gateway.address().await);
    let dir = examples();
    for (example, status) in
        [(REPLICATE_NODE, "succeeded"), (REPLICATE_PYTHON, "succeeded"), (OPENAI_PYTHON, "completed")]
    {
        let result = SdkClient::start(example, &dir, &base_url, &["a red door"]).finish().await;
        assert_eq!(result["status"], status, "{}", example.file);
        assert!(result["output"][0].is_string() || result["output"][0]["content"][0]["text"].is_string());
    }
}

#[tokio::test]
async fn ten_clients_of_two_replicate_sdks_alone_read_one_prediction_at_their_own_pace() {
    let env = TestEnv::new().await;
    let clients = ten_replicate_clients();
    let (results, reads) = follow_one_job(&env.sim, &env.upstream_url(), PREDICTION, &clients).await;
    assert!(results.iter().all(|result| result["status"] == "succeeded" && result["output"][0].is_string()));
    assert_direct(&reads, &clients);
}

#[tokio::test]
async fn ten_clients_of_the_openai_sdk_alone_read_one_response_at_their_own_pace() {
    let env = TestEnv::new().await;
    let clients = [OPENAI_PYTHON; 10];
    let (results, reads) = follow_one_job(&env.sim, &env.upstream_url(), RESPONSE, &clients).await;
    assert!(results.iter().all(|result| result["status"] == "completed" && result["output"].is_array()));
    assert_direct(&reads, &clients);
}
