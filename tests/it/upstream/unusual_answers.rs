//! Successes that say nothing of the job, or not all: with `Retry-After`, without a body, or unreadable (contract
//! section 9).

use std::time::Duration;

use clipgate::sim::{ErrorBody, Fault, FaultTarget};
use clipgate::testing::clock;
use http::StatusCode;

use crate::harness::gateway::{TestGateway, clip_target, set_hold};
use crate::harness::raw_upstream::{AfterHead, RawUpstream};
use crate::upstream::outages::{MINUTE, proven};

/// A stage before an upstream that answers every poll with this head and body.
async fn before(head: &str, body: &'static [u8]) -> (TestGateway, RawUpstream) {
    let head = format!("HTTP/1.1 {head}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    let rogue = RawUpstream::start(&head, AfterHead::Bytes(body.into())).await;
    let stage = TestGateway::without_upstream(|config, options| {
        set_hold(MINUTE, config, options);
        config.upstream.base_url = rogue.url.clone();
        config.upstream.retries = 2;
    })
    .await;
    (stage, rogue)
}

const UNFINISHED: &[u8] = br#"{"id":"a","status":"queued"}"#;

/// Row 2.5.
#[tokio::test]
async fn an_unfinished_job_is_asked_about_again_when_its_retry_after_is_over() {
    let (stage, rogue) = before("202 Accepted\r\nretry-after: 1", UNFINISHED).await;
    let began = clock::now();
    let _wait = stage.spawn_get(&clip_target("a", "completed"), &[]);
    rogue.wait_until_requests(1).await;
    rogue.wait_until_requests(2).await;
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    rogue.wait_until_requests(3).await;
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
}

/// Row 2.5: the upstream asks for a minute, and the wait has two seconds.
#[tokio::test]
async fn an_unfinished_job_is_not_asked_about_before_its_retry_after_but_at_the_deadline() {
    let (stage, rogue) = before("202 Accepted\r\nretry-after: 60", UNFINISHED).await;
    let answer = stage.get(&clip_target("a", "completed"), &[("prefer", "wait=2")]).await;
    assert_eq!(answer.body, UNFINISHED);
    assert!(answer.took >= Duration::from_secs(2), "{:?}", answer.took);
    assert!(rogue.request_count() <= 2, "a poll and a snapshot: {}", rogue.request_count());
}

/// Row 2.6.
#[tokio::test]
async fn a_success_without_a_body_is_handed_over_at_once_and_not_kept() {
    for status in [StatusCode::NO_CONTENT, StatusCode::ACCEPTED, StatusCode::OK] {
        let stage = proven(|_, _| {}).await;
        stage.sim.set_status("a", "completed");
        let empty = Fault::Status {
            status,
            retry_after: Some(Duration::from_secs(7)),
            body: ErrorBody::Empty,
            after: Duration::ZERO,
        };
        stage.sim.fault(FaultTarget::Polls, empty, 1);
        let answer = stage.get(&clip_target("a", "completed"), &[]).await;
        assert_eq!((answer.status, &answer.body[..]), (status, &b""[..]));
        assert_eq!(answer.field("retry-after"), "7", "{answer:?}");
        assert!(!answer.field("cache-status").contains("stored"), "{answer:?}");
        assert_eq!(stage.upstream_requests().len(), 2, "it is asked once");
        let next = stage.get(&clip_target("a", "completed"), &[]).await;
        assert_eq!(next.body, stage.sim.body("a", "completed"));
        assert!(next.is_opener(), "{next:?}");
    }
}

/// Row 2.6: `Retry-After` belongs to one response (contract section 2).
#[tokio::test]
async fn the_retry_after_of_an_empty_success_goes_to_the_wait_that_opened_the_poll_alone() {
    let stage = proven(|_, _| {}).await;
    stage.sim.set_status("a", "queued");
    let empty = Fault::Status {
        status: StatusCode::ACCEPTED,
        retry_after: Some(Duration::from_secs(7)),
        body: ErrorBody::Empty,
        after: Duration::from_millis(1500), // both waits are there by then
    };
    stage.sim.fault(FaultTarget::Polls, empty, 1);
    let opener = stage.spawn_get(&clip_target("a", "completed"), &[]);
    stage.wait_until(|seen| seen.open == 1).await;
    let joiner = stage.spawn_get(&clip_target("a", "completed"), &[]);
    stage.wait_until_parked(2).await;
    let (opener, joiner) = (opener.await.unwrap(), joiner.await.unwrap());
    assert_eq!((opener.status, joiner.status), (StatusCode::ACCEPTED, StatusCode::ACCEPTED));
    assert_eq!((opener.field("retry-after"), joiner.field("retry-after")), ("7", ""));
    assert_eq!(stage.upstream_requests().len(), 2);
}

/// Row 2.6.
#[tokio::test]
async fn a_byte_order_mark_is_kept_in_the_bytes_and_the_job_is_understood() {
    let body = b"\xEF\xBB\xBF{\"id\":\"a\",\"status\":\"complete\"}";
    let (stage, rogue) = before("200 OK\r\ncontent-type: application/json", body).await;
    let answer = stage.get(&clip_target("a", "completed"), &[]).await;
    assert_eq!((answer.status, &answer.body[..]), (StatusCode::OK, &body[..]));
    let hit = stage.get(&clip_target("a", "completed"), &[]).await;
    assert!(hit.is_hit(), "{hit:?}");
    assert_eq!(hit.body, &body[..]);
    assert_eq!(rogue.request_count(), 1);
}

/// Row 2.6.
#[tokio::test]
async fn a_letter_that_is_cut_in_the_middle_is_handed_over_as_it_came_after_the_retries() {
    let body = b"{\"id\":\"a\",\"status\":\"complete\",\"title\":\"\xE2\x82\"}";
    let (stage, rogue) = before("200 OK\r\ncontent-type: application/json", body).await;
    for round in 1..=2 {
        let answer = stage.get(&clip_target("a", "completed"), &[]).await;
        assert_eq!((answer.status, &answer.body[..]), (StatusCode::OK, &body[..]));
        assert_eq!(answer.field("content-type"), "application/json");
        assert!(!answer.is_hit() && !answer.field("cache-status").contains("stored"), "{answer:?}");
        assert_eq!(rogue.request_count(), 3 * round, "one attempt and two retries, nothing is kept");
    }
}
