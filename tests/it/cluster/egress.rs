//! A replica that cannot reach the upstream, or that the upstream pauses: its siblings make the poll. docs/replicas.md has
//! the bounds.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clipgate::sim::{Fault, FaultTarget, SimOptions};
use clipgate::testing::clock;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_util::task::AbortOnDropHandle;

use super::engine::TestEngine;
use super::replica::{Replicas, configure, latest};
use crate::harness::process::{TestEnv, completed_target};

const WAITS: usize = 20;
/// Time that a busy machine may add to a bound of zero.
const NOISE: Duration = Duration::from_millis(200);

/// A proxy in front of the upstream that can close the connections of one poll. All gateways have the same address of the
/// upstream, which is a part of the identity of their cluster; a poll has the same trace id in all attempts.
struct UpstreamProxy {
    address: SocketAddr,
    requests: Arc<ProxiedRequests>,
    _accepting: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct ProxiedRequests {
    /// Trace ids of the polls that reach the upstream no more.
    cut_off: Mutex<Vec<String>>,
    /// Last request of each connection, and the connection.
    last: Mutex<Vec<(Arc<Mutex<String>>, AbortHandle)>>,
}

impl UpstreamProxy {
    async fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(ProxiedRequests::default());
        let accepting = tokio::spawn({
            let requests = Arc::clone(&requests);
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    let last = Arc::new(Mutex::new(String::new()));
                    let way = forward(client, upstream, Arc::clone(&requests), Arc::clone(&last));
                    let way = tokio::spawn(way).abort_handle();
                    requests.last.lock().push((last, way));
                }
            }
        });
        Self { address, requests, _accepting: AbortOnDropHandle::new(accepting) }
    }

    /// Closes the connection of the poll for this job, and those of its later attempts.
    fn cut_off(&self, id: &str) {
        let target = completed_target(id);
        for (last, way) in &*self.requests.last.lock() {
            let request = last.lock();
            if request.contains(&target) {
                self.requests.cut_off.lock().push(trace_id(&request).to_owned());
                way.abort();
            }
        }
    }
}

fn trace_id(request: &str) -> &str {
    let (_, rest) = request.split_once("traceparent: 00-").expect("a poll has a trace id");
    &rest[..32]
}

async fn forward(
    client: TcpStream,
    upstream: SocketAddr,
    requests: Arc<ProxiedRequests>,
    last: Arc<Mutex<String>>,
) {
    let upstream = TcpStream::connect(upstream).await.unwrap();
    let (mut client_reads, mut client_writes) = client.into_split();
    let (mut upstream_reads, mut upstream_writes) = upstream.into_split();
    let sends = async {
        let mut request = Vec::new();
        while client_reads.read_buf(&mut request).await.is_ok_and(|taken| taken > 0) {
            if !request.ends_with(b"\r\n\r\n") {
                continue;
            }
            let text = String::from_utf8(std::mem::take(&mut request)).unwrap();
            if requests.cut_off.lock().iter().any(|id| id == trace_id(&text)) {
                return;
            }
            last.lock().clone_from(&text);
            if upstream_writes.write_all(text.as_bytes()).await.is_err() {
                return;
            }
        }
    };
    // Cancel safe: both directions end with the connection.
    tokio::select! {
        () = sends => {}
        _ = tokio::io::copy(&mut upstream_reads, &mut client_writes) => {}
    }
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
        proxy.cut_off("a");
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
        assert!(taken_over.max(late).max(own) <= NOISE, "{taken_over:?} {late:?} {own:?}");
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
