//! The configuration, read again while the gateway runs.
//!
//! All of it or nothing: what can fail comes first, and on a fault all stays as it was. No connection is dropped.

use tracing::{error, info, warn};

use crate::cli::error::CommandError;
use crate::config::{Config, ConfigErrors};
use crate::gateway::Gateway;
use crate::server::Server;
use crate::telemetry::log;

/// What a configuration that was read again goes to.
pub(super) struct ConfigReloader {
    /// What the gateway was started with, and what holds until a restart.
    pub(super) running: Config,
    pub(super) gateway: Gateway,
    pub(super) server: Server,
    pub(super) log: log::Handle,
}

impl ConfigReloader {
    /// Takes over what can be, says in the log what takes a restart, or why nothing was taken over.
    pub(super) fn take_over(&self, read: Result<Config, ConfigErrors>) {
        let config = match read {
            Ok(config) => config,
            Err(faults) => {
                for fault in faults.iter() {
                    let (place, key) = (&fault.source, &fault.key);
                    error!(%place, key, wrong = fault.problem, fix = fault.hint, "fault in the configuration");
                }
                return error!(faults = faults.iter().count(), "configuration refused, the old one stays");
            }
        };
        if let Err(error) = self.take_over_all(&config) {
            let cause = error.source().map(tracing::field::display);
            return error!(%error, cause, "configuration refused, the old one stays");
        }
        self.log.set_level(config.log.level);
        for warning in config.warnings() {
            warn!("{warning}");
        }
        let restart = config.needs_restart(&self.running);
        if !restart.is_empty() {
            warn!(keys = restart.join(", "), "what these keys say now takes a restart");
        }
        info!("configuration reloaded");
    }

    /// What can fail comes first.
    fn take_over_all(&self, config: &Config) -> Result<(), CommandError> {
        let prepared = self.server.prepare_reload(&config.server)?;
        self.gateway.reload(config)?;
        self.server.apply_reload(prepared);
        Ok(())
    }
}
