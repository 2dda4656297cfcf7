//! Waits that overlap: polls and states that they share (P4, P8), and no dependence on another wait's jobs (P5).

use std::time::Duration;

use clipgate::sim::{Fault, FaultTarget, RequestEnd};
use http::StatusCode;
use serde_json::Value;

use crate::harness::gateway::{TestGateway, clip_target, clips_target, join_all};

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_poll_for_streaming_that_brings_error_answers_the_waits_for_completed_at_once() {
    let gateway = TestGateway::with_hold(LONG).await;
    gateway.sim.set_status("a", "submitted");
    // The poll for `completed` is never answered: the state can come from the other poll only.
    gateway.sim.fault(FaultTarget::Path(clip_target("a", "completed")), Fault::Hang, 1);
    let mut waits: Vec<_> = (0..3).map(|_| gateway.spawn_get(&clip_target("a", "completed"), &[])).collect();
    gateway.wait_until_parked(3).await;
    gateway.wait_until(|seen| seen.open == 1).await;
    waits.push(gateway.spawn_get(&clip_target("a", "streaming"), &[]));
    gateway.wait_until(|seen| seen.open == 2).await;
    gateway.sim.set_status("a", "error");
    let body = gateway.sim.body("a", "error");
    assert!(
        join_all(waits).await.iter().all(|answer| answer.status == StatusCode::OK && answer.body == body)
    );
    assert_eq!(gateway.upstream_requests(), [clip_target("a", "completed"), clip_target("a", "streaming")]);
    gateway.wait_until(|seen| seen.abandoned() == 1).await;
}

#[tokio::test]
async fn a_wait_for_completed_attaches_to_an_open_poll_for_streaming() {
    let gateway = TestGateway::with_hold(LONG).await;
    gateway.sim.set_status("a", "submitted");
    let streaming = gateway.spawn_get(&clip_target("a", "streaming"), &[]);
    gateway.wait_until(|seen| seen.open == 1).await;
    let completed = gateway.spawn_get(&clip_target("a", "completed"), &[]);
    gateway.wait_until_parked(2).await;
    gateway.sim.set_status("a", "streaming");
    assert_eq!(streaming.await.unwrap().body, gateway.sim.body("a", "streaming"));
    gateway.wait_until(|seen| seen.open == 1 && seen.requests.len() == 2).await;
    gateway.sim.set_status("a", "completed");
    let completed = completed.await.unwrap();
    assert_eq!(completed.body, gateway.sim.body("a", "completed"));
    assert_eq!(gateway.upstream_requests(), [clip_target("a", "streaming"), clip_target("a", "completed")]);
}

#[tokio::test]
async fn a_wait_for_one_clip_does_not_depend_on_a_wait_for_two() {
    let gateway = TestGateway::with_hold(LONG).await;
    gateway.sim.set_status("a", "submitted");
    gateway.sim.set_status("b", "submitted");
    let both = gateway.spawn_get(&clips_target(&["a", "b"], "completed"), &[]);
    gateway.wait_until(|seen| seen.open == 1).await;
    let one = gateway.spawn_get(&clip_target("a", "completed"), &[]);
    gateway.wait_until(|seen| seen.open == 2).await;
    gateway.sim.set_status("a", "completed");
    assert_eq!(one.await.unwrap().body, gateway.sim.body("a", "completed"));
    assert!(!both.is_finished());
    gateway.sim.set_status("b", "completed");
    assert_eq!(both.await.unwrap().status, StatusCode::OK);
    assert_eq!(
        gateway.upstream_requests(),
        [clips_target(&["a", "b"], "completed"), clip_target("a", "completed")]
    );
}

