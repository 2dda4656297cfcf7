//! Counters and histograms with a value for each thread, which a scrape adds up.
//!
//! Threads that count in one place take its cache line from each other: about 50 ns a count on two processors. The
//! counters of `prometheus-client` have one place, and its histograms a lock. `metrics` and `opentelemetry` have one place
//! too.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_utils::CachePadded;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::counter::{Atomic, Counter};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// Places of each counter, 128 bytes each. With more threads than places, some share one.
const SHARDS: usize = 8;

/// Most buckets of a histogram, the last one without a bound included.
const MAX_BUCKETS: usize = 24;

/// Returns the place of this thread. The first threads that count get one of their own each.
fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SHARD: usize = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
    }
    // An ending thread may have lost its place.
    SHARD.try_with(|shard| *shard).unwrap_or_default()
}

/// Counter of requests.
pub(super) type ShardedCounter = Counter<u64, Shards>;

/// The value of a counter.
#[derive(Debug, Default)]
pub(super) struct Shards([CachePadded<AtomicU64>; SHARDS]);

impl Atomic<u64> for Shards {
    fn inc(&self) -> u64 {
        self.inc_by(1)
    }

    /// Returns the previous value of this thread.
    fn inc_by(&self, count: u64) -> u64 {
        self.0[shard()].fetch_add(count, Ordering::Relaxed)
    }

    fn get(&self) -> u64 {
        self.0.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

/// Histogram of times. Clones share their values.
#[derive(Clone, Debug)]
pub(super) struct ShardedHistogram(Arc<HistogramShards>);

#[derive(Debug)]
struct HistogramShards {
    /// Upper bounds in seconds, without that of the last bucket.
    bounds: &'static [f64],
    shards: [CachePadded<HistogramShard>; SHARDS],
}

#[derive(Debug, Default)]
struct HistogramShard {
    nanos: AtomicU64,
    buckets: [AtomicU64; MAX_BUCKETS],
}

impl ShardedHistogram {
    /// Returns a histogram with these upper bounds in seconds, in rising order.
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        assert!(bounds.len() < MAX_BUCKETS, "too many buckets");
        Self(Arc::new(HistogramShards { bounds, shards: Default::default() }))
    }

    pub(super) fn observe(&self, took: Duration) {
        let HistogramShards { bounds, shards } = &*self.0;
        let seconds = took.as_secs_f64();
        let bucket = bounds.iter().position(|bound| seconds <= *bound).unwrap_or(bounds.len());
        let shard = &shards[shard()];
        shard.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        shard.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl EncodeMetric for ShardedHistogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let HistogramShards { bounds, shards } = &*self.0;
        let sum = |value: &dyn Fn(&HistogramShard) -> &AtomicU64| -> u64 {
            shards.iter().map(|shard| value(shard).load(Ordering::Relaxed)).sum()
        };
        let bounds = bounds.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> =
            bounds.enumerate().map(|(bucket, bound)| (bound, sum(&|shard| &shard.buckets[bucket]))).collect();
        // Counted from the buckets, so that the page agrees with itself while threads count on.
        let count = buckets.iter().map(|(_, count)| count).sum();
        let seconds = Duration::from_nanos(sum(&|shard| &shard.nanos)).as_secs_f64();
        encoder.encode_histogram::<NoLabelSet>(seconds, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for ShardedHistogram {
    const TYPE: MetricType = MetricType::Histogram;
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::prometheus_text::encode;
    use prometheus_client::metrics::histogram::Histogram;
    use prometheus_client::registry::{Registry, Unit};

    use super::*;

    #[test]
    fn counts_of_all_threads_add_up() {
        let (counter, histogram) = (ShardedCounter::default(), ShardedHistogram::new(&[0.1]));
        std::thread::scope(|scope| {
            for _ in 0..2 * SHARDS {
                scope.spawn(|| {
                    (0..100).for_each(|_| _ = counter.inc());
                    histogram.observe(Duration::from_millis(500));
                });
            }
        });
        assert_eq!(counter.get(), 200 * SHARDS as u64);
        assert!(page(histogram).contains(&format!("x_seconds_sum {SHARDS}.0\n")));
    }

    #[test]
    fn the_page_is_that_of_a_histogram_with_one_place() {
        const BOUNDS: &[f64] = &[0.001, 0.25, 1.0];
        let (ours, other) = (ShardedHistogram::new(BOUNDS), Histogram::new(BOUNDS.iter().copied()));
        assert_eq!(page(ours.clone()), page(other.clone()));
        for millis in [0, 1, 2, 250, 1000, 1001, 64_000] {
            let took = Duration::from_millis(millis);
            ours.observe(took);
            other.observe(took.as_secs_f64());
        }
        assert_eq!(page(ours), page(other));
    }

    fn page(metric: impl prometheus_client::registry::Metric) -> String {
        let mut registry = Registry::default();
        registry.register_with_unit("x", "Times", Unit::Seconds, metric);
        let mut page = String::new();
        encode(&mut page, &registry).unwrap();
        page
    }
}
