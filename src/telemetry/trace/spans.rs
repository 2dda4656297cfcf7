//! The two kinds of spans: a client's request, and a poll.

use std::sync::Arc;

use http::{HeaderMap, Method, Request, Uri, Version};
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, Tracer as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SdkTracer, Span};
use parking_lot::Mutex;

use super::context::TraceContext;
use crate::core::job::KeyDomain;
use crate::protocol::host::requested_host;
use crate::protocol::request::RequestCtx;

/// The longest path that a span shows, in bytes.
const MAX_PATH: usize = 256;
/// The most polls that a span links to; the SDK has no room for more.
const MAX_LINKS: usize = 128;

const OUTCOME: &str = "clipgate.outcome";
const REASON: &str = "clipgate.reason";
const STATUS: &str = "http.response.status_code";
const ERROR: &str = "error.type";

/// A client's request. Without tracing it is nothing. Dropping it ends it: its client has left.
#[derive(Debug, Default)]
pub struct RequestSpan(Option<Arc<Mutex<OpenSpan>>>);

#[derive(Debug)]
struct OpenSpan {
    span: Span,
    linked: Vec<SpanId>,
}

/// How a request was answered.
#[derive(Clone, Copy, Debug)]
pub struct ResponseAttributes<'a> {
    /// The answer's status.
    pub status: u16,
    /// What the log calls it.
    pub outcome: &'static str,
    /// And why.
    pub reason: Option<&'static str>,
    /// Which member of the team asked.
    pub member: Option<&'a str>,
}

impl RequestSpan {
    pub(super) fn new<B>(
        tracer: &SdkTracer,
        request: &Request<B>,
        ctx: &RequestCtx,
        route: Option<&str>,
    ) -> Self {
        let parent = match TraceContext::of(request.headers()) {
            Some(TraceContext(parent)) => Context::new().with_remote_span_context(parent),
            None => Context::new(),
        };
        let method = known(request.method());
        let name = match route {
            Some(route) => format!("{method} {route}"),
            None => (if method == OTHER { "HTTP" } else { method }).to_owned(),
        };
        let builder = SpanBuilder::from_name(name).with_kind(SpanKind::Server);
        let mut span = tracer.build_with_context(builder, &parent);
        if span.is_recording() {
            span.set_attributes(asked(request, ctx, route));
        }
        Self(Some(Arc::new(Mutex::new(OpenSpan { span, linked: Vec::new() }))))
    }

    /// It is a wait for so many jobs, by this key.
    pub fn asks(&self, jobs: usize, key: KeyDomain) {
        if let Some(open) = &self.0 {
            let mut open = open.lock();
            open.span.set_attribute(KeyValue::new("clipgate.jobs", jobs as i64));
            open.span.set_attribute(KeyValue::new("clipgate.key", key.to_string()));
        }
    }

    /// Whereby others link it to their polls.
    pub fn links(&self) -> Links {
        Links(self.0.clone())
    }

    /// Makes the fields of a request that is passed on name this span as its cause. Without tracing they stay as they
    /// are, unless there is no trace in them.
    pub fn write(&self, fields: &mut HeaderMap) {
        let own = self.0.as_ref().map(|open| open.lock().span.span_context().clone());
        match own.filter(SpanContext::is_valid) {
            Some(own) => TraceContext(own).write(fields),
            None if TraceContext::of(fields).is_some() => {}
            None => TraceContext::unrecorded().write(fields),
        }
    }

    /// It is answered, and ends.
    pub fn answered(self, ResponseAttributes { status, outcome, reason, member }: ResponseAttributes<'_>) {
        let Some(open) = &self.0 else { return };
        let span = &mut open.lock().span;
        if span.is_recording() {
            span.set_attribute(KeyValue::new(STATUS, i64::from(status)));
            span.set_attribute(KeyValue::new(OUTCOME, outcome));
            span.set_attributes(reason.map(|reason| KeyValue::new(REASON, reason)));
            span.set_attributes(member.map(|member| KeyValue::new("clipgate.member", member.to_owned())));
            if status >= 500 {
                span.set_attribute(KeyValue::new(ERROR, status.to_string()));
                span.set_status(Status::error(""));
            }
        }
        span.end();
    }
}

impl Drop for RequestSpan {
    fn drop(&mut self) {
        if let Some(open) = &self.0 {
            let span = &mut open.lock().span;
            // An ended one does not change any more.
            span.set_attribute(KeyValue::new(OUTCOME, "client_closed"));
            span.end();
        }
    }
}

/// What links a request's span to polls.
#[derive(Clone, Debug, Default)]
pub struct Links(Option<Arc<Mutex<OpenSpan>>>);

impl Links {
    /// The request leans on this poll.
    pub fn add(&self, poll: &PollSpan) {
        let (Some(open), true) = (&self.0, poll.span.is_some()) else { return };
        let (mut open, poll) = (open.lock(), &poll.context.0);
        if open.span.is_recording() && open.linked.len() < MAX_LINKS && !open.linked.contains(&poll.span_id())
        {
            open.linked.push(poll.span_id());
            open.span.add_link(poll.clone(), Vec::new());
        }
    }

