//! The task of the link: connects to the engine again and again, and serves one connection at a time.
//!
//! ```text
//!   connect ──▶ load scripts, subscribe ──▶ LinkUp, new name ──▶ serve ──▶ LinkDown ──▶ pause ──┐
//!      ▲                                                                                       │
//!      └─── at once, then 50 ms and 100 ms for a second, then doubling to 1 s, with jitter ◀───┘
//! ```
//!
//! Calls leave in order without waiting for answers. Nothing survives its connection: the machine sends important
//! calls again.

use std::time::Duration;

use futures_util::future::try_join_all;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Value};
use strum::VariantArray as _;
use tokio::sync::{mpsc, oneshot};

use super::ClusterShared;
use super::calls::ScriptCall;
use super::connect::{CONNECT_TIMEOUT, ConnectError, EngineConnection};
use super::names::ShardIndex;
use super::nodes::EngineServers;
use super::scripts::EngineScript;
use super::session::{LinkEnd, LinkSession};
use crate::clock;
use crate::config::{ClusterConfig, EngineMode};
use crate::core::siblings::{CallId, EngineCall, ReplicaName, SiblingInput};

/// Pause before the second attempt to connect. The first one is made at once.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A link that lived so long is tried again at once.
const STEADY: Duration = Duration::from_secs(1);
/// Time after the loss of a link in which the pauses stay short. The replicas of an engine that restarts must come back within
/// the 300 ms in which they look for each other's polls.
const RESTART: Duration = Duration::from_secs(1);
const PAUSE_IN_RESTART: Duration = Duration::from_millis(100);

/// A command of the hub for the link of this name.
pub(super) struct LinkCommand {
    pub(super) of: ReplicaName,
    pub(super) request: LinkRequest,
}

pub(super) enum LinkRequest {
    Call(CallId, EngineCall, Option<std::sync::Arc<super::polls::ClusterPoll>>),
    Count(ReplicaName),
    Resubscribe,
    /// Runs a script that does not concern the machine. Without an answer the sender is dropped.
    Script(ScriptCall, oneshot::Sender<Value>),
}

pub(super) struct LinkTask {
    pub(super) shared: std::sync::Arc<ClusterShared>,
    pub(super) config: ClusterConfig,
    pub(super) commands: mpsc::Receiver<LinkCommand>,
    pub(super) inputs: mpsc::Sender<SiblingInput>,
}

impl LinkTask {
    /// Runs until all handles are dropped.
    pub(super) async fn run(mut self) {
        let mut servers = match EngineServers::new(&self.config) {
            Ok(servers) => servers,
            Err(error) => {
                tracing::error!(%error, "no TLS settings, replicas share nothing");
                return;
            }
        };
        let (mut pause, mut is_down) = (Duration::ZERO, false);
        let mut lost_at = clock::now();
        loop {
            let attempt = async {
                tokio::time::sleep(pause).await;
                let mut connection = servers.connect().await?;
                let name = ReplicaName(fastrand::u64(1..));
                let scripts = self.shared.greet(&mut connection, name).await?;
                Ok::<_, ConnectError>((connection, name, scripts))
            };
            let Some(attempt) = while_open(&mut self.commands, attempt).await else { return };
            let (attempted_at, mut is_steady) = (clock::now(), false);
            let end = match attempt {
                Ok((connection, name, scripts)) => {
                    let id = self.shared.dialect.names.id();
                    tracing::debug!(id, "connected to the engine");
                    if self.inputs.send(SiblingInput::LinkUp(name)).await.is_err() {
                        return;
                    }
                    let session = LinkSession::new(&self.shared, connection, name, scripts, &self.inputs);
                    let end = session.serve(&mut self.commands).await;
                    if matches!(end, LinkEnd::Stopped)
                        || self.inputs.send(SiblingInput::LinkDown).await.is_err()
                    {
                        return;
                    }
                    // A shorter link counts as a failed attempt.
                    is_steady = clock::now() >= attempted_at + STEADY;
                    if is_steady {
                        (lost_at, is_down) = (clock::now(), false);
                    }
                    end
                }
                Err(error) => LinkEnd::Connect(error),
            };
            if !std::mem::replace(&mut is_down, true) {
                tracing::warn!(error = %end, "no connection to the engine");
            }
            let in_restart = clock::now() < lost_at + RESTART;
            pause = if is_steady { Duration::ZERO } else { next_pause(pause, in_restart) };
        }
    }
}

