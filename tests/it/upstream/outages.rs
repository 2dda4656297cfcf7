//! An outage, a bad job or a hostile neighbour makes nothing worse (P12, contract section 9).
//!
//! Where a test lets time pass, the length of the outage is the scenario. No test bounds how fast the machine is: what
//! must happen is waited for, and what must not happen would keep a test from its end, as pauses that have no business
//! there are an hour long.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clipgate::sim::{ErrorBody, Fault, FaultTarget, Observation, Options};
use clipgate::testing::config::Config;
use http::StatusCode;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use crate::harness::admin_client::Operator;
use crate::harness::gateway::{Answer, TestGateway, all, multi, put_all, set_hold, single, within};
use crate::harness::process::{Client, Gateway, TestEnv, clip, within_timeout};
use crate::harness::raw_http::field;

pub(crate) const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

const OTHER: &[(&str, &str)] = &[("authorization", "Bearer other")];

/// A stage whose upstream holds polls for a minute and has answered once.
pub(crate) async fn proven(configure: impl FnOnce(&mut Config, &mut Options)) -> TestGateway {
    let stage = TestGateway::with(|config, options| {
        set_hold(MINUTE, config, options);
        configure(config, options);
    })
    .await;
    stage.sim.set_status("kept", "completed");
    assert_eq!(stage.get(&single("kept", "completed"), &[]).await.status, StatusCode::OK);
    stage
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("clip-{n}")).collect()
}

/// One wait on each of these jobs.
fn wait_for(stage: &TestGateway, ids: &[&str]) -> Vec<AbortOnDropHandle<Answer>> {
    ids.iter().map(|id| stage.spawn_get(&single(id, "completed"), &[])).collect()
}

/// Completes the jobs; each wait is told so.
async fn are_told(stage: &TestGateway, ids: &[&str], waits: Vec<AbortOnDropHandle<Answer>>) {
    put_all(stage, ids, "completed");
    for (id, answer) in ids.iter().zip(all(waits).await) {
        assert_eq!(answer.status, StatusCode::OK, "{id}: {answer:?}");
        assert_eq!(answer.body, stage.sim.body(id, "completed"), "{id}");
    }
}

async fn a_reset_of_all_connections_is_survived(count: usize) {
    // A breaker that opened would stay so for longer than the test.
    let stage = proven(|config, _| config.upstream.breaker_cooldown = HOUR).await;
    let ids = names(count);
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    put_all(&stage, &ids, "submitted");
    stage.sim.set_status("new", "completed");
    let waits = wait_for(&stage, &ids);
    stage.until(|seen| seen.open == count).await;
    stage.sim.reset_connections();
    let newcomer = stage.get(&single("new", "completed"), &[]).await;
    assert_eq!(newcomer.body, stage.sim.body("new", "completed"));
    stage.until(|seen| seen.open == count).await;
    assert_eq!(stage.asked_until("completed"), 2 + 2 * count, "each poll is repeated once");
    are_told(&stage, &ids, waits).await;
}

/// Row 1.1.
#[tokio::test]
async fn eight_held_polls_that_are_reset_at_one_moment_are_all_repeated() {
    a_reset_of_all_connections_is_survived(8).await;
}

/// Row 1.1.
#[tokio::test]
async fn twenty_held_polls_that_are_reset_at_one_moment_are_all_repeated() {
    a_reset_of_all_connections_is_survived(20).await;
}

/// Row 1.2: on one HTTP/2 connection over TLS.
#[tokio::test]
async fn twenty_polls_on_one_connection_that_is_lost_are_all_repeated() {
    let ground = TestEnv::before(Options { hold: MINUTE, ..Options::default() }).await;
    let edge = Edge::before(&ground).await;
    ground.configure("");
    let text = std::fs::read_to_string(ground.path("config.toml")).unwrap();
    let text = text.replace(&ground.upstream_url(), &format!("https://localhost:{}", edge.address.port()));
    let text = format!("upstream.breaker_cooldown = \"1h\"\n{text}");
    std::fs::write(ground.path("config.toml"), text).unwrap();
    let mut command = ground.command();
    command.env("SSL_CERT_FILE", ground.path("edge.pem"));
    let mut gateway = Gateway::spawn(command);
    let address = gateway.address().await;
    let get = |id: &str| {
        let target = clip(id);
        AbortOnDropHandle::new(tokio::spawn(
            async move { Client::connect(address).await.get(&target, &[]).await },
        ))
    };

    ground.sim.set_status("kept", "completed");
    assert_eq!(get("kept").await.unwrap().status(), 200);
    let ids = names(20);
    ids.iter().for_each(|id| ground.sim.set_status(id, "submitted"));
    let waits: Vec<_> = ids.iter().map(|id| get(id)).collect();
    within_timeout("twenty polls", ground.sim.wait_until(|seen| seen.open == 20)).await;
    assert_eq!(ground.sim.observed().connections, 1);

    ground.sim.reset_connections();
    within_timeout(
        "each poll again",
        ground.sim.wait_until(|seen| seen.open == 20 && seen.requests.len() == 41),
    )
    .await;
    ids.iter().for_each(|id| ground.sim.set_status(id, "completed"));
    for (id, wait) in ids.iter().zip(waits) {
        let answer = wait.await.unwrap();
        assert_eq!(answer.status(), 200, "{id}: {answer:?}");
        assert_eq!(*answer.body(), ground.sim.body(id, "completed"));
    }
}

