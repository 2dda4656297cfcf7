//! Where the Host rule ([`crate::protocol::allowed_host`]) holds for clients, and the list that it goes by.

use std::sync::Arc;

use http::Request;

use super::Gateway;
use super::access_log::AccessLog;
use super::error::GatewayError;
use crate::protocol::allowed_host::{HostPattern, foreign_host};
use crate::protocol::request::Peer;

impl Gateway {
    /// Returns `server.allowed_hosts` as it is now, for the admin listener, which goes by the same list.
    pub(crate) fn allowed_hosts(&self) -> Arc<Vec<HostPattern>> {
        self.0.allowed_hosts.load_full()
    }

    /// Refuses a request that a web page may have sent under a name that it has chosen: the gateway must not lend its key
    /// to that. Behind TLS the browser would have asked for a certificate of that name, and browsers reach no unix sockets.
    /// The log gets the name, so that the operator can list it.
    pub(super) fn refuse_foreign_host<B>(
        &self,
        request: &Request<B>,
        line: &mut AccessLog,
    ) -> Result<(), GatewayError> {
        if line.ctx().is_tls || line.ctx().forwarded.peer() == Peer::Unix {
            return Ok(());
        }
        line.foreign_host = foreign_host(request, &self.0.allowed_hosts.load());
        if line.foreign_host.is_some() { Err(GatewayError::ForeignHost) } else { Ok(()) }
    }
}
