//! Random waits at three replicas, and a fault every few seconds. No wait may be lost.
//!
//! `make soak-cluster` runs it for ten minutes with a fault each 5 s, `make test` for 20 s with each fault once. The same
//! waits go to one gateway without a cluster, whose upstream calls are compared.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clipgate::sim::{Sim, SimOptions};
use clipgate::testing::clock;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::engine::TestEngine;
use super::replica::{LIMITS, Replica, Replicas, configure};
use crate::harness::process::{GatewayProcess, TestClient, TestEnv, completed_target, get};

/// Time between two new jobs.
const JOB_INTERVAL: Duration = Duration::from_millis(250);
/// Waits for a job at random replicas and times.
const WAITS_PER_JOB: usize = 6;
/// A wait without an answer for so long is lost.
const LOST: Duration = Duration::from_secs(30);
/// Bound of docs/replicas.md.
const BOUND: Duration = Duration::from_millis(2200);
/// Pause of a balancer before it tries another gateway.
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug)]
enum SoakFault {
    GatewayKilled,
    EngineStopped,
    Flushed,
    ConnectionsKilled,
    EngineRestarted,
    GatewayDrained,
}

const FAULTS: [SoakFault; 6] = [
    SoakFault::GatewayKilled,
    SoakFault::EngineStopped,
    SoakFault::Flushed,
    SoakFault::ConnectionsKilled,
    SoakFault::EngineRestarted,
    SoakFault::GatewayDrained,
];

/// Gateways behind a balancer without affinity.
type Addresses = Arc<Mutex<Vec<SocketAddr>>>;

/// Results of the waits.
#[derive(Default)]
struct SoakCounts {
    answered: AtomicUsize,
    /// Attempts whose connection ended with their gateway.
    repeated: AtomicUsize,
    /// Attempts that a stopping gateway answered with the present state.
    early: AtomicUsize,
    is_draining: AtomicBool,
    /// Times from the end of the job, or from the wait if it came later, to the answer. Without repeated waits.
    late: Mutex<Vec<Duration>>,
    lost: Mutex<Vec<String>>,
}

fn millis(range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(fastrand::u64(range))
}

/// Describes how late the answers were.
fn delays(counts: &SoakCounts) -> String {
    let mut late = counts.late.lock().clone();
    late.sort_unstable();
    let beyond = late.iter().filter(|late| **late > BOUND).count();
    let at = |share: usize| late[(late.len() - 1) * share / 1000];
    let (median, most, last) = (at(500), [at(990), at(999)], at(1000));
    format!("median {median:?}, 99 % and 99.9 % {most:?}, most {last:?}; {beyond} by more than {BOUND:?}")
}

