//! The loops: how long a vendor's client pauses between two reads, how long its jobs live, and the gateway's route.

use std::time::Duration;

/// A polling loop, and the pace of the preset for its API.
#[derive(Debug)]
pub(crate) struct VendorLoop {
    pub(crate) name: &'static str,
    /// Pause between an answer and the next read.
    pub(crate) interval: Duration,
    /// Greatest difference of one pause from `interval`.
    pub(crate) jitter: Duration,
    /// Mean life of a job.
    pub(crate) life: Duration,
    pub(crate) pace: Duration,
    pub(crate) max_pace: Duration,
}

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

pub(crate) const LOOPS: [VendorLoop; 5] = [
    VendorLoop {
        name: "fal Python",
        interval: ms(100),
        jitter: ms(0),
        life: ms(20_000),
        pace: ms(500),
        max_pace: ms(2_000),
    },
    VendorLoop {
        name: "Replicate",
        interval: ms(500),
        jitter: ms(0),
        life: ms(60_000),
        pace: ms(1_000),
        max_pace: ms(5_000),
    },
    VendorLoop {
        name: "OpenAI",
        interval: ms(1_000),
        jitter: ms(0),
        life: ms(300_000),
        pace: ms(1_000),
        max_pace: ms(10_000),
    },
    VendorLoop {
        name: "Runway",
        interval: ms(6_000),
        jitter: ms(1_500),
        life: ms(90_000),
        pace: ms(5_000),
        max_pace: ms(5_000),
    },
    VendorLoop {
        name: "AIMLAPI",
        interval: ms(15_000),
        jitter: ms(0),
        life: ms(180_000),
        pace: ms(5_000),
        max_pace: ms(15_000),
    },
];
