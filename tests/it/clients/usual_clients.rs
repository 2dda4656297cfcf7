//! `clipgate serve --sim` with common clients: curl, Node, Python.
//!
//! Needs the packages curl (with HTTP/2), nodejs (18 or later) and python3-requests. Without them the tests fail.

use serde_json::Value;

use crate::harness::command::{ClipgateProcess, run, try_run};
use crate::harness::raw_http::CLIP;

fn simulated() -> ClipgateProcess {
    ClipgateProcess::start(&["serve", "--sim", "--speed", "200", "--listen", "127.0.0.1:0"], &[])
}

fn curl(args: &[&str]) -> String {
    run("curl", "curl", &[&["--silent", "--show-error", "--globoff", "--max-time", "20"], args].concat())
}

const AUTH: [&str; 2] = ["--header", "Authorization: Bearer demo"];

/// Creates two clips.
fn create_clips(base: &str) -> [String; 2] {
    let url = format!("{base}{CLIP}");
    let answer: Value = serde_json::from_str(&curl(&[&AUTH[..], &["--data", "{}", &url]].concat())).unwrap();
    [0, 1].map(|n| answer["clip_ids"][n].as_str().unwrap().to_owned())
}

#[test]
fn the_curl_commands_that_serve_sim_prints_work_unchanged() {
    let mut gateway = simulated();
    gateway.ready();
    let mut script = vec!["set -euo pipefail".to_owned()];
    let mut calls = 0;
    loop {
        let line = gateway.next_line();
        let is_command = line.starts_with("  ") && !line.trim_start().starts_with('#');
        calls += usize::from(is_command && line.trim_start().starts_with("curl "));
        let is_last = calls == 6 && !line.ends_with('\\');
        if is_command {
            script.push(line);
        }
        if is_last {
            break;
        }
    }
    let dir = tempfile::tempdir().unwrap();
    script.insert(1, format!("cd '{}'", dir.path().display()));
    try_run("curl", "curl", &["--version"]);
    let output = run("bash", "bash", &["-c", &script.join("\n")]);
    let ids: Value = serde_json::from_slice(&std::fs::read(dir.path().join("clips.json")).unwrap()).unwrap();
    assert_eq!(output.matches("HTTP/1.1 200 OK").count(), 4, "{output}");
    assert_eq!(output.matches("cache-status: clipgate; ").count(), 4, "{output}");
    let [first, second] = [0, 1].map(|n| format!("\"id\":\"{}\"", ids["clip_ids"][n].as_str().unwrap()));
    assert!(output.matches(&first).count() >= 3 && output.contains(&second), "{output}");
    let prediction = std::fs::read(dir.path().join("prediction.json")).unwrap();
    let prediction: Value = serde_json::from_slice(&prediction).unwrap();
    let (_, answer) = output.split_once("preference-applied: wait=").unwrap();
    let answer: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(answer["id"], prediction["id"], "{output}");
    assert!(matches!(answer["status"].as_str(), Some("succeeded" | "failed")), "{output}");
    let (_, log) = gateway.stop();
    assert!(!log.contains(" WARN "), "{log}");
}

#[test]
fn serve_sim_with_configured_routes_serves_these_and_prints_commands_for_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    std::fs::write(&config, "[[routes]]\npreset = \"replicate\"\n").unwrap();
    let config = config.to_str().unwrap();
    let args = ["serve", "--sim", "--speed", "200", "--listen", "127.0.0.1:0", "--config", config];
    let mut gateway = ClipgateProcess::start(&args, &[]);
    let base = format!("http://{}", gateway.ready());
    let mut lines = Vec::new();
    while !lines.last().is_some_and(|line: &String| line.contains("Prefer: wait")) {
        lines.push(gateway.next_line());
    }
    assert!(!lines.concat().contains(CLIP), "{lines:#?}");
    let url = format!("{base}/v1/predictions");
    let prediction: Value =
        serde_json::from_str(&curl(&[&AUTH[..], &["--data", "{}", &url]].concat())).unwrap();
    let url = format!("{url}/{}", prediction["id"].as_str().unwrap());
    let waits = |url: &str| curl(&[&AUTH[..], &["--include", "--header", "Prefer: wait", url]].concat());
    assert!(waits(&url).contains("\npreference-applied: wait="), "the route of the file is used");
    // Without a route for clips a GET is passed through.
    let [clip, _] = create_clips(&base);
    let answer = waits(&format!("{base}{CLIP}?clip_id={clip}"));
    assert!(answer.starts_with("HTTP/1.1 200 OK") && !answer.contains("\npreference-applied"), "{answer}");
}

#[test]
fn curl_gets_a_response_in_every_http_version() {
    let mut gateway = simulated();
    let base = format!("http://{}", gateway.ready());
    let [one, other] = create_clips(&base);
    let url = format!("{base}{CLIP}s?clip_ids[]={one}&clip_ids[]={other}&status=completed");
    let rows = [
        ("--http1.0", &["1", "1.0", "1.1"][..]),
        ("--http1.1", &["1.1"]),
        ("--http2", &["1.1"]), // the upgrade to h2c is ignored
        ("--http2-prior-knowledge", &["2"]),
    ];
    let mut bodies = Vec::new();
    for (flag, versions) in rows {
        let args = [flag, "--write-out", "\n%{http_code} %{http_version}", &url];
        let output = curl(&[&AUTH[..], &args].concat());
        let (body, last_line) = output.rsplit_once('\n').unwrap();
        let (code, version) = last_line.split_once(' ').unwrap();
        assert!(code == "200" && versions.contains(&version), "{flag}: {last_line}");
        let clips: Value = serde_json::from_str(body).unwrap();
        assert_eq!((&clips[0]["id"], &clips[1]["id"]), (&one.as_str().into(), &other.as_str().into()));
        bodies.push(body.to_owned());
    }
    assert!(bodies.iter().all(|body| *body == bodies[0]));
}

