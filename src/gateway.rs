//! The path of a request, on one screen: read the query → who is it → may it → is it known → join → answer.
//!
//! It brings together what does not know each other, and keeps no state of its own. A hit touches no task, no
//! channel and no lock but moka's own and those of the quotas' shards.

mod overview;

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;

use http::header::{CONTENT_LENGTH, RANGE, TRANSFER_ENCODING};
use http::{HeaderMap, Method, Request, Version};
use http_body::Body as HttpBody;

pub use self::overview::{Asker, Overview};
use crate::access::{AccessLine, Outcome};
use crate::auth::{AuthError, Identity, Keyring, KeyringError};
use crate::body::BoxError;
use crate::cache::{Cache, Hit};
use crate::clock;
use crate::config::{self, Config};
use crate::cors::{Cors, Permission};
use crate::error::{HttpFault, Refusal};
use crate::headers as fields;
use crate::hub::{Hub, Means, Wait};
use crate::limits::{Limits, Who};
use crate::metrics::{Endpoint, Metrics, Word as _};
use crate::model::backoff::Backoff;
use crate::model::breaker::BreakerRules;
use crate::model::clip::{ClipState, Reply};
use crate::model::coalesce::{End, Failure, How, Rules, Settled};
use crate::model::query::{self, Query, WaitQuery};
use crate::model::route::{Form, Goal, Route};
use crate::model::turns::TurnRules;
use crate::passthrough::{Forwarded, Passthrough};
use crate::reply::{self, ClipReply, Source, cache_status, finish};
use crate::request::RequestCtx;
use crate::sse::{Ask, Streams};
use crate::trace::{Answered, RequestSpan, TraceError, Tracer};
use crate::upstream::client::{Client, ClientError};
use crate::upstream::poll::{KeyWord, Poller, key_word};
use crate::wish::Wish;

/// The pauses between a poll's tries.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(200), cap: Duration::from_secs(10) };

/// What a request meets on its way. Clones are the same gateway.
#[derive(Clone)]
pub struct Gateway {
    route: Arc<Route>,
    keyring: Arc<Keyring>,
    limits: Arc<Limits>,
    cache: Arc<Cache>,
    hub: Hub,
    streams: Streams,
    passthrough: Passthrough,
    wait: Arc<ArcSwap<config::Wait>>,
    /// `None`: the upstream answers browsers' questions itself.
    cors: Arc<ArcSwapOption<Cors>>,
    metrics: Arc<Metrics>,
    tracer: Tracer,
}

/// A request on its way, and for whom it counts.
#[derive(Clone, Copy)]
struct Asking<'a> {
    ctx: &'a RequestCtx,
    who: Who,
    span: &'a RequestSpan,
}

