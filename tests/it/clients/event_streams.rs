//! Event streams: each state of a job as it is reached (P10).

use std::time::Duration;

use clipgate::sim::{ErrorBody, Fault, FaultTarget, ListFormat};
use clipgate::testing::clock;
use http::StatusCode;
use serde_json::Value;
use tokio_util::task::AbortOnDropHandle;

use crate::harness::event_client::{ACCEPT_EVENTS, Event, EventClient};
use crate::harness::gateway::{TestGateway, clip_target, clips_target, join_all, set_hold, within_secs};
use crate::harness::raw_http::{assert_gateway_error, request, upstream_request_count};

const LONG: Duration = Duration::from_secs(60);
const RUNGS: [&str; 4] = ["submitted", "queued", "streaming", "completed"];

async fn long_hold_gateway() -> TestGateway {
    TestGateway::with_hold(LONG).await
}

/// Returns the id of an event without its digest.
fn position(event: &Event) -> &str {
    event.id.as_deref().unwrap().split_once(':').unwrap().1
}

/// Returns the data of an `error` event.
fn error(event: &Event) -> Value {
    assert_eq!(event.name, "error");
    serde_json::from_str(&event.data).unwrap()
}

#[tokio::test]
async fn each_rung_is_sent_in_exactly_these_bytes() {
    let gateway = long_hold_gateway().await;
    gateway.sim.set_status("a", "submitted");
    let mut events =
        EventClient::open(&gateway, &clip_target("a", "completed"), &[("x-request-id", "mine")]).await;
    assert_eq!(events.head.status, StatusCode::OK);
    let fields = [
        ("content-type", "text/event-stream"),
        ("cache-control", "no-store"),
        ("x-accel-buffering", "no"),
        ("x-request-id", "mine"),
        ("via", "1.1 clipgate"),
        ("cache-status", "clipgate; fwd=miss"),
        ("transfer-encoding", "chunked"),
        ("preference-applied", ""),
    ];
    for (name, value) in fields {
        assert_eq!(events.field(name), value, "{name}");
    }
    assert_eq!(events.line().await.unwrap(), "retry: 2000");
    let mut digest = String::new();
    for rung in RUNGS {
        gateway.sim.set_status("a", rung);
        let mut lines = Vec::new();
        for _ in 0..4 {
            lines.push(within_secs(30, events.line()).await.unwrap());
        }
        if digest.is_empty() {
            digest = lines[1]["id: ".len()..].split_once(':').unwrap().0.to_owned();
        }
        let body = String::from_utf8(gateway.sim.body("a", rung).to_vec()).unwrap();
        assert_eq!(lines, ["event: status", &format!("id: {digest}:{rung}"), &format!("data: {body}"), ""]);
        if rung != "completed" {
            gateway.wait_until(|seen| seen.open == 1).await;
        }
    }
    assert_eq!(events.read_to_end().await, format!("event: done\nid: {digest}:over\ndata: {{}}\n\n"));
    assert_eq!(digest.len(), 8);
    assert_eq!(gateway.upstream_requests(), RUNGS.map(|rung| clip_target("a", rung)));
    gateway.wait_until_parked(0).await;
}

#[tokio::test]
async fn skipped_rungs_are_not_sent_and_an_error_ends_the_stream() {
    let gateway = long_hold_gateway().await;
    for last in ["completed", "error"] {
        gateway.sim.set_status(last, "queued");
        let mut events = EventClient::open(&gateway, &clip_target(last, ""), &[]).await;
        assert_eq!(position(&events.expect_status(&gateway.sim.body(last, "queued")).await), "queued");
        gateway.wait_until(|seen| seen.open == 1).await;
        gateway.sim.set_status(last, last);
        assert_eq!(position(&events.expect_status(&gateway.sim.body(last, last)).await), last);
        assert_eq!(events.names().await, ["done"]);
    }
    let expected =
        ["completed", "error"].map(|id| [clip_target(id, "submitted"), clip_target(id, "streaming")]);
    assert_eq!(gateway.upstream_requests(), expected.concat());
}

#[tokio::test]
async fn a_stream_is_done_at_the_requested_status() {
    let gateway = long_hold_gateway().await;
    gateway.sim.set_status("a", "queued");
    let mut events = EventClient::open(&gateway, &clip_target("a", "streaming"), &[]).await;
    events.expect_status(&gateway.sim.body("a", "queued")).await;
    gateway.wait_until(|seen| seen.open == 1).await;
    gateway.sim.set_status("a", "streaming");
    events.expect_status(&gateway.sim.body("a", "streaming")).await;
    assert_eq!(events.names().await, ["done"]);
    assert_eq!(gateway.upstream_requests(), [clip_target("a", "submitted"), clip_target("a", "streaming")]);
}

