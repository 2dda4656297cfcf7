//! The attach rule as code: which open polls a wait attaches to, and which polls it opens.
//!
//! [`plan`] decides. It is a pure function that returns an [`AttachPlan`]; its tests are a table. The methods of
//! [`Coalescer`] collect its arguments and apply the plan.

use std::collections::BTreeSet;
use std::time::Instant;

use super::Coalescer;
use super::chain::{ChainLink, may_attach_to_snapshot};
use super::poll_result::Landing;
use super::poll_set::PollSet;
use super::state::{AttemptState, Poll, Wait, WaitPhase};
use super::timing::Timing;
use super::types::{Cause, Output, PollId, PollSpec, Proof, WaitId};
use crate::core::job::{JobId, JobSet};
use crate::core::route::Goal;

/// Decision of the attach rule for one wait.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct AttachPlan {
    /// Open polls that the wait is attached to from now on, and no others.
    attach: PollSet,
    /// Jobs of each poll that the wait opens.
    open: Vec<JobSet>,
}

/// Attachment of one job of a wait, the best one last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Coverage {
    /// No attachable poll asks for the job.
    Missing,
    /// A poll asks for it that is at a lower goal or ends before the wait does.
    Partial,
    /// A poll at the wait's own goal asks for it, for at least as long as the wait has time.
    Full,
    /// The job has its answer.
    Answered,
}

/// Plans a wait: it attaches to every open poll that cannot make it late, and opens polls for the rest.
///
/// `polls` are open polls of the wait's key domain that may ask for a subset of its jobs. `is_answered` says for which
/// jobs the wait has its answer.
pub(super) fn plan<'p>(
    id: WaitId,
    wait: &Wait,
    polls: impl Iterator<Item = (PollId, &'p Poll)>,
    is_answered: impl Fn(&JobId) -> bool,
    timing: &Timing,
) -> AttachPlan {
    let coverage = |job: &JobId| {
        if !wait.exact_set_only && is_answered(job) { Coverage::Answered } else { Coverage::Missing }
    };
    // Most waits name one job, and need no allocation here.
    let (mut one, mut many) = ([Coverage::Missing], Vec::new());
    let covered: &mut [Coverage] = if wait.spec.jobs.len() == 1 {
        one[0] = wait.spec.jobs.iter().next().map_or(Coverage::Missing, coverage);
        &mut one
    } else {
        many.extend(wait.spec.jobs.iter().map(coverage));
        &mut many
    };
    let (mut attach, mut has_own) = (PollSet::default(), false);
    for (poll_id, poll) in polls.filter(|(_, poll)| may_attach(poll, id, wait, timing)) {
        let is_full = match timing.pace {
            Some(_) => true, // the chain goes on while the wait is attached
            None => poll.spec.goal == wait.current_goal && outlasts(poll, wait, timing),
        };
        for at in poll.spec.jobs.iter().filter_map(|job| wait.spec.jobs.position(job)) {
            if covered[at] != Coverage::Answered {
                attach.insert(poll_id); // P3
                has_own |= poll.opener == Some(id);
                covered[at] = covered[at].max(if is_full { Coverage::Full } else { Coverage::Partial });
            }
        }
    }
    // P4: a client alone has one call under way, so a wait with an open poll of its own opens no other.
    if has_own || !covered.contains(&Coverage::Missing) {
        return AttachPlan { attach, open: Vec::new() };
    }
    // P4: this poll has to be opened anyway. Asking along for the jobs whose poll ends before the wait does spares the
    // poll that the wait would need then.
    let asked = wait.spec.jobs.iter().zip(covered.iter()).filter(|(_, covered)| **covered < Coverage::Full);
    let asked: Vec<&JobId> = asked.map(|(job, _)| job).collect();
    let open = asked.chunks(timing.max_jobs).map(|jobs| JobSet::new(jobs.iter().copied().cloned()));
    AttachPlan { attach, open: open.collect() }
}

