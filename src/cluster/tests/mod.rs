//! Links against a real engine: redis-server, which these tests start.

mod drain;
mod engine;
mod failed_calls;
mod news;
mod quotas;
mod removals;
mod revocation;
mod states;

use std::sync::Arc;
use std::time::Duration;

use self::engine::{BODY, DOMAIN, KEY, SECRET, TestEngine, TestReplica, config, finished, refusal};
use crate::clock;
use crate::cluster::EngineTake;
use crate::cluster::names::ShardIndex;
use crate::config::{ClusterConfig, EngineMode, EngineUrl};
use crate::core::job::{JobId, ResponseHead, UpstreamResponse};
use crate::core::route::Route;
use crate::core::siblings::{
    EngineAnswer, EngineCall, EngineTime, Removal, ReplicaName, SharedOutcome, SharedState, SiblingInput,
    SiblingMessage,
};
use crate::secret::Secret;

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

// P11
#[tokio::test]
async fn a_tampered_state_is_ignored_and_the_poll_is_granted() {
    let engine = TestEngine::start();
    let mut a = TestReplica::join(&config(engine.url())).await;
    let of_a = a.poll(&["job-one"]);
    assert!(matches!(a.claim(&of_a, 1).await, EngineAnswer::Granted(_)));
    a.land(&of_a, 1).await;
    assert!(matches!(a.claim(&of_a, 2).await, EngineAnswer::Known(..)));
    let key = engine.keys().into_iter().find(|key| key.contains(":c:")).unwrap();
    assert_eq!(engine.command(&format!("SETRANGE {key} 60 xxxx")).chars().next(), Some(':'));
    assert!(matches!(a.claim(&of_a, 3).await, EngineAnswer::Granted(_)));
    // A lease that no replica has written is not followed.
    let lease = engine.keys().into_iter().find(|key| key.contains(":p:")).unwrap();
    engine.command(&format!("HSET {lease} l {} h {}", "x".repeat(40), "y".repeat(16)));
    let mut b = TestReplica::join(&config(engine.url())).await;
    let of_b = b.poll(&["job-one"]);
    let beat = engine.millis() + 1_000;
    engine.command(&format!("ZADD {} {beat} {}", members_key(&engine, &lease), "y".repeat(16)));
    b.fails(EngineCall::Claim(b.request(&of_b, 1))).await;
    let beat = b.call(EngineCall::Beat(None)).await;
    assert!(matches!(beat, EngineAnswer::Done(_)), "the link goes on: {beat:?}");
}

/// After a failover to a server whose clock is behind, a stopped holder would count as alive for that time.
#[tokio::test]
async fn a_beat_far_in_the_future_is_that_of_an_unknown_replica() {
    let engine = TestEngine::start();
    let mut a = TestReplica::join(&config(engine.url())).await;
    let mut b = TestReplica::join(&config(engine.url())).await;
    let (of_a, of_b) = (a.poll(&["job-one"]), b.poll(&["job-one"]));
    let (takeover, name) = (2_000, format!("{:016x}", a.name.0));
    for (number, (ahead, is_alive)) in
        [(takeover - 500, true), (takeover + 500, false)].into_iter().enumerate()
    {
        let number = number as u64;
        for adopts in [false, true] {
            a.call(EngineCall::Leave(of_a.name, a.token(number))).await;
            b.call(EngineCall::Leave(of_b.name, b.token(number))).await;
            assert!(matches!(a.claim(&of_a, number).await, EngineAnswer::Granted(_)));
            let lease = engine.keys().into_iter().find(|key| key.contains(":p:")).unwrap();
            let beat = engine.millis() + ahead;
            engine.command(&format!("ZADD {} {beat} {name}", members_key(&engine, &lease)));
            let is_followed = if adopts {
                let (spec, age) = (Arc::clone(&of_b), Duration::ZERO);
                let token = b.token(number);
                let adopt = EngineCall::Adopt { spec, token, age, attempt_age: age, is_first: false };
                let adopted = b.call(adopt).await;
                let EngineAnswer::Adopted { is_mine, .. } = adopted else { panic!("{adopted:?}") };
                !is_mine
            } else {
                matches!(b.claim(&of_b, number).await, EngineAnswer::Held { .. })
            };
            assert_eq!(is_followed, is_alive, "{ahead} ms ahead, adopts: {adopts}");
        }
    }
}

