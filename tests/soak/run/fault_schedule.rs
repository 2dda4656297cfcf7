//! When the upstream is well and when it is not, fixed from the beginning of a run.
//!
//! ```text
//!  calm │ scenario │ recovery │ calm │ scenario │ recovery │ … │ calm, without end
//!                                                                       ▲         ▲
//!                                                     the last request is sent   the stop
//! ```
//!
//! A scenario is left out where it, its recovery and another calm do not fit before the last request is sent. So the
//! last period is calm whatever the length, and the stop is judged by the rules of a calm.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use clipgate::sim::{ErrorBody, Fault, FaultSpec, FaultTarget, Frequency, ListFormat, Sim};
use clipgate::testing::clock;
use fastrand::Rng;
use http::StatusCode;

use super::ask::{KEYS, Key};
use super::upstream::Upstream;

/// The kinds of scenarios.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScenarioKind {
    /// Random faults, each of its own share of the requests.
    Mixed,
    /// The port is closed and all connections are lost, for so many milliseconds.
    Away(u64),
    /// All connections are reset at one instant, and the upstream serves on.
    Reset,
    /// Each connection is closed as soon as it is accepted.
    Refused,
    /// Each request is told 502.
    Errors,
    /// Each request of one key is told an error, and no other.
    KeyErrors,
    /// One job is always told 429, and no other.
    JobThrottled,
}

impl ScenarioKind {
    /// All kinds by name. A long run has each of them again and again.
    const NAMED: [(&'static str, ScenarioKind); 9] = [
        ("mixed", ScenarioKind::Mixed),
        ("away-0.3", ScenarioKind::Away(300)),
        ("away-2", ScenarioKind::Away(2000)),
        ("away-8", ScenarioKind::Away(8000)),
        ("reset", ScenarioKind::Reset),
        ("refused", ScenarioKind::Refused),
        ("errors", ScenarioKind::Errors),
        ("key-errors", ScenarioKind::KeyErrors),
        ("throttled", ScenarioKind::JobThrottled),
    ];

    fn name(self) -> &'static str {
        Self::NAMED.iter().find(|(_, kind)| *kind == self).map_or("away", |(name, _)| name)
    }

    /// Whether it takes connections away and does nothing else.
    fn is_outage_only(self) -> bool {
        match self {
            ScenarioKind::Away(_) | ScenarioKind::Reset | ScenarioKind::Refused => true,
            ScenarioKind::Mixed | ScenarioKind::Errors => false,
            ScenarioKind::KeyErrors | ScenarioKind::JobThrottled => false,
        }
    }

    pub(crate) fn all() -> Vec<ScenarioKind> {
        Self::NAMED.map(|(_, kind)| kind).to_vec()
    }

    /// How long it goes on.
    fn length(self, hold: Duration) -> Duration {
        match self {
            ScenarioKind::Away(millis) => Duration::from_millis(millis),
            ScenarioKind::Reset => AT_ONCE,
            ScenarioKind::Refused | ScenarioKind::Errors => hold,
            ScenarioKind::KeyErrors | ScenarioKind::JobThrottled => hold * 3 / 2,
            ScenarioKind::Mixed => hold * 2,
        }
    }

    /// How long afterwards a client that asks only then may still meet the scenario. After an outage that is no time at
    /// all: such a request is a first attempt, and made at once, even if older polls wait for a retry.
    fn recovery(self, hold: Duration) -> Duration {
        match self {
            ScenarioKind::Away(_) | ScenarioKind::Reset | ScenarioKind::Refused => AT_ONCE,
            // A client may come while the last answer of the scenario is on its way.
            ScenarioKind::Errors | ScenarioKind::KeyErrors => Duration::from_secs(1),
            ScenarioKind::JobThrottled => THROTTLED_FOR + AT_ONCE,
            // The last fault may be a poll that hangs until its timeout, a twelfth over the hold and the time to connect.
            ScenarioKind::Mixed => hold + hold / 12 + Duration::from_secs(2),
        }
    }
}

