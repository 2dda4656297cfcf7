//! Metrics, compared with the requests that were sent.

use std::time::Duration;

use clipgate::sim::{Fault, FaultTarget};
use clipgate::testing::config::AuthMode;
use http::Request;

use crate::harness::admin_client::{AdminClient, field, text};
use crate::harness::gateway::{TestGateway, clip_target, clips_target, join_all, set_hold};
use crate::harness::raw_http::{assert_bare_rejection, send_raw};

const REQUESTS: &str = "clipgate_requests_total";
const CALLS: &str = "clipgate_upstream_requests_total";

#[tokio::test]
async fn each_outcome_is_counted() {
    let mut gateway = TestGateway::with(|config, options| {
        set_hold(Duration::from_secs(60), config, options);
        config.server.cors_origins = vec!["https://app.example".to_owned()];
    })
    .await;
    let admin = AdminClient::open(&mut gateway).await;
    gateway.sim.set_status("a", "queued");
    gateway.sim.set_status("b", "completed");
    gateway.sim.set_status("d", "queued");

    // 1 opens a poll, 4 attach to it
    let waits: Vec<_> = (0..5).map(|_| gateway.spawn_get(&clip_target("a", "completed"), &[])).collect();
    gateway.wait_until_parked(5).await;
    gateway.wait_until(|seen| seen.open == 1).await;
    let page = admin.metrics().await;
    assert_eq!((page.sum("clipgate_waits", &[]), page.sum("clipgate_upstream_polls", &[])), (5.0, 1.0));
    gateway.sim.set_status("a", "completed");
    join_all(waits).await;
    // 3 hits, 1 of them for several jobs; 1 opens a poll
    for target in [clip_target("b", "completed"), clip_target("a", "completed"), clip_target("b", "queued")] {
        gateway.get(&target, &[]).await;
    }
    gateway.get(&clips_target(&["a", "b"], "completed"), &[]).await;
    // 2 passed through, 1 of them on the path of waits
    gateway.get("/v1/models", &[]).await;
    gateway.get("/v2/generate/audio/suno-ai/clip?x=1", &[]).await;
    // 2 rejected, 1 preflight
    gateway.get(&clip_target("", "completed"), &[]).await;
    gateway.get(&clip_target("c", "completed"), &[("cache-control", "only-if-cached")]).await;
    let preflight = Request::options("/x")
        .header("origin", "https://app.example")
        .header("access-control-request-method", "GET");
    gateway.send(preflight.body(Default::default()).unwrap()).await;
    // 1 client that disconnects
    let left = gateway.spawn_get(&clip_target("d", "completed"), &[]);
    gateway.wait_until_parked(1).await;
    drop(left);
    gateway.wait_until_parked(0).await;

    let page = admin.metrics().await;
    let rows = [
        ("clip", "hit", 2),
        ("clips", "hit", 1),
        ("clip", "opened", 2),
        ("clip", "coalesced", 4),
        ("other", "passthrough", 1),
        ("clip", "passthrough", 1),
        ("clip", "rejected", 2),
        ("other", "preflight", 1),
        ("clip", "client_closed", 1),
    ];
    for (route, outcome, count) in rows {
        let labels = [("route", route), ("outcome", outcome)];
        assert_eq!(page.sum(REQUESTS, &labels), f64::from(count), "{route} {outcome} in\n{}", page.text);
    }
    let total = rows.iter().map(|(_, _, count)| f64::from(*count)).sum::<f64>();
    assert_eq!(page.sum(REQUESTS, &[]), total, "and no other request");
    assert_eq!(page.sum("clipgate_request_seconds_count", &[]), total);
    assert_eq!(page.sum("clipgate_upstream_calls_saved_total", &[]), 3.0 + 4.0);
    for (end, count) in [("reached", 6), ("client_closed", 1), ("timed-out", 0), ("failed", 0)] {
        assert_eq!(page.sum("clipgate_wait_seconds_count", &[("end", end)]), f64::from(count), "{end}");
    }
    assert_eq!(page.sum("clipgate_fanout_seconds_count", &[]), 2.0, "two responses ended waits");
    assert!(page.sum("clipgate_fanout_seconds_sum", &[]) < 5.0);
    assert_eq!(page.sum("clipgate_waits", &[]), 0.0);
    assert_eq!(page.sum("clipgate_cache_entries", &[]), 2.0);
    assert!(page.sum("clipgate_cache_bytes", &[]) > 1000.0);
}

