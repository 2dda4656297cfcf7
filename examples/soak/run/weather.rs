//! When the upstream is well and when it is not: calm, a storm of random faults, and the time until the last fault
//! is over; again and again.

use std::time::{Duration, Instant};

use clipgate::clock;
use clipgate::sim::{ErrorBody, Fault, FaultSpec, Often, On, Shape, Sim};
use fastrand::Rng;
use http::StatusCode;

/// What the upstream is like at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sky {
    /// Nothing goes wrong.
    Calm,
    /// Faults are on order.
    Storm,
    /// None is, but what went wrong may not be over.
    Settling,
}

/// The weather of a run, fixed from its beginning.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    begun: Instant,
    calm: Duration,
    storm: Duration,
    settling: Duration,
}

impl Weather {
    /// `rest`: how long a fault may last after the storm.
    pub(crate) fn new(begun: Instant, hold: Duration, rest: Duration) -> Self {
        Self { begun, calm: hold * 3, storm: hold * 2, settling: rest }
    }

    pub(crate) fn cycle(&self) -> Duration {
        self.calm + self.storm + self.settling
    }

    pub(crate) fn sky(&self, at: Instant) -> Sky {
        let into = self.since_cycle(at);
        if into < self.calm {
            Sky::Calm
        } else if into < self.calm + self.storm {
            Sky::Storm
        } else {
            Sky::Settling
        }
    }

    /// Whether it is one calm from the one moment to the other.
    pub(crate) fn is_calm(&self, from: Instant, to: Instant) -> bool {
        self.sky(from) == Sky::Calm && self.since_cycle(from) + (to - from) < self.calm
    }

    fn since_cycle(&self, at: Instant) -> Duration {
        let nanos = at.saturating_duration_since(self.begun).as_nanos() % self.cycle().as_nanos();
        Duration::from_nanos(u64::try_from(nanos).expect("a cycle is short"))
    }

    /// Orders the faults of each storm, and takes them back. Cancel safe: what is ordered stays.
    pub(crate) async fn run(self, sim: Sim, mut rng: Rng) {
        loop {
            let into = self.since_cycle(clock::now());
            tokio::time::sleep(self.calm.saturating_sub(into)).await;
            for spec in storm(&mut rng) {
                sim.order(spec);
            }
            let into = self.since_cycle(clock::now());
            tokio::time::sleep((self.calm + self.storm).saturating_sub(into)).await;
            sim.clear_faults();
            let into = self.since_cycle(clock::now());
            tokio::time::sleep(self.cycle().saturating_sub(into)).await;
        }
    }
}

/// Two to five faults, each of its own share; now and then the upstream is down.
fn storm(rng: &mut Rng) -> Vec<FaultSpec> {
    if rng.u8(..5) == 0 {
        let fault = if rng.bool() { Fault::Refuse } else { Fault::status_with(502, ErrorBody::Html) };
        return vec![FaultSpec { on: On::Any, fault, often: Often::Share(1.0) }];
    }
    (0..rng.usize(2..=5)).map(|_| fault(rng)).collect()
}

fn fault(rng: &mut Rng) -> FaultSpec {
    let second = Duration::from_secs(1);
    let fault = match rng.u8(..14) {
        0 => Fault::Refuse,
        1 => Fault::reset(),
        2 => Fault::reset_after(second.mul_f64(rng.f64() * 4.0)),
        3 => Fault::Hang,
        4 => Fault::Cut,
        5 => Fault::Html,
        6 => Fault::retry_after(429, second),
        7 => Fault::retry_after(503, second),
        8 => Fault::status(429),
        9 => Fault::status_with([500, 502, 503, 504][rng.usize(..4)], ErrorBody::Empty),
        10 => Fault::Status {
            status: StatusCode::BAD_GATEWAY,
            retry_after: None,
            body: ErrorBody::Html,
            after: second.mul_f64(rng.f64() * 4.0),
        },
        11 => Fault::Shape(Shape::Object),
        12 => Fault::Shape(Shape::Map),
        _ => Fault::Shape(Shape::Summary),
    };
    let on = match rng.u8(..6) {
        0 => On::Path("/sim/".to_owned()),
        1 => On::Any,
        _ => On::Polls,
    };
    let most = if matches!(fault, Fault::Hang) { 0.05 } else { 0.4 };
    FaultSpec { on, fault, often: Often::Share(rng.f64() * most) }
}
