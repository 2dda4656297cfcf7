//! The upstream's limits: how many polls it sees at once, and when it is not asked (contract, sections 5 and 8).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use clipgate::core::route::Route;
use clipgate::sim::{Fault, FaultTarget};
use http::StatusCode;

use crate::harness::admin_client::AdminClient;
use crate::harness::gateway::{TestGateway, clip_target, join_all, set_hold, set_status_of_all, within_secs};

#[tokio::test]
async fn never_more_than_max_polls_are_open_and_every_wait_is_right() {
    let stage = TestGateway::with(|config, options| {
        set_hold(Duration::from_secs(4), config, options);
        config.upstream.max_polls = 3;
    })
    .await;
    let ids: Vec<String> = (0..12).map(|n| format!("clip-{n}")).collect();
    let names: Vec<&str> = ids.iter().map(String::as_str).collect();
    set_status_of_all(&stage, &names, "streaming");
    let waits: Vec<_> = names.iter().map(|id| stage.spawn_get(&clip_target(id, "completed"), &[])).collect();
    stage.wait_until_parked(12).await;
    let most = AtomicUsize::new(0);
    let watch = stage.sim.wait_until(|seen| {
        most.fetch_max(seen.open, Ordering::Relaxed);
        false
    });
    for id in &names[..6] {
        stage.sim.schedule(id, &[("completed", Duration::from_millis(500))]);
    }
    let answers = tokio::select! {
        answers = join_all(waits) => answers,
        () = watch => unreachable!("it watches for ever"),
    };
    assert!(most.load(Ordering::Relaxed) <= 3, "{most:?} polls at once");
    for (id, answer) in names.iter().zip(&answers) {
        assert_eq!(answer.status, StatusCode::OK);
        let states = ["streaming", "completed"].map(|word| stage.sim.body(id, word));
        assert!(states.contains(&answer.body), "{id}");
    }
    for (id, answer) in names[6..].iter().zip(&answers[6..]) {
        assert_eq!(answer.body, stage.sim.body(id, "streaming"), "{id} is true at its deadline");
    }
}

#[tokio::test]
async fn two_429s_pause_the_whole_key_once_and_its_waits_are_held_through_it() {
    let stage = TestGateway::with(|config, options| set_hold(Duration::from_secs(20), config, options)).await;
    set_status_of_all(&stage, &["a", "b", "c", "d"], "completed");
    for id in ["a", "b"] {
        stage.sim.fault(FaultTarget::Clip(id.to_owned()), Fault::retry_after(429, Duration::from_secs(2)), 1);
    }
    let refused = ["a", "b"].map(|id| stage.spawn_get(&clip_target(id, "completed"), &[]));
    stage.wait_until(|seen| seen.requests.len() == 2 && seen.open == 0).await;
    stage.wait_until_parked(2).await;
    let others = ["c", "d"].map(|id| stage.spawn_get(&clip_target(id, "completed"), &[]));
    stage.wait_until_parked(4).await;
    assert_eq!(stage.upstream_requests().len(), 2, "nobody asks in the pause");
    for answer in join_all(refused.into_iter().chain(others).collect()).await {
        assert_eq!(answer.status, StatusCode::OK);
    }
    assert_eq!(stage.upstream_requests().len(), 6);
}

/// Row 1.7: the first 429 pauses the poll that got it.
#[tokio::test]
async fn a_job_that_is_always_refused_delays_no_other_job_of_its_key() {
    let stage = TestGateway::with(|config, options| set_hold(Duration::from_secs(60), config, options)).await;
    set_status_of_all(&stage, &["bad", "good"], "submitted");
    stage.sim.fault(
        FaultTarget::Clip("bad".to_owned()),
        Fault::retry_after(429, Duration::from_secs(3)),
        u32::MAX,
    );
    let _bad = stage.spawn_get(&clip_target("bad", "completed"), &[]);
    stage.wait_until(|seen| seen.requests.len() == 1 && seen.open == 0).await;
    let good = stage.spawn_get(&clip_target("good", "completed"), &[]);
    stage.wait_until(|seen| seen.open == 1).await;
    stage.sim.set_status("good", "completed");
    assert_eq!(good.await.unwrap().body, stage.sim.body("good", "completed"));
    assert_eq!(stage.upstream_requests().len(), 2, "`bad` had one attempt meanwhile");
}

