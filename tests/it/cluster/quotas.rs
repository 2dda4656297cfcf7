//! Quotas that replicas share: together they let as many requests pass as one replica.

use std::time::Duration;

use clipgate::sim::{Fault, FaultTarget, SimOptions};
use clipgate::testing::clock;
use http::Response;

use super::engine::{EngineProxy, TestEngine};
use super::engine_cluster::TestCluster;
use super::replica::{Replica, Replicas, SECRET, limited};
use crate::harness::process::{TestEnv, completed_target, within_timeout};

/// Time of a flood.
const FLOOD: Duration = Duration::from_secs(4);

/// A target that is passed through, and that the upstream does not know.
const CALL: &str = "/v1/models";

/// Starts replicas with these quotas, one for each URL.
async fn with_limits(limits: &str, lines: &str, engine: TestEngine, urls: &[String]) -> Replicas {
    let env = TestEnv::with_options(SimOptions::default()).await;
    limited(&env, limits, lines);
    let mut replicas = Replicas { env, engine, all: Vec::new() };
    for url in urls {
        replicas.add(url, &[]).await;
    }
    replicas.wait_until_all_meet().await;
    replicas
}

/// Sends requests to all replicas at once for some time, and returns the number that passed.
async fn flood(replicas: &[Replica], time: Duration, target: &str) -> usize {
    let until = clock::now() + time;
    let floods = replicas.iter().map(|replica| async move {
        let (mut client, mut passed) = (replica.client().await, 0);
        while clock::now() < until {
            let status = client.get(target, &[]).await.status();
            assert!([200, 404, 429].contains(&status.as_u16()), "{status}");
            passed += usize::from(status != 429);
        }
        passed
    });
    futures_util::future::join_all(floods).await.into_iter().sum()
}

/// Returns the member of a quota in `ratelimit` or `ratelimit-policy`.
fn field(answer: &Response<bytes::Bytes>, name: &str, quota: &str) -> String {
    let list = answer.headers()[name].to_str().unwrap();
    list.split(", ").find_map(|member| member.strip_prefix(&format!("\"{quota}\";"))).unwrap().to_owned()
}

#[tokio::test]
async fn three_replicas_flooded_with_requests_of_one_key_let_as_many_pass_as_one() {
    let engine = TestEngine::start().await;
    let urls = vec![engine.url(); 3];
    let limits = "requests_per_second = 20\nburst = 40\n";
    let replicas = with_limits(limits, "", engine, &urls).await;
    replicas.env.sim.set_status("a", "completed");
    let passed = flood(&replicas.all, FLOOD, &completed_target("a")).await;
    println!("requests: {passed} of 120 ideal, 360 alone");
    // The first batch goes out before the replicas know of each other: at most a quarter of the burst each.
    assert!((110..=120 + 3 * 40 / 4).contains(&passed), "{passed}");
    let mut client = replicas.all[0].client().await;
    let refused = loop {
        let answer = client.get(&completed_target("a"), &[]).await;
        if answer.status() == 429 {
            break answer;
        }
    };
    let left = field(&refused, "ratelimit", "requests");
    assert!(left.starts_with("r=0;t="), "{left}");
    assert_eq!(field(&refused, "ratelimit-policy", "requests"), "q=40;w=2");
}

#[tokio::test]
async fn three_replicas_flooded_with_calls_of_one_key_let_as_many_pass_as_one() {
    let engine = TestEngine::start().await;
    let urls = vec![engine.url(); 3];
    let limits = "calls_per_second = 20\ncalls_burst = 40\n";
    let replicas = with_limits(limits, "", engine, &urls).await;
    let passed = flood(&replicas.all, FLOOD, CALL).await;
    println!("calls: {passed} of 120 ideal, 360 alone");
    assert!((110..=135).contains(&passed), "{passed}");
}

/// The quotas of keys are on all nodes.
#[tokio::test]
async fn replicas_share_quotas_through_the_nodes_of_a_cluster() {
    let cluster = TestCluster::start(0).await;
    let urls: Vec<String> = cluster.nodes.iter().map(TestEngine::url).collect();
    let limits = "requests_per_second = 20\nburst = 40\ncalls_per_second = 1\ncalls_burst = 10\n";
    let replicas = with_limits(limits, "mode = \"cluster\"\n", TestEngine::stopped().await, &urls).await;
    replicas.env.sim.set_status("a", "completed");
    let passed = flood(&replicas.all, FLOOD, &completed_target("a")).await;
    println!("requests: {passed} of 120 ideal, 360 alone");
    assert!((110..=120 + 3 * 40 / 4).contains(&passed), "{passed}");
    for number in 0..8 {
        let key = format!("Bearer key-of-{number}");
        // The upstream accepts the key: one call of this address, and none at the sibling.
        for replica in &replicas.all[..2] {
            assert_eq!(replica.get_with_key(&completed_target("a"), &key).await.status(), 200);
        }
        for _ in 0..4 {
            assert_eq!(replicas.all[0].get_with_key(CALL, &key).await.status(), 404);
        }
        // The first call here brings the news.
        assert_eq!(replicas.all[1].get_with_key(CALL, &key).await.status(), 404);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let answer = replicas.all[1].get_with_key(CALL, &key).await;
        let left = field(&answer, "ratelimit", "calls");
        let left: u32 = left.split(';').next().unwrap()[2..].parse().unwrap();
        assert!((3..=5).contains(&left), "{key}: 10 less 7, and one for each second: {left}");
    }
}

