//! Cache hits, stored responses, and the headers `Cache-Status`, `Age`, `ETag` and `Cache-Control` (P8, P11).

use std::time::Duration;

use clipgate::sim::{Fault, FaultTarget, ListFormat};
use clipgate::testing::clock;

use crate::harness::gateway::{Answer, TestGateway, clip_target, clips_target};
use crate::harness::raw_http::{CLIP, assert_gateway_error, field, request, upstream_request_count};

const KEY: (&str, &str) = ("authorization", "Bearer demo");

fn cache_status(answer: &Answer) -> &str {
    field(answer, "cache-status")
}

fn is_hit(answer: &Answer) -> bool {
    cache_status(answer).starts_with("clipgate; hit; ttl=")
}

#[tokio::test]
async fn cache_status_describes_how_the_gateway_answered() {
    let gateway = TestGateway::new().await;
    gateway.sim.set_status("made", "completed");
    let target = clip_target("made", "completed");
    assert_eq!(cache_status(&gateway.get(&target, &[]).await), "clipgate; fwd=miss; fwd-status=200; stored");
    let hit = gateway.get(&target, &[]).await;
    let ttl: u64 = cache_status(&hit).strip_prefix("clipgate; hit; ttl=").unwrap().parse().unwrap();
    assert!((86_380..=86_400).contains(&ttl), "{ttl}");

    gateway.sim.set_status("new", "streaming");
    assert_eq!(
        cache_status(&gateway.get(&clip_target("new", "queued"), &[]).await),
        "clipgate; fwd=miss; fwd-status=200"
    );
    assert_eq!(
        cache_status(&gateway.get(&clip_target("nowhere", "queued"), &[]).await),
        "clipgate; fwd=miss; fwd-status=404"
    );
    assert_eq!(cache_status(&gateway.get("/sim/echo", &[]).await), "clipgate; fwd=bypass");
    assert_eq!(cache_status(&gateway.get("/sim/status/418", &[]).await), "clipgate; fwd=bypass");
    let post = gateway.send(request("POST", CLIP, &[KEY], "{}")).await;
    assert_eq!((post.status.as_u16(), cache_status(&post)), (201, "clipgate; fwd=method"));
    assert_eq!(cache_status(&gateway.get(CLIP, &[]).await), "clipgate; detail=no-id");
}

