//! One gateway of the sweep: its machines, and its attempts at the upstream.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::engine::TAKEOVER;
use super::network::ToEngine;
use super::oracle::LostAnswer;
use super::plan::SweepPlan;
use super::{HOLD, SweepEvent, World, domain};
use crate::core::coalescer::{
    Cause, Coalescer, Failure, Input, Output, PollId, PollOutcome, PollProgress, PollSpec, Timing, WaitId,
    WaitSpec,
};
use crate::core::job::{JobSet, JobState, ResponseHead, UpstreamResponse};
use crate::core::route::{Form, Goal, Route};
use crate::core::siblings::{ReplicaName, ShareSpec, SiblingConfig, SiblingInput, SiblingOutput, Siblings};

/// Time between two attempts of a poll.
pub(super) const RETRY: Duration = Duration::from_secs(1);
/// Time for which an attempt that fails seems to be held.
const ACCEPTED: Duration = Duration::from_millis(5);

pub(super) struct Replica {
    pub(super) coalescer: Coalescer,
    pub(super) siblings: Siblings,
    /// Zero of this replica's own clock.
    pub(super) zero: Instant,
    pub(super) is_alive: bool,
    pub(super) is_accepting: bool,
    pub(super) frozen_until: Duration,
    /// End of the time without a way to the upstream.
    pub(super) cut_off_until: Duration,
    /// Name and generation of the link, while it is up.
    pub(super) link: Option<ReplicaName>,
    pub(super) generation: u64,
    pub(super) is_subscribed: bool,
    /// End of the time in which subscriptions have no effect.
    pub(super) mute_until: Duration,
    /// Last arrivals on the way to the engine, of answers and of messages: each way keeps its order.
    pub(super) last: [Duration; 3],
    /// Start of the drain.
    pub(super) drained_at: Option<Duration>,
    /// Polls that the coalescer opened.
    pub(super) polls: BTreeMap<PollId, SweepPoll>,
    /// Attempts under way.
    pub(super) runs: BTreeMap<PollId, Duration>,
    used: BTreeSet<PollId>,
}

/// A poll of the coalescer, and its makers in their order.
#[derive(Debug)]
pub(super) struct SweepPoll {
    pub(super) spec: PollSpec,
    pub(super) maker: Vec<(Duration, PollMaker)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PollMaker {
    /// The replica itself.
    Own,
    /// A sibling, or a claim is under way.
    Elsewhere,
    /// The poll has ended.
    Ended,
}

impl Replica {
    pub(super) fn new(n: usize, plan: &SweepPlan, route: &Route, rng: &mut fastrand::Rng) -> Self {
        let timing = Timing {
            proves: plan.pace.is_none(),
            ladder: route.ladder.clone(),
            hold: plan.pace.map_or(HOLD, |_| Duration::ZERO),
            linger: plan.linger,
            watch_idle: Duration::ZERO,
            max_jobs: plan.max_jobs,
            pace: plan.pace,
        };
        let config = SiblingConfig {
            instance: n as u64 + 1,
            patience: Duration::from_millis(50),
            takeover: TAKEOVER,
            linger: plan.linger,
            refusal_ttl: Duration::from_secs(60),
            ladders: vec![route.ladder.clone()],
        };
        Self {
            coalescer: Coalescer::new(timing),
            siblings: Siblings::new(config),
            zero: crate::clock::now() + Duration::from_secs(rng.u64(1..1_000)),
            is_alive: true,
            is_accepting: true,
            frozen_until: Duration::ZERO,
            cut_off_until: Duration::ZERO,
            link: None,
            generation: 0,
            is_subscribed: false,
            mute_until: Duration::ZERO,
            last: [Duration::ZERO; 3],
            drained_at: None,
            polls: BTreeMap::new(),
            runs: BTreeMap::new(),
            used: BTreeSet::new(),
        }
    }

