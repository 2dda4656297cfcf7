//! Requests of a route: those that are waits, and those that are passed through.

use std::time::Duration;

use crate::harness::gateway::Answer;
use crate::harness::raw_http::{field, request};
use crate::routes::config_file::{config_from, preset_with};
use crate::routes::job_upstream::{JobUpstream, Reply, job_body, plain_route};

type Fields<'f> = &'f [(&'f str, &'f str)];

const KEY: (&str, &str) = ("authorization", "Bearer demo");
const PASSED: &str = "clipgate; fwd=bypass";

#[tokio::test]
async fn a_request_that_the_gateway_understands_is_read_once_and_in_canonical_spelling() {
    let upstream = JobUpstream::start().await;
    let gateway = upstream.gateway(vec![plain_route()]).await;
    let rows = [
        ("/jobs/a", "a", "/jobs/a"),
        ("/jobs/%61%20b", "a b", "/jobs/a%20b"),
        ("/jobs/c?logs=%31", "c", "/jobs/c?logs=1"),
        ("/jobs/d?until=done", "d", "/jobs/d"),
        ("/jobs/e:cancel", "e:cancel", "/jobs/e:cancel"),
        ("/jobs/f%3Acancel", "f:cancel", "/jobs/f%3Acancel"),
        ("/jobs/f:cancel", "f:cancel", "/jobs/f:cancel"),
    ];
    for (target, id, polled) in rows {
        upstream.set("GET", polled, Reply::job(id, "done"));
        let first = gateway.get(target, &[]).await;
        assert_eq!((first.status.as_u16(), &*first.body), (200, job_body(id, "done").as_bytes()), "{target}");
        assert_eq!(upstream.requests().last().unwrap(), &format!("GET {polled}"));
        assert_eq!(upstream.last_fields()["accept"], "application/json");
        assert!(gateway.get(polled, &[]).await.is_hit(), "{polled}");
    }
    assert_eq!(upstream.requests().len(), rows.len());
}

#[tokio::test]
async fn a_request_that_servers_may_read_in_two_ways_is_passed_through_as_it_came() {
    let upstream = JobUpstream::start().await;
    let gateway = upstream.gateway(vec![plain_route()]).await;
    upstream.set_job("a", "done");
    gateway.get("/jobs/a", &[]).await;
    let long = format!("/jobs/{}", "x".repeat(513));
    let targets = [
        "/jobs/a?x=1",
        "/jobs/a?until=done&until=done",
        "/jobs/a?until=soon",
        "/jobs/a%2Fb",
        "/jobs/..",
        "/jobs/%2e%2E",
        "/jobs/.",
        "/jobs/",
        "/jobs//a",
        "/jobs/a;b",
        "/jobs/a/logs",
        &long,
    ];
    for target in targets {
        let answer = gateway.get(target, &[]).await;
        assert_eq!((answer.status.as_u16(), field(&answer, "cache-status")), (404, PASSED), "{target}");
        assert_eq!(upstream.requests().last().unwrap(), &format!("GET {target}"));
    }
    upstream.set_job(&long[6..518], "done");
    let answer = gateway.get(&long[..518], &[]).await;
    assert!(answer.is_opener(), "512 bytes are an id: {answer:?}");
}

