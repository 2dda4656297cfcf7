//! Links between replicas and the engine, and all faults.

use std::time::Duration;

use super::engine::EngineModel;
use super::oracle::Lateness;
use super::plan::Fault;
use super::replica::{RETRY, attempt_of};
use super::{SweepEvent, World, domain};
use crate::core::coalescer::Input;
use crate::core::siblings::{
    CallId, EngineCall, EngineTime, ReplicaName, SharedOutcome, SiblingInput, SiblingMessage,
};

#[derive(Clone, Debug)]
pub(super) enum ToEngine {
    Call(CallId, EngineCall),
    Count(ReplicaName),
    Subscribe,
}

/// Bound after the loss of a holder.
const HOLDER: Duration = Duration::from_millis(2_200);
/// Bound after the loss of the engine.
const ENGINE: Duration = Duration::from_millis(1_500);
/// Bound after the rejection of a key: the rank of the sibling, or the time until it asks again.
const REFUSED: Duration = Duration::from_millis(300);
/// Delay of an answer from an engine that lost its memory.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// Longest wait for the answer to a claim.
const PATIENCE: Duration = Duration::from_millis(250);
/// Time until each replica has beaten once more.
const BEAT: Duration = Duration::from_millis(500);
/// Time until a replica knows that it is deaf, and hears itself again.
const DEAF: Duration = Duration::from_millis(2_000);
/// Time within which all links are back after the engine is.
const RELINK: Duration = Duration::from_millis(200);
/// Longest delay of a message that is out of order.
pub(super) const SHUFFLED: Duration = Duration::from_millis(300);

/// Returns the attempts whose states a call publishes.
fn attempts_of(call: &EngineCall) -> Vec<u64> {
    let EngineCall::Land { outcome: SharedOutcome::Jobs(states), .. } = call else { return Vec::new() };
    states.iter().map(|state| attempt_of(&state.head)).collect()
}

impl World {
    /// Returns the arrival of something sent now. One way of one link keeps its order.
    fn arrival(&mut self, n: usize, way: usize) -> Duration {
        let (far_until, far) = self.far;
        let extra = if self.now < far_until { far / 2 } else { Duration::ZERO };
        let at = self.now + extra + self.plan.engine_hop.mul_f64(self.rng.f64());
        let last = &mut self.replicas[n].last[way];
        *last = at.max(*last);
        *last
    }

    pub(super) fn send(&mut self, n: usize, command: ToEngine) {
        if self.replicas[n].link.is_some() {
            let at = self.arrival(n, 0);
            let generation = self.replicas[n].generation;
            self.at(at, SweepEvent::AtEngine(n, generation, command));
        }
    }

    pub(super) fn at_engine(&mut self, n: usize, generation: u64, command: ToEngine) {
        if self.engine_stopped_until > self.now {
            let until = self.engine_stopped_until;
            return self.at(until, SweepEvent::AtEngine(n, generation, command));
        }
        let replica = &self.replicas[n];
        let Some(me) = replica.link.filter(|_| replica.generation == generation) else { return };
        let time = self.now + self.clock_ahead;
        match command {
            ToEngine::Call(call, command)
                if self.now < self.engine_full_until && EngineModel::needs_memory(&command) =>
            {
                self.engine.fail(&command);
                let at = self.arrival(n, 1);
                self.at(at, SweepEvent::AtReplica(n, generation, SiblingInput::Failed(call)));
            }
            ToEngine::Call(call, command) => {
                self.trace(|| format!("engine: {n} {call:?} {command:?}"));
                let attempts = attempts_of(&command);
                if let EngineCall::Refuse { domain, age, sent_at, .. } = &command {
                    // The engine does not know the time on the way before the first answer of a link, and too little of it
                    // after its clock went back. The rejection counts as so much younger.
                    let on_its_way = sent_at.map_or(Duration::ZERO, |EngineTime(at)| time.saturating_sub(at));
                    let counts_from = self.now.saturating_sub(*age + on_its_way);
                    let at = self.revoked_at.entry(domain.0[0]).or_default();
                    *at = counts_from.max(*at);
                }
                let (answer, messages) = self.engine.execute(me, command, time);
                for message in &messages {
                    if let SiblingMessage::Landed(_, _, epoch, _) = message {
                        self.published.extend(attempts.iter().map(|attempt| (*attempt, *epoch)));
                    }
                }
                let at = self.arrival(n, 1);
                self.at(at, SweepEvent::AtReplica(n, generation, SiblingInput::Answer(call, answer)));
                messages.into_iter().for_each(|message| self.publish(&message));
            }
            ToEngine::Count(name) => {
                let has = |r: &super::Replica| r.link == Some(name) && r.is_subscribed;
                let count = self.replicas.iter().filter(|r| has(r)).count();
                let at = self.arrival(n, 1);
                let input = SiblingInput::Subscribers(name, count);
                self.at(at, SweepEvent::AtReplica(n, generation, input));
            }
            ToEngine::Subscribe => self.replicas[n].is_subscribed = self.now >= self.replicas[n].mute_until,
        }
    }

