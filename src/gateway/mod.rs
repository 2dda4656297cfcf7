//! The path of a request, from its head to its response. Connects the modules that do not know each other.
//!
//! ```text
//!  request
//!    │ kept answers    a repeated hit ──▶ response
//!    │ authenticate    key domain and upstream credential; an error counts once the quota has been checked
//!    │ early checks    loop, Host, DNS rebinding, foreign pages         400 403 421 508
//!    │ limits          quota `requests`                                 429, then 401
//!    │ classify        a wait, or any other request? ───────────────▶ passthrough ──▶ upstream
//!    │ cache           hit ──▶ respond
//!    │ join            the hub parks the wait                           429 503
//!    │ wait            until the hub answers
//!    ▼ respond         common headers, access line, span
//!  response
//! ```
//!
//! A hit needs no task, no channel, and no locks but those of moka and of the quotas' shards.

pub(crate) mod access_log;
mod access_revocation;
mod action;
mod classify;
mod default_wait;
mod early_checks;
pub(crate) mod error;
mod event_stream;
mod fast_hits;
mod first_frame;
mod guarded_body;
mod inspect;
mod kept_head;
mod lifecycle;
mod oversized;
mod passthrough;
pub(crate) mod request_options;
pub(crate) mod response;
mod root_page;
mod wait;

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use futures_util::future::{BoxFuture, Either, Ready, ready};
use headers::HeaderMapExt as _;
use http::header::HOST;
use http::uri::Authority;
use http::{HeaderMap, Request, Response};
use http_body::Body as HttpBody;

use self::access_log::{AccessLog, Disposition};
use self::access_revocation::AccessControl;
use self::classify::{RequestTarget, TargetAction};
use self::default_wait::HeldRequest;
use self::error::GatewayError;
use self::event_stream::{EventStreams, StreamRequest};
use self::fast_hits::{Candidate, GatewayNumber, Known};
use self::guarded_body::{OpenRequest, SpannedBody};
pub(crate) use self::inspect::{GatewayOverview, KeyUsage};
use self::oversized::OversizedTargets;
use self::passthrough::{Passthrough, PassthroughResponse, PassthroughSlot, PassthroughSlots};
use self::request_options::RequestOptions;
use self::response::PresentFields;
use self::wait::{JobRequest, ParkedRequest};
use crate::auth::{AuthError, Identity, KeyOrigin};
use crate::cache::{Cache, KeyProof};
use crate::clock;
use crate::config;
use crate::core::query::Query;
use crate::core::route::{Form, Route, RouteIndex, Routes};
use crate::hub::{Hub, WaitRequest};
use crate::limits::{KnownRemaining, Limits, Subject};
use crate::protocol::allowed_host::HostPattern;
use crate::protocol::body::{Body, BoxError};
use crate::protocol::cookies::strip_set_cookie;
use crate::protocol::cors::{Cors, CorsDecision};
use crate::protocol::forwarded::is_proxied;
use crate::protocol::found_fields::FoundFields;
use crate::protocol::header_links::HeaderLinks;
use crate::protocol::request::RequestCtx;
use crate::telemetry::metrics::{EndpointLabel, Metrics, RouteLabel};
use crate::telemetry::trace::{RequestSpan, ResponseAttributes, Tracer};

/// Answers requests. Clones share one gateway.
#[derive(Clone)]
pub struct Gateway(Arc<GatewayInner>);

struct GatewayInner {
    number: GatewayNumber,
    routes: Arc<Routes>,
    access: Arc<AccessControl>,
    limits: Arc<Limits>,
    cache: Arc<Cache>,
    hub: Hub,
    streams: EventStreams,
    /// `None`: `upstream.base_url` has no host, and no client can be built.
    links: Option<HeaderLinks>,
    passthrough: Passthrough,
    slots: PassthroughSlots,
    oversized: OversizedTargets,
    max_headers: usize,
    wait: ArcSwap<config::WaitConfig>,
    /// `None`: preflights are passed through.
    cors: ArcSwapOption<Cors>,
    /// The admin listener uses this list too.
    allowed_hosts: ArcSwap<Vec<HostPattern>>,
    metrics: Arc<Metrics>,
    tracer: Tracer,
}

/// State of a request that its response and its access line need.
struct RequestState {
    /// The owner of the quotas that the request counts against.
    subject: Subject,
    /// Requests that these quotas allowed after the request was counted.
    remaining: KnownRemaining,
    /// Whether the upstream account is the gateway's, not the client's own.
    is_lent: bool,
    /// The kinds of fields of the client's head.
    found: FoundFields,
    cors: Option<Box<CorsDecision>>,
    log: AccessLog,
    span: RequestSpan,
    /// Route and endpoint of the path.
    endpoint: Option<(RouteIndex, Form)>,
    /// Whether a browser opens `/` as a page.
    is_root_page: bool,
    /// Set if the answer is to be kept, should it be a hit.
    candidate: Option<Box<Candidate>>,
}