    /// Returns when a timer is due, by the time of the run.
    pub(super) fn timer(&self) -> Option<Duration> {
        if !self.is_alive {
            return None;
        }
        let due =
            [self.coalescer.poll_timeout(), self.siblings.poll_timeout()].into_iter().flatten().min()?;
        Some(due.saturating_duration_since(self.zero).max(self.frozen_until))
    }
}

/// Returns the number of the attempt that brought a state.
pub(super) fn attempt_of(head: &ResponseHead) -> u64 {
    std::str::from_utf8(&head.shared[0].1).unwrap().parse().unwrap()
}

impl World {
    pub(super) fn wait_spec(&self, number: usize, n: usize) -> WaitSpec {
        let client = &self.plan.clients[number];
        WaitSpec {
            newer_than: None,
            domain: domain(client.domain),
            form: if client.jobs.len() == 1 { Form::Single } else { Form::Multi },
            jobs: JobSet::new(client.jobs.iter().map(|&job| self.plan.jobs[job].id.clone())),
            goal: client.goal.map_or(Goal::Now, |goal| Goal::Rung(self.rungs[goal])),
            arrived: self.replicas[n].zero + self.now,
            timeout: client.timeout,
            keep: true,
            is_patient: false,
            known: Vec::new(),
            proof: client.proof,
        }
    }

    /// Carries out all outputs of a replica's machines, as the hub will.
    pub(super) fn carry_out(&mut self, n: usize) {
        loop {
            let replica = &mut self.replicas[n];
            if let Some(output) = replica.coalescer.poll_output() {
                self.carry_out_coalescer(n, output);
            } else if let Some(output) = replica.siblings.poll_output() {
                self.carry_out_sibling(n, output);
            } else {
                break;
            }
        }
        self.record_makers(n);
    }

    /// Records for each poll whether the replica makes it.
    fn record_makers(&mut self, n: usize) {
        let now = self.now;
        let Replica { siblings, polls, .. } = &mut self.replicas[n];
        let is_own = |id: PollId| {
            let own = |name| siblings.polls.get(name).is_some_and(|poll| poll.own().is_some());
            siblings.solo.contains(&id) || siblings.polls.of_local(id).is_some_and(own)
        };
        for (id, poll) in polls.iter_mut() {
            let last = poll.maker.last().map(|(_, maker)| *maker);
            if last != Some(PollMaker::Ended) {
                let maker = if is_own(*id) { PollMaker::Own } else { PollMaker::Elsewhere };
                if last != Some(maker) {
                    poll.maker.push((now, maker));
                }
            }
        }
    }

    fn poll_ended(&mut self, n: usize, id: PollId) {
        let now = self.now;
        if let Some(poll) = self.replicas[n].polls.get_mut(&id) {
            poll.maker.push((now, PollMaker::Ended));
        }
    }

    fn carry_out_coalescer(&mut self, n: usize, output: Output) {
        let now = self.replicas[n].zero + self.now;
        match output {
            Output::Open(id, spec, cause) => {
                self.trace(|| {
                    format!("[{n}] {id:?} opens for {:?} at {:?}: {cause:?}", spec.jobs, spec.goal)
                });
                let share = ShareSpec {
                    name: self.name(&spec),
                    domain: spec.domain,
                    jobs: spec.jobs.clone(),
                    goal: spec.goal,
                    hold: self.plan.pace.map_or(HOLD, |_| Duration::ZERO),
                    takes_known: cause != Cause::NoCache,
                    max_age: self.plan.pace.map_or(Duration::ZERO, |pace| pace.live_ttl),
                    needs_shape: false,
                };
                self.replicas[n].polls.insert(id, SweepPoll { spec, maker: Vec::new() });
                self.replicas[n].siblings.handle(SiblingInput::Open(id, share), now);
            }
            Output::Abort(id) => {
                self.trace(|| format!("[{n}] {id:?} is aborted"));
                self.poll_ended(n, id);
                self.replicas[n].siblings.handle(SiblingInput::Abort(id), now);
            }
            Output::Settle(WaitId(number), result) => {
                let number = usize::try_from(number).unwrap();
                self.trace(|| format!("[{n}] client {number} is answered: {:?}", result.end));
                self.settled(number, &result);
            }
        }
    }

