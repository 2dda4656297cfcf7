//! Errors of the gateway: each has the documented JSON body. hyper answers a malformed head itself, without a body.

use std::time::Duration;

use clipgate::sim::{Fault, FaultTarget};
use clipgate::testing::clock;
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
/// The start of hyper's own response to a malformed head.
const BARE: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";

/// Heads that hyper rejects; `hostile_clients_http1.rs` has more.
const MALFORMED: [&[u8]; 2] =
    [b"GET /sim/echo HTTP/1.1\r\nhost : x\r\n\r\n", b"GET /sim/echo HTTP/1.1\r\nhost: x\r\nx: a\rb\r\n\r\n"];

fn assert_rejected(bytes: &[u8], status: u16, reason: &str) {
    let (answer, rest) =
        parse_response(bytes).unwrap_or_else(|| panic!("{:?}", String::from_utf8_lossy(bytes)));
    assert_gateway_error(&answer, status, reason);
    assert!(rest.is_empty(), "{:?}", String::from_utf8_lossy(rest));
}

#[tokio::test]
async fn each_error_of_a_query_has_its_reason() {
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
        let message = assert_gateway_error(&answer, 400, reason);
        assert!(message.contains('`') || *reason == "broken-escape", "{message}");
        let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(body["path"], target.split('?').next().unwrap(), "without the query");
    }
    assert_eq!(upstream_request_count(&gateway), 0);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_413_with_or_without_a_content_length() {
    let gateway = TestGateway::with(|config, _| config.limits.max_body = 1000).await;
    let fits = gateway.send(request("POST", "/sim/mirror", &[KEY], vec![b'x'; 1000])).await;
    assert_eq!((fits.status.as_u16(), fits.body.len()), (200, 1000));
    let sent_before = upstream_request_count(&gateway);
    let answer = gateway.send(request("POST", CLIP, &[KEY], vec![b'x'; 1001])).await;
    assert_gateway_error(&answer, 413, "body-too-large");
    assert_eq!(upstream_request_count(&gateway), sent_before);

    let head =
        format!("POST {CLIP} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n");
    let chunked = [head.as_bytes(), b"3e9\r\n", &[b'x'; 1001], b"\r\n0\r\n\r\n"].concat();
    assert_rejected(&send_raw(gateway.address, &chunked).await, 413, "body-too-large");
}

#[tokio::test]
async fn a_target_or_a_head_that_is_too_large_gets_a_bare_414_or_431_and_is_counted() {
    let mut gateway = TestGateway::new().await;
    let admin = AdminClient::open(&mut gateway).await;
    let target = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(70_000));
    assert_bare_rejection(&send_raw(gateway.address, target.as_bytes()).await, 414);
    let field = format!("GET / HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "x".repeat(200_000));
    assert_bare_rejection(&send_raw(gateway.address, field.as_bytes()).await, 431);
    let fields = format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", "x: y\r\n".repeat(1000));
    assert_bare_rejection(&send_raw(gateway.address, fields.as_bytes()).await, 431);
    assert_eq!(upstream_request_count(&gateway), 0);
    admin.assert_rejected(3).await;
}

#[tokio::test]
async fn a_request_that_the_upstream_does_not_answer_is_502() {
    let gateway = TestGateway::with(|config, _| config.upstream.retry_for = Duration::ZERO).await;
    gateway.sim.fault(FaultTarget::Any, Fault::Refuse, 100);
    assert_gateway_error(&gateway.get(&clip_target("a", "completed"), &[]).await, 502, "unreachable");
    let post = gateway.send(request("POST", CLIP, &[KEY], "{}")).await;
    assert_gateway_error(&post, 502, "upstream-reset");
    gateway.sim.clear_faults();
    gateway.sim.set_status("a", "completed");
}

#[tokio::test]
async fn too_many_waits_are_503_with_retry_after() {
    let gateway = TestGateway::with(|config, _| config.limits.max_waits = 1).await;
    gateway.sim.set_status("a", "queued");
    let parked = gateway.spawn_get(&clip_target("a", "completed"), &[]);
    within_secs(10, gateway.sim.wait_until(|seen| seen.open == 1)).await;
    let answer = gateway.get(&clip_target("a", "completed"), &[]).await;
    assert_gateway_error(&answer, 503, "too-many-waits");
    assert_eq!(field(&answer, "retry-after"), "1");
    gateway.sim.set_status("a", "completed");
    assert_eq!(parked.await.unwrap().status, 200);
    assert_eq!(gateway.get(&clip_target("a", "completed"), &[]).await.status, 200);
}

#[tokio::test]
async fn a_request_that_passed_this_gateway_before_is_508() {
    let gateway = TestGateway::new().await;
    for via in ["1.1 clipgate", "1.0 fred, 2.0 CLIPGATE (x)"] {
        for target in [clip_target("a", "completed"), "/v1/models".to_owned()] {
            assert_gateway_error(&gateway.get(&target, &[("via", via)]).await, 508, "loop");
        }
    }
    assert_eq!(upstream_request_count(&gateway), 0);
    assert_eq!(gateway.get("/sim/echo", &[("via", "1.1 fred")]).await.status, 200);
}

#[tokio::test]
async fn connect_is_501() {
    let gateway = TestGateway::new().await;
    let head = b"CONNECT example.org:443 HTTP/1.1\r\nhost: example.org:443\r\nconnection: close\r\n\r\n";
    assert_rejected(&send_raw(gateway.address, head).await, 501, "connect-unsupported");
    assert_eq!(upstream_request_count(&gateway), 0);
}

