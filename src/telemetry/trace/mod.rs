//! Traces: what caused what, across the gateway, told to a collector.
//!
//! ```text
//! client ── traceparent ──▶ RequestSpan (SERVER) ── traceparent ──▶ upstream      passed through
//!                               │ links
//!                               ▼
//!                           PollSpan (CLIENT, a trace of its own) ── traceparent ──▶ upstream
//! ended spans ──▶ a bounded queue ──▶ the SDK's own thread ── OTLP ──▶ collector
//! ```
//!
//! A poll belongs to nobody: it may outlive the request that opened it, and others lean on it. So it is no child of
//! that request's span but the root of a trace, and the spans of all waits that lean on it link to it.
//!
//! Turned off, there are no spans: a request costs one look at an `Option`, and what goes to the upstream carries
//! its client's trace as it came, or the beginning of one that nobody records. It must never know an answer's bytes,
//! and no key, no token and no query is in a span. The names are those of OpenTelemetry's HTTP conventions, and
//! `clipgate.*`.

mod context;
mod otlp;
mod processor;
mod spans;

use std::sync::Arc;
use std::time::Duration;

use http::{Request, Uri};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

pub(crate) use self::context::TraceContext;
pub(crate) use self::otlp::TraceError;
use self::processor::SpanCounts;
pub use self::spans::Links;
pub(crate) use self::spans::{PollAttributes, PollSpan, RequestSpan, ResponseAttributes};
use crate::config;
use crate::protocol::request::RequestCtx;

/// Begins spans. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<Arc<Recorder>>);

/// Where spans go.
#[derive(Debug)]
struct Recorder {
    tracer: SdkTracer,
    provider: SdkTracerProvider,
    tally: Arc<SpanCounts>,
    upstream: Uri,
}

impl Tracer {
    /// As the configuration says; for polls of this upstream.
    ///
    /// # Errors
    ///
    /// When there is no way to the collector at all; whether it answers is not looked at.
    pub fn new(config: &config::TelemetryConfig, upstream: &Uri) -> Result<Self, TraceError> {
        let Some(endpoint) = &config.otlp_endpoint else { return Ok(Self::default()) };
        let tally = Arc::new(SpanCounts::default());
        let provider = otlp::provider(endpoint, config.sample_percent, &tally)?;
        let tracer = provider.tracer(env!("CARGO_PKG_NAME"));
        Ok(Self(Some(Arc::new(Recorder { tracer, provider, tally, upstream: upstream.clone() }))))
    }

    /// Whether there are no spans.
    pub fn is_off(&self) -> bool {
        self.0.is_none()
    }

    /// The span of a request that has just arrived; `route` is its path where that is one of few.
    pub fn request<B>(&self, request: &Request<B>, ctx: &RequestCtx, route: Option<&str>) -> RequestSpan {
        match &self.0 {
            None => RequestSpan::default(),
            Some(recorder) => RequestSpan::new(&recorder.tracer, request, ctx, route),
        }
    }

    /// The span of a poll that is opened now. It is recorded if `is_recorded`, which is whether one of those who lean
    /// on it is.
    pub fn poll(&self, asked: &PollAttributes<'_>, is_recorded: bool) -> PollSpan {
        match &self.0 {
            Some(recorder) if is_recorded => PollSpan::new(&recorder.tracer, &recorder.upstream, asked),
            Some(_) | None => PollSpan::default(),
        }
    }

    /// Tells the collector what it has not been told, and ends. Blocks for `within` at most.
    pub fn flush(&self, within: Duration) {
        let Some(recorder) = &self.0 else { return };
        if recorder.provider.shutdown_with_timeout(within).is_err() {
            recorder.tally.left_behind();
        }
        recorder.tally.sum_up();
    }
}
