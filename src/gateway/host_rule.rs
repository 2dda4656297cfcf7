//! Where the Host rule of [`allowed_host`] holds for clients, and the list that it goes by.

use std::sync::Arc;

use http::Request;

use super::Gateway;
use crate::allowed_host::{self, HostPattern};
use crate::request::{Peer, RequestCtx};

impl Gateway {
    /// Returns `server.allowed_hosts` as it is now, for the admin listener, which goes by the same list.
    pub(crate) fn allowed_hosts(&self) -> Arc<Vec<HostPattern>> {
        self.0.allowed_hosts.load_full()
    }

    /// Returns whether a web page may have sent the request under a name that it has chosen, so that the gateway must
    /// not lend its key. Behind TLS the browser would have asked for a certificate of that name, and browsers reach no
    /// unix sockets.
    pub(super) fn is_foreign_host<B>(&self, request: &Request<B>, ctx: &RequestCtx) -> bool {
        let is_plain_tcp = !ctx.is_tls && ctx.trail.peer() != Peer::Unix;
        is_plain_tcp && !allowed_host::is_allowed(request, &self.0.allowed_hosts.load())
    }
}
