//! Each wait keeps its own time (P2, P9) and gets the true state at its end (P7).
//!
//! A test sleeps only where the passing of time is the scenario: the upstream's hold and the time of a wait end at
//! different moments. Where both end together, a busy machine decides whether the wait needs a snapshot, so snapshots are
//! counted from then on.

use std::time::Duration;

use http::StatusCode;

use crate::harness::gateway::{TestGateway, clip_target, clips_target, join_all, set_hold};

#[tokio::test]
async fn a_late_joiner_keeps_its_own_time_and_gets_a_rung_reached_in_it() {
    let hold = Duration::from_secs(3);
    let gateway = TestGateway::with_hold(hold).await;
    gateway.sim.set_status("a", "submitted");
    let first = gateway.spawn_get(&clip_target("a", "completed"), &[]);
    gateway.wait_until(|seen| seen.open == 1).await;
    tokio::time::sleep(hold / 2).await;
    let late = gateway.spawn_get(&clip_target("a", "completed"), &[]);
    let first = first.await.unwrap();
    assert_eq!(first.body, gateway.sim.body("a", "submitted"));
    assert!(first.took >= hold, "{:?}", first.took);

    gateway.wait_until(|seen| seen.open == 1 && seen.requests.len() >= 2).await;
    gateway.sim.set_status("a", "completed");
    let late = late.await.unwrap();
    assert_eq!(late.body, gateway.sim.body("a", "completed"));
    assert_eq!(gateway.upstream_requests_for_status("completed"), 2);
    assert!(gateway.upstream_requests_for_status("submitted") <= 1);
}

#[tokio::test]
async fn a_late_joiner_gets_the_true_state_at_its_own_deadline() {
    let hold = Duration::from_secs(2);
    let gateway = TestGateway::with_hold(hold).await;
    gateway.sim.set_status("a", "submitted");
    let first = gateway.spawn_get(&clip_target("a", "completed"), &[]);
    gateway.wait_until(|seen| seen.open == 1).await;
    tokio::time::sleep(hold / 2).await;
    let late = gateway.spawn_get(&clip_target("a", "completed"), &[]);
    let first = first.await.unwrap();
    assert_eq!(first.body, gateway.sim.body("a", "submitted"));

    // The second poll is open, and `queued` ends no poll before the deadline.
    gateway.wait_until(|seen| seen.open == 1 && seen.requests.len() >= 2).await;
    let snapshots = gateway.upstream_requests_for_status("submitted");
    gateway.sim.set_status("a", "queued");
    let late = late.await.unwrap();
    assert_eq!(late.status, StatusCode::OK);
    assert_eq!(late.body, gateway.sim.body("a", "queued"));
    assert_eq!(late.field("cache-control"), "no-store");
    assert!(late.took >= hold, "{:?}", late.took);
    assert_eq!(gateway.upstream_requests_for_status("completed"), 2);
    assert_eq!(gateway.upstream_requests_for_status("submitted"), snapshots + 1);
}

#[tokio::test]
async fn a_deadline_costs_no_request_where_a_held_poll_proves_the_state() {
    let hold = Duration::from_secs(2);
    let gateway = TestGateway::with_hold(hold).await;
    gateway.sim.set_status("a", "streaming");
    let first = gateway.spawn_get(&clip_target("a", "completed"), &[]);
    gateway.wait_until(|seen| seen.open == 1).await;
    tokio::time::sleep(hold / 2).await;
    let late = gateway.spawn_get(&clip_target("a", "completed"), &[]);
    first.await.unwrap();
    gateway.wait_until(|seen| seen.open == 1 && seen.requests.len() >= 2).await;
    let snapshots = gateway.upstream_requests_for_status("submitted");
    let late = late.await.unwrap();
    assert_eq!(late.body, gateway.sim.body("a", "streaming"));
    assert!(late.took >= hold, "{:?}", late.took);
    assert_eq!(gateway.upstream_requests_for_status("completed"), 2);
    assert_eq!(gateway.upstream_requests_for_status("submitted"), snapshots);
}