fn members_key(engine: &TestEngine, like: &str) -> String {
    let prefix = like.split(":p:").next().unwrap();
    engine.keys().into_iter().find(|key| *key == format!("{prefix}:m")).unwrap()
}

// P11
#[tokio::test]
async fn another_client_key_opens_nothing_even_where_the_names_are_equal() {
    let engine = TestEngine::start();
    let mut a = TestReplica::join(&config(engine.url())).await;
    let mut b = TestReplica::join(&config(engine.url())).await;
    let of_a = a.poll(&["job-one"]);
    a.claim(&of_a, 1).await;
    let of_b = b.poll_of(b"Bearer another", &["job-one"]);
    assert!(matches!(b.claim(&of_b, 1).await, EngineAnswer::Held { .. }));
    a.land(&of_a, 1).await;
    // The landing is not opened; the stored state is not either, so the claim is granted.
    assert!(matches!(b.claim(&of_b, 2).await, EngineAnswer::Granted(_)));
    assert!(!b.messages.iter().any(|message| matches!(message, SiblingMessage::Landed(..))));
}

#[tokio::test]
async fn replicas_with_two_secrets_names_or_upstreams_never_meet() {
    let engine = TestEngine::start();
    let one = config(engine.url());
    let mut a = TestReplica::join(&one).await;
    let of_a = a.poll(&["job-one"]);
    a.claim(&of_a, 1).await;
    a.land(&of_a, 1).await;
    let other_secret = ClusterConfig { secret: Secret::new("x".repeat(32)), ..one.clone() };
    for other in [other_secret, ClusterConfig { name: "other".to_owned(), ..one }] {
        let mut b = TestReplica::join(&other).await;
        assert_ne!(a.cluster.id(), b.cluster.id());
        let of_b = b.poll(&["job-one"]);
        assert!(matches!(b.claim(&of_b, 1).await, EngineAnswer::Granted(_)));
        a.call(EngineCall::Beat(None)).await;
        b.call(EngineCall::Beat(None)).await;
        let of_others = |replica: &TestReplica| {
            let own = replica.name;
            replica
                .messages
                .iter()
                .any(|message| matches!(message, SiblingMessage::Beat(who, _) if *who != own))
        };
        assert!(!of_others(&a) && !of_others(&b));
    }
}

#[tokio::test]
async fn the_engine_sees_no_key_no_token_no_id_and_no_body() {
    let engine = TestEngine::start();
    let mut monitor = engine.monitor();
    let mut a = TestReplica::join(&config(engine.url())).await;
    let mut b = TestReplica::join(&config(engine.url())).await;
    let (of_a, of_b) = (a.poll(&["job-one", "job-two"]), b.poll(&["job-one", "job-two"]));
    a.claim(&of_a, 1).await;
    b.claim(&of_b, 1).await;
    a.land(&of_a, 1).await;
    let one = a.poll(&["job-one"]);
    a.claim(&one, 2).await;
    let refused = UpstreamResponse {
        status: 404,
        head: Arc::new(ResponseHead { status: 404, ..ResponseHead::default() }),
        body: BODY.into(),
    };
    let outcome = SharedOutcome::Refused(Arc::new(refused));
    let (spec, token) = (Arc::clone(&one), a.token(2));
    let attempt_age = Duration::ZERO;
    a.call(EngineCall::Land { spec, token, epoch: None, attempt_age, outcome, sent_at: None }).await;
    let job = JobId::new("job-one").unwrap();
    a.call(EngineCall::Remove(Removal::Id(job.clone()))).await;
    a.call(EngineCall::Remove(Removal::Changed(DOMAIN, job))).await;
    a.call(EngineCall::Pause(DOMAIN, Duration::from_secs(10))).await;
    a.call(refusal()).await;
    let parts: [&[u8]; 2] = [b"requests", KEY];
    let name = a.cluster.quota_name(&parts);
    let take = EngineTake { name, time: Duration::from_secs(9), max_time: Duration::from_secs(20) };
    assert!(b.cluster.take(&[take]).await[0].is_some());
    b.cluster.review(vec![DOMAIN]);
    b.hear_in_order(|message| matches!(message, SiblingMessage::Revoked { .. }).then_some(())).await;
    let seen = [engine.dump(), monitor.read_all()].concat();
    assert!(seen.len() > 10_000, "{} bytes", seen.len());
    let secrets =
        [KEY, SECRET.as_bytes(), b"sk-client-key", b"job-one", b"job-two", b"secret song", b"complete"];
    for secret in secrets {
        let is_seen = seen.windows(secret.len()).any(|part| part == secret);
        assert!(!is_seen, "{}", String::from_utf8_lossy(secret));
    }
}

