//! Output of a start on stdout: a line for each listener, or the banner at a terminal.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use tracing::warn;

use super::banner::{self, BannerInfo};
use crate::cli::error::CommandError;
use crate::config::Listen;

/// Longest delay of the start by a full pipe on stdout.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);

/// Writes the banner at a terminal, the ready lines elsewhere.
pub(super) async fn announce(info: &BannerInfo<'_>) -> Result<(), CommandError> {
    let text = match io::stdout().is_terminal() {
        true => banner::format(info)?,
        false => ready_lines(info.listen, info.admin)?,
    };
    write(text).await;
    Ok(())
}

fn ready_lines(listen: &[Listen], admin: Option<&Listen>) -> Result<String, CommandError> {
    let mut lines = String::new();
    for listen in listen {
        writeln!(lines, "clipgate listening on {listen}")?;
    }
    if let Some(admin) = admin {
        writeln!(lines, "clipgate admin listening on {admin}")?;
    }
    Ok(lines)
}

/// Writes to stdout. The gateway serves clients with or without a reader, so a failure is logged only, and a full pipe
/// delays the start by at most [`WRITE_TIMEOUT`].
pub(super) async fn write(lines: String) {
    let writing = tokio::task::spawn_blocking(move || {
        let mut out = io::stdout().lock();
        out.write_all(lines.as_bytes()).and_then(|()| out.flush())
    });
    match tokio::time::timeout(WRITE_TIMEOUT, writing).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => warn!(%error, "cannot write the ready lines to stdout"),
        Ok(Err(error)) => warn!(%error, "the ready lines were not written to stdout"),
        Err(_) => warn!("stdout accepts no data, starting without the ready lines"),
    }
}
