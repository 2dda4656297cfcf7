//! What is answered without asking, and what is never (contract, sections 3 and 6).

use std::time::Duration;

use clipgate::sim::{Fault, FaultTarget, ListFormat};
use clipgate::testing::clock;

use crate::harness::gateway::{Answer, TestGateway, clip_target, clips_target};
use crate::harness::raw_http::{CLIP, assert_gateway_error, field, request, upstream_request_count};

const KEY: (&str, &str) = ("authorization", "Bearer demo");

fn told(answer: &Answer) -> &str {
    field(answer, "cache-status")
}

fn is_hit(answer: &Answer) -> bool {
    told(answer).starts_with("clipgate; hit; ttl=")
}

#[tokio::test]
async fn cache_status_says_what_the_gateway_did() {
    let stage = TestGateway::new().await;
    stage.sim.set_status("made", "completed");
    let target = clip_target("made", "completed");
    assert_eq!(told(&stage.get(&target, &[]).await), "clipgate; fwd=miss; fwd-status=200; stored");
    let hit = stage.get(&target, &[]).await;
    let ttl: u64 = told(&hit).strip_prefix("clipgate; hit; ttl=").unwrap().parse().unwrap();
    assert!((86_380..=86_400).contains(&ttl), "{ttl}");

    stage.sim.set_status("new", "streaming");
    assert_eq!(
        told(&stage.get(&clip_target("new", "queued"), &[]).await),
        "clipgate; fwd=miss; fwd-status=200"
    );
    assert_eq!(
        told(&stage.get(&clip_target("nowhere", "queued"), &[]).await),
        "clipgate; fwd=miss; fwd-status=404"
    );
    assert_eq!(told(&stage.get("/sim/echo", &[]).await), "clipgate; fwd=bypass");
    assert_eq!(told(&stage.get("/sim/status/418", &[]).await), "clipgate; fwd=bypass");
    let post = stage.send(request("POST", CLIP, &[KEY], "{}")).await;
    assert_eq!((post.status.as_u16(), told(&post)), (201, "clipgate; fwd=method"));
    assert_eq!(told(&stage.get(CLIP, &[]).await), "clipgate; detail=no-id");
}

