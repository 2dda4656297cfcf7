//! How many instructions do a cached hit, a join, a leave and a landing take, and is that within the budget?
//!
//! Counted by callgrind, so that noise changes nothing; what the kernel does is not in it. `make counts` runs it, and
//! fails where a count is over its budget. Who changes a count on purpose, for the better too, writes the new one into
//! `counted` below.

#![allow(missing_docs, unreachable_pub, reason = "what the macros make, and modules of benches")]

mod coalescer_fixture;
mod gateway_fixture;

use std::hint::black_box;

use clipgate::core::coalescer::WaitId;
use gungraun::{
    Callgrind, EventKind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main,
};

use self::coalescer_fixture::Crowd;
use self::gateway_fixture::House;

/// The command's own.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What each bench counted when it was last meant to change, in instructions.
mod counted {
    /// A hundred hits through `Gateway::handle`, access line and metrics included.
    pub(crate) const HITS: u64 = 3_319_000;
    /// A hundred hits over an HTTP/1.1 connection.
    pub(crate) const HITS_OVER_THE_WIRE: u64 = 5_110_000;
    /// A hundred joins to 10 waits, and to 10,000.
    pub(crate) const JOINS: [u64; 2] = [646_000, 720_000];
    /// A hundred of 110 waits leave, and of 10,100.
    pub(crate) const LEAVES: [u64; 2] = [281_000, 406_000];
    /// A landing that settles 1,000 waits, and 10,000.
    pub(crate) const LANDINGS: [u64; 2] = [4_226_000, 44_280_000];
}

/// How often what is small is done, so that what seldom happens counts as often as it does.
const TIMES: usize = 100;

/// At most so many instructions, and 4 % more: tables are not laid out alike in two runs, which is 1 % of them.
fn within(counted: u64) -> LibraryBenchmarkConfig {
    let mut callgrind = Callgrind::with_args(["--cache-sim=no"]);
    callgrind.hard_limits([(EventKind::Ir, counted + counted / 25)]);
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(callgrind);
    config
}

#[library_benchmark(config = within(counted::HITS))]
#[bench::hundred(House::new())]
fn a_hit(mut house: House) -> House {
    for _ in 0..TIMES {
        black_box(house.hit());
    }
    house
}

#[library_benchmark(config = within(counted::HITS_OVER_THE_WIRE))]
#[bench::hundred(House::new())]
fn a_hit_over_the_wire(mut house: House) -> House {
    for _ in 0..TIMES {
        black_box(house.hit_over_the_wire());
    }
    house
}

#[library_benchmark]
#[bench::to_10(args = (Crowd::new(10, 1)), config = within(counted::JOINS[0]))]
#[bench::to_10_000(args = (Crowd::new(10_000, 1)), config = within(counted::JOINS[1]))]
fn a_join(mut crowd: Crowd) -> Crowd {
    for _ in 0..TIMES {
        black_box(crowd.join());
    }
    crowd
}

#[library_benchmark]
#[bench::of_10(args = (joined(10)), config = within(counted::LEAVES[0]))]
#[bench::of_10_000(args = (joined(10_000)), config = within(counted::LEAVES[1]))]
fn a_leave((mut crowd, waits): (Crowd, Vec<WaitId>)) -> Crowd {
    for wait in waits {
        crowd.leave(wait);
    }
    crowd
}

/// So many waits, and a hundred to leave.
fn joined(waits: u64) -> (Crowd, Vec<WaitId>) {
    let mut crowd = Crowd::new(waits, 1);
    let joined = (0..TIMES).map(|_| crowd.join()).collect();
    (crowd, joined)
}

#[library_benchmark]
#[bench::of_1_000(args = (Crowd::new(1_000, 1)), config = within(counted::LANDINGS[0]))]
#[bench::of_10_000(args = (Crowd::new(10_000, 1)), config = within(counted::LANDINGS[1]))]
fn a_landing(mut crowd: Crowd) -> Crowd {
    black_box(crowd.land(WaitId(0)));
    crowd
}

library_benchmark_group!(name = hit, benchmarks = [a_hit, a_hit_over_the_wire]);
library_benchmark_group!(name = coalescer, benchmarks = [a_join, a_leave, a_landing]);
main!(library_benchmark_groups = [hit, coalescer]);
