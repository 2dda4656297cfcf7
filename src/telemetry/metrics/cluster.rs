//! Metrics of the link to the engine that replicas share.

use std::time::Duration;

use enum_map::{Enum, EnumMap};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use strum::IntoStaticStr;

use super::register;

/// Buckets of claims, in seconds.
const CLAIM_BUCKETS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0];

/// State of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum, IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub(crate) enum LinkLabel {
    Near,
    Far,
    Apart,
}

/// Answer to a claim of a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum, IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub(crate) enum ClaimOutcome {
    Granted,
    Held,
    Known,
    Flushed,
    Timeout,
}

/// Why this replica made a poll that a sibling had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum, IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub(crate) enum TakeoverReason {
    Dead,
    Left,
    Apart,
}

/// Kind of a message that was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum, IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub(crate) enum MessageLabel {
    Beat,
    Landed,
    Failed,
    Left,
    Taken,
    Attached,
    Detached,
    Note,
    Revoked,
    Removed,
    Paused,
    Flushed,
}

#[derive(Debug)]
pub(crate) struct ClusterMetrics {
    link: EnumMap<LinkLabel, Gauge>,
    members: Gauge,
    claims: EnumMap<ClaimOutcome, Counter>,
    claim_times: Histogram,
    takeovers: EnumMap<TakeoverReason, Counter>,
    messages: EnumMap<MessageLabel, Counter>,
    outbox: Gauge,
    tampered: Counter,
}

impl ClusterMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let links = Family::<[(&str, &str); 1], Gauge>::default();
        let link_help = "1 for the state of the link to the engine of the replicas";
        register(registry, "clipgate_cluster_link", link_help, links.clone());
        let members = Gauge::default();
        let members_help = "Replicas that are heard, this one included";
        register(registry, "clipgate_cluster_members", members_help, members.clone());
        let claim_times = Histogram::new(CLAIM_BUCKETS.iter().copied());
        let outbox = Gauge::default();
        let tampered = Counter::default();
        let metrics = Self {
            link: EnumMap::from_fn(|state: LinkLabel| links.get_or_create_owned(&[("state", state.into())])),
            members,
            claims: counters(
                registry,
                "clipgate_cluster_claims_total",
                "Answers of the engine to claims of polls",
                "outcome",
            ),
            claim_times: claim_times.clone(),
            takeovers: counters(
                registry,
                "clipgate_cluster_takeovers_total",
                "Polls of other replicas that this one made in the end",
                "why",
            ),
            messages: counters(
                registry,
                "clipgate_cluster_messages_total",
                "Messages of replicas, own ones included",
                "kind",
            ),
            outbox: outbox.clone(),
            tampered: tampered.clone(),
        };
        let times_help = "Time of the engine's answers to claims";
        register(registry, "clipgate_cluster_claim_seconds", times_help, claim_times);
        let outbox_help = "Calls that the engine has not answered and that are sent again";
        register(registry, "clipgate_cluster_outbox", outbox_help, outbox);
        let tampered_help = "Entries of the engine that were ignored because no replica wrote them";
        register(registry, "clipgate_cluster_tampered_total", tampered_help, tampered);
        metrics
    }

    pub(crate) fn set_link(&self, state: LinkLabel) {
        for (label, gauge) in &self.link {
            gauge.set(i64::from(label == state));
        }
    }

    /// Sets the number of members and of calls in the outbox.
    pub(crate) fn set_counts(&self, members: usize, outbox: usize) {
        self.members.set(i64::try_from(members).unwrap_or(i64::MAX));
        self.outbox.set(i64::try_from(outbox).unwrap_or(i64::MAX));
    }

    /// Records an answer to a claim.
    pub(crate) fn claim(&self, outcome: ClaimOutcome, took: Duration) {
        self.claims[outcome].inc();
        self.claim_times.observe(took.as_secs_f64());
    }

    /// Records a claim without an answer in time.
    pub(crate) fn claim_timed_out(&self) {
        self.claims[ClaimOutcome::Timeout].inc();
    }

    pub(crate) fn takeover(&self, why: TakeoverReason) {
        self.takeovers[why].inc();
    }

    pub(crate) fn message(&self, kind: MessageLabel) {
        self.messages[kind].inc();
    }

    /// Records an entry that no replica has written.
    pub(crate) fn tampered(&self) {
        self.tampered.inc();
    }
}

/// Registers a counter for each value of the label.
fn counters<L: Enum + Into<&'static str>>(
    registry: &mut Registry,
    name: &'static str,
    help: &str,
    label: &'static str,
) -> EnumMap<L, Counter> {
    let family = Family::<[(&str, &str); 1], Counter>::default();
    register(registry, name, help, family.clone());
    EnumMap::from_fn(|of: L| family.get_or_create_owned(&[(label, of.into())]))
}
