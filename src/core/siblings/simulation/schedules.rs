//! Plans by hand: the cost of each fault, in calls of the upstream and in time. Three replicas wait for the end of one job,
//! and the first of them makes the poll.

use std::time::Duration;

use super::plan::{Fault, SweepPlan};
use super::{HOLD, World};
use crate::core::coalescer::{Pace, Proof};
use crate::core::route::Goal;
use crate::core::sweep::seeds;

/// Moment of the fault. All waits are attached by then.
const FAULT_AT: Duration = Duration::from_secs(10);
const REPLICAS: usize = 3;

/// Cost of a fault.
#[derive(Clone, Copy, Debug, Default)]
struct FaultCost {
    /// Calls of the upstream, without snapshots.
    calls: u64,
    /// Longest delay of a wait at a replica that runs.
    late: Duration,
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Runs a plan. The oracle checks each answer and the end.
fn run(plan: SweepPlan) -> World {
    run_with(plan, 1)
}

fn run_with(plan: SweepPlan, seed: u64) -> World {
    let reaches = plan.jobs[0].steps.reaches_at(3).expect("the job ends");
    let last = plan.clients.iter().map(|client| client.leaves.unwrap_or(client.arrives)).max();
    let mut world = World::with_plan(plan, fastrand::Rng::with_seed(seed), false);
    world.end = reaches.max(FAULT_AT * 4).max(last.unwrap_or_default()) + FAULT_AT * 2;
    world.run();
    world.check_end();
    world
}

/// Returns the calls of the upstream, without snapshots.
fn calls(world: &World) -> u64 {
    let snapshot = Goal::Rung(world.rungs[0]);
    world.started.iter().filter(|((_, goal), _)| *goal != snapshot).map(|(_, started)| started).sum()
}

/// Returns the highest cost of a fault, for jobs that end at different times after it.
fn cost(fault: Option<Fault>) -> FaultCost {
    let mut worst = FaultCost::default();
    let shortly = [1, 240, 490, 990, 1_700, 30_000];
    for after in shortly.map(ms) {
        let reaches = FAULT_AT + after;
        let world = run(SweepPlan::crowd(
            REPLICAS,
            reaches,
            fault.map(|fault| (FAULT_AT, fault)).into_iter().collect(),
        ));
        worst.calls = worst.calls.max(calls(&world));
        let runs = |replica: usize| !matches!(fault, Some(Fault::Freeze(n, _)) if n == replica);
        let clients = world.plan.clients.iter().filter(|client| runs(client.replica));
        let settled = clients.filter_map(|client| client.settled);
        worst.late = settled.map(|at| at.saturating_sub(reaches)).fold(worst.late, Duration::max);
    }
    worst
}

#[test]
fn each_fault_costs_no_more_than_its_bounds() {
    let (holder, guest) = (0, 1);
    let all = REPLICAS as u64 - 1;
    let rows = [
        (None, 0, 0),
        (Some(Fault::Kill(holder)), 1, 2_200),
        (Some(Fault::Cut(holder, ms(30_000))), 1, 2_200),
        (Some(Fault::Cut(holder, ms(200))), 0, 500),
        (Some(Fault::Cut(guest, ms(200))), 0, 500),
        (Some(Fault::Cut(guest, ms(30_000))), 1, 1_000),
        (Some(Fault::Freeze(holder, ms(30_000))), 1, 2_200),
        (Some(Fault::Deafen(guest)), 1, 2_200),
        (Some(Fault::Mute(guest, ms(30_000))), 1, 2_200),
        (Some(Fault::Mute(holder, ms(30_000))), 1, 2_200),
        (Some(Fault::EngineFull(ms(400))), 0, 500),
        (Some(Fault::EngineFull(ms(30_000))), all, 2_200),
        (Some(Fault::EngineDown(ms(30_000), false)), all, 1_000),
        // A result from before the loss of memory is not published afterwards: its epoch is unknown (P11).
        (Some(Fault::EngineDown(ms(200), true)), 1, 500),
        (Some(Fault::EngineStop(ms(300))), 0, 300),
        (Some(Fault::EngineStop(ms(1_000))), 0, 1_000),
        (Some(Fault::EngineStop(ms(5_000))), all, 1_500),
        (Some(Fault::EngineFar(ms(20_000), ms(500))), all, 500),
        (Some(Fault::Flush), 0, 0),
        // The first guest that claims makes the poll; its landing ends the holder's.
        (Some(Fault::Egress(holder, ms(20_000))), 1, 0),
        (Some(Fault::Egress(guest, ms(20_000))), 0, 0),
        (Some(Fault::Drain(holder, ms(8_000))), 1, 0),
    ];
    let (mut table, mut is_within) = (String::new(), true);
    for (fault, calls, late) in rows {
        let cost = cost(fault);
        table += &format!("{:?}: {} extra calls, {:?} late\n", fault, cost.calls - 1, cost.late);
        let hops = ms(10);
        is_within &= cost.calls <= 1 + calls && cost.late <= ms(late) + hops;
    }
    assert!(is_within, "{table}");
    println!("{table}");
}

/// P3: replicas that were apart make their polls to the end, k - 1 extra calls. Then they share one again.
#[test]
fn a_poll_that_was_made_twice_in_an_outage_is_made_once_again_after_its_end() {
    let outage = Fault::EngineDown(ms(21_000), false);
    let world = run(SweepPlan::crowd(REPLICAS, HOLD + ms(100_000), vec![(FAULT_AT, outage)]));
    // Without the outage: one call, and one when the upstream's hold ends.
    assert_eq!(calls(&world), 2 + (REPLICAS as u64 - 1));
}

/// P3: a healthy cluster makes as many calls as one replica.
#[test]
fn identical_waits_on_three_replicas_cost_as_many_calls_as_on_one() {
    for seed in 0..24 {
        let calls = [1, REPLICAS].map(|replicas| {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut plan = SweepPlan::crowd(12, ms(rng.u64(1..200_000)), Vec::new());
            plan.replicas = replicas;
            for client in &mut plan.clients {
                client.replica = rng.usize(..12) % replicas;
                client.arrives = ms(rng.u64(..100_000));
                client.leaves = (rng.u8(..4) == 0).then(|| client.arrives + ms(rng.u64(1..60_000)));
            }
            calls(&run(plan))
        });
        assert_eq!(calls[0], calls[1], "seed {seed}");
    }
}

/// P3: the engine knows a dead holder for a living one until its last beat is old. A poll that begins in that time has a
/// lease 5 s after the fault, as the oracle checks.
#[test]
fn a_poll_that_outlives_a_holder_has_its_lease() {
    // The second replica comes after the death of the holder and never hears it.
    let mut plan = SweepPlan::crowd(2, ms(60_000), vec![(ms(2_638), Fault::Kill(0))]);
    plan.links_at[1] = ms(3_643);
    plan.clients[1].arrives = ms(3_373);
    run(plan);
    // The holder dies right after its call, which counts as a beat that its siblings do not hear.
    let faults = vec![
        (ms(19_485), Fault::Cut(1, ms(1_133))),
        (ms(49_776), Fault::EngineDown(ms(3_000), false)),
        (ms(59_853), Fault::Flush),
        (ms(60_310), Fault::Kill(0)),
    ];
    run(SweepPlan::crowd(REPLICAS, ms(100_000), faults));
    // The clock of the engine goes ahead, so that the lease of the holder counts as that of a dead replica.
    let jump_at = FAULT_AT + ms(200);
    let mut plan = SweepPlan::crowd(2, ms(100_000), vec![(jump_at, Fault::ClockJump(true, ms(4_824)))]);
    plan.clients[1].arrives = jump_at + ms(2);
    plan.clients[1].leaves = Some(FAULT_AT * 5);
    assert_eq!(calls(&run(plan)), 2);
    // The replica that got the lease by this dies. The holder does not know that it had lost it.
    let jump = Fault::ClockJump(true, ms(4_824));
    let mut plan = SweepPlan::crowd(2, ms(100_000), vec![(jump_at, jump), (FAULT_AT * 4, Fault::Kill(1))]);
    plan.clients[1].arrives = jump_at + ms(2);
    run(plan);
}

/// P3: the poll that begins while the engine is far is adopted by an engine that has forgotten the replica.
#[test]
fn a_loss_of_memory_that_an_adoption_meets_first_costs_no_lease() {
    let far = Fault::EngineFar(ms(8_000), ms(300));
    let faults = vec![(FAULT_AT, far), (FAULT_AT + ms(2_200), Fault::Flush)];
    let mut plan = SweepPlan::crowd(2, ms(60_000), faults);
    plan.replicas = 1;
    (plan.clients[1].replica, plan.clients[1].goal) = (0, Some(2));
    plan.clients[1].arrives = FAULT_AT + ms(2_210);
    run(plan);
}

/// P1: the claim waits 0.1 s for the members to come back after the loss of memory, and loses its link in that time.
#[test]
fn a_link_that_breaks_while_a_claim_waits_for_the_members_delays_it_by_its_own_bound() {
    let (flush, cut) = ((ms(5_600), Fault::Flush), (ms(5_720), Fault::Cut(0, ms(2_183))));
    let mut plan = SweepPlan::crowd(1, ms(60_000), vec![flush, cut]);
    (plan.clients[0].goal, plan.clients[0].arrives) = (Some(0), ms(5_700));
    let late = run(plan).plan.clients[0].settled.unwrap() - ms(5_700);
    assert!(late > ms(500) && late <= ms(20) + ms(20) + ms(1_000) + ms(10), "{late:?}");
}

/// P1: a call that was sent while the engine was far holds up those behind it for as long as it is on its way.
#[test]
fn a_claim_behind_a_call_to_a_far_engine_waits_for_it_or_for_the_patience() {
    for arrives in (610..700).step_by(10).map(|after| FAULT_AT + ms(after)) {
        let far = Fault::EngineFar(ms(500), ms(400));
        let mut plan = SweepPlan::crowd(1, ms(60_000), vec![(FAULT_AT + ms(100), far)]);
        (plan.clients[0].goal, plan.clients[0].arrives) = (Some(0), arrives);
        let late = run(plan).plan.clients[0].settled.unwrap() - arrives;
        assert!(late <= ms(50) + ms(10), "{late:?}");
    }
}

/// P7: the answer of a held poll is lost with its connection. Until the connection fails, its silence proves the older
/// state.
#[test]
fn a_held_poll_whose_answer_is_lost_proves_the_state_before_it() {
    let mut shown_old = 0;
    for seed in 0..48 {
        let mut plan = SweepPlan::crowd(3, ms(14_000), Vec::new());
        (plan.replicas, plan.is_failing) = (1, true);
        plan.jobs[0].steps.0[0].1 = 2;
        for (client, arrives) in plan.clients.iter_mut().zip([5_000, 13_000, 15_000]) {
            (client.replica, client.arrives) = (0, ms(arrives));
            client.goal = Some(2);
            client.proof = Proof::Within(ms(30_000));
        }
        plan.clients[0].goal = Some(3);
        let world = run_with(plan, seed);
        let settled = |client: usize| world.plan.clients[client].settled;
        shown_old += u32::from(settled(2) == Some(ms(15_000)) && settled(0) > settled(2));
    }
    assert!(shown_old > 0);
}

/// P2: an upstream 60 ms away, and a drain that is over soon after.
#[test]
fn a_short_drain_does_not_wait_for_a_far_engine() {
    for time in [30, 72, 130, 300] {
        let far = (FAULT_AT - ms(100), Fault::EngineFar(ms(8_000), ms(135)));
        let mut plan = SweepPlan::crowd(2, ms(60_000), vec![far, (FAULT_AT, Fault::Drain(0, ms(time)))]);
        plan.hop = ms(30);
        let settled = run(plan).plan.clients[0].settled.unwrap();
        assert!(settled <= FAULT_AT + ms(time).min(ms(90)), "{time}: {settled:?}");
    }
}

/// Calls of one and of three replicas for a job of two minutes at an upstream that never holds. docs/replicas.md has the
/// means of 20 runs: snapshots are shared within `live_ttl`, so that chains with longer gaps go on beside each other.
#[test]
fn three_replicas_share_most_snapshots_of_an_upstream_that_never_holds() {
    let rows = [(6, 2_000, 2_000, 1.1), (6, 10_000, 2_000, 1.6), (6, 10_000, 500, 2.1)];
    let runs = seeds(3);
    let (mut table, mut is_within) = (String::new(), true);
    for (clients, max, live, bound) in rows {
        let mut total = [0; 2];
        for seed in runs.clone() {
            for (replicas, total) in [1, REPLICAS].into_iter().zip(&mut total) {
                let mut rng = fastrand::Rng::with_seed(seed);
                let mut plan = SweepPlan::crowd(clients, ms(120_000), Vec::new());
                plan.replicas = replicas;
                plan.pace = Some(Pace { min: ms(2_000), max: ms(max), live_ttl: ms(live) });
                for client in &mut plan.clients {
                    client.replica = rng.usize(..12) % replicas;
                    client.arrives = ms(rng.u64(..110_000));
                }
                *total += u32::try_from(run(plan).started.values().sum::<u64>()).unwrap();
            }
        }
        let count = u32::try_from(runs.clone().count()).unwrap();
        let [one, three] = total.map(|calls| f64::from(calls) / f64::from(count));
        table += &format!(
            "{clients} clients, 2 s to {max} ms, live_ttl {live} ms: {one} calls, {three} by three\n"
        );
        is_within &= three <= one * bound;
    }
    assert!(is_within, "{table}");
    println!("{table}");
}
