//! Waits that are not identical: what they share all the same, and what never (promises 4, 5 and 8).

use std::time::Duration;

use clipgate::sim::{Fault, FaultTarget, RequestEnd};
use http::StatusCode;
use serde_json::Value;

use crate::harness::gateway::{TestGateway, clip_target, clips_target, join_all};

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_streaming_poll_that_comes_back_error_ends_the_completed_waits_at_once() {
    let stage = TestGateway::with_hold(LONG).await;
    stage.sim.set_status("a", "submitted");
    // The completed poll is never answered, so that all that is learnt comes from the other.
    stage.sim.fault(FaultTarget::Path(clip_target("a", "completed")), Fault::Hang, 1);
    let mut waits: Vec<_> = (0..3).map(|_| stage.spawn_get(&clip_target("a", "completed"), &[])).collect();
    stage.wait_until_parked(3).await;
    stage.wait_until(|seen| seen.open == 1).await;
    waits.push(stage.spawn_get(&clip_target("a", "streaming"), &[]));
    stage.wait_until(|seen| seen.open == 2).await;
    stage.sim.set_status("a", "error");
    let body = stage.sim.body("a", "error");
    assert!(
        join_all(waits).await.iter().all(|answer| answer.status == StatusCode::OK && answer.body == body)
    );
    assert_eq!(stage.upstream_requests(), [clip_target("a", "completed"), clip_target("a", "streaming")]);
    stage.wait_until(|seen| seen.abandoned() == 1).await;
}

#[tokio::test]
async fn a_completed_wait_leans_on_a_streaming_poll_that_runs() {
    let stage = TestGateway::with_hold(LONG).await;
    stage.sim.set_status("a", "submitted");
    let streaming = stage.spawn_get(&clip_target("a", "streaming"), &[]);
    stage.wait_until(|seen| seen.open == 1).await;
    let completed = stage.spawn_get(&clip_target("a", "completed"), &[]);
    stage.wait_until_parked(2).await;
    stage.sim.set_status("a", "streaming");
    assert_eq!(streaming.await.unwrap().body, stage.sim.body("a", "streaming"));
    stage.wait_until(|seen| seen.open == 1 && seen.requests.len() == 2).await;
    stage.sim.set_status("a", "completed");
    let completed = completed.await.unwrap();
    assert_eq!(completed.body, stage.sim.body("a", "completed"));
    assert_eq!(stage.upstream_requests(), [clip_target("a", "streaming"), clip_target("a", "completed")]);
}

#[tokio::test]
async fn a_single_wait_is_not_held_by_the_multi_wait_of_another() {
    let stage = TestGateway::with_hold(LONG).await;
    stage.sim.set_status("a", "submitted");
    stage.sim.set_status("b", "submitted");
    let both = stage.spawn_get(&clips_target(&["a", "b"], "completed"), &[]);
    stage.wait_until(|seen| seen.open == 1).await;
    let one = stage.spawn_get(&clip_target("a", "completed"), &[]);
    stage.wait_until(|seen| seen.open == 2).await;
    stage.sim.set_status("a", "completed");
    assert_eq!(one.await.unwrap().body, stage.sim.body("a", "completed"));
    assert!(!both.is_finished());
    stage.sim.set_status("b", "completed");
    assert_eq!(both.await.unwrap().status, StatusCode::OK);
    assert_eq!(
        stage.upstream_requests(),
        [clips_target(&["a", "b"], "completed"), clip_target("a", "completed")]
    );
}

