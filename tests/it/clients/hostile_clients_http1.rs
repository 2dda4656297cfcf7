//! Hostile clients over HTTP/1. Each gets an error response or loses its connection, and nothing of it reaches the
//! upstream. During the attack the hits of another client are served at once.
//!
//! `hostile_clients_http2.rs` has those over HTTP/2, `upstream/hostile_upstream.rs` has hostile upstreams.

use std::time::Duration;

use clipgate::sim::RequestEnd;
use clipgate::testing::clock;
use http::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::harness::admin_client::AdminClient;
use crate::harness::gateway::{TestGateway, clip_target, within_secs};
use crate::harness::raw_http::{
    assert_bare_rejection, assert_gateway_error, field, parse_response, send_raw, upstream_request_count,
};

/// The bound on the median time of another client's hit: a thousand times the usual time, as tests share the cores.
const AT_ONCE: Duration = Duration::from_secs(1);

/// The minimal number of hits measured during an attack.
const MIN_HITS: usize = 9;

/// Runs an attack while another client requests a cached job, each time on a new connection.
pub(crate) async fn while_under_attack<T>(
    gateway: &TestGateway,
    name: &str,
    attack: impl Future<Output = T>,
) -> T {
    gateway.sim.set_status("kept", "completed");
    gateway.get(&single("kept", "completed"), &[]).await;
    let mut took = Vec::new();
    let measure_hit = async |took: &mut Vec<Duration>| {
        let answer = gateway.get(&single("kept", "completed"), &[]).await;
        assert!(answer.hit(), "{name}: {answer:?}");
        took.push(answer.took);
        tokio::time::sleep(Duration::from_millis(2)).await; // so that it does not become an attack itself
    };
    let measuring = async {
        loop {
            measure_hit(&mut took).await;
        }
    };
    let ended = tokio::select! {
        ended = within(60, attack) => ended,
        never = measuring => never,
    };
    while took.len() < MIN_HITS {
        measure_hit(&mut took).await;
    }
    took.sort();
    let median = took[took.len() / 2];
    assert!(median < AT_ONCE, "{name}: a hit took {median:?} in the middle of {}", took.len());
    ended
}

