//! Each wait has its own time, and at its end the truth (promises 2, 7 and 9).
//!
//! Where a test lets time pass, that is the scenario: an upstream's time and a wait's own are over at different
//! moments. Whether the first wait needs a look of its own when both are over at the same moment depends on how
//! busy the machine is, so that looks are counted from there on.

use std::time::Duration;

use http::StatusCode;

use crate::harness::gateway::{TestGateway, clip_target, clips_target, join_all, set_hold};

#[tokio::test]
async fn a_late_joiner_keeps_its_own_time_and_is_told_what_is_reached_in_it() {
    let hold = Duration::from_secs(3);
    let stage = TestGateway::with_hold(hold).await;
    stage.sim.set_status("a", "submitted");
    let first = stage.spawn_get(&clip_target("a", "completed"), &[]);
    stage.wait_until(|seen| seen.open == 1).await;
    tokio::time::sleep(hold / 2).await;
    let late = stage.spawn_get(&clip_target("a", "completed"), &[]);
    let first = first.await.unwrap();
    assert_eq!(first.body, stage.sim.body("a", "submitted"));
    assert!(first.took >= hold, "{:?}", first.took);

    stage.wait_until(|seen| seen.open == 1 && seen.requests.len() >= 2).await;
    stage.sim.set_status("a", "completed");
    let late = late.await.unwrap();
    assert_eq!(late.body, stage.sim.body("a", "completed"));
    assert_eq!(stage.upstream_requests_for_status("completed"), 2);
    assert!(stage.upstream_requests_for_status("submitted") <= 1);
}

#[tokio::test]
async fn a_late_joiner_is_told_the_true_state_at_its_own_deadline() {
    let hold = Duration::from_secs(2);
    let stage = TestGateway::with_hold(hold).await;
    stage.sim.set_status("a", "submitted");
    let first = stage.spawn_get(&clip_target("a", "completed"), &[]);
    stage.wait_until(|seen| seen.open == 1).await;
    tokio::time::sleep(hold / 2).await;
    let late = stage.spawn_get(&clip_target("a", "completed"), &[]);
    let first = first.await.unwrap();
    assert_eq!(first.body, stage.sim.body("a", "submitted"));

    // The poll that the upstream ended is open again, and nothing tells of this before the deadline.
    stage.wait_until(|seen| seen.open == 1 && seen.requests.len() >= 2).await;
    let looks = stage.upstream_requests_for_status("submitted");
    stage.sim.set_status("a", "queued");
    let late = late.await.unwrap();
    assert_eq!(late.status, StatusCode::OK);
    assert_eq!(late.body, stage.sim.body("a", "queued"));
    assert_eq!(late.field("cache-control"), "no-store");
    assert!(late.took >= hold, "{:?}", late.took);
    assert_eq!(stage.upstream_requests_for_status("completed"), 2);
    assert_eq!(stage.upstream_requests_for_status("submitted"), looks + 1);
}

#[tokio::test]
async fn a_deadline_costs_no_request_where_a_pending_poll_proves_the_state() {
    let hold = Duration::from_secs(2);
    let stage = TestGateway::with_hold(hold).await;
    stage.sim.set_status("a", "streaming");
    let first = stage.spawn_get(&clip_target("a", "completed"), &[]);
    stage.wait_until(|seen| seen.open == 1).await;
    tokio::time::sleep(hold / 2).await;
    let late = stage.spawn_get(&clip_target("a", "completed"), &[]);
    first.await.unwrap();
    stage.wait_until(|seen| seen.open == 1 && seen.requests.len() >= 2).await;
    let looks = stage.upstream_requests_for_status("submitted");
    let late = late.await.unwrap();
    assert_eq!(late.body, stage.sim.body("a", "streaming"));
    assert!(late.took >= hold, "{:?}", late.took);
    assert_eq!(stage.upstream_requests_for_status("completed"), 2);
    assert_eq!(stage.upstream_requests_for_status("submitted"), looks);
}

