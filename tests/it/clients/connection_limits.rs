//! `server.max_connections` and file descriptors: which connections are closed when they run out.

use std::net::SocketAddr;

use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::process::Command;
use tokio::task::JoinHandle;

use crate::harness::admin_client::{AdminClient, text};
use crate::harness::process::{GatewayProcess, TestClient, TestEnv, completed_target, get, within_timeout};

/// Connects from this local address.
async fn from(ip: &str, to: SocketAddr) -> TestClient {
    TestClient::h1(stream(ip, to).await).await
}

async fn stream(ip: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{ip}:0").parse().unwrap()).unwrap();
    socket.connect(to).await.unwrap()
}

const ONE: &str = "127.0.0.1";
const OTHER: &str = "127.0.0.2";

/// Parks a wait on this connection. Returns the status of its response.
async fn park(env: &TestEnv, mut client: TestClient, id: &str) -> JoinHandle<u16> {
    let before = env.sim.requests().len();
    env.sim.set_status(id, "queued");
    let target = completed_target(id);
    let waiting =
        tokio::spawn(async move { client.send(get(&target, &[])).await.unwrap().status().as_u16() });
    env.sim.wait_until(|seen| seen.requests.len() > before).await;
    waiting
}

#[tokio::test]
async fn one_clients_idle_connections_exclude_no_other_and_its_longest_idle_one_is_closed() {
    let env = TestEnv::new().await;
    env.configure("max_connections = 4\nidle_timeout = \"1h\"");
    let mut gateway = env.start();
    let address = gateway.address().await;
    let mut own = Vec::new();
    for _ in 0..8 {
        let mut client = from(ONE, address).await;
        assert_eq!(client.get("/x", &[]).await.status(), 404);
        own.push(client);
    }
    // Half of the slots: the two most recent connections.
    let mut kept = own.split_off(6);
    for gone in &mut own {
        gone.wait_until_closed().await;
    }
    let mut others = [from(OTHER, address).await, from(OTHER, address).await];
    for client in kept.iter_mut().chain(&mut others) {
        assert_eq!(client.get("/x", &[]).await.status(), 404);
    }
}

#[tokio::test]
async fn a_new_connection_replaces_an_idle_http2_connection_and_never_a_parked_wait() {
    let env = TestEnv::new().await;
    env.configure("max_connections = 2\nidle_timeout = \"1h\"");
    let mut gateway = env.start();
    let address = gateway.address().await;
    let parked = park(&env, from(ONE, address).await, "a").await;
    let mut idle = TestClient::h2(stream(OTHER, address).await).await;
    assert_eq!(idle.get(&format!("http://{address}/x"), &[]).await.status(), 404);
    // Each from its own address: the server may still count a connection that its client has just closed, and an address
    // gets half of the connections.
    for newcomer in ["127.0.0.3", "127.0.0.4", "127.0.0.5"] {
        assert_eq!(from(newcomer, address).await.get("/x", &[]).await.status(), 404);
    }
    idle.wait_until_closed().await;
    env.sim.set_status("a", "completed");
    assert_eq!(parked.await.unwrap(), 200);
}

