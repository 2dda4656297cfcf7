//! The loss, the restart and the silence of the engine: each replica goes on alone. docs/replicas.md has the bounds.

use std::time::Duration;

use clipgate::testing::clock;

use super::engine::{EngineProxy, TestEngine};
use super::replica::{Replicas, configure};
use crate::harness::process::TestEnv;

const WAITS: usize = 20;
/// Time that a busy machine may add to a bound of less than a second.
const NOISE: Duration = Duration::from_millis(200);

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[tokio::test]
async fn without_the_engine_each_replica_polls_for_itself_within_a_second() {
    let mut replicas = Replicas::start(3).await;
    let waits = replicas.park("a", WAITS).await;
    replicas.engine.kill().await;
    let late = replicas.complete("a", waits.into_iter().flatten().collect()).await;
    println!("engine down: late {late:?} of 1 s, {} polls of 3", replicas.polls("a"));
    assert!(late <= millis(1000) + NOISE, "{late:?}");
    assert!(replicas.polls("a") <= 3);
}

#[tokio::test]
async fn an_engine_that_comes_back_empty_within_0_2_s_costs_no_further_poll() {
    let mut replicas = Replicas::start(3).await;
    let waits = replicas.park("a", WAITS).await;
    replicas.engine.kill().await;
    tokio::time::sleep(millis(100)).await;
    replicas.engine.restart().await;
    tokio::time::sleep(millis(300)).await;
    let late = replicas.complete("a", waits.into_iter().flatten().collect()).await;
    println!("engine restarted: late {late:?} of 0.3 s, {} polls of 1", replicas.polls("a"));
    assert!(late <= millis(300) + NOISE, "{late:?}");
    assert_eq!(replicas.polls("a"), 1);
}

#[tokio::test]
async fn flushall_costs_no_further_poll() {
    let replicas = Replicas::start(3).await;
    let mut waits: Vec<_> = replicas.park("a", WAITS).await.into_iter().flatten().collect();
    replicas.engine.send("FLUSHALL").await;
    replicas.env.sim.set_status("b", "queued");
    for replica in &replicas.all {
        waits.extend((0..WAITS).map(|_| replica.wait("b")));
    }
    replicas.wait_for_polls("b", 1).await;
    tokio::time::sleep(millis(300)).await;
    let late = replicas.complete("a", waits.drain(..3 * WAITS).collect()).await;
    let other = replicas.complete("b", waits).await;
    println!(
        "FLUSHALL: late {late:?} and {other:?} of 0.1 s, {} and {} polls of 1",
        replicas.polls("a"),
        replicas.polls("b")
    );
    assert!(late.max(other) <= millis(100) + NOISE, "{late:?} {other:?}");
    assert_eq!((replicas.polls("a"), replicas.polls("b")), (1, 1));
}

#[tokio::test]
async fn a_stopped_engine_delays_no_wait_by_more_than_1_5_s() {
    for (stopped, most_polls) in [(millis(300), 1), (millis(1000), 3), (millis(5000), 3)] {
        let replicas = Replicas::start(3).await;
        let waits = replicas.park("a", WAITS).await;
        replicas.engine.signal("STOP");
        let completed = clock::now();
        let answered = replicas.complete("a", waits.into_iter().flatten().collect());
        let (late, ()) = tokio::join!(answered, async {
            tokio::time::sleep(stopped).await;
            replicas.engine.signal("CONT");
        });
        println!(
            "engine stopped {stopped:?}: late {late:?} of 1.5 s, {} polls of {most_polls}",
            replicas.polls("a")
        );
        assert!(late <= millis(1500) + NOISE, "{late:?} after {:?}", completed.elapsed());
        assert!(replicas.polls("a") <= most_polls, "{} polls", replicas.polls("a"));
    }
}

#[tokio::test]
async fn an_engine_500_ms_away_delays_the_first_waits_only() {
    let engine = TestEngine::start().await;
    let proxy = EngineProxy::start(engine.address).await;
    let env = TestEnv::new().await;
    configure(&env, "patience = \"50ms\"\n");
    let mut replicas = Replicas { env, engine, all: Vec::new() };
    for _ in 0..3 {
        replicas.add(&proxy.url(), &[]).await;
    }
    replicas.wait_until_all_meet().await;
    proxy.delay(millis(250));
    let replica = &replicas.all[0];
    let (mut slow, mut longest) = (0, Duration::ZERO);
    for number in 0..20 {
        let id = format!("job-{number}");
        replicas.env.sim.set_status(&id, "queued");
        let sent = clock::now();
        let wait = replica.wait(&id);
        replicas.wait_for_polls(&id, 1).await;
        let took = sent.elapsed();
        slow += usize::from(took > millis(40));
        longest = longest.max(took);
        drop(wait);
    }
    println!("engine 500 ms away: {slow} of 20 polls waited for it, the longest {longest:?}");
    assert!(longest <= millis(60) + NOISE, "{longest:?}");
    assert!(slow <= 8, "{slow}");
}

#[tokio::test]
async fn a_cut_connection_costs_no_further_poll_and_missed_results_are_read_again() {
    let engine = TestEngine::start().await;
    let proxy = EngineProxy::start(engine.address).await;
    let urls = [engine.url(), proxy.url(), proxy.url()];
    let replicas = Replicas::with_urls(engine, &urls).await;
    let waits = replicas.park("a", WAITS).await;
    proxy.cut();
    let waiting = replicas.complete("a", waits.into_iter().flatten().collect());
    let (late, ()) = tokio::join!(waiting, async {
        tokio::time::sleep(millis(100)).await;
        proxy.mend();
    });
    println!("cut connection: late {late:?} of 0.5 s, {} polls of 1", replicas.polls("a"));
    assert!(late <= millis(500) + NOISE, "{late:?}");
    assert_eq!(replicas.polls("a"), 1);
}

