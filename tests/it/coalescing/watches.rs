//! Watches: the gateway holds a poll for the next state of a job that clients ask for repeatedly with plain requests.

use std::time::Duration;

use clipgate::sim::{RecordedRequest, RequestEnd};
use clipgate::testing::clock;
use http::StatusCode;
use tokio::task::JoinSet;

use crate::harness::admin_client::AdminClient;
use crate::harness::gateway::{TestGateway, clip_target, set_hold};

/// A hold whose polls prove a state after 50 ms.
const HOLD: Duration = Duration::from_secs(12);

const LONG: Duration = Duration::from_secs(60);

/// Starts a gateway with this `wait.watch_idle` for a key that the upstream has accepted.
async fn watching(idle: Duration) -> TestGateway {
    let gateway = TestGateway::with(|config, options| {
        set_hold(HOLD, config, options);
        config.wait.watch_idle = idle;
    })
    .await;
    accept_key(&gateway).await;
    gateway
}

/// Lets the upstream accept the key, with one request.
async fn accept_key(gateway: &TestGateway) {
    gateway.sim.set_status("first", "completed");
    assert_eq!(gateway.get(&clip_target("first", "completed"), &[]).await.status, StatusCode::OK);
}

/// Asks for a job twice, and waits for its watch.
async fn ask_twice(gateway: &TestGateway, id: &str, next: &str) {
    for _ in 0..2 {
        assert!(gateway.get(&clip_target(id, ""), &[]).await.is_opener());
    }
    let watch = clip_target(id, next);
    gateway.wait_until(|seen| seen.requests.iter().any(|request| is_open(request, &watch))).await;
}

fn is_open(request: &RecordedRequest, target: &str) -> bool {
    &*request.target == target && request.ended_at.is_none()
}

/// The case of ten pollers at 1, 2, 5 and 15 s with the default settings, ten times as fast: a hold of 120 s, a `live_ttl`
/// of 1 s, a `watch_idle` of 20 s. The pollers start apart, so that some ask in the silence that the next watch takes to
/// prove a state, where `live_ttl` answers them.
#[tokio::test]
async fn ten_pollers_of_one_job_cost_at_most_one_call_a_rung_and_two_more() {
    let mut gateway = TestGateway::with(|config, options| {
        set_hold(HOLD, config, options);
        config.cache.live_ttl = Duration::from_millis(100);
        config.wait.watch_idle = Duration::from_secs(2);
    })
    .await;
    let operator = AdminClient::open(&mut gateway).await;
    accept_key(&gateway).await;
    gateway.sim.set_status("a", "submitted");
    let steps = [("queued", 1500), ("streaming", 3000), ("completed", 5000)];
    gateway.sim.schedule("a", &steps.map(|(word, after)| (word, Duration::from_millis(after))));

    let mut pollers = JoinSet::new();
    let gateway = std::sync::Arc::new(gateway);
    for (number, every) in (0..).zip([100, 100, 100, 200, 200, 200, 500, 500, 1500, 1500]) {
        let gateway = std::sync::Arc::clone(&gateway);
        pollers.spawn(async move {
            tokio::time::sleep(Duration::from_millis(13) * number).await;
            let mut tick = tokio::time::interval(Duration::from_millis(every));
            let (mut answers, mut last) = (0, Default::default());
            while last != gateway.sim.body("a", "completed") {
                tick.tick().await;
                last = gateway.get(&clip_target("a", ""), &[]).await.body;
                answers += 1;
            }
            answers
        });
    }
    let answers: usize = pollers.join_all().await.into_iter().sum();
    assert!(answers > 100, "{answers}");
    let calls: Vec<String> = gateway.upstream_requests().into_iter().skip(1).collect();
    assert!(calls.len() <= 4 + 2, "{answers} answers for {calls:#?}");
    let page = operator.metrics().await;
    assert_eq!(page.sum("clipgate_upstream_requests_total", &[("cause", "watch")]), 3.0, "{calls:#?}");
    assert_eq!(page.sum("clipgate_watches", &[]), 0.0, "the watch ends with the job");
}

#[tokio::test]
async fn a_watch_ends_watch_idle_after_the_last_request() {
    let idle = Duration::from_secs(2);
    let mut gateway = watching(idle).await;
    let operator = AdminClient::open(&mut gateway).await;
    gateway.sim.set_status("a", "submitted");
    ask_twice(&gateway, "a", "queued").await;
    tokio::time::sleep(idle / 2).await;
    let state = operator.state().await;
    assert_eq!((&state["polls"]["watches"], &state["waits"]["parked"]), (&1.into(), &0.into()), "{state}");
    let last_asked = clock::now();
    assert!(gateway.get(&clip_target("a", ""), &[]).await.is_proven());
    gateway.wait_until(|seen| seen.abandoned() == 1 && seen.open == 0).await;

    let requests = gateway.sim.requests();
    let [_, _, snapshot, watch] = &requests[..] else { panic!("{requests:#?}") };
    assert_eq!((&*watch.target, watch.end), (&*clip_target("a", "queued"), RequestEnd::Abandoned));
    assert_eq!(watch.key, snapshot.key);
    let ended_after = watch.ended_at.unwrap() - last_asked;
    assert!(ended_after >= idle && ended_after < idle * 2, "{ended_after:?}");
}

