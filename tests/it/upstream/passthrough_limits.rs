//! Limits of concurrent passed-through requests: `limits.max_passthrough_per_key` and `limits.max_passthrough`.

use bytes::Bytes;
use clipgate::sim::{Fault, FaultTarget};
use http::Request;
use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use crate::harness::admin_client::AdminClient;
use crate::harness::gateway::{Answer, TestGateway, clip_target, within_secs};
use crate::harness::raw_http::{assert_gateway_error, field, read_until};

/// Response that goes on until the client closes the connection.
const ENDLESS: &str = "/sim/stream?n=2&every=1h";

async fn gateway(per_key: usize, all: usize) -> TestGateway {
    TestGateway::with(|config, _| {
        config.limits.max_passthrough_per_key = per_key;
        config.limits.max_passthrough = all;
    })
    .await
}

/// Opens an endless response, or a tunnel, on a new connection.
async fn open(gateway: &TestGateway, target: &str, key: &str, fields: &str) -> TcpStream {
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let head = format!("GET {target} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n{fields}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let back = read_until(&mut stream, |back| back.windows(4).any(|four| four == b"\r\n\r\n")).await;
    assert!(back.starts_with(b"HTTP/1.1 200 ") || back.starts_with(b"HTTP/1.1 101 "), "{back:?}");
    stream
}

async fn get(gateway: &TestGateway, key: &str) -> Answer {
    gateway.get("/sim/echo", &[("authorization", &format!("Bearer {key}"))]).await
}

/// Returns once a passed-through request is admitted again.
async fn until_room(gateway: &TestGateway, key: &str) {
    within_secs(30, async { while get(gateway, key).await.status != 200 {} }).await;
}

/// Makes the upstream accept this key. Its requests then count for the key.
async fn prove(gateway: &TestGateway, key: &str) {
    gateway.sim.set_status("proof", "completed");
    let fields = [("authorization", &*format!("Bearer {key}"))];
    assert_eq!(gateway.get(&clip_target("proof", "completed"), &fields).await.status, 200);
}

#[tokio::test]
async fn a_key_with_its_share_of_passed_through_requests_gets_429_until_one_ends() {
    let gateway = gateway(2, 100).await;
    for key in ["ann", "bob"] {
        prove(&gateway, key).await;
    }
    let first = open(&gateway, ENDLESS, "ann", "").await;
    let _second = open(&gateway, ENDLESS, "ann", "").await;
    for _ in 0..3 {
        let answer = get(&gateway, "ann").await;
        assert_gateway_error(&answer, 429, "too-many-passthrough-per-key");
        assert_eq!(field(&answer, "retry-after"), "1");
    }
    assert_eq!(get(&gateway, "bob").await.status, 200, "another key has a share of its own");
    assert!(
        gateway.get(&clip_target("proof", "completed"), &[("authorization", "Bearer ann")]).await.is_hit()
    );
    drop(first);
    until_room(&gateway, "ann").await;
}

/// Answers each request with 100 kB, in one piece with the head.
async fn answer_with_long_bodies(listener: TcpListener) {
    loop {
        let (mut socket, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let mut response = b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n".to_vec();
            response.resize(response.len() + 100_000, b'x');
            loop {
                read_until(&mut socket, |seen| seen.ends_with(b"\r\n\r\n")).await;
                socket.write_all(&response).await.unwrap();
            }
        });
    }
}

