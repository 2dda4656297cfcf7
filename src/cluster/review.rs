//! News that a replica missed while it had no link or did not hear: rejected keys, pauses, removals.
//!
//! ```text
//!   LinkUp, Resubscribe ──▶ log of removals, shard by shard ──▶ keys, page by page ──▶ messages for the hub
//! ```
//!
//! The engine keeps them for that. A review begins after the subscriptions, so later news come as messages. Some news come
//! twice: those of the last moments before the loss.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use redis::Value;
use tokio::sync::{Notify, mpsc};

use super::answers::{Heard, bulk};
use super::calls::{ScriptCall, number};
use super::link::LinkCommand;
use super::names::ShardIndex;
use super::polls::ClusterPolls;
use super::scripts::EngineScript;
use super::wire::WireReader;
use super::wire::message::{millis, read_epoch};
use super::{Cluster, ClusterShared};
use crate::clock;
use crate::core::job::KeyDomain;
use crate::core::siblings::{Removal, SiblingInput, SiblingMessage};

/// Most keys, and most removals, in one script.
const PAGE: usize = 64;
/// Most keys of one review. The others prove themselves after `cache.key_recheck_interval`.
const MAX_KEYS: usize = 16_384;
/// Most removals of single ids. More of them remove all states.
const MAX_IDS: usize = 1024;
/// Time by which a message may be older than the beat after it.
const MARGIN: Duration = Duration::from_secs(1);

/// Request for a review, and the time since which news may be missing.
pub(super) struct Review {
    keys: Mutex<Option<Vec<KeyDomain>>>,
    requested: Notify,
    /// When this replica last heard its own beats and had missed nothing before.
    complete_at: Mutex<Instant>,
    is_complete: AtomicBool,
}

impl Default for Review {
    fn default() -> Self {
        Self {
            keys: Mutex::default(),
            requested: Notify::new(),
            complete_at: Mutex::new(clock::now()),
            is_complete: AtomicBool::new(false),
        }
    }
}

impl Review {
    /// Records that this replica hears the messages of all shards.
    pub(super) fn heard_itself(&self) {
        if self.is_complete.load(Ordering::Relaxed) {
            *self.complete_at.lock() = clock::now();
        }
    }
}

impl Cluster {
    /// Reads the news that were missed about these keys, and all missed removals. They come as messages.
    pub(crate) fn review(&self, keys: Vec<KeyDomain>) {
        let review = &self.shared.review;
        review.is_complete.store(false, Ordering::Relaxed);
        *review.keys.lock() = Some(keys);
        review.requested.notify_one();
    }
}

/// The task of the reviews.
pub(super) struct Reviewer {
    shared: Arc<ClusterShared>,
    /// Does not keep the link alive.
    commands: mpsc::WeakSender<LinkCommand>,
    inputs: mpsc::Sender<SiblingInput>,
}

impl Reviewer {
    pub(super) fn new(
        shared: &Arc<ClusterShared>,
        commands: &mpsc::Sender<LinkCommand>,
        inputs: mpsc::Sender<SiblingInput>,
    ) -> Self {
        Self { shared: Arc::clone(shared), commands: commands.downgrade(), inputs }
    }

    /// Runs until the link's task ends.
    pub(super) async fn run(self) {
        loop {
            self.shared.review.requested.notified().await;
            let keys = self.shared.review.keys.lock().take().unwrap_or_default();
            let Some(commands) = self.commands.upgrade() else { return };
            let cluster = Cluster { shared: Arc::clone(&self.shared), commands };
            if self.review(&cluster, keys).await.is_none() {
                tracing::debug!("news of siblings not read, trying again on the next link");
            }
        }
    }

    /// Returns `None` if the link has ended.
    async fn review(&self, cluster: &Cluster, mut keys: Vec<KeyDomain>) -> Option<()> {
        let missed = clock::now().saturating_duration_since(*self.shared.review.complete_at.lock()) + MARGIN;
        for removal in self.removals(cluster, missed).await? {
            self.inputs.send(SiblingInput::Message(removal)).await.ok()?;
        }
        keys.truncate(MAX_KEYS);
        for shard in ShardIndex::all() {
            let of_shard = keys.iter().copied().filter(|domain| ShardIndex::of_domain(*domain) == shard);
            for page in of_shard.collect::<Vec<_>>().chunks(PAGE) {
                for message in self.news_of_keys(cluster, page, missed).await? {
                    self.inputs.send(SiblingInput::Message(message)).await.ok()?;
                }
            }
        }
        if self.shared.review.keys.lock().is_none() {
            self.shared.review.is_complete.store(true, Ordering::Relaxed);
        }
        Some(())
    }

    /// Returns the removals of this time. More than the engine remembers are a removal of all states.
    async fn removals(&self, cluster: &Cluster, missed: Duration) -> Option<Vec<SiblingMessage>> {
        let dialect = &self.shared.dialect;
        let all = || vec![SiblingMessage::Removed { removal: Removal::All, by: None }];
        let mut messages = Vec::new();
        for shard in ShardIndex::all() {
            let mut next = Vec::new();
            loop {
                let args = vec![number(millis(missed)), next, number(PAGE)];
                let keys = vec![dialect.names.removals_key(shard)];
                let script = ScriptCall { script: EngineScript::Removals, keys, args };
                let Value::Array(items) = cluster.run_script(script).await? else { break };
                let mut items = items.into_iter().skip(1);
                let follows = items.next();
                messages.extend(items.filter_map(bulk));
                match follows {
                    Some(Value::Int(number @ 1..)) => next = number.to_string().into_bytes(),
                    Some(Value::Int(-1)) => return Some(all()),
                    _ => break,
                }
            }
        }
        let read = |message: Bytes| match dialect.message(message, &ClusterPolls::default())?.1 {
            Heard::Other(message @ SiblingMessage::Removed { .. }) => Some(message),
            Heard::Other(_) | Heard::Beat(..) => None,
        };
        let removals: Vec<SiblingMessage> = messages.into_iter().filter_map(read).collect();
        let is_id = |message: &&SiblingMessage| {
            matches!(message, SiblingMessage::Removed { removal: Removal::Id(_), .. })
        };
        Some(if removals.iter().filter(is_id).count() > MAX_IDS { all() } else { removals })
    }

    async fn news_of_keys(
        &self,
        cluster: &Cluster,
        page: &[KeyDomain],
        missed: Duration,
    ) -> Option<Vec<SiblingMessage>> {
        let dialect = &self.shared.dialect;
        let of_key =
            |domain: &KeyDomain| [dialect.names.domain_key(*domain), dialect.names.pause_key(*domain)];
        let keys = page.iter().flat_map(of_key).collect();
        let script = ScriptCall { script: EngineScript::Review, keys, args: vec![number(millis(missed))] };
        let Value::Array(items) = cluster.run_script(script).await? else { return Some(Vec::new()) };
        let mut messages = Vec::new();
        for (domain, news) in page.iter().zip(items.get(1..).unwrap_or_default().chunks_exact(4)) {
            let [Value::BulkString(dead), Value::Int(age), left, Value::BulkString(pause)] = news else {
                continue;
            };
            let mut record = WireReader::new(Bytes::copy_from_slice(dead));
            let dead = read_epoch(&dialect.codes, *domain, &mut record);
            let age = Duration::from_millis(u64::try_from(*age).unwrap_or_default());
            let revoked = |dead| SiblingMessage::Revoked { domain: *domain, dead, age, by: None };
            messages.extend(dead.map(revoked));
            messages.extend(dialect.stored_pause(left, pause));
        }
        Some(messages)
    }
}
