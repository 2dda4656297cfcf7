//! Rejected keys, pauses, removed and changed states count at all replicas.

use std::time::Duration;

use clipgate::sim::{Fault, FaultTarget, SimOptions, Vendor};
use clipgate::testing::clock;
use http::Request;
use http_body_util::Empty;

use super::engine::{EngineProxy, TestEngine};
use super::replica::{PendingWait, Replica, Replicas, configure, latest};
use crate::harness::process::{TestEnv, completed_target, within_timeout};

/// The key of the harness.
const KEY: &str = "key-1";

// P11
#[tokio::test]
async fn a_key_that_is_rejected_at_one_replica_gets_no_hits_at_the_others() {
    let replicas = Replicas::start(2).await;
    let target = completed_target("a");
    replicas.env.sim.set_status("a", "completed");
    for replica in &replicas.all {
        assert_eq!(replica.get(&target, &[]).await.status(), 200);
    }
    assert_eq!(replicas.polls("a"), 1);
    replicas.env.sim.accept_keys(Some(&[]));
    let rejected = replicas.all[0].get(&completed_target("b"), &[]).await;
    assert_eq!(rejected.status(), 401);
    let dead = async {
        while replicas.all[1].get(&target, &[]).await.status() != 401 {
            tokio::task::yield_now().await;
        }
    };
    within_timeout("the end of the entries", dead).await;
    replicas.env.sim.accept_keys(Some(&[KEY.to_owned()]));
    assert_eq!(replicas.all[1].get(&target, &[]).await.status(), 200, "the key is valid again");
}

