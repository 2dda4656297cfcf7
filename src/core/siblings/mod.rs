//! Siblings: decides which replica makes a poll, where several gateways share polls through an engine such as Redis.
//!
//! [`Siblings`] has the calling protocol, the state table and the bounds.
//!
//! | file | content |
//! | --- | --- |
//! | `types` | inputs, outputs, calls of the engine, messages |
//! | `shared_poll` | the memory: polls and timers; decides nothing |
//! | `claims` | claims, their answers, polls apart |
//! | `adoption` | leases of polls that this replica makes already |
//! | `runs` | polls that this replica makes: guests, landing, drain |
//! | `messages` | messages of siblings, their life and death |
//! | `link` | the link to the engine: near, far or apart |
//! | `members` | the other replicas and their ranks |
//! | `outbox` | calls that are sent again until they are answered |
//! | `inspect` | the view of the caller |

mod adoption;
mod claims;
mod inspect;
mod link;
mod members;
mod messages;
mod outbox;
mod runs;
mod shared_poll;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
mod types;

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use self::claims::LOOKING;
pub use self::inspect::SiblingView;
use self::link::EngineLink;
use self::members::Members;
use self::outbox::{Letter, Outbox};
use self::shared_poll::{SharePhase, SharedPoll, SharedPolls};
pub use self::types::{
    CallId, ClaimRequest, EngineAnswer, EngineCall, EngineTime, KeyEpoch, LeaseToken, LinkState, PollName,
    Removal, ReplicaName, ShareSpec, SharedOutcome, SharedState, SiblingConfig, SiblingInput, SiblingMessage,
    SiblingOutput, Suspicion,
};
use crate::core::Map;
use crate::core::coalescer::PollId;
use crate::core::job::KeyDomain;

