//! How slow this machine is: bounds on time are wider where everything takes long.
//!
//! It is what a client alone sees: a request straight to the upstream, on a connection of its own, again and again; and
//! how late timers are.

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
/// A fault of the upstream's is no noise: longer than that nothing is waited for.
const LONGEST: Duration = Duration::from_secs(2);
/// For how many seconds it is remembered.
const SECONDS: usize = 64;

/// The longest that anything took, for each second.
pub(crate) struct Noise {
    begun: Instant,
    upstream: SocketAddr,
    /// In microseconds, as all here.
    longest: [AtomicU64; SECONDS],
    of_all: AtomicU64,
    /// When what is measured now began, since `begun`.
    measuring: AtomicU64,
}

impl Noise {
    pub(crate) fn new(upstream: SocketAddr) -> Self {
        let zero = || AtomicU64::new(0);
        let longest = std::array::from_fn(|_| zero());
        Self { begun: clock::now(), upstream, longest, of_all: zero(), measuring: zero() }
    }

    /// Listens. Cancel safe.
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
            // In a storm it may fail, or hang.
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

    /// The longest between two moments, and right before and after them.
    pub(crate) fn between(&self, from: Instant, to: Instant) -> Duration {
        let last = self.second(to) + 1;
        let first = self.second(from).saturating_sub(1).max(last.saturating_sub(SECONDS - 1));
        let now = self.micros(clock::now()).saturating_sub(self.measuring.load(Ordering::Relaxed));
        let all = (first..=last).map(|second| self.longest[second % SECONDS].load(Ordering::Relaxed));
        Duration::from_micros(all.chain([now]).max().unwrap_or(0))
    }

    /// The longest of all.
    pub(crate) fn longest(&self) -> Duration {
        Duration::from_micros(self.of_all.load(Ordering::Relaxed))
    }

    fn second(&self, at: Instant) -> usize {
        usize::try_from(at.saturating_duration_since(self.begun).as_secs()).unwrap_or(usize::MAX)
    }

    fn micros(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.begun).as_micros()).unwrap_or(u64::MAX)
    }
}
