//! Hostile clients over HTTP/1. The gateway rejects each with a definite response, or closes its connection. No byte of
//! the attack reaches the upstream, and meanwhile another client's hit is served without delay.
//!
//! `hostile_clients_http2.rs` has those over HTTP/2, `upstream/hostile_upstream.rs` the hostile upstreams.

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

/// Longest time of another client's hit, in the median. An undisturbed hit takes a thousandth, but tests share the
/// cores.
const MAX_HIT_TIME: Duration = Duration::from_secs(1);

/// Least number of hits that are requested during an attack.
const MIN_HITS: usize = 9;

/// Runs an attack while another client requests a cached job, each time on a new connection.
pub(crate) async fn while_under_attack<T>(
    gateway: &TestGateway,
    name: &str,
    attack: impl Future<Output = T>,
) -> T {
    gateway.sim.set_status("cached", "completed");
    gateway.get(&clip_target("cached", "completed"), &[]).await;
    let mut took = Vec::new();
    let hit = async |took: &mut Vec<Duration>| {
        let answer = gateway.get(&clip_target("cached", "completed"), &[]).await;
        assert!(answer.is_hit(), "{name}: {answer:?}");
        took.push(answer.took);
        tokio::time::sleep(Duration::from_millis(2)).await; // so that the hits are not an attack themselves
    };
    let hits = async {
        loop {
            hit(&mut took).await;
        }
    };
    let ended = tokio::select! {
        ended = within_secs(60, attack) => ended,
        never = hits => never,
    };
    while took.len() < MIN_HITS {
        hit(&mut took).await;
    }
    took.sort();
    let median = took[took.len() / 2];
    assert!(median < MAX_HIT_TIME, "{name}: a hit took {median:?} in the middle of {}", took.len());
    ended
}

