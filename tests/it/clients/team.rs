//! Team mode: tokens of the gateway, and the upstream keys of its members.

use std::process::Command;

use clipgate::sim::{Sim, SimOptions};
use clipgate::testing::auth::token_sha256;
use clipgate::testing::config::{AuthMode, Config, TeamMember};
use clipgate::testing::secret::Secret;
use http::header::AUTHORIZATION;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::net::TcpListener;

use crate::harness::command::ClipgateProcess;
use crate::harness::gateway::{Answer, TestGateway, clip_target, within_secs};

/// (name, token, upstream key)
pub(crate) type Row = (&'static str, &'static str, &'static str);

const ALICE: Row = ("alice", "cg_token-of-alice", "sk-one");
const BOB: Row = ("bob", "cg_token-of-bob", "sk-one");
const CAROL: Row = ("carol", "cg_token-of-carol", "sk-two");
const TEAM: [Row; 3] = [ALICE, BOB, CAROL];

pub(crate) fn member((name, token, key): Row) -> TeamMember {
    TeamMember {
        name: name.to_owned(),
        token_sha256: token_sha256(token.as_bytes()),
        upstream_key: Secret::new(key),
        requests_per_second: None,
        burst: None,
        calls_per_second: None,
        calls_burst: None,
    }
}

fn team(rows: &[Row]) -> AuthMode {
    AuthMode::Team(rows.iter().copied().map(member).collect())
}

fn with_mode(mode: AuthMode) -> Config {
    let mut config = Config::default();
    config.auth.mode = mode;
    config
}

async fn gateway() -> TestGateway {
    gateway_with(team(&TEAM)).await
}

async fn gateway_with(auth: AuthMode) -> TestGateway {
    TestGateway::with(|config, options| {
        config.auth.mode = auth;
        options.keys = Some(vec!["sk-one".to_owned(), "sk-two".to_owned()]);
    })
    .await
}

fn bearer((_, token, _): Row) -> String {
    format!("Bearer {token}")
}

async fn get(gateway: &TestGateway, target: &str, row: Row) -> Answer {
    gateway.get(target, &[("authorization", &bearer(row))]).await
}

fn request(method: &str, target: &str, fields: &[(&str, &str)]) -> Request<Full<bytes::Bytes>> {
    let mut request = Request::builder().method(method).uri(target);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(Full::default()).expect("the request is valid")
}

fn has_key(gateway: &TestGateway, nth: usize, key: &str) -> bool {
    gateway.sim.requests()[nth].key.is_some_and(|seen| seen.matches(key))
}

#[tokio::test]
async fn a_token_is_replaced_by_the_upstream_key_of_its_member() {
    let gateway = gateway().await;
    gateway.sim.set_status("a", "completed");
    let wait = get(&gateway, &clip_target("a", "completed"), ALICE).await;
    assert_eq!(wait.status, 200, "{wait:?}");
    assert_eq!(wait.body, gateway.sim.body("a", "completed"));
    assert!(has_key(&gateway, 0, "sk-one"));

    // Passed-through requests, also with other methods and another spelling of the scheme.
    let rows = [("GET", "/sim/echo"), ("POST", "/sim/echo"), ("DELETE", "/sim/echo")];
    for (n, (method, target)) in (1..).zip(rows) {
        let fields = [("authorization", "bEARER   cg_token-of-carol ")];
        let answer = gateway.send(request(method, target, &fields)).await;
        assert_eq!(answer.status, 200, "{method} {answer:?}");
        assert!(has_key(&gateway, n, "sk-two"), "{method}");
        assert!(!String::from_utf8_lossy(&answer.body).contains("token-of"), "{method} {answer:?}");
    }
    for seen in gateway.sim.requests() {
        assert!(!format!("{seen:?}").contains("token-of"), "{seen:?}");
    }
    assert_eq!(gateway.sim.requests().len(), 4);
}

#[tokio::test]
async fn members_with_the_same_upstream_key_share_polls_and_cached_jobs() {
    let gateway = gateway().await;
    gateway.sim.set_status("a", "queued");
    let target = clip_target("a", "completed");
    let waits = TEAM.map(|row| gateway.spawn_get(&target, &[("authorization", &bearer(row))]));
    gateway.wait_until_parked(3).await;
    gateway.wait_until(|seen| seen.open == 2).await;
    gateway.sim.set_status("a", "completed");
    let mut answers = Vec::new();
    for wait in waits {
        answers.push(wait.await.unwrap());
    }
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    assert_eq!(gateway.upstream_requests_for_status("completed"), 2, "one of sk-one, one of sk-two");
    assert_eq!(answers[..2].iter().filter(|answer| answer.is_coalesced()).count(), 1, "{answers:?}");
    assert!(answers[2].is_opener(), "{answers:?}");

    for row in TEAM {
        assert!(get(&gateway, &target, row).await.is_hit());
    }
    gateway.sim.set_status("b", "completed");
    let kept = clip_target("b", "completed");
    assert!(get(&gateway, &kept, ALICE).await.is_opener());
    assert!(get(&gateway, &kept, BOB).await.is_hit());
    assert!(get(&gateway, &kept, CAROL).await.is_opener(), "the cache of another key does not have the job");
}

#[tokio::test]
async fn a_request_without_a_members_token_is_401() {
    let gateway = gateway().await;
    gateway.sim.set_status("a", "completed");
    assert_eq!(get(&gateway, &clip_target("a", "completed"), ALICE).await.status, 200);
    let sent_before = gateway.upstream_requests().len();

    let rows: [(&[(&str, &str)], &str); 6] = [
        (&[], "no-token"),
        (&[("authorization", "")], "no-token"),
        (&[("authorization", "Basic YTpi")], "no-token"),
        (&[("authorization", "cg_token-of-alice")], "no-token"),
        (&[("authorization", "Bearer cg_token-of-mallory")], "unknown-token"),
        (&[("authorization", "Bearer sk-one")], "unknown-token"),
    ];
    for (fields, reason) in rows {
        let targets = [("GET", clip_target("a", "completed")), ("POST", "/sim/echo".to_owned())];
        for (method, target) in targets {
            let answer = gateway.send(request(method, &target, fields)).await;
            assert_eq!(answer.status, 401, "{fields:?}");
            assert_eq!(answer.field("cache-status"), format!("clipgate; detail={reason}"), "{fields:?}");
            let challenge = answer.field("www-authenticate");
            let is_bad = reason == "unknown-token";
            assert!(challenge.starts_with("Bearer realm=\"clipgate\""), "{challenge}");
            assert_eq!(challenge.contains("error=\"invalid_token\""), is_bad, "{challenge}");
            assert_eq!(answer.field("cache-control"), "no-store");
            let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
            assert_eq!(body["statusCode"], 401);
            assert_eq!(body["path"], target.split('?').next().unwrap());
            assert_eq!(body["requestId"], answer.field("x-request-id"));
            let shown = format!("{body} {:?}", answer.headers);
            assert!(
                body["message"].as_str().unwrap().contains("token") && !shown.contains("mallory"),
                "{shown}"
            );
        }
    }
    let two = [("authorization", "Bearer cg_token-of-alice"), ("authorization", "Bearer x")];
    assert_eq!(gateway.send(request("GET", "/sim/echo", &two)).await.status, 400);
    assert_eq!(gateway.upstream_requests().len(), sent_before, "no rejected request reached the upstream");
}

#[tokio::test]
async fn a_removed_member_is_rejected_at_once_and_its_parked_wait_is_answered() {
    let gateway = gateway().await;
    gateway.sim.set_status("a", "completed");
    gateway.sim.set_status("b", "queued");
    let target = clip_target("a", "completed");
    assert_eq!(get(&gateway, &target, ALICE).await.status, 200);
    let parked = gateway.spawn_get(&clip_target("b", "completed"), &[("authorization", &bearer(ALICE))]);
    gateway.wait_until(|seen| seen.open == 1).await;

    gateway.reconfigure(&with_mode(team(&[BOB, CAROL])));
    assert_eq!(get(&gateway, &target, ALICE).await.status, 401, "although the job is cached");
    assert_eq!(get(&gateway, "/sim/echo", ALICE).await.status, 401);
    assert!(get(&gateway, &target, BOB).await.is_hit(), "the other members keep the cached jobs");
    gateway.sim.set_status("b", "completed");
    assert_eq!(parked.await.unwrap().status, 200);

    gateway.reconfigure(&with_mode(team(&TEAM)));
    assert!(get(&gateway, &target, ALICE).await.is_hit(), "the member is accepted again");
}

#[tokio::test]
async fn each_member_has_a_quota_and_may_have_its_own_rates() {
    let own = TeamMember { requests_per_second: Some(1), burst: Some(3), ..member(ALICE) };
    let calls = TeamMember { calls_per_second: Some(1), calls_burst: Some(2), ..member(CAROL) };
    let gateway = gateway_with(AuthMode::Team(vec![own, member(BOB), calls])).await;
    gateway.sim.set_status("a", "completed");
    let target = clip_target("a", "completed");
    let mut limited = Vec::new();
    for _ in 0..8 {
        let answer = get(&gateway, &target, ALICE).await;
        if answer.status == StatusCode::TOO_MANY_REQUESTS {
            limited.push(answer);
        }
    }
    assert!((3..=5).contains(&limited.len()), "3 at once, and a second or two may have gone by: {limited:?}");
    for answer in &limited {
        assert_eq!(answer.field("cache-status"), "clipgate; detail=requests");
        assert_eq!(answer.field("retry-after"), "1");
        assert!(answer.field("ratelimit-policy").starts_with("\"requests\";q=3;w=3, \"calls\";q="));
        assert!(answer.field("ratelimit").starts_with("\"requests\";r=0;t=1, \"calls\";r="), "{answer:?}");
    }
    assert_eq!(get(&gateway, &target, BOB).await.status, 200, "another member with the same key");

    let mut statuses = Vec::new();
    for _ in 0..6 {
        let answer = get(&gateway, "/sim/echo", CAROL).await;
        if answer.status == StatusCode::TOO_MANY_REQUESTS {
            assert_eq!(answer.field("cache-status"), "clipgate; detail=calls");
            assert!(answer.field("ratelimit").ends_with(", \"calls\";r=0;t=1"), "{answer:?}");
        }
        statuses.push(answer.status.as_u16());
    }
    assert_eq!(statuses[..2], [200, 200]);
    assert!(statuses.iter().filter(|status| **status == 429).count() >= 2, "{statuses:?}");
}

/// Runs the binary in front of a simulated upstream, with requests of a member and with an unknown token. Returns its
/// log.
async fn log_of(more: (&str, &str), is_http2: bool) -> String {
    let socket = TcpListener::bind(("127.0.0.1", 0)).await.expect("there are ports left");
    let upstream = format!("http://{}", socket.local_addr().expect("it is bound"));
    let sim = Sim::new(SimOptions::default());
    sim.set_status("a", "completed");
    let serving = tokio::spawn(sim.clone().serve(socket, std::future::pending()));

    let dir = tempfile::tempdir().expect("there is room");
    let path = dir.path().join("config.toml");
    let hash = hex(token_sha256(ALICE.1.as_bytes()).0);
    let config = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[auth]\nmode = \"team\"\n[[team.members]]\nname = \"alice\"\n\
        token_sha256 = \"{hash}\"\nupstream_key = \"env:ALICE_KEY\"\n"
    );
    std::fs::write(&path, config).expect("there is room");
    let args = ["serve", "--config", path.to_str().expect("it is UTF-8"), "--upstream", &upstream];
    let mut gateway =
        ClipgateProcess::start(&args, &[("ALICE_KEY", ALICE.2), ("CLIPGATE__ADMIN__LISTEN", ""), more]);
    let address = gateway.address();

    let client: Client<HttpConnector, Full<bytes::Bytes>> =
        Client::builder(TokioExecutor::new()).http2_only(is_http2).build_http();
    let ask = async |target: &str, token: &str| {
        let request = Request::get(format!("http://{address}{target}"))
            .header(AUTHORIZATION, format!("Bearer {token}"))
            .body(Full::default())
            .expect("the request is valid");
        let answer = within_secs(30, client.request(request)).await.expect("there is an answer");
        let status = answer.status().as_u16();
        answer.into_body().collect().await.expect("the body is complete");
        status
    };
    assert_eq!(ask(&clip_target("a", "completed"), ALICE.1).await, 200);
    assert_eq!(ask("/sim/echo", ALICE.1).await, 200);
    assert_eq!(ask(&clip_target("a", "completed"), "cg_token-of-mallory").await, 401);
    assert_eq!(ask("/sim/echo", "cg_token-of-mallory").await, 401);
    let (code, log) = gateway.stop();
    assert_eq!(code, Some(0), "{log}");
    serving.abort();
    log
}

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clipgate"));
    command.env_clear();
    command
}

