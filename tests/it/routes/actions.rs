//! Unsafe requests change jobs (RFC 9111 section 4.4).

use std::time::Duration;

use clipgate::core::route::{PathTemplate, Route};

use crate::harness::gateway::{Answer, TestGateway};
use crate::harness::raw_http::request;
use crate::routes::job_upstream::{JobUpstream, Reply, job_body, plain_route};

const KEY: (&str, &str) = ("authorization", "Bearer demo");
const MILLIS: fn(u64) -> Duration = Duration::from_millis;

async fn act(gateway: &TestGateway, method: &str, target: &str) -> Answer {
    gateway.send(request(method, target, &[KEY], "{}")).await
}

/// A state is cached for long, so that only an action removes it.
fn cached_route() -> Route {
    let mut route = plain_route();
    route.lifetimes.live = Some(Duration::from_secs(60));
    route.actions = vec![PathTemplate::parse("/stop/{id}").unwrap()];
    route
}

#[tokio::test]
async fn an_action_removes_the_job_with_all_its_variants_for_its_key() {
    let upstream = JobUpstream::start().await;
    let gateway = upstream.gateway(vec![cached_route()]).await;
    let bob = ("authorization", "Bearer bob");
    let actions = [
        ("DELETE", "/jobs/a", Reply::new(204, "")),
        ("POST", "/jobs/a/cancel", Reply::new(200, "{}")),
        ("POST", "/jobs/a:cancel", Reply::new(202, "{}")),
        ("PUT", "/stop/a", Reply::new(303, "").with_field("location", "/jobs/a")),
        ("PATCH", "/jobs/a?x=1", Reply::broken()),
        ("DELETE", "//jobs/a", Reply::new(204, "")),
        ("DELETE", "/jobs/a;x", Reply::new(204, "")),
        ("POST", "/jobs/a%2Fcancel", Reply::new(200, "{}")),
        ("DELETE", "/jobs/a", Reply::new(502, "<html>")),
        ("DELETE", "/jobs/a", Reply::new(504, "")),
        ("DELETE", "/jobs/a", Reply::new(524, "")),
    ];
    for target in ["/jobs/a", "/jobs/a?logs=1", "/jobs/b"] {
        upstream.set("GET", target, Reply::job(&target[6..7], "done"));
        gateway.get(target, &[]).await;
        gateway.get(target, &[bob]).await;
    }
    for (method, target, reply) in actions {
        upstream.set(method, target, reply);
        act(&gateway, method, target).await;
        let is_hit = [
            gateway.get("/jobs/a", &[]).await.is_hit(),
            gateway.get("/jobs/a?logs=1", &[]).await.is_hit(),
            gateway.get("/jobs/b", &[]).await.is_hit(),
            gateway.get("/jobs/a", &[bob]).await.is_hit(),
        ];
        assert_eq!(is_hit, [false, false, true, true], "{method} {target}");
    }
}

#[tokio::test]
async fn a_refused_action_and_a_safe_request_change_nothing() {
    let upstream = JobUpstream::start().await;
    let gateway = upstream.gateway(vec![cached_route()]).await;
    upstream.set_job("a", "done");
    gateway.get("/jobs/a", &[]).await;
    for (method, target, status) in [
        ("DELETE", "/jobs/a", 409),
        ("POST", "/jobs/a/cancel", 500),
        ("POST", "/jobs/a/cancel", 503),
        ("GET", "/jobs/a/logs", 200),
        ("OPTIONS", "/jobs/a", 204),
        ("POST", "/jobs", 201),
    ] {
        upstream.set(method, target, Reply::new(status, ""));
        assert_eq!(act(&gateway, method, target).await.status, status);
        assert!(gateway.get("/jobs/a", &[]).await.is_hit(), "{method} {target}");
    }
}

