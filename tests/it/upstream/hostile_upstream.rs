//! Hostile upstream. Clients get a clear error, the gateway's memory does not grow, and other clients' hits are
//! served at once meanwhile.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::clients::hostile_clients_http1::while_under_attack;
use crate::harness::gateway::{TestGateway, clip_target, set_hold, within_secs};
use crate::harness::process::TestEnv;
use crate::harness::raw_http::assert_gateway_error;
use crate::harness::raw_upstream::{AfterHead, RawUpstream};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

/// Start of a job's body.
const CLIP: &str = "{\"id\":\"a\",\"status\":\"complete\",\"x\":";

/// Least time that the gateway gives a poll, or the head of a passed-through response. [`while_under_attack`] bounds
/// the time from above, by a minute.
const LIMIT: Duration = Duration::from_secs(2);

/// Returns a gateway in front of this upstream. Polls are held for a second and attempted twice.
async fn gateway_with(raw_upstream: &RawUpstream) -> TestGateway {
    TestGateway::without_upstream(|config, options| {
        set_hold(Duration::from_secs(1), config, options);
        config.upstream.base_url = raw_upstream.url.clone();
        config.upstream.connect_timeout = Duration::from_secs(1);
        config.upstream.retries = 1;
        config.upstream.retry_for = Duration::ZERO;
        config.wait.max_timeout = Duration::from_secs(1);
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_that_is_not_http_is_502() {
    let ok = |rest: &str| format!("{OK}{rest}");
    let rows: [(&str, String, AfterHead); 16] = [
        ("no HTTP", "\0\x01\x02SSH-2.0\r\n\r\n".to_owned(), AfterHead::Silence),
        ("HTTP/0.9", "{}".to_owned(), AfterHead::Bytes(Bytes::new())),
        ("text without end", String::new(), AfterHead::Endless("x".repeat(10_000).into())),
        ("fields without end", ok(""), AfterHead::Endless("x: y\r\n".repeat(1000).into())),
        ("a field without end", ok("x: "), AfterHead::Endless("y".repeat(10_000).into())),
        ("two lengths", ok("content-length: 2\r\ncontent-length: 3\r\n\r\n{}x"), AfterHead::Silence),
        (
            "a length over all bounds",
            ok("content-length: 99999999999999999999999\r\n\r\n"),
            AfterHead::Silence,
        ),
        ("a length that is none", ok("content-length: 0x2\r\n\r\n{}"), AfterHead::Silence),
        (
            "codings that are not names",
            ok("transfer-encoding: \u{fc}, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"),
            AfterHead::Silence,
        ),
        ("a NUL in a field", ok("x: a\0b\r\ncontent-length: 2\r\n\r\n{}"), AfterHead::Silence),
        ("a bare CR in a field", ok("x: a\rb\r\ncontent-length: 2\r\n\r\n{}"), AfterHead::Silence),
        (
            "a status that is none",
            "HTTP/1.1 000 X\r\ncontent-length: 0\r\n\r\n".to_owned(),
            AfterHead::Silence,
        ),
        (
            "a switch unasked",
            "HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n".to_owned(),
            AfterHead::Silence,
        ),
        ("half a head", ok(""), AfterHead::Bytes(Bytes::new())),
        ("nothing", String::new(), AfterHead::Bytes(Bytes::new())),
        (
            "an interim answer, then nothing",
            "HTTP/1.1 100 Continue\r\n\r\n".to_owned(),
            AfterHead::Bytes(Bytes::new()),
        ),
    ];
    let mut count = 0;
    for (name, head, then) in rows {
        let raw_upstream = RawUpstream::start(&head, then).await;
        let gateway = gateway_with(&raw_upstream).await;
        let waited =
            while_under_attack(&gateway, name, gateway.get(&clip_target("a", "completed"), &[])).await;
        let passed = while_under_attack(&gateway, name, gateway.get("/other", &[])).await;
        let (of_wait, of_passed, expected) = match name {
            "a switch unasked" => ("invalid-upstream-response", "invalid-upstream-response", 3),
            _ => ("unreachable", "upstream-reset", 2),
        };
        assert_gateway_error(&waited, 502, of_wait);
        assert_gateway_error(&passed, 502, of_passed);
        assert_eq!(
            raw_upstream.request_count(),
            expected,
            "{name}: an error is expected for twice, all else goes out once"
        );
        count += 1;
    }
    assert_eq!(count, 16);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_or_broken_response_to_a_poll_is_502_and_the_gateway_reads_little_of_it() {
    let rows: [(&str, String, AfterHead, &str); 5] = [
        (
            "no end",
            format!("{OK}\r\n"),
            AfterHead::Endless("y".repeat(65_536).into()),
            "invalid-upstream-response",
        ),
        (
            "JSON without end",
            format!("{OK}\r\n{CLIP}\""),
            AfterHead::Endless("y".repeat(65_536).into()),
            "invalid-upstream-response",
        ),
        ("a chunk's size that is none", format!("{CHUNKED}zz\r\n"), AfterHead::Silence, "unreachable"),
        (
            "a chunk's extension without end",
            format!("{CHUNKED}3;"),
            AfterHead::Endless("y".repeat(65_536).into()),
            "unreachable",
        ),
        (
            "trailers without end",
            format!("{CHUNKED}0\r\n"),
            AfterHead::Endless("x: y\r\n".repeat(1000).into()),
            "unreachable",
        ),
    ];
    let mut count = 0;
    for (name, head, then, reason) in rows {
        let raw_upstream = RawUpstream::start(&head, then).await;
        let gateway = gateway_with(&raw_upstream).await;
        let answer =
            while_under_attack(&gateway, name, gateway.get(&clip_target("a", "completed"), &[])).await;
        assert_gateway_error(&answer, 502, reason);
        // 8 MiB, and bytes in transit.
        assert!(
            raw_upstream.request_count() == 1 && raw_upstream.body_bytes_sent() < 64 << 20,
            "{name}: {} {}",
            raw_upstream.request_count(),
            raw_upstream.body_bytes_sent()
        );
        count += 1;
    }
    assert_eq!(count, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn truncated_json_reaches_the_client_unchanged() {
    let body = format!("{CLIP}{}", "[".repeat(100_000));
    let raw_upstream = RawUpstream::start(&format!("{OK}\r\n"), AfterHead::Bytes(body.clone().into())).await;
    let gateway = gateway_with(&raw_upstream).await;
    let answer =
        while_under_attack(&gateway, "depth", gateway.get(&clip_target("a", "completed"), &[])).await;
    assert!(answer.status == 200 && answer.body == body, "{}", answer.status);
    assert_eq!(raw_upstream.request_count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_of_any_depth_reaches_the_client_unchanged() {
    for (open, close) in [("[", "]"), ("{\"id\":", "}"), ("[{\"status\":", "}]")] {
        let body = format!("{CLIP}{}1{}}}", open.repeat(100_000), close.repeat(100_000));
        let raw_upstream =
            RawUpstream::start(&format!("{OK}\r\n"), AfterHead::Bytes(body.clone().into())).await;
        let gateway = gateway_with(&raw_upstream).await;
        for _ in 0..2 {
            let answer =
                while_under_attack(&gateway, "depth", gateway.get(&clip_target("a", "completed"), &[])).await;
            assert_eq!(answer.status, 200);
            assert!(answer.body == body);
        }
        assert_eq!(raw_upstream.request_count(), 1, "the second one was a hit");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_never_answers_is_504_after_the_time_limit() {
    let rows: [(&str, String, AfterHead); 5] = [
        ("nothing", String::new(), AfterHead::Silence),
        ("half a head", OK.to_owned(), AfterHead::Silence),
        ("a head alone", format!("{OK}content-length: 9\r\n\r\n"), AfterHead::Silence),
        ("a length of 100 GB", format!("{OK}content-length: 99999999999\r\n\r\n{CLIP}"), AfterHead::Silence),
        ("tiny chunks", CHUNKED.to_owned(), AfterHead::Endless("1\r\n \r\n".into())),
    ];
    let mut cases = JoinSet::new();
    for (name, head, then) in rows {
        cases.spawn(async move {
            let raw_upstream = RawUpstream::start(&head, then).await;
            let gateway = gateway_with(&raw_upstream).await;
            let answer =
                while_under_attack(&gateway, name, gateway.get(&clip_target("a", "completed"), &[])).await;
            assert_gateway_error(&answer, 504, "upstream-timeout");
            assert!(answer.took >= LIMIT, "{name}: {:?}", answer.took);
            assert!(
                raw_upstream.request_count() <= 4,
                "{name}: two attempts, two snapshots at the deadline: {}",
                raw_upstream.request_count()
            );
            // A response with a head streams for as long as the upstream likes.
            if !head.contains("\r\n\r\n") {
                let answer = while_under_attack(&gateway, name, gateway.get("/other", &[])).await;
                assert_gateway_error(&answer, 504, "upstream-timeout");
                assert!(answer.took >= LIMIT, "{name}: {:?}", answer.took);
            }
        });
    }
    assert_eq!(cases.join_all().await.len(), 5);
}

/// hyper would read them until the time limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_interim_responses_are_502_at_once() {
    for interim in ["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"] {
        let raw_upstream = RawUpstream::start("", AfterHead::Endless(interim.repeat(10).into())).await;
        let gateway = gateway_with(&raw_upstream).await;
        for target in [clip_target("a", "completed"), "/other".to_owned()] {
            let answer = while_under_attack(&gateway, interim, gateway.get(&target, &[])).await;
            assert_gateway_error(&answer, 502, "invalid-upstream-response");
        }
    }
}

#[tokio::test]
async fn a_response_without_a_request_reaches_no_client() {
    let two =
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison";
    let raw_upstream = RawUpstream::start(two, AfterHead::Silence).await;
    let gateway = gateway_with(&raw_upstream).await;
    for expected in 1..=20 {
        let answer = gateway.get("/other", &[]).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.body[..], raw_upstream.request_count()),
            (200, &b"{}"[..], expected)
        );
    }
}

#[tokio::test]
async fn a_gateway_that_is_its_own_upstream_answers_508() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let gateway = TestGateway::without_upstream(|config, options| {
        set_hold(Duration::from_secs(60), config, options);
        config.upstream.base_url = url.parse().unwrap();
        config.upstream.retries = 1;
    })
    .await;
    let address = gateway.address;
    let _round = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            let (mut there, _) = listener.accept().await.unwrap();
            let mut back = TcpStream::connect(address).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut there, &mut back).await });
        }
    }));
    for target in ["/other".to_owned(), clip_target("a", "completed")] {
        let answer = gateway.get(&target, &[]).await;
        assert_eq!(answer.status, 508, "{answer:?}");
        assert!(
            String::from_utf8_lossy(&answer.body).contains("the request came from this gateway"),
            "{answer:?}"
        );
    }
}

