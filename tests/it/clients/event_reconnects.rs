//! Event streams that are taken up again by clients that cannot send `Last-Event-ID`: they write it into the query.

use std::time::Duration;

use http::StatusCode;

use crate::harness::event_client::EventClient;
use crate::harness::gateway::{TestGateway, clip_target};
use crate::harness::raw_http::upstream_request_count;

async fn stage() -> TestGateway {
    TestGateway::with_hold(Duration::from_secs(60)).await
}

/// The id of the last event of a stream, told once the clip is there.
async fn first_id(stage: &TestGateway, target: &str, status: &str) -> String {
    let mut events = EventClient::open(stage, target, &[]).await;
    events.expect_status(&stage.sim.body("a", status)).await.id.unwrap()
}

fn encoded(id: &str) -> String {
    id.replace(':', "%3A").replace(',', "%2C")
}

#[tokio::test]
async fn a_last_event_id_in_the_query_is_taken_up_as_the_field_is_and_never_goes_upstream() {
    let stage = stage().await;
    stage.sim.set_status("a", "queued");
    let target = clip_target("a", "completed");
    let id = first_id(&stage, &target, "queued").await;
    stage.wait_until_parked(0).await;
    for again in [
        format!("{target}&lastEventId={}", encoded(&id)),
        format!("{target}&lastEventId={id}"),
        target.replace('?', &format!("?last%45ventId={}&", encoded(&id))),
    ] {
        stage.sim.set_status("a", "queued");
        let mut events = EventClient::open(&stage, &again, &[]).await;
        assert_eq!(events.head.status, StatusCode::OK, "{again}");
        assert_eq!(events.field("content-type"), "text/event-stream", "{again}");
        stage.wait_until_parked(1).await;
        stage.sim.set_status("a", "streaming");
        let body = stage.sim.body("a", "streaming");
        events.expect_status(&body).await; // the first event: `queued` is not told twice
        drop(events);
        stage.wait_until_parked(0).await;
    }
    assert!(
        stage.upstream_requests().iter().all(|target| !target.to_lowercase().contains("event")),
        "{:?}",
        stage.upstream_requests()
    );
}

#[tokio::test]
async fn a_client_that_was_told_all_is_told_so_by_the_query_too() {
    let stage = stage().await;
    stage.sim.set_status("a", "completed");
    let target = clip_target("a", "completed");
    let mut events = EventClient::open(&stage, &target, &[]).await;
    events.expect_status(&stage.sim.body("a", "completed")).await;
    let over = events.next().await.unwrap().id.unwrap();
    let again = EventClient::open(&stage, &format!("{target}&lastEventId={over}"), &[]).await;
    assert_eq!(again.head.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn the_field_outweighs_the_query() {
    let stage = stage().await;
    stage.sim.set_status("a", "completed");
    let target = clip_target("a", "completed");
    let mut events = EventClient::open(&stage, &target, &[]).await;
    let told = events.expect_status(&stage.sim.body("a", "completed")).await.id.unwrap();
    let over = events.next().await.unwrap().id.unwrap();
    let again = format!("{target}&lastEventId={over}");
    let mut events = EventClient::open(&stage, &again, &[("last-event-id", &told)]).await;
    assert_eq!(events.head.status, StatusCode::OK);
    assert_eq!(events.names().await, ["done"]);
}

#[tokio::test]
async fn elsewhere_the_parameter_is_one_that_is_not_understood() {
    let stage = stage().await;
    stage.sim.set_status("a", "completed");
    let target = clip_target("a", "completed");
    stage.get(&target, &[]).await;
    let events = ("accept", "text/event-stream");
    for (target, fields) in [
        (format!("{target}&lastEventId=x"), &[][..]),
        (format!("{target}&lastEventId=x&lastEventId=x"), &[events]),
        (format!("{target}&lasteventid=x"), &[events]),
        (format!("{target}&lastEventId=x&quality=high"), &[events]),
    ] {
        let before = upstream_request_count(&stage);
        let answer = stage.get(&target, fields).await;
        assert_eq!(answer.field("cache-status"), "clipgate; fwd=bypass", "{target}");
        assert_eq!(stage.upstream_requests()[before..], [&*target]);
    }
}
