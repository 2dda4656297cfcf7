//! Refusals of requests that nobody reads any further, before the quota of a key.
//!
//! None of them may be free, and none may use up the quota of a key or a member that the request only names: each counts
//! for its client's address. A new refusal of this kind belongs into `check_early`.

use http::Request;

use super::error::{GatewayError, HttpFault};
use super::target::is_plain;
use super::{Gateway, RequestState};
use crate::limits::Subject;
use crate::protocol::cors::CorsDecision;
use crate::protocol::fetch_metadata::is_cross_origin;
use crate::protocol::host::has_valid_host;
use crate::protocol::request::Peer;
use crate::protocol::via::is_loop;

impl Gateway {
    /// Refuses a request that must not be read any further.
    pub(super) fn refuse_early<B>(
        &self,
        request: &Request<B>,
        asking: &mut RequestState,
    ) -> Result<(), GatewayError> {
        let Err(refusal) = self.check_early(request, asking) else { return Ok(()) };
        asking.subject = asking.line.ctx().forwarded.client_ip().into();
        self.0.limits.request(asking.subject)?;
        Err(refusal)
    }

    fn check_early<B>(&self, request: &Request<B>, asking: &mut RequestState) -> Result<(), GatewayError> {
        if is_loop(request.headers()) {
            return Err(GatewayError::Loop);
        }
        if !is_plain(request.headers()) || !has_valid_host(request.version(), request.headers()) {
            return Err(GatewayError::Http(HttpFault::Malformed));
        }
        if !self.0.keyring.injects_key() {
            return Ok(());
        }
        self.refuse_foreign_host(request, &mut asking.line)?;
        let is_let_in = asking.permission.as_deref().is_some_and(CorsDecision::is_allowed);
        if !is_let_in && is_cross_origin(request) { Err(GatewayError::ForeignPage) } else { Ok(()) }
    }

    /// Counts a request whose head could not be read. Its connection ends with the refusal, which is written whether the
    /// quota is used up or not.
    pub fn refused_unread(&self, peer: Peer) {
        // What is counted shows in the next request of the address whose key is not proven.
        let _ = self.0.limits.request(Subject::from(peer.ip()));
    }
}
