//! A request without a body is a wait, however its head says that there is none.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt as _, Channel};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use crate::harness::gateway::{Answer, TestGateway, clip_target};
use crate::harness::raw_http::{
    assert_gateway_error, parse_response, read_until, send_raw, upstream_request_count,
};
use crate::harness::scripted_upstream::ScriptedUpstream;

/// How HTTP/1 clients say that a GET has no body.
const EMPTY: [&str; 4] = [
    "\r\n",
    "content-length: 0\r\n\r\n",
    "transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "transfer-encoding: chunked\r\n\r\n00;some=extension\r\n\r\n",
];

fn head(target: &str, rest: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer demo\r\nconnection: close\r\n{rest}")
}

async fn ask(stage: &TestGateway, rest: &str) -> Answer {
    let back = send_raw(stage.address, head(&clip_target("a", "completed"), rest).as_bytes()).await;
    parse_response(&back).unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&back))).0
}

#[tokio::test]
async fn a_get_with_a_content_length_of_0_or_an_empty_chunked_body_is_a_wait() {
    let stage = TestGateway::with_hold(Duration::from_secs(60)).await;
    stage.sim.set_status("a", "queued");
    let asks = EMPTY.map(|rest| {
        let (address, head) = (stage.address, head(&clip_target("a", "completed"), rest));
        AbortOnDropHandle::new(tokio::spawn(async move { send_raw(address, head.as_bytes()).await }))
    });
    stage.wait_until_parked(EMPTY.len()).await;
    stage.sim.set_status("a", "completed");
    for ask in asks {
        let back = ask.await.unwrap();
        let (answer, _) = parse_response(&back).unwrap();
        assert_eq!((answer.status.as_u16(), answer.body), (200, stage.sim.body("a", "completed")));
    }
    assert_eq!(stage.upstream_requests(), [clip_target("a", "completed")], "one poll for all");
    for rest in EMPTY {
        assert!(ask(&stage, rest).await.is_hit(), "{rest:?}");
    }
}

#[tokio::test]
async fn an_http2_stream_that_ends_after_its_head_without_a_byte_is_a_wait() {
    let stage = TestGateway::new().await;
    stage.sim.set_status("a", "completed");
    assert!(ask(&stage, EMPTY[0]).await.is_opener());
    let socket = TokioIo::new(TcpStream::connect(stage.address).await.unwrap());
    let (mut streams, connection) = http2::handshake(TokioExecutor::new(), socket).await.unwrap();
    let _connection = AbortOnDropHandle::new(tokio::spawn(async { drop(connection.await) }));
    for frames in [0, 1, 3] {
        let (mut sender, body) = Channel::<Bytes>::new(1);
        let request = Request::get(format!("http://x{}", clip_target("a", "completed")))
            .header("authorization", "Bearer demo")
            .body(body)
            .unwrap();
        let asked = tokio::spawn(streams.send_request(request));
        for _ in 0..frames {
            sender.send(Frame::data(Bytes::new())).await.unwrap();
        }
        drop(sender);
        let answer = asked.await.unwrap().unwrap();
        let status = answer.headers()["cache-status"].to_str().unwrap().to_owned();
        assert!(status.starts_with("clipgate; hit; "), "{frames} empty frames: {status}");
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), stage.sim.body("a", "completed"));
    }
    assert_eq!(upstream_request_count(&stage), 1);
}

#[tokio::test]
async fn a_get_with_a_body_is_passed_through_with_every_byte_of_it() {
    let chunked = "transfer-encoding: chunked\r\n\r\n";
    let rows = [
        (format!("{chunked}1\r\nx\r\n2\r\nyz\r\n0\r\n\r\n"), "\r\n\r\n1\r\nx\r\n2\r\nyz\r\n0\r\n\r\n"),
        ("content-length: 3\r\n\r\nxyz".to_owned(), "\r\n\r\nxyz"),
        (format!("trailer: x-sum\r\n{chunked}0\r\nx-sum: 1\r\n\r\n"), "\r\n\r\n0\r\nx-sum: 1\r\n\r\n"),
    ];
    for (rest, body) in rows {
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        let mut upstream = ScriptedUpstream::answering_after(body, answer).await;
        let url = upstream.url.clone();
        let stage = TestGateway::without_upstream(|config, _| config.upstream.base_url = url).await;
        let answer = ask(&stage, &rest).await;
        assert_eq!(answer.field("cache-status"), "clipgate; fwd=bypass", "{rest:?}");
        let seen = upstream.next_request().await;
        assert!(
            seen.starts_with(&format!("GET {} ", clip_target("a", "completed"))) && seen.ends_with(body),
            "{seen}"
        );
    }
}

#[tokio::test]
async fn a_client_that_owes_the_end_of_its_body_holds_no_wait_and_has_the_time_of_an_upload() {
    let stage = TestGateway::with_stall_timeout(Duration::from_secs(1)).await;
    stage.sim.set_status("a", "queued");
    let mut stream = TcpStream::connect(stage.address).await.unwrap();
    let head = head(&clip_target("a", "completed"), "transfer-encoding: chunked\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let back = read_until(&mut stream, |back| parse_response(back).is_some()).await;
    assert_gateway_error(&parse_response(&back).unwrap().0, 408, "body-stalled");
    assert_eq!(upstream_request_count(&stage), 0, "the upstream is spared");
    stage.wait_until_parked(0).await;
}

#[tokio::test]
async fn a_body_that_breaks_off_before_its_first_byte_reaches_nobody() {
    let stage = TestGateway::new().await;
    stage.sim.set_status("a", "queued");
    let answer = ask(&stage, "transfer-encoding: chunked\r\n\r\nno-number\r\n").await;
    assert_gateway_error(&answer, 400, "body-incomplete");
    assert_eq!(upstream_request_count(&stage), 0);
}

#[tokio::test]
async fn a_client_that_hangs_up_after_an_empty_body_ends_its_wait() {
    let stage = TestGateway::with_hold(Duration::from_secs(60)).await;
    stage.sim.set_status("a", "queued");
    for rest in EMPTY {
        let mut stream = TcpStream::connect(stage.address).await.unwrap();
        stream.write_all(head(&clip_target("a", "completed"), rest).as_bytes()).await.unwrap();
        stage.wait_until_parked(1).await;
        drop(stream);
        stage.wait_until_parked(0).await;
    }
}

/// The body's end is awaited with what was known of the key when the head came. A 401 that came meanwhile voids that.
#[tokio::test]
async fn a_key_that_is_revoked_while_a_body_is_awaited_is_told_nothing_that_is_kept() {
    let stage = TestGateway::new().await;
    stage.sim.set_status("a", "completed");
    assert!(ask(&stage, EMPTY[0]).await.is_opener());
    let mut stream = TcpStream::connect(stage.address).await.unwrap();
    let rest = "expect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head(&clip_target("a", "completed"), rest).as_bytes()).await.unwrap();
    let interim = b"HTTP/1.1 100 Continue\r\n\r\n";
    read_until(&mut stream, |back| back == interim).await; // the gateway has the head and asks for the body

    stage.sim.accept_keys(Some(&["another".to_owned()]));
    assert_eq!(ask(&stage, "cache-control: no-cache\r\n\r\n").await.status, 401);
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let back = read_until(&mut stream, |back| parse_response(back).is_some()).await;
    let (answer, _) = parse_response(&back).unwrap();
    assert_eq!((answer.status.as_u16(), answer.is_hit()), (401, false), "{}", String::from_utf8_lossy(&back));
}
