//! Builds, reloads and drains the gateway.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::{ArcSwap, ArcSwapOption};

use super::access_revocation::AccessControl;
use super::event_stream::EventStreams;
use super::fast_hits::GatewayNumber;
use super::oversized::OversizedTargets;
use super::passthrough::{Passthrough, PassthroughSlots};
use super::{Gateway, GatewayInner};
use crate::auth::{Authenticator, AuthenticatorError};
use crate::cache::Cache;
use crate::cluster::{Cluster, ClusterWorld};
use crate::config::{ClusterConfig, Config, Share};
use crate::core::route::Routes;
use crate::core::siblings::SiblingConfig;
use crate::hub::{Hub, HubDeps, SharingDeps};
use crate::limits::Limits;
use crate::protocol::cors::Cors;
use crate::protocol::header_links::HeaderLinks;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::trace::{TraceError, Tracer};
use crate::upstream::client::{Client, ClientError};
use crate::upstream::poll::Poller;

/// The cause why a gateway could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error(transparent)]
    Keyring(#[from] AuthenticatorError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Trace(#[from] TraceError),
}

impl Gateway {
    /// Builds a gateway. The caller runs the returned future, the hub's task; it ends after the last clone of the
    /// gateway is dropped.
    pub fn new(
        config: &Config,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, impl Future<Output = ()> + Send + use<>), BuildError> {
        let routes = Arc::new(config.routes());
        let upstream = &config.upstream;
        let cache = Arc::new(Cache::new(config.cache.clone(), Arc::clone(&routes)));
        let shares_quotas = config.cluster.as_ref().is_some_and(|cluster| cluster.shares(Share::Quotas));
        let limits = if shares_quotas { Limits::shared } else { Limits::new };
        let limits = Arc::new(limits(&config.limits, config.auth.members()));
        metrics.set_routes(&routes);
        metrics.set_members(config.auth.members().iter().map(|member| member.name.as_str()));
        let poller =
            Poller::new(Client::for_polls(upstream)?, Arc::clone(&routes), upstream, Arc::clone(&metrics));
        let tracer = Tracer::new(&config.telemetry, &upstream.base_url, &metrics.spans_lost)?;
        let deps = HubDeps {
            poller,
            cache: Arc::clone(&cache),
            limits: Arc::clone(&limits),
            metrics: Arc::clone(&metrics),
            tracer: tracer.clone(),
        };
        let sharing =
            config.cluster.as_ref().map(|cluster| sharing(cluster, config, &routes, &cache, &metrics));
        let (hub, task) = Hub::with_siblings(config, &routes, deps, sharing);
        let api_key = upstream.api_key.as_ref();
        let authenticator = match &config.cluster {
            // P11: a key has the same domain on all replicas.
            Some(cluster) => Authenticator::of_cluster(&config.auth, api_key, &cluster.secret)?,
            None => Authenticator::new(&config.auth, api_key)?,
        };
        // Well over `upstream.poll_timeout`: long-polls of unknown form are passed through too.
        let head_timeout = config.wait.max_timeout.max(2 * upstream.poll_timeout);
        let inner = GatewayInner {
            number: GatewayNumber::new(),
            access: AccessControl::new(authenticator, config),
            limits,
            links: HeaderLinks::new(&upstream.base_url).filter(|_| !config.routes.is_empty()),
            passthrough: Passthrough::new(
                Client::new(upstream)?,
                config.limits.max_body,
                head_timeout,
                Arc::clone(&metrics),
            ),
            slots: PassthroughSlots::new(
                config.limits.max_passthrough,
                config.limits.max_passthrough_per_key,
            ),
            oversized: OversizedTargets::new(),
            max_headers: config.server.max_headers,
            wait: ArcSwap::from_pointee(config.wait.clone()),
            cors: ArcSwapOption::from_pointee(Cors::new(&config.server.cors_origins)),
            allowed_hosts: ArcSwap::from_pointee(config.server.allowed_hosts.clone()),
            streams: EventStreams::new(hub.clone(), Arc::clone(&cache), Arc::clone(&routes)),
            routes,
            cache,
            hub,
            metrics,
            tracer,
        };
        Ok((Self(Arc::new(inner)), task))
    }

    /// Applies the keys that may change at run time to all further requests; [`Config::needs_restart`] lists the
    /// others. After an error nothing has changed.
    ///
    /// A removed member is rejected from its next request on. Its parked waits are still answered; its other open
    /// requests end within `wait.max_timeout`.
    pub fn reload(&self, config: &Config) -> Result<(), AuthenticatorError> {
        self.0.access.authenticator.reconfigure(&config.auth, config.upstream.api_key.as_ref())?;
        // At once: a removed member gets no kept answer while the rest is applied.
        self.0.cache.everything_changed();
        self.0.limits.reconfigure(&config.limits, config.auth.members());
        self.0.metrics.set_members(config.auth.members().iter().map(|member| member.name.as_str()));
        self.0.cache.reconfigure(config.cache.clone());
        self.0.hub.set_watch_idle(config.wait.watch_idle);
        self.0.wait.store(Arc::new(config.wait.clone()));
        self.0.cors.store(Cors::new(&config.server.cors_origins).map(Arc::new));
        self.0.allowed_hosts.store(Arc::new(config.server.allowed_hosts.clone()));
        // After all of the above: an answer that is begun from now on depends on none of the old values.
        self.0.cache.everything_changed();
        // Last, because the receivers check their access with the new authenticator.
        self.0.access.notify(config);
        Ok(())
    }

    /// Forgets subjects whose quotas are full again, and keys without requests since the last call. Call it about once a
    /// minute.
    pub fn purge_idle(&self) {
        self.0.access.authenticator.forget_unused();
        self.0.limits.purge_idle();
    }

    /// Answers every parked wait by `until` with the current state, like the upstream's own time-out (P2).
    pub async fn drain(&self, until: Instant) {
        self.0.hub.drain(until).await;
    }
}

/// Starts the link to the engine. Returns the dependencies of a hub that shares polls.
fn sharing(
    cluster: &ClusterConfig,
    config: &Config,
    routes: &Routes,
    cache: &Cache,
    metrics: &Arc<Metrics>,
) -> SharingDeps {
    let instance = fastrand::u64(..);
    let world = ClusterWorld { base_url: &config.upstream.base_url, routes, cache: cache.config(), instance };
    let (handle, inbox, link) = Cluster::start(cluster, &world, Arc::clone(metrics));
    SharingDeps {
        cluster: handle,
        inbox,
        link: Box::pin(link),
        config: SiblingConfig {
            instance,
            patience: cluster.patience,
            takeover: cluster.takeover,
            linger: config.wait.linger,
            refusal_ttl: config.cache.key_recheck_interval,
            ladders: routes.iter().map(|(_, route)| route.ladder.clone()).collect(),
        },
        offers_polls: cluster.shares(Share::Polls) || cluster.shares(Share::Jobs),
        strict: cluster.strict,
        expected: cluster.expected,
    }
}
