//! `serve --sim --replicas N`: gateways and an engine on one machine. Needs a Redis or Valkey server.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

use crate::harness::admin_client::AdminClient;
use crate::harness::command::{ClipgateProcess, run};
use crate::harness::process::within_timeout;
use crate::harness::raw_http::CLIP;

/// Pause between two looks at a state.
const LOOK: Duration = Duration::from_millis(20);

/// Returns the running children of a process, with the first word of their command lines.
pub(crate) fn children(parent: u32) -> Vec<(u32, String)> {
    let ids =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let child = |id: u32| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // After the name in brackets: the state and the parent.
        let mut words = stat.rsplit_once(')')?.1.split_whitespace();
        let is_child = words.next()? != "Z" && words.next()?.parse() == Ok(parent);
        let line = fs::read_to_string(format!("/proc/{id}/cmdline")).ok()?;
        is_child.then(|| (id, line.split('\0').next().unwrap_or_default().to_owned()))
    };
    ids.filter_map(child).collect()
}

/// Sends SIGKILL.
pub(crate) fn kill(id: u32) {
    assert!(Command::new("kill").args(["-KILL", &id.to_string()]).status().unwrap().success());
}

/// A gateway of the three.
struct Started {
    address: String,
    admin: AdminClient,
}

fn start(count: usize, args: &[&str]) -> (ClipgateProcess, Vec<Started>) {
    let number = count.to_string();
    let args = [&["serve", "--sim", "--replicas", &number, "--listen", "127.0.0.1:0"], args].concat();
    let path = std::env::var("PATH").unwrap();
    let env = [
        ("PATH", &*path),
        ("CLIPGATE__ADMIN__LISTEN", "127.0.0.1:0"),
        // On a busy machine a replica would make a poll alone, as it should.
        ("CLIPGATE__CLUSTER__PATIENCE", "2s"),
    ];
    let mut gateways = ClipgateProcess::start(&args, &env);
    let started = (0..count).map(|_| Started {
        address: gateways.ready(),
        admin: AdminClient::at(gateways.admin().parse().unwrap()),
    });
    let started = started.collect();
    (gateways, started)
}

async fn wait_for(what: &str, replica: &Started, is_met: impl Fn(&Value) -> bool) {
    let waiting = async {
        while !is_met(&replica.admin.state().await) {
            tokio::time::sleep(LOOK).await;
        }
    };
    within_timeout(what, waiting).await;
}

