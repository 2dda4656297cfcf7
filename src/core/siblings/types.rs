//! Inputs, outputs and values of [`Siblings`](super::Siblings): plain values without behaviour.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::core::coalescer::{PollId, PollOutcome, PollProgress};
use crate::core::job::{JobId, JobSet, KeyDomain, ResponseHead, UpstreamResponse};
use crate::core::job_body::ListShape;
use crate::core::route::{Goal, Ladder, Rung};

/// Settings of the machine.
#[derive(Clone, Debug)]
pub struct SiblingConfig {
    /// Random number of this process. Its lease tokens contain it.
    pub instance: u64,
    /// Time without a word of the engine after which a claim is given up.
    pub patience: Duration,
    /// Time after which a silent replica counts as dead. Beats follow each other four times as fast, and each 0.5 s at least.
    pub takeover: Duration,
    /// Time that a poll without waits and guests stays open.
    pub linger: Duration,
    /// Time for which the engine is reminded of a rejected key each time that the link comes up.
    pub refusal_ttl: Duration,
    /// Ladders of the routes, in the order of their indexes.
    pub ladders: Vec<Ladder>,
}

/// Name of a replica. A replica takes a new random one each time that its link comes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaName(pub u64);

/// Name of a poll in the engine and in messages: a keyed hash of its route, key domain, jobs, endpoint and goal. The same
/// poll has the same name on all replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PollName(pub u128);

/// Mark of one lease. No other lease has it, and it outlives a new name of its replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseToken {
    /// [`SiblingConfig::instance`] of the replica.
    pub instance: u64,
    /// Number of the poll at that replica.
    pub number: u64,
}

/// Random mark of the time between two rejections of a key. States of a dead epoch are never used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyEpoch(pub u64);

/// Number of a call of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// Time by the clock of the engine. Only distances between two of them mean something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EngineTime(pub Duration);

/// A poll as the replicas share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareSpec {
    /// Name of the poll.
    pub name: PollName,
    /// Key domain.
    pub domain: KeyDomain,
    /// Jobs asked for.
    pub jobs: JobSet,
    /// Rung at which the upstream answers.
    pub goal: Goal,
    /// Time for which the upstream holds the poll.
    pub hold: Duration,
    /// Whether stored states may answer the poll. False if the client asked for the upstream's own answer.
    pub takes_known: bool,
    /// Greatest age of a stored state that answers it. Terminal states have any age.
    pub max_age: Duration,
    /// Whether an answer of a sibling needs a [`SharedState::shape`]: the waits get a list, and this replica has seen none
    /// of the key (P8).
    pub needs_shape: bool,
}

/// State of a job on its way between replicas: ages instead of moments, since clocks are not shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedState {
    /// Id of the job.
    pub id: JobId,
    /// Rung of the job.
    pub rung: Option<Rung>,
    /// Bytes of the job. `None` if they are too many to be shared.
    pub body: Option<Bytes>,
    /// Head of the response, without per-response headers.
    pub head: Arc<ResponseHead>,
    /// Time since the state was certain.
    pub age: Duration,
    /// Whether the state never changes again.
    pub is_final: bool,
    /// Outer shape of the lists of the key and route, if the sender has seen one. The caller adds it to
    /// [`EngineCall::Land`].
    pub shape: Option<Arc<ListShape>>,
}

/// Result of a poll on its way between replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SharedOutcome {
    /// State of each job that the poll asked for. Empty if the response is too long to be shared.
    Jobs(Vec<SharedState>),
    /// A success that cannot be split by job.
    Unsplit(Arc<UpstreamResponse>),
    /// A redirect or a 4xx.
    Refused(Arc<UpstreamResponse>),
}

/// Reason to think that the holder of a lease is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspicion {
    /// The holder.
    pub holder: ReplicaName,
    /// Whether the engine counted no subscriber for it. Otherwise it was not heard, and the engine checks its beats.
    pub is_proven: bool,
}

/// States that are not used any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    /// All states.
    All,
    /// The states of the jobs with the id of this one, of all routes and keys.
    Id(JobId),
    /// The states of a job and its variants that an action changed.
    Changed(KeyDomain, JobId),
    /// All states of a key, or of all keys: actions changed too many jobs to name them.
    AllChanged(Option<KeyDomain>),
}

