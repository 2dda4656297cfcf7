//! `clipgate health`, the health check of containers and orchestrators.

use std::process::{Command, Output};

use clipgate::sim::{Fault, FaultTarget};
use tokio::net::TcpListener;

use crate::harness::command::ClipgateProcess;
use crate::harness::process::{GatewayProcess, TestClient, TestEnv, get, within_timeout};

/// Runs the command with this environment only.
fn health(args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clipgate"));
    command.arg("health").args(args).env_clear().envs(env.iter().copied()).output().unwrap()
}

/// Returns the exit code and all output.
fn result(output: &Output) -> (Option<i32>, String) {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

/// Arguments and environment.
type Call<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)]);

const SIM: [&str; 4] = ["serve", "--sim", "--listen", "127.0.0.1:0"];

#[test]
fn a_ready_gateway_is_found_by_flag_file_and_environment() {
    let token = ("CLIPGATE__ADMIN__TOKEN", "t0ken");
    let mut gateway = ClipgateProcess::start(&SIM, &[("CLIPGATE__ADMIN__LISTEN", "127.0.0.1:0"), token]);
    gateway.ready();
    let address = gateway.admin();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, format!("admin.listen = \"{address}\"\n")).unwrap();
    let file = file.to_str().unwrap();
    let any_address = format!("0.0.0.0:{}", address.rsplit(':').next().unwrap());
    let calls: [Call<'_>; 5] = [
        (&["--admin", &address], &[("CLIPGATE__ADMIN__LISTEN", "")]),
        (&["--config", file], &[]),
        (&[], &[("CLIPGATE_CONFIG", file)]),
        (&[], &[("CLIPGATE__ADMIN__LISTEN", &address)]),
        (&["--live"], &[("CLIPGATE__ADMIN__LISTEN", &any_address)]),
    ];
    for (args, env) in calls {
        let (code, text) = result(&health(args, env));
        assert_eq!(code, Some(0), "{args:?} {env:?}: {text}");
        let word = if args == ["--live"] { "ok" } else { "ready" };
        assert!(text.ends_with(&format!(" reports {word}\n")), "{text}");
    }
    gateway.stop();
    let (code, text) = result(&health(&["--admin", &address], &[]));
    assert_eq!(code, Some(1));
    assert!(text.starts_with(&format!("error: {address} does not accept connections: ")), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
}

#[test]
fn an_admin_listener_on_a_unix_socket_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let listen = format!("unix:{}", dir.path().join("admin.sock").display());
    let env = [("CLIPGATE__ADMIN__LISTEN", listen.as_str())];
    let mut gateway = ClipgateProcess::start(&SIM, &env);
    gateway.ready();
    gateway.admin();
    assert_eq!(result(&health(&[], &env)), (Some(0), format!("{listen} reports ready\n")));
}

#[tokio::test]
async fn a_draining_gateway_is_alive_but_not_ready() {
    let env = TestEnv::new().await;
    env.configure("drain_timeout = \"1h\"");
    env.sim.fault(FaultTarget::Path("/held".to_owned()), Fault::Hang, 1);
    let mut command = env.command();
    command.env("CLIPGATE__ADMIN__LISTEN", "127.0.0.1:0");
    let mut gateway = GatewayProcess::spawn(command);
    let mut client = TestClient::connect(gateway.address().await).await;
    let admin = gateway.next_line().await;
    let admin = admin.strip_prefix("clipgate admin listening on ").unwrap();
    let held = tokio::spawn(async move { client.send(get("/held", &[])).await });
    env.sim.wait_until(|seen| seen.requests.len() == 1).await;
    gateway.signal("TERM");
    gateway.wait_for_log("stopping").await;
    let check = |args: &'static [&str]| result(&health(&[&["--admin", admin], args].concat(), &[]));
    let draining = async {
        while check(&[]).0 == Some(0) {
            tokio::task::yield_now().await;
        }
    };
    within_timeout("the drain", draining).await;
    assert_eq!(check(&[]), (Some(1), format!("error: {admin} reports draining (503)\n")));
    assert_eq!(check(&["--live"]).0, Some(0));
    gateway.signal("TERM");
    gateway.wait_for_exit().await;
    assert!(held.await.unwrap().is_err());
}

#[tokio::test]
async fn a_silent_server_and_another_server_are_not_a_ready_gateway() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let output = health(&["--admin", &address, "--timeout", "100ms"], &[]);
    assert_eq!(result(&output), (Some(1), format!("error: {address} did not respond within 100ms\n")));

    let other = TestEnv::new().await.upstream_url();
    let address = other.strip_prefix("http://").unwrap().to_owned();
    let output = tokio::task::spawn_blocking(move || result(&health(&["--admin", &address], &[])));
    let (code, text) = within_timeout("the response", output).await.unwrap();
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(" reports ") && text.ends_with("(404)\n"), "{text}");
}

#[test]
fn without_an_address_the_exit_code_is_2_with_the_reason() {
    let rows: [(Call<'_>, &str); 5] = [
        ((&[], &[("CLIPGATE__ADMIN__LISTEN", "")]), "there is no admin listener: admin.listen is empty"),
        ((&[], &[("CLIPGATE__ADMIN__LISTEN", "127.0.0.1:0")]), "admin.listen has port 0"),
        ((&[], &[("CLIPGATE__ADMIN__LISTN", "127.0.0.1:9090")]), "admin.listn"),
        ((&["--admin", "nowhere"], &[]), "--admin"),
        ((&["--config", "/no/such/file.toml"], &[]), "/no/such/file.toml"),
    ];
    for ((args, env), reason) in rows {
        let (code, text) = result(&health(args, env));
        assert_eq!(code, Some(2), "{args:?} {env:?}: {text}");
        assert!(text.contains(reason), "{text}");
    }
}
