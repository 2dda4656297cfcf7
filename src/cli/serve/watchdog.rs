//! Watchdog notifications for a service manager (systemd's `WatchdogSec=`).
//!
//! ```text
//!   four times per WATCHDOG_USEC:  task ── inspect ──▶ hub ── response ──▶ WATCHDOG=1
//! ```
//!
//! A notification needs a response of the hub. It proves that the runtime's workers run and that the task of all waits
//! is not stuck. Without notifications the service manager restarts the gateway.

use std::convert::Infallible;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::MissedTickBehavior;

use super::service_manager;
use crate::gateway::Gateway;

/// Shorter intervals are treated as none. The unit of systemd is the second.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// Notifications per interval, so that a busy hub may miss some.
const NOTIFICATIONS_PER_INTERVAL: u32 = 4;

/// Sends notifications for the life of the gateway. The caller gives it a task of its own: only that proves that the
/// runtime schedules tasks. Cancel safe.
pub(super) async fn run(gateway: Gateway) -> Infallible {
    match sd_notify::watchdog_enabled() {
        Some(interval) if interval >= MIN_INTERVAL => {
            let is_alive = || {
                let gateway = gateway.clone();
                async move { gateway.overview(0).await.is_some() }
            };
            let notify = || service_manager::notify(&[NotifyState::Watchdog]);
            notify_while_alive(interval / NOTIFICATIONS_PER_INTERVAL, is_alive, notify).await
        }
        Some(_) | None => std::future::pending().await,
    }
}

async fn notify_while_alive<F>(
    period: Duration,
    is_alive: impl Fn() -> F,
    mut notify: impl FnMut(),
) -> Infallible
where
    F: Future<Output = bool>,
{
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if is_alive().await {
            notify();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const PERIOD: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn a_notification_is_sent_for_each_response_of_the_hub() {
        let sent = Cell::new(0);
        let run = notify_while_alive(PERIOD, || async { true }, || sent.set(sent.get() + 1));
        assert!(tokio::time::timeout(PERIOD * 4 - PERIOD / 2, run).await.is_err());
        assert_eq!(sent.get(), 4, "one at once and three more");
    }

    #[tokio::test(start_paused = true)]
    async fn no_notification_is_sent_while_the_hub_is_stuck_or_gone() {
        let count = async |is_alive: &dyn Fn() -> bool, is_stuck: bool| {
            let sent = Cell::new(0);
            let check = || async {
                match is_stuck {
                    true => std::future::pending().await,
                    false => is_alive(),
                }
            };
            let run = notify_while_alive(PERIOD, check, || sent.set(sent.get() + 1));
            assert!(tokio::time::timeout(PERIOD * 10, run).await.is_err());
            sent.get()
        };
        assert_eq!(count(&|| true, true).await, 0);
        assert_eq!(count(&|| false, false).await, 0);
        let checks = Cell::new(0);
        let after_seven = || checks.replace(checks.get() + 1) >= 7;
        assert_eq!(count(&after_seven, false).await, checks.get() - 7, "notifications resume with the hub");
    }
}
