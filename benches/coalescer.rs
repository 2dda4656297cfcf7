//! What do a join, a leave and a landing cost as waits and jobs grow? Flat is the goal, a logarithm is allowed.
//!
//! `cargo bench --bench coalescer`; `benches/compare coalescer` draws it.

#![allow(unreachable_pub, reason = "modules of benches")]

mod coalescer_fixture;

use std::cell::RefCell;

use clipgate::core::coalescer::WaitId;
use divan::Bencher;
use divan::counter::ItemsCount;

use self::coalescer_fixture::Crowd;

/// How many are parked.
const WAITS: [u64; 6] = [10, 100, 1_000, 10_000, 100_000, 1_000_000];

/// So few at a time that they do not change how many are parked.
const AT_ONCE: u32 = 10;

fn main() {
    divan::main();
}

/// A wait that is gone when nobody looks at it any more, as divan drops what comes back when the time is taken.
struct Joined<'a>(WaitId, &'a RefCell<Crowd>);

impl Drop for Joined<'_> {
    fn drop(&mut self) {
        self.1.borrow_mut().leave(self.0);
    }
}

#[divan::bench(args = WAITS, sample_size = AT_ONCE)]
fn join_on_one_job(bencher: Bencher<'_, '_>, waits: u64) {
    join(bencher, waits, 1);
}

#[divan::bench(args = WAITS, sample_size = AT_ONCE)]
fn join_where_each_has_its_job(bencher: Bencher<'_, '_>, waits: u64) {
    join(bencher, waits, waits);
}

#[divan::bench(args = WAITS, sample_size = AT_ONCE)]
fn leave_on_one_job(bencher: Bencher<'_, '_>, waits: u64) {
    leave(bencher, waits, 1);
}

#[divan::bench(args = WAITS, sample_size = AT_ONCE)]
fn leave_where_each_has_its_job(bencher: Bencher<'_, '_>, waits: u64) {
    leave(bencher, waits, waits);
}

/// Of the one job that all are on: by the wait it is to cost the same.
#[divan::bench(args = WAITS, sample_count = 5, sample_size = 1)]
fn landing_for_each_wait(bencher: Bencher<'_, '_>, waits: u64) {
    bencher
        .counter(ItemsCount::new(waits))
        .with_inputs(|| Crowd::new(waits, 1))
        .bench_local_refs(|crowd| assert_eq!(crowd.land(WaitId(0)), waits));
}

/// Of a job that one wait is on, or two, beside so many others.
#[divan::bench(args = WAITS, sample_size = AT_ONCE)]
fn landing_of_one_job_of_many(bencher: Bencher<'_, '_>, waits: u64) {
    let crowd = RefCell::new(Crowd::new(waits, waits));
    bencher
        .with_inputs(|| crowd.borrow_mut().join())
        .bench_local_values(|wait| assert_ne!(crowd.borrow_mut().land(wait), 0));
}

/// How many jobs each of ten waits names.
const JOBS: [u64; 3] = [10, 100, 1_000];

/// Ten waits for so many jobs each come.
#[divan::bench(args = JOBS, sample_count = 5, sample_size = 1)]
fn join_of_ten_wide_waits_for_each_job(bencher: Bencher<'_, '_>, jobs: u64) {
    let counter = ItemsCount::new(10 * jobs);
    bencher
        .counter(counter)
        .with_inputs(|| Crowd::new(0, 1))
        .bench_local_refs(|crowd| crowd.join_wide(10, jobs));
}

/// All polls of ten waits for so many jobs each land, and bring one job to its goal.
#[divan::bench(args = JOBS, sample_count = 5, sample_size = 1)]
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
        Joined(wait, &crowd)
    });
}

fn leave(bencher: Bencher<'_, '_>, waits: u64, jobs: u64) {
    let crowd = RefCell::new(Crowd::new(waits, jobs));
    bencher
        .with_inputs(|| crowd.borrow_mut().join())
        .bench_local_values(|wait| crowd.borrow_mut().leave(wait));
}
