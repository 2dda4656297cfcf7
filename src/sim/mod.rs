//! The simulated upstream: section 1 of the contract as a server, with faults on order.
//!
//! What `clipgate sim` and `serve --sim` run, and what tests and benches put behind the gateway. It must never
//! know the gateway's own parsers and limits: of its code it uses the ladder and the paths ([`Route`]), nothing
//! else, so that a mistake there cannot hide in both ends at once.
//!
//! ```text
//!  connections (server) ──► one request (api) ──► fault? ──► clips: held until reached ──► body
//!                                │ aids under /sim/            ▲
//!                                ▼                             │ put, plan, fault
//!                             journal ──► requests, until ── Sim, a test's handle
//! ```
//!
//! [`Sim`] owns all state behind one lock of a few lines; a held poll keeps none of it, it watches its clips.

#![warn(missing_docs)]

mod api;
mod body;
mod bounded_map;
mod debug_endpoints;
mod faults;
mod job;
mod keys;
mod recorder;
mod response;
mod server;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fastrand::Rng;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::watch;

pub use self::faults::{ErrorBody, Fault, FaultSpec, FaultSpecError, FaultTarget, Frequency};
pub use self::keys::RecordedKey;
pub use self::recorder::{FaultRecord, Observation, RecordedRequest, RequestEnd};

use self::bounded_map::BoundedMap;
use self::faults::FaultQueue;
use self::job::{Clip, ClipState, LifetimeModel, Timeline};
use self::keys::AcceptedKeys;
use self::recorder::RequestRecorder;
use crate::clock;
use crate::core::route::Route;

/// What the simulated upstream is like. The default is the real one, as far as it is known.
#[derive(Clone)]
pub struct SimOptions {
    /// How long a poll is held before it is answered with the state as it is; divided by the speed.
    pub hold: Duration,
    /// How many times faster than life clips are made and polls run out. Not what a test scripts itself.
    pub speed: f64,
    /// What ids, lifetimes and chance come from: with the same seed they are the same.
    pub seed: u64,
    /// The keys that are let in; `None`: any that is not empty.
    pub keys: Option<Vec<String>>,
    /// How answers for several clips look.
    pub list_format: ListFormat,
    /// Whether such an answer has the clips in the order asked for; else it is reversed.
    pub in_order: bool,
    /// The part of the made clips that ends in error, 0 to 1.
    pub error_rate: f64,
    /// How many clips are remembered; the oldest is forgotten first.
    pub max_clips: usize,
    /// How many requests are remembered, and as many faults; the oldest is forgotten first. 0 turns the record off.
    pub max_requests: usize,
}

impl Default for SimOptions {
    fn default() -> Self {
        Self {
            hold: Duration::from_secs(120),
            speed: 1.0,
            seed: 1,
            keys: None,
            list_format: ListFormat::Array,
            in_order: true,
            error_rate: 0.02,
            max_clips: 100_000,
            max_requests: 10_000,
        }
    }
}

/// The outer shape of an answer for several clips.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ListFormat {
    /// `[{…},{…}]`
    Array,
    /// `{"clips":[{…},{…}]}`
    Object,
    /// `{"ID":{…},"ID":{…}}`
    Map,
    /// A summary, that cannot be cut into clips
    Summary,
}

/// A simulated upstream: the server, and a test's handle on it. Cheap to clone; all clones are one upstream.
#[derive(Clone)]
pub struct Sim(Arc<SimShared>);

struct SimShared {
    route: Route,
    options: SimOptions,
    state: Mutex<SimState>,
    /// Counts the changes of the world, for [`Sim::until`].
    changes: watch::Sender<u64>,
    /// Counts how often all connections were reset.
    resets: watch::Sender<u64>,
}

struct SimState {
    clips: BoundedMap<Arc<Clip>>,
    lyrics_read: BoundedMap<()>,
    faults: FaultQueue,
    keys: AcceptedKeys,
    recorder: RequestRecorder,
    rng: Rng,
}

/// How many lyrics are remembered as read: only so many ids, each a request's own, are worth their memory.
const KEEP_LYRICS: usize = 10_000;

impl Sim {
    /// A simulated upstream without clips.
    ///
    /// # Panics
    /// When the speed is not a positive number.
    pub fn new(options: SimOptions) -> Self {
        assert!(options.speed.is_finite() && options.speed > 0.0, "the speed is a positive number");
        let mut rng = Rng::with_seed(options.seed);
        let world = SimState {
            clips: BoundedMap::new(options.max_clips),
            lyrics_read: BoundedMap::new(KEEP_LYRICS),
            faults: FaultQueue::default(),
            keys: AcceptedKeys::new(options.keys.as_deref(), &mut rng),
            recorder: RequestRecorder::new(options.max_requests),
            rng,
        };
        Self(Arc::new(SimShared {
            route: Route::suno(),
            options,
            state: Mutex::new(world),
            changes: watch::Sender::new(0),
            resets: watch::Sender::new(0),
        }))
    }

    /// Answers on the listener, in HTTP/1 and in HTTP/2 with prior knowledge, until `until` is done; then it
    /// drops every connection and returns, polls held or not. May be called again, with another listener.
    ///
    /// Cancel safe: dropped, it stops just so, but without waiting for the connections' tasks.
    pub async fn serve(self, listener: TcpListener, until: impl Future<Output = ()>) {
        server::serve(self, listener, until).await;
    }

