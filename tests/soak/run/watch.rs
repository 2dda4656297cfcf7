//! What goes on beside the clients: the configuration is read again, the upstream's record is compared with what
//! clients were told, and somebody who looks on is told how it goes.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clipgate::sim::RecordedRequest;
use clipgate::testing::clock;
use clipgate::testing::config::{self, Config};
use clipgate::testing::gateway::Gateway;
use fastrand::Rng;
use parking_lot::Mutex;

use super::ask::Key;
use super::clips::{Clip, Clips};
use super::counts::{Tally, Wrong};
use super::oracle::Oracle;
use super::process;

/// How often a line is written.
const LINE_EVERY: u32 = 5;

/// What the quotas let through for one key at the most.
pub(crate) struct Ledger(Mutex<Account>);

struct Account {
    since: Instant,
    rate: u32,
    most: f64,
}

impl Ledger {
    pub(crate) fn new(limits: &config::LimitsConfig) -> Self {
        let (rate, most) = (limits.requests_per_second, f64::from(limits.burst));
        Self(Mutex::new(Account { since: clock::now(), rate, most }))
    }

    /// New quotas hold from now on; with other rates, all begin with a whole burst.
    fn change(&self, limits: &config::LimitsConfig) {
        let now = clock::now();
        let mut account = self.0.lock();
        account.most += f64::from(account.rate) * (now - account.since).as_secs_f64();
        if account.rate != limits.requests_per_second {
            account.most += f64::from(limits.burst);
        }
        (account.since, account.rate) = (now, limits.requests_per_second);
    }

    /// By now.
    pub(crate) fn most(&self) -> u64 {
        let account = self.0.lock();
        (account.most + f64::from(account.rate) * account.since.elapsed().as_secs_f64()).ceil() as u64
    }
}

/// Gives the gateway another configuration now and then, as SIGHUP does: quotas, times, what is kept. Cancel safe.
pub(crate) async fn reload(gateway: Gateway, first: Config, ledger: Arc<Ledger>, mut rng: Rng) {
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
        // Before: what is let through by the new ones is in the ledger by then.
        ledger.change(&config.limits);
        gateway.reload(&config).expect("the configuration is good");
        gateway.purge_idle();
    }
}

/// Somebody who looks on.
pub(crate) struct Watch {
    gateway: Gateway,
    begun: Instant,
    heap: Option<fn() -> usize>,
    memory: Mutex<Vec<Memory>>,
}

/// Bytes at the end of a calm.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Since the beginning.
    pub(crate) at: Duration,
    pub(crate) allocated: usize,
    /// What the system gave to the process, and what it keeps of that.
    pub(crate) resident: u64,
}

impl Watch {
    pub(crate) fn new(gateway: Gateway, begun: Instant, heap: Option<fn() -> usize>) -> Self {
        Self { gateway, begun, heap, memory: Mutex::default() }
    }

    /// At the end of each calm.
    pub(crate) fn memory(&self) -> Vec<Memory> {
        self.memory.lock().clone()
    }

    /// Cancel safe.
    pub(crate) async fn run(self: Arc<Self>, oracle: Arc<Oracle>, clips: Arc<Clips>, tally: Arc<Tally>) {
        let mut every = tokio::time::interval(Duration::from_secs(1));
        let (mut was_calm, mut seen_by, mut before) = (true, self.begun, (0, 0, 0));
        for second in 0.. {
            every.tick().await;
            compare(&oracle, &clips, &tally, &mut seen_by);
            let is_calm = oracle.schedule.scenario(clock::now()).is_none();
            if was_calm && !is_calm {
                self.memory.lock().extend(self.heap.map(|heap| Memory {
                    at: self.begun.elapsed(),
                    allocated: heap(),
                    resident: process::memory().unwrap_or(0),
                }));
            }
            was_calm = is_calm;
            if second % LINE_EVERY == 0 {
                let now = tally.so_far();
                self.tell(&oracle, (now.0 - before.0, now.1 - before.1, now.2));
                before = now;
            }
        }
    }

    fn tell(&self, oracle: &Oracle, (ended, hits, wrong): (u64, u64, u64)) {
        let scenario = oracle.schedule.scenario(clock::now());
        let scenario = scenario.map_or("calm", |(name, _)| name);
        let elapsed = self.begun.elapsed().as_secs();
        let every = u64::from(LINE_EVERY);
        let line = format!(
            "{:>3}:{:02} {scenario:<10} {:>5} requests/s, {:>5} hits/s, {:>4} waits, {:>3} polls, \
             {:>4} descriptors, {:>3} MiB of {:>3}, unexplained: {wrong}",
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
        // Nobody may be looking.
        let _ = writeln!(std::io::stderr().lock(), "{line}");
    }
}

/// A key that was told of a clip has asked the upstream for it: no other key's answer does.
fn compare(oracle: &Oracle, clips: &Clips, tally: &Tally, seen_by: &mut Instant) {
    let by_id = clips.by_id();
    // Told before the record is read: what led to it is in the record, then.
    let told: Vec<(&Arc<Clip>, u64)> = by_id.values().map(|clip| (clip, clip.told())).collect();
    let requests = oracle.sim.requests();
    let overlap = Duration::from_secs(1);
    for seen in requests.iter().filter(|seen| seen.at + overlap >= *seen_by) {
        let Some(key) = key_of(seen) else { continue };
        let query = seen.target.split_once('?').map_or("", |(_, query)| query);
        for (_, value) in form_urlencoded::parse(query.as_bytes()) {
            if let Some(clip) = by_id.get(&*value) {
                clip.is_asked(key.bit());
            }
        }
    }
    if let Some(last) = requests.last() {
        *seen_by = last.at;
    }
    for (clip, told) in told {
        if told & !clip.asked() != 0 {
            let story = format!("{}: keys {told:b} were told, {:b} asked", clip.id, clip.asked());
            tally.wrong(Wrong { what: "a key was told what it never asked", story });
        }
    }
}

fn key_of(seen: &RecordedRequest) -> Option<Key> {
    let key = seen.key?;
    Key::accepted().find(|accepted| key.matches(&accepted.text()))
}
