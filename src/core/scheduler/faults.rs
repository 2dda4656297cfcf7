//! What a failed attempt means for its poll and for the breaker.
//!
//! | failure | the poll | the breaker |
//! | --- | --- | --- |
//! | transport fault | backs off for `retry_for` at most; `retries` before the first success | counts it |
//! | error that the upstream wrote | backs off `retries` times, within the budget of its key | closes |
//! | error of a proxy, or a lost connection, after the poll was held | starts from the beginning | closes, or counts it |
//! | a pause that the upstream asked for | pauses | closes |
//! | the gateway has no descriptors | backs off for `retry_for` at most | nothing |

use std::time::{Duration, Instant};

use super::fair_queue::End;
use super::keys::KeyPause;
use super::{Outage, Phase, PollClass, PollScheduler, RetryAdvice, SchedulerOutput, Timer};
use crate::core::coalescer::{Failure, FaultKind, PollId};

impl PollScheduler {
    /// Queues a poll whose pause is over, or holds it back.
    pub(super) fn pause_is_over(&mut self, id: PollId, now: Instant) {
        let Some(entry) = self.polls.get(&id) else { return };
        // Another job of the key goes before one that was refused.
        let end = if entry.refusals > 0 { End::Back } else { End::Front };
        self.leave_phase(id);
        self.enqueue(id, end, false, now);
    }

    /// Takes a retry, whose turn has come, back until the breaker closes. Returns whether it did: a poll without time
    /// left makes its last attempt.
    pub(super) fn hold_back(&mut self, id: PollId, now: Instant) -> bool {
        let limit = self.polls.get(&id).and_then(|entry| entry.outage).map(|outage| self.limit(outage));
        let has_time = limit.is_none_or(|at| at > now);
        if has_time {
            self.set_phase(id, Phase::HeldBack { limit });
        } else if let Some(entry) = self.polls.get_mut(&id) {
            entry.is_retry = false; // the breaker has no say in it
        }
        has_time
    }

    /// Queues a poll for an attempt in which the breaker has no say.
    pub(super) fn enqueue_as_first(&mut self, id: PollId, now: Instant) {
        self.leave_phase(id);
        if let Some(entry) = self.polls.get_mut(&id) {
            entry.is_retry = false;
        }
        self.enqueue(id, End::Front, false, now);
    }

    /// Begins a probe, if it is time for one: of the key that has probed longest ago, since its own jobs may be what fails,
    /// the poll whose last failure is the oldest.
    pub(super) fn probe_if_due(&mut self, now: Instant) {
        if self.breaker.probe_at().is_none_or(|at| at > now) {
            return;
        }
        let candidates = self.retrying.iter().filter_map(|&(failed_at, id)| {
            let request = &self.polls.get(&id)?.request;
            let key = self.keys.get(&request.domain)?;
            let is_open = request.class == PollClass::Plain || key.pause.is_open();
            is_open.then_some((key.probed_at, failed_at, id))
        });
        if let Some((_, _, id)) = candidates.min()
            && self.begin_probe(id, now)
        {
            self.leave_phase(id);
            self.enqueue(id, End::Front, true, now);
        }
    }

    /// Makes the next attempt of this poll the probe, if one may be made. A probe of before is none any more.
    pub(super) fn begin_probe(&mut self, id: PollId, now: Instant) -> bool {
        if !self.breaker.begin_probe(now) {
            return false;
        }
        self.forget_probes();
        let domain = self.polls.get(&id).map(|entry| entry.request.domain);
        if let Some(key) = domain.and_then(|domain| self.keys.get_mut(&domain)) {
            key.probed_at = Some(now);
        }
        true
    }

    fn forget_probes(&mut self) {
        for entry in self.polls.values_mut() {
            if let Phase::Queued { is_probe, .. } | Phase::Attempt { is_probe, .. } = &mut entry.phase {
                *is_probe = false;
            }
        }
    }

    /// Plans to wake up for the next probe. While no poll waits for it, the next retry is the probe.
    pub(super) fn arm_probe(&mut self) {
        let probe_at = self.breaker.probe_at();
        if probe_at != self.probe_armed {
            self.probe_armed.map(|at| self.timers.remove(&(at, Timer::Probe)));
            probe_at.map(|at| self.timers.insert((at, Timer::Probe)));
            self.probe_armed = probe_at;
        }
    }

    /// An attempt was cancelled before it told anything of the upstream.
    pub(super) fn cancel_probe(&mut self, phase: Phase, now: Instant) {
        if let Phase::Queued { is_probe: true, .. } | Phase::Attempt { is_probe: true, .. } = phase {
            self.breaker.probe_cancelled(now);
        }
    }

