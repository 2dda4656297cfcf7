//! Identical waits of all replicas share one poll (P3), and nothing crosses keys or secrets (P11).

use std::time::Duration;

use clipgate::sim::{ListFormat, SimOptions};
use clipgate::testing::clock;

use super::engine::TestEngine;
use super::replica::{Replica, Replicas, configure, is_guest, latest};
use crate::harness::process::{TestEnv, completed_target};

// P3
#[tokio::test]
async fn identical_waits_at_three_replicas_share_one_poll() {
    let replicas = Replicas::start(3).await;
    let waits = replicas.park("a", 100).await;
    let completed = clock::now();
    replicas.env.sim.set_status("a", "completed");
    let mut late = Vec::new();
    for waits in waits {
        late.push(latest(completed, waits).await);
    }
    println!("3 x 100 waits: {} poll of 1, answered after {late:?}", replicas.polls("a"));
    assert_eq!(replicas.polls("a"), 1);
    assert!(late.iter().all(|late| *late < Duration::from_millis(500)), "{late:?}");
}

#[tokio::test]
async fn waits_that_come_at_once_share_one_poll_and_say_so() {
    let replicas = Replicas::start(3).await;
    replicas.env.sim.set_status("a", "queued");
    let waits: Vec<_> = (0..30).map(|number| replicas.all[number % 3].wait("a")).collect();
    for replica in &replicas.all {
        replica.wait_for_state("parked waits", |state| state["waits"]["parked"] == 10).await;
    }
    replicas.wait_for_polls("a", 1).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    replicas.env.sim.set_status("a", "completed");
    let (mut opened, mut shared) = (0, 0);
    for wait in waits {
        match &*wait.await.unwrap().cache_status {
            "clipgate; fwd=miss; fwd-status=200; stored" => opened += 1,
            "clipgate; fwd=miss; collapsed; detail=sibling" => shared += 1,
            "clipgate; fwd=miss; collapsed" => {}
            other => panic!("{other}"),
        }
    }
    assert_eq!((replicas.polls("a"), opened, shared), (1, 1, 20));
}

#[tokio::test]
async fn a_job_that_ended_at_one_replica_is_a_hit_at_the_others() {
    let replicas = Replicas::start(2).await;
    replicas.env.sim.set_status("a", "completed");
    let own = replicas.all[0].get(&completed_target("a"), &[]).await;
    let (first, second) = (
        replicas.all[1].get(&completed_target("a"), &[]).await,
        replicas.all[1].get(&completed_target("a"), &[]).await,
    );
    assert_eq!(own.body(), first.body());
    let status =
        |answer: &http::Response<bytes::Bytes>| answer.headers()["cache-status"].to_str().unwrap().to_owned();
    let (first, second) = (status(&first), status(&second));
    assert!(first.starts_with("clipgate; hit; ttl=86") && first.ends_with("; detail=sibling"), "{first}");
    assert!(second.starts_with("clipgate; hit; ttl=86") && !second.contains("detail"), "{second}");
    assert_eq!(replicas.polls("a"), 1);
}

