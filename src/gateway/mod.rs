//! The path of a request, on one screen: read the query → who is it → may it → is it known → join → answer.
//!
//! It brings together what does not know each other, and keeps no state of its own. A hit touches no task, no
//! channel and no lock but moka's own and those of the quotas' shards.

pub(crate) mod access_log;
mod access_withdrawal;
mod early_checks;
pub(crate) mod error;
mod event_stream;
mod first_frame;
mod held_body;
mod host_rule;
mod inspect;
mod pass;
mod passthrough;
pub(crate) mod request_options;
pub(crate) mod response;
mod target;

use std::sync::Arc;
use std::time::Instant;

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use futures_util::future::{BoxFuture, Either, FutureExt as _, Ready, ready};
use headers::{HeaderMapExt as _, IfNoneMatch};
use http::header::HOST;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Body as HttpBody;
use tokio::sync::watch;

use self::access_log::{AccessLog, Disposition};
use self::access_withdrawal::{Access, Reload};
use self::error::GatewayError;
use self::event_stream::{EventStreams, LAST_EVENT_ID, StreamRequest};
use self::held_body::{Held, Withdrawal};
pub(crate) use self::inspect::{Asker, Overview};
use self::passthrough::{Passthrough, PassthroughResponse, Slot, Slots};
use self::request_options::RequestOptions;
use self::response::{JobResponse, ResponseOrigin, add_common_headers};
use self::target::{Target, TargetAction};
use crate::auth::{AuthError, Authenticator, Identity, KeyringError};
use crate::cache::{Cache, KeyProof};
use crate::clock;
use crate::config::{self, Config};
use crate::core::coalescer::{Failure, WaitOutcome, WaitResult};
use crate::core::job::{JobState, KeyDomain};
use crate::core::query::{Query, WaitQuery};
use crate::core::route::{Form, Goal, Route};
use crate::hub::{Hub, HubDeps, WaitHandle, WaitRequest};
use crate::limits::{Limits, Subject};
use crate::protocol::allowed_host::HostPattern;
use crate::protocol::body::{Body, BoxError};
use crate::protocol::cors::{Cors, CorsDecision};
use crate::protocol::headers as fields;
use crate::protocol::request::RequestCtx;
use crate::telemetry::metrics::{EndpointLabel, Metrics};
use crate::telemetry::trace::{RequestSpan, ResponseAttributes, TraceError, Tracer};
use crate::upstream::client::{Client, ClientError};
use crate::upstream::poll::Poller;

/// What a request meets on its way. Clones are the same gateway.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

struct Inner {
    route: Arc<Route>,
    keyring: Arc<Authenticator>,
    limits: Arc<Limits>,
    cache: Arc<Cache>,
    hub: Hub,
    streams: EventStreams,
    passthrough: Passthrough,
    slots: Slots,
    wait: ArcSwap<config::Wait>,
    /// `None`: the upstream answers browsers' questions itself.
    cors: ArcSwapOption<Cors>,
    /// The admin listener goes by it too.
    allowed_hosts: ArcSwap<Vec<HostPattern>>,
    reloads: watch::Sender<Reload>,
    metrics: Arc<Metrics>,
    tracer: Tracer,
}

/// A request on its way: what its answer and its line in the log are made of, beside what it asks for.
struct RequestState {
    /// For whom it counts.
    subject: Subject,
    /// That its key is one.
    proof: Option<KeyProof>,
    /// Whether the upstream account is the gateway's, not the client's own.
    is_lent: bool,
    permission: Option<Box<CorsDecision>>,
    line: AccessLog,
    span: RequestSpan,
}

/// What is to be done with a request.
enum Decision {
    /// Nothing more.
    Answer(Response<Body>),
    /// The upstream answers it, whoever asks.
    Pass(Option<Identity>, Slot),
    /// A wait is parked.
    Park(ParkedRequest),
    /// A stream begins.
    Stream(Box<StreamRequest>),
}

/// A parked wait, and what its answer will be made of.
struct ParkedRequest {
    parked: WaitHandle,
    domain: KeyDomain,
    asked: WaitQuery,
    wish: RequestOptions,
    condition: Option<IfNoneMatch>,
}

