//! Exponential backoff with full jitter, so that polls that failed together are not retried together.

use std::time::Duration;

/// Pauses between the attempts of a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Upper bound of the first pause; the bound doubles with each further failure.
    pub first: Duration,
    /// Upper bound of every pause.
    pub cap: Duration,
}

impl Backoff {
    /// Returns the pause after `failures` (at least one) failures in a row. `random` is uniform from 0 to 1.
    pub fn pause(self, failures: u32, random: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        self.first.saturating_mul(1 << doublings).min(self.cap).mul_f64(random.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_of_a_pause_doubles_up_to_the_cap_and_jitter_takes_any_part_of_it() {
        let backoff = Backoff { first: Duration::from_millis(100), cap: Duration::from_secs(1) };
        let longest: Vec<u128> = (1..=6).map(|n| backoff.pause(n, 1.0).as_millis()).collect();
        assert_eq!(longest, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(backoff.pause(3, 0.25), Duration::from_millis(100));
        assert_eq!(backoff.pause(u32::MAX, 0.0), Duration::ZERO);
    }
}
