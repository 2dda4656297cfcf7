//! The clock of the gateway: that of tokio, which tests can pause.

use std::time::Instant;

/// Returns the monotonic time.
#[allow(clippy::disallowed_methods, reason = "all other code uses this function")]
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
