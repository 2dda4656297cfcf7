//! Error responses of the gateway: all have the documented JSON form and headers.

use std::time::Duration;

use clipgate::sim::{Fault, FaultTarget};
use http::Version;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::admin_client::AdminClient;
use crate::harness::gateway::{Answer, TestGateway, clip_target, clips_target, within_secs};
use crate::harness::raw_http::{
    CLIP, assert_bare_rejection, assert_gateway_error, field, parse_response, read_until, request, send_raw,
    upstream_request_count,
};

const KEY: (&str, &str) = ("authorization", "Bearer demo");
/// The bytes that hyper itself sends for a malformed head.
const BARE: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";

/// Heads that hyper itself rejects; `hostile_clients_http1.rs` has more.
const MALFORMED: [&[u8]; 2] =
    [b"GET /sim/echo HTTP/1.1\r\nhost : x\r\n\r\n", b"GET /sim/echo HTTP/1.1\r\nhost: x\r\nx: a\rb\r\n\r\n"];

fn assert_rejected(bytes: &[u8], status: u16, reason: &str) {
    let (answer, rest) = parse(bytes).unwrap_or_else(|| panic!("{:?}", String::from_utf8_lossy(bytes)));
    assert_refusal(&answer, status, reason);
    assert!(rest.is_empty(), "{:?}", String::from_utf8_lossy(rest));
}

#[tokio::test]
async fn each_error_in_a_query_has_its_own_detail() {
    let gateway = TestGateway::new().await;
    let long = "x".repeat(129);
    let seven: Vec<_> = (0..7).map(|n| format!("id-{n}")).collect();
    let seven: Vec<&str> = seven.iter().map(String::as_str).collect();
    let rows = [
        (CLIP.to_owned(), "no-id"),
        (format!("{CLIP}s"), "no-id"),
        (format!("{CLIP}?status=completed"), "no-id"),
        (clip_target("", "completed"), "empty-id"),
        (clips_target(&["a", ""], "completed"), "empty-id"),
        (clip_target(&long, "completed"), "long-id"),
        (clip_target("%ff", "completed"), "id-not-utf8"),
        (clips_target(&seven, "completed"), "too-many-ids"),
        (clip_target("a", "error"), "status-not-askable"),
        (clip_target("%zz", "completed"), "broken-escape"),
        (clip_target("a", "completed%"), "broken-escape"),
        (format!("{CLIP}?clip%5_id=a"), "broken-escape"),
    ];
    for (target, reason) in &rows {
        let answer = gateway.get(target, &[]).await;
        let message = assert_refusal(&answer, 400, reason);
        assert!(message.contains('`') || *reason == "broken-escape", "{message}");
        let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(body["path"], target.split('?').next().unwrap(), "without the query");
    }
    assert_eq!(calls(&gateway), 0);
}

#[tokio::test]
async fn a_body_over_the_limit_is_rejected_with_and_without_content_length() {
    let gateway = TestGateway::with(|config, _| config.limits.max_body = 1000).await;
    let fits = gateway.send(request("POST", "/sim/mirror", &[KEY], vec![b'x'; 1000])).await;
    assert_eq!((fits.status.as_u16(), fits.body.len()), (200, 1000));
    let asked = calls(&gateway);
    let answer = gateway.send(request("POST", CLIP, &[KEY], vec![b'x'; 1001])).await;
    assert_refusal(&answer, 413, "body-too-large");
    assert_eq!(calls(&gateway), asked);

    let head =
        format!("POST {CLIP} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n");
    let chunked = [head.as_bytes(), b"3e9\r\n", &[b'x'; 1001], b"\r\n0\r\n\r\n"].concat();
    assert_rejected(&raw(gateway.address, &chunked).await, 413, "body-too-large");
}