#[tokio::test]
async fn a_user_with_the_documented_rights_alone_is_enough() {
    let engine = TestEngine::start();
    let answer = engine.command(&format!("ACL SETUSER clipgate on >password {}", documented_rights()));
    assert!(answer.starts_with("+OK"), "{answer}");
    let url = EngineUrl {
        user: Some("clipgate".to_owned()),
        password: Some(Secret::new("password")),
        ..engine.url()
    };
    let mut a = TestReplica::join(&config(url.clone())).await;
    let mut b = TestReplica::join(&config(url)).await;
    let (of_a, of_b) = (a.poll(&["job-one"]), b.poll(&["job-one"]));
    assert!(matches!(a.claim(&of_a, 1).await, EngineAnswer::Granted(_)));
    assert!(matches!(b.claim(&of_b, 1).await, EngineAnswer::Held { .. }));
    let name = of_a.name;
    let (spec, token, age) = (Arc::clone(&of_a), a.token(1), Duration::from_millis(5));
    let adopted = a.call(EngineCall::Adopt { spec, token, age, attempt_age: age, is_first: false }).await;
    let EngineAnswer::Adopted { is_mine: true, guests, .. } = adopted else { panic!("{adopted:?}") };
    assert_eq!(guests, [b.name]);
    assert!(matches!(a.call(EngineCall::Note(name, token, Some(age))).await, EngineAnswer::Done(_)));
    assert!(matches!(b.call(EngineCall::Detach(name)).await, EngineAnswer::Done(_)));
    assert!(matches!(a.land(&of_a, 1).await, EngineAnswer::Done(_)));
    assert!(matches!(b.claim(&of_b, 2).await, EngineAnswer::Known(..)));
    for call in [
        EngineCall::Fail(name, token, "timeout"),
        EngineCall::Leave(name, token),
        refusal(),
        EngineCall::Remove(Removal::All),
        EngineCall::Pause(DOMAIN, Duration::from_secs(1)),
        EngineCall::Flushed,
    ] {
        let answer = a.call(call.clone()).await;
        assert!(matches!(answer, EngineAnswer::Done(_)), "{call:?}: {answer:?}");
    }
    b.hear(|message| {
        matches!(message, SiblingMessage::Revoked { domain, .. } if *domain == DOMAIN).then_some(())
    })
    .await;
    assert_eq!(a.subscribers(b.name).await, 1);
    assert_eq!(a.subscribers(ReplicaName(1)).await, 0);
    let name = a.cluster.quota_name(&[b"calls"]);
    let take = EngineTake { name, time: Duration::from_secs(1), max_time: Duration::from_secs(9) };
    assert!(a.cluster.take(&[take]).await[0].is_some());
    b.messages.clear();
    b.cluster.review(vec![DOMAIN]);
    b.hear_in_order(|message| matches!(message, SiblingMessage::Revoked { .. }).then_some(())).await;
    let is_removal =
        |message: &SiblingMessage| matches!(message, SiblingMessage::Removed { removal: Removal::All, .. });
    assert!(b.messages.iter().any(is_removal), "{:?}", b.messages);
    a.cluster.resubscribe();
    a.call(EngineCall::Beat(None)).await;
    // The user can do nothing else.
    for forbidden in ["FLUSHALL", "KEYS *", "GET other", "EVAL x 0", "CONFIG GET *", "PUBLISH other x"] {
        let answer = engine.command(&format!("AUTH clipgate password\r\n{forbidden}"));
        assert!(answer.contains("NOPERM"), "{forbidden}: {answer}");
    }
}