/// Heads that different servers may read differently.
const MALFORMED: [(&str, &[u8]); 31] = [
    ("a space before the colon", b"GET /sim/echo HTTP/1.1\r\nhost : x\r\n\r\n"),
    ("a field without a name", b"GET /sim/echo HTTP/1.1\r\nhost: x\r\n: y\r\n\r\n"),
    ("a field without a colon", b"GET /sim/echo HTTP/1.1\r\nhost: x\r\nno colon\r\n\r\n"),
    ("a folded field", b"GET /sim/echo HTTP/1.1\r\nhost: x\r\nx: y\r\n folded: z\r\n\r\n"),
    ("a field folded with a tab", b"GET /sim/echo HTTP/1.1\r\nhost: x\r\nx: y\r\n\tz\r\n\r\n"),
    ("a first field that is folded", b"GET /sim/echo HTTP/1.1\r\n host: x\r\n\r\n"),
    ("a NUL in a value", b"GET /sim/echo HTTP/1.1\r\nhost: x\r\nx: a\0b\r\n\r\n"),
    ("a NUL in a name", b"GET /sim/echo HTTP/1.1\r\nhost: x\r\nx\0y: z\r\n\r\n"),
    ("a bare CR in a value", b"GET /sim/echo HTTP/1.1\r\nhost: x\r\nx: a\rb\r\n\r\n"),
    ("a bare CR that ends a line", b"GET /sim/echo HTTP/1.1\rhost: x\r\n\r\n"),
    ("a NUL in the target", b"GET /sim/ec\0ho HTTP/1.1\r\nhost: x\r\n\r\n"),
    ("an unknown version", b"GET /sim/echo HTTP/9.9\r\nhost: x\r\n\r\n"),
    ("a version with three numbers", b"GET /sim/echo HTTP/1.2.3\r\nhost: x\r\n\r\n"),
    ("a version in small letters", b"GET /sim/echo http/1.1\r\nhost: x\r\n\r\n"),
    ("no version", b"GET /sim/echo\r\nhost: x\r\n\r\n"),
    ("a method with an invalid character", b"G(T /sim/echo HTTP/1.1\r\nhost: x\r\n\r\n"),
    ("two targets", b"GET /sim/echo extra HTTP/1.1\r\nhost: x\r\n\r\n"),
    (
        "two lengths",
        b"POST /sim/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
    ),
    ("two lengths in one", b"POST /sim/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 3, 3\r\n\r\nabc"),
    ("a length with a sign", b"POST /sim/echo HTTP/1.1\r\nhost: x\r\ncontent-length: +3\r\n\r\nabc"),
    ("a length below zero", b"POST /sim/echo HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n"),
    ("a length in hexadecimal", b"POST /sim/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 0x3\r\n\r\nabc"),
    ("a coding without chunks", b"POST /sim/echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\nabc"),
    (
        "chunks that are coded",
        b"POST /sim/echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    ),
    ("almost chunks", b"POST /sim/echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n"),
    (
        "chunks in HTTP/1.0",
        b"POST /sim/echo HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "chunks behind a tab",
        b"POST /sim/echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    ),
];

/// Heads without exactly one valid host.
const DOUBTFUL_HOSTS: [(&str, &[u8]); 4] = [
    ("no host", b"GET /sim/echo HTTP/1.1\r\nconnection: close\r\n\r\n"),
    ("two hosts", b"GET /sim/echo HTTP/1.1\r\nhost: x\r\nhost: y\r\nconnection: close\r\n\r\n"),
    ("the same host twice", b"GET /sim/echo HTTP/1.0\r\nhost: x\r\nhost: x\r\n\r\n"),
    ("a host with a user", b"GET /sim/echo HTTP/1.1\r\nhost: y@x\r\nconnection: close\r\n\r\n"),
];

#[tokio::test]
async fn an_ambiguous_head_is_400_and_does_not_reach_the_upstream() {
    let gateway = TestGateway::new().await;
    let mut count = 0;
    for (name, head) in MALFORMED {
        // Also for a wait, which the gateway would answer itself.
        let text = String::from_utf8_lossy(head).into_owned();
        let wait = text.replacen("/sim/echo", &clip_target("kept", "completed"), 1);
        for head in [head, wait.as_bytes()] {
            let back = while_under_attack(&gateway, name, raw(gateway.address, head)).await;
            let (answer, rest) = parse(&back).unwrap_or_else(|| panic!("{name}: {back:?}"));
            assert_refusal(&answer, 400, "bad-request");
            assert!(rest.is_empty(), "{name}: {:?}", String::from_utf8_lossy(rest));
            assert_eq!(gateway.upstream_requests(), [single("kept", "completed")], "{name}");
            count += 1;
        }
    }
    assert_eq!(count, 2 * 31);
    operator.assert_rejected(count).await;
}

#[tokio::test]
async fn a_transfer_coding_other_than_chunked_does_not_reach_the_upstream() {
    let gateway = TestGateway::new().await;
    let rows = [
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: chunked, chunked",
        "transfer-encoding: identity, chunked",
        "transfer-encoding: gzip\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
    ];
    for field in rows {
        let head =
            format!("POST /sim/echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{field}\r\n\r\n0\r\n\r\n");
        let back = raw(gateway.address, head.as_bytes()).await;
        let (answer, rest) = parse(&back).unwrap();
        assert_refusal(&answer, 400, "bad-request");
        assert!(rest.is_empty(), "{field}");
        assert_eq!(calls(&gateway), 0, "{field}");
    }
}

#[tokio::test]
async fn a_content_length_beside_chunked_smuggles_no_request() {
    let (length, chunked) = ("content-length: 5\r\n", "transfer-encoding: chunked\r\n");
    for fields in [[length, chunked], [chunked, length]] {
        let gateway = TestGateway::new().await;
        let head = format!("POST /sim/echo HTTP/1.1\r\nhost: x\r\n{}\r\n", fields.concat());
        let rest = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n";
        // RFC 9112, section 6.3: the chunks count, the length is removed, the connection is closed.
        let back = raw(gateway.address, (head + rest).as_bytes()).await;
        let (answer, rest) = parse(&back).unwrap();
        assert_eq!((answer.status.as_u16(), field(&answer, "connection"), rest.len()), (200, "close", 0));
        let seen = gateway.sim.requests();
        assert_eq!((seen.len(), &*seen[0].target), (1, "/sim/echo"));
        assert!(!seen[0].headers.contains_key("content-length"));
    }
}

/// Malformed chunked bodies. The upstream request is ended, and the rest of the bytes are not read as a request.
const BROKEN_BODIES: [(&str, &str); 7] = [
    ("a chunk without a size", "\r\nabc"),
    ("an invalid size", "xyz\r\nabc\r\n0\r\n\r\n"),
    ("a size with a prefix", "0x3\r\nabc\r\n0\r\n\r\n"),
    ("a size below zero", "-1\r\nabc\r\n0\r\n\r\n"),
    ("a size over all bounds", "fffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
    ("a chunk longer than its size", "3\r\nabcdef\r\n0\r\n\r\n"),
    ("a size that ends in a bare line feed", "3\nabc\r\n0\r\n\r\n"),
];

#[tokio::test]
async fn a_malformed_chunked_body_is_400_and_smuggles_no_request() {
    for (name, body) in BROKEN_BODIES {
        let gateway = TestGateway::new().await;
        let head = "POST /sim/echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
        let wire = format!("{head}{body}GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n");
        let back = while_under_attack(&gateway, name, raw(gateway.address, wire.as_bytes())).await;
        let (answer, rest) = parse(&back).unwrap_or_else(|| panic!("{name}: {back:?}"));
        assert_refusal(&answer, 400, "body-incomplete");
        assert!(rest.is_empty(), "{name}: {:?}", String::from_utf8_lossy(rest));
        gateway.until(|seen| seen.requests.iter().all(|seen| seen.end != End::Open)).await;
        let passed: Vec<_> =
            gateway.sim.requests().into_iter().filter(|seen| seen.method == "POST").collect();
        assert!(passed.iter().all(|seen| seen.end != End::Answered(StatusCode::OK)), "{name}: {passed:?}");
        assert_eq!((passed.len() <= 1, gateway.sim.observed().count("/smuggled")), (true, 0), "{name}");
    }
}

/// Sends `piece` until the gateway closes the connection. Returns the response and the number of bytes sent.
async fn endless(gateway: &TestGateway, start: &str, piece: &str) -> (Vec<u8>, usize) {
    let (mut read, mut write) = TcpStream::connect(gateway.address).await.unwrap().into_split();
    let piece = piece.repeat(1000);
    let start = start.to_owned();
    let sending = tokio::spawn(async move {
        let mut sent = 0;
        let mut more = start.as_bytes();
        while let Ok(count) = write.write(more).await {
            sent += count;
            more = piece.as_bytes();
        }
        sent
    });
    let mut back = Vec::new();
    let _ = read.read_to_end(&mut back).await;
    drop(read);
    (back, sending.await.unwrap())
}

#[tokio::test]
async fn endless_parts_of_a_request_are_cut_off_at_their_limit() {
    let chunked = "POST /sim/echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    let body = &format!("400\r\n{}\r\n", "x".repeat(0x400));
    let rows = [
        ("fields", "GET / HTTP/1.1\r\nhost: x\r\n".to_owned(), "x: y\r\n", 431),
        ("one field", "GET / HTTP/1.1\r\nhost: x\r\nx: ".to_owned(), "y", 431),
        ("one field's name", "GET / HTTP/1.1\r\nhost: x\r\n".to_owned(), "x", 431),
        ("a target", "GET /".to_owned(), "x", 431),
        ("a method", String::new(), "X", 431),
        ("empty lines", String::new(), "\r\n", 431),
        ("a chunk's extension", format!("{chunked}3;"), "x", 400),
        ("trailers", format!("{chunked}0\r\n"), "x: y\r\n", 400),
        ("a body", chunked.to_owned(), body, 413),
    ];
    let gateway = TestGateway::with(|config, _| config.limits.max_body = 1 << 20).await;
    let mut count = 0;
    for (name, start, piece, status) in rows {
        let (back, sent) = while_under_attack(&gateway, name, endless(&gateway, &start, piece)).await;
        let (answer, rest) = parse(&back).unwrap_or_else(|| panic!("{name}: {back:?} after {sent}"));
        assert_eq!((answer.status.as_u16(), rest.len()), (status, 0), "{name}");
        assert!(field(&answer, "cache-status").starts_with("clipgate; detail="), "{name}");
        // Bytes that are read after the rejection, and the buffers of the system.
        assert!(sent < 128 << 20, "{name}: {sent} bytes were read");
        count += 1;
    }
    assert_eq!(count, 9);
    operator.assert_rejected(count).await;
}

/// Opens `count` connections and sends `start` on each, then nothing. Returns the time until all were closed, and their
/// responses.
async fn slow(gateway: &TestGateway, count: usize, start: &'static str) -> (Duration, Vec<Vec<u8>>) {
    let began = clock::now();
    let mut clients = JoinSet::new();
    for _ in 0..count {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        stream.write_all(start.as_bytes()).await.unwrap();
        clients.spawn(async move {
            let mut back = Vec::new();
            let _ = stream.read_to_end(&mut back).await;
            back
        });
    }
    let backs = clients.join_all().await;
    (began.elapsed(), backs)
}

#[tokio::test]
async fn slow_clients_are_disconnected_after_the_timeout() {
    let timeout = Duration::from_secs(1);
    let gateway = TestGateway::impatient(timeout).await;
    let rows = [
        ("nothing", ""),
        ("half a head", "GET / HTTP/1.1\r\nhost: x\r\nx: "),
        ("half a preface", "PRI * HTTP/2.0\r\n\r\nSM"),
        ("a preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("half a body", "POST /sim/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhalf"),
    ];
    let mut count = 0;
    for (name, start) in rows {
        let (took, backs) = while_under_attack(&gateway, name, slow(&gateway, 200, start)).await;
        // 200 connections take a while, but less than any other timeout of the gateway.
        assert!((timeout..10 * timeout).contains(&took), "{name}: {took:?}");
        let is_upload = start.starts_with("POST");
        for back in &backs {
            match parse_response(back) {
                Some((answer, _)) if is_upload => drop(assert_gateway_error(&answer, 408, "body-stalled")),
                _ => assert!(!is_upload && !back.starts_with(b"HTTP/1.1 2"), "{name}: {back:?}"),
            }
        }
        // Uploads are streamed, so the upstream has their beginning; nothing else has reached it.
        let expected = if is_upload { 200 } else { 0 };
        assert_eq!((gateway.sim.observed().count("/sim/echo"), backs.len()), (expected, 200), "{name}");
        gateway.until(|seen| seen.requests.iter().all(|seen| seen.end != End::Open)).await;
        count += 1;
    }
    assert_eq!(count, 5);
}

#[tokio::test]
async fn a_client_rejected_during_its_request_can_send_the_rest_and_read_the_response() {
    let rows = [
        ("a body", "POST /sim/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999\r\n\r\n".to_owned(), 413),
        ("a head", format!("GET / HTTP/1.1\r\nhost: x\r\nx: {}", "y".repeat(200_000)), 431),
    ];
    for (name, start, status) in rows {
        let gateway = TestGateway::new().await;
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        stream.write_all(start.as_bytes()).await.unwrap();
        // The rejection is sent. The gateway needs no further bytes, but a reset of the connection would discard it.
        stream.peek(&mut [0]).await.unwrap();
        stream.write_all(&vec![b'y'; 16 << 20]).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        stream.shutdown().await.unwrap();
        let mut back = Vec::new();
        within(10, stream.read_to_end(&mut back)).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        let (answer, rest) = parse(&back).unwrap();
        assert_eq!((answer.status.as_u16(), rest.len(), calls(&gateway)), (status, 0, 0), "{name}");
    }
}

#[tokio::test]
async fn a_rejected_client_that_never_stops_sending_is_disconnected() {
    let gateway = TestGateway::new().await;
    let start = "POST /sim/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999\r\n\r\n";
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(start.as_bytes()).await.unwrap();
    let trickle = async {
        while stream.write_all(b"y").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    while_under_attack(&gateway, "a body that trickles after its rejection", trickle).await;
}
