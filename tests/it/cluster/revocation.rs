//! Rejected keys and removed states count at all replicas.

use super::replica::Replicas;
use crate::harness::process::{completed_target, within_timeout};

/// The key of the harness.
const KEY: &str = "key-1";

// P11
#[tokio::test]
async fn a_key_that_is_rejected_at_one_replica_gets_no_hits_at_the_others() {
    let replicas = Replicas::start(2).await;
    let target = completed_target("a");
    replicas.env.sim.set_status("a", "completed");
    for replica in &replicas.all {
        assert_eq!(replica.get(&target, &[]).await.status(), 200);
    }
    assert_eq!(replicas.polls("a"), 1);
    replicas.env.sim.accept_keys(Some(&[]));
    let rejected = replicas.all[0].get(&completed_target("b"), &[]).await;
    assert_eq!(rejected.status(), 401);
    let dead = async {
        while replicas.all[1].get(&target, &[]).await.status() != 401 {
            tokio::task::yield_now().await;
        }
    };
    within_timeout("the end of the entries", dead).await;
    replicas.env.sim.accept_keys(Some(&[KEY.to_owned()]));
    assert_eq!(replicas.all[1].get(&target, &[]).await.status(), 200, "the key is valid again");
}

#[tokio::test]
async fn a_removal_by_an_operator_concerns_all_replicas() {
    for path in ["/api/cache", "/api/cache/a"] {
        let replicas = Replicas::start(3).await;
        let target = completed_target("a");
        replicas.env.sim.set_status("a", "completed");
        for replica in &replicas.all {
            assert_eq!(replica.get(&target, &[]).await.status(), 200);
        }
        assert_eq!(replicas.polls("a"), 1);
        let removed = replicas.all[1].admin.send("DELETE", path, &[]).await;
        assert_eq!(removed.body(), r#"{"removed":1}"#);
        for replica in &replicas.all {
            replica.wait_for_state("an empty cache", |state| state["cache"]["entries"] == 0).await;
        }
        let again = replicas.all[0].get(&target, &[]).await;
        let status = again.headers()["cache-status"].to_str().unwrap();
        assert!(status.contains("fwd-status=200"), "{path}: not from the engine: {status}");
        assert_eq!(replicas.polls("a"), 2);
    }
}
