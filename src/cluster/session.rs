//! One link to the engine: calls go out in order, answers and messages come in.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use redis::{Cmd, PushInfo, PushKind, RedisError, Value};
use tokio::sync::{mpsc, oneshot};

use super::ClusterShared;
use super::answers::{BadAnswer, Heard};
use super::calls::{Distrust, ScriptCall};
use super::connect::{ConnectError, EngineConnection};
use super::gathered::Gathered;
use super::link::{LinkCommand, LinkRequest, send};
use super::names::{SHARDS, ShardIndex};
use super::polls::ClusterPoll;
use super::scripts::EngineScript;
use crate::clock;
use crate::core::Map;
use crate::core::siblings::{
    CallId, ClaimRequest, EngineAnswer, EngineCall, ReplicaName, SiblingInput, SiblingMessage,
};
use crate::telemetry::metrics::ClaimOutcome;

/// Time after which a server with an unanswered call is given up. The machine goes on alone after a second.
const HUNG: Duration = Duration::from_secs(5);
/// Like [`HUNG`], for one node of several: the machine hears the others, and would wait.
const NODE_HUNG: Duration = Duration::from_millis(700);
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// Most calls without an answer. A link with more of them ends.
const MAX_CALLS: usize = 65_536;
/// Time for the last calls after the last handle was dropped.
const LAST_CALLS: Duration = Duration::from_secs(1);
/// Most replicas whose last beat is remembered.
const MAX_HEARD: usize = 1024;

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkEnd {
    #[error("{0}")]
    Connect(ConnectError),
    #[error("the engine closed the connection")]
    Closed,
    #[error("the engine did not answer for 5 seconds")]
    Hung,
    #[error("a node of the cluster did not answer for 0.7 seconds")]
    NodeHung,
    #[error("the cluster moves slots to another node")]
    Moved,
    #[error("the engine rejects the calls of this gateway: {0}")]
    Rejected(RedisError),
    #[error("more calls or messages came than the link could take")]
    Overflow,
    #[error("stopped")]
    Stopped,
}

/// A call without an answer.
struct PendingCall {
    id: CallId,
    sent_at: Instant,
    poll: Option<Arc<ClusterPoll>>,
    /// Set if the call is a claim.
    claim: Option<(ClaimRequest, Distrust)>,
}

enum SessionEvent {
    Script(PendingCall, Result<Value, RedisError>),
    Count(ReplicaName, Result<Value, RedisError>),
    Subscribed(Result<Value, RedisError>),
    Reply(oneshot::Sender<Value>, Result<Value, RedisError>),
}

/// Index of a node, and its answer.
type PendingEvent = Pin<Box<dyn Future<Output = (usize, SessionEvent)> + Send>>;

/// Answers of one node.
struct NodeAnswers {
    /// Calls without an answer.
    pending: usize,
    /// Time of the last answer, or of the first call after it.
    last: Instant,
}

pub(super) struct LinkSession<'l> {
    shared: &'l ClusterShared,
    connection: EngineConnection,
    me: ReplicaName,
    scripts: Vec<String>,
    inputs: &'l mpsc::Sender<SiblingInput>,
    pending: FuturesUnordered<PendingEvent>,
    gathered: Map<CallId, Gathered>,
    /// Shards in which a call of this link has made the replica a member.
    joined: u16,
    next_beat: u64,
    /// Number of the own beat that was heard last, and the shards on which it was.
    heard_own: (u64, u32),
    /// Number of the last beat of each sibling.
    heard: Map<ReplicaName, u64>,
    /// In the order of the nodes.
    answers: Vec<NodeAnswers>,
    checked_at: Instant,
    has_logged_error: bool,
}

impl<'l> LinkSession<'l> {
    pub(super) fn new(
        shared: &'l ClusterShared,
        connection: EngineConnection,
        me: ReplicaName,
        scripts: Vec<String>,
        inputs: &'l mpsc::Sender<SiblingInput>,
    ) -> Self {
        let now = clock::now();
        let answers = connection.nodes.all().iter().map(|_| NodeAnswers { pending: 0, last: now }).collect();
        Self {
            shared,
            connection,
            me,
            scripts,
            inputs,
            pending: FuturesUnordered::new(),
            gathered: Map::default(),
            joined: 0,
            next_beat: 1,
            heard_own: (0, 0),
            heard: Map::default(),
            answers,
            checked_at: now,
            has_logged_error: false,
        }
    }

