//! Clients whose turn it is and who do nothing are given up; those who wait are not.

use std::time::Duration;

use bytes::Bytes;
use clipgate::sim::RequestEnd;
use clipgate::testing::clock;
use http::{Request, Version};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Channel, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use crate::harness::gateway::{Answer, TestGateway, clip_target, within_secs};
use crate::harness::raw_http::{assert_gateway_error, parse_response, read_until, send_raw};
use crate::harness::raw_upstream::{AfterHead, RawUpstream};

/// Short for a test, and long for a busy machine.
const PATIENCE: Duration = Duration::from_secs(1);

const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

type Streams = http2::SendRequest<BoxBody<Bytes, std::convert::Infallible>>;

/// An HTTP/2 connection whose streams have the protocol's own windows of 64 KiB; and its end.
async fn connect(stage: &TestGateway) -> (Streams, AbortOnDropHandle<()>) {
    let socket = TcpStream::connect(stage.address).await.unwrap();
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(65_535).initial_connection_window_size(1 << 20);
    let (streams, connection) = builder.handshake(TokioIo::new(socket)).await.unwrap();
    (streams, AbortOnDropHandle::new(tokio::spawn(async move { drop(connection.await) })))
}

fn request(stage: &TestGateway, target: &str) -> http::request::Builder {
    Request::builder()
        .uri(format!("http://{}{target}", stage.address))
        .version(Version::HTTP_2)
        .header("authorization", "Bearer demo")
}