/// Memory that may come and go, in kB: some buffers for each of 21 connections.
const MORE: u64 = 40_000;

#[tokio::test]
async fn an_endless_body_streams_in_constant_memory() {
    let chunk = [b"10000\r\n", &[b'x'; 0x10000][..], b"\r\n"].concat();
    let raw_upstream = RawUpstream::start(CHUNKED, AfterHead::Endless(chunk.into())).await;
    let env = TestEnv::new().await;
    env.configure("");
    let mut command = env.command();
    command.env("CLIPGATE__UPSTREAM__BASE_URL", raw_upstream.url.to_string());
    let mut gateway = crate::harness::process::GatewayProcess::spawn(command);
    let address = gateway.address().await;
    let ask = async || {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        stream
    };
    let mut read = ask().await;
    let mut sink = vec![0; 1 << 20];
    let mut take = async |megabytes: usize| {
        let mut left = megabytes << 20;
        while left > 0 {
            left = left.saturating_sub(within_secs(10, read.read(&mut sink)).await.unwrap());
        }
    };
    take(20).await;
    let before = gateway.resident();
    take(500).await;
    assert!(gateway.resident() < before + MORE, "{} kB after {before}", gateway.resident());

    let mut unread = Vec::new();
    for _ in 0..20 {
        unread.push(ask().await);
    }
    raw_upstream.wait_until_requests(21).await;
    // Until all buffers on the way are full.
    let mut sent = 0;
    while sent != raw_upstream.body_bytes_sent() {
        sent = raw_upstream.body_bytes_sent();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(gateway.resident() < before + MORE, "{} kB after {before}", gateway.resident());
    drop((read, unread));
    raw_upstream.wait_until_closed(21).await;
}
