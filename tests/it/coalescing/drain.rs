//! How the gateway ends: nobody is cut off (contract, section 8).

use std::time::Duration;

use clipgate::testing::clock;
use http::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::harness::gateway::{TestGateway, clip_target, set_hold, set_status_of_all, within_secs};
use crate::harness::raw_http::parse_response;

#[tokio::test]
async fn five_hundred_parked_waits_are_all_told_the_state_known_within_the_window() {
    let stage = TestGateway::with(|config, options| {
        set_hold(Duration::from_secs(60), config, options);
        config.server.drain_timeout = Duration::from_secs(6);
    })
    .await;
    let ids = ["a", "b", "c", "d", "e"];
    set_status_of_all(&stage, &ids, "streaming");
    let mut waits = JoinSet::new();
    for n in 0..500 {
        let wait = stage.spawn_get(&clip_target(ids[n % ids.len()], "completed"), &[]);
        waits.spawn(async move { (n, wait.await.expect("it does not panic"), clock::now()) });
    }
    stage.wait_until_parked(500).await;

    stage.stop();
    let answers = within_secs(30, waits.join_all()).await;
    assert_eq!(answers.len(), 500);
    let mut times = Vec::new();
    for (n, answer, told_at) in answers {
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.body, stage.sim.body(ids[n % ids.len()], "streaming"));
        times.push(told_at);
    }
    let spread = *times.iter().max().unwrap() - *times.iter().min().unwrap();
    assert!(spread > Duration::from_secs(2), "they are spread over the window, not a herd: {spread:?}");
    // A poll and a look a clip, and on a slow machine another look for who came too late for the first.
    assert!(
        stage.upstream_requests().len() <= 3 * ids.len(),
        "no herd of looks: {:?}",
        stage.upstream_requests()
    );
}

#[tokio::test]
async fn a_passed_through_request_gets_the_window_to_end() {
    let stage = TestGateway::with(|config, _| config.server.drain_timeout = Duration::from_secs(20)).await;
    let slow = stage.spawn_get("/sim/stream?n=5&every=100ms", &[]);
    stage.wait_until(|seen| seen.count("/sim/stream") == 1).await;
    stage.stop();
    assert_eq!(slow.await.unwrap().status, StatusCode::OK);
}

#[tokio::test]
async fn a_client_that_has_just_connected_at_the_stop_is_answered_and_told_to_go() {
    let stage = TestGateway::with(|config, _| config.server.drain_timeout = Duration::from_secs(60)).await;
    let mut stream = TcpStream::connect(stage.address).await.unwrap();
    stream.write_all(b"GET /sim/echo HTTP/1.1\r\n").await.unwrap();
    stage.stop();
    stream.write_all(b"host: x\r\n\r\n").await.unwrap();
    let mut back = Vec::new();
    within_secs(30, stream.read_to_end(&mut back)).await.unwrap();
    let (answer, rest) =
        parse_response(&back).unwrap_or_else(|| panic!("{:?}", String::from_utf8_lossy(&back)));
    assert_eq!((answer.status, rest.len()), (StatusCode::OK, 0));
    assert_eq!(answer.headers["connection"], "close");
}
