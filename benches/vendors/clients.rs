//! The clients of one job: a closed loop, in which the next read follows the answer to the last one.

use std::time::Duration;

use super::loops::VendorLoop;

/// One run: the end of the job, and the clients that follow it.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    vendor: &'a VendorLoop,
    /// The job is created at zero.
    pub(crate) done_at: Duration,
    /// Time at which each client begins.
    pub(crate) arrivals: Vec<Duration>,
    rng: fastrand::Rng,
}

/// Upstream calls and delays of one run, or of several.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) calls: u32,
    pub(crate) results: u32,
    /// Greatest time from the end of the job to a client's knowledge of it.
    pub(crate) latest: Duration,
    /// Sum of these times.
    pub(crate) lateness: Duration,
}

impl<'a> Run<'a> {
    pub(crate) fn new(vendor: &'a VendorLoop, clients: usize, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        // A life of a whole number of intervals would favour one side.
        let done_at = vendor.life.mul_f64(0.9 + 0.2 * rng.f64());
        let arrivals = (0..clients).map(|_| vendor.interval.mul_f64(rng.f64())).collect();
        Self { vendor, done_at, arrivals, rng }
    }

    /// Draws the time of one way between two hosts.
    pub(crate) fn transit(&mut self) -> Duration {
        MIN_TRANSIT + (MAX_TRANSIT - MIN_TRANSIT).mul_f64(self.rng.f64())
    }

    /// Returns the time of one way between a client and a gateway on its machine or in its network.
    pub(crate) fn hop(&self) -> Duration {
        Duration::from_millis(1)
    }

    /// Draws the pause of a client before its next read.
    pub(crate) fn pause(&mut self) -> Duration {
        let VendorLoop { interval, jitter, .. } = *self.vendor;
        interval - jitter + jitter.mul_f64(2.0 * self.rng.f64())
    }
}

impl Outcome {
    /// Counts a client that learns of the end of the job now.
    pub(crate) fn client_is_done(&mut self, run: &Run<'_>, now: Duration) {
        let late = now.saturating_sub(run.done_at);
        self.results += 1;
        self.latest = self.latest.max(late);
        self.lateness += late;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.calls += other.calls;
        self.results += other.results;
        self.latest = self.latest.max(other.latest);
        self.lateness += other.lateness;
    }
}

/// Bounds of [`Run::transit`].
const MIN_TRANSIT: Duration = Duration::from_millis(20);
const MAX_TRANSIT: Duration = Duration::from_millis(60);
