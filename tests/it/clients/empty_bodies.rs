//! A request with an empty body is a wait, in every form of an empty body.

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

/// The forms of an empty body in HTTP/1.
const EMPTY: [&str; 4] = [
    "\r\n",
    "content-length: 0\r\n\r\n",
    "transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "transfer-encoding: chunked\r\n\r\n00;some=extension\r\n\r\n",
];

fn head(target: &str, rest: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer demo\r\nconnection: close\r\n{rest}")
}

async fn ask(gateway: &TestGateway, rest: &str) -> Answer {
    let back = send_raw(gateway.address, head(&clip_target("a", "completed"), rest).as_bytes()).await;
    parse_response(&back).unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&back))).0
}

#[tokio::test]
async fn a_get_with_a_content_length_of_0_or_an_empty_chunked_body_is_a_wait() {
    let gateway = TestGateway::with_hold(Duration::from_secs(60)).await;
    gateway.sim.set_status("a", "queued");
    let waits = EMPTY.map(|rest| {
        let (address, head) = (gateway.address, head(&clip_target("a", "completed"), rest));
        AbortOnDropHandle::new(tokio::spawn(async move { send_raw(address, head.as_bytes()).await }))
    });
    gateway.wait_until_parked(EMPTY.len()).await;
    gateway.sim.set_status("a", "completed");
    for wait in waits {
        let back = wait.await.unwrap();
        let (answer, _) = parse_response(&back).unwrap();
        assert_eq!((answer.status.as_u16(), answer.body), (200, gateway.sim.body("a", "completed")));
    }
    assert_eq!(gateway.upstream_requests(), [clip_target("a", "completed")], "one poll for all");
    for rest in EMPTY {
        assert!(ask(&gateway, rest).await.is_hit(), "{rest:?}");
    }
}

#[tokio::test]
async fn an_http2_stream_without_body_bytes_is_a_wait() {
    let gateway = TestGateway::new().await;
    gateway.sim.set_status("a", "completed");
    assert!(ask(&gateway, EMPTY[0]).await.is_opener());
    let socket = TokioIo::new(TcpStream::connect(gateway.address).await.unwrap());
    let (mut streams, connection) = http2::handshake(TokioExecutor::new(), socket).await.unwrap();
    let _connection = AbortOnDropHandle::new(tokio::spawn(async { drop(connection.await) }));
    for frames in [0, 1, 3] {
        let (mut sender, body) = Channel::<Bytes>::new(1);
        let request = Request::get(format!("http://x{}", clip_target("a", "completed")))
            .header("authorization", "Bearer demo")
            .body(body)
            .unwrap();
        let response = tokio::spawn(streams.send_request(request));
        for _ in 0..frames {
            sender.send(Frame::data(Bytes::new())).await.unwrap();
        }
        drop(sender);
        let answer = response.await.unwrap().unwrap();
        let status = answer.headers()["cache-status"].to_str().unwrap().to_owned();
        assert!(status.starts_with("clipgate; hit; "), "{frames} empty frames: {status}");
        assert_eq!(
            answer.into_body().collect().await.unwrap().to_bytes(),
            gateway.sim.body("a", "completed")
        );
    }
    assert_eq!(upstream_request_count(&gateway), 1);
}

#[tokio::test]
async fn a_get_with_a_body_is_passed_through_unchanged() {
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
        let gateway = TestGateway::without_upstream(|config, _| config.upstream.base_url = url).await;
        let answer = ask(&gateway, &rest).await;
        assert_eq!(answer.field("cache-status"), "clipgate; fwd=bypass", "{rest:?}");
        let seen = upstream.next_request().await;
        assert!(
            seen.starts_with(&format!("GET {} ", clip_target("a", "completed"))) && seen.ends_with(body),
            "{seen}"
        );
    }
}

#[tokio::test]
async fn an_unfinished_body_holds_no_wait_and_has_the_timeout_of_an_upload() {
    let gateway = TestGateway::with_stall_timeout(Duration::from_secs(1)).await;
    gateway.sim.set_status("a", "queued");
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let head = head(&clip_target("a", "completed"), "transfer-encoding: chunked\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let back = read_until(&mut stream, |back| parse_response(back).is_some()).await;
    assert_gateway_error(&parse_response(&back).unwrap().0, 408, "body-stalled");
    assert_eq!(upstream_request_count(&gateway), 0, "the upstream gets no request");
    gateway.wait_until_parked(0).await;
}

#[tokio::test]
async fn a_body_that_is_malformed_from_its_first_byte_does_not_reach_the_upstream() {
    let gateway = TestGateway::new().await;
    gateway.sim.set_status("a", "queued");
    let answer = ask(&gateway, "transfer-encoding: chunked\r\n\r\nno-number\r\n").await;
    assert_gateway_error(&answer, 400, "body-incomplete");
    assert_eq!(upstream_request_count(&gateway), 0);
}

#[tokio::test]
async fn a_disconnect_after_an_empty_body_ends_the_wait() {
    let gateway = TestGateway::with_hold(Duration::from_secs(60)).await;
    gateway.sim.set_status("a", "queued");
    for rest in EMPTY {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        stream.write_all(head(&clip_target("a", "completed"), rest).as_bytes()).await.unwrap();
        gateway.wait_until_parked(1).await;
        drop(stream);
        gateway.wait_until_parked(0).await;
    }
}

/// The key is proven when the head arrives. A 401 before the end of the body must take effect. P11
#[tokio::test]
async fn a_key_that_is_rejected_before_the_body_ends_gets_no_cached_job() {
    let gateway = TestGateway::new().await;
    gateway.sim.set_status("a", "completed");
    assert!(ask(&gateway, EMPTY[0]).await.is_opener());
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let rest = "expect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head(&clip_target("a", "completed"), rest).as_bytes()).await.unwrap();
    let interim = b"HTTP/1.1 100 Continue\r\n\r\n";
    read_until(&mut stream, |back| back == interim).await; // the gateway has the head and reads the body

    gateway.sim.accept_keys(Some(&["another".to_owned()]));
    assert_eq!(ask(&gateway, "cache-control: no-cache\r\n\r\n").await.status, 401);
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let back = read_until(&mut stream, |back| parse_response(back).is_some()).await;
    let (answer, _) = parse_response(&back).unwrap();
    assert_eq!((answer.status.as_u16(), answer.is_hit()), (401, false), "{}", String::from_utf8_lossy(&back));
}
