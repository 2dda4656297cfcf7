//! Successful responses that lack the state of a job: with `Retry-After`, with an empty body, or unreadable.

use std::time::Duration;

use clipgate::sim::{ErrorBody, Fault, FaultTarget};
use clipgate::testing::clock;
use http::StatusCode;

use crate::harness::gateway::{TestGateway, clip_target, set_hold};
use crate::harness::raw_http::{assert_gateway_error, field};
use crate::harness::raw_upstream::{AfterHead, RawUpstream};
use crate::upstream::outages::{MINUTE, gateway_with_answered_upstream};

/// Returns a gateway in front of an upstream that answers every poll with this head and body.
async fn gateway_with(head: &str, body: &'static [u8]) -> (TestGateway, RawUpstream) {
    let head = format!("HTTP/1.1 {head}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    let raw_upstream = RawUpstream::start(&head, AfterHead::Bytes(body.into())).await;
    let gateway = TestGateway::without_upstream(|config, options| {
        set_hold(MINUTE, config, options);
        config.upstream.base_url = raw_upstream.url.clone();
        config.upstream.retries = 2;
    })
    .await;
    (gateway, raw_upstream)
}

const UNFINISHED: &[u8] = br#"{"id":"a","status":"queued"}"#;

/// P1: the upstream's `Retry-After` is the only delay.
#[tokio::test]
async fn the_gateway_polls_an_unfinished_job_again_after_its_retry_after() {
    let (gateway, raw_upstream) = gateway_with("202 Accepted\r\nretry-after: 1", UNFINISHED).await;
    let began = clock::now();
    let _wait = gateway.spawn_get(&clip_target("a", "completed"), &[]);
    raw_upstream.wait_until_requests(1).await;
    raw_upstream.wait_until_requests(2).await;
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    raw_upstream.wait_until_requests(3).await;
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
}

/// P7: the upstream asks for a minute, and the wait has two seconds.
#[tokio::test]
async fn the_gateway_polls_no_job_before_its_retry_after_except_at_the_deadline() {
    let (gateway, raw_upstream) = gateway_with("202 Accepted\r\nretry-after: 60", UNFINISHED).await;
    let answer = gateway.get(&clip_target("a", "completed"), &[("prefer", "wait=2")]).await;
    assert_eq!(answer.body, UNFINISHED);
    assert!(answer.took >= Duration::from_secs(2), "{:?}", answer.took);
    assert!(raw_upstream.request_count() <= 2, "a poll and a snapshot: {}", raw_upstream.request_count());
}

/// P3: an answer that cannot be split by job
#[tokio::test]
async fn the_gateway_passes_on_an_empty_success_at_once_and_does_not_cache_it() {
    for status in [StatusCode::NO_CONTENT, StatusCode::ACCEPTED, StatusCode::OK] {
        let gateway = gateway_with_answered_upstream(|_, _| {}).await;
        gateway.sim.set_status("a", "completed");
        let empty = Fault::Status {
            status,
            retry_after: Some(Duration::from_secs(7)),
            body: ErrorBody::Empty,
            after: Duration::ZERO,
        };
        gateway.sim.fault(FaultTarget::Polls, empty, 1);
        let answer = gateway.get(&clip_target("a", "completed"), &[]).await;
        assert_eq!((answer.status, &answer.body[..]), (status, &b""[..]));
        assert_eq!(answer.field("retry-after"), "7", "{answer:?}");
        assert!(!answer.field("cache-status").contains("stored"), "{answer:?}");
        assert_eq!(gateway.upstream_requests().len(), 2, "one poll");
        let next = gateway.get(&clip_target("a", "completed"), &[]).await;
        assert_eq!(next.body, gateway.sim.body("a", "completed"));
        assert!(next.is_opener(), "{next:?}");
    }
}

/// P8: `Retry-After` belongs to one response.
#[tokio::test]
async fn only_the_wait_that_opened_the_poll_gets_the_retry_after_of_an_empty_success() {
    let gateway = gateway_with_answered_upstream(|_, _| {}).await;
    gateway.sim.set_status("a", "queued");
    let empty = Fault::Status {
        status: StatusCode::ACCEPTED,
        retry_after: Some(Duration::from_secs(7)),
        body: ErrorBody::Empty,
        after: Duration::from_millis(1500), // both waits have arrived by then
    };
    gateway.sim.fault(FaultTarget::Polls, empty, 1);
    let opener = gateway.spawn_get(&clip_target("a", "completed"), &[]);
    gateway.wait_until(|seen| seen.open == 1).await;
    let joiner = gateway.spawn_get(&clip_target("a", "completed"), &[]);
    gateway.wait_until_parked(2).await;
    let (opener, joiner) = (opener.await.unwrap(), joiner.await.unwrap());
    assert_eq!((opener.status, joiner.status), (StatusCode::ACCEPTED, StatusCode::ACCEPTED));
    assert_eq!((opener.field("retry-after"), joiner.field("retry-after")), ("7", ""));
    assert_eq!(gateway.upstream_requests().len(), 2);
}

/// P8
#[tokio::test]
async fn the_gateway_keeps_a_byte_order_mark_and_understands_the_job() {
    let body = b"\xEF\xBB\xBF{\"id\":\"a\",\"status\":\"complete\"}";
    let (gateway, raw_upstream) = gateway_with("200 OK\r\ncontent-type: application/json", body).await;
    let answer = gateway.get(&clip_target("a", "completed"), &[]).await;
    assert_eq!((answer.status, &answer.body[..]), (StatusCode::OK, &body[..]));
    let hit = gateway.get(&clip_target("a", "completed"), &[]).await;
    assert!(hit.is_hit(), "{hit:?}");
    assert_eq!(hit.body, &body[..]);
    assert_eq!(raw_upstream.request_count(), 1);
}

/// P8, P12
#[tokio::test]
async fn the_gateway_passes_on_invalid_utf8_unchanged_after_the_retries() {
    let body = b"{\"id\":\"a\",\"status\":\"complete\",\"title\":\"\xE2\x82\"}";
    let (gateway, raw_upstream) = gateway_with("200 OK\r\ncontent-type: application/json", body).await;
    for round in 1..=2 {
        let answer = gateway.get(&clip_target("a", "completed"), &[]).await;
        assert_eq!((answer.status, &answer.body[..]), (StatusCode::OK, &body[..]));
        assert_eq!(answer.field("content-type"), "application/json");
        assert!(!answer.is_hit() && !answer.field("cache-status").contains("stored"), "{answer:?}");
        assert_eq!(raw_upstream.request_count(), 3 * round, "one attempt and two retries, not cached");
    }
}

/// P12: alone, the client would get the body. A poll may have 8 MiB.
#[tokio::test]
async fn a_plain_get_of_a_job_with_a_huge_body_is_passed_through_and_a_wait_for_it_fails_at_once() {
    const BODY: &[u8] = &[b' '; (8 << 20) + 1];
    let (gateway, raw_upstream) = gateway_with("200 OK", BODY).await;
    let target = "/v2/generate/audio/suno-ai/clip?clip_id=a";
    for (count, is_polled) in [(2, true), (3, false)] {
        let answer = gateway.get(target, &[]).await;
        assert_eq!((answer.status.as_u16(), answer.body.len()), (200, BODY.len()));
        assert_eq!(field(&answer, "cache-status"), "clipgate; fwd=bypass");
        assert_eq!(raw_upstream.request_count(), count, "with a poll before it: {is_polled}");
    }
    let answer = gateway.get(&clip_target("a", "completed"), &[]).await;
    assert_gateway_error(&answer, 502, "invalid-upstream-response");
    assert_eq!(raw_upstream.request_count(), 4, "no second attempt");
}