#[tokio::test]
async fn twenty_streams_and_five_waits_cost_as_many_polls_as_one_client() {
    let gateway = TestGateway::with(|config, options| {
        set_hold(LONG, config, options);
        // The later streams get their first state from the cache.
        config.cache.live_ttl = LONG;
    })
    .await;
    gateway.sim.set_status("a", "submitted");
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(EventClient::open(&gateway, &clip_target("a", "completed"), &[]).await);
    }
    for stream in &mut streams {
        stream.expect_status(&gateway.sim.body("a", "submitted")).await;
    }
    gateway.wait_until_parked(20).await;
    let waits: Vec<_> = (0..5).map(|_| gateway.spawn_get(&clip_target("a", "completed"), &[])).collect();
    for rung in &RUNGS[1..] {
        gateway.wait_until_parked(25).await;
        gateway.wait_until(|seen| seen.open >= 1).await;
        gateway.sim.set_status("a", rung);
        for stream in &mut streams {
            stream.expect_status(&gateway.sim.body("a", rung)).await;
        }
    }
    for stream in &mut streams {
        assert_eq!(stream.names().await, ["done"]);
    }
    assert!(join_all(waits).await.iter().all(|wait| wait.body == gateway.sim.body("a", "completed")));
    let mut requests = gateway.upstream_requests();
    requests.sort();
    let mut expected = RUNGS.map(|rung| clip_target("a", rung));
    expected.sort();
    assert_eq!(requests, expected);
}

#[tokio::test]
async fn a_slow_job_does_not_delay_the_events_of_a_fast_one() {
    let gateway = long_hold_gateway().await;
    gateway.sim.set_status("fast", "submitted");
    gateway.sim.set_status("slow", "submitted");
    let mut events = EventClient::open(&gateway, &clips_target(&["slow", "fast"], "completed"), &[]).await;
    assert_eq!(position(&events.expect_status(&gateway.sim.body("slow", "submitted")).await), "submitted,-");
    assert_eq!(
        position(&events.expect_status(&gateway.sim.body("fast", "submitted")).await),
        "submitted,submitted"
    );
    for rung in &RUNGS[1..] {
        gateway.wait_until(|seen| seen.open == 2).await;
        gateway.sim.set_status("fast", rung);
        assert_eq!(
            position(&events.expect_status(&gateway.sim.body("fast", rung)).await),
            format!("submitted,{rung}")
        );
    }
    gateway.wait_until(|seen| seen.open == 1).await;
    gateway.sim.set_status("slow", "error");
    assert_eq!(position(&events.expect_status(&gateway.sim.body("slow", "error")).await), "error,completed");
    assert_eq!(events.names().await, ["done"]);
    let mut requests = gateway.upstream_requests();
    assert_eq!(requests.remove(0), clips_target(&["fast", "slow"], "submitted"));
    requests.sort();
    let ladder = [("fast", "completed"), ("fast", "queued"), ("fast", "streaming"), ("slow", "queued")];
    assert_eq!(requests, ladder.map(|(id, rung)| clip_target(id, rung)));
}

#[tokio::test]
async fn a_reconnect_gets_the_missed_states_and_none_twice() {
    let gateway = long_hold_gateway().await;
    let ids = ["a", "b", "c"];
    ids.iter().for_each(|id| gateway.sim.set_status(id, "queued"));
    let target = clips_target(&ids, "completed");
    let mut events = EventClient::open(&gateway, &target, &[]).await;
    events.expect_status(&gateway.sim.body("a", "queued")).await;
    let half = events.expect_status(&gateway.sim.body("b", "queued")).await.id.unwrap();
    let last = events.expect_status(&gateway.sim.body("c", "queued")).await.id.unwrap();
    drop(events);
    gateway.wait_until_parked(0).await;

    gateway.sim.set_status("b", "streaming");
    let mut events = EventClient::open(&gateway, &target, &[("last-event-id", &last)]).await;
    assert_eq!(
        position(&events.expect_status(&gateway.sim.body("b", "streaming")).await),
        "queued,streaming,queued"
    );
    gateway.wait_until_parked(3).await;
    drop(events);
    gateway.wait_until_parked(0).await;
    assert_eq!(gateway.upstream_requests_for_status("submitted"), 1, "sent states are not requested again");

    for id in ids {
        gateway.sim.set_status(id, "completed");
    }
    let mut events = EventClient::open(&gateway, &target, &[("last-event-id", &half)]).await;
    let mut received = Vec::new();
    while let Some(event) = events.next().await {
        received.push((event.name, event.data));
    }
    received.sort();
    let body = |id| String::from_utf8(gateway.sim.body(id, "completed").to_vec()).unwrap();
    let mut all = ids.map(|id| ("status".to_owned(), body(id))).to_vec();
    all.push(("done".to_owned(), "{}".to_owned()));
    all.sort();
    assert_eq!(received, all);
}