/// Returns whether a wait may attach to a poll of its key domain.
fn may_attach(poll: &Poll, id: WaitId, wait: &Wait, timing: &Timing) -> bool {
    let asks_for_nothing_else = if wait.exact_set_only {
        poll.spec.jobs == wait.spec.jobs && poll.spec.form == wait.spec.form
    } else {
        poll.spec.jobs.is_subset(&wait.spec.jobs) // P5
    };
    asks_for_nothing_else
        && match timing.pace {
            Some(pace) => may_attach_to_snapshot(poll, wait, timing, pace),
            None => {
                timing.is_within(poll.spec.goal, wait.current_goal) // P1
                    && !is_foreign_pause(poll, wait, timing)
                    && !is_foreign_throttle(poll, wait)
                    && !is_foreign_fault(poll, id, wait)
            }
        }
}

/// Returns whether the upstream holds the poll at least as long as the wait has time.
fn outlasts(poll: &Poll, wait: &Wait, timing: &Timing) -> bool {
    poll.opened_at + timing.hold + timing.clock_skew() >= wait.deadline()
}

/// Returns whether the upstream paused the poll before the wait arrived, and the pause would outlast the wait. Its client
/// alone would make a request now (P12).
pub(super) fn is_foreign_pause(poll: &Poll, wait: &Wait, timing: &Timing) -> bool {
    let AttemptState::Paused { until, is_of_key } = poll.attempt else { return false };
    let arrived_later = wait.spec.arrived > poll.attempted_at;
    match wait.phase {
        // The scheduler sends a request without a status although its key is paused.
        WaitPhase::Waiting if wait.spec.goal == Goal::Now => is_of_key || arrived_later,
        WaitPhase::Waiting if wait.is_immediate(timing) => !is_of_key && arrived_later,
        WaitPhase::Waiting | WaitPhase::Grace { .. } | WaitPhase::Snapshot { .. } => {
            !is_of_key && until > wait.due() && arrived_later
        }
    }
}

/// Returns whether a success with `Retry-After` throttled the poll before the wait arrived. Its client alone would make a
/// request now (P1).
fn is_foreign_throttle(poll: &Poll, wait: &Wait) -> bool {
    poll.retry_after.is_some_and(|(asked_at, _)| wait.spec.arrived > asked_at)
}

/// Returns whether the upstream asked for a pause of this poll alone, and the wait had another poll that was shed (P12).
fn is_foreign_fault(poll: &Poll, id: WaitId, wait: &Wait) -> bool {
    let is_paused = matches!(poll.attempt, AttemptState::Paused { is_of_key: false, .. });
    wait.was_shed
        && !wait.is_in_snapshot()
        && poll.opener != Some(id)
        && (is_paused || poll.retry_after.is_some())
}

/// Origin of the polls that a plan opens.
#[derive(Clone, Copy, Default)]
pub(super) struct PlanOrigin {
    /// A poll of the wait ended below its goal.
    pub(super) is_reopen: bool,
    /// Start of the chain of snapshots that the plan continues.
    pub(super) chain_since: Option<Instant>,
}

/// Change of a wait's attachments that needs no plan of the whole wait.
struct AttachChange {
    attach: BTreeSet<PollId>,
    detach: BTreeSet<PollId>,
}

impl Coalescer {
    /// Forgets a landed poll and plans its waits again (P2): their own time goes on.
    pub(super) fn release(&mut self, id: PollId, landing: Option<&Landing>, now: Instant) {
        let Some(poll) = self.state.poll(id) else { return };
        let (origin, brought) = (self.plan_origin(poll), poll.spec.jobs.clone());
        let waits = self.forget_poll(id);
        for id in self.in_planning_order(waits.into_iter().map(|(wait, _)| wait)) {
            match self.change_after(id, &brought, now) {
                Some(change) => self.apply_change(id, change, now),
                None => self.plan_again(id, landing, origin, now),
            }
        }
    }

    /// Returns the origin of the polls that follow a landed one.
    fn plan_origin(&self, poll: &Poll) -> PlanOrigin {
        let index = self.state.job_index();
        let PollSpec { domain, ref jobs, goal, .. } = poll.spec;
        let is_at_goal = jobs.iter().all(|job| index.is_at(domain, job, goal));
        let is_next_snapshot = self.timing.pace.is_some() && poll.chain.since.is_some();
        PlanOrigin { is_reopen: !is_at_goal || is_next_snapshot, chain_since: poll.chain.since }
    }

