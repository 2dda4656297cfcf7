//! Signals for operators: the log, the metrics, the traces.

pub(crate) mod log;
pub(crate) mod metrics;
pub(crate) mod trace;