#[tokio::test]
async fn an_id_of_another_stream_is_ignored() {
    let gateway = long_hold_gateway().await;
    gateway.sim.set_status("a", "completed");
    gateway.sim.set_status("b", "completed");
    let mut events = EventClient::open(&gateway, &clip_target("a", "completed"), &[]).await;
    let of_a = events.expect_status(&gateway.sim.body("a", "completed")).await.id.unwrap();
    let over = events.next().await.unwrap().id.unwrap();
    for id in [&of_a, &over, "", "7", "00000000:over"] {
        let mut events =
            EventClient::open(&gateway, &clip_target("b", "completed"), &[("last-event-id", id)]).await;
        events.expect_status(&gateway.sim.body("b", "completed")).await;
        assert_eq!(events.names().await, ["done"], "{id}");
    }
    // The connection broke between the last state and the end, so only the end is missing.
    let mut events =
        EventClient::open(&gateway, &clip_target("a", "completed"), &[("last-event-id", &of_a)]).await;
    assert_eq!(events.field("cache-status"), "clipgate; detail=stream-over");
    assert_eq!(events.names().await, ["done"]);
}

#[tokio::test]
async fn a_reconnect_after_the_end_gets_204() {
    let gateway = long_hold_gateway().await;
    gateway.sim.set_status("a", "completed");
    let mut events = EventClient::open(&gateway, &clip_target("a", "completed"), &[]).await;
    events.expect_status(&gateway.sim.body("a", "completed")).await;
    let over = events.next().await.unwrap();
    assert_eq!((over.name.as_str(), over.data.as_str()), ("done", "{}"));
    assert_eq!(events.next().await, None);
    let again =
        EventClient::open(&gateway, &clip_target("a", "completed"), &[("last-event-id", &over.id.unwrap())])
            .await;
    assert_eq!(again.head.status, StatusCode::NO_CONTENT);
    assert_eq!(again.field("cache-status"), "clipgate; detail=stream-over");
    assert_eq!(again.field("cache-control"), "no-store");
    assert_eq!(again.read_to_end().await, "");
    assert_eq!(upstream_request_count(&gateway), 1);
}

#[tokio::test]
async fn a_stream_without_events_sends_a_comment_every_15_seconds() {
    let day = Duration::from_secs(24 * 3600);
    let gateway = TestGateway::with(|config, options| {
        set_hold(day, config, options);
        config.wait.max_timeout = day;
    })
    .await;
    gateway.sim.set_status("a", "queued");
    let mut events = EventClient::open(&gateway, &clip_target("a", "completed"), &[]).await;
    events.expect_status(&gateway.sim.body("a", "queued")).await;
    gateway.wait_until(|seen| seen.open == 1).await;
    // From here on tokio advances the time whenever all tasks wait.
    tokio::time::pause();
    for _ in 0..3 {
        let silent_since = clock::now();
        assert_eq!(events.line().await.unwrap(), ":");
        let silence = clock::now() - silent_since;
        assert!((14..=16).contains(&silence.as_secs()), "{silence:?}");
    }
    gateway.sim.set_status("a", "completed");
    loop {
        match events.line().await.unwrap().as_str() {
            ":" => {}
            line => break assert_eq!(line, "event: status"),
        }
    }
}

