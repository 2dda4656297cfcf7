//! The fields that belong to one answer of the upstream: who may see them (contract, section 1).

use std::time::Duration;

use clipgate::sim::{ErrorBody, Fault, FaultTarget};
use http::StatusCode;

use crate::harness::gateway::{Answer, TestGateway, clip_target, join_all};

const OWN: [&str; 5] =
    ["set-cookie", "x-inference-id", "x-aimlapi-request", "ratelimit-remaining", "x-request-id"];

#[tokio::test]
async fn the_upstreams_own_fields_reach_the_opener_and_nobody_else() {
    let stage = TestGateway::with_hold(Duration::from_secs(60)).await;
    stage.sim.set_status("a", "submitted");
    let waits: Vec<_> = (0..10).map(|_| stage.spawn_get(&clip_target("a", "completed"), &[])).collect();
    stage.wait_until_parked(10).await;
    stage.wait_until(|seen| seen.open == 1).await;
    stage.sim.set_status("a", "completed");
    let (openers, mut others): (Vec<_>, Vec<_>) =
        join_all(waits).await.into_iter().partition(Answer::is_opener);
    others.push(stage.get(&clip_target("a", "completed"), &[]).await);
    others.push(stage.get(&clip_target("a", "streaming"), &[]).await);

    let [opener] = openers.as_slice() else { panic!("{} waits opened a poll", openers.len()) };
    for name in OWN {
        assert_ne!(opener.field(name), "", "{name}");
    }
    assert_eq!(opener.field("x-inference-id"), "inference-0");
    assert_eq!(others.len(), 11);
    for other in &others {
        assert_eq!(other.field("x-powered-by"), "Express", "what all share reaches all");
        assert_ne!(other.field("x-request-id"), opener.field("x-request-id"));
        for name in &OWN[..4] {
            assert_eq!(other.field(name), "", "{name} {}", other.field("cache-status"));
        }
    }
    assert_eq!(stage.upstream_requests().len(), 1);
}

#[tokio::test]
async fn who_leans_on_an_error_sees_no_field_of_its_opener() {
    let stage = TestGateway::with_hold(Duration::from_secs(60)).await;
    stage.sim.set_status("a", "submitted");
    let fault = Fault::Status {
        status: StatusCode::FORBIDDEN,
        retry_after: None,
        body: ErrorBody::Json,
        after: Duration::from_secs(1),
    };
    stage.sim.fault(FaultTarget::Polls, fault, 1);
    let waits: Vec<_> = (0..5).map(|_| stage.spawn_get(&clip_target("a", "completed"), &[])).collect();
    stage.wait_until_parked(5).await;
    let answers = join_all(waits).await;
    assert!(answers.iter().all(|answer| answer.status == StatusCode::FORBIDDEN));
    for name in &OWN[..4] {
        let having = answers.iter().filter(|answer| answer.headers.contains_key(*name)).count();
        assert_eq!(having, 1, "{name}");
    }
    assert_eq!(stage.upstream_requests().len(), 1);
}
