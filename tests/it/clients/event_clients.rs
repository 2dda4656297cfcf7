//! Event streams as the usual clients read them: curl, Node's `eventsource`, Python's `httpx-sse`.
//!
//! `.ci/tools` installs them. Without them the tests fail.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;
use tokio_util::task::AbortOnDropHandle;

use crate::harness::gateway::{TestGateway, clip_target, clips_target, set_hold, within_secs};

/// Where `.ci/tools` puts what the system has not.
pub(crate) fn tools(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target").join(path).display().to_string()
}

/// A client, beside the test; what it prints.
fn spawn(program: &str, args: &[&str]) -> AbortOnDropHandle<String> {
    let mut command = Command::new(program);
    command.args(args).env("no_proxy", "*").env("NO_PROXY", "*").stdin(Stdio::null()).kill_on_drop(true);
    let name = program.to_owned();
    AbortOnDropHandle::new(tokio::spawn(async move {
        let output =
            within_secs(60, command.output()).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{name}: {}, run `make tools`?\n{out}\n{err}", output.status);
        out.into_owned()
    }))
}

fn lines(output: &str) -> Vec<Value> {
    output.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Holds for long; streams end after a second, so that clients connect anew, and find no poll of theirs there.
async fn impatient_stage() -> TestGateway {
    TestGateway::with(|config, options| {
        set_hold(Duration::from_secs(60), config, options);
        config.wait.max_timeout = Duration::from_secs(1);
        config.wait.linger = Duration::ZERO;
    })
    .await
}

/// Comes back when a client has connected for the second time, and waits for this rung again.
async fn until_anew(stage: &TestGateway, rung: &str) {
    let asks = |target: &str| target.ends_with(rung);
    stage.wait_until(|seen| seen.requests.iter().filter(|seen| asks(&seen.target)).count() == 2).await;
}

#[tokio::test]
async fn curl_prints_the_events_in_each_version_of_http_it_speaks() {
    let stage = TestGateway::with_hold(Duration::from_secs(60)).await;
    for flag in ["--http1.0", "--http1.1", "--http2-prior-knowledge"] {
        let id = flag.trim_start_matches('-');
        stage.sim.set_status(id, "streaming");
        let url = format!("http://{}{}", stage.address, clip_target(id, "completed"));
        let accept = ["--header", "Accept: text/event-stream", "--header", "Authorization: Bearer demo"];
        let curl = spawn(
            "curl",
            &[&["--silent", "--show-error", "--no-buffer", flag], &accept[..], &[&url]].concat(),
        );
        stage.wait_until(|seen| seen.open == 1).await;
        stage.sim.set_status(id, "completed");
        let output = curl.await.unwrap();
        let mut expected = "retry: 2000\n".to_owned();
        let digest = output.split_once("id: ").unwrap().1.split_once(':').unwrap().0;
        for rung in ["streaming", "completed"] {
            let body = String::from_utf8(stage.sim.body(id, rung).to_vec()).unwrap();
            expected.push_str(&format!("event: status\nid: {digest}:{rung}\ndata: {body}\n\n"));
        }
        expected.push_str(&format!("event: done\nid: {digest}:over\ndata: {{}}\n\n"));
        assert_eq!(output, expected, "{flag}");
    }
}

#[tokio::test]
async fn nodes_eventsource_connects_anew_and_stops_when_it_is_told_to() {
    const SCRIPT: &str = "
        const [library, url] = process.argv.slice(1);
        const { EventSource } = require(library);
        const source = new EventSource(url, {
            fetch: (input, init) =>
                fetch(input, { ...init, headers: { ...init.headers, Authorization: 'Bearer demo' } }),
        });
        const say = (...words) => console.log(JSON.stringify(words));
        let opened = 0;
        source.addEventListener('open', () => opened++);
        for (const name of ['status', 'done']) {
            source.addEventListener(name, ({ data }) => say(name, JSON.parse(data).status ?? null));
        }
        source.addEventListener('error', ({ code }) => {
            if (source.readyState === EventSource.CLOSED) say('closed', code, opened);
        });
    ";
    let stage = impatient_stage().await;
    stage.sim.set_status("a", "queued");
    let url = format!("http://{}{}", stage.address, clip_target("a", "completed"));
    let node = spawn("node", &["--eval", SCRIPT, &tools("node/node_modules/eventsource"), &url]);
    until_anew(&stage, "streaming").await;
    stage.sim.set_status("a", "completed");
    let told = lines(&node.await.unwrap());
    let status = |word: &str| json!(["status", word]);
    let Some((closed, told)) = told.split_last() else { panic!("it tells nothing") };
    assert_eq!(told, [status("queued"), status("complete"), json!(["done", null])]);
    assert_eq!((&closed[0], &closed[1]), (&json!("closed"), &json!(204)));
    assert!(closed[2].as_u64().unwrap() >= 2, "{closed}");
}

#[tokio::test]
async fn pythons_httpx_sse_reads_the_events_and_goes_on_from_the_last_id() {
    const SCRIPT: &str = "
import json, sys, httpx
from httpx_sse import connect_sse
url, last = sys.argv[1], ''
with httpx.Client(headers={'Authorization': 'Bearer demo'}, timeout=60, trust_env=False) as client:
    while True:
        with connect_sse(client, 'GET', url, headers={'Last-Event-ID': last}) as source:
            if source.response.status_code == 204:
                break
            for event in source.iter_sse():
                last = event.id
                told = json.loads(event.data)
                print(json.dumps([event.event, told.get('id'), told.get('status')]))
";
    let stage = impatient_stage().await;
    stage.sim.set_status("a", "queued");
    stage.sim.set_status("b", "streaming");
    let url = format!("http://{}{}", stage.address, clips_target(&["b", "a"], "completed"));
    let own = tools("python/bin/python3");
    let program = if Path::new(&own).exists() { own.as_str() } else { "python3" };
    let python = spawn(program, &["-c", SCRIPT, &url]);
    // Two clips that climb, connected for at least the second time.
    stage.wait_until(|seen| seen.requests.len() >= 5 && seen.open == 2).await;
    stage.sim.set_status("b", "error");
    stage.wait_until(|seen| seen.open == 1).await;
    stage.sim.set_status("a", "completed");
    let told = lines(&python.await.unwrap());
    let status = |id: &str, word: &str| json!(["status", id, word]);
    let all =
        [status("b", "streaming"), status("a", "queued"), status("b", "error"), status("a", "complete")];
    assert_eq!(told, [&all[..], &[json!(["done", null, null])]].concat());
}
