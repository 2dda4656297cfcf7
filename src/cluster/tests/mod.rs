//! Links against a real engine: redis-server, which these tests start.

mod engine;

use self::engine::{BODY, TestEngine, TestReplica, config};
use crate::core::siblings::{EngineAnswer, EngineCall, SharedOutcome, SiblingMessage};

#[tokio::test]
async fn two_replicas_share_a_poll_from_its_claim_to_its_landing() {
    let engine = TestEngine::start();
    let mut a = TestReplica::join(&config(engine.url())).await;
    let mut b = TestReplica::join(&config(engine.url())).await;
    let (of_a, of_b) = (a.poll(&["job-one"]), b.poll(&["job-one"]));
    assert_eq!(of_a.name, of_b.name);

    let EngineAnswer::Granted(epoch) = a.claim(&of_a, 1).await else { panic!("not granted") };
    let held = b.claim(&of_b, 1).await;
    let EngineAnswer::Held { by, token, epoch: of_held, .. } = held else { panic!("{held:?}") };
    assert_eq!((by, token, of_held), (a.name, a.token(1), epoch));
    let (guest, name) = (b.name, of_a.name);
    a.hear(|message| {
        matches!(message, SiblingMessage::Attached(poll, _, who) if (*poll, *who) == (name, guest))
            .then_some(())
    })
    .await;

    assert!(matches!(a.land(&of_a, 1).await, EngineAnswer::Done(_)));
    let landed = b
        .hear(|message| match message {
            SiblingMessage::Landed(poll, token, _, outcome) => Some((*poll, *token, outcome.clone())),
            _ => None,
        })
        .await;
    assert_eq!((landed.0, landed.1), (name, a.token(1)));
    let SharedOutcome::Jobs(states) = landed.2 else { panic!("not jobs") };
    assert_eq!(states[0].body.as_deref(), Some(BODY.as_bytes()));
    assert_eq!(&states[0].head.shared[0].0[..], "content-type");

    let known = b.claim(&of_b, 2).await;
    let EngineAnswer::Known(states, _) = known else { panic!("{known:?}") };
    assert_eq!(states[0].body.as_deref(), Some(BODY.as_bytes()));
    let beat = b.call(EngineCall::Beat(None)).await;
    assert!(matches!(beat, EngineAnswer::Done(_)), "{beat:?}");
}

#[tokio::test]
async fn a_poll_that_was_left_is_granted_to_a_guest() {
    let engine = TestEngine::start();
    let mut a = TestReplica::join(&config(engine.url())).await;
    let mut b = TestReplica::join(&config(engine.url())).await;
    let (of_a, of_b) = (a.poll(&["job-one"]), b.poll(&["job-one"]));
    assert!(matches!(a.claim(&of_a, 1).await, EngineAnswer::Granted(_)));
    assert!(matches!(b.claim(&of_b, 1).await, EngineAnswer::Held { .. }));
    let (name, token) = (of_a.name, a.token(1));
    a.send(EngineCall::Leave(name, token));
    b.hear(|message| {
        matches!(message, SiblingMessage::Left(poll, of) if (*poll, *of) == (name, token)).then_some(())
    })
    .await;
    assert!(matches!(b.claim(&of_b, 1).await, EngineAnswer::Granted(_)));
}
