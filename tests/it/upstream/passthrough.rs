//! Passed-through requests reach the upstream unchanged, once, and no other host.

use std::net::TcpListener;
use std::time::Duration;

use bytes::Bytes;
use clipgate::sim::{Fault, FaultTarget, RequestEnd};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::harness::gateway::{Answer, TestGateway, clip_target, within_secs};
use crate::harness::raw_http::{
    CLIP, assert_gateway_error, field, read_until, request, send_raw, upstream_request_count,
};

const KEY: (&str, &str) = ("authorization", "Bearer demo");

fn body(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap()
}

#[tokio::test]
async fn each_order_reaches_the_upstream_and_makes_jobs_of_its_own() {
    let gateway = TestGateway::new().await;
    let mut ids = Vec::new();
    for count in 1..=2 {
        let answer = gateway.send(request("POST", CLIP, &[KEY], "{\"prompt\":\"x\"}")).await;
        assert_eq!((answer.status.as_u16(), upstream_request_count(&gateway)), (201, count));
        ids.extend(body(&answer)["clip_ids"].as_array().unwrap().clone());
    }
    ids.sort_by_key(Value::to_string);
    ids.dedup();
    assert_eq!(ids.len(), 4);
    let seen = gateway.sim.requests();
    assert!(seen.iter().all(|seen| seen.method == "POST" && &*seen.target == CLIP));
}

#[tokio::test]
async fn the_gateway_does_not_cache_lyrics() {
    let gateway = TestGateway::new().await;
    let lyric = "/v2/generate/audio/suno-ai/lyric?id=1";
    let first = gateway.get(lyric, &[]).await;
    assert_eq!((first.status.as_u16(), field(&first, "cache-status")), (200, "clipgate; fwd=bypass"));
    assert_eq!(gateway.get(lyric, &[]).await.status, 404, "from the upstream, not from the cache");
    assert_eq!(upstream_request_count(&gateway), 2);
}

#[tokio::test]
async fn the_gateway_passes_through_a_wait_that_it_does_not_understand() {
    let gateway = TestGateway::new().await;
    gateway.sim.set_status("a", "completed");
    gateway.get(&clip_target("a", "completed"), &[]).await;
    let rows = [
        (format!("{CLIP}?clip_id=a&status=completed&quality=high"), 200),
        (format!("{CLIP}?clip_id=a&status=done"), 400),
        (format!("{CLIP}?clip_id=a&status=completed&status=completed"), 400),
        (format!("{CLIP}?clip_id=a&clip_id=a&status=completed"), 400),
        (format!("{CLIP}s?clip_ids[]=a&clip_ids=a&status=completed"), 200),
        (format!("{CLIP}/?clip_id=a&status=completed"), 404),
        (format!("{CLIP}?clip_id=a;b&status=completed"), 404),
    ];
    for (target, status) in &rows {
        for _ in 0..2 {
            let before = upstream_request_count(&gateway);
            let answer = gateway.get(target, &[]).await;
            assert_eq!(answer.status, *status, "{target}");
            assert_eq!(field(&answer, "cache-status"), "clipgate; fwd=bypass");
            let seen = gateway.sim.requests();
            assert_eq!((seen.len(), &*seen[before].target), (before + 1, &**target));
        }
    }
    for method in ["HEAD", "OPTIONS", "DELETE", "PUT"] {
        let before = upstream_request_count(&gateway);
        let answer = gateway.send(request(method, &clip_target("a", "completed"), &[KEY], "")).await;
        assert_eq!(field(&answer, "cache-status"), "clipgate; fwd=method", "{method}");
        let seen = gateway.sim.requests();
        assert_eq!((seen.len(), seen[before].method.as_str()), (before + 1, method));
    }
}

