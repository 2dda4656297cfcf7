//! Notifications of a service manager (systemd's `Type=notify` and `Type=notify-reload`).

use sd_notify::NotifyState;
use tracing::warn;

/// Notifies the service manager, if there is one.
pub(super) fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(%error, "cannot notify the service manager");
    }
}

/// Notifies of the start of a reload, with the time that `Type=notify-reload` requires.
pub(super) fn notify_reload() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
}