/// Why there is no gateway.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
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
    ) -> Result<(Self, impl Future<Output = ()> + Send + use<>), GatewayError> {
        let route = Arc::new(Route::suno());
        let upstream = &config.upstream;
        let cache = Arc::new(Cache::new(config.cache.clone(), route.ladder.clone()));
        let rules = Rules {
            ladder: route.ladder.clone(),
            hold: upstream.poll_timeout,
            linger: config.wait.linger,
            max_clips: upstream.max_clips,
        };
        let turns = TurnRules {
            max_polls: upstream.max_polls,
            interval: match upstream.requests_per_second {
                0 => Duration::ZERO,
                rate => Duration::from_secs(1) / rate,
            },
            retries: upstream.retries,
            backoff: BACKOFF,
            breaker: BreakerRules {
                failures: upstream.breaker_failures,
                cooldown: upstream.breaker_cooldown,
            },
        };
        let limits = Arc::new(Limits::new(&config.limits, config.auth.members()));
        metrics.limited.set_members(config.auth.members().iter().map(|member| member.name.as_str()));
        let poller = Poller::new(Client::new(upstream)?, Arc::clone(&route), upstream, Arc::clone(&metrics));
        let tracer = Tracer::new(&config.telemetry, &upstream.base_url)?;
        let means = Means {
            poller,
            cache: Arc::clone(&cache),
            limits: Arc::clone(&limits),
            metrics: Arc::clone(&metrics),
            tracer: tracer.clone(),
        };
        let (hub, task) = Hub::new(rules, turns, &config.limits, means);
        // Well over a poll's time: long-polls that are not understood go this way too.
        let head_timeout = config.wait.max_timeout.max(2 * upstream.poll_timeout);
        let gateway = Self {
            keyring: Arc::new(Keyring::new(&config.auth, upstream.api_key.as_ref())?),
            limits,
            passthrough: Passthrough::new(
                Client::new(upstream)?,
                config.limits.max_body,
                head_timeout,
                Arc::clone(&metrics),
            ),
            wait: Arc::new(ArcSwap::from_pointee(config.wait.clone())),
            cors: Arc::new(ArcSwapOption::from_pointee(Cors::new(&config.server.cors_origins))),
            streams: Streams::new(hub.clone(), Arc::clone(&cache), Arc::clone(&route)),
            route,
            cache,
            hub,
            metrics,
            tracer,
        };
        Ok((gateway, task))
    }

    /// Takes over, for requests to come, what may change while it runs; [`Config::needs_restart`] names the rest. A
    /// member that is gone is out with its next request, what it has parked is still answered. After an error nothing
    /// has changed.
    pub fn reload(&self, config: &Config) -> Result<(), KeyringError> {
        self.keyring.set(&config.auth, config.upstream.api_key.as_ref())?;
        self.limits.set(&config.limits, config.auth.members());
        self.metrics.limited.set_members(config.auth.members().iter().map(|member| member.name.as_str()));
        self.cache.set_rules(config.cache.clone());
        self.wait.store(Arc::new(config.wait.clone()));
        self.cors.store(Cors::new(&config.server.cors_origins).map(Arc::new));
        Ok(())
    }

    /// Forgets what is of no use any more. To be called about once a minute.
    pub fn tidy(&self) {
        self.limits.forget_idle();
    }

    /// Has every parked wait answered by `until`, as the upstream's own time-out would answer it.
    pub async fn drain(&self, until: Instant) {
        self.hub.drain(until).await;
    }

    /// Begins spans, and has them told at the end.
    pub fn tracer(&self) -> &Tracer {
        &self.tracer
    }

    /// Waits that are parked now.
    pub fn waits(&self) -> usize {
        self.hub.waits()
    }

    /// Answers a request, whatever it is. Cancel safe: dropping the future is the client hanging up, which ends
    /// its wait or its passed-through request and nothing else.
    pub async fn handle<B>(&self, request: Request<B>, ctx: &RequestCtx) -> Forwarded
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let path = request.uri().path().to_owned();
        let span = self.tracer.request(&request, ctx, self.route.form(&path).map(|_| &*path));
        let mut line = AccessLine::new(&request, ctx, self.endpoint(&path), Arc::clone(&self.metrics));
        let identity = self.keyring.identify(request.headers());
        let known = identity.as_ref().ok().and_then(Option::as_ref);
        line.member = known.and_then(|identity| identity.member.clone());
        let who = self.who(known, ctx);
        let asking = Asking { ctx, who, span: &span };
        let permission = self.cors.load().as_ref().map(|cors| cors.permission(&request));
        let is_preflight = permission.as_ref().is_some_and(Permission::is_preflight);
        let mut forwarded = match self.answer(request, asking, identity, is_preflight, &mut line).await {
            Ok(forwarded) => forwarded,
            Err(refusal) => {
                line.outcome = Outcome::Refused(refusal.reason());
                if let Some(limit) = refusal.limit() {
                    self.metrics.limited.refused(limit, line.member.as_deref());
                }
                Forwarded { response: refusal.answer(&ctx.id, &path), tunnel: None }
            }
        };
        if let Some(standing) = self.limits.standing(who) {
            standing.write(forwarded.response.headers_mut());
        }
        if let Some(permission) = permission {
            permission.write(forwarded.response.headers_mut());
        }
        finish(forwarded.response.headers_mut(), &ctx.id);
        line.answered(&forwarded.response);
        span.answered(Answered {
            status: forwarded.response.status().as_u16(),
            outcome: line.outcome.counted().word(),
            reason: line.outcome.reason(),
            member: line.member.as_deref(),
        });
        forwarded
    }

    async fn answer<B>(
        &self,
        request: Request<B>,
        asking: Asking<'_>,
        identity: Result<Option<Identity>, AuthError>,
        is_preflight: bool,
        line: &mut AccessLine,
    ) -> Result<Forwarded, Refusal>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        if fields::has_passed_here(request.headers()) {
            return Err(Refusal::Loop);
        }
        if !is_plain(request.headers()) || !fields::has_one_host(request.version(), request.headers()) {
            return Err(Refusal::Http(HttpFault::Malformed));
        }
        let Asking { ctx, who, span } = asking;
        self.limits.request(who)?;
        if is_preflight {
            line.outcome = Outcome::Preflight;
            return Ok(Forwarded { response: reply::preflight(), tunnel: None });
        }
        let identity = identity?;
        let asked = match self.read(&request) {
            Query::Wait(asked) => asked,
            Query::Bad(bad) => return Err(bad.into()),
            Query::Other => return self.pass(request, asking, identity, line).await,
        };
        let wish = Wish::of(request.headers(), &self.wait.load());
        let Some(identity) = identity else {
            // A wait without a key shares nothing with anybody; the upstream may say what it thinks of it.
            if wish.only_if_cached {
                return Err(Refusal::NotCached);
            }
            return self.pass(request, asking, None, line).await;
        };
        line.asked(&asked, &identity);
        span.asks(asked.asked.len(), identity.domain);
        if wish.events {
            line.outcome = Outcome::Streamed;
            let (id, arrived, links) = (ctx.id.clone(), ctx.arrived, span.links());
            let ask = Ask { asked, identity, who, wish, id, arrived, links };
            let response = self.streams.open(ask, request.headers()).await?;
            return Ok(Forwarded { response, tunnel: None });
        }
        if let Some(hits) = self.known(&asked, &identity, &wish) {
            line.outcome = Outcome::Hit;
            let ttl = hits.iter().map(|hit| hit.ttl).min().unwrap_or_default();
            // Of a multi answer the validator is another, even with one clip: its bytes are more.
            let etag = hits.first().filter(|_| asked.form == Form::Single).map(|hit| hit.etag.clone());
            let states = hits.into_iter().map(|hit| hit.state).collect();
            return Ok(self.clips(request.headers(), &asked, states, Source::Hit { ttl, etag }, &wish));
        }
        if wish.only_if_cached {
            return Err(Refusal::NotCached);
        }
        let wait = Wait {
            identity,
            who,
            form: asked.form,
            clips: asked.clips(),
            goal: asked.goal,
            arrived: ctx.arrived,
            timeout: wish.timeout,
            max_age: wish.max_age,
            keep: wish.keep,
            links: span.links(),
        };
        let settled = self.hub.wait(wait).await?;
        line.outcome = Outcome::Waited(settled.how, settled.end.reason());
        self.settled(request.headers(), &asked, settled, &wish)
    }

    /// Whom the request counts for: a member by its name; a key once the upstream has accepted it, until then
    /// its address, so that made-up keys have no quotas of their own.
    fn who(&self, identity: Option<&Identity>, ctx: &RequestCtx) -> Who {
        match identity {
            Some(Identity { member: Some(name), .. }) => Who::member(name),
            Some(identity) if self.cache.knows(identity.domain) => Who::Key(identity.domain),
            Some(_) | None => ctx.trail.client().into(),
        }
    }

    fn endpoint(&self, path: &str) -> Endpoint {
        match self.route.form(path) {
            Some(Form::Single) => Endpoint::Clip,
            Some(Form::Multi) => Endpoint::Clips,
            None => Endpoint::Other,
        }
    }

    /// A wait is a GET without a body, in the form that asks this server and for the whole of the answer.
    fn read<B>(&self, request: &Request<B>) -> Query {
        let uri = request.uri();
        let names_a_server = request.version() < Version::HTTP_2 && uri.authority().is_some();
        let has_more =
            [CONTENT_LENGTH, TRANSFER_ENCODING, RANGE].iter().any(|f| request.headers().contains_key(f));
        if request.method() != Method::GET || names_a_server || has_more {
            return Query::Other;
        }
        query::read(&self.route, uri.path(), uri.query(), self.wait.load().max_clips)
    }

    /// What is kept of each clip, if that answers the request; in the order asked for.
    fn known(&self, asked: &WaitQuery, identity: &Identity, wish: &Wish) -> Option<Vec<Hit>> {
        let max_age = wish.max_age?;
        let now = clock::now();
        asked
            .asked
            .iter()
            .map(|id| {
                self.cache.get_within(identity.domain, id, max_age, now).filter(|hit| match asked.goal {
                    Goal::Now => true,
                    Goal::Rung(goal) => hit.state.rung >= Some(goal),
                })
            })
            .collect()
    }

    fn settled(
        &self,
        request: &HeaderMap,
        asked: &WaitQuery,
        settled: Settled,
        wish: &Wish,
    ) -> Result<Forwarded, Refusal> {
        let Settled { how, direct, end } = settled;
        match end {
            End::Reached(mut states) | End::TimedOut(mut states) => {
                states.sort_by_key(|state| asked.asked.iter().position(|id| *id == state.id));
                Ok(self.clips(request, asked, states, Source::Poll { how, direct }, wish))
            }
            End::Whole(reply) | End::Refused(reply) | End::Failed(Failure::Answered(reply)) => {
                Ok(whole(&reply, how, direct, wish))
            }
            End::Failed(failure) => Err(Refusal::Poll(failure)),
        }
    }

    fn clips(
        &self,
        request: &HeaderMap,
        asked: &WaitQuery,
        states: Vec<ClipState>,
        source: Source,
        wish: &Wish,
    ) -> Forwarded {
        let reply = ClipReply { form: asked.form, states, source, keep: wish.keep, applied: wish.applied };
        let response = reply.answer(&self.cache, &self.hub.shape(), request);
        Forwarded { response, tunnel: None }
    }

    async fn pass<B>(
        &self,
        request: Request<B>,
        Asking { ctx, who, span }: Asking<'_>,
        identity: Option<Identity>,
        line: &mut AccessLine,
    ) -> Result<Forwarded, Refusal>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let fwd = if request.method() == Method::GET { "bypass" } else { "method" };
        self.limits.call(who)?;
        line.outcome = Outcome::Passed;
        let authorization = identity.as_ref().map(|identity| identity.authorization.clone());
        let mut forwarded = self.passthrough.forward(request, ctx, authorization, span).await?;
        let status = forwarded.response.status();
        if let (Some(KeyWord::Refused), Some(identity)) = (key_word(status), identity) {
            self.cache.refused(identity.domain, clock::now());
        }
        // No fwd-status: the answer's own status is the one that the upstream gave.
        cache_status(forwarded.response.headers_mut(), &format!("fwd={fwd}"));
        Ok(forwarded)
    }
}

/// Whether the body's coding is `chunked` and nothing else: hyper takes other codings before it, which would be lost
/// on the way. (A length beside it hyper drops, and ends the connection: RFC 9112 §6.3.)
fn is_plain(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => true,
        (Some(coding), None) => coding.as_bytes().eq_ignore_ascii_case(b"chunked"),
        (Some(_), Some(_)) => false,
    }
}

/// What the upstream wrote, as it wrote it.
fn whole(reply: &Reply, how: How, direct: bool, wish: &Wish) -> Forwarded {
    Forwarded { response: reply::whole(reply, how, direct, wish.applied), tunnel: None }
}