impl FromStr for ScenarioKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::NAMED.iter().find(|(name, _)| *name == text);
        named.map(|(_, kind)| *kind).ok_or_else(|| {
            let names = Self::NAMED.map(|(name, _)| name).join(", ");
            format!("there is no scenario of this name. Use one of {names}.")
        })
    }
}

/// The time in which all clients meet a fault of one instant.
const AT_ONCE: Duration = Duration::from_millis(500);
/// What a 429 of the throttled job says in `Retry-After`.
const THROTTLED_FOR: Duration = Duration::from_secs(3);

/// One scenario: what is done to the upstream, and whom it concerns.
#[derive(Clone, Debug)]
pub(crate) enum Scenario {
    Faults { faults: Vec<FaultSpec> },
    Away,
    Reset,
    KeyErrors { key: Key, faults: Vec<FaultSpec> },
    JobThrottled { job: String, faults: Vec<FaultSpec> },
}

impl Scenario {
    fn new(kind: ScenarioKind, rng: &mut Rng) -> Self {
        let always = |target, fault| vec![FaultSpec { target, fault, frequency: Frequency::Share(1.0) }];
        match kind {
            ScenarioKind::Away(_) => Self::Away,
            ScenarioKind::Reset => Self::Reset,
            ScenarioKind::Mixed => {
                Self::Faults { faults: (0..rng.usize(2..=5)).map(|_| fault(rng)).collect() }
            }
            ScenarioKind::Refused => Self::Faults { faults: always(FaultTarget::Any, Fault::Refuse) },
            ScenarioKind::Errors => {
                Self::Faults { faults: always(FaultTarget::Any, Fault::status_with(502, ErrorBody::Html)) }
            }
            ScenarioKind::KeyErrors => {
                let key = Key::Good(rng.u8(..KEYS));
                Self::KeyErrors { key, faults: always(FaultTarget::Key(key.text()), server_error(rng)) }
            }
            ScenarioKind::JobThrottled => {
                let job = format!("throttled-{:016x}", rng.u64(..));
                let throttled = Fault::retry_after(429, THROTTLED_FOR);
                Self::JobThrottled { faults: always(FaultTarget::Clip(job.clone()), throttled), job }
            }
        }
    }

    /// Whether a request of this key for these jobs may meet it. A request that is not for jobs has none.
    fn concerns<'j>(&self, key: Key, mut jobs: impl Iterator<Item = &'j str>) -> bool {
        match self {
            Self::KeyErrors { key: failing, .. } => key == *failing,
            Self::JobThrottled { job: throttled, .. } => jobs.any(|job| job == throttled),
            Self::Faults { .. } | Self::Away | Self::Reset => true,
        }
    }

    /// Whether it takes connections away, whatever is asked for on them.
    fn is_outage(&self) -> bool {
        match self {
            Self::Away | Self::Reset => true,
            Self::Faults { faults, .. } => {
                faults.iter().any(|spec| spec.target == FaultTarget::Any && spec.fault == Fault::Refuse)
            }
            Self::KeyErrors { .. } | Self::JobThrottled { .. } => false,
        }
    }

    fn faults(&self) -> &[FaultSpec] {
        match self {
            Self::Faults { faults, .. }
            | Self::KeyErrors { faults, .. }
            | Self::JobThrottled { faults, .. } => faults,
            Self::Away | Self::Reset => &[],
        }
    }
}

/// A scenario with its times, since the beginning of the run.
#[derive(Debug)]
struct Period {
    kind: ScenarioKind,
    scenario: Scenario,
    from: Duration,
    to: Duration,
    /// How long after its end it may still concern who asks.
    recovery: Duration,
    /// When it was really over: a busy machine is late with it.
    ended: OnceLock<Duration>,
}

impl Period {
    /// When it is over: not before its time, and not before it is taken back.
    fn end(&self, now: Duration) -> Duration {
        self.to.max(self.ended.get().copied().unwrap_or(if self.from <= now { now } else { self.to }))
    }

