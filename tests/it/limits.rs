//! The quota of one key, and who counts as one (contract, section 5).

use clipgate::clock;
use clipgate::config::Config;

use crate::stage::{Answer, Stage, all, single};
use crate::wire::{CLIP, assert_refusal, calls, field, request};

fn ten(config: &mut Config) {
    config.limits.requests_per_second = 1;
    config.limits.burst = 10;
}

async fn made(stage: &Stage) {
    stage.sim.put("a", "completed");
    assert_eq!(stage.get(&single("a", "completed"), &[]).await.status, 200);
}

fn is_limited(answer: &Answer) -> bool {
    answer.status == 429
}

#[tokio::test]
async fn a_burst_of_ten_lets_ten_of_fifteen_through_and_then_recovers() {
    let stage = Stage::with(|config, _| ten(config)).await;
    made(&stage).await; // from here on the key is known, and counts for itself
    let since = clock::now();
    let burst: Vec<_> = (0..15).map(|_| stage.spawn_get(&single("a", "completed"), &[])).collect();
    let mut limited = Vec::new();
    for answer in burst {
        let answer = answer.await.unwrap();
        if is_limited(&answer) {
            limited.push(answer);
        }
    }
    // And one more for each second that it took.
    let more = since.elapsed().as_secs() as usize + usize::from(since.elapsed().subsec_nanos() > 0);
    assert!(limited.len() <= 5 && limited.len() + more >= 5, "{} in {more} s", limited.len());
    let pause = limited
        .iter()
        .map(|answer| {
            let message = assert_refusal(answer, 429, "requests");
            assert!(message.contains("try again in 1 s"), "{message}");
            assert_eq!(field(answer, "ratelimit"), "\"requests\";r=0;t=1, \"calls\";r=1000000");
            let policy = "\"requests\";q=10;w=10, \"calls\";q=1000000;w=1";
            assert_eq!(field(answer, "ratelimit-policy"), policy);
            field(answer, "retry-after").parse().unwrap()
        })
        .max()
        .unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(pause)).await; // as the answers ask
    assert_eq!(stage.get(&single("a", "completed"), &[]).await.status, 200);
    assert_eq!(calls(&stage), 1);
}

#[tokio::test]
async fn every_answer_says_where_its_key_stands() {
    let stage = Stage::with(|config, _| {
        config.limits.requests_per_second = 1;
        config.limits.burst = 1000;
    })
    .await;
    made(&stage).await;
    let answers = [
        stage.get(&single("a", "completed"), &[]).await,
        stage.get("/sim/echo", &[]).await,
        stage.get(CLIP, &[]).await,
        stage.send(request("POST", CLIP, &[("authorization", "Bearer demo")], "{}")).await,
    ];
    let mut before = u32::MAX;
    for answer in &answers {
        let policy = "\"requests\";q=1000;w=1000, \"calls\";q=1000000;w=1";
        assert_eq!(field(answer, "ratelimit-policy"), policy);
        let (requests, calls) = field(answer, "ratelimit").split_once(", ").unwrap();
        let left: u32 = requests.strip_prefix("\"requests\";r=").unwrap().parse().unwrap();
        assert!(calls.starts_with("\"calls\";r="), "{calls}");
        assert!((900..before).contains(&left), "{left} of {before}");
        before = left;
    }
}

#[tokio::test]
async fn made_up_keys_count_for_their_address() {
    let stage = Stage::with(|config, options| {
        ten(config);
        options.keys = Some(vec!["demo".to_owned()]);
    })
    .await;
    made(&stage).await;
    let mut statuses = Vec::new();
    for n in 0..15 {
        let key = format!("Bearer made-up-{n}");
        statuses.push(stage.get(&single("a", "completed"), &[("authorization", &key)]).await.status.as_u16());
    }
    let limited = statuses.iter().filter(|status| **status == 429).count();
    assert!((4..=6).contains(&limited), "{statuses:?}");
    assert!(statuses[..9].iter().all(|status| *status == 401), "{statuses:?}");
    let keyless = stage.send(request("GET", "/v1/models", &[], "")).await;
    assert!(is_limited(&keyless) || statuses.last() == Some(&401), "{statuses:?}");
    assert_eq!(stage.get(&single("a", "completed"), &[]).await.status, 200, "a proven key is not touched");
}

