//! The keys of `[cluster]`.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::builder::ConfigBuilder;
use super::row::ConfigKey;
use super::row::ReloadEffect::{self, Restart};
use crate::config::cluster::{EngineMode, Share, engine_url};
use crate::config::error::{InvalidValue, invalid};
use crate::config::types::Config;
use crate::config::value::AllowedValues::{Described, Duration as Time, Number, Secret, Size};

const MODES: &[(&str, EngineMode)] =
    &[("single", EngineMode::Single), ("cluster", EngineMode::Cluster), ("sentinel", EngineMode::Sentinel)];

const PATIENCE: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(5);
const TAKEOVER: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60);

pub(in crate::config) const CLUSTER_KEYS: &[ConfigKey<ConfigBuilder>] = &[
    ConfigKey {
        name: "cluster.url",
        default: None,
        allowed: Described(
            "\"redis://HOST:PORT\" or \"rediss://USER:PASSWORD@HOST:PORT\", \"env:NAME\" or \"file:PATH\", or a list of these",
        ),
        reload: RESTART,
        read: |b, r| r.secret_list(&mut b.cluster.urls, engine_url),
        doc: "Redis 7 or later, or Valkey, through which replicas share their work. `rediss` is TLS. Unset: this is the only replica",
    },
    ConfigKey {
        name: "cluster.secret",
        default: None,
        allowed: Secret,
        reload: RESTART,
        read: |b, r| r.secret(&mut b.cluster_secret),
        doc: "32 bytes or more, the same at all replicas; nothing at the engine can be read without it. Another secret is another group of replicas",
    },
    ConfigKey {
        name: "cluster.master",
        default: None,
        allowed: Described("a name"),
        reload: RESTART,
        read: |b, r| r.parsed(&mut b.cluster.master, |text| cluster_name(text).map(Some)),
        doc: "name of the primary at the sentinels",
    },
    ConfigKey {
        name: "cluster.name",
        default: Some(r#""clipgate""#),
        allowed: Described("1 to 64 letters, digits, `.`, `_` and `-`"),
        reload: RESTART,
        read: |b, r| r.parsed(&mut b.cluster.name, cluster_name),
        doc: "name of a group of replicas, where several use one engine",
    },
    ConfigKey {
        name: "cluster.mode",
        default: Some(r#""single""#),
        allowed: Described("\"single\", \"cluster\" or \"sentinel\""),
        reload: RESTART,
        read: |b, r| r.choice(&mut b.cluster.mode, MODES),
        doc: "a single server, a Redis Cluster of which cluster.url lists nodes, or a primary that the sentinels of cluster.url name",
    },
    ConfigKey {
        name: "cluster.share",
        default: Some(r#"["jobs", "polls", "quotas"]"#),
        allowed: Described("a list of \"jobs\", \"polls\" and \"quotas\""),
        reload: RESTART,
        read: |b, r| r.list(&mut b.cluster.share, share),
        doc: "work that replicas share: states of jobs, open polls, the quotas of `[limits]`. Rejected keys, pauses and removed jobs are always shared",
    },
    ConfigKey {
        name: "cluster.patience",
        default: Some(r#""50ms""#),
        allowed: Time(PATIENCE),
        reload: RESTART,
        read: |b, r| r.duration(&mut b.cluster.patience),
        doc: "time for which a new poll waits for the engine, counted from the engine's last answer",
    },
    ConfigKey {
        name: "cluster.takeover",
        default: Some(r#""2s""#),
        allowed: Time(TAKEOVER),
        reload: RESTART,
        read: |b, r| r.duration(&mut b.cluster.takeover),
        doc: "time after which a silent replica counts as dead. Each replica is heard four times in it, and each half second at least",
    },
    ConfigKey {
        name: "cluster.max_body",
        default: Some(r#""256KiB""#),
        allowed: Size(0..=16 << 20),
        reload: RESTART,
        read: |b, r| r.size(&mut b.cluster.max_body),
        doc: "largest body of a job that is shared. Other replicas read a larger one from the upstream",
    },
    ConfigKey {
        name: "cluster.strict",
        default: Some("false"),
        allowed: Described("true or false"),
        reload: RESTART,
        read: |b, r| r.switch(&mut b.cluster.strict),
        doc: "whether a replica without the engine uses only its part of each quota: the quota divided by the number of replicas that it last knew. false: each uses the whole quota",
    },
    ConfigKey {
        name: "cluster.expected",
        default: Some("0"),
        allowed: Number(0..=64),
        reload: RESTART,
        read: |b, r| r.number(&mut b.cluster.expected),
        doc: "number of replicas. With fewer of them for 60 s the gateway logs a warning. 0: any number",
    },
];

/// The link is made at the start.
const RESTART: ReloadEffect = Restart(|old: &Config, new: &Config| old.cluster != new.cluster);

fn cluster_name(text: &str) -> Result<String, InvalidValue> {
    let is_valid = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    match (1..=64).contains(&text.len()) && text.bytes().all(is_valid) {
        true => Ok(text.to_owned()),
        false => invalid("not a valid name", "Use 1 to 64 letters, digits, `.`, `_` and `-`."),
    }
}

fn share(text: &str) -> Result<Share, InvalidValue> {
    match text {
        "jobs" => Ok(Share::Jobs),
        "polls" => Ok(Share::Polls),
        "quotas" => Ok(Share::Quotas),
        _ => invalid(
            format!("not a valid value: {text:?}"),
            "Use a list of \"jobs\", \"polls\" and \"quotas\".",
        ),
    }
}
