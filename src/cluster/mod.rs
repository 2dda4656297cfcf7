//! The link to the engine, Redis or Valkey, through which replicas share jobs, polls and quotas.
//!
//! ```text
//!          call, count_subscribers   ┌───────── LinkTask ──────────┐  EVALSHA, SSUBSCRIBE
//!   hub ───────────────────────────▶ │ Dialect   names, codes,     │ ────────────────────▶ engine
//!        ◀────────────────────────── │           seals, scripts    │ ◀────────────────────
//!          SiblingInput              └─────────────────────────────┘  answers, messages
//! ```
//!
//! It decides nothing: [`Siblings`](crate::core::siblings::Siblings) does. It never blocks its caller, and the engine never
//! sees a key, a token, an id or a body.
//!
//! | file | content |
//! | --- | --- |
//! | `names` | names of keys and channels |
//! | `seal` | encryption and authentication |
//! | `wire` | bytes of values and messages |
//! | `scripts` | the scripts of the engine |
//! | `polls` | the polls that this replica shares |
//! | `calls`, `answers` | the machine's calls as scripts, and back |
//! | `epochs` | epochs of keys that this replica has seen |
//! | `quotas` | requests that all replicas count together |
//! | `removals` | removed states: marks and messages |
//! | `review` | news that a replica missed while it had no link |
//! | `connect`, `nodes` | one connection; the servers that have all shards |
//! | `link`, `session` | the task; one link from its start to its end |
//! | `gathered` | answers of all shards as one |

mod answers;
mod calls;
mod connect;
mod epochs;
mod gathered;
mod link;
mod names;
mod nodes;
mod polls;
mod quotas;
mod removals;
mod review;
mod scripts;
mod seal;
mod session;
#[cfg(test)]
mod tests;
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use http::Uri;
use redis::Value;
use tokio::sync::{mpsc, oneshot};

use self::calls::{Dialect, ScriptCall};
use self::link::{LinkCommand, LinkRequest, LinkTask};
use self::names::Names;
use self::polls::{ClusterPoll, ClusterPolls};
pub(crate) use self::quotas::EngineTake;
use self::review::{Review, Reviewer};
use self::seal::StateSeal;
use crate::config::{CacheConfig, ClusterConfig, EngineMode};
use crate::core::job::{JobSet, KeyDomain};
use crate::core::route::{Form, Goal, Routes};
use crate::core::siblings::{CallId, EngineCall, PollName, ReplicaName, ShareSpec, SiblingInput};
use crate::secret::Secret;
use crate::telemetry::metrics::Metrics;

/// Commands of the hub that wait for the link. A link that falls behind ends, and the machine goes on alone.
const MAX_COMMANDS: usize = 65_536;
/// Inputs that wait for the hub. The link reads no further from the engine when there are more.
const MAX_INPUTS: usize = 4096;

/// Handle of the link to the engine. Cheap to clone; never blocks.
#[derive(Clone)]
pub(crate) struct Cluster {
    shared: Arc<ClusterShared>,
    commands: mpsc::Sender<LinkCommand>,
}

/// The gateway around a link.
pub(crate) struct ClusterWorld<'w> {
    pub(crate) base_url: &'w Uri,
    pub(crate) routes: &'w Routes,
    /// The current lifetimes of the cache.
    pub(crate) cache: Arc<ArcSwap<CacheConfig>>,
    /// Random number of this process.
    pub(crate) instance: u64,
}

/// Shared by the handles and the task.
struct ClusterShared {
    dialect: Dialect,
    mode: EngineMode,
    secret: Secret,
    polls: ClusterPolls,
    review: Review,
    metrics: Arc<Metrics>,
    /// Name of the link whose start the hub has seen; 0: its end.
    current: AtomicU64,
    /// Whether a command found no place.
    has_overflow: AtomicBool,
}

