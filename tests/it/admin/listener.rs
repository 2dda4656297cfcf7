//! The admin listener of `clipgate serve`: address, end, secrets and connection limit.

use std::net::SocketAddr;
use std::process::Command;

use clipgate::sim::{Sim, SimOptions};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixStream};

use crate::harness::admin_client::{AdminClient, text};
use crate::harness::command::ClipgateProcess;
use crate::harness::gateway::clip_target;
use crate::harness::process::{GatewayProcess, TestClient, TestEnv, completed_target, get, within_timeout};
use crate::harness::raw_http::send_raw;

const ANY_PORT: (&str, &str) = ("CLIPGATE__ADMIN__LISTEN", "127.0.0.1:0");
const SIM: [&str; 4] = ["serve", "--sim", "--listen", "127.0.0.1:0"];

#[tokio::test]
async fn the_admin_address_is_the_second_line() {
    let mut gateway = ClipgateProcess::start(&SIM, &[ANY_PORT]);
    let address = gateway.address();
    let admin = AdminClient::at(gateway.admin().parse().unwrap());
    assert_eq!(admin.get("/readyz").await.status(), 200);
    let state = admin.state().await;
    assert_eq!(state["listen"], serde_json::json!([address.to_string()]));
    let example = state["example"].as_str().unwrap();
    assert!(example.starts_with("curl ") && example.contains(&address.to_string()), "{example}");
}

#[tokio::test]
async fn the_listener_can_be_a_unix_socket_or_off() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let listen = format!("unix:{}", path.display());
    let mut gateway = ClipgateProcess::start(&SIM, &[("CLIPGATE__ADMIN__LISTEN", &listen)]);
    gateway.ready();
    assert_eq!(gateway.admin(), listen);
    let mut client = TestClient::h1(UnixStream::connect(&path).await.unwrap()).await;
    let request =
        http::Request::get("/healthz").header("host", "localhost").body(Default::default()).unwrap();
    assert_eq!(client.send(request).await.unwrap().status(), 200);
    assert_eq!(gateway.stop().0, Some(0));
    assert!(!path.exists(), "the file of the socket is removed");

    let mut gateway = ClipgateProcess::start(&SIM, &[("CLIPGATE__ADMIN__LISTEN", "")]);
    gateway.ready();
    assert_eq!(gateway.terminate(), [""; 0], "stdout has no other line");
}

#[tokio::test]
async fn an_address_in_use_is_an_error_that_names_the_key() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let test_env = TestEnv::new().await;
    test_env.configure("");
    let mut command = test_env.command();
    command.env("CLIPGATE__ADMIN__LISTEN", address.to_string());
    let mut gateway = GatewayProcess::spawn(command);
    let log = gateway.rest_of_log().await;
    assert_eq!(gateway.wait_for_exit().await.code(), Some(1), "{log:?}");
    let text = log.join("\n");
    assert!(text.contains(&format!("cannot listen on {address}: ")), "{text}");
    assert!(text.contains("another program uses it, perhaps a gateway"), "{text}");
    assert!(text.contains("set admin.listen to another address, or to \"\" for none"), "{text}");
}

#[tokio::test]
async fn two_simulated_gateways_do_not_conflict_on_the_default_address() {
    // One of them gets the default address, unless another process has it.
    let default = [("CLIPGATE__ADMIN__LISTEN", "127.0.0.1:9090")];
    let mut gateways = [ClipgateProcess::start(&SIM, &default), ClipgateProcess::start(&SIM, &default)];
    let mut addresses = Vec::new();
    for gateway in &mut gateways {
        gateway.ready();
        let address: SocketAddr = gateway.admin().parse().unwrap();
        assert_eq!(AdminClient::at(address).get("/healthz").await.status(), 200);
        addresses.push(address);
    }
    assert_ne!(addresses[0], addresses[1]);
}

