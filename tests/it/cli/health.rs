//! `clipgate health`, as a container's health check and an orchestrator's probes call it.

use std::process::{Command, Output};

use clipgate::sim::{Fault, FaultTarget};
use tokio::net::TcpListener;

use crate::harness::command::Process;
use crate::harness::process::{Client, Gateway, TestEnv, get, within_timeout};

/// Asks, with this in the environment and nothing else.
fn health(args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clipgate"));
    command.arg("health").args(args).env_clear().envs(env.iter().copied()).output().unwrap()
}

/// The exit code, and all that was said.
fn said(output: &Output) -> (Option<i32>, String) {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

/// Arguments, and the environment.
type Call<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)]);

const SIM: [&str; 4] = ["serve", "--sim", "--listen", "127.0.0.1:0"];

#[test]
fn a_gateway_that_is_ready_is_well_wherever_its_address_is_named() {
    let token = ("CLIPGATE__ADMIN__TOKEN", "t0ken");
    let mut gateway = Process::start(&SIM, &[("CLIPGATE__ADMIN__LISTEN", "127.0.0.1:0"), token]);
    gateway.ready();
    let address = gateway.admin();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, format!("admin.listen = \"{address}\"\n")).unwrap();
    let file = file.to_str().unwrap();
    let everywhere = format!("0.0.0.0:{}", address.rsplit(':').next().unwrap());
    let ways: [Call<'_>; 5] = [
        (&["--admin", &address], &[("CLIPGATE__ADMIN__LISTEN", "")]),
        (&["--config", file], &[]),
        (&[], &[("CLIPGATE_CONFIG", file)]),
        (&[], &[("CLIPGATE__ADMIN__LISTEN", &address)]),
        (&["--live"], &[("CLIPGATE__ADMIN__LISTEN", &everywhere)]),
    ];
    for (args, env) in ways {
        let (code, text) = said(&health(args, env));
        assert_eq!(code, Some(0), "{args:?} {env:?}: {text}");
        let word = if args == ["--live"] { "ok" } else { "ready" };
        assert!(text.ends_with(&format!(" says {word}\n")), "{text}");
    }
    gateway.stop();
    let (code, text) = said(&health(&["--admin", &address], &[]));
    assert_eq!(code, Some(1));
    assert!(text.starts_with(&format!("clipgate: {address} does not accept connections: ")), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
}

#[test]
fn it_asks_a_unix_socket_too() {
    let dir = tempfile::tempdir().unwrap();
    let listen = format!("unix:{}", dir.path().join("admin.sock").display());
    let env = [("CLIPGATE__ADMIN__LISTEN", listen.as_str())];
    let mut gateway = Process::start(&SIM, &env);
    gateway.ready();
    gateway.admin();
    assert_eq!(said(&health(&[], &env)), (Some(0), format!("{listen} says ready\n")));
}

#[tokio::test]
async fn one_that_drains_lives_but_is_not_ready() {
    let ground = TestEnv::new().await;
    ground.configure("drain_timeout = \"1h\"");
    ground.sim.fault(FaultTarget::Path("/held".to_owned()), Fault::Hang, 1);
    let mut command = ground.command();
    command.env("CLIPGATE__ADMIN__LISTEN", "127.0.0.1:0");
    let mut gateway = Gateway::spawn(command);
    let mut client = Client::connect(gateway.address().await).await;
    let admin = gateway.line().await;
    let admin = admin.strip_prefix("clipgate admin listening on ").unwrap();
    let held = tokio::spawn(async move { client.ask(get("/held", &[])).await });
    ground.sim.wait_until(|seen| seen.requests.len() == 1).await;
    gateway.signal("TERM");
    gateway.logged("stopping").await;
    let ask = |args: &'static [&str]| said(&health(&[&["--admin", admin], args].concat(), &[]));
    let draining = async {
        while ask(&[]).0 == Some(0) {
            tokio::task::yield_now().await;
        }
    };
    within_timeout("it to drain", draining).await;
    assert_eq!(ask(&[]), (Some(1), format!("clipgate: {admin} says draining (503)\n")));
    assert_eq!(ask(&["--live"]).0, Some(0));
    gateway.signal("TERM");
    gateway.ended().await;
    assert!(held.await.unwrap().is_err());
}

#[tokio::test]
async fn who_takes_the_connection_and_says_nothing_or_something_else_is_not_well() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let output = health(&["--admin", &address, "--timeout", "100ms"], &[]);
    assert_eq!(said(&output), (Some(1), format!("clipgate: {address} did not answer in 100ms\n")));

    let other = TestEnv::new().await.upstream_url();
    let address = other.strip_prefix("http://").unwrap().to_owned();
    let asked = tokio::task::spawn_blocking(move || said(&health(&["--admin", &address], &[])));
    let (code, text) = within_timeout("the answer", asked).await.unwrap();
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(" says ") && text.ends_with("(404)\n"), "{text}");
}

#[test]
fn where_nobody_can_be_asked_the_exit_code_is_2_and_says_why() {
    let rows: [(Call<'_>, &str); 5] = [
        ((&[], &[("CLIPGATE__ADMIN__LISTEN", "")]), "admin.listen is off"),
        ((&[], &[("CLIPGATE__ADMIN__LISTEN", "127.0.0.1:0")]), "leaves the port to the system"),
        ((&[], &[("CLIPGATE__ADMIN__LISTN", "127.0.0.1:9090")]), "admin.listn"),
        ((&["--admin", "nowhere"], &[]), "--admin"),
        ((&["--config", "/no/such/file.toml"], &[]), "/no/such/file.toml"),
    ];
    for ((args, env), why) in rows {
        let (code, text) = said(&health(args, env));
        assert_eq!(code, Some(2), "{args:?} {env:?}: {text}");
        assert!(text.contains(why), "{text}");
    }
}