#[tokio::test]
async fn an_unknown_clip_fails_the_wait_that_names_it_and_no_other() {
    let gateway = TestGateway::with_hold(LONG).await;
    gateway.sim.set_status("a", "submitted");
    gateway.sim.set_status("b", "submitted");
    let ones = ["a", "b"].map(|id| gateway.spawn_get(&clip_target(id, "completed"), &[]));
    let both = gateway.spawn_get(&clips_target(&["a", "b"], "completed"), &[]);
    gateway.wait_until_parked(3).await;
    gateway.wait_until(|seen| seen.open == 3 || (seen.open == 2 && seen.requests.len() == 2)).await;
    let sent_before = gateway.upstream_requests().len();
    let not_found = gateway.get(&clips_target(&["a", "ghost", "b"], "completed"), &[]).await;
    assert_eq!(not_found.status, StatusCode::NOT_FOUND);
    let error: Value = serde_json::from_slice(&not_found.body).unwrap();
    assert_eq!(error["message"], "Clip not found");
    assert_eq!(error["statusCode"], 404);
    gateway.wait_until_parked(3).await;
    gateway.sim.set_status("a", "completed");
    gateway.sim.set_status("b", "completed");
    for (id, one) in ["a", "b"].into_iter().zip(ones) {
        assert_eq!(one.await.unwrap().body, gateway.sim.body(id, "completed"));
    }
    assert_eq!(both.await.unwrap().status, StatusCode::OK);
    assert_eq!(gateway.upstream_requests().len(), sent_before + 1);
}

#[tokio::test]
async fn a_wait_for_several_clips_asks_only_for_those_neither_cached_nor_polled() {
    let gateway = TestGateway::with_hold(LONG).await;
    gateway.sim.set_status("cached", "completed");
    gateway.sim.set_status("polled", "submitted");
    gateway.sim.set_status("new", "submitted");
    gateway.get(&clip_target("cached", "completed"), &[]).await;
    let one = gateway.spawn_get(&clip_target("polled", "completed"), &[]);
    gateway.wait_until(|seen| seen.open == 1).await;
    // The wait ends before the upstream ends the older poll, so it need not ask for `polled` too.
    let ids = ["new", "polled", "cached"];
    let wait = gateway.spawn_get(&clips_target(&ids, "completed"), &[("prefer", "wait=40")]);
    gateway.wait_until(|seen| seen.open == 2).await;
    gateway.sim.set_status("polled", "completed");
    gateway.sim.set_status("new", "completed");
    one.await.unwrap();
    let bodies = ids.map(|id| String::from_utf8(gateway.sim.body(id, "completed").to_vec()).unwrap());
    assert_eq!(wait.await.unwrap().body, format!("[{}]", bodies.join(",")));
    let expected = [
        clip_target("cached", "completed"),
        clip_target("polled", "completed"),
        clips_target(&["new"], "completed"),
    ];
    assert_eq!(gateway.upstream_requests(), expected);
}

#[tokio::test]
async fn complete_and_completed_are_one_rung_and_bodies_are_never_rewritten() {
    let gateway = TestGateway::with_hold(LONG).await;
    gateway.sim.set_status("a", "submitted");
    let waits = ["complete", "completed"].map(|word| gateway.spawn_get(&clip_target("a", word), &[]));
    gateway.wait_until_parked(2).await;
    gateway.wait_until(|seen| seen.open == 1).await;
    gateway.sim.set_status("a", "completed");
    let body = gateway.sim.body("a", "completed");
    assert!(String::from_utf8_lossy(&body).contains("\"status\":\"complete\""));
    assert!(join_all(waits.into()).await.iter().all(|answer| answer.body == body));
    for word in ["complete", "completed"] {
        let again = gateway.get(&clip_target("a", word), &[]).await;
        assert!(again.is_hit() && again.body == body, "{again:?}");
    }
    assert_eq!(gateway.upstream_requests(), [clip_target("a", "completed")]);
}