#[tokio::test]
async fn a_stream_that_cannot_begin_is_rejected_like_a_wait() {
    let gateway = TestGateway::with(|config, options| {
        set_hold(LONG, config, options);
        config.limits.max_waits_per_key = 1;
        config.limits.max_waits = 2;
    })
    .await;
    gateway.sim.set_status("a", "queued");
    let accepting = |target: &str, fields: &[(&str, &str)]| {
        let fields = [&[ACCEPT_EVENTS, ("authorization", "Bearer one")], fields].concat();
        request("GET", target, &fields, "")
    };
    let ask = async |target: &str, fields: &[(&str, &str)]| gateway.send(accepting(target, fields)).await;
    assert_gateway_error(&ask(&clip_target("", "completed"), &[]).await, 400, "empty-id");
    assert_gateway_error(&ask(&clip_target("a", "error"), &[]).await, 400, "status-not-askable");
    assert_gateway_error(&ask(&clip_target("a", "completed"), &[("via", "1.1 clipgate")]).await, 508, "loop");
    assert_gateway_error(
        &ask(&clip_target("a", "completed"), &[("cache-control", "only-if-cached")]).await,
        504,
        "not-cached",
    );
    let mut one =
        EventClient::open(&gateway, &clip_target("a", ""), &[("authorization", "Bearer one")]).await;
    one.expect_status(&gateway.sim.body("a", "queued")).await;
    gateway.wait_until_parked(1).await;
    assert_gateway_error(&ask(&clip_target("b", "completed"), &[]).await, 429, "too-many-waits-per-key");
    let two =
        EventClient::open(&gateway, &clip_target("a", "streaming"), &[("authorization", "Bearer two")]).await;
    gateway.wait_until_parked(2).await;
    let three = gateway.send(request(
        "GET",
        &clip_target("a", ""),
        &[ACCEPT_EVENTS, ("authorization", "Bearer 3")],
        "",
    ));
    assert_gateway_error(&three.await, 503, "too-many-waits");
    drop((one, two));
    gateway.wait_until_parked(0).await;
}

#[tokio::test]
async fn a_stream_over_the_quota_of_calls_is_rejected_before_it_begins() {
    let gateway = TestGateway::with(|config, options| {
        set_hold(LONG, config, options);
        config.limits.calls_per_second = 1;
        config.limits.calls_burst = 2;
    })
    .await;
    let mut streams = Vec::new();
    for n in 0..20 {
        let id = format!("clip-{n}");
        gateway.sim.set_status(&id, "queued");
        let stream = EventClient::open(&gateway, &clip_target(&id, "completed"), &[]).await;
        if stream.head.status == 429 {
            assert_eq!(stream.field("cache-status"), "clipgate; detail=calls");
            assert_eq!(
                (stream.field("retry-after"), stream.field("content-type")),
                ("1", "application/json")
            );
            return;
        }
        streams.push(stream);
    }
    panic!("{} calls in a moment", streams.len());
}

#[tokio::test]
async fn a_stream_that_exceeds_its_quota_ends_with_an_error_and_a_retry_pause() {
    let gateway = TestGateway::with(|config, options| {
        set_hold(LONG, config, options);
        config.limits.calls_per_second = 1;
        config.limits.calls_burst = 1;
    })
    .await;
    gateway.sim.set_status("a", "completed");
    // From here on the key is proven and has its own quota.
    let mut events =
        EventClient::open(&gateway, &clip_target("a", ""), &[("authorization", "Bearer one")]).await;
    assert_eq!(events.names().await, ["status", "done"]);
    gateway.sim.set_status("b", "queued");
    let mut events =
        EventClient::open(&gateway, &clip_target("b", ""), &[("authorization", "Bearer one")]).await;
    events.expect_status(&gateway.sim.body("b", "queued")).await;
    let event = events.next().await.unwrap();
    assert_eq!((event.id.as_deref(), event.retry), (None, Some(2000)));
    let error = error(&event);
    assert_eq!(
        (&error["statusCode"], &error["requestId"]),
        (&429.into(), &events.field("x-request-id").into())
    );
    assert!(error["message"].as_str().unwrap().contains("\"calls\""), "{error}");
    assert_eq!(events.next().await, None);
}

#[tokio::test]
async fn an_upstream_error_is_sent_as_written_and_is_final() {
    let gateway = long_hold_gateway().await;
    gateway.sim.set_status("a", "queued");
    let mut ghost = EventClient::open(&gateway, &clips_target(&["a", "ghost"], "completed"), &[]).await;
    assert_eq!(ghost.head.status, StatusCode::OK);
    let event = ghost.next().await.unwrap();
    assert_eq!((error(&event)["message"].as_str(), position(&event)), (Some("Clip not found"), "over"));
    assert_eq!(ghost.next().await, None);
    let last = event.id.unwrap();
    let again =
        EventClient::open(&gateway, &clips_target(&["a", "ghost"], "completed"), &[("last-event-id", &last)])
            .await;
    assert_eq!(again.head.status, StatusCode::NO_CONTENT);
    assert_eq!(upstream_request_count(&gateway), 1);

    // A later error, whose body is HTML.
    let mut events = EventClient::open(&gateway, &clip_target("a", "completed"), &[]).await;
    events.expect_status(&gateway.sim.body("a", "queued")).await;
    gateway.wait_until(|seen| seen.open == 1).await;
    gateway.sim.fault(
        FaultTarget::Path(clip_target("a", "completed")),
        Fault::status_with(403, ErrorBody::Html),
        1,
    );
    gateway.sim.set_status("a", "streaming");
    events.expect_status(&gateway.sim.body("a", "streaming")).await;
    let event = events.next().await.unwrap();
    let error = error(&event);
    assert_eq!((&error["statusCode"], position(&event)), (&403.into(), "over"));
    assert_eq!(error["path"], "/v2/generate/audio/suno-ai/clip");
    assert_eq!(error["requestId"], events.field("x-request-id"));
    assert_eq!(events.next().await, None);
}

