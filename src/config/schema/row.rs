//! One row of the tables of keys.

use std::collections::BTreeMap;

use crate::config::error::InvalidValue;
use crate::config::source::unknown_key;
use crate::config::types::Config;
use crate::config::value::{AllowedValues, LocatedValue, RawValue, ValueReader};

/// All facts about a key. Tests compare docs/configuration.md and config.toml with them.
///
/// `T` is the struct that the key is read into.
pub(in crate::config) struct ConfigKey<T> {
    /// `section.name`; for a key of a member or a route its name alone.
    pub(in crate::config) name: &'static str,
    /// The default as TOML.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "tests compare config.toml and the documentation with it")
    )]
    pub(in crate::config) default: Option<&'static str>,
    pub(in crate::config) allowed: AllowedValues,
    pub(in crate::config) reload: ReloadEffect,
    pub(in crate::config) read: fn(&mut T, &mut ValueReader<'_>),
    #[cfg_attr(not(test), expect(dead_code, reason = "tests compare the documentation with it"))]
    pub(in crate::config) doc: &'static str,
}

/// Words for the errors of a list of tables.
pub(super) struct TableListTexts {
    /// The list, such as "a list of members".
    pub(super) list: &'static str,
    /// One of its tables, such as "a member".
    pub(super) table: &'static str,
    /// How to write it.
    pub(super) hint: &'static str,
}

/// Reads each of the first `limit` tables of a list. Errors of the second one have the key `KEY #2`.
pub(super) fn read_tables(
    texts: &TableListTexts,
    limit: usize,
    reader: &mut ValueReader<'_>,
    mut read: impl FnMut(&BTreeMap<String, LocatedValue>, &mut ValueReader<'_>),
) {
    let unexpected = |expected: &str, found: &RawValue| InvalidValue {
        problem: format!("expected {expected}, found {}", found.kind()),
        hint: texts.hint.to_owned(),
    };
    let RawValue::List(elements) = &reader.value.raw else {
        let error = unexpected(texts.list, &reader.value.raw);
        return reader.error(reader.value.source.clone(), error);
    };
    for (n, element) in elements.iter().enumerate().take(limit) {
        let mut reader = ValueReader {
            key: format!("{} #{}", reader.key, n + 1),
            value: element,
            allowed: reader.allowed,
            env: reader.env,
            errors: &mut *reader.errors,
        };
        match &element.raw {
            RawValue::Table(table) => read(table, &mut reader),
            other => reader.error(element.source.clone(), unexpected(texts.table, other)),
        }
    }
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