    /// Plans waits in their order.
    pub(super) fn attach_or_open_all(
        &mut self,
        waits: impl IntoIterator<Item = WaitId>,
        landing: Option<&Landing>,
        now: Instant,
    ) {
        for id in self.in_planning_order(waits) {
            self.attach_or_open(id, landing, now);
        }
    }

    /// Returns the waits with fewer jobs and lower goals first, so that the others attach to the polls that these open.
    pub(super) fn in_planning_order(&self, waits: impl IntoIterator<Item = WaitId>) -> Vec<WaitId> {
        let mut waits: Vec<(usize, Goal, WaitId)> = waits
            .into_iter()
            .filter_map(|id| self.state.wait(id).map(|wait| (wait.spec.jobs.len(), wait.current_goal, id)))
            .collect();
        waits.sort_unstable();
        waits.into_iter().map(|(_, _, id)| id).collect()
    }

    /// Plans the waits again that do not get the failure of a poll.
    ///
    /// A wait with an open poll of its own opens no other. For the jobs that it then has no poll for, the failed poll is
    /// repeated: the wait would hear of their refusal only after its own poll (P1).
    pub(super) fn plan_after_failure(
        &mut self,
        failed: &PollSpec,
        opener: Option<WaitId>,
        waits: Vec<WaitId>,
        now: Instant,
    ) {
        for id in self.in_planning_order(waits) {
            self.attach_or_open(id, None, now);
            if self.needs_again(id, failed) {
                let poll = Poll { cause: Cause::Reopen, ..Poll::new(failed.clone(), opener, now) };
                let poll = self.add_poll(poll);
                self.state.attach(id, [poll]);
                self.outputs.push_back(Output::Open(poll, failed.clone(), Cause::Reopen));
            }
        }
    }

    /// Returns whether a wait is held on, and no poll of it asks for one of the jobs of a poll that failed.
    fn needs_again(&self, id: WaitId, failed: &PollSpec) -> bool {
        let Some(wait) = self.state.wait(id) else { return false };
        // P4: a wait whose poll was shed gets no failure of another client, and would ask without end.
        let is_held = wait.phase == WaitPhase::Waiting && !wait.is_immediate(&self.timing) && !wait.was_shed;
        is_held && !wait.exact_set_only && self.lacks_poll(wait, &failed.jobs)
    }

    /// Returns whether a wait still needs one of the jobs, and no poll of it asks for that job.
    pub(super) fn lacks_poll(&self, wait: &Wait, jobs: &JobSet) -> bool {
        let polls = || wait.attached_polls.iter().filter_map(|&poll| self.state.poll(poll));
        let is_asked = |job: &JobId| polls().any(|poll| poll.spec.jobs.contains(job));
        jobs.iter().any(|job| self.reached_state(wait, job).is_none() && !is_asked(job))
    }

    /// Applies the attach rule to a wait that has no answer yet. A wait past its deadline ends instead, and one that
    /// cannot succeed fails at once.
    pub(super) fn attach_or_open(&mut self, id: WaitId, landing: Option<&Landing>, now: Instant) {
        self.plan_again(id, landing, PlanOrigin::default(), now);
    }

    /// Like [`attach_or_open`](Self::attach_or_open), after the end of a poll.
    pub(super) fn plan_again(
        &mut self,
        id: WaitId,
        landing: Option<&Landing>,
        origin: PlanOrigin,
        now: Instant,
    ) {
        #[cfg(test)]
        {
            self.plans += 1;
        }
        let Some(wait) = self.state.wait(id) else { return };
        if !wait.is_in_snapshot() && self.is_past_deadline(wait, now) {
            return self.end(id, landing, now);
        }
        if self.is_ended_by_pause(wait, now) {
            return self.give_up(id, now);
        }
        let polls = self.state.job_index().polls_within(wait.spec.domain, &wait.spec.jobs); // P11
        let polls = polls.filter_map(|id| self.state.poll(id).map(|poll| (id, poll)));
        let is_answered = |job: &JobId| self.reached_state(wait, job).is_some();
        let plan = plan(id, wait, polls, is_answered, &self.timing);
        self.apply(id, plan, origin, now);
    }

