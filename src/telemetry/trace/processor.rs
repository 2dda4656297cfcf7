//! Bounded queue of ended spans, with a count of lost spans.
//!
//! The queue of the SDK is bounded too, but does not expose its count of lost spans. This processor therefore passes
//! on only as many spans as fit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_otlp::SpanExporter as Otlp;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor,
};
use prometheus_client::metrics::counter::Counter;
use tracing::{info, warn};

/// Bound of pending spans. A span has a few kB, so an unavailable collector costs some MB.
const MAX_PENDING: usize = 4096;
/// Spans per export.
const MAX_BATCH: usize = 512;
/// Time between two exports.
const EXPORT_INTERVAL: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub(super) struct SpanCounts {
    /// Spans in the queue or in an export.
    pending: AtomicUsize,
    /// Shown as a metric.
    lost: Counter,
    /// Whether the last batch was lost, or a span since then.
    is_losing: AtomicBool,
}

impl SpanCounts {
    pub(super) fn new(lost: Counter) -> Self {
        Self { lost, ..Self::default() }
    }

    fn lose(&self, spans: usize, reason: &'static str) {
        self.lost.inc_by(spans as u64);
        if !self.is_losing.swap(true, Ordering::Relaxed) {
            warn!(reason, "spans are lost, requests are not affected");
        }
    }

    fn exported(&self) {
        if self.is_losing.swap(false, Ordering::Relaxed) {
            info!(lost = self.lost.get(), "spans reach the collector again");
        }
    }

    /// Counts the pending spans as lost, at the end of the exporter.
    pub(super) fn lose_pending(&self) {
        let pending = self.pending.swap(0, Ordering::Relaxed);
        self.lost.inc_by(pending as u64);
    }

    /// Logs the number of lost spans, if there are any.
    pub(super) fn log_total(&self) {
        let lost = self.lost.get();
        if lost > 0 {
            warn!(lost, "spans were lost");
        }
    }
}

/// Input of the queue.
#[derive(Debug)]
pub(super) struct BoundedProcessor {
    batches: BatchSpanProcessor,
    counts: Arc<SpanCounts>,
}

impl BoundedProcessor {
    pub(super) fn new(otlp: Otlp, counts: &Arc<SpanCounts>) -> Self {
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(MAX_PENDING)
            .with_max_export_batch_size(MAX_BATCH)
            .with_scheduled_delay(EXPORT_INTERVAL)
            .build();
        let batches = BatchSpanProcessor::new(CountingExporter { otlp, counts: Arc::clone(counts) }, config);
        Self { batches, counts: Arc::clone(counts) }
    }
}

impl SpanProcessor for BoundedProcessor {
    fn on_start(&self, _span: &mut Span, _cx: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.counts.pending.fetch_add(1, Ordering::Relaxed) < MAX_PENDING {
            self.batches.on_end(span);
        } else {
            self.counts.pending.fetch_sub(1, Ordering::Relaxed);
            self.counts.lose(1, "the queue is full");
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// Output of the queue, on the thread of the SDK.
#[derive(Debug)]
struct CountingExporter {
    otlp: Otlp,
    counts: Arc<SpanCounts>,
}

impl SpanExporter for CountingExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let result = self.otlp.export(batch).await;
        // Only now: spans of a running export take up room in the queue.
        self.counts.pending.fetch_sub(spans, Ordering::Relaxed);
        match &result {
            Ok(()) => self.counts.exported(),
            Err(_) => self.counts.lose(spans, "the export failed"),
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.otlp.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.otlp.set_resource(resource);
    }
}
