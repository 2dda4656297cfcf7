//! Actions: passed-through requests that may change jobs (RFC 9111 section 4.4).
//!
//! | the request | its jobs |
//! | --- | --- |
//! | answered 2xx or 3xx | changed |
//! | broken: sent, but the response never came | may have changed, so they count as changed |
//! | answered 502, 504 or 52x and above, by a proxy that has lost the response | the same |
//! | answered 1xx, 4xx or another 5xx, or never sent | unchanged |
//!
//! A changed job leaves the cache for this key, and the hub reads it again for parked waits.

use http::{Method, Request, StatusCode};

use super::Gateway;
use super::passthrough::PassthroughError;
use crate::auth::Identity;
use crate::clock;
use crate::core::job::{JobId, KeyDomain};
use crate::core::query;

/// A request under way that may change jobs. Dropping it without an end counts as broken.
pub(super) struct PendingAction {
    gateway: Gateway,
    domain: KeyDomain,
    jobs: Vec<JobId>,
}

impl PendingAction {
    /// Returns `None` for a request that changes no job that the gateway may know.
    pub(super) fn of<B>(
        gateway: &Gateway,
        request: &Request<B>,
        identity: Option<&Identity>,
    ) -> Option<Self> {
        if is_safe(request.method()) {
            return None;
        }
        let (domain, uri) = (identity?.domain, request.uri());
        let mut jobs = query::acted_on(&gateway.0.routes, uri.path(), uri.query());
        jobs.retain(|job| !gateway.0.routes.get(job.route()).is_built_in);
        (!jobs.is_empty()).then(|| Self { gateway: gateway.clone(), domain, jobs })
    }

    pub(super) fn answered(self, status: StatusCode) {
        if status.is_success() || status.is_redirection() || is_result_unknown(status) {
            drop(self);
        } else {
            self.cancel();
        }
    }

    pub(super) fn failed(self, error: &PassthroughError) {
        if error.may_have_been_sent() {
            drop(self);
        } else {
            self.cancel();
        }
    }

    fn cancel(mut self) {
        self.jobs.clear();
    }
}

impl Drop for PendingAction {
    fn drop(&mut self) {
        self.gateway.jobs_changed(self.domain, &self.jobs);
    }
}

impl Gateway {
    /// Records that jobs of a key have changed.
    fn jobs_changed(&self, domain: KeyDomain, jobs: &[JobId]) {
        if jobs.is_empty() {
            return;
        }
        let now = clock::now();
        jobs.iter().for_each(|job| self.0.cache.job_changed(domain, job, now));
        self.0.hub.jobs_changed(domain, jobs);
    }

    /// Removes the jobs of a GET that the upstream answered with 404 from the cache of its key.
    pub(super) fn remove_missing(&self, domain: KeyDomain, named: &[JobId]) {
        let jobs = named.iter().filter(|job| !self.0.routes.get(job.route()).is_built_in);
        jobs.for_each(|job| self.0.cache.job_changed(domain, job, clock::now()));
    }
}

/// Returns whether a proxy before the upstream answered in its place, as it does not know the result: 502, 504, and the
/// codes of content delivery networks from 520 on.
fn is_result_unknown(status: StatusCode) -> bool {
    matches!(status.as_u16(), 502 | 504 | 520..=599)
}

/// Returns whether the method is safe (RFC 9110 section 9.2.1).
fn is_safe(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE].contains(method)
}
