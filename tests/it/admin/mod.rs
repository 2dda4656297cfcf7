//! The admin listener, the metrics, the logs and the traces.

pub(crate) mod access_log;
pub(crate) mod dashboard;
pub(crate) mod dashboard_files;
pub(crate) mod dashboard_panels;
pub(crate) mod endpoints;
pub(crate) mod listener;
pub(crate) mod metrics;
pub(crate) mod traces;