#[tokio::test]
async fn a_wait_that_leans_says_collapsed_and_carries_nothing_of_the_openers_own() {
    let stage = TestGateway::new().await;
    stage.sim.set_status("a", "queued");
    let waits: Vec<_> = (0..5).map(|_| stage.spawn_get(&clip_target("a", "completed"), &[])).collect();
    stage.wait_until_parked(5).await;
    stage.sim.set_status("a", "completed");
    let (mut opened, mut collapsed) = (0, 0);
    for wait in waits {
        let answer = wait.await.unwrap();
        match told(&answer) {
            "clipgate; fwd=miss; fwd-status=200; stored" => {
                assert!(answer.headers.contains_key("x-inference-id"));
                opened += 1;
            }
            "clipgate; fwd=miss; collapsed" => {
                assert_own_fields_are_missing(&answer);
                collapsed += 1;
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!((opened, collapsed, upstream_request_count(&stage)), (1, 4, 1));
}

fn assert_own_fields_are_missing(answer: &Answer) {
    for name in ["x-inference-id", "x-aimlapi-request", "set-cookie", "ratelimit-remaining"] {
        assert!(!answer.headers.contains_key(name), "{name}: {answer:?}");
    }
    assert_eq!(field(answer, "x-powered-by"), "Express", "what all answers share stays");
}

#[tokio::test]
async fn what_belongs_to_one_answer_is_never_replayed() {
    let stage = TestGateway::new().await;
    stage.sim.set_status("a", "completed");
    let fresh = stage.get(&clip_target("a", "completed"), &[]).await;
    for name in ["x-inference-id", "x-aimlapi-request", "set-cookie", "ratelimit-remaining", "date"] {
        assert!(fresh.headers.contains_key(name), "{name}");
    }
    let hit = stage.get(&clip_target("a", "completed"), &[("x-request-id", "mine")]).await;
    assert!(is_hit(&hit));
    assert_own_fields_are_missing(&hit);
    assert_eq!(field(&hit, "x-request-id"), "mine");
    assert_eq!(hit.body, fresh.body);
    assert_eq!(hit.body, stage.sim.body("a", "completed"));
}

#[tokio::test]
async fn a_hit_has_its_age_and_a_fresh_answer_has_none() {
    let stage = TestGateway::new().await;
    stage.sim.set_status("a", "completed");
    let began = clock::now();
    assert_eq!(field(&stage.get(&clip_target("a", "completed"), &[]).await, "age"), "");
    let age = async || -> u64 {
        let answer = stage.get(&clip_target("a", "completed"), &[]).await;
        let age = field(&answer, "age").parse().unwrap();
        assert!(age <= began.elapsed().as_secs(), "{age}");
        age
    };
    let young = age().await;
    tokio::time::sleep(Duration::from_millis(1100)).await; // it grows older
    assert!(age().await > young);
}

#[tokio::test]
async fn a_client_that_has_it_gets_304_from_the_cache_and_from_the_upstream() {
    let stage = TestGateway::new().await;
    stage.sim.set_status("a", "completed");
    stage.sim.set_status("b", "error");
    for target in [
        clip_target("a", "completed"),
        clips_target(&["b", "a"], "completed"),
        clips_target(&["a"], "streaming"),
    ] {
        let first = stage.get(&target, &[("cache-control", "no-cache")]).await;
        let etag = field(&first, "etag");
        assert!(etag.len() > 10 && etag.starts_with('"') && etag.ends_with('"'), "{etag} is no strong one");
        let again = stage.get(&target, &[]).await;
        assert!(is_hit(&again));
        assert_eq!((field(&again, "etag"), &again.body), (etag, &first.body));

        let weak = format!("\"other\", W/{etag}");
        for control in ["no-cache", "max-age=3600"] {
            for condition in [etag, &weak, "*"] {
                let fields = [("cache-control", control), ("if-none-match", condition)];
                let answer = stage.get(&target, &fields).await;
                assert_eq!(answer.status, 304, "{target} {control} {condition}");
                assert_eq!(is_hit(&answer), control != "no-cache");
                assert!(answer.body.is_empty() && field(&answer, "etag") == etag);
                assert!(field(&answer, "cache-control").starts_with("private, max-age="));
                assert_eq!(field(&answer, "via"), "1.1 clipgate");
            }
            let fields = [("cache-control", control), ("if-none-match", "\"other\"")];
            assert_eq!(stage.get(&target, &fields).await.status, 200);
        }
    }
}

#[tokio::test]
async fn only_terminal_answers_may_be_kept_by_the_client_and_only_for_so_long() {
    let stage = TestGateway::new().await;
    for (id, word) in [("made", "completed"), ("failed", "error"), ("begun", "streaming")] {
        stage.sim.set_status(id, word);
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
            let answer = stage.get(target, &[]).await;
            assert_eq!(field(&answer, "cache-control"), *control, "{target}");
            assert_eq!(answer.headers.contains_key("etag"), *control != "no-store", "{target}");
        }
    }
}

#[tokio::test]
async fn no_cache_asks_again_and_what_comes_is_kept() {
    let stage = TestGateway::new().await;
    stage.sim.set_status("a", "completed");
    for asked in 1..=2 {
        let answer = stage.get(&clip_target("a", "completed"), &[("cache-control", "no-cache")]).await;
        assert_eq!(
            (told(&answer), upstream_request_count(&stage)),
            ("clipgate; fwd=miss; fwd-status=200; stored", asked)
        );
    }
    assert!(is_hit(&stage.get(&clip_target("a", "completed"), &[]).await));
}

#[tokio::test]
async fn no_store_asks_again_and_keeps_nothing() {
    let stage = TestGateway::new().await;
    stage.sim.set_status("a", "completed");
    for asked in 1..=2 {
        let answer = stage.get(&clip_target("a", "completed"), &[("cache-control", "no-store")]).await;
        assert_eq!(
            (told(&answer), upstream_request_count(&stage)),
            ("clipgate; fwd=miss; fwd-status=200", asked)
        );
        assert_eq!(field(&answer, "cache-control"), "no-store");
    }
    let answer = stage.get(&clip_target("a", "completed"), &[]).await;
    assert_eq!(
        (told(&answer), upstream_request_count(&stage)),
        ("clipgate; fwd=miss; fwd-status=200; stored", 3)
    );
}

#[tokio::test]
async fn only_if_cached_never_asks() {
    let stage = TestGateway::new().await;
    stage.sim.set_status("a", "completed");
    let only = [("cache-control", "only-if-cached")];
    assert_gateway_error(&stage.get(&clip_target("a", "completed"), &only).await, 504, "not-cached");
    assert_eq!(upstream_request_count(&stage), 0);
    stage.get(&clip_target("a", "completed"), &[]).await;
    assert!(is_hit(&stage.get(&clip_target("a", "completed"), &only).await));
    assert_gateway_error(&stage.get(&clips_target(&["a", "b"], "completed"), &only).await, 504, "not-cached");
    assert_eq!(upstream_request_count(&stage), 1);
}

#[tokio::test]
async fn max_age_says_how_old_a_hit_may_be() {
    let stage = TestGateway::new().await;
    stage.sim.set_status("a", "completed");
    stage.get(&clip_target("a", "completed"), &[]).await;
    assert!(is_hit(&stage.get(&clip_target("a", "completed"), &[("cache-control", "max-age=60")]).await));
    let answer = stage.get(&clip_target("a", "completed"), &[("cache-control", "max-age=0")]).await;
    assert_eq!(
        (told(&answer), upstream_request_count(&stage)),
        ("clipgate; fwd=miss; fwd-status=200; stored", 2)
    );
}

#[tokio::test]
async fn reading_often_costs_one_call_for_each_live_ttl() {
    let stage = TestGateway::with(|config, _| config.cache.live_ttl = Duration::from_secs(60)).await;
    stage.sim.set_status("a", "streaming");
    let now = format!("{CLIP}?clip_id=a");
    for n in 0..5 {
        let answer = stage.get(&now, &[]).await;
        assert_eq!((is_hit(&answer), answer.headers.contains_key("age")), (n > 0, n > 0));
        assert_eq!(field(&answer, "cache-control"), "no-store");
        assert_eq!(answer.body, stage.sim.body("a", "streaming"));
    }
    assert!(
        is_hit(&stage.get(&clip_target("a", "queued"), &[]).await),
        "a lower rung is known to be reached"
    );
    assert_eq!(upstream_request_count(&stage), 1);
}

#[tokio::test]
async fn a_live_ttl_of_zero_asks_each_time() {
    let stage = TestGateway::with(|config, _| config.cache.live_ttl = Duration::ZERO).await;
    stage.sim.set_status("a", "streaming");
    for n in 1..=5 {
        let answer = stage.get(&format!("{CLIP}?clip_id=a"), &[]).await;
        assert_eq!(
            (told(&answer), upstream_request_count(&stage)),
            ("clipgate; fwd=miss; fwd-status=200", n)
        );
    }
}

#[tokio::test]
async fn a_state_that_goes_backwards_is_ignored() {
    let stage = TestGateway::with(|config, _| config.cache.live_ttl = Duration::from_secs(60)).await;
    for (later, earlier) in [("completed", "streaming"), ("streaming", "queued")] {
        let id = format!("{later}-{earlier}");
        let now = format!("{CLIP}?clip_id={id}");
        stage.sim.set_status(&id, later);
        stage.get(&now, &[]).await;
        stage.sim.set_status(&id, earlier);
        let asked = upstream_request_count(&stage);
        stage.get(&now, &[("cache-control", "no-cache")]).await;
        assert_eq!(upstream_request_count(&stage), asked + 1);
        let hit = stage.get(&now, &[]).await;
        assert!(is_hit(&hit));
        assert_eq!(hit.body, stage.sim.body(&id, later));
    }
}

#[tokio::test]
async fn a_key_that_the_upstream_refuses_loses_its_entries() {
    let stage = TestGateway::new().await;
    stage.sim.set_status("a", "completed");
    stage.sim.set_status("b", "completed");
    let only = [("cache-control", "only-if-cached")];
    let revoke = || stage.sim.accept_keys(Some(&["other".to_owned()]));
    for target in [clip_target("b", "completed"), format!("{CLIP}?clip_id=b&unknown=1")] {
        stage.get(&clip_target("a", "completed"), &[]).await;
        assert!(is_hit(&stage.get(&clip_target("a", "completed"), &only).await));
        revoke();
        assert_eq!(stage.get(&target, &[("cache-control", "no-cache")]).await.status, 401, "{target}");
        stage.sim.accept_keys(None);
        assert_gateway_error(&stage.get(&clip_target("a", "completed"), &only).await, 504, "not-cached");
        stage.get(&clip_target("b", "completed"), &[("cache-control", "no-store")]).await;
        assert_gateway_error(&stage.get(&clip_target("a", "completed"), &only).await, 504, "not-cached");
    }
}

#[tokio::test]
async fn a_key_is_proven_again_once_in_a_while() {
    // A thousand times what a hit takes: none is late by itself.
    let recheck = Duration::from_secs(3);
    let stage = TestGateway::with(|config, _| config.cache.key_recheck_interval = recheck).await;
    stage.sim.set_status("a", "completed");
    stage.get(&clip_target("a", "completed"), &[]).await;
    assert!(is_hit(&stage.get(&clip_target("a", "completed"), &[]).await));
    tokio::time::sleep(recheck).await; // the proof grows old
    let only = [("cache-control", "only-if-cached")];
    assert_gateway_error(&stage.get(&clip_target("a", "completed"), &only).await, 504, "not-cached");
    assert!(!is_hit(&stage.get(&clip_target("a", "completed"), &[]).await));
    assert!(is_hit(&stage.get(&clip_target("a", "completed"), &[]).await));
    assert_eq!(upstream_request_count(&stage), 2);
}

#[tokio::test]
async fn failures_and_what_is_not_understood_are_not_kept() {
    let stage = TestGateway::with(|config, _| config.cache.live_ttl = Duration::from_secs(60)).await;
    stage.sim.set_status("a", "completed");
    stage.sim.set_status("b", "completed");
    stage.sim.set_status("odd", "remixing");
    let id = |id: &str| FaultTarget::Clip(id.to_owned());
    stage.sim.fault(id("a"), Fault::status(404), 1);
    assert_eq!(stage.get(&clip_target("a", "completed"), &[]).await.status, 404);
    let answer = stage.get(&clip_target("a", "completed"), &[]).await;
    assert_eq!((answer.status.as_u16(), upstream_request_count(&stage)), (200, 2));

    for asked in 3..=4 {
        let odd = stage.get(&clip_target("odd", "completed"), &[]).await;
        assert_eq!(
            (told(&odd), upstream_request_count(&stage)),
            ("clipgate; fwd=miss; fwd-status=200", asked)
        );
        assert_eq!(odd.body, stage.sim.body("odd", "remixing"));
        assert_eq!((field(&odd, "cache-control"), field(&odd, "etag")), ("no-store", ""));
    }

    stage.sim.fault(id("b"), Fault::Shape(ListFormat::Summary), 2);
    let both = clips_target(&["b", "c"], "completed");
    stage.sim.set_status("c", "completed");
    for asked in 5..=6 {
        let summary = stage.get(&both, &[]).await;
        assert_eq!(
            (told(&summary), upstream_request_count(&stage)),
            ("clipgate; fwd=miss; fwd-status=200", asked)
        );
        assert_eq!((field(&summary, "cache-control"), field(&summary, "etag")), ("no-store", ""));
    }
    assert_eq!(told(&stage.get(&both, &[]).await), "clipgate; fwd=miss; fwd-status=200; stored");
}

#[tokio::test]
async fn clips_of_a_multi_answer_are_kept_one_by_one() {
    let stage = TestGateway::new().await;
    stage.sim.set_status("a", "completed");
    stage.sim.set_status("b", "completed");
    stage.get(&clips_target(&["a", "b"], "completed"), &[]).await;
    let one = stage.get(&clip_target("a", "completed"), &[]).await;
    assert!(is_hit(&one));
    assert_eq!(one.body, stage.sim.body("a", "completed"));
    let turned = stage.get(&clips_target(&["b", "a"], "queued"), &[]).await;
    assert!(is_hit(&turned));
    let bodies =
        [&b"["[..], &stage.sim.body("b", "completed"), b",", &stage.sim.body("a", "completed"), b"]"];
    assert_eq!(turned.body, bodies.concat());
    assert_eq!(upstream_request_count(&stage), 1);
}
