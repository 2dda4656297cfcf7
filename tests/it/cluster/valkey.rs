//! The same behaviour with Valkey.

use std::time::Duration;

use super::engine::TestEngine;
use super::replica::Replicas;
use crate::harness::process::completed_target;

#[tokio::test]
async fn three_replicas_share_results_take_over_and_forget_through_valkey() {
    let engine = TestEngine::start_with("valkey-server", &[]).await;
    assert!(engine.cli(&["info", "server"]).await.contains("server_name:valkey"));
    let urls = vec![engine.url(); 3];
    let mut replicas = Replicas::with_urls(engine, &urls).await;

    let waits = replicas.park("a", 20).await;
    replicas.complete("a", waits.into_iter().flatten().collect()).await;
    assert_eq!(replicas.polls("a"), 1, "P3");
    replicas.env.sim.set_status("b", "completed");
    for replica in &replicas.all {
        assert_eq!(replica.get(&completed_target("b"), &[]).await.status(), 200);
    }
    assert_eq!(replicas.polls("b"), 1, "the first replica read it");

    let waits: Vec<_> = replicas.park("c", 10).await.into_iter().flatten().collect();
    replicas.engine.send("FLUSHALL").await;
    // The next beats find it, within half a second. A poll that lands before is made once more.
    tokio::time::sleep(Duration::from_secs(1)).await;
    replicas.complete("c", waits).await;
    assert_eq!(replicas.polls("c"), 1, "a flush costs no poll");

    let waits = replicas.park("d", 10).await;
    replicas.all[0].process.signal("KILL");
    let late = replicas.complete("d", waits.into_iter().skip(1).flatten().collect()).await;
    println!("Valkey, kill -9 of the holder: late {late:?} of 2.2 s, {} polls of 2", replicas.polls("d"));
    assert!(late <= Duration::from_millis(2200), "{late:?}");
    assert_eq!(replicas.polls("d"), 2);
    replicas.all.remove(0);
}