#[tokio::test]
async fn header_fields_decide_the_kind_of_a_get() {
    let upstream = JobUpstream::start().await;
    let gateway = upstream.gateway(vec![plain_route()]).await;
    upstream.set_job("a", "running");
    let rows: [(Fields<'_>, &str, &str); 9] = [
        (&[("accept", "text/html")], PASSED, ""),
        (&[("accept", "image/*;q=0.9, text/*")], PASSED, ""),
        (&[("range", "bytes=0-1")], PASSED, ""),
        (&[("accept", "application/json")], "clipgate; ", ""),
        (&[("accept", "application/hal+json, text/html")], "clipgate; ", ""),
        (&[("accept", "text/html, */*;q=0.1")], "clipgate; ", ""),
        (&[("prefer", "wait=0")], "clipgate; ", "wait=0"),
        (&[("prefer", "respond-async")], "clipgate; ", "respond-async"),
        (&[("prefer", "respond-async"), ("accept", "text/html")], PASSED, ""),
    ];
    for (fields, cache_status, applied) in rows {
        let answer = gateway.get("/jobs/a", fields).await;
        assert_eq!(answer.status, 200, "{fields:?}");
        let is_passed = field(&answer, "cache-status") == PASSED;
        assert!(field(&answer, "cache-status").starts_with(cache_status), "{fields:?}: {answer:?}");
        assert_eq!(is_passed, cache_status == PASSED, "{fields:?}: {answer:?}");
        assert_eq!(field(&answer, "preference-applied"), applied, "{fields:?}");
    }
    for method in ["HEAD", "POST"] {
        let answer = gateway.send(request(method, "/jobs/a", &[KEY], "")).await;
        assert_eq!(field(&answer, "cache-status"), "clipgate; fwd=method", "{method}");
    }
}

#[tokio::test]
async fn one_id_on_two_routes_is_two_jobs() {
    let upstream = JobUpstream::start().await;
    let mut tasks = plain_route();
    tasks.name = "tasks".to_owned();
    tasks.path = clipgate::core::route::PathTemplate::parse("/tasks/{id}").unwrap();
    let gateway = upstream.gateway(vec![plain_route(), tasks]).await;
    upstream.set_job("a", "done");
    upstream.set("GET", "/tasks/a", Reply::job("a", "failed"));
    let word = |answer: &Answer| {
        serde_json::from_slice::<serde_json::Value>(&answer.body).unwrap()["status"].clone()
    };
    for _ in 0..2 {
        assert_eq!(word(&gateway.get("/jobs/a", &[]).await), "done");
        assert_eq!(word(&gateway.get("/tasks/a?until=done", &[]).await), "failed");
    }
    assert_eq!(upstream.requests(), ["GET /jobs/a", "GET /tasks/a"]);
    let deleted = gateway.send(request("DELETE", "/tasks/a", &[KEY], "")).await;
    assert_eq!(deleted.status, 404, "not an action: {deleted:?}");
    upstream.set("DELETE", "/tasks/a", Reply::new(204, ""));
    gateway.send(request("DELETE", "/tasks/a", &[KEY], "")).await;
    upstream.remove("GET", "/tasks/a");
    assert_eq!(gateway.get("/tasks/a", &[]).await.status, 404);
    assert!(gateway.get("/jobs/a", &[]).await.is_hit());
}

#[tokio::test]
async fn on_a_route_that_holds_seconds_in_the_query_are_a_wait_for_the_end() {
    let upstream = JobUpstream::start().await;
    let mut route = plain_route();
    (route.hold, route.wait_param) = (Duration::from_secs(2), None);
    route.hold_param = Some("wait".to_owned());
    (route.pace, route.max_pace) = (Duration::ZERO, Duration::ZERO);
    let gateway = upstream.gateway(vec![route]).await;
    upstream.set("GET", "/jobs/a?wait=2", Reply::job("a", "done").after(Duration::from_millis(100)));
    let answer = gateway.get("/jobs/a?wait=30", &[]).await;
    assert_eq!((answer.status.as_u16(), &*answer.body), (200, job_body("a", "done").as_bytes()));
    assert_eq!(upstream.requests(), ["GET /jobs/a?wait=2"]);
}

#[tokio::test]
async fn on_a_route_that_holds_seconds_prefer_wait_is_a_wait_for_the_end() {
    let upstream = JobUpstream::start().await;
    let gateway = upstream.gateway(preset_with("apify", "hold = \"2s\"")).await;
    let run = |word| Reply::new(200, &format!("{{\"data\":{{\"id\":\"a\",\"status\":\"{word}\"}}}}"));
    upstream.set("GET", "/v2/actor-runs/a", run("RUNNING"));
    let held = run("SUCCEEDED").after(Duration::from_millis(300));
    upstream.set("GET", "/v2/actor-runs/a?waitForFinish=2", held);
    let answer = gateway.get("/v2/actor-runs/a", &[("prefer", "wait=20")]).await;
    assert_eq!(&*answer.body, b"{\"data\":{\"id\":\"a\",\"status\":\"SUCCEEDED\"}}");
    assert_eq!(field(&answer, "preference-applied"), "wait=20");
    assert_eq!(upstream.requests(), ["GET /v2/actor-runs/a?waitForFinish=2"]);
}

const COLLECTION: &str = r#"
[[routes]]
name = "jobs"
path = "/jobs"
id_param = "id"
list = { path = "/many", param = "ids", form = "FORM", max = 3 }
pending = ["waiting"]
succeeded = ["done"]
pace = "1s"
"#;

#[tokio::test]
async fn a_get_without_an_id_is_the_upstreams_own_list_and_passed_through() {
    let upstream = JobUpstream::start().await;
    let gateway = upstream.gateway(config_from(&COLLECTION.replace("FORM", "comma")).routes).await;
    for target in ["/jobs", "/jobs?", "/jobs?id=", "/jobs?id", "/many", "/many?ids=", "/many?ids=a,,b"] {
        upstream.set("GET", target, Reply::new(200, "[]"));
        let answer = gateway.get(target, &[]).await;
        assert_eq!((answer.status.as_u16(), field(&answer, "cache-status")), (200, PASSED), "{target}");
        assert_eq!(&*answer.body, b"[]", "{target}");
    }
}

#[tokio::test]
async fn a_list_is_asked_in_the_form_of_its_route_and_without_the_jobs_in_the_cache() {
    for (form, [asked, many, polled]) in [
        ("comma", ["/many?ids=a,b", "/many?ids=e,d,b,a,c", "/many?ids=c,d,e"]),
        ("repeat", ["/many?ids=a&ids=b", "/many?ids=e&ids=d&ids=b&ids=a&ids=c", "/many?ids=c&ids=d&ids=e"]),
    ] {
        let upstream = JobUpstream::start().await;
        let gateway = upstream.gateway(config_from(&COLLECTION.replace("FORM", form)).routes).await;
        let list = |ids: &[&str]| {
            let jobs: Vec<_> = ids.iter().map(|id| job_body(id, "done")).collect();
            format!("[{}]", jobs.join(","))
        };
        upstream.set("GET", asked, Reply::new(200, &list(&["b", "a"])));
        upstream.set("GET", polled, Reply::new(200, &list(&["d", "c", "e"])));
        let first = gateway.get(asked, &[("prefer", "wait=20")]).await;
        assert_eq!((first.status.as_u16(), &*first.body), (200, list(&["a", "b"]).as_bytes()));
        let second = gateway.get(many, &[]).await;
        assert_eq!(
            (second.status.as_u16(), &*second.body),
            (200, list(&["e", "d", "b", "a", "c"]).as_bytes())
        );
        assert!(gateway.get("/jobs?id=c", &[]).await.is_hit());
        assert_eq!(upstream.requests(), [format!("GET {asked}"), format!("GET {polled}")]);
    }
}