#[tokio::test]
async fn a_client_can_ask_for_a_shorter_wait() {
    let gateway = TestGateway::with_hold(Duration::from_secs(60)).await;
    gateway.sim.set_status("a", "queued");
    let answer = gateway.get(&clip_target("a", "completed"), &[("prefer", "wait=1")]).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.body, gateway.sim.body("a", "queued"));
    assert_eq!(answer.field("preference-applied"), "wait=1");
    assert!(answer.took >= Duration::from_secs(1), "{:?}", answer.took);
    assert_eq!(gateway.upstream_requests(), [clip_target("a", "completed"), clip_target("a", "submitted")]);
    gateway.wait_until(|seen| seen.abandoned() == 1).await;
}

#[tokio::test]
async fn a_client_can_ask_for_a_longer_wait() {
    let hold = Duration::from_secs(1);
    let gateway = TestGateway::with_hold(hold).await;
    gateway.sim.set_status("a", "submitted");
    let wait = gateway.spawn_get(&clip_target("a", "completed"), &[("prefer", "respond-async, wait=25")]);
    gateway.wait_until(|seen| seen.open == 1 && seen.requests.len() == 3).await;
    gateway.sim.set_status("a", "completed");
    let answer = wait.await.unwrap();
    assert_eq!(answer.body, gateway.sim.body("a", "completed"));
    assert_eq!(answer.field("preference-applied"), "wait=25");
    assert!(answer.took >= 2 * hold, "{:?}", answer.took);
    assert_eq!(gateway.upstream_requests(), vec![clip_target("a", "completed"); 3]);
}

#[tokio::test]
async fn every_answer_to_a_wait_names_the_preference_that_was_applied() {
    let gateway = TestGateway::with_hold(Duration::from_secs(60)).await;
    gateway.sim.set_status("a", "completed");
    let prefer = ("prefer", "wait=7");
    let opened = gateway.get(&clip_target("a", "completed"), &[prefer]).await;
    let etag = opened.field("etag").to_owned();
    let hit = gateway.get(&clips_target(&["a"], "completed"), &[prefer]).await;
    let unchanged = gateway.get(&clip_target("a", "completed"), &[prefer, ("if-none-match", &etag)]).await;
    let not_found = gateway.get(&clip_target("ghost", "completed"), &[prefer]).await;
    let answers = [(opened, 200), (hit, 200), (unchanged, 304), (not_found, 404)];
    for (answer, status) in &answers {
        assert_eq!((answer.status.as_u16(), answer.field("preference-applied")), (*status, "wait=7"));
    }
    assert_eq!(answers.len(), 4);
}

#[tokio::test]
async fn max_timeout_bounds_a_preferred_wait() {
    let max = Duration::from_secs(1);
    let gateway = TestGateway::with(|config, options| {
        set_hold(Duration::from_secs(60), config, options);
        config.wait.max_timeout = max;
    })
    .await;
    gateway.sim.set_status("a", "queued");
    let answer = gateway.get(&clip_target("a", "completed"), &[("prefer", "wait=500")]).await;
    assert_eq!(answer.body, gateway.sim.body("a", "queued"));
    assert_eq!(answer.field("preference-applied"), "wait=1");
    assert!(answer.took >= max, "{:?}", answer.took);
}

#[tokio::test]
async fn a_wait_of_zero_seconds_gets_the_true_state_at_once() {
    let gateway = TestGateway::with_hold(Duration::from_secs(60)).await;
    gateway.sim.set_status("a", "streaming");
    let answer = gateway.get(&clip_target("a", "completed"), &[("prefer", "wait=0")]).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.body, gateway.sim.body("a", "streaming"));
    assert_eq!(answer.field("preference-applied"), "wait=0");
    assert_eq!(gateway.upstream_requests(), [clip_target("a", "submitted")]);
}

#[tokio::test]
async fn an_answer_to_a_wait_without_a_preference_names_none() {
    let gateway = TestGateway::new().await;
    gateway.sim.set_status("a", "completed");
    let answer = gateway.get(&clip_target("a", "completed"), &[]).await;
    assert!(!answer.headers.contains_key("preference-applied"));
}

