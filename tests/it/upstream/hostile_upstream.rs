//! A hostile upstream: its clients get a clear answer, the gateway's memory stays what it was, and while it goes on
//! another client's hit is served at once.

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

/// What a clip's body begins with.
const CLIP: &str = "{\"id\":\"a\",\"status\":\"complete\",\"x\":";

/// How long an upstream has at least for a poll, or for the head of what is passed through. [`besieged`] bounds the time
/// from above, by a minute.
const LIMIT: Duration = Duration::from_secs(2);

/// A gateway before this upstream: the upstream holds polls for a second, and each is tried twice.
async fn before(rogue: &RawUpstream) -> TestGateway {
    TestGateway::without_upstream(|config, options| {
        set_hold(Duration::from_secs(1), config, options);
        config.upstream.base_url = rogue.url.clone();
        config.upstream.connect_timeout = Duration::from_secs(1);
        config.upstream.retries = 1;
        config.upstream.retry_for = Duration::ZERO;
        config.wait.max_timeout = Duration::from_secs(1);
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_no_http_is_502() {
    let ok = |rest: &str| format!("{OK}{rest}");
    let rows: [(&str, String, AfterHead); 15] = [
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
        let rogue = RawUpstream::start(&head, then).await;
        let stage = before(&rogue).await;
        let waited = while_under_attack(&stage, name, stage.get(&clip_target("a", "completed"), &[])).await;
        let passed = while_under_attack(&stage, name, stage.get("/other", &[])).await;
        let (of_wait, of_passed, asked) = match name {
            "a switch unasked" => ("invalid-upstream-response", "invalid-upstream-response", 3),
            _ => ("unreachable", "upstream-reset", 2),
        };
        assert_gateway_error(&waited, 502, of_wait);
        assert_gateway_error(&passed, 502, of_passed);
        assert_eq!(
            rogue.request_count(),
            asked,
            "{name}: an error is asked for twice, all else goes out once"
        );
        count += 1;
    }
    assert_eq!(count, 15);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_whose_answer_has_no_end_or_breaks_is_502_and_little_is_read_of_it() {
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
        let rogue = RawUpstream::start(&head, then).await;
        let stage = before(&rogue).await;
        let answer = while_under_attack(&stage, name, stage.get(&clip_target("a", "completed"), &[])).await;
        assert_gateway_error(&answer, 502, reason);
        // 8 MiB an attempt, and what is on its way.
        let attempts = if reason == "invalid-upstream-response" { 2 } else { 1 };
        assert!(
            rogue.request_count() == attempts && rogue.body_bytes_sent() < 64 << 20,
            "{name}: {} {}",
            rogue.request_count(),
            rogue.body_bytes_sent()
        );
        count += 1;
    }
    assert_eq!(count, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_that_breaks_off_arrives_as_it_is() {
    let body = format!("{CLIP}{}", "[".repeat(100_000));
    let rogue = RawUpstream::start(&format!("{OK}\r\n"), AfterHead::Bytes(body.clone().into())).await;
    let stage = before(&rogue).await;
    let answer = while_under_attack(&stage, "depth", stage.get(&clip_target("a", "completed"), &[])).await;
    assert!(answer.status == 200 && answer.body == body, "{}", answer.status);
    assert_eq!(rogue.request_count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_of_any_depth_arrives_as_it_is() {
    for (open, close) in [("[", "]"), ("{\"id\":", "}"), ("[{\"status\":", "}]")] {
        let body = format!("{CLIP}{}1{}}}", open.repeat(100_000), close.repeat(100_000));
        let rogue = RawUpstream::start(&format!("{OK}\r\n"), AfterHead::Bytes(body.clone().into())).await;
        let stage = before(&rogue).await;
        for _ in 0..2 {
            let answer =
                while_under_attack(&stage, "depth", stage.get(&clip_target("a", "completed"), &[])).await;
            assert_eq!(answer.status, 200);
            assert!(answer.body == body);
        }
        assert_eq!(rogue.request_count(), 1, "the second one was a hit");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_never_answers_is_504_after_its_limit() {
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
            let rogue = RawUpstream::start(&head, then).await;
            let stage = before(&rogue).await;
            let answer =
                while_under_attack(&stage, name, stage.get(&clip_target("a", "completed"), &[])).await;
            assert_gateway_error(&answer, 504, "upstream-timeout");
            assert!(answer.took >= LIMIT, "{name}: {:?}", answer.took);
            assert!(
                rogue.request_count() <= 4,
                "{name}: two tries, two looks at the deadline: {}",
                rogue.request_count()
            );
            // What has a head streams, for as long as it likes.
            if !head.contains("\r\n\r\n") {
                let answer = while_under_attack(&stage, name, stage.get("/other", &[])).await;
                assert_gateway_error(&answer, 504, "upstream-timeout");
                assert!(answer.took >= LIMIT, "{name}: {:?}", answer.took);
            }
        });
    }
    assert_eq!(cases.join_all().await.len(), 5);
}

/// The codec would read them until the time limit, and nothing else beside them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interim_responses_without_end_are_502_at_once() {
    for interim in ["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"] {
        let rogue = RawUpstream::start("", AfterHead::Endless(interim.repeat(10).into())).await;
        let stage = before(&rogue).await;
        for target in [clip_target("a", "completed"), "/other".to_owned()] {
            let answer = while_under_attack(&stage, interim, stage.get(&target, &[])).await;
            assert_gateway_error(&answer, 502, "invalid-upstream-response");
        }
    }
}

#[tokio::test]
async fn an_answer_that_nobody_asked_for_is_nobodys() {
    let two =
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison";
    let rogue = RawUpstream::start(two, AfterHead::Silence).await;
    let stage = before(&rogue).await;
    for asked in 1..=20 {
        let answer = stage.get("/other", &[]).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.body[..], rogue.request_count()),
            (200, &b"{}"[..], asked)
        );
    }
}

#[tokio::test]
async fn a_gateway_that_is_its_own_upstream_says_508() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let stage = TestGateway::without_upstream(|config, options| {
        set_hold(Duration::from_secs(60), config, options);
        config.upstream.base_url = url.parse().unwrap();
        config.upstream.retries = 1;
    })
    .await;
    let address = stage.address;
    let _round = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            let (mut there, _) = listener.accept().await.unwrap();
            let mut back = TcpStream::connect(address).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut there, &mut back).await });
        }
    }));
    for target in ["/other".to_owned(), clip_target("a", "completed")] {
        let answer = stage.get(&target, &[]).await;
        assert_eq!(answer.status, 508, "{answer:?}");
        assert!(
            String::from_utf8_lossy(&answer.body).contains("the request came from this gateway"),
            "{answer:?}"
        );
    }
}

/// How much memory may come and go, in kB: some buffers for each of 21 connections.
const MORE: u64 = 40_000;

#[tokio::test]
async fn a_body_without_end_streams_and_memory_stays_what_it_was() {
    let chunk = [b"10000\r\n", &[b'x'; 0x10000][..], b"\r\n"].concat();
    let rogue = RawUpstream::start(CHUNKED, AfterHead::Endless(chunk.into())).await;
    let ground = TestEnv::new().await;
    ground.configure("");
    let mut command = ground.command();
    command.env("CLIPGATE__UPSTREAM__BASE_URL", rogue.url.to_string());
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
    rogue.wait_until_requests(21).await;
    // Until all that can be held on the way is held.
    let mut sent = 0;
    while sent != rogue.body_bytes_sent() {
        sent = rogue.body_bytes_sent();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(gateway.resident() < before + MORE, "{} kB after {before}", gateway.resident());
    drop((read, unread));
    rogue.wait_until_closed(21).await;
}