/// Returns the pause before the next attempt, with jitter.
fn next_pause(last: Duration, in_restart: bool) -> Duration {
    let longest = if in_restart { PAUSE_IN_RESTART } else { LONGEST_PAUSE };
    (last * 2).clamp(FIRST_PAUSE, longest).mul_f64(0.75 + 0.25 * fastrand::f64())
}

/// Runs a future while there is a handle; commands that come meanwhile belong to an earlier link. `None`: there is no
/// handle left. Cancel safe.
async fn while_open<T>(
    commands: &mut mpsc::Receiver<LinkCommand>,
    future: impl Future<Output = T>,
) -> Option<T> {
    let mut future = std::pin::pin!(future);
    loop {
        // Cancel safe: `recv` is, and the future is polled on.
        tokio::select! {
            done = &mut future => return Some(done),
            command = commands.recv() => { command?; }
        }
    }
}

impl ClusterShared {
    /// Loads the scripts and subscribes to all channels. Returns the hashes of the scripts.
    async fn greet(
        &self,
        connection: &mut EngineConnection,
        me: ReplicaName,
    ) -> Result<Vec<String>, ConnectError> {
        let nodes = &connection.nodes;
        // All at once: a distant engine costs one round trip for the scripts and one for the channels.
        let setup = async {
            let load =
                |script: &EngineScript| redis::cmd("SCRIPT").arg("LOAD").arg(script.source()).to_owned();
            let loads = nodes.all().iter().map(|node| {
                try_join_all(EngineScript::VARIANTS.iter().map(move |script| send(node, load(script))))
            });
            let hashes = try_join_all(loads).await?.into_iter().next().unwrap_or_default();
            let commands = self.subscriptions(me).chain(self.probes());
            try_join_all(commands.map(|(shard, command)| send(nodes.of(shard), command))).await?;
            let hashes = hashes.into_iter().map(redis::from_redis_value).collect::<Result<_, _>>();
            hashes.map_err(redis::RedisError::from)
        };
        // Cancel safe: both ends of the connections are given up together.
        let greeted = tokio::select! {
            greeted = tokio::time::timeout(CONNECT_TIMEOUT, setup) => greeted,
            () = &mut connection.driver => return Err(ConnectError::Closed),
        };
        match greeted {
            Ok(Err(error)) if error.code() == Some("MOVED") && self.mode != EngineMode::Cluster => {
                Err(ConnectError::InCluster)
            }
            Ok(greeted) => Ok(greeted?),
            Err(_) => Err(ConnectError::TimedOut),
        }
    }

    /// Returns the commands that subscribe a replica to all channels.
    pub(super) fn subscriptions(&self, me: ReplicaName) -> impl Iterator<Item = (ShardIndex, Cmd)> {
        let names = &self.dialect.names;
        let shards = ShardIndex::all().map(|shard| (shard, names.channel(shard)));
        let own = (ShardIndex::of_replica(me), names.own_channel(me));
        let subscribe = |channel: String| redis::cmd("SSUBSCRIBE").arg(channel).to_owned();
        shards.chain([own]).map(move |(shard, channel)| (shard, subscribe(channel)))
    }

    /// Returns commands that fail where a node moves a slot to another: it accepts subscriptions until the end, and no
    /// scripts.
    fn probes(&self) -> impl Iterator<Item = (ShardIndex, Cmd)> {
        let names = &self.dialect.names;
        ShardIndex::all().map(|shard| (shard, redis::cmd("GET").arg(names.channel(shard)).to_owned()))
    }
}

/// Sends a command and returns its answer. An error of the engine is an error here.
pub(super) async fn send(commands: &MultiplexedConnection, command: Cmd) -> Result<Value, redis::RedisError> {
    commands.clone().send_packed_command(&command).await?.extract_error()
}
