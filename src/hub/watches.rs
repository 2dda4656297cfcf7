//! Answers from proof, and watches: polls that the coalescer holds for jobs that clients ask for repeatedly.
//!
//! | question | answer |
//! | --- | --- |
//! | which wait may be answered from proof | one whose key gets hits (P11), without `no-cache`, that is not an event stream's |
//! | which job is watched, and how long | the coalescer |
//! | payer, with its quota `calls` | the client that asked last; if the hub has forgotten it, the payer of the watch before |
//! | no quota, or no slot at the upstream | the hub cancels the watch |
//! | a poll waits for a slot | the hub cancels watches without waits, the one asked for the longest ago first |

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::WaitRequest;
use super::poll_task::PollTask;
use super::task::HubTask;
use crate::core::Map;
use crate::core::coalescer::{Input, PollId, PollSpec, Proof, WaitId, WaitSpec};
use crate::core::job::{JobId, KeyDomain};
use crate::limits::Subject;
use crate::telemetry::metrics::CallCause;

/// Most jobs whose last asker is remembered: as many as the coalescer may watch.
const MAX_ASKERS: usize = 4096;

/// The quota owner of the last plain request for each job. A watch begins or continues after that request has ended.
#[derive(Debug, Default)]
pub(super) struct Askers {
    jobs: Map<(KeyDomain, JobId), Asker>,
    /// Jobs by their last request, the oldest first.
    by_wait: BTreeMap<WaitId, (KeyDomain, JobId)>,
}

#[derive(Clone, Copy, Debug)]
struct Asker {
    wait: WaitId,
    subject: Subject,
    at: Instant,
}

impl Askers {
    fn record(&mut self, domain: KeyDomain, job: &JobId, asker: Asker, idle: Duration) {
        let key = (domain, job.clone());
        if let Some(before) = self.jobs.insert(key.clone(), asker) {
            self.by_wait.remove(&before.wait);
        }
        self.by_wait.insert(asker.wait, key);
        while let Some(oldest) = self.by_wait.first_entry() {
            let is_idle = self.jobs.get(oldest.get()).is_none_or(|old| old.at + idle < asker.at);
            if !is_idle && self.jobs.len() <= MAX_ASKERS {
                break;
            }
            self.jobs.remove(&oldest.remove());
        }
    }

    /// Returns the owner of the quota of this request, if it was the last one for the job.
    fn subject(&self, domain: KeyDomain, job: &JobId, wait: WaitId) -> Option<Subject> {
        self.jobs.get(&(domain, job.clone())).filter(|asker| asker.wait == wait).map(|asker| asker.subject)
    }
}

impl HubTask {
    /// Returns the proof that a wait accepts. Event streams expect to be held and accept none.
    pub(super) fn accepted_proof(&self, wait: &WaitRequest, now: Instant) -> Proof {
        if wait.is_patient {
            return Proof::Never;
        }
        let key = self.cache.proof(wait.identity.domain);
        accepted_proof(wait.max_age, self.cache.proven_ttl(key, now))
    }

    /// Records the client of a plain request for one job, which may have to pay for a watch.
    pub(super) fn record_asker(&mut self, id: WaitId, spec: &WaitSpec, subject: Subject, now: Instant) {
        let machine = self.machines.of_route(spec.jobs.route());
        if machine.is_plain(spec)
            && let Some(job) = spec.jobs.iter().next()
        {
            let asker = Asker { wait: id, subject, at: now };
            self.askers.record(spec.domain, job, asker, machine.watch_idle());
        }
    }

    /// Returns the owner of the quota for a watch. `None`: the hub has forgotten the client.
    pub(super) fn watch_payer(
        &self,
        spec: &PollSpec,
        asked_by: WaitId,
        follows: Option<PollId>,
    ) -> Option<Subject> {
        let job = spec.jobs.iter().next()?;
        let inherited = || self.current_answer.as_ref().filter(|answer| Some(answer.poll) == follows)?.payer;
        self.askers.subject(spec.domain, job, asked_by).or_else(inherited)
    }

    /// Cancels watches while a poll waits for a slot: the watch that waits itself, else one without waits.
    pub(super) fn yield_watches(&mut self, now: Instant) {
        while self.machines.watches() > 0
            && let Some(cancelled) = self.watch_to_yield()
        {
            self.machines.of_poll_mut(cancelled).handle(Input::CancelWatch(cancelled), now);
            self.drain_outputs(now);
            if self.polls.contains_key(&cancelled) {
                return; // the coalescer keeps it, so the same watch would be chosen again
            }
        }
    }