    /// Serves the connection until it ends, or until all handles are dropped and the last calls are answered.
    pub(super) async fn serve(mut self, commands: &mut mpsc::Receiver<LinkCommand>) -> LinkEnd {
        let mut check = tokio::time::interval(CHECK_INTERVAL);
        check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.shared.has_overflow.store(false, Ordering::Relaxed);
        loop {
            // Cancel safe: all of these are, and each event is handled before the next round.
            let round = tokio::select! {
                () = &mut self.connection.driver => Err(LinkEnd::Closed),
                Some(push) = self.connection.pushes.recv() => self.heard(push).await,
                Some(event) = self.pending.next() => self.answered(event).await,
                command = commands.recv() => match command {
                    Some(command) if command.of == self.me => self.execute(command.request).await,
                    Some(_) => Ok(()),
                    None => return self.finish().await,
                },
                _ = check.tick() => self.check(),
            };
            if let Err(end) = round {
                return end;
            }
        }
    }

    async fn finish(mut self) -> LinkEnd {
        let last_calls = async {
            loop {
                // Cancel safe: a lost answer changes nothing now.
                tokio::select! {
                    () = &mut self.connection.driver => return,
                    event = self.pending.next() => match event {
                        // Starts the last script of a removal. No machine takes the inputs any more.
                        Some(event) => _ = self.answered(event).await,
                        None => return,
                    },
                }
            }
        };
        let _ = tokio::time::timeout(LAST_CALLS, last_calls).await;
        LinkEnd::Stopped
    }

    fn check(&mut self) -> Result<(), LinkEnd> {
        let has_lost = self.connection.has_lost.load(Ordering::Relaxed);
        let is_full = has_lost || self.pending.len() > MAX_CALLS;
        if is_full || self.shared.has_overflow.load(Ordering::Relaxed) {
            return Err(LinkEnd::Overflow);
        }
        let now = clock::now();
        // After a pause of this task the answers of the servers may be unread.
        let was_paused = now > std::mem::replace(&mut self.checked_at, now) + 2 * CHECK_INTERVAL;
        let (limit, end) = match self.answers.len() {
            1 => (HUNG, LinkEnd::Hung),
            _ => (NODE_HUNG, LinkEnd::NodeHung),
        };
        let is_hung = |node: &NodeAnswers| node.pending > 0 && node.last + limit <= now;
        if !was_paused && self.answers.iter().any(is_hung) { Err(end) } else { Ok(()) }
    }

    async fn execute(&mut self, request: LinkRequest) -> Result<(), LinkEnd> {
        match request {
            LinkRequest::Call(id, call, poll) => self.call(id, call, poll).await?,
            LinkRequest::Script(script, reply) => {
                if let Some((shard, command)) = self.command(&script) {
                    self.start(shard, command, |answer| SessionEvent::Reply(reply, answer));
                }
            }
            LinkRequest::Count(name) => {
                let channel = self.shared.dialect.names.own_channel(name);
                let count = redis::cmd("PUBSUB").arg("SHARDNUMSUB").arg(channel).to_owned();
                self.start(ShardIndex::of_replica(name), count, move |answer| {
                    SessionEvent::Count(name, answer)
                });
            }
            LinkRequest::Resubscribe => {
                for (shard, subscribe) in self.shared.subscriptions(self.me) {
                    self.start(shard, subscribe, SessionEvent::Subscribed);
                }
            }
        }
        Ok(())
    }

    async fn call(
        &mut self,
        id: CallId,
        call: EngineCall,
        poll: Option<Arc<ClusterPoll>>,
    ) -> Result<(), LinkEnd> {
        if matches!(call, EngineCall::Beat(_)) {
            self.next_beat += 1;
        }
        let mut calls = self.shared.dialect.script_calls(self.me, &call, poll.as_deref(), self.next_beat);
        let mut last = self.shared.dialect.last_script(&call);
        if calls.is_empty() {
            calls.extend(last.take());
        }
        if let Some(left) = u8::try_from(calls.len()).ok().filter(|left| *left > 1 || last.is_some()) {
            self.gathered.insert(id, Gathered::new(left, last));
        }
        let claim = match call {
            EngineCall::Claim(request) => Some((request, Distrust::default())),
            _ => None,
        };
        if calls.is_empty() {
            return self.settle(id, None).await;
        }
        for script in calls {
            let pending = PendingCall { id, sent_at: clock::now(), poll: poll.clone(), claim: claim.clone() };
            self.run_script(script, pending).await?;
        }
        Ok(())
    }

    async fn run_script(&mut self, call: ScriptCall, pending: PendingCall) -> Result<(), LinkEnd> {
        let id = pending.id;
        if self.start_script(&call, pending) { Ok(()) } else { self.settle(id, None).await }
    }

    /// Returns whether the script could be started.
    fn start_script(&mut self, call: &ScriptCall, pending: PendingCall) -> bool {
        let Some((shard, mut command)) = self.command(call) else { return false };
        if let EngineScript::Beat = call.script {
            command.arg(u8::from(self.joined & shard.bit() != 0));
        }
        if let EngineScript::Beat | EngineScript::Adopt = call.script {
            self.joined |= shard.bit();
        }
        self.start(shard, command, |answer| SessionEvent::Script(pending, answer));
        true
    }

