//! One row of the tables of keys.

use std::collections::BTreeMap;

use crate::config::source::unknown_key;
use crate::config::types::Config;
use crate::config::value::{AllowedValues, LocatedValue, ValueReader};

/// All facts about a key. Tests compare docs/configuration.md and config.toml with them.
///
/// `T` is the struct that the key is read into.
pub(in crate::config) struct ConfigKey<T> {
    /// `section.name`; for a key of a member or a route its name alone.
    pub(in crate::config) name: &'static str,
    /// The default as TOML.
    pub(in crate::config) default: Option<&'static str>,
    pub(in crate::config) allowed: AllowedValues,
    pub(in crate::config) reload: ReloadEffect,
    pub(in crate::config) read: fn(&mut T, &mut ValueReader<'_>),
    #[cfg_attr(not(test), expect(dead_code, reason = "tests compare the documentation with it"))]
    pub(in crate::config) doc: &'static str,
}

/// Reads the keys of a table inside of a list. The key of the reader names the table in errors.
pub(super) fn read_keys<T>(
    keys: &[ConfigKey<T>],
    builder: &mut T,
    table: &BTreeMap<&str, &LocatedValue>,
    reader: &mut ValueReader<'_>,
) {
    for (name, value) in table.iter().filter(|(name, _)| keys.iter().all(|key| key.name != **name)) {
        let known = keys.iter().map(|key| key.name);
        let mut error = unknown_key(value.source.clone(), (*name).to_owned(), known);
        error.key = format!("{} {name}", reader.key);
        reader.errors.push(error);
    }
    for ConfigKey { name, allowed, read, .. } in keys {
        if let Some(value) = table.get(name) {
            let key = format!("{} {name}", reader.key);
            read(
                builder,
                &mut ValueReader { key, value, allowed, env: reader.env, errors: &mut *reader.errors },
            );
        }
    }
}

/// Returns whether a key differs between two configurations.
type Differs = fn(&Config, &Config) -> bool;

/// Effect of a new value at a reload.
pub(in crate::config) enum ReloadEffect {
    Applied,
    /// Applied, except between configurations that differ in this.
    AppliedUnless(Differs),
    /// Needs a restart.
    Restart(Differs),
}

impl ReloadEffect {
    pub(super) fn needs_restart(&self, old: &Config, new: &Config) -> bool {
        match self {
            ReloadEffect::Applied => false,
            ReloadEffect::AppliedUnless(differs) | ReloadEffect::Restart(differs) => differs(old, new),
        }
    }
}
