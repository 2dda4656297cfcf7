//! Open requests of a removed member end `wait.max_timeout` after the reload.

use std::time::Duration;

use bytes::Bytes;
use clipgate::testing::config::{AuthMode, Config};
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt as _, Channel};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use crate::clients::team::{Row, member};
use crate::harness::event_client::EventClient;
use crate::harness::gateway::{TestGateway, clip_target, set_hold, within_secs};
use crate::harness::raw_http::{assert_gateway_error, parse_response, read_until};
use crate::upstream::tunnels::{assert_alive, closed, open};

const ALICE: Row = ("alice", "cg_alice", "sk");
const ALICES_NEW_TOKEN: Row = ("alice", "cg_new", "sk");
const BOB: Row = ("bob", "cg_bob", "sk");
const HOUR: Duration = Duration::from_secs(3600);
const MOMENT: Duration = Duration::from_millis(50);

fn config(rows: &[Row], max_timeout: Duration) -> Config {
    let mut config = Config::default();
    config.auth.mode = AuthMode::Team(rows.iter().copied().map(member).collect());
    config.wait.max_timeout = max_timeout;
    config
}

async fn gateway() -> TestGateway {
    TestGateway::with(|given, options| {
        set_hold(HOUR, given, options);
        given.auth = config(&[ALICE, BOB], HOUR).auth;
        given.wait.max_timeout = HOUR;
    })
    .await
}

/// Returns a gateway, and the listener of its upstream.
async fn gateway_of_a_silent_upstream() -> (TestGateway, TcpListener) {
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", upstream.local_addr().unwrap()).parse().unwrap();
    let gateway = TestGateway::without_upstream(|given, _| {
        given.auth = config(&[ALICE, BOB], HOUR).auth;
        given.upstream.base_url = url;
    })
    .await;
    (gateway, upstream)
}

fn bearer((_, token, _): Row) -> String {
    format!("Bearer {token}")
}

async fn tunnel(gateway: &TestGateway, row: Row) -> TcpStream {
    open(gateway.address, &bearer(row)).await
}

