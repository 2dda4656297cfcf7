//! Outages, failing jobs and failing keys make nothing worse (P12).
//!
//! The sleeps in these tests are the lengths of outages. No test bounds the speed of the machine: it waits for each
//! expected event. An unexpected pause would last an hour, longer than the test may run.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clipgate::sim::{ErrorBody, Fault, FaultTarget, Observation, SimOptions};
use clipgate::testing::config::Config;
use http::StatusCode;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use crate::harness::admin_client::AdminClient;
use crate::harness::gateway::{
    Answer, TestGateway, clip_target, clips_target, join_all, set_hold, set_status_of_all, within_secs,
};
use crate::harness::process::{GatewayProcess, TestClient, TestEnv, completed_target, within_timeout};
use crate::harness::raw_http::field;

pub(crate) const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

const OTHER: &[(&str, &str)] = &[("authorization", "Bearer other")];

/// Returns a gateway whose upstream holds polls for a minute and has answered once.
pub(crate) async fn gateway_with_answered_upstream(
    configure: impl FnOnce(&mut Config, &mut SimOptions),
) -> TestGateway {
    let gateway = TestGateway::with(|config, options| {
        set_hold(MINUTE, config, options);
        configure(config, options);
    })
    .await;
    gateway.sim.set_status("cached", "completed");
    assert_eq!(gateway.get(&clip_target("cached", "completed"), &[]).await.status, StatusCode::OK);
    gateway
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("clip-{n}")).collect()
}

/// Starts one wait for each of these jobs.
fn wait_for(gateway: &TestGateway, ids: &[&str]) -> Vec<AbortOnDropHandle<Answer>> {
    ids.iter().map(|id| gateway.spawn_get(&clip_target(id, "completed"), &[])).collect()
}

/// Completes the jobs, and asserts that each wait gets its answer.
async fn assert_answered(gateway: &TestGateway, ids: &[&str], waits: Vec<AbortOnDropHandle<Answer>>) {
    set_status_of_all(gateway, ids, "completed");
    for (id, answer) in ids.iter().zip(join_all(waits).await) {
        assert_eq!(answer.status, StatusCode::OK, "{id}: {answer:?}");
        assert_eq!(answer.body, gateway.sim.body(id, "completed"), "{id}");
    }
}

async fn assert_waits_survive_a_reset(count: usize) {
    // A breaker that opens would stay open for longer than the test.
    let gateway = gateway_with_answered_upstream(|config, _| config.upstream.breaker_cooldown = HOUR).await;
    let ids = names(count);
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    set_status_of_all(&gateway, &ids, "submitted");
    gateway.sim.set_status("new", "completed");
    let waits = wait_for(&gateway, &ids);
    gateway.wait_until(|seen| seen.open == count).await;
    gateway.sim.reset_connections();
    let newcomer = gateway.get(&clip_target("new", "completed"), &[]).await;
    assert_eq!(newcomer.body, gateway.sim.body("new", "completed"));
    gateway.wait_until(|seen| seen.open == count).await;
    assert_eq!(
        gateway.upstream_requests_for_status("completed"),
        2 + 2 * count,
        "each poll is repeated once"
    );
    assert_answered(&gateway, &ids, waits).await;
}

/// P12
#[tokio::test]
async fn the_gateway_repeats_eight_held_polls_that_are_reset_at_once() {
    assert_waits_survive_a_reset(8).await;
}

/// P12
#[tokio::test]
async fn the_gateway_repeats_twenty_held_polls_that_are_reset_at_once() {
    assert_waits_survive_a_reset(20).await;
}

