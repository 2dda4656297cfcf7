//! Plain GETs that are held for the next change (`default_wait`).

use std::time::Duration;

use clipgate::core::route::Route;

use crate::harness::gateway::{Answer, TestGateway};
use crate::harness::raw_http::field;
use crate::routes::job_upstream::{JobUpstream, PACE, Reply, job_body, plain_route};

const HELD: Duration = Duration::from_millis(800);

fn held_route() -> Route {
    Route { default_wait: HELD, ..plain_route() }
}

/// Asserts that the answer is this state, and that it came at once.
fn assert_at_once(answer: &Answer, word: &str) {
    assert_eq!((answer.status.as_u16(), &*answer.body), (200, job_body("a", word).as_bytes()));
    assert!(answer.took < HELD / 2, "{answer:?}");
}

/// Sets another state while a plain GET is held, and returns its answer.
async fn answer_after_change(upstream: &JobUpstream, gateway: &TestGateway, word: &str) -> Answer {
    let held = gateway.spawn_get("/jobs/a", &[]);
    tokio::time::sleep(3 * PACE).await;
    assert!(!held.is_finished(), "it is held");
    upstream.set_job("a", word);
    held.await.unwrap()
}

#[tokio::test]
async fn a_plain_get_is_held_for_the_next_state_also_an_earlier_one() {
    let upstream = JobUpstream::start().await;
    let gateway = upstream.gateway(vec![held_route()]).await;
    upstream.set_job("a", "running");
    for word in ["waiting", "running", "done"] {
        let answer = answer_after_change(&upstream, &gateway, word).await;
        assert_eq!((answer.status.as_u16(), &*answer.body), (200, job_body("a", word).as_bytes()));
        assert!(answer.took < HELD, "{answer:?}");
    }
    assert_at_once(&gateway.get("/jobs/a", &[]).await, "done");
}

#[tokio::test]
async fn respond_async_only_if_cached_and_an_unknown_word_are_answered_at_once() {
    let upstream = JobUpstream::start().await;
    let mut route = held_route();
    route.lifetimes.live = Some(Duration::from_secs(60));
    let gateway = upstream.gateway(vec![route]).await;
    upstream.set_job("a", "running");
    assert_at_once(&gateway.get("/jobs/a", &[("prefer", "respond-async")]).await, "running");
    assert_at_once(&gateway.get("/jobs/a", &[("cache-control", "only-if-cached")]).await, "running");
    upstream.set_job("a", "odd");
    assert_at_once(&gateway.get("/jobs/a", &[("cache-control", "no-cache")]).await, "odd");
}

#[tokio::test]
async fn a_client_that_has_another_state_is_answered_at_once_and_one_that_has_this_one_is_held() {
    let upstream = JobUpstream::start().await;
    let gateway = upstream.gateway(vec![held_route()]).await;
    upstream.set_job("a", "running");
    let unchanged = gateway.get("/jobs/a", &[]).await;
    assert_eq!(&*unchanged.body, job_body("a", "running").as_bytes());
    assert!(unchanged.took >= HELD, "{unchanged:?}");
    assert_eq!(field(&unchanged, "cache-control"), "private, no-cache");
    let etag = field(&unchanged, "etag").to_owned();
    let held = gateway.get("/jobs/a", &[("if-none-match", &etag)]).await;
    assert_eq!((held.status.as_u16(), held.body.len(), field(&held, "etag")), (304, 0, &*etag));
    assert!(held.took >= HELD, "{held:?}");
    assert_at_once(&gateway.get("/jobs/a", &[("if-none-match", "\"another\"")]).await, "running");
    upstream.set_job("a", "waiting");
    tokio::time::sleep(2 * PACE).await;
    assert_at_once(&gateway.get("/jobs/a", &[("if-none-match", &etag)]).await, "waiting");
}

#[tokio::test]
async fn a_client_with_a_short_read_timeout_sees_each_state_and_no_timeout() {
    let upstream = JobUpstream::start().await;
    let gateway = upstream.gateway(vec![held_route()]).await;
    upstream.set_job("a", "waiting");
    let (mut seen, mut requests) = (Vec::new(), 0);
    let read_timeout = HELD * 10 / 8;
    while seen.last().is_none_or(|word: &String| word != "done") {
        let answer = tokio::time::timeout(read_timeout, gateway.get("/jobs/a", &[])).await;
        let body: serde_json::Value = serde_json::from_slice(&answer.expect("no read timeout").body).unwrap();
        let word = body["status"].as_str().unwrap().to_owned();
        if seen.last() != Some(&word) {
            seen.push(word);
        }
        requests += 1;
        match requests {
            1 => upstream.set_job("a", "running"),
            3 => upstream.set_job("a", "done"),
            _ => assert!(requests < 10, "{seen:?}"),
        }
    }
    assert_eq!(seen, ["waiting", "running", "done"]);
}

/// P12
#[tokio::test]
async fn a_held_get_of_a_job_with_a_huge_body_is_passed_through() {
    let upstream = JobUpstream::start().await;
    let gateway = upstream.gateway(vec![held_route()]).await;
    let body = format!("{{\"id\":\"a\",\"status\":\"running\",\"logs\":\"{}\"}}", "x".repeat(8 << 20));
    upstream.set("GET", "/jobs/a", Reply::new(200, &body));
    for count in [2, 3] {
        let answer = gateway.get("/jobs/a", &[]).await;
        assert!(answer.status == 200 && *answer.body == *body.as_bytes(), "{}", answer.status);
        assert_eq!(
            (field(&answer, "cache-status"), upstream.requests().len()),
            ("clipgate; fwd=bypass", count)
        );
    }
}

/// P4: the first read is the first of the chain too.
#[tokio::test]
async fn a_held_get_of_an_unchanged_job_costs_one_request() {
    let upstream = JobUpstream::start().await;
    let mut route = held_route();
    let pace = Duration::from_secs(2);
    (route.pace, route.max_pace, route.lifetimes.live) = (pace, pace, Some(pace));
    let gateway = upstream.gateway(vec![route]).await;
    upstream.set_job("a", "running");
    let answer = gateway.get("/jobs/a", &[]).await;
    assert_eq!((answer.status.as_u16(), &*answer.body), (200, job_body("a", "running").as_bytes()));
    assert!(answer.took >= HELD, "{answer:?}");
    assert_eq!(upstream.requests().len(), 1);
}

#[tokio::test]
async fn a_failure_after_the_first_read_is_not_the_answer() {
    let upstream = JobUpstream::start().await;
    let gateway = upstream.gateway_with(vec![held_route()], |config| config.upstream.retries = 0).await;
    upstream.set_job("a", "running");
    gateway.get("/jobs/a", &[("prefer", "respond-async")]).await;
    upstream.set("GET", "/jobs/a", Reply::new(500, "{}"));
    let answer = gateway.get("/jobs/a", &[]).await;
    assert_eq!((answer.status.as_u16(), &*answer.body), (200, job_body("a", "running").as_bytes()));
}
