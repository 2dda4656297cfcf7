//! One row of the tables of keys.

use crate::config::types::Config;
use crate::config::value::{AllowedValues, ValueReader};

/// All facts about a key. Tests compare docs/configuration.md and config.toml with them.
///
/// `T` is the struct that the key is read into.
pub(in crate::config) struct ConfigKey<T> {
    /// `section.name`; for a key of a member its name alone.
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
