//! Where clients connect: TCP and unix sockets, several at once, handed over, and no more than there is room for.
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use clipgate::sim::{Fault, FaultTarget};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::process::Command;

use crate::harness::process::{
    GatewayProcess, TestClient, TestEnv, completed_target, get, quoted, within_timeout,
};

#[tokio::test]
async fn several_listeners_serve_the_same_gateway_and_a_unix_socket_is_the_groups() {
    let ground = TestEnv::new().await;
    let path = ground.path("gw.sock");
    ground.configure(&format!(
        "listen = [\"127.0.0.1:0\", {}, \"[::1]:0\"]",
        quoted(format!("unix:{}", path.display()).as_ref())
    ));
    ground.sim.set_status("a", "complete");
    let mut gateway = ground.start();
    let v4 = gateway.address().await;
    assert_eq!(gateway.listens_on().await, format!("unix:{}", path.display()));
    let v6 = gateway.address().await;
    assert!(v6.is_ipv6() && v6.port() != 0 && v4.port() != 0);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);

    let unix = UnixStream::connect(&path).await.unwrap();
    let mut clients =
        [TestClient::connect(v4).await, TestClient::h1(unix).await, TestClient::connect(v6).await];
    for (client, status) in clients.iter_mut().zip(["fwd=miss", "hit", "hit"]) {
        let answer = client.get(&completed_target("a"), &[]).await;
        assert_eq!(answer.status(), 200);
        let field = answer.headers()["cache-status"].to_str().unwrap();
        assert!(field.starts_with(&format!("clipgate; {status}")), "{field}");
    }
    gateway.signal("TERM");
    assert_eq!(gateway.wait_for_exit().await.code(), Some(0));
    assert!(!path.exists(), "the socket's file goes with the gateway");
}

#[tokio::test]
async fn a_stale_socket_is_replaced_but_a_file_is_not() {
    let ground = TestEnv::new().await;
    let path = ground.path("gw.sock");
    ground.configure(&format!("listen = {}", quoted(format!("unix:{}", path.display()).as_ref())));
    std::fs::write(&path, "precious").unwrap();
    let mut gateway = ground.start();
    let log = gateway.rest_of_log().await;
    assert!(log.iter().any(|line| line.contains("cannot listen on unix:")), "{log:?}");
    assert_eq!(gateway.wait_for_exit().await.code(), Some(1));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");

    std::fs::remove_file(&path).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let mut gateway = ground.start();
    gateway.listens_on().await;
    UnixStream::connect(&path).await.unwrap();
}

/// What a service manager does: binds a TCP and a unix socket, puts them at 3 and 4, becomes the gateway.
const HAND_OVER: &str = r#"
import os, socket, sys
tcp = socket.create_server(("127.0.0.1", 0))
unix = socket.socket(socket.AF_UNIX)
unix.bind("handed.sock")
unix.listen()
for at, sock in ((10, tcp), (11, unix)):
    os.dup2(sock.fileno(), at)
for at in (3, 4):
    os.dup2(at + 7, at, inheritable=True)
os.environ.update(LISTEN_FDS="2", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[1], sys.argv[1:])
"#;

#[tokio::test]
async fn sockets_that_are_handed_over_replace_those_of_the_configuration() {
    let ground = TestEnv::new().await;
    ground.configure("listen = \"unix:not-bound.sock\"");
    let mut command = Command::new("python3");
    command.args(["-c", HAND_OVER, env!("CARGO_BIN_EXE_clipgate"), "serve", "--config", "config.toml"]);
    ground.confine(&mut command);
    let mut gateway = GatewayProcess::spawn(command);
    let address = gateway.address().await;
    assert_eq!(gateway.listens_on().await, "unix:handed.sock");
    assert!(!ground.path("not-bound.sock").exists());

    let unix = UnixStream::connect(ground.path("handed.sock")).await.unwrap();
    for mut client in [TestClient::connect(address).await, TestClient::h1(unix).await] {
        assert_eq!(client.get("/anything", &[]).await.status(), 404);
    }
    gateway.signal("TERM");
    assert_eq!(gateway.wait_for_exit().await.code(), Some(0));
    assert!(ground.path("handed.sock").exists(), "its maker keeps it");
}

