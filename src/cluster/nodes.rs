//! Servers of the engine: one, the primary that sentinels name, or the nodes of a Redis Cluster that own the shards.
//!
//! The link has all shards or none: without one of the nodes it ends, and the next one reads the map of the slots again.
//! The crate's own cluster connection was tried: it loses subscriptions to shard channels for good.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use redis::{RedisError, Value};
use tokio::sync::mpsc;

use super::connect::{ConnectError, EngineConnection, MAX_PUSHES, PushSink, ServerConnection, connect};
use super::link::send;
use super::names::ShardIndex;
use crate::config::{ClusterConfig, EngineMode, EngineUrl};
use crate::tls_roots;

/// Time for the answer of one sentinel, or of one node to the question for the map.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(1);

/// The servers of the configuration.
pub(super) struct EngineServers {
    urls: Vec<EngineUrl>,
    mode: EngineMode,
    /// Name of the primary at the sentinels.
    master: Option<String>,
    tls: Option<Arc<rustls::ClientConfig>>,
    /// Nodes of the last map. They know the next one where those of the configuration are gone.
    last_nodes: Vec<EngineUrl>,
}

/// A node of a Redis Cluster and its shards.
struct ShardOwner {
    url: EngineUrl,
    shards: Vec<ShardIndex>,
}

impl EngineServers {
    pub(super) fn new(config: &ClusterConfig) -> Result<Self, rustls::Error> {
        let urls = config.urls.clone();
        let tls =
            urls.iter().any(|url| url.is_tls).then(tls_roots::trusting_platform).transpose()?.map(Arc::new);
        let (mode, master) = (config.mode, config.master.clone());
        Ok(Self { urls, mode, master, tls, last_nodes: Vec::new() })
    }

    /// Connects to the servers that have all shards together. Cancel safe: dropping the future abandons it.
    pub(super) async fn connect(&mut self) -> Result<EngineConnection, ConnectError> {
        let owners = match self.mode {
            EngineMode::Single => vec![ShardOwner::of_all(self.urls.first().ok_or(ConnectError::NoPrimary)?)],
            EngineMode::Sentinel => vec![ShardOwner::of_all(&self.primary().await?)],
            EngineMode::Cluster => self.owners().await?,
        };
        let (tls, (sender, pushes)) = (self.tls.as_ref(), mpsc::channel(MAX_PUSHES));
        let sink = PushSink { sender, has_lost: Arc::default() };
        let messages = (pushes, Arc::clone(&sink.has_lost));
        let open = |owner: ShardOwner| {
            let sink = sink.clone();
            async move { Ok::<_, ConnectError>((connect(&owner.url, tls, sink).await?, owner.shards)) }
        };
        let engine = owners.iter().map(|owner| owner.url.to_string()).collect::<Vec<_>>().join(" ");
        tracing::debug!(engine, "connecting to the engine");
        Ok(EngineConnection::new(try_join_all(owners.into_iter().map(open)).await?, messages))
    }

    /// Asks one sentinel after the other. A sentinel may need the credentials of the engine, or accept none.
    async fn primary(&self) -> Result<EngineUrl, ConnectError> {
        let master = self.master.as_deref().unwrap_or_default();
        let mut last = ConnectError::NoPrimary;
        for sentinel in &self.urls {
            let without = EngineUrl { user: None, password: None, database: 0, ..sentinel.clone() };
            let with = EngineUrl { database: 0, ..sentinel.clone() };
            for url in [Some(without), sentinel.password.is_some().then_some(with)].into_iter().flatten() {
                let question = redis::cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(master).to_owned();
                let address = self.ask(&url, question).await.and_then(|answer| {
                    let address: Option<(String, u16)> =
                        redis::from_redis_value(answer).map_err(RedisError::from)?;
                    address.ok_or(ConnectError::NoPrimary)
                });
                match address {
                    Ok((host, port)) => return Ok(EngineUrl { host, port, ..sentinel.clone() }),
                    Err(error) => last = error,
                }
            }
        }
        Err(last)
    }

