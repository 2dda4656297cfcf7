//! Quotas that replicas share, against a real engine.

use std::time::Duration;

use super::engine::{TestEngine, TestReplica, config};
use crate::cluster::EngineTake;

const SECOND: Duration = Duration::from_secs(1);

fn take(replica: &TestReplica, subject: &str, requests: u32) -> EngineTake {
    let name = replica.cluster.quota_name(&[b"requests", subject.as_bytes()]);
    EngineTake { name, time: SECOND * requests, max_time: 20 * SECOND }
}

/// Returns the times in seconds, rounded up: the engine's clock runs.
fn seconds(answers: &[Option<Duration>]) -> Vec<u128> {
    answers.iter().map(|answer| answer.expect("no answer").as_millis().div_ceil(1000)).collect()
}

#[tokio::test]
async fn replicas_count_the_requests_of_a_subject_together() {
    let engine = TestEngine::start();
    let a = TestReplica::join(&config(engine.url())).await;
    let b = TestReplica::join(&config(engine.url())).await;
    assert_eq!(seconds(&a.cluster.take(&[take(&a, "ann", 5)]).await), [5]);
    assert_eq!(seconds(&b.cluster.take(&[take(&b, "ann", 2), take(&b, "bob", 1)]).await), [7, 1]);
    assert_eq!(seconds(&a.cluster.take(&[take(&a, "ann", 100)]).await), [20], "a debt has a bound");
    assert!(a.cluster.take(&[]).await.is_empty());
}

#[tokio::test]
async fn each_quota_of_a_large_batch_gets_its_own_answer() {
    let engine = TestEngine::start();
    let a = TestReplica::join(&config(engine.url())).await;
    let takes: Vec<EngineTake> = (0..2000).map(|n: u32| take(&a, &n.to_string(), n % 10 + 1)).collect();
    for round in 1..=2 {
        let answers = seconds(&a.cluster.take(&takes).await);
        let expected: Vec<u128> = (0..2000).map(|n| round * (n % 10 + 1)).collect();
        assert_eq!(answers, expected);
    }
}

#[tokio::test]
async fn a_quota_at_the_engine_lives_until_it_is_full_and_a_strange_value_counts_as_full() {
    let engine = TestEngine::start();
    let a = TestReplica::join(&config(engine.url())).await;
    a.cluster.take(&[take(&a, "ann", 5)]).await;
    let key = engine.keys().into_iter().find(|key| key.contains(":q:")).unwrap();
    let lifetime: u64 = engine.command(&format!("PTTL {key}")).lines().next().unwrap()[1..].parse().unwrap();
    assert!((4000..=5000).contains(&lifetime), "{lifetime}");
    engine.command(&format!("SET {key} strange"));
    assert_eq!(seconds(&a.cluster.take(&[take(&a, "ann", 3)]).await), [3]);
}

#[tokio::test]
async fn without_a_link_no_take_is_answered() {
    let replica = TestReplica::start(&config(crate::config::EngineUrl { port: 1, ..engine_url() }));
    assert_eq!(replica.cluster.take(&[take(&replica, "ann", 1)]).await, [None]);
    let engine = TestEngine::start();
    let linked = TestReplica::join(&config(engine.url())).await;
    drop(engine);
    assert_eq!(linked.cluster.take(&[take(&linked, "ann", 1)]).await, [None]);
}

fn engine_url() -> crate::config::EngineUrl {
    crate::config::EngineUrl {
        is_tls: false,
        host: "127.0.0.1".to_owned(),
        port: 1,
        user: None,
        password: None,
        database: 0,
    }
}
