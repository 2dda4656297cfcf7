//! The current state as JSON, for `/api/state` and `/api/events`. docs/observability.md explains the names.

use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use serde::Serialize;

use super::history::History;
use super::saved_today::SavedTodayJson;
use super::{Readiness, ReadinessPhase};
use crate::clock;
use crate::config::{Config, Listen};
use crate::core::route::{Route, Routes};
use crate::core::siblings::{LinkState, ReplicaName};
use crate::gateway::{Gateway, GatewayOverview, KeyUsage};
use crate::hub::{ClusterOverview, JobInFlight};
use crate::limits::QuotaState;
use crate::printable::escape_json;
use crate::telemetry::metrics::{FanoutQuantiles, Limit, MemberUsage, Totals};

/// Bound of the listed jobs, and of the listed keys.
const MAX_ITEMS: usize = 200;

/// Timeout of the hub's list of jobs and keys.
const HUB_TIMEOUT: Duration = Duration::from_millis(500);

/// Limits of the configuration.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConfiguredLimits {
    pub(super) waits: u64,
    pub(super) passthrough: u64,
    pub(super) polls: u64,
    pub(super) cache_bytes: u64,
    pub(super) retry_for: Duration,
}

impl ConfiguredLimits {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            waits: config.limits.max_waits as u64,
            passthrough: config.limits.max_passthrough as u64,
            polls: config.upstream.max_polls as u64,
            cache_bytes: config.cache.max_bytes,
            retry_for: config.upstream.retry_for,
        }
    }
}

/// Values that do not change while the gateway runs.
pub(super) struct StaticInfo {
    pub(super) readiness: Readiness,
    pub(super) limits: ConfiguredLimits,
    pub(super) base_url: String,
    pub(super) listen: Vec<Listen>,
    pub(super) example: String,
    pub(super) started: Instant,
    pub(super) started_at: SystemTime,
}

#[derive(Serialize)]
struct StateJson<'a> {
    version: &'static str,
    now: String,
    started_at: String,
    uptime_seconds: f64,
    phase: &'static str,
    listen: Vec<String>,
    example: &'a str,
    waits: WaitsJson,
    polls: PollsJson,
    cache: CacheJson,
    upstream: UpstreamJson<'a>,
    totals: Totals,
    saved_today: SavedTodayJson,
    success_rate: Option<f64>,
    fanout: FanoutQuantiles,
    members: Vec<MemberUsage>,
    routes: Vec<RouteJson<'a>>,
    complete: bool,
    jobs: ListJson<JobJson<'a>>,
    keys: ListJson<KeyJson>,
    /// Of several replicas.
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<ClusterJson>,
}

/// The replicas as this one sees them.
#[derive(Serialize)]
struct ClusterJson {
    link: &'static str,
    id: String,
    members: Vec<MemberJson>,
}

#[derive(Serialize)]
struct MemberJson {
    name: String,
    /// Time since the last beat: zero for this replica.
    seconds_since_beat: f64,
    /// Number of polls that it makes for this replica; of this one, all its polls.
    polls: usize,
    #[serde(rename = "self")]
    is_self: bool,
}

/// A route with the states that clients may wait for, in order.
#[derive(Serialize)]
struct RouteJson<'a> {
    name: &'a str,
    ladder: Vec<&'a str>,
    /// Of an upstream that never holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pace: Option<PaceJson>,
}

/// Bounds of the time between two polls of a job.
#[derive(Serialize)]
struct PaceJson {
    min_seconds: f64,
    max_seconds: f64,
}

#[derive(Serialize)]
struct WaitsJson {
    parked: usize,
    max: u64,
}

#[derive(Serialize)]
struct PollsJson {
    open: usize,
    waiting: usize,
    watches: usize,
    max: u64,
}

#[derive(Serialize)]
struct CacheJson {
    entries: u64,
    bytes: u64,
    max_bytes: u64,
}