#[tokio::test]
async fn a_replica_knows_at_once_of_the_calls_of_its_siblings() {
    let engine = TestEngine::start().await;
    let urls = vec![engine.url(); 2];
    let limits = "calls_per_second = 1\ncalls_burst = 10\n";
    let replicas = with_limits(limits, "", engine, &urls).await;
    for _ in 0..5 {
        assert_eq!(replicas.all[0].get(CALL, &[]).await.status(), 404);
    }
    // The first call here brings the news.
    assert_eq!(replicas.all[1].get(CALL, &[]).await.status(), 404);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let answer = replicas.all[1].get(CALL, &[]).await;
    let left = field(&answer, "ratelimit", "calls");
    let known: Vec<String> = (3..=4).map(|left| format!("r={left}")).collect();
    assert!(known.contains(&left), "10 less 7, and one for each second: {left}");
}

#[tokio::test]
async fn polls_of_siblings_and_known_states_cost_no_calls() {
    let engine = TestEngine::start().await;
    let urls = vec![engine.url(); 2];
    let limits = "calls_per_second = 1\ncalls_burst = 2\n";
    let replicas = with_limits(limits, "", engine, &urls).await;
    // Both calls of the burst, one at each replica, then none is left.
    replicas.env.sim.set_status("a", "queued");
    let own = replicas.all[0].park("a", 1).await;
    replicas.wait_for_polls("a", 1).await;
    let guests = replicas.all[1].park("a", 3).await;
    replicas.all[1].wait_for_state("a poll of a sibling", super::replica::is_guest).await;
    replicas.complete("a", own.into_iter().chain(guests).collect()).await;
    let answer = replicas.all[1].get(&completed_target("a"), &[]).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(field(&answer, "ratelimit", "calls"), "r=2", "nothing was paid here");
    assert_eq!(replicas.polls("a"), 1);
}

#[tokio::test]
async fn a_grant_that_the_quota_refuses_is_left_to_a_sibling() {
    let engine = TestEngine::start().await;
    let urls = vec![engine.url(); 2];
    // A long pause between two calls: the replica without quota stays so.
    let limits = "calls_per_second = 1\ncalls_burst = 1\n";
    let replicas = with_limits(limits, "", engine, &urls).await;
    replicas.env.sim.set_status("b", "queued");
    let status = loop {
        // Both in one second: the second one is refused, and its lease ends at once.
        replicas.all[0].get(CALL, &[]).await;
        let answer = replicas.all[0].get(&completed_target("b"), &[("prefer", "wait=1")]).await;
        if answer.status() == 429 {
            break field(&answer, "ratelimit", "calls");
        }
    };
    assert!(status.starts_with("r=0;t="), "{status}");
    let before = replicas.polls("b");
    let wait = replicas.all[1].park("b", 1).await;
    replicas.wait_for_polls("b", before + 1).await;
    replicas.complete("b", wait).await;
}

#[tokio::test]
async fn apart_each_replica_has_the_whole_quota_or_with_strict_its_part() {
    for (strict, each, policy) in [(false, 30, 30), (true, 10, 10)] {
        let engine = TestEngine::start().await;
        let proxy = EngineProxy::start(engine.address).await;
        let urls = vec![proxy.url(); 3];
        let limits = "requests_per_second = 1\nburst = 30\n";
        let lines = format!("strict = {strict}\n");
        let replicas = with_limits(limits, &lines, engine, &urls).await;
        replicas.env.sim.set_status("a", "completed");
        proxy.cut();
        for replica in &replicas.all {
            replica.wait_for_state("no link", |state| state["cluster"]["link"] == "apart").await;
        }
        for replica in &replicas.all {
            let (mut client, began, mut passed) = (replica.client().await, clock::now(), 0);
            let last = loop {
                let answer = client.get(&completed_target("a"), &[]).await;
                if answer.status() != 200 {
                    break answer;
                }
                passed += 1;
            };
            let added = usize::try_from(began.elapsed().as_secs()).unwrap() + 1;
            assert!((each..=each + added).contains(&passed), "strict = {strict}: {passed}");
            assert_eq!(field(&last, "ratelimit-policy", "requests"), format!("q={policy};w=30"));
        }
        proxy.mend();
        replicas.wait_until_all_meet().await;
        let answer = replicas.all[0].get(&completed_target("a"), &[]).await;
        assert_eq!(field(&answer, "ratelimit-policy", "requests"), "q=30;w=30", "shared again");
    }
}

