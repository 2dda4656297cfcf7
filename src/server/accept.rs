//! Accept loop: each connection gets a permit, waits for one, or is closed.

use std::convert::Infallible;
use std::io;
use std::time::{Duration, Instant};

use tracing::warn;

use super::Server;
use super::activity::ConnectionActivity;
use super::connection_limit::{ConnectionOrigin, ConnectionPermit, LimitReached};
use super::listener::{Accepted, Listeners};
use crate::clock;
use crate::telemetry::metrics::CloseReason;

/// Pause after a failed accept. The usual cause is a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Time that a new connection waits for an idle one to close, before another is requested to.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(50);

/// Time that a new connection waits while all others are busy, before idle ones are looked for again.
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// Interval of repeated warnings.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// Times of the last warnings.
#[derive(Debug, Default)]
struct AcceptWarnings {
    failed: Option<Instant>,
    busy: Option<Instant>,
    rejected: Option<Instant>,
}

/// Returns whether the warning is due, and records it as written.
fn is_due(last: &mut Option<Instant>) -> bool {
    let now = clock::now();
    let is_due = last.is_none_or(|last| now.saturating_duration_since(last) >= WARN_INTERVAL);
    if is_due {
        *last = Some(now);
    }
    is_due
}

impl Server {
    /// Accepts connections one after the other. `pending` is the one that waits for a permit; those behind it wait in
    /// the queue of the system. Cancel safe.
    pub(super) async fn accept_all(
        &self,
        listeners: &mut Listeners,
        pending: &mut Option<Accepted>,
    ) -> Infallible {
        let mut warnings = AcceptWarnings::default();
        loop {
            if pending.is_none() {
                match listeners.accept().await {
                    Ok(accepted) => *pending = Some(accepted),
                    // The client closed the connection in the queue.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    Err(error) => {
                        if is_due(&mut warnings.failed) {
                            warn!(%error, "accept failed, closing the longest idle connections");
                        }
                        match self.make_room(LimitReached::All) {
                            Some(id) => drop(
                                tokio::time::timeout(ACCEPT_PAUSE, self.0.connection_limit.closed(id)).await,
                            ),
                            None => tokio::time::sleep(ACCEPT_PAUSE).await,
                        }
                    }
                }
            }
            if let Some(accepted) = pending {
                let (origin, activity) = (self.origin(accepted), ConnectionActivity::new());
                let permit = self.acquire_permit(origin, &activity, &mut warnings).await;
                match (permit, pending.take()) {
                    (Some(permit), Some(accepted)) => self.begin(accepted, activity, permit),
                    (_, rejected) => {
                        drop(rejected);
                        self.0.gateway.metrics().connections.closed(CloseReason::Address);
                        if is_due(&mut warnings.rejected) {
                            warn!(
                                address = origin.map(tracing::field::display),
                                "one address holds half of all connections, all busy; closing new ones from it; \
                                 list a proxy in server.trusted_proxies"
                            );
                        }
                    }
                }
            }
        }
    }

    /// Returns the origin that the connection counts for. A trusted proxy and a unix socket carry many clients, so
    /// they have none.
    fn origin(&self, accepted: &Accepted) -> Option<ConnectionOrigin> {
        let Accepted::Tcp(_, address) = accepted else { return None };
        let ip = address.ip().to_canonical();
        let is_trusted = self.0.trusted.load().iter().any(|net| net.contains(&ip));
        (!is_trusted).then(|| ConnectionOrigin::of(ip))
    }

    /// Waits for a permit. Returns `None` if connections of this origin hold half of all permits and all of them are
    /// busy. Cancel safe.
    async fn acquire_permit(
        &self,
        origin: Option<ConnectionOrigin>,
        activity: &ConnectionActivity,
        warnings: &mut AcceptWarnings,
    ) -> Option<ConnectionPermit> {
        let (connection_limit, mut has_requested_close) = (&self.0.connection_limit, false);
        loop {
            let reached = match connection_limit.acquire(origin, activity) {
                Ok(permit) => return Some(permit),
                Err(reached) => reached,
            };
            let closing = match reached {
                // One request to close per new connection is enough: no other connection waits for this origin.
                LimitReached::Origin(_) if has_requested_close => None,
                LimitReached::All | LimitReached::Origin(_) => self.make_room(reached),
            };
            has_requested_close = matches!(reached, LimitReached::Origin(_));
            let wait = match (closing, reached) {
                (Some(id), _) => tokio::time::timeout(CLOSE_TIMEOUT, connection_limit.closed(id)).await,
                (None, LimitReached::All) => {
                    if is_due(&mut warnings.busy) {
                        warn!("all connections are busy, new ones have to wait");
                    }
                    tokio::time::timeout(BUSY_PAUSE, connection_limit.released()).await
                }
                (None, LimitReached::Origin(_)) => return None,
            };
            // The next attempt shows whether a permit was released in time.
            drop(wait);
        }
    }

    /// Requests the longest idle connection to close, of those that count for the limit.
    fn make_room(&self, reached: LimitReached) -> Option<u64> {
        let closing = self.0.connection_limit.request_close(reached, clock::now())?;
        self.0.gateway.metrics().connections.closed(CloseReason::Idle);
        Some(closing)
    }
}