#[derive(Serialize)]
struct UpstreamJson<'a> {
    base_url: &'a str,
    breaker_open: bool,
    retry_for_seconds: f64,
    answered_at: Option<String>,
    failed: Option<FailureJson>,
    outage: Option<OutageJson>,
}

/// An outage that lasts.
#[derive(Serialize)]
struct OutageJson {
    since: String,
    cause: String,
}

#[derive(Serialize)]
struct FailureJson {
    at: String,
    code: String,
}

#[derive(Serialize)]
struct ListJson<T> {
    items: Vec<T>,
    total: usize,
}

#[derive(Serialize)]
struct JobJson<'a> {
    route: &'a str,
    id: String,
    /// Other parts of the job's address: two jobs with one id differ here.
    #[serde(skip_serializing_if = "String::is_empty")]
    rest: String,
    key: String,
    rung: Option<&'a str>,
    asked: Vec<&'a str>,
    waits: usize,
    polls: usize,
    age_seconds: f64,
    /// Replicas that make its polls, with `[cluster]` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    replicas: Option<Vec<String>>,
}

#[derive(Serialize)]
struct KeyJson {
    name: String,
    key: String,
    waits: usize,
    requests: Option<QuotaJson>,
    calls: Option<QuotaJson>,
}

#[derive(Serialize)]
struct QuotaJson {
    left: u32,
    burst: u32,
    per_second: u32,
    resets_in_seconds: Option<u64>,
}

/// Returns the current state. If the hub does not answer in time, jobs and keys are empty and `complete` is false.
pub(super) async fn state(gateway: &Gateway, info: &StaticInfo, history: &Mutex<History>) -> Vec<u8> {
    let overview = tokio::time::timeout(HUB_TIMEOUT, gateway.overview(MAX_ITEMS)).await.ok().flatten();
    let (now, metrics, cache) = (clock::now(), gateway.metrics(), gateway.cache().size());
    let (poll_counts, health) = (metrics.upstream.poll_counts(), metrics.upstream.health());
    let (totals, is_complete) = (metrics.totals(), overview.is_some());
    let (success_rate, saved_today) = {
        let history = history.lock();
        (history.success_rate(&totals, SystemTime::now()), history.saved_today(&totals))
    };
    let cluster = overview.as_ref().and_then(|overview| overview.cluster.as_ref());
    let cluster = cluster.map(|cluster| cluster_json(cluster, now));
    let (jobs, keys) = overview.map_or_else(empty_lists, |overview| lists(overview, gateway.routes(), now));
    let state = StateJson {
        version: env!("CARGO_PKG_VERSION"),
        now: rfc3339(SystemTime::now()),
        started_at: rfc3339(info.started_at),
        uptime_seconds: seconds(now, info.started),
        phase: match info.readiness.phase() {
            ReadinessPhase::Starting => "starting",
            ReadinessPhase::Ready => "ready",
            ReadinessPhase::Draining => "draining",
        },
        listen: info.listen.iter().map(ToString::to_string).collect(),
        example: &info.example,
        waits: WaitsJson { parked: gateway.waits(), max: info.limits.waits },
        polls: PollsJson {
            open: poll_counts.open,
            waiting: poll_counts.waiting,
            watches: poll_counts.watches,
            max: info.limits.polls,
        },
        cache: CacheJson { entries: cache.entries, bytes: cache.bytes, max_bytes: info.limits.cache_bytes },
        upstream: UpstreamJson {
            base_url: &info.base_url,
            breaker_open: poll_counts.is_breaker_open,
            retry_for_seconds: info.limits.retry_for.as_secs_f64(),
            answered_at: health.answered_at.map(rfc3339),
            failed: health.failed.map(|(at, code)| FailureJson { at: rfc3339(at), code: code.to_string() }),
            outage: health
                .outage
                .map(|outage| OutageJson { since: rfc3339(outage.since), cause: outage.cause }),
        },
        totals,
        saved_today,
        success_rate,
        fanout: metrics.waits.fanout_quantiles(),
        members: metrics.members.usage(),
        routes: gateway.routes().iter().map(|(_, route)| route_json(route)).collect(),
        complete: is_complete,
        jobs,
        keys,
        cluster,
    };
    let json = serde_json::to_string(&state).expect("strings and numbers serialize");
    // Clients choose the ids, and an operator may print this on a terminal.
    escape_json(&json).into_owned().into_bytes()
}