#[tokio::test]
async fn a_client_may_wait_for_a_shorter_time() {
    let stage = TestGateway::with_hold(Duration::from_secs(60)).await;
    stage.sim.set_status("a", "queued");
    let answer = stage.get(&clip_target("a", "completed"), &[("prefer", "wait=1")]).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.body, stage.sim.body("a", "queued"));
    assert_eq!(answer.field("preference-applied"), "wait=1");
    assert!(answer.took >= Duration::from_secs(1), "{:?}", answer.took);
    assert_eq!(stage.upstream_requests(), [clip_target("a", "completed"), clip_target("a", "submitted")]);
    stage.wait_until(|seen| seen.abandoned() == 1).await;
}

#[tokio::test]
async fn a_client_may_wait_for_a_longer_time() {
    let hold = Duration::from_secs(1);
    let stage = TestGateway::with_hold(hold).await;
    stage.sim.set_status("a", "submitted");
    let wait = stage.spawn_get(&clip_target("a", "completed"), &[("prefer", "respond-async, wait=25")]);
    stage.wait_until(|seen| seen.open == 1 && seen.requests.len() == 3).await;
    stage.sim.set_status("a", "completed");
    let answer = wait.await.unwrap();
    assert_eq!(answer.body, stage.sim.body("a", "completed"));
    assert_eq!(answer.field("preference-applied"), "wait=25");
    assert!(answer.took >= 2 * hold, "{:?}", answer.took);
    assert_eq!(stage.upstream_requests(), vec![clip_target("a", "completed"); 3]);
}

#[tokio::test]
async fn whatever_the_answer_is_it_says_which_preference_was_followed() {
    let stage = TestGateway::with_hold(Duration::from_secs(60)).await;
    stage.sim.set_status("a", "completed");
    let prefer = ("prefer", "wait=7");
    let opened = stage.get(&clip_target("a", "completed"), &[prefer]).await;
    let etag = opened.field("etag").to_owned();
    let hit = stage.get(&clips_target(&["a"], "completed"), &[prefer]).await;
    let unchanged = stage.get(&clip_target("a", "completed"), &[prefer, ("if-none-match", &etag)]).await;
    let refused = stage.get(&clip_target("ghost", "completed"), &[prefer]).await;
    let answers = [(opened, 200), (hit, 200), (unchanged, 304), (refused, 404)];
    for (answer, status) in &answers {
        assert_eq!((answer.status.as_u16(), answer.field("preference-applied")), (*status, "wait=7"));
    }
    assert_eq!(answers.len(), 4);
}

#[tokio::test]
async fn no_wait_is_longer_than_max_timeout() {
    let max = Duration::from_secs(1);
    let stage = TestGateway::with(|config, options| {
        set_hold(Duration::from_secs(60), config, options);
        config.wait.max_timeout = max;
    })
    .await;
    stage.sim.set_status("a", "queued");
    let answer = stage.get(&clip_target("a", "completed"), &[("prefer", "wait=500")]).await;
    assert_eq!(answer.body, stage.sim.body("a", "queued"));
    assert_eq!(answer.field("preference-applied"), "wait=1");
    assert!(answer.took >= max, "{:?}", answer.took);
}

#[tokio::test]
async fn a_wait_of_no_time_is_told_the_true_state_at_once() {
    let stage = TestGateway::with_hold(Duration::from_secs(60)).await;
    stage.sim.set_status("a", "streaming");
    let answer = stage.get(&clip_target("a", "completed"), &[("prefer", "wait=0")]).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.body, stage.sim.body("a", "streaming"));
    assert_eq!(answer.field("preference-applied"), "wait=0");
    assert_eq!(stage.upstream_requests(), [clip_target("a", "submitted")]);
}

#[tokio::test]
async fn a_wait_without_a_preference_is_told_of_none() {
    let stage = TestGateway::new().await;
    stage.sim.set_status("a", "completed");
    let answer = stage.get(&clip_target("a", "completed"), &[]).await;
    assert!(!answer.headers.contains_key("preference-applied"));
}