/// Tries one gateway after another until one answers, as a balancer does.
async fn wait(addresses: Addresses, sim: Sim, id: String, ends_at: Instant, counts: Arc<SoakCounts>) {
    let sent_at = clock::now();
    let mut attempts = 0;
    let answered = async {
        loop {
            attempts += 1;
            let address = fastrand::choice(addresses.lock().iter().copied()).unwrap();
            let attempt = async {
                let stream = TcpStream::connect(address).await.ok()?;
                TestClient::h1(stream).await.send(get(&completed_target(&id), &[])).await.ok()
            };
            match attempt.await {
                Some(answer)
                    if *answer.body() == sim.body(&id, "submitted")
                        && counts.is_draining.load(Ordering::Relaxed) =>
                {
                    counts.early.fetch_add(1, Ordering::Relaxed);
                }
                Some(answer) => return answer,
                None => {
                    counts.repeated.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    };
    let answer = tokio::time::timeout(LOST, answered).await;
    let body: Option<(u16, Bytes)> = answer.ok().map(|answer| (answer.status().as_u16(), answer.into_body()));
    match body {
        Some((200, body)) if body == sim.body(&id, "completed") => {
            counts.answered.fetch_add(1, Ordering::Relaxed);
            if attempts == 1 {
                counts.late.lock().push(clock::now().saturating_duration_since(ends_at.max(sent_at)));
            }
        }
        other => counts.lost.lock().push(format!("{id}: {:?}", other.map(|(status, _)| status))),
    }
}

/// Starts jobs until `until`, with the same waits at both groups of gateways, and awaits all answers.
async fn load(groups: [(Addresses, Sim, Arc<SoakCounts>); 2], until: Instant) -> usize {
    let mut waits = JoinSet::new();
    let mut jobs = 0;
    while clock::now() < until {
        let id = format!("job-{jobs}");
        jobs += 1;
        let life = millis(500..6000);
        let ends_at = clock::now() + life;
        groups.iter().for_each(|(_, sim, _)| sim.schedule(&id, &[("completed", life)]));
        for _ in 0..WAITS_PER_JOB {
            let delay = life.mul_f64(1.3 * fastrand::f64());
            for (addresses, sim, counts) in groups.clone() {
                let id = id.clone();
                waits.spawn(async move {
                    tokio::time::sleep(delay).await;
                    wait(addresses, sim, id, ends_at, counts).await;
                });
            }
        }
        while waits.try_join_next().is_some_and(|done| done.is_ok()) {}
        tokio::time::sleep(JOB_INTERVAL).await;
    }
    waits.join_all().await;
    jobs
}

/// Inflicts one fault and repairs it.
async fn inflict(fault: SoakFault, replicas: &mut Replicas, addresses: &Addresses, counts: &SoakCounts) {
    let index = fastrand::usize(..replicas.all.len());
    // Until the next fault: the last answers of a stopping gateway are still on their way.
    counts.is_draining.store(matches!(fault, SoakFault::GatewayDrained), Ordering::Relaxed);
    match fault {
        SoakFault::GatewayKilled | SoakFault::GatewayDrained => {
            let is_killed = matches!(fault, SoakFault::GatewayKilled);
            replicas.all[index].process.signal(if is_killed { "KILL" } else { "TERM" });
            replicas.all[index].process.wait_for_exit().await;
            let next = Replica::start(&replicas.env, &replicas.engine.url(), &[]).await;
            addresses.lock()[index] = next.address;
            replicas.all[index] = next;
        }
        SoakFault::EngineStopped => {
            replicas.engine.signal("STOP");
            tokio::time::sleep(millis(100..3000)).await;
            replicas.engine.signal("CONT");
        }
        SoakFault::Flushed => _ = replicas.engine.send("FLUSHALL").await,
        SoakFault::ConnectionsKilled => {
            for kind in ["normal", "pubsub"] {
                replicas.engine.send(&format!("CLIENT KILL TYPE {kind}")).await;
            }
        }
        SoakFault::EngineRestarted => {
            replicas.engine.kill().await;
            tokio::time::sleep(millis(0..2000)).await;
            replicas.engine.restart().await;
        }
    }
}

// P1, P3, P4
#[tokio::test]
async fn no_wait_is_lost_while_replicas_and_the_engine_fail() {
    let seconds = std::env::var("CLIPGATE_SOAK_SECONDS").map_or(20, |seconds| seconds.parse().unwrap());
    let fault_interval = Duration::from_secs(if seconds < 60 { 3 } else { 5 });
    let options = || SimOptions { max_requests: 1 << 20, max_clips: 1 << 20, ..SimOptions::default() };
    let env = TestEnv::with_options(options()).await;
    configure(&env, "");
    let engine = TestEngine::start().await;
    let url = engine.url();
    let mut replicas = Replicas { env, engine, all: Vec::new() };
    for _ in 0..3 {
        replicas.add(&url, &[]).await;
    }
    replicas.wait_until_all_meet().await;
    let one = TestEnv::with_options(options()).await;
    one.configure(LIMITS);
    let mut gateway = GatewayProcess::spawn(one.command());
    let addresses: Addresses =
        Arc::new(Mutex::new(replicas.all.iter().map(|replica| replica.address).collect()));
    let alone: Addresses = Arc::new(Mutex::new(vec![gateway.address().await]));
    let (counts, of_one) = (Arc::new(SoakCounts::default()), Arc::new(SoakCounts::default()));

    let until = clock::now() + Duration::from_secs(seconds);
    let groups = [
        (Arc::clone(&addresses), replicas.env.sim.clone(), Arc::clone(&counts)),
        (alone, one.sim.clone(), Arc::clone(&of_one)),
    ];
    let faults = async {
        let mut count = 0;
        while clock::now() + fault_interval < until {
            let next = clock::now() + fault_interval;
            let fault = FAULTS.get(count).copied().unwrap_or_else(|| fastrand::choice(FAULTS).unwrap());
            inflict(fault, &mut replicas, &addresses, &counts).await;
            count += 1;
            tokio::time::sleep_until(next.into()).await;
        }
        count
    };
    let (jobs, faults) = tokio::join!(load(groups, until), faults);

    let waits = jobs * WAITS_PER_JOB;
    let (calls, calls_of_one) = (replicas.env.sim.requests().len(), one.sim.requests().len());
    println!(
        "{seconds} s, {faults} faults, {jobs} jobs, {waits} waits: {} answered, {} attempts repeated after a lost connection\n\
         and {} after the answer of a stopping gateway\n\
         upstream calls: {calls} of three replicas, {calls_of_one} of one gateway without faults, {waits} of clients alone\n\
         late, three replicas: {}\nlate, one gateway: {}",
        counts.answered.load(Ordering::Relaxed),
        counts.repeated.load(Ordering::Relaxed),
        counts.early.load(Ordering::Relaxed),
        delays(&counts),
        delays(&of_one),
    );
    let lost = counts.lost.lock();
    assert!(lost.is_empty(), "{} lost: {:?}", lost.len(), lost.iter().take(10).collect::<Vec<_>>());
    assert_eq!(of_one.lost.lock().len(), 0);
    assert_eq!(counts.answered.load(Ordering::Relaxed), waits);
    assert!(calls <= waits, "P4: {calls} calls for {waits} waits");
}
