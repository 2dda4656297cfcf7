//! Plain GETs of jobs whose body is larger than that of a poll may be: passed through (P12).
//!
//! A poll is read as a whole before it is split, so its size is bounded. A client alone would get such a body. The gateway
//! remembers the jobs for a minute, so that their next plain GETs cost the upstream one request and not two.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::Request;

use super::passthrough::PassthroughResponse;
use super::wait::JobRequest;
use super::{Decision, Gateway, RequestState};
use crate::core::coalescer::{Failure, WaitOutcome};
use crate::core::job::{JobSet, KeyDomain};
use crate::core::route::{Form, Goal};
use crate::protocol::body::Body;

/// The most targets in memory, each with about 200 bytes. One that is removed for room costs a poll.
const MAX_TARGETS: u64 = 1024;
/// The time until a poll tries again whether the body has become smaller.
const REMEMBERED_FOR: Duration = Duration::from_secs(60);

/// A plain GET as its client sent it.
pub(super) type PlainGet = Box<Request<Body>>;

/// Targets whose last poll had a body over the limit.
#[derive(Debug)]
pub(super) struct OversizedTargets {
    targets: moka::sync::Cache<(KeyDomain, Form, JobSet), ()>,
    /// False before the first target: then no lookup is needed.
    has_targets: AtomicBool,
}

impl OversizedTargets {
    pub(super) fn new() -> Self {
        let targets =
            moka::sync::Cache::builder().max_capacity(MAX_TARGETS).time_to_live(REMEMBERED_FOR).build();
        Self { targets, has_targets: AtomicBool::new(false) }
    }

    fn insert(&self, request: &JobRequest) {
        self.has_targets.store(true, Ordering::Release);
        self.targets.insert((request.domain, request.query.form, request.query.jobs()), ());
    }

    /// Returns whether a poll for this plain GET would be in vain.
    pub(super) fn contains(&self, request: &JobRequest) -> bool {
        let key = || (request.domain, request.query.form, request.query.jobs());
        self.has_targets.load(Ordering::Acquire) && request.is_plain() && self.targets.contains_key(&key())
    }
}

impl JobRequest {
    /// Returns whether the upstream would answer this request at once.
    pub(super) fn is_plain(&self) -> bool {
        self.query.goal == Goal::Now
    }
}

impl Gateway {
    /// Passes a plain GET through after a poll whose body was too large.
    pub(super) fn pass_oversized(
        self,
        plain: PlainGet,
        request: &JobRequest,
        mut state: Box<RequestState>,
    ) -> BoxFuture<'static, PassthroughResponse> {
        self.0.oversized.insert(request);
        let decision = self
            .authenticate_again(plain.headers())
            .and_then(|identity| self.start_passthrough(&mut state, identity));
        match decision {
            Ok(Decision::Pass(identity, slot)) => self.pass_through(*plain, identity, slot, state),
            decision => Box::pin(self.execute(decision, *plain, state)),
        }
    }
}

/// Returns whether a wait ended because the body of its poll was too large.
pub(super) fn is_oversized(end: &WaitOutcome) -> bool {
    matches!(end, WaitOutcome::Failed(Failure::TooLarge))
}