#[tokio::test]
async fn an_upstream_that_does_not_hold_its_polls_gets_one_an_interval() {
    let wait = Duration::from_secs(2);
    let gateway = TestGateway::with(|config, options| {
        options.hold = Duration::from_millis(1);
        config.upstream.poll_timeout = Duration::from_secs(20);
        config.wait.timeout = wait;
    })
    .await;
    gateway.sim.set_status("a", "queued");
    let waits: Vec<_> = (0..20).map(|_| gateway.spawn_get(&clip_target("a", "completed"), &[])).collect();
    let answers = join_all(waits).await;
    let body = gateway.sim.body("a", "queued");
    assert!(answers.iter().all(|answer| answer.body == body && answer.took >= wait));
    // P1: at most one poll each `poll_timeout / 100`, here 200 ms.
    let longest = answers.iter().map(|answer| answer.took).max().unwrap();
    let limit = longest.as_millis() / 200 + 1;
    let polls = gateway.upstream_requests_for_status("completed");
    assert!(polls >= 2 && polls as u128 <= limit, "{polls} requests, at most {limit} are allowed");
}

#[tokio::test]
async fn waits_of_different_lengths_share_one_poll_and_end_one_by_one() {
    let gateway = TestGateway::with_hold(Duration::from_secs(60)).await;
    gateway.sim.set_status("a", "queued");
    let long = gateway.spawn_get(&clip_target("a", "completed"), &[]);
    gateway.wait_until(|seen| seen.open == 1).await;
    let short = gateway.get(&clip_target("a", "completed"), &[("prefer", "wait=1")]).await;
    assert_eq!(short.body, gateway.sim.body("a", "queued"));
    gateway.wait_until_parked(1).await;
    assert_eq!(gateway.sim.open(), 1);
    gateway.sim.set_status("a", "completed");
    let long = long.await.unwrap();
    assert_eq!(long.body, gateway.sim.body("a", "completed"));
    assert_eq!(gateway.upstream_requests(), [clip_target("a", "completed"), clip_target("a", "submitted")]);
}

#[tokio::test]
async fn a_state_from_another_poll_answers_a_deadline_while_a_poll_for_the_next_rung_is_held() {
    let gateway = TestGateway::with_hold(Duration::from_secs(60)).await;
    gateway.sim.set_status("a", "submitted");
    let streaming = gateway.spawn_get(&clip_target("a", "streaming"), &[]);
    gateway.wait_until(|seen| seen.open == 1).await;
    let completed = gateway.spawn_get(&clip_target("a", "completed"), &[("prefer", "wait=3")]);
    gateway.wait_until_parked(2).await;
    gateway.sim.set_status("a", "streaming");
    streaming.await.unwrap();
    let completed = completed.await.unwrap();
    assert_eq!(completed.body, gateway.sim.body("a", "streaming"));
    assert!(completed.took >= Duration::from_secs(3), "{:?}", completed.took);
    assert_eq!(gateway.upstream_requests(), [clip_target("a", "streaming"), clip_target("a", "completed")]);
}

#[tokio::test]
async fn at_the_deadline_a_wait_takes_a_snapshot_of_the_clips_without_a_known_state_only() {
    let gateway = TestGateway::with_hold(Duration::from_secs(60)).await;
    gateway.sim.set_status("cached", "completed");
    gateway.sim.set_status("queued", "queued");
    gateway.get(&clip_target("cached", "completed"), &[]).await;
    let wait = gateway.get(&clips_target(&["queued", "cached"], "completed"), &[("prefer", "wait=1")]).await;
    let bodies = [gateway.sim.body("queued", "queued"), gateway.sim.body("cached", "completed")];
    assert_eq!(wait.body, [b"[", &bodies[0][..], b",", &bodies[1][..], b"]"].concat());
    assert_eq!(wait.field("cache-control"), "no-store");
    let expected = [
        clip_target("cached", "completed"),
        clips_target(&["queued"], "completed"),
        clips_target(&["queued"], "submitted"),
    ];
    assert_eq!(gateway.upstream_requests(), expected);
}
