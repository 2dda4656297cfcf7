//! What goes wrong at the upstream, and how little of it the waits see (contract, section 8).

use std::time::Duration;

use clipgate::sim::{ErrorBody, Fault, FaultTarget, RequestEnd};
use http::StatusCode;
use serde_json::Value;
use tokio_util::task::AbortOnDropHandle;

use crate::harness::gateway::{Answer, TestGateway, clip_target, join_all, set_hold};

const LONG: Duration = Duration::from_secs(60);

/// When a fault of the middle of a wait comes: all waits are there by then.
const MIDDLE: Duration = Duration::from_millis(1500);

/// A stage and 20 waits on one clip, parked; the next polls go wrong.
async fn with_parked_waits(fault: Fault, times: u32) -> (TestGateway, Vec<AbortOnDropHandle<Answer>>) {
    with_parked_waits_and_retry_for(Duration::from_secs(30), fault, times).await
}

async fn with_parked_waits_and_retry_for(
    retry_for: Duration,
    fault: Fault,
    times: u32,
) -> (TestGateway, Vec<AbortOnDropHandle<Answer>>) {
    let stage = TestGateway::with(|config, options| {
        set_hold(LONG, config, options);
        config.upstream.retries = 2;
        config.upstream.retry_for = retry_for;
    })
    .await;
    stage.sim.set_status("a", "submitted");
    stage.sim.fault(FaultTarget::Polls, fault, times);
    let waits = (0..20).map(|_| stage.spawn_get(&clip_target("a", "completed"), &[])).collect();
    stage.wait_until_parked(20).await;
    (stage, waits)
}

fn status_in_the_middle(status: u16, body: ErrorBody) -> Fault {
    let status = StatusCode::from_u16(status).expect("it is one");
    Fault::Status { status, retry_after: None, body, after: MIDDLE }
}

/// The fault comes once, and nobody but the upstream notices.
async fn goes_unnoticed(fault: Fault) -> TestGateway {
    let (stage, waits) = with_parked_waits(fault, 1).await;
    stage.wait_until(|seen| seen.open == 1 && seen.requests.len() == 2).await;
    stage.sim.set_status("a", "completed");
    are_right(&stage, waits).await;
    stage
}

async fn are_right(stage: &TestGateway, waits: Vec<AbortOnDropHandle<Answer>>) {
    let body = stage.sim.body("a", "completed");
    let answers = join_all(waits).await;
    assert_eq!(answers.len(), 20);
    assert!(answers.iter().all(|answer| answer.status == StatusCode::OK && answer.body == body));
    assert_eq!(answers.iter().filter(|answer| answer.is_opener()).count(), 1);
    assert_eq!(stage.upstream_requests(), vec![clip_target("a", "completed"); 2]);
}

#[tokio::test]
async fn a_poll_that_is_reset_in_mid_wait_is_asked_once_more_for_all() {
    let stage = goes_unnoticed(Fault::reset_after(MIDDLE)).await;
    assert_eq!(stage.sim.requests()[0].end, RequestEnd::Broken);
}

#[tokio::test]
async fn a_poll_that_is_answered_500_is_asked_once_more_for_all() {
    goes_unnoticed(status_in_the_middle(500, ErrorBody::Json)).await;
}

#[tokio::test]
async fn a_poll_that_a_proxy_answers_502_is_asked_once_more_for_all() {
    goes_unnoticed(status_in_the_middle(502, ErrorBody::Html)).await;
}

#[tokio::test]
async fn a_poll_whose_answer_is_no_json_is_asked_once_more_for_all() {
    goes_unnoticed(Fault::Html).await;
}

#[tokio::test]
async fn a_poll_whose_connection_is_closed_without_a_byte_is_asked_once_more_for_all() {
    goes_unnoticed(Fault::Refuse).await;
}

#[tokio::test]
async fn a_poll_whose_answer_is_cut_off_is_asked_once_more_for_all() {
    let (stage, waits) = with_parked_waits(Fault::Cut, 1).await;
    stage.wait_until(|seen| seen.open == 1).await;
    stage.sim.set_status("a", "completed");
    are_right(&stage, waits).await;
    assert_eq!(stage.sim.requests()[0].end, RequestEnd::Broken);
}

