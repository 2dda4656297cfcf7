//! Hostile clients over HTTP/1: each is refused with a clear answer, or its connection closed; nothing of it reaches
//! the upstream; and while it goes on another client's hit is served at once.
//!
//! Over HTTP/2 they are in `floods.rs`, and the upstream is the hostile one in `treason.rs`.

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

/// Within which another client's hit is served, in the median: a thousand times what it takes where nothing is in its
/// way, for tests share the cores with each other.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Hits that are asked for during an attack, at least.
const LOOKS: usize = 9;

/// Lets an attack go on while another client asks for what is kept, each time on a new connection.
pub(crate) async fn while_under_attack<T>(
    gateway: &TestGateway,
    name: &str,
    attack: impl Future<Output = T>,
) -> T {
    gateway.sim.set_status("kept", "completed");
    gateway.get(&clip_target("kept", "completed"), &[]).await;
    let mut took = Vec::new();
    let look = async |took: &mut Vec<Duration>| {
        let answer = gateway.get(&clip_target("kept", "completed"), &[]).await;
        assert!(answer.is_hit(), "{name}: {answer:?}");
        took.push(answer.took);
        tokio::time::sleep(Duration::from_millis(2)).await; // it is no attack itself
    };
    let looking = async {
        loop {
            look(&mut took).await;
        }
    };
    let ended = tokio::select! {
        ended = within_secs(60, attack) => ended,
        never = looking => never,
    };
    while took.len() < LOOKS {
        look(&mut took).await;
    }
    took.sort();
    let median = took[took.len() / 2];
    assert!(median < AT_ONCE, "{name}: a hit took {median:?} in the middle of {}", took.len());
    ended
}

/// Heads that no two servers need read in the same way.
const MALFORMED: [(&str, &[u8]); 27] = [
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
    ("a version that is none", b"GET /sim/echo HTTP/9.9\r\nhost: x\r\n\r\n"),
    ("a version of three", b"GET /sim/echo HTTP/1.2.3\r\nhost: x\r\n\r\n"),
    ("a version in small letters", b"GET /sim/echo http/1.1\r\nhost: x\r\n\r\n"),
    ("no version", b"GET /sim/echo\r\nhost: x\r\n\r\n"),
    ("a method that is no token", b"G(T /sim/echo HTTP/1.1\r\nhost: x\r\n\r\n"),
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
async fn a_malformed_head_is_400_counted_and_never_reaches_the_upstream() {
    let mut gateway = TestGateway::new().await;
    let admin = AdminClient::open(&mut gateway).await;
    let mut count = 0;
    // hyper answers a head that it cannot parse; the gateway answers one without a definite host.
    let rows = MALFORMED.iter().map(|row| (row, true)).chain(DOUBTFUL_HOSTS.iter().map(|row| (row, false)));
    for (&(name, head), is_bare) in rows {
        // The same for a wait, which would be answered here.
        let text = String::from_utf8_lossy(head).into_owned();
        let wait = text.replacen("/sim/echo", &clip_target("kept", "completed"), 1);
        for head in [head, wait.as_bytes()] {
            let back = while_under_attack(&gateway, name, send_raw(gateway.address, head)).await;
            if is_bare {
                assert_bare_rejection(&back, 400);
            } else {
                let (answer, rest) = parse_response(&back).unwrap_or_else(|| panic!("{name}: {back:?}"));
                assert_gateway_error(&answer, 400, "bad-request");
                assert!(rest.is_empty(), "{name}: {:?}", String::from_utf8_lossy(rest));
            }
            assert_eq!(gateway.upstream_requests(), [clip_target("kept", "completed")], "{name}");
            count += 1;
        }
    }
    assert_eq!(count, 2 * 31);
    admin.assert_rejected(count).await;
}

#[tokio::test]
async fn a_body_that_is_coded_otherwise_than_in_chunks_never_reaches_the_upstream() {
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
        let back = send_raw(gateway.address, head.as_bytes()).await;
        let (answer, rest) = parse_response(&back).unwrap();
        assert_gateway_error(&answer, 400, "bad-request");
        assert!(rest.is_empty(), "{field}");
        assert_eq!(upstream_request_count(&gateway), 0, "{field}");
    }
}

