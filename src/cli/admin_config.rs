//! Configuration of the commands that ask a gateway's admin listener.

use std::path::Path;

use super::error::CommandError;
use crate::config::{self, Config, Flag};

/// Loads the configuration that `serve` would load. `admin` is the value of `--admin`, which replaces `admin.listen`.
pub(super) fn load(file: Option<&Path>, admin: Option<&str>) -> Result<Config, CommandError> {
    let env: Vec<_> = config::environment().collect();
    let path = config::locate(file, env.iter().cloned());
    let flags = admin.map(|value| Flag {
        flag: "--admin",
        key: "admin.listen",
        value: value.to_owned(),
        is_fallback: false,
    });
    Ok(Config::load_with(path.as_deref(), env, flags)?)
}