    fn watch_to_yield(&self) -> Option<PollId> {
        if self.polls.len() <= self.scheduler.open() {
            return None;
        }
        let has_waits = |id: PollId| self.machines.of_poll(id).attached_waits(id).next().is_some();
        if self.waiting_for_slot().any(|(id, _)| has_waits(id)) {
            return self.machines.idle_watch();
        }
        self.waiting_for_slot().find(|(_, poll)| poll.cause == CallCause::Watch).map(|(id, _)| id)
    }

    /// Returns the polls that wait for a slot at the upstream.
    fn waiting_for_slot(&self) -> impl Iterator<Item = (PollId, &PollTask)> {
        self.polls.iter().map(|(id, poll)| (*id, poll)).filter(|(id, _)| self.scheduler.waits_for_slot(*id))
    }
}

/// `max_age` is that of the request, `None` with `no-cache`. `proven_ttl` is zero for a key that gets no hits.
fn accepted_proof(max_age: Option<Duration>, proven_ttl: Duration) -> Proof {
    match max_age.map(|max_age| max_age.min(proven_ttl)) {
        None => Proof::NoCache,
        Some(Duration::ZERO) => Proof::Never,
        Some(max_age) => Proof::Within(max_age),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const DOMAIN: KeyDomain = KeyDomain([1; 16]);
    const IDLE: Duration = Duration::from_secs(20);

    fn job(number: usize) -> JobId {
        JobId::new(&number.to_string()).unwrap()
    }

    fn asker(wait: u64, subject: u8, at: Instant) -> Asker {
        Asker { wait: WaitId(wait), subject: Subject::Key(KeyDomain([subject; 16])), at }
    }

    #[test]
    fn proof_is_bounded_by_max_age_and_proven_ttl_and_forbidden_by_no_cache() {
        let secs = Duration::from_secs;
        let rows = [
            (Some(Duration::MAX), 30, Proof::Within(secs(30))),
            (Some(secs(5)), 30, Proof::Within(secs(5))),
            (Some(secs(60)), 30, Proof::Within(secs(30))),
            (Some(Duration::ZERO), 30, Proof::Never),
            (Some(Duration::MAX), 0, Proof::Never),
            (None, 30, Proof::NoCache),
            (None, 0, Proof::NoCache),
        ];
        for (max_age, proven_ttl, expected) in rows {
            assert_eq!(accepted_proof(max_age, secs(proven_ttl)), expected, "{max_age:?}, {proven_ttl} s");
        }
        assert_eq!(rows.len(), 7);
    }

    #[test]
    fn the_last_asker_of_a_job_pays_and_is_forgotten_when_idle() {
        let (mut askers, t0) = (Askers::default(), clock::now());
        askers.record(DOMAIN, &job(1), asker(1, 1, t0), IDLE);
        askers.record(DOMAIN, &job(1), asker(2, 2, t0), IDLE);
        assert_eq!(askers.subject(DOMAIN, &job(1), WaitId(1)), None);
        assert_eq!(askers.subject(DOMAIN, &job(1), WaitId(2)), Some(Subject::Key(KeyDomain([2; 16]))));
        assert_eq!(askers.subject(KeyDomain([9; 16]), &job(1), WaitId(2)), None, "another key");
        askers.record(DOMAIN, &job(2), asker(3, 1, t0 + IDLE * 2), IDLE);
        assert_eq!(askers.subject(DOMAIN, &job(1), WaitId(2)), None);
        assert_eq!((askers.jobs.len(), askers.by_wait.len()), (1, 1));
    }

    #[test]
    fn the_askers_are_bounded() {
        let (mut askers, t0) = (Askers::default(), clock::now());
        for number in 0..MAX_ASKERS + 10 {
            askers.record(DOMAIN, &job(number), asker(number as u64, 1, t0), IDLE);
        }
        assert_eq!((askers.jobs.len(), askers.by_wait.len()), (MAX_ASKERS, MAX_ASKERS));
        assert_eq!(askers.subject(DOMAIN, &job(9), WaitId(9)), None, "the longest unasked goes first");
    }
}