    /// Returns the command that runs a script, and the shard of its keys.
    fn command(&self, call: &ScriptCall) -> Option<(ShardIndex, Cmd)> {
        let shard = self.shared.dialect.names.shard_of(call.keys.first()?.as_bytes())?;
        let mut command = redis::cmd("EVALSHA");
        command.arg(self.scripts.get(call.script as usize)?).arg(call.keys.len());
        call.keys.iter().for_each(|key| _ = command.arg(key));
        call.args.iter().for_each(|arg| _ = command.arg(arg));
        Some((shard, command))
    }

    /// Sends a command to the owner of a shard. Polls its future once, so that the command gets its place in the order, and
    /// keeps it until it is answered.
    fn start(
        &mut self,
        shard: ShardIndex,
        command: Cmd,
        event: impl FnOnce(Result<Value, RedisError>) -> SessionEvent + Send + 'static,
    ) {
        let node = self.connection.nodes.index_of(shard);
        let Some(answers) = self.answers.get_mut(node) else { return };
        if answers.pending == 0 {
            answers.last = clock::now();
        }
        answers.pending += 1;
        let commands = self.connection.nodes.of(shard).clone();
        let answered = async move { (node, event(send(&commands, command).await)) };
        // Without the budget of the task: a future that waits for it would have no place yet.
        let mut answered: PendingEvent = Box::pin(tokio::task::unconstrained(answered));
        let is_sent = answered.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        match is_sent {
            // The set polls it again, with a waker of its own.
            Poll::Pending => self.pending.push(answered),
            Poll::Ready(answered) => self.pending.push(Box::pin(std::future::ready(answered))),
        }
    }

    async fn answered(&mut self, (node, event): (usize, SessionEvent)) -> Result<(), LinkEnd> {
        if let Some(answers) = self.answers.get_mut(node) {
            (answers.pending, answers.last) = (answers.pending.saturating_sub(1), clock::now());
        }
        match event {
            SessionEvent::Script(pending, Ok(value)) => self.script_answered(pending, value).await,
            SessionEvent::Count(name, Ok(Value::Array(items))) => match items.get(1) {
                Some(Value::Int(count)) => {
                    let count = usize::try_from(*count).unwrap_or_default();
                    self.pass_on(SiblingInput::Subscribers(name, count)).await
                }
                _ => Ok(()),
            },
            SessionEvent::Count(_, Ok(_)) | SessionEvent::Subscribed(Ok(_)) => Ok(()),
            SessionEvent::Reply(reply, Ok(value)) => {
                let _ = reply.send(value); // fails if the asker has left
                Ok(())
            }
            SessionEvent::Script(pending, Err(error)) => {
                self.failed(error)?;
                self.settle(pending.id, None).await
            }
            SessionEvent::Reply(_, Err(error))
            | SessionEvent::Count(_, Err(error))
            | SessionEvent::Subscribed(Err(error)) => self.failed(error),
        }
    }

    /// Handles an error of the engine. Most concern the whole link: a lost script, a primary that became a replica. A full
    /// memory, or a key that another program has written, concerns the call alone.
    fn failed(&mut self, error: RedisError) -> Result<(), LinkEnd> {
        const OF_ONE_CALL: [&str; 3] = ["OOM", "BUSY", "WRONGTYPE"];
        const OF_A_MOVED_SLOT: [&str; 3] = ["MOVED", "ASK", "TRYAGAIN"];
        if error.is_io_error() || error.is_connection_dropped() {
            return Err(LinkEnd::Closed);
        }
        if error.code().is_some_and(|code| OF_A_MOVED_SLOT.contains(&code)) {
            return Err(LinkEnd::Moved);
        }
        if !error.code().is_some_and(|code| OF_ONE_CALL.contains(&code)) {
            return Err(LinkEnd::Rejected(error));
        }
        if !std::mem::replace(&mut self.has_logged_error, true) {
            tracing::warn!(%error, "the engine fails calls");
        }
        Ok(())
    }

    async fn script_answered(&mut self, pending: PendingCall, value: Value) -> Result<(), LinkEnd> {
        if let Some(pause) = pending.claim.as_ref().and_then(|_| self.shared.dialect.pause_of_grant(&value)) {
            self.pass_on(SiblingInput::Message(pause)).await?;
        }
        let answer = match self.shared.dialect.answer(value, pending.poll.as_deref()) {
            Ok(answer) => answer,
            Err(BadAnswer::Malformed) => return self.settle(pending.id, None).await,
            Err(BadAnswer::Tampered) => {
                self.shared.metrics.cluster.tampered();
                return self.claim_again(pending).await;
            }
        };
        if let Some(outcome) = pending.claim.as_ref().and_then(|_| claim_outcome(&answer)) {
            self.shared
                .metrics
                .cluster
                .claim(outcome, clock::now().saturating_duration_since(pending.sent_at));
        }
        self.settle(pending.id, Some(answer)).await
    }

