//! Reconnects of clients that send the last event id in the query, because they cannot send `Last-Event-ID`.

use std::time::Duration;

use http::StatusCode;

use crate::harness::event_client::EventClient;
use crate::harness::gateway::{TestGateway, clip_target};
use crate::harness::raw_http::upstream_request_count;

async fn gateway() -> TestGateway {
    TestGateway::with_hold(Duration::from_secs(60)).await
}

/// Returns the id of the first event of a stream.
async fn first_id(gateway: &TestGateway, target: &str, status: &str) -> String {
    let mut events = EventClient::open(gateway, target, &[]).await;
    events.expect_status(&gateway.sim.body("a", status)).await.id.unwrap()
}

fn encoded(id: &str) -> String {
    id.replace(':', "%3A").replace(',', "%2C")
}

#[tokio::test]
async fn a_last_event_id_in_the_query_acts_like_the_field_and_is_not_sent_to_the_upstream() {
    let gateway = gateway().await;
    gateway.sim.set_status("a", "queued");
    let target = clip_target("a", "completed");
    let id = first_id(&gateway, &target, "queued").await;
    gateway.wait_until_parked(0).await;
    for again in [
        format!("{target}&lastEventId={}", encoded(&id)),
        format!("{target}&lastEventId={id}"),
        target.replace('?', &format!("?last%45ventId={}&", encoded(&id))),
    ] {
        gateway.sim.set_status("a", "queued");
        let mut events = EventClient::open(&gateway, &again, &[]).await;
        assert_eq!(events.head.status, StatusCode::OK, "{again}");
        assert_eq!(events.field("content-type"), "text/event-stream", "{again}");
        gateway.wait_until_parked(1).await;
        gateway.sim.set_status("a", "streaming");
        let body = gateway.sim.body("a", "streaming");
        events.expect_status(&body).await; // The first event: `queued` is not sent twice.
        drop(events);
        gateway.wait_until_parked(0).await;
    }
    assert!(
        gateway.upstream_requests().iter().all(|target| !target.to_lowercase().contains("event")),
        "{:?}",
        gateway.upstream_requests()
    );
}

#[tokio::test]
async fn a_client_with_all_events_gets_204_with_the_id_in_the_query() {
    let gateway = gateway().await;
    gateway.sim.set_status("a", "completed");
    let target = clip_target("a", "completed");
    let mut events = EventClient::open(&gateway, &target, &[]).await;
    events.expect_status(&gateway.sim.body("a", "completed")).await;
    let over = events.next().await.unwrap().id.unwrap();
    let again = EventClient::open(&gateway, &format!("{target}&lastEventId={over}"), &[]).await;
    assert_eq!(again.head.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn the_field_takes_precedence_over_the_query() {
    let gateway = gateway().await;
    gateway.sim.set_status("a", "completed");
    let target = clip_target("a", "completed");
    let mut events = EventClient::open(&gateway, &target, &[]).await;
    let first = events.expect_status(&gateway.sim.body("a", "completed")).await.id.unwrap();
    let over = events.next().await.unwrap().id.unwrap();
    let again = format!("{target}&lastEventId={over}");
    let mut events = EventClient::open(&gateway, &again, &[("last-event-id", &first)]).await;
    assert_eq!(events.head.status, StatusCode::OK);
    assert_eq!(events.names().await, ["done"]);
}

#[tokio::test]
async fn without_events_the_parameter_is_unknown_and_the_request_is_passed_through() {
    let gateway = gateway().await;
    gateway.sim.set_status("a", "completed");
    let target = clip_target("a", "completed");
    gateway.get(&target, &[]).await;
    let events = ("accept", "text/event-stream");
    for (target, fields) in [
        (format!("{target}&lastEventId=x"), &[][..]),
        (format!("{target}&lastEventId=x&lastEventId=x"), &[events]),
        (format!("{target}&lasteventid=x"), &[events]),
        (format!("{target}&lastEventId=x&quality=high"), &[events]),
    ] {
        let before = upstream_request_count(&gateway);
        let answer = gateway.get(&target, fields).await;
        assert_eq!(answer.field("cache-status"), "clipgate; fwd=bypass", "{target}");
        assert_eq!(gateway.upstream_requests()[before..], [&*target]);
    }
}