/// P12, on one HTTP/2 connection over TLS
#[tokio::test]
async fn the_gateway_repeats_twenty_polls_of_a_lost_connection() {
    let env = TestEnv::with_options(SimOptions { hold: MINUTE, ..SimOptions::default() }).await;
    let edge = Edge::before(&env).await;
    env.configure("");
    let text = std::fs::read_to_string(env.path("config.toml")).unwrap();
    let text = text.replace(&env.upstream_url(), &format!("https://localhost:{}", edge.address.port()));
    let text = format!("upstream.breaker_cooldown = \"1h\"\n{text}");
    std::fs::write(env.path("config.toml"), text).unwrap();
    let mut command = env.command();
    command.env("SSL_CERT_FILE", env.path("edge.pem"));
    let mut gateway = GatewayProcess::spawn(command);
    let address = gateway.address().await;
    let get = |id: &str| {
        let target = completed_target(id);
        AbortOnDropHandle::new(tokio::spawn(async move {
            TestClient::connect(address).await.get(&target, &[]).await
        }))
    };

    env.sim.set_status("cached", "completed");
    assert_eq!(get("cached").await.unwrap().status(), 200);
    let ids = names(20);
    ids.iter().for_each(|id| env.sim.set_status(id, "submitted"));
    let waits: Vec<_> = ids.iter().map(|id| get(id)).collect();
    within_timeout("twenty polls", env.sim.wait_until(|seen| seen.open == 20)).await;
    assert_eq!(env.sim.observe().connections, 1);

    env.sim.reset_connections();
    within_timeout(
        "each poll again",
        env.sim.wait_until(|seen| seen.open == 20 && seen.requests.len() == 41),
    )
    .await;
    ids.iter().for_each(|id| env.sim.set_status(id, "completed"));
    for (id, wait) in ids.iter().zip(waits) {
        let answer = wait.await.unwrap();
        assert_eq!(answer.status(), 200, "{id}: {answer:?}");
        assert_eq!(*answer.body(), env.sim.body(id, "completed"));
    }
}

/// Terminates TLS in front of the simulated upstream, which speaks HTTP/2 without TLS. Each client connection has one
/// upstream connection, and both end together.
struct Edge {
    address: SocketAddr,
    _serving: AbortOnDropHandle<()>,
}

