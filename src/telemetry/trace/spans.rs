//! The two kinds of spans: client request and poll.

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
use crate::protocol::added_fields::AddedFields;
use crate::protocol::host::requested_host;
use crate::protocol::request::RequestCtx;

/// Longest path in a span, in bytes.
const MAX_PATH: usize = 256;
/// Most polls that a span links to: the SDK's own limit.
const MAX_LINKS: usize = 128;

const OUTCOME: &str = "clipgate.outcome";
const REASON: &str = "clipgate.reason";
const STATUS: &str = "http.response.status_code";
const ERROR: &str = "error.type";

/// Span of a client request, empty without a collector. Its drop ends the span, with the outcome `client_closed` unless
/// there was a response.
#[derive(Debug, Default)]
pub struct RequestSpan(Option<Arc<Mutex<OpenSpan>>>);

#[derive(Debug)]
struct OpenSpan {
    span: Span,
    linked: Vec<SpanId>,
    is_answered: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct ResponseAttributes<'a> {
    pub status: u16,
    /// The value of `clipgate.outcome` in the log.
    pub outcome: &'static str,
    /// The value of `clipgate.reason` in the log.
    pub reason: Option<&'static str>,
    /// Name of the team member.
    pub member: Option<&'a str>,
}

impl RequestSpan {
    pub(super) fn new<B>(
        tracer: &SdkTracer,
        request: &Request<B>,
        ctx: &RequestCtx,
        route: Option<&str>,
    ) -> Self {
        let parent = match TraceContext::from_headers(request.headers()) {
            Some(TraceContext(parent)) => Context::new().with_remote_span_context(parent),
            None => Context::new(),
        };
        let method = known_method(request.method());
        let name = match route {
            Some(route) => format!("{method} {route}"),
            None => (if method == OTHER { "HTTP" } else { method }).to_owned(),
        };
        let builder = SpanBuilder::from_name(name).with_kind(SpanKind::Server);
        let mut span = tracer.build_with_context(builder, &parent);
        if span.is_recording() {
            span.set_attributes(request_attributes(request, ctx, route));
        }
        Self(Some(Arc::new(Mutex::new(OpenSpan { span, linked: Vec::new(), is_answered: false }))))
    }

    /// Records the number of jobs and the key of a wait.
    pub fn set_wait(&self, jobs: usize, key: KeyDomain) {
        if let Some(open) = &self.0 {
            let mut open = open.lock();
            open.span.set_attribute(KeyValue::new("clipgate.jobs", jobs as i64));
            open.span.set_attribute(KeyValue::new("clipgate.key", key.to_string()));
        }
    }

    /// Returns a handle that adds links to polls.
    pub fn links(&self) -> Links {
        Links(self.0.clone())
    }

    /// Adds this span as the parent of a passed-through request, to whose head `fields` are added. Without a span a valid
    /// `traceparent` of the client stays, and a missing one is replaced by a new trace that is not recorded. `has_context`:
    /// whether the head may have `traceparent` or `tracestate`.
    pub(crate) fn add(&self, headers: &mut HeaderMap, has_context: bool, fields: &mut AddedFields) {
        let own = self.0.as_ref().map(|open| open.lock().span.span_context().clone());
        let own = own.filter(SpanContext::is_valid).map(TraceContext);
        if has_context {
            if own.is_none() && TraceContext::from_headers(headers).is_some() {
                return;
            }
            TraceContext::remove(headers);
        }
        own.unwrap_or_else(TraceContext::unrecorded).add(fields);
    }

    /// Returns whether the request is recorded.
    pub fn is_recorded(&self) -> bool {
        self.0.as_ref().is_some_and(|open| open.lock().span.is_recording())
    }

    /// Records the head of the response. The span lasts until it is dropped, with the body.
    pub fn answered(&self, ResponseAttributes { status, outcome, reason, member }: ResponseAttributes<'_>) {
        let Some(open) = &self.0 else { return };
        let mut open = open.lock();
        open.is_answered = true;
        let span = &mut open.span;
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
    }
}

impl Drop for RequestSpan {
    fn drop(&mut self) {
        if let Some(open) = &self.0 {
            let mut open = open.lock();
            if !open.is_answered {
                open.span.set_attribute(KeyValue::new(OUTCOME, "client_closed"));
            }
            open.span.end();
        }
    }
}

/// Handle of a request's span that adds links to polls.
#[derive(Clone, Debug, Default)]
pub struct Links(Option<Arc<Mutex<OpenSpan>>>);

impl Links {
    /// Links the request to a poll that it attaches to.
    pub fn add(&self, poll: &PollSpan) {
        let (Some(open), true) = (&self.0, poll.span.is_some()) else { return };
        let (mut open, poll) = (open.lock(), &poll.context.0);
        if open.span.is_recording() && open.linked.len() < MAX_LINKS && !open.linked.contains(&poll.span_id())
        {
            open.linked.push(poll.span_id());
            open.span.add_link(poll.clone(), Vec::new());
        }
    }

