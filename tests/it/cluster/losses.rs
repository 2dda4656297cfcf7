//! The loss of a replica: its siblings take over. docs/replicas.md has the bounds.

use std::time::Duration;

use clipgate::testing::clock;

use super::engine::{EngineProxy, TestEngine};
use super::replica::{Replicas, latest};

const WAITS: usize = 20;
/// Time that a busy machine may add to a bound of zero.
const NOISE: Duration = Duration::from_millis(200);

#[tokio::test]
async fn the_waits_of_a_killed_replicas_siblings_are_answered_within_2_2_s_by_one_further_poll() {
    let mut replicas = Replicas::start(3).await;
    let waits = replicas.park("a", WAITS).await;
    replicas.all[0].process.signal("KILL");
    let late = replicas.complete("a", waits.into_iter().skip(1).flatten().collect()).await;
    println!("kill -9 of the holder: late {late:?} of 2.2 s, {} polls of 2", replicas.polls("a"));
    assert!(late <= Duration::from_millis(2200), "{late:?}");
    assert_eq!(replicas.polls("a"), 2);
    replicas.all.remove(0);
}

#[tokio::test]
async fn a_replica_without_the_engine_polls_on_and_its_siblings_take_over_within_2_2_s() {
    let engine = TestEngine::start().await;
    let proxy = EngineProxy::start(engine.address).await;
    let urls = [proxy.url(), engine.url(), engine.url()];
    let replicas = Replicas::with_urls(engine, &urls).await;
    let mut waits = replicas.park("a", WAITS).await;
    proxy.cut();
    let cut = clock::now();
    replicas.wait_for_polls("a", 2).await;
    let taken_over = cut.elapsed();
    let own = waits.remove(0);
    let completed = clock::now();
    let late = replicas.complete("a", waits.into_iter().flatten().collect()).await;
    let own = latest(completed, own).await;
    println!(
        "holder cut off: taken over in {taken_over:?} of 2.2 s, then late {late:?}, its own waits {own:?}"
    );
    assert!(taken_over + late <= Duration::from_millis(2200), "{taken_over:?} {late:?}");
    assert_eq!(replicas.polls("a"), 2);
}

#[tokio::test]
async fn a_stopping_replica_hands_its_polls_over_before_it_ends() {
    let mut replicas = Replicas::start(3).await;
    let waits = replicas.park("a", WAITS).await;
    let stopping = clock::now();
    replicas.all[0].process.signal("TERM");
    replicas.wait_for_polls("a", 2).await;
    let taken_over = stopping.elapsed();
    let late = replicas.complete("a", waits.into_iter().skip(1).flatten().collect()).await;
    println!(
        "drain of the holder: taken over in {taken_over:?}, late {late:?} of 0, {} polls of 2",
        replicas.polls("a")
    );
    assert!(late <= NOISE, "one hop: {late:?}");
    assert_eq!(replicas.polls("a"), 2);
    assert!(replicas.all[0].process.wait_for_exit().await.success());
}

#[tokio::test]
async fn a_stopping_replica_without_own_waits_ends_once_a_sibling_makes_its_poll() {
    let mut replicas = Replicas::start(2).await;
    let mut waits = replicas.park("a", 3).await;
    drop(waits.remove(0));
    replicas.all[0].wait_for_state("no own waits", |state| state["waits"]["parked"] == 0).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((replicas.polls("a"), replicas.held("a")), (1, 1), "it goes on for the sibling");
    replicas.all[0].process.signal("TERM");
    assert!(replicas.all[0].process.wait_for_exit().await.success());
    replicas.wait_for_polls("a", 2).await;
    let late = replicas.complete("a", waits.into_iter().flatten().collect()).await;
    assert!(late <= NOISE, "{late:?}");
    assert_eq!(replicas.polls("a"), 2);
}