/// Why there is no gateway.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// It has no keys.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// It cannot reach the upstream at all.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// It cannot tell what it does, and should.
    #[error(transparent)]
    Trace(#[from] TraceError),
}

impl Gateway {
    /// A gateway, and the hub's task, which has to be run and ends after the last clone is gone.
    pub fn new(
        config: &Config,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, impl Future<Output = ()> + Send + use<>), BuildError> {
        let route = Arc::new(Route::suno());
        let upstream = &config.upstream;
        let cache = Arc::new(Cache::new(config.cache.clone(), route.ladder.clone()));
        let limits = Arc::new(Limits::new(&config.limits, config.auth.members()));
        metrics.rate_limited.set_members(config.auth.members().iter().map(|member| member.name.as_str()));
        let poller =
            Poller::new(Client::for_polls(upstream)?, Arc::clone(&route), upstream, Arc::clone(&metrics));
        let tracer = Tracer::new(&config.telemetry, &upstream.base_url)?;
        let means = HubDeps {
            poller,
            cache: Arc::clone(&cache),
            limits: Arc::clone(&limits),
            metrics: Arc::clone(&metrics),
            tracer: tracer.clone(),
        };
        let (hub, task) = Hub::new(config, &route.ladder, means);
        // Well over a poll's time: long-polls that are not understood go this way too.
        let head_timeout = config.wait.max_timeout.max(2 * upstream.poll_timeout);
        let parts = Inner {
            keyring: Arc::new(Authenticator::new(&config.auth, upstream.api_key.as_ref())?),
            limits,
            passthrough: Passthrough::new(
                Client::new(upstream)?,
                config.limits.max_body,
                head_timeout,
                Arc::clone(&metrics),
            ),
            slots: Slots::new(config.limits.max_passthrough, config.limits.max_passthrough_per_key),
            wait: ArcSwap::from_pointee(config.wait.clone()),
            cors: ArcSwapOption::from_pointee(Cors::new(&config.server.cors_origins)),
            allowed_hosts: ArcSwap::from_pointee(config.server.allowed_hosts.clone()),
            reloads: watch::Sender::new(Reload::of(config)),
            streams: EventStreams::new(hub.clone(), Arc::clone(&cache), Arc::clone(&route)),
            route,
            cache,
            hub,
            metrics,
            tracer,
        };
        Ok((Self(Arc::new(parts)), task))
    }

    /// Takes over, for requests to come, what may change while it runs; [`Config::needs_restart`] names the rest. A
    /// member that is gone is out with its next request; what it has parked is still answered, and what else it has
    /// open ends within `wait.max_timeout`. After an error nothing has changed.
    pub fn reload(&self, config: &Config) -> Result<(), KeyringError> {
        self.0.keyring.set(&config.auth, config.upstream.api_key.as_ref())?;
        self.0.limits.set(&config.limits, config.auth.members());
        self.0
            .metrics
            .rate_limited
            .set_members(config.auth.members().iter().map(|member| member.name.as_str()));
        self.0.cache.reconfigure(config.cache.clone());
        self.0.wait.store(Arc::new(config.wait.clone()));
        self.0.cors.store(Cors::new(&config.server.cors_origins).map(Arc::new));
        self.0.allowed_hosts.store(Arc::new(config.server.allowed_hosts.clone()));
        // Last: whoever is told looks at the keyring.
        self.0.reloads.send_replace(Reload::of(config));
        Ok(())
    }

    /// Forgets what is of no use any more. To be called about once a minute.
    pub fn purge_idle(&self) {
        self.0.limits.forget_idle();
    }

    /// Has every parked wait answered by `until`, as the upstream's own time-out would answer it.
    pub async fn drain(&self, until: Instant) {
        self.0.hub.drain(until).await;
    }

    /// Begins spans, and has them told at the end.
    pub fn tracer(&self) -> &Tracer {
        &self.0.tracer
    }

    /// Waits that are parked now.
    pub fn waits(&self) -> usize {
        self.0.hub.waits()
    }

