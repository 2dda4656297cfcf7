//! Identical waits share one poll (P3), and clients come and go (P6).

use std::time::Duration;

use clipgate::sim::RequestEnd;
use clipgate::testing::clock;
use http::{Request, StatusCode};

use crate::harness::gateway::{Answer, TestGateway, clip_target, clips_target, join_all, set_hold};

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn three_hundred_identical_waits_cost_one_upstream_request_and_get_the_same_bytes() {
    let gateway = TestGateway::with_hold(LONG).await;
    gateway.sim.set_status("a", "submitted");
    let join = |_| gateway.spawn_get(&clip_target("a", "completed"), &[]);
    let mut waits: Vec<_> = (0..150).map(join).collect();
    gateway.wait_until_parked(150).await;
    gateway.wait_until(|seen| seen.open == 1).await;
    waits.extend((0..150).map(join)); // late joiners
    gateway.wait_until_parked(300).await;
    gateway.sim.set_status("a", "completed");

    let answers = join_all(waits).await;
    let body = gateway.sim.body("a", "completed");
    assert!(answers.iter().all(|answer| answer.status == StatusCode::OK && answer.body == body));
    assert_eq!(answers.iter().filter(|answer| answer.is_opener()).count(), 1);
    assert_eq!(answers.iter().filter(|answer| answer.is_coalesced()).count(), 299);
    assert_eq!(gateway.upstream_requests(), [clip_target("a", "completed")]);
}

// P8, P9
#[tokio::test]
async fn waits_that_one_answer_settles_have_the_fields_of_their_own_requests() {
    let gateway = TestGateway::with_hold(LONG).await;
    gateway.sim.set_status("a", "submitted");
    let target = clip_target("a", "completed");
    let opener = gateway.spawn_get(&target, &[]);
    gateway.wait_until(|seen| seen.open == 1).await;
    let kinds: [&[(&str, &str)]; 4] =
        [&[], &[("prefer", "wait=50")], &[("cache-control", "no-store")], &[("x-request-id", "mine")]];
    // Each kind twice in turn, so that the second could get the head of the first.
    let waits: Vec<_> =
        kinds.iter().flat_map(|kind| [kind, kind]).map(|kind| gateway.spawn_get(&target, kind)).collect();
    gateway.wait_until_parked(1 + waits.len()).await;
    // Longer than the time for which a wait knows its quotas from its own count.
    tokio::time::sleep(Duration::from_millis(120)).await;
    gateway.sim.set_status("a", "completed");

    assert!(opener.await.expect("the client does not panic").is_opener());
    let answers = join_all(waits).await;
    let fields =
        ["preference-applied", "cache-control", "etag", "content-type", "via", "vary", "ratelimit-policy"];
    let etag = answers[0].field("etag").to_owned();
    assert_eq!(etag.len(), 34);
    for (index, answer) in answers.iter().enumerate() {
        assert!(answer.is_coalesced() && answer.body == gateway.sim.body("a", "completed"));
        let twin = &answers[index ^ 1];
        fields.iter().for_each(|name| assert_eq!(answer.field(name), twin.field(name), "{name}"));
        assert!(answer.field("ratelimit").starts_with("\"requests\";r="), "{:?}", answer.headers);
        let (applied, control, validator) = match index / 2 {
            1 => ("wait=50", "private, max-age=", &*etag),
            2 => ("", "no-store", ""),
            _ => ("", "private, max-age=", &*etag),
        };
        assert_eq!((answer.field("preference-applied"), answer.field("etag")), (applied, validator));
        assert!(answer.field("cache-control").starts_with(control), "{:?}", answer.headers);
        assert_eq!(answer.headers.get_all("x-request-id").iter().count(), 1);
        assert_eq!(answer.field("x-request-id") == "mine", index / 2 == 3);
        assert!(index / 2 == 3 || answer.field("x-request-id") != twin.field("x-request-id"));
    }
}

#[tokio::test]
async fn waits_with_differently_spelled_queries_are_identical() {
    let gateway = TestGateway::with_hold(LONG).await;
    gateway.sim.set_status("a", "submitted");
    gateway.sim.set_status("b", "completed");
    let clips = "/v2/generate/audio/suno-ai/clips";
    let targets = [
        clips_target(&["a", "b"], "completed"),
        clips_target(&["b", "a"], "completed"),
        clips_target(&["a", "b"], "complete"),
        format!("{clips}?status=completed&clip_ids[]=a&clip_ids[]=b"),
        format!("{clips}?clip_ids[0]=b&clip_ids[1]=a&status=completed"),
        format!("{clips}?clip_ids=a&status=complete&clip_ids=b"),
    ];
    let waits: Vec<_> = targets.iter().map(|target| gateway.spawn_get(target, &[])).collect();
    gateway.wait_until_parked(targets.len()).await;
    gateway.wait_until(|seen| seen.open == 1).await;
    gateway.sim.set_status("a", "completed");
    let answers = join_all(waits).await;
    assert!(answers.iter().all(|answer| answer.status == StatusCode::OK));
    assert_eq!(gateway.upstream_requests(), [clips_target(&["a", "b"], "completed")]);
}

