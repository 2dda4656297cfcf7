//! Headers that belong to one upstream response reach only the client whose request got it (P8).

use std::time::Duration;

use clipgate::sim::{ErrorBody, Fault, FaultTarget};
use http::StatusCode;

use crate::harness::gateway::{Answer, TestGateway, clip_target, join_all};

const PER_RESPONSE: [&str; 5] =
    ["set-cookie", "x-inference-id", "x-aimlapi-request", "ratelimit-remaining", "x-request-id"];

#[tokio::test]
async fn per_response_headers_reach_only_the_opener() {
    let gateway = TestGateway::with_hold(Duration::from_secs(60)).await;
    gateway.sim.set_status("a", "submitted");
    let waits: Vec<_> = (0..10).map(|_| gateway.spawn_get(&clip_target("a", "completed"), &[])).collect();
    gateway.wait_until_parked(10).await;
    gateway.wait_until(|seen| seen.open == 1).await;
    gateway.sim.set_status("a", "completed");
    let (openers, mut others): (Vec<_>, Vec<_>) =
        join_all(waits).await.into_iter().partition(Answer::is_opener);
    others.push(gateway.get(&clip_target("a", "completed"), &[]).await);
    others.push(gateway.get(&clip_target("a", "streaming"), &[]).await);

    let [opener] = openers.as_slice() else { panic!("{} waits opened a poll", openers.len()) };
    for name in PER_RESPONSE {
        assert_ne!(opener.field(name), "", "{name}");
    }
    assert_eq!(opener.field("x-inference-id"), "inference-0");
    assert_eq!(others.len(), 11);
    for other in &others {
        assert_eq!(other.field("x-powered-by"), "Express", "shared headers reach all clients");
        assert_ne!(other.field("x-request-id"), opener.field("x-request-id"));
        for name in &PER_RESPONSE[..4] {
            assert_eq!(other.field(name), "", "{name} {}", other.field("cache-status"));
        }
    }
    assert_eq!(gateway.upstream_requests().len(), 1);
}

#[tokio::test]
async fn an_attached_wait_gets_an_error_without_the_openers_headers() {
    let gateway = TestGateway::with_hold(Duration::from_secs(60)).await;
    gateway.sim.set_status("a", "submitted");
    let fault = Fault::Status {
        status: StatusCode::FORBIDDEN,
        retry_after: None,
        body: ErrorBody::Json,
        after: Duration::from_secs(1),
    };
    gateway.sim.fault(FaultTarget::Polls, fault, 1);
    let waits: Vec<_> = (0..5).map(|_| gateway.spawn_get(&clip_target("a", "completed"), &[])).collect();
    gateway.wait_until_parked(5).await;
    let answers = join_all(waits).await;
    assert!(answers.iter().all(|answer| answer.status == StatusCode::FORBIDDEN));
    for name in &PER_RESPONSE[..4] {
        let with_header = answers.iter().filter(|answer| answer.headers.contains_key(*name)).count();
        assert_eq!(with_header, 1, "{name}");
    }
    assert_eq!(gateway.upstream_requests().len(), 1);
}
