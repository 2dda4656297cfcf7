//! Rejected keys at a real engine.

use std::sync::Arc;
use std::time::Duration;

use super::engine::{BODY, DOMAIN, TestEngine, TestReplica, config, finished, refusal};
use crate::config::Config;
use crate::core::siblings::{
    EngineAnswer, EngineCall, KeyEpoch, LeaseToken, ShareSpec, SharedOutcome, SiblingMessage,
};

fn landing(spec: &Arc<ShareSpec>, token: LeaseToken, attempt_age: Duration) -> EngineCall {
    let states = spec.jobs.iter().map(|id| finished(id, BODY)).collect();
    let outcome = SharedOutcome::Jobs(states);
    EngineCall::Land { spec: Arc::clone(spec), token, epoch: None, attempt_age, outcome, sent_at: None }
}

// P11
#[tokio::test]
async fn an_attempt_that_began_before_a_rejection_is_not_landed_and_not_adopted() {
    let engine = TestEngine::start();
    let mut a = TestReplica::join(&config(engine.url())).await;
    let mut b = TestReplica::join(&config(engine.url())).await;
    let (of_a, of_b) = (a.poll(&["job-one"]), b.poll(&["job-one"]));
    b.claim(&of_b, 1).await;
    b.call(refusal()).await;
    let token = a.token(1);
    for (attempt_age, is_new) in [(Duration::from_secs(60), false), (Duration::ZERO, true)] {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let (spec, age) = (Arc::clone(&of_a), Duration::from_secs(60));
        let adopted = a.call(EngineCall::Adopt { spec, token, age, attempt_age, is_first: false }).await;
        let EngineAnswer::Adopted { is_mine, .. } = adopted else { panic!("{adopted:?}") };
        assert_eq!(is_mine, is_new, "{attempt_age:?}");
        a.call(landing(&of_a, token, attempt_age)).await;
        let has_landed = b
            .hear(|message| match message {
                SiblingMessage::Left(_, of) if *of == token => Some(false),
                SiblingMessage::Landed(_, of, ..) if *of == token => Some(true),
                _ => None,
            })
            .await;
        assert_eq!(has_landed, is_new, "{attempt_age:?}");
    }
    assert!(matches!(b.claim(&of_b, 2).await, EngineAnswer::Known(..)));
}

// P11
#[tokio::test]
async fn a_key_was_accepted_when_its_attempt_began() {
    let engine = TestEngine::start();
    let mut a = TestReplica::join(&config(engine.url())).await;
    let spec = a.poll(&["job-one"]);
    let recheck = Config::default().cache.key_recheck_interval;
    let ages = [(recheck + Duration::from_secs(1), false), (Duration::from_secs(1), true)];
    for (number, (attempt_age, is_known)) in ages.into_iter().enumerate() {
        let token = a.token(number as u64);
        a.call(landing(&spec, token, attempt_age)).await;
        let answer = a.claim(&spec, 9).await;
        assert_eq!(matches!(answer, EngineAnswer::Known(..)), is_known, "{attempt_age:?}: {answer:?}");
    }
}

/// Siblings hear how old the rejection is.
#[tokio::test]
async fn a_rejection_is_published_with_its_age() {
    let engine = TestEngine::start();
    let mut a = TestReplica::join(&config(engine.url())).await;
    let spec = a.poll(&["job-one"]);
    let EngineAnswer::Granted(KeyEpoch(epoch)) = a.claim(&spec, 1).await else { panic!("not granted") };
    let age = Duration::from_secs(7);
    a.call(EngineCall::Refuse { domain: DOMAIN, age, sent_at: None, repeats_within: None }).await;
    let heard = a
        .hear(|message| match message {
            SiblingMessage::Revoked { dead: KeyEpoch(dead), age, by, .. } => Some((*dead, *age, *by)),
            _ => None,
        })
        .await;
    assert_eq!(heard, (epoch, age, Some(a.name)));
}

/// A link that is back repeats its rejections, since the engine may have lost its memory.
#[tokio::test]
async fn a_rejection_that_is_known_or_older_than_an_acceptance_is_not_repeated() {
    let engine = TestEngine::start();
    let mut a = TestReplica::join(&config(engine.url())).await;
    let spec = a.poll(&["job-one"]);
    let repeated = |seconds, margin| EngineCall::Refuse {
        domain: DOMAIN,
        age: Duration::from_secs(seconds),
        sent_at: None,
        repeats_within: Some(margin),
    };
    let (none, second) = (Duration::ZERO, Duration::from_secs(1));
    a.claim(&spec, 1).await;
    a.call(landing(&spec, a.token(1), Duration::from_secs(2))).await;
    let steps = [
        (repeated(5, second), false),
        (repeated(5, none), false),
        (repeated(0, second), true),
        (repeated(0, second), false),
        (repeated(0, none), true),
        (repeated(1, none), false),
        (refusal(), true),
    ];
    for (step, (call, is_published)) in steps.into_iter().enumerate() {
        a.call(call).await;
        a.call(EngineCall::Flushed).await; // a message after it
        let has_heard = a
            .hear(|message| match message {
                SiblingMessage::Revoked { .. } => Some(true),
                SiblingMessage::Flushed => Some(false),
                _ => None,
            })
            .await;
        assert_eq!(has_heard, is_published, "step {step}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The engine may have been restarted, and siblings have entries of the key.
#[tokio::test]
async fn a_rejection_is_published_by_an_engine_that_knows_no_epoch_of_the_key() {
    let engine = TestEngine::start();
    let mut a = TestReplica::join(&config(engine.url())).await;
    let mut b = TestReplica::join(&config(engine.url())).await;
    a.call(refusal()).await;
    let by = b
        .hear(|message| match message {
            SiblingMessage::Revoked { domain, by, .. } if *domain == DOMAIN => Some(*by),
            _ => None,
        })
        .await;
    assert_eq!(by, Some(a.name));
    let spec = a.poll(&["job-one"]);
    tokio::time::sleep(Duration::from_millis(5)).await;
    a.call(landing(&spec, a.token(1), Duration::from_secs(60))).await;
    assert!(matches!(a.claim(&spec, 2).await, EngineAnswer::Granted(_)), "it began before the rejection");
}

#[tokio::test]
async fn the_record_of_a_key_that_was_never_accepted_is_short_lived() {
    let engine = TestEngine::start();
    let mut a = TestReplica::join(&config(engine.url())).await;
    let spec = a.poll(&["job-one"]);
    let lifetime = || {
        let key = engine.keys().into_iter().find(|key| key.contains(":d:")).unwrap();
        let answer = engine.command(&format!("PTTL {key}"));
        Duration::from_millis(answer.lines().next().unwrap()[1..].parse().unwrap())
    };
    let short = Duration::from_secs(270);
    a.call(refusal()).await;
    assert!((short / 2..=short).contains(&lifetime()), "{:?}", lifetime());
    a.claim(&spec, 1).await;
    a.call(refusal()).await;
    assert!((short / 2..=short).contains(&lifetime()), "{:?}", lifetime());
    tokio::time::sleep(Duration::from_millis(5)).await;
    a.claim(&spec, 2).await;
    a.land(&spec, 2).await;
    let long = Duration::from_secs(3500);
    assert!(lifetime() > long);
    a.call(refusal()).await;
    a.claim(&spec, 3).await;
    assert!(lifetime() > long, "siblings that are apart have to learn of this rejection");
}
