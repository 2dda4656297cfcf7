//! States of jobs on a route that never holds: waits, HTTP codes, unknown words.

use std::time::Duration;

use clipgate::core::route::{Ladder, RungSpec, StatusSource};

use crate::harness::admin_client::AdminClient;
use crate::harness::raw_http::field;
use crate::routes::job_upstream::{JobUpstream, PACE, Reply, job_body, plain_route};

type Fields<'f> = &'f [(&'f str, &'f str)];

const MILLIS: fn(u64) -> Duration = Duration::from_millis;

#[tokio::test]
async fn prefer_wait_waits_for_the_end_and_answers_as_the_get_would() {
    let upstream = JobUpstream::start().await;
    let gateway = upstream.gateway(vec![plain_route()]).await;
    upstream.set_job("a", "running");
    let waits: Vec<_> = ["wait=20", "wait"]
        .map(|prefer| gateway.spawn_get("/jobs/a", &[("prefer", prefer)]))
        .into_iter()
        .collect();
    gateway.wait_until_parked(2).await;
    tokio::time::sleep(MILLIS(200)).await;
    upstream.set_job("a", "failed");
    for (wait, applied) in waits.into_iter().zip(["wait=20", "wait=2"]) {
        let answer = wait.await.unwrap();
        assert_eq!((answer.status.as_u16(), &*answer.body), (200, job_body("a", "failed").as_bytes()));
        assert_eq!(field(&answer, "preference-applied"), applied);
        assert!(answer.took < MILLIS(1000), "{answer:?}");
    }
    let calls = upstream.requests().len();
    assert!((2..=8).contains(&calls), "one chain for both waits: {calls}");
}

