//! The loops: how long a vendor's client pauses between two reads, how long its jobs live, and the gateway's route.

use std::time::Duration;

use clipgate::core::route::Route;

/// A polling loop, and the preset for its API.
#[derive(Debug)]
pub(crate) struct VendorLoop {
    pub(crate) name: &'static str,
    pub(crate) preset: &'static str,
    /// Pause between an answer and the next read.
    pub(crate) interval: Duration,
    /// Greatest difference of one pause from `interval`.
    pub(crate) jitter: Duration,
    /// Mean life of a job.
    pub(crate) life: Duration,
}

impl VendorLoop {
    /// Returns the route of the preset.
    pub(crate) fn route(&self) -> Route {
        let mut routes = clipgate::testing::config::preset_routes();
        routes.find(|route| route.name == self.preset).expect("each loop names a preset")
    }
}

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

pub(crate) const LOOPS: [VendorLoop; 5] = [
    VendorLoop { name: "fal Python", preset: "fal", interval: ms(100), jitter: ms(0), life: ms(20_000) },
    VendorLoop { name: "Replicate", preset: "replicate", interval: ms(500), jitter: ms(0), life: ms(60_000) },
    VendorLoop {
        name: "OpenAI",
        preset: "openai-responses",
        interval: ms(1_000),
        jitter: ms(0),
        life: ms(300_000),
    },
    VendorLoop { name: "Runway", preset: "runway", interval: ms(6_000), jitter: ms(1_500), life: ms(90_000) },
    VendorLoop {
        name: "AIMLAPI",
        preset: "aimlapi-video",
        interval: ms(15_000),
        jitter: ms(0),
        life: ms(180_000),
    },
];