impl Cluster {
    /// Returns a handle, the inputs of the machine, and the task of the link. The caller runs the task; it ends after the
    /// last handle is dropped.
    pub(crate) fn start(
        config: &ClusterConfig,
        world: &ClusterWorld<'_>,
        metrics: Arc<Metrics>,
    ) -> (Self, mpsc::Receiver<SiblingInput>, impl Future<Output = ()> + Send + use<>) {
        let names = Names::new(&config.secret, &config.name, world.base_url, world.routes);
        let shared = Arc::new(ClusterShared {
            dialect: Dialect::new(names, config, world),
            mode: config.mode,
            secret: config.secret.clone(),
            polls: ClusterPolls::default(),
            review: Review::default(),
            metrics,
            current: AtomicU64::new(0),
            has_overflow: AtomicBool::new(false),
        });
        let (commands, inbox) = mpsc::channel(MAX_COMMANDS);
        let (inputs, receiver) = mpsc::channel(MAX_INPUTS);
        let reviewer = Reviewer::new(&shared, &commands, inputs.clone());
        let link = LinkTask { shared: Arc::clone(&shared), config: config.clone(), commands: inbox, inputs };
        let task = async move {
            // Cancel safe: both end together.
            tokio::select! {
                () = link.run() => {}
                () = reviewer.run() => {}
            }
        };
        (Self { shared, commands }, receiver, task)
    }

    /// Records an input before the machine handles it: calls after a `LinkUp` belong to that link.
    pub(crate) fn observe(&self, input: &SiblingInput) {
        match input {
            SiblingInput::LinkUp(ReplicaName(name)) => self.shared.current.store(*name, Ordering::Relaxed),
            SiblingInput::LinkDown => self.shared.current.store(0, Ordering::Relaxed),
            _ => {}
        }
    }

    /// Returns the identity of these replicas, for logs and the dashboard: 8 hexadecimal digits.
    pub(crate) fn id(&self) -> &str {
        self.shared.dialect.names.id()
    }

    /// Returns the name of a poll. It is the same at all replicas.
    pub(crate) fn poll_name(
        &self,
        domain: KeyDomain,
        jobs: &JobSet,
        form: Form,
        goal: Goal,
    ) -> Option<PollName> {
        let names = &self.shared.dialect.names;
        Some(names.poll(names.route(jobs.route())?, domain, jobs, form, goal))
    }

    /// Registers a poll with the bytes of its client's key, which open its states. Answers and messages of unknown polls
    /// are not opened.
    pub(crate) fn register(&self, spec: &ShareSpec, authorization: &[u8]) {
        let names = &self.shared.dialect.names;
        let Some(route) = names.route(spec.jobs.route()) else { return };
        let seal = StateSeal::new(&self.shared.secret, authorization);
        let job_names = spec.jobs.iter().map(|job| names.job(route, spec.domain, job)).collect();
        self.shared.polls.insert(ClusterPoll {
            name: spec.name,
            domain: spec.domain,
            jobs: spec.jobs.clone(),
            job_names,
            route: Arc::clone(route),
            seal,
        });
    }

    /// Forgets a poll. Its calls that were made are executed.
    pub(crate) fn forget(&self, name: PollName) {
        self.shared.polls.remove(name);
    }

    /// Sends a call. Its answer is an input of the machine.
    pub(crate) fn call(&self, id: CallId, call: EngineCall) {
        let name = match &call {
            EngineCall::Claim(request) => Some(request.spec.name),
            EngineCall::Adopt { spec, .. } | EngineCall::Land { spec, .. } => Some(spec.name),
            _ => None,
        };
        let poll = name.and_then(|name| self.shared.polls.get(name));
        self.send(LinkRequest::Call(id, call, poll));
    }

    /// Asks for the number of subscribers of a replica's own channel.
    pub(crate) fn count_subscribers(&self, name: ReplicaName) {
        self.send(LinkRequest::Count(name));
    }

    /// Subscribes to all channels again.
    pub(crate) fn resubscribe(&self) {
        self.send(LinkRequest::Resubscribe);
    }

    /// Runs a script and returns its answer. `None`: the link is down, or ended meanwhile.
    async fn run_script(&self, script: ScriptCall) -> Option<Value> {
        let (reply, answer) = oneshot::channel();
        self.send(LinkRequest::Script(script, reply));
        answer.await.ok()
    }

    /// Returns whether the hub has seen the start of a link and not its end.
    fn is_linked(&self) -> bool {
        self.shared.current.load(Ordering::Relaxed) != 0
    }

    fn send(&self, request: LinkRequest) {
        let of = ReplicaName(self.shared.current.load(Ordering::Relaxed));
        if self.commands.try_send(LinkCommand { of, request }).is_err() {
            self.shared.has_overflow.store(true, Ordering::Relaxed);
        }
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("id", &self.id()).finish_non_exhaustive()
    }
}