#[tokio::test]
async fn a_target_or_a_head_over_its_limit_is_rejected() {
    let gateway = TestGateway::new().await;
    let target = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(70_000));
    assert_rejected(&raw(gateway.address, target.as_bytes()).await, 414, "uri-too-long");
    let field = format!("GET / HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "x".repeat(200_000));
    assert_rejected(&raw(gateway.address, field.as_bytes()).await, 431, "headers-too-large");
    let fields = format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", "x: y\r\n".repeat(500));
    assert_rejected(&raw(gateway.address, fields.as_bytes()).await, 431, "headers-too-large");
    assert_eq!(calls(&gateway), 0);
}

#[tokio::test]
async fn a_failed_upstream_request_is_502() {
    let gateway = TestGateway::with(|config, _| config.upstream.retry_for = Duration::ZERO).await;
    gateway.sim.fault(FaultTarget::Any, Fault::Refuse, 100);
    assert_refusal(&gateway.get(&single("a", "completed"), &[]).await, 502, "unreachable");
    let post = gateway.send(request("POST", CLIP, &[KEY], "{}")).await;
    assert_refusal(&post, 502, "upstream-reset");
    gateway.sim.clear_faults();
    gateway.sim.set_status("a", "completed");
}

#[tokio::test]
async fn too_many_waits_are_503_with_retry_after() {
    let gateway = TestGateway::with(|config, _| config.limits.max_waits = 1).await;
    gateway.sim.set_status("a", "queued");
    let parked = gateway.spawn_get(&single("a", "completed"), &[]);
    within(10, gateway.sim.wait_until(|seen| seen.open == 1)).await;
    let answer = gateway.get(&single("a", "completed"), &[]).await;
    assert_refusal(&answer, 503, "too-many-waits");
    assert_eq!(field(&answer, "retry-after"), "1");
    gateway.sim.set_status("a", "completed");
    assert_eq!(parked.await.unwrap().status, 200);
    assert_eq!(gateway.get(&single("a", "completed"), &[]).await.status, 200);
}

#[tokio::test]
async fn a_request_that_already_passed_this_gateway_is_508() {
    let gateway = TestGateway::new().await;
    for via in ["1.1 clipgate", "1.0 fred, 2.0 CLIPGATE (x)"] {
        for target in [single("a", "completed"), "/v1/models".to_owned()] {
            assert_refusal(&gateway.get(&target, &[("via", via)]).await, 508, "loop");
        }
    }
    assert_eq!(calls(&gateway), 0);
    assert_eq!(gateway.get("/sim/echo", &[("via", "1.1 fred")]).await.status, 200);
}

#[tokio::test]
async fn connect_is_501() {
    let gateway = TestGateway::new().await;
    let head = b"CONNECT example.org:443 HTTP/1.1\r\nhost: example.org:443\r\nconnection: close\r\n\r\n";
    assert_rejected(&raw(gateway.address, head).await, 501, "connect-unsupported");
    assert_eq!(calls(&gateway), 0);
}

#[tokio::test]
async fn a_clients_request_id_is_used_if_it_is_valid() {
    let gateway = TestGateway::new().await;
    gateway.sim.set_status("a", "completed");
    gateway.get(&single("a", "completed"), &[]).await;
    let long = "x".repeat(129);
    for (id, is_valid) in
        [("req-1", true), (&long[1..], true), (&long[..], false), ("a b", false), ("é", false)]
    {
        for target in [CLIP.to_owned(), single("a", "completed")] {
            let answer = gateway.get(&target, &[("x-request-id", id)]).await;
            if target == CLIP {
                assert_gateway_error(&answer, 400, "no-id");
            }
            let given = field(&answer, "x-request-id");
            assert_eq!(given == id, is_valid, "{given}");
            assert!(!given.is_empty() && given.bytes().all(|byte| byte.is_ascii_graphic()));
        }
        gateway.get("/sim/echo", &[("x-request-id", id)]).await;
        let seen = gateway.sim.requests().pop().unwrap();
        assert_eq!(seen.headers["x-request-id"].as_bytes() == id.as_bytes(), is_valid);
    }
}