    fn apply(&mut self, id: WaitId, plan: AttachPlan, mut origin: PlanOrigin, now: Instant) {
        let detached = self.state.set_attached(id, plan.attach);
        let has_opened = self.state.wait(id).is_some_and(|wait| wait.opened);
        origin.is_reopen |= self.timing.pace.is_some() && has_opened;
        for jobs in plan.open {
            match self.read_lately(id, &jobs, origin, now) {
                Some(read_at) => self.open_later(id, jobs, read_at, now),
                None => self.open(id, jobs, origin, now),
            }
        }
        self.after_change(id, detached, now);
    }

    pub(super) fn open(&mut self, opener: WaitId, jobs: JobSet, origin: PlanOrigin, now: Instant) {
        let Some(wait) = self.state.wait(opener) else { return };
        let is_immediate = match self.timing.pace {
            Some(_) => wait.is_immediate(&self.timing),
            None => self.timing.is_immediate(wait.spec.goal),
        };
        let cause = match wait.spec.proof {
            _ if wait.is_in_snapshot() => Cause::Deadline,
            Proof::NoCache if is_immediate => Cause::NoCache,
            _ if is_immediate => Cause::Snapshot,
            _ if origin.is_reopen => Cause::Reopen,
            _ if jobs.len() > 1 => Cause::Batch,
            _ => Cause::Wait,
        };
        let (domain, form, goal) = (wait.spec.domain, wait.spec.form, wait.current_goal);
        let goal = if self.timing.pace.is_some() { Goal::Now } else { goal };
        let spec = PollSpec { domain, form, jobs, goal };
        let since = origin.chain_since.or_else(|| self.chain_since(&spec));
        let chain = ChainLink { since, ..ChainLink::default() };
        let id = self.add_poll(Poll { cause, chain, ..Poll::new(spec.clone(), Some(opener), now) });
        self.state.attach_opened(opener, id);
        self.outputs.push_back(Output::Open(id, spec, cause));
    }

    pub(super) fn add_poll(&mut self, poll: Poll) -> PollId {
        let id = PollId(self.next_poll);
        self.next_poll += self.poll_step;
        self.state.add_poll(id, poll);
        id
    }

    /// Returns the new attachments of a wait after a poll for the jobs `brought` is gone, or `None` if the whole wait has
    /// to be planned.
    ///
    /// The change suffices if other polls ask for those of the jobs that the wait still lacks, or if a poll of its own is
    /// open, so that it opens no other. Nothing has changed for its other jobs. A wait for a thousand jobs has two
    /// hundred polls, and each landing costs no more than the jobs of one of them.
    fn change_after(&self, id: WaitId, brought: &JobSet, now: Instant) -> Option<AttachChange> {
        let wait = self.state.wait(id)?;
        let is_due = !wait.is_in_snapshot() && self.is_past_deadline(wait, now);
        if wait.exact_set_only || wait.attached_polls.is_empty() || is_due {
            return None;
        }
        let is_own = |&poll: &PollId| self.state.poll(poll).is_some_and(|poll| poll.opener == Some(id));
        let has_own = wait.attached_polls.iter().any(is_own);
        let (mut attach, mut detach) = (BTreeSet::new(), BTreeSet::new());
        for job in brought {
            let polls = self.state.job_index().polls_for(wait.spec.domain, job);
            let polls = polls.filter_map(|id| self.state.poll(id).map(|poll| (id, poll)));
            if self.reached_state(wait, job).is_some() {
                let is_needed =
                    |poll: &Poll| poll.spec.jobs.iter().any(|job| self.reached_state(wait, job).is_none());
                let attached = polls.filter(|(id, _)| wait.attached_polls.contains(id));
                detach.extend(attached.filter(|(_, poll)| !is_needed(poll)).map(|(id, _)| id));
            } else {
                let before = attach.len();
                let attachable = polls.filter(|(_, poll)| may_attach(poll, id, wait, &self.timing));
                attach.extend(attachable.map(|(id, _)| id));
                if attach.len() == before && !has_own {
                    return None;
                }
            }
        }
        let is_left_alone = attach.is_empty() && detach.len() == wait.attached_polls.len();
        (!is_left_alone).then_some(AttachChange { attach, detach })
    }

