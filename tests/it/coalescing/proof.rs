//! Answers from proof: an open poll for the next state proves that a job is still where it was seen (P7).
//!
//! A poll proves a state once it has been held in silence for `upstream.poll_timeout` / 240. Tests sleep for more than
//! that, as the passing of time is the scenario.

use std::time::Duration;

use http::StatusCode;
use tokio_util::task::AbortOnDropHandle;

use crate::harness::admin_client::AdminClient;
use crate::harness::gateway::{Answer, TestGateway, clip_target, set_hold};

/// A hold whose polls prove a state after 100 ms.
const HOLD: Duration = Duration::from_secs(24);

/// Longer than the silence that proves a state.
const SILENCE: Duration = Duration::from_millis(300);

/// Starts a gateway without watches.
async fn gateway_without_watches() -> TestGateway {
    TestGateway::with(|config, options| {
        set_hold(HOLD, config, options);
        config.cache.proven_ttl = Duration::from_secs(30);
        config.wait.watch_idle = Duration::ZERO;
    })
    .await
}

/// Lets the gateway see a job as `queued`, and returns a wait whose poll proves that.
async fn prove_queued(gateway: &TestGateway, id: &str) -> AbortOnDropHandle<Answer> {
    gateway.sim.set_status(id, "queued");
    let wait = gateway.spawn_get(&clip_target(id, "streaming"), &[]);
    gateway.wait_until(|seen| seen.open == 1).await;
    let seen = gateway.get(&clip_target(id, ""), &[]).await;
    assert_eq!((seen.status, &seen.body), (StatusCode::OK, &gateway.sim.body(id, "queued")));
    tokio::time::sleep(SILENCE).await;
    wait
}

#[tokio::test]
async fn fifty_plain_requests_a_second_beside_a_held_poll_cost_nothing_until_the_job_moves_on() {
    let mut gateway = TestGateway::with(|config, options| {
        set_hold(HOLD, config, options);
        config.wait.watch_idle = Duration::ZERO;
        config.limits.calls_per_second = 1;
        config.limits.calls_burst = 4;
    })
    .await;
    let operator = AdminClient::open(&mut gateway).await;
    let wait = prove_queued(&gateway, "a").await;
    let upstream_requests = gateway.upstream_requests();
    assert_eq!(upstream_requests, [clip_target("a", "streaming"), clip_target("a", "")]);

    let mut tick = tokio::time::interval(Duration::from_millis(20));
    for _ in 0..200 {
        tick.tick().await;
        let answer = gateway.get(&clip_target("a", ""), &[]).await;
        assert!(answer.status == StatusCode::OK && answer.is_proven(), "{answer:?}");
        let age: u64 = answer.field("age").parse().unwrap();
        assert!(age < 30, "{age}");
        assert_eq!(answer.field("cache-control"), "no-store");
        assert_eq!(answer.body, gateway.sim.body("a", "queued"));
    }
    assert_eq!(gateway.upstream_requests(), upstream_requests, "nothing beside the poll");
    let page = operator.metrics().await;
    let proven = [("route", "clip"), ("outcome", "proven")];
    assert_eq!(page.sum("clipgate_requests_total", &proven), 200.0);
    assert_eq!(page.sum("clipgate_upstream_calls_saved_total", &[]), 200.0);

    gateway.sim.set_status("a", "streaming");
    assert_eq!(wait.await.unwrap().body, gateway.sim.body("a", "streaming"));
    let next = gateway.get(&clip_target("a", ""), &[]).await;
    assert_eq!(next.body, gateway.sim.body("a", "streaming"));
    assert!(!next.is_proven());
}

#[tokio::test]
async fn a_wait_whose_status_is_reached_is_answered_from_proof() {
    let gateway = gateway_without_watches().await;
    let _wait = prove_queued(&gateway, "a").await;
    for status in ["submitted", "queued"] {
        let answer = gateway.get(&clip_target("a", status), &[]).await;
        assert!(answer.is_proven(), "{status}: {answer:?}");
        assert_eq!(answer.body, gateway.sim.body("a", "queued"));
    }
    assert_eq!(gateway.upstream_requests().len(), 2);
}