/// Sends this head on a new connection.
async fn begin(gateway: &TestGateway, row: Row, line: &str, fields: &str) -> TcpStream {
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let head = format!("{line} HTTP/1.1\r\nhost: x\r\nauthorization: {}\r\n{fields}\r\n", bearer(row));
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn a_removed_members_tunnel_ends_after_max_timeout_and_others_stay_open() {
    let gateway = gateway().await;
    let (mut alices, mut bobs) = (tunnel(&gateway, ALICE).await, tunnel(&gateway, BOB).await);
    gateway.reconfigure(&config(&[BOB], HOUR));
    assert_alive(&mut alices).await;
    gateway.reconfigure(&config(&[BOB], MOMENT));
    closed(alices).await;
    assert_alive(&mut bobs).await;
}

#[tokio::test]
async fn a_replaced_token_counts_as_a_removed_member() {
    let gateway = gateway().await;
    let old = tunnel(&gateway, ALICE).await;
    gateway.reconfigure(&config(&[ALICES_NEW_TOKEN, BOB], MOMENT));
    let mut new = tunnel(&gateway, ALICES_NEW_TOKEN).await;
    closed(old).await;
    assert_alive(&mut new).await;
}

#[tokio::test]
async fn a_member_that_returns_in_time_keeps_its_requests() {
    let gateway = gateway().await;
    let (mut alices, bobs) = (tunnel(&gateway, ALICE).await, tunnel(&gateway, BOB).await);
    gateway.reconfigure(&config(&[BOB], HOUR));
    assert_alive(&mut alices).await;
    gateway.reconfigure(&config(&[ALICE, BOB], HOUR));
    gateway.reconfigure(&config(&[ALICE], MOMENT));
    closed(bobs).await;
    assert_alive(&mut alices).await;
}

#[tokio::test]
async fn a_removed_members_passed_through_response_is_aborted() {
    let gateway = gateway().await;
    let mut stream = begin(&gateway, ALICE, "GET /sim/stream?n=2&every=1h", "").await;
    read_until(&mut stream, |back| back.ends_with(b"0\n\r\n")).await;
    gateway.reconfigure(&config(&[BOB], MOMENT));
    closed(stream).await;
    gateway.wait_until(|seen| seen.abandoned() == 1).await;
}

#[tokio::test]
async fn a_removed_members_request_without_a_response_yet_is_401() {
    let gateway = gateway().await;
    gateway.sim.set_status("a", "queued");
    let mut stream = begin(&gateway, ALICE, &format!("GET {}&x=1", clip_target("a", "completed")), "").await;
    gateway.wait_until(|seen| seen.open == 1).await;
    gateway.reconfigure(&config(&[BOB], MOMENT));
    let back = read_until(&mut stream, |back| parse_response(back).is_some()).await;
    assert_gateway_error(&parse_response(&back).unwrap().0, 401, "unknown-token");
    gateway.wait_until(|seen| seen.abandoned() == 1).await;
}

#[tokio::test]
async fn a_removed_members_endless_upload_is_aborted() {
    let gateway = gateway().await;
    let fields = "transfer-encoding: chunked\r\n";
    let mut stream = begin(&gateway, ALICE, "POST /sim/mirror", fields).await;
    stream.write_all(b"3\r\nabc\r\n").await.unwrap();
    read_until(&mut stream, |back| back.ends_with(b"3\r\nabc\r\n")).await;
    gateway.reconfigure(&config(&[BOB], MOMENT));
    closed(stream).await;
    gateway.wait_until(|seen| seen.open == 0).await;
}

#[tokio::test]
async fn a_removed_members_upload_without_a_response_yet_is_401() {
    let (gateway, upstream) = gateway_of_a_silent_upstream().await;
    let mut stream = begin(&gateway, ALICE, "POST /upload", "transfer-encoding: chunked\r\n").await;
    stream.write_all(b"3\r\nabc\r\n").await.unwrap();
    let (mut socket, _) = within_secs(30, upstream.accept()).await.unwrap();
    read_until(&mut socket, |seen| seen.ends_with(b"3\r\nabc\r\n")).await;
    gateway.reconfigure(&config(&[BOB], MOMENT));
    let back = read_until(&mut stream, |back| parse_response(back).is_some()).await;
    assert_gateway_error(&parse_response(&back).unwrap().0, 401, "unknown-token");
    closed(socket).await;
}

#[tokio::test]
async fn a_removed_members_event_stream_ends() {
    let gateway = gateway().await;
    gateway.sim.set_status("a", "queued");
    let fields = [("authorization", &*bearer(ALICE))];
    let mut events = EventClient::open(&gateway, &clip_target("a", "completed"), &fields).await;
    events.expect_status(&gateway.sim.body("a", "queued")).await;
    gateway.wait_until_parked(1).await;
    gateway.reconfigure(&config(&[BOB], MOMENT));
    gateway.wait_until_parked(0).await;
}

#[tokio::test]
async fn a_member_that_is_removed_while_it_sends_its_body_is_401() {
    let gateway = gateway().await;
    gateway.sim.set_status("a", "queued");
    let fields = "transfer-encoding: chunked\r\nexpect: 100-continue\r\n";
    for rest in ["0\r\n\r\n", "3\r\nabc\r\n0\r\n\r\n"] {
        let target = format!("GET {}", clip_target("a", "completed"));
        let mut stream = begin(&gateway, ALICE, &target, fields).await;
        // hyper sends this once the gateway reads the body.
        read_until(&mut stream, |back| back.ends_with(b"100 Continue\r\n\r\n")).await;
        gateway.reconfigure(&config(&[BOB], HOUR));
        stream.write_all(rest.as_bytes()).await.unwrap();
        let back = read_until(&mut stream, |back| parse_response(back).is_some()).await;
        assert_gateway_error(&parse_response(&back).unwrap().0, 401, "unknown-token");
        gateway.reconfigure(&config(&[ALICE, BOB], HOUR));
    }
    assert!(gateway.upstream_requests().is_empty());
}

#[tokio::test]
async fn a_change_of_mode_ends_requests_that_the_new_mode_would_reject() {
    let gateway = TestGateway::with_hold(HOUR).await;
    let mut own = open(gateway.address, "Bearer own").await;
    let mut reloaded = Config::default();
    reloaded.wait.max_timeout = MOMENT;
    gateway.reconfigure(&reloaded);
    assert_alive(&mut own).await;
    gateway.reconfigure(&config(&[BOB], MOMENT));
    let mut bobs = tunnel(&gateway, BOB).await;
    closed(own).await;
    assert_alive(&mut bobs).await;
}

#[tokio::test]
async fn a_removed_members_upload_that_outlasts_its_response_is_aborted() {
    let (gateway, upstream) = gateway_of_a_silent_upstream().await;
    let socket = TokioIo::new(TcpStream::connect(gateway.address).await.unwrap());
    let (mut streams, connection) = http2::handshake(TokioExecutor::new(), socket).await.unwrap();
    let _connection = AbortOnDropHandle::new(tokio::spawn(async { drop(connection.await) }));
    let (mut sender, body) = Channel::<Bytes>::new(1);
    let request = Request::post("http://x/upload").header("authorization", bearer(ALICE)).body(body).unwrap();
    let response = tokio::spawn(streams.send_request(request));
    let (mut socket, _) = within_secs(30, upstream.accept()).await.unwrap();
    sender.send(Frame::data("abc".into())).await.unwrap();
    read_until(&mut socket, |seen| seen.ends_with(b"3\r\nabc\r\n")).await;
    socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
    let answer = response.await.unwrap().unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "{}");
    sender.send(Frame::data("def".into())).await.unwrap();
    read_until(&mut socket, |seen| seen.ends_with(b"3\r\ndef\r\n")).await;
    gateway.reconfigure(&config(&[BOB], MOMENT));
    closed(socket).await;
}
