//! Configuration: read from a file, the environment and the command line, and validated.
//!
//! ```text
//! file, environment, flags ──► source: raw values by key ──► schema: a row a key ──► types: Config
//!                                     └───────────────────────────┴──► all errors at once
//! ```
//!
//! A new key is a row in `schema/keys.rs`, or `schema/route/keys.rs` for a key of a route, a field and its default in `types.rs`, and its lines in `config.toml` and
//! `docs/configuration.md`. The tests compare these.
//!
//! Each module imports earlier ones of this list only:
//!
//! | module | content |
//! | --- | --- |
//! | `error` | errors with place, key, problem and hint |
//! | `cluster` | the section `[cluster]` |
//! | `types` | the validated configuration and its defaults |
//! | `parse`, `web`, `key_fields` | parsers of single values |
//! | `value` | raw values, and the reader that checks them |
//! | `source` | file, environment and flags to raw values |
//! | `presets` | routes of known APIs, from `presets.toml` |
//! | `path` | the path of the file |
//! | `schema` | all keys, and the checks between them |
//! | `warnings` | valid settings that may surprise |

mod cluster;
mod error;
mod key_fields;
mod parse;
mod path;
mod presets;
mod schema;
mod source;
#[cfg(test)]
mod tests;
mod types;
mod value;
mod warnings;
mod web;

use std::collections::BTreeMap;
use std::path::Path;

use crate::core::route::Route;

pub use self::cluster::{ClusterConfig, EngineMode, EngineUrl, Share};
pub use self::error::{ConfigError, ConfigErrors, InvalidValue, Source};
pub use self::parse::{base_url, member_name, secret};
pub use self::path::locate;
pub use self::presets::{Preset, preset, presets};
pub use self::types::{
    AdminConfig, AuthConfig, AuthMode, CacheConfig, Config, KeyTemplate, LimitsConfig, Listen, LogConfig,
    LogFormat, ServerConfig, TeamMember, TelemetryConfig, TlsConfig, UpstreamConfig, WaitConfig,
};

/// Value of a key from the command line. It overrides the environment, which overrides the file.
#[derive(Clone, Debug)]
pub struct Flag {
    /// Name of the flag in errors, such as `--listen`.
    pub flag: &'static str,
    /// Name of the key, such as `server.listen`.
    pub key: &'static str,
    pub value: String,
    /// Whether the value applies only if neither file nor environment sets the key.
    pub is_fallback: bool,
}

impl Config {
    /// Loads the defaults, the file over them, and the `CLIPGATE__SECTION__KEY` variables over both. The environment
    /// is also that of `env:NAME` secrets.
    ///
    /// The value of a variable is the text itself (`120s`, `6`, `team`). A list is written as in TOML,
    /// `["10.0.0.0/8", "::1"]`, or is one element; empty text is the empty list.
    ///
    /// # Errors
    ///
    /// All errors of the configuration. If the file is not valid TOML, its syntax errors alone.
    pub fn load(
        path: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        Self::load_with(path, env, [])
    }

    /// Loads like [`Config::load`], with flags over all.
    ///
    /// # Errors
    ///
    /// As [`Config::load`].
    pub fn load_with(
        path: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
        flags: impl IntoIterator<Item = Flag>,
    ) -> Result<Self, ConfigErrors> {
        read(path, &env.into_iter().collect(), flags).map(|(_, config)| config)
    }

    /// Returns the value of each key and its place, without secrets.
    ///
    /// # Errors
    ///
    /// As [`Config::load`].
    pub fn effective(
        path: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Vec<EffectiveValue>, ConfigErrors> {
        let (raw, _) = read(path, &env.into_iter().collect(), [])?;
        Ok(schema::effective(&raw))
    }
}

/// Reads all sources and builds the configuration.
fn read(
    path: Option<&Path>,
    env: &BTreeMap<String, String>,
    flags: impl IntoIterator<Item = Flag>,
) -> Result<(source::RawConfig, Config), ConfigErrors> {
    let mut errors = Vec::new();
    let mut raw = source::RawConfig::new(schema::known_keys());
    if let Some(path) = path {
        raw.add_file(path, &mut errors).map_err(ConfigErrors::new)?;
    }
    raw.add_environment(env, &mut errors);
    for Flag { flag, key, value, is_fallback } in flags {
        if !is_fallback || raw.get(key).is_none() {
            raw.add_flag(flag, key, &value, &mut errors);
        }
    }
    let config = schema::build(&raw, env, &mut errors);
    match errors.is_empty() {
        true => Ok((raw, config)),
        false => Err(ConfigErrors::new(errors).with_tls(config.server.tls)),
    }
}

/// A key with its value in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EffectiveValue {
    pub key: &'static str,
    /// The value as TOML; a description for a secret and for lists of tables.
    pub value: String,
    /// File and line, variable, flag or `default`.
    pub source: String,
}

/// Returns a warning for each variable that looks like a setting of clipgate and is not read. Variables that a value
/// names as `env:NAME` are read, and those of Kubernetes for a service called `clipgate` are not settings.
pub fn unknown_variables(path: Option<&Path>, env: &[(String, String)]) -> Vec<String> {
    const READ: [&str; 2] = ["CLIPGATE_CONFIG", "CLIPGATE_URL"];
    let file = path.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    let is_unknown = |name: &str| {
        let Some(rest) = name.strip_prefix("CLIPGATE_") else { return false };
        let reference = format!("env:{name}");
        let is_kubernetes = rest.starts_with("SERVICE_") || rest == "PORT" || rest.starts_with("PORT_");
        !(rest.starts_with('_')
            || is_kubernetes
            || READ.contains(&name)
            || file.contains(&reference)
            || env.iter().any(|(_, value)| value.contains(&reference)))
    };
    let names = env.iter().map(|(name, _)| name).filter(|name| is_unknown(name));
    names
        .map(|name| {
            let nearest = source::nearest_variable(name, &schema::known_keys(), &READ);
            format!("the environment variable {name} is not read. Did you mean {nearest}?")
        })
        .collect()
}

/// Returns the routes of all presets, in the order of their file.
pub fn preset_routes() -> impl Iterator<Item = Route> {
    presets().iter().filter_map(schema::preset_route)
}

/// Returns the routes of these lines of a configuration file.
///
/// # Errors
///
/// As [`Config::load`].
pub fn parse_routes(text: &str) -> Result<Vec<Route>, ConfigErrors> {
    let mut errors = Vec::new();
    let mut raw = source::RawConfig::new(schema::known_keys());
    raw.add_document(text, &"routes".into(), &mut errors).map_err(ConfigErrors::new)?;
    let config = schema::build(&raw, &BTreeMap::new(), &mut errors);
    if errors.is_empty() { Ok(config.routes) } else { Err(ConfigErrors::new(errors)) }
}

/// Returns the environment of the process. A variable whose value is not Unicode is left out. If it sets a key, it is
/// returned with replacement characters, so that the key reports an error.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok()?;
        match value.into_string() {
            Ok(value) => Some((name, value)),
            Err(value) if name.starts_with(source::PREFIX) => {
                Some((name, value.to_string_lossy().into_owned()))
            }
            Err(_) => None,
        }
    })
}