enum Decision {
    Respond(Response<Body>),
    /// Send the request to the upstream.
    Pass(Option<Identity>, PassthroughSlot),
    /// Wait for the hub.
    Park(ParkedRequest),
    /// Wait for another state than the current one.
    Hold(Box<HeldRequest>),
    Stream(Box<StreamRequest>),
}

impl Gateway {
    /// Answers a request. A hit or an error is ready at once.
    ///
    /// Cancel safe: dropping the future is the client's disconnect. It ends the client's wait or passed-through request
    /// and nothing else (P6).
    pub fn handle<B>(
        &self,
        request: Request<B>,
        mut ctx: RequestCtx,
    ) -> impl Future<Output = PassthroughResponse> + Send + use<B>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let found = self.0.routes.endpoint(request.uri().path());
        let endpoint = found.map(|(index, found)| (index, found.form));
        // Only a request of a route can be a hit.
        let known = match endpoint {
            Some(_) => self.kept_answer(&request, &mut ctx),
            None => {
                self.clear_outdated_answers();
                Known::Nothing
            }
        };
        match known {
            Known::Answer(response) => Either::Left(ready(response.into())),
            Known::Candidate(candidate) => self.handle_unknown(request, ctx, endpoint, Some(candidate)),
            Known::Nothing => self.handle_unknown(request, ctx, endpoint, None),
        }
    }

    /// Answers a request of which no answer was kept.
    fn handle_unknown<B>(
        &self,
        request: Request<B>,
        ctx: RequestCtx,
        endpoint: Option<(RouteIndex, Form)>,
        candidate: Option<Box<Candidate>>,
    ) -> Either<Ready<PassthroughResponse>, BoxFuture<'static, PassthroughResponse>>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let identity = self.0.access.authenticator.identify(request.headers());
        let known = identity.as_ref().ok().and_then(Option::as_ref);
        let proof = known.and_then(|identity| self.0.cache.proof(identity.domain));
        let mut state = self.request_state(&request, ctx, endpoint, known, proof);
        state.candidate = candidate;
        let decided = self.decide(&request, identity, proof, &mut state);
        if !matches!(decided, Ok(TargetAction::Now(Decision::Respond(_)))) {
            // A parked wait does not keep it.
            state.candidate = None;
        }
        match decided {
            Ok(TargetAction::Now(decision)) => self.execute(Ok(decision), request, state),
            Ok(TargetAction::AfterBody(target)) => {
                Either::Right(self.clone().decide_after_body(request, target, state))
            }
            Err(error) => self.execute(Err(error), request, state),
        }
    }

    /// Takes a request through all steps that need no waiting.
    fn decide<B: HttpBody>(
        &self,
        request: &Request<B>,
        identity: Result<Option<Identity>, AuthError>,
        proof: Option<KeyProof>,
        state: &mut RequestState,
    ) -> Result<TargetAction, GatewayError> {
        self.check_early(request, state)?;
        state.remaining.requests = self.0.limits.check_request(state.subject)?;
        if state.cors.as_ref().is_some_and(|cors| cors.is_preflight()) {
            state.log.disposition = Disposition::Preflight;
            return Ok(TargetAction::Now(Decision::Respond(response::preflight_response())));
        }
        if classify::echoes_request(request.method()) {
            return Err(GatewayError::MethodNotAllowed);
        }
        let identity = identity?;
        if classify::ends_here(request) {
            state.log.disposition = Disposition::Preflight;
            return Ok(TargetAction::Now(Decision::Respond(response::max_forwards_response())));
        }
        let target = self.classify(request, state.endpoint, state.found.has_range);
        if target.query != Query::Other && !request.body().is_end_stream() {
            return Ok(TargetAction::AfterBody(target));
        }
        let now = state.log.ctx().arrived;
        self.decide_target(request.headers(), target, identity, proof, now, state).map(TargetAction::Now)
    }

    /// Decides a request without a body: cache, then hub.
    fn decide_target(
        &self,
        headers: &HeaderMap,
        target: RequestTarget,
        identity: Option<Identity>,
        proof: Option<KeyProof>,
        now: Instant,
        state: &mut RequestState,
    ) -> Result<Decision, GatewayError> {
        let RequestTarget { query, last_event_id, host } = target;
        let mut query = match query {
            Query::Wait(query) => query,
            Query::Bad(bad) => return Err(bad.into()),
            Query::Other => return self.start_passthrough(state, identity),
        };
        let mut options = RequestOptions::from_headers(headers, &self.0.wait.load());
        let route = self.0.routes.get(query.route);
        let default_wait = match route.is_built_in {
            true => None,
            false => options.apply_route(route, headers, &self.0.wait.load(), &mut query),
        };
        let Some(identity) = identity else {
            // Without a key there is no key domain, so the wait cannot share. The upstream decides about it (P11).
            return match options.only_if_cached {
                true => Err(GatewayError::NotCached),
                false => self.start_passthrough(state, None),
            };
        };
        state.log.record_wait(&query, &identity);
        state.span.set_wait(query.asked.len(), identity.domain);
        if options.events {
            state.log.disposition = Disposition::EventStream;
            let stream = StreamRequest::new(headers, last_event_id, query, options, identity, state);
            return Ok(Decision::Stream(Box::new(stream)));
        }
        let domain = identity.domain;
        let origin = host.and_then(|host| state.client_origin(Some(&host), is_proxied(headers)));
        let origin = origin.map(String::into_boxed_str);
        let request =
            JobRequest { domain, query, options, condition: headers.typed_get().map(Box::new), origin };
        let cached = self.lookup_cached(&request.query, proof, domain, &request.options, now);
        if let Some(hold) = default_wait.filter(|_| !request.options.only_if_cached) {
            if cached.is_none() && self.0.oversized.contains(&request) {
                return self.start_passthrough(state, Some(identity));
            }
            let until = state.log.ctx().arrived + hold;
            let wait = wait_request(&request, identity, state);
            return Ok(Decision::Hold(Box::new(HeldRequest { request, until, cached, wait })));
        }
        if let Some((states, origin)) = cached {
            state.log.disposition = Disposition::Hit;
            if let (Some(candidate), Form::Single) = (&mut state.candidate, request.query.form) {
                candidate.set_origin(&origin);
            }
            return Ok(Decision::Respond(self.job_response(&request, states, origin, now)));
        }
        if request.options.only_if_cached {
            return Err(GatewayError::NotCached);
        }
        if self.0.oversized.contains(&request) {
            return self.start_passthrough(state, Some(identity));
        }
        let handle = self.0.hub.join(wait_request(&request, identity, state))?;
        Ok(Decision::Park(ParkedRequest { handle, request }))
    }

    /// Carries out a decision. Futures are boxed so that a hit does not move their state.
    fn execute<B>(
        &self,
        decision: Result<Decision, GatewayError>,
        request: Request<B>,
        state: Box<RequestState>,
    ) -> Either<Ready<PassthroughResponse>, BoxFuture<'static, PassthroughResponse>>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        match decision {
            Ok(Decision::Respond(response)) => Either::Left(ready(self.respond(state, Ok(response.into())))),
            Err(error) => Either::Left(ready(self.respond(state, Err(error)))),
            Ok(Decision::Park(parked)) => {
                let host = request.headers().get(HOST).cloned().map(Box::new);
                let plain = parked.request.is_plain().then(|| Box::new(request.map(|_| Body::empty())));
                Either::Right(self.clone().wait(parked, plain, host, state))
            }
            Ok(Decision::Hold(held)) => {
                let plain = Box::new(request.map(|_| Body::empty()));
                Either::Right(self.clone().hold(*held, plain, state))
            }
            Ok(Decision::Stream(stream)) => {
                let access = self.client_access(request.headers(), Some(stream.identity()), &state);
                let open = OpenRequest::new(access, None);
                Either::Right(self.clone().stream(*stream, open, state))
            }
            Ok(Decision::Pass(identity, slot)) => {
                Either::Right(self.clone().pass_through(request, identity, slot, state))
            }
        }
    }

    /// Adds the headers that all responses have, and completes the response.
    fn respond(
        &self,
        mut state: Box<RequestState>,
        result: Result<PassthroughResponse, GatewayError>,
    ) -> PassthroughResponse {
        let is_fresh = state.is_fresh(clock::now());
        let RequestState { subject, remaining, is_lent, cors, log, is_root_page, .. } = &mut *state;
        let mut passed = result.unwrap_or_else(|error| {
            log.disposition = Disposition::Rejected(error.reason());
            if let Some(limit) = error.limit() {
                self.0.metrics.rate_limited.record(limit, log.member.as_deref());
            }
            error.to_response(&log.ctx().id, log.path()).into()
        });
        if *is_root_page {
            passed.response = root_page::replace_error(passed.response);
        }
        let headers = passed.response.headers_mut();
        if *is_lent {
            strip_set_cookie(headers);
        }
        let present = PresentFields::of(headers);
        let remaining = if is_fresh { *remaining } else { KnownRemaining::default() };
        if !present.has_quotas
            && let Some(quotas) = self.0.limits.quota_headers(*subject, remaining)
        {
            quotas.write(headers);
        }
        if let Some(cors) = cors.take() {
            cors.write(headers);
        }
        present.add_common(headers, &log.ctx().id);
        self.complete(state, passed, present.has_id)
    }

    /// Completes the access line and the span of a response. `has_id`: it may have another id than that of the gateway.
    fn complete(
        &self,
        mut state: Box<RequestState>,
        mut passed: PassthroughResponse,
        has_id: bool,
    ) -> PassthroughResponse {
        let RequestState { subject, log, span, candidate, .. } = &mut *state;
        log.record_response(&passed.response, has_id);
        span.answered(ResponseAttributes {
            status: passed.response.status().as_u16(),
            outcome: log.disposition.outcome().into(),
            reason: log.disposition.reason(),
            member: log.member.as_deref(),
        });
        if let Some(candidate) = candidate.take() {
            self.keep_answer(*candidate, log, *subject, &passed.response);
        }
        if span.is_recorded() {
            let span = std::mem::take(span);
            passed.response = passed.response.map(|body| SpannedBody::wrap(body, span));
        }
        passed
    }

    fn request_state<B>(
        &self,
        request: &Request<B>,
        ctx: RequestCtx,
        endpoint: Option<(RouteIndex, Form)>,
        identity: Option<&Identity>,
        proof: Option<KeyProof>,
    ) -> Box<RequestState> {
        let (label, template) = match endpoint {
            Some((index, form)) => {
                let route = self.0.routes.get(index);
                (route_label(index, route, form), Some(route.template(form)))
            }
            None => (EndpointLabel::Other.into(), None),
        };
        let subject = quota_subject(identity, proof, &ctx);
        let span = self.0.tracer.request(request, &ctx, template);
        let cors = self.0.cors.load().as_ref().map(|cors| Box::new(cors.decide(request)));
        let mut log = AccessLog::new(request, ctx, label, Arc::clone(&self.0.metrics));
        log.member = identity.and_then(|identity| identity.member.clone());
        let is_lent = identity.is_some_and(|identity| identity.origin == KeyOrigin::Gateway);
        let is_root_page = root_page::is_root_page(request);
        let (remaining, candidate) = (KnownRemaining::default(), None);
        // Boxed: it is moved from step to step.
        Box::new(RequestState {
            subject,
            remaining,
            is_lent,
            found: FoundFields::of(request.headers()),
            cors,
            log,
            span,
            endpoint,
            is_root_page,
            candidate,
        })
    }
}

