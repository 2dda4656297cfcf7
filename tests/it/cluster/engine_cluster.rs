//! A Redis Cluster for one test.

use std::time::Duration;

use super::engine::{TestEngine, free_port};
use crate::harness::process::within_timeout;

/// Slots of the three primaries.
const RANGES: [[&str; 2]; 3] = [["0", "5460"], ["5461", "10922"], ["10923", "16383"]];
/// Last slot of the first primary.
const LAST_OF_FIRST: u16 = 5460;

/// Three primaries, and replicas of the first ones. Dropping it kills the processes.
pub(super) struct TestCluster {
    pub(super) nodes: Vec<TestEngine>,
}

impl TestCluster {
    pub(super) async fn start(replicas: usize) -> Self {
        let mut nodes = Vec::new();
        let mut first_bus = 0;
        for number in 0..RANGES.len() + replicas {
            let bus = free_port().await;
            first_bus = if number == 0 { bus } else { first_bus };
            let bus = bus.to_string();
            let args = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1500", "--cluster-port", &bus];
            nodes.push(TestEngine::start_with("redis-server", &args).await);
        }
        let first = nodes[0].address.port().to_string();
        for (number, [from, to]) in RANGES.into_iter().enumerate() {
            nodes[number].cli(&["cluster", "addslotsrange", from, to]).await;
            nodes[number].cli(&["cluster", "set-config-epoch", &(number + 1).to_string()]).await;
        }
        for node in &nodes[1..] {
            node.cli(&["cluster", "meet", "127.0.0.1", &first, &first_bus.to_string()]).await;
        }
        let cluster = Self { nodes };
        let known = format!("cluster_known_nodes:{}\r", cluster.nodes.len());
        cluster.wait_for_all(&["cluster", "info"], &["cluster_state:ok", &known]).await;
        for number in 0..replicas {
            let primary = cluster.nodes[number].cli(&["cluster", "myid"]).await;
            cluster.nodes[RANGES.len() + number].cli(&["cluster", "replicate", &primary]).await;
        }
        for replica in &cluster.nodes[RANGES.len()..] {
            wait_for(replica, &["info", "replication"], &["master_link_status:up"]).await;
        }
        cluster
    }

    async fn wait_for_all(&self, command: &[&str], texts: &[&str]) {
        for node in &self.nodes {
            wait_for(node, command, texts).await;
        }
    }

    /// Moves the slots of all shards from the first primary to another. Returns their number.
    pub(super) async fn move_shards(&self, to: usize) -> usize {
        let (from, to) = (&self.nodes[0], &self.nodes[to]);
        let (from_id, to_id) = (from.cli(&["cluster", "myid"]).await, to.cli(&["cluster", "myid"]).await);
        let to_port = to.address.port().to_string();
        let mut moved = 0;
        for shard in 0..16 {
            let slot = from.cli(&["cluster", "keyslot", &format!("{{{shard:02}}}")]).await;
            if slot.parse::<u16>().unwrap() > LAST_OF_FIRST {
                continue;
            }
            to.cli(&["cluster", "setslot", &slot, "importing", &from_id]).await;
            from.cli(&["cluster", "setslot", &slot, "migrating", &to_id]).await;
            loop {
                let keys = from.cli(&["cluster", "getkeysinslot", &slot, "100"]).await;
                if keys.is_empty() {
                    break;
                }
                let mut command = vec!["migrate", "127.0.0.1", &to_port, "", "0", "5000", "keys"];
                command.extend(keys.lines());
                from.cli(&command).await;
            }
            for node in [to, from] {
                node.cli(&["cluster", "setslot", &slot, "node", &to_id]).await;
            }
            moved += 1;
        }
        moved
    }
}

/// Waits until the reply to a command has all these texts.
pub(super) async fn wait_for(server: &TestEngine, command: &[&str], texts: &[&str]) {
    let waiting = async {
        loop {
            let reply = server.cli_unchecked(command).await;
            if texts.iter().all(|text| reply.contains(text)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    within_timeout(&texts.join(" "), waiting).await;
}
