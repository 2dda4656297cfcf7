//! Links of the upstream in header fields lead to the gateway.

use crate::harness::raw_http::{field, request};
use crate::routes::job_upstream::{JobUpstream, Reply, plain_route};

const KEY: (&str, &str) = ("authorization", "Bearer demo");

#[tokio::test]
async fn links_of_a_passed_through_response_lead_to_the_host_that_the_client_used() {
    let upstream = JobUpstream::start().await;
    let gateway = upstream.gateway(vec![plain_route()]).await;
    let link = format!("{}jobs/a?b=1", upstream.url);
    let created = Reply::new(202, "{}")
        .with_field("location", link.clone())
        .with_field("operation-location", link.clone())
        .with_field("azure-asyncoperation", "https://other.example/jobs/a")
        .with_field("content-location", "/jobs/a")
        .with_field("link", format!("<{link}>; rel=next"));
    upstream.set("POST", "/jobs", created);
    let answer = gateway.send(request("POST", "/jobs", &[KEY, ("host", "gate.example:8080")], "{}")).await;
    assert_eq!(field(&answer, "location"), "http://gate.example:8080/jobs/a?b=1");
    assert_eq!(field(&answer, "operation-location"), "http://gate.example:8080/jobs/a?b=1");
    assert_eq!(field(&answer, "azure-asyncoperation"), "https://other.example/jobs/a");
    assert_eq!(field(&answer, "content-location"), "/jobs/a");
    assert_eq!(field(&answer, "link"), format!("<{link}>; rel=next"));
}

#[tokio::test]
async fn links_of_a_cached_job_lead_to_the_host_of_each_client_and_its_body_stays() {
    let upstream = JobUpstream::start().await;
    let gateway = upstream
        .gateway_with(vec![plain_route()], |config| {
            config.server.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
        })
        .await;
    let link = format!("{}jobs/a", upstream.url);
    let body = format!("{{\"id\":\"a\",\"status\":\"done\",\"url\":\"{link}\"}}");
    upstream.set("GET", "/jobs/a", Reply::new(200, &body).with_field("operation-location", link));
    let forwarded = ("forwarded", "for=192.0.2.1;proto=https;host=public.example");
    for (fields, origin) in [
        (&[("host", "one.example")][..], "http://one.example"),
        (&[("host", "two.example:81")], "http://two.example:81"),
        (&[("host", "inner"), forwarded], "https://public.example"),
    ] {
        for target in ["/jobs/a", "/jobs/a?until=done"] {
            let answer = gateway.get(target, fields).await;
            assert_eq!(field(&answer, "operation-location"), format!("{origin}/jobs/a"), "{answer:?}");
            assert_eq!(&*answer.body, body.as_bytes());
        }
    }
    assert_eq!(upstream.requests().len(), 1);
}

#[tokio::test]
async fn below_a_path_in_the_base_url_relative_links_lose_that_path() {
    let upstream = JobUpstream::start().await;
    let gateway = upstream
        .gateway_with(vec![plain_route()], |config| {
            config.upstream.base_url = format!("{}api/v1", upstream.url).parse().unwrap();
        })
        .await;
    upstream.set("POST", "/api/v1/jobs", Reply::new(201, "{}").with_field("location", "/api/v1/jobs/a"));
    upstream.set("GET", "/api/v1/jobs/a", Reply::job("a", "done"));
    let answer = gateway.send(request("POST", "/jobs", &[KEY], "{}")).await;
    assert_eq!(field(&answer, "location"), "/jobs/a");
    assert_eq!(gateway.get("/jobs/a", &[]).await.status, 200);
}

#[tokio::test]
async fn without_configured_routes_links_stay() {
    let upstream = JobUpstream::start().await;
    let gateway = upstream.gateway(Vec::new()).await;
    let link = format!("{}jobs/a", upstream.url);
    upstream.set("POST", "/jobs", Reply::new(201, "{}").with_field("location", link.clone()));
    let answer = gateway.send(request("POST", "/jobs", &[KEY], "{}")).await;
    assert_eq!(field(&answer, "location"), link);
}

/// The proxy may have ended TLS: a link with `http` would lead the client out of it.
#[tokio::test]
async fn behind_a_proxy_that_is_not_trusted_links_are_paths() {
    let upstream = JobUpstream::start().await;
    let gateway = upstream.gateway(vec![plain_route()]).await;
    let link = format!("{}jobs/a?b=1", upstream.url);
    upstream.set("POST", "/jobs", Reply::new(202, "{}").with_field("location", link.clone()));
    let done = Reply::job("a", "done").with_field("operation-location", link);
    upstream.set("GET", "/jobs/a", done);
    for proxied in [
        ("x-forwarded-proto", "https"),
        ("forwarded", "for=192.0.2.1;proto=https"),
        ("x-forwarded-for", "192.0.2.1"),
        ("via", "1.1 edge"),
    ] {
        let fields = [KEY, ("host", "gate.example"), proxied];
        let created = gateway.send(request("POST", "/jobs", &fields, "{}")).await;
        assert_eq!(field(&created, "location"), "/jobs/a?b=1", "{proxied:?}");
        let read = gateway.get("/jobs/a", &fields[1..]).await;
        assert_eq!(field(&read, "operation-location"), "/jobs/a?b=1", "{proxied:?}");
    }
}