impl Edge {
    /// Starts it, and writes its certificate to `edge.pem` in the directory of the environment.
    async fn before(env: &TestEnv) -> Self {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(env.path("edge.pem"), cert.pem()).unwrap();
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
        let upstream = env.upstream_url().replace("http://", "");
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

/// Closes the port of the upstream for a while, with one wait for each of this many jobs.
async fn assert_waits_survive_an_outage(away: Duration, count: usize) {
    let mut gateway = gateway_with_answered_upstream(|_, _| {}).await;
    let ids = names(count);
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    set_status_of_all(&gateway, &ids, "submitted");
    gateway.sim.set_status("new", "completed");
    let waits = wait_for(&gateway, &ids);
    gateway.wait_until(|seen| seen.open == count).await;
    gateway.stop_upstream().await;
    tokio::time::sleep(away).await; // length of the outage
    gateway.start_upstream();
    let newcomer = gateway.get(&clip_target("new", "completed"), &[]).await;
    assert_eq!(newcomer.body, gateway.sim.body("new", "completed"));
    gateway.wait_until(|seen| seen.open == count).await;
    assert_answered(&gateway, &ids, waits).await;
}

/// P12
#[tokio::test]
async fn twenty_waits_outlast_an_outage_of_a_moment() {
    assert_waits_survive_an_outage(Duration::from_millis(300), 20).await;
}

/// P12
#[tokio::test]
async fn twenty_waits_outlast_an_outage_of_five_seconds() {
    assert_waits_survive_an_outage(Duration::from_secs(5), 20).await;
}

/// P12
#[tokio::test]
async fn a_single_wait_outlasts_an_outage_of_a_moment() {
    assert_waits_survive_an_outage(Duration::from_millis(300), 1).await;
}

/// P12
#[tokio::test]
async fn a_single_wait_outlasts_an_outage_of_five_seconds() {
    assert_waits_survive_an_outage(Duration::from_secs(5), 1).await;
}

/// P12
#[tokio::test]
async fn a_wait_that_arrives_during_an_outage_outlasts_it() {
    let mut gateway = gateway_with_answered_upstream(|_, _| {}).await;
    gateway.stop_upstream().await;
    gateway.sim.set_status("a", "completed");
    let wait = gateway.spawn_get(&clip_target("a", "completed"), &[]);
    gateway.wait_until_parked(1).await;
    tokio::time::sleep(Duration::from_secs(2)).await; // length of the outage
    gateway.start_upstream();
    assert_eq!(wait.await.unwrap().body, gateway.sim.body("a", "completed"));
}

/// P12: without a successful first attempt the breaker stays open for an hour.
#[tokio::test]
async fn the_first_attempt_of_a_new_wait_closes_an_open_breaker_for_all_others() {
    let mut gateway = gateway_with_answered_upstream(|config, _| {
        config.upstream.breaker_failures = 1;
        config.upstream.breaker_cooldown = HOUR;
    })
    .await;
    let admin = AdminClient::open(&mut gateway).await;
    set_status_of_all(&gateway, &["a", "b"], "submitted");
    let waits = wait_for(&gateway, &["a", "b"]);
    gateway.wait_until(|seen| seen.open == 2).await;
    gateway.stop_upstream().await;
    until_retries_are_held_back(&admin).await;
    gateway.start_upstream();
    gateway.sim.set_status("new", "completed");
    let newcomer = gateway.get(&clip_target("new", "completed"), OTHER).await;
    assert_eq!(newcomer.body, gateway.sim.body("new", "completed"));
    gateway.wait_until(|seen| seen.open == 2).await;
    assert_answered(&gateway, &["a", "b"], waits).await;
}

async fn until_retries_are_held_back(admin: &AdminClient) {
    within_secs(30, async { while admin.state().await["upstream"]["breaker_open"] != true {} }).await;
}

/// P11, P12
#[tokio::test]
async fn a_job_that_always_fails_harms_no_other_key() {
    let gateway = gateway_with_answered_upstream(|config, _| {
        config.upstream.retries = 1;
        config.upstream.breaker_failures = 2;
        config.upstream.breaker_cooldown = HOUR;
    })
    .await;
    let good: Vec<String> = (0..14).map(|n| format!("good-{n}")).collect();
    good.iter().for_each(|id| gateway.sim.set_status(id, "completed"));
    gateway.sim.set_status("bad", "submitted");
    gateway.sim.fault(FaultTarget::Clip("bad".to_owned()), Fault::status(500), u32::MAX);
    let bad = clip_target("bad", "completed");
    let answers = RefCell::new(Vec::new());
    let again = async {
        loop {
            let answer = gateway.get(&bad, &[]).await;
            answers.borrow_mut().push(answer);
        }
    };
    let others = async {
        for (n, id) in good.iter().enumerate() {
            // The bad job fails twice before each of them.
            let failed = |seen: &Observation| seen.requests.iter().filter(|seen| *seen.target == bad).count();
            gateway.wait_until(|seen| failed(seen) > 2 * n + 2).await;
            let answer = gateway.get(&clip_target(id, "completed"), OTHER).await;
            assert_eq!(answer.body, gateway.sim.body(id, "completed"), "{id}: {answer:?}");
        }
    };
    // Cancel safe: the dropped future is a client that closes its connection.
    tokio::select! {
        () = others => {}
        () = again => unreachable!("this client never stops"),
    }
    let answers = answers.into_inner();
    assert!(!answers.is_empty());
    for answer in &answers {
        assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
        let error: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(error["statusCode"], 500, "the upstream wrote it");
        assert_eq!(answer.field("cache-status"), "clipgate; fwd=miss; fwd-status=500");
    }
}

/// P7: the gateway stops
#[tokio::test]
async fn a_wait_gets_the_last_seen_state_when_the_gateway_stops_during_an_outage() {
    let is_told = async |fault: Fault| {
        let gateway =
            gateway_with_answered_upstream(|config, _| config.server.drain_timeout = Duration::from_secs(4))
                .await;
        gateway.sim.set_status("a", "queued");
        let wait = gateway.spawn_get(&clip_target("a", "completed"), &[]);
        gateway.wait_until(|seen| seen.open == 1).await;
        let seen = gateway.get(&clip_target("a", ""), &[]).await;
        assert_eq!(seen.body, gateway.sim.body("a", "queued"));
        gateway.sim.fault(FaultTarget::Polls, fault.clone(), u32::MAX);
        gateway.sim.reset_connections();
        gateway.wait_until(|seen| seen.requests.len() > 3).await;
        gateway.stop();
        let answer = wait.await.unwrap();
        assert_eq!(answer.status, StatusCode::OK, "{fault:?}: {answer:?}");
        assert_eq!(answer.body, gateway.sim.body("a", "queued"), "{fault:?}");
    };
    tokio::join!(is_told(Fault::reset()), is_told(Fault::status(500)), is_told(Fault::Hang));
}

/// P2, P12: a poll that was held for a second has made progress, however it ends.
#[tokio::test]
async fn the_gateway_polls_until_the_deadline_through_an_edge_that_resets_each_poll() {
    let held = Duration::from_millis(1500);
    let gateway = gateway_with_answered_upstream(|config, _| config.upstream.retries = 1).await;
    gateway.sim.set_status("a", "queued");
    let cut = Fault::Status {
        status: StatusCode::GATEWAY_TIMEOUT,
        retry_after: None,
        body: ErrorBody::Html,
        after: held,
    };
    gateway.sim.fault(FaultTarget::Path(clip_target("a", "completed")), cut, u32::MAX);
    let answer = gateway.get(&clip_target("a", "completed"), &[("prefer", "wait=7")]).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(answer.body, gateway.sim.body("a", "queued"));
    assert!(answer.took >= Duration::from_secs(7), "{:?}", answer.took);
    let polls =
        gateway.upstream_requests().iter().filter(|target| **target == clip_target("a", "completed")).count();
    let limit = answer.took.as_millis() / held.as_millis() + 1;
    assert!(polls > 2 && polls as u128 <= limit, "{polls} polls, at most {limit} are right");
    assert_eq!(gateway.upstream_requests_for_status("submitted"), 1);
}

/// P2: the gateway stops
#[tokio::test]
async fn a_stopping_gateway_takes_one_snapshot_for_each_job() {
    let gateway = TestGateway::with(|config, options| {
        set_hold(MINUTE, config, options);
        config.server.drain_timeout = Duration::from_secs(4);
    })
    .await;
    set_status_of_all(&gateway, &["a", "b"], "queued");
    let ids: Vec<&str> = ["a", "b"].repeat(6);
    let waits = wait_for(&gateway, &ids);
    gateway.wait_until_parked(12).await;
    gateway.wait_until(|seen| seen.open == 2).await;
    gateway.stop();
    for (id, answer) in ids.iter().zip(join_all(waits).await) {
        assert_eq!(answer.body, gateway.sim.body(id, "queued"));
    }
    assert_eq!(
        (
            gateway.upstream_requests_for_status("completed"),
            gateway.upstream_requests_for_status("submitted")
        ),
        (2, 2)
    );
}

/// Returns the rest of the quota of calls.
fn calls_left(answer: &Answer) -> u32 {
    let (_, left) = field(answer, "ratelimit").rsplit_once("\"calls\";r=").unwrap();
    left.split(';').next().unwrap().parse().unwrap()
}

/// Failed probes after which the next one is 4 s away: they come after 250 ms, and then after twice the time each.
const PROBES: usize = 4;

/// Returns a gateway whose retries are held back but for probes, a wait for 60 jobs with one held-back poll each, and
/// its target.
async fn held_back(calls: u32) -> (TestGateway, AbortOnDropHandle<Answer>, String) {
    let mut gateway = gateway_with_answered_upstream(|config, _| {
        config.upstream.max_jobs = 1;
        config.wait.max_jobs = 60;
        config.upstream.breaker_failures = 1;
        config.upstream.breaker_cooldown = HOUR;
        config.limits.calls_per_second = 1;
        config.limits.calls_burst = calls;
    })
    .await;
    let admin = AdminClient::open(&mut gateway).await;
    let ids = names(60);
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    set_status_of_all(&gateway, &ids, "completed");
    gateway.sim.fault(FaultTarget::Polls, Fault::reset(), 60 + u32::try_from(PROBES).unwrap());
    let target = clips_target(&ids, "completed");
    let first = gateway.spawn_get(&target, &[]);
    gateway.wait_until(|seen| seen.requests.len() >= 61 + PROBES).await;
    until_retries_are_held_back(&admin).await;
    let drained = async { while admin.state().await["polls"]["open"] != 0 {} };
    within_secs(30, drained).await;
    (gateway, first, target)
}

/// P12: a new wait is a first attempt. Its client alone would also call now, and pay for it.
#[tokio::test]
async fn a_new_wait_retries_backing_off_polls_at_once_and_pays_for_them() {
    let (gateway, first, target) = held_back(200).await;
    let answer = gateway.get(&target, &[]).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(first.await.unwrap().body, answer.body);
    assert_eq!(gateway.upstream_requests().len(), 1 + 60 + PROBES + 60);
    // The first wait paid for 60 of 200 calls, and so did the second. Each second adds one.
    let left = calls_left(&answer);
    assert!((80..120).contains(&left), "{left}");
}

/// P12
#[tokio::test]
async fn a_new_wait_without_quota_gets_the_answer_of_the_retry() {
    let (gateway, first, target) = held_back(60).await;
    let second = gateway.spawn_get(&target, &[]);
    gateway.wait_until_parked(2).await;
    assert_eq!(gateway.upstream_requests().len(), 1 + 60 + PROBES, "the quota is used up");
    gateway.sim.set_status("new", "completed");
    let newcomer = gateway.get(&clip_target("new", "completed"), OTHER).await;
    assert_eq!(newcomer.status, StatusCode::OK, "{newcomer:?}");
    for answer in join_all(vec![first, second]).await {
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    }
    assert_eq!(gateway.upstream_requests().len(), 1 + 60 + PROBES + 1 + 60);
}

/// P4: a client alone would make as many calls.
#[tokio::test]
async fn a_wait_that_opens_many_polls_pays_for_as_many_calls() {
    let gateway = gateway_with_answered_upstream(|config, _| {
        config.wait.max_jobs = 1000;
        config.limits.calls_per_second = 1;
        config.limits.calls_burst = 1000;
    })
    .await;
    let ids = names(1000);
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    set_status_of_all(&gateway, &ids, "completed");
    let answer = gateway.get(&clips_target(&ids, "completed"), &[]).await;
    assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.headers);
    assert_eq!(gateway.upstream_requests().len(), 1 + 167);
    let left = calls_left(&answer);
    assert!((833..833 + 60).contains(&left), "{left} of 1000, and each second adds one");
}

/// P12: `retry_for` applies to an upstream that has answered before.
#[tokio::test]
async fn an_upstream_that_never_answered_is_502_after_upstream_retries_attempts() {
    let gateway = TestGateway::with(|config, options| {
        set_hold(MINUTE, config, options);
        config.upstream.retries = 2;
        config.upstream.retry_for = HOUR;
    })
    .await;
    gateway.sim.set_status("a", "completed");
    gateway.sim.fault(FaultTarget::Polls, Fault::reset(), u32::MAX);
    let answer = gateway.get(&clip_target("a", "completed"), &[]).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    assert_eq!(answer.field("cache-status"), "clipgate; detail=unreachable");
    assert_eq!(gateway.upstream_requests().len(), 3);
}

#[tokio::test]
async fn an_outage_is_one_warning_with_its_cause_and_one_line_at_its_end() {
    // An address without a listener, which another process will hardly take meanwhile.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let test_env = TestEnv::new().await;
    test_env.configure("");
    let mut command = test_env.command();
    command.env("CLIPGATE__UPSTREAM__BASE_URL", format!("http://{address}"));
    command.env("CLIPGATE__UPSTREAM__RETRIES", "20");
    let mut gateway = GatewayProcess::spawn(command);
    let mut client = TestClient::connect(gateway.address().await).await;
    let wait = async {
        let begun = gateway.wait_for_log("upstream cannot be reached").await;
        assert!(begun.contains("WARN") && begun.contains("cause=\"Connection refused\""), "{begun}");
        assert!(begun.contains("clipgate.waits=1"), "{begun}");
        tokio::time::sleep(Duration::from_secs(2)).await;
        test_env.sim.set_status("a", "completed");
        let listener = TcpListener::bind(address).await.unwrap();
        let serving = tokio::spawn(test_env.sim.clone().serve(listener, std::future::pending()));
        let ended = gateway.wait_for_log("upstream can be reached again").await;
        assert!(ended.contains("INFO") && ended.contains("clipgate.outage.duration="), "{ended}");
        (AbortOnDropHandle::new(serving),)
    };
    let target = completed_target("a");
    let (answer, (_serving,)) = tokio::join!(client.get(&target, &[]), wait);
    assert_eq!(answer.status(), StatusCode::OK);
    drop(client);
    gateway.signal("TERM");
    assert!(gateway.wait_for_exit().await.success());
    let log = gateway.rest_of_log().await;
    assert!(!log.iter().any(|line| line.contains("upstream can")), "one line each: {log:#?}");
}