#[tokio::test]
async fn a_429_of_the_upstream_asks_the_client_to_reconnect_after_10_seconds() {
    let gateway = long_hold_gateway().await;
    gateway.sim.set_status("a", "queued");
    gateway.sim.fault(FaultTarget::Polls, Fault::status(429), 1);
    let mut events = EventClient::open(&gateway, &clip_target("a", "completed"), &[]).await;
    let event = events.next().await.unwrap();
    assert_eq!((event.id.as_deref(), event.retry), (None, Some(10_000)));
    assert_eq!(error(&event)["statusCode"], 429);
    assert_eq!(events.next().await, None);
}

#[tokio::test]
async fn a_retried_fault_sends_no_event_and_a_lasting_one_sends_one_error() {
    let gateway = TestGateway::with(|config, options| {
        set_hold(LONG, config, options);
        config.upstream.retry_for = Duration::from_millis(300);
    })
    .await;
    gateway.sim.set_status("a", "queued");
    gateway.sim.fault(FaultTarget::Polls, Fault::status(500), 1);
    let mut events = EventClient::open(&gateway, &clip_target("a", "completed"), &[]).await;
    let queued = events.expect_status(&gateway.sim.body("a", "queued")).await;
    gateway.wait_until(|seen| seen.open == 1).await;
    gateway.sim.fault(FaultTarget::Path(clip_target("a", "completed")), Fault::reset(), u32::MAX);
    gateway.sim.set_status("a", "streaming");
    let streaming = events.expect_status(&gateway.sim.body("a", "streaming")).await;
    assert_ne!(queued.id, streaming.id);
    let event = events.next().await.unwrap();
    assert_eq!((event.id.as_deref(), event.retry), (None, None), "the client may reconnect");
    assert_eq!(error(&event)["statusCode"], 502);
    assert_eq!(events.next().await, None);

    gateway.sim.clear_faults();
    let last = streaming.id.unwrap();
    let mut events =
        EventClient::open(&gateway, &clip_target("a", "completed"), &[("last-event-id", &last)]).await;
    gateway.wait_until(|seen| seen.open == 1).await;
    gateway.sim.set_status("a", "completed");
    events.expect_status(&gateway.sim.body("a", "completed")).await;
    assert_eq!(events.names().await, ["done"]);
}

#[tokio::test]
async fn a_stream_waits_for_a_pause_that_the_upstream_asks_for_at_its_start() {
    let gateway = TestGateway::with(|config, options| set_hold(LONG, config, options)).await;
    gateway.sim.set_status("a", "queued");
    for status in [503, 429] {
        gateway.sim.fault(FaultTarget::Polls, Fault::retry_after(status, Duration::from_secs(1)), 1);
    }
    let mut events = EventClient::open(&gateway, &clip_target("a", "completed"), &[]).await;
    events.expect_status(&gateway.sim.body("a", "queued")).await;
    gateway.sim.set_status("a", "completed");
    events.expect_status(&gateway.sim.body("a", "completed")).await;
    assert_eq!(events.names().await, ["done"]);
}

#[tokio::test]
async fn a_drain_sends_the_current_states_and_ends_streams_without_done() {
    let gateway = TestGateway::with(|config, options| {
        set_hold(LONG, config, options);
        config.server.drain_timeout = Duration::from_secs(4);
    })
    .await;
    gateway.sim.set_status("a", "queued");
    gateway.sim.set_status("b", "queued");
    // The poll for b hangs, so only the drain's snapshot finds its next state.
    gateway.sim.fault(FaultTarget::Path(clip_target("b", "streaming")), Fault::Hang, 1);
    let mut streams = Vec::new();
    for id in ["a", "b"] {
        let mut events = EventClient::open(&gateway, &clip_target(id, "completed"), &[]).await;
        events.expect_status(&gateway.sim.body(id, "queued")).await;
        streams.push(events);
    }
    gateway.wait_until(|seen| seen.requests.len() == 4).await;
    gateway.wait_until_parked(2).await;
    gateway.sim.set_status("b", "streaming");
    gateway.stop();
    // Well before the deadline of the streams.
    assert_eq!(streams[0].next().await, None);
    streams[1].expect_status(&gateway.sim.body("b", "streaming")).await;
    assert_eq!(streams[1].next().await, None);
}

