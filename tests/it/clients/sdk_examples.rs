//! The examples with vendors' own SDKs, as a user runs them: the SDK polls, and the base URL is its only change.
//!
//! Needs Node with the package `replicate`, and Python with `replicate` and `openai`: `make tools` installs them.

use std::path::Path;
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

/// Loads the SDK once, then runs the example in this number of processes: loading takes most of the time of a start.
const FORKS: &str = "
import os, runpy, sys
import openai, replicate.client
count, sys.argv = int(sys.argv[1]), sys.argv[2:]
for _ in range(count):
    if os.fork() == 0:
        runpy.run_path(sys.argv[0], run_name='__main__')
        sys.stdout.flush()
        os._exit(0)
sys.exit(any(os.wait()[1] for _ in range(count)))
";

/// Running clients of one example.
struct SdkClients {
    child: Child,
    name: &'static str,
    count: usize,
}

impl SdkClients {
    /// Starts clients of an example and waits until each has its job.
    async fn start(example: SdkExample, count: usize, dir: &TempDir, base_url: &str, args: &[&str]) -> Self {
        let mut command = Command::new(example.program);
        if example.program == "python3" {
            command.args(["-c", FORKS, &count.to_string()]);
        } else {
            assert_eq!(count, 1, "{} runs one client", example.program);
        }
        let child = command
            .arg(dir.path().join(example.file))
            .args(args)
            .env("CLIPGATE_URL", base_url)
            .env(example.key, "key-1")
            // With it the lines of several processes mix.
            .env_remove("PYTHONUNBUFFERED")
            .env("no_proxy", "*")
            .env("NO_PROXY", "*")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}: run `make tools`", example.program));
        let mut clients = Self { child, name: example.file, count };
        clients.wait_until_waiting().await;
        clients
    }

    async fn wait_until_waiting(&mut self) {
        let mut lines = BufReader::new(self.child.stderr.as_mut().unwrap()).lines();
        let (mut waiting, mut others) = (0, Vec::new());
        while waiting < self.count {
            match within_timeout(self.name, lines.next_line()).await.unwrap() {
                Some(line) if line.starts_with("waiting for ") => waiting += 1,
                Some(line) => others.push(line),
                None => panic!("{}: run `make tools`? {others:#?}", self.name),
            }
        }
    }

    /// Returns the JSON that each client prints.
    async fn finish(mut self) -> Vec<Value> {
        let mut out = String::new();
        let reading = async {
            self.child.stdout.take().unwrap().read_to_string(&mut out).await.unwrap();
            self.child.wait().await.unwrap()
        };
        let code = within_timeout(self.name, reading).await;
        assert!(code.success(), "{}: {code}\n{out}", self.name);
        let parse = |line: &str| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{}: {error}\n{line}", self.name))
        };
        let results: Vec<Value> = out.lines().map(parse).collect();
        assert_eq!(results.len(), self.count, "{}", self.name);
        results
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
    clients: &[(SdkExample, usize)],
) -> (Vec<Value>, Reads) {
    let (dir, id) = (examples(), path.rsplit_once('/').unwrap().1);
    sim.set_job(vendor, id, words[0]);
    let mut running = Vec::new();
    for &(example, count) in clients {
        running.push(SdkClients::start(example, count, &dir, base_url, &["--id", id]).await);
    }
    sim.schedule_job(vendor, id, &[(words[1], Duration::from_secs(1)), (words[2], Duration::from_secs(3))]);
    let mut results = Vec::new();
    for client in running {
        results.extend(client.finish().await);
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

/// Each client of the Node SDK is a process, which takes long to start.
const TEN_OF_REPLICATE: [(SdkExample, usize); 2] = [(REPLICATE_PYTHON, 9), (REPLICATE_NODE, 1)];
const TEN_OF_OPENAI: [(SdkExample, usize); 1] = [(OPENAI_PYTHON, 10)];

/// Checks that each client has read the job for 3 s at its own interval.
fn assert_direct(reads: &Reads, clients: &[(SdkExample, usize)]) {
    // Half of the reads, for a busy machine.
    let least: u128 =
        clients.iter().map(|(example, count)| *count as u128 * 3000 / example.interval.as_millis() / 2).sum();
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
        let clients = SdkClients::start(example, 1, &dir, &base_url, &["a red door"]).await;
        let result = &clients.finish().await[0];
        assert_eq!(result["status"], status, "{}", example.file);
        assert!(result["output"][0].is_string() || result["output"][0]["content"][0]["text"].is_string());
    }
}

#[tokio::test]
async fn ten_clients_of_two_replicate_sdks_alone_read_one_prediction_at_their_own_pace() {
    let env = TestEnv::new().await;
    let (results, reads) = follow_one_job(&env.sim, &env.upstream_url(), PREDICTION, &TEN_OF_REPLICATE).await;
    assert!(results.iter().all(|result| result["status"] == "succeeded" && result["output"][0].is_string()));
    assert_direct(&reads, &TEN_OF_REPLICATE);
}

#[tokio::test]
async fn ten_clients_of_the_openai_sdk_alone_read_one_response_at_their_own_pace() {
    let env = TestEnv::new().await;
    let (results, reads) = follow_one_job(&env.sim, &env.upstream_url(), RESPONSE, &TEN_OF_OPENAI).await;
    assert!(results.iter().all(|result| result["status"] == "completed" && result["output"].is_array()));
    assert_direct(&reads, &TEN_OF_OPENAI);
}

/// Routes of both vendors, with a `live_ttl` of 1 s: that is their `pace`.
const ROUTES: &str = r#"
[[routes]]
preset = "replicate"

[[routes]]
preset = "openai-responses"
"#;

/// Checks that the upstream got one read for each `live_ttl`, whatever the number of clients.
fn assert_coalesced(reads: &Reads) {
    // One at the start of each `live_ttl`, and the last one.
    let most = usize::try_from(reads.span.as_secs()).unwrap() + 2;
    assert!(reads.count <= most, "{} reads in {:?}", reads.count, reads.span);
}

#[tokio::test]
async fn ten_clients_of_each_sdk_cost_one_read_a_second_through_the_gateway() {
    let env = TestEnv::new().await;
    env.configure(ROUTES);
    let mut gateway = env.start();
    let base_url = format!("http://{}", gateway.address().await);
    for (job, clients) in [(PREDICTION, &TEN_OF_REPLICATE[..]), (RESPONSE, &TEN_OF_OPENAI[..])] {
        let (results, reads) = follow_one_job(&env.sim, &base_url, job, clients).await;
        assert!(results.iter().all(|result| result["status"] == job.2[2]), "{results:#?}");
        assert_coalesced(&reads);
    }
}
