//! CPU time of a cached hit on 1, 2 and 4 threads that share one gateway, without sockets.
//!
//! The cost of a hit on two threads shows the memory that the threads share: counters, locks and reference counts. Each
//! thread's own CPU time counts, so other processes change little; the least of several rounds is shown. With fewer
//! processors than threads the threads run one after the other, and share less.
//!
//! Then the same on one thread for many different requests in turn, more than its table of kept answers has room for.
//!
//! Run it with `cargo bench --bench threads 2> /dev/null`: the access log goes to stderr.

#![allow(missing_docs, unreachable_pub, reason = "modules of benches")]

#[allow(dead_code, reason = "other benches use the rest")]
mod gateway_fixture;

use std::hint::black_box;
use std::sync::Barrier;

use clipgate::testing::gateway::Gateway;
use futures_util::FutureExt as _;
use http::HeaderValue;

use self::gateway_fixture::{GatewayFixture, context, request};

/// The allocator of the `clipgate` binary.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const ROUNDS: usize = 7;

/// Numbers of requests in turn: all fit the table of a thread, or few.
const TARGETS: [usize; 3] = [1_000, 3_000, 10_000];

/// Passes over all requests that fill the table of the thread.
const FILLING_PASSES: usize = 3;

/// Hits of each thread in a round.
const HITS: u32 = 50_000;

#[allow(clippy::print_stdout, reason = "the result")]
fn main() {
    let fixture = GatewayFixture::new();
    let mut one = None;
    for threads in [1, 2, 4] {
        let least = (0..ROUNDS).map(|_| round(&fixture.gateway(), threads)).fold(f64::INFINITY, f64::min);
        let factor = least / *one.get_or_insert(least);
        println!("{threads} threads: {least:.0} ns a hit, {factor:.2} x of one");
    }
    for targets in TARGETS {
        let least =
            (0..ROUNDS).map(|_| round_in_turn(&fixture.gateway(), targets)).fold(f64::INFINITY, f64::min);
        println!("{targets} requests in turn: {least:.0} ns a hit");
    }
}

/// Returns the CPU time of one hit in nanoseconds, of this many requests in turn that differ in their bytes.
fn round_in_turn(gateway: &Gateway, targets: usize) -> f64 {
    let host = |number| HeaderValue::from_str(&format!("gateway-{number}")).expect("a valid value");
    let hosts: Vec<HeaderValue> = (0..targets).map(host).collect();
    // The scheduler counts in ticks of some milliseconds.
    let passes = (HITS as usize).div_ceil(targets);
    let mut before = 0;
    for pass in 0..FILLING_PASSES + passes {
        before = if pass == FILLING_PASSES { cpu_time() } else { before };
        for host in &hosts {
            let mut request = request();
            request.headers_mut().insert("host", host.clone());
            black_box(
                gateway.handle(request, context()).now_or_never().expect("a hit is ready at once").response,
            );
        }
    }
    (cpu_time() - before) as f64 / (passes * targets) as f64
}

/// Returns the CPU time of one hit in nanoseconds.
fn round(gateway: &Gateway, threads: usize) -> f64 {
    let barrier = Barrier::new(threads);
    let used: u64 = std::thread::scope(|scope| {
        let run = || {
            // The first hits fill the tables of the thread.
            (0..100).for_each(|_| hit(gateway));
            barrier.wait();
            let before = cpu_time();
            (0..HITS).for_each(|_| hit(gateway));
            cpu_time() - before
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        running.into_iter().map(|thread| thread.join().expect("a thread")).sum()
    });
    used as f64 / (threads as f64 * f64::from(HITS))
}

fn hit(gateway: &Gateway) {
    let answer = gateway.handle(request(), context()).now_or_never();
    black_box(answer.expect("a hit is ready at once").response);
}

/// Returns the CPU time of this thread in nanoseconds, from the scheduler of Linux.
fn cpu_time() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    text.split(' ').next().and_then(|field| field.parse().ok()).expect("a number of nanoseconds")
}
