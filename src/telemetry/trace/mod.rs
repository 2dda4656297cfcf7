//! Traces: spans of requests and polls, exported to an OpenTelemetry collector.
//!
//! ```text
//! client ── traceparent ──▶ RequestSpan (SERVER) ── traceparent ──▶ upstream      pass-through
//!                               │ links
//!                               ▼
//!                           PollSpan (CLIENT, a trace of its own) ── traceparent ──▶ upstream
//! ended spans ──▶ bounded queue ──▶ thread of the SDK ── OTLP ──▶ collector
//! ```
//!
//! A poll may outlive the request that opened it, and other waits attach to it. Its span is therefore the root of a
//! trace of its own, and the span of each attached wait links to it.
//!
//! Without a collector there are no spans: a request costs the check of an `Option`. A passed-through request then
//! keeps the client's trace. A poll, and a request without a trace, gets the root of a new trace that is not recorded.
//!
//! Attributes are named by OpenTelemetry's HTTP conventions, or `clipgate.*`. No span contains a key, a token, a query
//! or a body.

mod context;
mod otlp;
mod processor;
mod spans;

use std::sync::Arc;
use std::time::Duration;

use http::{Request, Uri};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use prometheus_client::metrics::counter::Counter;

pub(crate) use self::context::TraceContext;
pub(crate) use self::otlp::TraceError;
use self::processor::SpanCounts;
pub use self::spans::Links;
pub(crate) use self::spans::{PollAttributes, PollSpan, RequestSpan, ResponseAttributes};
use crate::config;
use crate::protocol::request::RequestCtx;

/// Source of spans; clones share the exporter.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<Arc<Recorder>>);

#[derive(Debug)]
struct Recorder {
    tracer: SdkTracer,
    provider: SdkTracerProvider,
    counts: Arc<SpanCounts>,
    upstream: Uri,
}

impl Tracer {
    /// Creates the tracer of the configuration. `upstream` is the base URL of polls, `lost` counts lost spans.
    ///
    /// # Errors
    ///
    /// If the exporter cannot be set up. An unavailable collector is not an error.
    pub fn new(config: &config::TelemetryConfig, upstream: &Uri, lost: &Counter) -> Result<Self, TraceError> {
        let Some(endpoint) = &config.otlp_endpoint else { return Ok(Self::default()) };
        let counts = Arc::new(SpanCounts::new(lost.clone()));
        let provider = otlp::provider(endpoint, config.sample_percent, &counts)?;
        let tracer = provider.tracer(env!("CARGO_PKG_NAME"));
        Ok(Self(Some(Arc::new(Recorder { tracer, provider, counts, upstream: upstream.clone() }))))
    }

    pub fn is_off(&self) -> bool {
        self.0.is_none()
    }

    /// Starts the span of a request. `route` is the path of a wait, `None` for other paths.
    pub fn request<B>(&self, request: &Request<B>, ctx: &RequestCtx, route: Option<&str>) -> RequestSpan {
        match &self.0 {
            None => RequestSpan::default(),
            Some(recorder) => RequestSpan::new(&recorder.tracer, request, ctx, route),
        }
    }

    /// Starts the span of a poll. `is_recorded`: whether the span of one of its waits is recorded.
    pub fn poll(&self, attributes: &PollAttributes<'_>, is_recorded: bool) -> PollSpan {
        match &self.0 {
            Some(recorder) if is_recorded => PollSpan::new(&recorder.tracer, &recorder.upstream, attributes),
            Some(_) | None => PollSpan::default(),
        }
    }

    /// Exports the remaining spans and stops the exporter. Blocks for at most `timeout`.
    pub fn shutdown(&self, timeout: Duration) {
        let Some(recorder) = &self.0 else { return };
        if recorder.provider.shutdown_with_timeout(timeout).is_err() {
            recorder.counts.lose_pending();
        }
        recorder.counts.log_total();
    }
}
