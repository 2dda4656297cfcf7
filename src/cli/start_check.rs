//! Checks of `check` and `serve` before the start: the configuration, its certificates and `RUST_LOG`, all errors at once.

use std::path::Path;
use std::time::SystemTime;

use super::error::{CommandError, StartErrors, chain};
use crate::config::{Config, ConfigErrors, unknown_variables};
use crate::server::{check_files, validity_warnings};
use crate::telemetry::log;

/// Returns the configuration if the gateway can start with it, else all errors.
pub(super) fn check_start(config: Result<Config, ConfigErrors>) -> Result<Config, CommandError> {
    let mut errors = Vec::new();
    if let Err(error) = log::environment_filter() {
        errors.push(chain(&error));
    }
    let tls = match &config {
        Ok(config) => config.server.tls.as_ref(),
        Err(config) => config.tls(),
    };
    let files = tls.map(check_files).unwrap_or_default();
    errors.extend(files.iter().map(|error| chain(error)));
    match config {
        Ok(config) => {
            if errors.is_empty() {
                Ok(config)
            } else {
                Err(StartErrors(errors).into())
            }
        }
        Err(config) if errors.is_empty() => Err(config.into()),
        Err(config) => {
            let config = config.iter().map(ToString::to_string);
            Err(StartErrors(config.chain(errors).collect()).into())
        }
    }
}

/// Returns the warnings of the configuration, of its certificates and of the environment.
pub(super) fn start_warnings(config: &Config, path: Option<&Path>, env: &[(String, String)]) -> Vec<String> {
    let tls = config.server.tls.as_ref();
    let certificates = tls.map(|tls| validity_warnings(tls, SystemTime::now())).unwrap_or_default();
    config.warnings().into_iter().chain(certificates).chain(unknown_variables(path, env)).collect()
}