#[tokio::test]
async fn an_unknown_clip_fails_the_wait_that_names_it_and_no_other() {
    let stage = TestGateway::with_hold(LONG).await;
    stage.sim.set_status("a", "submitted");
    stage.sim.set_status("b", "submitted");
    let ones = ["a", "b"].map(|id| stage.spawn_get(&clip_target(id, "completed"), &[]));
    let both = stage.spawn_get(&clips_target(&["a", "b"], "completed"), &[]);
    stage.wait_until_parked(3).await;
    stage.wait_until(|seen| seen.open == 3 || (seen.open == 2 && seen.requests.len() == 2)).await;
    let asked = stage.upstream_requests().len();
    let refused = stage.get(&clips_target(&["a", "ghost", "b"], "completed"), &[]).await;
    assert_eq!(refused.status, StatusCode::NOT_FOUND);
    let error: Value = serde_json::from_slice(&refused.body).unwrap();
    assert_eq!(error["message"], "Clip not found");
    assert_eq!(error["statusCode"], 404);
    stage.wait_until_parked(3).await;
    stage.sim.set_status("a", "completed");
    stage.sim.set_status("b", "completed");
    for (id, one) in ["a", "b"].into_iter().zip(ones) {
        assert_eq!(one.await.unwrap().body, stage.sim.body(id, "completed"));
    }
    assert_eq!(both.await.unwrap().status, StatusCode::OK);
    assert_eq!(stage.upstream_requests().len(), asked + 1);
}

#[tokio::test]
async fn a_multi_wait_asks_only_for_what_is_neither_kept_nor_polled() {
    let stage = TestGateway::with_hold(LONG).await;
    stage.sim.set_status("kept", "completed");
    stage.sim.set_status("polled", "submitted");
    stage.sim.set_status("new", "submitted");
    stage.get(&clip_target("kept", "completed"), &[]).await;
    let one = stage.spawn_get(&clip_target("polled", "completed"), &[]);
    stage.wait_until(|seen| seen.open == 1).await;
    // Its time is over before the upstream ends the older poll: that one is enough.
    let ids = ["new", "polled", "kept"];
    let wait = stage.spawn_get(&clips_target(&ids, "completed"), &[("prefer", "wait=40")]);
    stage.wait_until(|seen| seen.open == 2).await;
    stage.sim.set_status("polled", "completed");
    stage.sim.set_status("new", "completed");
    one.await.unwrap();
    let bodies = ids.map(|id| String::from_utf8(stage.sim.body(id, "completed").to_vec()).unwrap());
    assert_eq!(wait.await.unwrap().body, format!("[{}]", bodies.join(",")));
    let asked = [
        clip_target("kept", "completed"),
        clip_target("polled", "completed"),
        clips_target(&["new"], "completed"),
    ];
    assert_eq!(stage.upstream_requests(), asked);
}

#[tokio::test]
async fn complete_and_completed_are_one_rung_and_bodies_are_never_rewritten() {
    let stage = TestGateway::with_hold(LONG).await;
    stage.sim.set_status("a", "submitted");
    let waits = ["complete", "completed"].map(|word| stage.spawn_get(&clip_target("a", word), &[]));
    stage.wait_until_parked(2).await;
    stage.wait_until(|seen| seen.open == 1).await;
    stage.sim.set_status("a", "completed");
    let body = stage.sim.body("a", "completed");
    assert!(String::from_utf8_lossy(&body).contains("\"status\":\"complete\""));
    assert!(join_all(waits.into()).await.iter().all(|answer| answer.body == body));
    for word in ["complete", "completed"] {
        let again = stage.get(&clip_target("a", word), &[]).await;
        assert!(again.is_hit() && again.body == body, "{again:?}");
    }
    assert_eq!(stage.upstream_requests(), [clip_target("a", "completed")]);
}

#[tokio::test]
async fn a_terminal_clip_costs_no_further_request_in_any_form() {
    let stage = TestGateway::with_hold(LONG).await;
    stage.sim.set_status("made", "completed");
    stage.sim.set_status("failed", "error");
    stage.sim.set_status("other", "submitted");
    let state = |id| stage.sim.body(id, if id == "failed" { "error" } else { "completed" });
    let list = |ids: &[&'static str]| {
        let bodies: Vec<_> = ids.iter().map(|id| String::from_utf8(state(id).to_vec()).unwrap()).collect();
        format!("[{}]", bodies.join(","))
    };
    for id in ["made", "failed"] {
        assert_eq!(stage.get(&clip_target(id, "queued"), &[]).await.body, state(id));
    }
    let known = [clip_target("made", "queued"), clip_target("failed", "queued")];
    assert_eq!(stage.upstream_requests(), known);

    for status in ["completed", "complete", "streaming", "queued", "submitted", ""] {
        for id in ["made", "failed"] {
            let one = stage.get(&clip_target(id, status), &[]).await;
            assert!(one.is_hit() && one.body == state(id), "{status} {one:?}");
            let alone = stage.get(&clips_target(&[id], status), &[]).await;
            assert!(alone.is_hit() && alone.body == list(&[id]), "{status} {alone:?}");
        }
        let both = stage.get(&clips_target(&["made", "failed"], status), &[]).await;
        assert!(both.is_hit() && both.body == list(&["made", "failed"]), "{status} {both:?}");
    }
    assert_eq!(stage.upstream_requests(), known);

    let wait = stage.spawn_get(&clips_target(&["failed", "other", "made"], "completed"), &[]);
    stage.wait_until(|seen| seen.open == 1).await;
    stage.sim.set_status("other", "completed");
    assert_eq!(wait.await.unwrap().body, list(&["failed", "other", "made"]));
    assert_eq!(stage.upstream_requests()[2..], [clips_target(&["other"], "completed")]);
    assert!(stage.sim.requests().iter().all(|seen| seen.end == RequestEnd::Answered(StatusCode::OK)));
}