#[tokio::test]
async fn the_admin_listener_answers_during_the_drain_and_is_not_ready() {
    let test_env = TestEnv::new().await;
    test_env.configure("drain_timeout = \"1h\"");
    test_env.sim.set_status("a", "queued");
    let mut command = test_env.command();
    command.env(ANY_PORT.0, ANY_PORT.1);
    let mut gateway = GatewayProcess::spawn(command);
    let address = gateway.address().await;
    let line = gateway.next_line().await;
    let admin = AdminClient::at(line.strip_prefix("clipgate admin listening on ").unwrap().parse().unwrap());
    // Passed through, so that only the upstream ends it.
    let mut client = TestClient::connect(address).await;
    let target = format!("{}&x=1", completed_target("a"));
    let waiting = tokio::spawn(async move { client.send(get(&target, &[])).await });
    test_env.sim.wait_until(|seen| seen.open == 1).await;
    assert_eq!(admin.get("/readyz").await.status(), 200);

    gateway.signal("TERM");
    gateway.wait_for_log("stopping").await;
    let not_ready = async {
        while admin.get("/readyz").await.status() != 503 {
            tokio::task::yield_now().await;
        }
    };
    within_timeout("not to be ready", not_ready).await;
    assert_eq!(admin.get("/healthz").await.status(), 200);
    assert_eq!(admin.state().await["phase"], "draining");
    test_env.sim.set_status("a", "complete");
    assert_eq!(waiting.await.unwrap().unwrap().status(), 200);
    assert_eq!(gateway.wait_for_exit().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_response_or_log_line_has_a_key_or_token() {
    const KEY: &str = "sk-recognise-me-4711";
    const TOKEN: &str = "cg_recognise-me-too";
    const ADMIN: &str = "admin-recognise-me-three";
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = format!("http://{}", listener.local_addr().unwrap());
    let sim = Sim::new(SimOptions { keys: Some(vec![KEY.to_owned()]), ..SimOptions::default() });
    sim.set_status("a", "completed");
    sim.set_status("b", "queued");
    let _serving = tokio::spawn(sim.clone().serve(listener, std::future::pending()));
    let hash =
        clipgate::testing::auth::token_sha256(TOKEN.as_bytes()).0.map(|byte| format!("{byte:02x}")).concat();
    let members = format!("[{{ name = \"alice\", token_sha256 = \"{hash}\", upstream_key = \"{KEY}\" }}]");
    let env = [
        ANY_PORT,
        ("CLIPGATE__ADMIN__TOKEN", ADMIN),
        ("CLIPGATE__AUTH__MODE", "team"),
        ("CLIPGATE__TEAM__MEMBERS", members.as_str()),
        ("CLIPGATE__LOG__LEVEL", "trace"),
        ("CLIPGATE__LOG__FORMAT", "json"),
    ];
    let mut gateway =
        ClipgateProcess::start(&["serve", "--listen", "127.0.0.1:0", "--upstream", &upstream], &env);
    let address = gateway.address();
    let admin = AdminClient::at(gateway.admin().parse().unwrap());

    let ask = |target: String, token: &str| {
        let head = format!("GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
        format!("{head}authorization: Bearer {token}\r\n\r\n")
    };
    for ask in [ask(clip_target("a", "completed"), TOKEN), ask(clip_target("a", "completed"), KEY)] {
        send_raw(address, ask.as_bytes()).await;
    }
    let parked = tokio::spawn(async move {
        send_raw(address, ask(clip_target("b", "completed"), TOKEN).as_bytes()).await;
    });
    sim.wait_until(|seen| seen.open == 1).await;

    let bearer = format!("Bearer {ADMIN}");
    let mut output = String::new();
    for path in ["/healthz", "/readyz", "/metrics", "/api/state", "/api/history", "/nothing"] {
        for authorization in [bearer.as_str(), "Bearer recognise-wrong", ""] {
            let answer = admin.send("GET", path, &[("authorization", authorization)]).await;
            output.push_str(&format!("{:?}\n{}\n", answer.headers(), text(&answer)));
        }
    }
    assert!(output.contains("alice") && output.contains("\"id\":\"b\""), "the output is complete: {output}");
    parked.abort();
    let (code, log) = gateway.stop();
    assert_eq!(code, Some(0));
    assert!(log.contains("admin request rejected"), "{log}");
    for secret in ["recognise", hash.as_str()] {
        assert!(!output.contains(secret), "{secret} in {output}");
        assert!(!log.contains(secret), "{secret} in {log}");
    }
}

#[test]
fn check_prints_the_admin_address() {
    let check = |listen: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_clipgate"))
            .arg("check")
            .env_clear()
            .env("CLIPGATE__ADMIN__LISTEN", listen)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(check("127.0.0.1:9091").contains("  admin     127.0.0.1:9091\n"));
    assert!(check("").contains("  admin     off\n"));
}

/// Starts a gateway with an admin listener. Returns the gateway and its admin address. An empty token means none.
async fn start_admin(test_env: &TestEnv, token: &str) -> (GatewayProcess, SocketAddr) {
    test_env.configure("");
    let mut command = test_env.command();
    command.env(ANY_PORT.0, ANY_PORT.1);
    if !token.is_empty() {
        command.env("CLIPGATE__ADMIN__TOKEN", token);
    }
    let mut gateway = GatewayProcess::spawn(command);
    gateway.address().await;
    let line = gateway.next_line().await;
    let address = line.strip_prefix("clipgate admin listening on ").unwrap().parse().unwrap();
    (gateway, address)
}

#[tokio::test]
async fn health_checks_are_answered_beside_300_other_connections() {
    let test_env = TestEnv::new().await;
    let (_gateway, address) = start_admin(&test_env, "").await;
    let pipelined_requests =
        "GET /dashboard/uplot/uPlot.iife.min.js HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(200);
    let mut others = Vec::new();
    for n in 0..300 {
        // A client that does not read its response keeps its slot for a quarter of an hour.
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut other = within_timeout("a connection", socket.connect(address)).await.unwrap();
        let bytes = if n < 20 { "GET /healthz HTTP/1.1\r\nhost" } else { &pipelined_requests };
        other.write_all(bytes.as_bytes()).await.unwrap();
        others.push(other);
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(
            within_timeout("an answer", AdminClient::at(address).get(path)).await.status(),
            200,
            "{path}"
        );
    }
}

#[tokio::test]
async fn clients_without_the_token_are_closed_and_do_not_evict_clients_with_it() {
    let test_env = TestEnv::new().await;
    let (_gateway, address) = start_admin(&test_env, "s3cret").await;
    let ask = |path: &str, token: &str| {
        let request = http::Request::get(path).header("host", "x").header("authorization", token);
        request.body(Default::default()).unwrap()
    };
    let mut kept = TestClient::connect(address).await;
    assert_eq!(kept.send(ask("/metrics", "Bearer s3cret")).await.unwrap().status(), 200);
    for (path, status) in [("/healthz", 200), ("/metrics", 401), ("/nothing", 401)] {
        let mut stranger = TestClient::connect(address).await;
        let answer = stranger.send(ask(path, "Bearer wrong")).await.unwrap();
        assert_eq!(answer.status(), status, "{path}");
        assert_eq!(answer.headers()["connection"], "close", "{path}");
        stranger.wait_until_closed().await;
    }
    let mut strangers = Vec::new();
    for _ in 0..300 {
        strangers.push(within_timeout("a connection", TcpStream::connect(address)).await.unwrap());
    }
    assert_eq!(within_timeout("an answer", AdminClient::at(address).get("/healthz")).await.status(), 200);
    let answer = kept.send(ask("/metrics", "Bearer s3cret")).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(!answer.headers().contains_key("connection"));
}
