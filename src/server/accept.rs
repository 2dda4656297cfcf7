//! Accepting: each connection gets a place, or has to wait for one, or is closed.

use std::convert::Infallible;
use std::io;
use std::time::{Duration, Instant};

use tracing::warn;

use super::Server;
use super::activity::ConnectionActivity;
use super::listener::{Accepted, Listeners};
use super::places::{ConnectionOrigin, Full, Place};
use crate::clock;
use crate::telemetry::metrics::CloseReason;

/// The pause after a failed accept, which mostly means that descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long one newcomer waits for one that was asked to leave, before another is asked.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(50);

/// How long a newcomer waits where all are busy, before idle connections are looked for again.
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// How often a warning is worth repeating.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// When each was written last.
#[derive(Debug, Default)]
struct Warnings {
    failed: Option<Instant>,
    busy: Option<Instant>,
    refused: Option<Instant>,
}

/// Whether it is time for the warning again; then it counts as written.
fn is_due(last: &mut Option<Instant>) -> bool {
    let now = clock::now();
    let is_due = last.is_none_or(|last| now.saturating_duration_since(last) >= WARN_EVERY);
    if is_due {
        *last = Some(now);
    }
    is_due
}

impl Server {
    /// Accepts connections one after the other. The one that waits for a place is `newcomer`, those behind it wait in
    /// the system's queue. Cancel safe.
    pub(super) async fn accept_all(
        &self,
        listeners: &mut Listeners,
        newcomer: &mut Option<Accepted>,
    ) -> Infallible {
        let mut warnings = Warnings::default();
        loop {
            if newcomer.is_none() {
                match listeners.accept().await {
                    Ok(accepted) => *newcomer = Some(accepted),
                    // It has gone before its turn came.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    Err(error) => {
                        if is_due(&mut warnings.failed) {
                            warn!(%error, "accept failed, the longest idle connections have to go");
                        }
                        match self.make_room(Full::All) {
                            Some(id) => {
                                drop(tokio::time::timeout(ACCEPT_PAUSE, self.0.places.left(id)).await)
                            }
                            None => tokio::time::sleep(ACCEPT_PAUSE).await,
                        }
                    }
                }
            }
            if let Some(accepted) = newcomer {
                let (origin, answers) = (self.origin(accepted), ConnectionActivity::new());
                let place = self.place(origin, &answers, &mut warnings).await;
                match (place, newcomer.take()) {
                    (Some(place), Some(accepted)) => self.begin(accepted, answers, place),
                    (_, refused) => {
                        drop(refused);
                        self.0.gateway.metrics().connections.closed(CloseReason::Address);
                        if is_due(&mut warnings.refused) {
                            warn!(
                                address = origin.map(tracing::field::display),
                                "half of all connections are busy ones from one address, new ones from there are \
                                 closed; a proxy belongs into server.trusted_proxies"
                            );
                        }
                    }
                }
            }
        }
    }

    /// Who the connection counts for. Behind a trusted proxy and a unix socket there may be anybody.
    fn origin(&self, accepted: &Accepted) -> Option<ConnectionOrigin> {
        let Accepted::Tcp(_, address) = accepted else { return None };
        let ip = address.ip().to_canonical();
        let is_trusted = self.0.trusted.load().iter().any(|net| net.contains(&ip));
        (!is_trusted).then(|| ConnectionOrigin::of(ip))
    }

    /// Waits for a place. `None`: half of them are taken by connections from there, and none of those is idle. Cancel
    /// safe.
    async fn place(
        &self,
        origin: Option<ConnectionOrigin>,
        answers: &ConnectionActivity,
        warnings: &mut Warnings,
    ) -> Option<Place> {
        let (places, mut has_asked) = (&self.0.places, false);
        loop {
            let full = match places.enter(origin, answers) {
                Ok(place) => return Some(place),
                Err(full) => full,
            };
            let leaving = match full {
                // Nobody else waits for an address that has as many as it may.
                Full::Origin(_) if has_asked => None,
                Full::All | Full::Origin(_) => self.make_room(full),
            };
            has_asked = matches!(full, Full::Origin(_));
            let wait = match (leaving, full) {
                (Some(id), _) => tokio::time::timeout(LEAVE_TIMEOUT, places.left(id)).await,
                (None, Full::All) => {
                    if is_due(&mut warnings.busy) {
                        warn!("all connections are busy, newcomers have to wait");
                    }
                    tokio::time::timeout(BUSY_PAUSE, places.freed()).await
                }
                (None, Full::Origin(_)) => return None,
            };
            // Whether it was in time or not, another attempt shows.
            drop(wait);
        }
    }

    /// Asks the longest idle connection that stands in the way to leave.
    fn make_room(&self, full: Full) -> Option<u64> {
        let leaving = self.0.places.ask_to_leave(full, clock::now())?;
        self.0.gateway.metrics().connections.closed(CloseReason::Idle);
        Some(leaving)
    }
}