#[tokio::test]
async fn a_terminal_clip_costs_no_further_request_at_either_endpoint() {
    let gateway = TestGateway::with_hold(LONG).await;
    gateway.sim.set_status("made", "completed");
    gateway.sim.set_status("failed", "error");
    gateway.sim.set_status("other", "submitted");
    let state = |id| gateway.sim.body(id, if id == "failed" { "error" } else { "completed" });
    let list = |ids: &[&'static str]| {
        let bodies: Vec<_> = ids.iter().map(|id| String::from_utf8(state(id).to_vec()).unwrap()).collect();
        format!("[{}]", bodies.join(","))
    };
    for id in ["made", "failed"] {
        assert_eq!(gateway.get(&clip_target(id, "queued"), &[]).await.body, state(id));
    }
    let known = [clip_target("made", "queued"), clip_target("failed", "queued")];
    assert_eq!(gateway.upstream_requests(), known);

    for status in ["completed", "complete", "streaming", "queued", "submitted", ""] {
        for id in ["made", "failed"] {
            let one = gateway.get(&clip_target(id, status), &[]).await;
            assert!(one.is_hit() && one.body == state(id), "{status} {one:?}");
            let alone = gateway.get(&clips_target(&[id], status), &[]).await;
            assert!(alone.is_hit() && alone.body == list(&[id]), "{status} {alone:?}");
        }
        let both = gateway.get(&clips_target(&["made", "failed"], status), &[]).await;
        assert!(both.is_hit() && both.body == list(&["made", "failed"]), "{status} {both:?}");
    }
    assert_eq!(gateway.upstream_requests(), known);

    let wait = gateway.spawn_get(&clips_target(&["failed", "other", "made"], "completed"), &[]);
    gateway.wait_until(|seen| seen.open == 1).await;
    gateway.sim.set_status("other", "completed");
    assert_eq!(wait.await.unwrap().body, list(&["failed", "other", "made"]));
    assert_eq!(gateway.upstream_requests()[2..], [clips_target(&["other"], "completed")]);
    assert!(gateway.sim.requests().iter().all(|seen| seen.end == RequestEnd::Answered(StatusCode::OK)));
}

#[tokio::test]
async fn waits_on_one_clip_at_both_endpoints_share_one_poll() {
    let gateway = TestGateway::with_hold(LONG).await;
    for (id, opener, joiner) in [
        ("a", clip_target("a", "completed"), clips_target(&["a"], "completed")),
        ("b", clips_target(&["b"], "completed"), clip_target("b", "completed")),
    ] {
        gateway.sim.set_status(id, "submitted");
        let opener = gateway.spawn_get(&opener, &[]);
        gateway.wait_until(|seen| seen.open == 1).await;
        let joiner = gateway.spawn_get(&joiner, &[]);
        gateway.wait_until_parked(2).await;
        gateway.sim.set_status(id, "completed");
        let mut bodies = [opener.await.unwrap().body, joiner.await.unwrap().body];
        bodies.sort_by_key(bytes::Bytes::len);
        let body = gateway.sim.body(id, "completed");
        assert_eq!(bodies[0], body);
        assert_eq!(bodies[1], [b"[", &body[..], b"]"].concat());
    }
    assert_eq!(
        gateway.upstream_requests(),
        [clip_target("a", "completed"), clips_target(&["b"], "completed")]
    );
}

#[tokio::test]
async fn a_state_that_goes_back_is_ignored() {
    let gateway = TestGateway::with_hold(LONG).await;
    gateway.sim.set_status("a", "queued");
    let completed = gateway.spawn_get(&clip_target("a", "completed"), &[]);
    let streaming = gateway.spawn_get(&clip_target("a", "streaming"), &[]);
    gateway.wait_until(|seen| seen.open >= 1).await;
    gateway.wait_until_parked(2).await;
    gateway.sim.set_status("a", "streaming");
    assert_eq!(streaming.await.unwrap().body, gateway.sim.body("a", "streaming"));
    gateway.wait_until(|seen| seen.open == 1).await;
    gateway.sim.set_status("a", "queued");
    let now = gateway.get(&clip_target("a", "completed"), &[("prefer", "wait=0")]).await;
    assert_eq!(now.body, gateway.sim.body("a", "streaming"));
    gateway.sim.set_status("a", "completed");
    assert_eq!(completed.await.unwrap().body, gateway.sim.body("a", "completed"));
}

#[tokio::test]
async fn an_unknown_status_answers_the_waits_at_once_and_is_not_cached() {
    let gateway = TestGateway::with_hold(LONG).await;
    gateway.sim.set_status("a", "submitted");
    let waits: Vec<_> = (0..3).map(|_| gateway.spawn_get(&clip_target("a", "completed"), &[])).collect();
    gateway.wait_until_parked(3).await;
    gateway.wait_until(|seen| seen.open == 1).await;
    gateway.sim.set_status("a", "paused");
    let body = gateway.sim.body("a", "paused");
    for answer in join_all(waits).await {
        assert_eq!(answer.body, body);
        assert_eq!(answer.field("cache-control"), "no-store");
    }
    let again = gateway.get(&clip_target("a", "streaming"), &[]).await;
    assert!(again.is_opener() && again.body == body, "{again:?}");
    assert_eq!(gateway.upstream_requests(), [clip_target("a", "completed"), clip_target("a", "streaming")]);
}