/// A state machine between the coalescer, which opens polls, and the scheduler, which attempts them.
///
/// It does no IO, reads no clock, spawns nothing and never fails. One task owns the machine and is called the caller
/// below.
///
/// ```text
///  coalescer ── Open, Abort ──▶ ┌──────────┐ ── Start, Cancel, TryNow ──▶ scheduler
///            ◀─ Progress, ───── │ Siblings │ ◀── Progress, Ended ────────
///               Landed          └──────────┘
///                 Call, CountSubscribers │ ▲ Answer, Message, LinkUp, LinkDown
///                                        ▼ │
///                                       engine
/// ```
///
/// A lease is an economy, not a lock. Two replicas that make the same poll at once do no harm: each coalescer opens polls
/// for its own waits only, so P4 holds in every failure. Whenever the engine or a sibling is in doubt, this replica makes
/// the poll itself.
///
/// # Calling protocol
///
/// 1. [`handle`](Self::handle) each event as it happens, with the current time.
/// 2. Call [`handle_timeout`](Self::handle_timeout) when [`poll_timeout`](Self::poll_timeout) is due.
/// 3. After either, call [`poll_output`](Self::poll_output) until it returns `None`, and carry out each output.
///
/// The caller owes:
///
/// * Times that never go back.
/// * [`SiblingInput::Open`] and [`SiblingInput::Abort`] in the order of the coalescer's outputs. Polls have the same
///   [`PollName`] on two replicas only if route, key domain, jobs, endpoint and goal are equal (P11).
/// * For each [`SiblingOutput::Start`] one [`SiblingInput::Ended`], unless [`SiblingOutput::Cancel`] came first, and
///   [`SiblingInput::Progress`] for each attempt. Both name the poll that was started. The coalescer may know it by another
///   number by then, which [`SiblingOutput::Progress`] and [`SiblingOutput::Landed`] have.
/// * The calls of one link in order. After [`SiblingInput::LinkDown`] no answer of that link.
/// * After a [`SiblingOutput::CountSubscribers`] the count, if the engine answers.
///
/// # States of a poll
///
/// | phase | event | next |
/// | --- | --- | --- |
/// | | `Open`, the link is near | `Asking`: `Claim` |
/// | | `Open`, the link is far or apart, or a drain ends within 1 s | `Ours` without a lease |
/// | | `Open`, the engine lost its memory less than 0.1 s ago | `Delayed` until then: siblings adopt their polls |
/// | | `Open`, this replica makes the poll for guests | `Ours`, for both |
/// | | `Open`, the name is in use, or there are too many polls | made alone, without the engine |
/// | `Asking` | `Granted` | `Ours` |
/// | `Asking` | `Granted`, the engine lost its memory less than 0.1 s ago | left, `Delayed` until then |
/// | `Asking`, `Looking` | `Held` | `Away` |
/// | `Asking`, `Looking` | `Known` | landed |
/// | `Asking` | `Flushed` | `Delayed` for 0.1 s. All replicas adopt their polls, as after a beat with this answer |
/// | `Asking` | failed, or no answer within the patience | `Ours` without a lease. A late `Granted` gives it one |
/// | `Asking`, `Looking` | `Held`, and this replica does not hear itself | `Looking`, for 0.3 s or until it does |
/// | `Away` | `Landed` | landed |
/// | `Away` | `Landed`, but the bytes are too many to be shared | `Ours` without a lease |
/// | `Away` | `Left` | `Asking`: the engine decides between the guests |
/// | `Away` | `Failed`; the holder is dead; the key is revoked | `Delayed` for rank × 0.1 s, at most 0.2 s |
/// | `Away` | the link was down or deaf; the engine lost its memory; the holder has a new name | `Looking` for 0.3 s |
/// | `Away` | its lease has ended | `Asking` |
/// | `Delayed`, `Looking` | the time is over | `Asking` |
/// | `Asking`, `Away`, `Delayed`, `Looking` | the engine is silent for 1 s, the link is down for 0.5 s, it is far for 1 s, or this replica does not hear itself for 1.6 s | `Ours` without a lease, within 0.5 s |
/// | `Asking`, `Away`, `Delayed`, `Looking` | `Abort` | forgotten |
/// | `Ours` | an attempt failed, and the next one is later; a pause | `Ours` without a lease, until the upstream holds it again: guests claim it |
/// | `Ours`, backing off or paused | a sibling's poll landed | landed, `Cancel` |
/// | `Ours`, without the lease since then, an attempt is under way | a sibling's poll landed at the goal | landed, `Cancel` |
/// | `Ours` | `Ended` | landed; siblings hear of it, unless the key was rejected since the attempt began |
/// | `Ours` | `Abort`, guests are left | `Ours`, for the guests |
/// | `Ours` | `Abort`, no guests, or no attempt so far | forgotten, `Cancel`; guests claim it |
/// | `Ours`, for guests | no guest for `linger`; the drain is over; a sibling has claimed it | forgotten, `Cancel` |
///
/// The patience of a claim counts from the question or the engine's last word, whichever is later, and ends 0.25 s after
/// the question. A holder is dead once it was not heard for [`SiblingConfig::takeover`], or once the engine twice counted
/// no subscriber for it.
///
/// A holder counts the replicas that attached to its lease. One that has a new name, or that an engine without memory does
/// not know, attaches again by its look within 0.5 s. A holder that was deaf asks the engine for its guests.
///
/// A holder that cannot reach the upstream, or that has to pause, gives up the lease. Then each replica with waits makes one
/// attempt, one after the other, until one of them succeeds. If all fail, each backs off by itself as it would alone. It asks
/// for the lease again once the upstream has held an attempt for a second.
///
/// A replica that makes a poll without its lease asks for it when its holder has ended the poll or is dead, and one
/// takeover after a refusal, then two, four and eight: the engine may have known a dead holder for a living one (P3).
///
/// A call that the engine failed is not made again at once. Landings and the other calls of the outbox follow after 0.5 s,
/// then after twice as long each time, to 8 s. A beat that succeeds after one that failed makes them due, and asks for all
/// leases.
///
/// A poll of a sibling proves states (P7) while it is held, its holder was heard within 1.2 s, and this replica hears
/// itself.
///
/// # Bounds
///
/// | what | bound | beyond |
/// | --- | --- | --- |
/// | polls | [`MAX_SHARED_POLLS`] | made alone |
/// | siblings, guests of a poll | 64 | their polls are not joined; they claim when the poll is left |
/// | outbox | 1,024 calls, 16 MiB, 120 s | the oldest goes; guests look when the link is back, or at the end of the lease; one removal of all states replaces lost removals |
/// | early results of a poll | 4 | the oldest goes |
/// | dead epochs | 1,024 | the oldest goes |
/// | rejected keys | 1,024 | the oldest goes |
///
/// Cost of a fault where k replicas have waits on a poll. `simulation/schedules` measures it:
///
/// | fault | extra calls of the upstream | late by at most |
/// | --- | --- | --- |
/// | the holder is killed, stopped or cut off | 1 | 2.2 s |
/// | the holder drains | 1 | 0 |
/// | the holder cannot reach the upstream, or pauses | 1 for each replica that fails, and 1 | the attempts that fail |
/// | the engine is down, or silent for more than 1 s | k - 1 | 1.5 s |
/// | the engine is silent for less, or restarted at once | 0 | as long, and 0.3 s |
/// | the engine is restarted without memory, and the poll ends meanwhile | 1 | 0.5 s |
/// | the engine forgets everything | 0 | 0.1 s, new polls only |
/// | the engine is far, by more than the patience | k - 1 | the distance, and 0.25 s |
/// | a key is rejected | 1 | 0.3 s |
/// | messages are missed | 0 | 2.2 s |
/// | messages do not come at one replica | 1 | 2.2 s |
/// | the engine fails calls | k - 1 | 2.2 s |
///
/// Polls that several replicas began in an outage are made to their end. When one of them ends, the next one with waits
/// there joins another replica's.
#[derive(Debug)]
pub struct Siblings {
    config: SiblingConfig,
    link: EngineLink,
    members: Members,
    polls: SharedPolls,
    /// Polls that are made without the engine.
    solo: BTreeSet<PollId>,
    outbox: Outbox,
    /// Calls under way that concern one poll. Each poll has few.
    calls: Map<CallId, (PollName, LeaseToken)>,
    dead_epochs: BTreeSet<(KeyDomain, KeyEpoch)>,
    dead_order: VecDeque<(KeyDomain, KeyEpoch)>,
    /// Keys that the upstream rejected here, and when.
    refusals: VecDeque<(KeyDomain, Instant)>,
    /// Whether polls of siblings are about to be made here.
    is_abandoning: bool,
    next_count: Option<Instant>,
    /// When this replica last heard that the engine lost its memory.
    flushed_at: Option<Instant>,
    draining: Option<Instant>,
    outputs: VecDeque<SiblingOutput>,
    next_number: u64,
}

