//! Delays of this machine, by which the oracle widens its bounds on time.
//!
//! Measured as a client without the gateway would see them: one request straight to the upstream after the other, each on
//! a new connection, plus the delay of the timer before it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clipgate::testing::clock;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;

type Error = Box<dyn std::error::Error + Send + Sync>;

const EVERY: Duration = Duration::from_millis(20);
/// Upper bound of one measurement: longer ones are injected faults, not delays of the machine.
const LONGEST: Duration = Duration::from_secs(2);
/// Number of seconds in the ring of measurements.
const SECONDS: usize = 64;

/// The longest measurement of each second.
pub(crate) struct Calibration {
    started_at: Instant,
    upstream: SocketAddr,
    /// In microseconds, like all figures here.
    longest: [AtomicU64; SECONDS],
    of_all: AtomicU64,
    /// Start of the current measurement, since `started_at`.
    measuring: AtomicU64,
}

impl Calibration {
    pub(crate) fn new(upstream: SocketAddr) -> Self {
        let zero = || AtomicU64::new(0);
        let longest = std::array::from_fn(|_| zero());
        Self { started_at: clock::now(), upstream, longest, of_all: zero(), measuring: zero() }
    }

    /// Measures until dropped. Cancel safe.
    pub(crate) async fn run(&self) {
        let mut builder = legacy::Client::builder(TokioExecutor::new());
        let client: legacy::Client<HttpConnector, Empty<Bytes>> =
            builder.pool_max_idle_per_host(0).build(HttpConnector::new());
        let mut second = 0;
        loop {
            let due = clock::now() + EVERY;
            self.measuring.store(self.micros(due), Ordering::Relaxed);
            tokio::time::sleep_until(due.into()).await;
            let request = Request::get(format!("http://{}/sim/echo", self.upstream)).body(Empty::new());
            let direct = async {
                let response = client.request(request.expect("an address makes a URL")).await?;
                response.collect().await.map_err(Error::from)
            };
            // During a fault the request may fail or hang.
            let _: Result<Result<_, Error>, _> = tokio::time::timeout(LONGEST, direct).await;
            let now = clock::now();
            let micros = self.micros(now) - self.micros(due);
            while second < self.second(now) {
                second += 1;
                self.longest[(second + 1) % SECONDS].store(0, Ordering::Relaxed);
            }
            self.longest[second % SECONDS].fetch_max(micros, Ordering::Relaxed);
            self.of_all.fetch_max(micros, Ordering::Relaxed);
        }
    }

    /// Returns the longest measurement between two times, including the second before and the second after.
    pub(crate) fn between(&self, from: Instant, to: Instant) -> Duration {
        let last = self.second(to) + 1;
        let first = self.second(from).saturating_sub(1).max(last.saturating_sub(SECONDS - 1));
        let now = self.micros(clock::now()).saturating_sub(self.measuring.load(Ordering::Relaxed));
        let all = (first..=last).map(|second| self.longest[second % SECONDS].load(Ordering::Relaxed));
        Duration::from_micros(all.chain([now]).max().unwrap_or(0))
    }

    /// Returns the longest measurement of the run.
    pub(crate) fn longest(&self) -> Duration {
        Duration::from_micros(self.of_all.load(Ordering::Relaxed))
    }

    fn second(&self, at: Instant) -> usize {
        usize::try_from(at.saturating_duration_since(self.started_at).as_secs()).unwrap_or(usize::MAX)
    }

    fn micros(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.started_at).as_micros()).unwrap_or(u64::MAX)
    }
}