#[tokio::test]
async fn a_removal_by_an_operator_concerns_all_replicas() {
    for path in ["/api/cache", "/api/cache/a"] {
        let replicas = Replicas::start(3).await;
        let target = completed_target("a");
        replicas.env.sim.set_status("a", "completed");
        for replica in &replicas.all {
            assert_eq!(replica.get(&target, &[]).await.status(), 200);
        }
        assert_eq!(replicas.polls("a"), 1);
        let removed = replicas.all[1].admin.send("DELETE", path, &[]).await;
        assert_eq!(removed.body(), r#"{"removed":1}"#);
        for replica in &replicas.all {
            replica.wait_for_state("an empty cache", |state| state["cache"]["entries"] == 0).await;
        }
        let again = replicas.all[0].get(&target, &[]).await;
        let status = again.headers()["cache-status"].to_str().unwrap();
        assert!(status.contains("fwd-status=200"), "{path}: not from the engine: {status}");
        assert_eq!(replicas.polls("a"), 2);
    }
}

/// Starts three replicas, the last of which has a connection of its own to cut.
async fn with_a_proxy() -> (Replicas, EngineProxy) {
    let engine = TestEngine::start().await;
    let proxy = EngineProxy::start(engine.address).await;
    let urls = [engine.url(), engine.url(), proxy.url()];
    (Replicas::with_urls(engine, &urls).await, proxy)
}

async fn cut(replicas: &Replicas, proxy: &EngineProxy) {
    // The beats after the review of the start say that nothing is missing.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    proxy.cut();
    replicas.all[2].wait_for_state("no link", |state| state["cluster"]["link"] == "apart").await;
}

async fn status_of(replica: &Replica, target: &str) -> String {
    let answer = replica.get(target, &[]).await;
    answer.headers()["cache-status"].to_str().unwrap().to_owned()
}

// P11
#[tokio::test]
async fn a_revocation_while_a_replica_was_apart_is_known_there_when_the_link_is_back() {
    let (replicas, proxy) = with_a_proxy().await;
    let target = completed_target("a");
    replicas.env.sim.set_status("a", "completed");
    for replica in &replicas.all {
        assert_eq!(replica.get(&target, &[]).await.status(), 200);
    }
    cut(&replicas, &proxy).await;
    replicas.env.sim.accept_keys(Some(&[]));
    assert_eq!(replicas.all[0].get(&completed_target("b"), &[]).await.status(), 401);
    assert_eq!(replicas.all[2].get(&target, &[]).await.status(), 200, "unknown without the engine");
    proxy.mend();
    let dead = async {
        while replicas.all[2].get(&target, &[]).await.status() != 401 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within_timeout("the end of the entries", dead).await;
}

#[tokio::test]
async fn a_removal_while_a_replica_was_apart_is_made_there_when_the_link_is_back() {
    for path in ["/api/cache", "/api/cache/a"] {
        let (replicas, proxy) = with_a_proxy().await;
        let target = completed_target("a");
        replicas.env.sim.set_status("a", "completed");
        for replica in &replicas.all {
            assert_eq!(replica.get(&target, &[]).await.status(), 200);
        }
        cut(&replicas, &proxy).await;
        replicas.all[0].admin.send("DELETE", path, &[]).await;
        assert!(status_of(&replicas.all[2], &target).await.contains("hit"), "unknown without the engine");
        proxy.mend();
        replicas.all[2].wait_for_state("an empty cache", |state| state["cache"]["entries"] == 0).await;
    }
}

#[tokio::test]
async fn an_action_at_one_replica_is_known_at_the_others_and_later_at_one_that_was_apart() {
    let engine = TestEngine::start().await;
    let proxy = EngineProxy::start(engine.address).await;
    let env = TestEnv::with_options(SimOptions::default()).await;
    configure(&env, "[[routes]]\npreset = \"replicate\"\n");
    let urls = [engine.url(), engine.url(), proxy.url()];
    let mut replicas = Replicas { env, engine, all: Vec::new() };
    for url in urls {
        replicas.add(&url, &[]).await;
    }
    replicas.wait_until_all_meet().await;
    replicas.env.sim.set_job(Vendor::Replicate, "a", "succeeded");
    let target = "/v1/predictions/a";
    for replica in &replicas.all {
        assert_eq!(replica.get(target, &[]).await.status(), 200);
    }
    cut(&replicas, &proxy).await;
    let action = "/v1/predictions/a/cancel";
    replicas.env.sim.fault(FaultTarget::Path(action.to_owned()), Fault::status(502), 1);
    let request = Request::post(action).header("host", "gw.example").header("authorization", "Bearer key-1");
    let request = request.body(Empty::new()).unwrap();
    let done = replicas.all[0].client().await.send(request).await.unwrap();
    assert_eq!(done.status(), 502, "it may have changed the job");
    replicas.all[1].wait_for_state("an empty cache", |state| state["cache"]["entries"] == 0).await;
    assert!(status_of(&replicas.all[1], target).await.contains("fwd=miss"), "asked again");
    assert!(status_of(&replicas.all[2], target).await.contains("hit"), "unknown without the engine");
    proxy.mend();
    replicas.all[2].wait_for_state("an empty cache", |state| state["cache"]["entries"] == 0).await;
}

#[tokio::test]
async fn a_pause_at_one_replica_holds_at_the_others_and_at_one_that_links_up_later() {
    let (mut replicas, proxy) = with_a_proxy().await;
    cut(&replicas, &proxy).await;
    for id in ["a", "b"] {
        replicas.env.sim.set_status(id, "completed");
        let limited = Fault::retry_after(429, Duration::from_secs(4));
        replicas.env.sim.fault(FaultTarget::Clip(id.to_owned()), limited, 1);
    }
    let refused = clock::now();
    // A second 429 to another job pauses the key.
    let waits: Vec<PendingWait> = ["a", "b"].iter().map(|id| replicas.all[0].wait(id)).collect();
    for id in ["a", "b"] {
        replicas.wait_for_polls(id, 1).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    proxy.mend();
    let url = replicas.engine.url();
    replicas.add(&url, &[]).await;
    replicas.wait_until_all_meet().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut later = Vec::new();
    for (number, replica) in replicas.all.iter().enumerate().skip(1) {
        let id = format!("later-{number}");
        replicas.env.sim.set_status(&id, "completed");
        later.push(replica.wait(&id));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(refused.elapsed() < Duration::from_secs(3), "a slow machine");
    for number in 1..=3 {
        assert_eq!(replicas.polls(&format!("later-{number}")), 0, "replica {number} holds the pause");
    }
    latest(refused, later).await;
    latest(refused, waits).await;
    let resumed = refused.elapsed();
    assert!(resumed >= Duration::from_millis(3500), "{resumed:?}");
}
