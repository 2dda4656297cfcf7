//! The clients alone: each read is an upstream call.

use super::clients::{Outcome, Run};
use super::events::EventQueue;
use super::loops::VendorLoop;

enum Event {
    Read,
    /// The answer arrives; whether the job was done when the upstream read it.
    Answer {
        is_done: bool,
    },
}

/// Plays a run without a gateway.
pub(crate) fn play(vendor: &VendorLoop, clients: usize, seed: u64) -> Outcome {
    let (mut run, mut outcome, mut events) =
        (Run::new(vendor, clients, seed), Outcome::default(), EventQueue::new());
    for &at in &run.arrivals {
        events.add(at, Event::Read);
    }
    while let Some((now, event)) = events.pop() {
        match event {
            Event::Read => {
                outcome.calls += 1;
                let read_at = now + run.transit();
                let is_done = read_at >= run.done_at;
                events.add(read_at + run.transit(), Event::Answer { is_done });
            }
            Event::Answer { is_done: true } => outcome.client_is_done(&run, now),
            Event::Answer { is_done: false } => events.add(now + run.pause(), Event::Read),
        }
    }
    outcome
}
