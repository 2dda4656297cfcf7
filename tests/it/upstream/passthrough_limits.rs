//! How many requests are passed through at once: `limits.max_passthrough_per_key` and `limits.max_passthrough`.

use clipgate::sim::{Fault, FaultTarget};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::harness::admin_client::AdminClient;
use crate::harness::gateway::{Answer, TestGateway, clip_target, within_secs};
use crate::harness::raw_http::{assert_gateway_error, field, read_until};

/// An answer that goes on until it is hung up.
const ENDLESS: &str = "/sim/stream?n=2&every=1h";

async fn stage(per_key: usize, all: usize) -> TestGateway {
    TestGateway::with(|config, _| {
        config.limits.max_passthrough_per_key = per_key;
        config.limits.max_passthrough = all;
    })
    .await
}

/// Opens an endless answer, or a tunnel, on a connection of its own.
async fn open(stage: &TestGateway, target: &str, key: &str, fields: &str) -> TcpStream {
    let mut stream = TcpStream::connect(stage.address).await.unwrap();
    let head = format!("GET {target} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n{fields}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let back = read_until(&mut stream, |back| back.windows(4).any(|four| four == b"\r\n\r\n")).await;
    assert!(back.starts_with(b"HTTP/1.1 200 ") || back.starts_with(b"HTTP/1.1 101 "), "{back:?}");
    stream
}

async fn get(stage: &TestGateway, key: &str) -> Answer {
    stage.get("/sim/echo", &[("authorization", &format!("Bearer {key}"))]).await
}

/// Comes back when there is room again.
async fn until_room(stage: &TestGateway, key: &str) {
    within_secs(30, async { while get(stage, key).await.status != 200 {} }).await;
}

/// Has the upstream accept this key, which counts for itself from then on.
async fn prove(stage: &TestGateway, key: &str) {
    stage.sim.set_status("proof", "completed");
    let fields = [("authorization", &*format!("Bearer {key}"))];
    assert_eq!(stage.get(&clip_target("proof", "completed"), &fields).await.status, 200);
}

#[tokio::test]
async fn a_key_with_its_share_of_passed_through_requests_gets_429_until_one_has_ended() {
    let stage = stage(2, 100).await;
    for key in ["ann", "bob"] {
        prove(&stage, key).await;
    }
    let first = open(&stage, ENDLESS, "ann", "").await;
    let _second = open(&stage, ENDLESS, "ann", "").await;
    for _ in 0..3 {
        let answer = get(&stage, "ann").await;
        assert_gateway_error(&answer, 429, "too-many-passthrough-per-key");
        assert_eq!(field(&answer, "retry-after"), "1");
    }
    assert_eq!(get(&stage, "bob").await.status, 200, "another key has a share of its own");
    assert!(stage.get(&clip_target("proof", "completed"), &[("authorization", "Bearer ann")]).await.is_hit());
    drop(first);
    until_room(&stage, "ann").await;
}

#[tokio::test]
async fn keys_that_nobody_has_proven_share_what_their_address_has() {
    let stage = stage(2, 100).await;
    let _open = [open(&stage, ENDLESS, "made", "").await, open(&stage, ENDLESS, "up", "").await];
    assert_gateway_error(&get(&stage, "another").await, 429, "too-many-passthrough-per-key");
}

#[tokio::test]
async fn waits_that_are_not_understood_hold_no_more_requests_than_their_share() {
    let stage = stage(4, 100).await;
    stage.sim.set_status("a", "queued");
    let target = format!("{}&x=1", clip_target("a", "completed"));
    let held: Vec<_> = (0..4).map(|_| stage.spawn_get(&target, &[])).collect();
    stage.wait_until(|seen| seen.open == 4).await;
    for _ in 0..36 {
        assert_gateway_error(&stage.get(&target, &[]).await, 429, "too-many-passthrough-per-key");
    }
    assert_eq!(stage.upstream_requests().len(), 4);
    drop(held);
    stage.wait_until(|seen| seen.open == 0).await;
}

#[tokio::test]
async fn all_keys_together_have_a_bound_and_the_operator_sees_it() {
    let mut stage = stage(2, 3).await;
    for key in ["ann", "bob", "cid"] {
        prove(&stage, key).await;
    }
    let operator = AdminClient::open(&mut stage).await;
    let mut open_now = Vec::new();
    for key in ["ann", "ann", "bob"] {
        open_now.push(open(&stage, ENDLESS, key, "").await);
    }
    let answer = get(&stage, "cid").await;
    assert_gateway_error(&answer, 503, "too-many-passthrough");
    assert_eq!(field(&answer, "retry-after"), "1");
    assert_gateway_error(&get(&stage, "ann").await, 429, "too-many-passthrough-per-key");
    let page = operator.metrics().await;
    for (name, value) in [("clipgate_passthrough_requests", 3.0), ("clipgate_max_passthrough_requests", 3.0)]
    {
        assert_eq!(page.sum(name, &[]), value, "{name}");
    }
    for quota in ["passthrough", "passthrough-per-key"] {
        assert_eq!(page.sum("clipgate_rate_limited_total", &[("quota", quota)]), 1.0, "{quota}");
    }
    open_now.pop();
    until_room(&stage, "cid").await;
}

#[tokio::test]
async fn a_tunnel_has_its_slot_until_it_ends() {
    let stage = stage(1, 100).await;
    let tunnel = open(&stage, "/sim/upgrade", "ann", "connection: upgrade\r\nupgrade: echo\r\n").await;
    assert_gateway_error(&get(&stage, "ann").await, 429, "too-many-passthrough-per-key");
    drop(tunnel);
    until_room(&stage, "ann").await;
}

#[tokio::test]
async fn what_ends_by_itself_or_breaks_gives_its_slot_back() {
    let stage = stage(1, 1).await;
    for n in 0..8 {
        if n % 2 == 1 {
            stage.sim.fault(FaultTarget::Path("/sim/echo".to_owned()), Fault::reset(), 1);
        }
        let status = get(&stage, "ann").await.status.as_u16();
        assert_eq!(status, if n % 2 == 1 { 502 } else { 200 });
    }
}
