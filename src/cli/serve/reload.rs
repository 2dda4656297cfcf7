//! Reload of the configuration while the gateway runs.
//!
//! All or nothing: the steps that can fail come first, and after an error nothing has changed. No connection is dropped.

use tracing::{error, info, warn};

use crate::cli::error::CommandError;
use crate::config::{Config, ConfigErrors};
use crate::gateway::Gateway;
use crate::server::Server;
use crate::telemetry::log;

/// The parts that a new configuration is applied to.
pub(super) struct ConfigReloader {
    /// The configuration of the start, in force until a restart.
    pub(super) running: Config,
    pub(super) gateway: Gateway,
    pub(super) server: Server,
    pub(super) log: log::Handle,
}

impl ConfigReloader {
    /// Applies a new configuration. Logs the keys that need a restart, or the errors that prevent the reload.
    pub(super) fn reload(&self, loaded: Result<(Config, Vec<String>), ConfigErrors>) {
        let (config, warnings) = match loaded {
            Ok(loaded) => loaded,
            Err(errors) => {
                for invalid in errors.iter() {
                    let (source, key) = (&invalid.source, &invalid.key);
                    let (problem, hint) = (&invalid.problem, &invalid.hint);
                    error!(%source, key, problem, hint, "invalid configuration");
                }
                let errors = errors.iter().count();
                return error!(errors, "configuration rejected, the previous one stays in use");
            }
        };
        if let Err(error) = self.apply(&config) {
            let cause = error.source().map(tracing::field::display);
            return error!(%error, cause, "configuration rejected, the previous one stays in use");
        }
        self.log.set_level(config.log.level);
        for warning in warnings {
            warn!("{warning}");
        }
        let restart = config.needs_restart(&self.running);
        if !restart.is_empty() {
            warn!(keys = restart.join(", "), "changed keys need a restart");
        }
        info!("configuration reloaded");
    }

    fn apply(&self, config: &Config) -> Result<(), CommandError> {
        let prepared = self.server.prepare_reload(&config.server)?;
        self.gateway.reload(config)?;
        self.server.apply_reload(prepared);
        Ok(())
    }
}
