//! The polling loops of five vendors' clients, as `benches/vendors` plays them: through the gateway, and directly.

#[path = "../../../benches/vendors/clients.rs"]
mod clients;
#[path = "../../../benches/vendors/direct.rs"]
mod direct;
#[path = "../../../benches/vendors/gateway.rs"]
mod gateway;
#[path = "../../../benches/vendors/loops.rs"]
mod loops;

use std::time::Duration;

use clipgate::core::route::Route;

use self::clients::Outcome;
use self::gateway::Asking;
use self::loops::LOOPS;
use crate::coalescing::load::events;

const RUNS: u64 = 20;

/// A round trip to the upstream, and one to the gateway.
const ROUND_TRIP: Duration = Duration::from_millis(150);

fn sum(play: impl Fn(u64) -> Outcome) -> Outcome {
    let mut sum = Outcome::default();
    (1..=RUNS).for_each(|seed| sum.add(&play(seed)));
    sum
}

#[test]
fn ten_clients_that_wait_cost_the_upstream_no_more_than_one_and_are_late_by_one_gap_at_most() {
    for vendor in &LOOPS {
        let max_pace = vendor.route().max_pace;
        let played = |clients| sum(|seed| gateway::play(vendor, max_pace, Asking::Waiting, clients, seed));
        let (one, ten) = (played(1), played(10));
        // A wait that joins brings the next snapshot forward, once for each client.
        assert!(
            ten.calls <= one.calls + 10 * 20,
            "{}: {} for ten, {} for one",
            vendor.name,
            ten.calls,
            one.calls
        );
        for outcome in [&one, &ten] {
            assert!(outcome.latest <= max_pace + ROUND_TRIP, "{}: {:?}", vendor.name, outcome.latest);
        }
        let directly = sum(|seed| direct::play(vendor, 10, seed));
        assert!(ten.calls * 4 <= directly.calls, "{}: {} of {}", vendor.name, ten.calls, directly.calls);
    }
}

#[test]
fn plain_requests_of_ten_clients_cost_at_most_one_call_in_each_live_ttl() {
    for vendor in &LOOPS {
        let Route { pace, max_pace, .. } = vendor.route();
        let through = sum(|seed| gateway::play(vendor, max_pace, Asking::Plain, 10, seed));
        let directly = sum(|seed| direct::play(vendor, 10, seed));
        let longest = vendor.life.mul_f64(1.1) + vendor.interval + vendor.jitter;
        let bound = longest.div_duration_f64(pace).ceil() + 2.0;
        assert!(f64::from(through.calls) <= bound * 20.0, "{}: {} calls", vendor.name, through.calls);
        assert!(
            through.calls * 4 <= directly.calls,
            "{}: {} of {}",
            vendor.name,
            through.calls,
            directly.calls
        );
        let latest = vendor.interval + vendor.jitter + pace + ROUND_TRIP;
        assert!(through.latest <= latest, "{}: {:?}", vendor.name, through.latest);
    }
}
