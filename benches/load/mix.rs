//! The mix: the input file of the bench, as values. `team.toml` documents each field.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// A team, its jobs, its upstream and the settings of its gateway.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mix {
    pub(crate) day: DayMix,
    pub(crate) job: JobMix,
    pub(crate) upstream: UpstreamMix,
    pub(crate) gateway: GatewayMix,
    #[serde(default)]
    pub(crate) people: Vec<Members>,
    #[serde(default)]
    pub(crate) workers: Vec<Members>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DayMix {
    pub(crate) length: Time,
    pub(crate) jobs: usize,
    pub(crate) by_workers: f64,
    pub(crate) keys: usize,
    pub(crate) followers: f64,
    pub(crate) readers: f64,
    pub(crate) abandoned: f64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct JobMix {
    pub(crate) submitted: TimeRange,
    pub(crate) queued: TimeRange,
    pub(crate) streaming: TimeRange,
    pub(crate) skipped: f64,
    pub(crate) failed: f64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UpstreamMix {
    pub(crate) hold: Time,
    pub(crate) latency: TimeRange,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GatewayMix {
    pub(crate) linger: Time,
    pub(crate) completed_ttl: Time,
    pub(crate) error_ttl: Time,
    pub(crate) key_recheck_interval: Time,
    pub(crate) proven_ttl: Time,
    pub(crate) watch_idle: Time,
    pub(crate) max_polls: usize,
}

/// Members of the team with one habit.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Members {
    pub(crate) count: usize,
    pub(crate) habit: Habit,
}

/// The way in which a client follows a job.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Habit {
    /// Plain GETs, this long apart.
    Poll(Time),
    LongPoll,
    Stages,
    /// One request for up to so many jobs.
    Batch(usize),
    /// A long-poll that the client drops after such a time.
    Reload(TimeRange),
    Events,
}

/// A time, as a text like "5s".
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Time(pub(crate) Duration);

/// Two times, the lower one first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct TimeRange {
    pub(crate) min: Duration,
    pub(crate) max: Duration,
}

impl Mix {
    /// Returns the team of `team.toml`.
    pub(crate) fn team() -> Self {
        Self::parse(include_str!("team.toml")).expect("team.toml is valid")
    }

    /// Reads a mix from the text of its file.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mix: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        let (day, members) = (&mix.day, || mix.people.iter().chain(&mix.workers));
        let is_batch_valid =
            |members: &Members| !matches!(members.habit, Habit::Batch(jobs) if !(1..=6).contains(&jobs));
        let shares = [day.by_workers, day.abandoned, mix.job.skipped, mix.job.failed];
        let problems = [
            (day.keys == 0 || day.keys > 256, "`day.keys` is not from 1 to 256"),
            (mix.gateway.max_polls == 0, "`gateway.max_polls` is 0"),
            (members().all(|members| members.count == 0), "the team has no members"),
            (!members().all(is_batch_valid), "`batch` is not from 1 to 6"),
            (shares.iter().any(|share| !(0.0..=1.0).contains(share)), "a share is not from 0 to 1"),
            (!(day.followers >= 0.0 && day.readers >= 0.0), "`day.followers` or `day.readers` is negative"),
        ];
        match problems.iter().find(|(is_wrong, _)| *is_wrong) {
            Some((_, problem)) => Err((*problem).to_owned()),
            None => Ok(mix),
        }
    }

    /// Returns the number of members in these groups.
    pub(crate) fn count(members: &[Members]) -> usize {
        members.iter().map(|members| members.count).sum()
    }
}

impl TimeRange {
    /// Draws a time. Most are near the lower end.
    pub(crate) fn draw(self, rng: &mut fastrand::Rng) -> Duration {
        self.at(rng.f64().powi(2))
    }

    /// Draws a time, each equally likely.
    pub(crate) fn draw_uniform(self, rng: &mut fastrand::Rng) -> Duration {
        self.at(rng.f64())
    }

    fn at(self, share: f64) -> Duration {
        self.min + (self.max - self.min).mul_f64(share)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map(Self).map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for TimeRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let [Time(min), Time(max)] = Deserialize::deserialize(deserializer)?;
        if min > max {
            return Err(de::Error::custom("the first time of a range is longer than the second"));
        }
        Ok(Self { min, max })
    }
}
