//! `clipgate check --live` against the simulated upstream, directly and through a proxy.

use std::process::Output;
use std::time::Duration;

use clipgate::sim::{Fault, FaultTarget, SimOptions};
use tokio::process::Command;

use crate::harness::process::{TestEnv, within_timeout};

const KEY: &str = "sk-of-check";

async fn env_with_hold(hold: u64) -> TestEnv {
    let env =
        TestEnv::with_options(SimOptions { hold: Duration::from_millis(hold), ..SimOptions::default() })
            .await;
    env.sim.set_status("a", "queued");
    env
}

/// Runs `check --live` with the address of the upstream and these lines of configuration.
async fn check(env: &TestEnv, lines: &str, args: &[&str]) -> Output {
    let text = format!("upstream.base_url = \"{}\"\n{lines}\n", env.upstream_url());
    std::fs::write(env.path("check.toml"), text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_clipgate"));
    command.args(["check", "--live", "--config"]).arg(env.path("check.toml")).args(args);
    env.confine(&mut command);
    command.env("AIMLAPI_KEY", KEY);
    within_timeout("the end of check", command.output()).await.unwrap()
}

/// Returns the messages about a subject.
fn messages<'a>(output: &'a Output, subject: &str) -> Vec<&'a str> {
    assert!(!output.stdout.windows(KEY.len()).any(|window| window == KEY.as_bytes()));
    let text = std::str::from_utf8(&output.stdout).expect("the output is UTF-8");
    text.lines().filter_map(|line| line.trim_start().strip_prefix(subject)).map(str::trim_start).collect()
}

#[tokio::test]
async fn name_connection_and_key_are_reported_and_no_clip_is_requested() {
    let env = env_with_hold(1000).await;
    let output = check(&env, "", &[]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(messages(&output, "name")[0].starts_with("127.0.0.1 resolves to 127.0.0.1 ("), "{output:?}");
    assert!(
        messages(&output, "connect")[0].starts_with("the upstream responds with HTTP/1.1 ("),
        "{output:?}"
    );
    assert_eq!(messages(&output, "key"), ["the client's key is accepted"]);
    assert!(messages(&output, "hold")[0].starts_with("not tested: needs --job ID"), "{output:?}");
    assert!(env.sim.requests().iter().all(|seen| seen.target.contains("=00000000-")));
}

/// Returns the configuration of a member of a team, with a hash of this digit.
fn member(name: &str, key: &str, token: char) -> String {
    let hash = token.to_string().repeat(64);
    format!("[[team.members]]\nname = \"{name}\"\ntoken_sha256 = \"{hash}\"\nupstream_key = \"{key}\"\n")
}

#[tokio::test]
async fn each_members_key_is_tested_and_a_rejected_one_is_exit_code_2() {
    let env = env_with_hold(1000).await;
    env.sim.accept_keys(Some(&["sk-good".to_owned()]));
    let lines =
        format!("auth.mode = \"team\"\n{}{}", member("alice", "sk-good", 'a'), member("bob", "sk-gone", 'b'));
    let output = check(&env, &lines, &["--job", "a"]).await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let keys = messages(&output, "key");
    assert_eq!(keys[0], "the key of alice is accepted");
    assert!(keys[1].starts_with("error: the key of bob is rejected: 401 Unauthorized"), "{keys:?}");
    assert!(messages(&output, "hold").is_empty(), "no poll is held with a bad key");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("sk-g"));
}