    /// Requests that are passed through now, tunnels included.
    pub fn passed_through(&self) -> usize {
        self.0.slots.taken()
    }

    /// Answers a request, whatever it is: at once where nothing has to be waited for. Cancel safe: dropping the future
    /// is the client hanging up, which ends its wait or its passed-through request and nothing else.
    pub fn handle<B>(
        &self,
        request: Request<B>,
        ctx: RequestCtx,
    ) -> impl Future<Output = PassthroughResponse> + Send + use<B>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let identity = self.0.keyring.identify(request.headers());
        let mut asking = self.asking(&request, ctx, identity.as_ref().ok().and_then(Option::as_ref));
        match self.decide(&request, identity, &mut asking) {
            Ok(TargetAction::Now(step)) => self.follow(Ok(step), request, asking),
            Ok(TargetAction::AfterBody(target)) => {
                Either::Right(self.clone().read_body(request, target, asking))
            }
            Err(refusal) => self.follow(Err(refusal), request, asking),
        }
    }

    fn follow<B>(
        &self,
        step: Result<Decision, GatewayError>,
        request: Request<B>,
        asking: RequestState,
    ) -> Either<Ready<PassthroughResponse>, BoxFuture<'static, PassthroughResponse>>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        // Boxed: what only some need is not moved about with every hit.
        match step {
            Ok(Decision::Answer(response)) => Either::Left(ready(self.finish(asking, Ok(response.into())))),
            Err(refusal) => Either::Left(ready(self.finish(asking, Err(refusal)))),
            Ok(Decision::Park(waiting)) => {
                Either::Right(self.clone().wait(waiting, request.headers().get(HOST).cloned(), asking))
            }
            Ok(Decision::Stream(ask)) => {
                let withdrawal = self.withdrawal(request.headers(), &asking);
                Either::Right(self.clone().stream(*ask, withdrawal, asking))
            }
            Ok(Decision::Pass(identity, slot)) => {
                Either::Right(self.clone().pass(request, identity, slot, asking))
            }
        }
    }

    fn asking<B>(&self, request: &Request<B>, ctx: RequestCtx, identity: Option<&Identity>) -> RequestState {
        let path = request.uri().path();
        let form = self.0.route.form(path);
        let proof = identity.and_then(|identity| self.0.cache.proof(identity.domain));
        let (who, span) =
            (quota_subject(identity, proof, &ctx), self.0.tracer.request(request, &ctx, form.map(|_| path)));
        let permission = self.0.cors.load().as_ref().map(|cors| Box::new(cors.permission(request)));
        let mut line = AccessLog::new(request, ctx, endpoint(form), Arc::clone(&self.0.metrics));
        line.member = identity.and_then(|identity| identity.member.clone());
        let is_lent = line.member.is_some() || self.0.keyring.injects_key();
        RequestState { subject: who, proof, is_lent, permission, line, span }
    }

    /// The path of a request, up to where something has to be waited for.
    fn decide<B: HttpBody>(
        &self,
        request: &Request<B>,
        identity: Result<Option<Identity>, AuthError>,
        asking: &mut RequestState,
    ) -> Result<TargetAction, GatewayError> {
        self.refuse_early(request, asking)?;
        let RequestState { subject: who, permission, line, .. } = asking;
        self.0.limits.request(*who)?;
        if permission.as_ref().is_some_and(|permission| permission.is_preflight()) {
            line.outcome = Disposition::Preflight;
            return Ok(TargetAction::Now(Decision::Answer(response::preflight())));
        }
        if target::is_echo(request.method()) {
            return Err(GatewayError::Method);
        }
        let identity = identity?;
        if target::ends_here(request) {
            line.outcome = Disposition::Preflight;
            return Ok(TargetAction::Now(Decision::Answer(response::options())));
        }
        let target = self.read(request);
        if target.query != Query::Other && !request.body().is_end_stream() {
            return Ok(TargetAction::AfterBody(target));
        }
        self.decide_target(request.headers(), target, identity, asking).map(TargetAction::Now)
    }

    /// The same for a request without a body, once its head has passed.
    fn decide_target(
        &self,
        request: &HeaderMap,
        target: Target,
        identity: Option<Identity>,
        asking: &mut RequestState,
    ) -> Result<Decision, GatewayError> {
        let RequestState { subject: who, proof, line, span, .. } = asking;
        let asked = match target.query {
            Query::Wait(asked) => asked,
            Query::Bad(bad) => return Err(bad.into()),
            Query::Other => return self.may_pass(*who, identity),
        };
        let wish = RequestOptions::of(request, &self.0.wait.load());
        let Some(identity) = identity else {
            // A wait without a key shares nothing with anybody; the upstream may say what it thinks of it.
            return if wish.only_if_cached {
                Err(GatewayError::NotCached)
            } else {
                self.may_pass(*who, None)
            };
        };
        line.asked(&asked, &identity);
        span.set_wait(asked.asked.len(), identity.domain);
        let (arrived, links, who) = (line.ctx().arrived, span.links(), *who);
        if wish.events {
            line.outcome = Disposition::Streamed;
            let id = line.ctx().id.clone();
            let last_event_id = match request.get(LAST_EVENT_ID) {
                Some(field) => field.to_str().ok().map(str::to_owned),
                None => target.last_event_id,
            };
            let ask =
                StreamRequest { asked, identity, subject: who, wish, last_event_id, id, arrived, links };
            return Ok(Decision::Stream(Box::new(ask)));
        }
        let condition = request.typed_get();
        if let Some((states, source)) = self.lookup_cached(&asked, *proof, &identity, &wish) {
            line.outcome = Disposition::Hit;
            return Ok(Decision::Answer(self.jobs(
                identity.domain,
                &asked,
                states,
                source,
                &wish,
                condition,
            )));
        }
        if wish.only_if_cached {
            return Err(GatewayError::NotCached);
        }
        let domain = identity.domain;
        let parked = self.0.hub.join(WaitRequest {
            identity,
            who,
            form: asked.form,
            jobs: asked.jobs(),
            goal: asked.goal,
            arrived,
            timeout: wish.timeout,
            max_age: wish.max_age,
            keep: wish.keep,
            is_patient: false,
            links,
        })?;
        Ok(Decision::Park(ParkedRequest { parked, domain, asked, wish, condition }))
    }

    /// What is kept of each job, if that answers the request; in the order asked for.
    fn lookup_cached(
        &self,
        asked: &WaitQuery,
        proof: Option<KeyProof>,
        identity: &Identity,
        wish: &RequestOptions,
    ) -> Option<(Vec<JobState>, ResponseOrigin)> {
        let (max_age, proof, now) = (wish.max_age?, proof?, clock::now());
        let hits = asked.asked.iter().map(|id| {
            let hit = self.0.cache.get_proven(proof, identity.domain, id, now)?;
            let is_there = match asked.goal {
                Goal::Now => true,
                Goal::Rung(goal) => hit.kept.state.rung >= Some(goal),
            };
            (is_there && hit.is_within(max_age, now)).then_some(hit)
        });
        let hits = hits.collect::<Option<Vec<_>>>()?;
        let ttl = hits.iter().map(|hit| hit.ttl).min()?;
        let first = Arc::clone(&hits.first()?.kept);
        Some((
            hits.into_iter().map(|hit| hit.kept.state.clone()).collect(),
            ResponseOrigin::Hit { ttl, first },
        ))
    }

    /// `host` is a part of the request's head. It is dropped when hyper has turned to what may come after it: only then
    /// the buffer that the head was read into, the most of what a parked wait would cost, goes with it.
    fn wait(
        self,
        mut waiting: ParkedRequest,
        host: Option<HeaderValue>,
        mut asking: RequestState,
    ) -> BoxFuture<'static, PassthroughResponse> {
        Box::pin(async move {
            drop(host);
            let settled = (&mut waiting.parked).await;
            let ParkedRequest { domain, asked, wish, condition, .. } = waiting;
            let answer = settled.map_err(GatewayError::from).and_then(|WaitResult { how, direct, end }| {
                asking.line.outcome = Disposition::Waited(how, end.reason());
                match end {
                    WaitOutcome::Reached(mut states) | WaitOutcome::TimedOut(mut states) => {
                        states.sort_by_key(|state| asked.asked.iter().position(|id| *id == state.id));
                        let source = ResponseOrigin::Poll { how, direct };
                        Ok(self.jobs(domain, &asked, states, source, &wish, condition).into())
                    }
                    WaitOutcome::Unsplit(reply)
                    | WaitOutcome::Refused(reply)
                    | WaitOutcome::Failed(
                        Failure::UpstreamError(reply) | Failure::InvalidResponse(Some(reply)),
                    ) => Ok(response::unsplit_response(&reply, how, direct, wish.applied).into()),
                    WaitOutcome::Failed(failure) => Err(GatewayError::Poll(failure)),
                }
            });
            self.finish(asking, answer)
        })
    }

    fn jobs(
        &self,
        domain: KeyDomain,
        asked: &WaitQuery,
        states: Vec<JobState>,
        source: ResponseOrigin,
        wish: &RequestOptions,
        condition: Option<IfNoneMatch>,
    ) -> Response<Body> {
        let reply = JobResponse { form: asked.form, states, source, keep: wish.keep, applied: wish.applied };
        let shape = || self.0.cache.shape(domain);
        reply.answer(&self.0.cache, shape, condition)
    }

    fn stream(
        self,
        ask: StreamRequest,
        withdrawal: Withdrawal,
        asking: RequestState,
    ) -> BoxFuture<'static, PassthroughResponse> {
        Box::pin(async move {
            let answer = self.0.streams.open(ask).await;
            let guarded = |body| Body::stream(Held { body, withdrawal, _slot: None });
            self.finish(asking, answer.map(|response| response.map(guarded).into()))
        })
    }

    /// Watches whether the client would still be let in.
    fn withdrawal(&self, request: &HeaderMap, asking: &RequestState) -> Withdrawal {
        let member = asking.line.member.clone();
        Access::new(&self.0.keyring, &self.0.reloads, request, member).withdrawal().boxed().shared()
    }

    /// Adds what every answer has, and says in the log and the metrics which it is.
    fn finish(
        &self,
        asking: RequestState,
        answer: Result<PassthroughResponse, GatewayError>,
    ) -> PassthroughResponse {
        let RequestState { subject: who, is_lent, permission, mut line, span, .. } = asking;
        let mut forwarded = answer.unwrap_or_else(|refusal| {
            line.outcome = Disposition::Refused(refusal.reason());
            if let Some(limit) = refusal.limit() {
                self.0.metrics.rate_limited.record(limit, line.member.as_deref());
            }
            refusal.answer(&line.ctx().id, line.path()).into()
        });
        let headers = forwarded.response.headers_mut();
        if is_lent {
            fields::strip_set_cookie(headers);
        }
        if let Some(standing) = self.0.limits.standing(who) {
            standing.write(headers);
        }
        if let Some(permission) = permission {
            permission.write(headers);
        }
        add_common_headers(headers, &line.ctx().id);
        line.answered(&forwarded.response);
        span.finish(ResponseAttributes {
            status: forwarded.response.status().as_u16(),
            outcome: line.outcome.counted().into_str(),
            reason: line.outcome.reason(),
            member: line.member.as_deref(),
        });
        forwarded
    }
}

/// Whom the request counts for: a member by its name; the gateway's own key always, any other once the upstream has
/// accepted it, until then its address, so that made-up keys have no quotas of their own.
fn quota_subject(identity: Option<&Identity>, proof: Option<KeyProof>, ctx: &RequestCtx) -> Subject {
    match (identity, proof) {
        (Some(Identity { member: Some(name), .. }), _) => Subject::member(name),
        (Some(identity), proof) if identity.is_lent || proof.is_some() => Subject::Key(identity.domain),
        (Some(_) | None, _) => ctx.trail.client().into(),
    }
}

fn endpoint(form: Option<Form>) -> EndpointLabel {
    match form {
        Some(Form::Single) => EndpointLabel::Job,
        Some(Form::Multi) => EndpointLabel::Jobs,
        None => EndpointLabel::Other,
    }
}
