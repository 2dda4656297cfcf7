//! Answers of the upstream on their way to the waits: the verdict on the key, the cache, the coalescer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use tracing::debug;

use super::poll_task::PollTask;
use super::task::HubTask;
use crate::auth::Credential;
use crate::core::Map;
use crate::core::coalescer::{Cost, Failure, Input, PollId, PollOutcome, WaitOutcome, WaitResult};
use crate::core::job::{JobId, KeyDomain};
use crate::core::scheduler::{AttemptResult, RetryAdvice};
use crate::limits::Subject;
use crate::telemetry::metrics::Fanout;
use crate::upstream::poll::{AttemptOutcome, KeyVerdict, PollLanding};

/// A poll whose waits have less time left gets one retry after an invalid response. Then the wait gets that response.
const SHORT_WAIT: Duration = Duration::from_secs(5);

/// The answer that is being applied.
pub(super) struct UpstreamAnswer {
    pub(super) at: Instant,
    pub(super) origin: AnswerOrigin,
    /// Shared by all waits that this answer settles.
    pub(super) fanout: Option<Arc<Fanout>>,
    /// The poll that landed, its credential and the payer of a watch: a watch on its job may follow.
    pub(super) poll: PollId,
    pub(super) domain: KeyDomain,
    pub(super) credential: Credential,
    pub(super) payer: Option<Subject>,
}

/// The replica that got an answer from the upstream.
#[derive(Debug)]
pub(super) enum AnswerOrigin {
    /// This one.
    Own,
    /// A sibling, whose poll landed now.
    Sibling,
    /// A sibling, some time ago: the answer was stored in the engine. With the ages of the states.
    Store(Vec<(JobId, Duration)>),
}

impl AnswerOrigin {
    /// Marks the result of a wait that a sibling's request answers: it cost no request, and no per-response header of
    /// that request belongs to its client (P8).
    pub(super) fn mark(&self, result: &mut WaitResult, now: Instant) {
        let states = match &mut result.end {
            WaitOutcome::Reached(states) | WaitOutcome::TimedOut(states) => states.as_mut_slice(),
            WaitOutcome::Unsplit(_) | WaitOutcome::Refused(_) => &mut [],
            WaitOutcome::Failed(_) => return,
        };
        match self {
            AnswerOrigin::Own => {}
            AnswerOrigin::Sibling => (result.how, result.direct) = (Cost::Sibling, false),
            AnswerOrigin::Store(ages) => {
                (result.how, result.direct) = (Cost::SharedHit, false);
                // The coalescer counts them as seen now, since its waits accept them.
                for state in states {
                    let age = ages.iter().find(|(id, _)| *id == state.id).map(|(_, age)| *age);
                    state.as_of = age.and_then(|age| now.checked_sub(age)).unwrap_or(state.as_of);
                }
            }
        }
    }
}

impl HubTask {
    pub(super) fn attempt_ended(&mut self, id: PollId, outcome: AttemptOutcome, now: Instant) {
        // The attempt of a cancelled poll may have ended before the abort. No wait needs it.
        let Some(poll) = self.polls.get_mut(&id) else { return };
        poll.task = None;
        poll.has_failed = matches!(outcome, AttemptOutcome::Failed(..));
        match outcome {
            AttemptOutcome::Landed(landing) => {
                self.scheduler.ended(id, AttemptResult::Answered, now);
                self.poll_landed(id, landing, now);
            }
            AttemptOutcome::Failed(failure, advice) => {
                let cause = poll.cause.into_str();
                debug!(
                    poll = id.0,
                    reason = failure.reason(),
                    ?advice,
                    clipgate.cause = cause,
                    "attempt failed"
                );
                poll.span.attempt_failed(failure.reason());
                poll.invalid_responses = if matches!(failure, Failure::InvalidResponse(_)) {
                    poll.invalid_responses + 1
                } else {
                    0
                };
                let (domain, is_repeated) = (poll.spec.domain, poll.invalid_responses > 1);
                let is_short = is_repeated && self.time_left(id, now) <= SHORT_WAIT;
                let advice = if is_short { RetryAdvice::GiveUp } else { advice };
                let paused = self.scheduler.paused_until(domain);
                self.scheduler.ended(id, AttemptResult::Failed(failure, advice), now);
                self.publish_pause(domain, paused, now);
            }
        }
    }

    fn poll_landed(&mut self, id: PollId, landing: PollLanding, now: Instant) {
        let Some(poll) = self.polls.remove(&id) else { return };
        let PollTask { spec, attempt_started_at: began, span, credential, payer, .. } = poll;
        span.landed(landing.status.as_u16());
        let domain = spec.domain;
        self.current_answer = Some(UpstreamAnswer {
            at: landing.answered_at,
            fanout: None,
            poll: id,
            domain,
            origin: AnswerOrigin::Own,
            credential,
            payer,
        });
        // P11: the verdict on the key comes before its states enter the cache.
        match landing.key {
            Some(KeyVerdict::Accepted) => self.key_accepted(domain, began, now),
            Some(KeyVerdict::Refused) => self.key_rejected(domain, now),
            Some(KeyVerdict::Forbidden) => self.cache.key_forbidden(domain, &spec.jobs, now),
            None => {}
        }
        if let Some(shape) = &landing.shape {
            self.cache.set_list_shape(domain, spec.jobs.route(), shape);
        }
        let route = self.poller.route(&spec);
        if landing.status == StatusCode::NOT_FOUND && !route.is_built_in {
            spec.jobs.iter().for_each(|job| self.cache.job_changed(domain, job, now));
        }
        if let (PollOutcome::Jobs(states), Some(local)) = (&landing.outcome, self.local_poll(id)) {
            let machine = self.machines.of_poll(local);
            if route.never_holds() && machine.may_contradict(local) {
                states.iter().for_each(|state| self.cache.contradict(domain, state));
            }
            if machine.may_cache(local) {
                states.iter().for_each(|state| self.cache.store(domain, state, began, now));
            }
        }
        if let Some((pause, local)) = landing.retry_after.zip(self.local_poll(id)) {
            self.machines.of_poll_mut(local).handle(Input::RetryAfter(local, pause), now);
        }
        self.end_poll(id, landing.outcome, now);
        // P1: after the answer, which siblings get under the epoch that ends here.
        if landing.key == Some(KeyVerdict::Refused) {
            self.publish_refusal(domain, now);
        }
    }

    /// Records that the upstream accepted the key. From then on its waits count for the key, no longer for their
    /// addresses.
    pub(super) fn key_accepted(&mut self, domain: KeyDomain, began: Instant, now: Instant) {
        self.cache.key_accepted(domain, began);
        self.accepted_for_siblings(domain, began, now);
        if let Some(key) = self.keys.get_mut(&domain)
            && !key.unproven_waits.is_empty()
            && self.cache.is_key_proven(domain)
        {
            key.unproven_waits = Map::default();
        }
    }

    // P11: all entries of the key are dead, also if a sibling heard the rejection.
    pub(super) fn key_rejected(&mut self, domain: KeyDomain, now: Instant) {
        self.cache.key_rejected(domain, now);
        self.machines.handle_all(|| Input::CancelWatches(domain), now);
    }

    /// Returns the time until the last deadline among the waits on a poll. A poll for siblings only has no waits here.
    fn time_left(&self, id: PollId, now: Instant) -> Duration {
        self.local_poll(id).map_or(Duration::MAX, |local| self.machines.of_poll(local).time_left(local, now))
    }
}
