//! Times of a join, a leave and a landing while waits and jobs grow. The goal is constant time; a logarithm is allowed.
//!
//! Run with `cargo bench --bench coalescer`. `benches/compare coalescer` draws the result.

#![allow(unreachable_pub, reason = "modules of benches")]

mod coalescer_fixture;

use std::cell::RefCell;

use clipgate::core::coalescer::WaitId;
use divan::Bencher;
use divan::counter::ItemsCount;

use self::coalescer_fixture::Crowd;

/// Numbers of parked waits.
const WAITS: [u64; 6] = [10, 100, 1_000, 10_000, 100_000, 1_000_000];

/// Size of a sample: small enough to leave the number of parked waits as it is.
const SAMPLE: u32 = 10;

fn main() {
    divan::main();
}

/// A wait that leaves when dropped. divan drops results outside of the measured time.
struct LeaveOnDrop<'a>(WaitId, &'a RefCell<Crowd>);

impl Drop for LeaveOnDrop<'_> {
    fn drop(&mut self) {
        self.1.borrow_mut().leave(self.0);
    }
}

#[divan::bench(args = WAITS, sample_size = SAMPLE)]
fn join_on_one_job(bencher: Bencher<'_, '_>, waits: u64) {
    join(bencher, waits, 1);
}

#[divan::bench(args = WAITS, sample_size = SAMPLE)]
fn join_on_a_job_of_its_own(bencher: Bencher<'_, '_>, waits: u64) {
    join(bencher, waits, waits);
}

#[divan::bench(args = WAITS, sample_size = SAMPLE)]
fn leave_on_one_job(bencher: Bencher<'_, '_>, waits: u64) {
    leave(bencher, waits, 1);
}

#[divan::bench(args = WAITS, sample_size = SAMPLE)]
fn leave_on_a_job_of_its_own(bencher: Bencher<'_, '_>, waits: u64) {
    leave(bencher, waits, waits);
}

/// The one job of all waits lands. The time for each wait should be constant.
#[divan::bench(args = WAITS, sample_count = 5, sample_size = 1)]
fn landing_for_each_wait(bencher: Bencher<'_, '_>, waits: u64) {
    bencher
        .counter(ItemsCount::new(waits))
        .with_inputs(|| Crowd::new(waits, 1))
        .bench_local_refs(|crowd| assert_eq!(crowd.land(WaitId(0)), waits));
}

/// A job of one or two waits lands beside many others.
#[divan::bench(args = WAITS, sample_size = SAMPLE)]
fn landing_of_one_job_of_many(bencher: Bencher<'_, '_>, waits: u64) {
    let crowd = RefCell::new(Crowd::new(waits, waits));
    bencher
        .with_inputs(|| crowd.borrow_mut().join())
        .bench_local_values(|wait| assert_ne!(crowd.borrow_mut().land(wait), 0));
}

/// Numbers of jobs that each of ten waits names.
const JOBS_PER_WAIT: [u64; 3] = [10, 100, 1_000];

/// Ten waits join, each for this number of jobs.
#[divan::bench(args = JOBS_PER_WAIT, sample_count = 5, sample_size = 1)]
fn join_of_ten_wide_waits_for_each_job(bencher: Bencher<'_, '_>, jobs: u64) {
    let counter = ItemsCount::new(10 * jobs);
    bencher
        .counter(counter)
        .with_inputs(|| Crowd::new(0, 1))
        .bench_local_refs(|crowd| crowd.join_wide(10, jobs));
}

/// All polls of ten waits land, each with one job at its goal.
#[divan::bench(args = JOBS_PER_WAIT, sample_count = 5, sample_size = 1)]
fn landings_of_ten_wide_waits_for_each_job(bencher: Bencher<'_, '_>, jobs: u64) {
    let wide = || {
        let mut crowd = Crowd::new(0, 1);
        crowd.join_wide(10, jobs);
        crowd
    };
    let counter = ItemsCount::new(10 * jobs);
    bencher
        .counter(counter)
        .with_inputs(wide)
        .bench_local_refs(|crowd| assert_ne!(crowd.land_all_partly(), 0));
}

fn join(bencher: Bencher<'_, '_>, waits: u64, jobs: u64) {
    let crowd = RefCell::new(Crowd::new(waits, jobs));
    bencher.bench_local(|| {
        let wait = crowd.borrow_mut().join();
        LeaveOnDrop(wait, &crowd)
    });
}

fn leave(bencher: Bencher<'_, '_>, waits: u64, jobs: u64) {
    let crowd = RefCell::new(Crowd::new(waits, jobs));
    bencher
        .with_inputs(|| crowd.borrow_mut().join())
        .bench_local_values(|wait| crowd.borrow_mut().leave(wait));
}
