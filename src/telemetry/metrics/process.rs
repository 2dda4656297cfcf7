//! The process's own figures, read when they are asked for; named as Prometheus' client libraries name them.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// What the kernel says of this process; nothing, where it has no `/proc`.
#[derive(Debug)]
pub(super) struct ProcessCollector;

/// As they are now.
struct Now {
    cpu_seconds: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
    /// In Unix time.
    started_at: f64,
    threads: i64,
    open_fds: Option<usize>,
    max_fds: Option<u64>,
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(now) = Now::read() else { return Ok(()) };
        let to = &mut encoder;
        write(to, "process_cpu_seconds", "CPU time spent", &ConstCounter::new(now.cpu_seconds))?;
        write(to, "process_resident_memory_bytes", "Memory held", &ConstGauge::new(now.resident_bytes))?;
        write(to, "process_virtual_memory_bytes", "Memory mapped", &ConstGauge::new(now.virtual_bytes))?;
        write(to, "process_start_time_seconds", "Its start, in Unix time", &ConstGauge::new(now.started_at))?;
        write(to, "process_threads", "Its threads", &ConstGauge::new(now.threads))?;
        if let Some(open) = now.open_fds {
            write(to, "process_open_fds", "File descriptors open", &ConstGauge::new(open))?;
        }
        if let Some(max) = now.max_fds {
            write(to, "process_max_fds", "File descriptors that may be open", &ConstGauge::new(max))?;
        }
        Ok(())
    }
}

fn write(to: &mut DescriptorEncoder<'_>, name: &str, help: &str, metric: &impl EncodeMetric) -> fmt::Result {
    metric.encode(to.encode_descriptor(name, help, None, metric.metric_type())?)
}

#[cfg(target_os = "linux")]
impl Now {
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
                LimitValue::Value(most) => Some(most),
                LimitValue::Unlimited => None,
            }),
        })
    }
}

#[cfg(not(target_os = "linux"))]
impl Now {
    fn read() -> Option<Self> {
        None
    }
}
