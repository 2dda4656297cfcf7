//! Event streams with common clients: curl, Node's `eventsource`, Python's `httpx-sse`.
//!
//! `.ci/tools` installs them. Without them the tests fail.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;
use tokio_util::task::AbortOnDropHandle;

use crate::harness::gateway::{TestGateway, clip_target, clips_target, set_hold, within_secs};

/// Returns the path of a tool that `.ci/tools` installs.
pub(crate) fn tools(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target").join(path).display().to_string()
}

/// Starts a client. Returns its output.
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

/// Starts a gateway whose streams end after a second and whose polls do not linger, so that a reconnect opens a new
/// poll.
async fn short_stream_gateway() -> TestGateway {
    TestGateway::with(|config, options| {
        set_hold(Duration::from_secs(60), config, options);
        config.wait.max_timeout = Duration::from_secs(1);
        config.wait.linger = Duration::ZERO;
    })
    .await
}

/// Waits for the second poll for this rung, which follows a reconnect.
async fn until_reconnected(gateway: &TestGateway, rung: &str) {
    let is_for_rung = |target: &str| target.ends_with(rung);
    gateway
        .wait_until(|seen| seen.requests.iter().filter(|seen| is_for_rung(&seen.target)).count() == 2)
        .await;
}

#[tokio::test]
async fn curl_prints_the_events_in_every_http_version() {
    let gateway = TestGateway::with_hold(Duration::from_secs(60)).await;
    for flag in ["--http1.0", "--http1.1", "--http2-prior-knowledge"] {
        let id = flag.trim_start_matches('-');
        gateway.sim.set_status(id, "streaming");
        let url = format!("http://{}{}", gateway.address, clip_target(id, "completed"));
        let accept = ["--header", "Accept: text/event-stream", "--header", "Authorization: Bearer demo"];
        let curl = spawn(
            "curl",
            &[&["--silent", "--show-error", "--no-buffer", flag], &accept[..], &[&url]].concat(),
        );
        gateway.wait_until(|seen| seen.open == 1).await;
        gateway.sim.set_status(id, "completed");
        let output = curl.await.unwrap();
        let mut expected = "retry: 2000\n".to_owned();
        let digest = output.split_once("id: ").unwrap().1.split_once(':').unwrap().0;
        for rung in ["streaming", "completed"] {
            let body = String::from_utf8(gateway.sim.body(id, rung).to_vec()).unwrap();
            expected.push_str(&format!("event: status\nid: {digest}:{rung}\ndata: {body}\n\n"));
        }
        expected.push_str(&format!("event: done\nid: {digest}:over\ndata: {{}}\n\n"));
        assert_eq!(output, expected, "{flag}");
    }
}

#[tokio::test]
async fn nodes_eventsource_reconnects_and_stops_after_204() {
    const SCRIPT: &str = "
        const [library, url] = process.argv.slice(1);
        const { EventSource } = require(library);
        const source = new EventSource(url, {
            fetch: (input, init) =>
                fetch(input, { ...init, headers: { ...init.headers, Authorization: 'Bearer demo' } }),
        });
        const print = (...words) => console.log(JSON.stringify(words));
        let opened = 0;
        source.addEventListener('open', () => opened++);
        for (const name of ['status', 'done']) {
            source.addEventListener(name, ({ data }) => print(name, JSON.parse(data).status ?? null));
        }
        source.addEventListener('error', ({ code }) => {
            if (source.readyState === EventSource.CLOSED) print('closed', code, opened);
        });
    ";
    let gateway = short_stream_gateway().await;
    gateway.sim.set_status("a", "queued");
    let url = format!("http://{}{}", gateway.address, clip_target("a", "completed"));
    let node = spawn("node", &["--eval", SCRIPT, &tools("node/node_modules/eventsource"), &url]);
    until_reconnected(&gateway, "streaming").await;
    gateway.sim.set_status("a", "completed");
    let printed = lines(&node.await.unwrap());
    let status = |word: &str| json!(["status", word]);
    let Some((closed, events)) = printed.split_last() else { panic!("no output") };
    assert_eq!(events, [status("queued"), status("complete"), json!(["done", null])]);
    assert_eq!((&closed[0], &closed[1]), (&json!("closed"), &json!(204)));
    assert!(closed[2].as_u64().unwrap() >= 2, "{closed}");
}

#[tokio::test]
async fn pythons_httpx_sse_resumes_from_the_last_event_id() {
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
                data = json.loads(event.data)
                print(json.dumps([event.event, data.get('id'), data.get('status')]))
";
    let gateway = short_stream_gateway().await;
    gateway.sim.set_status("a", "queued");
    gateway.sim.set_status("b", "streaming");
    let url = format!("http://{}{}", gateway.address, clips_target(&["b", "a"], "completed"));
    let own = tools("python/bin/python3");
    let program = if Path::new(&own).exists() { own.as_str() } else { "python3" };
    let python = spawn(program, &["-c", SCRIPT, &url]);
    // The client has reconnected at least once.
    gateway.wait_until(|seen| seen.requests.len() >= 5 && seen.open == 2).await;
    gateway.sim.set_status("b", "error");
    gateway.wait_until(|seen| seen.open == 1).await;
    gateway.sim.set_status("a", "completed");
    let printed = lines(&python.await.unwrap());
    let status = |id: &str, word: &str| json!(["status", id, word]);
    let all =
        [status("b", "streaming"), status("a", "queued"), status("b", "error"), status("a", "complete")];
    assert_eq!(printed, [&all[..], &[json!(["done", null, null])]].concat());
}