#[tokio::test]
async fn a_disconnect_ends_all_waits_of_the_stream() {
    let gateway = long_hold_gateway().await;
    gateway.sim.set_status("a", "queued");
    gateway.sim.set_status("b", "queued");
    let mut events = EventClient::open(&gateway, &clips_target(&["a", "b"], "completed"), &[]).await;
    events.expect_status(&gateway.sim.body("a", "queued")).await;
    events.expect_status(&gateway.sim.body("b", "queued")).await;
    gateway.wait_until_parked(2).await;
    gateway.wait_until(|seen| seen.open == 2).await;
    drop(events);
    gateway.wait_until_parked(0).await;
    gateway.wait_until(|seen| seen.open == 0 && seen.abandoned() == 2).await;
}

#[tokio::test]
async fn a_stream_outlives_its_polls_and_ends_at_its_own_deadline() {
    let hold = Duration::from_secs(1);
    let gateway = TestGateway::with(|config, options| {
        set_hold(hold, config, options);
        config.wait.max_timeout = 4 * hold;
    })
    .await;
    gateway.sim.set_status("a", "submitted");
    let began = clock::now();
    let mut events = EventClient::open(&gateway, &clip_target("a", "completed"), &[]).await;
    events.expect_status(&gateway.sim.body("a", "submitted")).await;
    gateway.wait_until(|seen| seen.requests.len() >= 3).await;
    gateway.sim.set_status("a", "queued");
    let queued = events.expect_status(&gateway.sim.body("a", "queued")).await;
    assert_eq!(events.next().await, None, "no state is sent twice, and the stream is not done");
    assert!(began.elapsed() >= 4 * hold, "{:?}", began.elapsed());
    let last = queued.id.unwrap();
    gateway.sim.set_status("a", "completed");
    let mut events =
        EventClient::open(&gateway, &clip_target("a", "completed"), &[("last-event-id", &last)]).await;
    events.expect_status(&gateway.sim.body("a", "completed")).await;
    assert_eq!(events.names().await, ["done"]);
}

#[tokio::test]
async fn a_client_may_prefer_a_shorter_stream() {
    let gateway = long_hold_gateway().await;
    gateway.sim.set_status("a", "queued");
    for (prefer, applied, least) in [("wait=0", "wait=0", 0), ("wait=1", "wait=1", 1)] {
        let began = clock::now();
        let mut events =
            EventClient::open(&gateway, &clip_target("a", "completed"), &[("prefer", prefer)]).await;
        assert_eq!(events.field("preference-applied"), applied);
        events.expect_status(&gateway.sim.body("a", "queued")).await;
        assert_eq!(events.next().await, None);
        assert!(began.elapsed() >= Duration::from_secs(least), "{:?}", began.elapsed());
    }
    let events =
        EventClient::open(&gateway, &clip_target("a", "completed"), &[("prefer", "wait=9999")]).await;
    assert_eq!(events.field("preference-applied"), "wait=600");
}

#[tokio::test]
async fn cached_states_are_sent_at_once_without_an_upstream_request() {
    let gateway = long_hold_gateway().await;
    gateway.sim.set_status("made", "completed");
    gateway.sim.set_status("failed", "error");
    gateway.sim.set_status("new", "queued");
    for id in ["made", "failed"] {
        gateway.get(&clip_target(id, ""), &[]).await;
    }
    let sent_before = upstream_request_count(&gateway);
    let mut events = EventClient::open(&gateway, &clips_target(&["failed", "made"], ""), &[]).await;
    let hit = events.field("cache-status").to_owned();
    let ttl: u64 = hit.strip_prefix("clipgate; hit; ttl=").unwrap().parse().unwrap();
    assert!((540..=600).contains(&ttl), "{hit}");
    events.expect_status(&gateway.sim.body("failed", "error")).await;
    events.expect_status(&gateway.sim.body("made", "completed")).await;
    assert_eq!(events.names().await, ["done"]);
    assert_eq!(upstream_request_count(&gateway), sent_before);

    // A job without a response of the upstream does not delay a cached one.
    gateway.sim.fault(FaultTarget::Clip("new".into()), Fault::Hang, 1);
    let mut events = EventClient::open(&gateway, &clips_target(&["new", "made"], ""), &[]).await;
    assert_eq!(position(&events.expect_status(&gateway.sim.body("made", "completed")).await), "-,completed");
    gateway.wait_until(|seen| seen.requests.len() == sent_before + 1).await;
    assert_eq!(gateway.upstream_requests()[sent_before], clip_target("new", "submitted"));
}