    /// Passes on the answer to a call, or its failure. A call of all shards is settled by the last of them.
    async fn settle(&mut self, id: CallId, answer: Option<EngineAnswer>) -> Result<(), LinkEnd> {
        let answer = match self.gathered.get_mut(&id) {
            Some(gathered) => {
                if !gathered.take_in(answer) {
                    return Ok(());
                }
                let last = gathered.next_script();
                let has_last = last.is_some();
                let pending = PendingCall { id, sent_at: clock::now(), poll: None, claim: None };
                if last.is_some_and(|last| self.start_script(&last, pending)) {
                    return Ok(());
                }
                self.gathered.remove(&id).filter(|_| !has_last).and_then(Gathered::into_answer)
            }
            None => answer,
        };
        let input = match answer {
            Some(answer) => SiblingInput::Answer(id, answer),
            None => SiblingInput::Failed(id),
        };
        self.pass_on(input).await
    }

    /// Claims a poll again, without the stored states that could not be opened. Fails a claim whose lease cannot be opened
    /// either.
    async fn claim_again(&mut self, pending: PendingCall) -> Result<(), LinkEnd> {
        let PendingCall {
            id,
            sent_at,
            poll: Some(poll),
            claim: Some((request, Distrust { of_states: false })),
        } = pending
        else {
            return self.settle(pending.id, None).await;
        };
        let distrust = Distrust { of_states: true };
        let script = self.shared.dialect.claim(self.me, &request, &poll, distrust);
        let pending = PendingCall { id, sent_at, poll: Some(poll), claim: Some((request, distrust)) };
        self.run_script(script, pending).await
    }

    async fn heard(&mut self, push: PushInfo) -> Result<(), LinkEnd> {
        match push.kind {
            PushKind::SMessage => {}
            PushKind::Disconnection => return Err(LinkEnd::Closed),
            // A node drops the channels of a slot that it gave away.
            PushKind::SUnsubscribe => return Err(LinkEnd::Moved),
            _ => return Ok(()),
        }
        let mut data = push.data.into_iter();
        let (Some(Value::BulkString(channel)), Some(Value::BulkString(message))) = (data.next(), data.next())
        else {
            return Ok(());
        };
        let Some((kind, heard)) = self.shared.dialect.message(message.into(), &self.shared.polls) else {
            return Ok(());
        };
        self.shared.metrics.cluster.message(kind.label());
        let message = match heard {
            Heard::Other(message) => message,
            Heard::Beat(name, former, number) => {
                let is_new = match name == self.me {
                    true => self.heard_itself(&channel, number),
                    false => self.heard_sibling(name, number),
                };
                if !is_new {
                    return Ok(());
                }
                SiblingMessage::Beat(name, former)
            }
        };
        self.pass_on(SiblingInput::Message(message)).await
    }

    /// Records an own beat. Returns whether it has been heard on all shards now.
    fn heard_itself(&mut self, channel: &[u8], number: u64) -> bool {
        if self.heard_own.0 != number {
            self.heard_own = (number, 0);
        }
        let Some(shard) = self.shared.dialect.names.shard_of(channel) else { return false };
        let before = self.heard_own.1;
        self.heard_own.1 |= 1 << shard.number();
        let is_whole = before != self.heard_own.1 && self.heard_own.1 == (1 << SHARDS) - 1;
        if is_whole {
            self.shared.review.heard_itself();
        }
        is_whole
    }

    /// Records a beat of a sibling. Returns whether it was not heard on another shard before.
    fn heard_sibling(&mut self, name: ReplicaName, number: u64) -> bool {
        if self.heard.len() >= MAX_HEARD {
            self.heard.clear();
        }
        self.heard.insert(name, number) != Some(number)
    }

    async fn pass_on(&mut self, input: SiblingInput) -> Result<(), LinkEnd> {
        self.inputs.send(input).await.map_err(|_| LinkEnd::Stopped)
    }
}

fn claim_outcome(answer: &EngineAnswer) -> Option<ClaimOutcome> {
    match answer {
        EngineAnswer::Granted(_) => Some(ClaimOutcome::Granted),
        EngineAnswer::Held { .. } => Some(ClaimOutcome::Held),
        EngineAnswer::Known(..) => Some(ClaimOutcome::Known),
        EngineAnswer::Flushed => Some(ClaimOutcome::Flushed),
        EngineAnswer::Vacant | EngineAnswer::Adopted { .. } | EngineAnswer::Done(_) => None,
    }
}
