//! One run: starts the gateway and its surroundings, sends requests, stops the gateway, and checks for leaks.

mod calibration;
mod client;
mod clips;
mod counts;
mod event_stream;
mod explain;
mod fault_schedule;
mod monitor;
mod operator;
mod oracle;
mod process;
mod report;
mod requests;
mod upstream;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clipgate::sim::{Sim, SimOptions};
use clipgate::testing::admin::{Admin, AdminContext, Readiness};
use clipgate::testing::clock;
use clipgate::testing::config::{Config, Listen};
use clipgate::testing::gateway::Gateway;
use clipgate::testing::server::{Listener, Server, tcp_address};
use clipgate::testing::telemetry::metrics::Metrics;
use fastrand::Rng;
use prometheus_client::registry::Registry;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use self::client::Clients;
use self::clips::{Clip, Clips};
use self::counts::{Counts, Violation};
pub(crate) use self::fault_schedule::ScenarioKind;
use self::fault_schedule::{FaultSchedule, Scenario};
use self::monitor::{Monitor, QuotaBound, reload};
use self::operator::Operator;
use self::oracle::{ExpectedTimes, Oracle};
pub(crate) use self::report::Report;
use self::requests::{Action, ClipQuery, Delivery, Key, RequestKind};
use self::upstream::Upstream;

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) length: Duration,
    /// Requests per second.
    pub(crate) rate: u32,
    pub(crate) seed: u64,
    /// Time for which the upstream holds a poll: 120 s at the API.
    pub(crate) hold: Duration,
    /// Kinds of fault scenarios.
    pub(crate) scenarios: Vec<ScenarioKind>,
    /// Returns the allocated bytes of this process. `None` if other tests run in it: then memory and descriptors are not
    /// checked.
    pub(crate) heap: Option<fn() -> usize>,
}

/// Clips created per second.
const CLIPS_PER_SECOND: u32 = 5;
/// Interval of the waits for the job that the upstream always answers with 429.
const THROTTLED_EVERY: Duration = Duration::from_millis(500);
/// Longest pause of a poll between attempts, including the wait for the breaker's probe.
const LONGEST_PAUSE: Duration = Duration::from_secs(11);
/// Length, in holds, from which a run must have seen each kind of request with its usual outcomes.
const LONG_RUN: u32 = 7;
/// Interval in which due requests are sent.
const TICK: Duration = Duration::from_millis(5);
/// Limit on concurrent requests. Requests beyond it are skipped.
const MAX_CONCURRENT: usize = 6000;
/// Upper bound for tasks and connections to end.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(10);

/// Executes a run and returns its report.
pub(crate) async fn soak(settings: Settings) -> io::Result<Report> {
    let (before, heap_before) = (process::descriptors(), settings.heap.map(|heap| heap()));
    let mut report = Run::start(settings.clone()).await?.execute().await;
    if let (Some(heap), Some(heap_before)) = (settings.heap, heap_before) {
        let is_cleared = within(CLEANUP_TIMEOUT, async {
            // Detached tasks close the connections.
            while process::descriptors() > before {
                tokio::time::sleep(TICK).await;
            }
        });
        report.expect("descriptors are left open", true, is_cleared.await);
        report.memory_at_end(heap_before, heap());
    }
    Ok(report)
}

/// Returns whether the future completes in time.
async fn within(limit: Duration, future: impl Future<Output = ()>) -> bool {
    tokio::time::timeout(limit, future).await.is_ok()
}

/// Returns a configuration with quotas that only [`Key::OverQuota`] exceeds.
fn config(settings: &Settings) -> Config {
    let mut config = Config::default();
    config.upstream.poll_timeout = settings.hold;
    config.upstream.connect_timeout = Duration::from_secs(1);
    config.upstream.breaker_cooldown = Duration::from_secs(1);
    config.wait.timeout = settings.hold;
    config.wait.linger = settings.hold / 8;
    config.wait.max_jobs = 8;
    // Small, so that the cache evicts clips.
    config.cache.max_bytes = 4 << 20;
    // During an outage all requests are parked.
    config.limits.max_waits_per_key = MAX_CONCURRENT;
    config.limits.requests_per_second = settings.rate / 4;
    config.limits.burst = settings.rate / 4;
    config.limits.calls_per_second = settings.rate / 4;
    config.limits.calls_burst = settings.rate / 4;
    config
}

