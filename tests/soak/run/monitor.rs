//! Tasks beside the clients: reload the configuration, compare the upstream's record with delivered responses, and write
//! a line of progress.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clipgate::sim::RecordedRequest;
use clipgate::testing::clock;
use clipgate::testing::config::{self, Config};
use clipgate::testing::gateway::Gateway;
use fastrand::Rng;
use parking_lot::Mutex;

use super::clips::{Clip, Clips};
use super::counts::{Counts, Violation};
use super::oracle::Oracle;
use super::process;
use super::requests::Key;

/// Interval of the progress lines, in seconds.
const LINE_EVERY: u32 = 5;

/// Upper bound of the requests that the quotas of one key have allowed so far, across reloads.
pub(crate) struct QuotaBound(Mutex<Account>);

struct Account {
    since: Instant,
    rate: u32,
    limit: f64,
}

impl QuotaBound {
    pub(crate) fn new(limits: &config::LimitsConfig) -> Self {
        let (rate, limit) = (limits.requests_per_second, f64::from(limits.burst));
        Self(Mutex::new(Account { since: clock::now(), rate, limit }))
    }

    /// Applies new quotas from now on. With a different rate each key starts with a full burst.
    fn change(&self, limits: &config::LimitsConfig) {
        let now = clock::now();
        let mut account = self.0.lock();
        account.limit += f64::from(account.rate) * (now - account.since).as_secs_f64();
        if account.rate != limits.requests_per_second {
            account.limit += f64::from(limits.burst);
        }
        (account.since, account.rate) = (now, limits.requests_per_second);
    }

    pub(crate) fn limit(&self) -> u64 {
        let account = self.0.lock();
        (account.limit + f64::from(account.rate) * account.since.elapsed().as_secs_f64()).ceil() as u64
    }
}

/// Reloads the gateway with changed quotas, times and cache settings every few seconds, as SIGHUP does. Cancel safe.
pub(crate) async fn reload(gateway: Gateway, first: Config, quota_bound: Arc<QuotaBound>, mut rng: Rng) {
    loop {
        tokio::time::sleep(Duration::from_millis(rng.u64(1000..4000))).await;
        let mut config = first.clone();
        if rng.bool() {
            config.limits.requests_per_second += config.limits.requests_per_second / 3;
            config.limits.burst = config.limits.requests_per_second;
        }
        if rng.bool() {
            config.wait.timeout = config.wait.timeout * 3 / 4;
        }
        config.cache.live_ttl = first.cache.live_ttl.mul_f64(rng.f64());
        config.cache.key_recheck_interval = Duration::from_secs(rng.u64(2..60));
        // Before the reload: the bound must include the first requests under the new quotas.
        quota_bound.change(&config.limits);
        gateway.reload(&config).expect("the configuration is good");
        gateway.purge_idle();
    }
}

/// Writes progress, and samples memory.
pub(crate) struct Monitor {
    gateway: Gateway,
    started_at: Instant,
    heap: Option<fn() -> usize>,
    memory: Mutex<Vec<Memory>>,
}

/// Memory in bytes at the end of a calm period.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Since the start of the run.
    pub(crate) at: Duration,
    pub(crate) allocated: usize,
    /// See [`process::memory`].
    pub(crate) resident: u64,
}

impl Monitor {
    pub(crate) fn new(gateway: Gateway, started_at: Instant, heap: Option<fn() -> usize>) -> Self {
        Self { gateway, started_at, heap, memory: Mutex::default() }
    }

    /// Returns a sample for the end of each calm period.
    pub(crate) fn memory(&self) -> Vec<Memory> {
        self.memory.lock().clone()
    }

    /// Cancel safe.
    pub(crate) async fn run(self: Arc<Self>, oracle: Arc<Oracle>, clips: Arc<Clips>, counts: Arc<Counts>) {
        let mut every = tokio::time::interval(Duration::from_secs(1));
        let (mut was_calm, mut seen_by, mut before) = (true, self.started_at, (0, 0, 0));
        for second in 0.. {
            every.tick().await;
            check_isolation(&oracle, &clips, &counts, &mut seen_by);
            let is_calm = oracle.schedule.scenario(clock::now()).is_none();
            if was_calm && !is_calm {
                self.memory.lock().extend(self.heap.map(|heap| Memory {
                    at: self.started_at.elapsed(),
                    allocated: heap(),
                    resident: process::memory().unwrap_or(0),
                }));
            }
            was_calm = is_calm;
            if second % LINE_EVERY == 0 {
                let now = counts.summary();
                self.write_progress(&oracle, (now.0 - before.0, now.1 - before.1, now.2));
                before = now;
            }
        }
    }

    fn write_progress(&self, oracle: &Oracle, (ended, hits, violations): (u64, u64, u64)) {
        let scenario = oracle.schedule.scenario(clock::now());
        let scenario = scenario.map_or("calm", |(name, _)| name);
        let elapsed = self.started_at.elapsed().as_secs();
        let every = u64::from(LINE_EVERY);
        let line = format!(
            "{:>3}:{:02} {scenario:<10} {:>5} requests/s, {:>5} hits/s, {:>4} waits, {:>3} polls, \
             {:>4} descriptors, {:>3} MiB of {:>3}, violations: {violations}",
            elapsed / 60,
            elapsed % 60,
            ended / every,
            hits / every,
            self.gateway.waits(),
            oracle.sim.open(),
            process::descriptors().unwrap_or(0),
            self.heap.map_or(0, |heap| heap()) >> 20,
            process::memory().unwrap_or(0) >> 20,
        );
        // Stderr may be closed.
        let _ = writeln!(std::io::stderr().lock(), "{line}");
    }
}

/// P11: a key that received a clip has itself queried the upstream for it.
fn check_isolation(oracle: &Oracle, clips: &Clips, counts: &Counts, seen_by: &mut Instant) {
    let by_id = clips.by_id();
    // Read before the record: the record then has the requests of these deliveries.
    let delivered: Vec<(&Arc<Clip>, u64)> = by_id.values().map(|clip| (clip, clip.delivered_to())).collect();
    let requests = oracle.sim.requests();
    let overlap = Duration::from_secs(1);
    for seen in requests.iter().filter(|seen| seen.at + overlap >= *seen_by) {
        let Some(key) = key_of(seen) else { continue };
        let query = seen.target.split_once('?').map_or("", |(_, query)| query);
        for (_, value) in form_urlencoded::parse(query.as_bytes()) {
            if let Some(clip) = by_id.get(&*value) {
                clip.mark_requested(key.bit());
            }
        }
    }
    if let Some(last) = requests.last() {
        *seen_by = last.at;
    }
    for (clip, keys) in delivered {
        if keys & !clip.requested_by() != 0 {
            let details =
                format!("{}: delivered to keys {keys:b}, requested by {:b}", clip.id, clip.requested_by());
            counts.record_violation(Violation {
                rule: "a key received a clip that it never requested",
                details,
            });
        }
    }
}

fn key_of(seen: &RecordedRequest) -> Option<Key> {
    let key = seen.key?;
    Key::accepted().find(|accepted| key.matches(&accepted.text()))
}
