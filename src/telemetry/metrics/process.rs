//! Metrics of the process, read at each scrape. The names are those of Prometheus' own client libraries.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Figures of `/proc`; none on systems without it.
#[derive(Debug)]
pub(super) struct ProcessCollector;

struct ProcessStats {
    cpu_seconds: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
    /// Unix time.
    started_at: f64,
    threads: i64,
    open_fds: Option<usize>,
    max_fds: Option<u64>,
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(stats) = ProcessStats::read() else { return Ok(()) };
        let to = &mut encoder;
        write(to, "process_cpu_seconds_total", "CPU time", &ConstCounter::new(stats.cpu_seconds))?;
        write(
            to,
            "process_resident_memory_bytes",
            "Resident memory",
            &ConstGauge::new(stats.resident_bytes),
        )?;
        write(to, "process_virtual_memory_bytes", "Virtual memory", &ConstGauge::new(stats.virtual_bytes))?;
        write(to, "process_start_time_seconds", "Start, Unix time", &ConstGauge::new(stats.started_at))?;
        write(to, "process_threads", "Threads", &ConstGauge::new(stats.threads))?;
        if let Some(open) = stats.open_fds {
            write(to, "process_open_fds", "Open file descriptors", &ConstGauge::new(open))?;
        }
        if let Some(max) = stats.max_fds {
            write(to, "process_max_fds", "Limit of open file descriptors", &ConstGauge::new(max))?;
        }
        Ok(())
    }
}

/// Writes a metric under the name that `/metrics` shows; the encoder appends `_total` by itself.
fn write(to: &mut DescriptorEncoder<'_>, name: &str, help: &str, metric: &impl EncodeMetric) -> fmt::Result {
    let base = name.strip_suffix("_total").unwrap_or(name);
    metric.encode(to.encode_descriptor(base, help, None, metric.metric_type())?)
}

#[cfg(target_os = "linux")]
impl ProcessStats {
    fn read() -> Option<Self> {
        use procfs::process::{LimitValue, Process};

        let process = Process::myself().ok()?;
        let stat = process.stat().ok()?;
        let seconds = |ticks: u64| ticks as f64 / procfs::ticks_per_second() as f64;
        Some(Self {
            cpu_seconds: seconds(stat.utime + stat.stime),
            resident_bytes: stat.rss * procfs::page_size(),
            virtual_bytes: stat.vsize,
            started_at: procfs::boot_time_secs().ok()? as f64 + seconds(stat.starttime),
            threads: stat.num_threads,
            open_fds: process.fd_count().ok(),
            max_fds: process.limits().ok().and_then(|limits| match limits.max_open_files.soft_limit {
                LimitValue::Value(limit) => Some(limit),
                LimitValue::Unlimited => None,
            }),
        })
    }
}

#[cfg(not(target_os = "linux"))]
impl ProcessStats {
    fn read() -> Option<Self> {
        None
    }
}
