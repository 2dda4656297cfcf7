//! Between the spans that end and the thread that tells them: what waits there is bounded and what is lost counted.
//!
//! The SDK's own queue is bounded too, but keeps its count of losses to itself. So this lets no more in than fit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_otlp::SpanExporter as Otlp;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor,
};
use tracing::{info, warn};

/// Spans that wait to be told: some kB each at most, so some MB while the collector is away.
const ROOM: usize = 4096;
/// Spans told at a time.
const BATCH: usize = 512;
/// How long a span waits at most, if the collector is there.
const EVERY: Duration = Duration::from_secs(2);

/// What became of spans.
#[derive(Debug, Default)]
pub(super) struct SpanCounts {
    waiting: AtomicUsize,
    lost: AtomicU64,
    /// Whether the last batch was lost, or a span since.
    is_losing: AtomicBool,
}

impl SpanCounts {
    fn lose(&self, spans: usize, why: &'static str) {
        self.lost.fetch_add(spans as u64, Ordering::Relaxed);
        if !self.is_losing.swap(true, Ordering::Relaxed) {
            warn!(why, "spans are lost, requests are served all the same");
        }
    }

    fn told(&self) {
        if self.is_losing.swap(false, Ordering::Relaxed) {
            info!(lost = self.lost.load(Ordering::Relaxed), "spans reach the collector again");
        }
    }

    /// Nobody will tell what still waits.
    pub(super) fn left_behind(&self) {
        let left = self.waiting.swap(0, Ordering::Relaxed);
        self.lost.fetch_add(left as u64, Ordering::Relaxed);
    }

    /// Says how many were lost in all, if any were.
    pub(super) fn sum_up(&self) {
        let lost = self.lost.load(Ordering::Relaxed);
        if lost > 0 {
            warn!(lost, "spans were lost");
        }
    }
}

/// The way in.
#[derive(Debug)]
pub(super) struct BoundedProcessor {
    batches: BatchSpanProcessor,
    tally: Arc<SpanCounts>,
}

impl BoundedProcessor {
    /// A queue before this way to the collector.
    pub(super) fn new(otlp: Otlp, tally: &Arc<SpanCounts>) -> Self {
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(ROOM)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(EVERY)
            .build();
        let batches = BatchSpanProcessor::new(CountingExporter { otlp, tally: Arc::clone(tally) }, config);
        Self { batches, tally: Arc::clone(tally) }
    }
}

impl SpanProcessor for BoundedProcessor {
    fn on_start(&self, _span: &mut Span, _cx: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.tally.waiting.fetch_add(1, Ordering::Relaxed) < ROOM {
            self.batches.on_end(span);
        } else {
            self.tally.waiting.fetch_sub(1, Ordering::Relaxed);
            self.tally.lose(1, "the queue is full");
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

/// The way out, on the SDK's thread.
#[derive(Debug)]
struct CountingExporter {
    otlp: Otlp,
    tally: Arc<SpanCounts>,
}

impl SpanExporter for CountingExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let told = self.otlp.export(batch).await;
        // Not before: what is on its way takes up room as what waits does.
        self.tally.waiting.fetch_sub(spans, Ordering::Relaxed);
        match &told {
            Ok(()) => self.tally.told(),
            Err(_) => self.tally.lose(spans, "the collector does not take them"),
        }
        told
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.otlp.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.otlp.set_resource(resource);
    }
}