#[tokio::test]
async fn a_malformed_head_after_a_good_response_gets_the_full_error_response() {
    let gateway = TestGateway::new().await;
    gateway.sim.set_status("a", "completed");
    let good =
        format!("GET {} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer demo\r\n\r\n", single("a", "completed"));
    let passed = "GET /sim/status/404 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer demo\r\n\r\n";
    gateway.get(&single("a", "completed"), &[]).await;
    for good in [good.as_bytes(), passed.as_bytes()] {
        for bad in MALFORMED {
            // The malformed head is sent after the response.
            let mut stream = TcpStream::connect(gateway.address).await.unwrap();
            stream.write_all(good).await.unwrap();
            read_until(&mut stream, |back| parse_response(back).is_some()).await;
            stream.write_all(bad).await.unwrap();
            let back = read_until(&mut stream, |back| parse(back).is_some()).await;
            assert_rejected(&back, 400, "bad-request");

            // Two good requests and the malformed head are sent at once.
            let back = raw(gateway.address, &[good, good, bad].concat()).await;
            let (first, rest) = parse(&back).unwrap();
            let (second, rest) = parse(rest).unwrap();
            assert_eq!(first.status, second.status);
            assert_rejected(rest, 400, "bad-request");
        }
    }
    assert_eq!(malformed, 8);
    operator.assert_rejected(malformed).await;
}

#[tokio::test]
async fn a_body_that_equals_hypers_own_rejection_is_passed_on_unchanged() {
    let gateway = TestGateway::new().await;
    let answer = gateway.send(request("POST", "/sim/mirror", &[KEY], BARE)).await;
    assert_eq!(answer.body, BARE);
    assert_eq!(answer.headers.get("cache-status").unwrap(), "clipgate; fwd=method");

    // In a write of its own after the head: a chunked body, and one that the end of the connection delimits.
    for (version, length) in
        [(Version::HTTP_11, "transfer-encoding: chunked"), (Version::HTTP_10, "content-length: 47")]
    {
        assert_eq!(BARE.len(), 47);
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        let head =
            format!("POST /sim/mirror {version:?}\r\nhost: x\r\nconnection: close\r\n{length}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let head = read_until(&mut stream, |back| back.ends_with(b"\r\n\r\n")).await;
        assert!(head.starts_with(format!("{version:?} 200").as_bytes()));
        let piece = match version {
            Version::HTTP_10 => BARE.to_vec(),
            _ => [b"2F\r\n", BARE, b"\r\n0\r\n\r\n"].concat(),
        };
        stream.write_all(&piece).await.unwrap();
        let mut back = Vec::new();
        within_secs(10, stream.read_to_end(&mut back)).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&back), String::from_utf8_lossy(&piece));
    }
    operator.assert_rejected(0).await;
}

#[tokio::test]
async fn every_response_has_a_request_id_a_via_and_a_cache_status() {
    let gateway = TestGateway::new().await;
    gateway.sim.set_status("a", "completed");
    let answers: Vec<Answer> = vec![
        gateway.get(&single("a", "completed"), &[]).await,
        gateway.get(&single("a", "completed"), &[]).await,
        gateway.get(&multi(&["a"], "completed"), &[("if-none-match", "*")]).await,
        gateway.get(&single("nowhere", "completed"), &[]).await,
        gateway.get("/sim/status/500", &[]).await,
        gateway.get(CLIP, &[]).await,
        gateway.send(request("HEAD", &single("a", "completed"), &[KEY], "")).await,
        gateway.send(request("OPTIONS", CLIP, &[KEY], "")).await,
    ];
    for answer in &answers {
        assert!(!field(answer, "x-request-id").is_empty(), "{answer:?}");
        assert_eq!(field(answer, "via"), "1.1 clipgate", "{answer:?}");
        assert!(field(answer, "cache-status").starts_with("clipgate; "), "{answer:?}");
    }
}
