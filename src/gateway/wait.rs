//! A wait at the gateway: the lookup in the cache, and the response once the hub has answered.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use headers::IfNoneMatch;
use http::{HeaderValue, Response};

use super::access_log::Disposition;
use super::error::GatewayError;
use super::passthrough::PassthroughResponse;
use super::request_options::RequestOptions;
use super::response::{JobResponse, ResponseOrigin, unsplit_response};
use super::{Gateway, RequestState};
use crate::cache::KeyProof;
use crate::clock;
use crate::core::coalescer::{Cost, Failure, WaitOutcome, WaitResult};
use crate::core::job::{JobState, KeyDomain};
use crate::core::query::WaitQuery;
use crate::core::route::Goal;
use crate::hub::WaitHandle;
use crate::protocol::body::Body;

/// A parked wait, and all that its response needs.
pub(super) struct ParkedRequest {
    pub(super) handle: WaitHandle,
    pub(super) domain: KeyDomain,
    pub(super) query: WaitQuery,
    pub(super) options: RequestOptions,
    pub(super) condition: Option<IfNoneMatch>,
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
    ) -> Option<(Vec<JobState>, ResponseOrigin)> {
        // P11: no hit before the upstream has accepted the key.
        let (max_age, proof, now) = (options.max_age?, proof?, clock::now());
        let hits = query.asked.iter().map(|id| {
            let hit = self.0.cache.get_proven(proof, domain, id, now)?;
            let has_reached_goal = match query.goal {
                Goal::Now => true,
                Goal::Rung(goal) => hit.entry.state.rung >= Some(goal),
                Goal::Not(left) => hit.entry.state.rung != Some(left),
            };
            (has_reached_goal && hit.is_within(max_age, now)).then_some(hit)
        });
        let hits = hits.collect::<Option<Vec<_>>>()?;
        let ttl = hits.iter().map(|hit| hit.ttl).min()?;
        let first = Arc::clone(&hits.first()?.entry);
        let states = hits.into_iter().map(|hit| hit.entry.state.clone()).collect();
        Some((states, ResponseOrigin::Hit { ttl, first }))
    }

    /// Waits for the hub.
    ///
    /// `host` is a slice of the buffer that the request's head was read into. It is dropped at the first poll of the
    /// future, when hyper has moved on to the bytes after the head. Only then the buffer is freed; it would be the
    /// largest part of a parked wait's memory.
    pub(super) fn wait(
        self,
        mut parked: ParkedRequest,
        host: Option<HeaderValue>,
        mut state: RequestState,
    ) -> BoxFuture<'static, PassthroughResponse> {
        Box::pin(async move {
            drop(host);
            let result = (&mut parked.handle).await;
            let ParkedRequest { domain, query, options, condition, .. } = parked;
            let response = result.map_err(GatewayError::from).and_then(|WaitResult { how, direct, end }| {
                state.log.disposition = Disposition::Waited(how, end.reason());
                match end {
                    WaitOutcome::Reached(mut states) | WaitOutcome::TimedOut(mut states) => {
                        states.sort_by_key(|state| query.asked.iter().position(|id| *id == state.id));
                        // P8: a response from proof is never the client's own.
                        let is_own = direct && how != Cost::Proven;
                        let origin = ResponseOrigin::Poll { cost: how, is_own };
                        Ok(self.job_response(domain, &query, states, origin, &options, condition).into())
                    }
                    WaitOutcome::Unsplit(reply)
                    | WaitOutcome::Refused(reply)
                    | WaitOutcome::Failed(
                        Failure::UpstreamError(reply) | Failure::InvalidResponse(Some(reply)),
                    ) => Ok(unsplit_response(&reply, how, direct, options.applied).into()),
                    WaitOutcome::Failed(failure) => Err(GatewayError::Poll(failure)),
                }
            });
            self.respond(state, response)
        })
    }

    pub(super) fn job_response(
        &self,
        domain: KeyDomain,
        query: &WaitQuery,
        states: Vec<JobState>,
        origin: ResponseOrigin,
        options: &RequestOptions,
        condition: Option<IfNoneMatch>,
    ) -> Response<Body> {
        let response =
            JobResponse { form: query.form, states, origin, keep: options.keep, applied: options.applied };
        let gateway = &*self.0;
        let shape = || gateway.cache.list_shape(domain);
        response.into_response(&gateway.cache, shape, || gateway.authenticator.vary(), condition)
    }
}