    /// Returns whether the request is recorded.
    pub fn is_recorded(&self) -> bool {
        self.0.as_ref().is_some_and(|open| open.lock().span.span_context().is_sampled())
    }
}

#[derive(Clone, Copy, Debug)]
pub struct PollAttributes<'a> {
    /// Path of the endpoint, without the prefix of `upstream.base_url`.
    pub path: &'a str,
    /// Number of jobs.
    pub jobs: usize,
    pub key: KeyDomain,
}

/// Span of a poll with all its attempts. Its drop ends the span with the outcome `cancelled`.
#[derive(Debug)]
pub struct PollSpan {
    context: TraceContext,
    span: Option<Span>,
    failed_attempts: i64,
}

impl Default for PollSpan {
    /// Creates a span that is not recorded.
    fn default() -> Self {
        Self { context: TraceContext::unrecorded(), span: None, failed_attempts: 0 }
    }
}

impl PollSpan {
    pub(super) fn new(tracer: &SdkTracer, upstream: &Uri, attributes: &PollAttributes<'_>) -> Self {
        let name = format!("GET {}", attributes.path);
        let builder = SpanBuilder::from_name(name).with_kind(SpanKind::Client);
        let mut span = tracer.build_with_context(builder, &Context::new());
        if !span.is_recording() {
            return Self::default();
        }
        let prefix = upstream.path().trim_end_matches('/');
        span.set_attributes([
            KeyValue::new("http.request.method", "GET"),
            KeyValue::new("url.scheme", upstream.scheme_str().unwrap_or_default().to_owned()),
            KeyValue::new("url.path", format!("{prefix}{}", attributes.path)),
            KeyValue::new("server.address", upstream.host().unwrap_or_default().to_owned()),
            KeyValue::new("clipgate.jobs", attributes.jobs as i64),
            KeyValue::new("clipgate.key", attributes.key.to_string()),
        ]);
        let port =
            upstream.port_u16().unwrap_or(if upstream.scheme_str() == Some("http") { 80 } else { 443 });
        span.set_attribute(KeyValue::new("server.port", i64::from(port)));
        Self { context: TraceContext(span.span_context().clone()), span: Some(span), failed_attempts: 0 }
    }

    /// Returns the parent for the requests of the poll.
    pub fn context(&self) -> &TraceContext {
        &self.context
    }

    /// Records a failed attempt.
    pub fn attempt_failed(&mut self, reason: &'static str) {
        self.failed_attempts += 1;
        if let Some(span) = &mut self.span {
            span.add_event("attempt failed", vec![KeyValue::new(REASON, reason)]);
        }
    }

    /// Ends the span with the status of the response.
    pub fn landed(mut self, status: u16) {
        self.end("landed", |span| {
            span.set_attribute(KeyValue::new(STATUS, i64::from(status)));
            if status >= 400 {
                span.set_attribute(KeyValue::new(ERROR, status.to_string()));
                span.set_status(Status::error(""));
            }
        });
    }

    /// Ends the span after the last failed attempt.
    pub fn gave_up(mut self, reason: &'static str) {
        self.end("failed", |span| {
            span.set_attribute(KeyValue::new(ERROR, reason));
            span.set_status(Status::error(""));
        });
    }

    fn end(&mut self, outcome: &'static str, set_result: impl FnOnce(&mut Span)) {
        let Some(mut span) = self.span.take() else { return };
        span.set_attribute(KeyValue::new(OUTCOME, outcome));
        if self.failed_attempts > 0 {
            span.set_attribute(KeyValue::new("clipgate.failed_attempts", self.failed_attempts));
        }
        set_result(&mut span);
        span.end();
    }
}

impl Drop for PollSpan {
    fn drop(&mut self) {
        self.end("cancelled", |_| {});
    }
}

fn request_attributes<B>(request: &Request<B>, ctx: &RequestCtx, route: Option<&str>) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new("http.request.method", known_method(request.method())),
        KeyValue::new("url.path", truncated(request.uri().path()).to_owned()),
        KeyValue::new("url.scheme", if ctx.is_tls { "https" } else { "http" }),
        KeyValue::new("clipgate.request_id", ctx.id.to_string()),
    ];
    attributes.extend(route.map(|route| KeyValue::new("http.route", route.to_owned())));
    attributes.extend(version(request.version()).map(|v| KeyValue::new("network.protocol.version", v)));
    attributes
        .extend(ctx.forwarded.client_ip().map(|client| KeyValue::new("client.address", client.to_string())));
    if let Some(host) = requested_host(request.uri(), request.headers()) {
        attributes.push(KeyValue::new("server.address", truncated(host.host()).to_owned()));
        attributes.extend(host.port_u16().map(|port| KeyValue::new("server.port", i64::from(port))));
    }
    attributes
}

/// Name of unknown methods in the conventions.
const OTHER: &str = "_OTHER";

/// Returns the method's name from a closed set: clients can invent methods.
fn known_method(method: &Method) -> &'static str {
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

fn truncated(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_PATH)]
}
