//! Faults of the upstream during a wait. The gateway retries, and the waits see as little of them as possible (P12).

use std::time::Duration;

use clipgate::sim::{ErrorBody, Fault, FaultTarget, RequestEnd};
use http::StatusCode;
use serde_json::Value;
use tokio_util::task::AbortOnDropHandle;

use crate::harness::gateway::{Answer, TestGateway, clip_target, join_all, set_hold};

const LONG: Duration = Duration::from_secs(60);

/// Delay of a fault in the middle of a wait: all waits have arrived by then.
const MIDDLE: Duration = Duration::from_millis(1500);

/// Returns a gateway with 20 parked waits on one job, whose next polls fail.
async fn with_parked_waits(fault: Fault, times: u32) -> (TestGateway, Vec<AbortOnDropHandle<Answer>>) {
    with_parked_waits_and_retry_for(Duration::from_secs(30), fault, times).await
}

async fn with_parked_waits_and_retry_for(
    retry_for: Duration,
    fault: Fault,
    times: u32,
) -> (TestGateway, Vec<AbortOnDropHandle<Answer>>) {
    let gateway = TestGateway::with(|config, options| {
        set_hold(LONG, config, options);
        config.upstream.retries = 2;
        config.upstream.retry_for = retry_for;
    })
    .await;
    gateway.sim.set_status("a", "submitted");
    gateway.sim.fault(FaultTarget::Polls, fault, times);
    let waits = (0..20).map(|_| gateway.spawn_get(&clip_target("a", "completed"), &[])).collect();
    gateway.wait_until_parked(20).await;
    (gateway, waits)
}

fn status_in_the_middle(status: u16, body: ErrorBody) -> Fault {
    let status = StatusCode::from_u16(status).expect("a valid status");
    Fault::Status { status, retry_after: None, body, after: MIDDLE }
}

/// Injects the fault once, and asserts that all waits get their answer.
async fn assert_retried_for_all(fault: Fault) -> TestGateway {
    let (gateway, waits) = with_parked_waits(fault, 1).await;
    gateway.wait_until(|seen| seen.open == 1 && seen.requests.len() == 2).await;
    gateway.sim.set_status("a", "completed");
    assert_all_answered(&gateway, waits).await;
    gateway
}

async fn assert_all_answered(gateway: &TestGateway, waits: Vec<AbortOnDropHandle<Answer>>) {
    let body = gateway.sim.body("a", "completed");
    let answers = join_all(waits).await;
    assert_eq!(answers.len(), 20);
    assert!(answers.iter().all(|answer| answer.status == StatusCode::OK && answer.body == body));
    assert_eq!(answers.iter().filter(|answer| answer.is_opener()).count(), 1);
    assert_eq!(gateway.upstream_requests(), vec![clip_target("a", "completed"); 2]);
}

#[tokio::test]
async fn the_gateway_repeats_a_poll_that_is_reset_once_for_all_waits() {
    let gateway = assert_retried_for_all(Fault::reset_after(MIDDLE)).await;
    assert_eq!(gateway.sim.requests()[0].end, RequestEnd::Broken);
}

#[tokio::test]
async fn the_gateway_repeats_a_poll_answered_500_once_for_all_waits() {
    assert_retried_for_all(status_in_the_middle(500, ErrorBody::Json)).await;
}

#[tokio::test]
async fn the_gateway_repeats_a_poll_answered_502_by_a_proxy_once_for_all_waits() {
    assert_retried_for_all(status_in_the_middle(502, ErrorBody::Html)).await;
}

#[tokio::test]
async fn the_gateway_repeats_a_poll_answered_without_json_once_for_all_waits() {
    assert_retried_for_all(Fault::Html).await;
}

#[tokio::test]
async fn the_gateway_repeats_a_poll_whose_connection_closes_once_for_all_waits() {
    assert_retried_for_all(Fault::Refuse).await;
}

#[tokio::test]
async fn the_gateway_repeats_a_poll_with_a_truncated_response_once_for_all_waits() {
    let (gateway, waits) = with_parked_waits(Fault::Cut, 1).await;
    gateway.wait_until(|seen| seen.open == 1).await;
    gateway.sim.set_status("a", "completed");
    assert_all_answered(&gateway, waits).await;
    assert_eq!(gateway.sim.requests()[0].end, RequestEnd::Broken);
}

