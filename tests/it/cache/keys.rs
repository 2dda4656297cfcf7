//! Keys never mix, and never appear in logs or responses (P11).

use clipgate::sim::{Sim, SimOptions};
use clipgate::testing::config::{AuthMode, Config};
use clipgate::testing::protocol::allowed_host::HostPattern;
use clipgate::testing::secret::Secret;
use tokio::net::TcpListener;

use crate::harness::command::ClipgateProcess;
use crate::harness::gateway::{TestGateway, clip_target, within_secs};
use crate::harness::raw_http::{
    CLIP, assert_gateway_error, field, request, send_raw, upstream_request_count,
};

const ONLY: (&str, &str) = ("cache-control", "only-if-cached");
const ANN: (&str, &str) = ("authorization", "Bearer ann");
const BOB: (&str, &str) = ("authorization", "Bearer bob");

#[tokio::test]
async fn two_keys_have_separate_polls_and_entries_for_one_clip() {
    let gateway = TestGateway::new().await;
    gateway.sim.set_status("a", "queued");
    let target = clip_target("a", "completed");
    let waits = [gateway.spawn_get(&target, &[ANN]), gateway.spawn_get(&target, &[BOB])];
    within_secs(10, gateway.sim.wait_until(|seen| seen.open == 2)).await;
    gateway.sim.set_status("a", "completed");
    for wait in waits {
        let answer = wait.await.unwrap();
        assert_eq!(field(&answer, "cache-status"), "clipgate; fwd=miss; fwd-status=200; stored");
    }
    let seen = gateway.sim.requests();
    for key in ["ann", "bob"] {
        assert_eq!(seen.iter().filter(|seen| seen.key.is_some_and(|sent| sent.matches(key))).count(), 1);
        let key = format!("Bearer {key}");
        assert_eq!(gateway.get(&target, &[("authorization", &key), ONLY]).await.status, 200);
    }
    assert_gateway_error(&gateway.get(&target, &[ONLY]).await, 504, "not-cached");
}

#[tokio::test]
async fn a_revoked_key_loses_its_entries_and_other_keys_keep_theirs() {
    let gateway = TestGateway::new().await;
    gateway.sim.set_status("a", "completed");
    let target = clip_target("a", "completed");
    for key in [ANN, BOB] {
        assert_eq!(gateway.get(&target, &[key]).await.status, 200);
    }
    gateway.sim.accept_keys(Some(&["bob".to_owned()]));
    let rejected = gateway.get(&target, &[ANN, ("cache-control", "no-cache")]).await;
    assert_eq!((rejected.status.as_u16(), field(&rejected, "www-authenticate")), (401, "Bearer"));
    assert_gateway_error(&gateway.get(&target, &[ANN, ONLY]).await, 504, "not-cached");
    assert_eq!(gateway.get(&target, &[ANN]).await.status, 401);
    assert_eq!(gateway.get(&target, &[BOB, ONLY]).await.status, 200);
}

#[tokio::test]
async fn a_sidecar_replaces_the_client_key_and_needs_none() {
    let gateway = TestGateway::with(|config, options| {
        config.auth.mode = AuthMode::Sidecar;
        config.upstream.api_key = Some(Secret::new("of-the-gateway"));
        options.keys = Some(vec!["of-the-gateway".to_owned()]);
    })
    .await;
    gateway.sim.set_status("a", "completed");
    gateway.sim.set_status("b", "completed");
    for (n, fields) in [&[][..], &[ANN], &[ANN, BOB]].into_iter().enumerate() {
        let wait = gateway.send(request("GET", &clip_target("b", "completed"), fields, "")).await;
        assert_eq!(wait.status, 200);
        assert_eq!(
            field(&wait, "cache-status").starts_with("clipgate; hit"),
            n > 0,
            "clients of a sidecar share entries"
        );
        assert_eq!(gateway.send(request("POST", CLIP, fields, "{}")).await.status, 201);
        assert_eq!(gateway.send(request("GET", "/v1/models", fields, "")).await.status, 404);
    }
    let seen = gateway.sim.requests();
    assert_eq!(seen.len(), 1 + 3 * 2);
    for seen in seen {
        assert!(seen.key.is_some_and(|key| key.matches("of-the-gateway")), "{seen:?}");
    }
}

/// Configures a sidecar that accepts the pages of one origin.
fn configure_sidecar(config: &mut Config) {
    config.auth.mode = AuthMode::Sidecar;
    config.upstream.api_key = Some(Secret::new("of-the-gateway"));
    config.server.cors_origins = vec!["https://app.example".to_owned()];
    config.server.allowed_hosts = vec![HostPattern::Name("gw.example".to_owned())];
}