/// Most polls that are shared.
pub const MAX_SHARED_POLLS: usize = 16_384;
/// Most rejected keys that are remembered.
const MAX_REFUSALS: usize = 1024;
/// Greatest difference between the ages of one rejection by two clocks, after an hour.
const REFUSAL_MARGIN: Duration = Duration::from_secs(1);
/// Most timers of polls handled in one call.
const MAX_TIMERS_PER_CALL: usize = 256;

impl Siblings {
    /// Creates a machine without polls and without a link.
    pub fn new(config: SiblingConfig) -> Self {
        Self {
            config,
            link: EngineLink::default(),
            members: Members::default(),
            polls: SharedPolls::default(),
            solo: BTreeSet::new(),
            outbox: Outbox::default(),
            calls: Map::default(),
            dead_epochs: BTreeSet::new(),
            dead_order: VecDeque::new(),
            refusals: VecDeque::new(),
            is_abandoning: false,
            next_count: None,
            flushed_at: None,
            draining: None,
            outputs: VecDeque::new(),
            next_number: 0,
        }
    }

    /// Uses this time as [`SiblingConfig::refusal_ttl`] from now on.
    pub fn set_refusal_ttl(&mut self, ttl: Duration) {
        self.config.refusal_ttl = ttl;
    }

    /// Takes in an event that happened at `now`. An event of an unknown poll changes nothing.
    pub fn handle(&mut self, input: SiblingInput, now: Instant) {
        match input {
            SiblingInput::Open(id, spec) => self.open(id, spec, now),
            SiblingInput::Abort(id) => self.abort(id, now),
            SiblingInput::Progress(run, progress) => self.progress(run, progress, now),
            SiblingInput::Ended(run, outcome) => self.ended(run, outcome, now),
            SiblingInput::LinkUp(me) => self.link_up(me, now),
            SiblingInput::LinkDown => self.link_down(now),
            SiblingInput::Answer(call, answer) => {
                self.link.word(now);
                self.answered(call, answer, now);
                self.update_abandoning(now);
            }
            SiblingInput::Failed(call) => self.failed(call, now),
            SiblingInput::Message(message) => {
                self.link.word(now);
                self.update_abandoning(now);
                self.message(message, now);
            }
            SiblingInput::Subscribers(name, count) => {
                self.link.word(now);
                self.update_abandoning(now);
                self.counted(name, count, now);
            }
            SiblingInput::KeyRefused(domain) => self.key_refused(domain, now),
            SiblingInput::Publish(EngineCall::Pause(domain, pause)) => {
                self.send(Letter::Pause(domain, now + pause), now)
            }
            SiblingInput::KeyAccepted(domain, began) => {
                self.refusals.retain(|(refused, at)| *refused != domain || *at >= began);
            }
            SiblingInput::Publish(call) => self.send(Letter::Other(call), now),
            SiblingInput::Drain(until) => self.drain(until, now),
        }
    }

