//! The one clock: tokio's, so that tests may pause it.

use std::time::Instant;

/// The time, to measure and to compare with; it never goes back.
#[allow(clippy::disallowed_methods, reason = "this is the place that the ban points to")]
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
