//! Limits of the upstream: the number of open polls, and the times at which the gateway sends none.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use clipgate::core::route::SunoEndpoints;
use clipgate::sim::{Fault, FaultTarget};
use http::StatusCode;

use crate::harness::admin_client::AdminClient;
use crate::harness::gateway::{TestGateway, clip_target, join_all, set_hold, set_status_of_all, within_secs};

#[tokio::test]
async fn the_gateway_opens_at_most_max_polls_and_answers_every_wait() {
    let gateway = TestGateway::with(|config, options| {
        set_hold(Duration::from_secs(4), config, options);
        config.upstream.max_polls = 3;
    })
    .await;
    let ids: Vec<String> = (0..12).map(|n| format!("clip-{n}")).collect();
    let names: Vec<&str> = ids.iter().map(String::as_str).collect();
    set_status_of_all(&gateway, &names, "streaming");
    let waits: Vec<_> =
        names.iter().map(|id| gateway.spawn_get(&clip_target(id, "completed"), &[])).collect();
    gateway.wait_until_parked(12).await;
    let most = AtomicUsize::new(0);
    let watch = gateway.sim.wait_until(|seen| {
        most.fetch_max(seen.open, Ordering::Relaxed);
        false
    });
    for id in &names[..6] {
        gateway.sim.schedule(id, &[("completed", Duration::from_millis(500))]);
    }
    let answers = tokio::select! {
        answers = join_all(waits) => answers,
        () = watch => unreachable!("it watches for ever"),
    };
    assert!(most.load(Ordering::Relaxed) <= 3, "{most:?} polls at once");
    for (id, answer) in names.iter().zip(&answers) {
        assert_eq!(answer.status, StatusCode::OK);
        let states = ["streaming", "completed"].map(|word| gateway.sim.body(id, word));
        assert!(states.contains(&answer.body), "{id}");
    }
    for (id, answer) in names[6..].iter().zip(&answers[6..]) {
        assert_eq!(answer.body, gateway.sim.body(id, "streaming"), "{id} is true at its deadline");
    }
}

#[tokio::test]
async fn two_429s_pause_their_key_once_and_its_waits_outlast_the_pause() {
    let gateway =
        TestGateway::with(|config, options| set_hold(Duration::from_secs(20), config, options)).await;
    set_status_of_all(&gateway, &["a", "b", "c", "d"], "completed");
    for id in ["a", "b"] {
        gateway.sim.fault(
            FaultTarget::Clip(id.to_owned()),
            Fault::retry_after(429, Duration::from_secs(2)),
            1,
        );
    }
    let paused = ["a", "b"].map(|id| gateway.spawn_get(&clip_target(id, "completed"), &[]));
    gateway.wait_until(|seen| seen.requests.len() == 2 && seen.open == 0).await;
    gateway.wait_until_parked(2).await;
    let others = ["c", "d"].map(|id| gateway.spawn_get(&clip_target(id, "completed"), &[]));
    gateway.wait_until_parked(4).await;
    assert_eq!(gateway.upstream_requests().len(), 2, "no poll during the pause");
    for answer in join_all(paused.into_iter().chain(others).collect()).await {
        assert_eq!(answer.status, StatusCode::OK);
    }
    assert_eq!(gateway.upstream_requests().len(), 6);
}

/// P12: the first 429 pauses its own poll only.
#[tokio::test]
async fn a_job_that_is_always_answered_429_delays_no_other_job_of_its_key() {
    let gateway =
        TestGateway::with(|config, options| set_hold(Duration::from_secs(60), config, options)).await;
    set_status_of_all(&gateway, &["bad", "good"], "submitted");
    gateway.sim.fault(
        FaultTarget::Clip("bad".to_owned()),
        Fault::retry_after(429, Duration::from_secs(3)),
        u32::MAX,
    );
    let _bad = gateway.spawn_get(&clip_target("bad", "completed"), &[]);
    gateway.wait_until(|seen| seen.requests.len() == 1 && seen.open == 0).await;
    let good = gateway.spawn_get(&clip_target("good", "completed"), &[]);
    gateway.wait_until(|seen| seen.open == 1).await;
    gateway.sim.set_status("good", "completed");
    assert_eq!(good.await.unwrap().body, gateway.sim.body("good", "completed"));
    assert_eq!(gateway.upstream_requests().len(), 2, "`bad` had one attempt meanwhile");
}

