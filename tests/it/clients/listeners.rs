//! Listeners: TCP and unix sockets, socket activation, systemd's notifications, idle connections.
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
async fn several_listeners_share_one_gateway_and_a_unix_socket_has_mode_660() {
    let env = TestEnv::new().await;
    let path = env.path("gw.sock");
    env.configure(&format!(
        "listen = [\"127.0.0.1:0\", {}, \"[::1]:0\"]",
        quoted(format!("unix:{}", path.display()).as_ref())
    ));
    env.sim.set_status("a", "complete");
    let mut gateway = env.start();
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
    assert!(!path.exists(), "the socket file is removed");
}

#[tokio::test]
async fn a_stale_socket_is_replaced_but_a_file_is_not() {
    let env = TestEnv::new().await;
    let path = env.path("gw.sock");
    env.configure(&format!("listen = {}", quoted(format!("unix:{}", path.display()).as_ref())));
    std::fs::write(&path, "precious").unwrap();
    let mut gateway = env.start();
    let log = gateway.rest_of_log().await;
    assert!(log.iter().any(|line| line.contains("cannot listen on unix:")), "{log:?}");
    assert_eq!(gateway.wait_for_exit().await.code(), Some(1));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");

    std::fs::remove_file(&path).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let mut gateway = env.start();
    gateway.listens_on().await;
    UnixStream::connect(&path).await.unwrap();
}

/// A service manager: binds a TCP and a unix socket, passes them as descriptors 3 and 4, and executes the gateway.
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
async fn inherited_sockets_replace_the_configured_ones() {
    let env = TestEnv::new().await;
    env.configure("listen = \"unix:not-bound.sock\"");
    let mut command = Command::new("python3");
    command.args(["-c", HAND_OVER, env!("CARGO_BIN_EXE_clipgate"), "serve", "--config", "config.toml"]);
    env.confine(&mut command);
    let mut gateway = GatewayProcess::spawn(command);
    let address = gateway.address().await;
    assert_eq!(gateway.listens_on().await, "unix:handed.sock");
    assert!(!env.path("not-bound.sock").exists());

    let unix = UnixStream::connect(env.path("handed.sock")).await.unwrap();
    for mut client in [TestClient::connect(address).await, TestClient::h1(unix).await] {
        assert_eq!(client.get("/anything", &[]).await.status(), 404);
    }
    gateway.signal("TERM");
    assert_eq!(gateway.wait_for_exit().await.code(), Some(0));
    assert!(env.path("handed.sock").exists(), "an inherited socket file is not removed");
}

#[tokio::test]
async fn the_service_manager_is_notified_of_start_reload_and_stop() {
    let env = TestEnv::new().await;
    env.configure("");
    let manager = tokio::net::UnixDatagram::bind(env.path("notify")).unwrap();
    let mut command = env.command();
    command.env("NOTIFY_SOCKET", env.path("notify"));
    let mut gateway = GatewayProcess::spawn(command);
    gateway.address().await;
    assert_eq!(notification(&manager).await, "READY=1\n");
    gateway.signal("HUP");
    let reloading = notification(&manager).await;
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert_eq!(notification(&manager).await, "READY=1\n");
    gateway.signal("TERM");
    assert_eq!(notification(&manager).await, "STOPPING=1\n");
    assert_eq!(gateway.wait_for_exit().await.code(), Some(0));
}

#[tokio::test]
async fn the_watchdog_of_the_service_manager_is_notified_until_the_end_of_the_drain() {
    let env = TestEnv::new().await;
    env.configure("drain_timeout = \"1h\"");
    env.sim.fault(FaultTarget::Path("/held".to_owned()), Fault::Hang, 1);
    let manager = tokio::net::UnixDatagram::bind(env.path("notify")).unwrap();
    let mut command = env.command();
    command.env("NOTIFY_SOCKET", env.path("notify")).env("WATCHDOG_USEC", "200000");
    let mut gateway = GatewayProcess::spawn(command);
    let mut client = TestClient::connect(gateway.address().await).await;
    let held = tokio::spawn(async move { client.send(get("/held", &[])).await });
    env.sim.wait_until(|seen| seen.requests.len() == 1).await;
    assert_eq!(notification(&manager).await, "READY=1\n");
    for _ in 0..3 {
        assert_eq!(notification(&manager).await, "WATCHDOG=1\n");
    }
    gateway.signal("TERM");
    while notification(&manager).await != "STOPPING=1\n" {}
    for _ in 0..3 {
        assert_eq!(
            notification(&manager).await,
            "WATCHDOG=1\n",
            "a long drain does not stop the notifications"
        );
    }
    gateway.signal("TERM");
    assert_eq!(gateway.wait_for_exit().await.code(), Some(1));
    assert!(held.await.unwrap().is_err());
}

#[tokio::test]
async fn a_watchdog_for_another_process_is_not_notified() {
    let env = TestEnv::new().await;
    env.configure("");
    let manager = tokio::net::UnixDatagram::bind(env.path("notify")).unwrap();
    let mut command = env.command();
    command.env("NOTIFY_SOCKET", env.path("notify")).env("WATCHDOG_USEC", "20000").env("WATCHDOG_PID", "1");
    let mut gateway = GatewayProcess::spawn(command);
    gateway.address().await;
    assert_eq!(notification(&manager).await, "READY=1\n");
    // The first notification would come at once, further ones during each reload.
    for _ in 0..10 {
        gateway.signal("HUP");
        gateway.wait_for_log("configuration reloaded").await;
        assert!(notification(&manager).await.starts_with("RELOADING=1\n"));
        assert_eq!(notification(&manager).await, "READY=1\n");
    }
}

async fn notification(manager: &tokio::net::UnixDatagram) -> String {
    let mut text = [0; 256];
    let length = within_timeout("a notification", manager.recv(&mut text)).await.unwrap();
    String::from_utf8(text[..length].to_vec()).unwrap()
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed_after_header_timeout_and_frees_its_slot() {
    let env = TestEnv::new().await;
    env.configure("max_connections = 1\nheader_timeout = \"1s\"");
    let mut gateway = env.start();
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
async fn a_kept_alive_connection_is_closed_after_idle_timeout_not_header_timeout() {
    let env = TestEnv::new().await;
    env.sim.set_status("a", "queued");
    // A thousand times as long as a head takes.
    env.configure("max_connections = 1\nheader_timeout = \"1s\"\nidle_timeout = \"1h\"");
    let mut gateway = env.start();
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

    env.configure("header_timeout = \"1h\"\nidle_timeout = \"300ms\"");
    let mut gateway = env.start();
    let address = gateway.address().await;
    let stream = || async { TcpStream::connect(address).await.unwrap() };
    for mut client in [TestClient::h1(stream().await).await, TestClient::h2(stream().await).await] {
        let answer = client.get(&completed_target("a"), &[("prefer", "wait=1")]).await;
        assert_eq!(answer.status(), 200, "a connection with a wait is not idle");
        within_timeout("its end", client.wait_until_closed()).await;
    }
}