fn empty_lists<'a>() -> (ListJson<JobJson<'a>>, ListJson<KeyJson>) {
    (ListJson { items: Vec::new(), total: 0 }, ListJson { items: Vec::new(), total: 0 })
}

fn lists(
    overview: GatewayOverview,
    routes: &Routes,
    now: Instant,
) -> (ListJson<JobJson<'_>>, ListJson<KeyJson>) {
    let GatewayOverview { jobs, total_jobs, keys, total_keys, cluster } = overview;
    let has_cluster = cluster.is_some();
    let jobs =
        jobs.iter().map(|job| job_json(job, routes.get(job.status.id.route()), has_cluster, now)).collect();
    let keys = keys.into_iter().map(key_json).collect();
    (ListJson { items: jobs, total: total_jobs }, ListJson { items: keys, total: total_keys })
}

fn cluster_json(cluster: &ClusterOverview, now: Instant) -> ClusterJson {
    let own = cluster.name.map(|name| MemberJson {
        name: member_name(name),
        seconds_since_beat: 0.0,
        polls: cluster.own_polls,
        is_self: true,
    });
    let siblings = cluster.siblings.iter().map(|sibling| MemberJson {
        name: member_name(sibling.name),
        seconds_since_beat: seconds(now, sibling.heard_at),
        polls: sibling.polls,
        is_self: false,
    });
    ClusterJson {
        link: match cluster.link {
            LinkState::Near => "near",
            LinkState::Far => "far",
            LinkState::Apart => "apart",
        },
        id: cluster.id.clone(),
        members: own.into_iter().chain(siblings).collect(),
    }
}

fn member_name(ReplicaName(name): ReplicaName) -> String {
    format!("{name:016x}")
}

fn route_json(route: &Route) -> RouteJson<'_> {
    RouteJson {
        name: &route.name,
        ladder: route.ladder.askable_words().collect(),
        pace: route.never_holds().then_some(PaceJson {
            min_seconds: route.pace.as_secs_f64(),
            max_seconds: route.max_pace.as_secs_f64(),
        }),
    }
}

fn job_json<'a>(job: &JobInFlight, route: &'a Route, has_cluster: bool, now: Instant) -> JobJson<'a> {
    let JobInFlight { status: job, holders } = job;
    let ladder = &route.ladder;
    JobJson {
        route: &route.name,
        id: job.id.to_string(),
        rest: job.id.rest().to_owned(),
        key: job.domain.to_string(),
        rung: job.rung.map(|rung| ladder.name(rung)),
        asked: job.asked.iter().map(|rung| ladder.name(*rung)).collect(),
        waits: job.waits,
        polls: job.polls.len(),
        age_seconds: job.since.map_or(0.0, |since| seconds(now, since)),
        replicas: has_cluster.then(|| holders.iter().copied().map(member_name).collect()),
    }
}

fn key_json(usage: KeyUsage) -> KeyJson {
    let quota = |limit: Limit| {
        let state = usage.quotas.iter().find(|state| state.quota == limit)?;
        let QuotaState { remaining, burst, rate, resets_in, .. } = *state;
        Some(QuotaJson { left: remaining, burst, per_second: rate, resets_in_seconds: resets_in })
    };
    KeyJson {
        requests: quota(Limit::Requests),
        calls: quota(Limit::Calls),
        name: usage.name.map_or_else(|| usage.key.to_string(), |name| name.to_string()),
        key: usage.key.to_string(),
        waits: usage.waits,
    }
}

fn seconds(now: Instant, since: Instant) -> f64 {
    now.saturating_duration_since(since).as_secs_f64()
}

/// Formats a time with milliseconds.
pub(super) fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}