#[tokio::test]
async fn method_target_headers_and_body_reach_the_upstream_unchanged() {
    let gateway = TestGateway::new().await;
    let target = "/sim/echo?a=%20&b[]=+&c=%2F..%2f&&d='\"|{}";
    let fields = [KEY, ("x-two", "one"), ("x-two", "two"), ("accept-encoding", "gzip"), ("cookie", "a=b")];
    for method in ["POST", "PATCH", "DELETE", "PURGE"] {
        let sent = vec![b'7'; 300_000];
        let raw_target = target.replace(['"', '|', '{', '}'], "x");
        let answer = gateway.send(request(method, &raw_target, &fields, sent.clone())).await;
        let echo = body(&answer);
        assert_eq!((&echo["method"], &echo["target"]), (&json!(method), &json!(raw_target)));
        assert_eq!(echo["body_bytes"], sent.len());
        assert_eq!(echo["body_blake3"], *blake3::hash(&sent).to_hex());
        let headers = echo["headers"].as_array().unwrap();
        for pair in [["x-two", "one"], ["x-two", "two"], ["accept-encoding", "gzip"], ["cookie", "a=b"]] {
            assert!(headers.contains(&json!(pair)), "{pair:?} in {headers:?}");
        }
        let one = |name: &str| {
            let mut values = headers.iter().filter(|pair| pair[0] == name).map(|pair| pair[1].clone());
            let value = values.next().unwrap_or_else(|| panic!("{name} in {headers:?}"));
            assert!(values.next().is_none(), "{name} in {headers:?}");
            value
        };
        assert_eq!((one("via"), one("content-length")), (json!("1.1 clipgate"), json!("300000")));
        assert_eq!(
            (one("x-forwarded-for"), one("x-forwarded-host")),
            (json!("127.0.0.1"), json!(gateway.address.to_string()))
        );
        assert_ne!(one("host"), json!(gateway.address.to_string()), "the upstream's own name");
        assert_eq!(echo["has_key"], true);
    }
    assert_eq!(upstream_request_count(&gateway), 4);
}

#[tokio::test]
async fn a_body_of_some_megabytes_passes_both_ways_complete() {
    let gateway = TestGateway::new().await;
    let sent: Bytes = (0..4 << 20).map(|n: u32| n.to_le_bytes()[(n % 4) as usize]).collect();
    let answer = gateway.send(request("PUT", "/sim/mirror", &[KEY], sent.clone())).await;
    assert!(answer.body == sent);
}

#[tokio::test]
async fn the_gateway_never_resends_a_failed_request() {
    let gateway = TestGateway::new().await;
    let faults = [
        ("POST", CLIP, Fault::reset()),
        ("POST", CLIP, Fault::Refuse),
        ("PUT", "/v1/files", Fault::reset()),
        ("GET", "/v2/generate/audio/suno-ai/lyric?id=1", Fault::reset()),
        ("GET", "/v1/models", Fault::Refuse),
    ];
    for (method, target, fault) in faults {
        // Also over a reused connection, where HTTP clients like to resend.
        for _ in 0..2 {
            gateway.get("/sim/echo", &[]).await;
            let before = upstream_request_count(&gateway);
            gateway.sim.fault(FaultTarget::Path("/v".to_owned()), fault.clone(), 1);
            let body = if method == "GET" { "" } else { "{}" };
            let answer = gateway.send(request(method, target, &[KEY], body)).await;
            assert_gateway_error(&answer, 502, "upstream-reset");
            assert_eq!(upstream_request_count(&gateway), before + 1, "{method} {target} {fault:?}");
        }
    }
    for status in [429, 503] {
        let before = upstream_request_count(&gateway);
        gateway.sim.fault(FaultTarget::Any, Fault::retry_after(status, Duration::from_secs(1)), 1);
        let answer = gateway.send(request("POST", CLIP, &[KEY], "{}")).await;
        assert_eq!((answer.status.as_u16(), field(&answer, "retry-after")), (status, "1"));
        assert_eq!(upstream_request_count(&gateway), before + 1);
    }
}

#[tokio::test]
async fn events_pass_at_once_until_the_client_closes_the_connection() {
    let gateway = TestGateway::new().await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let head = "GET /sim/stream?n=2&every=60s HTTP/1.1\r\nhost: x\r\nauthorization: Bearer demo\r\n\
        accept: text/event-stream\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let back = read_until(&mut stream, |back| back.ends_with(b"id: 0\ndata: 0\n\n\r\n")).await;
    let back = String::from_utf8(back).unwrap();
    assert!(back.contains("content-type: text/event-stream\r\n"), "{back}");
    assert!(back.contains("cache-status: clipgate; fwd=bypass\r\n"), "{back}");
    assert_eq!(gateway.sim.requests()[0].end, RequestEnd::Open);
    drop(stream);
    within_secs(10, gateway.sim.wait_until(|seen| seen.abandoned() == 1)).await;
}

