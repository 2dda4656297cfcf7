//! Ends tunnels, passed-through requests and event streams of clients whose access a reload has revoked.
//!
//! ```text
//!   reload ── ReloadNotice ──▶ watch ──▶ each open request: is its client still allowed?
//!                                          yes: goes on      no: ends wait.max_timeout after the first such reload
//! ```
//!
//! Parked waits are not concerned: they end within `wait.max_timeout` anyway.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::watch;

use crate::auth::Authenticator;
use crate::clock;
use crate::config::Config;

/// The latest reload.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReloadNotice {
    at: Instant,
    max_timeout: Duration,
}

impl ReloadNotice {
    /// Records that this configuration is applied now.
    pub(super) fn new(config: &Config) -> Self {
        Self { at: clock::now(), max_timeout: config.wait.max_timeout }
    }
}

/// The credentials of an open request, to be checked again after each reload.
#[derive(Clone)]
pub(super) struct ClientAccess {
    authenticator: Arc<Authenticator>,
    reloads: watch::Receiver<ReloadNotice>,
    /// Only the fields of `auth.headers`.
    credentials: Vec<(HeaderName, HeaderValue)>,
    /// A time before the authentication of the request.
    arrived: Instant,
    member: Option<Arc<str>>,
}

impl ClientAccess {
    /// Keeps the credentials of a request that was accepted; in team mode as a request of this member.
    pub(super) fn new(
        authenticator: &Arc<Authenticator>,
        reloads: &watch::Sender<ReloadNotice>,
        headers: &HeaderMap,
        member: Option<Arc<str>>,
        arrived: Instant,
    ) -> Self {
        Self {
            authenticator: Arc::clone(authenticator),
            reloads: reloads.subscribe(),
            credentials: authenticator.key_fields(headers),
            arrived,
            member,
        }
    }

    /// Returns whether a reload has come since the request.
    pub(super) fn is_outdated(&self) -> bool {
        self.reloads.has_changed().unwrap_or(false)
    }

    /// Ends `wait.max_timeout` after the reload that revoked the access, unless a later reload has granted it again.
    pub(super) async fn revoked(mut self) {
        // A reload may have come between the authentication of the request and the subscription. A notice from before
        // the request arrived is of a configuration that has authenticated it.
        let may_be_revoked = self.reloads.borrow().at >= self.arrived;
        let mut revoked_at = (may_be_revoked && !self.is_allowed()).then(|| self.reloads.borrow().at);
        loop {
            let ReloadNotice { max_timeout, .. } = *self.reloads.borrow();
            let end = async {
                match revoked_at {
                    Some(revoked_at) => tokio::time::sleep_until((revoked_at + max_timeout).into()).await,
                    None => std::future::pending().await,
                }
            };
            // Cancel safe: `changed` keeps an unseen reload, and `end` is computed again.
            let reloaded = tokio::select! {
                () = end => return,
                reloaded = self.reloads.changed() => reloaded,
            };
            if reloaded.is_err() {
                // The gateway is gone, so there are no further reloads.
                std::future::pending::<()>().await;
            }
            let ReloadNotice { at, .. } = *self.reloads.borrow_and_update();
            revoked_at = if self.is_allowed() { None } else { revoked_at.or(Some(at)) };
        }
    }

    fn is_allowed(&self) -> bool {
        let identity = self.authenticator.identify(&self.credentials.iter().cloned().collect());
        identity.is_ok_and(|identity| identity.and_then(|identity| identity.member) == self.member)
    }
}
