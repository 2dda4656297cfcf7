//! A hub without an engine, whose messages are the test's.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;

use super::SharingDeps;
use crate::cache::Cache;
use crate::clock;
use crate::cluster::{Cluster, ClusterWorld};
use crate::config::{ClusterConfig, Config};
use crate::core::job::{JobId, JobState, KeyDomain, ResponseHead};
use crate::core::route::Routes;
use crate::core::siblings::{Removal, SiblingConfig, SiblingInput, SiblingMessage};
use crate::hub::{Hub, HubDeps};
use crate::limits::Limits;
use crate::secret::Secret;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::trace::Tracer;
use crate::upstream::client::Client;
use crate::upstream::poll::Poller;

const KEY: KeyDomain = KeyDomain([1; 16]);
const OTHER: KeyDomain = KeyDomain([2; 16]);
const INSTANCE: u64 = 7;

struct TestHub {
    hub: Hub,
    cache: Arc<Cache>,
    inputs: mpsc::Sender<SiblingInput>,
    _registry: Registry,
}

fn start() -> TestHub {
    let config = Config::default();
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let routes: Arc<Routes> = Arc::new(config.routes());
    let cache = Arc::new(Cache::new(config.cache.clone(), Arc::clone(&routes)));
    let client = Client::for_polls(&config.upstream).unwrap();
    let deps = HubDeps {
        poller: Poller::new(client, Arc::clone(&routes), &config.upstream, Arc::clone(&metrics)),
        cache: Arc::clone(&cache),
        limits: Arc::new(Limits::new(&config.limits, config.auth.members())),
        metrics: Arc::clone(&metrics),
        tracer: Tracer::new(&config.telemetry, &config.upstream.base_url, &metrics.spans_lost).unwrap(),
    };
    let cluster = ClusterConfig { secret: Secret::new("s".repeat(32)), ..ClusterConfig::default() };
    let world = ClusterWorld {
        base_url: &config.upstream.base_url,
        routes: &routes,
        cache: Arc::new(ArcSwap::from_pointee(config.cache.clone())),
        instance: INSTANCE,
    };
    let (cluster, _, _) = Cluster::start(&cluster, &world, metrics);
    let (inputs, inbox) = mpsc::channel(64);
    let sharing = SharingDeps {
        cluster,
        inbox,
        link: Box::pin(std::future::pending()),
        config: SiblingConfig {
            instance: INSTANCE,
            patience: Duration::from_millis(50),
            takeover: Duration::from_secs(2),
            linger: Duration::ZERO,
            refusal_ttl: Duration::from_secs(60),
            ladders: routes.iter().map(|(_, route)| route.ladder.clone()).collect(),
        },
        offers_polls: true,
        strict: false,
        expected: 0,
    };
    let (hub, task) = Hub::with_siblings(&config, &routes, deps, Some(sharing));
    tokio::spawn(task);
    TestHub { hub, cache, inputs, _registry: registry }
}

fn job(id: &str) -> JobId {
    JobId::new(id).unwrap()
}

impl TestHub {
    fn store(&self, domain: KeyDomain, id: &str) {
        let now = clock::now();
        let ladder = crate::core::route::Route::suno().ladder;
        self.cache.key_accepted(domain, now);
        let state = JobState {
            id: job(id),
            rung: Some(ladder.highest_askable()),
            body: "{}".into(),
            head: Arc::new(ResponseHead::default()),
            as_of: now,
            seen_at: now,
        };
        self.cache.store(domain, &state, now, now);
        assert!(self.has(domain, id));
    }

    fn has(&self, domain: KeyDomain, id: &str) -> bool {
        self.cache.get(domain, &job(id), clock::now()).is_some()
    }

    async fn hear(&self, removal: Removal, by: u64) {
        let message = SiblingMessage::Removed { removal, by: Some(by) };
        self.inputs.send(SiblingInput::Message(message)).await.unwrap();
    }

    async fn wait_until_removed(&self, domain: KeyDomain, id: &str) {
        let removed = async {
            while self.has(domain, id) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), removed).await.expect("a removal");
    }
}

/// The message about an own removal can be lost with the link.
#[tokio::test]
async fn a_removal_by_a_sibling_counts_also_after_an_own_one_that_was_not_heard() {
    let hub = start();
    for removal in [Removal::Id(job("a")), Removal::All] {
        hub.hub.states_removed(removal.clone());
        tokio::time::sleep(Duration::from_millis(20)).await;
        hub.store(KEY, "a");
        hub.hear(removal, INSTANCE + 1).await;
        hub.wait_until_removed(KEY, "a").await;
    }
    hub.hub.jobs_changed(KEY, &[job("a")]);
    tokio::time::sleep(Duration::from_millis(20)).await;
    hub.store(KEY, "a");
    hub.hear(Removal::Changed(KEY, job("a")), INSTANCE + 1).await;
    hub.wait_until_removed(KEY, "a").await;
}

#[tokio::test]
async fn an_own_removal_that_the_engine_sends_back_removes_no_later_state() {
    let hub = start();
    hub.store(KEY, "a");
    hub.store(KEY, "b");
    hub.hear(Removal::Id(job("a")), INSTANCE).await;
    hub.hear(Removal::All, INSTANCE).await;
    hub.hear(Removal::Changed(KEY, job("b")), INSTANCE + 1).await;
    hub.wait_until_removed(KEY, "b").await;
    assert!(hub.has(KEY, "a"));
}

#[tokio::test]
async fn a_change_of_all_jobs_of_a_key_at_a_sibling_leaves_other_keys_and_older_reads_out() {
    let hub = start();
    hub.store(KEY, "a");
    hub.store(OTHER, "a");
    let began = clock::now();
    hub.hear(Removal::AllChanged(Some(KEY)), INSTANCE + 1).await;
    hub.wait_until_removed(KEY, "a").await;
    assert!(hub.has(OTHER, "a") && hub.cache.is_key_proven(KEY));
    tokio::time::sleep(Duration::from_millis(2)).await;
    let state = hub.cache.get(OTHER, &job("a"), clock::now()).unwrap().entry.state.clone();
    hub.cache.store(KEY, &state, began, clock::now());
    assert!(!hub.has(KEY, "a"), "its read began before the change");
    hub.store(KEY, "a");
    hub.hear(Removal::AllChanged(None), INSTANCE + 1).await;
    hub.wait_until_removed(KEY, "a").await;
    hub.cache.store(OTHER, &state, began, clock::now());
    assert!(!hub.has(OTHER, "a"));
    tokio::time::sleep(Duration::from_millis(2)).await;
    hub.store(OTHER, "a");
}