#[tokio::test]
async fn a_request_may_restrict_or_forbid_proof() {
    let mut gateway = gateway_without_watches().await;
    let operator = AdminClient::open(&mut gateway).await;
    let _wait = prove_queued(&gateway, "a").await;
    let rows = [
        ("max-age=60", 200, true),
        ("no-cache", 200, false),
        ("no-store", 200, false),
        ("max-age=0", 200, false),
        ("only-if-cached", 504, false),
    ];
    for (control, status, is_proven) in rows {
        let before = gateway.upstream_requests().len();
        let answer = gateway.get(&clip_target("a", ""), &[("cache-control", control)]).await;
        assert_eq!(
            (answer.status.as_u16(), answer.is_proven()),
            (status, is_proven),
            "{control}: {answer:?}"
        );
        let made = gateway.upstream_requests().len() - before;
        assert_eq!(made, usize::from(status == 200 && !is_proven), "{control}");
    }
    let page = operator.metrics().await;
    let calls = |cause| page.sum("clipgate_upstream_requests_total", &[("cause", cause)]);
    assert_eq!((calls("no-cache"), calls("snapshot")), (2.0, 2.0), "{}", page.text);
    let state = operator.state().await;
    assert_eq!(state["totals"]["calls_by_cause"]["no-cache"], 2);
}

#[tokio::test]
async fn a_state_older_than_max_age_or_proven_ttl_is_asked_for_again() {
    let gateway = TestGateway::with(|config, options| {
        set_hold(HOLD, config, options);
        config.wait.watch_idle = Duration::ZERO;
        config.cache.proven_ttl = Duration::from_secs(2);
    })
    .await;
    let _wait = prove_queued(&gateway, "a").await;
    let get = |control| gateway.spawn_get(&clip_target("a", ""), &[("cache-control", control)]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(get("max-age=2").await.unwrap().is_proven());
    assert!(!get("max-age=1").await.unwrap().is_proven());
    assert!(get("max-age=1").await.unwrap().is_proven(), "seen by the last request");
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert!(!get("max-age=60").await.unwrap().is_proven());
    assert_eq!(gateway.upstream_requests().len(), 4);
}

#[tokio::test]
async fn a_proven_ttl_of_zero_turns_proof_off_also_at_a_reload() {
    let gateway = gateway_without_watches().await;
    let _wait = prove_queued(&gateway, "a").await;
    assert!(gateway.get(&clip_target("a", ""), &[]).await.is_proven());
    let mut config = gateway.config().clone();
    config.cache.proven_ttl = Duration::ZERO;
    gateway.reconfigure(&config);
    assert!(gateway.get(&clip_target("a", ""), &[]).await.is_opener());
}

/// P11: proof is for keys that get hits.
#[tokio::test]
async fn a_key_that_the_upstream_has_not_accepted_lately_gets_nothing_from_proof() {
    let gateway = TestGateway::with(|config, options| {
        set_hold(HOLD, config, options);
        config.wait.watch_idle = Duration::ZERO;
        config.cache.key_recheck_interval = Duration::from_secs(1);
    })
    .await;
    let _wait = prove_queued(&gateway, "a").await;
    assert!(gateway.get(&clip_target("a", ""), &[]).await.is_proven());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(gateway.get(&clip_target("a", ""), &[]).await.is_opener());
    assert!(
        gateway.get(&clip_target("a", ""), &[]).await.is_proven(),
        "the upstream has accepted the key again"
    );
}

/// P11: nothing crosses key domains.
#[tokio::test]
async fn another_key_gets_nothing_from_proof() {
    let gateway = gateway_without_watches().await;
    let other = [("authorization", "Bearer other")];
    gateway.sim.set_status("b", "completed");
    assert_eq!(gateway.get(&clip_target("b", "completed"), &other).await.status, StatusCode::OK);
    let _wait = prove_queued(&gateway, "a").await;
    let answer = gateway.get(&clip_target("a", ""), &other).await;
    assert!(answer.is_opener(), "{answer:?}");
    assert!(gateway.get(&clip_target("a", ""), &[]).await.is_proven());
}

/// P8: headers of one response are for the client whose request got it.
#[tokio::test]
async fn a_response_from_proof_has_no_headers_of_one_response() {
    let gateway = gateway_without_watches().await;
    let _wait = prove_queued(&gateway, "a").await;
    let opener = gateway.get(&clip_target("a", ""), &[("cache-control", "no-cache")]).await;
    let proven = gateway.get(&clip_target("a", ""), &[]).await;
    assert!(proven.is_proven());
    for name in ["x-request-id", "x-inference-id", "set-cookie"] {
        assert!(!opener.field(name).is_empty(), "{name}: {opener:?}");
        assert_ne!(proven.field(name), opener.field(name), "{name}: {proven:?}");
    }
    assert_eq!(proven.field("content-type"), opener.field("content-type"));
}