/// Heads that two servers may read differently.
const MALFORMED: [(&str, &[u8]); 29] = [
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
    ("a version in lower case", b"GET /sim/echo http/1.1\r\nhost: x\r\n\r\n"),
    ("no version", b"GET /sim/echo\r\nhost: x\r\n\r\n"),
    ("a method that is not a token", b"G(T /sim/echo HTTP/1.1\r\nhost: x\r\n\r\n"),
    ("two targets", b"GET /sim/echo extra HTTP/1.1\r\nhost: x\r\n\r\n"),
    (
        "two lengths",
        b"POST /sim/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
    ),
    ("two lengths in one field", b"POST /sim/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 3, 3\r\n\r\nabc"),
    ("a length with a sign", b"POST /sim/echo HTTP/1.1\r\nhost: x\r\ncontent-length: +3\r\n\r\nabc"),
    ("a length below zero", b"POST /sim/echo HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n"),
    ("a length in hexadecimal", b"POST /sim/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 0x3\r\n\r\nabc"),
    (
        "a coding other than chunked",
        b"POST /sim/echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\nabc",
    ),
    (
        "a coding after chunked",
        b"POST /sim/echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    ),
    (
        "a coding that ends in chunked",
        b"POST /sim/echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "chunks in HTTP/1.0",
        b"POST /sim/echo HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "a coding that is not ASCII before chunked",
        b"POST /sim/echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: \xfc, chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "chunked and a byte that is not ASCII",
        b"POST /sim/echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\xfc\r\n\r\n0\r\n\r\n",
    ),
    (
        "chunked after a vertical tab",
        b"POST /sim/echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    ),
];

/// Heads without exactly one valid host.
const INVALID_HOSTS: [(&str, &[u8]); 4] = [
    ("no host", b"GET /sim/echo HTTP/1.1\r\nconnection: close\r\n\r\n"),
    ("two hosts", b"GET /sim/echo HTTP/1.1\r\nhost: x\r\nhost: y\r\nconnection: close\r\n\r\n"),
    ("the same host twice", b"GET /sim/echo HTTP/1.0\r\nhost: x\r\nhost: x\r\n\r\n"),
    ("a host with a user", b"GET /sim/echo HTTP/1.1\r\nhost: y@x\r\nconnection: close\r\n\r\n"),
];

#[tokio::test]
async fn a_malformed_head_is_400_counted_and_never_reaches_the_upstream() {
    let mut gateway = TestGateway::new().await;
    let admin = AdminClient::open(&mut gateway).await;
    let mut count = 0;
    // hyper answers a head that it cannot parse; the gateway answers one without a definite host.
    let rows = MALFORMED.iter().map(|row| (row, true)).chain(INVALID_HOSTS.iter().map(|row| (row, false)));
    for (&(name, head), is_bare) in rows {
        // Sends the same head as a wait too, which the gateway would answer itself.
        let text = String::from_utf8_lossy(head).into_owned();
        let wait = text.replacen("/sim/echo", &clip_target("cached", "completed"), 1);
        for head in [head, wait.as_bytes()] {
            let back = while_under_attack(&gateway, name, send_raw(gateway.address, head)).await;
            if is_bare {
                assert_bare_rejection(&back, 400);
            } else {
                let (answer, rest) = parse_response(&back).unwrap_or_else(|| panic!("{name}: {back:?}"));
                assert_gateway_error(&answer, 400, "bad-request");
                assert!(rest.is_empty(), "{name}: {:?}", String::from_utf8_lossy(rest));
            }
            assert_eq!(gateway.upstream_requests(), [clip_target("cached", "completed")], "{name}");
            count += 1;
        }
    }
    assert_eq!(count, 2 * 33);
    admin.assert_rejected(count).await;
}

#[tokio::test]
async fn a_body_with_a_coding_other_than_chunked_never_reaches_the_upstream() {
    let gateway = TestGateway::new().await;
    let rows = [
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: chunked, chunked",
        "transfer-encoding: identity, chunked",
        "transfer-encoding: gzip\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "transfer-encoding: \u{fc}\r\ntransfer-encoding: chunked",
    ];
    for field in rows {
        let head =
            format!("POST /sim/echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{field}\r\n\r\n0\r\n\r\n");
        let back = send_raw(gateway.address, head.as_bytes()).await;
        let (answer, rest) = parse_response(&back).unwrap();
        assert_gateway_error(&answer, 400, "bad-request");
        assert!(rest.is_empty(), "{field}");
        assert_eq!(upstream_request_count(&gateway), 0, "{field}");
    }
}

#[tokio::test]
async fn a_content_length_beside_chunks_smuggles_nothing() {
    let (length, chunked) = ("content-length: 5\r\n", "transfer-encoding: chunked\r\n");
    for fields in [[length, chunked], [chunked, length]] {
        let gateway = TestGateway::new().await;
        let head = format!("POST /sim/echo HTTP/1.1\r\nhost: x\r\n{}\r\n", fields.concat());
        let rest = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n";
        // RFC 9112, section 6.3: the chunks count, the length is removed, the connection ends.
        let back = send_raw(gateway.address, (head + rest).as_bytes()).await;
        let (answer, rest) = parse_response(&back).unwrap();
        assert_eq!((answer.status.as_u16(), field(&answer, "connection"), rest.len()), (200, "close", 0));
        let seen = gateway.sim.requests();
        assert_eq!((seen.len(), &*seen[0].target), (1, "/sim/echo"));
        assert!(!seen[0].headers.contains_key("content-length"));
    }
}

/// Uploads with malformed chunks. The upstream sees them end early, and the bytes after them are not a request.
const BROKEN_BODIES: [(&str, &str); 7] = [
    ("a chunk without a size", "\r\nabc"),
    ("a size without digits", "xyz\r\nabc\r\n0\r\n\r\n"),
    ("a size with a prefix", "0x3\r\nabc\r\n0\r\n\r\n"),
    ("a size below zero", "-1\r\nabc\r\n0\r\n\r\n"),
    ("a size above 64 bits", "fffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
    ("a chunk longer than its size", "3\r\nabcdef\r\n0\r\n\r\n"),
    ("a size that ends in a bare line feed", "3\nabc\r\n0\r\n\r\n"),
];

#[tokio::test]
async fn a_malformed_body_is_400_and_smuggles_nothing() {
    for (name, body) in BROKEN_BODIES {
        let gateway = TestGateway::new().await;
        let head = "POST /sim/echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
        let request = format!("{head}{body}GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n");
        let back = while_under_attack(&gateway, name, send_raw(gateway.address, request.as_bytes())).await;
        let (answer, rest) = parse_response(&back).unwrap_or_else(|| panic!("{name}: {back:?}"));
        assert_gateway_error(&answer, 400, "body-incomplete");
        assert!(rest.is_empty(), "{name}: {:?}", String::from_utf8_lossy(rest));
        gateway.wait_until(|seen| seen.requests.iter().all(|seen| seen.end != RequestEnd::Open)).await;
        let passed: Vec<_> =
            gateway.sim.requests().into_iter().filter(|seen| seen.method == "POST").collect();
        assert!(
            passed.iter().all(|seen| seen.end != RequestEnd::Answered(StatusCode::OK)),
            "{name}: {passed:?}"
        );
        assert_eq!((passed.len() <= 1, gateway.sim.observe().count("/smuggled")), (true, 0), "{name}");
    }
}

/// Sends `start`, then `piece` again and again until the gateway closes the connection. Returns the response and the
/// number of sent bytes.
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
async fn each_endless_part_of_a_request_is_cut_off_at_its_limit() {
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
    let mut gateway = TestGateway::with(|config, _| config.limits.max_body = 1 << 20).await;
    let admin = AdminClient::open(&mut gateway).await;
    let mut count = 0;
    for (name, start, piece, status) in rows {
        let (back, sent) = while_under_attack(&gateway, name, endless(&gateway, &start, piece)).await;
        let (answer, rest) = parse_response(&back).unwrap_or_else(|| panic!("{name}: {back:?} after {sent}"));
        assert_eq!((answer.status.as_u16(), rest.len()), (status, 0), "{name}");
        if status == 431 {
            assert_bare_rejection(&back, status);
        } else {
            assert!(field(&answer, "cache-status").starts_with("clipgate; detail="), "{name}");
        }
        // Bytes that the gateway still reads after the response, and the buffers of the system.
        assert!(sent < 128 << 20, "{name}: {sent} bytes were accepted");
        count += 1;
    }
    assert_eq!(count, 9);
    admin.assert_rejected(count).await;
}

/// Opens connections and sends `start` on each, then nothing. Returns the time until all of them were closed, and the
/// responses.
async fn open_slow(gateway: &TestGateway, count: usize, start: &'static str) -> (Duration, Vec<Vec<u8>>) {
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
    let gateway = TestGateway::with_stall_timeout(timeout).await;
    let rows = [
        ("nothing", ""),
        ("half a head", "GET / HTTP/1.1\r\nhost: x\r\nx: "),
        ("half a preface", "PRI * HTTP/2.0\r\n\r\nSM"),
        ("a preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("half a body", "POST /sim/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhalf"),
    ];
    let mut count = 0;
    for (name, start) in rows {
        let (took, backs) = while_under_attack(&gateway, name, open_slow(&gateway, 200, start)).await;
        // The other timeouts of the gateway are longer than ten times this one.
        assert!((timeout..10 * timeout).contains(&took), "{name}: {took:?}");
        let is_upload = start.starts_with("POST");
        for back in &backs {
            match parse_response(back) {
                Some((answer, _)) if is_upload => drop(assert_gateway_error(&answer, 408, "body-stalled")),
                _ => assert!(!is_upload && !back.starts_with(b"HTTP/1.1 2"), "{name}: {back:?}"),
            }
        }
        // An upload is streamed, so its first bytes reach the upstream. The others do not.
        let expected = if is_upload { 200 } else { 0 };
        assert_eq!((gateway.sim.observe().count("/sim/echo"), backs.len()), (expected, 200), "{name}");
        gateway.wait_until(|seen| seen.requests.iter().all(|seen| seen.end != RequestEnd::Open)).await;
        count += 1;
    }
    assert_eq!(count, 5);
}

#[tokio::test]
async fn a_client_rejected_in_the_middle_of_a_request_can_finish_it_and_read_the_response() {
    let rows = [
        ("a body", "POST /sim/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999\r\n\r\n".to_owned(), 413),
        ("a head", format!("GET / HTTP/1.1\r\nhost: x\r\nx: {}", "y".repeat(200_000)), 431),
    ];
    for (name, start, status) in rows {
        let gateway = TestGateway::new().await;
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        stream.write_all(start.as_bytes()).await.unwrap();
        // The response is sent. A reset of the connection would discard it, so the gateway reads on.
        stream.peek(&mut [0]).await.unwrap();
        stream.write_all(&vec![b'y'; 16 << 20]).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        stream.shutdown().await.unwrap();
        let mut back = Vec::new();
        within_secs(10, stream.read_to_end(&mut back))
            .await
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let (answer, rest) = parse_response(&back).unwrap();
        assert_eq!(
            (answer.status.as_u16(), rest.len(), upstream_request_count(&gateway)),
            (status, 0, 0),
            "{name}"
        );
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