    pub(super) fn carry_out_sibling(&mut self, n: usize, output: SiblingOutput) {
        let now = self.replicas[n].zero + self.now;
        match output {
            SiblingOutput::Start(run) => self.start(n, run),
            SiblingOutput::Cancel(run) => {
                self.trace(|| format!("[{n}] {run:?} is cancelled"));
                self.replicas[n].runs.remove(&run).expect("only a started poll is cancelled");
            }
            SiblingOutput::TryNow(_) | SiblingOutput::Shape(..) => {}
            SiblingOutput::Progress(id, progress) => {
                self.trace(|| format!("[{n}] {id:?}: {progress:?}"));
                self.replicas[n].coalescer.handle(Input::Progress(id, progress), now);
            }
            SiblingOutput::Landed(id, outcome) => {
                self.trace(|| format!("[{n}] {id:?} lands: {outcome:?}"));
                self.no_state_survives_a_dead_epoch(n, &outcome);
                self.poll_ended(n, id);
                self.replicas[n].coalescer.handle(Input::Landed(id, outcome), now);
            }
            SiblingOutput::Call(call, command) => self.send(n, ToEngine::Call(call, command)),
            SiblingOutput::CountSubscribers(name) => self.send(n, ToEngine::Count(name)),
            SiblingOutput::Resubscribe => self.send(n, ToEngine::Subscribe),
        }
    }

    fn start(&mut self, n: usize, run: PollId) {
        let spec = self.replicas[n].polls[&run].spec.clone();
        self.trace(|| format!("[{n}] {run:?} starts"));
        assert!(self.replicas[n].used.insert(run), "{run:?} starts twice");
        self.p3_identical_waits_share_one_poll(n, run, &spec);
        self.replicas[n].runs.insert(run, self.now);
        *self.started.entry((spec.domain.0[0], spec.goal)).or_default() += 1;
        self.attempt(n, run);
    }

    /// Makes an attempt. Each failure of the way to the upstream is followed by another one.
    fn attempt(&mut self, n: usize, run: PollId) {
        let spec = self.replicas[n].polls[&run].spec.clone();
        let now = self.replicas[n].zero + self.now;
        self.replicas[n].siblings.handle(SiblingInput::Progress(run, PollProgress::AttemptStarted), now);
        let sent = self.now + self.hop();
        if self.now < self.replicas[n].cut_off_until {
            // Without a connection, or on one that is closed as soon as the request is on it.
            let is_connected = self.now.as_millis().is_multiple_of(2);
            if is_connected {
                self.at(sent, SweepEvent::Sent(n, run));
            }
            let fails = if is_connected { sent + ACCEPTED } else { sent };
            return self.at(fails, SweepEvent::CutOff(n, run));
        }
        self.at(sent, SweepEvent::Sent(n, run));
        let arrives = sent + self.hop();
        let jobs: Vec<usize> = self.jobs_of(&spec);
        let goal = self.rungs.iter().position(|&rung| spec.goal == Goal::Rung(rung)).unwrap_or(0);
        let reached = jobs.iter().map(|&job| self.plan.jobs[job].steps.reaches_at(goal));
        let reached =
            reached.collect::<Option<Vec<_>>>().map(|all| all.into_iter().fold(arrives, Duration::max));
        let answered = match self.plan.pace {
            Some(_) => arrives,
            None => reached.filter(|at| *at <= arrives + HOLD).unwrap_or(arrives + HOLD),
        };
        if self.plan.is_failing && self.rng.u8(..4) == 0 {
            *self.failed.entry((spec.domain.0[0], spec.goal)).or_default() += 1;
            let fails = arrives + Duration::from_millis(self.rng.u64(..20_000));
            for job in jobs {
                let at = self.fails_at.entry(job).or_default();
                *at = fails.max(*at);
                self.lost.extend((answered < fails).then_some(LostAnswer {
                    job,
                    from: answered,
                    until: fails,
                }));
            }
            return self.at(fails, SweepEvent::Ended(n, run, PollOutcome::Failed(Failure::Unreachable)));
        }
        if jobs.iter().any(|&job| self.plan.jobs[job].is_refused) {
            let body = Bytes::from(format!("{}", spec.domain.0[0]));
            let reply = UpstreamResponse { status: 404, head: Arc::new(ResponseHead::default()), body };
            let lands = arrives + self.hop();
            return self.at(lands, SweepEvent::Ended(n, run, PollOutcome::Refused(Arc::new(reply))));
        }
        self.next_attempt += 1;
        let states = jobs.iter().map(|&job| self.state(n, job, answered)).collect();
        let read = answered + self.hop();
        self.at(read, SweepEvent::Ended(n, run, PollOutcome::Jobs(states)));
    }