#[tokio::test]
async fn a_length_beside_chunks_smuggles_nothing() {
    let (length, chunked) = ("content-length: 5\r\n", "transfer-encoding: chunked\r\n");
    for fields in [[length, chunked], [chunked, length]] {
        let gateway = TestGateway::new().await;
        let head = format!("POST /sim/echo HTTP/1.1\r\nhost: x\r\n{}\r\n", fields.concat());
        let rest = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n";
        // RFC 9112, section 6.3: the chunks count, the length goes no further, the connection ends.
        let back = send_raw(gateway.address, (head + rest).as_bytes()).await;
        let (answer, rest) = parse_response(&back).unwrap();
        assert_eq!((answer.status.as_u16(), field(&answer, "connection"), rest.len()), (200, "close", 0));
        let seen = gateway.sim.requests();
        assert_eq!((seen.len(), &*seen[0].target), (1, "/sim/echo"));
        assert!(!seen[0].headers.contains_key("content-length"));
    }
}

/// Uploads that break HTTP after their head: what came of them ends at the upstream, and what follows is no request.
const BROKEN_BODIES: [(&str, &str); 7] = [
    ("a chunk without a size", "\r\nabc"),
    ("a size that is none", "xyz\r\nabc\r\n0\r\n\r\n"),
    ("a size with a prefix", "0x3\r\nabc\r\n0\r\n\r\n"),
    ("a size below zero", "-1\r\nabc\r\n0\r\n\r\n"),
    ("a size over all bounds", "fffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
    ("a chunk longer than its size", "3\r\nabcdef\r\n0\r\n\r\n"),
    ("a size that ends in a bare line feed", "3\nabc\r\n0\r\n\r\n"),
];

#[tokio::test]
async fn a_body_that_breaks_http_is_400_and_smuggles_nothing() {
    for (name, body) in BROKEN_BODIES {
        let gateway = TestGateway::new().await;
        let head = "POST /sim/echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
        let wire = format!("{head}{body}GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n");
        let back = while_under_attack(&gateway, name, send_raw(gateway.address, wire.as_bytes())).await;
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

/// Sends this for ever, until the other side has had enough; what came back, and how many bytes it took.
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
async fn what_has_no_end_is_cut_off_at_its_bound() {
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
        // What is read on after the refusal, and what the system's buffers hold.
        assert!(sent < 128 << 20, "{name}: {sent} bytes were taken");
        count += 1;
    }
    assert_eq!(count, 9);
    admin.assert_rejected(count).await;
}

/// Opens so many connections and sends this on each, then nothing; how long it took until all of them were closed, and
/// what came back on them.
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
async fn slow_clients_are_gone_after_their_time() {
    let patience = Duration::from_secs(1);
    let gateway = TestGateway::with_stall_timeout(patience).await;
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
        // Two hundred connections may take a while; another time-out of the gateway's is longer still.
        assert!((patience..10 * patience).contains(&took), "{name}: {took:?}");
        let is_upload = start.starts_with("POST");
        for back in &backs {
            match parse_response(back) {
                Some((answer, _)) if is_upload => drop(assert_gateway_error(&answer, 408, "body-stalled")),
                _ => assert!(!is_upload && !back.starts_with(b"HTTP/1.1 2"), "{name}: {back:?}"),
            }
        }
        // The upload streams, so the upstream has seen its beginning; all else has reached nobody.
        let expected = if is_upload { 200 } else { 0 };
        assert_eq!((gateway.sim.observe().count("/sim/echo"), backs.len()), (expected, 200), "{name}");
        gateway.wait_until(|seen| seen.requests.iter().all(|seen| seen.end != RequestEnd::Open)).await;
        count += 1;
    }
    assert_eq!(count, 5);
}

#[tokio::test]
async fn who_is_refused_in_the_middle_of_a_request_may_finish_it_and_read_why() {
    let rows = [
        ("a body", "POST /sim/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999\r\n\r\n".to_owned(), 413),
        ("a head", format!("GET / HTTP/1.1\r\nhost: x\r\nx: {}", "y".repeat(200_000)), 431),
    ];
    for (name, start, status) in rows {
        let gateway = TestGateway::new().await;
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        stream.write_all(start.as_bytes()).await.unwrap();
        // The refusal is out: from now on nobody needs what comes, but a connection that is reset takes it back.
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
async fn who_is_refused_and_goes_on_for_ever_is_not_listened_to_for_ever() {
    let gateway = TestGateway::new().await;
    let start = "POST /sim/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999\r\n\r\n";
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(start.as_bytes()).await.unwrap();
    let trickle = async {
        while stream.write_all(b"y").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    while_under_attack(&gateway, "a body that trickles after its refusal", trickle).await;
}