/// Waits until processes have ended.
async fn wait_for_ends(ids: &[u32]) {
    let is_running = |id: &u32| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, after)| !after.trim_start().starts_with('Z'))
    };
    let waiting = async {
        while ids.iter().any(is_running) {
            tokio::time::sleep(LOOK).await;
        }
    };
    within_timeout("the end of the children", waiting).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_at_three_replicas_cost_one_poll_and_a_lost_replica_is_reported() {
    let (mut gateways, replicas) = start(3, &["--speed", "20"]);
    for replica in &replicas {
        wait_for("all members", replica, |state| {
            let members = state["cluster"]["members"].as_array().map_or(0, Vec::len);
            state["cluster"]["link"] == "near" && members == 3
        })
        .await;
    }
    let running = children(gateways.id());
    assert_eq!(running.len(), 4, "{running:?}");

    let create = format!("http://{}{CLIP}", replicas[0].address);
    let key = "authorization: Bearer demo";
    let created = run("curl", "curl", &["-s", &create, "-H", key, "-d", r#"{"prompt":"x"}"#]);
    let created: Value = serde_json::from_str(&created).unwrap();
    let id = created["clip_ids"][0].as_str().unwrap();
    let waits = replicas.iter().flat_map(|replica| {
        let target = format!("http://{}{CLIP}?clip_id={id}&status=completed", replica.address);
        [(); 4].map(|()| {
            let target = target.clone();
            tokio::task::spawn_blocking(move || run("curl", "curl", &["-s", "-i", &target, "-H", key]))
        })
    });
    let waits: Vec<_> = waits.collect();
    let mut answers = Vec::new();
    for wait in waits {
        answers.push(wait.await.unwrap());
    }
    let count = |text: &str| answers.iter().filter(|answer| answer.contains(text)).count();
    assert_eq!((answers.len(), count("HTTP/1.1 200")), (12, 12), "{answers:#?}");
    assert_eq!(count("fwd=miss; fwd-status=200"), 1, "one poll for all: {answers:#?}");
    assert!(count("detail=sibling") >= 2, "{answers:#?}");

    let secrets: Vec<String> = running
        .iter()
        .filter_map(|(id, _)| fs::read_to_string(format!("/proc/{id}/environ")).ok())
        .flat_map(|all| all.split('\0').map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|variable| variable.strip_prefix("CLIPGATE__CLUSTER__SECRET=").map(str::to_owned))
        .collect();
    assert!(secrets.len() == 3 && secrets[0].len() == 64, "{}", secrets.len());
    assert!(secrets.iter().all(|secret| *secret == secrets[0]));

    let lost = running.iter().find(|(_, name)| name.contains("clipgate")).unwrap().0;
    kill(lost);
    let reported = async {
        while !gateways.log().contains("a replica has ended") {
            tokio::time::sleep(LOOK).await;
        }
    };
    within_timeout("the report", reported).await;
    let ids: Vec<u32> = running.iter().map(|(id, _)| *id).collect();
    let (code, log) = gateways.stop();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("SIGKILL") && !log.contains(&secrets[0]), "{log}");
    wait_for_ends(&ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_uses_all_replicas_and_all_ends_with_the_command_even_if_it_is_killed() {
    let (mut gateways, replicas) = start(2, &["--speed", "40", "--crowd", "20"]);
    for replica in &replicas {
        wait_for("requests of the crowd", replica, |state| {
            let requests = &state["totals"]["requests"];
            requests["hit"].as_u64() > Some(0) && requests["coalesced"].as_u64() > Some(0)
        })
        .await;
    }
    let ids: Vec<u32> = children(gateways.id()).into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids.len(), 3);
    gateways.kill();
    wait_for_ends(&ids).await;
}

fn refused(args: &[&str], path: &str) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = Command::new(env!("CARGO_BIN_EXE_clipgate"))
        .args([&["serve"], args].concat())
        .env_clear()
        .env("PATH", path)
        .env("CLIPGATE__ADMIN__LISTEN", "127.0.0.1:0")
        .output()
        .unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[test]
fn without_an_engine_or_with_arguments_that_do_not_fit_the_command_says_what_to_do() {
    let old = tempfile::tempdir().unwrap();
    let server = old.path().join("redis-server");
    fs::write(&server, "#!/bin/sh\necho Redis server v=6.2.7 sha=0\n").unwrap();
    fs::set_permissions(&server, fs::Permissions::from_mode(0o755)).unwrap();
    let broken = tempfile::tempdir().unwrap();
    let server = broken.path().join("valkey-server");
    let script =
        "#!/bin/sh\n[ \"$1\" = --version ] && echo v=8.0.1 && exit\necho cannot open the file; exit 3\n";
    fs::write(&server, script).unwrap();
    fs::set_permissions(&server, fs::Permissions::from_mode(0o755)).unwrap();
    let (old, broken) = (old.path().to_str().unwrap(), broken.path().to_str().unwrap());
    let simulated = ["--sim", "--listen", "127.0.0.1:0", "--replicas", "3"];
    let cases: [(&[&str], &str, i32, &str); 7] = [
        (&simulated, "/nonexistent", 1, "neither valkey-server nor redis-server"),
        (&simulated, old, 1, "too old for --replicas"),
        (&simulated, broken, 1, "valkey-server does not start: cannot open the file"),
        (&["--replicas", "3"], "", 2, "--sim"),
        (&["--sim", "--replicas", "1"], "", 2, "2..=8"),
        (&["--sim", "--replicas", "9"], "", 2, "2..=8"),
        (&["--sim", "--replicas", "3", "--listen", "unix:/tmp/clipgate-none"], "", 2, "needs a TCP listener"),
    ];
    for (args, path, code, text) in cases {
        let (exit, error) = refused(args, path);
        assert_eq!(exit, Some(code), "{args:?}: {error}");
        assert!(error.starts_with("error: ") && error.contains(text), "{args:?}: {error}");
    }
}