    /// Asks one node after the other for the owners of all shards, from a random one on: some may have an old map.
    async fn owners(&mut self) -> Result<Vec<ShardOwner>, ConnectError> {
        let mut nodes: Vec<_> = self.urls.iter().chain(&self.last_nodes).cloned().collect();
        let first = fastrand::usize(..nodes.len().max(1));
        nodes.rotate_left(first);
        let mut last = ConnectError::NoOwner;
        for node in nodes {
            let question = redis::cmd("CLUSTER").arg("SLOTS").to_owned();
            match self.ask(&node, question).await.and_then(|answer| owners(answer, &node)) {
                Ok(owners) => {
                    self.last_nodes = owners.iter().map(|owner| owner.url.clone()).collect();
                    return Ok(owners);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn ask(&self, server: &EngineUrl, question: redis::Cmd) -> Result<Value, ConnectError> {
        let asking = async {
            let without_pushes = PushSink { sender: mpsc::channel(1).0, has_lost: Arc::default() };
            let ServerConnection { commands, mut driver } =
                connect(server, self.tls.as_ref(), without_pushes).await?;
            // Cancel safe: both ends of the connection are given up together.
            tokio::select! {
                answer = send(&commands, question) => Ok(answer?),
                () = &mut driver => Err(ConnectError::Closed),
            }
        };
        tokio::time::timeout(QUESTION_TIMEOUT, asking).await.unwrap_or(Err(ConnectError::TimedOut))
    }
}

impl ShardOwner {
    fn of_all(url: &EngineUrl) -> Self {
        Self { url: url.clone(), shards: ShardIndex::all().collect() }
    }
}

/// Returns the owner of each shard from the answer of a node to `CLUSTER SLOTS`.
fn owners(answer: Value, asked: &EngineUrl) -> Result<Vec<ShardOwner>, ConnectError> {
    let Value::Array(ranges) = answer else { return Err(ConnectError::NoOwner) };
    let ranges: Vec<_> = ranges.iter().filter_map(|range| slot_range(range, asked)).collect();
    let mut owners: Vec<ShardOwner> = Vec::new();
    for shard in ShardIndex::all() {
        let (_, url) =
            ranges.iter().find(|(slots, _)| slots.contains(&shard.slot())).ok_or(ConnectError::NoOwner)?;
        match owners.iter_mut().find(|owner| owner.url == *url) {
            Some(owner) => owner.shards.push(shard),
            None => owners.push(ShardOwner { url: url.clone(), shards: vec![shard] }),
        }
    }
    Ok(owners)
}

/// Reads `[first, last, [host, port, ..], ..]`. A node that does not know its host has the one under which it was asked.
fn slot_range(range: &Value, asked: &EngineUrl) -> Option<(RangeInclusive<u16>, EngineUrl)> {
    let Value::Array(items) = range else { return None };
    let [Value::Int(first), Value::Int(last), Value::Array(primary), ..] = &items[..] else { return None };
    let [host, Value::Int(port), ..] = &primary[..] else { return None };
    let host: Option<String> = redis::from_redis_value(host.clone()).ok()?;
    let host = host.filter(|host| !host.is_empty() && host != "?").unwrap_or_else(|| asked.host.clone());
    let url = EngineUrl { host, port: u16::try_from(*port).ok()?, ..asked.clone() };
    Some((u16::try_from(*first).ok()?..=u16::try_from(*last).ok()?, url))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: i64, last: i64, host: Value, port: i64) -> Value {
        let node = Value::Array(vec![host, Value::Int(port), Value::BulkString(b"id".to_vec())]);
        Value::Array(vec![Value::Int(first), Value::Int(last), node.clone(), node])
    }

    fn asked() -> EngineUrl {
        let host = "asked".to_owned();
        EngineUrl {
            is_tls: true,
            host,
            port: 7000,
            user: Some("team".to_owned()),
            password: None,
            database: 0,
        }
    }

    #[test]
    fn a_node_owns_the_shards_in_its_slots_and_keeps_the_credentials() {
        let host = |name: &str| Value::BulkString(name.as_bytes().to_vec());
        let map = vec![
            range(0, 5460, Value::Nil, 7000),
            range(5461, 10922, host("b"), 7001),
            range(10923, 13000, host("b"), 7001),
            range(13001, 16383, host("c"), 7002),
        ];
        let owners = owners(Value::Array(map), &asked()).unwrap();
        let mut seen: Vec<_> =
            owners.iter().map(|owner| (owner.url.to_string(), owner.shards.len())).collect();
        seen.sort_unstable();
        let [a, b, c] = ["rediss://asked:7000", "rediss://b:7001", "rediss://c:7002"].map(str::to_owned);
        assert_eq!(seen, [(a, 8), (b, 5), (c, 3)]);
        assert!(owners.iter().all(|owner| owner.url.user.as_deref() == Some("team")));
    }

    #[test]
    fn a_map_without_a_shard_or_of_another_form_is_an_error() {
        let host = Value::BulkString(b"h".to_vec());
        let part = Value::Array(vec![range(0, 10000, host.clone(), 1)]);
        for map in [part, Value::Array(vec![]), Value::Nil, Value::Array(vec![Value::Int(1)])] {
            assert!(owners(map, &asked()).is_err());
        }
        assert!(owners(Value::Array(vec![range(0, 16383, host, 70_000)]), &asked()).is_err());
    }
}