#[tokio::test]
async fn a_stored_state_answers_no_client_that_asks_for_a_younger_one() {
    let replicas = Replicas::start(2).await;
    replicas.env.sim.set_status("a", "completed");
    replicas.all[0].get(&completed_target("a"), &[]).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    for (number, control) in ["max-age=0", "max-age=1", "no-cache"].into_iter().enumerate() {
        let answer = replicas.all[1].get(&completed_target("a"), &[("cache-control", control)]).await;
        let status = answer.headers()["cache-status"].to_str().unwrap();
        assert!(!status.contains("hit"), "{control}: {status}");
        assert_eq!(replicas.polls("a"), 2 + number, "{control}");
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
}

#[tokio::test]
async fn the_answer_to_a_siblings_poll_is_a_hit_afterwards_and_the_first_says_so() {
    let replicas = Replicas::start(2).await;
    let waits = replicas.park("a", 1).await.into_iter().flatten().collect();
    replicas.complete("a", waits).await;
    for (hit, is_first) in [(1, true), (2, false)] {
        let answer = replicas.all[1].get(&completed_target("a"), &[]).await;
        let status = answer.headers()["cache-status"].to_str().unwrap();
        assert!(status.starts_with("clipgate; hit; ttl="), "{status}");
        assert_eq!(status.ends_with("; detail=sibling"), is_first, "hit {hit}: {status}");
    }
    assert_eq!(replicas.polls("a"), 1);
}

// P1
#[tokio::test]
async fn an_answer_that_is_too_large_to_be_shared_is_asked_for_at_once_by_each_replica_with_waits() {
    let engine = TestEngine::start().await;
    let env = TestEnv::new().await;
    configure(&env, "max_body = \"64B\"\n");
    let url = engine.url();
    let mut replicas = Replicas { env, engine, all: Vec::new() };
    for _ in 0..3 {
        replicas.add(&url, &[]).await;
    }
    replicas.wait_until_all_meet().await;
    let waits = replicas.park("a", 20).await.into_iter().flatten().collect();
    let late = replicas.complete("a", waits).await;
    println!("answer too large: late {late:?} of 0, {} polls of 3", replicas.polls("a"));
    assert!(late <= Duration::from_millis(200), "{late:?}");
    assert_eq!(replicas.polls("a"), 3);
}

// P8
#[tokio::test]
async fn a_list_from_a_sibling_has_the_outer_shape_of_the_upstream() {
    let engine = TestEngine::start().await;
    let urls = vec![engine.url(); 2];
    let options = SimOptions { list_format: ListFormat::Object, ..SimOptions::default() };
    let replicas = Replicas::with_options(engine, &urls, options).await;
    let target = |id: &str| format!("/v2/generate/audio/suno-ai/clips?clip_ids[]={id}&status=completed");
    let body = |answer: &http::Response<bytes::Bytes>| String::from_utf8_lossy(answer.body()).into_owned();

    // A state that a sibling read alone says nothing about lists.
    replicas.env.sim.set_status("a", "completed");
    replicas.all[0].get(&completed_target("a"), &[]).await;
    let answer = replicas.all[1].get(&target("a"), &[]).await;
    assert!(body(&answer).starts_with("{\"clips\":["), "{}", body(&answer));

    // Now the second replica knows the shape. The first one gets it with a stored list, or with a poll that lands.
    replicas.env.sim.set_status("b", "completed");
    let own = replicas.all[1].get(&target("b"), &[]).await;
    let known = replicas.all[0].get(&target("b"), &[]).await;
    assert_eq!(body(&own), body(&known));
    assert!(body(&own).starts_with("{\"clips\":["), "{}", body(&own));
    let status = known.headers()["cache-status"].to_str().unwrap();
    assert!(status.starts_with("clipgate; hit") && status.ends_with("detail=sibling"), "{status}");

    // A key of which the second replica has seen no list yet.
    replicas.env.sim.set_status("c", "queued");
    let (list, key) = (target("c"), "Bearer carl");
    let waiting = async {
        replicas.all[0].wait_for_state("a parked wait", |state| state["waits"]["parked"] == 1).await;
        let completing = async {
            replicas.all[1].wait_for_state("a poll of a sibling", is_guest).await;
            replicas.env.sim.set_status("c", "completed");
        };
        tokio::join!(replicas.all[1].get_with_key(&list, key), completing).0
    };
    let (own, shared) = tokio::join!(replicas.all[0].get_with_key(&list, key), waiting);
    assert_eq!(shared.headers()["cache-status"], "clipgate; fwd=miss; collapsed; detail=sibling");
    assert_eq!(body(&own), body(&shared));
}

// P11
#[tokio::test]
async fn two_keys_never_share() {
    let replicas = Replicas::start(2).await;
    replicas.env.sim.set_status("a", "completed");
    let target = completed_target("a");
    for (number, replica) in replicas.all.iter().enumerate() {
        for key in ["Bearer ann", "Bearer bob", "bearer ann"] {
            let answer = replica.get_with_key(&target, key).await;
            let status = answer.headers()["cache-status"].to_str().unwrap();
            let is_hit = status.starts_with("clipgate; hit");
            assert_eq!(is_hit, number == 1, "replica {number}, {key}: {status}");
        }
    }
    assert_eq!(replicas.polls("a"), 3);
}

// P11
#[tokio::test]
async fn replicas_with_another_secret_never_meet() {
    let mut replicas = Replicas::start(1).await;
    let url = replicas.engine.url();
    let secret = [("CLIPGATE__CLUSTER__SECRET", "another-secret-of-other-replicas-01234")];
    let other = Replica::start(&replicas.env, &url, &secret).await;
    other.wait_for_state("the link", |state| state["cluster"]["link"] == "near").await;
    replicas.env.sim.set_status("a", "queued");
    let mut waits = replicas.all[0].park("a", 1).await;
    waits.extend(other.park("a", 1).await);
    replicas.wait_for_polls("a", 2).await;
    replicas.complete("a", waits).await;
    assert_eq!(other.admin.state().await["cluster"]["members"].as_array().unwrap().len(), 1);
    assert_eq!(replicas.polls("a"), 2);
    replicas.all.push(other);
}

/// A rejected key counts at all replicas, whatever they share.
#[tokio::test]
async fn replicas_that_share_jobs_only_read_states_and_make_polls_of_their_own() {
    let env = TestEnv::new().await;
    configure(&env, "share = [\"jobs\"]\n");
    let mut replicas = Replicas { env, engine: TestEngine::start().await, all: Vec::new() };
    for _ in 0..2 {
        replicas.add(&replicas.engine.url(), &[]).await;
    }
    replicas.wait_until_all_meet().await;
    replicas.env.sim.set_status("a", "queued");
    let mut waits = Vec::new();
    for (number, replica) in replicas.all.iter().enumerate() {
        waits.extend(replica.park("a", 3).await);
        replicas.wait_for_polls("a", number + 1).await;
    }
    replicas.complete("a", waits).await;
    assert_eq!(replicas.polls("a"), 2);
    replicas.env.sim.set_status("b", "completed");
    replicas.all[0].get(&completed_target("b"), &[]).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let stored = replicas.all[1].get(&completed_target("b"), &[]).await;
    let status = stored.headers()["cache-status"].to_str().unwrap();
    assert!(status.starts_with("clipgate; hit") && status.ends_with("; detail=sibling"), "{status}");
    assert_eq!(replicas.polls("b"), 1);
    replicas.env.sim.accept_keys(Some(&[]));
    assert_eq!(replicas.all[0].get(&completed_target("c"), &[]).await.status(), 401);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(replicas.all[1].get(&completed_target("b"), &[]).await.status(), 401);
}