#[tokio::test]
async fn a_body_of_which_nothing_comes_is_408_and_ends_its_connection() {
    let rows = [
        "content-length: 10\r\n\r\n",
        "content-length: 10\r\n\r\nhalf",
        "transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ];
    for rest in rows {
        let stage = TestGateway::with_stall_timeout(PATIENCE).await;
        let began = clock::now();
        let back =
            send_raw(stage.address, format!("POST /sim/echo HTTP/1.1\r\nhost: x\r\n{rest}").as_bytes()).await;
        let (answer, after) = parse_response(&back).unwrap();
        assert_gateway_error(&answer, 408, "body-stalled");
        assert!(after.is_empty() && began.elapsed() >= PATIENCE, "{:?}", began.elapsed());
        stage.wait_until(|seen| seen.requests.iter().all(|seen| seen.end != RequestEnd::Open)).await;
        assert_eq!(stage.sim.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_stream_on_which_nothing_comes_is_408_and_the_others_stay() {
    let stage = TestGateway::with_stall_timeout(PATIENCE).await;
    let (mut streams, connection) = connect(&stage).await;
    let (mut upload, body) = Channel::<Bytes>::new(1);
    upload.send_data(Bytes::from_static(b"half")).await.unwrap();
    let answering =
        streams.send_request(request(&stage, "/sim/echo").method("POST").body(body.boxed()).unwrap());
    let (head, body) = within_secs(10, answering).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let answer = Answer { status: head.status, headers: head.headers, body, took: Duration::ZERO };
    assert_gateway_error(&answer, 408, "body-stalled");
    let next = streams.send_request(request(&stage, "/sim/echo").body(Empty::new().boxed()).unwrap());
    assert_eq!(within_secs(10, next).await.unwrap().status(), 200);
    assert!(!connection.is_finished());
}

#[tokio::test]
async fn a_body_that_trickles_and_one_that_is_late_but_not_too_late_arrive() {
    let stage = TestGateway::with_stall_timeout(PATIENCE).await;
    let mut stream = TcpStream::connect(stage.address).await.unwrap();
    stream.write_all(b"POST /sim/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 15\r\n\r\n").await.unwrap();
    for _ in 0..15 {
        tokio::time::sleep(PATIENCE / 10).await; // half as much again as its patience in all
        stream.write_all(b"x").await.unwrap();
    }
    let back = read_until(&mut stream, |back| parse_response(back).is_some()).await;
    let (answer, _) = parse_response(&back).unwrap();
    assert_eq!(answer.status, 200);
    assert!(String::from_utf8_lossy(&answer.body).contains("\"body_bytes\":15"));
}

#[tokio::test]
async fn a_body_that_stalls_after_its_answer_has_begun_ends_both() {
    let stage = TestGateway::with_stall_timeout(PATIENCE).await;
    let mut stream = TcpStream::connect(stage.address).await.unwrap();
    let head = "POST /sim/mirror HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let back = read_until(&mut stream, |back| back.ends_with(b"4\r\nhalf\r\n")).await;
    assert!(back.starts_with(b"HTTP/1.1 200 "));
    let mut rest = Vec::new();
    let _ = within_secs(10, stream.read_to_end(&mut rest)).await;
    assert!(rest.is_empty(), "neither a whole answer nor another: {rest:?}");
    stage.wait_until(|seen| seen.requests[0].end != RequestEnd::Open).await;
}

/// A chunk of an endless answer.
fn chunk() -> Bytes {
    [b"4000\r\n", &[b'x'; 0x4000][..], b"\r\n"].concat().into()
}

#[tokio::test]
async fn an_answer_that_nobody_reads_ends_its_connection_and_is_taken_from_the_upstream_no_more() {
    let rogue = RawUpstream::start(CHUNKED, AfterHead::Endless(chunk())).await;
    let stage = TestGateway::with_stall_timeout_and_upstream(PATIENCE, &rogue.url).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(stage.address).await.unwrap();
    // What follows a request must not keep its answer.
    stream.write_all(b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n\r\n").await.unwrap();
    rogue.wait_until_requests(1).await;
    rogue.wait_until_closed(1).await;
    let mut rest = Vec::new();
    let _ = within_secs(30, stream.read_to_end(&mut rest)).await;
    assert!(rest.starts_with(b"HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_stream_that_nobody_reads_is_cut_off_and_taken_from_the_upstream_no_more() {
    let rogue = RawUpstream::start(CHUNKED, AfterHead::Endless(chunk())).await;
    let stage = TestGateway::with_stall_timeout_and_upstream(PATIENCE, &rogue.url).await;
    let (mut streams, connection) = connect(&stage).await;
    let unread = streams.send_request(request(&stage, "/big").body(Empty::new().boxed()).unwrap());
    let unread = within_secs(10, unread).await.unwrap();
    assert_eq!(unread.status(), 200);
    rogue.wait_until_closed(1).await;
    let rest = within_secs(10, unread.into_body().collect()).await;
    assert!(rest.is_err(), "it is cut off");
    drop(connection);
}

#[tokio::test]
async fn a_wait_is_answered_though_its_connection_has_a_stream_that_nobody_reads_which_is_reset() {
    let stage = TestGateway::with_stall_timeout(PATIENCE).await;
    stage.sim.set_status("a", "queued");
    let (mut streams, connection) = connect(&stage).await;
    let (mut upload, body) = Channel::<Bytes>::new(1);
    let unread =
        streams.send_request(request(&stage, "/sim/mirror").method("PUT").body(body.boxed()).unwrap());
    upload.send_data(vec![b'x'; 1 << 18].into()).await.unwrap();
    drop(upload);
    let unread = within_secs(10, unread).await.unwrap();
    let wait = request(&stage, &clip_target("a", "completed")).header("prefer", "wait=60");
    let wait = streams.send_request(wait.body(Empty::new().boxed()).unwrap());
    let waiting = tokio::spawn(wait);
    stage.wait_until_parked(1).await;
    tokio::time::sleep(3 * PATIENCE).await; // it outlasts the patience
    stage.wait_until_parked(1).await;
    stage.sim.set_status("a", "completed");
    assert_eq!(within_secs(10, waiting).await.unwrap().unwrap().status(), 200);
    assert!(within_secs(10, unread.into_body().collect()).await.is_err(), "it is cut off");
    let next = streams.send_request(request(&stage, "/sim/echo").body(Empty::new().boxed()).unwrap());
    assert_eq!(within_secs(10, next).await.unwrap().status(), 200);
    assert!(!connection.is_finished());
}

#[tokio::test]
async fn who_waits_for_the_upstream_is_never_given_up() {
    let stage = TestGateway::with_stall_timeout(PATIENCE).await;
    stage.sim.set_status("a", "queued");
    let wait = stage.spawn_get(&clip_target("a", "completed"), &[("prefer", "wait=60")]);
    let passed = stage.spawn_get(&format!("{}&unknown=1", clip_target("a", "completed")), &[]);
    stage.wait_until(|seen| seen.open == 2).await;
    let mut events = TcpStream::connect(stage.address).await.unwrap();
    let head = "GET /sim/stream?n=2&every=3s HTTP/1.1\r\nhost: x\r\n\r\n";
    events.write_all(head.as_bytes()).await.unwrap();
    read_until(&mut events, |back| back.ends_with(b"0\n\r\n")).await;
    let mut tunnel = TcpStream::connect(stage.address).await.unwrap();
    let head = "GET /sim/upgrade HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    tunnel.write_all(head.as_bytes()).await.unwrap();
    read_until(&mut tunnel, |back| back.ends_with(b"\r\n\r\n")).await;

    read_until(&mut events, |back| back.ends_with(b"1\n\r\n0\r\n\r\n")).await; // three times the patience
    tunnel.write_all(b"still here").await.unwrap();
    read_until(&mut tunnel, |back| back == b"still here").await;
    stage.sim.set_status("a", "completed");
    assert_eq!(wait.await.unwrap().status, 200);
    assert_eq!(passed.await.unwrap().status, 200);
}
