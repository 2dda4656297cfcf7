//! `clipgate watch` in front of a gateway and of the upstream itself.

use std::process::Output;
use std::time::Duration;

use clipgate::sim::{Fault, FaultTarget, Vendor};
use serde_json::Value;
use tokio::process::Command;

use crate::harness::process::{TestEnv, within_timeout};

const KEY: &str = "sk-of-watch";

/// Returns a `watch` command.
fn command(env: &TestEnv, url: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clipgate"));
    command.arg("watch").args(["--url", url]).args(args);
    env.confine(&mut command);
    command.env("AIMLAPI_KEY", KEY);
    command
}

async fn watch(env: &TestEnv, url: &str, args: &[&str]) -> Output {
    within_timeout("the end of watch", command(env, url, args).output()).await.unwrap()
}

fn text(bytes: &[u8]) -> &str {
    assert!(!bytes.windows(KEY.len()).any(|window| window == KEY.as_bytes()));
    std::str::from_utf8(bytes).expect("the output is UTF-8")
}

/// Returns the words of each line without the time at its start.
fn lines(bytes: &[u8]) -> Vec<Vec<&str>> {
    text(bytes).lines().map(|line| line.split_whitespace().skip(1).collect()).collect()
}

/// Returns the words of the line of a completed clip: its state, title, duration and address.
fn completed_line(id: &str) -> Vec<&str> {
    assert_eq!(id, "a", "title and duration of the simulated clip depend on its id");
    vec![id, "completed", "Größer", "als", "Berlin", "2:30", "https://cdn1.suno.ai/a.mp3"]
}

/// Sets a clip to its second rung, and to each later one once the command requests it.
fn advance_on_requests(env: &TestEnv, id: &'static str, last: &'static str) {
    env.sim.set_status(id, "queued");
    let sim = env.sim.clone();
    tokio::spawn(async move {
        let request_for = |word: &str| format!("clip_id={id}&status={word}");
        sim.wait_until(|seen| {
            seen.requests.iter().any(|seen| seen.target.contains(&request_for("streaming")))
        })
        .await;
        sim.set_status(id, "streaming");
        sim.wait_until(|seen| {
            seen.requests.iter().any(|seen| seen.target.contains(&request_for("completed")))
        })
        .await;
        sim.set_status(id, last);
    });
}

