//! Checks before authentication and before the quota of a key.
//!
//! A rejected request counts against the quota of the client's address. It must not be free, and it must not use up the
//! quota of a key or a member that it merely names. A new check of this kind belongs into `check_head`.

use std::sync::Arc;

use http::Request;

use super::access_log::AccessLog;
use super::classify::is_chunked_only;
use super::error::{GatewayError, HttpFault};
use super::{Gateway, RequestState};
use crate::limits::Subject;
use crate::protocol::allowed_host::{HostPattern, foreign_host};
use crate::protocol::cors::CorsDecision;
use crate::protocol::fetch_metadata::is_cross_origin;
use crate::protocol::host::has_valid_host;
use crate::protocol::request::Peer;
use crate::protocol::via::is_loop;

impl Gateway {
    pub(super) fn check_early<B>(
        &self,
        request: &Request<B>,
        state: &mut RequestState,
    ) -> Result<(), GatewayError> {
        let Err(error) = self.check_head(request, state) else { return Ok(()) };
        state.subject = state.log.ctx().forwarded.client_ip().into();
        self.0.limits.check_request(state.subject)?;
        Err(error)
    }

    fn check_head<B>(&self, request: &Request<B>, state: &mut RequestState) -> Result<(), GatewayError> {
        if request.headers().len() > self.0.max_headers {
            return Err(GatewayError::Http(HttpFault::TooManyFields));
        }
        let (headers, found) = (request.headers(), state.found);
        if found.has_via && is_loop(headers) {
            return Err(GatewayError::Loop);
        }
        let is_chunked_only = !found.has_transfer_encoding || is_chunked_only(headers);
        if !is_chunked_only || !has_valid_host(request.version(), headers) {
            return Err(GatewayError::Http(HttpFault::Malformed));
        }
        if !self.0.access.authenticator.accepts_anyone() {
            return Ok(());
        }
        self.check_host(request, &mut state.log)?;
        let is_allowed = state.cors.as_deref().is_some_and(CorsDecision::is_allowed);
        if !is_allowed && is_cross_origin(request) { Err(GatewayError::CrossOrigin) } else { Ok(()) }
    }

    /// Rejects a request that a web page may have sent under a name of its choice: the gateway would add its own key to
    /// it, or pass it to an upstream that needs none. Over TLS the browser has verified the name, and browsers cannot reach unix sockets. The access line has
    /// the name, so that the operator can add it to `server.allowed_hosts`.
    fn check_host<B>(&self, request: &Request<B>, log: &mut AccessLog) -> Result<(), GatewayError> {
        if log.ctx().is_tls || log.ctx().forwarded.peer() == Peer::Unix {
            return Ok(());
        }
        log.foreign_host = foreign_host(request, &self.0.allowed_hosts.load()).map(String::into_boxed_str);
        if log.foreign_host.is_some() { Err(GatewayError::ForeignHost) } else { Ok(()) }
    }

    /// Returns the current `server.allowed_hosts`, which the admin listener uses too.
    pub(crate) fn allowed_hosts(&self) -> Arc<Vec<HostPattern>> {
        self.0.allowed_hosts.load_full()
    }

    /// Counts a request with a malformed head against the quota of its address. The rejection, with which the
    /// connection ends, is sent whether the quota is used up or not.
    pub fn count_malformed_head(&self, peer: Peer) {
        // The next request of this address with an unproven key sees the count.
        let _ = self.0.limits.check_request(Subject::from(peer.ip()));
    }
}