    /// Cuts a replica off from the upstream, with the attempts under way.
    pub(super) fn break_egress(&mut self, n: usize, until: Duration) {
        self.replicas[n].cut_off_until = until;
        self.queue.retain(|_, event| match event {
            SweepEvent::Sent(of, _) | SweepEvent::Ended(of, ..) => *of != n,
            _ => true,
        });
        let waiting = |event: &SweepEvent| match event {
            SweepEvent::CutOff(of, run) | SweepEvent::Retry(of, run) if *of == n => Some(*run),
            _ => None,
        };
        let waiting: BTreeSet<PollId> = self.queue.values().filter_map(waiting).collect();
        let runs: Vec<PollId> = self.replicas[n].runs.keys().copied().collect();
        for run in runs.into_iter().filter(|run| !waiting.contains(run)) {
            self.at(self.now, SweepEvent::CutOff(n, run));
        }
    }

    pub(super) fn cut_off(&mut self, n: usize, run: PollId) -> Option<usize> {
        let replica = &mut self.replicas[n];
        if !replica.is_alive || !replica.runs.contains_key(&run) {
            return None;
        }
        let now = replica.zero + self.now;
        // A drain meanwhile answers with that failure.
        let spec = replica.polls[&run].spec.clone();
        for job in self.jobs_of(&spec) {
            let at = self.fails_at.entry(job).or_default();
            *at = self.now.max(*at);
        }
        let replica = &mut self.replicas[n];
        let progress = PollProgress::BackingOff(Failure::Unreachable, RETRY);
        replica.siblings.handle(SiblingInput::Progress(run, progress), now);
        self.at(self.now + RETRY, SweepEvent::Retry(n, run));
        Some(n)
    }

    pub(super) fn retry(&mut self, n: usize, run: PollId) -> Option<usize> {
        let replica = &self.replicas[n];
        if !replica.is_alive || !replica.runs.contains_key(&run) {
            return None;
        }
        self.attempt(n, run);
        Some(n)
    }

    /// Returns the true state of a job. Its body names the key domain and the job, its head the attempt.
    pub(super) fn state(&self, n: usize, job: usize, at: Duration) -> JobState {
        let planned = &self.plan.jobs[job];
        let rung = planned.steps.rung_at(at);
        let at = self.replicas[n].zero + at;
        let attempt = ("attempt".into(), Bytes::from(self.next_attempt.to_string()));
        JobState {
            id: planned.id.clone(),
            rung: Some(self.rungs[rung]),
            body: Bytes::from(format!("{} {} {rung}", planned.domain, planned.id)),
            head: Arc::new(ResponseHead { shared: vec![attempt], ..ResponseHead::default() }),
            seen_at: at,
            as_of: at,
        }
    }

    pub(super) fn jobs_of(&self, spec: &PollSpec) -> Vec<usize> {
        let jobs = self.plan.jobs.iter().enumerate();
        let asked = jobs.filter(|(_, job)| domain(job.domain) == spec.domain && spec.jobs.contains(&job.id));
        asked.map(|(number, _)| number).collect()
    }

    pub(super) fn hop(&mut self) -> Duration {
        self.plan.hop.mul_f64(self.rng.f64())
    }

    pub(super) fn sent(&mut self, n: usize, run: PollId) -> Option<usize> {
        let replica = &mut self.replicas[n];
        if !replica.is_alive || !replica.runs.contains_key(&run) {
            return None;
        }
        let now = replica.zero + self.now;
        replica.siblings.handle(SiblingInput::Progress(run, PollProgress::Held), now);
        Some(n)
    }

    pub(super) fn ended(&mut self, n: usize, run: PollId, mut outcome: PollOutcome) -> Option<usize> {
        let now = self.now;
        let replica = &mut self.replicas[n];
        if !replica.is_alive || replica.runs.remove(&run).is_none() {
            return None;
        }
        let now = replica.zero + now;
        if let PollOutcome::Jobs(states) = &mut outcome {
            states.iter_mut().for_each(|state| (state.seen_at, state.as_of) = (now, now));
        }
        replica.siblings.handle(SiblingInput::Ended(run, outcome), now);
        Some(n)
    }
}