fn hex(bytes: [u8; 32]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).concat()
}

fn assert_no_secret(log: &str) {
    for token in [ALICE.1, "cg_token-of-mallory"] {
        let hash = hex(token_sha256(token.as_bytes()).0);
        for secret in [token, "token-of", "mallory", &hash, &hash[..16], ALICE.2] {
            assert!(!log.contains(secret), "{secret} in {log}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_names_members_and_shows_neither_tokens_nor_hashes_nor_keys() {
    let log = log_of(("CLIPGATE__LOG__LEVEL", "trace"), false).await;
    assert_no_secret(&log);
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("outcome=")).collect();
    let of = |word: &str| lines.iter().filter(|line| line.contains(word)).count();
    assert_eq!(lines.len(), 4, "{log}");
    assert_eq!(of("member=alice"), 2, "{log}");
    assert_eq!(of("unknown-token"), 2, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_all_crates_shows_neither_tokens_nor_hashes_nor_keys() {
    for is_http2 in [false, true] {
        let log = log_of(("RUST_LOG", "trace"), is_http2).await;
        assert!(log.contains("TRACE"), "{log}");
        assert_no_secret(&log);
    }
}

#[test]
fn clipgate_token_prints_the_member_to_stdout_and_the_token_to_stderr() {
    let run_token = |name: &str| {
        let output = command().args(["token", name]).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, stdout, stderr) = run_token("alice");
    assert_eq!(code, Some(0), "{stderr}");
    let token = stderr.split_whitespace().find(|word| word.starts_with("cg_")).unwrap();
    assert_eq!(token.len(), 3 + 64, "{stderr}");
    assert!(!stdout.contains("cg_") && stdout.contains(&hex(token_sha256(token.as_bytes()).0)), "{stdout}");
    assert!(!stderr.contains(&hex(token_sha256(token.as_bytes()).0)));

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    std::fs::write(&path, format!("[auth]\nmode = \"team\"\n{stdout}{}", run_token("bob").1)).unwrap();
    let check = command()
        .args(["check", "--config", path.to_str().unwrap()])
        .env("AIMLAPI_KEY", "sk")
        .output()
        .unwrap();
    let summary = String::from_utf8(check.stdout).unwrap();
    assert!(check.status.success() && summary.contains("team of 2"), "{summary}");
    assert!(check.stderr.is_empty(), "{}", String::from_utf8_lossy(&check.stderr));

    for bad in ["", " ", "a\tb", &"x".repeat(65)] {
        let (code, stdout, stderr) = run_token(bad);
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{stderr}");
        assert!(stderr.contains("not a valid name"), "{stderr}");
    }
    assert_ne!(run_token("alice").2, run_token("alice").2, "each token is different");
}

#[tokio::test]
async fn the_upstreams_401_for_a_members_key_is_passed_on() {
    let gateway = TestGateway::with(|config, options| {
        config.auth.mode = team(&[ALICE]);
        options.keys = Some(vec!["other".to_owned()]);
    })
    .await;
    gateway.sim.set_status("a", "completed");
    let answer = within_secs(30, get(&gateway, &clip_target("a", "completed"), ALICE)).await;
    assert_eq!(answer.status, 401);
    assert!(answer.field("cache-status").starts_with("clipgate; fwd=miss"), "{answer:?}");
}
