//! The day: the true life of each job, and the visits of the clients. Everything follows from the seed.
//!
//! ```text
//!   time ──▶
//!   job       submitted ── queued ──── streaming ──────── completed
//!   creator   ├─ visit ───────────────────────────────────┤
//!   follower            ├─ visit ────────────────────────┤
//!   reader                                                      ├┤
//! ```

use std::time::Duration;

use super::mix::{Habit, JobMix, Mix};

/// A state of a job, by its number on the ladder of Suno's clips.
pub(crate) type RungNumber = usize;

pub(crate) const SUBMITTED: RungNumber = 0;
pub(crate) const QUEUED: RungNumber = 1;
pub(crate) const STREAMING: RungNumber = 2;
pub(crate) const COMPLETED: RungNumber = 3;
pub(crate) const ERROR: RungNumber = 4;

/// A scripted day.
#[derive(Debug)]
pub(crate) struct Day {
    pub(crate) seed: u64,
    pub(crate) jobs: Vec<JobLife>,
    pub(crate) visits: Vec<Visit>,
}

/// A job: the time at which it reaches each of its states.
#[derive(Debug)]
pub(crate) struct JobLife {
    steps: Vec<(Duration, RungNumber)>,
}

/// A client that follows jobs from its arrival until they are done.
#[derive(Debug)]
pub(crate) struct Visit {
    pub(crate) key: usize,
    /// Indices into [`Day::jobs`].
    pub(crate) jobs: Vec<usize>,
    pub(crate) habit: Habit,
    pub(crate) arrives: Duration,
    /// Time at which the client gives up.
    pub(crate) leaves: Option<Duration>,
    /// Seed of the client's own choices.
    pub(crate) seed: u64,
}

impl JobLife {
    /// Draws the life of a job that is created at `at`.
    fn draw(mix: &JobMix, mut at: Duration, rng: &mut fastrand::Rng) -> Self {
        let fails_after = (rng.f64() < mix.failed).then(|| rng.usize(SUBMITTED..=STREAMING));
        let mut steps = Vec::new();
        for (rung, time) in [(SUBMITTED, mix.submitted), (QUEUED, mix.queued), (STREAMING, mix.streaming)] {
            // Each job is seen somewhere before its end.
            let is_skipped = rng.f64() < mix.skipped && (rung < STREAMING || !steps.is_empty());
            if !is_skipped {
                steps.push((at, rung));
                at += time.draw(rng);
            }
            if fails_after == Some(rung) && !steps.is_empty() {
                steps.push((at, ERROR));
                return Self { steps };
            }
        }
        steps.push((at, if fails_after.is_some() { ERROR } else { COMPLETED }));
        Self { steps }
    }

    /// Returns the time at which the job is completed or has failed.
    pub(crate) fn done_at(&self) -> Duration {
        self.steps[self.steps.len() - 1].0
    }

    pub(crate) fn rung_at(&self, at: Duration) -> RungNumber {
        self.steps.iter().rev().find(|(since, _)| *since <= at).unwrap_or(&self.steps[0]).1
    }

    /// Returns the time at which the job reaches this rung or a higher one.
    pub(crate) fn reaches_at(&self, rung: RungNumber) -> Duration {
        self.steps.iter().find(|step| step.1 >= rung).map_or(Duration::MAX, |step| step.0)
    }

    /// Returns how long ago the job was last at this rung; `None` if it was not yet.
    pub(crate) fn since_at(&self, rung: RungNumber, now: Duration) -> Option<Duration> {
        let position = self.steps.iter().position(|&(at, step)| step == rung && at <= now)?;
        let left_at = self.steps.get(position + 1).map_or(Duration::MAX, |step| step.0);
        Some(now.saturating_sub(left_at))
    }
}

impl Day {
    /// Draws the day of a seed.
    pub(crate) fn new(mix: &Mix, seed: u64) -> Self {
        let mut draw = Draw { mix, rng: fastrand::Rng::with_seed(seed), members: Vec::new() };
        draw.deal_keys();
        let mut day = Self { seed, jobs: Vec::new(), visits: Vec::new() };
        while day.jobs.len() < mix.day.jobs {
            let wants = mix.day.jobs - day.jobs.len();
            draw.creation(&mut day, wants);
        }
        day
    }
}

