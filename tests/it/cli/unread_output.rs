//! Nobody reads what the process writes, or it cannot be written: the gateway goes on all the same.

use std::net::SocketAddr;
use std::process::Stdio;

use tokio::process::{Child, Command};

use crate::harness::admin_client::{AdminClient, text};
use crate::harness::process::{GatewayProcess, TestClient, TestEnv, within_timeout};

const DROPPED: &str = "clipgate_log_lines_dropped_total";

/// A gateway with an admin listener, whose log nobody reads yet.
async fn start(ground: &TestEnv) -> (GatewayProcess, SocketAddr, AdminClient) {
    ground.configure("");
    let mut command = ground.command();
    command.env("CLIPGATE__ADMIN__LISTEN", "127.0.0.1:0");
    let mut gateway = GatewayProcess::spawn(command);
    let address = gateway.address().await;
    let admin = gateway.next_line().await;
    let operator =
        AdminClient::at(admin.strip_prefix("clipgate admin listening on ").unwrap().parse().unwrap());
    (gateway, address, operator)
}

/// How many lines have been dropped.
async fn dropped(operator: &AdminClient) -> u64 {
    let page = operator.get("/metrics").await;
    let value = text(&page).lines().find_map(|line| line.strip_prefix(DROPPED)).expect("it is on the page");
    value.trim().parse().unwrap()
}

/// Makes requests whose lines fill the pipe and all that the gateway keeps for it; each is answered.
async fn flood(client: &mut TestClient, operator: &AdminClient) {
    let target = format!("/{}", "x".repeat(60_000));
    while dropped(operator).await == 0 {
        for _ in 0..20 {
            client.get(&target, &[]).await;
        }
    }
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_up_no_answer_and_what_it_lost_is_told_once_it_is_read() {
    let ground = TestEnv::new().await;
    let (mut gateway, address, operator) = start(&ground).await;
    let mut client = TestClient::connect(address).await;
    flood(&mut client, &operator).await;
    let lost = dropped(&operator).await;
    assert_eq!(operator.get("/healthz").await.status(), 200);

    let line = gateway.wait_for_log("log lines were dropped").await;
    assert!(line.contains(" WARN ") && line.contains(&format!(" lines={lost}")), "{line}");
    client.get("/x", &[("x-request-id", "read-again")]).await;
    gateway.wait_for_log("request_id=read-again").await;
    assert_eq!(dropped(&operator).await, lost);
}

#[tokio::test]
async fn sigterm_ends_it_with_0_though_nobody_reads_its_log() {
    let ground = TestEnv::new().await;
    let (mut gateway, address, operator) = start(&ground).await;
    let mut client = TestClient::connect(address).await;
    flood(&mut client, &operator).await;
    gateway.signal("TERM");
    client.wait_until_closed().await;
    assert_eq!(gateway.wait_for_exit().await.code(), Some(0));
}

/// The gateway at an address of its own choice, found by asking: nothing is to be had from its stdout.
async fn serves(ground: &TestEnv, mut command: Command) -> Child {
    let path = ground.path("gw.sock");
    let child = command.spawn().unwrap();
    let served = async {
        loop {
            if let Ok(stream) = tokio::net::UnixStream::connect(&path).await {
                return TestClient::h1(stream).await.get("/x", &[]).await.status();
            }
            tokio::task::yield_now().await;
        }
    };
    assert_eq!(within_timeout("an answer", served).await, 404);
    child
}

async fn terminate(mut child: Child) {
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
    assert_eq!(within_timeout("its end", child.wait()).await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn stdout_that_is_full_closed_or_read_by_nobody_does_not_end_it() {
    let ground = TestEnv::new().await;
    ground.configure(&format!("listen = {:?}", format!("unix:{}", ground.path("gw.sock").display())));
    // A full disk.
    let mut command = ground.command();
    command.stdout(std::fs::File::options().write(true).open("/dev/full").unwrap()).stderr(Stdio::null());
    terminate(serves(&ground, command).await).await;
    // A pipe whose reader has gone, as `head` does.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = ground.command();
    command.stdout(writer).stderr(Stdio::null());
    terminate(serves(&ground, command).await).await;
    // A pipe that is full, and that nobody reads.
    let (reader, mut writer) = std::io::pipe().unwrap();
    let full = writer.try_clone().unwrap();
    let filling = std::thread::spawn(move || std::io::Write::write_all(&mut writer, &vec![b'x'; 1 << 20]));
    let mut command = ground.command();
    command.stdout(full).stderr(Stdio::null());
    terminate(serves(&ground, command).await).await;
    drop(reader);
    assert!(filling.join().unwrap().is_err());
    // None at all.
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" serve --config config.toml >&-", env!("CARGO_BIN_EXE_clipgate")]);
    ground.confine(&mut command);
    command.stderr(Stdio::null());
    terminate(serves(&ground, command).await).await;
}

#[test]
fn a_reader_that_has_had_enough_is_nothing_to_complain_about() {
    for args in [&["completions", "bash"][..], &["check"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_clipgate"));
        let output = command.args(args).env_clear().stdout(writer).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{args:?}");
        assert_eq!(output.status.code(), Some(1), "{args:?}");
    }
}
