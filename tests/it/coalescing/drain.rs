//! Drain: every parked wait is answered, and passed-through requests have the same time (P2).

use std::time::Duration;

use clipgate::testing::clock;
use http::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::harness::gateway::{TestGateway, clip_target, set_hold, set_status_of_all, within_secs};
use crate::harness::raw_http::parse_response;

#[tokio::test]
async fn a_drain_answers_five_hundred_parked_waits_with_the_current_state_within_its_time() {
    let gateway = TestGateway::with(|config, options| {
        set_hold(Duration::from_secs(60), config, options);
        config.server.drain_timeout = Duration::from_secs(6);
    })
    .await;
    let ids = ["a", "b", "c", "d", "e"];
    set_status_of_all(&gateway, &ids, "streaming");
    let mut waits = JoinSet::new();
    for n in 0..500 {
        let wait = gateway.spawn_get(&clip_target(ids[n % ids.len()], "completed"), &[]);
        waits.spawn(async move { (n, wait.await.expect("it does not panic"), clock::now()) });
    }
    gateway.wait_until_parked(500).await;

    gateway.stop();
    let answers = within_secs(30, waits.join_all()).await;
    assert_eq!(answers.len(), 500);
    let mut times = Vec::new();
    for (n, answer, answered_at) in answers {
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.body, gateway.sim.body(ids[n % ids.len()], "streaming"));
        times.push(answered_at);
    }
    let spread = *times.iter().max().unwrap() - *times.iter().min().unwrap();
    assert!(spread > Duration::from_secs(2), "the answers are spread over the time: {spread:?}");
    // For each clip a poll and a snapshot, and on a slow machine a second snapshot for waits that missed the first.
    assert!(
        gateway.upstream_requests().len() <= 3 * ids.len(),
        "waits share their snapshots: {:?}",
        gateway.upstream_requests()
    );
}

#[tokio::test]
async fn a_passed_through_request_has_the_drain_timeout_to_end() {
    let gateway = TestGateway::with(|config, _| config.server.drain_timeout = Duration::from_secs(20)).await;
    let slow = gateway.spawn_get("/sim/stream?n=5&every=100ms", &[]);
    gateway.wait_until(|seen| seen.count("/sim/stream") == 1).await;
    gateway.stop();
    assert_eq!(slow.await.unwrap().status, StatusCode::OK);
}

#[tokio::test]
async fn a_client_that_has_just_connected_at_the_stop_is_answered_and_disconnected() {
    let gateway = TestGateway::with(|config, _| config.server.drain_timeout = Duration::from_secs(60)).await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(b"GET /sim/echo HTTP/1.1\r\n").await.unwrap();
    gateway.stop();
    stream.write_all(b"host: x\r\n\r\n").await.unwrap();
    let mut back = Vec::new();
    within_secs(30, stream.read_to_end(&mut back)).await.unwrap();
    let (answer, rest) =
        parse_response(&back).unwrap_or_else(|| panic!("{:?}", String::from_utf8_lossy(&back)));
    assert_eq!((answer.status, rest.len()), (StatusCode::OK, 0));
    assert_eq!(answer.headers["connection"], "close");
}
