//! Unread or failing stdout and stderr: the gateway keeps serving.

use std::net::SocketAddr;
use std::process::Stdio;

use tokio::process::{Child, Command};

use crate::harness::admin_client::{AdminClient, text};
use crate::harness::process::{GatewayProcess, TestClient, TestEnv, within_timeout};

const DROPPED: &str = "clipgate_log_lines_dropped_total";

/// Starts a gateway with an admin listener. Its log is not read yet.
async fn start(env: &TestEnv) -> (GatewayProcess, SocketAddr, AdminClient) {
    env.configure("");
    let mut command = env.command();
    // Each line has the whole path of a request.
    command.env("CLIPGATE__ADMIN__LISTEN", "127.0.0.1:0").env("CLIPGATE__LOG__FORMAT", "json");
    let mut gateway = GatewayProcess::spawn(command);
    let address = gateway.address().await;
    let line = gateway.next_line().await;
    let admin = AdminClient::at(line.strip_prefix("clipgate admin listening on ").unwrap().parse().unwrap());
    (gateway, address, admin)
}

/// Returns the number of dropped lines.
async fn dropped(admin: &AdminClient) -> u64 {
    let page = admin.get("/metrics").await;
    let value = text(&page).lines().find_map(|line| line.strip_prefix(DROPPED)).expect("the metric exists");
    value.trim().parse().unwrap()
}

/// Sends requests until their log lines fill the pipe and the buffer of the gateway. Each gets a response.
async fn flood(client: &mut TestClient, admin: &AdminClient) {
    let target = format!("/{}", "x".repeat(60_000));
    while dropped(admin).await == 0 {
        for _ in 0..20 {
            client.get(&target, &[]).await;
        }
    }
}

#[tokio::test]
async fn an_unread_log_delays_no_response_and_reports_dropped_lines_once_it_is_read() {
    let env = TestEnv::new().await;
    let (mut gateway, address, admin) = start(&env).await;
    let mut client = TestClient::connect(address).await;
    flood(&mut client, &admin).await;
    let lost = dropped(&admin).await;
    assert_eq!(admin.get("/healthz").await.status(), 200);

    let line = gateway.wait_for_log("log lines were dropped").await;
    assert!(line.contains(r#""level":"WARN""#) && line.contains(&format!("\"lines\":{lost}")), "{line}");
    client.get("/x", &[("x-request-id", "read-again")]).await;
    gateway.wait_for_log(r#""clipgate.request_id":"read-again""#).await;
    assert_eq!(dropped(&admin).await, lost);
}

#[tokio::test]
async fn sigterm_exits_with_0_with_an_unread_log() {
    let env = TestEnv::new().await;
    let (mut gateway, address, admin) = start(&env).await;
    let mut client = TestClient::connect(address).await;
    flood(&mut client, &admin).await;
    gateway.signal("TERM");
    client.wait_until_closed().await;
    assert_eq!(gateway.wait_for_exit().await.code(), Some(0));
}

/// Starts a gateway whose stdout is not usable, and waits until it serves on its unix socket.
async fn spawn_and_wait(env: &TestEnv, mut command: Command) -> Child {
    let path = env.path("gw.sock");
    let child = command.spawn().unwrap();
    let served = async {
        loop {
            if let Ok(stream) = tokio::net::UnixStream::connect(&path).await {
                return TestClient::h1(stream).await.get("/x", &[]).await.status();
            }
            tokio::task::yield_now().await;
        }
    };
    assert_eq!(within_timeout("a response", served).await, 404);
    child
}

async fn terminate(mut child: Child) {
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    assert_eq!(within_timeout("the end of the process", child.wait()).await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_full_closed_or_unread_stdout_does_not_end_the_gateway() {
    let env = TestEnv::new().await;
    env.configure(&format!("listen = {:?}", format!("unix:{}", env.path("gw.sock").display())));
    // A full disk.
    let mut command = env.command();
    command.stdout(std::fs::File::options().write(true).open("/dev/full").unwrap()).stderr(Stdio::null());
    terminate(spawn_and_wait(&env, command).await).await;
    // A pipe whose reader has closed it, as `head` does.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = env.command();
    command.stdout(writer).stderr(Stdio::null());
    terminate(spawn_and_wait(&env, command).await).await;
    // A full pipe that is not read.
    let (reader, mut writer) = std::io::pipe().unwrap();
    let full = writer.try_clone().unwrap();
    let filling = std::thread::spawn(move || std::io::Write::write_all(&mut writer, &vec![b'x'; 1 << 20]));
    let mut command = env.command();
    command.stdout(full).stderr(Stdio::null());
    terminate(spawn_and_wait(&env, command).await).await;
    drop(reader);
    assert!(filling.join().unwrap().is_err());
    // No stdout.
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" serve --config config.toml >&-", env!("CARGO_BIN_EXE_clipgate")]);
    env.confine(&mut command);
    command.stderr(Stdio::null());
    terminate(spawn_and_wait(&env, command).await).await;
}

#[test]
fn a_closed_pipe_is_not_reported_as_an_error() {
    for args in [&["completions", "bash"][..], &["check"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_clipgate"));
        let output = command.args(args).env_clear().stdout(writer).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{args:?}");
        assert_eq!(output.status.code(), Some(1), "{args:?}");
    }
}