#[tokio::test]
async fn upstream_requests_are_counted_by_kind_and_code() {
    let mut gateway = TestGateway::with(|config, options| {
        set_hold(Duration::from_secs(60), config, options);
        config.wait.linger = Duration::ZERO;
        config.upstream.retries = 2;
    })
    .await;
    let admin = AdminClient::open(&mut gateway).await;
    gateway.sim.set_status("a", "completed");
    gateway.get(&clip_target("a", "completed"), &[]).await;
    // a snapshot of the current state
    gateway.get(&clip_target("a", ""), &[("cache-control", "no-cache")]).await;
    // not found: final
    gateway.get(&clip_target("nowhere", "completed"), &[]).await;
    // fails once and is retried
    gateway.sim.fault(
        FaultTarget::Path("/v2/generate/audio/suno-ai/clip".to_owned()),
        Fault::Reset { after: Duration::ZERO },
        1,
    );
    let response = gateway.get(&clip_target("a", "completed"), &[("cache-control", "no-cache")]).await;
    assert_eq!(response.status, 200, "{response:?}");
    // passed through
    gateway.get("/sim/status/503", &[]).await;
    gateway.get("/sim/status/204", &[]).await;
    // cancelled
    gateway.sim.set_status("b", "queued");
    let left = gateway.spawn_get(&clip_target("b", "completed"), &[]);
    gateway.wait_until(|seen| seen.open == 1).await;
    drop(left);
    gateway.wait_until(|seen| seen.abandoned() == 1).await;

    let page = admin.metrics().await;
    let rows = [
        ("poll", "200", 2),
        ("poll", "404", 1),
        ("poll", "reset", 1),
        ("poll", "cancelled", 1),
        ("snapshot", "200", 1),
        ("passthrough", "503", 1),
        ("passthrough", "204", 1),
    ];
    for (kind, code, count) in rows {
        let labels = [("kind", kind), ("code", code)];
        assert_eq!(page.sum(CALLS, &labels), f64::from(count), "{kind} {code} in\n{}", page.text);
    }
    for (cause, count) in [("wait", 4), ("retry", 1), ("no-cache", 1), ("passthrough", 2), ("watch", 0)] {
        assert_eq!(page.sum(CALLS, &[("cause", cause)]), f64::from(count), "{cause} in\n{}", page.text);
    }
    let state = admin.state().await;
    assert_eq!(state["totals"]["calls_by_cause"]["wait"], 4, "{state}");
    assert_eq!(page.sum(CALLS, &[]), gateway.sim.requests().len() as f64, "as many as the upstream received");
    assert_eq!(page.sum("clipgate_upstream_seconds_count", &[("kind", "poll")]), 5.0);
    assert_eq!(page.sum("clipgate_upstream_retries_total", &[]), 1.0);
    assert_eq!(page.sum("clipgate_breaker_open", &[]), 0.0);
}

