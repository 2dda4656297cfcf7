//! Days of a team, as `benches/load` plays them: mixed clients through the two state machines, beside the same clients
//! alone.

#[path = "../../../benches/load/clients.rs"]
mod clients;
#[path = "../../../benches/load/day.rs"]
mod day;
#[path = "../../../benches/load/direct.rs"]
mod direct;
#[path = "../../../benches/load/events.rs"]
pub(crate) mod events;
#[path = "../../../benches/load/gateway.rs"]
mod gateway;
#[path = "../../../benches/load/mix.rs"]
mod mix;
#[path = "../../../benches/load/outcome.rs"]
mod outcome;
#[path = "../../../benches/load/upstream.rs"]
mod upstream;

use std::time::Duration;

use self::day::Day;
use self::gateway::Rules;
use self::mix::Mix;
use self::outcome::{Outcome, saving};

/// A round trip, and the time for which a poll must be silent to prove a state.
const TOLERANCE: Duration = Duration::from_secs(1);

/// Calls directly / calls by clipgate, somewhat below that of these days.
const MIN_SAVING: f64 = 3.3;

#[test]
fn days_of_mixed_clients_cost_fewer_calls_and_no_client_is_worse_off_than_alone() {
    let mix = Mix::team();
    assert_eq!(Mix::count(&mix.people) + Mix::count(&mix.workers), 50);
    let (mut alone, mut shared) = (Outcome::default(), Outcome::default());
    for seed in 1..=3 {
        let day = Day::new(&mix, seed);
        let direct = direct::play(&day, &mix);
        let gateway = gateway::play(&day, &mix, Rules { proof: true, watch: true, shed: true });
        assert_as_right_as_directly(seed, &direct, &gateway);
        alone.add(&direct);
        shared.add(&gateway);
    }
    let saved = saving(&alone, &shared);
    assert!(saved >= MIN_SAVING, "the saving fell to {saved:.2}: {:?}, {:?}", shared.calls, shared.answers);
}

#[test]
fn without_proof_or_without_watches_no_client_is_worse_off_than_alone_either() {
    let mix = Mix::team();
    let day = Day::new(&mix, 4);
    let direct = direct::play(&day, &mix);
    for rules in
        [Rules { proof: true, watch: false, shed: true }, Rules { proof: false, watch: true, shed: true }]
    {
        assert_as_right_as_directly(4, &direct, &gateway::play(&day, &mix, rules));
    }
}

fn assert_as_right_as_directly(seed: u64, direct: &Outcome, gateway: &Outcome) {
    for (visit, (alone, shared)) in direct.record.results.iter().zip(&gateway.record.results).enumerate() {
        if let (Some(alone), Some(shared)) = (alone, shared) {
            assert_eq!(alone, shared, "seed {seed}, visit {visit}");
        }
    }
    let record = &gateway.record;
    assert!(record.latest <= TOLERANCE, "seed {seed}: P1: an answer is {:?} late", record.latest);
    assert!(record.oldest_status <= TOLERANCE, "seed {seed}: P7: a status is {:?} old", record.oldest_status);
    assert_eq!(record.false_statuses, 0, "seed {seed}: statuses that were not true yet");
}