/// Argument of [`EngineCall::Claim`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimRequest {
    /// The poll.
    pub spec: Arc<ShareSpec>,
    /// Token of the lease if it is granted.
    pub token: LeaseToken,
    /// Ignores the lease of this holder.
    pub suspicion: Option<Suspicion>,
    /// Lease of a sibling that this claim follows. Its holder hears that this replica waits for it no more: of the grant, of
    /// stored states, and of another lease.
    pub follows: Option<LeaseToken>,
    /// Whether the engine only looks, and grants nothing.
    pub is_look: bool,
}

/// An event for the machine.
#[derive(Debug)]
pub enum SiblingInput {
    /// The coalescer opened a poll.
    Open(PollId, ShareSpec),
    /// The coalescer aborted a poll.
    Abort(PollId),
    /// An attempt of a started poll moved on.
    Progress(PollId, PollProgress),
    /// A started poll ended.
    Ended(PollId, PollOutcome),
    /// The link to the engine is up: scripts are loaded, and the subscriptions are sent. This replica has a new name.
    LinkUp(ReplicaName),
    /// The link is down. No answer of an earlier call follows.
    LinkDown,
    /// The engine answered a call.
    Answer(CallId, EngineAnswer),
    /// The engine failed a call, or its answer cannot be read. The link goes on.
    Failed(CallId),
    /// A message came. Messages and answers of one link may be out of order.
    Message(SiblingMessage),
    /// Number of subscribers that the engine counts for a replica.
    Subscribers(ReplicaName, usize),
    /// The upstream rejected a key here.
    KeyRefused(KeyDomain),
    /// The upstream accepted a key in an attempt that began then.
    KeyAccepted(KeyDomain, Instant),
    /// Sends [`EngineCall::Remove`] or [`EngineCall::Pause`] until the engine has answered.
    Publish(EngineCall),
    /// The gateway stops at this moment at the latest. The coalescer ends its waits on its own.
    Drain(Instant),
}

/// A command for the caller.
#[derive(Debug)]
pub enum SiblingOutput {
    /// This replica makes the poll: the caller requests attempts.
    Start(PollId),
    /// Cancels a started poll.
    Cancel(PollId),
    /// Makes the next attempt of a started poll at once if it is backing off or paused (P12).
    TryNow(PollId),
    /// Progress of a poll for the coalescer.
    Progress(PollId, PollProgress),
    /// Outer shape of the lists of the poll's key and route. Comes before the result of a sibling's poll.
    Shape(PollId, Arc<ListShape>),
    /// Result of a poll for the coalescer.
    Landed(PollId, PollOutcome),
    /// Calls the engine.
    Call(CallId, EngineCall),
    /// Asks the engine for the number of subscribers of a replica's own channel.
    CountSubscribers(ReplicaName),
    /// Subscribes to all channels again: this replica does not hear its own beats.
    Resubscribe,
}

/// A script of the engine. All calls of a link are executed in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineCall {
    /// Asks for the lease of a poll. Answers: `Known`, `Held`, `Vacant`, `Granted`, `Flushed`.
    Claim(ClaimRequest),
    /// Takes the lease of a poll that this replica makes already, if it is vacant. Counts as a beat. Answers: `Adopted`, or
    /// `Flushed` if the engine should know this replica and does not.
    Adopt {
        /// The poll.
        spec: Arc<ShareSpec>,
        /// Token of this replica.
        token: LeaseToken,
        /// Time since the poll was started.
        age: Duration,
        /// Time since its newest attempt began. After a later rejection of the key the lease is not given.
        attempt_age: Duration,
        /// Whether it comes before the first beat of the link: the engine does not know this replica yet.
        is_first: bool,
    },
    /// Stores and publishes the result of a poll, and ends its lease if the token has it.
    Land {
        /// The poll.
        spec: Arc<ShareSpec>,
        /// Token of this replica.
        token: LeaseToken,
        /// Epoch of the grant. The result of a dead one is published as `Left`.
        epoch: Option<KeyEpoch>,
        /// Time since the attempt began, as of `sent_at`. After a later rejection of the key its result is published as
        /// `Left`.
        attempt_age: Duration,
        /// The result, with ages as of `sent_at`.
        outcome: SharedOutcome,
        /// The engine's time when the call was sent, as far as known. The engine adds the delay to the ages.
        sent_at: Option<EngineTime>,
    },
    /// Ends a lease after the last attempt failed, and publishes that.
    Fail(PollName, LeaseToken, &'static str),
    /// Ends a lease and publishes that.
    Leave(PollName, LeaseToken),
    /// Removes this replica from the guests of a poll.
    Detach(PollName),
    /// Publishes for the guests whether the upstream holds the poll, and then the time since that attempt began.
    Note(PollName, LeaseToken, Option<Duration>),
    /// Records and publishes that this replica lives. The first beat of a link has the former name. Answer: `Done`, or
    /// `Flushed` if the engine did not know the name.
    Beat(Option<ReplicaName>),
    /// Begins a new epoch of a key that the upstream rejected, and publishes that.
    Refuse {
        /// The key.
        domain: KeyDomain,
        /// Time since the rejection, as of `sent_at`.
        age: Duration,
        /// The engine's time when the call was sent, as far as known.
        sent_at: Option<EngineTime>,
        /// Greatest time by which an equal rejection is earlier. Set if the engine may have been called for this one
        /// before: it does nothing if it remembers an equal or a later one, or if the key was accepted since.
        repeats_within: Option<Duration>,
    },
    /// Removes stored states, and publishes that.
    Remove(Removal),
    /// Stores and publishes that the upstream pauses a key for this time.
    Pause(KeyDomain, Duration),
    /// Publishes that the engine lost its memory.
    Flushed,
}

