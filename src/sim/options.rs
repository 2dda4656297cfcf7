//! Options of the simulated upstream.

use std::time::Duration;

use http::StatusCode;
use http::header::{AUTHORIZATION, HeaderName};

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
    /// The header field of the API key. In any other field than `authorization` the key has no scheme.
    pub key_field: HeaderName,
    /// The outer form of responses for several clips.
    pub list_format: ListFormat,
    /// Whether such a response lists the clips in the requested order. If not, the order is reversed.
    pub in_order: bool,
    /// The share of generated clips and jobs that end in error, 0 to 1.
    pub error_rate: f64,
    /// Status code of reads of a vendor's job before its end. `None`: that of the vendor, 200 or 202.
    pub pending_code: Option<StatusCode>,
    /// The most clips in memory, and as many jobs of vendors. The oldest is removed first.
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
            key_field: AUTHORIZATION,
            list_format: ListFormat::Array,
            in_order: true,
            error_rate: 0.02,
            pending_code: None,
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
