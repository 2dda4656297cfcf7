//! A simulated upstream: the documented behaviour of the Suno API and of APIs that never hold, as an HTTP server, with
//! faults that tests inject.
//!
//! `clipgate sim` and `serve --sim` run it; tests and benches put it behind the gateway. It uses the paths and the
//! ladder of [`Route`](crate::core::route::Route) and the plain body type, but none of the gateway's parsers and
//! limits. A mistake in those cannot hide in both ends of a test at once.
//!
//! ```text
//!  server ── connections ──▶ api ── fault? ──▶ job: held until the clips reach the status ──▶ body ──▶ response
//!                             │  └─ vendors ──▶ vendor_api ──▶ vendor_body ──────────────┘
//!                             │ /sim/…            ▲
//!                             ▼                   │ set_status, schedule, inject
//!                       debug_endpoints          Sim, a test's handle ── requests, wait_until ──▶ recorder
//! ```
//!
//! [`Sim`] and all connections share one `state::SimShared`.
//!
//! # Order of the files
//!
//! A file imports only files that come before it in this table:
//!
//! | row | files |
//! | --- | --- |
//! | values | `options`, `bounded_map`, `keys`, `job`, `vendors`, `vendor_job`, `connection` |
//! | rules | `faults`, `body` (JSON of clips), `vendor_body` |
//! | record | `recorder` |
//! | shared | `state`, `request`, `response` |
//! | handlers | `debug_endpoints`, `vendor_api`, then `api` |
//! | connections | `server` |
//! | handle | `mod` |

#![warn(missing_docs)]

mod api;
mod body;
mod bounded_map;
mod connection;
mod debug_endpoints;
mod faults;
mod job;
mod keys;
mod options;
mod recorder;
mod request;
mod response;
mod server;
mod state;
#[cfg(test)]
mod tests;
mod vendor_api;
mod vendor_body;
mod vendor_job;
mod vendors;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::net::TcpListener;

pub use self::faults::{ErrorBody, Fault, FaultSpec, FaultSpecError, FaultTarget, Frequency};
pub use self::keys::RecordedKey;
pub use self::options::{ListFormat, SimOptions};
pub use self::recorder::{FaultRecord, Observation, RecordedRequest, RequestEnd};
pub use self::vendors::Vendor;

use self::faults::FaultQueue;
use self::job::{ClipState, Timeline};
use self::keys::AcceptedKeys;
use self::state::SimShared;
use self::vendor_job::VendorState;
use crate::clock;

/// The two kinds of routes of a simulated upstream, as a configuration: the Suno API, which holds requests, and one that
/// never does.
pub const ROUTES: &str = r#"
[[routes]]
preset = "suno"

[[routes]]
name = "replicate"
path = "/v1/predictions/{id}"
pending = ["starting", "processing"]
succeeded = ["succeeded"]
failed = ["failed", "canceled"]
pace = "1s"
"#;

/// A simulated upstream: its server, and the handle of a test. Clones share one upstream and are cheap.
#[derive(Clone)]
pub struct Sim(Arc<SimShared>);

impl Sim {
    /// Returns a simulated upstream without clips.
    ///
    /// # Panics
    /// When the speed is not a positive number.
    pub fn new(options: SimOptions) -> Self {
        Self(Arc::new(SimShared::new(options)))
    }

    /// Serves HTTP/1 and HTTP/2 (with prior knowledge) on the listener until `shutdown` resolves. Then drops all
    /// connections, also those with held polls, and returns. It may be called again with another listener.
    ///
    /// Cancel safe: dropping the future ends the connections as well, without waiting for their tasks.
    pub async fn serve(self, listener: TcpListener, shutdown: impl Future<Output = ()>) {
        server::serve(self.0, listener, shutdown).await;
    }

    /// Sets the status of a clip now, creates the clip if it is missing, and wakes its polls. Replaces an earlier
    /// [`Self::schedule`]. A word outside the ladder is used as it is and answers every poll.
    pub fn set_status(&self, id: &str, word: &str) {
        let state = ClipState::from_word(&self.0.route.ladder, word);
        self.0.set_timeline(id, |_| Timeline::constant(state));
    }

    /// Schedules the statuses of a clip. Each step is a status word and its time from now, which the speed does not
    /// divide. Until the first step an existing clip keeps its status; a new clip has the lowest one.
    pub fn schedule(&self, id: &str, steps: &[(&str, Duration)]) {
        let ladder = &self.0.route.ladder;
        let now = clock::now();
        let steps: Vec<_> =
            steps.iter().map(|&(word, after)| (now + after, ClipState::from_word(ladder, word))).collect();
        let lowest = ClipState::from_word(ladder, ladder.name(ladder.lowest()));
        self.0.set_timeline(id, |current| Timeline::new(current.unwrap_or(lowest), steps));
    }