#[tokio::test]
async fn the_code_of_a_state_is_part_of_it_at_once_at_the_deadline_and_from_the_cache() {
    let upstream = JobUpstream::start().await;
    let mut route = plain_route();
    route.lifetimes.live = Some(Duration::from_secs(5));
    let gateway = upstream.gateway(vec![route]).await;
    let running = Reply::job("a", "running").with_status(202);
    upstream.set("GET", "/jobs/a", running);
    let async_fields = [("prefer", "respond-async")];
    let rows: [(Fields<'_>, &str, bool); 3] = [
        (&[], "", false),
        (&async_fields, "respond-async", true),
        (&[("prefer", "wait=1")], "wait=1", false),
    ];
    for (fields, applied, is_hit) in rows {
        let answer = gateway.get("/jobs/a", fields).await;
        assert_eq!((answer.status.as_u16(), &*answer.body), (202, job_body("a", "running").as_bytes()));
        assert_eq!((field(&answer, "preference-applied"), answer.is_hit()), (applied, is_hit), "{answer:?}");
    }
    upstream.set_job("a", "done");
    let answer = gateway.get("/jobs/a?until=done", &[]).await;
    assert_eq!((answer.status.as_u16(), &*answer.body), (200, job_body("a", "done").as_bytes()));
    let hit = gateway.get("/jobs/a", &[]).await;
    assert_eq!((hit.status.as_u16(), hit.is_hit()), (200, true), "{hit:?}");
}

#[tokio::test]
async fn where_the_code_is_the_state_the_body_can_be_anything() {
    let upstream = JobUpstream::start().await;
    let mut route = plain_route();
    (route.status, route.id) = (StatusSource::HttpStatus, None);
    route.ladder = Ladder::new(vec![RungSpec::pending("202"), RungSpec::succeeded("200")]);
    let gateway = upstream.gateway(vec![route]).await;
    upstream.set("GET", "/jobs/a", Reply::new(202, ""));
    let pending = gateway.get("/jobs/a", &[]).await;
    assert_eq!((pending.status.as_u16(), pending.body.len()), (202, 0));
    assert_eq!(upstream.last_fields()["accept"], "*/*");
    let waiting = gateway.spawn_get("/jobs/a", &[("prefer", "wait=20")]);
    gateway.wait_until_parked(1).await;
    upstream.set("GET", "/jobs/a", Reply::new(200, "WEBVTT").with_field("content-type", "text/vtt"));
    let waited = waiting.await.unwrap();
    let hit = gateway.get("/jobs/a", &[]).await;
    for answer in [&waited, &hit] {
        assert_eq!((answer.status.as_u16(), &*answer.body), (200, &b"WEBVTT"[..]));
        assert_eq!(field(answer, "content-type"), "text/vtt");
    }
    assert!(hit.is_hit());
    let events = gateway.get("/jobs/a", &[("accept", "text/event-stream")]).await;
    assert_eq!(field(&events, "cache-status"), "clipgate; fwd=bypass", "its events could not be JSON");
}

/// A poll of such a route accepts everything, so its body is an answer only to a client that does too (P8).
#[tokio::test]
async fn where_the_code_is_the_state_only_clients_that_accept_everything_share() {
    let upstream = JobUpstream::start().await;
    let mut route = plain_route();
    (route.status, route.id) = (StatusSource::HttpStatus, None);
    route.ladder = Ladder::new(vec![RungSpec::pending("202"), RungSpec::succeeded("200")]);
    let gateway = upstream.gateway(vec![route]).await;
    upstream.set("GET", "/jobs/a", Reply::new(200, "WEBVTT").with_field("content-type", "text/vtt"));
    gateway.get("/jobs/a", &[]).await;
    for (accept, is_shared) in [
        ("*/*", true),
        ("", true),
        ("application/json", false),
        ("text/vtt", false),
        ("application/json, */*;q=0.1", false),
    ] {
        let answer = gateway.get("/jobs/a", &[("accept", accept)]).await;
        let cache_status = field(&answer, "cache-status");
        assert_eq!(
            (answer.is_hit(), cache_status == "clipgate; fwd=bypass"),
            (is_shared, !is_shared),
            "{accept}"
        );
        if !is_shared {
            assert_eq!(upstream.last_fields()["accept"], accept, "as the client sent it");
        }
    }
}

#[tokio::test]
async fn an_unknown_word_is_the_answer_of_each_wait_and_is_counted_but_not_cached() {
    let upstream = JobUpstream::start().await;
    let mut gateway = upstream.gateway(vec![plain_route()]).await;
    let admin = AdminClient::open(&mut gateway).await;
    upstream.set_job("a", "pa\u{9b}used");
    for fields in [&[][..], &[("prefer", "wait=20")]] {
        let answer = gateway.get("/jobs/a", fields).await;
        assert_eq!((answer.status.as_u16(), &*answer.body), (200, job_body("a", "pa\u{9b}used").as_bytes()));
        assert_eq!(field(&answer, "cache-control"), "no-store");
        assert!(answer.took < MILLIS(1500), "{answer:?}");
    }
    gateway.get("/other", &[]).await;
    let page = admin.metrics().await;
    assert_eq!(page.sum("clipgate_unknown_states_total", &[("route", "jobs")]), 2.0, "{}", page.text);
    assert_eq!(page.sum("clipgate_requests_total", &[("route", "jobs")]), 2.0, "{}", page.text);
    assert_eq!(page.sum("clipgate_requests_total", &[("route", "other")]), 1.0, "{}", page.text);
    assert!(!page.text.contains("route=\"clip\""), "{}", page.text);
}

#[tokio::test]
async fn a_vendors_hint_takes_the_place_of_the_pace() {
    let upstream = JobUpstream::start().await;
    let gateway = upstream.gateway(vec![plain_route()]).await;
    let running = Reply::job("a", "running").with_field("openai-poll-after-ms", "600");
    upstream.set("GET", "/jobs/a", running);
    let waiting = gateway.spawn_get("/jobs/a", &[("prefer", "wait=20")]);
    upstream.wait_until_requests(1).await;
    tokio::time::sleep(4 * PACE).await;
    upstream.set_job("a", "done");
    assert_eq!(upstream.requests().len(), 1);
    let answer = waiting.await.unwrap();
    assert!((MILLIS(600)..MILLIS(1500)).contains(&answer.took), "{answer:?}");
    assert_eq!(upstream.requests().len(), 2);
}
