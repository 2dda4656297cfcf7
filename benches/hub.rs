//! How many joins a second does the hub take in on one core, and how many waits a second does it answer?
//!
//! Its clients are on the same core, so its own part is larger still. `cargo bench --bench hub`.

use std::sync::Arc;
use std::time::Duration;

use clipgate::core::job::{JobId, JobSet};
use clipgate::core::route::{Form, Goal, Route};
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
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// As many as one core is to take in within a second.
const WAITS: usize = 50_000;

fn main() {
    divan::main();
}

#[divan::bench(sample_count = 10, sample_size = 1)]
fn joins(bencher: Bencher<'_, '_>) {
    bencher.counter(ItemsCount::new(WAITS)).with_inputs(Yard::new).bench_local_refs(|yard| {
        let parked = yard.join_all();
        assert!(yard.hub.waits() >= WAITS);
        parked
    });
}

#[divan::bench(sample_count = 10, sample_size = 1)]
fn answers(bencher: Bencher<'_, '_>) {
    let with_waits = || {
        let mut yard = Yard::new();
        let parked = yard.join_all();
        (yard, parked)
    };
    bencher.counter(ItemsCount::new(WAITS)).with_inputs(with_waits).bench_local_values(|(yard, parked)| {
        yard.land(parked);
        yard
    });
}

/// A hub with its upstream, on one thread.
struct Yard {
    runtime: Runtime,
    hub: Hub,
    sim: Sim,
    identity: Identity,
    goal: Goal,
}

impl Yard {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let mut config = Config::default();
        (config.limits.max_waits, config.limits.max_waits_per_key) = (2 * WAITS, 2 * WAITS);
        let sim = Sim::new(SimOptions::default());
        sim.set_status(JOB, "streaming");
        let hub = runtime.block_on(async {
            let upstream = TcpListener::bind(("127.0.0.1", 0)).await.expect("a socket");
            let address = upstream.local_addr().expect("it is bound");
            config.upstream.base_url = format!("http://{address}").parse().expect("it is a URL");
            tokio::spawn(sim.clone().serve(upstream, std::future::pending()));
            hub(&config)
        });
        let keyring = Authenticator::new(&config.auth, None).expect("clients bring their keys");
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer k"));
        let identity = keyring.identify(&headers).expect("it is a key").expect("there is one");
        let goal = Goal::Rung(Route::suno().ladder.highest_askable());
        Self { runtime, hub, sim, identity, goal }
    }

    /// Comes back when the last one is parked, and so all before it.
    fn join_all(&mut self) -> Vec<WaitHandle> {
        let (hub, waits) = (self.hub.clone(), (0..WAITS).map(|_| self.wait()).collect::<Vec<_>>());
        self.runtime.block_on(async {
            let mut parked = Vec::with_capacity(WAITS);
            for (number, wait) in waits.into_iter().enumerate() {
                match number % BURST {
                    0 => parked.push(hub.park(wait).await.expect("there is room")),
                    _ => parked.push(hub.join(wait).expect("there is room")),
                }
            }
            // When this one is parked, so are those before it.
            drop(hub.park(self.wait()).await.expect("there is room"));
            parked
        })
    }

    fn land(&self, parked: Vec<WaitHandle>) {
        self.runtime.block_on(async {
            self.sim.set_status(JOB, "completed");
            for wait in parked {
                wait.await.expect("it is answered");
            }
        });
    }

    fn wait(&self) -> WaitRequest {
        WaitRequest {
            identity: self.identity.clone(),
            quota_subject: Subject::Key(self.identity.domain),
            form: Form::Single,
            jobs: JobSet::new([JobId::new(JOB).expect("it is short")]),
            goal: self.goal,
            arrived: clock::now(),
            timeout: Duration::from_secs(120),
            max_age: None,
            may_store: true,
            is_patient: false,
            links: Links::default(),
        }
    }
}

const JOB: &str = "9d1f3c52-4a55-4c1e-a6f0-5d7d0f3b7f11";

/// Joins that come together, at most: as many as are read from sockets in one turn of the runtime.
const BURST: usize = 64;

/// The hub as the gateway makes it.
fn hub(config: &Config) -> Hub {
    let (route, upstream) = (Arc::new(Route::suno()), &config.upstream);
    let metrics = Metrics::new(&mut Registry::default());
    let client = Client::for_polls(upstream).expect("a client");
    let ladder = route.ladder.clone();
    let deps = HubDeps {
        cache: Arc::new(Cache::new(config.cache.clone(), ladder.clone())),
        poller: Poller::new(client, route, upstream, Arc::clone(&metrics)),
        limits: Arc::new(Limits::new(&config.limits, &[])),
        metrics,
        tracer: Tracer::new(&config.telemetry, &upstream.base_url).expect("it is off"),
    };
    let (hub, task) = Hub::new(config, &ladder, deps);
    tokio::spawn(task);
    hub
}