#[tokio::test]
async fn a_reload_of_a_quota_is_a_new_one_for_all_replicas() {
    let engine = TestEngine::start().await;
    let urls = vec![engine.url(); 2];
    let replicas = with_limits("requests_per_second = 1\nburst = 5\n", "", engine, &urls).await;
    replicas.env.sim.set_status("a", "completed");
    let spent = flood(&replicas.all[..1], Duration::from_millis(500), &completed_target("a")).await;
    assert!((5..=6).contains(&spent), "{spent}");
    limited(&replicas.env, "requests_per_second = 1\nburst = 50\n", "");
    for replica in &replicas.all {
        replica.process.signal("HUP");
    }
    for (number, replica) in replicas.all.iter().enumerate() {
        let policy = |answer: &Response<bytes::Bytes>| field(answer, "ratelimit-policy", "requests");
        let reloaded = async {
            while policy(&replica.get(&completed_target("a"), &[]).await) != "q=50;w=50" {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        within_timeout("the new quota", reloaded).await;
        assert_eq!(replica.get(&completed_target("a"), &[]).await.status(), 200, "replica {number}");
    }
    let (one, other) = (&replicas.all[..1], &replicas.all[1..]);
    let passed = flood(one, Duration::from_millis(500), &completed_target("a")).await;
    assert!((40..=50).contains(&passed), "{passed}");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let passed = flood(other, Duration::from_millis(500), &completed_target("a")).await;
    assert!(passed <= 50 / 4 + 3, "used up at the other replica: {passed}");
}

#[tokio::test]
async fn a_poll_that_is_taken_over_costs_no_calls() {
    let engine = TestEngine::start().await;
    let urls = vec![engine.url(); 2];
    let mut replicas = with_limits("calls_per_second = 1\ncalls_burst = 2\n", "", engine, &urls).await;
    let waits = replicas.park("a", 1).await;
    replicas.all[0].process.signal("KILL");
    replicas.wait_for_polls("a", 2).await;
    replicas.complete("a", waits.into_iter().skip(1).flatten().collect()).await;
    let answer = replicas.all[1].get(&completed_target("a"), &[]).await;
    assert_eq!(field(&answer, "ratelimit", "calls"), "r=2");
    replicas.all.remove(0);
}

// P11
#[tokio::test]
async fn the_engine_sees_no_key_no_id_and_no_body_of_any_of_these() {
    let engine = TestEngine::start().await;
    let urls = vec![engine.url(); 2];
    let monitor = engine.monitor().await;
    let replicas = with_limits("calls_per_second = 10\ncalls_burst = 10\n", "", engine, &urls).await;
    let waits = replicas.park("secret-job", 2).await.into_iter().flatten().collect();
    replicas.complete("secret-job", waits).await;
    // The engine forgets a quota within a second, when it is full again.
    let quotas = loop {
        flood(&replicas.all, Duration::from_millis(100), CALL).await;
        let dump = replicas.engine.dump().await;
        if contains(&dump, ":q:") {
            break dump;
        }
    };
    replicas.all[0].admin.send("DELETE", "/api/cache/secret-job", &[]).await;
    let limited = Fault::retry_after(429, Duration::from_secs(30));
    replicas.env.sim.fault(FaultTarget::Polls, limited, 2);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let _paused: Vec<_> = ["secret-b", "secret-c"].iter().map(|id| replicas.all[0].wait(id)).collect();
    replicas.wait_for_polls("secret-c", 1).await;
    replicas.env.sim.accept_keys(Some(&[]));
    let rejected = replicas.all[1].get("/v2/generate/audio/suno-ai/clip?clip_id=secret-d", &[]).await;
    assert_eq!(rejected.status(), 401);
    tokio::time::sleep(Duration::from_millis(200)).await; // for the call that publishes it
    let everything = async {
        loop {
            let dump = replicas.engine.dump().await;
            if [":r:", ":x:", ":d:", ":l"].iter().all(|name| contains(&dump, name)) {
                break dump;
            }
        }
    };
    let dump = within_timeout("a pause, removals and keys at the engine", everything).await;
    let seen = [quotas, dump, monitor.seen()].concat();
    assert!(contains(&seen, "EVALSHA") || contains(&seen, "evalsha"));
    for secret in ["key-1", "secret-", "\"status\"", SECRET] {
        assert!(!contains(&seen, secret), "{secret}");
    }
}

fn contains(bytes: &[u8], part: &str) -> bool {
    bytes.windows(part.len()).any(|window| window == part.as_bytes())
}
