//! Leases that were left, at a real engine.

use super::engine::{TestEngine, TestReplica, config};
use crate::core::siblings::{EngineAnswer, EngineCall, SiblingMessage};

/// P6: the holder goes on until its guests have claimed the poll, or found another answer.
#[tokio::test]
async fn the_holder_of_a_lease_that_was_left_hears_of_each_claim_that_follows_it() {
    for is_stored in [false, true] {
        let engine = TestEngine::start();
        let mut a = TestReplica::join(&config(engine.url())).await;
        let mut b = TestReplica::join(&config(engine.url())).await;
        let mut c = TestReplica::join(&config(engine.url())).await;
        let (of_a, of_b, of_c) = (a.poll(&["job-one"]), b.poll(&["job-one"]), c.poll(&["job-one"]));
        a.claim(&of_a, 1).await;
        b.claim(&of_b, 1).await;
        let left = a.token(1);
        let mut follower = b.request(&of_b, 1);
        follower.follows = Some(left);
        // Its own lease is not another one.
        let held = b.call(EngineCall::Claim(follower.clone())).await;
        assert!(matches!(held, EngineAnswer::Held { .. }), "{held:?}");
        a.call(EngineCall::Leave(of_a.name, left)).await;
        // A third replica without waits on that lease is first.
        assert!(matches!(c.claim(&of_c, 1).await, EngineAnswer::Granted(_)));
        if is_stored {
            c.land(&of_c, 1).await;
        }
        assert!(!a.messages.iter().any(|message| matches!(message, SiblingMessage::Taken(..))));
        let answer = b.call(EngineCall::Claim(follower)).await;
        assert_eq!(matches!(answer, EngineAnswer::Known(..)), is_stored, "{answer:?}");
        let heard = a.hear(|message| match message {
            SiblingMessage::Taken(_, token) => Some(*token),
            _ => None,
        });
        assert_eq!(heard.await, left);
    }
}
