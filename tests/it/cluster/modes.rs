//! Engines of several servers: a Redis Cluster, and a primary with sentinels. docs/replicas.md has the bounds.

use std::time::Duration;

use clipgate::testing::clock;

use super::engine::TestEngine;
use super::engine_cluster::{TestCluster, wait_for};
use super::replica::{Replicas, configure};
use crate::harness::process::{TestEnv, completed_target};

const WAITS: usize = 10;
/// Time that a busy machine may add.
const NOISE: Duration = Duration::from_millis(200);

/// Starts three replicas, each of which knows one server.
async fn replicas_of(servers: [&TestEngine; 3], lines: &str) -> Replicas {
    let env = TestEnv::new().await;
    configure(&env, lines);
    let mut replicas = Replicas { env, engine: TestEngine::stopped().await, all: Vec::new() };
    for server in servers {
        replicas.add(&server.url(), &[]).await;
    }
    replicas.wait_until_all_meet().await;
    replicas
}

async fn replicas_of_cluster(cluster: &TestCluster) -> Replicas {
    let [a, b, c, ..] = &cluster.nodes[..] else { panic!("three primaries") };
    replicas_of([a, b, c], "mode = \"cluster\"\n").await
}

/// Parks waits at all replicas and asserts that they share one poll.
async fn assert_one_poll(replicas: &Replicas, id: &str) {
    replicas.wait_until_all_meet().await;
    let waits = replicas.park(id, WAITS).await;
    replicas.complete(id, waits.into_iter().flatten().collect()).await;
    assert_eq!(replicas.polls(id), 1, "{id}");
}

#[tokio::test]
async fn keys_of_all_shards_share_polls_and_results_through_a_cluster() {
    let cluster = TestCluster::start(0).await;
    let replicas = replicas_of_cluster(&cluster).await;
    assert_one_poll(&replicas, "a").await;
    replicas.env.sim.set_status("b", "completed");
    for number in 0..32 {
        let key = format!("Bearer key-{number}");
        for (index, replica) in replicas.all.iter().enumerate() {
            let answer = replica.get_with_key(&completed_target("b"), &key).await;
            let status = answer.headers()["cache-status"].to_str().unwrap();
            // The result may still be on its way to the engine.
            let is_shared = status.starts_with("clipgate; hit") || status.ends_with("; detail=sibling");
            assert_eq!(is_shared, index > 0, "replica {index}, {key}: {status}");
        }
    }
    assert_eq!(replicas.polls("b"), 32);
}

#[tokio::test]
async fn a_killed_node_of_a_cluster_costs_as_much_as_a_lost_engine_until_its_replica_stands_in() {
    let mut cluster = TestCluster::start(3).await;
    let replicas = replicas_of_cluster(&cluster).await;
    let waits = replicas.park("a", WAITS).await;
    cluster.nodes[0].kill().await;
    let killed = clock::now();
    let late = replicas.complete("a", waits.into_iter().flatten().collect()).await;
    println!("node of a cluster killed: late {late:?} of 1 s, {} polls of 3", replicas.polls("a"));
    assert!(late <= Duration::from_secs(1) + NOISE, "{late:?}");
    assert!(replicas.polls("a") <= 3);
    replicas.wait_until_all_meet().await;
    println!("all replicas share again {:?} after the death of the node", killed.elapsed());
    assert_one_poll(&replicas, "b").await;
}

#[tokio::test]
async fn a_stopped_node_of_a_cluster_delays_no_wait_by_more_than_2_3_s() {
    let cluster = TestCluster::start(0).await;
    for number in 0..2 {
        let replicas = replicas_of_cluster(&cluster).await;
        let waits = replicas.park("a", WAITS).await;
        cluster.nodes[number].signal("STOP");
        let late = replicas.complete("a", waits.into_iter().flatten().collect()).await;
        println!(
            "node {number} of a cluster stopped: late {late:?} of 2.3 s, {} polls of 3",
            replicas.polls("a")
        );
        assert!(late <= Duration::from_millis(2300) + NOISE, "{late:?}");
        assert!(replicas.polls("a") <= 3);
        cluster.nodes[number].signal("CONT");
        assert_one_poll(&replicas, "b").await;
    }
}

#[tokio::test]
async fn slots_that_move_to_another_node_lose_no_wait() {
    let cluster = TestCluster::start(0).await;
    let replicas = replicas_of_cluster(&cluster).await;
    let waits = replicas.park("a", WAITS).await;
    let moving = clock::now();
    let moved = cluster.move_shards(1).await;
    let took = moving.elapsed();
    let late = replicas.complete("a", waits.into_iter().flatten().collect()).await;
    println!("{moved} slots moved in {took:?}: late {late:?} of 1 s, {} polls of 3", replicas.polls("a"));
    assert!(late <= Duration::from_secs(1) + NOISE, "{late:?}");
    assert!(replicas.polls("a") <= 3);
    assert_one_poll(&replicas, "b").await;
}

#[tokio::test]
async fn after_a_failover_of_the_sentinels_all_replicas_share_polls_again() {
    let mut primary = TestEngine::start().await;
    let port = primary.address.port().to_string();
    let standby = TestEngine::start_with("redis-server", &["--replicaof", "127.0.0.1", &port]).await;
    let sentinel = TestEngine::start_sentinel(primary.address).await;
    let known = standby.address.port().to_string();
    wait_for(&sentinel, &["sentinel", "replicas", "mymaster"], &[&known, "master-link-status\nok"]).await;
    let lines = "mode = \"sentinel\"\nmaster = \"mymaster\"\n";
    let replicas = replicas_of([&sentinel, &sentinel, &sentinel], lines).await;
    let waits = replicas.park("a", WAITS).await;
    primary.kill().await;
    let killed = clock::now();
    let late = replicas.complete("a", waits.into_iter().flatten().collect()).await;
    println!("primary killed: late {late:?} of 1 s, {} polls of 3", replicas.polls("a"));
    assert!(late <= Duration::from_secs(1) + NOISE, "{late:?}");
    assert!(replicas.polls("a") <= 3);
    replicas.wait_until_all_meet().await;
    println!("all replicas share again {:?} after the death of the primary", killed.elapsed());
    assert_one_poll(&replicas, "b").await;
}

#[tokio::test]
async fn a_node_of_a_cluster_is_named_as_such_where_a_single_server_is_configured() {
    let cluster = TestCluster::start(0).await;
    let env = TestEnv::new().await;
    configure(&env, "");
    let mut replicas = Replicas { env, engine: TestEngine::stopped().await, all: Vec::new() };
    replicas.add(&cluster.nodes[0].url(), &[]).await;
    let line = replicas.all[0].process.wait_for_log("no connection to the engine").await;
    assert!(line.contains("set cluster.mode to"), "{line}");
}