#[tokio::test]
async fn request_cache_control_applies_to_streams() {
    let gateway = long_hold_gateway().await;
    gateway.sim.set_status("a", "completed");
    gateway.sim.set_status("b", "queued");
    gateway.get(&clip_target("a", ""), &[]).await;
    let mut kept =
        EventClient::open(&gateway, &clip_target("a", ""), &[("cache-control", "only-if-cached")]).await;
    assert_eq!(kept.names().await, ["status", "done"]);
    assert_eq!(upstream_request_count(&gateway), 1);
    for control in ["no-cache", "no-store", "max-age=0"] {
        let before = upstream_request_count(&gateway);
        let mut events =
            EventClient::open(&gateway, &clip_target("a", ""), &[("cache-control", control)]).await;
        assert_eq!(events.field("cache-status"), "clipgate; fwd=miss", "{control}");
        assert_eq!(events.names().await, ["status", "done"]);
        assert_eq!(upstream_request_count(&gateway), before + 1, "{control}");
    }
    let mut unkept =
        EventClient::open(&gateway, &clip_target("b", "queued"), &[("cache-control", "no-store")]).await;
    assert_eq!(unkept.names().await, ["status", "done"]);
    gateway.sim.set_status("b", "completed");
    let mut unkept =
        EventClient::open(&gateway, &clip_target("b", ""), &[("cache-control", "no-store")]).await;
    assert_eq!(unkept.names().await, ["status", "done"]);
    assert!(!gateway.get(&clip_target("b", ""), &[]).await.is_hit(), "the state was not stored");
}

#[tokio::test]
async fn an_unknown_status_is_sent_once_and_requested_again_after_a_pause() {
    let gateway = long_hold_gateway().await;
    gateway.sim.set_status("a", "queued");
    let mut events = EventClient::open(&gateway, &clip_target("a", "completed"), &[]).await;
    events.expect_status(&gateway.sim.body("a", "queued")).await;
    gateway.wait_until(|seen| seen.open == 1).await;
    gateway.sim.set_status("a", "paused");
    assert_eq!(position(&events.expect_status(&gateway.sim.body("a", "paused")).await), "queued");
    let began = clock::now();
    gateway.wait_until(|seen| seen.requests.len() == 3).await;
    assert!(began.elapsed() >= Duration::from_millis(1500), "{:?}", began.elapsed());
    gateway.sim.set_status("a", "completed");
    events.expect_status(&gateway.sim.body("a", "completed")).await;
    assert_eq!(events.names().await, ["done"]);
    assert_eq!(
        gateway.upstream_requests()[1..],
        vec![clip_target("a", "streaming"); gateway.upstream_requests().len() - 1]
    );
}

#[tokio::test]
async fn jobs_of_an_unsplit_response_are_requested_one_by_one() {
    let gateway = TestGateway::with(|config, options| {
        set_hold(LONG, config, options);
        options.list_format = ListFormat::Summary;
    })
    .await;
    for id in ["a", "b"] {
        gateway.sim.set_status(id, "completed");
    }
    let mut events = EventClient::open(&gateway, &clips_target(&["a", "b"], "completed"), &[]).await;
    let mut received = [events.next().await.unwrap().data, events.next().await.unwrap().data];
    received.sort();
    assert_eq!(received, ["a", "b"].map(|id| gateway.sim.body(id, "completed")));
    assert_eq!(events.names().await, ["done"]);
    let expected = [
        clips_target(&["a", "b"], "submitted"),
        clip_target("a", "submitted"),
        clip_target("b", "submitted"),
    ];
    assert_eq!(gateway.upstream_requests(), expected);
}