impl RequestState {
    /// Returns whether `remaining` is recent.
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.log.ctx().arrived) < FRESH_FOR
    }

    /// Returns the origin under which the client reaches the gateway.
    fn client_origin(&self, host: Option<&Authority>, is_proxied: bool) -> Option<String> {
        let ctx = self.log.ctx();
        ctx.forwarded.client_origin(ctx.is_tls, is_proxied, host)
    }
}

fn wait_request(request: &JobRequest, identity: Identity, state: &RequestState) -> WaitRequest {
    let JobRequest { query, options, .. } = request;
    WaitRequest {
        identity,
        quota_subject: state.subject,
        form: query.form,
        jobs: query.jobs(),
        goal: query.goal,
        arrived: state.log.ctx().arrived,
        timeout: options.timeout,
        max_age: options.max_age,
        may_store: options.keep,
        is_patient: false,
        newer_than: None,
        links: state.span.links(),
    }
}

/// Returns the owner of the quotas: the member, else the key if it is the gateway's own or the upstream has accepted
/// it, else the client's address. So invented keys have no quotas of their own, and an upstream without keys has no quota
/// of all clients.
fn quota_subject(identity: Option<&Identity>, proof: Option<KeyProof>, ctx: &RequestCtx) -> Subject {
    match (identity, proof) {
        (Some(Identity { member: Some(name), .. }), _) => Subject::member(name),
        (Some(identity @ Identity { origin: KeyOrigin::Gateway, .. }), _) => {
            Subject::Key(identity.quota_domain())
        }
        (Some(Identity { origin: KeyOrigin::Client, domain, .. }), Some(_)) => Subject::Key(*domain),
        (Some(Identity { origin: KeyOrigin::Client | KeyOrigin::Open, .. }) | None, _) => {
            ctx.forwarded.client_ip().into()
        }
    }
}

/// Time in which [`KnownRemaining`] is used. For an answer that takes longer the quotas are looked up again.
const FRESH_FOR: Duration = Duration::from_millis(100);

fn route_label(index: RouteIndex, route: &Route, form: Form) -> RouteLabel {
    match (route.is_built_in, form) {
        (false, _) => RouteLabel::Configured(index),
        (true, Form::Single) => EndpointLabel::Job.into(),
        (true, Form::Multi) => EndpointLabel::Jobs.into(),
    }
}
