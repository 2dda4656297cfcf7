//! Effects of a failed attempt on its poll and on the breaker, and the breaker's probes.
//!
//! | failure | the poll | the breaker |
//! | --- | --- | --- |
//! | transport fault | backs off, until `retry_for` after its first one | counts it; a failed probe opens it again |
//! | transport fault before the first success | backs off, `retries` times | does not count it |
//! | kept connection closed before a byte was sent, first attempt | is attempted again at once | does not count it |
//! | error that the upstream wrote | backs off, `retries` times, within the budget of its key | closes |
//! | 502, 503 or 504 after the poll was held | backs off, and its count starts again | closes |
//! | transport fault after the poll was held | backs off, and its `retry_for` starts again | counts it |
//! | `Retry-After`, or a 429 | pauses | closes |
//! | no descriptors or memory in the gateway | backs off, until `retry_for` after its first one | does not count it |

use std::time::{Duration, Instant};

use super::fair_queue::QueueEnd;
use super::keys::KeyPause;
use super::poll::{Outage, ScheduleState, SchedulerTimer};
use super::{PollClass, PollScheduler, RetryAdvice, SchedulerOutput};
use crate::core::coalescer::{Failure, FaultKind, PollId};

impl PollScheduler {
    /// Queues a poll whose backoff or pause has ended.
    pub(super) fn pause_elapsed(&mut self, id: PollId, now: Instant) {
        let Some(poll) = self.polls.get(&id) else { return };
        // P12: one job that is always refused delays no other job of its key.
        let end = if poll.refusals > 0 { QueueEnd::Back } else { QueueEnd::Front };
        self.detach(id);
        self.enqueue(id, end, false, now);
    }

    /// Holds back a retry until the breaker closes. Returns false if `retry_for` of the poll has ended: then it makes
    /// its last attempt.
    pub(super) fn hold_back(&mut self, id: PollId, now: Instant) -> bool {
        let outage = self.polls.get(&id).and_then(|poll| poll.outage);
        let last_attempt_at = outage.map(|outage| self.retry_deadline(outage));
        let has_time = last_attempt_at.is_none_or(|at| at > now);
        if has_time {
            self.set_state(id, ScheduleState::HeldBack { last_attempt_at });
        } else if let Some(poll) = self.polls.get_mut(&id) {
            poll.is_retry = false; // the breaker does not hold it back
        }
        has_time
    }

    /// Begins a probe, if one is due.
    ///
    /// The probe is a poll of the key that has probed longest ago (P11): a key whose own jobs break connections must
    /// not make every probe. Within the key it is the poll whose last failure is the oldest.
    pub(super) fn probe_if_due(&mut self, now: Instant) {
        if self.breaker.probe_at().is_none_or(|at| at > now) {
            return;
        }
        let candidates = self.retrying.iter().filter_map(|&(failed_at, id)| {
            let request = &self.polls.get(&id)?.request;
            let key = self.keys.get(&request.domain)?;
            key.may_start(request.class).then_some((key.probed_at, failed_at, id))
        });
        if let Some((_, _, id)) = candidates.min()
            && self.begin_probe(id, now)
        {
            self.detach(id);
            self.enqueue(id, QueueEnd::Front, true, now);
        }
    }

    /// Makes the next attempt of this poll the probe, if one is due. An earlier probe is an ordinary attempt from now
    /// on.
    pub(super) fn begin_probe(&mut self, id: PollId, now: Instant) -> bool {
        if !self.breaker.begin_probe(now) {
            return false;
        }
        self.clear_probes();
        let domain = self.polls.get(&id).map(|poll| poll.request.domain);
        if let Some(key) = domain.and_then(|domain| self.keys.get_mut(&domain)) {
            key.probed_at = Some(now);
        }
        true
    }

    fn clear_probes(&mut self) {
        for poll in self.polls.values_mut() {
            if let ScheduleState::Queued { is_probe, .. } | ScheduleState::Attempting { is_probe, .. } =
                &mut poll.state
            {
                *is_probe = false;
            }
        }
    }

