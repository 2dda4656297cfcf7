//! Sends counted requests to the engine, whose answers raise the counts here.

use std::sync::Arc;
use std::time::Duration;

use crate::cluster::{Cluster, EngineTake};
use crate::limits::{Limits, QuotaTake, QuotaTakes};
use crate::telemetry::metrics::Limit;

/// Time for which takes of the quota `requests` wait for each other. Those of `calls` do not: they cost more.
const REQUESTS_PAUSE: Duration = Duration::from_millis(100);

/// Shares both quotas. Never ends.
pub(super) async fn share_quotas(limits: Arc<Limits>, cluster: Cluster) {
    let Some(takes) = limits.takes() else { return };
    tokio::join!(
        share_quota(&limits, takes, &cluster, Limit::Requests, REQUESTS_PAUSE),
        share_quota(&limits, takes, &cluster, Limit::Calls, Duration::ZERO),
    );
}

async fn share_quota(
    limits: &Limits,
    takes: &QuotaTakes,
    cluster: &Cluster,
    quota: Limit,
    pause: Duration,
) -> ! {
    loop {
        takes.wait(quota, pause).await;
        let taken = takes.drain(quota);
        let replicas = takes.replicas();
        let engine_takes: Vec<EngineTake> =
            taken.iter().map(|take| engine_take(cluster, take, replicas)).collect();
        for (take, full_in) in taken.iter().zip(cluster.take(&engine_takes).await) {
            if let Some(full_in) = full_in {
                limits.raise(take, full_in);
            }
        }
    }
}

fn engine_take(cluster: &Cluster, take: &QuotaTake, replicas: u32) -> EngineTake {
    let rates = [take.rate.to_be_bytes(), take.burst.to_be_bytes()].concat();
    let parts = [take.quota.into_str().as_bytes(), &take.subject.bytes(), &rates];
    EngineTake { name: cluster.quota_name(&parts), time: take.time(), max_time: take.max_time(replicas) }
}