    /// Sets the status of a vendor's job now and creates the job if it is missing. The job may return to an earlier
    /// status, and the word may be unknown to the vendor.
    pub fn set_job(&self, vendor: Vendor, id: &str, word: &str) {
        let state = VendorState::from_word(&vendor.api().words, word);
        self.0.set_vendor_timeline(vendor, id, |_| Timeline::constant(state));
    }

    /// Ends a vendor's job with its failure. Some vendors say so in an `error` beside the word of success.
    pub fn fail_job(&self, vendor: Vendor, id: &str) {
        let state = VendorState::failed(&vendor.api().words);
        self.0.set_vendor_timeline(vendor, id, |_| Timeline::constant(state));
    }

    /// Schedules the statuses of a vendor's job, like [`Self::schedule`].
    pub fn schedule_job(&self, vendor: Vendor, id: &str, steps: &[(&str, Duration)]) {
        let (words, now) = (&vendor.api().words, clock::now());
        let steps: Vec<_> =
            steps.iter().map(|&(word, after)| (now + after, VendorState::from_word(words, word))).collect();
        let first = VendorState::from_word(words, words.pending[0]);
        self.0.set_vendor_timeline(vendor, id, |current| Timeline::new(current.unwrap_or(first), steps));
    }

    /// Removes a vendor's job: reads of it get 404. Returns whether it existed.
    pub fn remove_job(&self, vendor: Vendor, id: &str) -> bool {
        self.0.remove_vendor_job(vendor, id)
    }

    /// Injects a fault into the next `times` matching requests. If several faults match, the earliest is used.
    pub fn fault(&self, target: FaultTarget, fault: Fault, times: u32) {
        self.inject(FaultSpec { target, fault, frequency: Frequency::Next(times) });
    }

    /// Injects a fault into a random share, 0 to 1, of the matching requests.
    pub fn fault_share(&self, target: FaultTarget, fault: Fault, share: f64) {
        self.inject(FaultSpec { target, fault, frequency: Frequency::Share(share) });
    }

    /// Injects a fault into the requests that `spec` describes.
    pub fn inject(&self, spec: FaultSpec) {
        self.0.state.lock().faults.inject(spec);
    }

    /// Removes all faults that are still pending.
    pub fn clear_faults(&self) {
        self.0.state.lock().faults = FaultQueue::default();
    }

    /// Resets (TCP RST) all open connections with all their requests. New connections are served as before.
    pub fn reset_connections(&self) {
        self.0.resets.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Accepts only these API keys from now on. `None` accepts any key that is not empty.
    pub fn accept_keys(&self, keys: Option<&[String]>) {
        let mut state = self.0.state.lock();
        let state = &mut *state;
        state.keys = AcceptedKeys::new(keys, &mut state.rng);
    }

    /// Returns the recorded requests, the oldest first.
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.observe().requests
    }

    /// Returns the recorded faults that match and had not ended before `since`, the newest first. `matches` runs
    /// under a lock of the simulated upstream and must be quick.
    pub fn faults_since(
        &self,
        since: Instant,
        mut matches: impl FnMut(&FaultRecord) -> bool,
    ) -> Vec<FaultRecord> {
        // A fault that began earlier and has not ended counts too. So the whole record is searched.
        let is_recent = |record: &FaultRecord| record.ended_at.is_none_or(|ended_at| ended_at >= since);
        self.0.recorder.faults(|record| is_recent(record) && matches(record))
    }

    /// Returns the number of held long-polls and hanging requests.
    pub fn open(&self) -> usize {
        self.0.recorder.open()
    }

    /// Returns the current state of the upstream.
    pub fn observe(&self) -> Observation {
        self.0.recorder.observe()
    }

    /// Waits until the condition holds. It is checked now and after each change, so tests need no sleeps. There is no
    /// timeout. Cancel safe.
    pub async fn wait_until(&self, mut condition: impl FnMut(&Observation) -> bool) {
        let mut changes = self.0.recorder.subscribe();
        loop {
            changes.borrow_and_update();
            if condition(&self.observe()) {
                return;
            }
            changes.changed().await.expect("the sender is in self");
        }
    }

    /// Returns the bytes of a clip in this state: the body of the response to a poll for it alone.
    pub fn body(&self, id: &str, word: &str) -> Bytes {
        let ladder = &self.0.route.ladder;
        body::clip(ladder, id, &ClipState::from_word(ladder, word))
    }
}