/// Ends TLS before the simulated upstream, which speaks HTTP/2 without it. A connection of one side is one of the
/// other, and ends with it.
struct Edge {
    address: SocketAddr,
    _serving: AbortOnDropHandle<()>,
}

impl Edge {
    /// Puts its certificate into the ground's directory, as `edge.pem`.
    async fn before(ground: &TestEnv) -> Self {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(ground.path("edge.pem"), cert.pem()).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let tls = TlsAcceptor::from(Arc::new(config));

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let upstream = ground.upstream_url().replace("http://", "");
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (tls, upstream) = (tls.clone(), upstream.clone());
                connections.spawn(async move {
                    let mut client = tls.accept(client).await?;
                    let mut upstream = TcpStream::connect(upstream).await?;
                    tokio::io::copy_bidirectional(&mut client, &mut upstream).await
                });
            }
        });
        Self { address, _serving: AbortOnDropHandle::new(serving) }
    }
}

/// The upstream is away for a while, its port closed, with this many waits on a job each.
async fn an_absence_is_survived(away: Duration, count: usize) {
    let mut stage = proven(|_, _| {}).await;
    let ids = names(count);
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    put_all(&stage, &ids, "submitted");
    stage.sim.set_status("new", "completed");
    let waits = wait_for(&stage, &ids);
    stage.until(|seen| seen.open == count).await;
    stage.lower_upstream().await;
    tokio::time::sleep(away).await; // so long it is away
    stage.raise_upstream();
    let newcomer = stage.get(&single("new", "completed"), &[]).await;
    assert_eq!(newcomer.body, stage.sim.body("new", "completed"));
    stage.until(|seen| seen.open == count).await;
    are_told(&stage, &ids, waits).await;
}

/// Row 1.3.
#[tokio::test]
async fn twenty_waits_are_held_while_the_upstream_is_away_for_a_moment() {
    an_absence_is_survived(Duration::from_millis(300), 20).await;
}

/// Row 1.3.
#[tokio::test]
async fn twenty_waits_are_held_while_the_upstream_is_away_for_five_seconds() {
    an_absence_is_survived(Duration::from_secs(5), 20).await;
}

/// Row 1.3.
#[tokio::test]
async fn one_wait_alone_is_held_while_the_upstream_is_away_for_a_moment() {
    an_absence_is_survived(Duration::from_millis(300), 1).await;
}

/// Row 1.3.
#[tokio::test]
async fn one_wait_alone_is_held_while_the_upstream_is_away_for_five_seconds() {
    an_absence_is_survived(Duration::from_secs(5), 1).await;
}

/// Row 1.3.
#[tokio::test]
async fn a_wait_that_comes_while_the_upstream_is_away_is_held_as_well() {
    let mut stage = proven(|_, _| {}).await;
    stage.lower_upstream().await;
    stage.sim.set_status("a", "completed");
    let wait = stage.spawn_get(&single("a", "completed"), &[]);
    stage.until_parked(1).await;
    tokio::time::sleep(Duration::from_secs(2)).await; // so long it is away
    stage.raise_upstream();
    assert_eq!(wait.await.unwrap().body, stage.sim.body("a", "completed"));
}

/// Row 1.3: the breaker is open for an hour, unless somebody's first attempt succeeds.
#[tokio::test]
async fn a_newcomer_is_asked_for_at_once_though_the_breaker_is_open_and_frees_all_others() {
    let mut stage = proven(|config, _| {
        config.upstream.breaker_failures = 1;
        config.upstream.breaker_cooldown = HOUR;
    })
    .await;
    let operator = Operator::of(&mut stage).await;
    put_all(&stage, &["a", "b"], "submitted");
    let waits = wait_for(&stage, &["a", "b"]);
    stage.until(|seen| seen.open == 2).await;
    stage.lower_upstream().await;
    until_retries_are_held_back(&operator).await;
    stage.raise_upstream();
    stage.sim.set_status("new", "completed");
    let newcomer = stage.get(&single("new", "completed"), OTHER).await;
    assert_eq!(newcomer.body, stage.sim.body("new", "completed"));
    stage.until(|seen| seen.open == 2).await;
    are_told(&stage, &["a", "b"], waits).await;
}

