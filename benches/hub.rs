//! Joins and answers of the hub per second, on one core: `cargo bench --bench hub`.
//!
//! The clients run on the same core, so the hub alone is faster.

use std::sync::Arc;
use std::time::Duration;

use clipgate::core::job::{JobId, JobSet};
use clipgate::core::route::{Form, Goal, Route, Routes};
use clipgate::sim::{Sim, SimOptions};
use clipgate::testing::auth::{Authenticator, Identity};
use clipgate::testing::cache::Cache;
use clipgate::testing::clock;
use clipgate::testing::config::Config;
use clipgate::testing::hub::{Hub, HubDeps, WaitHandle, WaitRequest};
use clipgate::testing::limits::{Limits, Subject};
use clipgate::testing::telemetry::metrics::Metrics;
use clipgate::testing::telemetry::trace::{Links, Tracer};
use clipgate::testing::upstream::client::Client;
use clipgate::testing::upstream::poll::Poller;
use divan::Bencher;
use divan::counter::ItemsCount;
use http::HeaderMap;
use http::header::{AUTHORIZATION, HeaderValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// Joins that one core should accept within a second.
const WAITS: usize = 50_000;

fn main() {
    divan::main();
}

#[divan::bench(sample_count = 10, sample_size = 1)]
fn joins(bencher: Bencher<'_, '_>) {
    bencher.counter(ItemsCount::new(WAITS)).with_inputs(HubFixture::new).bench_local_refs(|fixture| {
        let parked = fixture.join_all();
        assert!(fixture.hub.waits() >= WAITS);
        parked
    });
}

#[divan::bench(sample_count = 10, sample_size = 1)]
fn answers(bencher: Bencher<'_, '_>) {
    let with_waits = || {
        let mut fixture = HubFixture::new();
        let parked = fixture.join_all();
        (fixture, parked)
    };
    bencher.counter(ItemsCount::new(WAITS)).with_inputs(with_waits).bench_local_values(
        |(fixture, parked)| {
            fixture.land(parked);
            fixture
        },
    );
}

/// A hub and its upstream, on one thread.
struct HubFixture {
    runtime: Runtime,
    hub: Hub,
    sim: Sim,
    identity: Identity,
    goal: Goal,
}

impl HubFixture {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let mut config = Config::default();
        (config.limits.max_waits, config.limits.max_waits_per_key) = (2 * WAITS, 2 * WAITS);
        let sim = Sim::new(SimOptions::default());
        sim.set_status(JOB, "streaming");
        let hub = runtime.block_on(async {
            let upstream = TcpListener::bind(("127.0.0.1", 0)).await.expect("a socket");
            let address = upstream.local_addr().expect("a bound socket has an address");
            config.upstream.base_url = format!("http://{address}").parse().expect("a valid URL");
            tokio::spawn(sim.clone().serve(upstream, std::future::pending()));
            hub(&config)
        });
        let authenticator = Authenticator::new(&config.auth, None).expect("a valid configuration");
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer k"));
        let identity =
            authenticator.identify(&headers).expect("a valid key").expect("the headers have a key");
        let goal = Goal::Rung(Route::suno().ladder.highest_askable());
        Self { runtime, hub, sim, identity, goal }
    }

    /// Joins all waits, and returns once they are parked.
    fn join_all(&mut self) -> Vec<WaitHandle> {
        let (hub, waits) = (self.hub.clone(), (0..WAITS).map(|_| self.wait()).collect::<Vec<_>>());
        self.runtime.block_on(async {
            let mut parked = Vec::with_capacity(WAITS);
            for (number, wait) in waits.into_iter().enumerate() {
                match number % BURST {
                    0 => parked.push(hub.park(wait).await.expect("the hub has room")),
                    _ => parked.push(hub.join(wait).expect("the hub has room")),
                }
            }
            // The hub parks waits in order: once this one is parked, so are all before it.
            drop(hub.park(self.wait()).await.expect("the hub has room"));
            parked
        })
    }

    fn land(&self, parked: Vec<WaitHandle>) {
        self.runtime.block_on(async {
            self.sim.set_status(JOB, "completed");
            for wait in parked {
                wait.await.expect("the hub answers");
            }
        });
    }

    fn wait(&self) -> WaitRequest {
        WaitRequest {
            identity: self.identity.clone(),
            quota_subject: Subject::Key(self.identity.domain),
            form: Form::Single,
            jobs: JobSet::new([JobId::new(JOB).expect("a valid id")]),
            goal: self.goal,
            arrived: clock::now(),
            timeout: Duration::from_secs(120),
            max_age: None,
            may_store: true,
            is_patient: false,
            newer_than: None,
            links: Links::default(),
        }
    }
}

const JOB: &str = "9d1f3c52-4a55-4c1e-a6f0-5d7d0f3b7f11";

/// Joins without an await between them: as many as one turn of the runtime reads from sockets.
const BURST: usize = 64;

/// Creates a hub with the parts that the gateway gives it.
fn hub(config: &Config) -> Hub {
    let (routes, upstream) = (Arc::new(Routes::from(Route::suno())), &config.upstream);
    let metrics = Metrics::new(&mut Registry::default());
    let client = Client::for_polls(upstream).expect("a client");
    let deps = HubDeps {
        cache: Arc::new(Cache::new(config.cache.clone(), Arc::clone(&routes))),
        poller: Poller::new(client, Arc::clone(&routes), upstream, Arc::clone(&metrics)),
        limits: Arc::new(Limits::new(&config.limits, &[])),
        metrics,
        tracer: Tracer::new(&config.telemetry, &upstream.base_url, &Counter::default())
            .expect("tracing is off"),
    };
    let (hub, task) = Hub::new(config, &routes, deps);
    tokio::spawn(task);
    hub
}
