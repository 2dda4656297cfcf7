//! States in the engine: their size, and entries that another program has moved.

use std::sync::Arc;
use std::time::Duration;

use super::engine::{DOMAIN, TestEngine, TestReplica, config, finished, refusal};
use crate::config::{ClusterConfig, Share};
use crate::core::siblings::{EngineAnswer, EngineCall, KeyEpoch, SharedOutcome, SharedState, SiblingMessage};

#[tokio::test]
async fn a_state_of_many_bytes_is_announced_without_them_and_not_stored() {
    let engine = TestEngine::start();
    let small = ClusterConfig { max_body: 10, ..config(engine.url()) };
    let mut a = TestReplica::join(&small).await;
    let mut b = TestReplica::join(&small).await;
    let (of_a, of_b) = (a.poll(&["job-one"]), b.poll(&["job-one"]));
    a.claim(&of_a, 1).await;
    b.claim(&of_b, 1).await;
    a.land(&of_a, 1).await;
    let body = b
        .hear(|message| match message {
            SiblingMessage::Landed(_, _, _, SharedOutcome::Jobs(states)) => Some(states[0].body.clone()),
            _ => None,
        })
        .await;
    assert_eq!(body, None);
    assert!(matches!(b.claim(&of_b, 2).await, EngineAnswer::Granted(_)));
}

#[tokio::test]
async fn the_bodies_of_one_message_are_bounded() {
    let engine = TestEngine::start();
    let mut a = TestReplica::join(&config(engine.url())).await;
    let mut b = TestReplica::join(&config(engine.url())).await;
    let ids: Vec<String> = (0..40).map(|number| format!("job-{number}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let (of_a, of_b) = (a.poll(&ids), b.poll(&ids));
    let EngineAnswer::Granted(epoch) = a.claim(&of_a, 1).await else { panic!("not granted") };
    b.claim(&of_b, 1).await;
    let body = "x".repeat(256 << 10);
    let outcome = SharedOutcome::Jobs(of_a.jobs.iter().map(|id| finished(id, &body)).collect());
    let (spec, token, attempt_age) = (Arc::clone(&of_a), a.token(1), Duration::ZERO);
    a.call(EngineCall::Land { spec, token, epoch: Some(epoch), attempt_age, outcome, sent_at: None }).await;
    let states = b
        .hear(|message| match message {
            SiblingMessage::Landed(_, _, _, SharedOutcome::Jobs(states)) => Some(states.clone()),
            _ => None,
        })
        .await;
    let has_body = |state: &&SharedState| state.body.is_some();
    assert_eq!((states.len(), states.iter().filter(has_body).count()), (40, 16), "4 MiB");
    let stored = engine.keys().iter().filter(|key| key.contains(":c:")).count();
    assert_eq!(stored, 16);
}

/// Returns the raw reply to a command without the line of its length.
fn bytes_of(engine: &TestEngine, command: &str) -> Vec<u8> {
    use std::io::{Read as _, Write as _};
    let mut stream = engine.connect();
    stream.write_all(format!("{command}\r\nQUIT\r\n").as_bytes()).unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).unwrap();
    let start = reply.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    let length: usize = std::str::from_utf8(&reply[1..start - 2]).unwrap().parse().unwrap();
    reply[start..start + length].to_vec()
}

// P11
#[tokio::test]
async fn a_state_of_a_dead_epoch_does_not_open_under_the_live_one() {
    for is_moved in [true, false] {
        let engine = TestEngine::start();
        let mut a = TestReplica::join(&config(engine.url())).await;
        let of_a = a.poll(&["job-one"]);
        a.claim(&of_a, 1).await;
        a.land(&of_a, 1).await;
        let key = engine.keys().into_iter().find(|key| key.contains(":c:")).unwrap();
        let before = bytes_of(&engine, &format!("GET {key}"));
        if is_moved {
            a.call(refusal()).await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        // The live epoch, and an acceptance of the key after it.
        a.claim(&of_a, 2).await;
        a.land(&of_a, 2).await;
        let live = bytes_of(&engine, &format!("GET {key}"));
        let moved = [&live[..42], &before[42..]].concat();
        let mut stream = engine.connect();
        let mut command =
            format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n", key.len(), moved.len()).into_bytes();
        command.extend_from_slice(&moved);
        command.extend_from_slice(b"\r\n");
        std::io::Write::write_all(&mut stream, &command).unwrap();
        assert_eq!(std::io::Read::read(&mut stream, &mut [0; 5]).unwrap(), 5);
        let answer = a.claim(&of_a, 3).await;
        assert_eq!(matches!(answer, EngineAnswer::Known(..)), !is_moved, "{answer:?}");
    }
}

#[tokio::test]
async fn a_result_without_a_grant_is_stored_under_the_epoch_that_its_replica_knows() {
    let engine = TestEngine::start();
    let mut a = TestReplica::join(&config(engine.url())).await;
    let of_a = a.poll(&["job-one"]);
    a.land(&of_a, 1).await; // the engine has no epoch
    assert!(matches!(a.claim(&of_a, 2).await, EngineAnswer::Known(..)));
    let mut b = TestReplica::join(&config(engine.url())).await;
    let of_b = b.poll(&["job-two"]);
    // It knows no epoch, and the engine has one: siblings hear of it, and the store does not.
    a.poll(&["job-two"]);
    b.land(&of_b, 1).await;
    a.hear(|message| matches!(message, SiblingMessage::Landed(..)).then_some(())).await;
    assert!(matches!(b.claim(&of_b, 2).await, EngineAnswer::Granted(_)));
    b.land(&of_b, 3).await;
    assert!(matches!(b.claim(&of_b, 4).await, EngineAnswer::Known(..)));
}

#[tokio::test]
async fn states_are_stored_and_read_where_polls_are_not_shared() {
    let engine = TestEngine::start();
    let only = ClusterConfig { share: vec![Share::Jobs], ..config(engine.url()) };
    let mut a = TestReplica::join(&only).await;
    let mut b = TestReplica::join(&only).await;
    let (of_a, of_b) = (a.poll(&["job-one"]), b.poll(&["job-one"]));
    let EngineAnswer::Granted(KeyEpoch(_)) = a.claim(&of_a, 1).await else { panic!("not granted") };
    assert!(matches!(b.claim(&of_b, 1).await, EngineAnswer::Granted(_)), "each makes its own poll");
    a.land(&of_a, 1).await;
    assert!(matches!(b.claim(&of_b, 2).await, EngineAnswer::Known(..)));
    b.call(EngineCall::Beat(None)).await;
    assert!(!b.messages.iter().any(|message| matches!(message, SiblingMessage::Landed(..))));
    assert!(!engine.keys().iter().any(|key| key.contains(":p:")));
    a.call(refusal()).await;
    let is_own = |message: &SiblingMessage| matches!(message, SiblingMessage::Revoked { domain, .. } if *domain == DOMAIN);
    b.hear(|message| is_own(message).then_some(())).await;
    assert!(matches!(b.claim(&of_b, 3).await, EngineAnswer::Granted(_)));
}
