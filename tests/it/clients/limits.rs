//! Quotas of keys and addresses, and the owner of the quota that a request counts against.

use clipgate::testing::clock;
use clipgate::testing::config::{AuthMode, Config};
use clipgate::testing::secret::Secret;

use crate::harness::admin_client::AdminClient;
use crate::harness::gateway::{Answer, TestGateway, clip_target, join_all};
use crate::harness::raw_http::{
    CLIP, assert_bare_rejection, assert_gateway_error, field, parse_response, request, send_raw,
    upstream_request_count,
};

fn allow_ten(config: &mut Config) {
    config.limits.requests_per_second = 1;
    config.limits.burst = 10;
}

async fn prove_key(gateway: &TestGateway) {
    gateway.sim.set_status("a", "completed");
    assert_eq!(gateway.get(&clip_target("a", "completed"), &[]).await.status, 200);
}

fn is_limited(answer: &Answer) -> bool {
    answer.status == 429
}

#[tokio::test]
async fn a_burst_of_ten_lets_ten_of_fifteen_through_and_then_recovers() {
    let gateway = TestGateway::with(|config, _| allow_ten(config)).await;
    prove_key(&gateway).await; // from here on the key has its own quota
    let since = clock::now();
    let burst: Vec<_> = (0..15).map(|_| gateway.spawn_get(&clip_target("a", "completed"), &[])).collect();
    let mut limited = Vec::new();
    for answer in burst {
        let answer = answer.await.unwrap();
        if is_limited(&answer) {
            limited.push(answer);
        }
    }
    // Each second adds one.
    let added = since.elapsed().as_secs() as usize + usize::from(since.elapsed().subsec_nanos() > 0);
    assert!(limited.len() <= 5 && limited.len() + added >= 5, "{} in {added} s", limited.len());
    let pause = limited
        .iter()
        .map(|answer| {
            let message = assert_gateway_error(answer, 429, "requests");
            assert!(message.contains("try again in 1 s"), "{message}");
            assert_eq!(field(answer, "ratelimit"), "\"requests\";r=0;t=1, \"calls\";r=1000000");
            let policy = "\"requests\";q=10;w=10, \"calls\";q=1000000;w=1";
            assert_eq!(field(answer, "ratelimit-policy"), policy);
            field(answer, "retry-after").parse().unwrap()
        })
        .max()
        .unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(pause)).await; // as Retry-After asks
    assert_eq!(gateway.get(&clip_target("a", "completed"), &[]).await.status, 200);
    assert_eq!(upstream_request_count(&gateway), 1);
}