    fn publish(&mut self, message: &SiblingMessage) {
        for n in 0..self.replicas.len() {
            if self.replicas[n].link.is_none() || !self.replicas[n].is_subscribed {
                continue;
            }
            let generation = self.replicas[n].generation;
            let is_shuffled = self.now < self.shuffled_until;
            let times = if is_shuffled && self.rng.u8(..4) == 0 { 2 } else { 1 };
            for _ in 0..times {
                let mut at = self.arrival(n, 2);
                if is_shuffled {
                    at += SHUFFLED.mul_f64(self.rng.f64());
                }
                let input = SiblingInput::Message(message.clone());
                self.at(at, SweepEvent::AtReplica(n, generation, input));
            }
        }
    }

    pub(super) fn at_replica(&mut self, n: usize, generation: u64, input: SiblingInput) -> Option<usize> {
        let replica = &mut self.replicas[n];
        if !replica.is_alive || replica.generation != generation || replica.link.is_none() {
            return None;
        }
        if let SiblingInput::Message(SiblingMessage::Revoked { dead, .. }) = &input {
            self.dead.insert((n, dead.0));
        }
        if self.has_trace && !matches!(input, SiblingInput::Message(SiblingMessage::Beat(..))) {
            println!("{:>12.6} [{n}] <- {input:?}", self.now.as_secs_f64());
        }
        let now = replica.zero + self.now;
        replica.siblings.handle(input, now);
        Some(n)
    }

    pub(super) fn link_up(&mut self, n: usize) -> Option<usize> {
        if !self.replicas[n].is_alive || self.replicas[n].link.is_some() {
            return None;
        }
        if self.engine_down_until > self.now {
            let until = self.engine_down_until;
            self.at(until, SweepEvent::LinkUp(n));
            return None;
        }
        if self.engine_stopped_until.max(self.engine_full_until) > self.now {
            // On the new link the replica has to find out again that the engine does not answer.
            self.disturb(self.now, Duration::ZERO, Lateness::once(ENGINE));
        }
        self.next_name += 1;
        let name = ReplicaName(self.next_name * 0x1234_5677);
        let replica = &mut self.replicas[n];
        replica.generation += 1;
        (replica.link, replica.is_subscribed) = (Some(name), self.now >= replica.mute_until);
        replica.last = [self.now; 3];
        let now = replica.zero + self.now;
        replica.siblings.handle(SiblingInput::LinkUp(name), now);
        self.trace(|| format!("[{n}] link up: {name:?}"));
        Some(n)
    }

    pub(super) fn link_down(&mut self, n: usize, generation: u64) -> Option<usize> {
        let replica = &mut self.replicas[n];
        if !replica.is_alive || replica.generation != generation {
            return None;
        }
        let now = replica.zero + self.now;
        replica.siblings.handle(SiblingInput::LinkDown, now);
        self.trace(|| format!("[{n}] link down"));
        Some(n)
    }

    /// Breaks the link of a replica. It hears of that at once or a little later.
    fn cut(&mut self, n: usize, back: Duration) {
        if self.replicas[n].link.take().is_none() {
            return;
        }
        let generation = self.replicas[n].generation;
        let down = self.now + Duration::from_millis(self.rng.u64(..20));
        self.at(down, SweepEvent::LinkDown(n, generation));
        self.at(back.max(down), SweepEvent::LinkUp(n));
    }

