//! Signs of life for a service manager that asks for them (systemd's `WatchdogSec=`).
//!
//! ```text
//!   four times in WATCHDOG_USEC:  a worker ── a look ──▶ hub ── told ──▶ WATCHDOG=1
//! ```
//!
//! A sign is given only when the hub has answered: so the workers run, and the one task that every wait needs is not
//! stuck. Where that fails nothing is said, and the service manager starts the gateway anew.

use std::convert::Infallible;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::MissedTickBehavior;

use crate::gateway::Gateway;

/// The shortest time that is taken for one; systemd's own unit is the second.
const MIN_WITHIN: Duration = Duration::from_millis(10);

/// Signs in the time in which one has to be given: a hub that is busy may miss some.
const SIGNS: u32 = 4;

/// Gives signs for as long as the gateway lives; never comes back. For a task of its own: only that proves that the
/// runtime's workers take turns. Cancel safe.
pub(super) async fn watch(gateway: Gateway) -> Infallible {
    match sd_notify::watchdog_enabled() {
        Some(within) if within >= MIN_WITHIN => {
            let lives = || {
                let gateway = gateway.clone();
                async move { gateway.overview(0).await.is_some() }
            };
            give_signs(within / SIGNS, lives, || super::report(&[NotifyState::Watchdog])).await
        }
        // Nobody asks for them.
        Some(_) | None => std::future::pending().await,
    }
}

async fn give_signs<F>(every: Duration, lives: impl Fn() -> F, mut sign: impl FnMut()) -> Infallible
where
    F: Future<Output = bool>,
{
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if lives().await {
            sign();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const EVERY: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn a_sign_is_given_each_time_that_the_hub_answers() {
        let signs = Cell::new(0);
        let giving = give_signs(EVERY, || async { true }, || signs.set(signs.get() + 1));
        assert!(tokio::time::timeout(EVERY * 4 - EVERY / 2, giving).await.is_err());
        assert_eq!(signs.get(), 4, "at once, and three times more");
    }

    #[tokio::test(start_paused = true)]
    async fn none_is_given_while_the_hub_is_stuck_or_gone() {
        let give = async |lives: &dyn Fn() -> bool, is_stuck: bool| {
            let signs = Cell::new(0);
            let answer = || async {
                match is_stuck {
                    true => std::future::pending().await,
                    false => lives(),
                }
            };
            let giving = give_signs(EVERY, answer, || signs.set(signs.get() + 1));
            assert!(tokio::time::timeout(EVERY * 10, giving).await.is_err());
            signs.get()
        };
        assert_eq!(give(&|| true, true).await, 0);
        assert_eq!(give(&|| false, false).await, 0);
        let looks = Cell::new(0);
        let at_last = || looks.replace(looks.get() + 1) >= 7;
        assert_eq!(give(&at_last, false).await, looks.get() - 7, "it goes on when the hub is back");
    }
}
