//! Waits that share polls.

pub(crate) mod coalescing_identical;
pub(crate) mod coalescing_overlap;
pub(crate) mod deadlines;
pub(crate) mod drain;
pub(crate) mod job_lists;
pub(crate) mod load;
pub(crate) mod proof;
pub(crate) mod waits_http2;
pub(crate) mod watches;
