//! The head of the last response to a wait, for the other waits that the same state settles. Thousands of clients may wait for
//! one job, and their responses differ in the id of the request only. Each thread keeps one head.
//!
//! A head depends on its [`HeadKey`], and on time: the quotas in it are at most [`MAX_AGE`] old. Responses with more
//! dependencies (lists, a condition, CORS, rewritten links, per-response fields of the upstream) have no key.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use http::{HeaderMap, Response, StatusCode};

use super::request_options::AppliedPreference;
use super::response::X_REQUEST_ID;
use super::wait::JobRequest;
use super::{FRESH_FOR, Gateway, RequestState};
use crate::core::coalescer::{Cost, WaitOutcome, WaitResult};
use crate::core::job::JobState;
use crate::core::route::Form;
use crate::limits::Subject;
use crate::protocol::body::Body;

/// Time for which a head is used again.
const MAX_AGE: Duration = FRESH_FOR;

/// Longest body whose head is kept, in bytes: the thread keeps it in memory until another head takes the place.
const MAX_BODY: usize = 64 << 10;

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
    subject: Subject,
    is_lent: bool,
    keep: bool,
    applied: Option<AppliedPreference>,
    cost: Cost,
    state: JobState,
    age_seconds: u64,
}

impl Gateway {
    /// Returns the key of the head of this result's response. `None`: the head has other dependencies.
    pub(super) fn head_key(
        &self,
        request: &JobRequest,
        result: &WaitResult,
        state: &RequestState,
        now: Instant,
    ) -> Option<HeadKey> {
        let JobRequest { query, options, condition: None, origin: None, .. } = request else { return None };
        let (WaitOutcome::Reached(states) | WaitOutcome::TimedOut(states)) = &result.end else { return None };
        let ([reached], Form::Single) = (states.as_slice(), query.form) else { return None };
        // P8: per-response fields belong to one client. A fresh request knows its quotas better.
        if result.direct || state.is_fresh(now) || state.cors.is_some() || reached.body.len() > MAX_BODY {
            return None;
        }
        Some(HeadKey {
            gateway: self.0.number.0,
            all: self.0.cache.all_changes(),
            quotas: self.0.limits.current().version(),
            subject: state.subject,
            is_lent: state.is_lent,
            keep: options.keep,
            applied: options.applied,
            cost: result.how,
            state: reached.clone(),
            age_seconds: now.saturating_duration_since(reached.as_of).as_secs(),
        })
    }

    /// Returns the response with the kept head, if it has this key, and the id of the request.
    pub(super) fn response_with_kept_head(
        key: &HeadKey,
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
            let mut response = Response::new(Body::full(kept.key.state.body.clone()));
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
