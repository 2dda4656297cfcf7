//! Shared state of one simulated upstream: its clips, jobs of vendors, faults and keys behind one lock, and its request recorder.
//!
//! Every `Sim` handle and every connection holds an `Arc<SimShared>`. The lock is held for a few lines
//! and never across an `.await`; a held poll waits on its clips without the lock.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::bounded_map::BoundedMap;
use super::faults::FaultQueue;
use super::job::{Clip, ClipState, LifetimeModel, Timeline};
use super::keys::AcceptedKeys;
use super::options::SimOptions;
use super::recorder::RequestRecorder;
use super::vendor_job::{VendorJob, VendorState};
use super::vendors::{Vendor, VendorApi};
use crate::clock;
use crate::core::route::SunoEndpoints;

/// The most ids of read lyrics in memory. Each id is of one request; older ids are of no use to a test.
const MAX_LYRICS: usize = 10_000;

pub(super) struct SimShared {
    pub(super) route: SunoEndpoints,
    pub(super) options: SimOptions,
    pub(super) state: Mutex<SimState>,
    pub(super) recorder: Arc<RequestRecorder>,
    /// Counts the calls of `Sim::reset_connections`. Connections subscribe to it.
    pub(super) resets: watch::Sender<u64>,
}

pub(super) struct SimState {
    pub(super) clips: BoundedMap<Arc<Clip>>,
    pub(super) read_lyrics: BoundedMap<()>,
    /// By vendor and id.
    vendor_jobs: BoundedMap<VendorJob>,
    pub(super) faults: FaultQueue,
    pub(super) keys: AcceptedKeys,
    pub(super) rng: Rng,
}

impl SimShared {
    /// # Panics
    /// When the speed is not a positive number.
    pub(super) fn new(options: SimOptions) -> Self {
        assert!(options.speed.is_finite() && options.speed > 0.0, "the speed is a positive number");
        let mut rng = Rng::with_seed(options.seed);
        let state = SimState {
            clips: BoundedMap::new(options.max_clips),
            read_lyrics: BoundedMap::new(MAX_LYRICS),
            vendor_jobs: BoundedMap::new(options.max_clips),
            faults: FaultQueue::default(),
            keys: AcceptedKeys::new(options.keys.as_deref(), &mut rng),
            rng,
        };
        Self {
            route: SunoEndpoints::default(),
            recorder: Arc::new(RequestRecorder::new(options.max_requests)),
            options,
            state: Mutex::new(state),
            resets: watch::Sender::new(0),
        }
    }

    /// Returns how long a long-poll is held.
    pub(super) fn hold(&self) -> Duration {
        self.options.hold.div_f64(self.options.speed)
    }

    /// Replaces the timeline of a clip, which wakes its polls. A missing clip is created. `timeline` gets the current
    /// state of an existing clip.
    pub(super) fn set_timeline(&self, id: &str, timeline: impl FnOnce(Option<ClipState>) -> Timeline) {
        let mut state = self.state.lock();
        match state.clips.get(id) {
            Some(clip) => clip.replace(timeline(Some(clip.state(clock::now())))),
            None => state.clips.insert(id, Arc::new(Clip::new(id, timeline(None)))),
        }
        drop(state);
        self.recorder.notify();
    }

    /// Creates a clip as a generation request does. Its id and the seed decide its lifetime.
    pub(super) fn generate_clip(&self) -> Arc<str> {
        let lifetimes = self.lifetimes();
        let mut state = self.state.lock();
        let id = uuid(&mut state.rng);
        let clip = Arc::new(Clip::new(&id, lifetimes.lifetime(&self.route.ladder, &id, clock::now())));
        let id = Arc::clone(clip.id());
        state.clips.insert(&id, clip);
        drop(state);
        self.recorder.notify();
        id
    }

    /// Creates a job of a vendor as a request does. Its id and the seed decide its lifetime.
    pub(super) fn create_vendor_job(&self, api: &VendorApi) -> String {
        let id = api.new_id(&uuid(&mut self.state.lock().rng));
        let timeline = self.lifetimes().vendor_lifetime(api, &id, clock::now());
        self.set_vendor_timeline(api.vendor, &id, |_| timeline);
        id
    }

    /// Replaces the timeline of a vendor's job. A missing job is created. `timeline` gets the current state of an
    /// existing job.
    pub(super) fn set_vendor_timeline(
        &self,
        vendor: Vendor,
        id: &str,
        timeline: impl FnOnce(Option<VendorState>) -> Timeline<VendorState>,
    ) {
        let (name, now) = (job_name(vendor, id), clock::now());
        let mut state = self.state.lock();
        match state.vendor_jobs.get_mut(&name) {
            Some(job) => job.replace(timeline(Some(job.state(now).clone())), now),
            None => state.vendor_jobs.insert(&name, VendorJob::new(id, timeline(None), now)),
        }
        drop(state);
        self.recorder.notify();
    }

    /// Runs a few lines under the lock with a job of a vendor. Returns `None` if the job does not exist.
    pub(super) fn with_vendor_job<T>(
        &self,
        vendor: Vendor,
        id: &str,
        run: impl FnOnce(&mut VendorJob) -> T,
    ) -> Option<T> {
        self.state.lock().vendor_jobs.get_mut(&job_name(vendor, id)).map(run)
    }

    /// Removes a job of a vendor. Returns whether it existed.
    pub(super) fn remove_vendor_job(&self, vendor: Vendor, id: &str) -> bool {
        self.state.lock().vendor_jobs.remove(&job_name(vendor, id)).is_some()
    }

    pub(super) fn lifetimes(&self) -> LifetimeModel {
        let SimOptions { speed, error_rate, seed, .. } = self.options;
        LifetimeModel { speed, error_rate, seed }
    }
}

/// Returns the name of a vendor's job in the map. Vendors may use the same id.
fn job_name(vendor: Vendor, id: &str) -> String {
    format!("{vendor:?} {id}")
}

/// Returns a random UUID (version 4), the form of the upstream's ids.
pub(super) fn uuid(rng: &mut Rng) -> String {
    let (high, low) = (rng.u64(..), rng.u64(..));
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xfff,
        0x8000 | ((low >> 48) & 0x3fff),
        low & 0xffff_ffff_ffff
    )
}
