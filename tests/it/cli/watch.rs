//! `clipgate watch`, as a process, before a gateway and before the upstream itself.

use std::process::Output;
use std::time::Duration;

use clipgate::sim::{Fault, FaultTarget};
use serde_json::Value;
use tokio::process::Command;

use crate::harness::process::{TestEnv, within_timeout};

const KEY: &str = "sk-of-watch";

/// The command that follows these clips.
fn command(ground: &TestEnv, url: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clipgate"));
    command.arg("watch").args(["--url", url]).args(args);
    ground.confine(&mut command);
    command.env("AIMLAPI_KEY", KEY);
    command
}

async fn watch(ground: &TestEnv, url: &str, args: &[&str]) -> Output {
    within_timeout("the end of watch", command(ground, url, args).output()).await.unwrap()
}

fn text(bytes: &[u8]) -> &str {
    assert!(!bytes.windows(KEY.len()).any(|window| window == KEY.as_bytes()));
    std::str::from_utf8(bytes).expect("it writes UTF-8")
}

/// The words of each line but the time that opens it.
fn lines(bytes: &[u8]) -> Vec<Vec<&str>> {
    text(bytes).lines().map(|line| line.split_whitespace().skip(1).collect()).collect()
}

/// A clip that is on its second rung, and climbs on as soon as it is asked for the third.
fn climb(ground: &TestEnv, id: &'static str, last: &'static str) {
    ground.sim.set_status(id, "queued");
    let sim = ground.sim.clone();
    tokio::spawn(async move {
        let asks = |word: &str| format!("clip_id={id}&status={word}");
        sim.wait_until(|seen| seen.requests.iter().any(|seen| seen.target.contains(&asks("streaming"))))
            .await;
        sim.set_status(id, "streaming");
        sim.wait_until(|seen| seen.requests.iter().any(|seen| seen.target.contains(&asks("completed"))))
            .await;
        sim.set_status(id, last);
    });
}