#[tokio::test]
async fn identical_waits_of_two_keys_share_nothing() {
    let gateway = TestGateway::with_hold(LONG).await;
    gateway.sim.set_status("a", "submitted");
    let waits = ["Bearer one", "Bearer two"]
        .map(|key| gateway.spawn_get(&clip_target("a", "completed"), &[("authorization", key)]));
    gateway.wait_until(|seen| seen.open == 2).await;
    gateway.sim.set_status("a", "completed");
    let answers = join_all(waits.into()).await;
    assert!(answers.iter().all(Answer::is_opener));
    let requests = gateway.sim.requests();
    assert_eq!(requests.len(), 2);
    assert_ne!(requests[0].key, requests[1].key);
}

#[tokio::test]
async fn the_other_waits_are_answered_by_the_poll_of_a_client_that_disconnected() {
    let gateway = TestGateway::with_hold(LONG).await;
    gateway.sim.set_status("a", "submitted");
    let opener = gateway.spawn_get(&clip_target("a", "completed"), &[]);
    gateway.wait_until(|seen| seen.open == 1).await;
    let rest: Vec<_> = (0..5).map(|_| gateway.spawn_get(&clip_target("a", "completed"), &[])).collect();
    gateway.wait_until_parked(6).await;
    drop(opener);
    gateway.wait_until_parked(5).await;
    gateway.sim.set_status("a", "completed");
    let body = gateway.sim.body("a", "completed");
    assert!(join_all(rest).await.iter().all(|answer| answer.body == body && answer.is_coalesced()));
    let requests = gateway.sim.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].end, RequestEnd::Answered(StatusCode::OK));
}

#[tokio::test]
async fn a_poll_is_cancelled_at_the_upstream_after_the_linger_when_all_clients_disconnect() {
    let gateway = TestGateway::with_hold(LONG).await;
    gateway.sim.set_status("a", "submitted");
    let waits: Vec<_> = (0..3).map(|_| gateway.spawn_get(&clip_target("a", "completed"), &[])).collect();
    gateway.wait_until_parked(3).await;
    gateway.wait_until(|seen| seen.open == 1).await;
    let left = clock::now();
    drop(waits);
    gateway.wait_until(|seen| seen.abandoned() == 1 && seen.open == 0).await;
    let requests = gateway.sim.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].end, RequestEnd::Abandoned);
    let ended = requests[0].ended_at.unwrap();
    assert!(ended - left >= Duration::from_millis(200), "{:?}", ended - left);
}

#[tokio::test]
async fn a_client_that_comes_back_within_the_linger_finds_its_poll() {
    let gateway = TestGateway::with(|config, options| {
        set_hold(LONG, config, options);
        config.wait.linger = LONG;
    })
    .await;
    gateway.sim.set_status("a", "submitted");
    let first = gateway.spawn_get(&clip_target("a", "completed"), &[]);
    gateway.wait_until(|seen| seen.open == 1).await;
    drop(first);
    gateway.wait_until_parked(0).await;
    let again = gateway.spawn_get(&clip_target("a", "completed"), &[]);
    gateway.wait_until_parked(1).await;
    gateway.sim.set_status("a", "completed");
    let answer = again.await.unwrap();
    assert_eq!(answer.body, gateway.sim.body("a", "completed"));
    assert!(answer.is_coalesced(), "{answer:?}");
    assert_eq!(gateway.upstream_requests(), [clip_target("a", "completed")]);
}

#[tokio::test]
async fn identical_passed_through_requests_share_nothing() {
    let gateway = TestGateway::new().await;
    let target = "/v2/generate/audio/suno-ai/clip";
    let make = || {
        let request = Request::post(target).header("authorization", "Bearer demo");
        gateway.send(request.body("{\"prompt\":\"night drive\"}".into()).unwrap())
    };
    let (one, other) = tokio::join!(make(), make());
    assert_eq!([one.status, other.status], [StatusCode::CREATED; 2]);
    assert_ne!(one.body, other.body);
    assert_eq!(gateway.upstream_requests(), [target; 2]);
}