#[tokio::test]
async fn a_429_with_retry_after_is_waited_out() {
    is_waited_out(429).await;
}

#[tokio::test]
async fn a_503_with_retry_after_is_waited_out() {
    is_waited_out(503).await;
}

async fn is_waited_out(status: u16) {
    let pause = Duration::from_secs(1);
    let stage = goes_unnoticed(Fault::retry_after(status, pause)).await;
    let [first, second] = &stage.sim.requests()[..] else { panic!("there are two") };
    let waited = second.at - first.ended_at.expect("it was answered");
    assert!(waited >= pause, "{waited:?}");
}

#[tokio::test]
async fn any_other_4xx_is_final_for_every_wait_on_that_poll() {
    tokio::join!(is_final(400), is_final(404), is_final(422), is_final(429));
}

#[tokio::test]
async fn a_redirect_is_passed_on() {
    is_final(302).await;
}

async fn is_final(status: u16) {
    let (stage, waits) = with_parked_waits(status_in_the_middle(status, ErrorBody::Json), 1).await;
    let answers = join_all(waits).await;
    for answer in &answers {
        assert_eq!(answer.status, status);
        assert_eq!(answer.body, answers[0].body);
    }
    let error: Value = serde_json::from_slice(&answers[0].body).expect("the upstream wrote JSON");
    assert_eq!(error["statusCode"], status);
    assert_eq!(stage.upstream_requests(), [clip_target("a", "completed")]);
    // Nothing of it stays.
    stage.sim.set_status("a", "completed");
    let next = stage.get(&clip_target("a", "completed"), &[]).await;
    assert_eq!(next.body, stage.sim.body("a", "completed"));
}

#[tokio::test]
async fn a_failure_is_none_of_those_who_came_after_its_try_began() {
    let stage = TestGateway::with(|config, options| {
        set_hold(LONG, config, options);
        config.upstream.retries = 0;
    })
    .await;
    stage.sim.set_status("a", "submitted");
    stage.sim.fault(FaultTarget::Polls, status_in_the_middle(500, ErrorBody::Json), 1);
    let first = stage.spawn_get(&clip_target("a", "completed"), &[]);
    stage.wait_until(|seen| seen.open == 1).await;
    let later = stage.spawn_get(&clip_target("a", "completed"), &[]);
    stage.wait_until_parked(2).await;
    assert_eq!(first.await.unwrap().status, StatusCode::INTERNAL_SERVER_ERROR);
    stage.wait_until(|seen| seen.open == 1 && seen.requests.len() == 2).await;
    stage.sim.set_status("a", "completed");
    assert_eq!(later.await.unwrap().body, stage.sim.body("a", "completed"));
    assert_eq!(stage.upstream_requests(), vec![clip_target("a", "completed"); 2]);
}

#[tokio::test]
async fn a_poll_that_is_never_answered_does_not_keep_the_deadline_from_its_true_answer() {
    let hold = Duration::from_secs(2);
    let stage = TestGateway::with(|config, options| {
        set_hold(hold, config, options);
        // The poll is given up a minute later than this test is.
        config.upstream.connect_timeout = LONG;
    })
    .await;
    stage.sim.set_status("a", "queued");
    stage.sim.fault(FaultTarget::Path(clip_target("a", "completed")), Fault::Hang, 1);
    let answer = stage.get(&clip_target("a", "completed"), &[]).await;
    assert_eq!(answer.body, stage.sim.body("a", "queued"));
    assert!(answer.took >= hold, "{:?}", answer.took);
    assert_eq!(stage.upstream_requests(), [clip_target("a", "completed"), clip_target("a", "submitted")]);
}