    /// Handles the timers due at `now`: of the link, of siblings, and of up to 256 polls.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.link.apart_at().is_some_and(|at| at <= now) {
            self.link.is_apart = true;
        }
        self.update_abandoning(now);
        if self.link.deaf_at().is_some_and(|at| at <= now) {
            self.stopped_hearing(now);
        }
        if self.link.is_up() && self.link.next_beat.is_some_and(|at| at <= now) {
            self.beat(now);
        }
        self.check_members(now);
        if self.next_count.is_some_and(|at| at <= now) {
            self.count_holders(now);
        }
        if self.draining.take_if(|until| *until <= now).is_some() {
            self.drain_is_over(now);
        }
        if self.outbox.next_due().is_some_and(|at| at <= now) {
            self.outbox.prune(now);
            self.send_failed_again(now);
        }
        for _ in 0..MAX_TIMERS_PER_CALL {
            let Some(name) = self.polls.due(now) else { break };
            self.poll_is_due(name, now);
        }
    }

    /// Returns when to call [`handle_timeout`](Self::handle_timeout) next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let abandons_at = self.link.abandons_at().filter(|_| !self.is_abandoning);
        let next_beat = self.link.next_beat.filter(|_| self.link.is_up());
        let due = [
            self.link.apart_at(),
            abandons_at,
            self.link.deaf_at(),
            next_beat,
            self.next_member_due(),
            self.next_count,
            self.draining,
            self.outbox.next_due(),
            self.polls.next_due(),
        ];
        due.into_iter().flatten().min()
    }

    /// Returns the next command, in order.
    pub fn poll_output(&mut self) -> Option<SiblingOutput> {
        self.outputs.pop_front()
    }

    fn open(&mut self, id: PollId, spec: ShareSpec, now: Instant) {
        let name = spec.name;
        match self.polls.get(name) {
            Some(poll) if poll.local.is_none() => return self.rejoin(name, id),
            None if self.polls.len() < MAX_SHARED_POLLS => {}
            Some(_) | None => {
                self.solo.insert(id);
                return self.outputs.push_back(SiblingOutput::Start(id));
            }
        }
        let token = LeaseToken { instance: self.config.instance, number: self.next_number };
        self.next_number += 1;
        self.polls.insert(SharedPoll::new(spec, id, token, now));
        match self.flush_ends(now) {
            _ if !self.asks_first(now) => self.start_alone(name, now),
            Some(until) => self.delay(name, until, None, now),
            None => self.claim(name, None, now),
        }
    }

    /// Sends everything that siblings may have missed, then the first beat under the new name.
    fn link_up(&mut self, me: ReplicaName, now: Instant) {
        self.link.up(me, now);
        self.calls.clear();
        self.update_abandoning(now);
        self.outbox.prune(now);
        self.outbox.clear_retries();
        self.refusals.retain(|(_, at)| *at + self.config.refusal_ttl > now);
        let engine_now = self.link.engine_now(now);
        let letters = self.outbox.iter().map(|(call, letter)| (call, letter.call(true, engine_now, now)));
        self.outputs.extend(letters.map(|(call, letter)| SiblingOutput::Call(call, letter)));
        self.replace_lost_removals(now);
        let refused: Vec<(KeyDomain, Instant)> = self.refusals.iter().copied().collect();
        for (domain, at) in refused {
            let age = now.saturating_duration_since(at);
            let repeats_within = Some(REFUSAL_MARGIN);
            self.call(EngineCall::Refuse { domain, age, sent_at: engine_now, repeats_within });
        }
        for name in self.polls.names(|poll| poll.own().is_some()) {
            self.polls.change(name, |poll| poll.claim = None);
        }
        self.adopt_all(now);
        self.beat(now);
        for name in self.polls.names(|poll| poll.own().is_none()) {
            let is_asking = self.polls.change(name, |poll| {
                poll.claim = None;
                match poll.phase {
                    SharePhase::Away { .. } | SharePhase::Looking { .. } => {
                        poll.phase = SharePhase::Looking { until: Some(now + LOOKING) };
                        false
                    }
                    SharePhase::Asking { .. } => true,
                    SharePhase::Delayed { .. } | SharePhase::Ours(_) => false,
                }
            });
            if is_asking == Some(true) {
                self.claim(name, None, now);
            }
        }
    }

    fn link_down(&mut self, now: Instant) {
        self.link.down(now);
        self.calls.clear();
        self.outbox.clear_retries();
        for name in self.polls.names(|poll| poll.own().is_none()) {
            self.show(name, None);
        }
        for name in self.polls.names(|poll| poll.claim.is_some()) {
            self.polls.change(name, |poll| poll.claim = None);
        }
    }

    fn stopped_hearing(&mut self, now: Instant) {
        if self.link.stopped_hearing(now) {
            self.outputs.push_back(SiblingOutput::Resubscribe);
            self.beat(now); // it shows at once whether that helped
        }
        for name in self.polls.names(|poll| poll.holder().is_some()) {
            self.show(name, None);
        }
    }

    fn send_failed_again(&mut self, now: Instant) {
        let engine_now = self.link.engine_now(now);
        while let Some((call, letter)) = self.outbox.take_retry(now) {
            self.outputs.push_back(SiblingOutput::Call(call, letter.call(true, engine_now, now)));
        }
    }

    /// Removes all states if the outbox forgot a removal: which states that one concerned is not known any more.
    fn replace_lost_removals(&mut self, now: Instant) {
        if self.outbox.take_lost_removal() {
            self.send(Letter::Other(EngineCall::Remove(Removal::All)), now);
            self.outbox.take_lost_removal(); // one that had no room beside it
        }
    }

    fn key_refused(&mut self, domain: KeyDomain, now: Instant) {
        self.refusals.retain(|(refused, _)| *refused != domain);
        self.refusals.push_back((domain, now));
        if self.refusals.len() > MAX_REFUSALS {
            self.refusals.pop_front();
        }
        self.send(Letter::Refuse(domain, now), now);
    }

    fn call(&mut self, call: EngineCall) -> CallId {
        let id = CallId(self.next_number);
        self.next_number += 1;
        self.outputs.push_back(SiblingOutput::Call(id, call));
        id
    }

    /// Sends a call, now, after each loss of the link, and some time after each failure, until the engine has answered it.
    fn send(&mut self, letter: Letter, now: Instant) {
        let id = CallId(self.next_number);
        self.next_number += 1;
        if self.link.is_up() {
            let call = letter.call(false, self.link.engine_now(now), now);
            self.outputs.push_back(SiblingOutput::Call(id, call));
        }
        self.outbox.push(id, letter, now);
    }
}
