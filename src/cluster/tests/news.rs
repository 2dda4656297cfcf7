//! News that a replica missed: rejected keys, pauses and removals, against a real engine.

use std::time::Duration;

use super::engine::{DOMAIN, TestEngine, TestReplica, config, refusal};
use crate::core::job::{JobId, KeyDomain};
use crate::core::siblings::{EngineAnswer, EngineCall, Removal, SiblingMessage};

const SECOND: Duration = Duration::from_secs(1);

fn pause_of(message: &SiblingMessage, wanted: KeyDomain) -> Option<Duration> {
    match message {
        SiblingMessage::Paused(domain, pause) if *domain == wanted => Some(*pause),
        _ => None,
    }
}

#[tokio::test]
async fn a_granted_claim_learns_of_a_pause_that_a_sibling_set_before() {
    let engine = TestEngine::start();
    let mut a = TestReplica::join(&config(engine.url())).await;
    a.call(EngineCall::Pause(DOMAIN, 10 * SECOND)).await;
    a.call(EngineCall::Pause(DOMAIN, SECOND)).await;
    let mut b = TestReplica::join(&config(engine.url())).await;
    b.messages.clear();
    let of_b = b.poll(&["job-one"]);
    assert!(matches!(b.claim(&of_b, 1).await, EngineAnswer::Granted(_)));
    let pause = b.messages.iter().find_map(|message| pause_of(message, DOMAIN)).expect("before the answer");
    assert!((9 * SECOND..=10 * SECOND).contains(&pause), "the longer one, what is left of it: {pause:?}");
    // A pause that no replica has written is ignored.
    let key = engine.keys().into_iter().find(|key| key.contains(":r:")).unwrap();
    engine.command(&format!("SETRANGE {key} 25 xxxx"));
    b.messages.clear();
    assert!(matches!(b.claim(&of_b, 2).await, EngineAnswer::Granted(_)));
    engine.command(&format!("SET {key} strange"));
    assert!(matches!(b.claim(&of_b, 3).await, EngineAnswer::Granted(_)));
    assert!(!b.messages.iter().any(|message| pause_of(message, DOMAIN).is_some()));
}

#[tokio::test]
async fn a_review_after_a_loss_reads_rejected_keys_pauses_and_removals() {
    let engine = TestEngine::start();
    let mut a = TestReplica::join(&config(engine.url())).await;
    let mut b = TestReplica::join(&config(engine.url())).await;
    let (job, other) = (JobId::new("job-one").unwrap(), KeyDomain([0x31; 16]));
    // A review at the start finds nothing, and makes the beats count.
    b.cluster.review(vec![DOMAIN, other]);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let of_a = a.poll(&["job-one"]);
    let EngineAnswer::Granted(epoch) = a.claim(&of_a, 1).await else { panic!("not granted") };
    tokio::time::sleep(2 * SECOND).await;
    b.call(EngineCall::Beat(None)).await;
    b.hear(|message| matches!(message, SiblingMessage::Beat(..)).then_some(())).await;
    let removals = [Removal::Id(job.clone()), Removal::Changed(DOMAIN, job)];
    for removal in &removals {
        a.call(EngineCall::Remove(removal.clone())).await;
    }
    a.call(refusal()).await;
    a.call(EngineCall::Pause(other, 10 * SECOND)).await;
    b.call(EngineCall::Beat(None)).await; // its answer comes after the messages
    b.messages.clear();
    b.cluster.review(vec![DOMAIN, other]);
    let dead = b
        .hear_in_order(|message| match message {
            SiblingMessage::Revoked { domain, dead, .. } if *domain == DOMAIN => Some(*dead),
            _ => None,
        })
        .await;
    assert_eq!(dead, epoch);
    let pause = b.messages.iter().find_map(|message| pause_of(message, other)).expect("of an earlier shard");
    assert!((9 * SECOND..=10 * SECOND).contains(&pause), "{pause:?}");
    let removed = b.messages.iter().filter(
        |message| matches!(message, SiblingMessage::Removed { removal, .. } if removals.contains(removal)),
    );
    assert_eq!(removed.count(), 2, "one in all shards, and one of a key");
}

#[tokio::test]
async fn more_removals_than_the_engine_remembers_remove_all_states() {
    let engine = TestEngine::start();
    let mut a = TestReplica::join(&config(engine.url())).await;
    for number in 0..1025 {
        let job = JobId::new(&format!("job-{number}")).unwrap();
        a.send(EngineCall::Remove(Removal::Changed(DOMAIN, job)));
    }
    a.call(EngineCall::Beat(None)).await;
    let mut b = TestReplica::start(&config(engine.url()));
    // It was not linked since its start: as if the removals were made meanwhile.
    b.link_up().await;
    b.cluster.review(Vec::new());
    b.hear(|message| matches!(message, SiblingMessage::Removed { removal: Removal::All, .. }).then_some(()))
        .await;
    let few = TestEngine::start();
    let mut a = TestReplica::join(&config(few.url())).await;
    for number in 0..200 {
        let job = JobId::new(&format!("job-{number}")).unwrap();
        a.send(EngineCall::Remove(Removal::Changed(DOMAIN, job)));
    }
    a.call(EngineCall::Beat(None)).await;
    let mut b = TestReplica::join(&config(few.url())).await;
    b.messages.clear();
    a.call(EngineCall::Pause(DOMAIN, SECOND * 5)).await;
    b.hear(|message| pause_of(message, DOMAIN)).await;
    b.cluster.review(vec![DOMAIN]);
    b.hear_in_order(|message| pause_of(message, DOMAIN)).await;
    let removed = b.messages.iter().filter(|message| matches!(message, SiblingMessage::Removed { .. }));
    assert_eq!(removed.count(), 200, "several pages");
}