#[tokio::test]
async fn each_state_is_printed_once_through_a_gateway() {
    let env = TestEnv::new().await;
    env.configure("");
    let mut gateway = env.start();
    let url = format!("http://{}", gateway.address().await);
    advance_on_requests(&env, "a", "completed");
    env.sim.set_status("b", "completed");
    let output = watch(&env, &url, &["a", "b", "a"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let states = |id: &str| -> Vec<String> {
        let lines = lines(&output.stdout);
        lines.iter().filter(|line| line[0] == id).map(|line| line[1].to_owned()).collect()
    };
    assert_eq!(
        (states("a"), states("b")),
        (
            vec!["queued".to_owned(), "streaming".to_owned(), "completed".to_owned()],
            vec!["completed".to_owned()],
        )
    );
    assert_eq!(text(&output.stderr), "");
    assert_eq!(env.sim.requests().len(), 4, "three rungs of one clip, one of the other");
    for _ in 0..2 {
        let line = gateway.wait_for_log("event stream ended").await;
        assert!(line.contains("clipgate.events="), "{line}");
    }
}

#[tokio::test]
async fn the_path_of_a_job_selects_a_configured_route_or_a_preset() {
    let env = TestEnv::new().await;
    env.configure("[[routes]]\npreset = \"replicate\"\npace = \"50ms\"");
    let mut gateway = env.start();
    let url = format!("http://{}", gateway.address().await);
    let after = Duration::from_millis;
    let steps = [("starting", after(0)), ("processing", after(700)), ("succeeded", after(1400))];
    env.sim.schedule_job(Vendor::Replicate, "p", &steps);
    let output = watch(&env, &url, &["/v1/predictions/p"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let shown = lines(&output.stdout);
    let states: Vec<_> = ["starting", "processing", "succeeded"].map(|state| vec!["p", state]).into();
    assert_eq!(shown.iter().map(|line| &line[..2]).collect::<Vec<_>>(), states);
    assert_eq!(shown[2][2..], ["https://replicate.delivery/sim/p/out-0.png"], "the result of the job");
    gateway.wait_for_log("event stream ended").await;

    // The vendor itself has no events. Two jobs of one route with their paths, and one with its URL.
    let vendor = env.upstream_url();
    env.sim.set_job(Vendor::RunPod, "done", "COMPLETED");
    env.sim.set_job(Vendor::RunPod, "broken", "FAILED");
    let output = watch(&env, &vendor, &["/v2/e/status/done", "/v2/f/status/broken"]).await;
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    let mut shown = lines(&output.stdout);
    shown.sort_unstable();
    assert_eq!(shown, [["broken", "FAILED"], ["done", "COMPLETED"]]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_clipgate"));
    command.args(["watch", "--json", &format!("{vendor}/v1/predictions/p")]);
    env.confine(&mut command);
    command.env("AIMLAPI_KEY", KEY);
    let output = within_timeout("the end of watch", command.output()).await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let line: Value = serde_json::from_str(text(&output.stdout).lines().next().unwrap()).unwrap();
    assert_eq!((&line["status"], &line["job"]["status"]), (&"succeeded".into(), &"succeeded".into()));
}

#[tokio::test]
async fn json_output_has_the_clips_own_bytes_and_a_failed_clip_is_exit_code_3() {
    let env = TestEnv::new().await;
    advance_on_requests(&env, "a", "error");
    let output = watch(&env, &env.upstream_url(), &["a", "--json"]).await;
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    let objects: Vec<Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let states: Vec<&str> = objects.iter().filter_map(|object| object["status"].as_str()).collect();
    assert_eq!(states, ["queued", "streaming", "error"]);
    let clip: Value = serde_json::from_slice(&env.sim.body("a", "error")).unwrap();
    assert_eq!(objects[2]["job"], clip);
    assert_eq!((&objects[3]["id"], &objects[3]["end"]), (&"a".into(), &"failed".into()));
    assert_eq!(objects.len(), 4);
}

#[tokio::test]
async fn until_ends_at_an_earlier_state_and_a_timeout_is_exit_code_4() {
    let env = TestEnv::new().await;
    env.sim.set_status("a", "queued");
    let url = env.upstream_url();
    let reached = watch(&env, &url, &["a", "--until", "queued"]).await;
    assert_eq!((reached.status.code(), lines(&reached.stdout)), (Some(0), vec![vec!["a", "queued"]]));
    let late = watch(&env, &url, &["a", "--timeout", "300ms"]).await;
    assert_eq!((late.status.code(), lines(&late.stdout)), (Some(4), vec![vec!["a", "queued"]]));
    assert_eq!(lines(&late.stderr), vec![vec!["a", "out", "of", "time"]]);
}

#[tokio::test]
async fn a_rejected_request_prints_the_upstreams_message_and_is_exit_code_1() {
    let env = TestEnv::new().await;
    env.sim.set_status("a", "completed");
    let output = watch(&env, &env.upstream_url(), &["a", "nosuchclip"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(lines(&output.stdout), [completed_line("a")]);
    assert!(text(&output.stderr).contains("  nosuchclip  404 Not Found: "), "{}", text(&output.stderr));
    env.sim.accept_keys(Some(&["another".to_owned()]));
    let output = watch(&env, &env.upstream_url(), &["a"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("  a  401 Unauthorized"), "{}", text(&output.stderr));
}

#[tokio::test]
async fn failed_requests_are_retried() {
    let env = TestEnv::new().await;
    env.sim.set_status("a", "completed");
    env.sim.fault(FaultTarget::Polls, Fault::reset(), 1);
    env.sim.fault(FaultTarget::Polls, Fault::retry_after(503, Duration::from_secs(1)), 1);
    let output = watch(&env, &env.upstream_url(), &["a"]).await;
    assert_eq!((output.status.code(), lines(&output.stdout)), (Some(0), vec![completed_line("a")]));
    let retries = text(&output.stderr);
    assert_eq!(retries.matches("; retrying in ").count(), 2, "{retries}");
    assert!(
        retries.contains("503 Service Unavailable") && retries.contains("; retrying in 1.0 s"),
        "{retries}"
    );
}

#[tokio::test]
async fn a_terminal_shows_a_bar_for_each_clip_in_color_unless_no_color_is_set() {
    let env = TestEnv::new().await;
    env.sim.set_status("a", "completed");
    env.sim.set_status("b", "error");
    for (no_color, has_color) in [(false, true), (true, false)] {
        let line = format!("{} watch --url {} a b", env!("CARGO_BIN_EXE_clipgate"), env.upstream_url());
        let mut script = Command::new("script"); // from util-linux, runs the command in a new terminal
        script.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        env.confine(&mut script);
        script.env("AIMLAPI_KEY", KEY).env("TERM", "xterm-256color");
        if no_color {
            script.env("NO_COLOR", "1");
        }
        let output = within_timeout("the end of watch", script.output()).await.unwrap();
        assert_eq!(output.status.code(), Some(3));
        let shown = text(&output.stdout);
        assert!(shown.contains("a  ") && shown.contains("━━━━") && shown.contains("completed"), "{shown}");
        assert_eq!(shown.contains("\u{1b}[36m"), has_color, "{shown:?}");
    }
}

#[tokio::test]
async fn an_invalid_command_line_is_exit_code_2_with_a_hint() {
    let env = TestEnv::new().await;
    let rows = [
        (&["--until", "error", "a"][..], "submitted, queued, streaming, completed"),
        (&["--url", "ftp://x", "a"], "http://"),
        (&["--timeout", "5", "a"], "--timeout"),
        (&[], "<ID>"),
        (&[""], "ID"),
    ];
    for (args, hint) in rows {
        let mut command = Command::new(env!("CARGO_BIN_EXE_clipgate"));
        command.arg("watch").args(args);
        env.confine(&mut command);
        let output = within_timeout("the end of watch", command.output()).await.unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(text(&output.stderr).contains(hint), "{args:?}: {}", text(&output.stderr));
    }
    assert_eq!(rows.len(), 5);
    let literal = watch(&env, "http://127.0.0.1:1", &["a", "--key", "sk-typed"]).await;
    assert_eq!(literal.status.code(), Some(2));
    assert!(text(&literal.stderr).contains("env:NAME") && !text(&literal.stderr).contains("sk-typed"));
}

#[tokio::test]
async fn ids_and_responses_are_escaped_for_the_terminal() {
    let odd = "a\u{9b}2J\u{202e}\u{7f}";
    let env = TestEnv::new().await;
    env.sim.set_status(odd, "completed");
    let is_plain =
        |text: &str| text.chars().all(|shown| shown == '\n' || !(shown.is_control() || shown == '\u{202e}'));
    for args in [&[odd][..], &["--json", odd]] {
        let output = watch(&env, &env.upstream_url(), args).await;
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert!(is_plain(text(&output.stdout)), "{:?}", text(&output.stdout));
    }
    let output = watch(&env, &env.upstream_url(), &["--json", odd]).await;
    let line: Value = serde_json::from_str(text(&output.stdout).lines().next().unwrap()).unwrap();
    assert_eq!((&line["id"], &line["job"]["id"]), (&odd.into(), &odd.into()));
    // An error quotes the invalid value.
    std::fs::write(env.path("odd.toml"), "[server]\nlisten = \"a\u{9b}2J\u{202e}\"\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_clipgate"));
    command.args(["check", "--config", "odd.toml"]);
    env.confine(&mut command);
    let output = within_timeout("the end of check", command.output()).await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(is_plain(text(&output.stderr)), "{:?}", text(&output.stderr));
}

#[tokio::test]
async fn a_wrong_port_names_the_address_and_the_cause_and_header_adds_a_field() {
    let env = TestEnv::new().await;
    let output = watch(&env, "http://127.0.0.1:1", &["a", "--timeout", "300ms"]).await;
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let text = text(&output.stderr);
    for part in ["cannot connect to http://127.0.0.1:1: Connection refused", "--url", "retrying in"] {
        assert!(text.contains(part), "{text}");
    }
    env.sim.set_status("a", "completed");
    let output = watch(&env, &env.upstream_url(), &["a", "-H", "X-Api-Version: 2"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(env.sim.requests().iter().all(|seen| seen.headers["x-api-version"] == "2"));
}