/// Returns how many actions are due, for a given rate.
struct Pacer {
    rate: u32,
    until_now: u64,
}

impl Pacer {
    fn new(rate: u32) -> Self {
        Self { rate, until_now: 0 }
    }

    /// Returns the actions that are due, at most those of a tenth of a second. Later ones are skipped.
    fn take(&mut self, elapsed: Duration) -> u64 {
        let all = (elapsed.as_secs_f64() * f64::from(self.rate)) as u64;
        let due = all - std::mem::replace(&mut self.until_now, all);
        due.min(u64::from(self.rate / 10).max(1))
    }
}

/// Creates waits for the job of [`ScenarioKind::JobThrottled`] during that scenario.
struct ThrottledJob {
    job: Option<Arc<Clip>>,
    last_sent: Instant,
}

impl ThrottledJob {
    fn next(&mut self, run: &Run, rng: &mut Rng) -> Option<(Action, Delivery)> {
        let now = clock::now();
        let Some((_, Scenario::JobThrottled { job: id, .. })) = run.oracle.schedule.scenario(now) else {
            self.job = None;
            return None;
        };
        let job = self.job.get_or_insert_with(|| run.clips.make_named(rng, id));
        if now < self.last_sent + THROTTLED_EVERY {
            return None;
        }
        self.last_sent = now;
        Some(requests::throttled(job, run.settings.hold, rng))
    }
}

/// The gateway, the upstream, the clients and the operator.
struct Run {
    settings: Settings,
    config: Config,
    sim: Sim,
    gateway: Gateway,
    clips: Arc<Clips>,
    clients: Arc<Clients>,
    oracle: Arc<Oracle>,
    counts: Arc<Counts>,
    started_at: Instant,
    stop: CancellationToken,
    server: AbortOnDropHandle<()>,
    upstream: Arc<Upstream>,
    /// The hub.
    others: JoinSet<()>,
    readiness: Readiness,
    admin: Admin,
}

impl Run {
    async fn start(settings: Settings) -> io::Result<Self> {
        let hold = settings.hold;
        let keys: Vec<String> = Key::accepted().map(Key::text).collect();
        let sim = Sim::new(SimOptions {
            hold,
            seed: settings.seed,
            keys: Some(keys),
            in_order: false,
            // More than the clips of the pool, and than the requests of a second.
            max_clips: 1500,
            max_requests: 4096,
            ..SimOptions::default()
        });
        let upstream = Arc::new(Upstream::start(sim.clone()).await?);
        let mut config = config(&settings);
        let base_url = format!("http://{}", upstream.address());
        config.upstream.base_url = base_url.parse().expect("an address makes a URL");
        let (mut others, mut registry) = (JoinSet::new(), Registry::default());
        let (gateway, hub) = Gateway::new(&config, Metrics::new(&mut registry)).map_err(io::Error::other)?;
        others.spawn(hub);
        let listener = Listener::bind(&Listen::Tcp(([127, 0, 0, 1], 0).into())).await?;
        let address = tcp_address(&listener).expect("it is TCP");
        let stop = CancellationToken::new();
        let server = Server::new(gateway.clone(), &config.server, stop.clone()).map_err(io::Error::other)?;
        let server = AbortOnDropHandle::new(tokio::spawn(server.run(vec![listener])));

        let readiness = Readiness::default();
        let subject = AdminContext {
            gateway: gateway.clone(),
            registry,
            readiness: readiness.clone(),
            listen: vec![Listen::Tcp(address)],
            example: String::new(),
        };
        let admin = Admin::start(vec![Listen::Tcp(([127, 0, 0, 1], 0).into())], &config, subject).await?;
        readiness.ready();

        let started_at = clock::now();
        let times = ExpectedTimes {
            hold,
            timeout: hold * 3 / 4..=hold,
            live: Duration::from_secs(1),
            retries: config.upstream.retries,
            pause: LONGEST_PAUSE,
        };
        let mut rng = Rng::with_seed(settings.seed);
        let schedule = FaultSchedule::new(started_at, settings.length, hold, &settings.scenarios, &mut rng);
        let oracle = Arc::new(Oracle::new(sim.clone(), upstream.address(), times, schedule));
        let counts = Arc::new(Counts::new());
        let clients = Arc::new(Clients::new(address, Arc::clone(&oracle), Arc::clone(&counts)));
        let clips = Arc::new(Clips::new(sim.clone(), hold));
        Ok(Self {
            settings,
            config,
            sim,
            gateway,
            clips,
            clients,
            oracle,
            counts,
            started_at,
            stop,
            server,
            upstream,
            others,
            readiness,
            admin,
        })
    }