async fn until_retries_are_held_back(operator: &Operator) {
    within(30, async { while operator.state().await["upstream"]["breaker_open"] != true {} }).await;
}

/// Row 1.4.
#[tokio::test]
async fn a_job_that_always_fails_harms_no_other_key() {
    let stage = proven(|config, _| {
        config.upstream.retries = 1;
        config.upstream.breaker_failures = 2;
        config.upstream.breaker_cooldown = HOUR;
    })
    .await;
    let good: Vec<String> = (0..14).map(|n| format!("good-{n}")).collect();
    good.iter().for_each(|id| stage.sim.set_status(id, "completed"));
    stage.sim.set_status("bad", "submitted");
    stage.sim.fault(FaultTarget::Clip("bad".to_owned()), Fault::status(500), u32::MAX);
    let bad = single("bad", "completed");
    let told = RefCell::new(Vec::new());
    let again = async {
        loop {
            let answer = stage.get(&bad, &[]).await;
            told.borrow_mut().push(answer);
        }
    };
    let others = async {
        for (n, id) in good.iter().enumerate() {
            // Before each of them the bad job fails twice.
            let failed = |seen: &Observation| seen.requests.iter().filter(|seen| *seen.target == bad).count();
            stage.until(|seen| failed(seen) > 2 * n + 2).await;
            let answer = stage.get(&single(id, "completed"), OTHER).await;
            assert_eq!(answer.body, stage.sim.body(id, "completed"), "{id}: {answer:?}");
        }
    };
    // Cancel safe: what is dropped is a client that hangs up.
    tokio::select! {
        () = others => {}
        () = again => unreachable!("it asks for ever"),
    }
    let told = told.into_inner();
    assert!(!told.is_empty());
    for answer in &told {
        assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
        let error: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(error["statusCode"], 500, "the upstream wrote it");
        assert_eq!(answer.field("cache-status"), "clipgate; fwd=miss; fwd-status=500");
    }
}

/// Row 1.6.
#[tokio::test]
async fn a_stop_while_the_upstream_fails_tells_a_wait_the_state_that_was_seen() {
    let is_told = async |fault: Fault| {
        let stage = proven(|config, _| config.server.drain_timeout = Duration::from_secs(4)).await;
        stage.sim.set_status("a", "queued");
        let wait = stage.spawn_get(&single("a", "completed"), &[]);
        stage.until(|seen| seen.open == 1).await;
        let seen = stage.get(&single("a", ""), &[]).await;
        assert_eq!(seen.body, stage.sim.body("a", "queued"));
        stage.sim.fault(FaultTarget::Polls, fault.clone(), u32::MAX);
        stage.sim.reset_connections();
        stage.until(|seen| seen.requests.len() > 3).await;
        stage.stop();
        let answer = wait.await.unwrap();
        assert_eq!(answer.status, StatusCode::OK, "{fault:?}: {answer:?}");
        assert_eq!(answer.body, stage.sim.body("a", "queued"), "{fault:?}");
    };
    tokio::join!(is_told(Fault::reset()), is_told(Fault::status(500)), is_told(Fault::Hang));
}

/// Row 1.10: a poll that was held for a second has made progress, however it ends.
#[tokio::test]
async fn an_edge_that_cuts_each_poll_after_a_while_is_asked_until_the_waits_own_time_is_over() {
    let held = Duration::from_millis(1500);
    let stage = proven(|config, _| config.upstream.retries = 1).await;
    stage.sim.set_status("a", "queued");
    let cut = Fault::Status {
        status: StatusCode::GATEWAY_TIMEOUT,
        retry_after: None,
        body: ErrorBody::Html,
        after: held,
    };
    stage.sim.fault(FaultTarget::Path(single("a", "completed")), cut, u32::MAX);
    let answer = stage.get(&single("a", "completed"), &[("prefer", "wait=7")]).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(answer.body, stage.sim.body("a", "queued"));
    assert!(answer.took >= Duration::from_secs(7), "{:?}", answer.took);
    let polls =
        stage.upstream_requests().iter().filter(|target| **target == single("a", "completed")).count();
    let most = answer.took.as_millis() / held.as_millis() + 1;
    assert!(polls > 2 && polls as u128 <= most, "{polls} polls, at most {most} are right");
    assert_eq!(stage.asked_until("submitted"), 1);
}

/// Row 1.12.
#[tokio::test]
async fn a_stop_looks_once_a_job_however_many_waits_share_it() {
    let stage = TestGateway::with(|config, options| {
        set_hold(MINUTE, config, options);
        config.server.drain_timeout = Duration::from_secs(4);
    })
    .await;
    put_all(&stage, &["a", "b"], "queued");
    let ids: Vec<&str> = ["a", "b"].repeat(6);
    let waits = wait_for(&stage, &ids);
    stage.until_parked(12).await;
    stage.until(|seen| seen.open == 2).await;
    stage.stop();
    for (id, answer) in ids.iter().zip(all(waits).await) {
        assert_eq!(answer.body, stage.sim.body(id, "queued"));
    }
    assert_eq!((stage.asked_until("completed"), stage.asked_until("submitted")), (2, 2));
}