    /// Arms the timer for the next probe. If no poll is retrying then, the next retry becomes the probe.
    pub(super) fn arm_probe_timer(&mut self) {
        let probe_at = self.breaker.probe_at();
        if probe_at != self.probe_timer {
            self.probe_timer.map(|at| self.timers.remove(&(at, SchedulerTimer::Probe)));
            probe_at.map(|at| self.timers.insert((at, SchedulerTimer::Probe)));
            self.probe_timer = probe_at;
        }
    }

    /// Frees the probe, if a poll in this state was the probe: its attempt ended without evidence about the upstream.
    pub(super) fn cancel_probe(&mut self, state: ScheduleState, now: Instant) {
        if let ScheduleState::Queued { is_probe: true, .. }
        | ScheduleState::Attempting { is_probe: true, .. } = state
        {
            self.breaker.probe_cancelled(now);
        }
    }

    /// Records that the upstream answered this poll, or holds it: it can be reached, and accepts the key.
    pub(super) fn attempt_succeeded(&mut self, id: PollId, now: Instant) {
        self.upstream_reached(now);
        let Some(domain) = self.polls.get(&id).map(|poll| poll.request.domain) else { return };
        let Some(key) = self.keys.get_mut(&domain) else { return };
        key.open_ended = None;
        if key.pause == KeyPause::Probing(id) {
            self.set_key_pause(domain, KeyPause::None, now);
        }
    }

    /// Closes the breaker: the upstream can be reached. Retries that were held back go on, spread over the first
    /// backoff.
    pub(super) fn upstream_reached(&mut self, now: Instant) {
        self.has_succeeded = true;
        self.reached_at = Some(now);
        if !self.breaker.succeeded() {
            return;
        }
        self.clear_probes();
        let retrying: Vec<PollId> = self.retrying.iter().map(|&(_, id)| id).collect();
        for id in retrying {
            let first_backoff = now + self.config.backoff.pause(1, self.jitter.f64());
            let until = match self.polls.get(&id).map(|poll| poll.state) {
                Some(ScheduleState::BackingOff { until }) => until.min(first_backoff),
                _ => first_backoff,
            };
            self.detach(id);
            self.set_state(id, ScheduleState::BackingOff { until });
        }
    }

    /// Attempts a poll again at once, on another connection: the upstream had closed the kept one before it saw the
    /// request. The failure does not count, neither for the poll nor for the breaker (P12).
    pub(super) fn reconnect(&mut self, id: PollId, failure: Failure, now: Instant) {
        let Some(poll) = self.polls.get(&id) else { return };
        self.cancel_probe(poll.state, now);
        self.detach(id);
        self.outputs.push_back(SchedulerOutput::BackOff(id, failure, Duration::ZERO));
        self.enqueue(id, QueueEnd::Front, false, now);
    }

    /// Records a failed attempt: the poll backs off, or is given up.
    pub(super) fn attempt_failed(&mut self, id: PollId, failure: Failure, advice: RetryAdvice, now: Instant) {
        let Some(poll) = self.polls.get_mut(&id) else { return };
        let ScheduleState::Attempting { began, is_probe, is_held, .. } = poll.state else { return };
        if is_held {
            poll.outage = None; // progress: `retry_for` starts again
        }
        let kind = failure.kind();
        let (failures, is_final) = match kind {
            FaultKind::Transport | FaultKind::Local => self.count_transport_fault(id, kind, now),
            FaultKind::Upstream => self.count_error(id, is_held && advice == RetryAdvice::BackOffHeld, now),
        };
        self.inform_breaker(kind, began, is_probe, now);
        self.detach(id);
        let Some(poll) = self.polls.get_mut(&id) else { return };
        (poll.last_failure, poll.is_retry) = (Some((now, failure.clone())), true);
        let outage = poll.outage;
        if is_final || advice == RetryAdvice::GiveUp {
            return self.give_up(id, now);
        }
        let pause = self.config.backoff.pause(failures, self.jitter.f64());
        let until = match outage {
            Some(outage) if self.has_succeeded => (now + pause).min(self.retry_deadline(outage)),
            _ => now + pause,
        };
        self.set_state(id, ScheduleState::BackingOff { until });
        self.outputs.push_back(SchedulerOutput::BackOff(id, failure, until - now));
    }

