//! The faults of a run and their times, fixed at its start.
//!
//! ```text
//!  calm │ scenario │ recovery │ calm │ scenario │ recovery │ … │ calm, without end
//!                                                                       ▲         ▲
//!                                                     the last request is sent   the stop
//! ```
//!
//! A scenario is left out if it, its recovery and another calm period do not fit before the last request. So the last
//! period of each run is calm, and the rules of calm periods apply to the stop.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use clipgate::sim::{ErrorBody, Fault, FaultSpec, FaultTarget, Frequency, ListFormat, Sim};
use clipgate::testing::clock;
use fastrand::Rng;
use http::StatusCode;

use super::requests::{KEYS, Key};
use super::upstream::Upstream;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScenarioKind {
    /// Random faults, each for its own share of the requests.
    Mixed,
    /// The port is closed and all connections are lost, for this number of milliseconds.
    Away(u64),
    /// All connections are reset at once; the upstream accepts new ones.
    Reset,
    /// Each connection is closed as soon as it is accepted.
    Refused,
    /// Each request is answered with 502.
    Errors,
    /// Each request of one key is answered with an error; other keys are not affected.
    KeyErrors,
    /// Each request for one job is answered with 429; other jobs are not affected.
    JobThrottled,
}

impl ScenarioKind {
    /// All kinds by name. A long run repeats each of them.
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

    /// Returns whether the scenario breaks connections and has no other effect.
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

    fn duration(self, hold: Duration) -> Duration {
        match self {
            ScenarioKind::Away(millis) => Duration::from_millis(millis),
            ScenarioKind::Reset => OUTAGE_MARGIN,
            ScenarioKind::Refused | ScenarioKind::Errors => hold,
            ScenarioKind::KeyErrors | ScenarioKind::JobThrottled => hold * 3 / 2,
            ScenarioKind::Mixed => hold * 2,
        }
    }

    /// Returns the time after the scenario in which new requests may still be affected. Outages need almost none: the first
    /// attempt of a new request is sent at once, even while older polls are backing off.
    fn recovery(self, hold: Duration) -> Duration {
        match self {
            ScenarioKind::Away(_) | ScenarioKind::Reset | ScenarioKind::Refused => OUTAGE_MARGIN,
            // A new request may attach to a poll whose response is still on its way.
            ScenarioKind::Errors | ScenarioKind::KeyErrors => Duration::from_secs(1),
            ScenarioKind::JobThrottled => THROTTLED_FOR + OUTAGE_MARGIN,
            // The last fault may hang a poll until its timeout: hold, a twelfth of it, and the time to connect.
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
            format!("unknown scenario: {text:?}. Use one of {names}.")
        })
    }
}

/// Duration of a fault that happens at one instant: all clients have seen it by then.
const OUTAGE_MARGIN: Duration = Duration::from_millis(500);
/// `Retry-After` of the 429 of [`ScenarioKind::JobThrottled`].
const THROTTLED_FOR: Duration = Duration::from_secs(3);

/// One scenario: its faults, and the requests that they affect.
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
                Self::Faults { faults: (0..rng.usize(2..=5)).map(|_| random_fault(rng)).collect() }
            }
            ScenarioKind::Refused => Self::Faults { faults: always(FaultTarget::Any, Fault::Refuse) },
            ScenarioKind::Errors => {
                Self::Faults { faults: always(FaultTarget::Any, Fault::status_with(502, ErrorBody::Html)) }
            }
            ScenarioKind::KeyErrors => {
                let key = Key::Valid(rng.u8(..KEYS));
                Self::KeyErrors { key, faults: always(FaultTarget::Key(key.text()), server_error(rng)) }
            }
            ScenarioKind::JobThrottled => {
                let job = format!("throttled-{:016x}", rng.u64(..));
                let throttled = Fault::retry_after(429, THROTTLED_FOR);
                Self::JobThrottled { faults: always(FaultTarget::Clip(job.clone()), throttled), job }
            }
        }
    }

    /// Returns whether a request with this key for these jobs may be affected. Other requests have no jobs.
    fn affects<'j>(&self, key: Key, mut jobs: impl Iterator<Item = &'j str>) -> bool {
        match self {
            Self::KeyErrors { key: failing, .. } => key == *failing,
            Self::JobThrottled { job: throttled, .. } => jobs.any(|job| job == throttled),
            Self::Faults { .. } | Self::Away | Self::Reset => true,
        }
    }

    /// Returns whether the scenario breaks connections without regard to their requests.
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

/// A scenario with its times since the start of the run.
#[derive(Debug)]
struct Period {
    kind: ScenarioKind,
    scenario: Scenario,
    from: Duration,
    to: Duration,
    /// See [`ScenarioKind::recovery`].
    recovery: Duration,
    /// The actual end, which is later than `to` on a busy machine.
    ended: OnceLock<Duration>,
}