    /// Whether the request is recorded.
    pub fn is_recorded(&self) -> bool {
        self.0.as_ref().is_some_and(|open| open.lock().span.span_context().is_sampled())
    }
}

/// What a poll asks for.
#[derive(Clone, Copy, Debug)]
pub struct PollAttributes<'a> {
    /// The endpoint's path.
    pub path: &'a str,
    /// How many jobs.
    pub jobs: usize,
    /// With which key.
    pub key: KeyDomain,
}

/// A poll, all its tries together. Dropping it ends it: it is cancelled.
#[derive(Debug)]
pub struct PollSpan {
    context: TraceContext,
    span: Option<Span>,
    failures: i64,
}

impl Default for PollSpan {
    /// One that nobody records.
    fn default() -> Self {
        Self { context: TraceContext::unrecorded(), span: None, failures: 0 }
    }
}

impl PollSpan {
    pub(super) fn new(tracer: &SdkTracer, upstream: &Uri, asked: &PollAttributes<'_>) -> Self {
        let name = format!("GET {}", asked.path);
        let builder = SpanBuilder::from_name(name).with_kind(SpanKind::Client);
        let mut span = tracer.build_with_context(builder, &Context::new());
        if !span.is_recording() {
            return Self::default();
        }
        let prefix = upstream.path().trim_end_matches('/');
        span.set_attributes([
            KeyValue::new("http.request.method", "GET"),
            KeyValue::new("url.scheme", upstream.scheme_str().unwrap_or_default().to_owned()),
            KeyValue::new("url.path", format!("{prefix}{}", asked.path)),
            KeyValue::new("server.address", upstream.host().unwrap_or_default().to_owned()),
            KeyValue::new("clipgate.jobs", asked.jobs as i64),
            KeyValue::new("clipgate.key", asked.key.to_string()),
        ]);
        let port =
            upstream.port_u16().unwrap_or(if upstream.scheme_str() == Some("http") { 80 } else { 443 });
        span.set_attribute(KeyValue::new("server.port", i64::from(port)));
        Self { context: TraceContext(span.span_context().clone()), span: Some(span), failures: 0 }
    }

    /// What its requests name as their cause.
    pub fn context(&self) -> &TraceContext {
        &self.context
    }

    /// A try failed; another may follow.
    pub fn try_failed(&mut self, reason: &'static str) {
        self.failures += 1;
        if let Some(span) = &mut self.span {
            span.add_event("try failed", vec![KeyValue::new(REASON, reason)]);
        }
    }

    /// It came back with this status.
    pub fn landed(mut self, status: u16) {
        self.end("landed", |span| {
            span.set_attribute(KeyValue::new(STATUS, i64::from(status)));
            if status >= 400 {
                span.set_attribute(KeyValue::new(ERROR, status.to_string()));
                span.set_status(Status::error(""));
            }
        });
    }

    /// It is not tried again.
    pub fn gave_up(mut self, reason: &'static str) {
        self.end("failed", |span| {
            span.set_attribute(KeyValue::new(ERROR, reason));
            span.set_status(Status::error(""));
        });
    }

    fn end(&mut self, outcome: &'static str, tell: impl FnOnce(&mut Span)) {
        let Some(mut span) = self.span.take() else { return };
        span.set_attribute(KeyValue::new(OUTCOME, outcome));
        if self.failures > 0 {
            span.set_attribute(KeyValue::new("clipgate.failed_tries", self.failures));
        }
        tell(&mut span);
        span.end();
    }
}

impl Drop for PollSpan {
    fn drop(&mut self) {
        self.end("cancelled", |_| {});
    }
}

fn asked<B>(request: &Request<B>, ctx: &RequestCtx, route: Option<&str>) -> Vec<KeyValue> {
    let mut asked = vec![
        KeyValue::new("http.request.method", known(request.method())),
        KeyValue::new("url.path", short(request.uri().path()).to_owned()),
        KeyValue::new("url.scheme", if ctx.is_tls { "https" } else { "http" }),
        KeyValue::new("clipgate.request_id", ctx.id.to_string()),
    ];
    asked.extend(route.map(|route| KeyValue::new("http.route", route.to_owned())));
    asked.extend(version(request.version()).map(|v| KeyValue::new("network.protocol.version", v)));
    asked.extend(ctx.forwarded.client_ip().map(|client| KeyValue::new("client.address", client.to_string())));
    if let Some(host) = requested_host(request.uri(), request.headers()) {
        asked.push(KeyValue::new("server.address", short(host.host()).to_owned()));
        asked.extend(host.port_u16().map(|port| KeyValue::new("server.port", i64::from(port))));
    }
    asked
}

/// What the conventions call a method that is none of theirs.
const OTHER: &str = "_OTHER";

/// A closed set, as a client can make methods up.
fn known(method: &Method) -> &'static str {
    let known = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "CONNECT", "TRACE", "QUERY"];
    known.into_iter().find(|name| *name == method.as_str()).unwrap_or(OTHER)
}

fn version(version: Version) -> Option<&'static str> {
    match version {
        Version::HTTP_10 => Some("1.0"),
        Version::HTTP_11 => Some("1.1"),
        Version::HTTP_2 => Some("2"),
        _ => None,
    }
}

fn short(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_PATH)]
}