#[tokio::test]
async fn the_service_manager_is_told() {
    let ground = TestEnv::new().await;
    ground.configure("");
    let manager = tokio::net::UnixDatagram::bind(ground.path("notify")).unwrap();
    let mut command = ground.command();
    command.env("NOTIFY_SOCKET", ground.path("notify"));
    let mut gateway = GatewayProcess::spawn(command);
    gateway.address().await;
    assert_eq!(told(&manager).await, "READY=1\n");
    gateway.signal("HUP");
    let reloading = told(&manager).await;
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert_eq!(told(&manager).await, "READY=1\n");
    gateway.signal("TERM");
    assert_eq!(told(&manager).await, "STOPPING=1\n");
    assert_eq!(gateway.wait_for_exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_service_manager_that_watches_is_given_signs_of_life_to_the_end_of_the_drain() {
    let ground = TestEnv::new().await;
    ground.configure("drain_timeout = \"1h\"");
    ground.sim.fault(FaultTarget::Path("/held".to_owned()), Fault::Hang, 1);
    let manager = tokio::net::UnixDatagram::bind(ground.path("notify")).unwrap();
    let mut command = ground.command();
    command.env("NOTIFY_SOCKET", ground.path("notify")).env("WATCHDOG_USEC", "200000");
    let mut gateway = GatewayProcess::spawn(command);
    let mut client = TestClient::connect(gateway.address().await).await;
    let held = tokio::spawn(async move { client.send(get("/held", &[])).await });
    ground.sim.wait_until(|seen| seen.requests.len() == 1).await;
    assert_eq!(told(&manager).await, "READY=1\n");
    for _ in 0..3 {
        assert_eq!(told(&manager).await, "WATCHDOG=1\n");
    }
    gateway.signal("TERM");
    while told(&manager).await != "STOPPING=1\n" {}
    for _ in 0..3 {
        assert_eq!(told(&manager).await, "WATCHDOG=1\n", "a long drain is no reason to be killed");
    }
    gateway.signal("TERM");
    assert_eq!(gateway.wait_for_exit().await.code(), Some(1));
    assert!(held.await.unwrap().is_err());
}

#[tokio::test]
async fn no_sign_is_given_to_who_watches_another_process() {
    let ground = TestEnv::new().await;
    ground.configure("");
    let manager = tokio::net::UnixDatagram::bind(ground.path("notify")).unwrap();
    let mut command = ground.command();
    command
        .env("NOTIFY_SOCKET", ground.path("notify"))
        .env("WATCHDOG_USEC", "20000")
        .env("WATCHDOG_PID", "1");
    let mut gateway = GatewayProcess::spawn(command);
    gateway.address().await;
    assert_eq!(told(&manager).await, "READY=1\n");
    // The first sign would come at once, the others within each reload.
    for _ in 0..10 {
        gateway.signal("HUP");
        gateway.wait_for_log("configuration reloaded").await;
        assert!(told(&manager).await.starts_with("RELOADING=1\n"));
        assert_eq!(told(&manager).await, "READY=1\n");
    }
}

async fn told(manager: &tokio::net::UnixDatagram) -> String {
    let mut text = [0; 256];
    let length = within_timeout("news", manager.recv(&mut text)).await.unwrap();
    String::from_utf8(text[..length].to_vec()).unwrap()
}

#[tokio::test]
async fn a_connection_that_asks_for_nothing_is_closed_in_header_timeout_and_gives_its_place_back() {
    let ground = TestEnv::new().await;
    ground.configure("max_connections = 1\nheader_timeout = \"1s\"");
    let mut gateway = ground.start();
    let address = gateway.address().await;
    for start in [&b""[..], b"PRI * HTTP/2", b"GET / HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut silent = TcpStream::connect(address).await.unwrap();
        silent.write_all(start).await.unwrap();
        let mut rest = Vec::new();
        within_timeout("its end", silent.read_to_end(&mut rest)).await.unwrap();
    }
    assert_eq!(TestClient::connect(address).await.get("/x", &[]).await.status(), 404);
}

#[tokio::test]
async fn a_kept_connection_is_closed_in_idle_timeout_and_not_in_that_of_a_head() {
    let ground = TestEnv::new().await;
    ground.sim.set_status("a", "queued");
    // A thousand times what it takes to send a head.
    ground.configure("max_connections = 1\nheader_timeout = \"1s\"\nidle_timeout = \"1h\"");
    let mut gateway = ground.start();
    let address = gateway.address().await;
    let mut kept = TestClient::connect(address).await;
    for _ in 0..2 {
        assert_eq!(kept.get("/x", &[]).await.status(), 404);
        tokio::time::sleep(Duration::from_millis(1500)).await;
    }
    drop(kept);
    let mut late = TcpStream::connect(address).await.unwrap();
    late.write_all(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut piece = [0; 4096];
    assert_ne!(within_timeout("an answer", late.read(&mut piece)).await.unwrap(), 0);
    late.write_all(b"GET /x HTTP/1.1\r\nhost").await.unwrap();
    within_timeout("its end", late.read_to_end(&mut Vec::new())).await.unwrap();
    assert_eq!(TestClient::connect(address).await.get("/x", &[]).await.status(), 404);

    ground.configure("header_timeout = \"1h\"\nidle_timeout = \"300ms\"");
    let mut gateway = ground.start();
    let address = gateway.address().await;
    let stream = || async { TcpStream::connect(address).await.unwrap() };
    for mut client in [TestClient::h1(stream().await).await, TestClient::h2(stream().await).await] {
        let answer = client.get(&completed_target("a"), &[("prefer", "wait=1")]).await;
        assert_eq!(answer.status(), 200, "who waits is not idle");
        within_timeout("its end", client.wait_until_closed()).await;
    }
}