#[tokio::test]
async fn what_is_passed_through_takes_a_call_each_and_a_hit_none() {
    let stage = Stage::with(|config, _| {
        config.limits.calls_per_second = 1;
        config.limits.calls_burst = 3;
    })
    .await;
    made(&stage).await; // from here on the key is known, and counts for itself
    let asked = calls(&stage);
    let mut limited = 0;
    for _ in 0..8 {
        let answer = stage.get("/sim/echo", &[]).await;
        if is_limited(&answer) {
            assert_refusal(&answer, 429, "calls");
            assert!(field(&answer, "ratelimit").ends_with(", \"calls\";r=0;t=1"), "{answer:?}");
            assert_eq!(field(&answer, "retry-after"), "1");
            limited += 1;
        }
        assert!(stage.get(&single("a", "completed"), &[]).await.hit(), "which is free");
    }
    assert!((3..=5).contains(&limited), "3 at once, and a second or two may have gone by: {limited}");
    assert_eq!(calls(&stage) - asked, 8 - limited);
}

#[tokio::test]
async fn fifty_merged_waits_and_fifty_hits_cost_one_call() {
    let stage = Stage::with(|config, options| {
        crate::stage::set_hold(std::time::Duration::from_secs(20), config, options);
        config.limits.calls_per_second = 1;
        config.limits.calls_burst = 3;
    })
    .await;
    made(&stage).await; // costs one of the address, and proves the key
    stage.sim.put("b", "streaming");
    let waits: Vec<_> = (0..50).map(|_| stage.spawn_get(&single("b", "completed"), &[])).collect();
    stage.until_parked(50).await;
    stage.sim.put("b", "completed");
    let answers = all(waits).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    for _ in 0..50 {
        assert!(stage.get(&single("b", "completed"), &[]).await.hit());
    }
    let last = stage.get(&single("b", "completed"), &[]).await;
    let left = field(&last, "ratelimit").rsplit_once("\"calls\";r=").unwrap().1;
    assert!(left.starts_with(['2', '3']), "{left}");
    assert_eq!(calls(&stage), 2);
}

#[tokio::test]
async fn a_wait_that_would_open_a_poll_over_the_quota_of_calls_is_refused_and_leaves_no_trace() {
    let stage = Stage::with(|config, _| {
        config.limits.calls_per_second = 1;
        config.limits.calls_burst = 2;
    })
    .await;
    made(&stage).await;
    let ids: Vec<String> = (0..6).map(|n| format!("clip-{n}")).collect();
    ids.iter().for_each(|id| stage.sim.put(id, "completed"));
    let since = clock::now();
    let waits = ids.iter().map(|id| stage.spawn_get(&single(id, "completed"), &[])).collect();
    let answers = all(waits).await;
    let refused: Vec<_> = answers.iter().filter(|answer| is_limited(answer)).collect();
    // The burst, and what each second adds.
    let allowed = 2 + since.elapsed().as_secs() as usize + 1;
    assert!(answers.len() - refused.len() <= allowed, "{} of {allowed}", answers.len() - refused.len());
    for answer in &refused {
        assert_refusal(answer, 429, "calls");
        assert_eq!(field(answer, "retry-after"), "1");
    }
    assert!(calls(&stage) <= 1 + allowed, "{}", calls(&stage));
    assert!(stage.get(&single("a", "completed"), &[]).await.hit(), "hits are free");
    stage.until_parked(0).await;
}

#[tokio::test]
async fn one_keys_waits_are_bounded_and_no_others() {
    let stage = Stage::with(|config, _| config.limits.max_waits_per_key = 3).await;
    stage.sim.put("b", "streaming");
    let waits: Vec<_> = (0..3).map(|_| stage.spawn_get(&single("b", "completed"), &[])).collect();
    stage.until_parked(3).await;
    let fourth = stage.get(&single("b", "completed"), &[]).await;
    assert_refusal(&fourth, 429, "too-many-waits-of-key");
    let other = stage.spawn_get(&single("b", "completed"), &[("authorization", "Bearer other")]);
    stage.until_parked(4).await;
    stage.sim.put("b", "completed");
    assert!(all(waits).await.iter().all(|answer| answer.status == 200));
    assert_eq!(other.await.unwrap().status, 200);
}