    /// Creates the clip, or moves it, to this status now, and wakes its polls. What was planned for it is off.
    /// A word that is on no ladder is taken as it is, and answers every poll.
    pub fn set_status(&self, id: &str, word: &str) {
        let state = ClipState::of(&self.0.route.ladder, word);
        self.set_timeline(id, |_| Timeline::still(state));
    }

    /// Lets the clip climb: each step is a status word and when it is reached from now on, not divided by the
    /// speed. Until the first step it stays where it is, a new one on the lowest rung.
    pub fn schedule(&self, id: &str, steps: &[(&str, Duration)]) {
        let ladder = &self.0.route.ladder;
        let now = clock::now();
        let steps: Vec<_> =
            steps.iter().map(|&(word, after)| (now + after, ClipState::of(ladder, word))).collect();
        let lowest = ClipState::of(ladder, ladder.name(ladder.lowest()));
        self.set_timeline(id, |here| Timeline::new(here.unwrap_or(lowest), steps));
    }

    /// Makes the next `times` of these requests fail. Of several faults that fit, the one ordered first comes
    /// first.
    pub fn fault(&self, on: FaultTarget, fault: Fault, times: u32) {
        self.inject(FaultSpec { target: on, fault, frequency: Frequency::Next(times) });
    }

    /// Makes a part of these requests fail, 0 to 1, by chance.
    pub fn fault_share(&self, on: FaultTarget, fault: Fault, share: f64) {
        self.inject(FaultSpec { target: on, fault, frequency: Frequency::Share(share) });
    }

    /// Orders a fault.
    pub fn inject(&self, spec: FaultSpec) {
        self.0.state.lock().faults.inject(spec);
    }

    /// Takes back every fault that is still ordered.
    pub fn clear_faults(&self) {
        self.0.state.lock().faults = FaultQueue::default();
    }

    /// Resets (TCP RST) all connections that stand now, whatever is under way on them. New ones are served as before.
    pub fn reset_connections(&self) {
        self.0.resets.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// From now on lets only these keys in; `None`: any that is not empty.
    pub fn accept_keys(&self, keys: Option<&[String]>) {
        let mut world = self.0.state.lock();
        let world = &mut *world;
        world.keys = AcceptedKeys::new(keys, &mut world.rng);
    }

    /// Every request so far that is still remembered, the oldest first.
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.observe().requests
    }

    /// The faults since then, of those that are remembered, for which this holds; the newest first. It is called
    /// with the simulated upstream locked, and must be quick.
    pub fn faults_since(
        &self,
        since: Instant,
        mut fits: impl FnMut(&FaultRecord) -> bool,
    ) -> Vec<FaultRecord> {
        let world = self.0.state.lock();
        // One that struck before and is not over yet counts too: so the whole record is looked through.
        let recent = |record: &&FaultRecord| record.ended_at.is_none_or(|ended_at| ended_at >= since);
        world.recorder.faults().filter(recent).filter(|record| fits(record)).cloned().collect()
    }

    /// How many long-polls are held now.
    pub fn open(&self) -> usize {
        self.0.state.lock().recorder.open()
    }

    /// What can be seen from here now.
    pub fn observe(&self) -> Observation {
        self.0.state.lock().recorder.observed()
    }

    /// Comes back as soon as the condition holds; it is tried now and after each change, so that no test needs
    /// to sleep. Has no time limit of its own. Cancel safe.
    pub async fn wait_until(&self, mut what: impl FnMut(&Observation) -> bool) {
        let mut changes = self.0.changes.subscribe();
        loop {
            changes.borrow_and_update();
            if what(&self.observe()) {
                return;
            }
            changes.changed().await.expect("the sender is in self");
        }
    }

    /// The bytes that tell this clip in this state: what a poll for it alone is answered with.
    pub fn body(&self, id: &str, word: &str) -> Bytes {
        body::clip(&self.0.route.ladder, id, &ClipState::of(&self.0.route.ladder, word))
    }

    fn set_timeline(&self, id: &str, timeline: impl FnOnce(Option<ClipState>) -> Timeline) {
        let mut world = self.0.state.lock();
        match world.clips.get(id) {
            Some(clip) => clip.replace(timeline(Some(clip.state(clock::now())))),
            None => world.clips.insert(id, Arc::new(Clip::new(id, timeline(None)))),
        }
        drop(world);
        self.changed();
    }

    /// A clip as a generation request makes it, with the lifetime that its id has under this seed.
    fn make_clip(&self) -> Arc<str> {
        let options = &self.0.options;
        let pace = LifetimeModel { speed: options.speed, error_rate: options.error_rate, seed: options.seed };
        let mut world = self.0.state.lock();
        let id = uuid(&mut world.rng);
        let clip = Arc::new(Clip::new(&id, pace.lifetime(&self.0.route.ladder, &id, clock::now())));
        let id = Arc::clone(clip.id());
        world.clips.insert(&id, clip);
        drop(world);
        self.changed();
        id
    }

    fn hold(&self) -> Duration {
        self.0.options.hold.div_f64(self.0.options.speed)
    }

    fn changed(&self) {
        self.0.changes.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// An id that looks like the upstream's, a random UUID.
fn uuid(rng: &mut Rng) -> String {
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