/// What is left of the quota of calls, as the answer says.
fn calls_left(answer: &Answer) -> u32 {
    let (_, left) = field(answer, "ratelimit").rsplit_once("\"calls\";r=").unwrap();
    left.split(';').next().unwrap().parse().unwrap()
}

/// Jobs of [`held_back`]. Few, because all their polls must have failed before the first probe of the breaker, which comes
/// 250 ms after it opened.
const HELD_BACK: usize = 12;

/// A stage where retries are held back, and a wait on as many jobs, each with a poll that is held back.
async fn held_back(calls: u32) -> (TestGateway, AbortOnDropHandle<Answer>, String) {
    let mut stage = proven(|config, _| {
        config.upstream.max_jobs = 1;
        config.wait.max_jobs = HELD_BACK;
        config.upstream.breaker_failures = 1;
        config.upstream.breaker_cooldown = HOUR;
        config.limits.calls_per_second = 1;
        config.limits.calls_burst = calls;
    })
    .await;
    let operator = Operator::of(&mut stage).await;
    let ids = names(HELD_BACK);
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    put_all(&stage, &ids, "completed");
    stage.sim.fault(FaultTarget::Polls, Fault::reset(), HELD_BACK as u32);
    let target = multi(&ids, "completed");
    let first = stage.spawn_get(&target, &[]);
    stage.until(|seen| seen.requests.len() > HELD_BACK).await;
    until_retries_are_held_back(&operator).await;
    let is_over = async { while operator.state().await["polls"]["open"] != 0 {} };
    within(30, is_over).await;
    (stage, first, target)
}

/// Contract section 9: its client alone would ask now, and would pay for it.
#[tokio::test]
async fn a_new_wait_has_the_polls_tried_at_once_that_back_off_and_pays_for_them() {
    let (stage, first, target) = held_back(200).await;
    let answer = stage.get(&target, &[]).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(first.await.unwrap().body, answer.body);
    assert_eq!(stage.upstream_requests().len(), 1 + 2 * HELD_BACK);
    // Each of the two waits paid 12 of 200. Each second adds one.
    let left = calls_left(&answer);
    assert!((176..187).contains(&left), "{left}");
}

/// Contract section 9.
#[tokio::test]
async fn a_new_wait_without_quota_waits_for_the_retry_and_is_told() {
    let (stage, first, target) = held_back(HELD_BACK as u32).await;
    let second = stage.spawn_get(&target, &[]);
    stage.until_parked(2).await;
    assert_eq!(stage.upstream_requests().len(), 1 + HELD_BACK, "the quota is used up");
    stage.sim.set_status("new", "completed");
    let newcomer = stage.get(&single("new", "completed"), OTHER).await;
    assert_eq!(newcomer.status, StatusCode::OK, "{newcomer:?}");
    for answer in all(vec![first, second]).await {
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    }
    assert_eq!(stage.upstream_requests().len(), 1 + HELD_BACK + 1 + HELD_BACK);
}

/// Row 3.10.
#[tokio::test]
async fn a_wait_that_opens_many_polls_costs_as_many_calls() {
    let stage = proven(|config, _| {
        config.wait.max_jobs = 1000;
        config.limits.calls_per_second = 1;
        config.limits.calls_burst = 1000;
    })
    .await;
    let ids = names(1000);
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    put_all(&stage, &ids, "completed");
    let answer = stage.get(&multi(&ids, "completed"), &[]).await;
    assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.headers);
    assert_eq!(stage.upstream_requests().len(), 1 + 167);
    let left = calls_left(&answer);
    assert!((833..833 + 60).contains(&left), "{left} of 1000, and each second adds one");
}

/// Contract section 9: `retry_for` is for an upstream that has answered before.
#[tokio::test]
async fn a_wrong_address_is_a_502_after_as_many_attempts_as_upstream_retries_allows() {
    let stage = TestGateway::with(|config, options| {
        set_hold(MINUTE, config, options);
        config.upstream.retries = 2;
        config.upstream.retry_for = HOUR;
    })
    .await;
    stage.sim.set_status("a", "completed");
    stage.sim.fault(FaultTarget::Polls, Fault::reset(), u32::MAX);
    let answer = stage.get(&single("a", "completed"), &[]).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    assert_eq!(answer.field("cache-status"), "clipgate; detail=unreachable");
    assert_eq!(stage.upstream_requests().len(), 3);
}
