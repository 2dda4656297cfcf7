//! Event streams of jobs whose upstream never holds.

use crate::harness::event_client::EventClient;
use crate::routes::job_upstream::{JobUpstream, PACE, Reply, job_body, plain_route};

#[tokio::test]
async fn a_stream_has_each_state_in_turn_also_earlier_ones_until_the_end() {
    let upstream = JobUpstream::start().await;
    let gateway = upstream.gateway(vec![plain_route()]).await;
    upstream.set("GET", "/jobs/a", Reply::job("a", "running").with_status(202));
    let mut client = EventClient::open(&gateway, "/jobs/a", &[]).await;
    assert_eq!(client.head.status, 200);
    let mut ids = Vec::new();
    for (word, next) in [
        ("running", "waiting"),
        ("waiting", "running"),
        ("running", "odd"),
        ("odd", "running"),
        ("running", "done"),
    ] {
        let event = client.next().await.unwrap();
        assert_eq!((&*event.name, &*event.data), ("status", &*job_body("a", word)));
        ids.push(event.id.unwrap());
        upstream.set_job("a", next);
    }
    assert_eq!(client.next().await.unwrap().data, job_body("a", "done"));
    assert_eq!(client.next().await.unwrap().name, "done");
    assert_eq!(client.next().await, None);
    assert_eq!((&ids[0], &ids[2]), (&ids[2], &ids[4]), "an id names the last state");
    assert_ne!(ids[0], ids[1]);
}

#[tokio::test]
async fn a_client_that_reconnects_gets_any_state_but_the_one_that_it_has() {
    let upstream = JobUpstream::start().await;
    let gateway = upstream.gateway(vec![plain_route()]).await;
    upstream.set_job("a", "running");
    let id = EventClient::open(&gateway, "/jobs/a", &[]).await.next().await.unwrap().id.unwrap();
    let mut client = EventClient::open(&gateway, "/jobs/a", &[("last-event-id", &id)]).await;
    tokio::time::sleep(4 * PACE).await;
    upstream.set_job("a", "waiting");
    let event = client.next().await.unwrap();
    assert_eq!(event.data, job_body("a", "waiting"), "an earlier state");
    drop(client);
    upstream.set_job("a", "done");
    tokio::time::sleep(2 * PACE).await;
    let fields = [("last-event-id", event.id.as_deref().unwrap())];
    let mut client = EventClient::open(&gateway, "/jobs/a", &fields).await;
    assert_eq!(client.next().await.unwrap().data, job_body("a", "done"));
    let done = client.next().await.unwrap();
    assert_eq!(done.name, "done");
    let fields = [("accept", "text/event-stream"), ("last-event-id", done.id.as_deref().unwrap())];
    assert_eq!(gateway.get("/jobs/a", &fields).await.status, 204);
}
