//! How all stands now, as JSON. README.md says what each name means.

use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use super::{Phase, Readiness};
use crate::clock;
use crate::config::{Config, Listen};
use crate::core::coalescer::JobStatus;
use crate::core::route::Ladder;
use crate::gateway::{Asker, Gateway, Overview};
use crate::limits::QuotaState;
use crate::printable::escape_json;
use crate::telemetry::metrics::{Limit, Totals};

/// Jobs and keys that are listed.
const MOST: usize = 200;

/// How long the hub may take to tell what is under way.
const PATIENCE: Duration = Duration::from_millis(500);

/// The most there may be, as configured.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConfiguredLimits {
    pub(super) waits: u64,
    pub(super) passthrough: u64,
    pub(super) polls: u64,
    pub(super) cache_bytes: u64,
}

impl ConfiguredLimits {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            waits: config.limits.max_waits as u64,
            passthrough: config.limits.max_passthrough as u64,
            polls: config.upstream.max_polls as u64,
            cache_bytes: config.cache.max_bytes,
        }
    }
}

/// What stays the same as long as the gateway runs.
pub(super) struct StaticInfo {
    pub(super) readiness: Readiness,
    pub(super) caps: ConfiguredLimits,
    pub(super) base_url: String,
    pub(super) listen: Vec<Listen>,
    pub(super) example: String,
    pub(super) started: Instant,
    pub(super) started_at: SystemTime,
}

#[derive(Serialize)]
struct State<'a> {
    version: &'static str,
    now: String,
    started_at: String,
    uptime_seconds: f64,
    phase: &'static str,
    listen: Vec<String>,
    example: &'a str,
    waits: Waits,
    polls: Polls,
    cache: Kept,
    upstream: Upstream<'a>,
    totals: Totals,
    ladder: Vec<&'a str>,
    complete: bool,
    jobs: Listed<Job<'a>>,
    keys: Listed<Key>,
}

#[derive(Serialize)]
struct Waits {
    parked: usize,
    max: u64,
}

#[derive(Serialize)]
struct Polls {
    open: usize,
    waiting: usize,
    max: u64,
}

#[derive(Serialize)]
struct Kept {
    entries: u64,
    bytes: u64,
    max_bytes: u64,
}

#[derive(Serialize)]
struct Upstream<'a> {
    base_url: &'a str,
    breaker_open: bool,
    answered_at: Option<String>,
    failed: Option<Failed>,
}

#[derive(Serialize)]
struct Failed {
    at: String,
    code: String,
}

#[derive(Serialize)]
struct Listed<T> {
    items: Vec<T>,
    total: usize,
}

#[derive(Serialize)]
struct Job<'a> {
    id: String,
    key: String,
    rung: Option<&'a str>,
    asked: Vec<&'a str>,
    waits: usize,
    polls: usize,
    age_seconds: f64,
}

#[derive(Serialize)]
struct Key {
    name: String,
    key: String,
    waits: usize,
    requests: Option<Quota>,
    calls: Option<Quota>,
}

#[derive(Serialize)]
struct Quota {
    left: u32,
    burst: u32,
    per_second: u32,
    resets_in_seconds: Option<u64>,
}

/// How all stands now. A hub that is busy is not waited for long: what only it knows is left out then.
pub(super) async fn state(gateway: &Gateway, about: &StaticInfo) -> Vec<u8> {
    let overview = tokio::time::timeout(PATIENCE, gateway.overview(MOST)).await.ok().flatten();
    let (now, metrics, kept) = (clock::now(), gateway.metrics(), gateway.cache().size());
    let (standing, health) = (metrics.upstream.poll_counts(), metrics.upstream.health());
    let is_complete = overview.is_some();
    let (jobs, keys) = overview.map_or_else(nothing, |overview| listed(overview, gateway.ladder(), now));
    let state = State {
        version: env!("CARGO_PKG_VERSION"),
        now: rfc3339(SystemTime::now()),
        started_at: rfc3339(about.started_at),
        uptime_seconds: seconds(now, about.started),
        phase: match about.readiness.phase() {
            Phase::Starting => "starting",
            Phase::Ready => "ready",
            Phase::Draining => "draining",
        },
        listen: about.listen.iter().map(ToString::to_string).collect(),
        example: &about.example,
        waits: Waits { parked: gateway.waits(), max: about.caps.waits },
        polls: Polls { open: standing.open, waiting: standing.waiting, max: about.caps.polls },
        cache: Kept { entries: kept.entries, bytes: kept.bytes, max_bytes: about.caps.cache_bytes },
        upstream: Upstream {
            base_url: &about.base_url,
            breaker_open: standing.is_breaker_open,
            answered_at: health.answered_at.map(rfc3339),
            failed: health.failed.map(|(at, code)| Failed { at: rfc3339(at), code: code.to_string() }),
        },
        totals: metrics.totals(),
        ladder: gateway.ladder().askable_words().collect(),
        complete: is_complete,
        jobs,
        keys,
    };
    let json = serde_json::to_string(&state).expect("texts and numbers are JSON");
    // Ids are clients' texts, and whoever reads this may do so at a terminal.
    escape_json(&json).into_owned().into_bytes()
}

fn nothing<'a>() -> (Listed<Job<'a>>, Listed<Key>) {
    (Listed { items: Vec::new(), total: 0 }, Listed { items: Vec::new(), total: 0 })
}

fn listed(overview: Overview, ladder: &Ladder, now: Instant) -> (Listed<Job<'_>>, Listed<Key>) {
    let Overview { jobs, jobs_in_all, askers, askers_in_all } = overview;
    let jobs = jobs.iter().map(|job| self::job(job, ladder, now)).collect();
    let keys = askers.into_iter().map(key).collect();
    (Listed { items: jobs, total: jobs_in_all }, Listed { items: keys, total: askers_in_all })
}

fn job<'a>(job: &JobStatus, ladder: &'a Ladder, now: Instant) -> Job<'a> {
    Job {
        id: job.id.to_string(),
        key: job.domain.to_string(),
        rung: job.rung.map(|rung| ladder.name(rung)),
        asked: job.asked.iter().map(|rung| ladder.name(*rung)).collect(),
        waits: job.waits,
        polls: job.polls,
        age_seconds: job.since.map_or(0.0, |since| seconds(now, since)),
    }
}

fn key(asker: Asker) -> Key {
    let quota = |limit: Limit| {
        let left = asker.left.iter().find(|left| left.quota == limit)?;
        let QuotaState { left, burst, rate, more_in, .. } = *left;
        Some(Quota { left, burst, per_second: rate, resets_in_seconds: more_in })
    };
    Key {
        requests: quota(Limit::Requests),
        calls: quota(Limit::Calls),
        name: asker.name.map_or_else(|| asker.key.to_string(), |name| name.to_string()),
        key: asker.key.to_string(),
        waits: asker.waits,
    }
}

fn seconds(now: Instant, since: Instant) -> f64 {
    now.saturating_duration_since(since).as_secs_f64()
}

/// With milliseconds.
pub(super) fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}