#[tokio::test]
async fn a_sidecar_accepts_pages_of_listed_origins_only() {
    let gateway = TestGateway::with(|config, _| {
        configure_sidecar(config);
    })
    .await;
    gateway.sim.set_status("a", "completed");
    let (cross, same) = (("sec-fetch-site", "cross-site"), ("sec-fetch-site", "same-origin"));
    let host = ("host", "gw.example");
    let (evil, app) = (("origin", "https://evil.example"), ("origin", "https://app.example"));
    let foreign: [&[(&str, &str)]; 11] = [
        &[cross],
        &[("sec-fetch-site", "same-site")],
        &[cross, evil],
        &[evil],
        &[("origin", "null")],
        &[host, ("origin", "app://gw.example")],
        &[host, ("origin", "http://gw.example:81")],
        &[host, ("origin", "http://gw.example"), evil],
        &[same, cross],
        // A frame or link, and a prefetch.
        &[cross, ("sec-fetch-mode", "navigate")],
        &[("sec-fetch-site", "none"), ("sec-purpose", "prefetch")],
    ];
    for fields in foreign {
        for (method, target) in [("POST", CLIP.to_owned()), ("GET", clip_target("a", "completed"))] {
            let answer = gateway.send(request(method, &target, fields, "")).await;
            let message = assert_gateway_error(&answer, 403, "cross-origin");
            assert!(message.contains("server.cors_origins"), "{message}");
        }
    }
    assert_eq!(upstream_request_count(&gateway), 0);
    let own: [&[(&str, &str)]; 6] = [
        &[],
        &[same],
        &[cross, app],
        &[host, ("origin", "http://GW.example:80")],
        &[host, ("origin", "https://gw.example:443")],
        &[("sec-fetch-site", "none"), ("sec-fetch-mode", "navigate")],
    ];
    for fields in own {
        assert_eq!(
            gateway.send(request("GET", &clip_target("a", "completed"), fields, "")).await.status,
            200
        );
    }
}

#[tokio::test]
async fn requests_of_foreign_pages_do_not_count_against_the_quota_of_programs() {
    let gateway = TestGateway::with(|config, _| {
        configure_sidecar(config);
        (config.limits.requests_per_second, config.limits.burst) = (1, 3);
    })
    .await;
    gateway.sim.set_status("a", "completed");
    let preflight = [("origin", "https://evil.example"), ("access-control-request-method", "POST")];
    for _ in 0..10 {
        for answer in [
            gateway.get(&clip_target("a", "completed"), &[("sec-fetch-site", "cross-site")]).await,
            gateway.send(request("OPTIONS", CLIP, &preflight, "")).await,
        ] {
            // These requests count against the quota of the address.
            match answer.status.as_u16() {
                429 => assert_gateway_error(&answer, 429, "requests"),
                _ => assert_gateway_error(&answer, 403, "cross-origin"),
            };
        }
    }
    assert_eq!(gateway.send(request("GET", &clip_target("a", "completed"), &[], "")).await.status, 200);
}

#[tokio::test]
async fn a_page_with_its_own_key_is_accepted_in_passthrough_mode() {
    let gateway = TestGateway::new().await;
    gateway.sim.set_status("a", "completed");
    let fields = [ANN, ("sec-fetch-site", "cross-site"), ("origin", "https://page.example")];
    assert_eq!(gateway.get(&clip_target("a", "completed"), &fields).await.status, 200);
}

#[tokio::test]
async fn a_wait_without_a_key_gets_the_401_of_the_upstream() {
    let gateway = TestGateway::new().await;
    gateway.sim.set_status("a", "completed");
    gateway.get(&clip_target("a", "completed"), &[]).await;
    for fields in [&[][..], &[("authorization", "")]] {
        let answer = gateway.send(request("GET", &clip_target("a", "completed"), fields, "")).await;
        assert_eq!((answer.status.as_u16(), field(&answer, "www-authenticate")), (401, "Bearer"));
        assert_eq!(field(&answer, "cache-status"), "clipgate; fwd=bypass");
        let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(body["requestId"], field(&answer, "x-request-id"));
        assert!(answer.headers.contains_key("x-inference-id"), "the upstream wrote the response");
    }
    assert_eq!(upstream_request_count(&gateway), 3);
}

#[tokio::test]
async fn a_request_with_two_authorization_fields_is_rejected_on_every_path() {
    let gateway = TestGateway::new().await;
    for (method, target) in
        [("GET", clip_target("a", "completed")), ("POST", CLIP.into()), ("GET", "/x".into())]
    {
        for second in [BOB, ANN] {
            let answer = gateway.send(request(method, &target, &[ANN, second], "")).await;
            assert_gateway_error(&answer, 400, "multiple-authorization");
        }
    }
    assert_eq!(upstream_request_count(&gateway), 0);
}

