//! Clients that neither send nor read are disconnected after the stall timeout. Clients that wait for a response are
//! not.

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

/// Short for a test, long for a busy machine.
const STALL_TIMEOUT: Duration = Duration::from_secs(1);

const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

type Streams = http2::SendRequest<BoxBody<Bytes, std::convert::Infallible>>;

/// Opens an HTTP/2 connection whose streams have the default windows of 64 KiB.
async fn connect(gateway: &TestGateway) -> (Streams, AbortOnDropHandle<()>) {
    let socket = TcpStream::connect(gateway.address).await.unwrap();
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(65_535).initial_connection_window_size(1 << 20);
    let (streams, connection) = builder.handshake(TokioIo::new(socket)).await.unwrap();
    (streams, AbortOnDropHandle::new(tokio::spawn(async move { drop(connection.await) })))
}

fn request(gateway: &TestGateway, target: &str) -> http::request::Builder {
    Request::builder()
        .uri(format!("http://{}{target}", gateway.address))
        .version(Version::HTTP_2)
        .header("authorization", "Bearer demo")
}

#[tokio::test]
async fn a_stalled_body_is_408_and_ends_its_connection() {
    let rows = [
        "content-length: 10\r\n\r\n",
        "content-length: 10\r\n\r\nhalf",
        "transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ];
    for rest in rows {
        let gateway = TestGateway::with_stall_timeout(STALL_TIMEOUT).await;
        let began = clock::now();
        let back =
            send_raw(gateway.address, format!("POST /sim/echo HTTP/1.1\r\nhost: x\r\n{rest}").as_bytes())
                .await;
        let (answer, after) = parse_response(&back).unwrap();
        assert_gateway_error(&answer, 408, "body-stalled");
        assert!(after.is_empty() && began.elapsed() >= STALL_TIMEOUT, "{:?}", began.elapsed());
        gateway.wait_until(|seen| seen.requests.iter().all(|seen| seen.end != RequestEnd::Open)).await;
        assert_eq!(gateway.sim.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_stalled_http2_stream_is_408_and_the_others_stay_open() {
    let gateway = TestGateway::with_stall_timeout(STALL_TIMEOUT).await;
    let (mut streams, connection) = connect(&gateway).await;
    let (mut upload, body) = Channel::<Bytes>::new(1);
    upload.send_data(Bytes::from_static(b"half")).await.unwrap();
    let answering =
        streams.send_request(request(&gateway, "/sim/echo").method("POST").body(body.boxed()).unwrap());
    let (head, body) = within_secs(10, answering).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let answer = Answer { status: head.status, headers: head.headers, body, took: Duration::ZERO };
    assert_gateway_error(&answer, 408, "body-stalled");
    let next = streams.send_request(request(&gateway, "/sim/echo").body(Empty::new().boxed()).unwrap());
    assert_eq!(within_secs(10, next).await.unwrap().status(), 200);
    assert!(!connection.is_finished());
}

#[tokio::test]
async fn a_slow_body_arrives_if_each_part_comes_in_time() {
    let gateway = TestGateway::with_stall_timeout(STALL_TIMEOUT).await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(b"POST /sim/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 15\r\n\r\n").await.unwrap();
    for _ in 0..15 {
        tokio::time::sleep(STALL_TIMEOUT / 10).await; // one and a half times the timeout in total
        stream.write_all(b"x").await.unwrap();
    }
    let back = read_until(&mut stream, |back| parse_response(back).is_some()).await;
    let (answer, _) = parse_response(&back).unwrap();
    assert_eq!(answer.status, 200);
    assert!(String::from_utf8_lossy(&answer.body).contains("\"body_bytes\":15"));
}

#[tokio::test]
async fn a_body_that_stalls_after_its_response_began_ends_both() {
    let gateway = TestGateway::with_stall_timeout(STALL_TIMEOUT).await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let head = "POST /sim/mirror HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let back = read_until(&mut stream, |back| back.ends_with(b"4\r\nhalf\r\n")).await;
    assert!(back.starts_with(b"HTTP/1.1 200 "));
    let mut rest = Vec::new();
    let _ = within_secs(10, stream.read_to_end(&mut rest)).await;
    assert!(rest.is_empty(), "neither the rest of the response nor a second one: {rest:?}");
    gateway.wait_until(|seen| seen.requests[0].end != RequestEnd::Open).await;
}

/// A chunk of an endless response.
fn chunk() -> Bytes {
    [b"4000\r\n", &[b'x'; 0x4000][..], b"\r\n"].concat().into()
}

#[tokio::test]
async fn an_unread_response_ends_its_connection_and_its_upstream_request() {
    let upstream = RawUpstream::start(CHUNKED, AfterHead::Endless(chunk())).await;
    let gateway = TestGateway::with_stall_timeout_and_upstream(STALL_TIMEOUT, &upstream.url).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(gateway.address).await.unwrap();
    // Bytes after the request must not keep the response open.
    stream.write_all(b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n\r\n").await.unwrap();
    upstream.wait_until_requests(1).await;
    upstream.wait_until_closed(1).await;
    let mut rest = Vec::new();
    let _ = within_secs(30, stream.read_to_end(&mut rest)).await;
    assert!(rest.starts_with(b"HTTP/1.1 200 "));
}

#[tokio::test]
async fn an_unread_http2_stream_is_reset_and_ends_its_upstream_request() {
    let upstream = RawUpstream::start(CHUNKED, AfterHead::Endless(chunk())).await;
    let gateway = TestGateway::with_stall_timeout_and_upstream(STALL_TIMEOUT, &upstream.url).await;
    let (mut streams, connection) = connect(&gateway).await;
    let unread = streams.send_request(request(&gateway, "/big").body(Empty::new().boxed()).unwrap());
    let unread = within_secs(10, unread).await.unwrap();
    assert_eq!(unread.status(), 200);
    upstream.wait_until_closed(1).await;
    let rest = within_secs(10, unread.into_body().collect()).await;
    assert!(rest.is_err(), "the stream was reset");
    drop(connection);
}

#[tokio::test]
async fn a_wait_is_answered_although_an_unread_stream_of_its_connection_is_reset() {
    let gateway = TestGateway::with_stall_timeout(STALL_TIMEOUT).await;
    gateway.sim.set_status("a", "queued");
    let (mut streams, connection) = connect(&gateway).await;
    let (mut upload, body) = Channel::<Bytes>::new(1);
    let unread =
        streams.send_request(request(&gateway, "/sim/mirror").method("PUT").body(body.boxed()).unwrap());
    upload.send_data(vec![b'x'; 1 << 18].into()).await.unwrap();
    drop(upload);
    let unread = within_secs(10, unread).await.unwrap();
    let wait = request(&gateway, &clip_target("a", "completed")).header("prefer", "wait=60");
    let wait = streams.send_request(wait.body(Empty::new().boxed()).unwrap());
    let waiting = tokio::spawn(wait);
    gateway.wait_until_parked(1).await;
    tokio::time::sleep(3 * STALL_TIMEOUT).await; // longer than the timeout
    gateway.wait_until_parked(1).await;
    gateway.sim.set_status("a", "completed");
    assert_eq!(within_secs(10, waiting).await.unwrap().unwrap().status(), 200);
    assert!(within_secs(10, unread.into_body().collect()).await.is_err(), "the stream was reset");
    let next = streams.send_request(request(&gateway, "/sim/echo").body(Empty::new().boxed()).unwrap());
    assert_eq!(within_secs(10, next).await.unwrap().status(), 200);
    assert!(!connection.is_finished());
}

#[tokio::test]
async fn a_client_that_waits_for_the_upstream_is_never_disconnected() {
    let gateway = TestGateway::with_stall_timeout(STALL_TIMEOUT).await;
    gateway.sim.set_status("a", "queued");
    let wait = gateway.spawn_get(&clip_target("a", "completed"), &[("prefer", "wait=60")]);
    let passed = gateway.spawn_get(&format!("{}&unknown=1", clip_target("a", "completed")), &[]);
    gateway.wait_until(|seen| seen.open == 2).await;
    let mut events = TcpStream::connect(gateway.address).await.unwrap();
    let head = "GET /sim/stream?n=2&every=3s HTTP/1.1\r\nhost: x\r\n\r\n";
    events.write_all(head.as_bytes()).await.unwrap();
    read_until(&mut events, |back| back.ends_with(b"0\n\r\n")).await;
    let mut tunnel = TcpStream::connect(gateway.address).await.unwrap();
    let head = "GET /sim/upgrade HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    tunnel.write_all(head.as_bytes()).await.unwrap();
    read_until(&mut tunnel, |back| back.ends_with(b"\r\n\r\n")).await;

    read_until(&mut events, |back| back.ends_with(b"1\n\r\n0\r\n\r\n")).await; // three times the timeout
    tunnel.write_all(b"still here").await.unwrap();
    read_until(&mut tunnel, |back| back == b"still here").await;
    gateway.sim.set_status("a", "completed");
    assert_eq!(wait.await.unwrap().status, 200);
    assert_eq!(passed.await.unwrap().status, 200);
}