    /// Counts a fault of the way to the upstream. Returns the faults in a row, and whether this one is final.
    fn count_transport_fault(&mut self, id: PollId, kind: FaultKind, now: Instant) -> (u32, bool) {
        let Some(poll) = self.polls.get_mut(&id) else { return (1, true) };
        let Outage { since, faults } = poll.outage.unwrap_or(Outage { since: now, faults: 0 });
        let outage = Outage { since, faults: faults + 1 };
        poll.outage = Some(outage);
        let is_final = match kind {
            FaultKind::Transport if !self.has_succeeded => outage.faults > self.config.retries,
            _ => self.retry_deadline(outage) <= now, // P12: retried for `retry_for`
        };
        (outage.faults, is_final)
    }

    /// Counts an error that the upstream wrote. Returns the errors in a row, and whether this one is final.
    /// `is_progress`: a proxy cut the poll after the upstream had held it.
    fn count_error(&mut self, id: PollId, is_progress: bool, now: Instant) -> (u32, bool) {
        let Some(poll) = self.polls.get_mut(&id) else { return (1, true) };
        poll.outage = None;
        if is_progress {
            poll.errors = 0;
            return (1, false);
        }
        poll.errors += 1;
        let key = self.keys.get_mut(&poll.request.domain);
        // P4: the budget bounds the retries. P11: each key has its own.
        let may_retry =
            poll.errors <= self.config.retries && key.is_some_and(|key| key.budget.take_retry(now));
        (poll.errors, !may_retry)
    }

    /// Informs the breaker of a failed attempt.
    fn inform_breaker(&mut self, kind: FaultKind, began: Instant, is_probe: bool, now: Instant) {
        match kind {
            FaultKind::Transport if !self.has_succeeded => {}
            FaultKind::Transport if is_probe => self.breaker.probe_failed(now),
            FaultKind::Transport => self.breaker.failed(began, now),
            // Does not count. But a probe that begins again at once would be a loop as fast as attempts fail.
            FaultKind::Local if is_probe => self.breaker.probe_failed(now),
            FaultKind::Local => {} // P12: a lack in the gateway is never counted against the upstream
            FaultKind::Upstream => self.upstream_reached(now), // P12: such an error never opens the breaker
        }
    }

    /// Pauses a poll for as long as the upstream asked.
    pub(super) fn pause_poll(&mut self, id: PollId, failure: Failure, pause: Duration, now: Instant) {
        let Some(class) = self.detach_refused(id, &failure, now) else { return };
        if class == PollClass::Plain {
            return self.give_up(id, now); // P12: its client expects an answer at once
        }
        self.set_state(id, ScheduleState::Paused { until: now + pause });
        self.outputs.push_back(SchedulerOutput::Pause(id, failure, pause));
    }

    /// Ends an attempt that the upstream refused for now, and returns the class of its poll.
    pub(super) fn detach_refused(
        &mut self,
        id: PollId,
        failure: &Failure,
        now: Instant,
    ) -> Option<PollClass> {
        self.detach(id);
        let poll = self.polls.get_mut(&id)?;
        poll.refusals += 1;
        poll.outage = None;
        (poll.last_failure, poll.is_retry) = (Some((now, failure.clone())), true);
        Some(poll.request.class)
    }

    /// Returns the time at which a poll with these faults is given up.
    pub(super) fn retry_deadline(&self, outage: Outage) -> Instant {
        outage.since + self.config.retry_for
    }
}