/// Answer of the engine to a call.
#[derive(Clone, Debug)]
pub enum EngineAnswer {
    /// The lease is this replica's.
    Granted(KeyEpoch),
    /// A sibling has the lease. This replica is recorded as its guest.
    Held {
        /// The holder.
        by: ReplicaName,
        /// Token of the holder.
        token: LeaseToken,
        /// Time since the sibling started the poll.
        age: Duration,
        /// Epoch of the grant.
        epoch: KeyEpoch,
    },
    /// Stored states answer the poll.
    Known(Vec<SharedState>, KeyEpoch),
    /// The look found neither a lease nor states.
    Vacant,
    /// This replica is not among the members: the engine lost its memory.
    Flushed,
    /// Whether this replica has the lease now, and the guests of the poll.
    Adopted {
        /// Whether the lease is this replica's.
        is_mine: bool,
        /// Epoch of the key.
        epoch: KeyEpoch,
        /// Guests of the lease.
        guests: Vec<ReplicaName>,
    },
    /// Any other call was executed at this time.
    Done(EngineTime),
}

/// A message of a replica to all replicas, itself included.
#[derive(Clone, Debug)]
pub enum SiblingMessage {
    /// A replica lives. The second name is its former one.
    Beat(ReplicaName, Option<ReplicaName>),
    /// A poll landed. Ages are as of the publication.
    Landed(PollName, LeaseToken, KeyEpoch, SharedOutcome),
    /// The last attempt of a poll failed.
    Failed(PollName, LeaseToken),
    /// A replica gave up its lease. A draining one goes on with the poll until a sibling has claimed it.
    Left(PollName, LeaseToken),
    /// A sibling has claimed the poll after this lease, or found another one or stored states.
    Taken(PollName, LeaseToken),
    /// A replica has waits on the poll of this lease.
    Attached(PollName, LeaseToken, ReplicaName),
    /// A replica has no waits on the poll any more.
    Detached(PollName, ReplicaName),
    /// Whether the upstream holds the poll of this lease, and then the time since that attempt began.
    Note(PollName, LeaseToken, Option<Duration>),
    /// The upstream rejected a key; its former epoch is dead.
    Revoked {
        /// The key.
        domain: KeyDomain,
        /// The dead epoch.
        dead: KeyEpoch,
        /// Time since the rejection.
        age: Duration,
        /// The replica at which the upstream rejected it, if known.
        by: Option<ReplicaName>,
    },
    /// States were removed. The machine passes over this message: its caller has the cache.
    Removed {
        /// The states.
        removal: Removal,
        /// [`SiblingConfig::instance`] of the replica that removed them, if known.
        by: Option<u64>,
    },
    /// The upstream pauses a key for this time. The machine passes over this message: its caller has the scheduler.
    Paused(KeyDomain, Duration),
    /// The engine lost its memory.
    Flushed,
}

/// State of the link to the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// The engine answers within the patience, and this replica hears itself.
    Near,
    /// The engine answers later, or its messages do not come. New polls do not wait for it.
    Far,
    /// The link is down or too new to be heard on, or the engine is silent. This replica goes on as if alone.
    Apart,
}