#[tokio::test]
async fn killed_connections_come_back_and_cost_no_further_poll() {
    let replicas = Replicas::start(3).await;
    let waits = replicas.park("a", WAITS).await;
    for kind in ["normal", "pubsub"] {
        replicas.engine.send(&format!("CLIENT KILL TYPE {kind}")).await;
    }
    let late = replicas.complete("a", waits.into_iter().flatten().collect()).await;
    println!("CLIENT KILL: late {late:?} of 0.5 s, {} polls of 1", replicas.polls("a"));
    assert!(late <= millis(500) + NOISE, "{late:?}");
    assert_eq!(replicas.polls("a"), 1);
}

async fn set_full(replicas: &Replicas, is_full: bool) {
    replicas.engine.cli(&["CONFIG", "SET", "maxmemory", if is_full { "1" } else { "0" }]).await;
}

// P1: a landing whose script fails is sent again.
#[tokio::test]
async fn a_landing_that_a_full_engine_fails_comes_once_it_has_room() {
    let replicas = Replicas::start(3).await;
    let waits = replicas.park("a", WAITS).await;
    set_full(&replicas, true).await;
    // A script that has deleted something may write: without the lease the landing cannot.
    for lease in replicas.engine.cli(&["--scan", "--pattern", "cg1:*:p:*"]).await.lines() {
        replicas.engine.cli(&["DEL", lease]).await;
    }
    let answered = replicas.complete("a", waits.into_iter().flatten().collect());
    let (late, ()) = tokio::join!(answered, async {
        tokio::time::sleep(millis(400)).await;
        set_full(&replicas, false).await;
    });
    println!("engine full for 0.4 s: late {late:?} of 1 s, {} polls of 1", replicas.polls("a"));
    assert!(late >= millis(400) && late <= millis(1000), "{late:?}");
    assert_eq!(replicas.polls("a"), 1);
}

// P1
#[tokio::test]
async fn with_a_full_engine_each_replica_polls_for_itself_within_2_2_s() {
    let replicas = Replicas::start(3).await;
    let waits = replicas.park("a", WAITS).await;
    set_full(&replicas, true).await;
    let full = clock::now();
    replicas.wait_for_polls("a", 3).await;
    let alone = full.elapsed();
    let late = replicas.complete("a", waits.into_iter().flatten().collect()).await;
    println!(
        "engine full: alone after {alone:?} of 2.2 s, then late {late:?}, {} polls of 3",
        replicas.polls("a")
    );
    assert!(alone <= millis(2200) && late <= NOISE, "{alone:?} {late:?}");
    assert_eq!(replicas.polls("a"), 3);
}

// P1
#[tokio::test]
async fn a_replica_that_gets_answers_and_no_messages_makes_its_polls_within_2_2_s() {
    let engine = TestEngine::start().await;
    let proxy = EngineProxy::start(engine.address).await;
    let urls = [engine.url(), proxy.url()];
    let replicas = Replicas::with_urls(engine, &urls).await;
    let waits = replicas.park("a", WAITS).await;
    proxy.mute(true);
    let late = replicas.complete("a", waits.into_iter().flatten().collect()).await;
    println!("no messages: late {late:?} of 2.2 s, {} polls of 2", replicas.polls("a"));
    assert!(late <= millis(2200), "{late:?}");
    assert_eq!(replicas.polls("a"), 2);
    let link = |state: &str| {
        let state = state.to_owned();
        move |overview: &serde_json::Value| overview["cluster"]["link"] == *state
    };
    replicas.all[1].wait_for_state("a far link", link("far")).await;
    // New polls do not wait for messages that do not come.
    replicas.env.sim.set_status("b", "queued");
    let mut waits = replicas.all[0].park("b", 1).await;
    replicas.wait_for_polls("b", 1).await;
    waits.extend(replicas.all[1].park("b", 1).await);
    replicas.wait_for_polls("b", 2).await;
    let late = replicas.complete("b", waits).await;
    assert!(late <= NOISE, "{late:?}");
    proxy.mute(false);
    replicas.all[1].wait_for_state("a near link", link("near")).await;
    let waits = replicas.park("c", 1).await.into_iter().flatten().collect();
    replicas.complete("c", waits).await;
    assert_eq!(replicas.polls("c"), 1);
}

#[tokio::test]
async fn a_gateway_starts_without_the_engine_and_shares_once_it_is_there() {
    let env = TestEnv::new().await;
    configure(&env, "");
    let engine = TestEngine::stopped().await;
    let url = engine.url();
    let mut replicas = Replicas { env, engine, all: Vec::new() };
    for _ in 0..2 {
        replicas.add(&url, &[]).await;
    }
    for replica in &replicas.all {
        assert_eq!(replica.admin.get("/readyz").await.status(), 200, "it never depends on the engine");
    }
    replicas.env.sim.set_status("a", "queued");
    let alone: Vec<_> = replicas.all.iter().map(|replica| replica.wait("a")).collect();
    replicas.wait_for_polls("a", 2).await;
    replicas.complete("a", alone).await;
    replicas.all[0].process.wait_for_log("link=apart").await;
    replicas.engine.restart().await;
    replicas.wait_until_all_meet().await;
    replicas.all[0].process.wait_for_log("link=near").await;
    let shared = replicas.park("b", 3).await.into_iter().flatten().collect();
    replicas.complete("b", shared).await;
    assert_eq!(replicas.polls("b"), 1);
}