    fn apply_change(&mut self, id: WaitId, change: AttachChange, now: Instant) {
        self.state.attach(id, change.attach);
        change.detach.iter().for_each(|poll| self.state.detach(id, *poll));
        self.after_change(id, change.detach, now);
    }

    fn after_change(&mut self, id: WaitId, detached: impl IntoIterator<Item = PollId>, now: Instant) {
        self.let_linger(detached, now);
        if self.state.wait(id).is_some_and(|wait| self.cannot_succeed(wait, now)) {
            self.give_up(id, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;
    use std::time::Duration;

    use super::*;
    use crate::clock;
    use crate::core::coalescer::types::WaitSpec;
    use crate::core::job::KeyDomain;
    use crate::core::route::{Form, Route};

    const WAIT: WaitId = WaitId(9);

    static ZERO: LazyLock<Instant> = LazyLock::new(clock::now);

    static TIMING: LazyLock<Timing> = LazyLock::new(|| Timing {
        ladder: Route::suno().ladder,
        hold: Duration::from_secs(120),
        linger: Duration::from_secs(2),
        watch_idle: Duration::ZERO,
        max_jobs: 3,
        proves: true,
        pace: None,
    });

    fn at(secs: u64) -> Instant {
        *ZERO + Duration::from_secs(secs)
    }

    fn jobs(ids: &str) -> JobSet {
        JobSet::new(ids.split(' ').map(|id| JobId::new(id).unwrap()))
    }

    fn goal(word: &str) -> Goal {
        TIMING.ladder.rung(word).map_or(Goal::Now, Goal::Rung)
    }

    /// Returns a poll that another wait opened at 0 s and that the upstream holds.
    fn poll(ids: &str, word: &str) -> Poll {
        let form = if ids.contains(' ') { Form::Multi } else { Form::Single };
        let spec = PollSpec { domain: KeyDomain([0; 16]), form, jobs: jobs(ids), goal: goal(word) };
        let mut poll = Poll::new(spec, Some(WaitId(0)), at(0));
        poll.attempt = AttemptState::Held { since: at(0) };
        poll
    }

    impl Poll {
        fn opened_at(self, secs: u64) -> Self {
            Self { opened_at: at(secs), attempted_at: at(secs), ..self }
        }

        fn opened_by_the_wait(self) -> Self {
            Self { opener: Some(WAIT), ..self }
        }

        fn paused_until(self, secs: u64) -> Self {
            Self { attempt: AttemptState::Paused { until: at(secs), is_of_key: false }, ..self }
        }

        fn paused_with_its_key_until(self, secs: u64) -> Self {
            Self { attempt: AttemptState::Paused { until: at(secs), is_of_key: true }, ..self }
        }

        fn backing_off_until(self, secs: u64) -> Self {
            Self { attempt: AttemptState::BackingOff { until: at(secs) }, ..self }
        }

        fn throttled_at(self, secs: u64) -> Self {
            Self { retry_after: Some((at(secs), at(secs + 60))), ..self }
        }
    }

    /// Returns a wait that arrives at 10 s and has time until the hold of a poll from 0 s ends.
    fn wait(ids: &str, word: &str) -> Wait {
        Wait::new(WaitSpec {
            domain: KeyDomain([0; 16]),
            form: if ids.contains(' ') { Form::Multi } else { Form::Single },
            jobs: jobs(ids),
            goal: goal(word),
            arrived: at(10),
            timeout: Duration::from_secs(110),
            keep: true,
            is_patient: false,
            newer_than: None,
            known: Vec::new(),
            proof: Proof::Never,
        })
    }

    impl Wait {
        fn with_time_until(mut self, secs: u64) -> Self {
            self.spec.timeout = at(secs) - self.spec.arrived;
            Wait::new(self.spec)
        }

        fn for_its_exact_set(mut self) -> Self {
            self.exact_set_only = true;
            self
        }

        fn in_its_snapshot(mut self) -> Self {
            self.phase = WaitPhase::Snapshot { since: self.deadline() };
            self.current_goal = Goal::Rung(TIMING.ladder.lowest());
            self
        }
    }

    struct Case {
        name: &'static str,
        polls: Vec<Poll>,
        wait: Wait,
        /// Jobs that have their answer.
        answered: &'static str,
        /// Numbers of the polls to attach to, and the jobs of each poll to open.
        plan: (&'static [u64], &'static [&'static str]),
    }

    fn case(
        name: &'static str,
        polls: impl IntoIterator<Item = Poll>,
        wait: Wait,
        plan: (&'static [u64], &'static [&'static str]),
    ) -> Case {
        Case { name, polls: polls.into_iter().collect(), wait, answered: "-", plan }
    }

    fn check(cases: impl IntoIterator<Item = Case>) {
        for Case { name, polls, wait, answered, plan: (attach, open) } in cases {
            let polls = (0..).map(PollId).zip(&polls);
            let answered = jobs(answered);
            let plan = plan(WAIT, &wait, polls, |job| answered.contains(job), &TIMING);
            let attached: Vec<u64> = plan.attach.iter().map(|poll| poll.0).collect();
            assert_eq!(attached, attach, "attached: {name}");
            let expected: Vec<JobSet> = open.iter().map(|ids| jobs(ids)).collect();
            assert_eq!(plan.open, expected, "opened: {name}");
        }
    }

    #[test]
    fn a_wait_for_one_job_attaches_to_polls_for_it_that_end_no_later_than_its_own_would() {
        check([
            case("no poll is open", [], wait("a", "completed"), (&[], &["a"])),
            case("an identical wait (P3)", [poll("a", "completed")], wait("a", "completed"), (&[0], &[])),
            case(
                "one with time beyond the hold: the next poll follows when this one ends (P2)",
                [poll("a", "completed")],
                wait("a", "completed").with_time_until(200),
                (&[0], &[]),
            ),
            case("a lower rung", [poll("a", "streaming")], wait("a", "completed"), (&[0], &[])),
            case("a higher rung (P1)", [poll("a", "completed")], wait("a", "streaming"), (&[], &["a"])),
            case("another job", [poll("b", "completed")], wait("a", "completed"), (&[], &["a"])),
            case(
                "a poll that asks for another job too (P5)",
                [poll("a b", "completed")],
                wait("a", "completed"),
                (&[], &["a"]),
            ),
            case(
                "all that fit",
                [poll("a", "completed"), poll("a b", "queued"), poll("a", "queued")],
                wait("a", "completed"),
                (&[0, 2], &[]),
            ),
        ]);
    }

    #[test]
    fn a_wait_for_several_jobs_opens_one_poll_for_the_jobs_that_no_open_poll_covers() {
        check([
            case(
                "order is irrelevant (P3)",
                [poll("b a", "completed")],
                wait("a b", "completed"),
                (&[0], &[]),
            ),
            case(
                "covered by several polls",
                [poll("a", "completed"), poll("b", "streaming")],
                wait("a b", "completed"),
                (&[0, 1], &[]),
            ),
            case(
                "one job is missing, the open poll lasts as long as the wait",
                [poll("a", "completed")],
                wait("a b", "completed"),
                (&[0], &["b"]),
            ),
            case(
                "one job is missing, the open poll ends before the wait (P4)",
                [poll("a", "completed")],
                wait("a b", "completed").with_time_until(130),
                (&[0], &["a b"]),
            ),
            case(
                "one job is missing, the open poll is at a lower rung",
                [poll("a", "streaming")],
                wait("a b", "completed"),
                (&[0], &["a b"]),
            ),
            case(
                "an older and a newer poll for the same job",
                [poll("a", "completed"), poll("a", "completed").opened_at(60)],
                wait("a b", "completed").with_time_until(130),
                (&[0, 1], &["b"]),
            ),
            case(
                "more jobs than a poll may ask for",
                [poll("b", "completed")],
                wait("a b c d e", "completed"),
                (&[0], &["a c d", "e"]),
            ),
            case(
                "a poll of its own is still open (P4)",
                [poll("a", "completed").opened_by_the_wait()],
                wait("a b", "completed"),
                (&[0], &[]),
            ),
        ]);
    }

    #[test]
    fn a_wait_asks_for_jobs_without_an_answer_only() {
        check([
            Case { answered: "a", ..case("nothing open", [], wait("a b c", "completed"), (&[], &["b c"])) },
            Case {
                answered: "a",
                ..case(
                    "a poll for the answered job",
                    [poll("a", "completed")],
                    wait("a b", "completed"),
                    (&[], &["b"]),
                )
            },
            Case {
                answered: "a",
                ..case(
                    "a poll for both jobs",
                    [poll("a b", "completed")],
                    wait("a b", "completed"),
                    (&[0], &[]),
                )
            },
            Case {
                answered: "a b",
                ..case(
                    "an answer that could not be split: the exact set again",
                    [poll("a", "completed")],
                    wait("a b", "completed").for_its_exact_set(),
                    (&[], &["a b"]),
                )
            },
            case(
                "an answer that could not be split: another wait asks for the exact set",
                [poll("a b", "completed")],
                wait("a b", "completed").for_its_exact_set(),
                (&[0], &[]),
            ),
        ]);
    }

    #[test]
    fn waits_without_a_status_and_snapshots_attach_to_polls_at_the_lowest_rung() {
        check([
            case("no status, no status", [poll("a", "")], wait("a", ""), (&[0], &[])),
            case("no status, the lowest rung", [poll("a", "submitted")], wait("a", ""), (&[0], &[])),
            case("no status, a higher rung", [poll("a", "queued")], wait("a", ""), (&[], &["a"])),
            case("a rung, no status", [poll("a", "")], wait("a", "completed"), (&[], &["a"])),
            case(
                "a snapshot at a deadline",
                [poll("a", "completed"), poll("a", "submitted")],
                wait("a", "completed").in_its_snapshot(),
                (&[1], &[]),
            ),
        ]);
    }

    #[test]
    fn a_wait_opens_its_own_poll_where_an_earlier_pause_would_outlast_it() {
        let paused = |secs| [poll("a", "completed").paused_until(secs)];
        check([
            case("shorter pause", paused(60), wait("a", "completed"), (&[0], &[])),
            case("longer pause", paused(500), wait("a", "completed"), (&[], &["a"])),
            case(
                "longer pause, asked for after the wait arrived",
                [poll("a", "completed").opened_at(20).paused_until(500)],
                wait("a", "completed"),
                (&[0], &[]),
            ),
            case(
                "longer pause of the key: a new poll would be paused too",
                [poll("a", "completed").paused_with_its_key_until(500)],
                wait("a", "completed"),
                (&[0], &[]),
            ),
            case(
                "no status, its poll is paused",
                [poll("a", "").paused_until(20)],
                wait("a", ""),
                (&[], &["a"]),
            ),
            case(
                "no status, its key is paused: the request is sent all the same",
                [poll("a", "").paused_with_its_key_until(20)],
                wait("a", ""),
                (&[], &["a"]),
            ),
            case(
                "backing off: the caller starts an attempt at once",
                [poll("a", "completed").backing_off_until(500)],
                wait("a", "completed"),
                (&[0], &[]),
            ),
            case(
                "throttled by a success with Retry-After before the wait arrived (P1)",
                [poll("a", "completed").throttled_at(5)],
                wait("a", "completed"),
                (&[], &["a"]),
            ),
            case(
                "throttled after the wait arrived",
                [poll("a", "completed").throttled_at(15)],
                wait("a", "completed"),
                (&[0], &[]),
            ),
        ]);
    }
}