#[tokio::test]
async fn one_clip_is_one_poll_whichever_endpoint_is_asked() {
    let stage = TestGateway::with_hold(LONG).await;
    for (id, opener, joiner) in [
        ("a", clip_target("a", "completed"), clips_target(&["a"], "completed")),
        ("b", clips_target(&["b"], "completed"), clip_target("b", "completed")),
    ] {
        stage.sim.set_status(id, "submitted");
        let opener = stage.spawn_get(&opener, &[]);
        stage.wait_until(|seen| seen.open == 1).await;
        let joiner = stage.spawn_get(&joiner, &[]);
        stage.wait_until_parked(2).await;
        stage.sim.set_status(id, "completed");
        let mut bodies = [opener.await.unwrap().body, joiner.await.unwrap().body];
        bodies.sort_by_key(bytes::Bytes::len);
        let body = stage.sim.body(id, "completed");
        assert_eq!(bodies[0], body);
        assert_eq!(bodies[1], [b"[", &body[..], b"]"].concat());
    }
    assert_eq!(stage.upstream_requests(), [clip_target("a", "completed"), clips_target(&["b"], "completed")]);
}

#[tokio::test]
async fn a_state_that_goes_backwards_is_ignored() {
    let stage = TestGateway::with_hold(LONG).await;
    stage.sim.set_status("a", "queued");
    let completed = stage.spawn_get(&clip_target("a", "completed"), &[]);
    let streaming = stage.spawn_get(&clip_target("a", "streaming"), &[]);
    stage.wait_until(|seen| seen.open >= 1).await;
    stage.wait_until_parked(2).await;
    stage.sim.set_status("a", "streaming");
    assert_eq!(streaming.await.unwrap().body, stage.sim.body("a", "streaming"));
    stage.wait_until(|seen| seen.open == 1).await;
    stage.sim.set_status("a", "queued");
    let now = stage.get(&clip_target("a", "completed"), &[("prefer", "wait=0")]).await;
    assert_eq!(now.body, stage.sim.body("a", "streaming"));
    stage.sim.set_status("a", "completed");
    assert_eq!(completed.await.unwrap().body, stage.sim.body("a", "completed"));
}

#[tokio::test]
async fn a_status_on_no_ladder_is_handed_over_at_once_and_not_kept() {
    let stage = TestGateway::with_hold(LONG).await;
    stage.sim.set_status("a", "submitted");
    let waits: Vec<_> = (0..3).map(|_| stage.spawn_get(&clip_target("a", "completed"), &[])).collect();
    stage.wait_until_parked(3).await;
    stage.wait_until(|seen| seen.open == 1).await;
    stage.sim.set_status("a", "paused");
    let body = stage.sim.body("a", "paused");
    for answer in join_all(waits).await {
        assert_eq!(answer.body, body);
        assert_eq!(answer.field("cache-control"), "no-store");
    }
    let again = stage.get(&clip_target("a", "streaming"), &[]).await;
    assert!(again.is_opener() && again.body == body, "{again:?}");
    assert_eq!(stage.upstream_requests(), [clip_target("a", "completed"), clip_target("a", "streaming")]);
}