/// A member of the team.
#[derive(Clone, Copy, Debug)]
struct Member {
    key: usize,
    habit: Habit,
    is_worker: bool,
}

/// The generator of a day.
struct Draw<'a> {
    mix: &'a Mix,
    rng: fastrand::Rng,
    members: Vec<Member>,
}

impl Draw<'_> {
    /// Gives each member one of the keys, in turn.
    fn deal_keys(&mut self) {
        for (groups, is_worker) in [(&self.mix.people, false), (&self.mix.workers, true)] {
            for group in groups {
                let member = Member { key: 0, habit: group.habit, is_worker };
                self.members.extend(std::iter::repeat_n(member, group.count));
            }
        }
        self.rng.shuffle(&mut self.members);
        for (number, member) in self.members.iter_mut().enumerate() {
            member.key = number % self.mix.day.keys;
        }
    }

    /// Lets a member create jobs, and others follow and read them.
    fn creation(&mut self, day: &mut Day, max_jobs: usize) {
        let by_worker = self.rng.f64() < self.mix.day.by_workers;
        let creator = self.member(|member| member.is_worker == by_worker);
        let at = self.mix.day.length.0.mul_f64(self.rng.f64());
        let count = match creator.habit {
            Habit::Batch(most) => self.rng.usize(1..=most).min(max_jobs),
            _ => 1,
        };
        let jobs: Vec<usize> = (day.jobs.len()..day.jobs.len() + count).collect();
        for _ in 0..count {
            day.jobs.push(JobLife::draw(&self.mix.job, at, &mut self.rng));
        }
        let done_at = jobs.iter().map(|&job| day.jobs[job].done_at()).max().unwrap_or(at);
        self.visits(day, creator, &jobs, at);
        for _ in 0..self.number(self.mix.day.followers) {
            let follower = self.member(|member| member.key == creator.key);
            let arrives = at + (done_at - at).mul_f64(self.rng.f64());
            self.visits(day, follower, &jobs, arrives);
        }
        for &job in &jobs {
            for _ in 0..self.number(self.mix.day.readers) {
                let arrives = day.jobs[job].done_at() + READ_WITHIN.mul_f64(self.rng.f64());
                let habit = Habit::Poll(super::mix::Time(READ_WITHIN)); // the first answer is the last state
                let seed = self.rng.u64(..);
                day.visits.push(Visit {
                    key: creator.key,
                    jobs: vec![job],
                    habit,
                    arrives,
                    leaves: None,
                    seed,
                });
            }
        }
    }

    /// Adds the visits of one member: one for all jobs of a batch, otherwise one a job.
    fn visits(&mut self, day: &mut Day, member: Member, jobs: &[usize], arrives: Duration) {
        let size = match member.habit {
            Habit::Batch(most) => most,
            _ => 1,
        };
        for jobs in jobs.chunks(size) {
            let done_at = jobs.iter().map(|&job| day.jobs[job].done_at()).max().unwrap_or(arrives);
            let leaves = (self.rng.f64() < self.mix.day.abandoned)
                .then(|| arrives + done_at.saturating_sub(arrives).mul_f64(self.rng.f64()));
            let (key, habit, seed) = (member.key, member.habit, self.rng.u64(..));
            day.visits.push(Visit { key, jobs: jobs.to_vec(), habit, arrives, leaves, seed });
        }
    }

    /// Draws one of the suited members, or any member if none is suited.
    fn member(&mut self, is_suited: impl Fn(&Member) -> bool) -> Member {
        let suited: Vec<Member> = self.members.iter().filter(|member| is_suited(member)).copied().collect();
        let members = if suited.is_empty() { &self.members } else { &suited };
        members[self.rng.usize(..members.len())]
    }

    /// Draws a number with this mean: 0 to twice the mean.
    fn number(&mut self, mean: f64) -> usize {
        let drawn = self.rng.f64() * 2.0 * mean;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a small positive number"
        )]
        let floor = drawn as usize;
        floor + usize::from(self.rng.f64() < drawn.fract())
    }
}

/// Time after the end of a job in which readers come.
const READ_WITHIN: Duration = Duration::from_secs(3600);
