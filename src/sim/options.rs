//! Options of the simulated upstream.

use std::time::Duration;

/// Properties of a simulated upstream. The default is the real API, as far as its documents describe it.
#[derive(Clone)]
pub struct SimOptions {
    /// Time until a held long-poll is answered with the current state. Divided by `speed`.
    pub hold: Duration,
    /// Divides the lifetimes of generated clips and the hold. It does not divide the steps of `Sim::schedule`.
    pub speed: f64,
    /// Seed of ids, lifetimes and faults. Equal seeds give equal values.
    pub seed: u64,
    /// The accepted API keys. `None` accepts any key that is not empty.
    pub keys: Option<Vec<String>>,
    /// The outer form of responses for several clips.
    pub list_format: ListFormat,
    /// Whether such a response lists the clips in the requested order. If not, the order is reversed.
    pub in_order: bool,
    /// The share of generated clips that end in error, 0 to 1.
    pub error_rate: f64,
    /// The most clips in memory. The oldest clip is removed first.
    pub max_clips: usize,
    /// The most requests in the record, and as many faults. The oldest is removed first. 0 disables the record.
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

/// The outer form of a response for several clips.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ListFormat {
    /// `[{…},{…}]`
    Array,
    /// `{"clips":[{…},{…}]}`
    Object,
    /// `{"ID":{…},"ID":{…}}`
    Map,
    /// A summary that cannot be split into clips
    Summary,
}