#[tokio::test]
async fn a_clients_request_id_is_used_if_it_is_valid() {
    let gateway = TestGateway::new().await;
    gateway.sim.set_status("a", "completed");
    gateway.get(&clip_target("a", "completed"), &[]).await;
    let long = "x".repeat(129);
    for (id, is_valid) in
        [("req-1", true), (&long[1..], true), (&long[..], false), ("a b", false), ("é", false)]
    {
        for target in [CLIP.to_owned(), clip_target("a", "completed")] {
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
async fn a_malformed_head_after_good_requests_gets_its_bare_400_after_their_answers() {
    let mut gateway = TestGateway::new().await;
    let admin = AdminClient::open(&mut gateway).await;
    gateway.sim.set_status("a", "completed");
    let good = format!(
        "GET {} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer demo\r\n\r\n",
        clip_target("a", "completed")
    );
    let passed = "GET /sim/status/404 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer demo\r\n\r\n";
    gateway.get(&clip_target("a", "completed"), &[]).await;
    let mut malformed = 0;
    for good in [good.as_bytes(), passed.as_bytes()] {
        for bad in MALFORMED {
            // One after the other.
            let mut stream = TcpStream::connect(gateway.address).await.unwrap();
            stream.write_all(good).await.unwrap();
            read_until(&mut stream, |back| parse_response(back).is_some()).await;
            stream.write_all(bad).await.unwrap();
            let mut back = Vec::new();
            within_secs(10, stream.read_to_end(&mut back)).await.unwrap();
            assert_bare_rejection(&back, 400);
            drop(stream);

            // In one write, after two good requests.
            let back = send_raw(gateway.address, &[good, good, bad].concat()).await;
            let (first, rest) = parse_response(&back).unwrap();
            let (second, rest) = parse_response(rest).unwrap();
            assert_eq!(first.status, second.status);
            assert_bare_rejection(rest, 400);
            malformed += 2;
        }
    }
    assert_eq!(malformed, 8);
    admin.assert_rejected(malformed).await;
}

#[tokio::test]
async fn a_malformed_head_is_counted_while_its_client_keeps_the_connection_open() {
    let mut gateway = TestGateway::new().await;
    let admin = AdminClient::open(&mut gateway).await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(MALFORMED[0]).await.unwrap();
    let since = clock::now();
    assert_bare_rejection(&read_until(&mut stream, |back| parse_response(back).is_some()).await, 400);
    admin.assert_rejected(1).await;
    // The server drains the rest of such a request for 2 s.
    assert!(since.elapsed() < Duration::from_millis(1500), "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_malformed_head_behind_a_parked_wait_is_answered_after_the_wait() {
    let mut gateway = TestGateway::new().await;
    let admin = AdminClient::open(&mut gateway).await;
    gateway.sim.set_status("a", "queued");
    let wait = format!(
        "GET {} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer demo\r\n\r\n",
        clip_target("a", "completed")
    );
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(&[wait.as_bytes(), MALFORMED[0]].concat()).await.unwrap();
    gateway.wait_until_parked(1).await;
    gateway.sim.set_status("a", "completed");
    let mut back = Vec::new();
    within_secs(10, stream.read_to_end(&mut back)).await.unwrap();
    drop(stream);
    let (answer, rest) = parse_response(&back).unwrap();
    assert_eq!(answer.status, 200);
    assert_bare_rejection(rest, 400);
    admin.assert_rejected(1).await;
}

#[tokio::test]
async fn a_body_that_looks_like_hypers_own_response_arrives_unchanged_and_is_not_counted_as_rejected() {
    let mut gateway = TestGateway::new().await;
    let admin = AdminClient::open(&mut gateway).await;
    let answer = gateway.send(request("POST", "/sim/mirror", &[KEY], BARE)).await;
    assert_eq!(answer.body, BARE);
    assert_eq!(answer.headers.get("cache-status").unwrap(), "clipgate; fwd=method");

    // In a write of its own, after the head: a body in pieces, and one that the connection's end ends.
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
    admin.assert_rejected(0).await;
}

#[tokio::test]
async fn every_answer_has_an_id_a_via_and_a_cache_status() {
    let gateway = TestGateway::new().await;
    gateway.sim.set_status("a", "completed");
    let answers: Vec<Answer> = vec![
        gateway.get(&clip_target("a", "completed"), &[]).await,
        gateway.get(&clip_target("a", "completed"), &[]).await,
        gateway.get(&clips_target(&["a"], "completed"), &[("if-none-match", "*")]).await,
        gateway.get(&clip_target("nowhere", "completed"), &[]).await,
        gateway.get("/sim/status/500", &[]).await,
        gateway.get(CLIP, &[]).await,
        gateway.send(request("HEAD", &clip_target("a", "completed"), &[KEY], "")).await,
        gateway.send(request("OPTIONS", CLIP, &[KEY], "")).await,
    ];
    for answer in &answers {
        assert!(!field(answer, "x-request-id").is_empty(), "{answer:?}");
        assert_eq!(field(answer, "via"), "1.1 clipgate", "{answer:?}");
        assert!(field(answer, "cache-status").starts_with("clipgate; "), "{answer:?}");
    }
}