/// Checks the output of a client: a line of JSON for the POST, for each wait, and for the wait on both clips.
fn assert_waited(output: &str) {
    let lines: Vec<Value> = output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [created, streaming, completed, both] = &lines[..] else { panic!("{output}") };
    assert_eq!(created["status"], 201, "{output}");
    let reached = |answer: &Value, words: &[&str]| {
        assert_eq!(answer["status"], 200, "{output}");
        assert!(answer["cacheStatus"].as_str().unwrap().starts_with("clipgate; "), "{output}");
        let clips = answer["body"].as_array().unwrap_or_else(|| panic!("{output}"));
        for (clip, id) in clips.iter().zip(created["body"]["clip_ids"].as_array().unwrap()) {
            assert_eq!(clip["id"], *id, "{output}");
            assert!(words.contains(&clip["status"].as_str().unwrap()), "{output}");
        }
        clips.len()
    };
    let lengths = [
        reached(streaming, &["streaming", "complete", "error"]),
        reached(completed, &["complete", "error"]),
        reached(both, &["complete", "error"]),
    ];
    assert_eq!(lengths, [1, 1, 2]);
}

#[test]
fn nodes_fetch_creates_clips_and_waits() {
    const SCRIPT: &str = "
        const [base, path] = process.argv.slice(1);
        const headers = { authorization: 'Bearer demo', 'content-type': 'application/json' };
        const print = async (answer, wrap) => {
            const body = await answer.json();
            const cacheStatus = answer.headers.get('cache-status');
            console.log(JSON.stringify({ status: answer.status, cacheStatus, body: wrap ? [body] : body }));
            return body;
        };
        const post = { method: 'POST', headers, body: JSON.stringify({ prompt: 'night drive' }) };
        const { clip_ids: ids } = await print(await fetch(base + path, post));
        for (const status of ['streaming', 'completed']) {
            const query = new URLSearchParams({ clip_id: ids[0], status });
            await print(await fetch(`${base}${path}?${query}`, { headers }), true);
        }
        const query = new URLSearchParams([...ids.map((id) => ['clip_ids[]', id]), ['status', 'completed']]);
        await print(await fetch(`${base}${path}s?${query}`, { headers }));
    ";
    let mut gateway = simulated();
    let base = format!("http://{}", gateway.ready());
    assert_waited(&run("node", "nodejs", &["--input-type=module", "--eval", SCRIPT, &base, CLIP]));
}

#[test]
fn pythons_requests_creates_clips_and_waits() {
    const SCRIPT: &str = "
import json, sys, requests
base, path = sys.argv[1:]
session = requests.Session()
session.headers['authorization'] = 'Bearer demo'
def show(answer, wrap=False):
    body = answer.json()
    cache_status = answer.headers.get('cache-status')
    print(json.dumps({'status': answer.status_code, 'cacheStatus': cache_status, 'body': [body] if wrap else body}))
    return body
ids = show(session.post(base + path, json={'prompt': 'night drive'}, timeout=20))['clip_ids']
for status in ['streaming', 'completed']:
    show(session.get(base + path, params={'clip_id': ids[0], 'status': status}, timeout=20), True)
show(session.get(base + path + 's', params={'clip_ids[]': ids, 'status': 'completed'}, timeout=20))
";
    let found = try_run("python3", "python3", &["-c", "import requests"]);
    assert!(found.status.success(), "python3 has no `requests`: install the package `python3-requests`");
    let mut gateway = simulated();
    let base = format!("http://{}", gateway.ready());
    assert_waited(&run("python3", "python3", &["-c", SCRIPT, &base, CLIP]));
}

#[test]
fn curl_can_use_a_unix_socket_which_is_removed_after_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("clipgate.sock");
    let path = path.to_str().unwrap();
    let listen = format!("unix:{path}");
    let mut gateway = ClipgateProcess::start(&["serve", "--sim", "--speed", "200", "--listen", &listen], &[]);
    assert_eq!(gateway.ready(), listen);
    let args = ["--unix-socket", path, "--data", "{}", "--include", &format!("http://localhost{CLIP}")];
    let output = curl(&[&AUTH[..], &args].concat());
    assert!(output.starts_with("HTTP/1.1 201 Created") && output.contains("clip_ids"), "{output}");
    let (code, log) = gateway.stop();
    assert_eq!(code, Some(0), "{log}");
    assert!(!std::path::Path::new(path).exists());
}

#[test]
fn sigterm_ends_the_gateway_with_status_0() {
    let mut gateway = simulated();
    let base = format!("http://{}", gateway.ready());
    create_clips(&base);
    let (code, log) = gateway.stop();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("SIGTERM") && log.contains("stopped"), "{log}");
}

#[test]
fn an_invalid_configuration_ends_the_gateway_with_status_2_and_names_the_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.toml");
    std::fs::write(&path, "[wait]\nlinger = 2\n").unwrap();
    let binary = env!("CARGO_BIN_EXE_clipgate");
    for args in [&["serve", "--config", path.to_str().unwrap()][..], &["serve", "--listen", "nowhere"]] {
        let output = try_run(binary, "clipgate", args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains("wait.linger") || stderr.contains("--listen"), "{stderr}");
        assert!(output.stdout.is_empty(), "a ready line was printed");
    }
}