#[tokio::test]
async fn an_attached_wait_gets_collapsed_and_no_per_response_headers() {
    let gateway = TestGateway::new().await;
    gateway.sim.set_status("a", "queued");
    let waits: Vec<_> = (0..5).map(|_| gateway.spawn_get(&clip_target("a", "completed"), &[])).collect();
    gateway.wait_until_parked(5).await;
    gateway.sim.set_status("a", "completed");
    let (mut opened, mut collapsed) = (0, 0);
    for wait in waits {
        let answer = wait.await.unwrap();
        match cache_status(&answer) {
            "clipgate; fwd=miss; fwd-status=200; stored" => {
                assert!(answer.headers.contains_key("x-inference-id"));
                opened += 1;
            }
            "clipgate; fwd=miss; collapsed" => {
                assert_no_per_response_headers(&answer);
                collapsed += 1;
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!((opened, collapsed, upstream_request_count(&gateway)), (1, 4, 1));
}

fn assert_no_per_response_headers(answer: &Answer) {
    for name in ["x-inference-id", "x-aimlapi-request", "set-cookie", "ratelimit-remaining"] {
        assert!(!answer.headers.contains_key(name), "{name}: {answer:?}");
    }
    assert_eq!(field(answer, "x-powered-by"), "Express", "shared headers stay");
}

#[tokio::test]
async fn the_cache_never_replays_per_response_headers() {
    let gateway = TestGateway::new().await;
    gateway.sim.set_status("a", "completed");
    let fresh = gateway.get(&clip_target("a", "completed"), &[]).await;
    for name in ["x-inference-id", "x-aimlapi-request", "set-cookie", "ratelimit-remaining", "date"] {
        assert!(fresh.headers.contains_key(name), "{name}");
    }
    let hit = gateway.get(&clip_target("a", "completed"), &[("x-request-id", "mine")]).await;
    assert!(is_hit(&hit));
    assert_no_per_response_headers(&hit);
    assert_eq!(field(&hit, "x-request-id"), "mine");
    assert_eq!(hit.body, fresh.body);
    assert_eq!(hit.body, gateway.sim.body("a", "completed"));
}

#[tokio::test]
async fn a_hit_has_an_age_and_a_fresh_response_has_none() {
    let gateway = TestGateway::new().await;
    gateway.sim.set_status("a", "completed");
    let began = clock::now();
    assert_eq!(field(&gateway.get(&clip_target("a", "completed"), &[]).await, "age"), "");
    let age = async || -> u64 {
        let answer = gateway.get(&clip_target("a", "completed"), &[]).await;
        let age = field(&answer, "age").parse().unwrap();
        assert!(age <= began.elapsed().as_secs(), "{age}");
        age
    };
    let young = age().await;
    tokio::time::sleep(Duration::from_millis(1100)).await; // the entry grows older
    assert!(age().await > young);
}

#[tokio::test]
async fn a_client_with_a_matching_etag_gets_304_for_hits_and_for_upstream_responses() {
    let gateway = TestGateway::new().await;
    gateway.sim.set_status("a", "completed");
    gateway.sim.set_status("b", "error");
    for target in [
        clip_target("a", "completed"),
        clips_target(&["b", "a"], "completed"),
        clips_target(&["a"], "streaming"),
    ] {
        let first = gateway.get(&target, &[("cache-control", "no-cache")]).await;
        let etag = field(&first, "etag");
        assert!(
            etag.len() > 10 && etag.starts_with('"') && etag.ends_with('"'),
            "{etag} is not a strong validator"
        );
        let again = gateway.get(&target, &[]).await;
        assert!(is_hit(&again));
        assert_eq!((field(&again, "etag"), &again.body), (etag, &first.body));

        let weak = format!("\"other\", W/{etag}");
        for control in ["no-cache", "max-age=3600"] {
            for condition in [etag, &weak, "*"] {
                let fields = [("cache-control", control), ("if-none-match", condition)];
                let answer = gateway.get(&target, &fields).await;
                assert_eq!(answer.status, 304, "{target} {control} {condition}");
                assert_eq!(is_hit(&answer), control != "no-cache");
                assert!(answer.body.is_empty() && field(&answer, "etag") == etag);
                assert!(field(&answer, "cache-control").starts_with("private, max-age="));
                assert_eq!(field(&answer, "via"), "1.1 clipgate");
            }
            let fields = [("cache-control", control), ("if-none-match", "\"other\"")];
            assert_eq!(gateway.get(&target, &fields).await.status, 200);
        }
    }
}

#[tokio::test]
async fn clients_may_store_only_terminal_states_and_for_their_lifetime() {
    let gateway = TestGateway::new().await;
    for (id, word) in [("made", "completed"), ("failed", "error"), ("begun", "streaming")] {
        gateway.sim.set_status(id, word);
    }
    let rows = [
        (clip_target("made", "completed"), "private, max-age=86400"),
        (clip_target("failed", "completed"), "private, max-age=600"),
        (clip_target("begun", "streaming"), "no-store"),
        (clips_target(&["made", "failed"], "completed"), "private, max-age=600"),
        (clips_target(&["made", "begun"], "streaming"), "no-store"),
    ];
    for (target, control) in &rows {
        for _ in 0..2 {
            let answer = gateway.get(target, &[]).await;
            assert_eq!(field(&answer, "cache-control"), *control, "{target}");
            assert_eq!(answer.headers.contains_key("etag"), *control != "no-store", "{target}");
        }
    }
}

#[tokio::test]
async fn no_cache_causes_an_upstream_request_and_stores_its_response() {
    let gateway = TestGateway::new().await;
    gateway.sim.set_status("a", "completed");
    for requests in 1..=2 {
        let answer = gateway.get(&clip_target("a", "completed"), &[("cache-control", "no-cache")]).await;
        assert_eq!(
            (cache_status(&answer), upstream_request_count(&gateway)),
            ("clipgate; fwd=miss; fwd-status=200; stored", requests)
        );
    }
    assert!(is_hit(&gateway.get(&clip_target("a", "completed"), &[]).await));
}

#[tokio::test]
async fn no_store_causes_an_upstream_request_and_stores_nothing() {
    let gateway = TestGateway::new().await;
    gateway.sim.set_status("a", "completed");
    for requests in 1..=2 {
        let answer = gateway.get(&clip_target("a", "completed"), &[("cache-control", "no-store")]).await;
        assert_eq!(
            (cache_status(&answer), upstream_request_count(&gateway)),
            ("clipgate; fwd=miss; fwd-status=200", requests)
        );
        assert_eq!(field(&answer, "cache-control"), "no-store");
    }
    let answer = gateway.get(&clip_target("a", "completed"), &[]).await;
    assert_eq!(
        (cache_status(&answer), upstream_request_count(&gateway)),
        ("clipgate; fwd=miss; fwd-status=200; stored", 3)
    );
}

#[tokio::test]
async fn only_if_cached_never_causes_an_upstream_request() {
    let gateway = TestGateway::new().await;
    gateway.sim.set_status("a", "completed");
    let only = [("cache-control", "only-if-cached")];
    assert_gateway_error(&gateway.get(&clip_target("a", "completed"), &only).await, 504, "not-cached");
    assert_eq!(upstream_request_count(&gateway), 0);
    gateway.get(&clip_target("a", "completed"), &[]).await;
    assert!(is_hit(&gateway.get(&clip_target("a", "completed"), &only).await));
    assert_gateway_error(
        &gateway.get(&clips_target(&["a", "b"], "completed"), &only).await,
        504,
        "not-cached",
    );
    assert_eq!(upstream_request_count(&gateway), 1);
}

#[tokio::test]
async fn max_age_limits_the_age_of_a_hit() {
    let gateway = TestGateway::new().await;
    gateway.sim.set_status("a", "completed");
    gateway.get(&clip_target("a", "completed"), &[]).await;
    assert!(is_hit(&gateway.get(&clip_target("a", "completed"), &[("cache-control", "max-age=60")]).await));
    let answer = gateway.get(&clip_target("a", "completed"), &[("cache-control", "max-age=0")]).await;
    assert_eq!(
        (cache_status(&answer), upstream_request_count(&gateway)),
        ("clipgate; fwd=miss; fwd-status=200; stored", 2)
    );
}

#[tokio::test]
async fn plain_requests_cause_one_upstream_request_per_live_ttl() {
    let gateway = TestGateway::with(|config, _| config.cache.live_ttl = Duration::from_secs(60)).await;
    gateway.sim.set_status("a", "streaming");
    let now = format!("{CLIP}?clip_id=a");
    for n in 0..5 {
        let answer = gateway.get(&now, &[]).await;
        assert_eq!((is_hit(&answer), answer.headers.contains_key("age")), (n > 0, n > 0));
        assert_eq!(field(&answer, "cache-control"), "no-store");
        assert_eq!(answer.body, gateway.sim.body("a", "streaming"));
    }
    assert!(is_hit(&gateway.get(&clip_target("a", "queued"), &[]).await), "a lower rung is reached too");
    assert_eq!(upstream_request_count(&gateway), 1);
}

#[tokio::test]
async fn a_live_ttl_of_zero_causes_an_upstream_request_each_time() {
    let gateway = TestGateway::with(|config, _| {
        config.cache.live_ttl = Duration::ZERO;
        config.wait.watch_idle = Duration::ZERO; // a watch would prove the state
    })
    .await;
    gateway.sim.set_status("a", "streaming");
    for n in 1..=5 {
        let answer = gateway.get(&format!("{CLIP}?clip_id=a"), &[]).await;
        assert_eq!(
            (cache_status(&answer), upstream_request_count(&gateway)),
            ("clipgate; fwd=miss; fwd-status=200", n)
        );
    }
}

#[tokio::test]
async fn the_cache_ignores_a_state_behind_the_stored_one() {
    let gateway = TestGateway::with(|config, _| config.cache.live_ttl = Duration::from_secs(60)).await;
    for (later, earlier) in [("completed", "streaming"), ("streaming", "queued")] {
        let id = format!("{later}-{earlier}");
        let now = format!("{CLIP}?clip_id={id}");
        gateway.sim.set_status(&id, later);
        gateway.get(&now, &[]).await;
        gateway.sim.set_status(&id, earlier);
        let requests = upstream_request_count(&gateway);
        gateway.get(&now, &[("cache-control", "no-cache")]).await;
        assert_eq!(upstream_request_count(&gateway), requests + 1);
        let hit = gateway.get(&now, &[]).await;
        assert!(is_hit(&hit));
        assert_eq!(hit.body, gateway.sim.body(&id, later));
    }
}

#[tokio::test]
async fn a_401_removes_all_entries_of_the_key() {
    let gateway = TestGateway::new().await;
    gateway.sim.set_status("a", "completed");
    gateway.sim.set_status("b", "completed");
    let only = [("cache-control", "only-if-cached")];
    let revoke = || gateway.sim.accept_keys(Some(&["other".to_owned()]));
    for target in [clip_target("b", "completed"), format!("{CLIP}?clip_id=b&unknown=1")] {
        gateway.get(&clip_target("a", "completed"), &[]).await;
        assert!(is_hit(&gateway.get(&clip_target("a", "completed"), &only).await));
        revoke();
        assert_eq!(gateway.get(&target, &[("cache-control", "no-cache")]).await.status, 401, "{target}");
        gateway.sim.accept_keys(None);
        assert_gateway_error(&gateway.get(&clip_target("a", "completed"), &only).await, 504, "not-cached");
        gateway.get(&clip_target("b", "completed"), &[("cache-control", "no-store")]).await;
        assert_gateway_error(&gateway.get(&clip_target("a", "completed"), &only).await, 504, "not-cached");
    }
}

#[tokio::test]
async fn a_key_must_be_accepted_again_after_the_recheck_interval() {
    // A thousand times the duration of a hit, so no hit is late by itself.
    let recheck = Duration::from_secs(3);
    let gateway = TestGateway::with(|config, _| config.cache.key_recheck_interval = recheck).await;
    gateway.sim.set_status("a", "completed");
    gateway.get(&clip_target("a", "completed"), &[]).await;
    assert!(is_hit(&gateway.get(&clip_target("a", "completed"), &[]).await));
    tokio::time::sleep(recheck).await; // the proof expires
    let only = [("cache-control", "only-if-cached")];
    assert_gateway_error(&gateway.get(&clip_target("a", "completed"), &only).await, 504, "not-cached");
    assert!(!is_hit(&gateway.get(&clip_target("a", "completed"), &[]).await));
    assert!(is_hit(&gateway.get(&clip_target("a", "completed"), &[]).await));
    assert_eq!(upstream_request_count(&gateway), 2);
}

#[tokio::test]
async fn errors_and_bodies_that_cannot_be_parsed_are_not_stored() {
    let gateway = TestGateway::with(|config, _| config.cache.live_ttl = Duration::from_secs(60)).await;
    gateway.sim.set_status("a", "completed");
    gateway.sim.set_status("b", "completed");
    gateway.sim.set_status("odd", "remixing");
    let id = |id: &str| FaultTarget::Clip(id.to_owned());
    gateway.sim.fault(id("a"), Fault::status(404), 1);
    assert_eq!(gateway.get(&clip_target("a", "completed"), &[]).await.status, 404);
    let answer = gateway.get(&clip_target("a", "completed"), &[]).await;
    assert_eq!((answer.status.as_u16(), upstream_request_count(&gateway)), (200, 2));

    for requests in 3..=4 {
        let odd = gateway.get(&clip_target("odd", "completed"), &[]).await;
        assert_eq!(
            (cache_status(&odd), upstream_request_count(&gateway)),
            ("clipgate; fwd=miss; fwd-status=200", requests)
        );
        assert_eq!(odd.body, gateway.sim.body("odd", "remixing"));
        assert_eq!((field(&odd, "cache-control"), field(&odd, "etag")), ("no-store", ""));
    }

    gateway.sim.fault(id("b"), Fault::Shape(ListFormat::Summary), 2);
    let both = clips_target(&["b", "c"], "completed");
    gateway.sim.set_status("c", "completed");
    for requests in 5..=6 {
        let summary = gateway.get(&both, &[]).await;
        assert_eq!(
            (cache_status(&summary), upstream_request_count(&gateway)),
            ("clipgate; fwd=miss; fwd-status=200", requests)
        );
        assert_eq!((field(&summary, "cache-control"), field(&summary, "etag")), ("no-store", ""));
    }
    assert_eq!(cache_status(&gateway.get(&both, &[]).await), "clipgate; fwd=miss; fwd-status=200; stored");
}

#[tokio::test]
async fn each_clip_of_a_list_is_stored_on_its_own() {
    let gateway = TestGateway::new().await;
    gateway.sim.set_status("a", "completed");
    gateway.sim.set_status("b", "completed");
    gateway.get(&clips_target(&["a", "b"], "completed"), &[]).await;
    let one = gateway.get(&clip_target("a", "completed"), &[]).await;
    assert!(is_hit(&one));
    assert_eq!(one.body, gateway.sim.body("a", "completed"));
    let reordered = gateway.get(&clips_target(&["b", "a"], "queued"), &[]).await;
    assert!(is_hit(&reordered));
    let bodies =
        [&b"["[..], &gateway.sim.body("b", "completed"), b",", &gateway.sim.body("a", "completed"), b"]"];
    assert_eq!(reordered.body, bodies.concat());
    assert_eq!(upstream_request_count(&gateway), 1);
}