#[tokio::test]
async fn when_tries_run_out_the_upstreams_own_500_goes_to_all_as_it_wrote_it() {
    let (stage, waits) = with_parked_waits(status_in_the_middle(500, ErrorBody::Html), 1).await;
    stage.sim.fault(FaultTarget::Polls, Fault::status_with(500, ErrorBody::Json), 1);
    stage.sim.fault(FaultTarget::Polls, Fault::status_with(500, ErrorBody::Html), 1);
    let answers = join_all(waits).await;
    for answer in &answers {
        assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(answer.field("content-type"), "text/html");
        assert!(answer.body.starts_with(b"<!DOCTYPE html>"), "{answer:?}");
        assert_eq!(answer.field("cache-control"), "no-store");
    }
    assert_eq!(stage.upstream_requests(), vec![clip_target("a", "completed"); 3]);
}

#[tokio::test]
async fn when_retry_for_is_over_all_get_the_gateways_502() {
    let second = Duration::from_secs(1);
    let (stage, waits) = with_parked_waits_and_retry_for(second, Fault::reset_after(MIDDLE), 1).await;
    stage.sim.fault(FaultTarget::Polls, Fault::reset(), u32::MAX);
    for answer in join_all(waits).await {
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
        assert_eq!(answer.field("cache-status"), "clipgate; detail=unreachable");
        let error: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(error["statusCode"], 502);
        assert_eq!(error["path"], "/v2/generate/audio/suno-ai/clip");
        assert_eq!(error["requestId"], answer.field("x-request-id"));
        assert!(answer.took >= MIDDLE + second, "{:?}", answer.took);
    }
    assert!(stage.upstream_requests().len() > 2, "it is tried again meanwhile");
}

/// Row 2.6.
#[tokio::test]
async fn an_answer_that_cannot_be_read_is_handed_over_as_it_came_when_the_retries_are_used_up() {
    let (stage, waits) = with_parked_waits(Fault::reset_after(MIDDLE), 1).await;
    stage.sim.fault(FaultTarget::Polls, Fault::Html, 3);
    for answer in join_all(waits).await {
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.field("content-type"), "text/html");
        assert!(answer.body.starts_with(b"<!DOCTYPE html>"), "{answer:?}");
        assert!(!answer.field("cache-status").contains("stored"), "{answer:?}");
    }
    assert_eq!(stage.upstream_requests(), vec![clip_target("a", "completed"); 4]);
}

/// Row 2.6: with 5 s or less left there is one retry.
#[tokio::test]
async fn a_short_wait_gets_an_answer_that_cannot_be_read_after_one_retry() {
    let stage = TestGateway::new().await;
    stage.sim.set_status("a", "submitted");
    stage.sim.fault(FaultTarget::Polls, Fault::Html, 100);
    let answer = stage.get(&clip_target("a", "completed"), &[("prefer", "wait=5")]).await;
    assert!(answer.body.starts_with(b"<!DOCTYPE html>"), "{answer:?}");
    assert_eq!(stage.upstream_requests(), vec![clip_target("a", "completed"); 2]);
}

#[tokio::test]
async fn waits_outlast_an_upstream_that_is_down_for_a_while() {
    let mut stage = TestGateway::without_upstream(|config, options| {
        set_hold(LONG, config, options);
        config.upstream.retries = 30;
    })
    .await;
    stage.sim.set_status("a", "submitted");
    let waits: Vec<_> = (0..20).map(|_| stage.spawn_get(&clip_target("a", "completed"), &[])).collect();
    stage.wait_until_parked(20).await;
    tokio::time::sleep(Duration::from_millis(500)).await; // so long it is down
    stage.start_upstream();
    stage.wait_until(|seen| seen.open == 1).await;
    stage.sim.set_status("a", "completed");
    let body = stage.sim.body("a", "completed");
    assert!(join_all(waits).await.iter().all(|answer| answer.body == body));
    assert_eq!(stage.upstream_requests(), [clip_target("a", "completed")]);
}

#[tokio::test]
async fn an_upstream_that_stays_down_is_a_502() {
    let stage = TestGateway::without_upstream(|config, _| config.upstream.retries = 1).await;
    let answer = stage.get(&clip_target("a", "completed"), &[]).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    assert_eq!(answer.field("cache-status"), "clipgate; detail=unreachable");
}
