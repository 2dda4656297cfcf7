//! Keys in other fields than `Authorization` (`auth.headers`, `auth.send`), and upstreams without keys (P11).

use bytes::Bytes;
use clipgate::sim::SimOptions;
use clipgate::testing::config::{AuthMode, Config, KeyTemplate};
use clipgate::testing::secret::Secret;
use http::Uri;

use crate::clients::team;
use crate::harness::gateway::{TestGateway, clip_target, set_hold};
use crate::harness::raw_http::{CLIP, assert_gateway_error, request, send_raw};
use crate::harness::raw_upstream::{AfterHead, RawUpstream};
use crate::harness::scripted_upstream::ScriptedUpstream;

const JOB: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 31\r\n\r\n\
    {\"id\":\"a\",\"status\":\"completed\"}";

/// A field that is set at the client.
type ClientField = (&'static str, &'static str);

const DEMO: ClientField = ("authorization", "Bearer demo");
const OTHER: ClientField = ("authorization", "Bearer other");
const ANN: ClientField = ("x-key", "ann");
const BOB: ClientField = ("x-key", "bob");

/// Returns a gateway in front of this upstream, with these fields in `auth.headers`.
async fn gateway(upstream: &Uri, fields: &[&str], configure: impl FnOnce(&mut Config)) -> TestGateway {
    let with_fields = |config: &mut Config, options: &mut SimOptions| {
        set_hold(std::time::Duration::from_secs(60), config, options);
        config.upstream.base_url = upstream.clone();
        config.upstream.api_key = Some(Secret::new("sk-account"));
        config.auth.headers = fields.iter().map(|name| name.parse().unwrap()).collect();
        config.auth.send =
            KeyTemplate { name: "x-api-key".parse().unwrap(), before: String::new(), after: String::new() };
        configure(config);
    };
    TestGateway::without_upstream(with_fields).await
}

fn open(config: &mut Config) {
    config.auth.mode = AuthMode::Open;
}

async fn silent_upstream() -> RawUpstream {
    RawUpstream::start("", AfterHead::Silence).await
}

#[tokio::test]
async fn waits_share_a_poll_only_if_all_listed_fields_are_equal() {
    // (auth.headers, fields of each wait, polls)
    type SharingCase<'a> = (&'a [&'a str], &'a [&'a [ClientField]], u64);
    let rows: &[SharingCase<'_>] = &[
        (&["x-key"], &[&[ANN, DEMO], &[ANN, OTHER], &[BOB, DEMO]], 2),
        (&["x-key", "authorization"], &[&[ANN, DEMO], &[DEMO, ANN], &[ANN, OTHER], &[BOB, DEMO], &[DEMO]], 4),
        (&["authorization"], &[&[ANN, DEMO], &[BOB, DEMO], &[DEMO]], 1),
    ];
    for (listed, waits, polls) in rows {
        let upstream = silent_upstream().await;
        let gateway = gateway(&upstream.url, listed, |_| {}).await;
        let mut parked = Vec::new();
        for fields in *waits {
            parked.push(gateway.spawn_get(&clip_target("a", "completed"), fields));
            gateway.wait_until_parked(parked.len()).await;
        }
        upstream.wait_until_requests(*polls).await;
    }
}

#[tokio::test]
async fn a_poll_carries_exactly_the_listed_fields_and_its_result_is_kept_for_them() {
    let mut upstream = ScriptedUpstream::answering(JOB).await;
    let gateway = gateway(&upstream.url, &["x-key", "x-version"], |_| {}).await;
    let target = clip_target("a", "completed");
    let version = ("x-version", "2");
    let sent = [ANN, version, DEMO, ("x-tenant", "t"), ("cookie", "session=1"), ("x_key", "bob")];
    let answer = gateway.get(&target, &sent).await;
    assert_eq!((answer.status.as_u16(), answer.field("vary")), (200, "x-key, x-version, accept"));
    let poll = upstream.next_request().await;
    assert!(poll.contains("\r\nx-key: ann\r\n") && poll.contains("\r\nx-version: 2\r\n"), "{poll}");
    for absent in ["authorization", "x-tenant", "cookie", "bob"] {
        assert!(!poll.contains(absent), "{absent} in {poll}");
    }
    assert!(gateway.get(&target, &[ANN, version, OTHER]).await.is_hit());
    for fields in [&[ANN, DEMO][..], &[BOB, version], &[ANN, ("x-version", "3")]] {
        assert!(gateway.get(&target, fields).await.is_opener(), "{fields:?}");
        upstream.next_request().await;
    }

    // A request without a listed field has no key: the gateway passes it through unchanged.
    let keyless = gateway.get(&target, &[DEMO]).await;
    assert_eq!(keyless.field("cache-status"), "clipgate; fwd=bypass");
    let passed = upstream.next_request().await;
    assert!(passed.contains("\r\nauthorization: Bearer demo\r\n"), "{passed}");
    let with_both = gateway.send(request("POST", CLIP, &[ANN, DEMO], "")).await;
    assert_eq!(with_both.field("cache-status"), "clipgate; fwd=method");
    let passed = upstream.next_request().await;
    assert!(passed.contains("\r\nauthorization: Bearer demo\r\n") && passed.contains("\r\nx-key: ann\r\n"));
}

#[tokio::test]
async fn a_key_field_that_comes_twice_and_a_scheme_of_connections_are_rejected() {
    let upstream = silent_upstream().await;
    for (listed, fields, reason) in [
        (&["x-key"][..], [ANN, BOB], "multiple-authorization"),
        (&["x-key"], [ANN, ANN], "multiple-authorization"),
        (&["x-key"], [ANN, ("authorization", "NTLM x")], "connection-auth"),
        (&["authorization", "x-key"], [BOB, ("authorization", "Negotiate x")], "connection-auth"),
    ] {
        let gateway = gateway(&upstream.url, listed, |_| {}).await;
        for target in [clip_target("a", "completed"), "/x".to_owned()] {
            assert_gateway_error(&gateway.send(request("GET", &target, &fields, "")).await, 400, reason);
        }
    }
    assert_eq!(upstream.request_count(), 0);
}

fn team(config: &mut Config) {
    config.auth.mode = AuthMode::Team(vec![team::member(("alice", "cg_token", "sk-account"))]);
}

fn sidecar(config: &mut Config) {
    config.auth.mode = AuthMode::Sidecar;
}

const OWN_KEYS: &str = "x-key: cg_token\r\nx_key: mine\r\nauthorization: Bearer mine\r\nx-api-key: mine\r\n\
    x_api_key: mine\r\ncookie: mine\r\nx-other: kept\r\n";

/// Asserts that a request has the gateway's key and nothing of the client's.
fn assert_lent(request: &str) {
    assert!(request.contains("\r\nx-api-key: sk-account\r\n"), "{request}");
    assert_eq!(request.matches("sk-account").count(), 1, "{request}");
    for absent in ["mine", "cg_token", "authorization", "x-key", "x_"] {
        assert!(!request.contains(absent), "{absent} in {request}");
    }
}

#[tokio::test]
async fn a_lent_key_is_sent_as_configured_and_replaces_every_key_of_the_client() {
    for configure in [team, sidecar] {
        let mut upstream = ScriptedUpstream::answering(JOB).await;
        let gateway = gateway(&upstream.url, &["x-key"], configure).await;
        for line in [format!("GET {}", clip_target("a", "completed")), "GET /x".to_owned()] {
            let head = format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{OWN_KEYS}\r\n");
            let answer = String::from_utf8(send_raw(gateway.address, head.as_bytes()).await).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            let request = upstream.next_request().await;
            assert_lent(&request);
            assert_eq!(request.contains("x-other: kept"), line == "GET /x", "{request}");
        }
        let head = "GET /x HTTP/1.1\r\nhost: x\r\nconnection: close, x-api-key\r\nx-key: cg_token\r\n\r\n";
        send_raw(gateway.address, head.as_bytes()).await;
        assert_lent(&upstream.next_request().await);
    }
}

#[tokio::test]
async fn a_lent_key_goes_up_with_the_clients_version_and_each_version_has_its_own_polls() {
    for configure in [team, sidecar] {
        let mut upstream = ScriptedUpstream::answering(JOB).await;
        let with_version = |config: &mut Config| {
            configure(config);
            config.auth.with_key = vec!["x-version".parse().unwrap()];
        };
        let gateway = gateway(&upstream.url, &["x-key"], with_version).await;
        let (target, token) = (clip_target("a", "completed"), ("x-key", "cg_token"));
        for version in ["1", "2"] {
            let fields = [token, ("x-version", version)];
            assert!(gateway.send(request("GET", &target, &fields, "")).await.is_opener());
            let poll = upstream.next_request().await;
            assert_lent(&poll);
            assert!(poll.contains(&format!("\r\nx-version: {version}\r\n")), "{poll}");
            assert!(gateway.send(request("GET", &target, &fields, "")).await.is_hit());
            gateway.send(request("GET", "/x", &fields, "")).await;
            let passed = upstream.next_request().await;
            assert_lent(&passed);
            assert!(passed.contains(&format!("\r\nx-version: {version}\r\n")), "{passed}");
        }
    }
}

// P11
#[tokio::test]
async fn a_request_with_only_a_version_has_no_key_and_shares_nothing() {
    let upstream = RawUpstream::start(
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        AfterHead::Silence,
    )
    .await;
    let with_version = |config: &mut Config| config.auth.with_key = vec!["x-version".parse().unwrap()];
    let gateway = gateway(&upstream.url, &["x-key"], with_version).await;
    for count in [1, 2] {
        let wait = request("GET", &clip_target("a", "completed"), &[("x-version", "1")], "");
        assert_eq!(gateway.send(wait).await.headers["cache-status"], "clipgate; fwd=bypass");
        assert_eq!(upstream.request_count(), count);
    }
}

#[tokio::test]
async fn trailers_of_an_upload_have_no_key() {
    let mut upstream = ScriptedUpstream::answering_after("x-mark: here\r\n\r\n", JOB).await;
    let gateway = gateway(&upstream.url, &["x-key"], team).await;
    let upload = "POST /x HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-key: cg_token\r\n\
        trailer: x-key, x_api_key, authorization, x-mark\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\
        x-key: mine\r\nx_api_key: mine\r\nauthorization: mine\r\nx-mark: here\r\n\r\n";
    send_raw(gateway.address, upload.as_bytes()).await;
    let seen = upstream.next_request().await;
    assert!(seen.contains("x-api-key: sk-account") && !seen.contains("mine"), "{seen}");
}

#[tokio::test]
async fn a_token_is_read_from_the_listed_field_alone() {
    let mut upstream = ScriptedUpstream::answering(JOB).await;
    let gateway = gateway(&upstream.url, &["x-key"], team).await;
    let target = clip_target("a", "completed");
    assert!(gateway.get(&target, &[("x-key", "cg_token")]).await.is_opener());
    assert_lent(&upstream.next_request().await);
    for (fields, reason) in [
        (&[("authorization", "Bearer cg_token")][..], "no-token"),
        (&[("x-key", "Bearer cg_token")], "unknown-token"),
        (&[("x-key", "sk-account")], "unknown-token"),
    ] {
        let rejected = gateway.send(request("GET", &target, fields, "")).await;
        assert_gateway_error(&rejected, 401, reason);
        assert_eq!(rejected.field("www-authenticate"), "ApiKey realm=\"clipgate\"");
    }
}

#[tokio::test]
async fn fields_and_send_can_be_reloaded() {
    let mut upstream = ScriptedUpstream::answering(JOB).await;
    let gateway = gateway(&upstream.url, &["authorization"], |_| {}).await;
    let target = clip_target("a", "completed");
    assert!(gateway.get(&target, &[DEMO, ANN]).await.is_opener());
    upstream.next_request().await;
    let mut config = gateway.config().clone();
    config.auth.headers = vec!["x-key".parse().unwrap()];
    gateway.reconfigure(&config);
    assert!(gateway.get(&target, &[DEMO, ANN]).await.is_opener(), "another key domain");
    let poll = upstream.next_request().await;
    assert!(poll.contains("\r\nx-key: ann\r\n") && !poll.contains("authorization"), "{poll}");
    sidecar(&mut config);
    gateway.reconfigure(&config);
    gateway.get(&target, &[DEMO, ANN]).await;
    assert_lent(&upstream.next_request().await);
}

#[tokio::test]
async fn an_upstream_without_keys_gets_one_poll_without_any_key_for_all_clients() {
    let upstream = silent_upstream().await;
    let held = gateway(&upstream.url, &["authorization", "x-key"], open).await;
    let mut parked = Vec::new();
    for fields in [&[DEMO][..], &[OTHER], &[DEMO, ANN], &[BOB]] {
        parked.push(held.spawn_get(&clip_target("a", "completed"), fields));
        held.wait_until_parked(parked.len()).await;
    }
    upstream.wait_until_requests(1).await;
    assert_eq!(upstream.request_count(), 1);

    let mut upstream = ScriptedUpstream::answering(JOB).await;
    let gateway = gateway(&upstream.url, &["authorization", "x-key"], open).await;
    let target = clip_target("a", "completed");
    assert!(gateway.get(&target, &[DEMO, ANN]).await.is_opener());
    let poll = upstream.next_request().await;
    for absent in ["authorization", "x-key", "x-api-key", "sk-account"] {
        assert!(!poll.contains(absent), "{poll}");
    }
    assert!(gateway.get(&target, &[OTHER]).await.is_hit());
    assert!(gateway.send(request("GET", &target, &[], "")).await.is_hit());
    gateway.get("/x", &[DEMO, ANN, ("cookie", "session=mine")]).await;
    let passed = upstream.next_request().await;
    for own in ["authorization: Bearer demo", "x-key: ann", "cookie: session=mine"] {
        assert!(passed.contains(&format!("\r\n{own}\r\n")), "{passed}");
    }
    assert!(!passed.contains("sk-account"), "{passed}");
}

#[tokio::test]
async fn web_pages_cannot_use_an_upstream_without_keys() {
    let upstream = silent_upstream().await;
    let gateway = gateway(&upstream.url, &["authorization"], open).await;
    for target in [clip_target("a", "completed"), "/x".to_owned()] {
        let rebound = request("GET", &target, &[("host", "evil.example")], "");
        assert_gateway_error(&gateway.send(rebound).await, 421, "foreign-host");
        let foreign = request("GET", &target, &[("sec-fetch-site", "cross-site")], "");
        assert_gateway_error(&gateway.send(foreign).await, 403, "cross-origin");
    }
    assert_eq!(upstream.request_count(), 0);
}

#[tokio::test]
async fn without_keys_a_401_to_one_clients_own_request_leaves_the_jobs_of_all() {
    let head = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n";
    let upstream = RawUpstream::start(head, AfterHead::Bytes(Bytes::new())).await;
    let gateway = gateway(&upstream.url, &["authorization"], open).await;
    let target = clip_target("cached", "completed");
    assert!(gateway.get(&target, &[DEMO]).await.is_opener());
    assert_eq!(gateway.get("/x", &[OTHER]).await.status, 401);
    assert!(gateway.get(&target, &[DEMO]).await.is_hit());
}

#[tokio::test]
async fn without_keys_each_address_has_its_own_quota_and_its_own_waits() {
    let upstream = RawUpstream::start("", AfterHead::Silence).await;
    let gateway = gateway(&upstream.url, &["authorization"], |config| {
        open(config);
        config.server.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
        (config.limits.requests_per_second, config.limits.burst) = (1, 10);
        (config.limits.max_waits, config.limits.max_waits_per_key) = (100, 2);
    })
    .await;
    let (here, there) = (("x-forwarded-for", "198.51.100.7"), ("x-forwarded-for", "198.51.100.8"));
    assert_eq!(
        gateway.get(&clip_target("cached", "completed"), &[here]).await.status,
        200,
        "proves the domain"
    );
    let wait = clip_target("a", "completed");
    let mut parked = Vec::new();
    for address in [here, there] {
        for _ in 0..2 {
            parked.push(gateway.spawn_get(&wait, &[address]));
            gateway.wait_until_parked(parked.len()).await;
        }
        assert_gateway_error(&gateway.get(&wait, &[address]).await, 429, "too-many-waits-per-address");
    }
    let mut statuses = Vec::new();
    for _ in 0..10 {
        statuses.push(gateway.get(&clip_target("cached", "completed"), &[here]).await.status.as_u16());
    }
    assert!(statuses.contains(&429), "{statuses:?}");
    assert_eq!(gateway.get(&clip_target("cached", "completed"), &[there]).await.status, 200);
    drop(parked);
    gateway.wait_until_parked(0).await;
}
