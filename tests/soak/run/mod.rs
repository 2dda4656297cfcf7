//! One run: the stage is set, played on and cleared, and what was left over is looked for.

mod ask;
mod calibration;
mod client;
mod clips;
mod counts;
mod explain;
mod fault_schedule;
mod follow;
mod operator;
mod oracle;
mod process;
mod report;
mod upstream;
mod watch;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clipgate::sim::{Options, Sim};
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

use self::ask::{Errand, Key, Kind, Manner};
use self::client::Clients;
use self::clips::{Clip, Clips};
use self::counts::{Tally, Wrong};
pub(crate) use self::fault_schedule::ScenarioKind;
use self::fault_schedule::{FaultSchedule, Scenario};
use self::operator::Operator;
use self::oracle::{Oracle, Times};
pub(crate) use self::report::Report;
use self::upstream::Upstream;
use self::watch::{Ledger, Watch, reload};

/// What a run is like.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) length: Duration,
    /// Requests a second.
    pub(crate) rate: u32,
    pub(crate) seed: u64,
    /// The upstream's two minutes.
    pub(crate) hold: Duration,
    /// What goes wrong at the upstream, in turn.
    pub(crate) scenarios: Vec<ScenarioKind>,
    /// Bytes that are allocated in this process, where nothing else runs in it: then memory and descriptors are the
    /// run's.
    pub(crate) heap: Option<fn() -> usize>,
}

/// Clips made a second.
const CLIPS: u32 = 5;
/// How often the job that is always told 429 is waited for.
const THROTTLED_EVERY: Duration = Duration::from_millis(500);
/// How long a poll pauses at most before another try, and until the breaker's probe has let it try.
const LONGEST_PAUSE: Duration = Duration::from_secs(11);
/// In a run of this many holds all sorts of requests come to all their usual ends.
const LONG_RUN: u32 = 7;
/// How often requests are sent.
const TICK: Duration = Duration::from_millis(5);
/// Requests under way; beyond them clients are held back.
const MOST_AT_ONCE: usize = 6000;
/// Nothing takes so long to be dropped.
const CLEARED_WITHIN: Duration = Duration::from_secs(10);

/// Plays the whole run.
pub(crate) async fn soak(setting: Setting) -> io::Result<Report> {
    let (before, heap_before) = (process::descriptors(), setting.heap.map(|heap| heap()));
    let mut report = Stage::set(setting.clone()).await?.play().await;
    if let (Some(heap), Some(heap_before)) = (setting.heap, heap_before) {
        let is_cleared = within(CLEARED_WITHIN, async {
            // Connections are closed by tasks that nobody waits for.
            while process::descriptors() > before {
                tokio::time::sleep(TICK).await;
            }
        });
        report.expect("descriptors are left open", true, is_cleared.await);
        report.memory_at_end(heap_before, heap());
    }
    Ok(report)
}

/// Whether it comes in time.
async fn within(limit: Duration, what: impl Future<Output = ()>) -> bool {
    tokio::time::timeout(limit, what).await.is_ok()
}

/// What the gateway goes by: quotas that only the greedy key comes to.
fn config(setting: &Setting) -> Config {
    let mut config = Config::default();
    config.upstream.poll_timeout = setting.hold;
    config.upstream.connect_timeout = Duration::from_secs(1);
    config.upstream.breaker_cooldown = Duration::from_secs(1);
    config.wait.timeout = setting.hold;
    config.wait.linger = setting.hold / 8;
    config.wait.max_jobs = 8;
    // So small that the oldest clips are thrown out.
    config.cache.max_bytes = 4 << 20;
    // Through an outage all who ask wait.
    config.limits.max_waits_per_key = MOST_AT_ONCE;
    config.limits.requests_per_second = setting.rate / 4;
    config.limits.burst = setting.rate / 4;
    config.limits.calls_per_second = setting.rate / 4;
    config.limits.calls_burst = setting.rate / 4;
    config
}

/// What is to be done at a rate.
struct Due {
    rate: u32,
    until_now: u64,
}

impl Due {
    fn new(rate: u32) -> Self {
        Self { rate, until_now: 0 }
    }

    /// How much of it is due, at most a tenth of a second's: what is later than that is left out.
    fn take(&mut self, elapsed: Duration) -> u64 {
        let all = (elapsed.as_secs_f64() * f64::from(self.rate)) as u64;
        let due = all - std::mem::replace(&mut self.until_now, all);
        due.min(u64::from(self.rate / 10).max(1))
    }
}

/// Those who wait for the job that is always told 429, while there is one.
struct Throttled {
    job: Option<Arc<Clip>>,
    asked: Instant,
}

impl Throttled {
    fn next(&mut self, stage: &Stage, rng: &mut Rng) -> Option<(Errand, Manner)> {
        let now = clock::now();
        let Some((_, Scenario::JobThrottled { job: id, .. })) = stage.oracle.schedule.scenario(now) else {
            self.job = None;
            return None;
        };
        let job = self.job.get_or_insert_with(|| stage.clips.make_named(rng, id));
        if now < self.asked + THROTTLED_EVERY {
            return None;
        }
        self.asked = now;
        Some(ask::throttled(job, stage.setting.hold, rng))
    }
}

