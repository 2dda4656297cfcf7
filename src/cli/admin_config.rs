//! Configuration of the commands that ask a gateway's admin listener.

use std::path::PathBuf;

use super::error::CommandError;
use crate::config::{self, Config, Flag};

#[derive(Debug, clap::Args)]
pub(super) struct AdminArgs {
    /// Configuration file
    #[arg(short, long, value_name = "FILE", env = "CLIPGATE_CONFIG")]
    config: Option<PathBuf>,
    /// Address of the admin listener, replaces admin.listen (HOST:PORT or unix:PATH)
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<String>,
}

impl AdminArgs {
    /// Loads the configuration that `serve` would load. `--admin` replaces `admin.listen`.
    pub(super) fn load(&self) -> Result<Config, CommandError> {
        let env: Vec<_> = config::environment().collect();
        let path = config::locate(self.config.as_deref(), env.iter().cloned());
        let flags = self.admin.clone().map(|value| Flag {
            flag: "--admin",
            key: "admin.listen",
            value,
            is_fallback: false,
        });
        Ok(Config::load_with(path.as_deref(), env, flags)?)
    }
}