    /// From then on it concerns nobody who asks.
    fn recovered(&self, now: Duration) -> Duration {
        self.end(now) + self.recovery
    }
}

/// The scenarios of a run. All time that is not theirs is calm.
#[derive(Debug)]
pub(crate) struct FaultSchedule {
    begun: Instant,
    periods: Vec<Period>,
}

impl FaultSchedule {
    /// The scenarios of these kinds, round by round in another order, that fit a run in which requests are sent for
    /// `length`.
    pub(crate) fn new(
        begun: Instant,
        length: Duration,
        hold: Duration,
        kinds: &[ScenarioKind],
        rng: &mut Rng,
    ) -> Self {
        let calm = hold.min(MIN_CALM);
        let (mut periods, mut at) = (Vec::new(), calm);
        let mut round: Vec<ScenarioKind> = Vec::new();
        loop {
            if round.is_empty() {
                round = kinds.to_vec();
                rng.shuffle(&mut round);
            }
            let ends = |kind: ScenarioKind| at + kind.length(hold) + kind.recovery(hold);
            let Some(next) = round.iter().position(|&kind| ends(kind) + calm <= length) else {
                // What is left of the round is too long; a whole round is tried before it is given up.
                if round.len() == kinds.len() {
                    break;
                }
                round.clear();
                continue;
            };
            let kind = round.remove(next);
            let (to, recovery, recovered) = (at + kind.length(hold), kind.recovery(hold), ends(kind));
            let scenario = Scenario::new(kind, rng);
            periods.push(Period { kind, scenario, from: at, to, recovery, ended: OnceLock::new() });
            at = recovered + calm;
        }
        Self { begun, periods }
    }

    /// Whether nothing goes wrong, nor has gone wrong, that a request of this key for these jobs may meet from the one
    /// moment to the other.
    pub(crate) fn is_calm_for<'j>(
        &self,
        key: Key,
        jobs: impl Iterator<Item = &'j str> + Clone,
        from: Instant,
        to: Instant,
    ) -> bool {
        !self.met(from, to).any(|period| period.scenario.concerns(key, jobs.clone()))
    }

    /// The end of the last outage that goes on at some moment between these.
    pub(crate) fn outage_end(&self, from: Instant, to: Instant) -> Option<Instant> {
        let now = self.since(clock::now());
        let outages = self.met(from, to).filter(|period| period.scenario.is_outage());
        let ends = outages.map(|period| self.begun + period.end(now));
        ends.filter(|end| *end > from).last()
    }

    /// Whether what goes on between these moments takes connections away and does nothing else.
    pub(crate) fn is_outage_only(&self, from: Instant, to: Instant) -> bool {
        self.met(from, to).all(|period| period.kind.is_outage_only())
    }

    /// The scenarios that somebody may meet between these moments.
    fn met(&self, from: Instant, to: Instant) -> impl Iterator<Item = &Period> {
        let (from, to, now) = (self.since(from), self.since(to), self.since(clock::now()));
        self.periods.iter().filter(move |period| period.from <= to && period.recovered(now) > from)
    }

    /// Where in the schedule a moment is, for people.
    pub(crate) fn place(&self, at: Instant) -> String {
        let at = self.since(at);
        let last = self.periods.iter().rfind(|period| period.from <= at);
        let last = last.map_or(String::new(), |Period { kind, from, .. }| {
            format!(", {:.1} s after the beginning of {}", (at - *from).as_secs_f64(), kind.name())
        });
        format!("at {:.1} s{last}:", at.as_secs_f64())
    }

    /// The scenario that goes on, if one does.
    pub(crate) fn scenario(&self, at: Instant) -> Option<(&'static str, &Scenario)> {
        let at = self.since(at);
        let period = self.periods.iter().find(|period| period.from <= at && at < period.to)?;
        Some((period.kind.name(), &period.scenario))
    }

    /// Carries the scenarios out. Cancel safe, but what goes on then is not taken back.
    pub(crate) async fn run(&self, sim: &Sim, upstream: &Upstream) -> std::io::Result<()> {
        for period in &self.periods {
            tokio::time::sleep_until((self.begun + period.from).into()).await;
            for spec in period.scenario.faults() {
                sim.inject(spec.clone());
            }
            match period.scenario {
                Scenario::Away => upstream.go_away().await,
                Scenario::Reset => sim.reset_connections(),
                Scenario::Faults { .. } | Scenario::KeyErrors { .. } | Scenario::JobThrottled { .. } => {}
            }
            tokio::time::sleep_until((self.begun + period.to).into()).await;
            sim.clear_faults();
            if matches!(period.scenario, Scenario::Away) {
                upstream.come_back().await?;
            }
            // It is set once, here.
            let _ = period.ended.set(self.since(clock::now()));
        }
        Ok(())
    }

    fn since(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.begun)
    }
}