/// The gateway, the upstream and those who use them.
struct Stage {
    setting: Setting,
    config: Config,
    sim: Sim,
    gateway: Gateway,
    clips: Arc<Clips>,
    clients: Arc<Clients>,
    oracle: Arc<Oracle>,
    tally: Arc<Tally>,
    begun: Instant,
    stop: CancellationToken,
    server: AbortOnDropHandle<()>,
    upstream: Arc<Upstream>,
    /// The hub.
    others: JoinSet<()>,
    readiness: Readiness,
    admin: Admin,
}

impl Stage {
    async fn set(setting: Setting) -> io::Result<Self> {
        let hold = setting.hold;
        let keys: Vec<String> = Key::accepted().map(Key::text).collect();
        let sim = Sim::new(Options {
            hold,
            seed: setting.seed,
            keys: Some(keys),
            in_order: false,
            // More than are asked for, and than come in a second.
            keep_clips: 1500,
            keep_requests: 4096,
            ..Options::default()
        });
        let upstream = Arc::new(Upstream::start(sim.clone()).await?);
        let mut config = config(&setting);
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

        let begun = clock::now();
        let times = Times {
            hold,
            timeout: hold * 3 / 4..=hold,
            live: Duration::from_secs(1),
            retries: config.upstream.retries,
            pause: LONGEST_PAUSE,
        };
        let mut rng = Rng::with_seed(setting.seed);
        let schedule = FaultSchedule::new(begun, setting.length, hold, &setting.scenarios, &mut rng);
        let oracle = Arc::new(Oracle::new(sim.clone(), upstream.address(), times, schedule));
        let tally = Arc::new(Tally::new());
        let clients = Arc::new(Clients::new(address, Arc::clone(&oracle), Arc::clone(&tally)));
        let clips = Arc::new(Clips::new(sim.clone(), hold));
        Ok(Self {
            setting,
            config,
            sim,
            gateway,
            clips,
            clients,
            oracle,
            tally,
            begun,
            stop,
            server,
            upstream,
            others,
            readiness,
            admin,
        })
    }

