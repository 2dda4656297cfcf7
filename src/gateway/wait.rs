//! A wait at the gateway: the lookup in the cache, and the response once the hub has answered.

use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, Either};
use headers::IfNoneMatch;
use http::{HeaderValue, Response};

use super::access_log::Disposition;
use super::error::GatewayError;
use super::oversized::{PlainGet, is_oversized};
use super::passthrough::PassthroughResponse;
use super::request_options::RequestOptions;
use super::response::{JobResponse, JobResponseStyle, ResponseOrigin, unsplit_response};
use super::{Gateway, RequestState};
use crate::cache::KeyProof;
use crate::clock;
use crate::core::coalescer::{Cost, Failure, WaitOutcome, WaitResult};
use crate::core::job::{JobState, KeyDomain};
use crate::core::query::WaitQuery;
use crate::hub::{HubError, WaitHandle};
use crate::protocol::body::Body;

/// Most bytes of the future of a parked wait: a size class of the allocator.
const MAX_PARKED_BYTES: usize = 640;

/// A request for jobs, as far as its response needs it.
pub(super) struct JobRequest {
    pub(super) domain: KeyDomain,
    pub(super) query: WaitQuery,
    pub(super) options: RequestOptions,
    /// Boxed: few waits have one.
    pub(super) condition: Option<Box<IfNoneMatch>>,
    /// The client's origin of the gateway, on configured routes.
    pub(super) origin: Option<Box<str>>,
}

/// A parked wait.
pub(super) struct ParkedRequest {
    pub(super) handle: WaitHandle,
    pub(super) request: JobRequest,
}

impl Gateway {
    /// Returns the cached state of each job in the order of the query, if all of them reach the goal and are recent
    /// enough.
    pub(super) fn lookup_cached(
        &self,
        query: &WaitQuery,
        proof: Option<KeyProof>,
        domain: KeyDomain,
        options: &RequestOptions,
        now: Instant,
    ) -> Option<(Vec<JobState>, ResponseOrigin)> {
        // P11: no hit before the upstream has accepted the key.
        let (max_age, proof) = (options.max_age?, proof?);
        let mut states = Vec::with_capacity(query.asked.len());
        let (mut first, mut ttl) = (None, Duration::MAX);
        for id in &query.asked {
            let hit = self.0.cache.get_proven(proof, domain, id, now)?;
            let has_reached_goal = hit.entry.state.rung.is_some_and(|rung| query.goal.is_reached_by(rung));
            if !has_reached_goal || !hit.is_within(max_age, now) {
                return None;
            }
            states.push(hit.entry.state.clone());
            ttl = ttl.min(hit.ttl);
            first.get_or_insert(hit.entry);
        }
        let first = first?;
        Some((states, ResponseOrigin::Hit { ttl, first }))
    }

    /// Waits for the hub. `plain`: the request, if it is passed through where its poll is too large.
    ///
    /// `host` is a slice of the buffer that the request's head was read into. It is dropped at the first poll of the
    /// future, when hyper has moved on to the bytes after the head. Only then the buffer is freed; it would be the
    /// largest part of a parked wait's memory.
    pub(super) fn wait(
        self,
        mut parked: ParkedRequest,
        plain: Option<PlainGet>,
        host: Option<Box<HeaderValue>>,
        state: Box<RequestState>,
    ) -> BoxFuture<'static, PassthroughResponse> {
        let wait = async move {
            drop(host);
            let result = (&mut parked.handle).await;
            let passed = match self.end_of_wait(parked.request, plain, result, state) {
                Either::Left(response) => return response,
                Either::Right(passed) => passed,
            };
            passed.await
        };
        debug_assert!(size_of_val(&wait) <= MAX_PARKED_BYTES, "{} bytes", size_of_val(&wait));
        Box::pin(wait)
    }

    /// Returns the response to a wait that has ended, or the future that passes the request through. A plain function: a
    /// parked wait then has no room for its variables.
    fn end_of_wait(
        self,
        request: JobRequest,
        plain: Option<PlainGet>,
        result: Result<WaitResult, HubError>,
        mut state: Box<RequestState>,
    ) -> Either<PassthroughResponse, BoxFuture<'static, PassthroughResponse>> {
        if let (Some(plain), Ok(WaitResult { end, .. })) = (plain, &result)
            && is_oversized(end)
        {
            return Either::Right(self.pass_oversized(plain, &request, state));
        }
        let result = match result {
            Ok(result) => result,
            Err(error) => return Either::Left(self.respond(state, Err(error.into()))),
        };
        state.log.disposition = Disposition::Waited(result.how, result.end.reason());
        let now = clock::now();
        let key = self.head_key(&request, &result, &state, now);
        if let Some((key, body)) = &key
            && let Some(response) = Self::response_with_kept_head(key, body, &state, now)
        {
            return Either::Left(self.complete(state, response.into(), false));
        }
        let response = self.wait_response(&request, result, now);
        let passed = self.respond(state, response.map(PassthroughResponse::from));
        if let Some((key, _)) = key {
            Self::keep_head(key, &passed.response, now);
        }
        Either::Left(passed)
    }

    pub(super) fn wait_response(
        &self,
        request: &JobRequest,
        WaitResult { how, direct, end }: WaitResult,
        now: Instant,
    ) -> Result<Response<Body>, GatewayError> {
        match end {
            WaitOutcome::Reached(mut states) | WaitOutcome::TimedOut(mut states) => {
                states.sort_by_key(|state| request.query.asked.iter().position(|id| *id == state.id));
                // P8: a response from proof is never the client's own.
                let origin = ResponseOrigin::Poll { cost: how, is_own: direct && how != Cost::Proven };
                Ok(self.job_response(request, states, origin, now))
            }
            WaitOutcome::Unsplit(reply)
            | WaitOutcome::Refused(reply)
            | WaitOutcome::Failed(Failure::UpstreamError(reply) | Failure::InvalidResponse(Some(reply))) => {
                let response = unsplit_response(&reply, how, direct, request.options.applied);
                Ok(self.with_links_to(request, response))
            }
            WaitOutcome::Failed(failure) => Err(GatewayError::Poll(failure)),
        }
    }

    pub(super) fn job_response(
        &self,
        request: &JobRequest,
        states: Vec<JobState>,
        origin: ResponseOrigin,
        now: Instant,
    ) -> Response<Body> {
        let JobRequest { domain, query, options, condition, .. } = request;
        let style = JobResponseStyle::of(self.0.routes.get(query.route));
        let response = JobResponse {
            form: query.form,
            states,
            origin,
            keep: options.keep,
            applied: options.applied,
            style,
            now,
        };
        let gateway = &*self.0;
        let (shape, vary) =
            (|| gateway.cache.list_shape(*domain, query.route), || gateway.access.authenticator.vary());
        let response = response.into_response(&gateway.cache, shape, vary, condition.as_deref());
        self.with_links_to(request, response)
    }

    /// Rewrites the upstream's links in the header fields of a configured route.
    fn with_links_to(&self, request: &JobRequest, mut response: Response<Body>) -> Response<Body> {
        if let (Some(origin), Some(links)) = (&request.origin, &self.0.links) {
            links.rewrite(response.headers_mut(), || Some(origin.to_string()));
        }
        response
    }
}
