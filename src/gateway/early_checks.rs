//! Refusals of requests that nobody reads any further, before the quota of a key.
//!
//! None of them may be free, and none may use up the quota of a key or a member that the request only names: each counts
//! for its client's address. A new refusal of this kind belongs into `check_early`.

use http::Request;

use super::error::{HttpFault, Refusal};
use super::target::is_plain;
use super::{Asking, Gateway};
use crate::limits::Who;
use crate::protocol::cors::Permission;
use crate::protocol::headers as fields;
use crate::protocol::request::Peer;

impl Gateway {
    /// Refuses a request that must not be read any further.
    pub(super) fn refuse_early<B>(&self, request: &Request<B>, asking: &mut Asking) -> Result<(), Refusal> {
        let Err(refusal) = self.check_early(request, asking) else { return Ok(()) };
        asking.who = asking.line.ctx().trail.client().into();
        self.0.limits.request(asking.who)?;
        Err(refusal)
    }

    fn check_early<B>(&self, request: &Request<B>, asking: &mut Asking) -> Result<(), Refusal> {
        if fields::has_passed_here(request.headers()) {
            return Err(Refusal::Loop);
        }
        if !is_plain(request.headers()) || !fields::has_one_host(request.version(), request.headers()) {
            return Err(Refusal::Http(HttpFault::Malformed));
        }
        if !self.0.keyring.lends_its_key() {
            return Ok(());
        }
        self.refuse_foreign_host(request, &mut asking.line)?;
        let is_let_in = asking.permission.as_deref().is_some_and(Permission::is_given);
        if !is_let_in && fields::is_of_foreign_page(request) { Err(Refusal::ForeignPage) } else { Ok(()) }
    }

    /// Counts a request whose head could not be read. Its connection ends with the refusal, which is written whether the
    /// quota is used up or not.
    pub fn refused_unread(&self, peer: Peer) {
        // What is counted shows in the next request of the address whose key is not proven.
        let _ = self.0.limits.request(Who::from(peer.ip()));
    }
}