    async fn execute(mut self) -> Report {
        let Settings { seed, length, .. } = self.settings;
        let mut rng = Rng::with_seed(seed);
        self.prove_keys(&mut rng).await;
        let mut background = JoinSet::new();
        let (oracle, sim) = (Arc::clone(&self.oracle), self.sim.clone());
        let (upstream, counts) = (Arc::clone(&self.upstream), Arc::clone(&self.counts));
        background.spawn(async move {
            if let Err(error) = oracle.schedule.run(&sim, &upstream).await {
                counts.record_violation(Violation {
                    rule: "the upstream cannot listen again",
                    details: error.to_string(),
                });
            }
        });
        let operator = Arc::new(Operator::new(
            format!("http://{}", self.admin.address()),
            Arc::clone(&self.clients),
            Arc::clone(&self.clips),
            Arc::clone(&self.counts),
        ));
        let operating = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&operator).run(rng.fork())));
        let oracle = Arc::clone(&self.oracle);
        background.spawn(async move { oracle.calibration.run().await });
        let quota_bound = Arc::new(QuotaBound::new(&self.config.limits));
        background.spawn(reload(
            self.gateway.clone(),
            self.config.clone(),
            Arc::clone(&quota_bound),
            rng.fork(),
        ));
        let monitor = Arc::new(Monitor::new(self.gateway.clone(), self.started_at, self.settings.heap));
        background.spawn(Arc::clone(&monitor).run(
            Arc::clone(&self.oracle),
            Arc::clone(&self.clips),
            Arc::clone(&self.counts),
        ));
        let running = TaskTracker::new();
        let skipped = self.send_requests(self.started_at + length, &running, &mut rng).await;
        let mut report = self.report(skipped, &monitor, &quota_bound);
        self.wait_until_idle(&running, &mut report).await;
        let is_breaker_open = self.gateway.metrics().upstream.poll_counts().is_breaker_open;
        report.expect("the breaker is open in a calm", false, is_breaker_open);
        drop(operating);
        self.drain(&operator, &mut rng, &mut report).await;
        drop(operator);
        background.shutdown().await;
        drop(monitor);
        self.tear_down(report).await
    }

    /// Sends one request with each valid key: once the upstream has accepted a key, the key has its own quotas.
    async fn prove_keys(&self, rng: &mut Rng) {
        for _ in 0..CLIPS_PER_SECOND * 2 {
            self.clips.make(rng);
        }
        for key in Key::accepted() {
            if let Some((Action::Clips(query), delivery)) = requests::over_quota(&self.clips, rng) {
                self.clients.run(Action::Clips(ClipQuery { key, ..query }), delivery).await;
            }
        }
    }

    /// Sends requests at the rate, and returns the number of requests that [`MAX_CONCURRENT`] prevented. Requests that a
    /// stalled machine delays are skipped, because a burst of them would exceed the quotas.
    async fn send_requests(&self, until: Instant, running: &TaskTracker, rng: &mut Rng) -> u64 {
        let Settings { rate, hold, .. } = self.settings;
        let (began, mut skipped) = (clock::now(), 0);
        let (mut requests, mut clips) = (Pacer::new(rate), Pacer::new(CLIPS_PER_SECOND));
        let mut throttled = ThrottledJob { job: None, last_sent: began };
        let mut tick = tokio::time::interval(TICK);
        while clock::now() < until {
            tick.tick().await;
            let elapsed = began.elapsed();
            for _ in 0..clips.take(elapsed) {
                self.clips.make(rng);
                self.send_malformed(running, rng);
            }
            self.spawn(throttled.next(self, rng), running);
            for number in 0..requests.take(elapsed) {
                if running.len() >= MAX_CONCURRENT {
                    skipped += 1;
                    continue;
                }
                self.spawn(requests::random(&self.clips, hold, rng), running);
                // For 4 of 20 s, half as many requests again: more than the quota of this key allows.
                if elapsed.as_secs() % 20 < 4 && number % 2 == 0 {
                    self.spawn(requests::over_quota(&self.clips, rng), running);
                }
            }
        }
        skipped
    }

    fn spawn(&self, action: Option<(Action, Delivery)>, running: &TaskTracker) {
        if let Some((action, delivery)) = action {
            let clients = Arc::clone(&self.clients);
            running.spawn(async move { clients.run(action, delivery).await });
        }
    }

    fn send_malformed(&self, running: &TaskTracker, rng: &mut Rng) {
        const MALFORMED: [&[u8]; 3] =
            [b"GET /v2/generate/aud", b"\x16\x03\x01\x02\x00\x01", b"PRI * HTTP/2.0\r\n\r\n"];
        let (clients, bytes) = (Arc::clone(&self.clients), MALFORMED[rng.usize(..MALFORMED.len())]);
        let pause = Duration::from_millis(rng.u64(..300));
        running.spawn(async move { clients.send_malformed(bytes, pause).await });
    }

    /// Waits until no request is parked and the upstream holds no poll.
    async fn wait_until_idle(&self, running: &TaskTracker, report: &mut Report) {
        running.close();
        let longest = self.oracle.max_duration(Some(self.settings.hold * 2)) + Duration::from_secs(30);
        report.expect("requests do not end", true, within(longest, running.wait()).await);
        // The hub learns of the last disconnects a moment later.
        let are_gone = async {
            while self.gateway.waits() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = within(Duration::from_secs(5), are_gone).await;
        report.expect("waits are left", 0, self.gateway.waits());
        let is_idle = self.sim.wait_until(|seen| seen.open == 0);
        let limit = self.config.wait.linger + Duration::from_secs(5);
        report.expect("polls are left", true, within(limit, is_idle).await);
    }

    /// Stops the gateway while waits are parked. Each must be answered, with the true state.
    async fn drain(&mut self, operator: &Operator, rng: &mut Rng, report: &mut Report) {
        let running = TaskTracker::new();
        // Within the quotas.
        let mut sent = 0;
        for _ in 0..self.settings.rate / 4 {
            self.clips.make(rng);
            let action = match rng.u8(..4) {
                0 => requests::event_stream(&self.clips, RequestKind::ParkedStream, rng),
                _ => requests::parked(&self.clips, rng),
            };
            sent += u64::from(action.is_some());
            self.spawn(action, &running);
        }
        report.expect("no wait is parked at the stop", true, sent > 0);
        let are_there = within(CLEANUP_TIMEOUT, async {
            while self.gateway.waits() < running.len() {
                tokio::time::sleep(TICK).await;
            }
        });
        report.expect("waits are not parked", true, are_there.await);
        let parked = self.gateway.waits();
        self.readiness.draining();
        operator.check_draining().await;
        self.oracle.drain_started();
        self.stop.cancel();
        running.close();
        let limit = self.config.server.drain_timeout + Duration::from_secs(5);
        let is_over = within(limit, async {
            // FailureCounter counts a panic of the task.
            let _ = (&mut self.server).await;
            running.wait().await;
        });
        report.expect("the server does not stop", true, is_over.await);
        report.add_drain(parked, sent);
    }

    /// Drops everything, and reports the rest as leaks.
    async fn tear_down(self, mut report: Report) -> Report {
        let Self { sim, gateway, clients, oracle, mut others, server, upstream, admin, .. } = self;
        report.set_upstream_figures(&oracle);
        drop((clients, oracle, server, admin));
        report.expect("waits are left at the end", 0, gateway.waits());
        drop(gateway);
        let is_gone = sim.wait_until(|seen| seen.connections == 0 && seen.open == 0);
        report.expect("connections to the upstream are left", true, within(CLEANUP_TIMEOUT, is_gone).await);
        let is_over = within(CLEANUP_TIMEOUT, async { drop(others.join_next().await) });
        report.expect("the hub does not end with its gateway", true, is_over.await);
        others.shutdown().await;
        upstream.close().await;
        report
    }

    fn report(&self, skipped: u64, monitor: &Monitor, quota_bound: &QuotaBound) -> Report {
        let schedule = self.oracle.schedule.to_string();
        let mut report = Report::new(self.settings.clone(), Arc::clone(&self.counts), schedule);
        report.set_skipped(skipped);
        for key in Key::accepted() {
            let admitted = key.index().map_or(0, |place| self.oracle.admitted(place));
            report.expect_at_most(
                "more requests admitted than the quotas allow",
                quota_bound.limit(),
                admitted,
            );
        }
        report.add_monitor(monitor, self.clips.made());
        if self.settings.length >= self.settings.hold * LONG_RUN {
            report.expect_all_outcomes();
        }
        report
    }
}