#[tokio::test]
async fn a_watch_goes_on_from_rung_to_rung() {
    let gateway = watching(LONG).await;
    gateway.sim.set_status("a", "submitted");
    ask_twice(&gateway, "a", "queued").await;
    // The next watch follows only if this one has spared a call.
    tokio::time::sleep(HOLD / 100).await; // longer than the silence that proves a state
    assert!(gateway.get(&clip_target("a", ""), &[]).await.is_proven());
    for (status, next) in [("queued", "streaming"), ("streaming", "completed")] {
        gateway.sim.set_status("a", status);
        let watch = clip_target("a", next);
        gateway.wait_until(|seen| seen.requests.iter().any(|request| is_open(request, &watch))).await;
        tokio::time::sleep(HOLD / 100).await;
        let answer = gateway.get(&clip_target("a", ""), &[]).await;
        assert!(answer.is_proven() && answer.body == gateway.sim.body("a", status), "{answer:?}");
    }
    gateway.sim.set_status("a", "completed");
    gateway.wait_until(|seen| seen.open == 0).await;
    let answer = gateway.get(&clip_target("a", ""), &[]).await;
    assert_eq!(answer.body, gateway.sim.body("a", "completed"));
    assert_eq!(gateway.upstream_requests().len(), 6, "the key, two plain requests, three watches");
}

#[tokio::test]
async fn a_wait_attaches_to_a_watch() {
    let gateway = watching(LONG).await;
    gateway.sim.set_status("a", "submitted");
    ask_twice(&gateway, "a", "queued").await;
    let wait = gateway.spawn_get(&clip_target("a", "queued"), &[]);
    gateway.wait_until_parked(1).await;
    gateway.sim.set_status("a", "queued");
    let answer = wait.await.unwrap();
    assert!(answer.is_coalesced() && answer.body == gateway.sim.body("a", "queued"), "{answer:?}");
}

#[tokio::test]
async fn a_watch_idle_of_zero_turns_watches_off_until_a_reload_turns_them_on() {
    let gateway = watching(Duration::ZERO).await;
    gateway.sim.set_status("a", "submitted");
    for _ in 0..5 {
        assert!(gateway.get(&clip_target("a", ""), &[]).await.is_opener());
    }
    assert_eq!((gateway.upstream_requests().len(), gateway.sim.open()), (6, 0));
    let mut config = gateway.config().clone();
    config.wait.watch_idle = LONG;
    gateway.reconfigure(&config);
    ask_twice(&gateway, "a", "queued").await;
}

#[tokio::test]
async fn without_quota_for_calls_there_is_no_watch() {
    // The quota gets one call a second, so on a busy machine a later job shows it.
    for n in 0..20 {
        let gateway = TestGateway::with(|config, options| {
            set_hold(HOLD, config, options);
            config.wait.watch_idle = LONG;
            config.limits.calls_per_second = 1;
            config.limits.calls_burst = 2;
        })
        .await;
        accept_key(&gateway).await; // counts for the address
        gateway.sim.set_status("a", "submitted");
        let began = clock::now();
        let answers = [
            gateway.get(&clip_target("a", ""), &[]).await,
            gateway.get(&clip_target("a", ""), &[]).await,
            gateway.get(&clip_target("a", ""), &[]).await,
        ];
        if began.elapsed() > Duration::from_millis(900) {
            continue;
        }
        let statuses = answers.map(|answer| answer.status.as_u16());
        assert_eq!(statuses, [200, 200, 429], "{n}");
        assert_eq!((gateway.upstream_requests().len(), gateway.sim.open()), (3, 0));
        return;
    }
    panic!("three requests take longer than a second");
}

#[tokio::test]
async fn a_watch_costs_its_client_one_call() {
    let gateway = TestGateway::with(|config, options| {
        set_hold(HOLD, config, options);
        config.wait.watch_idle = LONG;
        config.limits.calls_per_second = 1;
        config.limits.calls_burst = 1000;
    })
    .await;
    accept_key(&gateway).await;
    gateway.sim.set_status("a", "submitted");
    ask_twice(&gateway, "a", "queued").await;
    tokio::time::sleep(HOLD / 100).await;
    let answer = gateway.get(&clip_target("a", ""), &[]).await;
    assert!(answer.is_proven());
    let left = answer.field("ratelimit").split_once("\"calls\";r=").unwrap().1;
    let left: usize = left.split(';').next().unwrap().parse().unwrap();
    // Two plain requests and the watch; the quota gets one call a second.
    assert!((997..1000).contains(&left), "{left}");
}

#[tokio::test]
async fn a_watch_gives_its_slot_to_a_wait() {
    let gateway = TestGateway::with(|config, options| {
        set_hold(HOLD, config, options);
        config.wait.watch_idle = LONG;
        config.upstream.max_polls = 2; // one of them is the reserve for short polls
    })
    .await;
    accept_key(&gateway).await;
    gateway.sim.set_status("a", "submitted");
    gateway.sim.set_status("b", "submitted");
    ask_twice(&gateway, "a", "queued").await;
    let wait = gateway.spawn_get(&clip_target("b", "completed"), &[]);
    let poll = clip_target("b", "completed");
    gateway
        .wait_until(|seen| {
            seen.abandoned() == 1 && seen.requests.iter().any(|request| is_open(request, &poll))
        })
        .await;
    // While the wait has the slot, the gateway holds no watch.
    let before = gateway.upstream_requests().len();
    for _ in 0..3 {
        assert!(gateway.get(&clip_target("a", ""), &[]).await.is_opener());
    }
    assert_eq!((gateway.upstream_requests().len(), gateway.sim.open()), (before + 3, 1));
    gateway.sim.set_status("b", "completed");
    assert_eq!(wait.await.unwrap().body, gateway.sim.body("b", "completed"));
}