/// P2: a request without a status is answered at once, so a pause of its key does not delay it.
#[tokio::test]
async fn the_gateway_polls_for_a_request_without_status_while_its_key_is_paused() {
    let gateway =
        TestGateway::with(|config, options| set_hold(Duration::from_secs(120), config, options)).await;
    set_status_of_all(&gateway, &["a", "b", "c"], "queued");
    for id in ["a", "b"] {
        gateway.sim.fault(
            FaultTarget::Clip(id.to_owned()),
            Fault::retry_after(429, Duration::from_secs(60)),
            1,
        );
    }
    let _waits = ["a", "b"].map(|id| gateway.spawn_get(&clip_target(id, "completed"), &[]));
    gateway.wait_until(|seen| seen.requests.len() == 2 && seen.open == 0).await;
    gateway.wait_until_parked(2).await;
    let plain = format!("{}?clip_id=c", SunoEndpoints::default().single_path);
    let snapshot = gateway.get(&plain, &[]).await;
    assert_eq!(snapshot.body, gateway.sim.body("c", "queued"));
    gateway.sim.fault(FaultTarget::Clip("c".to_owned()), Fault::retry_after(429, Duration::from_secs(60)), 1);
    let answer = gateway.get(&plain, &[("cache-control", "no-cache")]).await;
    assert_eq!((answer.status, answer.field("retry-after")), (StatusCode::TOO_MANY_REQUESTS, "60"));
}