#[tokio::test]
async fn the_gateway_waits_for_the_retry_after_of_a_429() {
    is_waited_out(429).await;
}

#[tokio::test]
async fn the_gateway_waits_for_the_retry_after_of_a_503() {
    is_waited_out(503).await;
}

async fn is_waited_out(status: u16) {
    let pause = Duration::from_secs(1);
    let gateway = assert_retried_for_all(Fault::retry_after(status, pause)).await;
    let [first, second] = &gateway.sim.requests()[..] else { panic!("there are two") };
    let waited = second.at - first.ended_at.expect("it was answered");
    assert!(waited >= pause, "{waited:?}");
}

#[tokio::test]
async fn any_other_4xx_is_final_for_every_wait_on_that_poll() {
    tokio::join!(is_final(400), is_final(404), is_final(422), is_final(429));
}

#[tokio::test]
async fn the_gateway_passes_on_a_redirect() {
    is_final(302).await;
}

async fn is_final(status: u16) {
    let (gateway, waits) = with_parked_waits(status_in_the_middle(status, ErrorBody::Json), 1).await;
    let answers = join_all(waits).await;
    for answer in &answers {
        assert_eq!(answer.status, status);
        assert_eq!(answer.body, answers[0].body);
    }
    let error: Value = serde_json::from_slice(&answers[0].body).expect("the upstream wrote JSON");
    assert_eq!(error["statusCode"], status);
    assert_eq!(gateway.upstream_requests(), [clip_target("a", "completed")]);
    // Later waits are not affected.
    gateway.sim.set_status("a", "completed");
    let next = gateway.get(&clip_target("a", "completed"), &[]).await;
    assert_eq!(next.body, gateway.sim.body("a", "completed"));
}

#[tokio::test]
async fn a_failed_attempt_does_not_fail_waits_that_arrived_after_its_start() {
    let gateway = TestGateway::with(|config, options| {
        set_hold(LONG, config, options);
        config.upstream.retries = 0;
    })
    .await;
    gateway.sim.set_status("a", "submitted");
    gateway.sim.fault(FaultTarget::Polls, status_in_the_middle(500, ErrorBody::Json), 1);
    let first = gateway.spawn_get(&clip_target("a", "completed"), &[]);
    gateway.wait_until(|seen| seen.open == 1).await;
    let later = gateway.spawn_get(&clip_target("a", "completed"), &[]);
    gateway.wait_until_parked(2).await;
    assert_eq!(first.await.unwrap().status, StatusCode::INTERNAL_SERVER_ERROR);
    gateway.wait_until(|seen| seen.open == 1 && seen.requests.len() == 2).await;
    gateway.sim.set_status("a", "completed");
    assert_eq!(later.await.unwrap().body, gateway.sim.body("a", "completed"));
    assert_eq!(gateway.upstream_requests(), vec![clip_target("a", "completed"); 2]);
}

#[tokio::test]
async fn a_poll_without_a_response_does_not_delay_the_true_answer_at_the_deadline() {
    let hold = Duration::from_secs(2);
    let gateway = TestGateway::with(|config, options| {
        set_hold(hold, config, options);
        // The poll is abandoned a minute after the end of this test.
        config.upstream.connect_timeout = LONG;
    })
    .await;
    gateway.sim.set_status("a", "queued");
    gateway.sim.fault(FaultTarget::Path(clip_target("a", "completed")), Fault::Hang, 1);
    let answer = gateway.get(&clip_target("a", "completed"), &[]).await;
    assert_eq!(answer.body, gateway.sim.body("a", "queued"));
    assert!(answer.took >= hold, "{:?}", answer.took);
    assert_eq!(gateway.upstream_requests(), [clip_target("a", "completed"), clip_target("a", "submitted")]);
}