    /// Makes a fault happen, and records the lateness that it excuses.
    pub(super) fn fault(&mut self, fault: Fault) -> Option<usize> {
        self.trace(|| format!("fault: {fault:?}"));
        let now = self.now;
        match fault {
            Fault::Kill(n) => {
                self.disturb(now, Duration::ZERO, Lateness::once(HOLDER));
                self.lose_replica(n);
            }
            Fault::Freeze(n, time) => {
                // An attempt that was cut off before fails afterwards.
                let retry = if self.replicas[n].cut_off_until > now { RETRY } else { Duration::ZERO };
                self.disturb(now, time + retry, Lateness { frozen: Some(n), ..Lateness::once(HOLDER) });
                let frozen = &mut self.replicas[n].frozen_until;
                *frozen = (*frozen).max(now + time);
            }
            Fault::Drain(n, time) => {
                let replica = &mut self.replicas[n];
                if !replica.is_alive || !replica.is_accepting {
                    return None;
                }
                replica.is_accepting = false;
                replica.drained_at = Some(now);
                let until = replica.zero + now + time;
                // As the hub does: siblings take over first.
                replica.siblings.handle(SiblingInput::Drain(until), replica.zero + now);
                replica.coalescer.handle(Input::Drain(until), replica.zero + now);
                self.disturb(now, time, Lateness::default());
                self.at(now + time, SweepEvent::Stop(n));
                return Some(n);
            }
            Fault::Cut(n, time) => {
                self.disturb(now, time, Lateness::once(HOLDER));
                self.cut(n, now + time);
            }
            Fault::Deafen(n) => {
                self.disturb(now, DEAF, Lateness::once(HOLDER));
                self.replicas[n].is_subscribed = false;
            }
            Fault::Mute(n, time) => {
                self.disturb(now, time + DEAF, Lateness::once(HOLDER));
                let until = now + time;
                let replica = &mut self.replicas[n];
                (replica.is_subscribed, replica.mute_until) = (false, replica.mute_until.max(until));
            }
            Fault::EngineFull(time) => {
                self.disturb(now, time + BEAT, Lateness::once(HOLDER));
                self.engine_full_until = self.engine_full_until.max(now + time);
            }
            Fault::EngineStop(time) => {
                self.disturb(now, time, Lateness::once(ENGINE));
                self.engine_stopped_until = now + time;
            }
            Fault::EngineDown(time, is_emptied) => {
                if is_emptied {
                    self.engine.flush();
                }
                self.engine_down(time);
            }
            Fault::FailOver(lag, time) => {
                self.replicated = self.engine.clone();
                self.at(now + lag, SweepEvent::Fault(Fault::Promote(time)));
            }
            Fault::Promote(time) => {
                self.engine.go_back(self.replicated.clone());
                self.engine_down(time);
            }
            Fault::ClockJump(is_ahead, time) => {
                self.disturb(now, BEAT, Lateness::default());
                if !is_ahead {
                    // P11 before P3: attempts that began so much later count as older than the rejection.
                    self.revoked_at.values_mut().for_each(|at| *at += time);
                }
                self.clock_ahead =
                    if is_ahead { self.clock_ahead + time } else { self.clock_ahead.saturating_sub(time) };
            }
            Fault::Flush => {
                // New polls wait from the moment at which a beat or a claim finds the loss.
                self.disturb(now, BEAT + self.lag() + ASK_AGAIN, Lateness::steady(ASK_AGAIN));
                self.engine.flush();
            }
            Fault::EngineFar(time, far) => {
                // The last call sent meanwhile holds up those behind it: each way of a link keeps its order.
                self.disturb(now, time + far / 2, Lateness::steady(far + PATIENCE));
                self.far = (now + time, far);
            }
            Fault::Refuse(number, n) => {
                if !self.replicas[n].is_alive {
                    return None;
                }
                self.disturb(now, Duration::ZERO, Lateness::once(REFUSED));
                self.revoked_at.insert(number, now);
                let replica = &mut self.replicas[n];
                replica.siblings.handle(SiblingInput::KeyRefused(domain(number)), replica.zero + now);
                return Some(n);
            }
            Fault::Egress(n, time) => {
                // Its own waits are late until its next retry succeeds, unless a sibling's poll lands before.
                let late = Lateness { frozen: Some(n), ..Lateness::default() };
                let noticed = self.replicas[n].frozen_until.max(now + time);
                self.disturb(now, noticed - now + RETRY, late);
                self.break_egress(n, now + time);
            }
            Fault::Shuffle(time) => {
                self.disturb(
                    now,
                    time + SHUFFLED,
                    Lateness { is_shuffle: true, ..Lateness::steady(SHUFFLED) },
                );
                self.shuffled_until = now + time;
            }
        }
        None
    }

    fn engine_down(&mut self, time: Duration) {
        let now = self.now;
        self.disturb(now, time + RELINK, Lateness::once(ENGINE));
        self.engine_down_until = now + time;
        for n in 0..self.replicas.len() {
            let back = now + time + RELINK.mul_f64(self.rng.f64());
            self.cut(n, back);
        }
    }

    /// Ends a replica. Its clients are lost with it.
    pub(super) fn lose_replica(&mut self, n: usize) {
        let replica = &mut self.replicas[n];
        (replica.is_alive, replica.is_accepting, replica.link) = (false, false, None);
        replica.runs.clear();
        for client in self.plan.clients.iter_mut().filter(|client| client.replica == n && client.has_joined) {
            client.is_lost |= client.settled.is_none() && !client.has_left;
        }
    }
}