/// Row 1.8: a request without a status is answered at once, so it is not held through a pause of its key.
#[tokio::test]
async fn a_request_that_is_answered_at_once_is_asked_although_its_key_is_paused() {
    let stage =
        TestGateway::with(|config, options| set_hold(Duration::from_secs(120), config, options)).await;
    set_status_of_all(&stage, &["a", "b", "c"], "queued");
    for id in ["a", "b"] {
        stage.sim.fault(
            FaultTarget::Clip(id.to_owned()),
            Fault::retry_after(429, Duration::from_secs(60)),
            1,
        );
    }
    let _waits = ["a", "b"].map(|id| stage.spawn_get(&clip_target(id, "completed"), &[]));
    stage.wait_until(|seen| seen.requests.len() == 2 && seen.open == 0).await;
    stage.wait_until_parked(2).await;
    let plain = format!("{}?clip_id=c", Route::suno().single_path);
    let asked = stage.get(&plain, &[]).await;
    assert_eq!(asked.body, stage.sim.body("c", "queued"));
    stage.sim.fault(FaultTarget::Clip("c".to_owned()), Fault::retry_after(429, Duration::from_secs(60)), 1);
    let told = stage.get(&plain, &[("cache-control", "no-cache")]).await;
    assert_eq!((told.status, told.field("retry-after")), (StatusCode::TOO_MANY_REQUESTS, "60"));
}

#[tokio::test]
async fn a_dead_upstream_is_asked_once_a_wait_and_then_only_by_probes() {
    let mut stage = TestGateway::with(|config, options| {
        set_hold(Duration::from_secs(60), config, options);
        config.upstream.breaker_failures = 4;
        config.upstream.breaker_cooldown = Duration::from_secs(1);
    })
    .await;
    let operator = AdminClient::open(&mut stage).await;
    set_status_of_all(&stage, &["kept"], "completed");
    assert_eq!(stage.get(&clip_target("kept", "completed"), &[]).await.status, StatusCode::OK);
    stage.sim.fault(FaultTarget::Polls, Fault::reset(), u32::MAX);
    let ids: Vec<String> = (0..40).map(|n| format!("clip-{n}")).collect();
    let names: Vec<&str> = ids.iter().map(String::as_str).collect();
    set_status_of_all(&stage, &names, "completed");
    let waits: Vec<_> = names.iter().map(|id| stage.spawn_get(&clip_target(id, "completed"), &[])).collect();
    stage.wait_until_parked(40).await;
    within_secs(30, async { while operator.state().await["upstream"]["breaker_open"] != true {} }).await;
    // Every poll has had its first attempt, and the retries until the breaker opened.
    let from = stage.sim.requests().len();
    assert!((41..=41 + 40 * 4).contains(&from), "{from} calls");
    stage.wait_until_parked(40).await; // nobody is told of the outage
    let hit = stage.get(&clip_target("kept", "completed"), &[]).await;
    assert!(hit.is_hit(), "what is kept goes on being served");
    // The time between two probes doubles from 250 ms to the second that is configured.
    stage.sim.wait_until(|seen| seen.requests.len() >= from + 4).await;
    let probes = stage.sim.requests()[from..].iter().map(|request| request.at).collect::<Vec<_>>();
    let gaps = probes.windows(2).map(|two| two[1] - two[0]).collect::<Vec<_>>();
    assert!(gaps.iter().all(|gap| *gap >= Duration::from_millis(240)), "{gaps:?}");
    assert!(gaps.last().is_some_and(|gap| *gap >= Duration::from_millis(900)), "{gaps:?}");

    stage.sim.clear_faults();
    for (id, answer) in names.iter().zip(join_all(waits).await) {
        assert_eq!(answer.body, stage.sim.body(id, "completed"));
    }
}