#[tokio::test]
async fn only_a_get_with_a_key_and_accept_event_stream_is_a_stream() {
    let gateway = TestGateway::new().await;
    gateway.sim.set_status("a", "completed");
    let target = clip_target("a", "completed");
    for accept in ["*/*", "application/json", "text/*"] {
        let answer = gateway.get(&target, &[("accept", accept)]).await;
        assert_eq!(answer.body, gateway.sim.body("a", "completed"), "{accept}");
        assert_eq!(answer.field("vary"), "authorization, accept");
    }
    let passed = [
        request("HEAD", &target, &[ACCEPT_EVENTS, ("authorization", "Bearer demo")], ""),
        request(
            "POST",
            "/v2/generate/audio/suno-ai/clip",
            &[ACCEPT_EVENTS, ("authorization", "Bearer demo")],
            "{}",
        ),
        request("GET", &target, &[ACCEPT_EVENTS], ""),
        request("GET", &format!("{target}&x=1"), &[ACCEPT_EVENTS, ("authorization", "Bearer demo")], ""),
    ];
    assert_eq!(passed.len(), 4);
    for request in passed {
        let answer = gateway.send(request).await;
        let status = answer.field("cache-status").to_owned();
        assert!(status == "clipgate; fwd=bypass" || status == "clipgate; fwd=method", "{status}");
    }
}

#[tokio::test]
async fn streams_of_different_keys_share_nothing() {
    let gateway = long_hold_gateway().await;
    gateway.sim.set_status("a", "queued");
    let mut streams = Vec::new();
    for key in ["Bearer one", "Bearer two"] {
        let mut events = EventClient::open(&gateway, &clip_target("a", ""), &[("authorization", key)]).await;
        events.expect_status(&gateway.sim.body("a", "queued")).await;
        streams.push(events);
    }
    gateway.wait_until(|seen| seen.open == 2).await;
    gateway.sim.set_status("a", "completed");
    for events in &mut streams {
        events.expect_status(&gateway.sim.body("a", "completed")).await;
    }
    let targets = [clip_target("a", "submitted"), clip_target("a", "streaming")];
    let mut seen = gateway.upstream_requests();
    seen.sort();
    assert_eq!(seen, [&targets[1], &targets[1], &targets[0], &targets[0]].map(String::as_str));
}

mod http2 {
    use bytes::Bytes;
    use http_body_util::Empty;
    use hyper::client::conn::http2::{Builder, SendRequest};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::net::TcpStream;

    use super::*;

    async fn connect(
        gateway: &TestGateway,
        window: u32,
    ) -> (SendRequest<Empty<Bytes>>, AbortOnDropHandle<()>) {
        let socket = TcpStream::connect(gateway.address).await.unwrap();
        let (sender, connection) = Builder::new(TokioExecutor::new())
            .initial_stream_window_size(window)
            .handshake(TokioIo::new(socket))
            .await
            .unwrap();
        (sender, AbortOnDropHandle::new(tokio::spawn(async { drop(connection.await) })))
    }

    fn stream_request(gateway: &TestGateway, fields: &[(&str, &str)]) -> http::Request<Empty<Bytes>> {
        let target = format!("http://{}{}", gateway.address, clip_target("a", "completed"));
        let mut request = crate::harness::event_client::request(&target, fields);
        request.headers_mut().remove("host");
        request
    }

    #[tokio::test]
    async fn one_connection_carries_many_streams() {
        let gateway = long_hold_gateway().await;
        gateway.sim.set_status("a", "queued");
        let (mut sender, _connection) = connect(&gateway, 1 << 16).await;
        let mut streams = Vec::new();
        for _ in 0..10 {
            let answer = sender.send_request(stream_request(&gateway, &[])).await.unwrap();
            let mut events = EventClient::from_response(answer);
            assert_eq!(events.field("content-type"), "text/event-stream");
            events.expect_status(&gateway.sim.body("a", "queued")).await;
            streams.push(events);
        }
        gateway.wait_until_parked(10).await;
        drop(streams.pop());
        gateway.wait_until_parked(9).await;
        gateway.wait_until(|seen| seen.open == 1).await;
        gateway.sim.set_status("a", "completed");
        for events in &mut streams {
            events.expect_status(&gateway.sim.body("a", "completed")).await;
            assert_eq!(events.names().await, ["done"]);
        }
    }

    #[tokio::test]
    async fn a_client_that_never_reads_holds_no_wait_beyond_its_deadline() {
        let gateway = long_hold_gateway().await;
        gateway.sim.set_status("a", "queued");
        let (mut sender, _connection) = connect(&gateway, 0).await;
        let mut unread = Vec::new();
        for _ in 0..10 {
            unread
                .push(sender.send_request(stream_request(&gateway, &[("prefer", "wait=1")])).await.unwrap());
        }
        gateway.wait_until_parked(0).await;
        assert!(unread.iter().all(|answer| answer.status() == 200));
        assert!(gateway.upstream_requests_for_status("submitted") >= 1, "the streams had parked waits");
    }
}
