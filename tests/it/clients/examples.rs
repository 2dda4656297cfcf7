//! The programs in `examples/`, as a user runs them.
//!
//! Needs curl, Node, Python with `requests`, and Chromium: `make tools` installs them. Without them the tests fail.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use clipgate::sim::{Fault, FaultTarget};
use clipgate::testing::config::AuthMode;
use clipgate::testing::secret::Secret;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::harness::browser::{Browser, DESKTOP};
use crate::harness::gateway::{TestGateway, set_hold, within_secs};
use crate::harness::raw_upstream::{AfterHead, RawUpstream};

const KEY: &str = "key-1";

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

/// Runs an example against a gateway. Waits end long before the clips are finished, and the upstream rejects the first
/// request with this status. Returns the JSON on stdout of the example.
async fn run(program: &str, name: &str, status: u16) -> Value {
    let gateway = TestGateway::with(|config, options| {
        set_hold(Duration::from_secs(60), config, options);
        config.wait.timeout = Duration::from_millis(100);
        options.speed = 100.0;
        options.error_rate = 0.0;
        options.keys = Some(vec![KEY.to_owned()]);
    })
    .await;
    let path = FaultTarget::Path("/v2/".to_owned());
    gateway.sim.fault(path, Fault::retry_after(status, Duration::from_secs(1)), 1);
    let output = Command::new(program)
        .arg(example(name))
        .env("CLIPGATE_URL", format!("http://{}", gateway.address))
        .env("AIMLAPI_KEY", KEY)
        .env("no_proxy", "*")
        .env("NO_PROXY", "*")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output =
        within_secs(60, output).await.unwrap_or_else(|error| panic!("{program}: {error}: run `make tools`"));
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success(), "{name}: {}, run `make tools`?\n{stdout}\n{stderr}", output.status);
    assert!(stderr.contains(&format!("{status}, asking again in 1 s")), "{name}: {stderr}");
    assert!(stderr.contains("waiting for "), "{name}: {stderr}");
    serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{name}: {error}\n{stdout}"))
}

#[tokio::test]
async fn curl_creates_a_clip_and_waits_for_it() {
    assert_eq!(run("bash", "curl.sh", 503).await["status"], "complete");
}

#[tokio::test]
async fn node_creates_a_clip_and_waits_for_it() {
    assert_eq!(run("node", "node.mjs", 429).await["status"], "complete");
}

#[tokio::test]
async fn python_creates_two_clips_and_waits_for_both() {
    let clips = run("python3", "python.py", 503).await;
    let statuses: Vec<&Value> = clips.as_array().unwrap().iter().map(|clip| &clip["status"]).collect();
    assert_eq!(statuses, ["complete", "complete"]);
}

/// P10.
#[tokio::test]
async fn the_web_page_shows_each_state_of_a_clip() {
    let page = std::fs::read(example("event-source.html")).unwrap();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\n\r\n";
    let site = RawUpstream::start(head, AfterHead::Bytes(Bytes::from(page))).await;
    let origin = site.url.to_string().trim_end_matches('/').to_owned();
    let gateway = TestGateway::with(|config, options| {
        set_hold(Duration::from_secs(60), config, options);
        config.server.cors_origins = vec![origin.clone()];
        config.auth.mode = AuthMode::Sidecar;
        config.upstream.api_key = Some(Secret::new(KEY));
    })
    .await;
    gateway.sim.set_status("a", "queued");
    let mut browser = Browser::start();
    let url = format!("{origin}/event-source.html?gateway=http://{}&clip=a", gateway.address);
    assert_eq!(browser.open(&url, DESKTOP, None).await, 200);
    for (count, next) in [(1, "streaming"), (2, "completed")] {
        browser.wait_until(&format!("document.querySelectorAll('#states li').length === {count}")).await;
        gateway.sim.set_status("a", next);
    }
    browser.wait_until_text("#message", "done").await;
    let states =
        browser.eval("[...document.querySelectorAll('#states li')].map((li) => li.textContent)").await;
    assert_eq!(states, json!(["queued", "streaming", "complete"]));
}