#[tokio::test]
async fn after_the_last_attempt_all_waits_get_the_upstreams_500_unchanged() {
    let (gateway, waits) = with_parked_waits(status_in_the_middle(500, ErrorBody::Html), 1).await;
    gateway.sim.fault(FaultTarget::Polls, Fault::status_with(500, ErrorBody::Json), 1);
    gateway.sim.fault(FaultTarget::Polls, Fault::status_with(500, ErrorBody::Html), 1);
    let answers = join_all(waits).await;
    for answer in &answers {
        assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(answer.field("content-type"), "text/html");
        assert!(answer.body.starts_with(b"<!DOCTYPE html>"), "{answer:?}");
        assert_eq!(answer.field("cache-control"), "no-store");
    }
    assert_eq!(gateway.upstream_requests(), vec![clip_target("a", "completed"); 3]);
}

#[tokio::test]
async fn after_retry_for_all_waits_get_the_gateways_502() {
    let second = Duration::from_secs(1);
    let (gateway, waits) = with_parked_waits_and_retry_for(second, Fault::reset_after(MIDDLE), 1).await;
    gateway.sim.fault(FaultTarget::Polls, Fault::reset(), u32::MAX);
    for answer in join_all(waits).await {
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
        assert_eq!(answer.field("cache-status"), "clipgate; detail=unreachable");
        let error: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(error["statusCode"], 502);
        assert_eq!(error["path"], "/v2/generate/audio/suno-ai/clip");
        assert_eq!(error["requestId"], answer.field("x-request-id"));
        assert!(answer.took >= MIDDLE + second, "{:?}", answer.took);
    }
    assert!(gateway.upstream_requests().len() > 2, "the gateway retries meanwhile");
}

/// P8, P12
#[tokio::test]
async fn the_gateway_passes_on_an_unreadable_response_unchanged_after_the_retries() {
    let (gateway, waits) = with_parked_waits(Fault::reset_after(MIDDLE), 1).await;
    gateway.sim.fault(FaultTarget::Polls, Fault::Html, 3);
    for answer in join_all(waits).await {
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.field("content-type"), "text/html");
        assert!(answer.body.starts_with(b"<!DOCTYPE html>"), "{answer:?}");
        assert!(!answer.field("cache-status").contains("stored"), "{answer:?}");
    }
    assert_eq!(gateway.upstream_requests(), vec![clip_target("a", "completed"); 4]);
}

/// P12: with 5 s or less left there is one retry.
#[tokio::test]
async fn a_short_wait_gets_an_unreadable_response_after_one_retry() {
    let gateway = TestGateway::new().await;
    gateway.sim.set_status("a", "submitted");
    gateway.sim.fault(FaultTarget::Polls, Fault::Html, 100);
    let answer = gateway.get(&clip_target("a", "completed"), &[("prefer", "wait=5")]).await;
    assert!(answer.body.starts_with(b"<!DOCTYPE html>"), "{answer:?}");
    assert_eq!(gateway.upstream_requests(), vec![clip_target("a", "completed"); 2]);
}

#[tokio::test]
async fn waits_outlast_an_upstream_that_is_down_for_a_while() {
    let mut gateway = TestGateway::without_upstream(|config, options| {
        set_hold(LONG, config, options);
        config.upstream.retries = 30;
    })
    .await;
    gateway.sim.set_status("a", "submitted");
    let waits: Vec<_> = (0..20).map(|_| gateway.spawn_get(&clip_target("a", "completed"), &[])).collect();
    gateway.wait_until_parked(20).await;
    tokio::time::sleep(Duration::from_millis(500)).await; // length of the outage
    gateway.start_upstream();
    gateway.wait_until(|seen| seen.open == 1).await;
    gateway.sim.set_status("a", "completed");
    let body = gateway.sim.body("a", "completed");
    assert!(join_all(waits).await.iter().all(|answer| answer.body == body));
    assert_eq!(gateway.upstream_requests(), [clip_target("a", "completed")]);
}

#[tokio::test]
async fn an_upstream_that_stays_down_is_502() {
    let gateway = TestGateway::without_upstream(|config, _| config.upstream.retries = 1).await;
    let answer = gateway.get(&clip_target("a", "completed"), &[]).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    assert_eq!(answer.field("cache-status"), "clipgate; detail=unreachable");
}