#[tokio::test]
async fn a_dead_upstream_gets_one_attempt_for_each_wait_and_then_only_probes() {
    let mut gateway = TestGateway::with(|config, options| {
        set_hold(Duration::from_secs(60), config, options);
        config.upstream.breaker_failures = 4;
        config.upstream.breaker_cooldown = Duration::from_secs(1);
    })
    .await;
    let admin = AdminClient::open(&mut gateway).await;
    set_status_of_all(&gateway, &["cached"], "completed");
    assert_eq!(gateway.get(&clip_target("cached", "completed"), &[]).await.status, StatusCode::OK);
    gateway.sim.fault(FaultTarget::Polls, Fault::reset(), u32::MAX);
    let ids: Vec<String> = (0..40).map(|n| format!("clip-{n}")).collect();
    let names: Vec<&str> = ids.iter().map(String::as_str).collect();
    set_status_of_all(&gateway, &names, "completed");
    let waits: Vec<_> =
        names.iter().map(|id| gateway.spawn_get(&clip_target(id, "completed"), &[])).collect();
    gateway.wait_until_parked(40).await;
    within_secs(30, async { while admin.state().await["upstream"]["breaker_open"] != true {} }).await;
    // Every poll has had its first attempt, and retries until the breaker opened. The last of them may still be on the way.
    let mut from = 0;
    while from < gateway.sim.requests().len() {
        from = gateway.sim.requests().len();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!((41..=41 + 40 * 4).contains(&from), "{from} calls");
    gateway.wait_until_parked(40).await; // no client gets an error from the outage
    let hit = gateway.get(&clip_target("cached", "completed"), &[]).await;
    assert!(hit.is_hit(), "the cache goes on serving hits");
    // The time between two probes doubles from 250 ms to the configured second.
    gateway.sim.wait_until(|seen| seen.requests.len() >= from + 4).await;
    let probes = gateway.sim.requests()[from..].iter().map(|request| request.at).collect::<Vec<_>>();
    let gaps = probes.windows(2).map(|two| two[1] - two[0]).collect::<Vec<_>>();
    assert!(gaps.iter().all(|gap| *gap >= Duration::from_millis(240)), "{gaps:?}");
    assert!(gaps.last().is_some_and(|gap| *gap >= Duration::from_millis(900)), "{gaps:?}");

    gateway.sim.clear_faults();
    for (id, answer) in names.iter().zip(join_all(waits).await) {
        assert_eq!(answer.body, gateway.sim.body(id, "completed"));
    }
}

#[tokio::test]
async fn the_gateway_never_sends_a_queued_poll_whose_client_has_left() {
    let gateway = TestGateway::with(|config, options| {
        set_hold(Duration::from_secs(20), config, options);
        config.upstream.max_polls = 1;
        config.wait.linger = Duration::from_secs(20);
    })
    .await;
    set_status_of_all(&gateway, &["a", "b", "c"], "streaming");
    let first = gateway.spawn_get(&clip_target("a", "completed"), &[]);
    gateway.wait_until(|seen| seen.open == 1).await;
    let gone = gateway.spawn_get(&clip_target("b", "completed"), &[]);
    gateway.wait_until_parked(2).await;
    drop(gone);
    gateway.wait_until_parked(1).await;
    let last = gateway.spawn_get(&clip_target("c", "completed"), &[]);
    gateway.wait_until_parked(2).await;
    set_status_of_all(&gateway, &["a", "c"], "completed");
    join_all(vec![first, last]).await;
    assert_eq!(gateway.upstream_requests(), ["a", "c"].map(|id| clip_target(id, "completed")));
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn waits_get_a_429_of_an_hour_at_once_and_two_of_them_pause_their_key_for_a_minute() {
    let gateway =
        TestGateway::with(|config, options| set_hold(Duration::from_secs(20), config, options)).await;
    set_status_of_all(&gateway, &["a", "b", "c"], "completed");
    for id in ["a", "c"] {
        gateway.sim.fault(FaultTarget::Clip(id.to_owned()), Fault::retry_after(429, HOUR), 1);
        let answer = gateway.get(&clip_target(id, "completed"), &[]).await;
        assert_eq!((answer.status, answer.field("retry-after")), (StatusCode::TOO_MANY_REQUESTS, "3600"));
        assert_eq!(answer.field("cache-status"), "clipgate; fwd=miss; fwd-status=429");
    }

    let other = gateway.get(&clip_target("b", "completed"), &[]).await;
    assert_eq!(other.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(other.field("cache-status"), "clipgate; detail=key-rate-limited");
    let retry_after: u64 = other.field("retry-after").parse().expect("seconds");
    assert!((40..=60).contains(&retry_after), "{retry_after}");
    assert_eq!(gateway.upstream_requests().len(), 2, "no poll during the pause");

    let stranger = gateway.get(&clip_target("b", "completed"), &[("authorization", "Bearer other")]).await;
    assert_eq!(stranger.status, StatusCode::OK);
}

#[tokio::test]
async fn a_wait_gets_a_503_of_an_hour_at_once_and_no_other_poll_is_paused() {
    let gateway =
        TestGateway::with(|config, options| set_hold(Duration::from_secs(20), config, options)).await;
    set_status_of_all(&gateway, &["a", "b"], "completed");
    gateway.sim.fault(FaultTarget::Clip("a".to_owned()), Fault::retry_after(503, HOUR), 1);
    let answer = gateway.get(&clip_target("a", "completed"), &[]).await;
    assert_eq!((answer.status, answer.field("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, "3600"));
    for id in ["b", "a"] {
        assert_eq!(gateway.get(&clip_target(id, "completed"), &[]).await.status, StatusCode::OK, "{id}");
    }
}

#[tokio::test]
async fn a_thousand_jobs_of_one_key_do_not_starve_one_job_of_another() {
    let gateway = TestGateway::with(|config, options| {
        set_hold(Duration::from_secs(60), config, options);
        config.upstream.max_polls = 20;
    })
    .await;
    let ids: Vec<String> = (0..200).map(|n| format!("clip-{n}")).collect();
    for id in &ids {
        gateway.sim.set_status(id, "streaming");
    }
    let crowd: Vec<_> = ids.iter().map(|id| gateway.spawn_get(&clip_target(id, "completed"), &[])).collect();
    gateway.wait_until_parked(200).await;
    gateway.wait_until(|seen| seen.open == 17).await;
    set_status_of_all(&gateway, &["one"], "completed");
    let one = gateway.get(&clip_target("one", "completed"), &[("authorization", "Bearer other")]).await;
    assert_eq!(one.status, StatusCode::OK);
    drop(crowd);
}
