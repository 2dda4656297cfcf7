//! The head of the last response to a wait, for the other waits that the same state settles. Thousands of clients may wait
//! for one job, and their responses differ in the id of the request only. Each thread keeps one head.
//!
//! A head depends on its [`HeadKey`], and on time: the quotas in it are at most [`MAX_AGE`] old. Responses with more
//! dependencies (lists, a condition, CORS, rewritten links, per-response fields of the upstream) have no key.

use std::cell::RefCell;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};

use super::request_options::AppliedPreference;
use super::response::X_REQUEST_ID;
use super::wait::JobRequest;
use super::{FRESH_FOR, Gateway, RequestState};
use crate::core::coalescer::{Cost, WaitOutcome, WaitResult};
use crate::core::job::{JobId, KeyDomain, ResponseHead};
use crate::core::route::Form;
use crate::limits::Subject;
use crate::protocol::body::Body;

/// Time for which a head is used again.
const MAX_AGE: Duration = FRESH_FOR;

thread_local! {
    static LAST: RefCell<Option<KeptHead>> = const { RefCell::new(None) };
}

struct KeptHead {
    key: HeadKey,
    decided_at: Instant,
    status: StatusCode,
    headers: HeaderMap,
}

/// Everything that a head depends on, except the id of the request and the moment.
#[derive(PartialEq)]
pub(super) struct HeadKey {
    gateway: u64,
    /// Count of the changes of everything: reloads.
    all: u64,
    /// Version of the quotas.
    quotas: u64,
    domain: KeyDomain,
    subject: Subject,
    is_lent: bool,
    applied: Option<AppliedPreference>,
    cost: Cost,
    age_seconds: u64,
    state: StateKey,
}

/// A state of a job, without its memory.
struct StateKey {
    id: JobId,
    seen_at: Instant,
    as_of: Instant,
    /// Identifies the upstream's response: no other one gets its address as long as this is here.
    response: Weak<ResponseHead>,
    /// Address and length of the job's bytes in that response.
    body: (usize, usize),
}

impl PartialEq for StateKey {
    fn eq(&self, other: &Self) -> bool {
        let own = (self.seen_at, self.as_of, self.body);
        own == (other.seen_at, other.as_of, other.body)
            && self.response.ptr_eq(&other.response)
            && self.id == other.id
    }
}

impl Gateway {
    /// Returns the key of the head of this result's response, and the body. `None`: the head has other dependencies.
    pub(super) fn head_key(
        &self,
        request: &JobRequest,
        result: &WaitResult,
        state: &RequestState,
        now: Instant,
    ) -> Option<(HeadKey, Bytes)> {
        let JobRequest { query, options, condition: None, origin: None, .. } = request else { return None };
        let (WaitOutcome::Reached(states) | WaitOutcome::TimedOut(states)) = &result.end else { return None };
        let ([reached], Form::Single) = (states.as_slice(), query.form) else { return None };
        // P8: per-response fields belong to one client. A fresh request knows its quotas better.
        if result.direct || state.is_fresh(now) || state.cors.is_some() || !options.keep {
            return None;
        }
        let key = HeadKey {
            gateway: self.0.number.0,
            all: self.0.cache.all_changes(),
            quotas: self.0.limits.current().version(),
            domain: request.domain,
            subject: state.subject,
            is_lent: state.is_lent,
            applied: options.applied,
            cost: result.how,
            age_seconds: now.saturating_duration_since(reached.as_of).as_secs(),
            state: StateKey {
                id: reached.id.clone(),
                seen_at: reached.seen_at,
                as_of: reached.as_of,
                response: Arc::downgrade(&reached.head),
                body: (reached.body.as_ptr().addr(), reached.body.len()),
            },
        };
        Some((key, reached.body.clone()))
    }

    /// Returns the response with the kept head, if it has this key, and the id of the request.
    pub(super) fn response_with_kept_head(
        key: &HeadKey,
        body: &Bytes,
        state: &RequestState,
        now: Instant,
    ) -> Option<Response<Body>> {
        LAST.with_borrow(|last| {
            let is_right = |kept: &&KeptHead| {
                now.saturating_duration_since(kept.decided_at) < MAX_AGE && kept.key == *key
            };
            let kept = last.as_ref().filter(is_right)?;
            let mut headers = kept.headers.clone();
            headers.insert(X_REQUEST_ID, state.log.ctx().id.value().clone());
            let mut response = Response::new(Body::full(body.clone()));
            *response.status_mut() = kept.status;
            *response.headers_mut() = headers;
            Some(response)
        })
    }

    /// Keeps the head of a response.
    pub(super) fn keep_head(key: HeadKey, response: &Response<Body>, now: Instant) {
        let (status, headers) = (response.status(), response.headers().clone());
        LAST.set(Some(KeptHead { key, decided_at: now, status, headers }));
    }
}
