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

use http::HeaderMap;
use tokio::sync::watch;

use super::{Gateway, RequestState};
use crate::auth::{Authenticator, Identity, KeyFields};
use crate::clock;
use crate::config::Config;

/// The latest reload.
#[derive(Clone, Copy, Debug)]
struct ReloadNotice {
    at: Instant,
    max_timeout: Duration,
}

impl ReloadNotice {
    /// Records that this configuration is applied now.
    fn new(config: &Config) -> Self {
        Self { at: clock::now(), max_timeout: config.wait.max_timeout }
    }
}

/// The authenticator, and the notices of its reloads.
pub(super) struct AccessControl {
    pub(super) authenticator: Authenticator,
    reloads: watch::Sender<ReloadNotice>,
}

impl AccessControl {
    pub(super) fn new(authenticator: Authenticator, config: &Config) -> Arc<Self> {
        Arc::new(Self { authenticator, reloads: watch::Sender::new(ReloadNotice::new(config)) })
    }

    /// Notifies all open requests that this configuration is applied.
    pub(super) fn notify(&self, config: &Config) {
        self.reloads.send_replace(ReloadNotice::new(config));
    }
}

/// The credentials of an open request, to be checked again after each reload.
#[derive(Clone)]
pub(super) struct ClientAccess {
    control: Arc<AccessControl>,
    /// Only the fields of `auth.headers`.
    credentials: KeyFields,
    /// A time before the authentication of the request.
    arrived: Instant,
    member: Option<Arc<str>>,
}

impl Gateway {
    /// Keeps the credentials of a request that was accepted; in team mode as a request of this member.
    pub(super) fn client_access(
        &self,
        headers: &HeaderMap,
        identity: Option<&Identity>,
        state: &RequestState,
    ) -> ClientAccess {
        let control = Arc::clone(&self.0.access);
        let credentials = control.authenticator.key_fields(headers, identity);
        ClientAccess {
            control,
            credentials,
            arrived: state.log.ctx().arrived,
            member: state.log.member.clone(),
        }
    }
}

impl ClientAccess {
    /// Returns whether a reload has come since the request.
    pub(super) fn is_outdated(&self) -> bool {
        self.control.reloads.borrow().at >= self.arrived
    }

    /// Ends `wait.max_timeout` after the reload that revoked the access, unless a later reload has granted it again.
    pub(super) async fn revoked(self) {
        let mut reloads = self.control.reloads.subscribe();
        // A reload may have come between the authentication of the request and the subscription. A notice from before
        // the request arrived is of a configuration that has authenticated it.
        let may_be_revoked = self.is_outdated();
        let mut revoked_at = (may_be_revoked && !self.is_allowed()).then(|| reloads.borrow().at);
        loop {
            let ReloadNotice { max_timeout, .. } = *reloads.borrow();
            let end = async {
                match revoked_at {
                    Some(revoked_at) => tokio::time::sleep_until((revoked_at + max_timeout).into()).await,
                    None => std::future::pending().await,
                }
            };
            // Cancel safe: `changed` keeps an unseen reload, and `end` is computed again.
            let reloaded = tokio::select! {
                () = end => return,
                reloaded = reloads.changed() => reloaded,
            };
            // Not closed: `control` has the sender.
            debug_assert!(reloaded.is_ok());
            let ReloadNotice { at, .. } = *reloads.borrow_and_update();
            revoked_at = if self.is_allowed() { None } else { revoked_at.or(Some(at)) };
        }
    }

    fn is_allowed(&self) -> bool {
        let identity = self.control.authenticator.identify(&self.credentials.iter().cloned().collect());
        identity.is_ok_and(|identity| identity.and_then(|identity| identity.member) == self.member)
    }
}