impl Period {
    /// Returns the end: not before `to`, and not before the faults are removed.
    fn end(&self, now: Duration) -> Duration {
        self.to.max(self.ended.get().copied().unwrap_or(if self.from <= now { now } else { self.to }))
    }

    /// Returns the time from which new requests are not affected.
    fn recovered(&self, now: Duration) -> Duration {
        self.end(now) + self.recovery
    }
}

/// The scenarios of a run. All other time is calm.
#[derive(Debug)]
pub(crate) struct FaultSchedule {
    started_at: Instant,
    periods: Vec<Period>,
}

impl FaultSchedule {
    /// Creates a schedule of these kinds in rounds of random order, for a run that sends requests for `length`.
    pub(crate) fn new(
        started_at: Instant,
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
            let ends = |kind: ScenarioKind| at + kind.duration(hold) + kind.recovery(hold);
            let Some(next) = round.iter().position(|&kind| ends(kind) + calm <= length) else {
                // The rest of the round does not fit. The schedule is complete when no kind of a full round fits.
                if round.len() == kinds.len() {
                    break;
                }
                round.clear();
                continue;
            };
            let kind = round.remove(next);
            let (to, recovery, recovered) = (at + kind.duration(hold), kind.recovery(hold), ends(kind));
            let scenario = Scenario::new(kind, rng);
            periods.push(Period { kind, scenario, from: at, to, recovery, ended: OnceLock::new() });
            at = recovered + calm;
        }
        Self { started_at, periods }
    }

    /// Returns whether no scenario, nor its recovery, affects a request with this key for these jobs in this period.
    pub(crate) fn is_calm_for<'j>(
        &self,
        key: Key,
        jobs: impl Iterator<Item = &'j str> + Clone,
        from: Instant,
        to: Instant,
    ) -> bool {
        !self.overlapping(from, to).any(|period| period.scenario.affects(key, jobs.clone()))
    }

    /// Returns the end of the last outage that overlaps this period.
    pub(crate) fn outage_end(&self, from: Instant, to: Instant) -> Option<Instant> {
        let now = self.since(clock::now());
        let outages = self.overlapping(from, to).filter(|period| period.scenario.is_outage());
        let ends = outages.map(|period| self.started_at + period.end(now));
        ends.filter(|end| *end > from).last()
    }

    /// Returns whether all scenarios of this period break connections and have no other effect.
    pub(crate) fn is_outage_only(&self, from: Instant, to: Instant) -> bool {
        self.overlapping(from, to).all(|period| period.kind.is_outage_only())
    }

    /// Returns whether the upstream may hold a poll of this period in silence although its jobs reach their goal.
    pub(crate) fn is_silence_deceptive(&self, from: Instant, to: Instant) -> bool {
        let is_silent = |spec: &FaultSpec| {
            let concerns_polls = !matches!(spec.target, FaultTarget::Path(_));
            let is_late = |fault: &Fault| matches!(fault, Fault::Status { after, .. } if !after.is_zero());
            concerns_polls && (spec.fault == Fault::Hang || is_late(&spec.fault))
        };
        self.overlapping(from, to).any(|period| period.scenario.faults().iter().any(is_silent))
    }

    /// Returns the scenarios that overlap this period, with their recovery.
    fn overlapping(&self, from: Instant, to: Instant) -> impl Iterator<Item = &Period> {
        let (from, to, now) = (self.since(from), self.since(to), self.since(clock::now()));
        self.periods.iter().filter(move |period| period.from <= to && period.recovered(now) > from)
    }

    /// Describes a time by the scenario before it, for messages.
    pub(crate) fn describe(&self, at: Instant) -> String {
        let at = self.since(at);
        let last = self.periods.iter().rfind(|period| period.from <= at);
        let last = last.map_or(String::new(), |Period { kind, from, .. }| {
            format!(", {:.1} s after the beginning of {}", (at - *from).as_secs_f64(), kind.name())
        });
        format!("at {:.1} s{last}:", at.as_secs_f64())
    }

    /// Returns the scenario at this time.
    pub(crate) fn scenario(&self, at: Instant) -> Option<(&'static str, &Scenario)> {
        let at = self.since(at);
        let period = self.periods.iter().find(|period| period.from <= at && at < period.to)?;
        Some((period.kind.name(), &period.scenario))
    }

    /// Injects the faults. Cancel safe, but the faults of the current scenario stay.
    pub(crate) async fn run(&self, sim: &Sim, upstream: &Upstream) -> std::io::Result<()> {
        for period in &self.periods {
            tokio::time::sleep_until((self.started_at + period.from).into()).await;
            for spec in period.scenario.faults() {
                sim.inject(spec.clone());
            }
            match period.scenario {
                Scenario::Away => upstream.close().await,
                Scenario::Reset => sim.reset_connections(),
                Scenario::Faults { .. } | Scenario::KeyErrors { .. } | Scenario::JobThrottled { .. } => {}
            }
            tokio::time::sleep_until((self.started_at + period.to).into()).await;
            sim.clear_faults();
            if matches!(period.scenario, Scenario::Away) {
                upstream.reopen().await?;
            }
            // Set only here, once.
            let _ = period.ended.set(self.since(clock::now()));
        }
        Ok(())
    }

    fn since(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.started_at)
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