#[tokio::test]
async fn a_key_that_members_share_is_tested_once() {
    let env = env_with_hold(1000).await;
    let shared: String = ('0'..='9').map(|digit| member(&format!("m{digit}"), "sk-shared", digit)).collect();
    let pair = member("alice", "sk-pair", 'a') + &member("bob", "sk-pair", 'b');
    let output = check(&env, &format!("auth.mode = \"team\"\n{shared}{pair}"), &[]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let expected = ["the key of m0, m1 and 8 others is accepted", "the key of alice and bob is accepted"];
    assert_eq!(messages(&output, "key"), expected);
    // The test of the connection needs a request too.
    assert_eq!(env.sim.requests().len(), 1 + expected.len());
}

#[tokio::test]
async fn an_unreachable_upstream_is_an_error_with_its_cause() {
    let env = env_with_hold(1000).await;
    let rows = [
        (
            "upstream.base_url = \"http://no-such-host.invalid\"",
            "name",
            "error: no-such-host.invalid does not resolve",
        ),
        ("upstream.base_url = \"http://127.0.0.1:1\"", "connect", "error: could not connect to the upstream"),
        ("", "connect", "error: the TLS handshake with the upstream failed"),
    ];
    for (lines, subject, expected) in rows {
        let secure = format!("upstream.base_url = \"{}\"", env.upstream_url().replace("http:", "https:"));
        std::fs::write(env.path("check.toml"), if lines.is_empty() { &secure } else { lines }).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_clipgate"));
        command.args(["check", "--live", "--config"]).arg(env.path("check.toml"));
        env.confine(&mut command);
        let output = within_timeout("the end of check", command.output()).await.unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(messages(&output, subject)[0].starts_with(expected), "{output:?}");
    }
    assert_eq!(rows.len(), 3);
}

#[tokio::test]
async fn the_time_that_a_poll_is_held_is_measured_and_compared() {
    let env = env_with_hold(600).await;
    let held = check(&env, "upstream.poll_timeout = \"600ms\"", &["--job", "a"]).await;
    let message = messages(&held, "hold")[0];
    assert!(
        message.starts_with("held for ") && message.ends_with(" s, as set by upstream.poll_timeout"),
        "{held:?}"
    );
    let short = check(&env, "upstream.poll_timeout = \"5s\"", &["--job", "a"]).await;
    let message = messages(&short, "hold")[0];
    assert!(message.starts_with("warning: held for "), "{short:?}");
    assert!(message.contains(" s only, but upstream.poll_timeout is 5s"), "{short:?}");
    assert_eq!((held.status.code(), short.status.code()), (Some(0), Some(0)));
}

#[tokio::test]
async fn a_cut_off_poll_is_reported_at_the_upstream_and_on_the_clients_way() {
    let env = env_with_hold(2000).await;
    let cut = Fault::reset_after(Duration::from_millis(300));
    env.sim.fault(FaultTarget::Clip("a".to_owned()), cut, 1);
    let behind = check(&env, "upstream.poll_timeout = \"2s\"", &["--job", "a"]).await;
    assert_eq!(behind.status.code(), Some(2), "{behind:?}");
    assert!(messages(&behind, "hold")[0].starts_with("error: cut off after "), "{behind:?}");

    let front = env_with_hold(2000).await;
    front.sim.fault(FaultTarget::Clip("a".to_owned()), Fault::status(504), 1);
    let args = ["--job", "a", "--through", &front.upstream_url()];
    let lines = "upstream.poll_timeout = \"2s\"\nwait.timeout = \"2s\"";
    let output = check(&env, lines, &args).await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(messages(&output, "hold")[0].starts_with("held for "), "{output:?}");
    let through = messages(&output, "through")[0];
    assert!(
        through.starts_with("error: cut off after ") && through.contains("504 Gateway Timeout"),
        "{through}"
    );
}

#[tokio::test]
async fn keys_are_sent_in_the_configured_field_and_an_upstream_without_keys_gets_none() {
    let own = "auth = { mode = \"sidecar\", send = \"x-key: Key {key}\" }\nupstream.api_key = \"sk-own\"";
    // (configuration, value of x-key, exit code)
    let rows = [
        (own.to_owned(), Some("Key sk-own"), 2),
        ("auth = { headers = [\"x-key\"] }".to_owned(), Some(KEY), 2),
        (
            "auth = { headers = [\"x-key\"], send = \"x-key: v1 {key}\" }".to_owned(),
            Some("v1 sk-of-check"),
            2,
        ),
        ("auth = { mode = \"open\" }".to_owned(), None, 0),
    ];
    for (lines, expected, code) in rows {
        let env = env_with_hold(1000).await;
        // The simulated upstream reads Authorization only, so it rejects other fields.
        let output = check(&env, &lines, &[]).await;
        assert_eq!(output.status.code(), Some(code), "{lines}: {output:?}");
        let requests = env.sim.requests();
        let last = requests.last().expect("the connection is tested");
        assert_eq!(last.headers.get("x-key").map(|value| value.to_str().unwrap()), expected, "{lines}");
        assert!(last.key.is_none(), "{lines}: no Authorization");
        if expected.is_none() {
            assert_eq!(messages(&output, "key"), ["not needed: auth.mode is \"open\""]);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(text.contains("mode      open"), "{text}");
        }
    }
}

#[tokio::test]
async fn a_job_is_read_through_the_configuration() {
    let env = env_with_hold(600).await;
    let route = |status: &str, more: &str| {
        format!(
            "[[routes]]\nname = \"clips\"\npath = \"/v2/generate/audio/suno-ai/clip\"\nid_param = \"clip_id\"\nstatus = \
             \"{status}\"\npending = [\"submitted\", \"queued\", \"streaming\"]\nsucceeded = [\"completed\", \"complete\"]\n{more}"
        )
    };
    let args = ["--route", "clips", "--id", "a"];
    let plain = check(&env, &route("/status", ""), &args).await;
    assert_eq!(plain.status.code(), Some(0), "{plain:?}");
    let job = messages(&plain, "job")[0];
    assert!(job.starts_with("clips: HTTP 200 after ") && messages(&plain, "hold").is_empty(), "{plain:?}");
    assert!(
        job.contains(
            "id \"a\" at /id, word \"queued\" at /status is state \"queued\" (unfinished), no Retry-After"
        ),
        "{job}"
    );
    let held = check(&env, &route("/status", "hold = \"600ms\"\nwait_param = \"status\"\n"), &args).await;
    assert_eq!(held.status.code(), Some(0), "{held:?}");
    assert!(messages(&held, "job")[0].contains("word \"queued\""), "{held:?}");
    assert!(messages(&held, "hold")[0].ends_with(" s, as set by hold of the route"), "{held:?}");
    let wrong = check(&env, &route("/state", ""), &args).await;
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    let problem = messages(&wrong, "job")[0];
    assert!(
        problem.starts_with("error: clips: HTTP 200") && problem.contains("the word \"\" at /state"),
        "{problem}"
    );
    let unknown = check(&env, &route("/status", ""), &["--route", "other", "--id", "a"]).await;
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("The configuration has clips."), "{unknown:?}");
}

#[tokio::test]
async fn fields_of_with_key_are_sent_where_header_sets_them_and_reported_elsewhere() {
    let env = env_with_hold(1000).await;
    let lines = "auth.with_key = [\"x-api-version\", \"x-beta\"]";
    let output = check(&env, lines, &["--header", "X-Api-Version: 2"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let warnings = messages(&output, "fields");
    assert!(
        warnings.len() == 1 && warnings[0].starts_with("warning: auth.with_key has x-beta"),
        "{warnings:?}"
    );
    let seen = env.sim.requests();
    assert!(!seen.is_empty() && seen.iter().all(|seen| seen.headers["x-api-version"] == "2"));
}
