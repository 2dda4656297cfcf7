//! A plain GET that is held for the next change of its job (`default_wait` of a route).
//!
//! ```text
//! the state at arrival: cached, or read ─┬─ the end, an unknown state, not that of If-None-Match ─▶ answered at once
//!                                        └─ else a wait for another state ─▶ that state, or the current one at the end
//! ```
//!
//! On a route that never holds, any other state ends the wait, because jobs may go back. Elsewhere the next rung does.

use std::time::Instant;

use futures_util::future::BoxFuture;
use headers::{ETag, HeaderMapExt as _};
use http::header::ETAG;
use http::{HeaderMap, HeaderValue};

use super::access_log::Disposition;
use super::error::GatewayError;
use super::oversized::{PlainGet, is_oversized};
use super::passthrough::PassthroughResponse;
use super::response::ResponseOrigin;
use super::wait::JobRequest;
use super::{Gateway, RequestState};
use crate::clock;
use crate::core::coalescer::{Cost, WaitOutcome, WaitResult};
use crate::core::job::JobState;
use crate::core::route::Goal;
use crate::hub::{HubError, WaitRequest};

/// A plain request for one job that is held until another state or this moment.
pub(super) struct HeldRequest {
    pub(super) request: JobRequest,
    pub(super) until: Instant,
    /// The cached state at arrival.
    pub(super) cached: Option<(Vec<JobState>, ResponseOrigin)>,
    /// Reads the state at arrival.
    pub(super) wait: WaitRequest,
}

enum HeldAnswer {
    Cached(Vec<JobState>, ResponseOrigin),
    Waited(WaitResult),
}

impl Gateway {
    /// `plain` is passed through where its poll is too large.
    ///
    /// Cancel safe: dropping the future ends the wait (P6).
    pub(super) fn hold(
        self,
        held: HeldRequest,
        plain: PlainGet,
        mut state: Box<RequestState>,
    ) -> BoxFuture<'static, PassthroughResponse> {
        Box::pin(async move {
            let HeldRequest { request, until, cached, wait } = held;
            let answer = self.next_state(&request, until, cached, wait).await;
            if let Ok(HeldAnswer::Waited(WaitResult { end, .. })) = &answer
                && is_oversized(end)
            {
                return self.pass_oversized(plain, &request, state).await;
            }
            let response = answer.map_err(GatewayError::from).and_then(|answer| match answer {
                HeldAnswer::Cached(states, origin) => {
                    state.log.disposition = Disposition::Hit;
                    Ok(self.job_response(&request, states, origin, clock::now()))
                }
                HeldAnswer::Waited(result) => {
                    state.log.disposition = Disposition::Waited(result.how, result.end.reason());
                    self.wait_response(&request, result, clock::now())
                }
            });
            self.respond(state, response.map(PassthroughResponse::from))
        })
    }

    async fn next_state(
        &self,
        request: &JobRequest,
        until: Instant,
        cached: Option<(Vec<JobState>, ResponseOrigin)>,
        wait: WaitRequest,
    ) -> Result<HeldAnswer, HubError> {
        let first = match cached {
            Some((states, origin)) => HeldAnswer::Cached(states, origin),
            None => HeldAnswer::Waited(self.0.hub.wait(wait.clone()).await?),
        };
        let now = clock::now();
        let timeout = until.saturating_duration_since(now);
        let Some(goal) = self.next_goal(request, &first).filter(|_| !timeout.is_zero()) else {
            return Ok(first);
        };
        // With `no-cache`, states that were seen since the request arrived are still recent enough.
        let max_age = wait.max_age.or(Some(now.saturating_duration_since(wait.arrived)));
        let newer_than = first.states().first().map(|state| state.as_of);
        let next = WaitRequest { goal, arrived: now, timeout, max_age, newer_than, ..wait };
        match self.0.hub.wait(next).await {
            Ok(result) if !matches!(result.end, WaitOutcome::Failed(_)) => {
                let how = if first.has_opened() { Cost::Opened } else { result.how };
                Ok(HeldAnswer::Waited(WaitResult { how, ..result }))
            }
            // P12: the client alone would have the state at arrival.
            Ok(_) | Err(_) => Ok(first),
        }
    }

    /// Returns the goal of the wait for a state other than this one; `None`: it is the answer.
    fn next_goal(&self, request: &JobRequest, first: &HeldAnswer) -> Option<Goal> {
        let route = self.0.routes.get(request.query.route);
        let [state] = first.states() else { return None };
        let rung = state.rung.filter(|rung| !route.ladder.is_terminal(*rung))?;
        let is_known_to_client = match &request.condition {
            Some(condition) => !condition.precondition_passes(&parsed_etag(self.0.cache.etag(&state.body))?),
            None => true,
        };
        if !is_known_to_client {
            None
        } else if route.never_holds() {
            Some(Goal::Not(rung))
        } else {
            route.ladder.next(rung).map(Goal::Rung)
        }
    }
}

impl HeldAnswer {
    /// Returns the states, if the answer has states.
    fn states(&self) -> &[JobState] {
        match self {
            Self::Cached(states, _) | Self::Waited(WaitResult { end: WaitOutcome::Reached(states), .. }) => {
                states
            }
            Self::Waited(_) => &[],
        }
    }

    fn has_opened(&self) -> bool {
        matches!(self, Self::Waited(WaitResult { how: Cost::Opened, .. }))
    }
}

fn parsed_etag(value: HeaderValue) -> Option<ETag> {
    HeaderMap::from_iter([(ETAG, value)]).typed_get()
}