#[tokio::test]
async fn an_open_breaker_and_failed_requests_are_counted() {
    let mut gateway = TestGateway::with(|config, _| {
        config.upstream.breaker_failures = 2;
        config.upstream.breaker_cooldown = Duration::from_secs(600);
        config.upstream.retry_for = Duration::from_secs(1);
    })
    .await;
    let admin = AdminClient::open(&mut gateway).await;
    gateway.sim.set_status("good", "completed");
    assert_eq!(gateway.get(&clip_target("good", "completed"), &[]).await.status, 200);
    gateway.sim.fault(FaultTarget::Polls, Fault::reset(), u32::MAX);
    let response = gateway.get(&clip_target("a", "completed"), &[]).await;
    assert_eq!(response.field("cache-status"), "clipgate; detail=unreachable");
    let page = admin.metrics().await;
    assert_eq!(page.sum("clipgate_breaker_open", &[]), 1.0);
    let resets = page.sum(CALLS, &[("kind", "poll"), ("code", "reset")]);
    assert!((2.0..20.0).contains(&resets), "a first attempt, retries and probes: {resets}");
    assert_eq!(page.sum(REQUESTS, &[("outcome", "rejected")]), 1.0, "the wait that failed");
    let state = admin.state().await;
    assert_eq!(state["upstream"]["breaker_open"], true);
    assert_eq!(state["upstream"]["failed"]["code"], "reset");
    assert_eq!(state["totals"]["errors"].as_f64(), Some(resets));
}

#[tokio::test]
async fn rejections_over_a_limit_are_counted_by_limit_and_member() {
    let mut gateway = TestGateway::with(|config, options| {
        set_hold(Duration::from_secs(60), config, options);
        config.auth.mode = AuthMode::Team(vec![
            crate::clients::team::member(("alice", "cg_a", "sk-one")),
            crate::clients::team::member(("bob", "cg_b", "sk-two")),
        ]);
        config.limits.requests_per_second = 1;
        config.limits.burst = 3;
        config.limits.calls_per_second = 1;
        config.limits.calls_burst = 2;
        config.limits.max_waits_per_key = 1;
    })
    .await;
    let admin = AdminClient::open(&mut gateway).await;
    let alice = [("authorization", "Bearer cg_a")];
    let mut rejected = 0;
    for _ in 0..20 {
        rejected += i32::from(gateway.get(&clip_target("", "completed"), &alice).await.status == 429);
    }
    assert!(rejected >= 10, "{rejected}");
    gateway.sim.set_status("a", "queued");
    let bob = [("authorization", "Bearer cg_b")];
    let _parked = gateway.spawn_get(&clip_target("a", "completed"), &bob);
    gateway.wait_until_parked(1).await;
    assert_eq!(gateway.get(&clip_target("a", "completed"), &bob).await.status, 429);

    let page = admin.metrics().await;
    let count = |quota: &str, member: &str| {
        page.sum("clipgate_rate_limited_total", &[("quota", quota), ("member", member)])
    };
    assert_eq!(count("requests", "alice"), f64::from(rejected));
    assert_eq!(count("waits-per-key", "bob"), 1.0);
    assert_eq!((count("calls", "bob"), count("requests", "bob"), count("requests", "")), (0.0, 0.0, 0.0));
}

#[tokio::test]
async fn malformed_heads_are_counted_as_rejected() {
    let mut gateway = TestGateway::new().await;
    let admin = AdminClient::open(&mut gateway).await;
    let bytes = send_raw(gateway.address, b"GET / HTTP/1.1\r\nx : y\r\n\r\n").await;
    assert_bare_rejection(&bytes, 400);
    admin.assert_rejected(1).await;
    let page = admin.metrics().await;
    assert_eq!(page.sum(REQUESTS, &[("route", "other"), ("outcome", "rejected")]), 1.0);
}

#[tokio::test]
async fn open_metrics_is_returned_if_accepted() {
    let mut gateway = TestGateway::new().await;
    let admin = AdminClient::open(&mut gateway).await;
    let accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
    let response = admin.send("GET", "/metrics", &[("accept", accept)]).await;
    assert!(field(&response, "content-type").starts_with("application/openmetrics-text; version=1.0.0"));
    assert!(
        text(&response).ends_with("# EOF\n")
            && text(&response).contains("# TYPE clipgate_requests counter\n")
    );
    let response = admin.get("/metrics").await;
    assert_eq!(field(&response, "content-type"), "text/plain; version=0.0.4; charset=utf-8");
    assert!(!text(&response).contains("# EOF"));
}