/// Minimum time between two scenarios. A shorter hold takes precedence.
const MIN_CALM: Duration = Duration::from_secs(8);

fn server_error(rng: &mut Rng) -> Fault {
    let bodies = [ErrorBody::Json, ErrorBody::Html, ErrorBody::Empty];
    Fault::status_with([500, 502, 503, 504][rng.usize(..4)], bodies[rng.usize(..3)])
}

fn random_fault(rng: &mut Rng) -> FaultSpec {
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
    let target = match rng.u8(..6) {
        0 => FaultTarget::Path("/sim/".to_owned()),
        1 => FaultTarget::Any,
        _ => FaultTarget::Polls,
    };
    let max_share = if matches!(fault, Fault::Hang) { 0.05 } else { 0.4 };
    FaultSpec { target, fault, frequency: Frequency::Share(rng.f64() * max_share) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Default of `upstream.retry_for`.
    const RETRY_FOR: Duration = Duration::from_secs(30);

    /// Returns a schedule whose scenarios end on time.
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
    fn a_run_of_any_length_stops_in_a_calm_period_after_the_recovery_of_the_last_fault() {
        for (seconds, hold, seed) in any_run() {
            let schedule = schedule(seconds, hold, &ScenarioKind::all(), seed);
            let last_request = schedule.started_at + Duration::from_secs(seconds);
            let calm = Duration::from_secs(hold).min(MIN_CALM);
            for later in [0, 1, 10, 60, 86_400] {
                let stop = last_request + Duration::from_secs(later);
                let jobs = std::iter::empty();
                let from = last_request.checked_sub(calm).unwrap().max(schedule.started_at);
                assert!(
                    schedule.is_calm_for(Key::Valid(0), jobs, from, stop),
                    "{seconds} s, hold {hold} s, seed {seed}: {schedule}"
                );
                assert!(schedule.scenario(stop).is_none());
            }
        }
    }

    #[test]
    fn scenarios_do_not_overlap_and_have_a_calm_period_between_them() {
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
    fn a_scenario_whose_faults_are_removed_late_lasts_until_then() {
        let mut schedule = schedule(60, 8, &[ScenarioKind::Reset], 1);
        let period = &mut schedule.periods[0];
        let (late, recovery) = (period.to + Duration::from_secs(3), period.recovery);
        period.ended = late.into();
        let after = |time: Duration| schedule.started_at + late + time;
        let is_calm = |at| schedule.is_calm_for(Key::Valid(0), std::iter::empty(), at, at);
        assert!(!is_calm(after(recovery / 2)) && is_calm(after(recovery)));
        assert_eq!(
            schedule.outage_end(after(Duration::ZERO) - recovery, after(Duration::ZERO)),
            Some(after(Duration::ZERO))
        );
    }

    #[test]
    fn a_long_run_has_all_scenarios_and_each_outage_is_shorter_than_retry_for() {
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
    fn errors_of_one_key_and_429_for_one_job_leave_the_period_calm_for_all_others() {
        let kinds = [ScenarioKind::KeyErrors, ScenarioKind::JobThrottled];
        let schedule = schedule(60, 2, &kinds, 1);
        let mut seen = [false; 2];
        for Period { scenario, from, to, .. } in &schedule.periods {
            let (from, to) = (schedule.started_at + *from, schedule.started_at + *to);
            let is_calm = |key, job: &str| schedule.is_calm_for(key, std::iter::once(job), from, to);
            match scenario {
                Scenario::KeyErrors { key, .. } => {
                    seen[0] = true;
                    let others = Key::accepted().filter(|other| other != key);
                    assert!(!is_calm(*key, "a") && { others }.all(|other| is_calm(other, "a")));
                }
                Scenario::JobThrottled { job, .. } => {
                    seen[1] = true;
                    assert!(!is_calm(Key::Valid(0), job) && is_calm(Key::Valid(0), "a"));
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(seen, [true; 2]);
    }
}