#[tokio::test]
async fn an_upstream_that_does_not_hold_its_polls_is_not_hammered() {
    let wait = Duration::from_secs(2);
    let stage = TestGateway::with(|config, options| {
        options.hold = Duration::from_millis(1);
        config.upstream.poll_timeout = Duration::from_secs(20);
        config.wait.timeout = wait;
    })
    .await;
    stage.sim.set_status("a", "queued");
    let waits: Vec<_> = (0..20).map(|_| stage.spawn_get(&clip_target("a", "completed"), &[])).collect();
    let answers = join_all(waits).await;
    let body = stage.sim.body("a", "queued");
    assert!(answers.iter().all(|answer| answer.body == body && answer.took >= wait));
    // Once in a hundredth of the time that it was said to hold.
    let longest = answers.iter().map(|answer| answer.took).max().unwrap();
    let most = longest.as_millis() / 200 + 1;
    let asked = stage.upstream_requests_for_status("completed");
    assert!(asked >= 2 && asked as u128 <= most, "{asked} requests, at most {most} are right");
}

#[tokio::test]
async fn waits_of_different_lengths_share_one_poll_and_end_one_by_one() {
    let stage = TestGateway::with_hold(Duration::from_secs(60)).await;
    stage.sim.set_status("a", "queued");
    let long = stage.spawn_get(&clip_target("a", "completed"), &[]);
    stage.wait_until(|seen| seen.open == 1).await;
    let short = stage.get(&clip_target("a", "completed"), &[("prefer", "wait=1")]).await;
    assert_eq!(short.body, stage.sim.body("a", "queued"));
    stage.wait_until_parked(1).await;
    assert_eq!(stage.sim.open(), 1);
    stage.sim.set_status("a", "completed");
    let long = long.await.unwrap();
    assert_eq!(long.body, stage.sim.body("a", "completed"));
    assert_eq!(stage.upstream_requests(), [clip_target("a", "completed"), clip_target("a", "submitted")]);
}

#[tokio::test]
async fn what_another_poll_taught_is_enough_for_a_deadline_while_the_next_rung_is_asked_for() {
    let stage = TestGateway::with_hold(Duration::from_secs(60)).await;
    stage.sim.set_status("a", "submitted");
    let streaming = stage.spawn_get(&clip_target("a", "streaming"), &[]);
    stage.wait_until(|seen| seen.open == 1).await;
    let completed = stage.spawn_get(&clip_target("a", "completed"), &[("prefer", "wait=3")]);
    stage.wait_until_parked(2).await;
    stage.sim.set_status("a", "streaming");
    streaming.await.unwrap();
    let completed = completed.await.unwrap();
    assert_eq!(completed.body, stage.sim.body("a", "streaming"));
    assert!(completed.took >= Duration::from_secs(3), "{:?}", completed.took);
    assert_eq!(stage.upstream_requests(), [clip_target("a", "streaming"), clip_target("a", "completed")]);
}

#[tokio::test]
async fn at_its_deadline_a_multi_wait_looks_only_for_what_is_not_known() {
    let stage = TestGateway::with_hold(Duration::from_secs(60)).await;
    stage.sim.set_status("made", "completed");
    stage.sim.set_status("queued", "queued");
    stage.get(&clip_target("made", "completed"), &[]).await;
    let wait = stage.get(&clips_target(&["queued", "made"], "completed"), &[("prefer", "wait=1")]).await;
    let bodies = [stage.sim.body("queued", "queued"), stage.sim.body("made", "completed")];
    assert_eq!(wait.body, [b"[", &bodies[0][..], b",", &bodies[1][..], b"]"].concat());
    assert_eq!(wait.field("cache-control"), "no-store");
    let asked = [
        clip_target("made", "completed"),
        clips_target(&["queued"], "completed"),
        clips_target(&["queued"], "submitted"),
    ];
    assert_eq!(stage.upstream_requests(), asked);
}