#[tokio::test]
async fn each_response_has_the_state_of_its_keys_quotas() {
    let gateway = TestGateway::with(|config, _| {
        config.limits.requests_per_second = 1;
        config.limits.burst = 1000;
    })
    .await;
    prove_key(&gateway).await;
    let answers = [
        gateway.get(&clip_target("a", "completed"), &[]).await,
        gateway.get("/sim/echo", &[]).await,
        gateway.get(CLIP, &[]).await,
        gateway.send(request("POST", CLIP, &[("authorization", "Bearer demo")], "{}")).await,
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
async fn unproven_keys_count_for_their_address() {
    let gateway = TestGateway::with(|config, options| {
        allow_ten(config);
        options.keys = Some(vec!["demo".to_owned()]);
    })
    .await;
    prove_key(&gateway).await;
    let mut statuses = Vec::new();
    for n in 0..15 {
        let key = format!("Bearer invented-{n}");
        statuses.push(
            gateway.get(&clip_target("a", "completed"), &[("authorization", &key)]).await.status.as_u16(),
        );
    }
    let limited = statuses.iter().filter(|status| **status == 429).count();
    assert!((4..=6).contains(&limited), "{statuses:?}");
    assert!(statuses[..9].iter().all(|status| *status == 401), "{statuses:?}");
    let keyless = gateway.send(request("GET", "/v1/models", &[], "")).await;
    assert!(is_limited(&keyless) || statuses.last() == Some(&401), "{statuses:?}");
    assert_eq!(
        gateway.get(&clip_target("a", "completed"), &[]).await.status,
        200,
        "a proven key has its own quota"
    );
}

#[tokio::test]
async fn a_passed_through_request_counts_as_a_call_and_a_hit_does_not() {
    let gateway = TestGateway::with(|config, _| {
        config.limits.calls_per_second = 1;
        config.limits.calls_burst = 3;
    })
    .await;
    prove_key(&gateway).await; // from here on the key has its own quota
    let sent_before = upstream_request_count(&gateway);
    let mut limited = 0;
    for _ in 0..8 {
        let answer = gateway.get("/sim/echo", &[]).await;
        if is_limited(&answer) {
            assert_gateway_error(&answer, 429, "calls");
            assert!(field(&answer, "ratelimit").ends_with(", \"calls\";r=0;t=1"), "{answer:?}");
            assert_eq!(field(&answer, "retry-after"), "1");
            limited += 1;
        }
        assert!(gateway.get(&clip_target("a", "completed"), &[]).await.is_hit(), "hits are free");
    }
    assert!((3..=5).contains(&limited), "a burst of 3, and one more for each second: {limited}");
    assert_eq!(upstream_request_count(&gateway) - sent_before, 8 - limited);
}

#[tokio::test]
async fn fifty_coalesced_waits_and_fifty_hits_cost_one_call() {
    let gateway = TestGateway::with(|config, options| {
        crate::harness::gateway::set_hold(std::time::Duration::from_secs(20), config, options);
        config.limits.calls_per_second = 1;
        config.limits.calls_burst = 3;
    })
    .await;
    prove_key(&gateway).await; // costs one of the address
    gateway.sim.set_status("b", "streaming");
    let waits: Vec<_> = (0..50).map(|_| gateway.spawn_get(&clip_target("b", "completed"), &[])).collect();
    gateway.wait_until_parked(50).await;
    gateway.sim.set_status("b", "completed");
    let answers = join_all(waits).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    for _ in 0..50 {
        assert!(gateway.get(&clip_target("b", "completed"), &[]).await.is_hit());
    }
    let last = gateway.get(&clip_target("b", "completed"), &[]).await;
    let left = field(&last, "ratelimit").rsplit_once("\"calls\";r=").unwrap().1;
    assert!(left.starts_with(['2', '3']), "{left}");
    assert_eq!(upstream_request_count(&gateway), 2);
}

#[tokio::test]
async fn a_wait_whose_poll_would_exceed_the_quota_calls_is_rejected_and_leaves_no_state() {
    let gateway = TestGateway::with(|config, _| {
        config.limits.calls_per_second = 1;
        config.limits.calls_burst = 2;
    })
    .await;
    prove_key(&gateway).await;
    let ids: Vec<String> = (0..6).map(|n| format!("clip-{n}")).collect();
    ids.iter().for_each(|id| gateway.sim.set_status(id, "completed"));
    let since = clock::now();
    let waits = ids.iter().map(|id| gateway.spawn_get(&clip_target(id, "completed"), &[])).collect();
    let answers = join_all(waits).await;
    let rejected: Vec<_> = answers.iter().filter(|answer| is_limited(answer)).collect();
    // The burst, and one for each second.
    let allowed = 2 + since.elapsed().as_secs() as usize + 1;
    assert!(answers.len() - rejected.len() <= allowed, "{} of {allowed}", answers.len() - rejected.len());
    for answer in &rejected {
        assert_gateway_error(answer, 429, "calls");
        assert_eq!(field(answer, "retry-after"), "1");
    }
    assert!(upstream_request_count(&gateway) <= 1 + allowed, "{}", upstream_request_count(&gateway));
    assert!(gateway.get(&clip_target("a", "completed"), &[]).await.is_hit(), "hits are free");
    gateway.wait_until_parked(0).await;
}

#[tokio::test]
async fn each_key_has_its_own_limit_of_waits() {
    let gateway = TestGateway::with(|config, _| config.limits.max_waits_per_key = 3).await;
    prove_key(&gateway).await; // from here on the key has its own quota
    gateway.sim.set_status("b", "streaming");
    let waits: Vec<_> = (0..3).map(|_| gateway.spawn_get(&clip_target("b", "completed"), &[])).collect();
    gateway.wait_until_parked(3).await;
    let fourth = gateway.get(&clip_target("b", "completed"), &[]).await;
    assert_gateway_error(&fourth, 429, "too-many-waits-per-key");
    let other = gateway.spawn_get(&clip_target("b", "completed"), &[("authorization", "Bearer other")]);
    gateway.wait_until_parked(4).await;
    gateway.sim.set_status("b", "completed");
    assert!(join_all(waits).await.iter().all(|answer| answer.status == 200));
    assert_eq!(other.await.unwrap().status, 200);
}

/// Raw requests that the gateway rejects before it checks their key: reason, request, status.
fn rejected_early() -> [(&'static str, String, u16); 6] {
    let head = |fields: &str| {
        format!(
            "GET {} HTTP/1.1\r\n{fields}authorization: Bearer demo\r\nconnection: close\r\n\r\n",
            clip_target("a", "completed")
        )
    };
    [
        ("loop", head("host: x\r\nvia: 1.1 clipgate\r\n"), 508),
        ("bad-request", head("host: x\r\nhost: y\r\n"), 400),
        ("bad-request", head(""), 400),
        ("bad-request", head("host: a b\r\n"), 400),
        ("bad-request", head("host: x\r\ntransfer-encoding: gzip, chunked\r\n"), 400),
        ("cross-origin", head("host: x\r\nsec-fetch-site: cross-site\r\n"), 403),
    ]
}

/// Returns the remaining requests that `RateLimit` reports.
fn remaining(answer: &Answer) -> u64 {
    let rest = field(answer, "ratelimit").strip_prefix("\"requests\";r=").unwrap();
    rest.split([';', ',']).next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_request_rejected_before_its_key_is_checked_counts_for_its_address() {
    let mut count = 0;
    for (reason, request, status) in rejected_early() {
        let gateway = TestGateway::with(|config, _| {
            if reason == "cross-origin" {
                config.auth.mode = AuthMode::Sidecar;
                config.upstream.api_key = Some(Secret::new("demo"));
            }
            allow_ten(config);
        })
        .await;
        prove_key(&gateway).await; // from here on the key has its own quota
        let mut rejected = 0;
        let limited = loop {
            let bytes = send_raw(gateway.address, request.as_bytes()).await;
            let (answer, _) = parse_response(&bytes).unwrap();
            if answer.status == 429 {
                break answer;
            }
            assert_gateway_error(&answer, status, reason);
            rejected += 1;
            assert!(rejected < 1000, "{request}: the quota is never used up");
        };
        assert_gateway_error(&limited, 429, "requests");
        assert!(rejected >= 9, "{request}: after {rejected}");
        let hit = gateway.get(&clip_target("a", "completed"), &[]).await;
        assert!(hit.is_hit() && remaining(&hit) >= 8, "{request}: the request counts for the key: {hit:?}");
        count += 1;
    }
    assert_eq!(count, 6);
}

#[tokio::test]
async fn a_malformed_head_counts_for_its_address() {
    let mut gateway = TestGateway::with(|config, _| {
        config.limits.requests_per_second = 1;
        config.limits.burst = 1000;
    })
    .await;
    let admin = AdminClient::open(&mut gateway).await;
    let keyless = || gateway.send(request("GET", "/v1/models", &[], ""));
    let since = clock::now();
    let before = remaining(&keyless().await);
    for (bad, status) in [
        ("GET / HTTP/1.1\r\nx : y\r\n\r\n".to_owned(), 400),
        (format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(200_000)), 431),
    ] {
        for _ in 0..10 {
            assert_bare_rejection(&send_raw(gateway.address, bad.as_bytes()).await, status);
        }
    }
    admin.assert_rejected(20).await;
    let after = remaining(&keyless().await);
    // Each second adds one.
    assert!(after + 21 <= before + since.elapsed().as_secs() + 1, "{before}, then {after}");
}

#[tokio::test]
async fn a_sidecars_key_has_its_own_quota_from_the_first_request_on() {
    let gateway = TestGateway::with(|config, _| {
        config.auth.mode = AuthMode::Sidecar;
        config.upstream.api_key = Some(Secret::new("demo"));
        allow_ten(config);
    })
    .await;
    gateway.sim.set_status("a", "completed");
    let bad = send_raw(gateway.address, rejected_early()[0].1.as_bytes()).await;
    assert_eq!(remaining(&parse_response(&bad).unwrap().0), 9, "of the address");
    let first = gateway.get(&clip_target("a", "completed"), &[]).await;
    assert_eq!((first.status.as_u16(), remaining(&first)), (200, 9), "of the key");
}

const FULL: &str = "too-many-waits-per-address";

#[tokio::test]
async fn unproven_keys_use_the_wait_limit_of_their_address_only() {
    for (own, network, other) in
        [("198.51.100.7", "198.51.100.7", "198.51.100.8"), ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1")]
    {
        let gateway = TestGateway::with(|config, options| {
            crate::harness::gateway::set_hold(std::time::Duration::from_secs(60), config, options);
            config.server.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
            (config.limits.max_waits, config.limits.max_waits_per_key) = (100, 20);
        })
        .await;
        gateway.sim.set_status("a", "completed");
        gateway.sim.set_status("b", "streaming");
        let wait = clip_target("b", "completed");
        let known = [("authorization", "Bearer known"), ("x-forwarded-for", own)];
        assert_eq!(gateway.get(&clip_target("a", "completed"), &known).await.status, 200);

        let invented: Vec<String> = (0..10).map(|n| format!("Bearer invented-{n}")).collect();
        let mut parked: Vec<_> = (0..20)
            .map(|n| {
                let key = ("authorization", invented[n % 10].as_str());
                gateway.spawn_get(&wait, &[key, ("x-forwarded-for", own)])
            })
            .collect();
        gateway.wait_until_parked(20).await;
        for key in &invented {
            let more = [("authorization", key.as_str()), ("x-forwarded-for", network)];
            assert_gateway_error(&gateway.get(&wait, &more).await, 429, FULL);
            let stream = [more[0], more[1], ("accept", "text/event-stream")];
            assert_gateway_error(&gateway.get(&wait, &stream).await, 429, FULL);
        }
        let new = [("authorization", "Bearer new"), ("x-forwarded-for", other)];
        for fields in [&known, &new] {
            parked.extend((0..20).map(|_| gateway.spawn_get(&wait, fields)));
        }
        gateway.wait_until_parked(60).await;
        gateway.sim.set_status("b", "completed");
        assert!(join_all(parked).await.iter().all(|answer| answer.status == 200));
        gateway.wait_until_parked(0).await;
    }
}

#[tokio::test]
async fn a_proven_keys_waits_free_their_slots_of_the_address() {
    let gateway = TestGateway::with(|config, options| {
        crate::harness::gateway::set_hold(std::time::Duration::from_secs(60), config, options);
        config.limits.max_waits_per_key = 3;
    })
    .await;
    let ids = ["b", "c", "d", "e", "f", "g"];
    crate::harness::gateway::set_status_of_all(&gateway, &ids, "streaming");
    let key = |name: &'static str| ("authorization", name);
    let (ann, bob, cat) = (key("Bearer ann"), key("Bearer bob"), key("Bearer cat"));
    let wait = |id, key| gateway.spawn_get(&clip_target(id, "completed"), &[key]);
    let proof = wait("b", ann);
    let mut waits = vec![wait("c", ann), wait("d", bob)];
    gateway.wait_until_parked(3).await;
    assert_gateway_error(&gateway.get(&clip_target("e", "completed"), &[bob]).await, 429, FULL);
    gateway.sim.set_status("b", "completed");
    assert_eq!(proof.await.unwrap().status, 200);

    // The wait for c now counts for the proven key, so the address has two free slots.
    waits.extend([wait("e", bob), wait("f", bob)]);
    gateway.wait_until_parked(4).await;
    assert_gateway_error(&gateway.get(&clip_target("g", "completed"), &[cat]).await, 429, FULL);
    // A disconnect frees the slot.
    drop(waits.pop());
    gateway.wait_until_parked(3).await;
    waits.push(wait("g", cat));
    gateway.wait_until_parked(4).await;
    crate::harness::gateway::set_status_of_all(&gateway, &ids, "completed");
    assert!(join_all(waits).await.iter().all(|answer| answer.status == 200));
}
