//! `clipgate check --live`, as a process, before the simulated upstream and what may stand on the way.

use std::process::Output;
use std::time::Duration;

use clipgate::sim::{Fault, FaultTarget, SimOptions};
use tokio::process::Command;

use crate::harness::process::{TestEnv, within_timeout};

const KEY: &str = "sk-of-check";

async fn ground(hold: u64) -> TestEnv {
    let ground =
        TestEnv::with_options(SimOptions { hold: Duration::from_millis(hold), ..SimOptions::default() })
            .await;
    ground.sim.set_status("a", "queued");
    ground
}

/// Checks with these lines of configuration, which the upstream's address comes first of.
async fn check(ground: &TestEnv, lines: &str, args: &[&str]) -> Output {
    let text = format!("upstream.base_url = \"{}\"\n{lines}\n", ground.upstream_url());
    std::fs::write(ground.path("check.toml"), text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_clipgate"));
    command.args(["check", "--live", "--config"]).arg(ground.path("check.toml")).args(args);
    ground.confine(&mut command);
    command.env("AIMLAPI_KEY", KEY);
    within_timeout("the end of check", command.output()).await.unwrap()
}

/// What it says about this, in so many lines.
fn says<'a>(output: &'a Output, about: &str) -> Vec<&'a str> {
    assert!(!output.stdout.windows(KEY.len()).any(|window| window == KEY.as_bytes()));
    let text = std::str::from_utf8(&output.stdout).expect("it writes UTF-8");
    text.lines().filter_map(|line| line.trim_start().strip_prefix(about)).map(str::trim_start).collect()
}

#[tokio::test]
async fn name_connection_and_key_are_told_and_no_clip_is_touched() {
    let ground = ground(1000).await;
    let output = check(&ground, "", &[]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(says(&output, "name")[0].starts_with("127.0.0.1 is 127.0.0.1 ("), "{output:?}");
    assert!(says(&output, "connect")[0].starts_with("it answers, in HTTP/1.1 ("), "{output:?}");
    assert_eq!(says(&output, "key"), ["the client's key is let in"]);
    assert!(says(&output, "hold")[0].starts_with("not tried: --job ID"), "{output:?}");
    assert!(ground.sim.requests().iter().all(|seen| seen.target.contains("=00000000-")));
}

#[tokio::test]
async fn each_members_key_is_tried_and_one_that_is_refused_is_exit_code_2() {
    let ground = ground(1000).await;
    ground.sim.accept_keys(Some(&["sk-good".to_owned()]));
    let member = |name: &str, key: &str, token: char| {
        let hash = token.to_string().repeat(64);
        format!("[[team.members]]\nname = \"{name}\"\ntoken_sha256 = \"{hash}\"\nupstream_key = \"{key}\"\n")
    };
    let lines =
        format!("auth.mode = \"team\"\n{}{}", member("alice", "sk-good", 'a'), member("bob", "sk-gone", 'b'));
    let output = check(&ground, &lines, &["--job", "a"]).await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let keys = says(&output, "key");
    assert_eq!(keys[0], "the key of alice is let in");
    assert!(keys[1].starts_with("FAULT: the key of bob is refused: 401 Unauthorized"), "{keys:?}");
    assert!(says(&output, "hold").is_empty(), "no poll is held with a bad key");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("sk-g"));
}

#[tokio::test]
async fn what_cannot_be_reached_is_a_fault_that_says_why() {
    let ground = ground(1000).await;
    let rows = [
        (
            "upstream.base_url = \"http://no-such-host.invalid\"",
            "name",
            "FAULT: no-such-host.invalid is not known",
        ),
        ("upstream.base_url = \"http://127.0.0.1:1\"", "connect", "FAULT: could not connect to the upstream"),
        ("", "connect", "FAULT: no secure connection to the upstream"),
    ];
    for (lines, about, told) in rows {
        let secure = format!("upstream.base_url = \"{}\"", ground.upstream_url().replace("http:", "https:"));
        std::fs::write(ground.path("check.toml"), if lines.is_empty() { &secure } else { lines }).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_clipgate"));
        command.args(["check", "--live", "--config"]).arg(ground.path("check.toml"));
        ground.confine(&mut command);
        let output = within_timeout("the end of check", command.output()).await.unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(says(&output, about)[0].starts_with(told), "{output:?}");
    }
    assert_eq!(rows.len(), 3);
}

#[tokio::test]
async fn how_long_a_poll_is_held_is_measured_and_compared() {
    let ground = ground(600).await;
    let held = check(&ground, "upstream.poll_timeout = \"600ms\"", &["--job", "a"]).await;
    let told = says(&held, "hold")[0];
    assert!(told.starts_with("held for ") && told.ends_with(" s, as upstream.poll_timeout says"), "{held:?}");
    let short = check(&ground, "upstream.poll_timeout = \"5s\"", &["--job", "a"]).await;
    let told = says(&short, "hold")[0];
    assert!(told.starts_with("warning: held for "), "{short:?}");
    assert!(told.contains(" s only, while upstream.poll_timeout is 5s"), "{short:?}");
    assert_eq!((held.status.code(), short.status.code()), (Some(0), Some(0)));
}

#[tokio::test]
async fn what_cuts_a_long_request_is_named_on_either_side() {
    let ground = ground(2000).await;
    let cut = Fault::reset_after(Duration::from_millis(300));
    ground.sim.fault(FaultTarget::Clip("a".to_owned()), cut, 1);
    let behind = check(&ground, "upstream.poll_timeout = \"2s\"", &["--job", "a"]).await;
    assert_eq!(behind.status.code(), Some(2), "{behind:?}");
    assert!(says(&behind, "hold")[0].starts_with("FAULT: cut off after "), "{behind:?}");

    let front = self::ground(2000).await;
    front.sim.fault(FaultTarget::Clip("a".to_owned()), Fault::status(504), 1);
    let args = ["--job", "a", "--through", &front.upstream_url()];
    let lines = "upstream.poll_timeout = \"2s\"\nwait.timeout = \"2s\"";
    let output = check(&ground, lines, &args).await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(says(&output, "hold")[0].starts_with("held for "), "{output:?}");
    let through = says(&output, "through")[0];
    assert!(
        through.starts_with("FAULT: cut off after ") && through.contains("504 Gateway Timeout"),
        "{through}"
    );
}