#[tokio::test]
async fn a_long_response_counts_until_its_client_has_read_it() {
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", upstream.local_addr().unwrap()).parse().unwrap();
    let _upstream = AbortOnDropHandle::new(tokio::spawn(answer_with_long_bodies(upstream)));
    let gateway = TestGateway::without_upstream(|config, _| {
        config.upstream.base_url = url;
        config.limits.max_passthrough_per_key = 1;
    })
    .await;
    // After long responses a connection of the upstream reads so much at once that the next one is complete with its head.
    for _ in 0..5 {
        until_room(&gateway, "ann").await;
    }
    let socket = TokioIo::new(TcpStream::connect(gateway.address).await.unwrap());
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(0);
    let (mut streams, connection) = builder.handshake(socket).await.unwrap();
    let _connection = AbortOnDropHandle::new(tokio::spawn(async { drop(connection.await) }));
    let mut unread = Vec::new();
    within_secs(30, async {
        while unread.is_empty() {
            let request = Request::get("http://x/a").header("authorization", "Bearer ann");
            let answer = streams.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
            unread.extend((answer.status() == 200).then_some(answer));
        }
    })
    .await;
    assert_gateway_error(&get(&gateway, "ann").await, 429, "too-many-passthrough-per-key");
    drop(unread);
    until_room(&gateway, "ann").await;
}

#[tokio::test]
async fn unproven_keys_share_the_limit_of_their_address() {
    let gateway = gateway(2, 100).await;
    let _open = [open(&gateway, ENDLESS, "made", "").await, open(&gateway, ENDLESS, "up", "").await];
    assert_gateway_error(&get(&gateway, "another").await, 429, "too-many-passthrough-per-key");
}

#[tokio::test]
async fn waits_that_the_gateway_does_not_understand_count_for_the_passthrough_limit() {
    let gateway = gateway(4, 100).await;
    gateway.sim.set_status("a", "queued");
    let target = format!("{}&x=1", clip_target("a", "completed"));
    let held: Vec<_> = (0..4).map(|_| gateway.spawn_get(&target, &[])).collect();
    gateway.wait_until(|seen| seen.open == 4).await;
    for _ in 0..36 {
        assert_gateway_error(&gateway.get(&target, &[]).await, 429, "too-many-passthrough-per-key");
    }
    assert_eq!(gateway.upstream_requests().len(), 4);
    drop(held);
    gateway.wait_until(|seen| seen.open == 0).await;
}

#[tokio::test]
async fn all_keys_together_have_a_limit_that_the_operator_sees() {
    let mut gateway = gateway(2, 3).await;
    for key in ["ann", "bob", "cid"] {
        prove(&gateway, key).await;
    }
    let admin = AdminClient::open(&mut gateway).await;
    let mut open_now = Vec::new();
    for key in ["ann", "ann", "bob"] {
        open_now.push(open(&gateway, ENDLESS, key, "").await);
    }
    let answer = get(&gateway, "cid").await;
    assert_gateway_error(&answer, 503, "too-many-passthrough");
    assert_eq!(field(&answer, "retry-after"), "1");
    assert_gateway_error(&get(&gateway, "ann").await, 429, "too-many-passthrough-per-key");
    let page = admin.metrics().await;
    for (name, value) in [("clipgate_passthrough_requests", 3.0), ("clipgate_max_passthrough_requests", 3.0)]
    {
        assert_eq!(page.sum(name, &[]), value, "{name}");
    }
    for quota in ["passthrough", "passthrough-per-key"] {
        assert_eq!(page.sum("clipgate_rate_limited_total", &[("quota", quota)]), 1.0, "{quota}");
    }
    open_now.pop();
    until_room(&gateway, "cid").await;
}

#[tokio::test]
async fn a_tunnel_keeps_its_slot_until_it_ends() {
    let gateway = gateway(1, 100).await;
    let tunnel = open(&gateway, "/sim/upgrade", "ann", "connection: upgrade\r\nupgrade: echo\r\n").await;
    assert_gateway_error(&get(&gateway, "ann").await, 429, "too-many-passthrough-per-key");
    drop(tunnel);
    until_room(&gateway, "ann").await;
}

#[tokio::test]
async fn a_completed_or_broken_request_releases_its_slot() {
    let gateway = gateway(1, 1).await;
    for n in 0..8 {
        if n % 2 == 1 {
            gateway.sim.fault(FaultTarget::Path("/sim/echo".to_owned()), Fault::reset(), 1);
        }
        let status = get(&gateway, "ann").await.status.as_u16();
        assert_eq!(status, if n % 2 == 1 { 502 } else { 200 });
    }
}
