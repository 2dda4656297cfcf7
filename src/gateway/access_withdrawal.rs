//! Ends the tunnels, passed-through requests and event streams of a client that a reload has shut out.
//!
//! ```text
//!   reload ── Reload ──▶ watch ──▶ each open request: would its client be let in now?
//!                                    yes: goes on          no: ends wait.max_timeout after the first such reload
//! ```
//!
//! Parked waits need none of this: they end within `wait.max_timeout` anyway.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;
use http::header::AUTHORIZATION;
use tokio::sync::watch;

use crate::auth::Authenticator;
use crate::clock;
use crate::config::Config;
use crate::protocol::field_value::copy_value;

/// The latest configuration that was taken over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reload {
    at: Instant,
    max_timeout: Duration,
}

impl Reload {
    /// Records that this configuration is taken over now.
    pub(super) fn of(config: &Config) -> Self {
        Self { at: clock::now(), max_timeout: config.wait.max_timeout }
    }
}

/// The credentials that let a client in, kept to check them again after each reload.
pub(super) struct Access {
    keyring: Arc<Authenticator>,
    reloads: watch::Receiver<Reload>,
    /// The request's `Authorization` fields alone.
    credentials: HeaderMap,
    member: Option<Arc<str>>,
}

impl Access {
    /// Keeps the credentials of a request that was let in, in team mode as this member.
    pub(super) fn new(
        keyring: &Arc<Authenticator>,
        reloads: &watch::Sender<Reload>,
        request: &HeaderMap,
        member: Option<Arc<str>>,
    ) -> Self {
        let credentials = request.get_all(AUTHORIZATION).iter();
        Self {
            keyring: Arc::clone(keyring),
            reloads: reloads.subscribe(),
            credentials: credentials.map(|field| (AUTHORIZATION, copy_value(field))).collect(),
            member,
        }
    }

    /// Ends `wait.max_timeout` after the reload that shut the client out; never while it is let in. A client that is
    /// let in again within that time has lost nothing.
    pub(super) async fn withdrawal(mut self) {
        // A reload may have come after the request was identified and before the subscription.
        let mut shut_out_since = (!self.is_let_in()).then(clock::now);
        loop {
            let Reload { max_timeout, .. } = *self.reloads.borrow();
            let end = async {
                match shut_out_since {
                    Some(since) => tokio::time::sleep_until((since + max_timeout).into()).await,
                    None => std::future::pending().await,
                }
            };
            // Cancel safe, both: the end is computed anew.
            let reloaded = tokio::select! {
                () = end => return,
                reloaded = self.reloads.changed() => reloaded,
            };
            if reloaded.is_err() {
                // The gateway is gone, and nobody shuts anybody out any more.
                std::future::pending::<()>().await;
            }
            let Reload { at, .. } = *self.reloads.borrow_and_update();
            shut_out_since = if self.is_let_in() { None } else { shut_out_since.or(Some(at)) };
        }
    }

    fn is_let_in(&self) -> bool {
        let identity = self.keyring.identify(&self.credentials);
        identity.is_ok_and(|identity| identity.and_then(|identity| identity.member) == self.member)
    }
}