#[tokio::test]
async fn a_poll_whose_client_left_before_its_turn_is_never_made() {
    let stage = TestGateway::with(|config, options| {
        set_hold(Duration::from_secs(20), config, options);
        config.upstream.max_polls = 1;
        config.wait.linger = Duration::from_secs(20);
    })
    .await;
    set_status_of_all(&stage, &["a", "b", "c"], "streaming");
    let first = stage.spawn_get(&clip_target("a", "completed"), &[]);
    stage.wait_until(|seen| seen.open == 1).await;
    let gone = stage.spawn_get(&clip_target("b", "completed"), &[]);
    stage.wait_until_parked(2).await;
    drop(gone);
    stage.wait_until_parked(1).await;
    let last = stage.spawn_get(&clip_target("c", "completed"), &[]);
    stage.wait_until_parked(2).await;
    set_status_of_all(&stage, &["a", "c"], "completed");
    join_all(vec![first, last]).await;
    assert_eq!(stage.upstream_requests(), ["a", "c"].map(|id| clip_target(id, "completed")));
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn two_429s_for_an_hour_are_told_at_once_and_pause_their_key_for_a_minute_at_most() {
    let stage = TestGateway::with(|config, options| set_hold(Duration::from_secs(20), config, options)).await;
    set_status_of_all(&stage, &["a", "b", "c"], "completed");
    for id in ["a", "c"] {
        stage.sim.fault(FaultTarget::Clip(id.to_owned()), Fault::retry_after(429, HOUR), 1);
        let told = stage.get(&clip_target(id, "completed"), &[]).await;
        assert_eq!((told.status, told.field("retry-after")), (StatusCode::TOO_MANY_REQUESTS, "3600"));
        assert_eq!(told.field("cache-status"), "clipgate; fwd=miss; fwd-status=429");
    }

    let other = stage.get(&clip_target("b", "completed"), &[]).await;
    assert_eq!(other.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(other.field("cache-status"), "clipgate; detail=key-rate-limited");
    let retry_after: u64 = other.field("retry-after").parse().expect("it is seconds");
    assert!((40..=60).contains(&retry_after), "{retry_after}");
    assert_eq!(stage.upstream_requests().len(), 2, "nobody asks in the pause");

    let stranger = stage.get(&clip_target("b", "completed"), &[("authorization", "Bearer other")]).await;
    assert_eq!(stranger.status, StatusCode::OK);
}

#[tokio::test]
async fn a_503_for_an_hour_is_told_at_once_and_rests_nothing_else() {
    let stage = TestGateway::with(|config, options| set_hold(Duration::from_secs(20), config, options)).await;
    set_status_of_all(&stage, &["a", "b"], "completed");
    stage.sim.fault(FaultTarget::Clip("a".to_owned()), Fault::retry_after(503, HOUR), 1);
    let told = stage.get(&clip_target("a", "completed"), &[]).await;
    assert_eq!((told.status, told.field("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, "3600"));
    for id in ["b", "a"] {
        assert_eq!(stage.get(&clip_target(id, "completed"), &[]).await.status, StatusCode::OK, "{id}");
    }
}

#[tokio::test]
async fn one_keys_thousand_clips_do_not_starve_anothers_one() {
    let stage = TestGateway::with(|config, options| {
        set_hold(Duration::from_secs(60), config, options);
        config.upstream.max_polls = 20;
    })
    .await;
    let ids: Vec<String> = (0..200).map(|n| format!("clip-{n}")).collect();
    for id in &ids {
        stage.sim.set_status(id, "streaming");
    }
    let crowd: Vec<_> = ids.iter().map(|id| stage.spawn_get(&clip_target(id, "completed"), &[])).collect();
    stage.wait_until_parked(200).await;
    stage.wait_until(|seen| seen.open == 17).await;
    set_status_of_all(&stage, &["one"], "completed");
    let one = stage.get(&clip_target("one", "completed"), &[("authorization", "Bearer other")]).await;
    assert_eq!(one.status, StatusCode::OK);
    drop(crowd);
}