#[tokio::test]
async fn a_snapshot_that_began_before_an_action_is_neither_kept_nor_the_answer_of_a_later_wait() {
    let upstream = JobUpstream::start().await;
    let gateway = upstream.gateway(vec![cached_route()]).await;
    upstream.set("POST", "/jobs/a/cancel", Reply::new(200, "{}"));
    let (running, failed) = (Reply::job("a", "running"), job_body("a", "failed"));
    upstream.set("GET", "/jobs/a", running.after(MILLIS(400)));
    let before = gateway.spawn_get("/jobs/a", &[("prefer", "wait=20")]);
    upstream.wait_until_requests(1).await;
    upstream.set_job("a", "failed");
    act(&gateway, "POST", "/jobs/a/cancel").await;
    let after = gateway.get("/jobs/a", &[]).await;
    assert_eq!(&*after.body, failed.as_bytes());
    assert!(after.took < MILLIS(300), "{after:?}");
    let before = before.await.unwrap();
    assert_eq!(&*before.body, failed.as_bytes(), "the chain polls at once");
    assert!(before.took < MILLIS(400), "{before:?}");
    tokio::time::sleep(MILLIS(500)).await;
    let cached = gateway.get("/jobs/a", &[]).await;
    assert!(cached.is_hit() && *cached.body == *failed.as_bytes(), "{cached:?}");
}

#[tokio::test]
async fn a_client_that_disconnects_in_the_middle_of_an_action_leaves_a_changed_job() {
    let upstream = JobUpstream::start().await;
    let gateway = upstream.gateway(vec![cached_route()]).await;
    upstream.set_job("a", "done");
    gateway.get("/jobs/a", &[]).await;
    upstream.set("DELETE", "/jobs/a", Reply::new(204, "").after(Duration::from_secs(20)));
    let sent = tokio::time::timeout(MILLIS(300), act(&gateway, "DELETE", "/jobs/a")).await;
    assert!(sent.is_err(), "the upstream takes its time");
    let is_read_again = async {
        while gateway.get("/jobs/a", &[]).await.is_hit() {
            tokio::time::sleep(MILLIS(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), is_read_again).await.expect("the job is read again");
}

#[tokio::test]
async fn a_404_to_a_get_removes_the_job() {
    let upstream = JobUpstream::start().await;
    let gateway = upstream.gateway(vec![cached_route()]).await;
    let no_cache = ("cache-control", "no-cache");
    for (target, fields) in
        [("/jobs/a?x=1", &[][..]), ("/jobs/a", &[no_cache]), ("/jobs/a?logs=1", &[no_cache])]
    {
        upstream.set_job("a", "done");
        gateway.get("/jobs/a", &[no_cache]).await;
        assert!(gateway.get("/jobs/a", &[]).await.is_hit());
        upstream.remove("GET", "/jobs/a");
        assert_eq!(gateway.get(target, fields).await.status, 404);
        assert_eq!(gateway.get("/jobs/a", &[]).await.status, 404, "{target}");
    }
}

#[tokio::test]
async fn a_read_without_the_cache_replaces_a_terminal_state() {
    let upstream = JobUpstream::start().await;
    let gateway = upstream.gateway(vec![cached_route()]).await;
    upstream.set_job("a", "failed");
    gateway.get("/jobs/a", &[]).await;
    upstream.set_job("a", "waiting");
    let read = gateway.get("/jobs/a", &[("cache-control", "no-cache")]).await;
    let cached = gateway.get("/jobs/a", &[]).await;
    assert_eq!((&read.body, cached.is_hit()), (&cached.body, true), "{cached:?}");
}

#[tokio::test]
async fn a_read_without_the_cache_that_joins_a_snapshot_of_a_chain_replaces_a_terminal_state() {
    let upstream = JobUpstream::start().await;
    let gateway = upstream.gateway(vec![cached_route()]).await;
    upstream.set_job("a", "failed");
    gateway.get("/jobs/a", &[]).await;
    upstream.set("GET", "/jobs/a", Reply::job("a", "waiting").after(MILLIS(300)));
    let no_cache = ("cache-control", "no-cache");
    let waiting = gateway.spawn_get("/jobs/a", &[("prefer", "wait=20"), ("cache-control", "max-age=0")]);
    upstream.wait_until_requests(2).await;
    let read = gateway.get("/jobs/a", &[no_cache]).await;
    assert_eq!(upstream.requests().len(), 2, "the snapshot of the wait");
    let cached = gateway.get("/jobs/a", &[]).await;
    assert_eq!((&*read.body, &*cached.body), (job_body("a", "waiting").as_bytes(), &*read.body));
    assert!(cached.is_hit() && !waiting.is_finished(), "{cached:?}");
}
