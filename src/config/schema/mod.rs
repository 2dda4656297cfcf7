//! All keys, a row each, and the way from raw values to a [`Config`].
//!
//! ```text
//! RawConfig ──► rows of KEYS, CLUSTER_KEYS, … ──► ConfigBuilder ──► cross_check ──► Config
//!                        └── errors of a value        └── errors between values
//! ```
//!
//! Order of imports: `row`, `team`, `route`, `builder`, `keys`, `cluster`, this file.

mod builder;
mod cluster;
mod keys;
mod route;
mod row;
mod server;
mod team;

use std::collections::{BTreeMap, HashSet};

use self::builder::ConfigBuilder;
pub(super) use self::route::preset_route;
#[cfg(test)]
pub(super) use self::route::{LIST_KEYS, ROUTE_KEYS};
pub(super) use self::row::ConfigKey;
#[cfg(test)]
pub(super) use self::row::ReloadEffect;
#[cfg(test)]
pub(super) use self::team::MEMBER_KEYS;
use super::EffectiveValue;
use super::error::ConfigError;
use super::source::{KnownKeys, RawConfig, describe};
use super::types::Config;
use super::value::{AllowedValues, ValueReader};

/// Returns the keys of all sections, in the order of `config.toml`.
pub(super) fn keys() -> impl Iterator<Item = &'static ConfigKey<ConfigBuilder>> {
    server::SERVER_KEYS.iter().chain(keys::KEYS).chain(cluster::CLUSTER_KEYS)
}

/// Returns the names of all keys of the sections.
pub(super) fn known_keys() -> KnownKeys {
    let sections = keys().map(|key| (key.name, &key.allowed));
    let members = team::MEMBER_KEYS.iter().map(|key| (key.name, &key.allowed));
    let secrets = sections.chain(members).filter(|(_, allowed)| matches!(allowed, AllowedValues::Secret));
    KnownKeys {
        names: keys().map(|key| key.name).collect(),
        route_keys: route::ROUTE_KEYS.iter().map(|key| key.name).collect(),
        secrets: secrets.filter_map(|(name, _)| name.rsplit('.').next()).collect(),
    }
}

/// Builds the configuration from the raw values over the defaults. After an error the result is not valid.
pub(super) fn build(
    raw: &RawConfig,
    env: &BTreeMap<String, String>,
    errors: &mut Vec<ConfigError>,
) -> Config {
    let mut builder = ConfigBuilder::new();
    let earlier = errors.len();
    for key in keys() {
        if let Some(value) = raw.get(key.name) {
            let name = key.name.to_owned();
            (key.read)(
                &mut builder,
                &mut ValueReader { key: name, value, allowed: &key.allowed, env, errors },
            );
        }
    }
    // An error between keys is reported only if none of these keys has an error of its own.
    let invalid: HashSet<String> = errors[earlier..]
        .iter()
        .map(|error| error.key.split(" #").next().unwrap_or_default().to_owned())
        .collect();
    let cross_errors = builder.cross_check(raw);
    let independent =
        cross_errors.into_iter().filter(|(_, keys)| keys.iter().all(|key| !invalid.contains(*key)));
    errors.extend(independent.map(|(error, _)| error));
    builder.finish()
}

/// Returns the value in force of each key. Secrets are hidden.
pub(super) fn effective(raw: &RawConfig) -> Vec<EffectiveValue> {
    let value = |key: &row::ConfigKey<ConfigBuilder>| {
        let set = raw.get(key.name);
        let value = match set {
            Some(_) if matches!(key.allowed, AllowedValues::Secret) => "(a secret)".to_owned(),
            Some(value) => describe(&value.raw),
            None => key.default.unwrap_or("(not set)").to_owned(),
        };
        let source = set.map_or_else(|| "default".to_owned(), |value| value.source.to_string());
        EffectiveValue { key: key.name, value, source }
    };
    keys().map(value).collect()
}

impl Config {
    /// Returns the keys whose new value needs a restart, compared with the configuration of the start.
    pub(crate) fn needs_restart(&self, running: &Self) -> Vec<&'static str> {
        keys().filter(|key| key.reload.needs_restart(running, self)).map(|key| key.name).collect()
    }
}