/// Clients share the connections to the upstream. One that NTLM has authenticated would serve the next client as that
/// user.
#[tokio::test]
async fn credentials_that_authenticate_a_connection_are_rejected_and_count_against_the_quota() {
    let gateway = TestGateway::new().await;
    for (method, target) in
        [("GET", clip_target("a", "completed")), ("POST", CLIP.into()), ("GET", "/x".into())]
    {
        for key in ["NTLM TlRMTVNTUAABAAAA", "negotiate YIIJvwYGKwYBBQUCoIIJ"] {
            let answer = gateway.send(request(method, &target, &[("authorization", key)], "")).await;
            assert_gateway_error(&answer, 400, "connection-auth");
            assert!(answer.headers.contains_key("ratelimit"), "{:?}", answer.headers);
        }
    }
    assert_eq!(upstream_request_count(&gateway), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_never_appear_in_the_log_or_in_responses() {
    const KEY: &str = "sk-recognise-me-4711";
    // A process instead of a TestGateway, because the command writes the log.
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let upstream = format!("http://{}", listener.local_addr().unwrap());
    let sim = Sim::new(SimOptions { keys: Some(vec![KEY.to_owned()]), ..SimOptions::default() });
    sim.set_status("a", "completed");
    let _serving = tokio::spawn(sim.clone().serve(listener, std::future::pending()));
    let front = ["serve", "--listen", "127.0.0.1:0", "--upstream", &upstream];
    for format in ["text", "json"] {
        let env = [
            ("CLIPGATE__LOG__LEVEL", "trace"),
            ("CLIPGATE__LOG__FORMAT", format),
            ("CLIPGATE__AUTH__HEADERS", r#"["authorization", "x-key"]"#),
        ];
        let mut gateway = ClipgateProcess::start(&front, &env);
        let address = gateway.address();
        let head = |line: &str| {
            format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {KEY}\r\n")
        };
        let wait = clip_target("a", "completed");
        let requests = [
            format!("{}\r\n", head(&format!("GET {wait}"))),
            format!("{}\r\n", head(&format!("GET {wait}"))),
            format!("{}cache-control: no-cache\r\n\r\n", head(&format!("GET {wait}"))),
            format!("{}\r\n", head(&format!("GET {}", clip_target("nowhere", "completed")))),
            format!("{}\r\n", head(&format!("GET {CLIP}"))),
            format!("{}\r\n", head("GET /v1/models")),
            format!("{}\r\n", head(&format!("GET /v1/models?api_key={KEY}"))),
            format!("{}\r\n", head(&format!("GET {CLIP}?clip_id=a&key={KEY}"))),
            format!("{}content-length: 2\r\n\r\n{{}}", head(&format!("POST {CLIP}"))),
            format!("{}authorization: Bearer {KEY}\r\n\r\n", head("GET /v1/models")),
            format!("{}proxy-authorization: Basic {KEY}\r\ncookie: {KEY}\r\n\r\n", head("GET /v1/models")),
            format!("{}connection: upgrade\r\nupgrade: websocket\r\n\r\n", head("GET /v1/socket")),
            format!("{}x : y\r\n\r\n", head("GET /v1/models")),
            format!("{}x-key: {KEY}\r\n\r\n", head(&format!("GET {wait}"))),
            format!("{}x-key: {KEY}\r\n\r\n", head("GET /v1/models")),
            format!("{}x-key: {KEY}\r\nx-key: {KEY}\r\n\r\n", head("GET /v1/models")),
            format!("GET {wait} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-key: {KEY}\r\n\r\n"),
            format!("{}x: {}\r\n\r\n", head("GET /v1/models"), "x".repeat(200_000)),
            format!("{}via: 1.1 clipgate\r\n\r\n", head("GET /v1/models")),
            format!("{}\r\n", head(&format!("GET http://{KEY}@127.0.0.1:1/v1/models"))),
            format!("{}\r\n", head("CONNECT example.org:443")),
            format!("GET {wait} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: {KEY}\r\n\r\n"),
            format!(
                "GET {wait} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer not-{KEY}\r\n\r\n"
            ),
        ];
        for request in &requests {
            let answer = send_raw(address, request.as_bytes()).await;
            let text = String::from_utf8_lossy(&answer);
            assert!(text.starts_with("HTTP/1.1 "), "{text:?} to {request:.100}");
            assert!(!text.contains(KEY), "{text} to {request:.100}");
        }
        let (code, log) = gateway.stop();
        assert_eq!(code, Some(0), "{log}");
        let lines = log.lines().filter(|line| line.contains("request_id")).count();
        assert!(lines >= requests.len(), "{format}: each request has its line, there are {lines} in\n{log}");
        assert!(log.contains("poll opened"), "{format}: the log has no debug lines");
        assert!(!log.contains("recognise"), "{format}: {log}");
    }
}

#[tokio::test]
async fn a_poll_from_before_a_401_does_not_prove_its_key_again() {
    let gateway = TestGateway::new().await;
    gateway.sim.set_status("a", "streaming");
    let wait = gateway.spawn_get(&clip_target("a", "completed"), &[]);
    gateway.wait_until(|seen| seen.open == 1).await;
    gateway.sim.accept_keys(Some(&["other".to_owned()]));
    let rejected = gateway.get(&format!("{}&x=1", clip_target("a", "queued")), &[]).await;
    assert_eq!(rejected.status, 401);
    gateway.sim.set_status("a", "completed");
    assert_eq!(wait.await.unwrap().status, 200);
    assert_eq!(
        gateway.get(&clip_target("a", "completed"), &[]).await.status,
        401,
        "the gateway sends an upstream request"
    );
}