#[tokio::test]
async fn a_client_that_disconnects_before_the_response_cancels_its_request() {
    let gateway = TestGateway::with_hold(Duration::from_secs(60)).await;
    gateway.sim.set_status("a", "queued");
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let target = format!("{}&unknown=1", clip_target("a", "completed"));
    let head = format!("GET {target} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer demo\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    within_secs(10, gateway.sim.wait_until(|seen| seen.open == 1)).await;
    drop(stream);
    within_secs(30, gateway.sim.wait_until(|seen| seen.abandoned() == 1)).await;
}

#[tokio::test]
async fn an_echoed_upload_returns_each_chunk_before_the_next_is_sent() {
    let gateway = TestGateway::new().await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let head =
        "POST /sim/mirror HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    read_until(&mut stream, |back| back.ends_with(b"\r\n\r\n")).await;
    for piece in ["one", "twotwo", "x"] {
        let chunk = format!("{:x}\r\n{piece}\r\n", piece.len());
        stream.write_all(chunk.as_bytes()).await.unwrap();
        read_until(&mut stream, |back| back == chunk.as_bytes()).await;
    }
    assert_eq!(gateway.sim.requests()[0].end, RequestEnd::Open);
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    read_until(&mut stream, |back| back == b"0\r\n\r\n").await;
}

#[tokio::test]
async fn an_upgraded_connection_is_a_tunnel_through_the_server() {
    let gateway = TestGateway::new().await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let head = "GET /sim/upgrade HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let back = read_until(&mut stream, |back| back.ends_with(b"\r\n\r\n")).await;
    let back = String::from_utf8(back).unwrap();
    assert!(back.starts_with("HTTP/1.1 101 ") && back.contains("upgrade: websocket\r\n"), "{back}");
    assert!(
        back.contains("cache-status: clipgate; fwd=bypass\r\n") && back.contains("x-request-id: "),
        "{back}"
    );
    // The tunnel forwards any bytes, also those that look like hyper's own response to a malformed head.
    for piece in [&b"\x81\x02hi"[..], b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n", &[0; 100_000]]
    {
        let (mut read, mut write) = stream.split();
        let mut back = vec![0; piece.len()];
        let (sent, came) = tokio::join!(
            write.write_all(piece),
            within_secs(10, tokio::io::AsyncReadExt::read_exact(&mut read, &mut back))
        );
        sent.unwrap();
        came.unwrap();
        assert!(back == piece);
    }
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    within_secs(10, tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest)).await.unwrap();
    assert!(rest.is_empty());
}

#[tokio::test]
async fn no_target_leads_to_another_host() {
    let gateway = TestGateway::new().await;
    let trap = TcpListener::bind("127.0.0.1:0").unwrap();
    trap.set_nonblocking(true).unwrap();
    let evil = trap.local_addr().unwrap().to_string();
    let other = gateway.address.to_string();
    let rows = [
        (format!("GET http://{evil}/sim/echo"), &evil, 200),
        (format!("GET http://{evil}/sim/echo"), &other, 421),
        (format!("GET https://{evil}/sim/echo"), &other, 421),
        (format!("GET ftp://{evil}/sim/echo"), &evil, 421),
        (format!("GET http://user@{evil}/sim/echo"), &evil, 421),
        (format!("GET http://{other}@{evil}/sim/echo"), &other, 421),
        (format!("GET http://{evil}/v2/generate/audio/suno-ai/clip?clip_id=a"), &other, 421),
        (format!("GET //{evil}/sim/echo"), &other, 404),
        (format!("GET /@{evil}/sim/echo"), &other, 404),
        (format!("GET /..//{evil}/sim/echo"), &other, 404),
        (format!("GET /\\{evil}/sim/echo"), &other, 404),
        (format!("GET /sim/echo?url=http://{evil}/"), &other, 200),
        ("GET /sim/echo".to_owned(), &evil, 200),
        (format!("CONNECT {evil}"), &evil, 501),
        (format!("GET {evil}"), &other, 400),
        (format!("GET @{evil}/"), &other, 400),
        (format!("GET {evil}/sim/echo"), &other, 400),
        ("OPTIONS *".to_owned(), &evil, 400),
        ("GET *".to_owned(), &other, 400),
    ];
    for (line, host, status) in &rows {
        let head = format!(
            "{line} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer demo\r\nconnection: close\r\n\r\n"
        );
        let back = send_raw(gateway.address, head.as_bytes()).await;
        let text = String::from_utf8_lossy(&back);
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{line}, host {host}: {text}");
        assert!(!text.contains(&format!("[\"host\",\"{evil}\"]")), "{text}");
    }
    assert_eq!(trap.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "somebody came by");
    assert!(gateway.sim.requests().iter().all(|seen| seen.headers["host"] != *evil));
}