impl fmt::Display for FaultSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for Period { kind, from, to, .. } in &self.periods {
            let name = kind.name();
            write!(f, "{separator}{name} {:.1} to {:.1} s", from.as_secs_f64(), to.as_secs_f64())?;
            separator = ", ";
        }
        if self.periods.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

/// The least time between two scenarios, where the hold is not shorter.
const MIN_CALM: Duration = Duration::from_secs(8);

fn server_error(rng: &mut Rng) -> Fault {
    let bodies = [ErrorBody::Json, ErrorBody::Html, ErrorBody::Empty];
    Fault::status_with([500, 502, 503, 504][rng.usize(..4)], bodies[rng.usize(..3)])
}

fn fault(rng: &mut Rng) -> FaultSpec {
    let second = Duration::from_secs(1);
    let fault = match rng.u8(..14) {
        0 => Fault::Refuse,
        1 => Fault::reset(),
        2 => Fault::reset_after(second.mul_f64(rng.f64() * 4.0)),
        3 => Fault::Hang,
        4 => Fault::Cut,
        5 => Fault::Html,
        6 => Fault::retry_after(429, second),
        7 => Fault::retry_after(503, second),
        8 => Fault::status(429),
        9 => server_error(rng),
        10 => Fault::Status {
            status: StatusCode::BAD_GATEWAY,
            retry_after: None,
            body: ErrorBody::Html,
            after: second.mul_f64(rng.f64() * 4.0),
        },
        11 => Fault::Shape(ListFormat::Object),
        12 => Fault::Shape(ListFormat::Map),
        _ => Fault::Shape(ListFormat::Summary),
    };
    let on = match rng.u8(..6) {
        0 => FaultTarget::Path("/sim/".to_owned()),
        1 => FaultTarget::Any,
        _ => FaultTarget::Polls,
    };
    let most = if matches!(fault, Fault::Hang) { 0.05 } else { 0.4 };
    FaultSpec { target: on, fault, frequency: Frequency::Share(rng.f64() * most) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long the gateway holds waits through an outage, `upstream.retry_for`.
    const RETRY_FOR: Duration = Duration::from_secs(30);

    /// A schedule that is carried out on time.
    fn schedule(seconds: u64, hold: u64, kinds: &[ScenarioKind], seed: u64) -> FaultSchedule {
        let (length, hold) = (Duration::from_secs(seconds), Duration::from_secs(hold));
        let schedule = FaultSchedule::new(clock::now(), length, hold, kinds, &mut Rng::with_seed(seed));
        schedule.periods.iter().for_each(|period| period.ended.set(period.to).unwrap());
        schedule
    }

    fn any_run() -> impl Iterator<Item = (u64, u64, u64)> {
        let runs = [(1, 2), (5, 2), (10, 2), (15, 2), (60, 8), (61, 8), (137, 8), (600, 8), (3600, 120)];
        (0..50).flat_map(move |seed| runs.map(|(seconds, hold)| (seconds, hold, seed)))
    }

    #[test]
    fn whatever_the_length_the_stop_comes_in_a_calm_in_which_the_last_fault_is_over() {
        for (seconds, hold, seed) in any_run() {
            let schedule = schedule(seconds, hold, &ScenarioKind::all(), seed);
            let last_request = schedule.begun + Duration::from_secs(seconds);
            let calm = Duration::from_secs(hold).min(MIN_CALM);
            for later in [0, 1, 10, 60, 86_400] {
                let stop = last_request + Duration::from_secs(later);
                let jobs = std::iter::empty();
                let from = last_request.checked_sub(calm).unwrap().max(schedule.begun);
                assert!(
                    schedule.is_calm_for(Key::Good(0), jobs, from, stop),
                    "{seconds} s, hold {hold} s, seed {seed}: {schedule}"
                );
                assert!(schedule.scenario(stop).is_none());
            }
        }
    }

    #[test]
    fn scenarios_come_one_after_the_other_with_a_calm_between_them() {
        for (seconds, hold, seed) in any_run() {
            let schedule = schedule(seconds, hold, &ScenarioKind::all(), seed);
            let calm = Duration::from_secs(hold).min(MIN_CALM);
            let mut free = Duration::ZERO;
            for Period { from, to, recovery, .. } in &schedule.periods {
                assert!(free + calm <= *from && from < to, "seed {seed}: {schedule}");
                free = *to + *recovery;
            }
        }
    }

    #[test]
    fn a_scenario_that_is_taken_back_late_goes_on_until_then() {
        let mut schedule = schedule(60, 8, &[ScenarioKind::Reset], 1);
        let period = &mut schedule.periods[0];
        let (late, recovery) = (period.to + Duration::from_secs(3), period.recovery);
        period.ended = late.into();
        let after = |time: Duration| schedule.begun + late + time;
        let is_calm = |at| schedule.is_calm_for(Key::Good(0), std::iter::empty(), at, at);
        assert!(!is_calm(after(recovery / 2)) && is_calm(after(recovery)));
        assert_eq!(
            schedule.outage_end(after(Duration::ZERO) - recovery, after(Duration::ZERO)),
            Some(after(Duration::ZERO))
        );
    }

    #[test]
    fn a_long_run_has_all_scenarios_and_each_outage_is_shorter_than_retries_go_on() {
        for seed in 0..50 {
            let schedule = schedule(600, 8, &ScenarioKind::all(), seed);
            for kind in ScenarioKind::all() {
                let count = schedule.periods.iter().filter(|period| period.kind == kind).count();
                assert!(count >= 2, "{kind:?}, seed {seed}: {schedule}");
            }
            let outages = schedule.periods.iter().filter(|period| period.scenario.is_outage());
            assert!(outages.map(|outage| outage.to - outage.from).all(|length| length < RETRY_FOR));
        }
    }

    #[test]
    fn one_keys_errors_and_one_jobs_429_leave_it_calm_for_all_others() {
        let kinds = [ScenarioKind::KeyErrors, ScenarioKind::JobThrottled];
        let schedule = schedule(60, 2, &kinds, 1);
        let mut seen = [false; 2];
        for Period { scenario, from, to, .. } in &schedule.periods {
            let (from, to) = (schedule.begun + *from, schedule.begun + *to);
            let is_calm = |key, job: &str| schedule.is_calm_for(key, std::iter::once(job), from, to);
            match scenario {
                Scenario::KeyErrors { key, .. } => {
                    seen[0] = true;
                    let others = Key::accepted().filter(|other| other != key);
                    assert!(!is_calm(*key, "a") && { others }.all(|other| is_calm(other, "a")));
                }
                Scenario::JobThrottled { job, .. } => {
                    seen[1] = true;
                    assert!(!is_calm(Key::Good(0), job) && is_calm(Key::Good(0), "a"));
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(seen, [true; 2]);
    }
}