#[tokio::test]
async fn a_new_connection_waits_while_all_are_busy_and_replaces_the_first_idle_one() {
    let env = TestEnv::new().await;
    env.configure("max_connections = 1\nidle_timeout = \"1h\"");
    let mut gateway = env.start_with_json_log();
    let address = gateway.address().await;
    let parked = park(&env, from(ONE, address).await, "a").await;
    let mut late = from(OTHER, address).await;
    let waiting = tokio::spawn(async move { late.send(get("/x", &[("x-request-id", "late")])).await });
    gateway.wait_for_log("all connections are busy").await;
    env.sim.set_status("a", "completed");
    assert_eq!(parked.await.unwrap(), 200);
    assert_eq!(waiting.await.unwrap().unwrap().status(), 404);
    let first = gateway.wait_for_log("clipgate.outcome").await;
    let second = gateway.wait_for_log("clipgate.outcome").await;
    assert!(first.contains(r#""clipgate.jobs":"a""#), "{first}");
    assert!(second.contains(r#""clipgate.request_id":"late""#), "{second}");
}

#[tokio::test]
async fn one_clients_busy_connections_take_at_most_half_of_the_slots() {
    let env = TestEnv::new().await;
    env.configure("max_connections = 4");
    let mut gateway = env.start();
    let address = gateway.address().await;
    let mut parked = Vec::new();
    for id in ["a", "b"] {
        parked.push(park(&env, from(ONE, address).await, id).await);
    }
    for _ in 0..3 {
        assert!(from(ONE, address).await.send(get("/x", &[])).await.is_err());
        assert_eq!(from(OTHER, address).await.get("/x", &[]).await.status(), 404);
    }
    let line = gateway.wait_for_log("half of all connections").await;
    assert!(line.contains("address=127.0.0.1"), "{line}");
    ["a", "b"].iter().for_each(|id| env.sim.set_status(id, "completed"));
    for parked in parked {
        assert_eq!(parked.await.unwrap(), 200);
    }
}

#[tokio::test]
async fn a_trusted_proxy_and_a_unix_socket_may_take_all_slots() {
    let env = TestEnv::new().await;
    let path = env.path("gw.sock");
    let listen = format!("listen = [\"127.0.0.1:0\", {:?}]", format!("unix:{}", path.display()));
    env.configure(&format!("{listen}\nmax_connections = 4\ntrusted_proxies = [\"127.0.0.0/8\"]"));
    let mut gateway = env.start();
    let address = gateway.address().await;
    let mut parked = Vec::new();
    for id in ["a", "b", "c", "d"] {
        parked.push(park(&env, from(ONE, address).await, id).await);
    }
    ["a", "b", "c", "d"].iter().for_each(|id| env.sim.set_status(id, "completed"));
    for parked in parked.drain(..) {
        assert_eq!(parked.await.unwrap(), 200);
    }
    for id in ["e", "f", "g", "h"] {
        let client = TestClient::h1(UnixStream::connect(&path).await.unwrap()).await;
        parked.push(park(&env, client, id).await);
    }
    ["e", "f", "g", "h"].iter().for_each(|id| env.sim.set_status(id, "completed"));
    for parked in parked {
        assert_eq!(parked.await.unwrap(), 200);
    }
}

/// Starts the gateway with this limit of open files, in the syntax of the shell's `ulimit`.
fn start_within(env: &TestEnv, limit: &str) -> GatewayProcess {
    let mut command = Command::new("sh");
    let script = format!("ulimit {limit} && exec \"$0\" serve --config config.toml");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_clipgate")]);
    env.confine(&mut command);
    command.env("CLIPGATE__ADMIN__LISTEN", "127.0.0.1:0");
    GatewayProcess::spawn(command)
}

async fn admin_client(gateway: &mut GatewayProcess) -> AdminClient {
    let line = gateway.next_line().await;
    AdminClient::at(line.strip_prefix("clipgate admin listening on ").unwrap().parse().unwrap())
}

#[tokio::test]
async fn idle_connections_leave_descriptors_for_polls_and_the_admin_listener() {
    let env = TestEnv::new().await;
    env.configure("idle_timeout = \"1h\"");
    let mut gateway = start_within(&env, "-n 64");
    let address = gateway.address().await;
    let admin = admin_client(&mut gateway).await;
    gateway.wait_for_log("allows fewer connections than configured").await;
    let mut idle = Vec::new();
    for n in 0..60 {
        let mut client = from(&format!("127.0.0.{}", n % 20 + 1), address).await;
        assert_eq!(client.get("/x", &[]).await.status(), 404, "{n}");
        idle.push(client);
    }
    for id in ["a", "b", "c"] {
        env.sim.set_status(id, "completed");
        assert_eq!(from(OTHER, address).await.get(&completed_target(id), &[]).await.status(), 200);
    }
    assert_eq!(admin.get("/readyz").await.status(), 200);
}

#[tokio::test]
async fn the_soft_limit_of_open_files_is_raised_to_the_hard_one() {
    let env = TestEnv::new().await;
    env.configure("");
    let mut gateway = start_within(&env, "-n 1000 && ulimit -S -n 256");
    gateway.address().await;
    let page = within_timeout("the metrics", admin_client(&mut gateway).await.get("/metrics")).await;
    let page = text(&page);
    assert!(page.contains("process_max_fds 1000\n"), "{page}");
}

#[tokio::test]
async fn without_free_descriptors_idle_connections_are_closed_and_the_log_has_one_line() {
    let env = TestEnv::new().await;
    env.configure("idle_timeout = \"1h\"");
    env.sim.set_status("a", "completed");
    let mut gateway = env.start();
    let address = gateway.address().await;
    let mut kept = Vec::new();
    for _ in 0..5 {
        let mut client = from(ONE, address).await;
        assert_eq!(client.get(&completed_target("a"), &[]).await.status(), 200);
        kept.push(client);
    }
    // From here on the gateway can open no further descriptor: the lowest free number is over the limit.
    let pid = gateway.pid();
    let open: Vec<u32> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    let free = (0..).find(|number| !open.contains(number)).unwrap();
    let limit = format!("--nofile={free}:{free}");
    let limited = Command::new("prlimit").args(["--pid", &pid.to_string(), &limit]).status().await;
    assert!(limited.unwrap().success(), "prlimit is part of util-linux");
    for n in 0..20 {
        let mut client = from(ONE, address).await;
        assert_eq!(client.get(&completed_target("a"), &[]).await.status(), 200, "{n}");
        kept.push(client);
    }
    gateway.wait_for_log("accept failed").await;
    gateway.signal("TERM");
    let more = gateway.rest_of_log().await.iter().filter(|line| line.contains("accept failed")).count();
    assert_eq!(more, 0, "the line is logged once a minute");
}
