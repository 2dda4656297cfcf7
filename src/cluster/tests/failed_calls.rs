//! Calls that the engine fails while the link goes on: each is reported to the machine.

use std::sync::Arc;
use std::time::Duration;

use super::engine::{BODY, TestEngine, TestReplica, config, finished, refusal};
use crate::core::siblings::{
    EngineAnswer, EngineCall, LeaseToken, Removal, ShareSpec, SharedOutcome, SiblingInput,
};

fn landing(spec: &Arc<ShareSpec>, token: LeaseToken) -> EngineCall {
    let states = spec.jobs.iter().map(|id| finished(id, BODY)).collect();
    let (spec, outcome) = (Arc::clone(spec), SharedOutcome::Jobs(states));
    EngineCall::Land { spec, token, epoch: None, attempt_age: Duration::ZERO, outcome, sent_at: None }
}

#[tokio::test]
async fn each_call_that_a_full_engine_fails_is_reported_once_and_the_link_goes_on() {
    let engine = TestEngine::start();
    let mut a = TestReplica::join(&config(engine.url())).await;
    let (spec, token) = (a.poll(&["job-one"]), a.token(1));
    assert!(engine.command("CONFIG SET maxmemory 1").starts_with("+OK"));
    for call in [
        EngineCall::Claim(a.request(&spec, 1)),
        landing(&spec, token),
        EngineCall::Beat(None),
        EngineCall::Remove(Removal::All),
        EngineCall::Pause(spec.domain, Duration::from_secs(1)),
    ] {
        a.fails(call).await;
    }
    assert!(engine.command("CONFIG SET maxmemory 0").starts_with("+OK"));
    let reported = a.send(refusal());
    a.until(|input| match input {
        SiblingInput::Failed(call) => panic!("{call:?} is reported twice"),
        SiblingInput::Answer(of, EngineAnswer::Done(_)) if of == reported => Ok(()),
        other => Err(other),
    })
    .await;
    assert!(matches!(a.claim(&spec, 1).await, EngineAnswer::Granted(_)));
}

#[tokio::test]
async fn a_call_on_a_key_that_another_program_has_written_is_reported() {
    let engine = TestEngine::start();
    let mut a = TestReplica::join(&config(engine.url())).await;
    let spec = a.poll(&["job-one"]);
    assert!(matches!(a.claim(&spec, 1).await, EngineAnswer::Granted(_)));
    let lease = engine.keys().into_iter().find(|key| key.contains(":p:")).unwrap();
    engine.command(&format!("SET {lease} text"));
    a.fails(EngineCall::Claim(a.request(&spec, 1))).await;
    assert!(matches!(a.call(EngineCall::Beat(None)).await, EngineAnswer::Done(_)));
}

#[tokio::test]
async fn a_call_for_a_poll_that_was_forgotten_is_reported() {
    let engine = TestEngine::start();
    let mut a = TestReplica::join(&config(engine.url())).await;
    let spec = a.poll(&["job-one"]);
    a.cluster.forget(spec.name);
    let token = a.token(1);
    a.fails(landing(&spec, token)).await;
}