    /// The upstream answers this poll or holds it: the way to it works, and it takes the key.
    pub(super) fn succeeded(&mut self, id: PollId, now: Instant) {
        self.reached(now);
        let Some(domain) = self.polls.get(&id).map(|entry| entry.request.domain) else { return };
        if self.keys.get(&domain).is_some_and(|key| key.pause == KeyPause::Probing(id)) {
            self.set_pause(domain, KeyPause::None, now);
        }
    }

    /// The upstream can be reached: what was held back goes on, spread over the first pause.
    pub(super) fn reached(&mut self, now: Instant) {
        self.has_succeeded = true;
        if !self.breaker.succeeded() {
            return;
        }
        self.forget_probes();
        let retrying: Vec<PollId> = self.retrying.iter().map(|&(_, id)| id).collect();
        for id in retrying {
            let soon = now + self.config.backoff.pause(1, self.jitter.f64());
            let until = match self.polls.get(&id).map(|entry| entry.phase) {
                Some(Phase::BackingOff { until }) => until.min(soon),
                _ => soon,
            };
            self.leave_phase(id);
            self.set_phase(id, Phase::BackingOff { until });
        }
    }

    /// The kept connection was closed before the upstream had a say. On another one that is soon seen.
    pub(super) fn reconnect(&mut self, id: PollId, failure: Failure, now: Instant) {
        let Some(entry) = self.polls.get(&id) else { return };
        self.cancel_probe(entry.phase, now);
        self.leave_phase(id);
        self.outputs.push_back(SchedulerOutput::BackOff(id, failure, Duration::ZERO));
        self.enqueue(id, End::Front, false, now);
    }

    /// An attempt failed: plans the next one, or gives the poll up.
    pub(super) fn failed(&mut self, id: PollId, failure: Failure, advice: RetryAdvice, now: Instant) {
        let Some(entry) = self.polls.get_mut(&id) else { return };
        let Phase::Attempt { began, is_probe, is_held, .. } = entry.phase else { return };
        if is_held {
            entry.outage = None;
        }
        let kind = failure.kind();
        let (failures, is_over) = match kind {
            FaultKind::Transport | FaultKind::Local => {
                let Outage { since, faults } = entry.outage.unwrap_or(Outage { since: now, faults: 0 });
                let outage = Outage { since, faults: faults + 1 };
                entry.outage = Some(outage);
                let is_over = match kind {
                    FaultKind::Transport if !self.has_succeeded => outage.faults > self.config.retries,
                    _ => self.limit(outage) <= now,
                };
                (outage.faults, is_over)
            }
            FaultKind::Upstream => {
                entry.outage = None;
                let domain = entry.request.domain;
                if is_held && advice == RetryAdvice::BackOffHeld {
                    entry.errors = 0;
                    (1, false)
                } else {
                    entry.errors += 1;
                    let errors = entry.errors;
                    let key = self.keys.get_mut(&domain);
                    let may_retry =
                        errors <= self.config.retries && key.is_some_and(|key| key.budget.take_retry(now));
                    (errors, !may_retry)
                }
            }
        };
        match kind {
            FaultKind::Transport if !self.has_succeeded => {}
            FaultKind::Transport if is_probe => self.breaker.probe_failed(now),
            FaultKind::Transport => self.breaker.failed(began, now),
            // Not counted; but a probe that was made again at once would be a loop.
            FaultKind::Local if is_probe => self.breaker.probe_failed(now),
            FaultKind::Local => {}
            FaultKind::Upstream => self.reached(now),
        }
        self.leave_phase(id);
        let Some(entry) = self.polls.get_mut(&id) else { return };
        (entry.failed, entry.is_retry) = (Some((now, failure.clone())), true);
        let outage = entry.outage;
        if is_over || advice == RetryAdvice::GiveUp {
            return self.give_up(id, now);
        }
        let pause = self.config.backoff.pause(failures, self.jitter.f64());
        let until = match outage {
            Some(outage) if self.has_succeeded => (now + pause).min(self.limit(outage)),
            _ => now + pause,
        };
        self.set_phase(id, Phase::BackingOff { until });
        self.outputs.push_back(SchedulerOutput::BackOff(id, failure, until - now));
    }

    /// The upstream asked for a pause of this poll.
    pub(super) fn pause(&mut self, id: PollId, failure: Failure, pause: Duration, now: Instant) {
        self.leave_phase(id);
        let Some(entry) = self.polls.get_mut(&id) else { return };
        entry.refusals += 1;
        entry.outage = None;
        (entry.failed, entry.is_retry) = (Some((now, failure.clone())), true);
        if entry.request.class == PollClass::Plain {
            return self.give_up(id, now);
        }
        self.set_phase(id, Phase::Paused { until: now + pause });
        self.outputs.push_back(SchedulerOutput::Pause(id, failure, pause));
    }

    /// When a poll with these faults is given up.
    pub(super) fn limit(&self, outage: Outage) -> Instant {
        outage.since + self.config.retry_for
    }
}
