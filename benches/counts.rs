//! Instructions of a cached hit, a pass-through, a join, a leave and a landing, each with a budget.
//!
//! Callgrind counts them, so the load of the machine changes nothing; instructions of the kernel are not included.
//! `make counts` runs this bench, and fails if a count exceeds its budget. To accept a changed count, higher or lower,
//! write the new one into `counted` below.

#![allow(missing_docs, unreachable_pub, reason = "items of the macros, and modules of benches")]

mod coalescer_fixture;
#[allow(dead_code, reason = "other benches use the rest")]
mod gateway_fixture;

use std::hint::black_box;

use clipgate::core::coalescer::WaitId;
use clipgate::testing::config::Share;
use gungraun::{
    Callgrind, EventKind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main,
};

use self::coalescer_fixture::Crowd;
use self::gateway_fixture::{GatewayFixture, STREAMS};

/// The allocator of the `clipgate` binary.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Accepted counts, in instructions.
mod counted {
    /// A hundred hits through `Gateway::handle`, including access log and metrics.
    pub(crate) const HITS: u64 = 1_379_000;
    /// A hundred hits over an HTTP/1.1 connection.
    pub(crate) const HITS_OVER_HTTP1: u64 = 3_009_000;
    /// A hundred hits over an HTTP/2 connection, ten at once.
    pub(crate) const HITS_OVER_HTTP2: u64 = 5_737_000;
    /// A hundred passed-through requests over kept connections.
    pub(crate) const PASSES: u64 = 5_050_000;
    /// The answer to a poll of 400 identical waits over HTTP/1.1, their responses, and the ends of their connections.
    pub(crate) const WAITS_OVER_HTTP1: u64 = 11_356_000;
    /// A hundred joins to 10 waits, and to 10,000.
    pub(crate) const JOINS: [u64; 2] = [634_000, 750_000];
    /// A hundred of 110 waits leave, and of 10,100.
    pub(crate) const LEAVES: [u64; 2] = [244_500, 376_000];
    /// The answer to a poll that settles 1,000 waits, and one that settles 10,000.
    pub(crate) const LANDINGS: [u64; 2] = [2_574_000, 25_830_000];
}

/// Repetitions of a small operation, so that rare work such as the growth of a table counts in proportion.
const REPETITIONS: usize = 100;

/// Sets the budget: the accepted count and 4 %. The layout of hash tables differs from run to run, by about 1 %.
fn budget(counted: u64) -> LibraryBenchmarkConfig {
    let mut callgrind = Callgrind::with_args(["--cache-sim=no"]);
    callgrind.hard_limits([(EventKind::Ir, counted + counted / 25)]);
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(callgrind);
    config
}

#[library_benchmark(config = budget(counted::HITS))]
#[bench::hundred(GatewayFixture::new())]
fn a_hit(mut fixture: GatewayFixture) -> GatewayFixture {
    for _ in 0..REPETITIONS {
        black_box(fixture.hit());
    }
    fixture
}

#[library_benchmark(config = budget(counted::HITS_OVER_HTTP1))]
#[bench::hundred(GatewayFixture::new())]
fn a_hit_over_http1(mut fixture: GatewayFixture) -> GatewayFixture {
    for _ in 0..REPETITIONS {
        black_box(fixture.hit_over_http1());
    }
    fixture
}

// One of several replicas: the budget is that of a single gateway. One run was within 1.5 % of it, with shared quotas too.
#[library_benchmark]
#[bench::without_quotas(args = (GatewayFixture::of_replica(&[Share::Jobs, Share::Polls])), config = budget(counted::HITS))]
#[bench::with_quotas(
    args = (GatewayFixture::of_replica(&[Share::Jobs, Share::Polls, Share::Quotas])),
    config = budget(counted::HITS)
)]
fn a_hit_at_a_replica(mut fixture: GatewayFixture) -> GatewayFixture {
    for _ in 0..REPETITIONS {
        black_box(fixture.hit());
    }
    fixture
}

#[library_benchmark]
#[bench::without_quotas(
    args = (GatewayFixture::of_replica(&[Share::Jobs, Share::Polls])),
    config = budget(counted::HITS_OVER_HTTP1)
)]
#[bench::with_quotas(
    args = (GatewayFixture::of_replica(&[Share::Jobs, Share::Polls, Share::Quotas])),
    config = budget(counted::HITS_OVER_HTTP1)
)]
fn a_hit_over_http1_at_a_replica(mut fixture: GatewayFixture) -> GatewayFixture {
    for _ in 0..REPETITIONS {
        black_box(fixture.hit_over_http1());
    }
    fixture
}

#[library_benchmark(config = budget(counted::PASSES))]
#[bench::hundred(GatewayFixture::with_fixed_upstream())]
fn a_pass(mut fixture: GatewayFixture) -> GatewayFixture {
    for _ in 0..REPETITIONS {
        black_box(fixture.pass_over_http1());
    }
    fixture
}

#[library_benchmark(config = budget(counted::HITS_OVER_HTTP2))]
#[bench::hundred(GatewayFixture::new())]
fn a_hit_over_http2(mut fixture: GatewayFixture) -> GatewayFixture {
    for _ in 0..REPETITIONS / STREAMS {
        black_box(fixture.hits_over_http2());
    }
    fixture
}

#[library_benchmark(config = budget(counted::WAITS_OVER_HTTP1))]
#[bench::all(GatewayFixture::with_waits())]
fn a_landing_over_http1(mut fixture: GatewayFixture) -> GatewayFixture {
    fixture.land_waits();
    fixture
}

#[library_benchmark]
#[bench::to_10(args = (Crowd::new(10, 1)), config = budget(counted::JOINS[0]))]
#[bench::to_10_000(args = (Crowd::new(10_000, 1)), config = budget(counted::JOINS[1]))]
fn a_join(mut crowd: Crowd) -> Crowd {
    for _ in 0..REPETITIONS {
        black_box(crowd.join());
    }
    crowd
}

#[library_benchmark]
#[bench::of_10(args = (joined(10)), config = budget(counted::LEAVES[0]))]
#[bench::of_10_000(args = (joined(10_000)), config = budget(counted::LEAVES[1]))]
fn a_leave((mut crowd, waits): (Crowd, Vec<WaitId>)) -> Crowd {
    for wait in waits {
        crowd.leave(wait);
    }
    crowd
}

/// Returns a crowd of this many waits, and a hundred more that will leave.
fn joined(waits: u64) -> (Crowd, Vec<WaitId>) {
    let mut crowd = Crowd::new(waits, 1);
    let joined = (0..REPETITIONS).map(|_| crowd.join()).collect();
    (crowd, joined)
}

#[library_benchmark]
#[bench::of_1_000(args = (Crowd::new(1_000, 1)), config = budget(counted::LANDINGS[0]))]
#[bench::of_10_000(args = (Crowd::new(10_000, 1)), config = budget(counted::LANDINGS[1]))]
fn a_landing(mut crowd: Crowd) -> Crowd {
    black_box(crowd.land(WaitId(0)));
    crowd
}

library_benchmark_group!(
    name = hit,
    benchmarks = [
        a_hit,
        a_hit_at_a_replica,
        a_hit_over_http1,
        a_hit_over_http1_at_a_replica,
        a_hit_over_http2,
        a_pass,
        a_landing_over_http1
    ]
);
library_benchmark_group!(name = coalescer, benchmarks = [a_join, a_leave, a_landing]);
main!(library_benchmark_groups = [hit, coalescer]);