/// Returns the rights that docs/replicas.md names.
fn documented_rights() -> String {
    let page = include_str!("../../../docs/replicas.md");
    let command = page.split("ACL SETUSER clipgate on >PASSWORD ").nth(1).unwrap();
    let command = command.split("\n\n").next().unwrap();
    command.split_whitespace().filter(|word| *word != "\\").collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn after_a_flush_the_engine_answers_flushed_until_the_next_beat() {
    let engine = TestEngine::start();
    let mut a = TestReplica::join(&config(engine.url())).await;
    let of_a = a.poll(&["job-one"]);
    assert!(matches!(a.claim(&of_a, 1).await, EngineAnswer::Granted(_)));
    assert!(engine.command("FLUSHALL").starts_with("+OK"));
    assert!(matches!(a.claim(&of_a, 2).await, EngineAnswer::Flushed));
    let adopt = |token, is_first| {
        let (spec, age) = (Arc::clone(&of_a), Duration::from_secs(1));
        EngineCall::Adopt { spec, token, age, attempt_age: age, is_first }
    };
    assert!(matches!(a.call(adopt(a.token(1), false)).await, EngineAnswer::Flushed));
    assert!(matches!(a.call(EngineCall::Beat(None)).await, EngineAnswer::Flushed));
    assert!(matches!(a.call(EngineCall::Beat(None)).await, EngineAnswer::Done(_)));
    let adopted = a.call(adopt(a.token(1), false)).await;
    assert!(matches!(adopted, EngineAnswer::Adopted { is_mine: true, .. }), "{adopted:?}");
    assert!(engine.command("FLUSHALL").starts_with("+OK"));
    let adopted = a.call(adopt(a.token(1), true)).await;
    assert!(matches!(adopted, EngineAnswer::Adopted { is_mine: true, .. }), "{adopted:?}");
}

/// P3: the engine may lose its memory after the adoptions of a link, and before its first beat.
#[tokio::test]
async fn the_first_beat_is_answered_flushed_only_if_an_adoption_before_it_was_lost() {
    let engine = TestEngine::start();
    for is_lost in [false, true] {
        let mut a = TestReplica::start(&config(engine.url()));
        a.name =
            a.until(|input| if let SiblingInput::LinkUp(name) = input { Ok(name) } else { Err(input) }).await;
        let (spec, age) = (a.poll(&["job-one"]), Duration::from_secs(1));
        let token = a.token(1);
        let adopt = EngineCall::Adopt { spec, token, age, attempt_age: age, is_first: true };
        a.call(adopt).await;
        if is_lost {
            assert!(engine.command("FLUSHALL").starts_with("+OK"));
        }
        let beat = a.call(EngineCall::Beat(None)).await;
        assert_eq!(matches!(beat, EngineAnswer::Flushed), is_lost, "{beat:?}");
    }
}

#[tokio::test]
async fn a_killed_connection_is_back_at_once_under_a_new_name() {
    let engine = TestEngine::start();
    let mut a = TestReplica::join(&config(engine.url())).await;
    let former = a.name;
    let began = clock::now();
    engine.command("CLIENT KILL TYPE pubsub");
    a.until(|input| if let SiblingInput::LinkDown = input { Ok(()) } else { Err(input) }).await;
    a.link_up().await;
    assert!(clock::now() < began + Duration::from_secs(2));
    assert_ne!(a.name, former);
    let of_a = a.poll(&["job-one"]);
    assert!(matches!(a.claim(&of_a, 1).await, EngineAnswer::Granted(_)));
}

#[tokio::test]
async fn a_call_of_a_former_link_is_not_made_on_the_next_one() {
    let engine = TestEngine::start();
    let mut a = TestReplica::join(&config(engine.url())).await;
    engine.command("CLIENT KILL TYPE pubsub");
    let of_a = a.poll(&["job-one"]);
    // The hub has not seen yet that the link is down.
    let link_up = async {
        loop {
            let input = a.inputs.recv().await.unwrap();
            if let SiblingInput::LinkUp(name) = input {
                break (name, input);
            }
        }
    };
    let (name, up) = tokio::time::timeout(Duration::from_secs(10), link_up).await.unwrap();
    let late = a.send(EngineCall::Claim(a.request(&of_a, 1)));
    a.cluster.observe(&up);
    a.name = name;
    let first = a.call(EngineCall::Beat(None)).await;
    assert!(matches!(first, EngineAnswer::Done(_)) && late.0 > 0);
    assert!(!engine.keys().iter().any(|key| key.contains(":p:")), "the late claim was not executed");
}

#[tokio::test]
async fn an_engine_that_is_down_at_the_start_is_linked_when_it_comes() {
    let port = TestEngine::start().port;
    let url = EngineUrl {
        is_tls: false,
        host: "127.0.0.1".to_owned(),
        port,
        user: None,
        password: None,
        database: 0,
    };
    let mut a = TestReplica::start(&config(url));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(a.inputs.try_recv().is_err(), "no link yet");
    let _engine = TestEngine::start_at(port);
    a.link_up().await;
}

#[tokio::test]
async fn a_landing_that_comes_late_is_older_by_its_delay() {
    let engine = TestEngine::start();
    let mut a = TestReplica::join(&config(engine.url())).await;
    let mut b = TestReplica::join(&config(engine.url())).await;
    let (of_a, of_b) = (a.poll(&["job-one"]), b.poll(&["job-one"]));
    let EngineAnswer::Granted(epoch) = a.claim(&of_a, 1).await else { panic!("not granted") };
    b.claim(&of_b, 1).await;
    let EngineAnswer::Done(EngineTime(now)) = a.call(EngineCall::Note(of_a.name, a.token(1), None)).await
    else {
        panic!("no time")
    };
    let ladder = Route::suno().ladder;
    let state = SharedState {
        rung: Some(ladder.highest_askable()),
        is_final: false,
        age: Duration::from_millis(100),
        ..finished(&JobId::new("job-one").unwrap(), BODY)
    };
    let late = Duration::from_secs(3);
    let land = EngineCall::Land {
        spec: Arc::clone(&of_a),
        token: a.token(1),
        epoch: Some(epoch),
        attempt_age: Duration::from_millis(100),
        outcome: SharedOutcome::Jobs(vec![state]),
        sent_at: Some(EngineTime(now - late)),
    };
    assert!(matches!(a.call(land).await, EngineAnswer::Done(_)));
    let age = b
        .hear(|message| match message {
            SiblingMessage::Landed(_, _, _, SharedOutcome::Jobs(states)) => Some(states[0].age),
            _ => None,
        })
        .await;
    assert!(age >= late + Duration::from_millis(100) && age < late + Duration::from_secs(2), "{age:?}");
    // Older than a reader accepts: the lease is free, and the state answers no claim.
    assert!(matches!(b.claim(&of_b, 2).await, EngineAnswer::Granted(_)));
}

#[tokio::test]
async fn a_landing_of_a_dead_epoch_stores_nothing_and_is_published_as_left() {
    let engine = TestEngine::start();
    let mut a = TestReplica::join(&config(engine.url())).await;
    let mut b = TestReplica::join(&config(engine.url())).await;
    let (of_a, of_b) = (a.poll(&["job-one"]), b.poll(&["job-one"]));
    let EngineAnswer::Granted(epoch) = a.claim(&of_a, 1).await else { panic!("not granted") };
    b.call(refusal()).await;
    let dead = a
        .hear(|message| match message {
            SiblingMessage::Revoked { domain, dead, .. } if *domain == DOMAIN => Some(*dead),
            _ => None,
        })
        .await;
    assert_eq!(dead, epoch);
    b.poll(&["job-one"]);
    let outcome = SharedOutcome::Jobs(vec![finished(&JobId::new("job-one").unwrap(), BODY)]);
    let (spec, token) = (Arc::clone(&of_a), a.token(1));
    let attempt_age = Duration::ZERO;
    a.call(EngineCall::Land { spec, token, epoch: Some(epoch), attempt_age, outcome, sent_at: None }).await;
    b.hear(|message| matches!(message, SiblingMessage::Left(_, of) if *of == token).then_some(())).await;
    assert!(matches!(b.claim(&of_b, 1).await, EngineAnswer::Granted(_)));
}

#[tokio::test]
async fn the_task_ends_after_its_last_handle_and_its_last_call() {
    let engine = TestEngine::start();
    let mut a = TestReplica::join(&config(engine.url())).await;
    let mut b = TestReplica::join(&config(engine.url())).await;
    let (of_a, of_b) = (a.poll(&["job-one"]), b.poll(&["job-one"]));
    a.claim(&of_a, 1).await;
    b.claim(&of_b, 1).await;
    let token = a.token(1);
    a.send(EngineCall::Leave(of_a.name, token));
    let task = a.stop();
    tokio::time::timeout(Duration::from_secs(5), task).await.expect("the task ends").unwrap();
    b.hear(|message| matches!(message, SiblingMessage::Left(_, of) if *of == token).then_some(())).await;
}

#[tokio::test]
async fn sentinels_lead_to_the_next_primary_after_a_failover() {
    let primary = TestEngine::start();
    let replica = TestEngine::start();
    replica.command(&format!("REPLICAOF 127.0.0.1 {}", primary.port));
    let sentinel = TestEngine::start_sentinel(primary.port);
    let nowhere = EngineUrl { port: 1, ..sentinel.url() };
    let config = ClusterConfig {
        urls: vec![nowhere, sentinel.url()],
        mode: EngineMode::Sentinel,
        master: Some("mymaster".to_owned()),
        ..config(sentinel.url())
    };
    let mut a = TestReplica::join(&config).await;
    let of_a = a.poll(&["job-one"]);
    assert!(matches!(a.claim(&of_a, 1).await, EngineAnswer::Granted(_)));
    let knows_both = |sentinel: &TestEngine| {
        let answer = sentinel.command("SENTINEL REPLICAS mymaster");
        answer.contains(&replica.port.to_string()) && answer.contains("master-link-status\r\n$2\r\nok")
    };
    for _ in 0..300 {
        if knows_both(&sentinel) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(primary);
    a.until(|input| if let SiblingInput::LinkDown = input { Ok(()) } else { Err(input) }).await;
    tokio::time::timeout(Duration::from_secs(60), async { while a.try_link_up().await.is_none() {} })
        .await
        .unwrap();
    assert!(matches!(a.claim(&of_a, 2).await, EngineAnswer::Granted(_)));
    assert!(replica.keys().iter().any(|key| key.contains(":p:")), "the next primary has the lease");
}

#[test]
fn each_shard_knows_its_slot_in_a_cluster() {
    let node = TestEngine::start_node();
    for shard in ShardIndex::all() {
        let slot = node.command(&format!("CLUSTER KEYSLOT cg1:abcdef01:{{{:02}}}:n", shard.number()));
        assert!(slot.starts_with(&format!(":{}\r\n", shard.slot())), "{shard:?}: {slot}");
    }
}

/// Prints the times of a claim, a landing and a hit: `cargo test --release --lib round_trips -- --nocapture`.
#[tokio::test]
async fn round_trips_of_claims_and_landings_are_short() {
    const ROUNDS: u64 = 200;
    let engine = TestEngine::start();
    let mut a = TestReplica::join(&config(engine.url())).await;
    let mut b = TestReplica::join(&config(engine.url())).await;
    let (mut claims, mut landings, mut hits) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..ROUNDS {
        let id = format!("job-{n}");
        let (of_a, of_b) = (a.poll(&[&id]), b.poll(&[&id]));
        let asked = clock::now();
        assert!(matches!(a.claim(&of_a, n).await, EngineAnswer::Granted(_)));
        claims.push(clock::now() - asked);
        assert!(matches!(b.claim(&of_b, n).await, EngineAnswer::Held { .. }));
        let (landed, name) = (clock::now(), of_a.name);
        a.land(&of_a, n).await;
        b.hear(|message| matches!(message, SiblingMessage::Landed(poll, ..) if *poll == name).then_some(()))
            .await;
        landings.push(clock::now() - landed);
        let asked = clock::now();
        assert!(matches!(b.claim(&of_b, ROUNDS + n).await, EngineAnswer::Known(..)));
        hits.push(clock::now() - asked);
    }
    for times in [&mut claims, &mut landings, &mut hits] {
        times.sort_unstable();
    }
    let median = |times: &[Duration]| times[times.len() / 2];
    println!(
        "claim {:?}, landing heard elsewhere {:?}, state read from the engine {:?}",
        median(&claims),
        median(&landings),
        median(&hits)
    );
    assert!(median(&claims) < Duration::from_millis(50) && median(&landings) < Duration::from_millis(50));
}
