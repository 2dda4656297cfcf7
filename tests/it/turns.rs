//! The upstream's limits: how many polls it sees at once, and when it is not asked (contract, sections 5 and 8).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use clipgate::sim::{Fault, On};
use http::StatusCode;

use crate::stage::{Stage, all, put_all, set_hold, single};

#[tokio::test]
async fn never_more_than_max_polls_are_open_and_every_wait_is_right() {
    let stage = Stage::with(|config, options| {
        set_hold(Duration::from_secs(4), config, options);
        config.upstream.max_polls = 3;
    })
    .await;
    let ids: Vec<String> = (0..12).map(|n| format!("clip-{n}")).collect();
    let names: Vec<&str> = ids.iter().map(String::as_str).collect();
    put_all(&stage, &names, "streaming");
    let waits: Vec<_> = names.iter().map(|id| stage.spawn_get(&single(id, "completed"), &[])).collect();
    stage.until_parked(12).await;
    let most = AtomicUsize::new(0);
    let watch = stage.sim.until(|seen| {
        most.fetch_max(seen.open, Ordering::Relaxed);
        false
    });
    for id in &names[..6] {
        stage.sim.plan(id, &[("completed", Duration::from_millis(500))]);
    }
    let answers = tokio::select! {
        answers = all(waits) => answers,
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
async fn a_429_rests_the_whole_key_once_and_its_waits_are_held_through_it() {
    let stage = Stage::with(|config, options| set_hold(Duration::from_secs(20), config, options)).await;
    put_all(&stage, &["a", "b", "c"], "completed");
    stage.sim.fault(On::Clip("a".to_owned()), Fault::retry_after(429, Duration::from_secs(1)), 1);
    let first = stage.spawn_get(&single("a", "completed"), &[]);
    stage.until(|seen| seen.requests.len() == 1 && seen.open == 0).await;
    let others = ["b", "c"].map(|id| stage.spawn_get(&single(id, "completed"), &[]));
    stage.until_parked(3).await;
    assert_eq!(stage.asked().len(), 1, "nobody asks in the pause");
    for answer in all(std::iter::once(first).chain(others).collect()).await {
        assert_eq!(answer.status, StatusCode::OK);
    }
    assert_eq!(stage.asked().len(), 4);
}

#[tokio::test]
async fn a_dead_upstream_is_asked_a_few_times_and_then_only_by_probes() {
    let stage = Stage::with(|config, options| {
        set_hold(Duration::from_secs(20), config, options);
        config.upstream.breaker_failures = 4;
        config.upstream.breaker_cooldown = Duration::from_secs(1);
        config.upstream.retries = 1;
        config.limits.max_waits = 1000;
    })
    .await;
    put_all(&stage, &["kept"], "completed");
    assert_eq!(stage.get(&single("kept", "completed"), &[]).await.status, StatusCode::OK);
    stage.sim.fault(On::Polls, Fault::status(500), u32::MAX);
    let ids: Vec<String> = (0..40).map(|n| format!("clip-{n}")).collect();
    let mut refused = 0;
    for id in &ids {
        let answer = stage.get(&single(id, "completed"), &[]).await;
        if answer.status == StatusCode::SERVICE_UNAVAILABLE {
            assert!(!answer.field("retry-after").is_empty());
            assert_eq!(answer.field("cache-status"), "clipgate; detail=breaker-open");
            refused += 1;
        }
    }
    assert!(refused > 30, "{refused}");
    let asked = stage.asked().len() - 1;
    assert!((4..=10).contains(&asked), "{asked} calls");
    let hit = stage.get(&single("kept", "completed"), &[]).await;
    assert!(hit.hit(), "what is kept goes on being served");

    stage.sim.clear_faults();
    put_all(&stage, &["back"], "completed");
    let back = loop {
        let answer = stage.get(&single("back", "completed"), &[]).await;
        if answer.status == StatusCode::OK {
            break answer;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(back.body, stage.sim.body("back", "completed"));
}

#[tokio::test]
async fn a_poll_whose_client_left_before_its_turn_is_never_made() {
    let stage = Stage::with(|config, options| {
        set_hold(Duration::from_secs(20), config, options);
        config.upstream.max_polls = 1;
        config.wait.linger = Duration::from_secs(20);
    })
    .await;
    put_all(&stage, &["a", "b", "c"], "streaming");
    let first = stage.spawn_get(&single("a", "completed"), &[]);
    stage.until(|seen| seen.open == 1).await;
    let gone = stage.spawn_get(&single("b", "completed"), &[]);
    stage.until_parked(2).await;
    drop(gone);
    stage.until_parked(1).await;
    let last = stage.spawn_get(&single("c", "completed"), &[]);
    stage.until_parked(2).await;
    put_all(&stage, &["a", "c"], "completed");
    all(vec![first, last]).await;
    assert_eq!(stage.asked(), ["a", "c"].map(|id| single(id, "completed")));
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_429_for_an_hour_is_told_at_once_and_rests_its_key_for_a_minute_at_most() {
    let stage = Stage::with(|config, options| set_hold(Duration::from_secs(20), config, options)).await;
    put_all(&stage, &["a", "b"], "completed");
    stage.sim.fault(On::Clip("a".to_owned()), Fault::retry_after(429, HOUR), 1);
    let told = stage.get(&single("a", "completed"), &[]).await;
    assert_eq!((told.status, told.field("retry-after")), (StatusCode::TOO_MANY_REQUESTS, "3600"));
    assert_eq!(told.field("cache-status"), "clipgate; fwd=miss; fwd-status=429");

    let other = stage.get(&single("b", "completed"), &[]).await;
    assert_eq!(other.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(other.field("cache-status"), "clipgate; detail=key-rests");
    let retry_after: u64 = other.field("retry-after").parse().expect("it is seconds");
    assert!((40..=60).contains(&retry_after), "{retry_after}");
    assert_eq!(stage.asked(), [single("a", "completed")], "nobody asks in the rest");

    let stranger = stage.get(&single("b", "completed"), &[("authorization", "Bearer other")]).await;
    assert_eq!(stranger.status, StatusCode::OK);
}

#[tokio::test]
async fn a_503_for_an_hour_is_told_at_once_and_rests_nothing_else() {
    let stage = Stage::with(|config, options| set_hold(Duration::from_secs(20), config, options)).await;
    put_all(&stage, &["a", "b"], "completed");
    stage.sim.fault(On::Clip("a".to_owned()), Fault::retry_after(503, HOUR), 1);
    let told = stage.get(&single("a", "completed"), &[]).await;
    assert_eq!((told.status, told.field("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, "3600"));
    for id in ["b", "a"] {
        assert_eq!(stage.get(&single(id, "completed"), &[]).await.status, StatusCode::OK, "{id}");
    }
}

#[tokio::test]
async fn one_keys_thousand_clips_do_not_starve_anothers_one() {
    let stage = Stage::with(|config, options| {
        set_hold(Duration::from_secs(60), config, options);
        config.upstream.max_polls = 20;
    })
    .await;
    let ids: Vec<String> = (0..200).map(|n| format!("clip-{n}")).collect();
    for id in &ids {
        stage.sim.put(id, "streaming");
    }
    let crowd: Vec<_> = ids.iter().map(|id| stage.spawn_get(&single(id, "completed"), &[])).collect();
    stage.until_parked(200).await;
    stage.until(|seen| seen.open == 17).await;
    put_all(&stage, &["one"], "completed");
    let one = stage.get(&single("one", "completed"), &[("authorization", "Bearer other")]).await;
    assert_eq!(one.status, StatusCode::OK);
    drop(crowd);
}
