//! Removed states at a real engine.

use std::time::Duration;

use super::engine::{BODY, DOMAIN, TestEngine, TestReplica, config, finished};
use crate::config::CacheConfig;
use crate::core::job::{JobId, KeyDomain};
use crate::core::siblings::{EngineAnswer, EngineCall, Removal, SiblingInput, SiblingMessage};

fn removals() -> [Removal; 5] {
    let job = || JobId::new("job-one").unwrap();
    [
        Removal::All,
        Removal::Id(job()),
        Removal::Changed(DOMAIN, job()),
        Removal::AllChanged(Some(DOMAIN)),
        Removal::AllChanged(None),
    ]
}

#[tokio::test]
async fn a_removed_state_answers_no_claim() {
    let engine = TestEngine::start();
    let mut a = TestReplica::join(&config(engine.url())).await;
    for (n, removal) in removals().into_iter().enumerate() {
        let of_a = a.poll(&["job-one"]);
        let n = n as u64;
        a.claim(&of_a, 10 * n).await;
        // The marks have milliseconds.
        tokio::time::sleep(Duration::from_millis(3)).await;
        a.land(&of_a, 10 * n).await;
        assert!(matches!(a.claim(&of_a, 10 * n + 1).await, EngineAnswer::Known(..)), "{removal:?}");
        tokio::time::sleep(Duration::from_millis(3)).await;
        a.call(EngineCall::Remove(removal.clone())).await;
        let heard = a
            .hear(|message| match message {
                SiblingMessage::Removed { removal, .. } => Some(removal.clone()),
                _ => None,
            })
            .await;
        assert_eq!(heard, removal);
        assert!(matches!(a.claim(&of_a, 10 * n + 2).await, EngineAnswer::Granted(_)), "{removal:?}");
    }
}

/// P10: the shard of the message has its mark as early as the others.
#[tokio::test]
async fn a_claim_that_follows_a_removal_at_once_finds_no_removed_state() {
    let engine = TestEngine::start();
    let mut a = TestReplica::join(&config(engine.url())).await;
    for n in 0..64 {
        let id = format!("job-{n}");
        let spec = a.poll(&[&id]);
        a.land(&spec, n).await;
        tokio::time::sleep(Duration::from_millis(3)).await;
        let removal = a.send(EngineCall::Remove(Removal::Id(JobId::new(&id).unwrap())));
        assert!(matches!(a.claim(&spec, n).await, EngineAnswer::Granted(_)), "{id}");
        a.until(|input| match input {
            SiblingInput::Answer(of, _) if of == removal => Ok(()),
            other => Err(other),
        })
        .await;
    }
}

/// The process may end before the marks are answered.
#[tokio::test]
async fn a_removal_is_published_also_if_the_last_handle_is_dropped_at_once() {
    let engine = TestEngine::start();
    let mut a = TestReplica::join(&config(engine.url())).await;
    let mut b = TestReplica::join(&config(engine.url())).await;
    a.send(EngineCall::Remove(Removal::All));
    let task = a.stop();
    tokio::time::timeout(Duration::from_secs(5), task).await.expect("the task ends").unwrap();
    b.hear(|message| matches!(message, SiblingMessage::Removed { .. }).then_some(())).await;
}

#[tokio::test]
async fn a_removal_is_published_once_and_names_the_replica_that_made_it() {
    let engine = TestEngine::start();
    let mut a = TestReplica::join(&config(engine.url())).await;
    let mut b = TestReplica::join(&config(engine.url())).await;
    for removal in removals() {
        a.messages.clear();
        b.messages.clear();
        assert!(matches!(a.call(EngineCall::Remove(removal.clone())).await, EngineAnswer::Done(_)));
        // The beats go through all shards, after the removal.
        a.call(EngineCall::Beat(None)).await;
        b.call(EngineCall::Beat(None)).await;
        for replica in [&a, &b] {
            let heard: Vec<_> = replica
                .messages
                .iter()
                .filter_map(|message| match message {
                    SiblingMessage::Removed { removal, by } => Some((removal.clone(), *by)),
                    _ => None,
                })
                .collect();
            assert_eq!(heard, [(removal.clone(), Some(a.instance))]);
        }
    }
}

/// A claim after the message finds no removed state, so the marks of all shards come first. The message has one again.
#[tokio::test]
async fn the_message_of_a_removal_comes_after_its_marks_in_all_shards() {
    let engine = TestEngine::start();
    let mut a = TestReplica::join(&config(engine.url())).await;
    for removal in [Removal::All, Removal::Id(JobId::new("job-one").unwrap())] {
        let mut monitor = engine.monitor();
        a.call(EngineCall::Remove(removal.clone())).await;
        let seen = String::from_utf8(monitor.read_all()).unwrap().to_ascii_uppercase();
        let (mut marks, mut messages) = (0, 0);
        for line in seen.lines().filter(|line| line.contains(" LUA] ")) {
            marks += usize::from(line.contains("\"SET\"") && messages == 0);
            messages +=
                usize::from(line.contains("\"SPUBLISH\"") && marks > 0 && line.contains(":N\" \"\\X0B"));
        }
        assert_eq!((marks, messages), (17, 1), "{removal:?}: {seen}");
    }
}

#[tokio::test]
async fn a_change_of_all_jobs_of_a_key_leaves_the_states_of_other_keys() {
    let engine = TestEngine::start();
    let mut a = TestReplica::join(&config(engine.url())).await;
    let of_a = a.poll(&["job-one"]);
    a.claim(&of_a, 1).await;
    a.land(&of_a, 1).await;
    a.call(EngineCall::Remove(Removal::AllChanged(Some(KeyDomain([0x27; 16]))))).await;
    assert!(matches!(a.claim(&of_a, 2).await, EngineAnswer::Known(..)));
}

/// States that were stored before a reload may live longer than the new settings say.
#[tokio::test]
async fn a_reload_of_the_cache_reaches_the_engine() {
    let engine = TestEngine::start();
    let mut a = TestReplica::join(&config(engine.url())).await;
    let of_a = a.poll(&["job-one"]);
    a.claim(&of_a, 1).await;
    a.land(&of_a, 1).await;
    let lifetime = |part: &str| {
        let key = engine.keys().into_iter().find(|key| key.contains(part)).unwrap();
        let answer = engine.command(&format!("PTTL {key}"));
        Duration::from_millis(answer.lines().next().unwrap()[1..].parse().unwrap())
    };
    let before = CacheConfig::clone(&a.cache.load());
    assert!(lifetime(":c:") > before.completed_ttl / 2);
    let short = Duration::from_secs(50);
    a.cache.store(CacheConfig { completed_ttl: short, error_ttl: short, ..before.clone() }.into());
    a.land(&of_a, 2).await;
    assert!(lifetime(":c:") <= short);
    a.call(EngineCall::Remove(Removal::Id(finished(&JobId::new("job-one").unwrap(), BODY).id))).await;
    assert!(lifetime(":x:") > before.completed_ttl / 2);
}
