//! A request to the simulated upstream whose head has been read.

use std::sync::Arc;

use http::Method;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

use super::connection::ConnectionControl;
use super::recorder::RecordedRequest;

pub(super) struct IncomingRequest {
    pub(super) method: Method,
    pub(super) record: RecordedRequest,
    /// The `x-request-id` of its response.
    pub(super) id: String,
    pub(super) body: Incoming,
    pub(super) upgrade: Option<OnUpgrade>,
    pub(super) connection: Arc<ConnectionControl>,
}