    async fn play(mut self) -> Report {
        let Setting { seed, length, .. } = self.setting;
        let mut rng = Rng::with_seed(seed);
        self.introduce_keys(&mut rng).await;
        let mut asides = JoinSet::new();
        let (oracle, sim) = (Arc::clone(&self.oracle), self.sim.clone());
        let (upstream, tally) = (Arc::clone(&self.upstream), Arc::clone(&self.tally));
        asides.spawn(async move {
            if let Err(error) = oracle.schedule.run(&sim, &upstream).await {
                tally.wrong(Wrong { what: "the upstream cannot come back", story: error.to_string() });
            }
        });
        let operator = Arc::new(Operator::new(
            format!("http://{}", self.admin.address()),
            Arc::clone(&self.clients),
            Arc::clone(&self.clips),
            Arc::clone(&self.tally),
        ));
        let operating = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&operator).run(rng.fork())));
        let oracle = Arc::clone(&self.oracle);
        asides.spawn(async move { oracle.noise.run().await });
        let ledger = Arc::new(Ledger::new(&self.config.limits));
        asides.spawn(reload(self.gateway.clone(), self.config.clone(), Arc::clone(&ledger), rng.fork()));
        let watch = Arc::new(Watch::new(self.gateway.clone(), self.begun, self.setting.heap));
        asides.spawn(Arc::clone(&watch).run(
            Arc::clone(&self.oracle),
            Arc::clone(&self.clips),
            Arc::clone(&self.tally),
        ));
        let running = TaskTracker::new();
        let held_back = self.send_requests(self.begun + length, &running, &mut rng).await;
        let mut report = self.report(held_back, &watch, &ledger);
        self.come_to_rest(&running, &mut report).await;
        let is_breaker_open = self.gateway.metrics().upstream.poll_counts().is_breaker_open;
        report.expect("the breaker is open in a calm", false, is_breaker_open);
        drop(operating);
        self.drain(&operator, &mut rng, &mut report).await;
        drop(operator);
        asides.shutdown().await;
        drop(watch);
        self.clear(report).await
    }

    /// Each key is let in once, so that from then on it has quotas of its own.
    async fn introduce_keys(&self, rng: &mut Rng) {
        for _ in 0..CLIPS * 2 {
            self.clips.make(rng);
        }
        for key in Key::accepted() {
            if let Some((Errand::Clips(ask), manner)) = ask::greedy(&self.clips, rng) {
                self.clients.run(Errand::Clips(ask::Ask { key, ..ask }), manner).await;
            }
        }
    }

    /// Sends requests at the rate until then; how many could not be sent because too many were under way. What could
    /// not be sent in time since the machine stood still is left out: a herd of late ones would be over quotas.
    async fn send_requests(&self, until: Instant, running: &TaskTracker, rng: &mut Rng) -> u64 {
        let Setting { rate, hold, .. } = self.setting;
        let (began, mut held_back) = (clock::now(), 0);
        let (mut requests, mut clips) = (Due::new(rate), Due::new(CLIPS));
        let mut throttled = Throttled { job: None, asked: began };
        let mut tick = tokio::time::interval(TICK);
        while clock::now() < until {
            tick.tick().await;
            let elapsed = began.elapsed();
            for _ in 0..clips.take(elapsed) {
                self.clips.make(rng);
                self.be_rude(running, rng);
            }
            self.start(throttled.next(self, rng), running);
            for number in 0..requests.take(elapsed) {
                if running.len() >= MOST_AT_ONCE {
                    held_back += 1;
                    continue;
                }
                self.start(ask::next(&self.clips, hold, rng), running);
                // Half the rate more for a while: over the greedy key's quota, and in no other's way.
                if elapsed.as_secs() % 20 < 4 && number % 2 == 0 {
                    self.start(ask::greedy(&self.clips, rng), running);
                }
            }
        }
        held_back
    }

    fn start(&self, errand: Option<(Errand, Manner)>, running: &TaskTracker) {
        if let Some((errand, manner)) = errand {
            let clients = Arc::clone(&self.clients);
            running.spawn(async move { clients.run(errand, manner).await });
        }
    }

    fn be_rude(&self, running: &TaskTracker, rng: &mut Rng) {
        const RUDE: [&[u8]; 3] =
            [b"GET /v2/generate/aud", b"\x16\x03\x01\x02\x00\x01", b"PRI * HTTP/2.0\r\n\r\n"];
        let (clients, bytes) = (Arc::clone(&self.clients), RUDE[rng.usize(..RUDE.len())]);
        let pause = Duration::from_millis(rng.u64(..300));
        running.spawn(async move { clients.be_rude(bytes, pause).await });
    }

    /// Nobody asks any more: soon nothing is parked, and nothing is held at the upstream.
    async fn come_to_rest(&self, running: &TaskTracker, report: &mut Report) {
        running.close();
        let longest = self.oracle.longest(Some(self.setting.hold * 2)) + Duration::from_secs(30);
        report.expect("requests are still under way", true, within(longest, running.wait()).await);
        report.expect("waits are left", 0, self.gateway.waits());
        let is_idle = self.sim.wait_until(|seen| seen.open == 0);
        let limit = self.config.wait.linger + Duration::from_secs(5);
        report.expect("polls are left", true, within(limit, is_idle).await);
    }

    /// The gateway is told to stop in a calm while waits are parked: each is answered, with what is true.
    async fn drain(&mut self, operator: &Operator, rng: &mut Rng, report: &mut Report) {
        let running = TaskTracker::new();
        // Few enough for the quotas.
        let mut asked = 0;
        for _ in 0..self.setting.rate / 4 {
            self.clips.make(rng);
            let errand = match rng.u8(..4) {
                0 => ask::follower(&self.clips, Kind::ParkedStream, rng),
                _ => ask::parked(&self.clips, rng),
            };
            asked += u64::from(errand.is_some());
            self.start(errand, &running);
        }
        report.expect("nobody waits at the end", true, asked > 0);
        let are_there = within(CLEARED_WITHIN, async {
            while self.gateway.waits() < running.len() {
                tokio::time::sleep(TICK).await;
            }
        });
        report.expect("waits are not parked", true, are_there.await);
        let parked = self.gateway.waits();
        self.readiness.draining();
        operator.sees_the_drain().await;
        self.oracle.drain_begins();
        self.stop.cancel();
        running.close();
        let limit = self.config.server.drain_timeout + Duration::from_secs(5);
        let is_over = within(limit, async {
            // A panic of it is counted as such.
            let _ = (&mut self.server).await;
            running.wait().await;
        });
        report.expect("the server does not come to its end", true, is_over.await);
        report.drained(parked, asked);
    }

    /// Everything is dropped, and what is not gone then is a leak.
    async fn clear(self, mut report: Report) -> Report {
        let Self { sim, gateway, clients, oracle, mut others, server, upstream, admin, .. } = self;
        report.told_by(&oracle);
        drop((clients, oracle, server, admin));
        report.expect("waits are left at the end", 0, gateway.waits());
        drop(gateway);
        let is_gone = sim.wait_until(|seen| seen.connections == 0 && seen.open == 0);
        report.expect("connections to the upstream are left", true, within(CLEARED_WITHIN, is_gone).await);
        let is_over = within(CLEARED_WITHIN, async { drop(others.join_next().await) });
        report.expect("the hub does not end with its gateway", true, is_over.await);
        others.shutdown().await;
        upstream.go_away().await;
        report
    }

    fn report(&self, held_back: u64, watch: &Watch, ledger: &Ledger) -> Report {
        let schedule = self.oracle.schedule.to_string();
        let mut report = Report::new(self.setting.clone(), Arc::clone(&self.tally), schedule);
        report.held_back(held_back);
        for key in Key::accepted() {
            let through = key.place().map_or(0, |place| self.oracle.let_through(place));
            report.expect_at_most("more than the quotas let through", ledger.most(), through);
        }
        report.watched(watch, self.clips.made());
        if self.setting.length >= self.setting.hold * LONG_RUN {
            report.expect_all_sorts();
        }
        report
    }
}
