//! Many waits, one poll: who shares it, who may leave it, and when it ends (promises 3 and 6).

use std::time::Duration;

use clipgate::sim::RequestEnd;
use clipgate::testing::clock;
use http::{Request, StatusCode};

use crate::harness::gateway::{Answer, TestGateway, clip_target, clips_target, join_all, set_hold};

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn three_hundred_identical_waits_make_one_request_and_get_the_same_bytes() {
    let stage = TestGateway::with_hold(LONG).await;
    stage.sim.set_status("a", "submitted");
    let ask = |_| stage.spawn_get(&clip_target("a", "completed"), &[]);
    let mut waits: Vec<_> = (0..150).map(ask).collect();
    stage.wait_until_parked(150).await;
    stage.wait_until(|seen| seen.open == 1).await;
    waits.extend((0..150).map(ask)); // they join a poll that has long been open
    stage.wait_until_parked(300).await;
    stage.sim.set_status("a", "completed");

    let answers = join_all(waits).await;
    let body = stage.sim.body("a", "completed");
    assert!(answers.iter().all(|answer| answer.status == StatusCode::OK && answer.body == body));
    assert_eq!(answers.iter().filter(|answer| answer.is_opener()).count(), 1);
    assert_eq!(answers.iter().filter(|answer| answer.is_coalesced()).count(), 299);
    assert_eq!(stage.upstream_requests(), [clip_target("a", "completed")]);
}

#[tokio::test]
async fn waits_spelled_in_different_ways_are_identical() {
    let stage = TestGateway::with_hold(LONG).await;
    stage.sim.set_status("a", "submitted");
    stage.sim.set_status("b", "completed");
    let clips = "/v2/generate/audio/suno-ai/clips";
    let targets = [
        clips_target(&["a", "b"], "completed"),
        clips_target(&["b", "a"], "completed"),
        clips_target(&["a", "b"], "complete"),
        format!("{clips}?status=completed&clip_ids[]=a&clip_ids[]=b"),
        format!("{clips}?clip_ids[0]=b&clip_ids[1]=a&status=completed"),
        format!("{clips}?clip_ids=a&status=complete&clip_ids=b"),
    ];
    let waits: Vec<_> = targets.iter().map(|target| stage.spawn_get(target, &[])).collect();
    stage.wait_until_parked(targets.len()).await;
    stage.wait_until(|seen| seen.open == 1).await;
    stage.sim.set_status("a", "completed");
    let answers = join_all(waits).await;
    assert!(answers.iter().all(|answer| answer.status == StatusCode::OK));
    assert_eq!(stage.upstream_requests(), [clips_target(&["a", "b"], "completed")]);
}

#[tokio::test]
async fn keys_do_not_share() {
    let stage = TestGateway::with_hold(LONG).await;
    stage.sim.set_status("a", "submitted");
    let waits = ["Bearer one", "Bearer two"]
        .map(|key| stage.spawn_get(&clip_target("a", "completed"), &[("authorization", key)]));
    stage.wait_until(|seen| seen.open == 2).await;
    stage.sim.set_status("a", "completed");
    let answers = join_all(waits.into()).await;
    assert!(answers.iter().all(Answer::is_opener));
    let requests = stage.sim.requests();
    assert_eq!(requests.len(), 2);
    assert_ne!(requests[0].key, requests[1].key);
}

#[tokio::test]
async fn the_opener_hangs_up_and_the_rest_is_served_by_its_request() {
    let stage = TestGateway::with_hold(LONG).await;
    stage.sim.set_status("a", "submitted");
    let opener = stage.spawn_get(&clip_target("a", "completed"), &[]);
    stage.wait_until(|seen| seen.open == 1).await;
    let rest: Vec<_> = (0..5).map(|_| stage.spawn_get(&clip_target("a", "completed"), &[])).collect();
    stage.wait_until_parked(6).await;
    drop(opener);
    stage.wait_until_parked(5).await;
    stage.sim.set_status("a", "completed");
    let body = stage.sim.body("a", "completed");
    assert!(join_all(rest).await.iter().all(|answer| answer.body == body && answer.is_coalesced()));
    let requests = stage.sim.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].end, RequestEnd::Answered(StatusCode::OK));
}

#[tokio::test]
async fn when_all_hang_up_the_poll_is_cancelled_at_the_upstream_after_linger() {
    let stage = TestGateway::with_hold(LONG).await;
    stage.sim.set_status("a", "submitted");
    let waits: Vec<_> = (0..3).map(|_| stage.spawn_get(&clip_target("a", "completed"), &[])).collect();
    stage.wait_until_parked(3).await;
    stage.wait_until(|seen| seen.open == 1).await;
    let left = clock::now();
    drop(waits);
    stage.wait_until(|seen| seen.abandoned() == 1 && seen.open == 0).await;
    let requests = stage.sim.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].end, RequestEnd::Abandoned);
    let ended = requests[0].ended_at.unwrap();
    assert!(ended - left >= Duration::from_millis(200), "{:?}", ended - left);
}

#[tokio::test]
async fn a_wait_that_comes_back_within_linger_finds_its_poll() {
    let stage = TestGateway::with(|config, options| {
        set_hold(LONG, config, options);
        config.wait.linger = LONG;
    })
    .await;
    stage.sim.set_status("a", "submitted");
    let first = stage.spawn_get(&clip_target("a", "completed"), &[]);
    stage.wait_until(|seen| seen.open == 1).await;
    drop(first);
    stage.wait_until_parked(0).await;
    let again = stage.spawn_get(&clip_target("a", "completed"), &[]);
    stage.wait_until_parked(1).await;
    stage.sim.set_status("a", "completed");
    let answer = again.await.unwrap();
    assert_eq!(answer.body, stage.sim.body("a", "completed"));
    assert!(answer.is_coalesced(), "{answer:?}");
    assert_eq!(stage.upstream_requests(), [clip_target("a", "completed")]);
}

#[tokio::test]
async fn identical_requests_that_are_no_waits_share_nothing() {
    let stage = TestGateway::new().await;
    let target = "/v2/generate/audio/suno-ai/clip";
    let make = || {
        let request = Request::post(target).header("authorization", "Bearer demo");
        stage.send(request.body("{\"prompt\":\"night drive\"}".into()).unwrap())
    };
    let (one, other) = tokio::join!(make(), make());
    assert_eq!([one.status, other.status], [StatusCode::CREATED; 2]);
    assert_ne!(one.body, other.body);
    assert_eq!(stage.upstream_requests(), [target; 2]);
}
