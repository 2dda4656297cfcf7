//! A replica that cannot reach the upstream, or that the upstream pauses: its siblings make the poll. docs/replicas.md has
//! the bounds.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clipgate::sim::{Fault, FaultTarget, SimOptions};
use clipgate::testing::clock;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_util::task::AbortOnDropHandle;

use super::engine::TestEngine;
use super::replica::{Replicas, configure, latest};
use crate::harness::process::{TestEnv, completed_target};

const WAITS: usize = 20;
/// Time that a busy machine may add to a bound of zero.
const NOISE: Duration = Duration::from_millis(200);
/// Like [`NOISE`], for the way of a poll to a sibling: a failure, three messages and a connection.
const TAKEOVER_NOISE: Duration = Duration::from_millis(500);

/// A proxy in front of the upstream that closes the connections of one process. All gateways have the same address of the
/// upstream: it is a part of the identity of their cluster.
struct UpstreamProxy {
    address: SocketAddr,
    shared: Arc<UpstreamConnections>,
    _accepting: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct UpstreamConnections {
    cut_off: Mutex<Option<u32>>,
    open: Mutex<Vec<(SocketAddr, AbortHandle)>>,
}

impl UpstreamProxy {
    async fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(UpstreamConnections::default());
        let accepting = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                while let Ok((mut client, peer)) = listener.accept().await {
                    if shared.cut_off.lock().is_some_and(|pid| has_socket(pid, [peer, address])) {
                        continue;
                    }
                    let way = tokio::spawn(async move {
                        let mut upstream = TcpStream::connect(upstream).await.unwrap();
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut upstream).await;
                    });
                    shared.open.lock().push((peer, way.abort_handle()));
                }
            }
        });
        Self { address, shared, _accepting: AbortOnDropHandle::new(accepting) }
    }

    /// Closes the connections of a process, and all that it opens later.
    fn cut_off(&self, pid: u32) {
        *self.shared.cut_off.lock() = Some(pid);
        for (peer, way) in &*self.shared.open.lock() {
            if has_socket(pid, [*peer, self.address]) {
                way.abort();
            }
        }
    }
}

/// Returns whether a process has the socket with this local and this remote address.
fn has_socket(pid: u32, addresses: [SocketAddr; 2]) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let [local, remote] = addresses.map(|address| format!(":{:04X}", address.port()));
    let sockets = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    // Closed connections are in the table too, without a socket.
    let same = sockets.filter(|fields| fields[1].ends_with(&local) && fields[2].ends_with(&remote));
    let links: Vec<String> = same.map(|fields| format!("socket:[{}]", fields[9])).collect();
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut targets = files.filter_map(|file| std::fs::read_link(file.path()).ok());
    targets.any(|to| links.iter().any(|link| to.as_os_str() == &**link))
}

/// Starts two replicas behind a proxy.
async fn with_a_proxy() -> (Replicas, UpstreamProxy) {
    let engine = TestEngine::start().await;
    let env = TestEnv::with_options(SimOptions::default()).await;
    let upstream = env.upstream_url();
    let proxy = UpstreamProxy::start(upstream.trim_start_matches("http://").parse().unwrap()).await;
    configure(&env, "");
    let url = engine.url();
    let mut replicas = Replicas { env, engine, all: Vec::new() };
    let base_url = format!("http://{}", proxy.address);
    for _ in 0..2 {
        replicas.add(&url, &[("CLIPGATE__UPSTREAM__BASE_URL", &base_url)]).await;
    }
    replicas.wait_until_all_meet().await;
    // Before the first success a gateway gives up soon: its address of the upstream may be wrong.
    for (number, replica) in replicas.all.iter().enumerate() {
        let id = format!("first-{number}");
        replicas.env.sim.set_status(&id, "completed");
        assert_eq!(replica.get(&completed_target(&id), &[]).await.status(), 200);
    }
    (replicas, proxy)
}

// P5, P12
#[tokio::test]
async fn a_holder_that_cannot_reach_the_upstream_delays_no_wait_and_costs_one_further_poll() {
    for completes_at_once in [true, false] {
        let (replicas, proxy) = with_a_proxy().await;
        let mut waits = replicas.park("a", WAITS).await;
        proxy.cut_off(replicas.all[0].process.pid());
        let cut = clock::now();
        if completes_at_once {
            replicas.env.sim.set_status("a", "completed");
        }
        replicas.wait_for_polls("a", 2).await;
        let taken_over = cut.elapsed();
        let completed = clock::now();
        let own = waits.remove(0);
        let late = replicas.complete("a", waits.into_iter().flatten().collect()).await;
        let own = latest(completed, own).await;
        println!(
            "holder without the upstream: taken over in {taken_over:?}, then late {late:?} of 0, its own waits {own:?}, \
             {} polls of 2",
            replicas.polls("a")
        );
        assert!(taken_over <= TAKEOVER_NOISE, "{taken_over:?}");
        assert!(late.max(own) <= NOISE, "{late:?} {own:?}");
        assert_eq!(replicas.polls("a"), 2, "{:#?}", replicas.env.sim.requests());
    }
}

// P5, P12
#[tokio::test]
async fn a_pause_of_the_holder_holds_no_wait_of_a_sibling() {
    let (replicas, _proxy) = with_a_proxy().await;
    replicas.env.sim.set_status("a", "queued");
    let limited = Fault::retry_after(429, Duration::from_secs(30));
    replicas.env.sim.fault(FaultTarget::Clip("a".to_owned()), limited, 1);
    let own = replicas.all[0].wait("a");
    replicas.wait_for_polls("a", 1).await;
    replicas.all[0].wait_for_state("a parked wait", |state| state["waits"]["parked"] == 1).await;
    let asked = clock::now();
    let wait = replicas.all[1].wait("a");
    replicas.wait_for_polls("a", 2).await;
    let began = asked.elapsed();
    let completed = clock::now();
    let late = replicas.complete("a", vec![wait]).await;
    let own = latest(completed, vec![own]).await;
    println!("holder paused: began after {began:?}, late {late:?} of 0, its own wait {own:?}");
    assert!(began.max(late).max(own) <= NOISE, "{began:?} {late:?} {own:?}");
    assert_eq!(replicas.polls("a"), 2);
}