#[tokio::test]
async fn each_state_is_a_line_once_through_a_gateway() {
    let ground = TestEnv::new().await;
    ground.configure("");
    let mut gateway = ground.start();
    let url = format!("http://{}", gateway.address().await);
    climb(&ground, "a", "completed");
    ground.sim.set_status("b", "completed");
    let output = watch(&ground, &url, &["a", "b", "a"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let of = |id: &str| -> Vec<String> {
        let lines = lines(&output.stdout);
        lines.iter().filter(|line| line[0] == id).map(|line| line[1].to_owned()).collect()
    };
    assert_eq!(
        (of("a"), of("b")),
        (
            vec!["queued".to_owned(), "streaming".to_owned(), "completed".to_owned()],
            vec!["completed".to_owned()],
        )
    );
    assert_eq!(text(&output.stderr), "");
    assert_eq!(ground.sim.requests().len(), 4, "three rungs of one clip, one of the other");
}

#[tokio::test]
async fn json_has_each_clips_own_bytes_and_a_failed_clip_is_exit_code_3() {
    let ground = TestEnv::new().await;
    climb(&ground, "a", "error");
    let output = watch(&ground, &ground.upstream_url(), &["a", "--json"]).await;
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    let objects: Vec<Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let states: Vec<&str> = objects.iter().filter_map(|object| object["status"].as_str()).collect();
    assert_eq!(states, ["queued", "streaming", "error"]);
    let clip: Value = serde_json::from_slice(&ground.sim.body("a", "error")).unwrap();
    assert_eq!(objects[2]["job"], clip);
    assert_eq!((&objects[3]["id"], &objects[3]["end"]), (&"a".into(), &"failed".into()));
    assert_eq!(objects.len(), 4);
}

#[tokio::test]
async fn until_ends_it_on_the_way_and_the_time_limit_is_exit_code_4() {
    let ground = TestEnv::new().await;
    ground.sim.set_status("a", "queued");
    let url = ground.upstream_url();
    let reached = watch(&ground, &url, &["a", "--until", "queued"]).await;
    assert_eq!((reached.status.code(), lines(&reached.stdout)), (Some(0), vec![vec!["a", "queued"]]));
    let late = watch(&ground, &url, &["a", "--timeout", "300ms"]).await;
    assert_eq!((late.status.code(), lines(&late.stdout)), (Some(4), vec![vec!["a", "queued"]]));
    assert_eq!(lines(&late.stderr), vec![vec!["a", "out", "of", "time"]]);
}

#[tokio::test]
async fn what_is_refused_is_told_with_the_upstreams_own_words_and_is_exit_code_1() {
    let ground = TestEnv::new().await;
    ground.sim.set_status("a", "completed");
    let output = watch(&ground, &ground.upstream_url(), &["a", "nosuchclip"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(lines(&output.stdout), vec![vec!["a", "completed"]]);
    assert!(text(&output.stderr).contains("  nosuchclip  404 Not Found: "), "{}", text(&output.stderr));
    ground.sim.accept_keys(Some(&["another".to_owned()]));
    let output = watch(&ground, &ground.upstream_url(), &["a"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("  a  401 Unauthorized"), "{}", text(&output.stderr));
}

#[tokio::test]
async fn a_connection_that_breaks_is_made_again() {
    let ground = TestEnv::new().await;
    ground.sim.set_status("a", "completed");
    ground.sim.fault(FaultTarget::Polls, Fault::reset(), 1);
    ground.sim.fault(FaultTarget::Polls, Fault::retry_after(503, Duration::from_secs(1)), 1);
    let output = watch(&ground, &ground.upstream_url(), &["a"]).await;
    assert_eq!((output.status.code(), lines(&output.stdout)), (Some(0), vec![vec!["a", "completed"]]));
    let troubles = text(&output.stderr);
    assert_eq!(troubles.matches("asking again in ").count(), 2, "{troubles}");
    assert!(
        troubles.contains("503 Service Unavailable") && troubles.contains("asking again in 1.0 s"),
        "{troubles}"
    );
}

#[tokio::test]
async fn a_terminal_gets_a_bar_for_each_clip_in_color_unless_no_color_is_set() {
    let ground = TestEnv::new().await;
    ground.sim.set_status("a", "completed");
    ground.sim.set_status("b", "error");
    for (no_color, has_color) in [(false, true), (true, false)] {
        let line = format!("{} watch --url {} a b", env!("CARGO_BIN_EXE_clipgate"), ground.upstream_url());
        let mut script = Command::new("script"); // a terminal of its own, from util-linux
        script.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        ground.confine(&mut script);
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
async fn a_bad_line_is_exit_code_2_and_names_what_to_give() {
    let ground = TestEnv::new().await;
    let rows = [
        (&["--until", "error", "a"][..], "submitted, queued, streaming, completed"),
        (&["--url", "ftp://x", "a"], "http://"),
        (&["--timeout", "5", "a"], "--timeout"),
        (&[], "<ID>"),
        (&[""], "ID"),
    ];
    for (args, told) in rows {
        let mut command = Command::new(env!("CARGO_BIN_EXE_clipgate"));
        command.arg("watch").args(args);
        ground.confine(&mut command);
        let output = within_timeout("the end of watch", command.output()).await.unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(text(&output.stderr).contains(told), "{args:?}: {}", text(&output.stderr));
    }
    assert_eq!(rows.len(), 5);
    let literal = watch(&ground, "http://127.0.0.1:1", &["a", "--key", "sk-typed"]).await;
    assert_eq!(literal.status.code(), Some(1));
    assert!(text(&literal.stderr).contains("env:NAME") && !text(&literal.stderr).contains("sk-typed"));
}

#[tokio::test]
async fn nothing_that_comes_from_elsewhere_acts_on_the_terminal() {
    let odd = "a\u{9b}2J\u{202e}\u{7f}";
    let ground = TestEnv::new().await;
    ground.sim.set_status(odd, "completed");
    let is_plain =
        |text: &str| text.chars().all(|shown| shown == '\n' || !(shown.is_control() || shown == '\u{202e}'));
    for args in [&[odd][..], &["--json", odd]] {
        let output = watch(&ground, &ground.upstream_url(), args).await;
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert!(is_plain(text(&output.stdout)), "{:?}", text(&output.stdout));
    }
    let output = watch(&ground, &ground.upstream_url(), &["--json", odd]).await;
    let line: Value = serde_json::from_str(text(&output.stdout).lines().next().unwrap()).unwrap();
    assert_eq!((&line["id"], &line["job"]["id"]), (&odd.into(), &odd.into()));
    // An error quotes the line of the file that is wrong.
    std::fs::write(ground.path("odd.toml"), "[server]\nlisten = \"a\u{9b}2J\u{202e}\"\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_clipgate"));
    command.args(["check", "--config", "odd.toml"]);
    ground.confine(&mut command);
    let output = within_timeout("the end of check", command.output()).await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(is_plain(text(&output.stderr)), "{:?}", text(&output.stderr));
}
